"""Snapshots of a running exchange: made on demand, started from, compared; what was paid before is not paid again."""
import json
import signal
import time
from dataclasses import replace

import pytest

from pipeline import recovery, snapshot
from shm import segments
from shm.process import memory_id
from shm.segments import CounterWord
from tests.launched import wait_for
from tools import cli, local_exchange
from tools.api import CallRefused
from tools.client import Client
from tools.kill_test import settings_of
from tools.local_exchange import running


@pytest.fixture(scope="module", autouse=True)
def kernels():
    local_exchange.prepare_kernels()


@pytest.fixture
def exchange(tmp_path):
    settings = settings_of("always", True, 1)
    settings = replace(settings, snapshots=replace(settings.snapshots, every_operations=1000, keep=2))
    with running(tmp_path / "data", settings) as exchange:
        yield exchange


def trade(exchange, count, first=0):
    """`count` deposits, and as many orders, most of which trade."""
    with Client(exchange.url) as client:
        market = client.call("market.list")[0]
        for number in range(first, first + count):
            user = 1 + number % 7
            for asset in (market["stock"], market["money"]):
                client.call("balance.update", user, asset, "deposit", number, "1000", {})
            client.call("order.put_limit", user, market["name"], 1 + number % 2, "0.5", "10", "0.002", "0.001", "t")


def snapshot_now(exchange, path):
    assert cli.main(["snapshot", "--data", str(exchange.data), "--json", str(path)]) == 0
    return json.loads(path.read_text(encoding="utf-8"))["sequence"]


def seen(exchange):
    """What clients see."""
    with Client(exchange.url) as client:
        market = client.call("market.list")[0]["name"]
        return [client.call("asset.summary"), client.call("market.summary"),
                client.call("order.depth", market, 100, "0"), *(client.call("balance.query", user) for user in range(8)
                                                                 if user)]


def log(exchange, name):
    return (exchange.data / "log" / f"{name}.log").read_text(encoding="utf-8")


def test_a_matcher_that_is_killed_begins_at_the_newest_snapshot(exchange, tmp_path):
    trade(exchange, 40)
    sequence = snapshot_now(exchange, tmp_path / "first.json")
    trade(exchange, 10, first=40)
    before = seen(exchange)
    exchange.restart("matcher")
    assert seen(exchange) == before
    assert f"records replayed behind {sequence:020}.snapshot" in log(exchange, "matcher")
    with Client(exchange.url) as client:
        market = client.call("market.list")[0]
        with pytest.raises(CallRefused) as refused:
            client.call("balance.update", 3, market["stock"], "deposit", 2, "1000", {})
    assert refused.value.code == 10, "a business id used before a snapshot pays twice"


def test_snapshots_come_by_themselves_and_the_journal_before_them_goes(exchange):
    directory = exchange.data / recovery.SNAPSHOTS
    first = 0
    while (exchange.data / "journal" / "00000001.journal").exists():
        trade(exchange, 200, first)
        first += 200
        time.sleep(0.2)
        assert first < 10_000
    assert len(snapshot.snapshots_of(directory)) <= 3
    before = seen(exchange)
    for name in ("snapshotter", "journaler", "matcher"):
        exchange.restart(name)
    assert seen(exchange) == before
    trade(exchange, 20, first)
    for command in (("journal", "verify"), ("audit",)):
        assert cli.main([*command, "--data", str(exchange.data)]) == 0


def test_a_damaged_newest_snapshot_is_told_and_the_one_before_serves(exchange, tmp_path):
    trade(exchange, 30)
    older = snapshot_now(exchange, tmp_path / "older.json")
    trade(exchange, 30, first=30)
    newer = snapshot_now(exchange, tmp_path / "newer.json")
    path = exchange.data / recovery.SNAPSHOTS / f"{newer:020}.snapshot"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    before = seen(exchange)
    exchange.restart("matcher")
    assert seen(exchange) == before
    assert f"records replayed behind {older:020}.snapshot" in log(exchange, "matcher")
    fatal = (exchange.data / "log" / "fatal.log").read_text(encoding="utf-8")
    assert f"{path} is passed over" in fatal


def test_the_snapshotter_compares_what_it_says_with_the_matcher(exchange):
    trade(exchange, 50)
    wait_for(lambda: exchange.page("snapshotter")[CounterWord.SEQUENCE] == exchange.page("matcher")[
        CounterWord.SEQUENCE], "the snapshotter")
    assert "diverge" not in log(exchange, "snapshotter")
    # when the matcher shows another digest, by whatever error
    memory = segments.attach(memory_id(exchange.data), exchange.settings.rings)
    exchange.kill("matcher", signal.SIGSTOP)
    page = memory.counters.words[exchange.settings.role_of("matcher")]
    page[CounterWord.OUTPUT_DIGEST] += 1
    exchange.wait_until_back("snapshotter", exchange.kill("snapshotter"))
    wait_for(lambda: "the matcher and the journal diverge" in (exchange.data / "log" / "fatal.log").read_text(), "it")
    exchange.kill("matcher", signal.SIGCONT)
