"""The fast path against its judge, the plain path: whatever compiled code takes, it understands as the plain path does,
and whatever it prints, it prints to the byte. It may take as little as it likes, but it does take the frequent shapes.
"""
import json
import random
import socket
import time
from contextlib import suppress
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateways import facts, fast_text
from gateways.answers import Answers
from gateways.arguments import InvalidArgument
from gateways.catalog import Catalog
from gateways.envelope import MalformedRequest, decode_request
from gateways.fast_answer import ANSWER, QUESTION, answer_bytes_max, drain, make_outbox
from gateways.fast_request import REQUEST_BYTES_MAX, receive, take
from gateways.http_message import Clock, encode_answer, encode_head
from gateways.intake import ODD, PLAIN, TAKEN, UNFINISHED, make_intake
from gateways.lane import TAIL, make_lane
from gateways.messages import Reply
from gateways.protocol import Refused, find_method
from gateways.sockets import BLOCKED, CONNECTED, READ_BYTES, make_sockets
from shm import configuration, segments
from shm.configuration import reply_slots_needed
from shm.decimals import fmt, parse
from shm.int128 import halves
from shm.kernel import kernel
from shm.records import COMMAND
from shm.segments import CommandWord
from tests.gateway_world import Pipeline, Rings
from tests.plain_messages import check_reading
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

    def __init__(self, directory, settings=SETTINGS):
        self.rings = Rings(directory, settings, command_slots=64, reply_slots=512)
        self.pipeline = Pipeline(self.rings)
        self.catalog = Catalog(settings.limits)
        self.answers = Answers(None, self.catalog, REPORTS.append)
        self.lane, self.sockets = make_lane(self.rings.memory, 0), make_sockets(CONNECTION + 1, -1)
        self.sockets.marks[CONNECTION] = BLOCKED  # nothing is sent
        self.intake = make_intake(2**17, 4)
        reply_slots_max = reply_slots_needed(settings.limits)
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

    def take(self, data, connection=CONNECTION):
        """What the fast path does with these bytes: (outcome, at)."""
        self.intake.arena[:len(data)] = np.frombuffer(data, np.uint8)
        self.intake.pieces[0] = (connection, TAKEN, 0, len(data), 0, 0, 0, 0)
        take(self.lane, self.sockets, self.intake, self.catalog.facts, 1, BODY_BYTES_MAX, IN_FLIGHT_MAX, False,
             time.time_ns(), time.monotonic_ns())
        piece = self.intake.pieces[0]
        return int(piece["outcome"]), int(piece["at"])

    def messages(self, data):
        """What the fast path finds in a stream when none of it is for commands: (bodies, outcome, where it stops)."""
        self.intake.arena[:len(data)] = np.frombuffer(data, np.uint8)
        bodies, at = [], 0
        while True:
            self.intake.pieces[0] = (CONNECTION, TAKEN, at, len(data), at, 0, 0, 0)
            take(self.lane, self.sockets, self.intake, self.catalog.facts, 1, BODY_BYTES_MAX, IN_FLIGHT_MAX, True, 0, 0)
            _, outcome, _, _, at, body_begin, body_end, _ = self.intake.pieces[0].tolist()
            if outcome != PLAIN:
                return bodies, outcome, at
            bodies.append(data[body_begin:body_end])

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
        self.publish()
        assert self.pipeline.answer() == 1
        self.check_answer(body)

    def publish(self):
        self.rings.memory.commands.words[0, CommandWord.TAIL] = self.lane.own[TAIL]

    def check_command(self, made, command, body):
        plain = self._record(command)
        assert int(made["correlation_id"]) == decode_request(body).id % 2**64
        for field in COMMAND.names:
            if field not in STAMPS:
                assert made[field].tolist() == plain[field].tolist(), (field, body)
        call = self.lane.calls[(int(made["request_id"])) % len(self.lane.calls)]
        assert call["reply_slots_max"] == command.reply_slots_max, body

    def drain(self):
        return drain(self.lane, self.sockets, self.outbox, self.catalog.facts, self.room)

    def check_answer(self, body):
        message = self.pipeline.replica.reply_message()
        assert self.drain() == (1, 1)
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


PLACES = (
    '{"id": 1, "method": "order.put_limit", "params": [1, "BTCUSDT", 1, "0.5", "8000", "0", "0", "w%sb"]}',
    '{"id": 1, "method": "order.put_limit", "params": [1, "BTCUSDT", 1, "0%s5", "8000", "0", "0", ""]}',
    '{"id": 1, "method": "balance.query", "params": [1, "%s", "BTC"]}',
    '{"id": 1,%s"method": "order.cancel", "params": [1, "BTCUSDT", 17]}',
    '{"id": 1, "method": "order.cancel", "params": [1, "BTCUSDT", 17%s]}',
    '{"id": 1, "method": "order.cancel", "params": [1, "BTCUSDT", 17]}%s',
)


@pytest.mark.parametrize("place", PLACES)
def test_every_byte_at_every_kind_of_place_is_understood_alike(paths, place):
    before, after = place.encode().split(b"%s")
    for byte in range(256):
        paths.compare(before + bytes([byte]) + after)


def test_a_name_is_neither_its_beginning_nor_something_longer(paths):
    for name in (*ASSETS, *MARKETS):
        for tried in (*(name[:end] for end in range(len(name))), *(name + more for more in "BTUX01"), name.lower()):
            paths.compare(json.dumps({"id": 1, "method": "balance.query", "params": [1, tried]}).encode())
            paths.compare(json.dumps({"id": 1, "method": "order.depth", "params": [tried, 1, "0"]}).encode())


@kernel
def find(rows, cells, text):
    return facts.find(rows, cells, text, 0, len(text))


def test_a_name_is_found_among_names_that_it_begins_with_and_that_begin_with_it():
    # given cells so full that every search meets all the names
    names = ("B", "BTC", "BTCX", "BTD", "ATC", "")
    rows = np.zeros(len(names), facts.ASSET_FACTS)
    for row, name in zip(rows, names):
        row["name_bytes"] = len(name)
        row["name"][:len(name)] = np.frombuffer(name.encode(), np.uint8)
    cells = np.array([0, 1, 2, 3, 4, 5, 0, facts.UNKNOWN], np.int32)
    for start in range(len(names)):
        cells[:7] = np.roll(cells[:7], 1)
        for text in (*names, "BT", "BTCXY", "BTCY", "TC", "btc", "B\0"):
            found = find(rows, cells, np.frombuffer(text.encode() + b" ", np.uint8)[:len(text)])
            assert found in (names.index(text) if text in names else facts.UNKNOWN, facts.UNKNOWN), (start, text)


def test_a_connection_is_read_only_where_all_that_may_come_has_room_behind_what_came_before():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sockets, intake = make_sockets(ours.fileno() + 1, -1), make_intake(READ_BYTES + 100, 4)
        sockets.events[0]["file"] = ours.fileno()
        theirs.send(b"abc")
        assert receive(sockets, intake, 1, 0, 0, 5) == (0, 0), "it is no connection yet"
        sockets.marks[ours.fileno()] = CONNECTED
        for kept, used in ((101, 0), (60, 41), (0, 101)):
            sockets.kept_bytes[ours.fileno()] = kept
            assert receive(sockets, intake, 1, 0, used, 5) == (0, 0)
        sockets.kept_bytes[ours.fileno()] = 60
        assert receive(sockets, intake, 1, 0, 40, 5) == (1, 1)
        connection, outcome, begin, end, at, *_ = intake.pieces[0].tolist()
        assert (connection, outcome, begin, end, at) == (ours.fileno(), TAKEN, 40, 103, 40)
        assert bytes(intake.arena[100:103]) == b"abc"
        assert sockets.heard_ns[ours.fileno()] == 5


def test_who_has_found_no_room_is_read_first_the_next_time():
    """Three connections that always have something, in the order in which the system tells them each time."""
    pairs = [socket.socketpair() for _ in range(3)]
    files = [ours.fileno() for ours, _ in pairs]
    sockets, intake = make_sockets(max(files) + 1, -1), make_intake(READ_BYTES + 100, 4)
    for index, (_, theirs) in enumerate(pairs):
        sockets.events[index]["file"] = files[index]
        sockets.marks[files[index]] = CONNECTED
        theirs.send(b"x" * 1000)
    read = []
    for _ in range(7):
        assert receive(sockets, intake, 3, 0, 0, 5) == (1, 0)
        read.append(files.index(intake.pieces[0]["connection"]))
        pairs[read[-1]][1].send(b"x" * 1000)
    assert read == [0, 1, 2, 0, 1, 2, 0]
    assert receive(sockets, intake, 1, 0, 0, 5) == (1, 0), "fewer are ready than were"
    for pair in pairs:
        for each in pair:
            each.close()


def test_a_connection_that_does_not_take_its_answer_is_blocked_and_the_answer_is_python_s(paths, monkeypatch):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        file = ours.fileno()
        monkeypatch.setattr(paths, "sockets", make_sockets(file + 1, -1))
        message = paths.message(b'{"id": 1, "method": "balance.query", "params": [1, "BTC"]}')

        def answered():
            assert paths.take(message, file)[0] == TAKEN
            paths.publish()
            assert paths.pipeline.answer() == 1
            return paths.drain(), int(paths.sockets.marks[file]) & BLOCKED
        assert answered() == ((1, 0), 0)
        answer = theirs.recv(10_000)
        with suppress(BlockingIOError):
            while True:
                ours.send(b"x" * 4096)
        assert answered() == ((1, 1), BLOCKED)
        kind, connection, begin, _, end, _ = paths.outbox.deliveries[0].tolist()
        assert (kind, connection, bytes(paths.outbox.out[begin:end])) == (ANSWER, file, answer)
        theirs.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                theirs.recv(2**20)
        assert answered() == ((1, 1), BLOCKED)  # until Python says otherwise


def test_an_answer_is_printed_only_where_the_largest_has_room(paths, monkeypatch):
    out = np.zeros(paths.room + 10, np.uint8)
    monkeypatch.setattr(paths, "outbox", paths.outbox._replace(out=out, out_address=np.array([out.ctypes.data])))
    assert paths.take(2 * paths.message(b'{"id": 1, "method": "balance.query", "params": [1, "BTC"]}'))[0] == TAKEN
    paths.publish()
    assert paths.pipeline.answer() == 2
    for _ in range(2):
        assert paths.drain() == (1, 1)
        _, _, begin, _, end, _ = paths.outbox.deliveries[0].tolist()
        assert bytes(out[begin:end]).count(b"HTTP/1.1 200 OK") == 1
    assert paths.drain() == (0, 0)


def test_answers_that_follow_each_other_are_one_delivery_only_where_they_are_one_connection_s(paths):
    other = CONNECTION - 1
    paths.sockets.marks[other] = BLOCKED
    message = paths.message(b'{"id": 1, "method": "balance.query", "params": [1, "BTC"]}')
    for connection in (CONNECTION, CONNECTION, other, CONNECTION):
        assert paths.take(message, connection)[0] == TAKEN
    paths.publish()
    assert paths.pipeline.answer() == 4
    assert paths.drain() == (3, 3)
    assert paths.outbox.deliveries["connection"][:3].tolist() == [CONNECTION, other, CONNECTION]


def test_an_asset_that_the_gateway_has_yet_to_learn_of_is_not_printed(paths):
    paths.catalog.facts.counts[facts.ASSETS] -= 1
    try:
        assert paths.take(paths.message(b'{"id": 1, "method": "balance.query", "params": [1]}'))[0] == TAKEN
        paths.publish()
        assert paths.pipeline.answer() == 1
        assert paths.drain() == (1, 1)
    finally:
        paths.catalog.facts.counts[facts.ASSETS] += 1
    _, _, begin, _, end, _ = paths.outbox.deliveries[0].tolist()
    document = json.loads(bytes(paths.outbox.out[begin:end]).partition(b"\r\n\r\n")[2])
    assert list(document["result"]) == ASSETS[:-1]


def test_ids_that_need_two_bytes_are_taken_too(tmp_path):
    assets = [*CONFIG["assets"], *({"name": f"A{index}", "prec_save": 20, "prec_show": 8} for index in range(300))]
    paths = Paths(tmp_path, configuration.from_recording({**CONFIG, "assets": assets}, limits={
        "orders_max": 20_000, "levels_max": 20_000, "balances_max": 2_000, "assets_max": 512, "markets_max": 32}))
    try:
        for names in (["A255"], ["A299", "BTC"], ["BTC", "A290", "A34"], []):
            paths.compare(json.dumps({"id": 1, "method": "balance.query", "params": [1, *names]}).encode())
        assert paths.taken == 4
    finally:
        paths.close()


def test_a_message_too_long_to_be_read_in_pieces_is_the_plain_server_s(paths):
    head = b"POST / HTTP/1.1\r\nX: "
    assert paths.take(head + b"x" * (REQUEST_BYTES_MAX - 1 - len(head))) == (UNFINISHED, 0)
    assert paths.take(head + b"x" * (REQUEST_BYTES_MAX - len(head)))[0] == ODD
    head = b"POST / HTTP/1.1\r\nX: %s\r\nContent-Length: 9000\r\n\r\n"
    padding = REQUEST_BYTES_MAX - 9000 - len(head % b"")
    assert paths.take(head % (b"x" * padding)) == (UNFINISHED, 0)
    assert paths.take(head % (b"x" * (padding + 1)))[0] == ODD


HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n"
HEADERS = (b"Host: x", b"Accept: */*", b"content-type: application/json", b"Connection: keep-alive",
           b"X_y-1: \t a\tb \t", b"User-Agent: a;b=\"c\"")
ODD_HEADERS = (b"Connection: close", b"Connection: keep-alive, close", b"Transfer-Encoding: chunked",
               b"Transfer-Encoding : chunked", b"transfer-encoding: gzip, chunked", b"Expect: 100-continue",
               b"Upgrade: h2c", b"Content-Length: 3", b"Content-Length: 99999999", b"Content-Length: +4",
               b"Content-Length: 4, 4", b"Content-Length: 4.0", b"Content-Length:", b"Content-Length : 4", b" folded",
               b"\tfolded", b"X", b": x", b"X: \x00", b"X: \xe4", b"X\xe4: y", b"X: a\rb", b"X: a\nContent-Length: 7",
               b"", b"X\t: y", b"(: y")
HEAD_PIECES = (b"\r", b"\n", b"\r\n", b"\r\n\r\n", b" ", b":", b"\0", b"\t", b"\xff", b"X", b"GET", b"HTTP/1.0", b"9",
               b"0", b"-", b"POST / HTTP/1.1\r\n")


def message(rng):
    """One HTTP message, mostly a frequent one."""
    body = document(rng, *call(rng))
    headers = [rng.choice(HEADERS) for _ in range(rng.choice([0, 1, 1, 3]))]
    if rng.random() < 0.25:
        headers.append(rng.choice(ODD_HEADERS))
    length = len(body) if rng.random() < 0.95 else rng.choice([0, 1, len(body) - 1, len(body) + 1])
    if rng.random() < 0.95:
        name = rng.choice([b"Content-Length: ", b"content-length:", b"CONTENT-LENGTH: \t", b"Content-Length: 00"])
        headers.append(name + b"%d" % length)
    if rng.random() < 0.1:             # chunked, with or without saying so, and with a length or without
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    rng.shuffle(headers)
    line = pick(rng, [b"POST / HTTP/1.1"], b"POST /a?b=%00 HTTP/1.1", b"GET / HTTP/1.1", b"post / HTTP/1.1",
                b"POST / HTTP/1.0", b"POST  / HTTP/1.1", b"POST / HTTP/1.1 ", b"POST /\x7f HTTP/1.1", b"POST  HTTP/1.1",
                b"\r\nPOST / HTTP/1.1", b"")
    return b"\r\n".join([line, *headers, b"", body])


def stream(rng):
    """Some messages on one connection, whole or cut off, a few bytes of their heads changed."""
    text = b""
    for _ in range(rng.choice([1, 1, 2, 3])):
        each = message(rng)
        if rng.random() < 0.2:
            at = rng.randrange(each.find(b"\r\n\r\n") + 5)
            each = each[:at] + rng.choice(HEAD_PIECES) + each[at + rng.choice([0, 1, 1, 4]):]
        text += each
    return text if rng.random() < 0.8 else text[:rng.randrange(len(text))]


def test_both_paths_find_the_same_messages_in_every_stream(paths, request):
    """However it is cut: what is not whole is waited for, and what is odd is left alone."""
    inputs, seed = request.config.getoption("--fuzz-inputs"), request.config.getoption("--fuzz-seed")
    rng = random.Random(seed)
    found = whole = 0
    for number in range(inputs):
        text = stream(rng)
        cut = rng.randrange(len(text) + 1)
        try:
            bodies, outcome, _ = paths.messages(text)
            check_reading(text, bodies, outcome == UNFINISHED)
            before, outcome_before, kept_at = paths.messages(text[:cut])
            if outcome_before == ODD:
                assert (before, ODD) == (bodies, outcome)
            else:
                behind, outcome_behind, _ = paths.messages(text[kept_at:])
                assert (before + behind, outcome_behind) == (bodies, outcome)
        except AssertionError:
            print(f"--fuzz-seed {seed}, input {number}: {text!r} cut at {cut}")
            raise
        found += len(bodies)
        whole += outcome == TAKEN
    print(f"{inputs} streams, {found} messages in them found, {whole} streams read to their end")
    assert found > inputs / 2 and whole > inputs / 5


@pytest.mark.parametrize("head, outcome", [
    (HEAD, PLAIN),
    (HEAD.replace(b"Host: x", b"content-type: \t a;b=\"c\" \t\r\nConnection: Keep-Alive"), PLAIN),
    (HEAD.replace(b"Content-Length: 4", b"cOnTeNt-LeNgTh:4 "), PLAIN),
    (HEAD.replace(b": 4", b": 0000004"), PLAIN),
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
    (HEAD.replace(b": 4", b": 4."), ODD),
    (HEAD.replace(b": 4", b": 4.0"), ODD),
    (HEAD.replace(b": 4", b": %d" % BODY_BYTES_MAX), UNFINISHED),
    (HEAD.replace(b": 4", b": %d" % (BODY_BYTES_MAX + 1)), ODD),
    (HEAD.replace(b"POST / ", b"POST "), ODD),
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
