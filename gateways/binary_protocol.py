"""The wire of the binary port: fixed little-endian records, and the numbers in them. docs/binary-port.md tells it all.

Units are those of shm/records.py: prices in ticks (10^-money_prec), amounts in lots (10^-stock_prec), fee rates in
10^-fee_prec, money of 128 bits (two's complement halves) in 10^-20 of one whole unit, times in ns since the epoch.
"""
from enum import IntEnum

import numpy as np

from shm.records import LABEL_BYTES_MAX, Field, Kind

MAGIC = int.from_bytes(b"EXCHORDR", "little")
VERSION = 1
NO_RESULT = 255                # `result` of what the gateway answers by itself
OK = 0                         # `code` of a success; the others are those of the HTTP interface


class RequestKind(IntEnum):
    PUT_LIMIT = 1              # user, market, side, price, amount, taker and maker fee, label
    PUT_MARKET = 2             # user, market, side, amount, taker fee, label
    CANCEL = 3                 # user, market, order_id
    QUERY_BALANCE = 4          # user, asset
    PING = 5                   # answered by the gateway, once everything before it is answered


class GatewayField(IntEnum):
    """What the gateway's own refusals speak of; the matcher's name a Field of shm/records.py."""
    KIND = int(Field.KIND)
    LABEL = int(Field.LABEL)
    ORDER_ID = 65
    RESERVED = 66
    MAGIC = 67
    VERSION = 68
    ROOM = 80                  # code 3 from here on: the rings between gateway and matcher stayed full
    MATCHER = 81               # none runs
    JOURNAL = 82               # it takes no writes; `bound`: the system's error number
    CONNECTIONS = 83           # too many of them to this gateway; `bound`: how many may be


HELLO = np.dtype([             # the client's first bytes
    ("magic", "<u8"),
    ("version", "<u4"),
    ("reserved", "u1", (4,)),
])
WELCOME = np.dtype([           # the server's first bytes
    ("magic", "<u8"),
    ("version", "<u4"),        # the server's
    ("code", "u1"),            # OK, or why it hangs up now
    ("field", "u1"),           # of a refusal: a GatewayField
    ("reserved", "u1", (2,)),
    ("instance", "u1", (16,)),  # id of the exchange: another after its data have been made anew
    ("bound", "<i8"),          # of a refusal
    ("in_flight_max", "<u4"),  # requests of a connection that are on their way
    ("timeout_ms", "<u4"),     # then code 5
    ("request_bytes", "<u2"),  # of a request record
    ("reply_bytes", "<u2"),    # of a reply record, and of this one
    ("assets", "<u4"),         # ids are below
    ("markets", "<u4"),
    ("room", "u1", (68,)),     # zero
])
REQUEST = np.dtype([
    ("request_id", "<u8"),     # the client's, echoed
    ("price", "<i8"),          # ticks
    ("amount", "<i8"),         # lots; market bid: money, in 10^-stock_prec
    ("order_id", "<u8"),
    ("taker_fee", "<u4"),
    ("maker_fee", "<u4"),
    ("user_id", "<u4"),
    ("market_id", "<u2"),
    ("asset_id", "<u2"),
    ("kind", "u1"),            # a RequestKind
    ("side", "u1"),            # 1: ask, 2: bid
    ("label_bytes", "u1"),
    ("label", "u1", (LABEL_BYTES_MAX,)),  # source of an order, UTF-8
    ("reserved", "u1", (15,)),  # zero
])
_REPLY_HEAD = [
    ("request_id", "<u8"),
    ("code", "u1"),            # OK, or the error's code on the HTTP interface
    ("result", "u1"),          # a Result of shm/records.py, or NO_RESULT
    ("field", "u1"),           # of a refusal: a Field or a GatewayField
    ("kind", "u1"),            # the request's
]
_REPLY_TIMES = [
    ("bound", "<i8"),          # of a refusal: its limit where there is one
    ("time_ns", "<i8"),        # of the command; 0: the gateway answered by itself
]
ORDER_REPLY = np.dtype([*_REPLY_HEAD,
    ("market_id", "<u2"),
    ("side", "u1"),
    ("order_type", "u1"),      # 1: limit, 2: market
    *_REPLY_TIMES,
    ("order_id", "<u8"),
    ("price", "<i8"),          # 0 for market orders
    ("amount", "<i8"),
    ("left_low", "<u8"),       # lots; market bid: 128-bit money
    ("left_high", "<i8"),
    ("deal_stock", "<i8"),     # lots
    ("deal_money_low", "<u8"),
    ("deal_money_high", "<u8"),  # no sign
    ("deal_fee_low", "<u8"),   # in money for an ask, in stock for a bid
    ("deal_fee_high", "<u8"),
    ("created_at_ns", "<i8"),
    ("updated_at_ns", "<i8"),  # the last deal's time
])
BALANCE_REPLY = np.dtype([*_REPLY_HEAD,
    ("asset_id", "<u2"),
    ("reserved", "u1", (2,)),
    *_REPLY_TIMES,
    ("available_low", "<u8"),
    ("available_high", "<i8"),
    ("frozen_low", "<u8"),
    ("frozen_high", "<i8"),
    ("room", "u1", (64,)),     # zero
])
REQUEST_BYTES, REPLY_BYTES = REQUEST.itemsize, ORDER_REPLY.itemsize
assert (HELLO.itemsize, REQUEST_BYTES, REPLY_BYTES) == (16, 96, 128)
assert WELCOME.itemsize == BALANCE_REPLY.itemsize == REPLY_BYTES

_ORDER_FIELDS = ("user_id", "market_id", "side", "amount", "taker_fee", "label_bytes", "label")
FIELDS_USED = {                # beside request_id and kind; every other byte is zero
    RequestKind.PUT_LIMIT: (*_ORDER_FIELDS, "price", "maker_fee"),
    RequestKind.PUT_MARKET: _ORDER_FIELDS,
    RequestKind.CANCEL: ("user_id", "market_id", "order_id"),
    RequestKind.QUERY_BALANCE: ("user_id", "asset_id"),
    RequestKind.PING: (),
}
FIELD_NUMBERS = {              # of the fields of a request that may be refused
    "price": Field.PRICE, "amount": Field.AMOUNT, "order_id": GatewayField.ORDER_ID, "taker_fee": Field.TAKER_FEE,
    "maker_fee": Field.MAKER_FEE, "user_id": Field.USER, "market_id": Field.MARKET, "asset_id": Field.ASSET,
    "kind": Field.KIND, "side": Field.SIDE, "label_bytes": Field.LABEL, "label": Field.LABEL,
    "reserved": GatewayField.RESERVED,
}
COMMAND_KINDS = {              # what the matcher is asked, and the HTTP method that does the same
    RequestKind.PUT_LIMIT: (Kind.PUT_LIMIT, "order.put_limit"),
    RequestKind.PUT_MARKET: (Kind.PUT_MARKET, "order.put_market"),
    RequestKind.CANCEL: (Kind.CANCEL, "order.cancel"),
    RequestKind.QUERY_BALANCE: (Kind.QUERY_BALANCE, "balance.query"),
}
KINDS_END = max(RequestKind) + 1


def welcome(instance, in_flight_max, timeout_ms, code=OK, field=0, bound=0):
    """A WELCOME, still without the numbers of assets and markets. `instance`: 16 bytes."""
    made = np.zeros(1, WELCOME)
    made["magic"], made["version"], made["code"], made["field"], made["bound"] = MAGIC, VERSION, code, field, bound
    made["instance"] = np.frombuffer(instance, np.uint8)
    made["in_flight_max"], made["timeout_ms"] = in_flight_max, timeout_ms
    made["request_bytes"], made["reply_bytes"] = REQUEST_BYTES, REPLY_BYTES
    return made
