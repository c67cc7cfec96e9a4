"""The messages of a byte stream as Tornado's parser reads them: what the fast path's reading of HTTP is judged by."""
import re
from typing import NamedTuple

from tornado.httputil import HTTPHeaders, HTTPInputError, parse_request_start_line

_HEAD_END = re.compile(rb"\r?\n\r?\n")
# What makes a message another than the frequent one, whatever else it says.
_ODD_HEADERS = ("Transfer-Encoding", "Expect", "Upgrade")


class Message(NamedTuple):
    end: int                   # in the stream
    body: bytes
    is_frequent: bool          # POST, HTTP/1.1, a kept connection and one plain length


def read_message(stream, begin=0):
    """The Message at `begin`; None where it has not come whole, or cannot be read at all."""
    head_end = _HEAD_END.search(stream, begin)
    if head_end is None:
        return None
    first, _, rest = stream[begin:head_end.end()].decode("latin1").lstrip("\r\n").partition("\n")
    try:
        line, headers = parse_request_start_line(first.rstrip("\r")), HTTPHeaders.parse(rest)
    except HTTPInputError:
        return None
    lengths = headers.get_list("Content-Length")
    is_frequent = line.method == "POST" and line.version == "HTTP/1.1" and len(lengths) == 1 \
        and all(value.lower() == "keep-alive" for value in headers.get_list("Connection")) \
        and not any(name in headers for name in _ODD_HEADERS)
    if not lengths or not re.fullmatch("[0-9]{1,18}", lengths[0]):
        return Message(head_end.end(), b"", False)
    end = head_end.end() + int(lengths[0])
    return Message(end, stream[head_end.end():end], is_frequent) if end <= len(stream) else None


def check_reading(stream, bodies, outcome_is_unfinished):
    """Whether the fast path has read a stream as it may: `bodies` are those of its messages, and then the stream goes
    on with a message that has not come whole, or with one that it leaves to Tornado. Returns nothing, or asserts."""
    at = 0
    for body in bodies:
        message = read_message(stream, at)
        assert message is not None and message.is_frequent, f"taken, but it is no frequent message: {stream[at:]!r}"
        assert body == message.body, (stream[at:], body)
        at = message.end
    if outcome_is_unfinished:
        assert read_message(stream, at) is None, f"waited for, but it is whole: {stream[at:]!r}"
