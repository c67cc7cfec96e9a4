"""HTTP as clients meet it, on real sockets and rings, over a core in this process: acceptance, heads, connections,
sizes."""
import asyncio
import errno
import http.client
import itertools
import json
import random
import re
import socket
import struct
import threading
import time
from contextlib import suppress

import pytest
from tornado.netutil import add_accept_handler, bind_sockets

from gateways import event_loop
from gateways.answers import Answers
from gateways.catalog import Catalog
from gateways.http_front import HttpFront
from gateways.pages import Pages
from gateways.plain_http import PlainServer
from shm import configuration, segments
from shm.segments import CounterWord, JournalWord, Role
from tests.gateway_world import Pipeline, Rings
from tests.launched import wait_for
from tests.test_fast_path import document, mutated
from tests.test_protocol import CONFIG, RECORDINGS, REPORTS, body_of, comparable, read
from tools.local_exchange import prepare_kernels

BODY_BYTES_MAX = 10_000
FILES_MAX = 4096
CALL = b'{"id": 1, "method": "balance.query", "params": [1, "BTC"]}'
RESULT = {"error": None, "result": {"BTC": {"available": "0", "freeze": "0"}}, "id": 1}


class Exchange:
    """A gateway's front on a port of its own, in a thread, over rings that a core in the same thread answers. On
    `plain_port` the plain server takes every connection from its first byte on."""

    def __init__(self, directory, **http):
        self._settings = configuration.from_recording(
            CONFIG, http={"body_bytes_max": BODY_BYTES_MAX, "timeout_ms": 5000, **http},
            limits={"orders_max": 20_000, "levels_max": 20_000, "balances_max": 2_000})
        self.rings = Rings(directory, self._settings, command_slots=256, reply_slots=512)
        self.pipeline = Pipeline(self.rings)
        self.port, self._ready, self._stop = None, threading.Event(), None
        self._thread = threading.Thread(target=lambda: event_loop.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(60)

    async def _serve(self):
        self._stop, self._loop = asyncio.Event(), asyncio.get_running_loop()
        catalog = Catalog(self._settings.limits)
        bridge = self.rings.bridge(catalog, self._settings.http.timeout_ms, FILES_MAX)
        answers = Answers(bridge, catalog, REPORTS.append, self._settings.http.pretty)
        self.plain = plain = PlainServer(answers, BODY_BYTES_MAX, Pages(bridge))
        self.front = HttpFront(bridge, answers, plain, catalog, self._settings.http)
        bridge.attach(self._loop)
        self.pipeline.attend(self._loop, self.rings)
        assert await answers.try_to_learn()
        sockets = bind_sockets(0, "127.0.0.1")
        self.port = sockets[0].getsockname()[1]
        self.front.listen(sockets[0])
        plain_socket = bind_sockets(0, "127.0.0.1")[0]
        self.plain_port = plain_socket.getsockname()[1]
        stop_accepting = add_accept_handler(plain_socket, lambda connected, _: plain.serve(connected, b""))
        self._ready.set()
        await self._stop.wait()
        stop_accepting()
        plain_socket.close()
        await asyncio.gather(self.front.stop(5), plain.stop(5))

    def run(self, work):
        """Call `work` where the front runs; its result."""
        async def call():
            return work()
        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(10)

    def close(self):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        segments.unlink(self.rings.instance)
        assert not self.rings.defects


@pytest.fixture(scope="module", autouse=True)
def compiled():
    """No kernel is compiled while something has to be answered in time."""
    prepare_kernels()


@pytest.fixture(scope="module")
def exchange(tmp_path_factory):
    made = Exchange(tmp_path_factory.mktemp("gateway"))
    yield made
    made.close()


@pytest.fixture
def connection(exchange):
    with Connection(exchange.port) as made:
        yield made


class Connection:
    """A client that sees every byte."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=5)
        self.file = self.socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def receive(self):
        """(status line, {header: value}, body) of the next answer."""
        line = self.file.readline().decode().rstrip("\r\n")
        headers = {}
        while (header := self.file.readline().decode().rstrip("\r\n")):
            name, _, value = header.partition(": ")
            headers[name] = value
        return line, headers, self.file.read(int(headers.get("Content-Length", 0)))

    def is_closed(self):
        """Whether the server hung up, with nothing more said."""
        try:
            return self.file.read(1) == b""
        except ConnectionResetError:
            return True

    def is_open(self):
        """Whether the next request on it is answered."""
        self.send(post(CALL))
        return json.loads(self.receive()[2]) == RESULT


def post(body, *headers, path="/", verb="POST", version="1.1"):
    head = [f"{verb} {path} HTTP/{version}", "Host: x", *headers]
    if not any("Transfer-Encoding" in header for header in headers):
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


@pytest.mark.parametrize("path, header", [
    ("/", "Content-Type: text/plain"), ("/foo/bar?x=1", "Accept: */*"), ("/%00", "Content-Encoding: none"),
])
def test_any_path_and_any_content_type_are_taken(connection, path, header):
    connection.send(post(CALL, header, path=path))
    line, headers, body = connection.receive()
    assert line == "HTTP/1.1 200 OK"
    assert json.loads(body) == RESULT
    assert set(headers) == {"Date", "Content-Type", "Content-Length"}
    assert headers["Content-Type"] == "application/json"
    assert re.fullmatch(r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT", headers["Date"])
    assert connection.is_open()


def test_a_body_in_many_pieces_is_put_together(connection):
    request = post(CALL)
    for place in range(0, len(request), 7):
        connection.send(request[place:place + 7])
    assert json.loads(connection.receive()[2]) == RESULT


def test_a_chunked_body_is_put_together(connection):
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(CALL[at:at + 9]), CALL[at:at + 9]) for at in range(0, len(CALL), 9))
    connection.send(post(chunks + b"0\r\n\r\n", "Transfer-Encoding: chunked"))
    assert json.loads(connection.receive()[2]) == RESULT
    assert connection.is_open()


@pytest.mark.parametrize("verb", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW", "post"])
@pytest.mark.parametrize("body", [CALL, b""])
def test_another_verb_than_post_is_400_without_a_body_and_the_end(connection, verb, body):
    connection.send(post(body, verb=verb))
    line, headers, body = connection.receive()
    assert line == "HTTP/1.1 400 Bad Request"
    assert (body, headers["Content-Length"], headers["Connection"]) == (b"", "0", "close")
    assert "Content-Type" not in headers
    assert connection.is_closed()


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"id": 1, "method": "asset.list"}'])
def test_a_post_that_is_no_request_is_400_without_a_body_and_the_end(connection, body):
    connection.send(post(body))
    line, headers, body = connection.receive()
    assert (line, body, headers["Connection"]) == ("HTTP/1.1 400 Bad Request", b"", "close")
    assert connection.is_closed()


def test_a_post_that_announces_no_body_is_400(connection):
    connection.send(b"POST / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert connection.receive()[0] == "HTTP/1.1 400 Bad Request"
    assert connection.is_closed()


def test_bytes_that_are_not_http_end_the_connection(connection):
    connection.send(b"\x16\x03\x01 hello\r\n\r\n")
    connection.file.read()
    assert connection.is_closed()


def test_an_unknown_method_is_404_and_the_connection_stays(connection):
    connection.send(post(b'{"id": 3, "method": "nope", "params": []}'))
    line, headers, body = connection.receive()
    assert line == "HTTP/1.1 404 Not Found" and "Connection" not in headers
    assert json.loads(body)["error"]["message"] == "method not found"
    assert connection.is_open()


def test_pipelined_requests_are_answered_in_their_order(connection):
    calls = [{"id": number, "method": "asset.list" if number % 3 else "nope", "params": []} for number in range(50)]
    connection.send(b"".join(post(json.dumps(call).encode()) for call in calls))
    assert [json.loads(connection.receive()[2])["id"] for _ in calls] == list(range(50))


@pytest.mark.parametrize("headers, version, stays", [
    ((), "1.1", True), (("Connection: close",), "1.1", False), (("Connection: Close",), "1.1", False),
    ((), "1.0", False), (("Connection: keep-alive",), "1.0", True),
])
def test_a_connection_stays_as_its_client_asked(connection, headers, version, stays):
    connection.send(post(CALL, *headers, version=version))
    assert json.loads(connection.receive()[2]) == RESULT
    assert connection.is_open() if stays else connection.is_closed()


def test_a_body_of_exactly_the_limit_is_taken(connection):
    connection.send(post(CALL + b" " * (BODY_BYTES_MAX - len(CALL))))
    assert json.loads(connection.receive()[2]) == RESULT
    assert connection.is_open()


def too_large(connection, size):
    line, headers, body = connection.receive()
    assert line == "HTTP/1.1 413 Request Entity Too Large" or line == "HTTP/1.1 413 Content Too Large"
    assert headers["Connection"] == "close"
    assert json.loads(body) == {"error": {"code": 1, "message": "invalid argument", "data": {
        "parameter": "body", "value": size, "rule": f"must have at most {BODY_BYTES_MAX} bytes",
        "limit": BODY_BYTES_MAX}}, "result": None, "id": None}
    return connection.is_closed()


def test_a_body_beyond_the_limit_is_413_with_the_limit_in_words(connection):
    connection.send(post(b" " * (BODY_BYTES_MAX + 1)))
    assert too_large(connection, BODY_BYTES_MAX + 1)


def test_a_chunked_body_beyond_the_limit_is_413(connection):
    chunk = b"1000\r\n" + b" " * 4096 + b"\r\n"
    connection.send(post(chunk * 4 + b"0\r\n\r\n", "Transfer-Encoding: chunked"))
    assert too_large(connection, 4 * 4096)


@pytest.mark.parametrize("size", [16 * BODY_BYTES_MAX + 1, 2**40, 10**20 - 1])
def test_a_body_far_beyond_the_limit_is_413_before_it_is_sent(connection, size):
    connection.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
    assert too_large(connection, size)


def test_a_chunked_body_far_beyond_the_limit_is_answered_once(connection):
    chunk = b"1000\r\n" + b" " * 4096 + b"\r\n"
    count = 17 * BODY_BYTES_MAX // 4096
    connection.send(post(chunk * count + b"0\r\n\r\n", "Transfer-Encoding: chunked"))
    assert connection.receive()[0].startswith("HTTP/1.1 413 ")
    assert connection.is_closed()


def test_an_endless_chunked_body_is_cut_off(connection):
    connection.send(post(b"", "Transfer-Encoding: chunked"))
    with pytest.raises(OSError):
        for _ in range(100_000):  # more than the system keeps
            connection.send(b"1000\r\n" + b" " * 4096 + b"\r\n")


@pytest.mark.parametrize("head", [b"X: " + b"y" * 100_000, b"Content-Length: " + b"9" * 21 + b"\r\n\r\n"])
def test_heads_beyond_their_limits_end_the_connection(connection, head):
    connection.send(b"POST / HTTP/1.1\r\n" + head)
    try:
        connection.file.read()
    except ConnectionResetError:
        pass
    assert connection.is_closed()


def test_a_client_that_leaves_in_the_middle_disturbs_nobody(exchange, connection):
    for part in (post(CALL)[:-10], post(CALL)):
        with Connection(exchange.port) as other:
            other.send(part)
    assert connection.is_open()


def test_the_recorded_protocol_scenario_is_answered_over_a_socket_verbs_and_paths_included(exchange):
    _, lines = read(RECORDINGS / "h12_protocol.jsonl")
    client = http.client.HTTPConnection("127.0.0.1", exchange.port, timeout=5)
    for line in lines:
        client.request(line.get("verb", "POST"), line.get("path", "/"), body_of(line), line.get("headers", {}))
        answer = client.getresponse()
        body = answer.read()
        assert answer.status == line["status"], line
        assert comparable(json.loads(body) if body else "") == comparable(line["response"]), line
        assert (answer.getheader("Connection") == "close") == (answer.status == 400)


def call(number, method="order.depth", params=("BTCUSDT", 1, "0")):
    return json.dumps({"id": number, "method": method, "params": params}).encode()


def test_pipelined_requests_of_both_paths_are_answered_in_their_order(connection):
    calls = [call(number) if number % 4 else call(number, "market.list", ()) for number in range(200)]
    connection.send(b"".join(map(post, calls)))
    assert [json.loads(connection.receive()[2])["id"] for _ in calls] == list(range(200))


def test_requests_cut_at_any_byte_are_answered_in_their_order(connection):
    data = b"".join(post(call(number) if number % 3 else call(number, "asset.list", ())) for number in range(60))
    rng = random.Random(3)
    at = 0
    while at < len(data):
        size = rng.choice([1, 7, 100, 300])
        connection.send(data[at:at + size])
        at += size
        if rng.random() < 0.2:
            time.sleep(0.001)
    assert [json.loads(connection.receive()[2])["id"] for _ in range(60)] == list(range(60))


def test_an_odd_message_behind_pipelined_ones_waits_for_their_answers(connection):
    odd = post(b"%x\r\n%s\r\n0\r\n\r\n" % (len(CALL), CALL), "Transfer-Encoding: chunked")
    connection.send(b"".join(post(call(number)) for number in range(10, 20)) + odd + post(call(21)))
    assert [json.loads(connection.receive()[2])["id"] for _ in range(12)] == [*range(10, 20), 1, 21]


def test_a_request_that_expects_100_is_told_to_go_on(connection):
    connection.send(post(CALL, "Expect: 100-continue").removesuffix(CALL))
    assert connection.file.readline().startswith(b"HTTP/1.1 100 ")
    assert connection.file.readline() == b"\r\n"
    connection.send(CALL)
    assert json.loads(connection.receive()[2]) == RESULT


@pytest.mark.parametrize("shape", [
    post(CALL, f"Content-Length: {len(CALL) + 1}"),
    post(b"0\r\n\r\n", "Transfer-Encoding: chunked", "Content-Length: 5"),
    post(b"0\r\n\r\n", "Content-Length: 5", "Transfer-Encoding: chunked"),
    post(b"0\r\n\r\n", "Transfer-Encoding: gzip, chunked"),
    post(b"0\r\n\r\n", "Transfer-Encoding: chunked", "Transfer-Encoding: identity"),
    post(b"-1\r\n\r\n", "Transfer-Encoding: chunked"),
    post(b"fffffffffffffffff\r\n\r\n", "Transfer-Encoding: chunked"),
])
def test_no_shape_of_two_meanings_has_its_tail_taken_for_a_request(connection, shape):
    connection.send(shape + post(CALL))
    answers = connection.file.read()
    assert answers.count(b"HTTP/1.1") <= 1 and b'"result"' not in answers


@pytest.mark.parametrize("data", [post(CALL), post(call(1, "asset.list", ()))])
def test_a_client_that_says_nothing_more_is_answered_before_the_end(connection, data):
    connection.send(data * 3)
    connection.socket.shutdown(socket.SHUT_WR)
    assert connection.file.read().count(b'"error": null') == 3


def test_half_a_request_and_the_end_are_no_request(connection):
    connection.send(post(CALL)[:-5])
    connection.socket.shutdown(socket.SHUT_WR)
    assert connection.file.read() == b""


def test_the_health_page_is_on_the_same_port_and_calls_go_on_behind_it(connection):
    connection.send(post(b"", path="/health", verb="GET").replace(b"Content-Length: 0\r\n", b""))
    line, _, body = connection.receive()
    assert line == "HTTP/1.1 200 OK" and json.loads(body) == {"status": "ok", "missing": []}
    connection.send(post(CALL))
    assert json.loads(connection.receive()[2]) == RESULT


def test_a_client_that_never_reads_is_not_read_and_harms_nobody(exchange, connection):
    with Connection(exchange.port) as deaf:
        deaf.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.socket.settimeout(0.5)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 10**8:
                sent += deaf.socket.send(post(call(1, "market.list", ())) * 100)
        assert connection.is_open()
        assert exchange.run(lambda: exchange.front._unsent_bytes) < 10**6
    connection.send(post(CALL))
    assert json.loads(connection.receive()[2]) == RESULT


def test_clients_that_leave_with_calls_in_flight_leave_nothing_behind(exchange, connection):
    for number in range(200):
        with Connection(exchange.port) as other:
            other.send(post(call(number)) * (1 + number % 5))
            if number % 3 == 0:  # a reset instead of an end
                other.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if number % 10 == 0:
            assert connection.is_open()
    wait_for(lambda: exchange.run(lambda: len(exchange.front._connections)) == 1, "all others are gone")
    assert connection.is_open()


def test_beyond_the_limit_of_connections_one_is_told_so(tmp_path):
    small = Exchange(tmp_path, connections_max=3)
    try:
        connections = [Connection(small.port) for _ in range(3)]
        assert all(each.is_open() for each in connections)
        with Connection(small.port) as refused:
            line, headers, body = refused.receive()
            assert line == "HTTP/1.1 503 Service Unavailable" and headers["Connection"] == "close"
            assert json.loads(body)["error"] == {"code": 3, "message": "service unavailable", "data": {
                "reason": "too many connections to this gateway", "limit": {"http.connections_max": 3}}}
            assert refused.is_closed()
        connections.pop().__exit__()
        wait_for(lambda: small.run(lambda: len(small.front._connections)) == 2, "the places are free again")
        with Connection(small.port) as another:
            assert another.is_open()
        for each in connections:
            each.__exit__()
    finally:
        small.close()


def test_more_requests_than_may_be_in_flight_wait_their_turn(tmp_path):
    narrow = Exchange(tmp_path, in_flight_max=2)
    try:
        with Connection(narrow.port) as connection:
            connection.send(b"".join(post(call(number)) for number in range(500)))
            assert [json.loads(connection.receive()[2])["id"] for _ in range(500)] == list(range(500))
    finally:
        narrow.close()


def test_more_requests_than_the_rings_hold_are_all_answered(exchange):
    """512 reply slots; a book of 101 orders may take 76 of them."""
    connections = [Connection(exchange.port) for _ in range(20)]
    for connection in connections:
        connection.send(b"".join(post(call(number, "order.book", ("BTCUSDT", 1, 0, 101))) for number in range(30)))
    for connection in connections:
        assert [json.loads(connection.receive()[2])["id"] for _ in range(30)] == list(range(30))
        connection.__exit__()


@pytest.fixture
def frozen(tmp_path):
    """An exchange whose matcher does nothing for now."""
    made = Exchange(tmp_path, timeout_ms=300)
    made.pipeline.is_frozen = True
    yield made
    made.close()


def thaw(exchange):
    def go_on():
        exchange.pipeline.is_frozen = False
        exchange.pipeline.answer()
    exchange.run(go_on)


@pytest.mark.parametrize("asked", [
    [call(1), call(2)], [call(1), call(2, "market.list", ())], [call(1, "market.list", ()), call(2)],
])
def test_calls_without_a_reply_in_time_are_504_in_their_order_and_their_late_replies_go_to_nobody(frozen, asked):
    with Connection(frozen.port) as connection:
        began = time.monotonic()
        connection.send(b"".join(map(post, asked)))
        for number in (1, 2):
            line, _, body = connection.receive()
            assert line == "HTTP/1.1 504 Gateway Timeout"
            assert json.loads(body) == {"error": {"code": 5, "message": "service timeout", "data": {
                "reason": "no reply in time; the request may still be executed", "limit_ms": 300}},
                "result": None, "id": number}
        assert time.monotonic() - began > 0.28
        thaw(frozen)
        connection.send(post(call(3)))
        assert json.loads(connection.receive()[2])["id"] == 3


def test_full_rings_are_code_3_after_a_bounded_wait_and_end_by_themselves(frozen):
    connections = [Connection(frozen.port) for _ in range(8)]
    for connection in connections:      # 76 of 512 reply slots each: six of them find room
        connection.send(post(call(1, "order.book", ("BTCUSDT", 1, 0, 101))))
    answers = [connection.receive() for connection in connections]
    codes = [json.loads(body)["error"]["code"] for _, _, body in answers]
    assert sorted(codes) == [3, 3, 5, 5, 5, 5, 5, 5], answers
    thaw(frozen)
    for connection in connections:
        assert connection.is_open()
        connection.__exit__()


def test_without_a_matcher_calls_are_500_until_there_is_one(tmp_path):
    gone = Exchange(tmp_path)
    counters = gone.rings.memory.counters.words[Role.MATCHER]
    heartbeat = int(counters[CounterWord.HEARTBEAT_NS])
    try:
        with Connection(gone.port) as connection:
            assert connection.is_open()
            counters[CounterWord.HEARTBEAT_NS] = 1
            connection.send(post(CALL) * 2)
            for _ in range(2):
                line, headers, body = connection.receive()
                assert (line, headers["Content-Length"], body) == ("HTTP/1.1 500 Internal Server Error", "0", b"")
            with Connection(gone.port) as watcher:
                watcher.send(post(b"", path="/health", verb="GET").replace(b"Content-Length: 0\r\n", b""))
                line, _, body = watcher.receive()
                assert line == "HTTP/1.1 503 Service Unavailable"
                assert json.loads(body) == {"status": "failing", "missing": ["no matcher"]}
            counters[CounterWord.HEARTBEAT_NS] = heartbeat
            assert connection.is_open()
    finally:
        gone.close()


def test_while_the_journal_takes_no_writes_only_reads_go_on(tmp_path):
    full = Exchange(tmp_path)
    try:
        with Connection(full.port) as connection:
            full.rings.memory.journal.words[0, JournalWord.REFUSING] = errno.ENOSPC
            connection.send(post(call(1, "order.cancel", (1, "BTCUSDT", 5))) + post(CALL))
            assert json.loads(connection.receive()[2])["error"]["code"] == 3
            assert json.loads(connection.receive()[2]) == RESULT
            full.rings.memory.journal.words[0, JournalWord.REFUSING] = 0
            connection.send(post(call(1, "order.cancel", (1, "BTCUSDT", 5))))
            assert json.loads(connection.receive()[2])["error"]["message"] == "order not found"
    finally:
        full.close()


HEAD_PIECES = (b"\r", b"\n", b"\r\n", b" ", b":", b"\0", b"\t", b"\xff", b"Connection: close\r\n",
               b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"X", b"GET",
               b"HTTP/1.0", b"9")


def odd_stream(rng):
    """Some messages, most of them whole, and one that asks for the end."""
    stream = b""
    for _ in range(rng.choice([1, 1, 2, 4])):
        body = document(rng, *rng.choice([
            ("order.depth", ["BTCUSDT", 5, "0"]), ("balance.query", [1, "BTC"]), ("order.cancel", [1, "BTCUSDT", 5]),
            ("order.put_limit", [7, "BTCUSDT", 1, "1", "1", "0", "0", ""]), ("market.list", []), ("nope", [])]))
        if rng.random() < 0.3:
            body = mutated(rng, body)
        message = post(body, *rng.choice([(), (), ("Connection: keep-alive",), ("Accept: */*", "Content-Type: x")]))
        if rng.random() < 0.5:
            at = rng.randrange(len(message) - len(body))
            cut = rng.choice([0, 0, 1])
            message = message[:at] + rng.choice(HEAD_PIECES) + message[at + cut:]
        stream += message
    return stream + post(CALL, "Connection: close")


def said_to(port, stream, cuts):
    """(all that is answered to the stream, sent in pieces; what became of the connection)."""
    answer, end = b"", "closed"
    with Connection(port) as connection:
        connection.socket.settimeout(0.3)
        with suppress(ConnectionError):
            for first, last in itertools.pairwise([0, *cuts, len(stream)]):
                connection.send(stream[first:last])
        try:
            while (data := connection.socket.recv(65536)):
                answer += data
        except TimeoutError:
            end = "open"
        except ConnectionError:
            end = "reset"
    return without_date(answer), end


def without_date(answer):
    return re.sub(rb"Date: [^\r]*", b"Date", answer)


def are_alike(expected, got):
    """A reset may take away what was answered before it."""
    if "reset" in (expected[1], got[1]):
        return expected[0].startswith(got[0]) or got[0].startswith(expected[0])
    return expected == got


def test_a_stream_of_odd_messages_is_answered_as_by_the_plain_server(exchange, request):
    rng = random.Random(request.config.getoption("--fuzz-seed"))
    for number in range(request.config.getoption("--fuzz-inputs") // 75):
        stream = odd_stream(rng)
        cuts = sorted(rng.randrange(len(stream)) for _ in range(rng.choice([0, 0, 1, 5])))
        expected, got = said_to(exchange.plain_port, stream, []), said_to(exchange.port, stream, cuts)
        assert are_alike(expected, got), (number, stream, cuts, expected, got)
