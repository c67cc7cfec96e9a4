"""What the core says: one reply in a private buffer, events in a ring (the shared one live, a private one elsewhere)."""
from typing import NamedTuple

import numpy as np
from numba import njit

from pipeline.state import EVENT_POSITION
from shm.atomics import fence_release, store_release
from shm.int128 import from_int64, high_half, low_half
from shm.records import (
    ASSET, ASSET_SUMMARY, BALANCE_EVENT, BALANCE_ROW, DEAL_EVENT, DEPTH_ROW, EVENT_BYTES, LIST_LIMIT_MAX, MARKET,
    MARKET_SUMMARY, ORDER, ORDER_EVENT, OrderType, REPLY_HEADER, REPLY_SLOT_BYTES, EventKind, Side)
from shm.segments import WORD_STRIDE, EventWord

INTENT = int(EventWord.INTENT)
EVENT_WORDS = EVENT_BYTES // 8
INTENT_AHEAD = 64             # slots announced at once: a fence every 64 events, not every one
BALANCE_EVENT_KIND = int(EventKind.BALANCE)
DEAL_EVENT_KIND = int(EventKind.DEAL)
ORDER_EVENT_KIND = int(EventKind.ORDER)
BID = int(Side.BID)
MARKET_TYPE = int(OrderType.MARKET)


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


@njit(cache=True, _nrt=False, forceinline=True)
def next_event(state, out):
    """The slot for one more event. Its old content was announced as going before it is touched."""
    position = state.counters[EVENT_POSITION]
    if position >= out.event_cursors[0, INTENT]:
        store_release(out.event_cursors, 0, INTENT, position + INTENT_AHEAD)
        fence_release()
    state.counters[EVENT_POSITION] = position + 1
    slot = position & (len(out.event_words) - 1)
    for word in range(EVENT_WORDS):
        out.event_words[slot, word] = 0  # the digest covers every byte
    return slot


@njit(cache=True, _nrt=False, forceinline=True)
def write_order(record, order, left_money):
    """Show an order in an ORDER or ORDER_EVENT record. `left_money`: what a market bid has left."""
    record.order_id = order.order_id
    record.created_at_ns = order.created_at_ns
    record.updated_at_ns = order.updated_at_ns
    record.price = order.price
    record.amount = order.amount
    left = from_int64(order.left)
    if order.order_type == MARKET_TYPE and order.side == BID:
        left = left_money
    record.left_low = low_half(left)
    record.left_high = high_half(left)
    record.taker_fee = order.taker_fee
    record.maker_fee = order.maker_fee
    record.deal_stock = order.deal_stock
    record.deal_money_low = order.deal_money_low
    record.deal_money_high = order.deal_money_high
    record.deal_fee_low = order.deal_fee_low
    record.deal_fee_high = order.deal_fee_high
    record.user_id = order.user_id
    record.market_id = order.market_id
    record.side = order.side
    record.order_type = order.order_type
    record.source_bytes = order.source_bytes
    for index in range(30):
        record.source[index] = order.source[index]
    record.client_order_id_bytes = 0
    for index in range(36):
        record.client_order_id[index] = 0
    record.time_in_force = 0
    record.order_flags = order.order_flags
    record.self_trade = 0
    record.reserved = 0


@njit(cache=True, _nrt=False, forceinline=True)
def write_order_event(state, out, sequence, time_ns, order_event, order, left_money):
    event = out.order_events[next_event(state, out)]
    event.sequence = sequence
    event.time_ns = time_ns
    event.kind = ORDER_EVENT_KIND
    event.order_event = order_event
    write_order(event, order, left_money)
