"""The journaler as a process: it serves, sleeps, stops, and comes back after kill -9 with nothing lost or doubled."""
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import types

import pytest

from pipeline import journal
from pipeline.chain import SLOT_BYTES
from pipeline.segment_file import HEADER_BYTES
from shm import configuration, doorbell, segments
from shm.segments import CommandWord, CounterWord, EventWord, JournalWord, ReplyWord, RingSizes, Role
from tests.fake_matcher import FakeMatcher, History, write_segment
from tests.journaler_world import MODES, SEGMENT_BYTES, World, some_load
from tests.launched import KERNELS, ROOT, WAIT_SECONDS, wait_for

SETTINGS = """
[journal]
sync = "{sync}"
sync_interval_ms = 20
segment_bytes = {segment_bytes}
[rings]
command_slots = 64
reply_slots = 256
journal_slots = 128
event_slots = 64
[http]
gateways = 2
[cache]
directory = "{kernels}"
[[assets]]
name = "BTC"
prec_save = 20
[[assets]]
name = "USDT"
prec_save = 20
[[markets]]
name = "BTCUSDT"
stock = "BTC"
money = "USDT"
stock_prec = 8
money_prec = 8
min_amount = "0.001"
"""


class Running:
    """A journaler process on a world's data directory; the test holds the other end of the rings."""

    def __init__(self, world, sync="always", **options):
        self.world, self.config = world, world.data / "exchange.toml"
        self.config.write_text(SETTINGS.format(
            sync=sync, segment_bytes=configuration.segment_bytes_needed(world.sizes), kernels=KERNELS))
        with open(world.data / "journaler.log", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.journaler", "--config", str(self.config),
                 "--data", str(world.data)], cwd=ROOT, stderr=log, **options)

    @property
    def counters(self):
        return self.world.memory.counters.words[int(Role.JOURNALER)]

    def is_ready(self):
        assert self.process.poll() is None, (self.world.data / "journaler.log").read_text()
        return (self.counters[CounterWord.READY], self.counters[CounterWord.PID]) == (1, self.process.pid)

    def end(self, number):
        self.process.send_signal(number)
        return self.process.wait(WAIT_SECONDS)

    def said(self):
        return (self.world.data / "journaler.log").read_text()


@pytest.fixture
def run(tmp_path):
    world = World(tmp_path / "data", RingSizes(2, 64, 256, 128, 64))
    started = []

    def start(*arguments, **options):
        started.append(Running(world, *arguments, **options))
        return started[-1]
    yield types.SimpleNamespace(world=world, start=start)
    for running in started:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait()
    segments.unlink(world.instance)


def submit(world, bell, rng, load=some_load):
    """A few commands, and the bell."""
    load(world.matcher, rng, 12)
    doorbell.ring_if_asleep(world.memory.sleepers.words, int(Role.JOURNALER), bell)


def all_out(world):
    return all(world.word(CommandWord.RELEASED, gateway) == position
               for gateway, position in world.matcher.positions.items())


@pytest.mark.parametrize("sync", MODES)
def test_a_journaler_process_serves_sleeps_and_stops(run, sync):
    world, rng = run.world, random.Random(1)
    running = run.start(sync)
    wait_for(running.is_ready, "ready")
    world.matcher = FakeMatcher(world.memory)
    bell = doorbell.open_bell(world.data / "run", "journaler")
    # given commands now and then, so that it sleeps in between
    for _ in range(100):
        submit(world, bell, rng)
        wait_for(lambda: all_out(world), "the replies")
    wait_for(lambda: world.word(JournalWord.HEAD) == world.matcher.cursor, "the ring's head")
    assert running.counters[CounterWord.RECORDS] == len(world.matcher.stamps)
    assert 1 <= running.counters[CounterWord.LARGEST_BATCH] <= 12
    assert running.counters[CounterWord.SEQUENCE] == world.word(JournalWord.SYNCED)
    assert sync == "none" or world.word(JournalWord.SYNCED) == world.matcher.sequence
    # when nothing happens, it wakes once a second to beat
    time.sleep(0.2)
    wakeups, beat = (int(running.counters[word]) for word in (CounterWord.WAKEUPS, CounterWord.HEARTBEAT_NS))
    time.sleep(2.5)
    assert running.counters[CounterWord.WAKEUPS] - wakeups in (2, 3)
    assert running.counters[CounterWord.HEARTBEAT_NS] - beat > 1_900_000_000
    # when it is told to stop with work in the ring, it does the work
    some_load(world.matcher, rng, 12)
    assert running.end(signal.SIGTERM) == 0, running.said()
    assert all_out(world) and world.sequences() == list(range(1, world.matcher.sequence + 1))
    os.close(bell)


@pytest.mark.parametrize("sync", MODES)
def test_kill_9_under_load_again_and_again_loses_and_doubles_nothing(run, sync):
    world, rng = run.world, random.Random(2)
    running = run.start(sync)
    wait_for(running.is_ready, "ready")
    world.matcher = FakeMatcher(world.memory)
    bell = doorbell.open_bell(world.data / "run", "journaler")
    last, chains = world.words(), []
    for _ in range(6):
        end = time.monotonic() + rng.uniform(0.05, 0.3)
        while time.monotonic() < end:
            before = world.matcher.sequence
            submit(world, bell, rng)
            chains += [None] * (world.matcher.sequence - before)
            now = world.words()
            assert all(now[word] >= last[word] for word in now), (last, now)
            last = now
        running.end(signal.SIGKILL)
        some_load(world.matcher, rng, 8)
        running = run.start(sync)
        wait_for(running.is_ready, "ready again")
    wait_for(lambda: all_out(world), "the replies")
    wait_for(lambda: world.word(JournalWord.HEAD) == world.matcher.cursor, "the ring's head")
    found = journal.spans(world.directory, world.instance)
    assert (found.end_sequence, found.end_chain) == (world.matcher.sequence, int(world.matcher.chain))
    assert world.sequences() == list(range(1, world.matcher.sequence + 1))
    assert world.word(EventWord.VISIBLE) == world.matcher.event_end
    assert not (world.data / "log" / "fatal.log").exists()
    assert running.end(signal.SIGTERM) == 0
    os.close(bell)


def fatal_text(world):
    line, = (world.data / "log" / "fatal.log").read_text().splitlines()
    return json.loads(line)["text"]


def test_damage_stops_the_process_with_file_offset_and_advice(run):
    history = History()
    path = write_segment(run.world.directory, run.world.instance, 1,
                         [*history.records(3), history.record(known_synced=3)], SEGMENT_BYTES)
    content = bytearray(path.read_bytes())
    content[HEADER_BYTES + SLOT_BYTES + 1] ^= 4
    path.write_bytes(content)
    running = run.start()
    assert running.process.wait(WAIT_SECONDS) == 1
    assert f"{path} at offset {HEADER_BYTES + SLOT_BYTES}: the record of sequence 2 is" in fatal_text(run.world)
    assert run.world.word(JournalWord.OPENED) == 0


def test_a_disk_that_cannot_be_written_ends_the_process_and_keeps_the_reply_back(run):
    # given a limit on the size of files that leaves room for the next segment but is lowered later
    world = run.world
    running = run.start()
    wait_for(running.is_ready, "ready")
    world.matcher = FakeMatcher(world.memory)
    bell = doorbell.open_bell(world.data / "run", "journaler")
    world.matcher.write(0)
    doorbell.ring(bell)
    wait_for(lambda: all_out(world), "the reply")
    resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, (HEADER_BYTES + SLOT_BYTES, -1))
    world.matcher.write(0)
    doorbell.ring(bell)
    assert running.process.wait(WAIT_SECONDS) == 1
    assert "the journal cannot be written: [Errno 27] File too large" in running.said()
    assert world.word(ReplyWord.TAIL) == 3 and world.word(JournalWord.HEAD) == 1
    # when the next one may write, it is let out
    running = run.start()
    wait_for(lambda: all_out(world), "the reply")
    assert world.sequences() == [1, 2]
    assert running.end(signal.SIGTERM) == 0
    os.close(bell)
