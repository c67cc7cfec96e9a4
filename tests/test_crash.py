"""Whole crashes of a real exchange: everything killed at once, a reboot, two starts, a stuck process, a torn journal, a
clock that was set back. What was answered before is there afterwards, exactly once.
"""
import os
import shutil
import signal
import subprocess
import sys
import time
from copy import copy
from dataclasses import replace
from decimal import Decimal

import numpy as np
import posix_ipc
import pytest

from pipeline import journal
from pipeline.chain import SLOT_BYTES, chain_value
from pipeline.digest import state_digest
from pipeline.journal import JournalDamaged
from pipeline.replay import limits_in, replay
from pipeline.replica import Replica
from pipeline.seeding import limits_of
from pipeline.segment_file import HEADER_BYTES, SEAL, SEAL_OFFSET
from shm import role_lock, segments
from shm.process import instance_of, memory_id
from shm.records import JOURNAL, Side
from shm.segments import CounterWord
from tests.fake_matcher import write_segment
from tests.launched import is_running, wait_for
from tools import local_exchange
from tools.client import Client
from tools.kill_audit import Audit
from tools.kill_load import Load
from tools.kill_test import Evidence, settings_of, stop
from tools.local_exchange import LAUNCHER, PROJECT, LocalExchange, running
from tools.report import Failed

PROCESSES = ("gateway-0", "matcher", "journaler", "watcher")
CLIENTS, RATE = 24, 1500
HOUR_NS = 3_600 * 10**9


@pytest.fixture(scope="module", autouse=True)
def kernels():
    local_exchange.prepare_kernels()


def settings(sync="always", **watcher):
    made = settings_of(sync, False, 1)
    return replace(made, watcher=replace(made.watcher, **watcher))


def begin_load(exchange, seconds=0.7, after=None):
    """A Load that has been at work for a while; `after` another one on the same data."""
    seed, clock = (31, 0) if after is None else (after.seed + 1, after.clock)
    load = Load(exchange.settings, seed, CLIENTS, RATE, clock)
    load.start()
    wait_for(lambda: load.check() or load.trading == CLIENTS, "the first deposits")
    time.sleep(seconds)
    return load


def check(exchange, live, *loads, told=()):
    """The audit of what the loads were answered finds nothing but problems that begin with one of `told`."""
    operations = [operation for load in loads for operation in load.operations]
    audit = Audit(Evidence(exchange, operations, [], [], live))
    unexpected = [tale for tale in audit.story if not any(words in tale["what"] for words in told)]
    assert not unexpected, unexpected
    assert (audit.lost, audit.doubled, audit.digest_equal, audit.money_exact) == (0, 0, True, True)
    assert audit.summary()["answered"] > 500
    return audit


def go_on(exchange, load, told=()):
    """A second load on an exchange that came back, then the audit of both."""
    later = begin_load(exchange, after=load)
    assert later.stop() == []
    return check(exchange, stop(exchange), load, later, told=told)


def processes_of(exchange):
    """The process ids of everything that an exchange runs, its launcher first."""
    supervisord = int((exchange.data / "run" / "supervisord.pid").read_text())
    return [launcher_of(exchange), supervisord, *map(exchange.pid, PROCESSES)]


def launcher_of(exchange):
    return role_lock.holders(exchange.data)["exchange"]


def answers(exchange, users=range(1, 1 + 3 * CLIENTS)):
    """What can be asked about users and markets."""
    client = Client(exchange.url)
    markets = [market["name"] for market in client.call("market.list")]
    found = [
        client.call("asset.summary"), client.call("market.summary"),
        [client.call("order.depth", market, 101, "0") for market in markets],
        [client.call("order.book", market, side, 0, 101) for market in markets for side in (1, 2)],
        [client.call("balance.query", user) for user in users],
        [client.call("order.pending", user, market, 0, 101) for user in users for market in markets],
    ]
    client.close()
    return found


# --- all at once

@pytest.mark.parametrize("sync, memory", [
    ("always", "kept"), ("always", "lost"), ("interval", "kept"), ("interval", "lost"), ("none", "lost")])
def test_everything_killed_at_once_loses_nothing_that_was_answered(sync, memory, tmp_path):
    exchange = LocalExchange(tmp_path / "data", settings(sync)).start()
    load = begin_load(exchange)
    pids = processes_of(exchange)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not any(map(is_running, pids)), "the end of all")
    load.stop()
    generation = segments.attach(memory_id(exchange.data), exchange.settings.rings, write=False).generation
    if memory == "lost":
        segments.unlink(memory_id(exchange.data))
    with running(exchange.data, exchange.settings) as again:
        renewed = segments.attach(memory_id(again.data), again.settings.rings, write=False).generation
        assert (renewed > generation) == (memory == "lost")
        go_on(again, load)


@pytest.mark.parametrize("removed", ["all", "one"])
def test_segments_removed_while_in_use_are_made_anew_all_together(removed, tmp_path):
    with running(tmp_path / "data", settings()) as exchange:
        load, instance = begin_load(exchange), memory_id(exchange.data)
        generation = segments.attach(instance, exchange.settings.rings, write=False).generation
        if removed == "all":
            segments.unlink(instance)
        else:
            posix_ipc.unlink_shared_memory(segments.posix_name(instance, "replies"))

        def is_renewed():
            try:
                return segments.attach(instance, exchange.settings.rings, write=False).generation > generation
            except segments.SegmentError:
                return False
        wait_for(is_renewed, "new segments")
        load.stop()
        exchange.wait_until_answering()
        told = "somebody removed the shared memory while it was used"
        go_on(exchange, load, told=[told])
        assert told in (exchange.data / "log" / "fatal.log").read_text(encoding="utf-8")


def test_a_killed_supervisord_leaves_nobody_behind_and_nothing_is_lost(tmp_path):
    with running(tmp_path / "data", settings()) as exchange:
        load = begin_load(exchange)
        pids = processes_of(exchange)
        os.kill(pids[1], signal.SIGKILL)
        wait_for(lambda: not any(map(is_running, pids)), "the end of all", seconds=5)
        load.stop()
        assert "supervisord ended by SIGKILL, and the exchange with it" in exchange.said()
        assert not role_lock.holders(exchange.data)
    with running(exchange.data, exchange.settings) as again:
        go_on(again, load)


def test_stopping_under_load_loses_nothing_that_was_answered(tmp_path):
    with running(tmp_path / "data", settings()) as exchange:
        load = begin_load(exchange)
        live = stop(exchange)
        load.stop()
        assert exchange.said().endswith("Everything that was answered is in the journal.")
        check(exchange, live, load)
        assert live[2] != 0, "the matcher was not stopped in order"


def test_after_a_reboot_the_answers_are_the_same(tmp_path):
    with running(tmp_path / "data", settings()) as exchange:
        load = begin_load(exchange)
        load.stop()
        before = answers(exchange)
    with pytest.raises(segments.SegmentError):
        segments.attach(memory_id(exchange.data), exchange.settings.rings)
    with running(exchange.data, exchange.settings) as again:
        assert answers(again) == before
        go_on(again, load)


# --- two of one kind

def test_a_second_start_under_load_is_refused_and_disturbs_nobody(tmp_path):
    with running(tmp_path / "data", settings()) as exchange:
        load = begin_load(exchange)
        second = subprocess.run(
            [*LAUNCHER, "--config", str(exchange.data / "exchange.toml"), "--data", str(exchange.data)], cwd=PROJECT,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
        assert second.returncode == 1
        assert f"exchange already runs on {exchange.data} as process {launcher_of(exchange)}" in second.stdout
        assert load.stop() == []
        check(exchange, stop(exchange), load)


def test_a_stuck_matcher_keeps_its_role_until_the_watcher_ends_it(tmp_path):
    with running(tmp_path / "data", settings(stuck_after_ms=4000)) as exchange:
        load = begin_load(exchange)
        stuck = exchange.kill("matcher", signal.SIGSTOP)
        second = subprocess.run(
            [sys.executable, "-m", "pipeline.matcher", "--config", str(exchange.data / "exchange.toml"), "--data",
             str(exchange.data)], cwd=PROJECT, stderr=subprocess.PIPE, text=True, timeout=60)
        assert second.returncode == 1
        assert f"matcher already runs on {exchange.data} as process {stuck}" in second.stderr
        exchange.wait_until_back("matcher", stuck)
        assert not is_running(stuck)
        exchange.wait_until_answering()
        time.sleep(0.5)
        assert load.stop() == []
        check(exchange, stop(exchange), load, told=(f"as process {stuck}", f"matcher (process {stuck}) is stuck"))


def test_a_copied_data_directory_runs_beside_the_original(tmp_path):
    with running(tmp_path / "original", settings()) as exchange:
        client = Client(exchange.url)
        client.balance_update(1, "BTC", "both", 1, 10)
        shutil.copytree(exchange.data, tmp_path / "copy", ignore=shutil.ignore_patterns("run", "log"))
        with running(tmp_path / "copy", settings()) as copy:
            other = Client(copy.url)
            for number in (1, 2, 3):
                client.balance_update(1, "BTC", "original", number, number)
                other.balance_update(1, "BTC", "copy", number, Decimal(number) / 10)
            assert client.balance_query(1, "BTC")["BTC"].available == 16
            assert other.balance_query(1, "BTC")["BTC"].available == Decimal("10.6")
            for each in (client, other):
                each.close()


def test_a_configuration_that_is_edited_while_it_runs_holds_from_the_next_start_on(tmp_path):
    with running(tmp_path / "data", settings()) as exchange:
        file = exchange.data / "exchange.toml"
        edited = file.read_text(encoding="utf-8").replace('sync = "always"', 'sync = "none"')
        file.write_text(f"{edited}[[half a line", encoding="utf-8")
        for name in PROCESSES:
            exchange.restart(name)
        load = begin_load(exchange)
        assert load.stop() == []
        check(exchange, stop(exchange), load)


# --- the journal's end

class Written:
    """A stopped exchange with a short journal, whose last record has several slots."""

    def __init__(self, data):
        self.settings = settings()
        with running(data, self.settings) as exchange:
            client = Client(exchange.url)
            for number in range(10):
                client.balance_update(1, "BTC", "torn", number, 10)
                client.order_put_limit(1, "BTCUSDT", Side.ASK, 1, 100 + number, 0, 0, "torn")
            self.before = answers(exchange, users=(1, 2))
            client.balance_update(2, "ETH", "torn", 1, 1, {"note": "x" * 600})
            client.close()
        self.data, self.instance = data, instance_of(data)
        found = self.journal()
        self.path = found.spans[-1].path
        self.sealed = self.path.read_bytes()
        with open(self.path, "r+b") as file:  # as if the power had gone before it was noted that all is on disk
            file.seek(SEAL_OFFSET)
            file.write(bytes(SEAL.itemsize))
        self.end = HEADER_BYTES + found.spans[-1].end_slot * SLOT_BYTES
        self.sequence = found.end_sequence
        self.records = [record.copy() for record, _payload in journal.records(data / "journal", self.instance)]
        self.start = self.end - int(self.records[-1]["record_slots"]) * SLOT_BYTES

    def journal(self):
        return journal.spans(self.data / "journal", self.instance)

    def digest(self):
        """Of the state that the journal leads to."""
        found = self.journal()
        replica = Replica(limits_in(found, limits_of(self.settings)))
        replay(replica, found, np.zeros(1, np.int64), 0)
        return int(state_digest(replica.state))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return Written(tmp_path_factory.mktemp("torn") / "data")


@pytest.fixture
def torn(written, tmp_path):
    """A copy of it to be damaged."""
    made = copy(written)
    made.data = tmp_path / "data"
    made.path = made.data / "journal" / written.path.name
    shutil.copytree(written.data, made.data, ignore=shutil.ignore_patterns("*.bell"))
    return made


DAMAGES = {
    "the rest is zeros": lambda content, at, end: content[:at] + bytes(len(content) - at),
    "the file ends": lambda content, at, end: content[:at],
    "one byte is another": lambda content, at, end: content[:at] + bytes([content[at] ^ 0x40]) + content[at + 1:],
    "the rest is of something else": lambda content, at, end: content[:at] + b"\x07" * (end - at) + content[end:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_last_record_torn_at_any_byte_is_left_out_and_all_before_it_stands(damage, torn):
    content, digests = torn.path.read_bytes(), set()
    assert torn.start + 4 * SLOT_BYTES == torn.end and torn.records[-1]["known_synced"] < torn.sequence
    for at in range(torn.start, torn.end):
        torn.path.write_bytes(DAMAGES[damage](content, at, torn.end))
        found = torn.journal()
        if found.end_sequence == torn.sequence:
            assert damage == "the rest is zeros" and not any(content[at:torn.end]), at  # they were zeros before
            continue
        assert found.end_sequence == torn.sequence - 1, at
        assert found.end_chain == torn.records[-1]["previous"]
        if at % 100 == 0:
            digests.add(torn.digest())
    assert len(digests) == 1


def test_an_exchange_starts_on_a_torn_tail_and_tells_of_it(torn):
    content = torn.path.read_bytes()
    torn.path.write_bytes(content[:torn.end - 700] + bytes(len(content) - torn.end + 700))
    with running(torn.data, torn.settings) as exchange:
        assert answers(exchange, users=(1, 2)) == torn.before
        with Client(exchange.url) as client:
            client.balance_update(2, "ETH", "torn", 1, 1)  # it was lost: no repeat
        assert f"lost before it was synced, not part of the journal: {torn.path} at offset {torn.start}" \
            in (torn.data / "log" / "journaler.log").read_text()
    assert torn.journal().end_sequence == torn.sequence


def test_damage_to_a_record_that_is_known_to_be_synced_stops_the_start_with_file_and_offset(torn):
    content = torn.path.read_bytes()
    known = int(torn.records[-1]["known_synced"])
    at = HEADER_BYTES + sum(int(record["record_slots"]) for record in torn.records[:known - 1]) * SLOT_BYTES
    for place in range(at, at + SLOT_BYTES, 7):
        torn.path.write_bytes(content[:place] + bytes([content[place] ^ 0x40]) + content[place + 1:])
        with pytest.raises(JournalDamaged) as refusal:
            torn.journal()
        assert (refusal.value.path, refusal.value.offset, refusal.value.sequence) == (torn.path, at, known)
    with pytest.raises(Failed) as failure, running(torn.data, torn.settings):
        pass
    assert f"{torn.path} at offset {at}: the record of sequence {known} is damaged or missing" in str(failure.value)
    assert "restore this file from a copy" in str(failure.value)


def test_damage_to_the_last_record_of_an_exchange_that_was_stopped_in_order_stops_the_start(torn):
    at = torn.end - 700
    torn.path.write_bytes(torn.sealed[:at] + bytes([torn.sealed[at] ^ 0x40]) + torn.sealed[at + 1:])
    with pytest.raises(Failed) as failure, running(torn.data, torn.settings):
        pass
    assert f"{torn.path} at offset {torn.start}: the record of sequence {torn.sequence} is damaged or missing" \
        in str(failure.value)


@pytest.mark.parametrize("sync", ["always", "none"])
def test_a_missing_end_of_the_journal_stops_a_start_on_the_rings_that_know_of_it(sync, tmp_path):
    exchange = LocalExchange(tmp_path / "data", settings(sync)).start()
    client = Client(exchange.url)
    client.balance_update(1, "BTC", "missing", 1, 10)
    exchange.restart("journaler")  # what follows is in a segment of its own
    sequence = int(exchange.page("matcher")[CounterWord.SEQUENCE])
    client.balance_update(1, "BTC", "missing", 2, 10)
    client.close()
    pids = processes_of(exchange)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not any(map(is_running, pids)), "the end of all")
    newest = max((exchange.data / "journal").glob("*.journal"))
    content = newest.read_bytes()
    newest.unlink()
    with pytest.raises(Failed) as failure, running(exchange.data, exchange.settings):
        pass
    assert f"the record of sequence {sequence + 1} is damaged or missing" in str(failure.value)
    newest.write_bytes(content)
    with running(exchange.data, exchange.settings) as again, Client(again.url) as client:
        assert client.balance_query(1, "BTC")["BTC"].available == 20


@pytest.mark.parametrize("memory", ["kept", "lost"])
def test_a_journal_that_is_not_there_any_more_stops_the_start(memory, torn):
    if memory == "kept":
        exchange = LocalExchange(torn.data, torn.settings).start()
        pids = processes_of(exchange)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not any(map(is_running, pids)), "the end of all")
    (torn.data / "journal").rename(torn.data.parent / "elsewhere")
    with pytest.raises(Failed) as failure, running(torn.data, torn.settings):
        pass
    words = {"kept": "the record of sequence 1 is damaged or missing, but everything up to sequence",
             "lost": f"{torn.data / 'journal'} has no segment, but this data directory had a journal: mount or restore"}
    assert words[memory] in str(failure.value)


# --- the clock

def test_a_clock_that_was_set_back_is_held_and_counted(torn):
    """The journal as a matcher with a clock an hour ahead wrote it."""
    span, = torn.journal().spans
    words, previous, slot, records = span.slots.copy(), np.uint64(0), span.start_slot, []
    for record in torn.records:
        behind = slot + int(record["record_slots"])
        rewritten = words[slot:behind].reshape(-1)
        fields = rewritten.view(JOURNAL)[0]
        fields["time_ns"] += HOUR_NS
        fields["previous"] = previous
        previous = fields["chain"] = np.uint64(chain_value(previous, rewritten, len(rewritten)))
        records.append(rewritten)
        slot = behind
    shutil.rmtree(torn.data / "journal")
    write_segment(torn.data / "journal", torn.instance, 1, records, torn.settings.journal.segment_bytes)
    last_ns = int(torn.records[-1]["time_ns"]) + HOUR_NS
    with running(torn.data, torn.settings) as exchange:
        with Client(exchange.url) as client:
            order = client.order_put_limit(1, "BTCUSDT", Side.ASK, 1, 500, 0, 0, "later")
            assert order.ctime == last_ns // 1000 / 10**6
            client.balance_update(1, "BTC", "torn", 100, 1)
        assert exchange.page("matcher")[CounterWord.CLOCK_STEPS] > 0
    stamps = [int(record["time_ns"]) for record, _payload in journal.records(torn.data / "journal", torn.instance)]
    assert stamps == sorted(stamps) and stamps[-2:] == [last_ns, last_ns]
