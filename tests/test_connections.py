"""Clients that are slow, deaf, gone or too many: how long a gateway waits for them, on a clock that the tests put
forward, what it keeps for them, and that nobody gets what is another's."""
import json
import socket
import struct
import time
from contextlib import suppress

import pytest

from gateways import bridge as bridge_module
from gateways import front as front_module
from gateways import plain_http
from gateways.connection import IS_ENDED, IS_GONE, WAITS_FOR_ANSWER, WAITS_FOR_ROOM
from gateways.sockets import BLOCKED
from tests.launched import wait_for
from tests.test_http import CALL, Connection, Exchange, call, compiled, post  # noqa: F401  kernels before any test

SECOND_NS = 10**9
BOOK = post(call(8, "order.book", ("BTCUSDT", 1, 0, 101)))
ODD_CALL = post(b"%x\r\n%s\r\n0\r\n\r\n" % (len(CALL), CALL), "Transfer-Encoding: chunked")


@pytest.fixture(scope="module")
def exchange(tmp_path_factory):
    """One whose book gives answers of some 30 KB."""
    made = Exchange(tmp_path_factory.mktemp("gateway"))
    with Connection(made.port) as client:
        def ask(*asked):
            client.send(post(call(*asked)))
            assert json.loads(client.receive()[2])["error"] is None
        ask(1, "balance.update", (2, "BTC", "d", 1, "1000", {}))
        for _ in range(101):
            ask(1, "order.put_limit", (2, "BTCUSDT", 1, "0.01", "9000", "0", "0", ""))
    yield made
    made.close()


@pytest.fixture
def connection(exchange):
    with Connection(exchange.port) as made:
        assert made.is_open()
        yield made


def sweep(exchange, seconds):
    """Look for overdue connections as if it were so much later."""
    def look():
        now_ns = time.monotonic_ns() + int(seconds * SECOND_NS)
        exchange.front.sweep(now_ns)
        exchange.plain.sweep(now_ns)
    exchange.run(look)


def kept(exchange):
    """Bytes of unfinished messages."""
    return exchange.run(lambda: sum(len(each.kept) for each in exchange.front._connections.values()))


def began(exchange):
    """Since when there are unfinished messages."""
    return exchange.run(lambda: [each.message_ns for each in exchange.front._connections.values() if each.kept])


def unsent(exchange):
    return exchange.run(lambda: exchange.front._unsent_bytes)


def is_cut(client):
    client.socket.settimeout(0)
    try:
        return client.socket.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True
    finally:
        client.socket.settimeout(10)


@pytest.mark.parametrize("part", [post(CALL)[:4], post(CALL)[:30], post(CALL)[:-1], post(CALL) + post(CALL)[:-1]])
def test_half_a_message_is_waited_for_a_minute(exchange, connection, part):
    with Connection(exchange.port) as slow:
        slow.send(part)
        wait_for(lambda: kept(exchange) > 0, "half a message")
        if part.startswith(post(CALL)):
            assert json.loads(slow.receive()[2])["id"] == 1
        sweep(exchange, 59)
        assert not is_cut(slow)
    with Connection(exchange.port) as slow:
        slow.send(part)
        wait_for(lambda: kept(exchange) > 0, "half a message")
        if part.startswith(post(CALL)):
            assert json.loads(slow.receive()[2])["id"] == 1
        sweep(exchange, 61)
        assert is_cut(slow)
    assert connection.is_open()


def test_a_message_that_comes_byte_by_byte_has_one_minute_in_all(exchange, connection):
    with Connection(exchange.port) as slow:
        slow.send(post(CALL)[:20])
        wait_for(lambda: kept(exchange) == 20, "half a message")
        sweep(exchange, 59)
        began_ns = began(exchange)
        for at in range(20, 30):
            slow.send(post(CALL)[at:at + 1])
            wait_for(lambda at=at: kept(exchange) == at + 1, "one byte more")
        assert began(exchange) == began_ns
        sweep(exchange, 61)
        assert is_cut(slow)
    assert connection.is_open()


def heads_begun(exchange):
    return exchange.run(lambda: sum(stream._head_ns is not None for stream in exchange.plain._streams))


@pytest.mark.parametrize("before", [b"", ODD_CALL, ODD_CALL * 3])
def test_half_a_head_is_waited_for_a_minute_by_the_plain_server_too(exchange, connection, before):
    with Connection(exchange.port) as slow:
        slow.send(before)
        for _ in range(before.count(b"POST")):
            assert json.loads(slow.receive()[2])["id"] == 1
        slow.send(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        wait_for(lambda: heads_begun(exchange) == 1, "half a head")
        sweep(exchange, 59)
        assert not is_cut(slow)
        sweep(exchange, 61)
        assert is_cut(slow)
    wait_for(lambda: exchange.run(lambda: exchange.plain.connections) == 0, "its place is free")
    assert connection.is_open()


def test_a_client_that_says_nothing_is_kept_for_an_hour(exchange):
    with Connection(exchange.port) as silent, Connection(exchange.port) as asking:
        assert silent.is_open()
        sweep(exchange, 3599)
        assert silent.is_open() and asking.is_open()
        sweep(exchange, 3601)
        assert is_cut(silent) and is_cut(asking)


def test_a_client_of_the_plain_server_that_says_nothing_is_kept_longer_than_a_minute(exchange):
    with Connection(exchange.port) as silent:
        silent.send(ODD_CALL)
        assert json.loads(silent.receive()[2])["id"] == 1
        sweep(exchange, 3599)
        assert silent.is_open()


def deaf_client(port):
    """A client that takes little before it has to read."""
    client = Connection.__new__(Connection)
    client.socket = socket.socket()
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.socket.settimeout(10)
    client.socket.connect(("127.0.0.1", port))
    client.file = client.socket.makefile("rb")
    return client


def ask_in_vain(client, is_stuck):
    """Ask for long answers and read none, until some of them stay with the gateway. Returns how many were asked for."""
    asked = 0
    while not is_stuck():
        assert asked < 2000, "all its answers were sent"
        client.send(BOOK * 10)
        asked += 10
        time.sleep(0.01)
    return asked


def test_a_client_that_takes_no_answer_for_a_minute_is_cut_off(exchange, connection):
    with deaf_client(exchange.port) as deaf:
        ask_in_vain(deaf, lambda: unsent(exchange) > 0)
        sweep(exchange, 59)
        assert unsent(exchange) > 0
        sweep(exchange, 61)
        assert unsent(exchange) == 0
        assert connection.is_open()
    with deaf_client(exchange.port) as slow:
        asked = ask_in_vain(slow, lambda: unsent(exchange) > 0)
        sweep(exchange, 59)
        for _ in range(asked):
            assert json.loads(slow.receive()[2])["id"] == 8


def test_a_client_that_takes_its_answers_slowly_has_a_minute_for_each_step(exchange):
    with deaf_client(exchange.port) as slow:
        assert slow.is_open()
        answer = b"x" * 2**24

        def answer_long_ago():
            connection, = exchange.front._connections.values()
            exchange.front.answer(connection.file, answer)
            connection.unsent_ns -= 50 * SECOND_NS
        exchange.run(answer_long_ago)
        before = unsent(exchange)
        taken = 0
        while unsent(exchange) == before:
            taken += len(slow.file.read(2**16))
        assert unsent(exchange) > 0
        sweep(exchange, 20)
        assert slow.file.read(len(answer) - taken) == answer[taken:]
        assert slow.is_open()


def test_a_client_of_the_plain_server_that_takes_no_answer_for_a_minute_is_cut_off(exchange, connection):
    def is_stuck():
        return exchange.run(lambda: any(stream.writing() for stream in exchange.plain._streams))
    with deaf_client(exchange.plain_port) as deaf:
        ask_in_vain(deaf, is_stuck)
        sweep(exchange, 59)
        assert is_stuck()
        sweep(exchange, 61)
        wait_for(lambda: exchange.run(lambda: exchange.plain.connections) == 0, "its place is free")
        assert connection.is_open()


def test_when_all_that_is_unsent_is_too_much_who_takes_nothing_is_cut_off(exchange, connection, monkeypatch):
    limit = 2**16
    monkeypatch.setattr(front_module, "UNSENT_BYTES_MAX", limit)
    deaf = [deaf_client(exchange.port) for _ in range(8)]
    try:
        def some_are_cut():
            return exchange.run(lambda: len(exchange.front._connections)) < 1 + len(deaf)
        for client in deaf:
            before = unsent(exchange)
            with suppress(OSError):    # it is cut off while it asks
                ask_in_vain(client, lambda before=before: unsent(exchange) > before or some_are_cut())
            assert unsent(exchange) <= limit
            assert connection.is_open()
        assert some_are_cut()
        connection.send(BOOK)
        assert len(json.loads(connection.receive()[2])["result"]["orders"]) == 101
    finally:
        for client in deaf:
            client.__exit__()
    wait_for(lambda: exchange.run(lambda: len(exchange.front._connections)) == 1, "all are gone")
    assert unsent(exchange) == 0


def test_when_the_plain_server_has_too_much_unsent_who_takes_nothing_is_cut_off(exchange, connection, monkeypatch):
    limit = 20_000
    monkeypatch.setattr(plain_http, "UNSENT_BYTES_MAX", limit)
    deaf = [deaf_client(exchange.plain_port) for _ in range(8)]
    try:
        for count, client in enumerate(deaf, 1):
            def is_stuck(count=count):
                return exchange.run(lambda: exchange.plain.connections < len(deaf) or count == sum(
                    stream.writing() for stream in exchange.plain._streams))
            with suppress(OSError):    # it is cut off while it asks
                ask_in_vain(client, is_stuck)
            assert exchange.run(lambda: exchange.plain.unsent_bytes) <= limit
        assert exchange.run(lambda: exchange.plain.connections) < len(deaf)
        connection.send(ODD_CALL)
        assert json.loads(connection.receive()[2])["id"] == 1
    finally:
        for client in deaf:
            client.__exit__()
    wait_for(lambda: exchange.run(lambda: exchange.plain.connections) == 1, "all are gone")
    assert exchange.run(lambda: exchange.plain.unsent_bytes) == 0


def test_a_client_beyond_the_limit_that_has_asked_already_is_told_so_without_a_reset(tmp_path):
    small = Exchange(tmp_path, connections_max=1)
    try:
        with Connection(small.port) as first:
            assert first.is_open()
            clients = []

            def connect():
                for _ in range(20):
                    clients.append(Connection(small.port))
                    clients[-1].send(post(CALL))
            small.run(connect)         # while nobody accepts
            for client in clients:
                assert client.receive()[0] == "HTTP/1.1 503 Service Unavailable"
                assert client.socket.recv(1) == b""
                assert client.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
                client.__exit__()
            assert first.is_open()
    finally:
        small.close()


def test_connections_of_the_plain_server_that_have_ended_take_no_place(tmp_path):
    small = Exchange(tmp_path, connections_max=3)
    try:
        with Connection(small.port) as first:
            for ending in ("", "Connection: close\r\n") * 5:
                with Connection(small.port) as other:
                    other.send(f"GET /health HTTP/1.1\r\nHost: x\r\n{ending}\r\n".encode())
                    assert other.receive()[0] == "HTTP/1.1 200 OK"
                wait_for(lambda: small.run(lambda: small.plain.connections) == 0, "its place is free")
            assert first.is_open()
    finally:
        small.close()


def test_connections_of_the_plain_server_count_as_the_others_do(tmp_path):
    small = Exchange(tmp_path, connections_max=3)
    try:
        with Connection(small.port) as first, Connection(small.port) as second, Connection(small.port) as third:
            for odd in (first, second):
                odd.send(ODD_CALL)
                assert odd.receive()[0] == "HTTP/1.1 200 OK"
            assert third.is_open()
            with Connection(small.port) as refused:
                assert refused.receive()[0] == "HTTP/1.1 503 Service Unavailable"
    finally:
        small.close()


def test_when_all_unfinished_bodies_are_too_much_who_sends_more_is_cut_off(exchange, connection, monkeypatch):
    def received():
        return exchange.run(lambda: exchange.plain.received_bytes)
    limit = 20_000
    monkeypatch.setattr(plain_http, "RECEIVED_BYTES_MAX", limit)
    head = post(b"", "Transfer-Encoding: chunked")
    slow = [Connection(exchange.plain_port) for _ in range(8)]
    try:
        for client in slow:
            client.send(head + b"2\r\nxx\r\n" * 2000)
        wait_for(lambda: exchange.run(lambda: exchange.plain.connections) < len(slow), "some are cut off")
        assert 0 < received() <= limit
        connection.send(post(CALL))
        assert json.loads(connection.receive()[2])["id"] == 1
    finally:
        for client in slow:
            client.__exit__()
    wait_for(lambda: received() == 0, "all are forgotten")
    connection.send(ODD_CALL * 3)
    for _ in range(3):
        assert json.loads(connection.receive()[2])["id"] == 1
    connection.send(post(b"x" * 100, path="/health", verb="GET"))
    assert connection.receive()[0] == "HTTP/1.1 200 OK"
    assert received() == 0


@pytest.fixture
def frozen(tmp_path):
    """An exchange whose matcher does nothing for now, and that reads little ahead."""
    made = Exchange(tmp_path, in_flight_max=2)
    made.pipeline.is_frozen = True
    yield made
    made.close()


def thaw(exchange):
    def go_on():
        exchange.pipeline.is_frozen = False
        exchange.pipeline.answer()
    exchange.run(go_on)


def wait_asked(exchange, count):
    wait_for(lambda: exchange.run(lambda: int(exchange.front.sockets.in_flight.sum())) == count, f"{count} calls")


def held(exchange):
    return exchange.run(lambda: [each.held for each in exchange.front._connections.values()])


def reset(client):
    """Leave as a process that is killed does."""
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.__exit__()


def test_an_answer_to_a_client_that_has_left_goes_to_nobody_else(frozen):
    gone = Connection(frozen.port)
    gone.send(post(call(66)))
    wait_asked(frozen, 1)
    reset(gone)
    wait_for(lambda: held(frozen)[0] & IS_GONE, "it is seen that it is gone")
    with Connection(frozen.port) as next_one:
        next_one.send(post(call(67)))
        wait_asked(frozen, 2)
        thaw(frozen)
        assert json.loads(next_one.receive()[2])["id"] == 67
        assert not is_cut(next_one) and next_one.is_open()
        wait_for(lambda: held(frozen) == [0], "the other's place is free")


def test_a_client_that_says_nothing_more_is_waited_for_by_its_answers(frozen):
    with Connection(frozen.port) as ended:
        ended.send(post(call(5)) * 2)
        wait_asked(frozen, 2)
        ended.socket.shutdown(socket.SHUT_WR)
        wait_for(lambda: held(frozen) == [IS_ENDED], "its end is seen")
        thaw(frozen)
        assert [json.loads(ended.receive()[2])["id"] for _ in range(2)] == [5, 5]
        assert ended.is_closed()


def test_a_client_that_leaves_while_it_is_not_read_is_let_go_at_once(frozen):
    gone = Connection(frozen.port)
    gone.send(post(call(5)) * 3)
    wait_for(lambda: held(frozen) == [WAITS_FOR_ANSWER], "its third call waits")
    gone.send(post(call(6)))       # stays in its socket
    reset(gone)
    wait_for(lambda: held(frozen)[0] & IS_GONE, "it is seen that it is gone")
    thaw(frozen)
    wait_for(lambda: held(frozen) == [], "its place is free")


def test_nothing_overtakes_bytes_that_python_has_yet_to_send(frozen):
    with Connection(frozen.port) as slow:
        slow.send(post(call(5)))
        wait_asked(frozen, 1)
        first = b"x" * 2**24

        def answer():
            connection, = frozen.front._connections.values()
            frozen.front.answer(connection.file, first)
            return int(frozen.front.sockets.marks[connection.file])
        assert frozen.run(answer) & BLOCKED
        thaw(frozen)
        assert slow.file.read(len(first)) == first
        assert json.loads(slow.receive()[2])["id"] == 5


def test_a_wait_for_room_ends_with_the_room(frozen):
    book = post(call(8, "order.book", ("BTCUSDT", 1, 0, 101)))
    clients = [Connection(frozen.port) for _ in range(8)]
    for client in clients:         # 76 of 512 reply slots each
        client.send(book)
    wait_for(lambda: held(frozen).count(WAITS_FOR_ROOM) == 2, "two wait for room")
    thaw(frozen)
    for client in clients:
        assert json.loads(client.receive()[2])["id"] == 8
    assert frozen.run(lambda: [each.room_ns for each in frozen.front._connections.values()]) == [None] * 8
    for client in clients:
        client.__exit__()


def test_room_that_answers_given_up_have_left_is_taken_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(bridge_module, "ROOM_WAIT_SECONDS", 60)
    monkeypatch.setattr(front_module, "ROOM_WAIT_NS", 60 * SECOND_NS)
    late = Exchange(tmp_path, timeout_ms=300)
    try:
        late.pipeline.is_frozen = True
        clients = [Connection(late.port) for _ in range(6)]
        for client in clients:     # 76 of 512 reply slots each
            client.send(BOOK)
        for client in clients:
            assert client.receive()[0] == "HTTP/1.1 504 Gateway Timeout"
        late.run(lambda: (late.pipeline.apply(), late.pipeline.free()))
        with Connection(late.port) as waiting:
            waiting.send(BOOK)
            wait_for(lambda: held(late).count(WAITS_FOR_ROOM) == 1, "one waits for room")
            late.pipeline.is_frozen = False
            late.run(late.pipeline.release)
            assert json.loads(waiting.receive()[2])["id"] == 8
        for client in clients:
            client.__exit__()
    finally:
        late.close()
