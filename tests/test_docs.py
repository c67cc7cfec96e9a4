"""What docs/ says of the API is true: its examples are run against an exchange, and nothing of the wire is missing."""
import http.client
import json
import re
import signal
import time
from email.utils import formatdate, parsedate_to_datetime
from typing import NamedTuple

import pytest

from gateways import protocol
from gateways.arguments import USER_ID_MAX
from gateways.protocol import HTTP_STATUS, METHODS, NO_ENOUGH_TRADER, NOT_BUILT, WireError
from shm import configuration
from shm.decimals import fmt, parse
from shm.records import DETAIL_BYTES_MAX, LABEL_BYTES_MAX, LIST_LIMIT_MAX
from tools import local_exchange
from tools.local_exchange import PROJECT

DOCS = PROJECT / "docs"
API = (DOCS / "http-api.md").read_text(encoding="utf-8")
ERRORS = (DOCS / "errors.md").read_text(encoding="utf-8")
SETTINGS = configuration.load(PROJECT / "exchange.toml")
TIME = 1700000000.123456       # stands for any time of the run
DATE = formatdate(int(TIME), usegmt=True)  # stands for any Date of the run
ANSWER_SECONDS = 10.0
HANGS = "HTTP/1.1 504 Gateway Timeout"  # given while the matcher is stopped
OK = "HTTP/1.1 200 OK"

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)
_METHOD = re.compile(r"\w+\.\w+")
_PARAMETER = re.compile(r"^\| (\d) \| `(\w+)` \|", re.MULTILINE)
_CODE = re.compile(r"^\| (\d+) \| `(\w+ [\w ]+)` \|", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)#:]*)(?:#([^)]*))?\)")


class Message(NamedTuple):
    """A request or an answer as a block shows it: plain JSON is a POST, or an answer with status 200. The headers are
    some of all."""
    line: str
    headers: dict
    body: str


class Example(NamedTuple):
    place: str
    request: Message
    answer: Message


def examples(name, text):
    """The blocks of a document, in pairs."""
    blocks = [(f"{name} line {text.count(chr(10), 0, found.start()) + 1}", *found.groups())
              for found in _FENCE.finditer(text)]
    assert len(blocks) % 2 == 0 and {language for _place, language, _block in blocks} <= {"json", "http"}
    return [Example(place, _message(language, block, "POST / HTTP/1.1"), _message(*answer[1:], OK))
            for (place, language, block), answer in zip(blocks[::2], blocks[1::2])]


def _message(language, block, line):
    if language == "json":
        return Message(line, {}, block.strip())
    head, _, body = block.partition("\n\n")
    line, *lines = head.split("\n")
    return Message(line, dict(header.split(": ", 1) for header in lines), body.strip())


def asked(exchange, request):
    """The answer to the request, over a connection of its own."""
    http_settings = exchange.settings.http
    connection = http.client.HTTPConnection(http_settings.host, http_settings.port, timeout=ANSWER_SECONDS)
    verb, path, _version = request.line.split()
    try:
        connection.request(verb, path, request.body.encode() or None, request.headers)
        answer = connection.getresponse()
        line = f"HTTP/1.1 {answer.status} {answer.reason}"
        return Message(line, dict(answer.getheaders()), answer.read().decode())
    finally:
        connection.close()


def differs(answer, got, started):
    """What the answer of a document does not say as it is, in words; None where it is true."""
    if answer.line != got.line:
        return f"{got.line} with {got.body}"
    headers = got.headers
    if started - 1 <= parsedate_to_datetime(headers["Date"]).timestamp() <= time.time():
        headers = {**headers, "Date": DATE}
    if not answer.headers.items() <= headers.items():
        return f"with {headers}"
    body = answer.body
    if body:
        told = _with_times(json.loads(body), json.loads(got.body or "null"), started)
        body = json.dumps(told, ensure_ascii=False)
    return None if body == got.body else got.body


def _with_times(told, got, started):
    """`told` with each TIME replaced by what is at its place in `got`, where that is a time of the run."""
    if told == TIME and type(got) is float and started <= got <= time.time():
        return got
    if isinstance(told, dict) and isinstance(got, dict):
        return {key: _with_times(value, got.get(key), started) for key, value in told.items()}
    if isinstance(told, list) and isinstance(got, list) and len(told) == len(got):
        return [_with_times(one, other, started) for one, other in zip(told, got)]
    return told


def sections(text):
    """{heading: what stands below it, up to the next heading}."""
    headings = [*_HEADING.finditer(text)]
    ends = [heading.start() for heading in headings[1:]] + [len(text)]
    return {heading[2]: text[heading.end():end] for heading, end in zip(headings, ends)}


METHOD_SECTIONS = {name: text for name, text in sections(API).items() if _METHOD.fullmatch(name)}


def test_every_example_is_answered_as_it_says(tmp_path):
    started, wrong = time.time() - 1, []
    with local_exchange.running(tmp_path / "data", local_exchange.private(SETTINGS)) as exchange:
        for example in examples("http-api.md", API) + examples("errors.md", ERRORS):
            hangs = example.answer.line == HANGS
            if hangs:
                exchange.kill("matcher", signal.SIGSTOP)
            try:
                difference = differs(example.answer, asked(exchange, example.request), started)
            finally:
                if hangs:
                    exchange.kill("matcher", signal.SIGCONT)
            if difference is not None:
                wrong.append(f"{example.place}: {example.request.body} is answered {difference}")
    assert not wrong, "\n".join(wrong)


def result_at(when):
    return json.dumps({"error": None, "result": [{"left": "0e-8", "ctime": when}], "id": 1})


BODY = result_at(TIME)


@pytest.mark.parametrize("headers, body, is_true", [
    ({}, BODY, True),
    ({"Date": DATE, "Content-Length": "9"}, BODY.replace(", ", ",\n "), True),
    ({"Date": DATE, "Content-Length": "8"}, BODY, False),
    ({"Date": DATE.replace("2023", "2024")}, BODY, False),
    ({"Server": "x"}, BODY, False),
    ({}, "", False),
    ({}, BODY.replace("0e-8", "0"), False),
    ({}, BODY.replace('"0e-8"', "0"), False),
    ({}, BODY.replace(str(TIME), "1700000000.5"), False),     # a time that is no placeholder
    ({}, BODY.replace('"0e-8"', str(TIME)), False),           # a placeholder of what is no time
    ({}, BODY.replace("[{", "[{}, {"), False),
    ({}, BODY.replace('"error": null, ', ""), False),
    ({}, '{"id": 1, ' + BODY[1:].replace(', "id": 1', ""), False),  # the order of members
    ({}, BODY.replace("null", "false"), False),
])
def test_an_example_that_is_wrong_is_found(headers, body, is_true):
    now = time.time()
    got = Message(OK, {"Date": formatdate(now, usegmt=True), "Content-Length": "9"}, result_at(now))
    assert (differs(Message(OK, headers, body), got, now - 1) is None) == is_true
    assert differs(Message("HTTP/1.1 404 Not Found", headers, body), got, now - 1)
    assert differs(Message(OK, {}, BODY), got, now + 1)           # a time from before the run


def test_every_method_has_a_section_with_an_example():
    assert METHOD_SECTIONS.keys() == METHODS.keys() | NOT_BUILT.keys()
    for method, text in METHOD_SECTIONS.items():
        shown = [json.loads(example.request.body)["method"] for example in examples(method, text)]
        assert method in shown, method
        assert ("Not built yet: code 2." in text) == (method in NOT_BUILT), method


@pytest.mark.parametrize("method", METHODS)
def test_a_section_has_the_parameters_and_the_codes_of_its_method(method):
    text = METHOD_SECTIONS[method]
    assert [(int(place), name) for place, name in _PARAMETER.findall(text)] == [*enumerate(METHODS[method].parameters)]
    errors = {tuple(refusal[0]) for refusal in METHODS[method].refusals.values() if refusal}
    if method == "order.put_limit":  # it shares its refusals with order.put_market, but needs nobody to deal with
        errors.remove(NO_ENOUGH_TRADER)
    assert {(int(code), message) for code, message in _CODE.findall(text)} == errors


def test_every_code_is_told_what_to_do_about():
    errors = {tuple(error) for error in vars(protocol).values() if isinstance(error, WireError)}
    assert {(int(code), message) for code, message in _CODE.findall(ERRORS)} == errors
    statuses = {int(status) for status in re.findall(r"^\| (\d{3}) \|", sections(API)["Transport"], re.MULTILINE)}
    assert statuses == {200, 400, 413, 500, 503, *HTTP_STATUS.values()}


def test_numbers_are_written_as_the_table_says():
    rows = re.findall(r'^\| (\S+), with (?:up to )?(\d+) decimals \| `"(\S+)"` \|$', API, re.MULTILINE)
    assert len(rows) == 6
    for held, decimals, written in rows:
        assert fmt(parse(held.replace("zero", "0"), int(decimals)), int(decimals)) == written


@pytest.mark.parametrize("number", [
    USER_ID_MAX, LABEL_BYTES_MAX, LIST_LIMIT_MAX, DETAIL_BYTES_MAX, SETTINGS.http.body_bytes_max,
    SETTINGS.http.timeout_ms])
def test_a_limit_is_the_one_that_holds(number):
    assert re.search(rf"\b{number}\b", API)


@pytest.mark.parametrize("path", [PROJECT / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda path: path.name)
def test_every_link_leads_somewhere(path):
    for name, anchor in _LINK.findall(path.read_text(encoding="utf-8")):
        target = path.parent / name if name else path
        assert target.exists(), name
        if anchor:
            headings = sections(target.read_text(encoding="utf-8"))
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}, anchor
