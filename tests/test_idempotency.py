"""A balance update counts once, for ever: keys are compared whole and none is lost while their table grows; the index
of orders and the lists of users' orders forget exactly what they are told to, however their cells collide.
"""
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from pipeline.digest import state_digest
from pipeline.order_book import (
    add_to_list,
    find_order,
    forget_order,
    index_order,
    list_cell,
    list_key,
    remove_from_list,
)
from pipeline.replica import Replica
from pipeline.state import DEFECT, IDEMPOTENCY_FIRST_CELLS, KEY_CELLS, KEY_MIGRATED, KEYS, NONE, allocate
from shm import configuration
from shm.int128 import halves
from shm.records import COMMAND, LABEL_BYTES_MAX, LIMITS, Field, Kind, Result

SETTINGS = configuration.parse({
    "assets": [{"name": "BTC", "prec_save": 20}, {"name": "CNY", "prec_save": 20}],
    "limits": {"orders_max": 16, "levels_max": 16, "balances_max": 4096, "assets_max": 2, "markets_max": 1}})


def replica():
    return Replica.configured(SETTINGS)


def update(business_id=1, user=1, asset=0, business=b"deposit", padding=b""):
    command = np.zeros((), COMMAND)
    command["kind"], command["slots"] = Kind.UPDATE_BALANCE, 1
    command["user_id"], command["asset_id"], command["reference"] = user, asset, business_id
    command["label_bytes"] = len(business)
    label = np.frombuffer((business + padding).ljust(32, b"\0"), np.uint8)
    command["label"] = label
    command["change_low"], command["change_high"] = halves(10**20)
    return command


def result(replica, command):
    return Result(replica.apply(command)["result"])


def test_a_key_is_user_asset_business_and_business_id_each_to_its_last_bit():
    core = replica()
    longest = b"x" * (LABEL_BYTES_MAX - 1)
    commands = [
        update(), update(user=2), update(user=2**32 - 1), update(asset=1), update(business_id=2),
        update(business_id=0), update(business_id=2**64 - 1), update(business_id=2**63), update(business=b""),
        update(business=b"\0"),
        update(business=b"deposit\0"), update(business=b"deposi"), update(business=b"Deposit"),
        *(update(business=longest + bytes([byte])) for byte in range(256) if byte != ord("x")),
        *(update(business=bytes([byte]) + longest) for byte in range(256) if byte != ord("x")),
        *(update(business=b"x" * length) for length in range(1, LABEL_BYTES_MAX + 1)),
    ]
    for command in commands:
        assert result(core, command) == Result.OK
    for command in commands:
        assert result(core, command) == Result.REPEATED
    assert core.state.counters[KEYS] == len(commands)


@pytest.mark.parametrize("differ", [
    lambda bits: {"user": 1 + bits % (2**32 - 1)}, lambda bits: {"business_id": bits},
    *(lambda bits, word=word: {"business": bytes(8 * word) + bits.to_bytes(8, "little")} for word in range(3)),
    lambda bits: {"business": bytes(24) + (bits % 2**48).to_bytes(6, "little")},
], ids=["user", "business id", "word 0", "word 1", "word 2", "word 3"])
def test_keys_that_differ_in_one_place_alone_are_told_apart_in_a_table_as_full_as_it_gets(differ):
    core, chance = replica(), Random(4)
    keys = [differ(chance.getrandbits(64)) for _ in range(IDEMPOTENCY_FIRST_CELLS // 2 - 1)]
    for key in keys:
        assert result(core, update(**key)) == Result.OK
    assert core.state.counters[KEY_CELLS] == IDEMPOTENCY_FIRST_CELLS
    for key in keys:
        assert result(core, update(**key)) == Result.REPEATED


@pytest.mark.parametrize("business", [b"", b"a", b"x" * 7, b"x" * 8, b"x" * 9, b"x" * 16, b"x" * 24, b"x" * 30])
def test_what_stands_behind_the_business_in_its_field_does_not_count(business):
    core = replica()
    garbage = b"\xff" * (32 - len(business))
    assert result(core, update(business=business, padding=garbage)) == Result.OK
    said = core.drain_events()[0]["label"].tobytes()
    assert said == business.ljust(32, b"\0")
    assert result(core, update(business=business)) == Result.REPEATED
    assert result(core, update(business=business, padding=b"\x01" * (32 - len(business)))) == Result.REPEATED


def test_a_refused_update_is_not_remembered():
    core = replica()
    withdrawal = update()
    withdrawal["change_low"], withdrawal["change_high"] = halves(-10**20)
    assert result(core, withdrawal) == Result.BALANCE_TOO_LOW
    assert result(core, update(business_id=2)) == Result.OK
    assert result(core, withdrawal) == Result.OK
    assert result(core, withdrawal) == Result.REPEATED


def test_the_table_doubles_many_times_without_losing_or_inventing_a_key():
    core, chance = replica(), Random(3)
    counters = core.state.counters
    doublings, moving = 0, 0
    for business_id in range(120_000):
        cells = counters[KEY_CELLS]
        assert result(core, update(business_id, user=1 + business_id % 4)) == Result.OK
        doublings += counters[KEY_CELLS] != cells
        assert counters[KEYS] * 2 <= counters[KEY_CELLS]
        if counters[KEY_MIGRATED] != counters[KEY_CELLS] // 2:
            moving += 1
            assert result(core, update(chance.randrange(business_id + 1), user=9)) in (Result.OK, Result.REPEATED)
        known = chance.randrange(business_id + 1)
        assert result(core, update(known, user=1 + known % 4)) == Result.REPEATED
    assert doublings == int(counters[KEY_CELLS]).bit_length() - IDEMPOTENCY_FIRST_CELLS.bit_length() >= 6
    assert moving > 1_000      # keys were also looked for while some had moved and some had not
    for business_id in range(120_000):
        assert result(core, update(business_id, user=1 + business_id % 4)) == Result.REPEATED
        if business_id % 40 == 0:
            assert result(core, update(business_id, user=5)) == Result.OK


def test_a_table_that_cannot_grow_refuses_new_keys_before_anything_changes_and_knows_the_old_ones():
    core = replica()
    core.state = core.state._replace(keys=core.state.keys[:4 * IDEMPOTENCY_FIRST_CELLS])  # room for one doubling
    known = IDEMPOTENCY_FIRST_CELLS
    for business_id in range(known):
        assert result(core, update(business_id)) == Result.OK
    digest = state_digest(core.state)
    header = core.apply(update(known))
    assert (header["result"], header["field"], header["bound"]) == (Result.FULL, Field.IDEMPOTENCY_KEYS, known)
    assert state_digest(core.state) == digest
    assert result(core, update(known - 1)) == Result.REPEATED


# Tables that give back: linear probing, deletion by shifting back.

@njit(cache=True, _nrt=False)
def put(state, order_id, slot):
    state.orders[slot].order_id = order_id
    index_order(state, order_id, slot)


@njit(cache=True, _nrt=False)
def drop(state, order_id):
    forget_order(state, order_id)


@njit(cache=True, _nrt=False)
def slot_of(state, order_id):
    return find_order(state, order_id)


@njit(cache=True, _nrt=False)
def enlist(state, slot):
    add_to_list(state, slot)


@njit(cache=True, _nrt=False)
def delist(state, slot):
    remove_from_list(state, slot)


@njit(cache=True, _nrt=False)
def listed(state, user_id, market_id, slots):
    """Fill `slots` with the list's, newest first; returns how many the list says it has."""
    key = list_key(user_id, market_id)
    cell = state.user_lists[list_cell(state.user_lists, key)]
    if cell.key != key:
        return 0
    place, slot = 0, cell.head
    while slot != NONE:
        slots[place] = slot
        place += 1
        slot = state.orders[slot].older
    return cell.count


def small_state(orders_max=16):
    return allocate(np.array((1, orders_max, 4, 4, 1, 1), LIMITS))


IDS = st.builds(lambda low, high: low + (high << 32), st.integers(0, 40) | st.integers(2**32 - 20, 2**32 - 1),
                st.sampled_from([0, 1, 2**32 - 1])).filter(bool)  # cells tell the lower halves apart, orders the whole


@settings(max_examples=300)
@given(st.lists(IDS, min_size=1, max_size=120))
def test_an_id_is_found_as_long_as_it_is_indexed_however_the_cells_collide(ids):
    state, model, free = small_state(), {}, list(range(16))
    for order_id in ids:                   # an id comes when it is not there and goes when it is
        if order_id in model:
            drop(state, np.uint64(order_id))
            free.append(model.pop(order_id))
        elif free:
            model[order_id] = free.pop(0)
            put(state, np.uint64(order_id), model[order_id])
        for known in {*ids, 0}:
            assert slot_of(state, np.uint64(known)) == model.get(known, NONE)
    assert np.count_nonzero(state.order_index["slot_after"]) == len(model)
    assert state.counters[DEFECT] == 0


def test_forgetting_an_id_that_is_not_indexed_is_a_defect():
    state = small_state()
    put(state, np.uint64(1), 0)
    drop(state, np.uint64(2))
    assert state.counters[DEFECT] != 0


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 15), st.sampled_from([1, 2, 3, 17, 2**32 - 1]), st.integers(0, 3)), min_size=1,
                max_size=80))
def test_a_user_s_orders_are_listed_newest_first_however_the_cells_collide(steps):
    state, lists, holder = small_state(), {}, {}
    owners = {(user, market) for _, user, market in steps}
    for slot, user, market in steps:       # a slot comes to a list when it is free and leaves its list when it is not
        if slot in holder:
            delist(state, slot)
            lists[holder.pop(slot)].remove(slot)
        else:
            state.orders[slot]["user_id"], state.orders[slot]["market_id"] = user, market
            enlist(state, slot)
            lists.setdefault((user, market), []).insert(0, slot)
            holder[slot] = (user, market)
        for owner in owners:
            slots = np.full(16, NONE, np.int64)
            expected = lists.get(owner, [])
            assert listed(state, *owner, slots) == len(expected)
            assert slots[:len(expected)].tolist() == expected
    assert np.count_nonzero(state.user_lists["key"]) == sum(map(bool, lists.values()))
    assert state.counters[DEFECT] == 0
