"""The JSON around a call: what counts as a request, and how an answer is written.

Requests are read as strictly as the original's parser reads them; answers are one line with ", " and ": " between
members, or indented by four where the configuration asks for that.
"""
import json
import math
import re
import sys
from typing import NamedTuple

DEPTH_MAX = 2048               # nested values, the innermost included
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
_INT64_CHARACTERS_MAX = 20
_TEXT = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)  # an unclosed one too, so that the search is linear
_TOKEN = re.compile(r"[\[{\]}]|[^\[\]{},:\s]+")
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)

sys.setrecursionlimit(max(sys.getrecursionlimit(), 4 * DEPTH_MAX))  # the json module recurses once a level


class MalformedRequest(Exception):
    """No JSON-RPC request; the message says why. The wire shows only a 400 with an empty body."""


class Request(NamedTuple):
    id: int
    method: str
    params: list


def decode_request(body):
    """The request in `body` (bytes); raises MalformedRequest."""
    return _request(_strict_json(body))


def decode_requests(body, batch_max):
    """(the requests in `body`, whether they are a batch): one, or an array of at most `batch_max`; raises
    MalformedRequest where any of them is none."""
    document = _strict_json(body)
    if not isinstance(document, list):
        return [_request(document)], False
    if not 0 < len(document) <= batch_max:
        raise MalformedRequest(f"a batch of {len(document)} requests; at most {batch_max} are taken")
    return [_request(each) for each in document], True


def _request(document):
    if not isinstance(document, dict):
        raise MalformedRequest("the body is not a JSON object")
    request = Request(document.get("id"), document.get("method"), document.get("params"))
    for member, value, kind, words in (("id", request.id, int, "integer"), ("method", request.method, str, "string"),
                                       ("params", request.params, list, "array")):
        if type(value) is not kind:  # a JSON true is no integer
            raise MalformedRequest(f"the member {member} is not a JSON {words}")
    return request


def _strict_json(body):
    try:
        text = body.decode("utf-8")
        _check_depth(text)
        document = _DECODER.decode(text)
        if "\\u" in text:
            _check_escapes(text)
    except RecursionError:
        raise MalformedRequest("nested deeper than this Python can read") from None
    except ValueError as error:
        raise MalformedRequest(f"the body is not JSON: {error}") from None
    return document


def _int64(text):
    value = int(text) if len(text) <= _INT64_CHARACTERS_MAX else INT64_MAX + 1
    if not INT64_MIN <= value <= INT64_MAX:
        raise ValueError("an integer beyond 64 bits")
    return value


def _finite(text):
    value = float(text)
    if math.isinf(value):
        raise ValueError("a number beyond double precision")
    return value


def _no_constant(name):
    raise ValueError(f"{name} is no JSON value")


_DECODER = json.JSONDecoder(parse_int=_int64, parse_float=_finite, parse_constant=_no_constant)
_ENCODER = json.JSONEncoder(ensure_ascii=False)
_PRETTY_ENCODER = json.JSONEncoder(ensure_ascii=False, indent=4)


def _check_depth(text):
    """Raises ValueError where values are nested deeper than DEPTH_MAX. The text need not be JSON."""
    if text.count("[") + text.count("{") < DEPTH_MAX:
        return
    depth = 0
    for token in _TOKEN.findall(_TEXT.sub("0", text)):
        if token in "]}":
            depth -= 1
            continue
        if depth + 1 > DEPTH_MAX:
            raise ValueError(f"nested deeper than {DEPTH_MAX}")
        if token in "[{":
            depth += 1


def _check_escapes(text):
    """Raises ValueError for a NUL and for halves of surrogate pairs. The text is JSON: a backslash begins an escape."""
    second_half_at = None
    for escape in _ESCAPE.finditer(text):
        code = int(escape[1], 16) if escape[1] else None
        is_second_half = code is not None and 0xDC00 <= code <= 0xDFFF
        if code == 0:
            raise ValueError("the character U+0000")
        if is_second_half != (escape.start() == second_half_at) or (second_half_at is not None and not is_second_half):
            raise ValueError(f"half a surrogate pair near character {escape.start()}")
        second_half_at = escape.end() if code is not None and 0xD800 <= code <= 0xDBFF else None
    if second_half_at is not None:
        raise ValueError(f"half a surrogate pair near character {second_half_at}")


def encode_result(request_id, result, pretty=False):
    return _encode({"error": None, "result": result, "id": request_id}, pretty)


def encode_error(request_id, code, message, data, pretty=False):
    """`data`: details for people, an object."""
    return _encode({"error": {"code": code, "message": message, "data": data}, "result": None, "id": request_id},
                   pretty)


def encode_batch(answers, pretty=False):
    """The encoded answers (bytes) as one array."""
    return b"[\n" + b",\n".join(answers) + b"\n]" if pretty else b"[" + b", ".join(answers) + b"]"


def one_line(document):
    """JSON text as bytes: ", " and ": " between members, other alphabets as they are."""
    return _ENCODER.encode(document).encode()


def _encode(document, pretty):
    return _PRETTY_ENCODER.encode(document).encode() if pretty else one_line(document)
