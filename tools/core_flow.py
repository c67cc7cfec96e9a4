"""A synthetic order flow for core benchmarks: recorded once against a core, as journal records, then timed by replaying
them on another core that starts from the same state.

Of 100 commands about 60 are limit orders near the middle, 30 cancel a random resting order, 10 are aggressive limit
orders of 4.3 times the size. `balance` steers: with as many cancels as needed, a small book stays small.
"""
import numpy as np
from numba import int64, uint64

from pipeline.chain import chain_value_at
from pipeline.core import apply
from pipeline.order_book import find_order
from pipeline.replay import BODY_WORDS, STAMP_WORDS
from pipeline.state import NEW_ORDER, ORDERS, SEQUENCE
from shm.int128 import halves
from shm.kernel import inlined, kernel
from shm.records import COMMAND, JOURNAL, LAYOUT_VERSION, Kind, RecordKind, Side

PUT_LIMIT = int(Kind.PUT_LIMIT)
CANCEL = int(Kind.CANCEL)
ASK = int(Side.ASK)
RECORD = int(RecordKind.RECORD)
MIDDLE_TICKS = 800_000
RECORD_WORDS = JOURNAL.itemsize // 8


@inlined
def next_random(seed):
    """xorshift: seed[0] and the value returned."""
    value = seed[0]
    value ^= value << uint64(13)
    value ^= value >> uint64(7)
    value ^= value << uint64(17)
    seed[0] = value
    return value


@inlined
def below(seed, bound):
    return int64((next_random(seed) >> uint64(11)) % uint64(bound))


@kernel
def record_flow(state, inbox, out, records, words, seed, markets, users, depth_ticks, orders_aim, growing):
    """Fill `records` (JOURNAL; `words` is the same memory) with commands that all succeed, applying each.

    Resting orders are steered towards `orders_aim`: above it more commands cancel; `growing`: none cancels or crosses.
    """
    filled = int64(0)
    while filled < len(records):
        command = inbox.command[0]
        for word in range(len(inbox.words)):
            inbox.words[word] = 0
        command.slots = 1
        dice = below(seed, 100)
        cancels = 30 if state.counters[ORDERS] <= orders_aim else 48
        if growing:
            dice = 50
        if dice < cancels and state.counters[ORDERS] > 0:
            slot = below(seed, state.counters[NEW_ORDER])
            order = state.orders[slot]
            while find_order(state, order.order_id) != slot:
                slot = below(seed, state.counters[NEW_ORDER])
                order = state.orders[slot]
            command.kind = CANCEL
            command.user_id = order.user_id
            command.market_id = order.market_id
            command.reference = order.order_id
        else:
            side = 1 + below(seed, 2)
            away = 1 + min(below(seed, depth_ticks), below(seed, depth_ticks))
            size = 1_000 + below(seed, 1_000_000)
            if dice >= 90:
                away = -below(seed, 50)
                size = size * 43 // 10
            command.kind = PUT_LIMIT
            command.user_id = 1 + below(seed, users)
            command.market_id = below(seed, markets)
            command.side = side
            command.price = MIDDLE_TICKS + (away if side == ASK else -away)
            command.amount = size * 100
            command.taker_fee = 20
            command.maker_fee = 10
            command.label[0] = 98
            command.label_bytes = 1
        time_ns = state.counters[SEQUENCE] + 1
        if not apply(state, inbox, out, time_ns):
            continue
        record = records[filled]
        record.sequence = state.counters[SEQUENCE]
        record.time_ns = time_ns
        record.record_slots = 1
        record.record_kind = RECORD
        for word in range(BODY_WORDS):
            words[filled, STAMP_WORDS + word] = inbox.words[1 + word]
        filled += 1


@kernel
def repeat_command(state, inbox, out, count):
    """Apply the command in the inbox `count` times: for reads."""
    for _ in range(count):
        apply(state, inbox, out, state.counters[SEQUENCE])


@kernel
def seal(records, flat, chain):
    """Chain the records (`flat`: the same memory as words), as a matcher does; returns the last chain value."""
    slot = int64(0)
    while slot < len(records):
        record = records[slot]
        record.layout = LAYOUT_VERSION
        record.previous = chain
        chain = chain_value_at(chain, flat, slot * RECORD_WORDS, int64(record.record_slots) * RECORD_WORDS)
        record.chain = chain
        slot += record.record_slots
    return chain


@kernel
def chase(step, count):
    """Follow `count` links through memory: a fixed piece of work to compare machines by."""
    at = int64(0)
    for _ in range(count):
        at = step[at]
    return at


def blank_records(count):
    """`count` JOURNAL records of one slot, and the same memory as words."""
    words = np.zeros((count, RECORD_WORDS), np.uint64)
    return words.reshape(-1).view(JOURNAL), words


def deposits(users, assets, first_sequence):
    """Records that give each of `users` plenty of each of `assets`."""
    count = users * assets
    records, words = blank_records(count)
    records["sequence"] = records["time_ns"] = first_sequence + np.arange(count)
    records["record_slots"] = records["slots"] = 1
    records["record_kind"] = RECORD
    records["kind"] = Kind.UPDATE_BALANCE
    records["user_id"] = np.repeat(np.arange(1, users + 1), assets)
    records["asset_id"] = np.tile(np.arange(assets), users)
    records["reference"] = np.arange(count)
    records["change_low"], records["change_high"] = halves(10**9 * 10**20)
    records["label_bytes"] = 1
    records["label"][:, 0] = 100
    return records, words


assert COMMAND.itemsize == 8 * (BODY_WORDS + 1)
