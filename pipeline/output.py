"""What the core says: one reply in a private buffer, events in a ring (the live ring is shared, others are private)."""
from typing import NamedTuple

import numpy as np
from numba import int64, uint64

from pipeline.digest import fold_words
from pipeline.state import EVENT_POSITION, EVENTS_FOLDED, ORDER_WORD, OUTPUT_DIGEST
from shm.atomics import fence_release, store_release
from shm.kernel import called, inlined
from shm.records import (
    ASSET,
    ASSET_SUMMARY,
    BALANCE_EVENT,
    BALANCE_ROW,
    DEAL_EVENT,
    DEPTH_ROW,
    EVENT_BYTES,
    EVENT_HEADER,
    LIST_LIMIT_MAX,
    MARKET,
    MARKET_SUMMARY,
    ORDER,
    ORDER_EVENT,
    REPLY_HEADER,
    REPLY_SLOT_BYTES,
    EventKind,
)
from shm.segments import WORD_STRIDE, EventWord

INTENT = int(EventWord.INTENT)
EVENT_WORDS = EVENT_BYTES // 8
INTENT_AHEAD = 16             # slots announced at once: a fence every 16 events, not every one
ORDER_EVENT_KIND = int(EventKind.ORDER)
HEADER_WORDS = REPLY_HEADER.itemsize // 8
EVENT_HEADER_WORDS = EVENT_HEADER.itemsize // 8
ORDER_WORDS = ORDER.itemsize // 8
assert ORDER_EVENT.fields["order_id"][1] == EVENT_HEADER.itemsize


class Output(NamedTuple):
    header: np.ndarray           # REPLY_HEADER (1): the reply; its payload follows in the same buffer
    words: np.ndarray            # uint64: the whole reply buffer, for copying
    orders: np.ndarray           # ORDER: the payload as ...
    balances: np.ndarray         # BALANCE_ROW
    assets: np.ndarray           # ASSET
    markets: np.ndarray          # MARKET
    asset_summaries: np.ndarray  # ASSET_SUMMARY
    market_summaries: np.ndarray  # MARKET_SUMMARY
    depth: np.ndarray            # DEPTH_ROW
    event_words: np.ndarray      # uint64 (slots, words): the ring of events
    order_events: np.ndarray     # ORDER_EVENT: the same ring as ...
    deal_events: np.ndarray      # DEAL_EVENT
    balance_events: np.ndarray   # BALANCE_EVENT
    event_cursors: np.ndarray    # int64 (1, words): EventWord


def reply_bytes_max(assets_max, markets_max):
    """Size of the largest reply, a whole number of slots."""
    payload = max(2 * LIST_LIMIT_MAX * DEPTH_ROW.itemsize, LIST_LIMIT_MAX * ORDER.itemsize,
                  assets_max * max(ASSET.itemsize, ASSET_SUMMARY.itemsize, BALANCE_ROW.itemsize),
                  markets_max * max(MARKET.itemsize, MARKET_SUMMARY.itemsize))
    return -(-(REPLY_HEADER.itemsize + payload) // REPLY_SLOT_BYTES) * REPLY_SLOT_BYTES


def make_output(assets_max, markets_max, event_words, event_cursors):
    """An Output over the given ring of events: uint64 (slots, 32), slots a power of two, and its words."""
    assert len(event_words) & (len(event_words) - 1) == 0 and len(event_words) >= 4 * INTENT_AHEAD
    size = reply_bytes_max(assets_max, markets_max)
    buffer = np.zeros(size, np.uint8)
    payload = buffer[REPLY_HEADER.itemsize:]

    def rows(dtype):
        return payload[:len(payload) // dtype.itemsize * dtype.itemsize].view(dtype)
    return Output(
        header=buffer[:REPLY_HEADER.itemsize].view(REPLY_HEADER), words=buffer.view(np.uint64),
        orders=rows(ORDER), balances=rows(BALANCE_ROW), assets=rows(ASSET), markets=rows(MARKET),
        asset_summaries=rows(ASSET_SUMMARY), market_summaries=rows(MARKET_SUMMARY), depth=rows(DEPTH_ROW),
        event_words=event_words, order_events=event_words.view(ORDER_EVENT).reshape(-1),
        deal_events=event_words.view(DEAL_EVENT).reshape(-1),
        balance_events=event_words.view(BALANCE_EVENT).reshape(-1), event_cursors=event_cursors)


def private_output(assets_max, markets_max, event_slots=1 << 14):
    """An Output whose events nobody else sees: for replay, followers and tests."""
    return make_output(assets_max, markets_max, np.zeros((event_slots, EVENT_BYTES // 8), np.uint64),
                       np.zeros((1, len(EventWord) * WORD_STRIDE), np.int64))


@inlined
def fold_events(state, out):
    """Take the events since the last call into the running digest, which is the same whatever the ring's size."""
    counters = state.counters
    digest = uint64(counters[OUTPUT_DIGEST])
    mask = uint64(len(out.event_words) - 1)
    for position in range(counters[EVENTS_FOLDED], counters[EVENT_POSITION]):
        digest = fold_words(digest, out.event_words[uint64(position) & mask], 0, EVENT_WORDS)
    counters[OUTPUT_DIGEST] = int64(digest)
    counters[EVENTS_FOLDED] = counters[EVENT_POSITION]


@called
def fold_full_ring(state, out):
    """`fold_events` in the middle of a command, before its first events are overwritten. Rare, so not inlined."""
    fold_events(state, out)


@inlined
def refuse(out, result, field, bound):
    """The command changed nothing: `result`, the Field that it speaks of, and its limit where there is one.

    Returns False, for whoever says whether the command may pass."""
    out.header[0].result = result
    out.header[0].field = field
    out.header[0].bound = bound
    return False


@inlined
def next_event(state, out):
    """The slot for one more event. Its old content was announced as going before it is touched."""
    position = state.counters[EVENT_POSITION]
    if position - state.counters[EVENTS_FOLDED] >= len(out.event_words):  # one command, more events than slots
        fold_full_ring(state, out)
    if position >= out.event_cursors[0, INTENT]:
        store_release(out.event_cursors, 0, INTENT, position + INTENT_AHEAD)
        fence_release()
    state.counters[EVENT_POSITION] = position + 1
    slot = uint64(position) & uint64(len(out.event_words) - 1)
    for word in range(EVENT_WORDS):
        out.event_words[slot, word] = 0  # the digest covers every byte
    return slot


@inlined
def write_order(state, out, row, slot):
    """Show the order in `slot` as row `row` of the reply."""
    first = HEADER_WORDS + row * ORDER_WORDS
    for word in range(ORDER_WORDS):
        out.words[first + word] = state.order_words[slot, ORDER_WORD + word]


@inlined
def write_order_event(state, out, sequence, time_ns, order_event, slot):
    """Show the order in `slot` as an event."""
    place = next_event(state, out)
    event = out.order_events[place]
    event.sequence = sequence
    event.time_ns = time_ns
    event.kind = ORDER_EVENT_KIND
    event.order_event = order_event
    for word in range(ORDER_WORDS):
        out.event_words[place, EVENT_HEADER_WORDS + word] = state.order_words[slot, ORDER_WORD + word]
