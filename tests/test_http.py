"""HTTP as clients meet it, on real sockets, over a core in this process: acceptance, heads, connections, sizes."""
import asyncio
import http.client
import json
import re
import socket
import threading

import pytest
from tornado.netutil import bind_sockets

from gateways.http import Server, listener_of
from tests.test_protocol import CONFIG, RECORDINGS, answers_over_a_core, body_of, comparable, read

BODY_BYTES_MAX = 10_000
CALL = b'{"id": 1, "method": "balance.query", "params": [1, "BTC"]}'
RESULT = {"error": None, "result": {"BTC": {"available": "0", "freeze": "0"}}, "id": 1}


class Exchange:
    """A Server on a port of its own, in a thread."""

    def __init__(self):
        self._answers = answers_over_a_core(CONFIG)
        self.port, self._ready, self._stop = None, threading.Event(), None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    async def _serve(self):
        self._stop, self._loop = asyncio.Event(), asyncio.get_running_loop()
        listener = listener_of(Server(self._answers, BODY_BYTES_MAX))
        sockets = bind_sockets(0, "127.0.0.1")
        self.port = sockets[0].getsockname()[1]
        listener.add_sockets(sockets)
        self._ready.set()
        await self._stop.wait()
        listener.stop()
        await listener.close_all_connections()

    def close(self):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()


@pytest.fixture(scope="module")
def exchange():
    made = Exchange()
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
        for _ in range(1000):
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
