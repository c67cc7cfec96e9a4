"""Replies of the binary port, in compiled code: from reply messages to records, refusals too."""
import numpy as np
from numba import int64, uint64

from gateways.binary_protocol import COMMAND_KINDS, KINDS_END, REPLY_BYTES, RequestKind
from gateways.lane import RECORD_ANSWER
from gateways.protocol import INVALID_ARGUMENT, METHODS, SERVICE_UNAVAILABLE
from shm.byte_copy import copy_bytes
from shm.kernel import called
from shm.records import Result

OK = int(Result.OK)
QUERY_BALANCE = int(RequestKind.QUERY_BALANCE)
REPLY_WORDS = REPLY_BYTES // 8
_CODES = np.zeros((KINDS_END, max(Result) + 1), np.uint8)  # by kind and result
for _kind, (_, _method) in COMMAND_KINDS.items():
    _CODES[_kind, Result.INVALID], _CODES[_kind, Result.FULL] = INVALID_ARGUMENT.code, SERVICE_UNAVAILABLE.code
    for _result, (_error, _, _) in METHODS[_method].refusals.items():
        _CODES[_kind, _result] = _error.code


@called
def put_record(box, at, call):
    """Write the record that answers a call to `out` at `at`; the place behind it."""
    header = box.header[0]
    reply = box.record[0]
    for word in range(REPLY_WORDS):
        box.record_words[word] = 0
    kind = int64(call.shape) - RECORD_ANSWER
    reply.request_id = uint64(call.id)
    reply.code = _CODES[kind, header.result]
    reply.result = header.result
    reply.field = header.field
    reply.kind = kind
    reply.bound = header.bound
    reply.time_ns = header.time_ns
    if header.result == OK:
        if kind == QUERY_BALANCE:
            row, balance = box.balances[0], box.balance_record[0]
            balance.asset_id = row.asset_id
            balance.available_low = row.available_low
            balance.available_high = row.available_high
            balance.frozen_low = row.frozen_low
            balance.frozen_high = row.frozen_high
        else:
            order = box.orders[0]
            reply.market_id = order.market_id
            reply.side = order.side
            reply.order_type = order.order_type
            reply.order_id = order.order_id
            reply.price = order.price
            reply.amount = order.amount
            reply.left_low = order.left_low
            reply.left_high = order.left_high
            reply.deal_stock = order.deal_stock
            reply.deal_money_low = order.deal_money_low
            reply.deal_money_high = order.deal_money_high
            reply.deal_fee_low = order.deal_fee_low
            reply.deal_fee_high = order.deal_fee_high
            reply.created_at_ns = order.created_at_ns
            reply.updated_at_ns = order.updated_at_ns
    copy_bytes(box.out, at, box.record, 0, REPLY_BYTES)
    return at + REPLY_BYTES
