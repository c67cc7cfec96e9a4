"""Requests of the binary port, in compiled code: from records to commands in the ring.

What a record's fields may be the matcher says, as it does of every command; here is looked at what it could not know:
whether the record is one at all. Such refusals, a ping, and what finds no way into the ring are answered by the gateway
itself, when everything before them on the connection is answered.
"""
import numpy as np
from numba import int64, uint8, uint64

from gateways.binary_protocol import (
    COMMAND_KINDS,
    FIELD_NUMBERS,
    FIELDS_USED,
    HELLO,
    KINDS_END,
    MAGIC,
    NO_RESULT,
    OK,
    REPLY_BYTES,
    REQUEST,
    REQUEST_BYTES,
    VERSION,
    GatewayField,
    RequestKind,
)
from gateways.facts import ASSETS, MARKETS
from gateways.intake import ANSWERED, BUSY, NO_ROOM, REFUSED, SAID, TAKEN, UNFINISHED
from gateways.lane import RECORD_ANSWER, REFUSING, append, has_room
from gateways.protocol import INVALID_ARGUMENT, SERVICE_UNAVAILABLE
from gateways.sockets import BLOCKED, GREETED
from shm.atomics import load_acquire
from shm.byte_copy import copy_bytes
from shm.kernel import called, inlined
from shm.records import BALANCE_ROW, COMMAND, FIRST_READ, LABEL_BYTES_MAX, ORDER, REPLY_HEADER, REPLY_SLOT_BYTES

HELLO_BYTES = HELLO.itemsize
REQUEST_WORDS, COMMAND_WORDS = REQUEST_BYTES // 8, COMMAND.itemsize // 8
REQUEST_LABEL_AT, COMMAND_LABEL_AT = REQUEST.fields["label"][1], COMMAND.fields["label"][1]
ASSET_ID_BYTES = 2
REPLY_SLOTS = 1                # of the reply to each kind
assert REPLY_HEADER.itemsize + max(ORDER.itemsize, BALANCE_ROW.itemsize) <= REPLY_SLOTS * REPLY_SLOT_BYTES
INVALID, UNAVAILABLE = INVALID_ARGUMENT.code, SERVICE_UNAVAILABLE.code
QUERY_BALANCE, PING = int(RequestKind.QUERY_BALANCE), int(RequestKind.PING)
FIELD_KIND, FIELD_LABEL, FIELD_RESERVED, FIELD_MAGIC, FIELD_VERSION, ROOM, MATCHER, JOURNAL = (int(field) for field in (
    GatewayField.KIND, GatewayField.LABEL, GatewayField.RESERVED, GatewayField.MAGIC, GatewayField.VERSION,
    GatewayField.ROOM, GatewayField.MATCHER, GatewayField.JOURNAL))
_HELLO = np.array([(MAGIC, VERSION, 0)], HELLO).view(np.uint8)
_HELLO_FIELDS = np.repeat(np.array([FIELD_MAGIC, FIELD_VERSION, FIELD_RESERVED], np.uint8), [8, 4, 4])
_NOTHING = np.zeros(REPLY_BYTES, np.uint8)
_KINDS = np.zeros(KINDS_END, np.uint8)  # of commands
for _kind, (_command_kind, _) in COMMAND_KINDS.items():
    _KINDS[_kind] = _command_kind


def _bytes_of(fields):
    """0xFF at each byte of these fields of a request."""
    used = np.zeros(REQUEST_BYTES, np.uint8)
    for name in fields:
        dtype, at = REQUEST.fields[name][:2]
        used[at:at + dtype.itemsize] = 0xFF
    return used


_UNUSED = np.zeros((KINDS_END, REQUEST_WORDS), np.uint64)  # bits that must be zero
for _kind, _fields in FIELDS_USED.items():
    _UNUSED[_kind] = (~_bytes_of((*_fields, "request_id", "kind"))).view(np.uint64)
_FIELD_OF = np.zeros(REQUEST_BYTES, np.uint8)  # of each byte
for _name, _number in FIELD_NUMBERS.items():
    _FIELD_OF[_bytes_of([_name]) != 0] = _number


# What a record may be.

@called
def is_label(text, begin, count):
    """Whether these bytes are UTF-8 without a NUL."""
    at = begin
    end = begin + count
    while at < end:
        first = int64(text[at])
        at += 1
        if 0 < first < 0x80:
            continue
        more = 1 if 0xC2 <= first < 0xE0 else 2 if 0xE0 <= first < 0xF0 else 3 if 0xF0 <= first < 0xF5 else 0
        if more == 0 or at + more > end:
            return False
        second = int64(text[at])
        least = 0xA0 if first == 0xE0 else 0x90 if first == 0xF0 else 0x80  # below: written longer than needed
        most = 0x9F if first == 0xED else 0x8F if first == 0xF4 else 0xBF   # above: a surrogate, or no character
        if not least <= second <= most:
            return False
        for index in range(1, more):
            if text[at + index] & 0xC0 != 0x80:
                return False
        at += more
    return True


@called
def fault_of(intake, at):
    """The field of the record at hand, which begins at `at`, that makes it none; 0: it is one."""
    request, text = intake.request[0], intake.arena
    kind = int64(request.kind)
    if kind == 0 or kind >= KINDS_END:
        return FIELD_KIND
    unused = uint64(0)
    for word in range(REQUEST_WORDS):
        unused |= intake.request_words[word] & _UNUSED[kind, word]
    if unused != 0:
        for byte in range(REQUEST_BYTES):
            if text[at + byte] & uint8(_UNUSED[kind, byte >> 3] >> uint64(8 * (byte & 7))):
                return int64(_FIELD_OF[byte])
    count = int64(request.label_bytes)
    if count > LABEL_BYTES_MAX or not is_label(text, at + REQUEST_LABEL_AT, count):
        return FIELD_LABEL
    for byte in range(at + REQUEST_LABEL_AT + count, at + REQUEST_LABEL_AT + LABEL_BYTES_MAX):
        if text[byte] != 0:
            return FIELD_LABEL
    return 0


# Answers of the gateway itself.

@inlined
def say(intake, code, field, bound):
    """Answer the record at hand."""
    said = intake.marks[SAID]
    intake.marks[SAID] += 1
    copy_bytes(intake.said, said, _NOTHING, 0, REPLY_BYTES)
    request, reply = intake.request[0], intake.said[said]
    reply.request_id = request.request_id
    reply.kind = request.kind
    reply.code = code
    reply.result = NO_RESULT
    reply.field = field
    reply.bound = bound


@called
def greet(intake, facts, begin, end):
    """Answer the hello that begins at `begin`; TAKEN, UNFINISHED or REFUSED."""
    field = int64(0)
    count = min(end - begin, HELLO_BYTES)
    for byte in range(count):
        if intake.arena[begin + byte] != _HELLO[byte]:
            field = int64(_HELLO_FIELDS[byte])
            break
    if field == 0 and count < HELLO_BYTES:
        return UNFINISHED
    welcome = intake.welcome[0]
    welcome.code = OK if field == 0 else INVALID
    welcome.field = field
    welcome.bound = VERSION if field == FIELD_VERSION else 0
    welcome.assets = facts.counts[ASSETS]
    welcome.markets = facts.counts[MARKETS]
    copy_bytes(intake.said, intake.marks[SAID], intake.welcome, 0, REPLY_BYTES)
    intake.marks[SAID] += 1
    return TAKEN if field == 0 else REFUSED


# Commands.

@called
def submit(lane, intake, slot, at, received_ns, asked_ns):
    """Write the command of the record at hand, for which there is room."""
    request, command, words = intake.request[0], intake.command[0], intake.command_words
    for word in range(COMMAND_WORDS):
        words[word] = 0
    kind = int64(request.kind)
    command.kind = _KINDS[kind]
    command.slots = 1
    command.received_at_ns = received_ns
    command.correlation_id = request.request_id
    command.user_id = request.user_id
    if kind == QUERY_BALANCE:
        intake.command_bytes[COMMAND_LABEL_AT] = request.asset_id & 255
        intake.command_bytes[COMMAND_LABEL_AT + 1] = request.asset_id >> 8
        command.label_bytes = ASSET_ID_BYTES
    else:
        command.market_id = request.market_id
        command.side = request.side
        command.price = request.price
        command.amount = request.amount
        command.taker_fee = request.taker_fee
        command.maker_fee = request.maker_fee
        command.reference = request.order_id
        command.label_bytes = request.label_bytes
        copy_bytes(intake.command_bytes, COMMAND_LABEL_AT, intake.arena, at + REQUEST_LABEL_AT, LABEL_BYTES_MAX)
    call = append(lane, words, int64(1), int64(REPLY_SLOTS), asked_ns)
    call.connection = slot
    call.id = int64(request.request_id)
    call.shape = RECORD_ANSWER + kind


@called
def take_record(lane, sockets, intake, slot, at, in_flight_max, is_closed, is_late, received_ns, asked_ns):
    """Take the record at `at`, or answer it: TAKEN; or BUSY or NO_ROOM, and nothing has happened."""
    copy_bytes(intake.request_words, 0, intake.arena, at, REQUEST_BYTES)
    kind = int64(intake.request[0].kind)
    bound = int64(0)
    field = int64(fault_of(intake, at))
    code = INVALID if field != 0 else OK
    if field == 0 and kind != PING:
        code = UNAVAILABLE
        refusing = load_acquire(lane.journal_words, 0, REFUSING) if _KINDS[kind] < FIRST_READ else int64(0)
        if is_closed:
            field = int64(MATCHER)
        elif refusing != 0:
            field = int64(JOURNAL)
            bound = refusing
        elif sockets.in_flight[slot] >= in_flight_max:
            return BUSY
        elif has_room(lane, int64(1), int64(REPLY_SLOTS)):
            submit(lane, intake, slot, at, received_ns, asked_ns)
            sockets.in_flight[slot] += 1
            return TAKEN
        elif not is_late:
            return NO_ROOM
        else:
            field = int64(ROOM)
    if sockets.in_flight[slot] != 0:
        return BUSY
    say(intake, code, field, bound)
    return TAKEN


@called
def take_records(lane, sockets, intake, facts, piece, in_flight_max, is_closed, received_ns, asked_ns):
    """Take the records of one piece, until one of them has to wait. `is_closed`: there is no matcher."""
    slot = piece.connection
    at = piece.begin
    is_late = piece.plain_only != 0
    piece.body_begin = intake.marks[SAID] * REPLY_BYTES
    outcome = int64(TAKEN)
    if not sockets.marks[slot] & GREETED and at < piece.end:
        outcome = int64(greet(intake, facts, at, piece.end))
        if outcome == TAKEN:
            sockets.marks[slot] |= GREETED
            at += HELLO_BYTES
    while outcome == TAKEN and at + REQUEST_BYTES <= piece.end:
        outcome = int64(take_record(
            lane, sockets, intake, slot, at, in_flight_max, is_closed, is_late, received_ns, asked_ns))
        if outcome == TAKEN:
            at += REQUEST_BYTES
    piece.at = at
    piece.body_end = intake.marks[SAID] * REPLY_BYTES
    if piece.body_end > piece.body_begin:
        sockets.marks[slot] |= BLOCKED  # Python sends these first
    if outcome != TAKEN:
        return outcome
    if at < piece.end:
        return UNFINISHED
    return ANSWERED if piece.body_end > piece.body_begin else TAKEN
