"""The fast path against its judge, the plain path: whatever compiled code takes, it understands as the plain path does,
and whatever it prints, it prints to the byte. It may take as little as it likes, but it does take the frequent shapes.
"""
import json
import random
import time
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateways import fast_text
from gateways.answers import Answers
from gateways.arguments import InvalidArgument
from gateways.catalog import Catalog
from gateways.envelope import MalformedRequest, decode_request
from gateways.fast_answer import ANSWER, QUESTION, answer_bytes_max, drain, make_outbox
from gateways.fast_request import ODD, PLAIN, TAKEN, UNFINISHED, make_intake, take
from gateways.http_message import Clock, encode_answer, encode_head
from gateways.lane import TAIL, make_lane
from gateways.messages import Reply
from gateways.protocol import Refused, find_method
from gateways.sockets import BLOCKED, make_sockets
from shm import configuration, segments
from shm.configuration import reply_slots_needed
from shm.decimals import fmt, parse
from shm.int128 import halves
from shm.kernel import kernel
from shm.records import COMMAND
from shm.segments import CommandWord
from tests.gateway_world import Pipeline, Rings
from tests.test_protocol import CONFIG, REPORTS

CONNECTION = 3
IN_FLIGHT_MAX = 8
BODY_BYTES_MAX = 10_000
STAMPS = ("request_id", "received_at_ns", "correlation_id")
SETTINGS = configuration.from_recording(
    CONFIG, limits={"orders_max": 20_000, "levels_max": 20_000, "balances_max": 2_000, "assets_max": 32,
                    "markets_max": 32})
ASSETS = [asset.name for asset in SETTINGS.assets]
MARKETS = [market.name for market in SETTINGS.markets]


class Paths:
    """Both paths over one core."""

    def __init__(self, directory):
        self.rings = Rings(directory, SETTINGS, command_slots=64, reply_slots=512)
        self.pipeline = Pipeline(self.rings)
        self.catalog = Catalog(SETTINGS.limits)
        self.answers = Answers(None, self.catalog, REPORTS.append)
        self.lane, self.sockets = make_lane(self.rings.memory, 0), make_sockets(CONNECTION + 1, -1)
        self.sockets.marks[CONNECTION] = BLOCKED  # nothing is sent
        self.intake = make_intake(2**17, 4)
        reply_slots_max = reply_slots_needed(SETTINGS.limits)
        self.outbox, self.room = make_outbox(reply_slots_max), answer_bytes_max(reply_slots_max)
        date = Clock().now()
        self.outbox.head[:] = np.frombuffer(encode_head(date), np.uint8)
        self.date = date
        self.taken = self.printed = 0
        replies = [self._apply(self._record(command), b"") for command in (
            self.catalog.list_assets(), self.catalog.list_markets())]
        assert self.catalog.update(*map(Reply, replies))

    def close(self):
        segments.unlink(self.rings.instance)

    def _record(self, command):
        return np.frombuffer(command.slots, COMMAND, 1)[0].copy()

    def _apply(self, record, payload):
        self.pipeline.replica.apply(record, payload, time.time_ns())
        return self.pipeline.replica.reply_message()

    def message(self, body):
        return b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    def take(self, data):
        """What the fast path does with these bytes: (outcome, at)."""
        self.intake.arena[:len(data)] = np.frombuffer(data, np.uint8)
        self.intake.pieces[0] = (CONNECTION, TAKEN, 0, len(data), 0, 0, 0, 0)
        take(self.lane, self.sockets, self.intake, self.catalog.facts, 1, BODY_BYTES_MAX, IN_FLIGHT_MAX, False,
             time.time_ns(), time.monotonic_ns())
        piece = self.intake.pieces[0]
        return int(piece["outcome"]), int(piece["at"])

    def plain_command(self, body):
        """The command that the plain path makes of a body, or None."""
        try:
            request = decode_request(body)
            return find_method(request.method).decode(request.params, self.catalog)
        except (MalformedRequest, Refused, InvalidArgument):
            return None

    def compare(self, body):
        """Both paths on one body."""
        before = int(self.lane.own[TAIL])
        outcome, at = self.take(self.message(body))
        command = self.plain_command(body)
        if outcome != TAKEN:
            assert outcome == PLAIN and at == len(self.message(body)), (outcome, body)
            if command is not None:
                self._apply(self._record(command), command.slots[COMMAND.itemsize:].rstrip(b"\0"))
            return
        self.taken += 1
        assert command is not None, f"taken, but the plain path refuses {body!r}"
        self.check_command(self.rings.memory.commands.slots[0][before % 64].view(COMMAND)[0], command, body)
        self.rings.memory.commands.words[0, CommandWord.TAIL] = self.lane.own[TAIL]
        assert self.pipeline.answer() == 1
        self.check_answer(body)

    def check_command(self, made, command, body):
        plain = self._record(command)
        assert int(made["correlation_id"]) == decode_request(body).id % 2**64
        for field in COMMAND.names:
            if field not in STAMPS:
                assert made[field].tolist() == plain[field].tolist(), (field, body)
        call = self.lane.calls[(int(made["request_id"])) % len(self.lane.calls)]
        assert call["reply_slots_max"] == command.reply_slots_max, body

    def check_answer(self, body):
        message = self.pipeline.replica.reply_message()
        count, left_over = drain(self.lane, self.sockets, self.outbox, self.catalog.facts, self.room)
        assert (count, left_over) == (1, 1)
        kind, connection, begin, middle, end, _number = self.outbox.deliveries[0].tolist()
        answer = self.answers.decide(body, message)
        assert connection == CONNECTION and self.sockets.in_flight[CONNECTION] == 0
        if kind == ANSWER:
            self.printed += 1
            assert bytes(self.outbox.out[begin:end]) == encode_answer(answer, self.date, False), body
        else:
            assert kind == QUESTION and b'"error": {' in answer.body, body
            assert bytes(self.outbox.out[begin:middle]).startswith(message)
            assert bytes(self.outbox.out[middle:end]) == body
        self.sockets.marks[CONNECTION] = BLOCKED


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    made = Paths(tmp_path_factory.mktemp("paths"))
    yield made
    made.close()


def pick(rng, likely, *rare):
    """One of the likely values, now and then a rare one."""
    return rng.choice(likely) if rng.random() < 0.95 else rng.choice(rare)


NUMBERS = ("0", "-0", "-1", "1e3", "1E-2", ".5", "1.", "00.10", "NaN", "inf", "1e999999999", "", " 1", "1_0",
           "9223372036854775807", "9223372036854775808", "0.000000000000000000001", "1" * 40, "0." + "1" * 40, "١", 5,
           1.5, None, True, ["1"], {})
INTEGERS = (0, -1, 3, 2**31, 2**32 - 1, 2**32, 2**63 - 1, -2**63, 2**63, 1.0, "1", True, None, [])
NAMES = ("", "btcusdt", "BTCUSDT ", "ÄÖ", "\x7f", "\u0000", "BTC\"USDT", "nope" * 20, 5, None, [])
SOURCES = ("", "web", "a" * 30, "a" * 31, "ä" * 15, "ä" * 16, "\"quoted\"", "back\\slash", "tab\t", "\u20ac", "\x1f",
           "\x7f", "😀", 7, None)


def amount(rng):
    return pick(rng, [f"{rng.randrange(1, 2000) / 1000:.3f}", f"{rng.randrange(1, 10**12)}e-9",
                      f"{rng.random():.{rng.randrange(12)}f}", str(rng.randrange(1, 90))], *NUMBERS)


def price(rng):
    return pick(rng, [f"{rng.randrange(7900, 8100)}", f"{rng.randrange(790000, 810000) / 100}", "0.01", "8000.00"],
                *NUMBERS)


def fee(rng):
    return pick(rng, ["0", "0.001", "0.0020", "0.9999", "0.00001", "0.000"], "1", "-0", "-0.000", *NUMBERS)


def call(rng):
    """(method, params) of a call, mostly a valid one."""
    user = pick(rng, [1, 2, 3, 4], *INTEGERS)
    market = pick(rng, MARKETS, *NAMES)
    side = pick(rng, [1, 2], *INTEGERS)
    source = pick(rng, SOURCES[:3], *SOURCES)
    page = [pick(rng, [0, 1, 5], *INTEGERS), pick(rng, [0, 1, 20, 101], 102, *INTEGERS)]
    return rng.choice([
        ("order.put_limit", [user, market, side, amount(rng), price(rng), fee(rng), fee(rng), source]),
        ("order.put_limit", [user, market, side, amount(rng), price(rng), fee(rng), fee(rng), source]),
        ("order.put_market", [user, market, side, amount(rng), fee(rng), source]),
        ("order.cancel", [user, market, pick(rng, list(range(1, 400, 7)), *INTEGERS)]),
        ("balance.query", [user, *(pick(rng, ASSETS, *NAMES) for _ in range(rng.choice([0, 0, 1, 2, 3, 17])))]),
        ("order.depth", [market, pick(rng, [1, 20, 101], *INTEGERS), pick(rng, ["0", "0.1", "10", "0.00"], *NUMBERS)]),
        ("order.book", [market, side, *page]),
        ("order.pending", [user, market, *page]),
        ("balance.update", [rng.randrange(1, 5), rng.choice(ASSETS), "fund", rng.randrange(10**9), "1000000", {}]),
        ("order.pending_detail", [market, rng.randrange(1, 99)]),
        ("market.list", []),
        (pick(rng, ["order.nope"], 5, None), []),
    ])


def document(rng, method, params):
    """The call as JSON text, in one of the ways that clients write it."""
    if rng.random() < 0.03:
        params = params[:-1] if rng.random() < 0.5 else [*params, rng.choice(INTEGERS)]
    members = [("id", pick(rng, [1, rng.randrange(10**12), -7], *INTEGERS)), ("method", method), ("params", params)]
    if rng.random() < 0.1:
        members.append(("jsonrpc", rng.choice(["2.0", 2, None])))
    if rng.random() < 0.3:
        rng.shuffle(members)
    if rng.random() < 0.03:
        members.append(rng.choice(members))
    dump = rng.choice([
        lambda value: json.dumps(value), lambda value: json.dumps(value, separators=(",", ":")),
        lambda value: json.dumps(value, ensure_ascii=False),
        lambda value: json.dumps(value, indent=rng.choice([0, 1, "\t"]))])
    gap = rng.choice(["", " ", "\r\n\t "])
    texts = [f'{gap}"{name}"{gap}:{gap}{dump(value)}' for name, value in members]
    return f"{gap}{{{','.join(texts)}{gap}}}{gap}".encode(errors="surrogatepass")


PIECES = (b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"0", b"-", b".", b"e", b" ", b"\0", b"\xff", b"\xc3\xa4",
          b"1", b"null", b"true", b"\\u0041", b"99999999999999999999")


def mutated(rng, body):
    body = bytearray(body)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        at = rng.randrange(len(body) + 1)
        kind = rng.random()
        if kind < 0.4:
            body[at:at + 1] = rng.choice(PIECES)
        elif kind < 0.6:
            body[at:at] = rng.choice(PIECES)
        elif kind < 0.8:
            del body[at:at + rng.choice([1, 1, 2, 10])]
        else:
            end = min(len(body), at + rng.randrange(12))
            body[at:at] = body[at:end]
    return bytes(body)


def test_both_paths_understand_and_answer_every_body_alike(paths, request):
    inputs, seed = request.config.getoption("--fuzz-inputs"), request.config.getoption("--fuzz-seed")
    rng = random.Random(seed)
    for number in range(inputs):
        body = document(rng, *call(rng))
        if number % 2:
            body = mutated(rng, body)
        try:
            paths.compare(body)
        except AssertionError:
            print(f"--fuzz-seed {seed}, input {number}: {body!r}")
            raise
    print(f"{inputs} bodies, {paths.taken} taken, {paths.printed} answers printed")
    assert paths.taken > inputs / 5 and paths.printed > inputs / 8


@pytest.mark.parametrize("method, params", [
    ("order.put_limit", [1, "BTCUSDT", 1, "0.5", "8000.25", "0.002", "0.001", "web"]),
    ("order.put_market", [1, "BTCUSDT", 2, "100", "0.002", ""]),
    ("order.cancel", [1, "BTCUSDT", 17]),
    ("balance.query", [1]), ("balance.query", [1, "BTC", "USDT"]),
    ("order.depth", ["BTCUSDT", 20, "0"]), ("order.depth", ["BTCUSDT", 100, "0.1"]),
    ("order.book", ["BTCUSDT", 1, 0, 20]), ("order.pending", [1, "BTCUSDT", 0, 20]),
])
@pytest.mark.parametrize("separators", [(", ", ": "), (",", ":")])
def test_the_frequent_shapes_are_taken(paths, method, params, separators):
    taken = paths.taken
    paths.compare(json.dumps({"id": 1, "method": method, "params": params}, separators=separators).encode())
    paths.compare(json.dumps({"jsonrpc": "2.0", "method": method, "params": params, "id": 7},
                             separators=separators).encode())
    assert paths.taken == taken + 2


HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n"


@pytest.mark.parametrize("head, outcome", [
    (HEAD, PLAIN),
    (HEAD.replace(b"Host: x", b"content-type: \t a;b=\"c\" \t\r\nConnection: Keep-Alive"), PLAIN),
    (HEAD.replace(b"Content-Length: 4", b"cOnTeNt-LeNgTh:4 "), PLAIN),
    (HEAD.replace(b"POST /", b"POST /any/path?x=%00"), PLAIN),
    (HEAD.replace(b"POST", b"PUT"), ODD),
    (HEAD.replace(b"POST", b"post"), ODD),
    (HEAD.replace(b"HTTP/1.1", b"HTTP/1.0"), ODD),
    (HEAD.replace(b"POST / ", b"POST  "), ODD),
    (HEAD.replace(b"POST / ", b"POST /a b "), ODD),
    (HEAD.replace(b"Host: x", b"Connection: close"), ODD),
    (HEAD.replace(b"Host: x", b"Connection: keep-alive, close"), ODD),
    (HEAD.replace(b"Host: x", b"Transfer-Encoding: chunked"), ODD),
    (HEAD.replace(b"Host: x", b"Transfer-Encoding : chunked"), ODD),
    (HEAD.replace(b"Host: x", b"Expect: 100-continue"), ODD),
    (HEAD.replace(b"Host: x", b"Upgrade: websocket"), ODD),
    (HEAD.replace(b"Host: x", b"Content-Length: 4"), ODD),
    (HEAD.replace(b"Host: x", b"Content-Length: 5"), ODD),
    (HEAD.replace(b"Host: x", b"Host: x\r\n folded"), ODD),
    (HEAD.replace(b"Host: x", b"Host: \xe4"), ODD),
    (HEAD.replace(b"Host: x", b"Host: x\0"), ODD),
    (HEAD.replace(b"Host: x", b"Host x"), ODD),
    (HEAD.replace(b"Host: x", b": x"), ODD),
    (HEAD.replace(b"Host: x\r\n", b"Host: x\n"), ODD),
    (HEAD.replace(b": 4", b": +4"), ODD),
    (HEAD.replace(b": 4", b": 4,4"), ODD),
    (HEAD.replace(b": 4", b": 0x4"), ODD),
    (HEAD.replace(b": 4", b": 0"), ODD),
    (HEAD.replace(b": 4", b":"), ODD),
    (HEAD.replace(b": 4", b": 99999999"), ODD),
    (HEAD.replace(b"Content-Length: 4\r\n", b""), ODD),
])
def test_only_plain_heads_are_taken(paths, head, outcome):
    """Everything else, smuggling shapes first of all, is Tornado's."""
    assert paths.take(head + b"null")[0] == outcome


def test_a_message_cut_anywhere_is_unfinished(paths):
    data = HEAD + b"null"
    for cut in range(1, len(data)):
        assert paths.take(data[:cut]) == (UNFINISHED, 0), data[:cut]


# Numbers and strings. Parts of kernels have no entry for Python: these kernels are one.

@kernel
def put_decimal(out, digits, low, high, cut, decimals):
    return fast_text.put_decimal(out, 0, digits, low, high, cut, decimals)


@kernel
def read_decimal(text, decimals):
    return fast_text.read_decimal(text, 0, len(text), decimals)


@kernel
def put_time(out, time_ns):
    return fast_text.put_time(out, 0, time_ns)


@kernel
def put_string(out, text, count):
    return fast_text.put_string(out, 0, text, 0, count)


@given(st.integers(0, 2**127 - 1), st.integers(0, 20), st.integers(0, 20))
def test_a_decimal_is_printed_as_the_plain_path_does(value, cut, decimals):
    out, digits = np.zeros(200, np.uint8), np.zeros(fast_text.DIGITS_MAX, np.uint8)
    low, high = halves(value)
    end = put_decimal(out, digits, np.uint64(low), high, cut, decimals)
    assert bytes(out[:end]).decode() == fmt(value // 10**cut, decimals)


@given(st.text("0123456789.", min_size=1, max_size=24), st.integers(0, 18))
def test_a_decimal_is_read_as_the_plain_path_does_or_not_at_all(text, decimals):
    data = np.frombuffer(text.encode(), np.uint8)
    value = read_decimal(data, decimals)
    if value == fast_text.UNREADABLE:
        return
    assert value == parse(text, decimals)


def test_decimals_of_the_usual_size_are_read():
    for text in ("0", "1", "0.5", "8000.25", "123456789.12345678", "0.00000001", "007.70"):
        data = np.frombuffer(text.encode(), np.uint8)
        assert read_decimal(data, 8) == int(Decimal(text).scaleb(8))


@given(st.integers(fast_text.MICROSECONDS_MIN, fast_text.MICROSECONDS_MAX - 1), st.integers(0, 999))
def test_a_time_is_printed_as_the_shortest_real_number(microseconds, rest_ns):
    out = np.zeros(40, np.uint8)
    end = put_time(out, microseconds * 1000 + rest_ns)
    assert bytes(out[:end]).decode() == json.dumps(microseconds / 1_000_000)


@given(st.text())
def test_a_string_is_printed_as_the_plain_path_does(text):
    data = text.encode(errors="ignore")
    out = np.zeros(6 * len(data) + 2, np.uint8)
    end = put_string(out, np.frombuffer(data + b" ", np.uint8), len(data))
    assert bytes(out[:end]) == json.dumps(data.decode(), ensure_ascii=False).encode()
