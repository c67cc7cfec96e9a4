"""A snapshot is the state: what is rebuilt from it answers, and will answer, as the state that it was made of."""
import random
import uuid
from dataclasses import replace

import numpy as np
import pytest

from pipeline import snapshot
from pipeline.digest import state_digest
from pipeline.replica import Replica
from pipeline.seeding import limits_of
from pipeline.snapshot import SnapshotDamaged
from pipeline.state import KEY_CELLS, KEY_MIGRATED, OUTPUT_DIGEST
from shm import configuration
from shm.int128 import halves
from shm.records import COMMAND, Kind, Result

SETTINGS = configuration.parse({
    "limits": {"orders_max": 4096, "levels_max": 4096, "balances_max": 4096, "assets_max": 8, "markets_max": 8},
    "assets": [{"name": "BTC", "prec_save": 16, "prec_show": 8}, {"name": "USD", "prec_save": 16, "prec_show": 2},
               {"name": "ÄÖ\"", "prec_save": 12, "prec_show": 4}],
    "markets": [{"name": "BTCUSD", "stock": "BTC", "money": "USD", "stock_prec": 8, "money_prec": 2},
                {"name": "ÄUSD", "stock": "ÄÖ\"", "money": "USD", "stock_prec": 4, "money_prec": 3}],
})
INSTANCE, CHAIN = uuid.uuid4(), 2**63 + 12345
USERS = 12


class Flow:
    """Random commands, the same for the same seed."""

    def __init__(self, seed):
        self.chance, self.updates, self.time_ns = random.Random(seed), 0, 10**18

    def next(self):
        chance = self.chance
        self.time_ns += chance.randrange(3)
        command = np.zeros((), COMMAND)
        command["slots"], command["user_id"] = 1, chance.randint(1, USERS)
        kind = chance.choice([Kind.UPDATE_BALANCE] + [Kind.PUT_LIMIT] * 6 + [Kind.PUT_MARKET, Kind.CANCEL])
        command["kind"] = kind
        label = chance.choice([b"", b"x", b"trade", b"y" * 32])
        command["label_bytes"], command["label"][:len(label)] = len(label), np.frombuffer(label, np.uint8)
        if kind == Kind.UPDATE_BALANCE:
            self.updates += chance.random() < 0.9
            command["reference"], command["asset_id"] = self.updates, chance.randrange(3)
            command["change_low"], command["change_high"] = halves(chance.choice([10**24, 10**22, -10**20]))
        elif kind == Kind.CANCEL:
            command["reference"], command["market_id"] = chance.randint(1, 300), chance.randrange(2)
        else:
            command["market_id"], command["side"] = chance.randrange(2), chance.randint(1, 2)
            command["amount"] = chance.randint(1, 10**6)
            command["taker_fee"] = chance.choice([0, 20])
            if kind == Kind.PUT_LIMIT:
                command["price"], command["maker_fee"] = chance.randint(990, 1010), chance.choice([0, 10])
        return command, self.time_ns


def run(replica, flow, count):
    """The reply headers and events of the next `count` commands."""
    said = []
    for _ in range(count):
        command, time_ns = flow.next()
        payload = b"{}" if command["kind"] == Kind.UPDATE_BALANCE else b""
        reply = replica.apply(command, payload, time_ns).tobytes()
        said.append((reply, [event.tobytes() for event in replica.drain_events()]))
    return said


def saved(directory, replica):
    return snapshot.write(directory, INSTANCE, replica.state, np.uint64(CHAIN))


def loaded(found, settings=SETTINGS):
    return snapshot.restored(*snapshot.read(found, INSTANCE), limits_of(settings))


@pytest.mark.parametrize("commands", [0, 1, 300, 3000, 9000])
def test_what_is_rebuilt_goes_on_as_the_original(tmp_path, commands):
    original, flow = Replica.configured(SETTINGS), Flow(commands)
    run(original, flow, commands)
    twin = loaded(saved(tmp_path, original))
    assert state_digest(twin.state) == state_digest(original.state)
    again = Flow(commands)
    for _ in range(commands):
        again.next()
    assert run(original, flow, 2000) == run(twin, again, 2000)
    assert twin.state.counters[OUTPUT_DIGEST] == original.state.counters[OUTPUT_DIGEST]
    assert state_digest(twin.state) == state_digest(original.state)


def test_a_snapshot_while_keys_move_to_a_larger_table_has_all_of_them(tmp_path):
    replica = Replica.configured(SETTINGS)
    command = np.zeros((), COMMAND)
    command["kind"], command["slots"], command["user_id"], command["change_low"] = Kind.UPDATE_BALANCE, 1, 1, 1
    seen = 0
    for number in range(2050, 2060):
        replica = Replica.configured(SETTINGS)
        for business_id in range(number):
            command["reference"] = business_id
            assert replica.apply(command, b"{}", 1)["result"] == Result.OK
        moving = replica.state.counters[KEY_MIGRATED] < replica.state.counters[KEY_CELLS] // 2
        seen += bool(moving)
        twin = loaded(saved(tmp_path, replica))
        for business_id in range(0, number, 7):
            command["reference"] = business_id
            assert twin.apply(command, b"{}", 1)["result"] != Result.OK
    assert seen


def test_capacities_may_be_larger_than_when_it_was_made(tmp_path):
    replica = Replica.configured(SETTINGS)
    run(replica, Flow(5), 500)
    larger = replace(SETTINGS, limits=replace(SETTINGS.limits, orders_max=9000, balances_max=9000, assets_max=9))
    twin = loaded(saved(tmp_path, replica), larger)
    assert state_digest(twin.state) == state_digest(replica.state) and len(twin.state.orders) == 9001


def test_equal_states_have_equal_parts(tmp_path):
    replica = Replica.configured(SETTINGS)
    run(replica, Flow(6), 3000)
    found = saved(tmp_path, replica)
    first, content = snapshot.read(found, INSTANCE)
    second, again = snapshot.read(saved(tmp_path / "other", loaded(found)), INSTANCE)
    assert [name for name in content if name != "keys" and content[name].tobytes() != again[name].tobytes()] == []
    assert first["state_digest"] == second["state_digest"] and first["sequence"] == second["sequence"]


def test_any_flipped_byte_any_cut_and_any_addition_is_found(tmp_path):
    replica = Replica.configured(SETTINGS)
    run(replica, Flow(7), 400)
    found = saved(tmp_path, replica)
    whole = found.path.read_bytes()
    used = snapshot.HEADER.itemsize
    places = [*range(used), *range(snapshot.HEADER_BYTES, len(whole), 97)]
    for place in places:
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        found.path.write_bytes(content)
        with pytest.raises(SnapshotDamaged):
            snapshot.read(found, INSTANCE)
    for size in (0, 100, snapshot.HEADER_BYTES, len(whole) // 2, len(whole) - 1):
        found.path.write_bytes(whole[:size])
        with pytest.raises(SnapshotDamaged):
            snapshot.read(found, INSTANCE)
    found.path.write_bytes(whole + b"\0")
    with pytest.raises(SnapshotDamaged, match="behind its last part"):
        snapshot.read(found, INSTANCE)


def test_another_instance_s_snapshot_and_a_renamed_one_are_refused(tmp_path):
    found = saved(tmp_path, Replica.configured(SETTINGS))
    other = uuid.uuid4()
    with pytest.raises(SnapshotDamaged, match=f"belongs to instance {INSTANCE}, not to {other}"):
        snapshot.read(found, other)
    path = found.path.rename(found.path.with_name(f"{77:020}.snapshot"))
    with pytest.raises(SnapshotDamaged, match="not what its name says"):
        snapshot.read(snapshot.Snapshot(path, 77), INSTANCE)


def test_snapshots_are_found_newest_first_and_unfinished_ones_are_none(tmp_path):
    replica, flow = Replica.configured(SETTINGS), Flow(8)
    for _ in range(3):
        run(replica, flow, 50)
        saved(tmp_path, replica)
    (tmp_path / snapshot.TEMPORARY).write_bytes(b"x")
    sequences = [found.sequence for found in snapshot.snapshots_of(tmp_path)]
    assert len(sequences) == 3 and sequences == sorted(sequences, reverse=True)


def test_a_state_that_is_not_the_one_that_was_saved_is_noticed(tmp_path):
    replica = Replica.configured(SETTINGS)
    run(replica, Flow(9), 400)
    header, content = snapshot.read(saved(tmp_path, replica), INSTANCE)
    content["balances"][0]["available_low"] += 1
    with pytest.raises(SnapshotDamaged, match="not the one"):
        snapshot.restored(header, content, limits_of(SETTINGS))
