"""`exchange bench` over HTTP: what it asks, counts, compares and refuses; not how fast anything is."""
import asyncio
import json
import logging
import os
import random
import shutil
import signal
import stat
import threading
from collections import Counter
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from tornado.httpclient import AsyncHTTPClient

from tests import run as tests_run
from tests.launched import free_port
from tests.test_order_flow import LOG
from tools import bench, bench_exchange, binary_load, cli, disk, hello_server, http_bench, machine, wrk
from tools.client import Client
from tools.report import Failed

needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not on the PATH: install the package of that"
                               " name")
URL = "http://127.0.0.1:1/"
REQUESTS_MIN = 2000            # so that each of 100 users is drawn
WRK_SAID = """Running 1s test @ http://127.0.0.1:1/
  Latency   330.90us  391.94us   6.44ms   93.34%
Requests/sec:  90.00
RESULT """
FIGURES = {"requests": 1000, "refused": 100, "errors": 0, "duration_us": 2_000_000, "p50_ms": 0.3, "p99_ms": 1.5,
           "p999_ms": 4.0, "latencies_us": []}


def said(**changes):
    return WRK_SAID + json.dumps({**FIGURES, **changes}) + "\n"


def run_cli(*arguments):
    """The exit code of a command in this process."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        return cli.main([*map(str, arguments)])
    finally:
        signal.signal(signal.SIGTERM, before)


# What wrk says.

def test_the_rate_is_of_accepted_requests_only():
    assert wrk.figures_of(said(), URL) == {
        "rate": 450, "requests": 1000, "refused": 100, "seconds": 2.0, "p50_ms": 0.3, "p99_ms": 1.5, "p999_ms": 4.0}


@pytest.mark.parametrize("output, words", [
    (said(errors=3), f"3 requests to {URL} had no answer"),
    ("unable to connect", f"wrk gave no result of {URL}: unable to connect"),
])
def test_a_run_that_lost_requests_has_no_figures(output, words):
    with pytest.raises(Failed, match=words):
        wrk.figures_of(output, URL)


def as_shown(measured, mean):
    """{latency: count} as wrk shows it: with the latencies that it adds for pauses."""
    shown = Counter(measured)
    for latency, count in measured.items():
        for added in range(latency - mean, mean, -mean):
            shown[added] += count
    return {latency: count for latency, count in shown.items() if latency >= min(measured)}


@pytest.mark.parametrize("seed", range(5))
def test_latencies_of_whole_writes_are_as_measured(seed):
    draw = random.Random(seed)
    measured = Counter(draw.randrange(500, 5000) for _ in range(2000))
    requests, mean = 16 * 2000, 200
    shown = as_shown(measured, mean)
    assert sum(shown.values()) > 5 * 2000
    duration_us = mean * (requests // wrk.CONNECTIONS)
    assert wrk.as_measured(sorted(shown.items()), requests, duration_us) == measured
    figures = wrk.figures_of(said(requests=requests, duration_us=duration_us, latencies_us=sorted(shown.items())), URL)
    assert figures["p50_ms"] == sorted(measured.elements())[999] / 1000


# What is compared.

def test_figures_are_medians_and_the_ratio_is_theirs():
    rounds = [{"hello": {"rate": hello, "p50_ms": 1.0, "p99_ms": 2.0, "p999_ms": 3.0},
               "exchange": {"rate": ours, "p50_ms": p50, "p99_ms": 5.0, "p999_ms": 6.0, "refused": 2,
                            "resting_orders": 7, "fdatasync_p50_ms": sync}}
              for hello, ours, p50, sync in ((100, 900, 4.0, 0.1), (50, 1000, 8.0, 4.0), (200, 100, 5.0, 0.2))]
    result = http_bench.result_of(http_bench.BENCHMARKS[0], rounds)
    assert (result["rate"], result["peer_figures"]["rate"], result["ratio"]) == (900, 100, 9.0)
    assert (result["p50_ms"], result["p99_ms"], result["fdatasync_p50_ms"], result["refused"]) == (5.0, 5.0, 0.2, 6)
    assert result["rounds"] == rounds


def test_hello_world_logs_nothing(caplog):
    async def ask():
        port = free_port()
        server = hello_server.application().listen(port, "127.0.0.1")
        answer = await AsyncHTTPClient().fetch(f"http://127.0.0.1:{port}/", method="POST", body="{}")
        server.stop()
        return answer.body
    with caplog.at_level(logging.DEBUG):
        assert asyncio.run(ask()) == b'{"hello": "world"}'
    assert not [record for record in caplog.records if record.name.startswith("tornado")]


# The loads.

class Recorder:
    """An HTTP server that keeps what it is asked; it answers a connection's requests `together` at a time."""

    def __init__(self, together):
        self.bodies, self._together = [], together

    async def _serve(self, reader, writer):
        try:
            while True:
                for _ in range(self._together):
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = next(int(line.partition(b":")[2]) for line in head.split(b"\r\n")
                                  if line.lower().startswith(b"content-length:"))
                    self.bodies.append(await reader.readexactly(length))
                writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"error": null}' * self._together)
        except (EOFError, OSError):
            writer.close()

    @contextmanager
    def serving(self):
        """Its URL."""
        loop = asyncio.new_event_loop()
        server = loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            server.close()
            for task in asyncio.all_tasks(loop):
                task.cancel()
                loop.run_until_complete(asyncio.wait({task}))
            loop.close()


def asked_by(load, pipelined=1):
    """[(method, params)] of some thousand requests of a load, and its figures."""
    for seconds in (1, 10):    # a loaded machine takes its time
        recorder = Recorder(pipelined)
        with recorder.serving() as url:
            figures = wrk.run(url, load, seconds, bench_exchange.USERS, pipelined)
        if figures["requests"] > REQUESTS_MIN:
            break
    documents = [json.loads(body) for body in recorder.bodies]
    assert all(type(document["id"]) is int for document in documents)
    assert REQUESTS_MIN < figures["requests"] <= len(documents) and figures["refused"] == 0
    return [(document["method"], document["params"]) for document in documents], figures


@needs_wrk
@pytest.mark.parametrize("load, pipelined, asks, bids", [
    ("cross", 1, ("7995", "8000"), ("8000", "8005")),
    ("cross", 16, ("7995", "8000"), ("8000", "8005")),
    ("random", 1, ("7990", "8010"), ("7990", "8010")),
    ("rest", 1, ("8001", "9000"), ("7000", "7999")),
])
def test_limit_orders_of_a_load_are_spread_evenly_over_its_prices(load, pipelined, asks, bids):
    asked, figures = asked_by(load, pipelined)
    assert {method for method, _params in asked} == {"order.put_limit"}
    assert {tuple(params[5:]) for _method, params in asked} == {("0.002", "0.001", "load")}
    assert {params[1] for _method, params in asked} == {"BTCUSDT"}
    assert {params[0] for _method, params in asked} == set(range(1, 101))
    amounts = [Decimal(params[3]) for _method, params in asked]
    assert Decimal("0.001") <= min(amounts) < Decimal("0.02") and Decimal("0.98") < max(amounts) <= 1
    for side, (low, high) in ((1, map(Decimal, asks)), (2, map(Decimal, bids))):
        prices = [Decimal(params[4]) for _method, params in asked if params[2] == side]
        assert 0.4 < len(prices) / len(asked) < 0.6
        assert low <= min(prices) < low + (high - low) / 20 and high - (high - low) / 20 < max(prices) <= high
        below = sum(price < (low + high) / 2 for price in prices)
        assert 0.4 < below / len(prices) < 0.6
    assert 0 < figures["p50_ms"] <= figures["p99_ms"] <= figures["p999_ms"]


@needs_wrk
@pytest.mark.parametrize("load, method, params", [
    ("balance", "balance.query", [..., "BTC", "USDT"]),
    ("depth_20", "order.depth", ["BTCUSDT", 20, "0"]),
    ("depth_100_merged_0.1", "order.depth", ["BTCUSDT", 100, "0.1"]),
    ("book_20", "order.book", ["BTCUSDT", ..., 0, 20]),
    ("pending_20", "order.pending", [..., "BTCUSDT", 0, 20]),
])
def test_reads_of_a_load_ask_for_what_its_name_says(load, method, params):
    asked, _figures = asked_by(load)
    drawn = range(1, 3) if method == "order.book" else range(1, 101)
    at = params.index(...) if ... in params else None
    assert {name for name, _params in asked} == {method}
    expected = {tuple(one if index == at else value for index, value in enumerate(params)) for one in drawn}
    assert {tuple(sent) for _name, sent in asked} == expected


# What an exchange makes of them.

BOOK = {"bids": [["7000.00", "0.5", "b1"], ["0.01", "1", "b2"]],
        "asks": [["9000.00", "0.00012345", "a1"], ["9000.00", "2", "a2"], ["100000", "3", "a3"]]}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """An exchange with a small Coinbase book, whose users 1 to 100 have money."""
    path = tmp_path_factory.mktemp("book") / "book.json"
    path.write_text(json.dumps(BOOK))
    with bench_exchange.running(tmp_path_factory.mktemp("bench"), "none", bench_exchange.FillFrom(path)) as exchange:
        yield exchange


def test_a_coinbase_book_is_dealt_to_the_users_in_turn(served):
    client = Client(served.url)
    depth = client.call("order.depth", "BTCUSDT", 20, "0")
    assert [price for price, _amount in depth["asks"]] == ["9000", "100000"]
    assert [price for price, _amount in depth["bids"]] == ["7000", "0.01"]
    book = client.call("order.book", "BTCUSDT", 1, 0, 20)
    assert [(order["user"], order["amount"]) for order in book["orders"]] == [
        (3, "0.00012345"), (4, "2"), (5, "3")]
    assert bench_exchange.resting_orders(served) == 5


@needs_wrk
def test_orders_that_the_exchange_refuses_do_not_count(served):
    client = Client(served.url)

    def next_order_id():
        return client.call("order.put_limit", 1, "BTCUSDT", 2, "0.001", "1", "0", "0", "")["id"]
    before = next_order_id()
    figures = wrk.run(served.url, "cross", 1, users=2 * bench_exchange.USERS)  # half of them have no money
    accepted = next_order_id() - before - 1
    counted = figures["requests"] - figures["refused"]
    assert 0.4 < figures["refused"] / figures["requests"] < 0.6
    assert accepted - wrk.CONNECTIONS <= counted <= accepted  # the last answers come when nobody counts any more
    assert figures["rate"] == pytest.approx(counted / figures["seconds"], rel=0.001)  # seconds are rounded


def test_a_book_that_is_refused_fails_with_the_order(served):
    with pytest.raises(Failed, match=r"refuses order.put_limit \[1, 'BTCUSDT', 2, '0', '1'.*invalid argument"):
        bench_exchange.call_all(served, [("order.put_limit", [1, "BTCUSDT", 2, "0", "1", "0", "0", "x"])])


@needs_wrk
def test_a_whole_run_tells_all_rounds_where_they_ran_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_exchange, "RANDOM_SECONDS", 1)
    monkeypatch.setattr(disk, "IN_MEMORY", set())
    result, data = tmp_path / "result.json", tmp_path / "data"
    assert run_cli("bench", "http.put_limit.rest.interval", "http.book", "http.pending", "--rounds", 2, "--seconds", 1,
                   "--data", data, "--json", result) == 0
    assert list(data.iterdir()) == []
    document = json.loads(result.read_text())
    assert document["commit"] == machine.commit()
    assert {"cpu", "cores", "python", "numba"} <= document["machine"].keys()
    assert document["disk"]["fdatasync_p50_ms"] > 0
    rest, book, pending = document["results"]
    assert [one["name"] for one in document["results"]] == [
        "http.put_limit.rest.interval", "http.book_20", "http.pending_20"]
    for one in document["results"]:
        assert len(one["rounds"]) == 2 and one["refused"] == 0 and one["ratio"] > 0
        for measured in one["rounds"]:
            assert 0 < measured["hello"]["p50_ms"] <= measured["hello"]["p999_ms"]
            assert measured["exchange"]["rate"] > 0
    for measured in rest["rounds"]:  # each began with an empty book, and no order traded
        figures = measured["exchange"]
        assert figures["requests"] <= figures["resting_orders"] <= figures["requests"] + wrk.CONNECTIONS
    assert [one["exchange"]["resting_orders"] for one in book["rounds"]] == [
        one["exchange"]["resting_orders"] for one in pending["rounds"]]
    assert "name http.book_20, sync always, book random" in capsys.readouterr().out


def test_orders_of_the_binary_load_are_those_of_cross():
    drawn = binary_load.draw(np.random.default_rng(1), bench_exchange.USERS)
    assert set(drawn["user_id"].tolist()) == set(range(1, 101))
    lots = drawn["amount"] // binary_load.LOTS
    assert (lots * binary_load.LOTS == drawn["amount"]).all() and 10 <= lots.min() < 50 and 9950 < lots.max() <= 10_000
    for side, low, high in ((1, 799_500, 800_000), (2, 800_000, 800_500)):
        prices = drawn["price"][drawn["side"] == side]
        assert 0.45 < len(prices) / len(drawn) < 0.55
        assert low <= prices.min() < low + 25 and high - 25 < prices.max() <= high


def test_percentiles_of_the_binary_load_are_of_requests():
    figures = binary_load.percentiles([(0.001, 500), (0.002, 489), (0.003, 10), (0.004, 1)])
    assert figures == {"p50_ms": 1.0, "p99_ms": 3.0, "p999_ms": 3.0}


@needs_wrk
def test_the_binary_port_is_measured_beside_hello_world(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "IN_MEMORY", set())
    result = tmp_path / "result.json"
    assert run_cli("bench", "binary.interval", "--rounds", 1, "--seconds", 1, "--data", tmp_path / "data", "--json",
                   result) == 0
    assert list((tmp_path / "data").iterdir()) == []
    one, = json.loads(result.read_text())["results"]
    figures, = (measured["exchange"] for measured in one["rounds"])
    assert one["refused"] == 0 and one["ratio"] > 0 and one["percentiles_of"].endswith("500 in flight each")
    assert figures["requests"] >= figures["resting_orders"] > 0
    assert 0 < figures["p50_ms"] <= figures["p99_ms"] <= figures["p999_ms"]


# What is refused, and what is left out.

@pytest.mark.parametrize("arguments, words", [
    (["http.nothing"], "no benchmark begins with http.nothing: exchange bench --list tells them"),
    (["http.balance", "--rounds", "0"], "--rounds 0 is too few"),
    (["http.balance", "--seconds", "0"], "--seconds 0 is too few"),
    (["http.coinbase.balance", "--book", "nowhere.json"], "nowhere.json is not there"),
])
def test_what_cannot_be_measured_is_one_sentence(capsys, arguments, words):
    assert run_cli("bench", *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("exchange: ") and error.count("\n") == 1 and words in error


def test_a_log_is_no_book(tmp_path, capsys):
    path = tmp_path / "flow.log"
    path.write_text(LOG, encoding="utf-8")
    assert run_cli("bench", "http.coinbase", "--book", path) == 1
    assert f"{path} is no Coinbase book: name one with --book FILE" in capsys.readouterr().err


def test_without_the_coinbase_book_its_benchmarks_are_left_out_in_words(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "COINBASE", tmp_path / "nowhere.json.gz")
    assert run_cli("bench", "http.coinbase.b", "--json", tmp_path / "result.json") == 0
    assert f"left out: http.coinbase.balance, http.coinbase.book_20: {tmp_path}/nowhere.json.gz is not there" \
        in capsys.readouterr().out
    document = json.loads((tmp_path / "result.json").read_text())
    assert document["left_out"] == ["http.coinbase.balance", "http.coinbase.book_20"] and document["results"] == []


def test_without_wrk_the_remedy_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_cli("bench", "http.balance") == 1
    assert "the http benchmarks need wrk, which is not on the PATH" in capsys.readouterr().err


@needs_wrk
def test_a_folder_in_memory_is_refused_and_not_made(tmp_path, monkeypatch, capsys):
    mounts = tmp_path / "mounts"
    mounts.write_text("disk / ext4 rw 0 0\nnone {} tmpfs rw 0 0\n".format(str(tmp_path).replace(" ", "\\040")))
    monkeypatch.setattr(disk, "MOUNTS", mounts)
    assert run_cli("bench", "http.balance", "--data", tmp_path / "data") == 1
    assert f"{tmp_path}/data is on tmpfs, which is memory" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_a_folder_that_cannot_be_written_is_told():
    with pytest.raises(Failed, match="/proc/data cannot hold the data of an exchange"):
        disk.figures(Path("/proc/data"))


@pytest.mark.parametrize("folder, expected", [
    ("/", "ext4"), ("/srv", "ext4"), ("/run/x/y", "tmpfs"), ("/running", "ext4"), ("/run/data/x", "xfs"),
    ("/a b/c", "btrfs"), ("/twice/x", "tmpfs")])
def test_a_folder_is_on_the_file_system_mounted_nearest_above_it(folder, expected):
    mounts = ("/dev/vda / ext4 rw 0 0\nnone /run tmpfs rw 0 0\n/dev/vdb /run/data xfs rw 0 0\n"
              "/dev/vdc /a\\040b btrfs rw 0 0\n/dev/vdd /twice ext4 rw 0 0\nnone /twice tmpfs rw 0 0\n")
    assert disk.filesystem_of(Path(folder), mounts) == expected


def test_names_are_listed_and_no_name_stands_twice(capsys):
    assert run_cli("bench", "--list") == 0
    names = capsys.readouterr().out.split()
    assert len(names) == len(set(names)) > 20
    assert {"http.put_limit.cross.always", "http.put_limit.random.interval", "http.put_limit.rest.always",
            "http.pipelined_16.interval", "http.balance", "http.depth_20", "http.coinbase.depth_20", "binary.always",
            "binary.interval"} <= set(names)


# Its setting up.

@pytest.fixture
def apt(tmp_path, monkeypatch):
    """A PATH with nothing but an apt-get, which notes how it is called; `apt(installs=True)` makes it install."""
    def make(installs):
        program = tmp_path / "apt-get"
        install = f'[ "$1" = install ] && : > {tmp_path}/wrk && /bin/chmod +x {tmp_path}/wrk'
        program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n{install if installs else "exit 100"}\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return tmp_path / "calls"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return make


def test_the_tests_command_installs_wrk(apt, capfd):
    calls = apt(installs=True)
    for _ in range(2):
        tests_run.install_wrk()
    assert calls.read_text() == "update -q\ninstall -q -y --no-install-recommends wrk\n"
    assert "skipped" not in capfd.readouterr().out


@pytest.mark.parametrize("user, has_apt, words", [
    (0, True, "apt-get could not install it"), (1000, True, "install it with: sudo apt-get install wrk"),
    (0, False, "install the package of your system that has it")])
def test_the_tests_command_says_why_there_is_no_wrk(apt, monkeypatch, capfd, user, has_apt, words):
    monkeypatch.setattr(os, "geteuid", lambda: user)
    if has_apt:
        apt(installs=False)
    tests_run.install_wrk()
    assert f"The tests that need wrk are skipped, as it is missing: {words}" in capfd.readouterr().out
