"""Records that cross a process boundary, declared once. Explicit little-endian fields; no float gets in.

Units: `price` in ticks (10^-money_prec), `amount` and `left` in lots (10^-stock_prec), fee rates in 10^-fee_prec,
128-bit money (`*_low`, `*_high`: two's complement halves) in 10^-20 of one whole unit, times in ns since the epoch.
"""
from enum import IntEnum, IntFlag

import numpy as np

LAYOUT_VERSION = 1
CACHE_LINE_BYTES = 64
MONEY_DECIMALS = 20            # 128-bit money counts 10^-20
WHOLE_UNITS_MAX = 10**18       # of one asset over all users; of an order's amount; of price x amount
INT64_MAX = 2**63 - 1
LABEL_BYTES_MAX = 30           # source of an order, business of a balance update, UTF-8
ASSET_NAME_BYTES_MAX = 15
MARKET_NAME_BYTES_MAX = 30
CLIENT_ORDER_ID_BYTES_MAX = 36
DETAIL_BYTES_MAX = 8192        # JSON text of a balance update's detail, with its `id`, UTF-8
LIST_LIMIT_MAX = 101           # one more than a page of 100, so clients can see that there is more
ALL_ASSETS = 0xFFFF            # in a command's asset_id: every asset

_STRUCT_CODES = {"<u8": "Q", "<i8": "q", "<u4": "I", "<i4": "i", "<u2": "H", "|u1": "B"}


def struct_format(dtype):
    """The record as a format of the `struct` module: fields in order, arrays of bytes as one value. For code that
    handles single records in plain Python, where it is several times faster than numpy."""
    codes = []
    for name in dtype.names:
        field = dtype.fields[name][0]
        codes.append(f"{field.itemsize}s" if field.shape else _STRUCT_CODES[field.str])
    return "<" + "".join(codes)


class Side(IntEnum):
    """The API's own numbers."""
    ASK = 1
    BID = 2


class OrderType(IntEnum):
    """The API's own numbers."""
    LIMIT = 1
    MARKET = 2


class OrderFlag(IntFlag):
    """Bits of `order_flags`. The core keeps them with the order and reads none."""
    TAKER_FEE_MINUS_ZERO = 64  # the client wrote a rate that is -0, and is shown it so
    MAKER_FEE_MINUS_ZERO = 128


class Kind(IntEnum):
    """What a command asks for. Writes come first: below FIRST_READ a success is journaled."""
    SET_LIMITS = 1         # payload: LIMITS
    ADD_ASSET = 2          # payload: ASSET
    ADD_MARKET = 3         # payload: MARKET
    UPDATE_BALANCE = 4     # user_id, asset_id, label (business), reference (business id), change; payload: detail text
    PUT_LIMIT = 5          # user_id, market_id, side, amount, price, taker_fee, maker_fee, label (source)
    PUT_MARKET = 6         # user_id, market_id, side, amount, taker_fee, label (source)
    CANCEL = 7             # user_id, market_id, reference (order id)
    QUERY_BALANCE = 32     # user_id, asset_id or ALL_ASSETS, or up to 16 asset ids as u2 in label
    LIST_ASSETS = 33
    SUMMARIZE_ASSETS = 34
    LIST_MARKETS = 35
    SUMMARIZE_MARKETS = 36
    LIST_BOOK = 37         # market_id, side, offset, limit
    LIST_DEPTH = 38        # market_id, limit, price (the merge interval in ticks, 0: none)
    LIST_PENDING = 39      # user_id, market_id, offset, limit
    FIND_PENDING = 40      # market_id, reference (order id)


FIRST_READ = int(Kind.QUERY_BALANCE)


class Result(IntEnum):
    """Outcome of a command. Anything but OK changed nothing."""
    OK = 0
    INVALID = 1            # `field` says what, `bound` its limit where there is one
    REPEATED = 2           # this balance update was applied before
    BALANCE_TOO_LOW = 3
    AMOUNT_TOO_SMALL = 4
    NO_COUNTERPARTY = 5    # market order against an empty side
    ORDER_NOT_FOUND = 6
    NOT_THE_OWNER = 7
    FULL = 8               # a capacity is used up: `field` says which, `bound` its size


class Field(IntEnum):
    """What a refusal speaks of: a command's field or a capacity."""
    NONE = 0
    KIND = 1
    USER = 2
    ASSET = 3
    MARKET = 4
    SIDE = 5
    AMOUNT = 6
    PRICE = 7
    TAKER_FEE = 8
    MAKER_FEE = 9
    LABEL = 10
    CHANGE = 11
    DETAIL = 12
    LIMIT = 13
    PRODUCT = 14           # price x amount beyond WHOLE_UNITS_MAX
    ASSET_TOTAL = 15       # a deposit that takes the asset's deposits - withdrawals past WHOLE_UNITS_MAX
    DEFINITION = 16        # of an asset, a market or the limits
    ORDERS = 32            # capacities from here on
    LEVELS = 33
    BALANCES = 34
    ASSETS = 35
    MARKETS = 36
    IDEMPOTENCY_KEYS = 37


class EventKind(IntEnum):
    BALANCE = 1
    DEAL = 2
    ORDER = 3


class OrderEvent(IntEnum):
    """The API's own numbers."""
    PUT = 1
    UPDATE = 2
    FINISH = 3


COMMAND_BODY_FIELDS = [
    ("received_at_ns", "<i8"),        # by the gateway
    ("correlation_id", "<u8"),        # the client's JSON id
    ("reference", "<u8"),             # order id or business id
    ("offset", "<i8"),                # of a list; negative: beyond its end
    ("price", "<i8"),
    ("amount", "<i8"),                # market bid: money, cut to stock_prec decimals
    ("taker_fee", "<i8"),
    ("maker_fee", "<i8"),
    ("stop_price", "<i8"),            # room: no rule reads it yet
    ("change_low", "<u8"),
    ("change_high", "<i8"),
    ("user_id", "<u4"),
    ("market_id", "<u2"),
    ("asset_id", "<u2"),
    ("payload_bytes", "<u4"),         # in the slots after this one
    ("limit", "<u4"),                 # of a list
    ("kind", "u1"),                   # a Kind
    ("side", "u1"),                   # a Side
    ("time_in_force", "u1"),          # room: 0, good till cancelled
    ("order_flags", "u1"),            # OrderFlag; room for post-only
    ("self_trade", "u1"),             # room: 0, allowed
    ("label_bytes", "u1"),
    ("client_order_id_bytes", "u1"),  # room: 0
    ("slots", "u1"),                  # this one and its payload's
    ("label", "u1", (32,)),           # source, business, or asset ids of QUERY_BALANCE
    ("client_order_id", "u1", (CLIENT_ORDER_ID_BYTES_MAX,)),
    ("reserved", "u1", (4,)),
]
COMMAND = np.dtype([("request_id", "<u8"), *COMMAND_BODY_FIELDS])  # request_id: the gateway's, echoed, not journaled
assert COMMAND.itemsize == 192

COMMAND_SLOTS_MAX = 1 + -(-DETAIL_BYTES_MAX // COMMAND.itemsize)  # 44


class RecordKind(IntEnum):
    """What a slot of the journal ring carries."""
    RECORD = 1             # a command that changed the state: it goes to disk
    MARK = 2               # a read or a refusal: it passes, so that its reply is released in turn


CONFIGURATION_GATEWAY = 255    # `gateway` of records that the matcher itself made from the configuration

STAMP_FIELDS = [
    ("sequence", "<i8"),       # of the last record up to here; records count from 1 without gaps
    ("time_ns", "<i8"),        # never below an earlier record's, nor an earlier mark's of the same matcher
    ("position", "<i8"),       # in the gateway's command ring, after this command
    ("reply_end", "<i8"),      # in the gateway's reply ring, after this reply
    ("event_end", "<i8"),      # in the events ring, after this command's events
    ("previous", "<u8"),       # chain value of the record before
    ("chain", "<u8"),          # over `previous` and every other word of the record
    ("known_synced", "<i8"),   # sequence known to be on disk when the matcher made this; a copy keeps it
    ("generation", "<u4"),     # of the shared memory `position` speaks of
    ("gateway", "u1"),
    ("record_slots", "u1"),    # of the journal ring, and of JOURNAL.itemsize in the file
    ("record_kind", "u1"),     # a RecordKind
    ("layout", "u1"),          # LAYOUT_VERSION
]
JOURNAL = np.dtype(STAMP_FIELDS + COMMAND_BODY_FIELDS)  # the first slot of a record; a payload follows in whole slots
STAMP_BYTES = np.dtype(STAMP_FIELDS).itemsize
assert JOURNAL.itemsize == 256 and STAMP_BYTES == 72
RECORD_SLOTS_MAX = 1 + -(-DETAIL_BYTES_MAX // JOURNAL.itemsize)  # 33

REPLY_HEADER_FIELDS = [
    ("request_id", "<u8"),
    ("sequence", "<i8"),        # the state that this reply shows
    ("time_ns", "<i8"),
    ("total", "<i8"),           # of a list, before offset and limit; LIST_DEPTH: number of bid rows, which come second
    ("bound", "<i8"),           # of a refusal
    ("payload_bytes", "<u4"),   # from byte 64 on, through the slots that follow
    ("rows", "<u4"),            # LIST_DEPTH: ask rows
    ("catalog_version", "<u4"),  # changes when an asset or a market is added
    ("slots", "<u2"),
    ("result", "u1"),           # a Result
    ("field", "u1"),            # a Field
    ("kind", "u1"),             # the command's Kind
    ("reserved", "u1", (7,)),
]
REPLY_HEADER = np.dtype(REPLY_HEADER_FIELDS)
REPLY_SLOT_BYTES = 256
assert REPLY_HEADER.itemsize == 64

ORDER_FIELDS = [               # an order as replies and events show it
    ("order_id", "<u8"),
    ("created_at_ns", "<i8"),
    ("updated_at_ns", "<i8"),  # the last deal's time
    ("price", "<i8"),          # 0 for market orders
    ("amount", "<i8"),
    ("left_low", "<u8"),       # lots; market bid: 128-bit money
    ("left_high", "<i8"),
    ("taker_fee", "<i8"),
    ("maker_fee", "<i8"),
    ("deal_stock", "<i8"),     # lots; 0: never dealt
    ("deal_money_low", "<u8"),
    ("deal_money_high", "<u8"),  # no sign: taking and then resting, an ask turns over up to twice WHOLE_UNITS_MAX
    ("deal_fee_low", "<u8"),   # in money for an ask, in stock for a bid
    ("deal_fee_high", "<u8"),
    ("user_id", "<u4"),
    ("market_id", "<u2"),
    ("side", "u1"),
    ("order_type", "u1"),
    ("source", "u1", (LABEL_BYTES_MAX,)),
    ("source_bytes", "u1"),
    ("client_order_id_bytes", "u1"),
    ("client_order_id", "u1", (CLIENT_ORDER_ID_BYTES_MAX,)),
    ("time_in_force", "u1"),
    ("order_flags", "u1"),     # OrderFlag
    ("self_trade", "u1"),
    ("reserved", "u1"),
]
ORDER = np.dtype(ORDER_FIELDS)
assert ORDER.itemsize == 192
REPLY = np.dtype(REPLY_HEADER_FIELDS + [("payload", "u1", (REPLY_SLOT_BYTES - REPLY_HEADER.itemsize,))])
assert REPLY.itemsize == REPLY_SLOT_BYTES

BALANCE_ROW = np.dtype([
    ("available_low", "<u8"), ("available_high", "<i8"), ("frozen_low", "<u8"), ("frozen_high", "<i8"),
    ("asset_id", "<u2"), ("reserved", "u1", (6,)),
])
ASSET = np.dtype([
    ("prec_save", "u1"), ("prec_show", "u1"), ("name_bytes", "u1"), ("name", "u1", (ASSET_NAME_BYTES_MAX,)),
    ("reserved", "u1", (6,)),
])
MARKET = np.dtype([
    ("min_amount", "<i8"),     # in 10^-min_amount_decimals
    ("stock_asset_id", "<u2"), ("money_asset_id", "<u2"),
    ("stock_prec", "u1"), ("money_prec", "u1"), ("fee_prec", "u1"), ("min_amount_decimals", "u1"),
    ("name_bytes", "u1"), ("name", "u1", (MARKET_NAME_BYTES_MAX,)), ("reserved", "u1", (1,)),
])
LIMITS = np.dtype([            # capacities, checked before anything is changed
    ("rules_version", "<i8"),
    ("orders_max", "<i8"),     # resting orders
    ("levels_max", "<i8"),     # price levels
    ("balances_max", "<i8"),   # (user, asset) pairs
    ("assets_max", "<i8"),
    ("markets_max", "<i8"),
])
ASSET_SUMMARY = np.dtype([
    ("available_low", "<u8"), ("available_high", "<i8"), ("frozen_low", "<u8"), ("frozen_high", "<i8"),
    ("available_count", "<i8"), ("frozen_count", "<i8"),
])
MARKET_SUMMARY = np.dtype([
    ("ask_amount_low", "<u8"), ("ask_amount_high", "<i8"), ("bid_amount_low", "<u8"), ("bid_amount_high", "<i8"),
    ("ask_count", "<i8"), ("bid_count", "<i8"),
])
DEPTH_ROW = np.dtype([
    ("price_low", "<u8"), ("price_high", "<i8"), ("amount_low", "<u8"), ("amount_high", "<i8"),
])
assert (ASSET.itemsize, MARKET.itemsize, LIMITS.itemsize, DEPTH_ROW.itemsize) == (24, 48, 48, 32)

# Events: three kinds of record in slots of one size; they begin alike.
EVENT_HEADER_FIELDS = [
    ("sequence", "<i8"),       # of the command
    ("time_ns", "<i8"),        # of the command
    ("kind", "u1"),            # an EventKind
    ("order_event", "u1"),     # an OrderEvent
    ("room", "u1", (6,)),
]
EVENT_BYTES = 256
EVENT_HEADER = np.dtype(EVENT_HEADER_FIELDS)
assert EVENT_HEADER.itemsize == 24


def _event(fields):
    padding = EVENT_BYTES - np.dtype(EVENT_HEADER_FIELDS + fields).itemsize
    return np.dtype(EVENT_HEADER_FIELDS + fields + [("padding", "u1", (padding,))])


ORDER_EVENT = _event(ORDER_FIELDS)
BALANCE_EVENT = _event([
    ("business_id", "<u8"),
    ("change_low", "<u8"), ("change_high", "<i8"),
    ("available_low", "<u8"), ("available_high", "<i8"),  # after the change
    ("frozen_low", "<u8"), ("frozen_high", "<i8"),
    ("user_id", "<u4"),
    ("asset_id", "<u2"),
    ("label_bytes", "u1"),
    ("unused", "u1"),
    ("label", "u1", (32,)),                               # business
])
DEAL_EVENT = _event([
    ("deal_id", "<u8"),
    ("price", "<i8"),                                     # the maker's
    ("amount", "<i8"),
    ("deal_low", "<u8"), ("deal_high", "<i8"),            # price x amount
    ("ask_fee_low", "<u8"), ("ask_fee_high", "<i8"),      # in money
    ("bid_fee_low", "<u8"), ("bid_fee_high", "<i8"),      # in stock
    ("ask_order_id", "<u8"),
    ("bid_order_id", "<u8"),
    ("taker_fee", "<i8"),                                 # rates of this deal
    ("maker_fee", "<i8"),
    ("ask_user_id", "<u4"),
    ("bid_user_id", "<u4"),
    ("market_id", "<u2"),
    ("taker_side", "u1"),
    ("unused", "u1", (5,)),
    # available + frozen right after each step, in this order; a fee of zero is no step and repeats the one before. No
    # sign: one who trades with himself gets before he pays, and has up to twice WHOLE_UNITS_MAX in between
    ("taker_out_low", "<u8"), ("taker_out_high", "<u8"),
    ("taker_in_low", "<u8"), ("taker_in_high", "<u8"),
    ("taker_fee_paid_low", "<u8"), ("taker_fee_paid_high", "<u8"),
    ("maker_out_low", "<u8"), ("maker_out_high", "<u8"),
    ("maker_in_low", "<u8"), ("maker_in_high", "<u8"),
    ("maker_fee_paid_low", "<u8"), ("maker_fee_paid_high", "<u8"),
])
assert ORDER_EVENT.itemsize == BALANCE_EVENT.itemsize == DEAL_EVENT.itemsize == EVENT_BYTES
