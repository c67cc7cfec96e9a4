"""Requests of the frequent shapes, in compiled code: from the bytes of an HTTP message to a command in the ring.

Every shape taken here is one that the plain way takes too, with the same command. Whatever else it is, however little
it differs, it is left to the plain way: an unusual HTTP message is ODD, an unusual body PLAIN. So this module may be
narrow, and never decides that a request is wrong.
"""
from numba import int64

from gateways.arguments import USER_ID_MAX
from gateways.binary_request import take_records
from gateways.facts import UNKNOWN, find
from gateways.fast_text import (
    BACKSLASH,
    DIGITS_READ_MAX,
    FIRST_PRINTABLE,
    LAST_PRINTABLE,
    MINUS,
    NINE,
    QUOTE,
    UNREADABLE,
    ZERO,
    constant,
    is_text,
    put_part,
    read_decimal,
)
from gateways.intake import (
    ARENA_ADDRESS,
    BODY_LENGTH,
    BUSY,
    ENDED,
    FAILED,
    LIMIT,
    METHOD_BEGIN,
    METHOD_END,
    NO_ROOM,
    ODD,
    OFFSET,
    PARAMS,
    PARAMS_MAX,
    PLAIN,
    REQUEST_ID,
    SAID,
    SHAPE,
    TAKEN,
    UNFINISHED,
)
from gateways.lane import BODY_BYTES_MAX, NEXT, append, has_room, takes_writes
from gateways.sockets import CONNECTED, FIRST_EVENT, HELD, READ_BYTES, RECORDS, TELL, read_socket
from shm.kernel import called, inlined, kernel
from shm.records import (
    ALL_ASSETS,
    BALANCE_ROW,
    COMMAND,
    DEPTH_ROW,
    FIRST_READ,
    LABEL_BYTES_MAX,
    LIST_LIMIT_MAX,
    ORDER,
    REPLY_HEADER,
    REPLY_SLOT_BYTES,
    Kind,
    Side,
)

REQUEST_BYTES_MAX = 16_384     # head and body of a message that may be read in pieces here
LENGTH_DIGITS_MAX = 7          # of a Content-Length

# Shapes of answers.
ORDER_ANSWER, BALANCE_ANSWER, DEPTH_ANSWER, BOOK_ANSWER, PENDING_ANSWER = range(1, 6)

WORK_TOKEN = PARAMS_MAX        # the row of `tokens` for what is read and not kept
STRING, INTEGER = 1, 2
LABEL_AT = COMMAND.fields["label"][1]
COMMAND_WORDS = COMMAND.itemsize // 8
ASK, BID = int(Side.ASK), int(Side.BID)
PUT_LIMIT, PUT_MARKET, CANCEL = int(Kind.PUT_LIMIT), int(Kind.PUT_MARKET), int(Kind.CANCEL)
QUERY_BALANCE, LIST_BOOK, LIST_DEPTH = int(Kind.QUERY_BALANCE), int(Kind.LIST_BOOK), int(Kind.LIST_DEPTH)
LIST_PENDING = int(Kind.LIST_PENDING)
HEADER_BYTES, ORDER_BYTES = REPLY_HEADER.itemsize, ORDER.itemsize
BALANCE_BYTES, DEPTH_BYTES = BALANCE_ROW.itemsize, DEPTH_ROW.itemsize
SPACE, TAB, RETURN, NEWLINE, COMMA, COLON = (ord(character) for character in " \t\r\n,:")
OPEN_OBJECT, CLOSE_OBJECT, OPEN_ARRAY, CLOSE_ARRAY = (ord(character) for character in "{}[]")

_POST, _VERSION = constant("POST "), constant("HTTP/1.1\r\n")
_CONTENT_LENGTH, _CONNECTION = constant("content-length"), constant("connection")
_TRANSFER_ENCODING, _EXPECT, _UPGRADE = constant("transfer-encoding"), constant("expect"), constant("upgrade")
_KEEP_ALIVE = constant("keep-alive")
_ID, _METHOD, _PARAMS, _JSONRPC = constant("id"), constant("method"), constant("params"), constant("jsonrpc")
_ORDER_PUT_LIMIT, _ORDER_PUT_MARKET = constant("order.put_limit"), constant("order.put_market")
_ORDER_CANCEL, _BALANCE_QUERY = constant("order.cancel"), constant("balance.query")
_ORDER_DEPTH, _ORDER_BOOK, _ORDER_PENDING = constant("order.depth"), constant("order.book"), constant("order.pending")


@kernel
def receive(sockets, intake, ready, count, used, now_ns):
    """Read the connections among the first `ready` events, as far as the arena goes: the bytes of each are a piece,
    behind `count` pieces and `used` bytes. Returns (how many pieces there are then, how many of them begin with room
    for the `kept_bytes` of their connection).

    The system tells those that stay ready in the same order each time: whoever finds no room is first the next time.
    """
    continued = int64(0)
    index = sockets.own[FIRST_EVENT] - 1
    sockets.own[FIRST_EVENT] = 0
    for _ in range(ready):
        index = index + 1 if index + 1 < ready else int64(0)
        file = int64(sockets.events[index].file)
        if file >= len(sockets.marks) or not sockets.marks[file] & CONNECTED:
            continue           # it is none of them
        kept = sockets.kept_bytes[file]
        if used + kept + READ_BYTES > len(intake.arena):
            sockets.own[FIRST_EVENT] = index
            break              # it stays ready
        size = int64(-1)
        if not sockets.marks[file] & HELD:  # else it has failed: nothing else wakes for it
            size = read_socket(file, intake.marks[ARENA_ADDRESS] + used + kept, READ_BYTES)
        piece = intake.pieces[count]
        piece.connection = file
        piece.plain_only = 0
        piece.begin = piece.at = piece.end = used
        piece.outcome = TAKEN
        if size > 0:
            sockets.heard_ns[file] = now_ns
            used += kept + size
            continued += kept > 0
            piece.end = used
        else:
            piece.outcome = ENDED if size == 0 else FAILED
        count += 1
    return count, continued


# HTTP.

@called
def is_header(text, begin, end, name):
    """Whether a header's name is `name`, given in lower case."""
    if end - begin != len(name):
        return False
    for index in range(len(name)):
        byte = text[begin + index]
        if byte != name[index] and (byte | 0x20 != name[index] or not 0x41 <= byte <= 0x5A):
            return False
    return True


@called
def is_name_byte(byte):
    """Letters, digits, '-' and '_': the frequent ones among those that a header's name may have."""
    return 0x61 <= byte <= 0x7A or 0x41 <= byte <= 0x5A or ZERO <= byte <= NINE or byte == MINUS or byte == 0x5F


@called
def starts_with(text, begin, end, wanted):
    """1: it does; 0: so far; -1: it does not."""
    for index in range(len(wanted)):
        if begin + index == end:
            return 0
        if text[begin + index] != wanted[index]:
            return -1
    return 1


@called
def read_head(text, begin, end, marks):
    """Where the body of the message at `begin` begins, with its length in `marks`; -UNFINISHED or -ODD."""
    found = starts_with(text, begin, end, _POST)
    if found != 1:
        return -UNFINISHED if found == 0 else -ODD
    at = begin + len(_POST)
    while at < end and FIRST_PRINTABLE < text[at] <= LAST_PRINTABLE:
        at += 1
    if at == end:
        return -UNFINISHED
    if text[at] != SPACE or at == begin + len(_POST):
        return -ODD
    found = starts_with(text, at + 1, end, _VERSION)
    if found != 1:
        return -UNFINISHED if found == 0 else -ODD
    at += 1 + len(_VERSION)
    length = int64(-1)
    while True:
        name = at
        while at < end and is_name_byte(text[at]):
            at += 1
        if at == end:
            return -UNFINISHED
        if at == name:
            break
        name_end = at
        if text[at] != COLON:
            return -ODD
        at += 1
        while at < end and (text[at] == SPACE or text[at] == TAB):
            at += 1
        value = at
        while at < end and (FIRST_PRINTABLE <= text[at] <= LAST_PRINTABLE or text[at] == TAB):
            at += 1
        if at + 1 >= end:
            return -UNFINISHED
        if text[at] != RETURN or text[at + 1] != NEWLINE:
            return -ODD
        value_end = at
        while value_end > value and (text[value_end - 1] == SPACE or text[value_end - 1] == TAB):
            value_end -= 1
        at += 2
        if is_header(text, name, name_end, _CONTENT_LENGTH):
            if length >= 0 or not 0 < value_end - value <= LENGTH_DIGITS_MAX:
                return -ODD
            length = int64(0)
            for digit in range(value, value_end):
                if not ZERO <= text[digit] <= NINE:
                    return -ODD
                length = length * 10 + int64(text[digit]) - ZERO
        elif is_header(text, name, name_end, _CONNECTION):
            if not is_header(text, value, value_end, _KEEP_ALIVE):
                return -ODD
        elif is_header(text, name, name_end, _TRANSFER_ENCODING) or is_header(text, name, name_end, _EXPECT) \
                or is_header(text, name, name_end, _UPGRADE):
            return -ODD
    if text[at] != RETURN:
        return -ODD
    if at + 1 == end:
        return -UNFINISHED
    if text[at + 1] != NEWLINE or length <= 0:
        return -ODD
    marks[BODY_LENGTH] = length
    return at + 2


# JSON.

@called
def skip_blanks(text, at, end):
    while at < end and (text[at] == SPACE or text[at] == NEWLINE or text[at] == TAB or text[at] == RETURN):
        at += 1
    return at


@called
def read_token(text, at, end, tokens, row):
    """The string or integer at `at`, into a row of `tokens`; returns the place behind it, or UNREADABLE.

    A string of printable ASCII without escapes; an integer of at most 18 digits.
    """
    if at == end:
        return int64(UNREADABLE)
    if text[at] == QUOTE:
        at += 1
        tokens[row, 0] = STRING
        tokens[row, 1] = at
        while at < end and FIRST_PRINTABLE <= text[at] <= LAST_PRINTABLE and text[at] != QUOTE \
                and text[at] != BACKSLASH:
            at += 1
        if at == end or text[at] != QUOTE:
            return int64(UNREADABLE)
        tokens[row, 2] = at
        return at + 1
    negative = text[at] == MINUS
    at += negative
    begin = at
    value = int64(0)
    while at < end and ZERO <= text[at] <= NINE and at - begin < DIGITS_READ_MAX:
        value = value * 10 + int64(text[at]) - ZERO
        at += 1
    if at == begin or (text[begin] == ZERO and at > begin + 1):
        return int64(UNREADABLE)
    tokens[row, 0] = INTEGER
    tokens[row, 1] = -value if negative else value
    return at                  # whatever follows must be a comma or the end of something: nothing of the number


@called
def read_params(text, at, end, tokens, marks):
    """An array of strings and integers into `tokens`, from the first row on; the place behind it, or UNREADABLE."""
    if at == end or text[at] != OPEN_ARRAY:
        return int64(UNREADABLE)
    count = 0
    at = skip_blanks(text, at + 1, end)
    if at < end and text[at] == CLOSE_ARRAY:
        marks[PARAMS] = 0
        return at + 1
    while count < PARAMS_MAX:
        at = read_token(text, at, end, tokens, int64(count))
        if at == UNREADABLE:
            return at
        count += 1
        at = skip_blanks(text, at, end)
        if at == end:
            break
        if text[at] == CLOSE_ARRAY:
            marks[PARAMS] = count
            return at + 1
        if text[at] != COMMA:
            break
        at = skip_blanks(text, at + 1, end)
    return int64(UNREADABLE)


@called
def read_call(text, at, end, tokens, marks):
    """Read an object of the members id, method and params, each once and in any order, and `jsonrpc`, which says
    nothing. Returns whether it is one: then `marks` and `tokens` hold it."""
    at = skip_blanks(text, at, end)
    if at == end or text[at] != OPEN_OBJECT:
        return False
    has_id = has_method = has_params = False
    while True:
        at = read_token(text, skip_blanks(text, at + 1, end), end, tokens, int64(WORK_TOKEN))
        if at == UNREADABLE or tokens[WORK_TOKEN, 0] != STRING:
            return False
        name, name_end = tokens[WORK_TOKEN, 1], tokens[WORK_TOKEN, 2]
        at = skip_blanks(text, at, end)
        if at == end or text[at] != COLON:
            return False
        at = skip_blanks(text, at + 1, end)
        if not has_params and is_text(text, name, name_end, _PARAMS):
            at = read_params(text, at, end, tokens, marks)
            has_params = True
        else:
            at = read_token(text, at, end, tokens, int64(WORK_TOKEN))
            kind = tokens[WORK_TOKEN, 0]
            if not has_id and kind == INTEGER and is_text(text, name, name_end, _ID):
                marks[REQUEST_ID] = tokens[WORK_TOKEN, 1]
                has_id = True
            elif not has_method and kind == STRING and is_text(text, name, name_end, _METHOD):
                marks[METHOD_BEGIN], marks[METHOD_END] = tokens[WORK_TOKEN, 1], tokens[WORK_TOKEN, 2]
                has_method = True
            elif kind != STRING or not is_text(text, name, name_end, _JSONRPC):
                return False
        if at == UNREADABLE:
            return False
        at = skip_blanks(text, at, end)
        if at == end:
            return False
        if text[at] == CLOSE_OBJECT:
            return has_id and has_method and has_params and skip_blanks(text, at + 1, end) == end
        if text[at] != COMMA:
            return False


# Calls. Each `..._of` makes the command of one kind from the tokens and returns the slots of its largest reply, or 0:
# it is for the plain way.

@inlined
def reply_slots(rows, row_bytes):
    return (HEADER_BYTES + rows * row_bytes + REPLY_SLOT_BYTES - 1) // REPLY_SLOT_BYTES


@inlined
def take_user(command, tokens, row):
    user_id = tokens[row, 1]
    command.user_id = user_id
    return tokens[row, 0] == INTEGER and 1 <= user_id <= USER_ID_MAX


@inlined
def take_market(command, facts, text, tokens, row):
    """The market's id, or UNKNOWN."""
    if tokens[row, 0] != STRING:
        return int64(UNKNOWN)
    market_id = find(facts.markets, facts.market_cells, text, tokens[row, 1], tokens[row, 2])
    command.market_id = market_id
    return market_id


@inlined
def take_side(command, tokens, row):
    command.side = tokens[row, 1]
    return tokens[row, 0] == INTEGER and (tokens[row, 1] == ASK or tokens[row, 1] == BID)


@inlined
def take_decimal(text, tokens, row, decimals):
    """The number in a string, in units of 10^-decimals, or UNREADABLE."""
    if tokens[row, 0] != STRING:
        return int64(UNREADABLE)
    return read_decimal(text, tokens[row, 1], tokens[row, 2], int64(decimals))


@inlined
def take_label(intake, tokens, row):
    count = tokens[row, 2] - tokens[row, 1]
    if tokens[row, 0] != STRING or count > LABEL_BYTES_MAX:
        return False
    intake.command[0].label_bytes = count
    put_part(intake.command_bytes, LABEL_AT, intake.arena, tokens[row, 1], count)
    return True


@inlined
def take_page(command, tokens, row, marks):
    """An offset and a limit."""
    offset, limit = tokens[row, 1], tokens[row + 1, 1]
    if tokens[row, 0] != INTEGER or tokens[row + 1, 0] != INTEGER or not 0 <= limit <= LIST_LIMIT_MAX:
        return False
    command.offset = marks[OFFSET] = offset
    command.limit = marks[LIMIT] = limit
    return True


@called
def put_order_of(intake, facts, kind):
    """order.put_limit and order.put_market: user, market, side, amount, [price,] taker fee, [maker fee,] source."""
    command, tokens, text = intake.command[0], intake.tokens, intake.arena
    is_limit = kind == PUT_LIMIT
    if intake.marks[PARAMS] != (8 if is_limit else 6) or not take_user(command, tokens, 0):
        return 0
    market_id = take_market(command, facts, text, tokens, 1)
    if market_id == UNKNOWN or not take_side(command, tokens, 2):
        return 0
    market = facts.markets[market_id]
    amount = take_decimal(text, tokens, 3, market.stock_prec)
    if not 0 < amount <= market.amount_max:
        return 0
    command.amount = amount
    row = 4
    if is_limit:
        price = take_decimal(text, tokens, 4, market.money_prec)
        maker_fee = take_decimal(text, tokens, 6, market.fee_prec)
        if price <= 0 or not 0 <= maker_fee < market.fee_one:
            return 0
        command.price, command.maker_fee = price, maker_fee
        row = 5
    taker_fee = take_decimal(text, tokens, row, market.fee_prec)
    if not 0 <= taker_fee < market.fee_one or not take_label(intake, tokens, intake.marks[PARAMS] - 1):
        return 0
    command.taker_fee = taker_fee
    command.kind = kind
    intake.marks[SHAPE] = ORDER_ANSWER
    return reply_slots(1, ORDER_BYTES)


@called
def cancel_of(intake, facts):
    command, tokens = intake.command[0], intake.tokens
    if intake.marks[PARAMS] != 3 or not take_user(command, tokens, 0) \
            or take_market(command, facts, intake.arena, tokens, 1) == UNKNOWN \
            or tokens[2, 0] != INTEGER or tokens[2, 1] < 0:
        return 0
    command.reference = tokens[2, 1]
    command.kind = CANCEL
    intake.marks[SHAPE] = ORDER_ANSWER
    return reply_slots(1, ORDER_BYTES)


@called
def balance_query_of(intake, facts):
    command, tokens, label = intake.command[0], intake.tokens, intake.command_bytes
    names = intake.marks[PARAMS] - 1
    if names < 0 or not take_user(command, tokens, 0):
        return 0
    for index in range(names):
        if tokens[1 + index, 0] != STRING:
            return 0
        asset_id = find(facts.assets, facts.asset_cells, intake.arena, tokens[1 + index, 1], tokens[1 + index, 2])
        if asset_id == UNKNOWN:
            return 0
        for before in range(index):
            if int64(label[LABEL_AT + 2 * before]) | int64(label[LABEL_AT + 2 * before + 1]) << 8 == asset_id:
                return 0       # named twice
        label[LABEL_AT + 2 * index] = asset_id & 255
        label[LABEL_AT + 2 * index + 1] = asset_id >> 8
    command.label_bytes = 2 * names
    if names == 0:
        command.asset_id = ALL_ASSETS
    command.kind = QUERY_BALANCE
    intake.marks[SHAPE] = BALANCE_ANSWER
    return reply_slots(names if names > 0 else len(facts.assets), BALANCE_BYTES)


@called
def depth_of(intake, facts):
    command, tokens = intake.command[0], intake.tokens
    if intake.marks[PARAMS] != 3:
        return 0
    market_id = take_market(command, facts, intake.arena, tokens, 0)
    limit = tokens[1, 1]
    if market_id == UNKNOWN or tokens[1, 0] != INTEGER or not 0 <= limit <= LIST_LIMIT_MAX:
        return 0
    interval = take_decimal(intake.arena, tokens, 2, facts.markets[market_id].money_prec)
    if interval == UNREADABLE:
        return 0
    command.limit, command.price = limit, interval
    command.kind = LIST_DEPTH
    intake.marks[SHAPE] = DEPTH_ANSWER
    return reply_slots(2 * limit, DEPTH_BYTES)


@called
def book_of(intake, facts):
    command, tokens = intake.command[0], intake.tokens
    if intake.marks[PARAMS] != 4 or take_market(command, facts, intake.arena, tokens, 0) == UNKNOWN \
            or not take_side(command, tokens, 1) or not take_page(command, tokens, 2, intake.marks):
        return 0
    command.kind = LIST_BOOK
    intake.marks[SHAPE] = BOOK_ANSWER
    return reply_slots(command.limit, ORDER_BYTES)


@called
def pending_of(intake, facts):
    command, tokens = intake.command[0], intake.tokens
    if intake.marks[PARAMS] != 4 or not take_user(command, tokens, 0) \
            or take_market(command, facts, intake.arena, tokens, 1) == UNKNOWN \
            or not take_page(command, tokens, 2, intake.marks):
        return 0
    command.kind = LIST_PENDING
    intake.marks[SHAPE] = PENDING_ANSWER
    return reply_slots(command.limit, ORDER_BYTES)


@called
def command_of(intake, facts, begin, end):
    """Make the command of the call in a body; returns the slots of its largest reply, or 0: it is for the plain way."""
    text, marks = intake.arena, intake.marks
    if not read_call(text, begin, end, intake.tokens, marks):
        return 0
    for word in range(COMMAND_WORDS):
        intake.command_words[word] = 0
    method, method_end = marks[METHOD_BEGIN], marks[METHOD_END]
    if is_text(text, method, method_end, _ORDER_PUT_LIMIT):
        return put_order_of(intake, facts, int64(PUT_LIMIT))
    if is_text(text, method, method_end, _ORDER_CANCEL):
        return cancel_of(intake, facts)
    if is_text(text, method, method_end, _BALANCE_QUERY):
        return balance_query_of(intake, facts)
    if is_text(text, method, method_end, _ORDER_DEPTH):
        return depth_of(intake, facts)
    if is_text(text, method, method_end, _ORDER_PENDING):
        return pending_of(intake, facts)
    if is_text(text, method, method_end, _ORDER_BOOK):
        return book_of(intake, facts)
    if is_text(text, method, method_end, _ORDER_PUT_MARKET):
        return put_order_of(intake, facts, int64(PUT_MARKET))
    return 0


@called
def take_piece(lane, sockets, intake, facts, piece, body_bytes_max, in_flight_max, all_plain, received_ns, asked_ns):
    """Take the messages of one piece, until one of them is not for this way or has to wait."""
    text, marks = intake.arena, intake.marks
    slot = piece.connection
    at = piece.begin
    plain_only = all_plain or piece.plain_only != 0
    while at < piece.end:
        piece.at = at
        body = read_head(text, at, piece.end, marks)
        if body == -UNFINISHED and piece.end - at < REQUEST_BYTES_MAX:
            return UNFINISHED
        if body < 0:
            return ODD if sockets.in_flight[slot] == 0 else BUSY
        length = marks[BODY_LENGTH]
        if length > body_bytes_max or body - at + length > REQUEST_BYTES_MAX:
            return ODD if sockets.in_flight[slot] == 0 else BUSY
        if body + length > piece.end:
            return UNFINISHED
        end = body + length
        slots = 0
        if length <= BODY_BYTES_MAX and not plain_only:
            slots = command_of(intake, facts, body, end)
        command = intake.command[0]
        if slots == 0 or (command.kind < FIRST_READ and not takes_writes(lane)):
            if sockets.in_flight[slot] != 0:
                return BUSY
            piece.body_begin, piece.body_end = body, end
            piece.at = end
            return PLAIN
        if sockets.in_flight[slot] >= in_flight_max:
            return BUSY
        if not has_room(lane, int64(1), slots):
            return NO_ROOM
        command.received_at_ns = received_ns
        command.correlation_id = marks[REQUEST_ID]
        command.slots = 1
        number = lane.own[NEXT]
        call = append(lane, intake.command_words, int64(1), slots, asked_ns)
        call.connection = slot
        call.id = marks[REQUEST_ID]
        call.offset = marks[OFFSET]
        call.limit = marks[LIMIT]
        call.market_id = command.market_id
        call.shape = marks[SHAPE]
        call.body_bytes = length
        row = number & (len(lane.calls) - 1)
        put_part(lane.bodies, row * BODY_BYTES_MAX, text, body, length)
        sockets.in_flight[slot] += 1
        at = end
    piece.at = at
    return TAKEN


@kernel
def take(lane, sockets, intake, facts, count, body_bytes_max, in_flight_max, all_plain, received_ns, asked_ns):
    """Take the first `count` pieces, in their order; each one's `outcome` and `at` say how far. Returns how many are
    not wholly TAKEN. Nothing is published yet. Who is BUSY is marked TELL.

    `in_flight_max`: of a connection; `all_plain`: everything goes the plain way, or, on a binary connection, nothing
    goes to the matcher.
    """
    left_over = 0
    intake.marks[SAID] = 0
    for index in range(count):
        piece = intake.pieces[index]
        if piece.outcome == TAKEN:
            if sockets.marks[piece.connection] & RECORDS:
                piece.outcome = take_records(
                    lane, sockets, intake, facts, piece, in_flight_max, all_plain, received_ns, asked_ns)
            else:
                piece.outcome = take_piece(lane, sockets, intake, facts, piece, body_bytes_max, in_flight_max,
                                           all_plain, received_ns, asked_ns)
        if piece.outcome == BUSY:
            sockets.marks[piece.connection] |= TELL
        left_over += piece.outcome != TAKEN
    return left_over
