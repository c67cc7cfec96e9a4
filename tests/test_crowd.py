"""Many connections at once on one gateway, most of them idle, slow or deaf, while a few clients trade; and what bounds
them: http.connections_max, the system's limit of open files, memory."""
import json
import os
import resource
import socket
import struct
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateways.gateway_process import OTHER_FILES
from shm import segments
from shm.process import memory_id
from tests.test_gateway_process import Exchange, compiled, exchange_at  # noqa: F401
from tests.test_http import Connection, call, post

CROWD = 10_000
TRADERS = 4
SLOW, HALF_OPEN, DEAF = 400, 300, 20  # of the crowd; the others say nothing
ASKED_BY_DEAF = 150            # answers of some 30 KB each, which they leave
OWN_FILES = 300                # that this process has open beside its connections
CROWD_BYTES_MAX = 2**26        # of the gateway's memory, beyond what it takes alone
TRADING_SECONDS = 2.0
LAST_ORDERS = 101              # the longest list of an answer


def give_files(wanted):
    """Let this process open so many files, or skip the test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"{wanted} files are to be open at once, and the system's limit is {hard} (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


class Client(Connection):
    def __init__(self, port):
        """Its system keeps little of what it does not read."""
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(30)
        self.socket.connect(("127.0.0.1", port))
        self.file = self.socket.makefile("rb")

    def close(self):
        """Leave no port behind that waits: the crowd would use them up."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.__exit__()

    def ask(self, body):
        self.send(post(body))
        line, _, answer = self.receive()
        assert line == "HTTP/1.1 200 OK"
        return json.loads(answer)


@contextmanager
def connected(port, count):
    clients = []
    try:
        for _ in range(count):
            clients.append(Client(port))
        yield clients
    finally:
        for client in clients:
            client.close()


def trade(clients, seconds, between=lambda: None):
    """Orders and cancels one after the other; the time of each in milliseconds, sorted."""
    times_ms, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        for user, client in enumerate(clients, 1):
            for body in (call(1, "order.put_limit", (user, "BTCUSDT", 1 + user % 2, "0.01", "8000", "0", "0", "crowd")),
                         call(1, "order.depth", ("BTCUSDT", 20, "0"))):
                started = time.perf_counter()
                assert client.ask(body)["error"] is None
                times_ms.append((time.perf_counter() - started) * 1000)
        between()
    return sorted(times_ms)


def percentile(ordered, part):
    return ordered[int(len(ordered) * part)]


def resident_bytes(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


def test_ten_thousand_idle_slow_and_deaf_connections_harm_no_trader(tmp_path):
    give_files(CROWD + OWN_FILES)
    with exchange_at(tmp_path / "data", connections_max=CROWD + TRADERS, timeout_ms=5000) as exchange:
        pid, port = exchange.running["gateway-0"].pid, exchange.settings.http.port
        for user in range(1, TRADERS + 2):
            for asset in ("BTC", "USDT"):
                assert exchange.ask("balance.update", user, asset, "crowd", user, "100000000", {})[1]["error"] is None
        for _ in range(LAST_ORDERS):
            assert exchange.ask("order.put_limit", TRADERS + 1, "BTCUSDT", 1, "0.01", "9000", "0", "0", "book")[1][
                "error"] is None
        with connected(port, TRADERS) as traders:
            alone = trade(traders, TRADING_SECONDS)
            taken_alone = resident_bytes(pid)
            with connected(port, CROWD) as crowd:
                slow, half_open, deaf = crowd[:SLOW], crowd[SLOW:SLOW + HALF_OPEN], crowd[-DEAF:]
                message = post(call(7))
                for client in half_open:
                    client.send(message[:-20])
                book = post(call(8, "order.book", ("BTCUSDT", 1, 0, LAST_ORDERS)))
                for client in deaf:
                    client.send(book * ASKED_BY_DEAF)
                dripped = 0

                def drip():
                    nonlocal dripped
                    if dripped < len(message) - 1:
                        for client in slow:
                            client.send(message[dripped:dripped + 1])
                        dripped += 1
                crowded = trade(traders, TRADING_SECONDS, drip)
                for client in slow:
                    client.send(message[dripped:])
                for client in half_open:
                    client.send(message[-20:])
                with Client(port) as refused:  # all places are taken
                    line, _, body = refused.receive()
                    assert line.startswith("HTTP/1.1 503 ") and json.loads(body)["error"]["data"]["limit"] == {
                        "http.connections_max": CROWD + TRADERS}
                taken = resident_bytes(pid) - taken_alone
                for client in (*slow, *half_open):
                    assert json.loads(client.receive()[2])["id"] == 7
                for client in deaf:
                    for _ in range(ASKED_BY_DEAF):
                        assert len(json.loads(client.receive()[2])["result"]["orders"]) == LAST_ORDERS
                for client in crowd:
                    assert client.ask(call(9))["id"] == 9
            assert taken < CROWD_BYTES_MAX
            print(f"ms, alone: p50 {percentile(alone, 0.5):.2f} p99 {percentile(alone, 0.99):.2f} of {len(alone)};"
                  f" in a crowd of {CROWD}: p50 {percentile(crowded, 0.5):.2f} p99 {percentile(crowded, 0.99):.2f}"
                  f" of {len(crowded)}; the gateway's memory: {taken_alone / 2**20:.0f} MiB,"
                  f" {taken / 2**20:.0f} more")
        assert exchange.stop() == {"gateway-0": 0, "matcher": 0, "journaler": 0}
        assert exchange.fatal_lines() == []


def test_a_gateway_that_may_open_few_files_says_so_and_serves_fewer_connections(tmp_path):
    files = 164
    with exchange_at(tmp_path / "data", connections_max=1000, files=files) as exchange:
        assert exchange.said("gateway-0").count(
            f"takes {files - OTHER_FILES} connections instead of http.connections_max: the system's limit of open files"
            f" is {files}") == 1
        with connected(exchange.settings.http.port, files - OTHER_FILES) as clients:
            assert all(client.ask(call(1))["id"] == 1 for client in clients)
            for _ in range(3 * OTHER_FILES):
                with Client(exchange.settings.http.port) as refused:
                    assert refused.receive()[0].startswith("HTTP/1.1 503 ")
            assert all(client.ask(call(1))["id"] == 1 for client in clients)
        assert exchange.stop() == {"gateway-0": 0, "matcher": 0, "journaler": 0}


def test_a_gateway_that_may_open_too_few_files_for_any_connection_does_not_start(tmp_path):
    exchange = Exchange(tmp_path / "data", files=OTHER_FILES)
    assert exchange.start("gateway-0").wait(30) == 1
    assert f"the system's limit of open files is {OTHER_FILES}" in exchange.said("gateway-0")
    assert "Traceback" not in exchange.said("gateway-0")
    segments.unlink(memory_id(exchange.data))


def test_a_gateway_whose_files_run_out_goes_on_and_takes_whoever_waits_when_there_are_some_again(tmp_path):
    with exchange_at(tmp_path / "data") as exchange, connected(exchange.settings.http.port, 5) as clients:
        pid, port = exchange.running["gateway-0"].pid, exchange.settings.http.port
        assert all(client.ask(call(1))["id"] == 1 for client in clients)
        files = len(os.listdir(f"/proc/{pid}/fd"))
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (files, hard))
        with connected(port, 20) as waiting:
            for client in waiting:
                client.send(post(call(2)))
            spent = cpu_seconds(pid)
            end = time.monotonic() + 1
            while time.monotonic() < end:
                assert all(client.ask(call(1))["id"] == 1 for client in clients)
                time.sleep(0.05)
            assert cpu_seconds(pid) - spent < 0.5
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
            for client in waiting:
                assert json.loads(client.receive()[2])["id"] == 2
        assert exchange.said("gateway-0").count("accepts no more clients for now: Too many open files") == 1
        assert "Traceback" not in exchange.said("gateway-0")


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
