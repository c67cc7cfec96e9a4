"""Answers to the calls of fast_request.py, in compiled code: from reply messages to the bytes of HTTP answers; those of
binary requests are binary_answer.py's.

What protocol.py would print is printed here. A refusal, or a value beyond what fast_text.py prints, is left to the
plain way, which is given the request and the reply; so is every reply to a call that Python made.
"""
from email.utils import formatdate
from typing import NamedTuple

import numpy as np
from numba import int64, uint64

from gateways.binary_answer import put_record
from gateways.binary_protocol import BALANCE_REPLY, ORDER_REPLY
from gateways.facts import ASSETS, MARKETS
from gateways.fast_request import (
    BALANCE_ANSWER,
    BOOK_ANSWER,
    DEPTH_ANSWER,
    ORDER_ANSWER,
)
from gateways.fast_text import (
    DIGITS_MAX,
    MICROSECONDS_MAX,
    MICROSECONDS_MIN,
    MINUS,
    constant,
    count_digits,
    put,
    put_decimal,
    put_digits,
    put_integer,
    put_part,
    put_string,
    put_time,
)
from gateways.http_message import CONTENT_TYPE, encode_head
from gateways.lane import (
    BODY_BYTES_MAX,
    GIVEN_UP,
    NOBODY,
    OLDEST,
    RECORD_ANSWER,
    REPLY_HEAD,
    ROW,
    oldest_call,
    take_reply,
)
from gateways.sockets import BLOCKED, TELL, write_socket
from shm.byte_copy import move_bytes
from shm.gateway_rings import release_replies, reply_tail
from shm.kernel import called, inlined, kernel
from shm.records import (
    BALANCE_ROW,
    DEPTH_ROW,
    MONEY_DECIMALS,
    ORDER,
    REPLY_HEADER,
    REPLY_SLOT_BYTES,
    OrderFlag,
    OrderType,
    Result,
    Side,
)

# What a delivery is.
SENT = 0                       # nothing more to do
TOLD = 4                       # an answer that is sent, of a connection that wants to know
ANSWER = 1                     # bytes for a connection
REPLY = 2                      # a reply message for the call `number` that Python made
QUESTION = 3                   # a reply message, and behind it the request, for the plain way to answer

DELIVERY = np.dtype([
    ("kind", "<i4"),
    ("connection", "<i4"),
    ("begin", "<i8"),          # in `out`
    ("middle", "<i8"),         # QUESTION: the message ends and the request begins
    ("end", "<i8"),
    ("number", "<i8"),         # of the call; the first one's where several answers are delivered at once
])

# What a value of an order object is.
INTEGER, DECIMAL, TIME, MARKET_NAME, SOURCE = range(5)

HEADER_WORDS = REPLY_HEADER.itemsize // 8
SOURCE_AT, ORDER_BYTES = ORDER.fields["source"][1], ORDER.itemsize
OK = int(Result.OK)
ASK, BID, LIMIT = int(Side.ASK), int(Side.BID), int(OrderType.LIMIT)
TAKER_FEE_MINUS_ZERO, MAKER_FEE_MINUS_ZERO = int(OrderFlag.TAKER_FEE_MINUS_ZERO), int(OrderFlag.MAKER_FEE_MINUS_ZERO)
TOP_BIT = uint64(1 << 63)
EXPANSION_MAX = 8              # bytes printed for one of a reply: an order's 192 are fewer than 1,536
OVERHEAD_BYTES_MAX = 1024      # of an answer beside its rows, its request included
OUT_BYTES_MIN = 2**20
DELIVERIES_MAX = 1024
SLOT_BYTES = REPLY_SLOT_BYTES
LENGTH_DIGITS = 3              # of most answers
HEAD = encode_head(formatdate(0, usegmt=True))
BEHIND_LENGTH = constant(f"\r\nContent-Type: {CONTENT_TYPE}\r\n\r\n")

_OPENING, _ID = constant('{"error": null, "result": '), constant(', "id": ')
_ORDER_VALUES = (
    ('{"id": ', INTEGER), (', "market": ', MARKET_NAME), (', "source": ', SOURCE), (', "type": ', INTEGER),
    (', "side": ', INTEGER), (', "user": ', INTEGER), (', "ctime": ', TIME), (', "mtime": ', TIME),
    (', "price": "', DECIMAL), ('", "amount": "', DECIMAL), ('", "taker_fee": "', DECIMAL),
    ('", "maker_fee": "', DECIMAL), ('", "left": "', DECIMAL), ('", "deal_stock": "', DECIMAL),
    ('", "deal_money": "', DECIMAL), ('", "deal_fee": "', DECIMAL))
ID, MARKET, SOURCE_TEXT, TYPE, SIDE, USER, CREATED, UPDATED, PRICE, AMOUNT, TAKER_FEE, MAKER_FEE, LEFT, DEAL_STOCK, \
    DEAL_MONEY, DEAL_FEE = range(len(_ORDER_VALUES))
ORDER_VALUE_KINDS = np.array([kind for _, kind in _ORDER_VALUES])
ORDER_TEXT = constant("".join(text for text, _ in _ORDER_VALUES))  # before each value of an order object
ORDER_TEXT_ENDS = np.cumsum([0, *(len(text) for text, _ in _ORDER_VALUES)])
_ORDER_END, _COMMA, _CLOSE_ARRAY, _CLOSE_LIST = constant('"}'), constant(", "), constant("]"), constant("]}")
_BOOK, _PENDING, _LIMIT, _OFFSET = constant('{"offset": '), constant('{"limit": '), constant(', "limit": '), \
    constant(', "offset": ')
_TOTAL, _ORDERS, _RECORDS = constant(', "total": '), constant(', "orders": ['), constant(', "records": [')
_ASKS, _BIDS, _LEVEL, _LEVEL_MIDDLE, _LEVEL_END = map(constant, ('{"asks": [', '], "bids": [', '["', '", "', '"]'))
_EMPTY, _CLOSE, _AVAILABLE, _FREEZE, _BALANCE_END = map(constant, (
    "{", "}", ': {"available": "', '", "freeze": "', '"}'))


class Outbox(NamedTuple):
    message: np.ndarray        # uint64: the reply at hand
    message_bytes: np.ndarray  # uint8: the same
    header: np.ndarray         # REPLY_HEADER (1): its first words
    orders: np.ndarray         # ORDER: its rows as ...
    balances: np.ndarray       # BALANCE_ROW
    depth: np.ndarray          # DEPTH_ROW
    digits: np.ndarray         # uint8: to work in
    low: np.ndarray            # uint64: the values of an order object, or ...
    high: np.ndarray           # int64: ... their upper halves
    cut: np.ndarray            # int64: digits of a decimal that are not printed
    decimals: np.ndarray       # int64: that it is held with
    minus: np.ndarray          # int64: whether a minus sign is printed before it
    head: np.ndarray           # uint8: of an answer, up to its length
    record: np.ndarray         # ORDER_REPLY (1): the binary answer being made, or ...
    balance_record: np.ndarray  # BALANCE_REPLY (1)
    record_words: np.ndarray   # uint64: the same
    out: np.ndarray            # uint8
    out_address: np.ndarray    # int64 (1)
    deliveries: np.ndarray     # DELIVERY


def make_outbox(reply_slots_max):
    """`reply_slots_max`: of the largest reply."""
    message = np.zeros(reply_slots_max * SLOT_BYTES // 8, np.uint64)
    rows = message[HEADER_WORDS:]
    out = np.zeros(max(OUT_BYTES_MIN, 2 * answer_bytes_max(reply_slots_max)), np.uint8)
    record = np.zeros(1, ORDER_REPLY)

    def as_rows(dtype):
        return rows[:len(rows) * 8 // dtype.itemsize * dtype.itemsize // 8].view(dtype)
    return Outbox(
        message=message,
        message_bytes=message.view(np.uint8),
        header=message[:HEADER_WORDS].view(REPLY_HEADER),
        orders=as_rows(ORDER),
        balances=as_rows(BALANCE_ROW),
        depth=as_rows(DEPTH_ROW),
        digits=np.zeros(DIGITS_MAX, np.uint8),
        low=np.zeros(len(_ORDER_VALUES), np.uint64),
        high=np.zeros(len(_ORDER_VALUES), np.int64),
        cut=np.zeros(len(_ORDER_VALUES), np.int64),
        decimals=np.zeros(len(_ORDER_VALUES), np.int64),
        minus=np.zeros(len(_ORDER_VALUES), np.int64),
        head=np.frombuffer(HEAD, np.uint8).copy(),
        record=record,
        balance_record=record.view(BALANCE_REPLY),
        record_words=record.view(np.uint64),
        out=out,
        out_address=np.array([out.ctypes.data]),
        deliveries=np.zeros(DELIVERIES_MAX, DELIVERY))


def answer_bytes_max(reply_slots_max):
    """Of what one delivery may take, whatever its rows are."""
    return OVERHEAD_BYTES_MAX + reply_slots_max * SLOT_BYTES * EXPANSION_MAX


# Results. Each `put_...` returns the place behind it, or 0 where it cannot print this.

@inlined
def is_printable_time(time_ns):
    return MICROSECONDS_MIN <= time_ns // 1_000 < MICROSECONDS_MAX


@called
def set_order(box, facts, order):
    """The values of an order object."""
    market = facts.markets[order.market_id]
    is_limit = order.order_type == LIMIT
    low, high, cut, decimals, minus = box.low, box.high, box.cut, box.decimals, box.minus
    for field in range(len(ORDER_VALUE_KINDS)):
        high[field] = cut[field] = decimals[field] = minus[field] = low[field] = 0
    low[ID], low[MARKET], low[TYPE] = order.order_id, order.market_id, order.order_type
    low[SIDE], low[USER] = order.side, order.user_id
    low[CREATED], low[UPDATED] = order.created_at_ns, order.updated_at_ns
    low[AMOUNT], decimals[AMOUNT] = order.amount, market.stock_prec
    low[TAKER_FEE], decimals[TAKER_FEE] = order.taker_fee, market.fee_prec
    minus[TAKER_FEE] = order.order_flags & TAKER_FEE_MINUS_ZERO
    low[LEFT], high[LEFT], decimals[LEFT] = order.left_low, order.left_high, market.stock_prec
    if is_limit:
        low[PRICE], decimals[PRICE] = order.price, market.money_prec
        low[MAKER_FEE], decimals[MAKER_FEE] = order.maker_fee, market.fee_prec
        minus[MAKER_FEE] = order.order_flags & MAKER_FEE_MINUS_ZERO
    if order.deal_stock != 0:
        low[DEAL_STOCK], decimals[DEAL_STOCK] = order.deal_stock, market.stock_prec
        low[DEAL_MONEY], high[DEAL_MONEY] = order.deal_money_low, order.deal_money_high
        decimals[DEAL_MONEY] = market.deal_decimals
        low[DEAL_FEE], high[DEAL_FEE] = order.deal_fee_low, order.deal_fee_high
        decimals[DEAL_FEE] = market.ask_fee_decimals if order.side == ASK else market.bid_fee_decimals
        cut[DEAL_MONEY], cut[DEAL_FEE] = MONEY_DECIMALS - decimals[DEAL_MONEY], MONEY_DECIMALS - decimals[DEAL_FEE]
    if order.side == BID and not is_limit:  # what is left is money
        if order.deal_stock != 0:
            decimals[LEFT] = market.deal_decimals
        cut[LEFT] = MONEY_DECIMALS - decimals[LEFT]


@called
def put_order(box, facts, at, row):
    order = box.orders[row]
    out = box.out
    if order.market_id >= facts.counts[MARKETS] or not is_printable_time(order.created_at_ns) \
            or not is_printable_time(order.updated_at_ns) or order.deal_money_high & TOP_BIT \
            or order.deal_fee_high & TOP_BIT or order.left_high < 0:
        return int64(0)
    set_order(box, facts, order)
    for field in range(len(ORDER_VALUE_KINDS)):
        begin = ORDER_TEXT_ENDS[field]
        at = put_part(out, at, ORDER_TEXT, begin, ORDER_TEXT_ENDS[field + 1] - begin)
        kind = ORDER_VALUE_KINDS[field]
        if kind == DECIMAL:
            if box.minus[field]:
                out[at] = MINUS
                at += 1
            at = put_decimal(out, at, box.digits, box.low[field], box.high[field], box.cut[field], box.decimals[field])
        elif kind == INTEGER:
            at = put_integer(out, at, int64(box.low[field]))
        elif kind == TIME:
            at = put_time(out, at, int64(box.low[field]))
        elif kind == SOURCE:
            at = put_string(out, at, box.message_bytes, HEADER_WORDS * 8 + row * ORDER_BYTES + SOURCE_AT,
                            int64(order.source_bytes))
        else:
            market = facts.markets[order.market_id]
            at = put_part(out, at, facts.json, int64(market.json_begin), int64(market.json_bytes))
    return put(out, at, _ORDER_END)


@called
def put_page(box, facts, at, call):
    """The result of order.book and order.pending."""
    out, header = box.out, box.header[0]
    if call.shape == BOOK_ANSWER:
        at = put_integer(out, put(out, at, _BOOK), call.offset)
        at = put_integer(out, put(out, at, _LIMIT), int64(call.limit))
    else:
        at = put_integer(out, put(out, at, _PENDING), int64(call.limit))
        at = put_integer(out, put(out, at, _OFFSET), call.offset)
    at = put_integer(out, put(out, at, _TOTAL), header.total)
    at = put(out, at, _ORDERS if call.shape == BOOK_ANSWER else _RECORDS)
    for row in range(header.rows):
        if row > 0:
            at = put(out, at, _COMMA)
        at = put_order(box, facts, at, int64(row))
        if at == 0:
            return int64(0)
    return put(out, at, _CLOSE_LIST)


@called
def put_levels(box, at, first, count, market):
    out = box.out
    for index in range(count):
        if index > 0:
            at = put(out, at, _COMMA)
        level = box.depth[first + index]
        if level.price_high < 0 or level.amount_high < 0:
            return int64(0)
        at = put(out, at, _LEVEL)
        at = put_decimal(out, at, box.digits, level.price_low, level.price_high, int64(0), int64(market.money_prec))
        at = put(out, at, _LEVEL_MIDDLE)
        at = put_decimal(out, at, box.digits, level.amount_low, level.amount_high, int64(0), int64(market.stock_prec))
        at = put(out, at, _LEVEL_END)
    return at


@called
def put_depth(box, facts, at, call):
    asks, bids = int64(box.header[0].rows), box.header[0].total
    market = facts.markets[call.market_id]
    at = put_levels(box, put(box.out, at, _ASKS), int64(0), asks, market)
    if at == 0:
        return int64(0)
    at = put_levels(box, put(box.out, at, _BIDS), asks, bids, market)
    return put(box.out, at, _CLOSE_LIST) if at != 0 else int64(0)


@called
def put_balance(box, at, low, high, decimals):
    """As balance.query shows it; one below the last decimal shown is not the same zero as none."""
    is_none = low == 0 and high == 0
    return put_decimal(box.out, at, box.digits, low, high, int64(0) if is_none else MONEY_DECIMALS - decimals,
                       int64(0) if is_none else decimals)


@called
def put_balances(box, facts, at):
    """In the order of the rows; of assets that this gateway does not know yet, nothing."""
    out = box.out
    at = put(out, at, _EMPTY)
    first = True
    for row in range(box.header[0].rows):
        balance = box.balances[row]
        if balance.asset_id >= facts.counts[ASSETS]:
            continue
        if balance.available_high < 0 or balance.frozen_high < 0:
            return int64(0)
        asset = facts.assets[balance.asset_id]
        if not first:
            at = put(out, at, _COMMA)
        first = False
        at = put_part(out, at, facts.json, int64(asset.json_begin), int64(asset.json_bytes))
        at = put(out, at, _AVAILABLE)
        at = put_balance(box, at, balance.available_low, balance.available_high, int64(asset.prec_show))
        at = put(out, at, _FREEZE)
        at = put_balance(box, at, balance.frozen_low, balance.frozen_high, int64(asset.prec_show))
        at = put(out, at, _BALANCE_END)
    return put(out, at, _CLOSE)


@called
def put_answer(box, facts, at, call):
    """The HTTP answer to a call whose command was carried out; the place behind it, or 0."""
    out, head = box.out, box.head
    length_at = put(out, at, head)
    body = put(out, length_at + LENGTH_DIGITS, BEHIND_LENGTH)
    begin = put(out, body, _OPENING)
    if call.shape == ORDER_ANSWER:
        end = put_order(box, facts, begin, int64(0))
    elif call.shape == BALANCE_ANSWER:
        end = put_balances(box, facts, begin)
    elif call.shape == DEPTH_ANSWER:
        end = put_depth(box, facts, begin, call)
    else:
        end = put_page(box, facts, begin, call)
    if end == 0:
        return int64(0)
    end = put(out, put_integer(out, put(out, end, _ID), call.id), _CLOSE)
    length = end - body
    digits = count_digits(uint64(length))
    moved = digits - LENGTH_DIGITS
    if moved != 0:
        move_bytes(out, length_at + digits, length_at + LENGTH_DIGITS, end - length_at - LENGTH_DIGITS)
    put_digits(out, length_at, uint64(length), digits)
    return end + moved


@inlined
def deliver(lane, box, facts, call, number, at, count):
    """Write what call `number` is answered to `out` at `at`, and the delivery `count` of it; the place behind it."""
    delivery = box.deliveries[count]
    delivery.connection = call.connection
    delivery.number = number
    delivery.begin = at
    if call.connection != NOBODY and call.shape >= RECORD_ANSWER:
        delivery.kind = ANSWER
        delivery.end = put_record(box, at, call)
        return delivery.end
    if call.connection != NOBODY and box.header[0].result == OK:
        end = put_answer(box, facts, at, call)
        if end != 0:
            delivery.kind = ANSWER
            delivery.end = end
            return end
    at = put_part(box.out, at, box.message_bytes, int64(0), int64(box.header[0].slots) * SLOT_BYTES)
    delivery.kind = REPLY if call.connection == NOBODY else QUESTION
    delivery.middle = at
    row = number & (len(lane.calls) - 1)
    delivery.end = put_part(box.out, at, lane.bodies, row * BODY_BYTES_MAX, int64(call.body_bytes))
    return delivery.end


@called
def send_answers(sockets, box, count):
    """Send what can be sent at once; returns how many deliveries are left to Python.

    Answers to one connection keep their order: behind one that Python gives, compiled code gives none.
    """
    left_over = 0
    for index in range(count):
        delivery = box.deliveries[index]
        if delivery.kind == QUESTION:
            sockets.marks[delivery.connection] |= BLOCKED
        elif delivery.kind == ANSWER and not sockets.marks[delivery.connection] & BLOCKED:
            size = delivery.end - delivery.begin
            sent = write_socket(delivery.connection, box.out_address[0] + delivery.begin, size)
            delivery.begin += max(sent, 0)
            if sent < size:
                sockets.marks[delivery.connection] |= BLOCKED
            else:
                delivery.kind = TOLD if sockets.marks[delivery.connection] & TELL else SENT
        left_over += delivery.kind != SENT
    return left_over


@kernel
def drain(lane, sockets, box, facts, room_bytes):
    """Make deliveries of the visible replies, as many as there is room for: each may take `room_bytes` of `out`; then
    send what can be sent. Returns (deliveries, how many of them are left to Python), or (-1, 0) where the replies are
    not those of the calls.

    Answers to one connection that follow each other are one delivery. `box.header` stays that of the last reply.
    """
    tail = reply_tail(lane.reply_words, lane.own[ROW])
    count = at = int64(0)
    while lane.own[REPLY_HEAD] < tail and count < len(box.deliveries) and at + room_bytes <= len(box.out):
        number = lane.own[OLDEST]
        call = oldest_call(lane)
        if not take_reply(lane, tail, box.header[0], box.message):
            return int64(-1), int64(0)
        if call.state == GIVEN_UP:
            continue           # it was counted out then
        if call.connection != NOBODY:
            sockets.in_flight[call.connection] -= 1
        at = deliver(lane, box, facts, call, number, at, count)
        before = box.deliveries[max(count - 1, 0)]
        now = box.deliveries[count]
        if count > 0 and before.kind == ANSWER and now.kind == ANSWER and before.connection == now.connection:
            before.end = now.end
        else:
            count += 1
    release_replies(lane.reply_words, lane.own[ROW], lane.own[REPLY_HEAD])
    return count, int64(send_answers(sockets, box, count))
