"""Numbers and strings of the wire in compiled code: the shapes that nearly every request has, read and written as
arguments.py and shm/decimals.py do. A reader answers UNREADABLE for any other shape: then those modules are asked.

Text is uint8. Writers take the place to write at and return the place behind; whoever calls them has seen to the room.
"""
import numpy as np
from numba import int64, uint64

from shm.byte_copy import copy_bytes
from shm.decimals import PLAIN_EXPONENT_MIN
from shm.int128 import divide, from_halves, from_int64, high_half, low_half
from shm.kernel import called, inlined

UNREADABLE = -1                # every number read is at least 0
DIGITS_READ_MAX = 18           # of a number read: fits int64
DIGITS_MAX = 40                # of a number written: 128 bits and room
MICROSECONDS_MIN = 10**12      # of a time written: from here on, and below ...
MICROSECONDS_MAX = 2**32 * 10**6  # ... whole microseconds are what the shortest real number shows
ZERO, NINE, POINT, MINUS, QUOTE, BACKSLASH = (ord(character) for character in '09.-"\\')
FIRST_PRINTABLE, LAST_PRINTABLE = 0x20, 0x7E
_CHUNK = 10**18                # 128-bit numbers are split into parts below it
_CHUNK_DIGITS = 18
_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)
_SHORT_ESCAPES = np.zeros(32, np.uint8)
for _code, _letter in ((8, "b"), (9, "t"), (10, "n"), (12, "f"), (13, "r")):
    _SHORT_ESCAPES[_code] = ord(_letter)


def constant(text):
    """Text that compiled code writes."""
    return np.frombuffer(text.encode(), np.uint8)


_UNICODE_ESCAPE = constant("\\u00")


# Reading.

@called
def is_text(text, begin, end, wanted):
    """Whether text[begin:end] is exactly `wanted`."""
    if end - begin != len(wanted):
        return False
    for index in range(len(wanted)):
        if text[begin + index] != wanted[index]:
            return False
    return True


@called
def read_decimal(text, begin, end, decimals):
    """The number `digits` or `digits.digits` in units of 10^-decimals, cut toward zero; UNREADABLE for another shape or
    more than DIGITS_READ_MAX digits that count."""
    value = int64(0)
    digits = int64(0)
    left = int64(decimals)     # decimals that still count
    at = begin
    while at < end and ZERO <= text[at] <= NINE:
        value = value * 10 + int64(text[at]) - ZERO
        digits += value != 0
        if digits > DIGITS_READ_MAX:
            return UNREADABLE
        at += 1
    if at == begin:
        return UNREADABLE
    if at < end:
        if text[at] != POINT or at + 1 == end or end - at > DIGITS_READ_MAX:
            return UNREADABLE
        at += 1
        while at < end:
            if not ZERO <= text[at] <= NINE:
                return UNREADABLE
            if left > 0:
                value = value * 10 + int64(text[at]) - ZERO
                digits += value != 0
                left -= 1
            at += 1
    digits += left * (value != 0)
    if digits > DIGITS_READ_MAX:
        return UNREADABLE
    for _ in range(left):
        value *= 10
    return value


# Writing.

@inlined
def put(out, at, text):
    copy_bytes(out, at, text, 0, len(text))
    return at + len(text)


@inlined
def put_part(out, at, text, begin, count):
    copy_bytes(out, at, text, begin, count)
    return at + count


@called
def count_digits(value):
    count = 1
    while value >= 10:
        value //= uint64(10)
        count += 1
    return count


@called
def put_digits(out, at, value, count):
    """The last `count` digits of an unsigned number, zeros in front."""
    place = at + count
    while place > at:
        place -= 1
        rest = value // uint64(10)
        out[place] = ZERO + (value - rest * uint64(10))
        value = rest
    return at + count


@called
def put_integer(out, at, value):
    """Any int64."""
    if value < 0:
        out[at] = MINUS
        at += 1
        value = -value         # the least one stays as it is, and is right as unsigned
    return put_digits(out, at, uint64(value), count_digits(uint64(value)))


@called
def write_digits(digits, low, high):
    """Write the digits of a non-negative 128-bit number to the beginning of `digits`; returns how many."""
    if high == 0:
        count = count_digits(low)
        put_digits(digits, int64(0), low, count)
        return count
    value = from_halves(low, high)
    chunk = from_int64(_CHUNK)
    upper = divide(value, chunk)
    last = low_half(value - upper * chunk)
    if high_half(upper) == 0 and low_half(upper) < uint64(_CHUNK):
        count = count_digits(low_half(upper))
        put_digits(digits, int64(0), low_half(upper), count)
    else:
        top = divide(upper, chunk)
        middle = low_half(upper - top * chunk)
        count = count_digits(low_half(top))
        put_digits(digits, int64(0), low_half(top), count)
        put_digits(digits, count, middle, int64(_CHUNK_DIGITS))
        count += _CHUNK_DIGITS
    put_digits(digits, count, last, int64(_CHUNK_DIGITS))
    return count + _CHUNK_DIGITS


@called
def put_decimal(out, at, digits, low, high, cut, decimals):
    """FMT of a non-negative 128-bit number that has lost its last `cut` digits and is held with `decimals`.

    `digits`: DIGITS_MAX bytes to work in.
    """
    count = write_digits(digits, low, high) - cut
    if count <= 0:
        digits[0] = ZERO
        count = 1
    point = count - decimals   # digits before the point; below one: zeros after it
    if decimals == 0:
        return put_part(out, at, digits, 0, count)
    if point <= PLAIN_EXPONENT_MIN:
        out[at] = digits[0]
        at += 1
        if count > 1:
            out[at] = POINT
            at = put_part(out, at + 1, digits, 1, count - 1)
        out[at] = ord("e")
        out[at + 1] = MINUS
        return put_integer(out, at + 2, 1 - point)
    while count > max(point, 0) and digits[count - 1] == ZERO:
        count -= 1
    if point > 0:
        at = put_part(out, at, digits, 0, point)
        if count == point:
            return at
        out[at] = POINT
        return put_part(out, at + 1, digits, point, count - point)
    out[at] = ZERO
    at += 1
    if count == 0:
        return at
    out[at] = POINT
    at += 1
    for _ in range(-point):
        out[at] = ZERO
        at += 1
    return put_part(out, at, digits, 0, count)


@called
def put_time(out, at, time_ns):
    """Seconds as a JSON real number, of a time from MICROSECONDS_MIN to below MICROSECONDS_MAX."""
    microseconds = time_ns // 1_000
    at = put_integer(out, at, microseconds // 1_000_000)
    out[at] = POINT
    end = put_digits(out, at + 1, uint64(microseconds % 1_000_000), int64(6))
    while end > at + 2 and out[end - 1] == ZERO:
        end -= 1
    return end


@called
def put_string(out, at, text, begin, count):
    """A JSON string of UTF-8 text, quotes included; up to six bytes for one."""
    out[at] = QUOTE
    at += 1
    for index in range(begin, begin + count):
        byte = text[index]
        if byte >= FIRST_PRINTABLE and byte != QUOTE and byte != BACKSLASH:
            out[at] = byte
            at += 1
        elif byte >= FIRST_PRINTABLE or _SHORT_ESCAPES[byte] != 0:
            out[at] = BACKSLASH
            out[at + 1] = byte if byte >= FIRST_PRINTABLE else _SHORT_ESCAPES[byte]
            at += 2
        else:
            at = put(out, at, _UNICODE_ESCAPE)
            out[at] = _HEX[byte >> 4]
            out[at + 1] = _HEX[byte & 15]
            at += 2
    out[at] = QUOTE
    return at + 1
