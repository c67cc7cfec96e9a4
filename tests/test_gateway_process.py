"""Gateways as processes, with a real matcher and journaler behind them: what dies, stops or is in the way."""
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateways.binary_protocol import RequestKind
from gateways.protocol import NOT_BUILT
from shm import configuration, segments
from shm.process import memory_id
from shm.records import Side
from shm.segments import CommandWord, CounterWord, Role
from tests.conftest import KERNELS
from tests.launched import ROOT, free_port, wait_for
from tests.test_protocol import CONFIG, RECORDINGS, body_of, comparable, read
from tools.binary_client import BinaryClient, HungUp

MODULES = {"journaler": "pipeline.journaler", "matcher": "pipeline.matcher", "gateway": "gateways.http",
           "binary": "gateways.binary"}


@pytest.fixture(scope="module", autouse=True)
def compiled():
    """Every process waits for its kernels; here they are compiled once, before any has to answer in time."""
    KERNELS.mkdir(parents=True, exist_ok=True)
    compile_all = f"from shm import kernel_cache; kernel_cache.ensure_compiled({str(KERNELS)!r})"
    subprocess.run([sys.executable, "-c", compile_all], cwd=ROOT, check=True)


class Exchange:
    """Journaler, matcher and gateways of one data directory, without a supervisor: who dies stays dead."""

    def __init__(self, data, config=CONFIG, files=None, binary_gateways=0, **http):
        """`files`: the most that a gateway may have open; None: what this process may have."""
        self.data, self.config_file = Path(data), Path(data) / "exchange.toml"
        self.settings = configuration.from_recording(
            config, http={"port": free_port(), **http}, binary={"port": free_port(), "gateways": binary_gateways},
            cache={"directory": str(KERNELS)},
            limits={"orders_max": 20_000, "levels_max": 20_000, "balances_max": 2_000})
        self.data.mkdir(exist_ok=True)
        configuration.write(self.settings, self.config_file)
        self.running, self._files = {}, files

    def start(self, name, *arguments):
        kind, _, index = name.partition("-")
        if index:
            arguments = ("--index", index, *arguments)
        limit = ["sh", "-c", f'ulimit -n {self._files}; exec "$@"', "sh"] \
            if kind == "gateway" and self._files else []
        with open(self.data / f"{name}.out", "a", encoding="utf-8") as output:
            self.running[name] = subprocess.Popen(
                [*limit, sys.executable, "-m", MODULES[kind], "--config", self.config_file, "--data", self.data,
                 *arguments],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        return self.running[name]

    def start_all(self):
        for name in ("journaler", "matcher", *self.settings.gateways):
            self.start(name)
        for name in self.running:
            self.wait_ready(name)
        return self

    def memory(self):
        return segments.attach(memory_id(self.data), self.settings.rings, write=False)

    def page(self, name):
        """The counters of a process that runs; None before it has joined."""
        process = self.running[name]
        assert process.poll() is None, self.said(name)
        try:
            page = self.memory().counters.words[self.settings.role_of(name)]
        except segments.SegmentError:
            return None
        return page if page[CounterWord.PID] == process.pid else None

    def wait_joined(self, name):
        wait_for(lambda: self.page(name) is not None, f"{name} has joined")

    def wait_ready(self, name):
        def is_ready():
            page = self.page(name)
            return page is not None and page[CounterWord.READY] == 1
        wait_for(is_ready, f"{name} is ready")

    def wait_written(self, slots):
        """Until gateway 0 has so many slots of commands on their way that nobody has answered."""
        words = self.memory().commands.words[0]
        wait_for(lambda: words[CommandWord.TAIL] - words[CommandWord.RELEASED] == slots, f"{slots} slots of commands")

    def refuses(self):
        """Whether nobody listens."""
        client = self.client()
        try:
            client.connect()
        except ConnectionRefusedError:
            return True
        client.close()
        return False

    def said(self, name):
        return (self.data / f"{name}.out").read_text(encoding="utf-8")

    def fatal_lines(self):
        path = self.data / "log" / "fatal.log"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    def signal(self, name, number):
        os.kill(self.running[name].pid, number)

    def kill(self, name):
        self.running[name].kill()
        self.running[name].wait()

    def stop(self):
        """Tell all to stop, in order; {name: exit code}."""
        codes = {}
        for name in sorted(self.running, key=lambda name: list(MODULES).index(name.partition("-")[0]), reverse=True):
            process = self.running.pop(name)
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
            codes[name] = process.wait(20)
        return codes

    def client(self):
        return http.client.HTTPConnection("127.0.0.1", self.settings.http.port, timeout=10)

    def ask(self, method, *params, client=None):
        """(status, document) of a call; the document of an empty body is None."""
        connection = client or self.client()
        connection.request("POST", "/", json.dumps({"id": 1, "method": method, "params": params}))
        answer = connection.getresponse()
        body = answer.read()
        if client is None:
            connection.close()
        return answer.status, json.loads(body) if body else None

    def available(self, user, asset):
        return self.ask("balance.query", user, asset)[1]["result"][asset]["available"]


@contextmanager
def exchange_at(data, *arguments, **http):
    exchange = Exchange(data, *arguments, **http)
    try:
        yield exchange.start_all()
    finally:
        for process in exchange.running.values():
            if process.poll() is None:
                process.kill()
                process.wait()
        segments.unlink(memory_id(exchange.data))


@pytest.fixture
def exchange(tmp_path):
    with exchange_at(tmp_path / "data") as made:
        yield made


@pytest.mark.parametrize("name", ["h04_put_limit_validation", "h12_protocol", "h16_strings", "q05_prec_zero"])
def test_recordings_are_answered_through_all_processes(tmp_path, name):
    config, lines = read(RECORDINGS / f"{name}.jsonl")
    with exchange_at(tmp_path / "data", config) as exchange:
        client, compared = exchange.client(), 0
        for line in lines:
            if isinstance(line["request"], dict) and line["request"].get("method") in NOT_BUILT:
                continue
            client.request(line.get("verb", "POST"), line.get("path", "/"), body_of(line), line.get("headers", {}))
            answer = client.getresponse()
            body = answer.read()
            assert answer.status == line["status"], line
            assert comparable(json.loads(body) if body else "") == comparable(line["response"]), line
            compared += 1
        assert compared > 30
        assert exchange.stop() == {"gateway-0": 0, "matcher": 0, "journaler": 0}
        assert exchange.fatal_lines() == []


def test_clients_in_parallel_each_get_their_own_answers(exchange):
    def trade(user):
        client = exchange.client()
        for number in range(50):
            status, document = exchange.ask("balance.update", user, "BTC", "d", number, "1", {}, client=client)
            assert (status, document["error"]) == (200, None)
            assert exchange.ask("balance.query", user, "BTC", client=client)[1]["result"]["BTC"]["available"] \
                == str(number + 1)
        done.append(user)
    done = []
    threads = [threading.Thread(target=trade, args=(user,)) for user in range(1, 17)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == list(range(1, 17))


def test_a_gateway_told_to_stop_answers_what_is_on_its_way_and_ends_with_0(exchange):
    client = exchange.client()
    exchange.ask("asset.list", client=client)
    exchange.signal("matcher", signal.SIGSTOP)
    client.request("POST", "/", json.dumps(
        {"id": 5, "method": "balance.update", "params": [1, "BTC", "d", 1, "1", {}]}))
    exchange.wait_written(2)
    exchange.signal("gateway-0", signal.SIGTERM)
    wait_for(exchange.refuses, "nobody listens")
    exchange.signal("matcher", signal.SIGCONT)
    answer = client.getresponse()
    assert answer.status == 200 and answer.getheader("Connection") == "close"
    assert json.loads(answer.read())["result"] == {"status": "success"}
    assert exchange.running["gateway-0"].wait(5) == 0


def test_an_idle_gateway_stops_at_once(exchange):
    with_open_connection = exchange.client()
    exchange.ask("asset.list", client=with_open_connection)
    started = time.monotonic()
    exchange.signal("gateway-0", signal.SIGTERM)
    assert exchange.running["gateway-0"].wait(5) == 0
    assert time.monotonic() - started < 0.8


def test_a_matcher_that_hangs_is_504_and_what_was_sent_is_executed_once(exchange):
    client = exchange.client()
    exchange.ask("asset.list", client=client)
    exchange.signal("matcher", signal.SIGSTOP)
    started = time.monotonic()
    status, document = exchange.ask("balance.update", 1, "BTC", "d", 1, "5", {}, client=client)
    assert 0.9 < time.monotonic() - started < 2
    assert status == 504 and document["error"]["code"] == 5 and document["error"]["message"] == "service timeout"
    exchange.signal("matcher", signal.SIGCONT)
    assert exchange.available(1, "BTC") == "5"
    assert exchange.ask("balance.update", 1, "BTC", "d", 1, "5", {}, client=client)[1]["error"]["code"] == 10


def test_without_a_matcher_it_is_500_and_when_one_comes_back_all_is_well(exchange):
    client = exchange.client()
    exchange.ask("balance.update", 1, "BTC", "d", 1, "5", {}, client=client)
    exchange.kill("matcher")
    assert exchange.ask("asset.list", client=client)[0] == 504  # one that died just now may come back
    wait_for(lambda: exchange.ask("asset.list", client=client) == (500, None), "500")
    exchange.start("matcher")
    exchange.wait_ready("matcher")
    assert exchange.ask("balance.query", 1, "BTC", client=client)[1]["result"]["BTC"]["available"] == "5"
    assert exchange.running["gateway-0"].poll() is None


def test_a_request_during_a_restart_of_the_matcher_waits_for_it(exchange):
    exchange.ask("balance.update", 1, "BTC", "d", 1, "5", {})
    exchange.kill("matcher")
    asked = []
    thread = threading.Thread(target=lambda: asked.append(exchange.ask("balance.query", 1, "BTC")))
    thread.start()
    exchange.start("matcher")
    thread.join()
    status, document = asked[0]
    assert status in (200, 504)
    if status == 200:
        assert document["result"]["BTC"]["available"] == "5"
    wait_for(lambda: exchange.ask("asset.list")[0] == 200, "service again")


def test_a_killed_gateway_comes_back_and_its_commands_ran_once(exchange):
    exchange.ask("asset.list")
    exchange.signal("matcher", signal.SIGSTOP)
    clients = [exchange.client() for _ in range(20)]
    for user, client in enumerate(clients, 1):
        client.request("POST", "/", json.dumps(
            {"id": 5, "method": "balance.update", "params": [user, "BTC", "d", 1, "1", {}]}))
    exchange.wait_written(2 * len(clients))
    exchange.kill("gateway-0")
    exchange.start("gateway-0")
    exchange.wait_joined("gateway-0")
    assert exchange.refuses()  # it waits for what its predecessor wrote
    exchange.signal("matcher", signal.SIGCONT)
    exchange.wait_ready("gateway-0")
    assert [exchange.available(user, "BTC") for user in range(1, 21)] == ["1"] * 20
    assert exchange.ask("balance.update", 1, "BTC", "d", 1, "1", {})[1]["error"]["code"] == 10


def test_a_gateway_without_matcher_waits_and_stops_when_told(tmp_path):
    exchange = Exchange(tmp_path / "data")
    try:
        exchange.start("gateway-0")
        wait_for(lambda: (exchange.data / "run" / "gateway-0.bell").exists(), "its bell")
        time.sleep(0.5)
        assert exchange.running["gateway-0"].poll() is None
        with pytest.raises(ConnectionRefusedError):
            exchange.client().connect()
        assert exchange.stop() == {"gateway-0": 0}
    finally:
        segments.unlink(memory_id(exchange.data))


def test_two_gateways_share_the_port(tmp_path):
    with exchange_at(tmp_path / "data", gateways=2) as exchange:
        def served():
            memory = segments.attach(memory_id(exchange.data), exchange.settings.rings, write=False)
            return [int(memory.counters.words[Role.GATEWAY + index, CounterWord.RECORDS]) for index in (0, 1)]

        def both_serve():
            exchange.ask("asset.list")
            return min(served()) > 10
        wait_for(both_serve, "both gateways serve")
        assert exchange.stop() == {"gateway-0": 0, "gateway-1": 0, "matcher": 0, "journaler": 0}


def put_through(client, user):
    """A limit order of one unit that rests, over a binary connection; its id."""
    return client.put_limit(user, 0, Side.ASK, 10**8, 10**6, label="binary").order_id


def test_binary_gateways_share_a_port_beside_http_and_one_that_is_killed_comes_back(tmp_path):
    with exchange_at(tmp_path / "data", binary_gateways=2) as exchange:
        address = exchange.settings.binary.host, exchange.settings.binary.port
        exchange.ask("balance.update", 1, "BTC", "d", 1, "100", {})
        clients = [BinaryClient(*address) for _ in range(20)]
        assert len({client.welcome["instance"].tobytes() for client in clients}) == 1
        ids = [put_through(client, 1) for client in clients]
        assert ids == list(range(1, 21))
        words = exchange.memory().counters.words
        first, second = (int(words[exchange.settings.role_of(f"binary-{index}"), CounterWord.RECORDS])
                         for index in (0, 1))
        assert min(first, second) > 2 and first + second >= 24  # the catalog and orders
        assert exchange.ask("order.pending", 1, "BTCUSDT", 0, 100)[1]["result"]["total"] == 20
        exchange.kill("binary-0")
        alive = [client for client in clients if is_alive(client)]
        assert 0 < len(alive) < 20 and put_through(alive[0], 1) == 21
        exchange.start("binary-0")
        exchange.wait_ready("binary-0")
        assert {put_through(BinaryClient(*address), 1) for _ in range(20)} == set(range(22, 42))
        assert exchange.ask("order.pending", 1, "BTCUSDT", 0, 100)[1]["result"]["total"] == 41
        assert exchange.stop() == {"gateway-0": 0, "binary-0": 0, "binary-1": 0, "matcher": 0, "journaler": 0}


def is_alive(client):
    try:
        client.ping()
        return True
    except (OSError, HungUp):
        return False


def test_what_a_killed_binary_gateway_had_written_is_executed_once(tmp_path):
    with exchange_at(tmp_path / "data", binary_gateways=1) as exchange:
        address = exchange.settings.binary.host, exchange.settings.binary.port
        exchange.ask("balance.update", 1, "BTC", "d", 1, "100", {})
        with BinaryClient(*address) as client:
            put_through(client, 1)
            exchange.signal("matcher", signal.SIGSTOP)
            asked = client.requests(50, RequestKind.PUT_LIMIT)
            asked["user_id"], asked["side"], asked["amount"], asked["price"] = 1, Side.ASK, 10**8, 10**6
            client.send(asked)
            words = exchange.memory().commands.words[1]
            wait_for(lambda: words[CommandWord.TAIL] - words[CommandWord.RELEASED] == 50, "they are written")
            exchange.kill("binary-0")
            with pytest.raises((HungUp, OSError)):
                client.receive(50)
        exchange.start("binary-0")
        exchange.signal("matcher", signal.SIGCONT)
        exchange.wait_ready("binary-0")
        assert exchange.ask("order.pending", 1, "BTCUSDT", 0, 100)[1]["result"]["total"] == 51
        with BinaryClient(*address) as client:
            assert put_through(client, 1) == 52


def test_a_port_that_is_taken_is_one_sentence_with_a_remedy(exchange, tmp_path):
    other = Exchange(tmp_path / "other", port=exchange.settings.http.port)
    try:
        for name in ("journaler", "matcher", "gateway-0"):
            other.start(name)
        assert other.running["gateway-0"].wait(20) == 1
        port = exchange.settings.http.port
        assert other.fatal_lines()[-1]["text"] == (
            f"cannot listen on 127.0.0.1:{port}: Address already in use: stop what serves it, or choose another with"
            " --http HOST:PORT")
        other.stop()
    finally:
        segments.unlink(memory_id(other.data))
    assert exchange.ask("asset.list")[0] == 200


def test_a_second_gateway_of_one_index_names_the_first(exchange):
    first = exchange.running["gateway-0"]
    second = exchange.start("gateway-0")
    assert second.wait(20) == 1
    assert f"gateway-0 already runs on {exchange.data} as process {first.pid}" in exchange.said("gateway-0")
    exchange.running["gateway-0"] = first
    assert exchange.ask("asset.list")[0] == 200


@pytest.mark.parametrize("module, arguments, words", [
    ("http", ("--index", "1"), "--index must be from 0 to 0, as [http] gateways says"),
    ("binary", ("--index", "0"), "--index must be from 0 to -1, as [binary] gateways says"),
    ("http", ("--index", "0", "--config", "missing.toml"), "there is no file"),
])
def test_what_cannot_be_started_says_why(tmp_path, module, arguments, words):
    exchange = Exchange(tmp_path / "data")
    ended = subprocess.run([sys.executable, "-m", f"gateways.{module}", "--config", exchange.config_file, "--data",
                            exchange.data, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1
    assert words in ended.stderr and "Traceback" not in ended.stderr
