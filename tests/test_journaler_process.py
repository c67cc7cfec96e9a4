"""The journaler as a process: it serves, sleeps, stops, and comes back after kill -9 with nothing lost or doubled."""
import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import types
from contextlib import contextmanager

import pytest

from pipeline import journal
from pipeline.chain import SLOT_BYTES
from pipeline.segment_file import HEADER_BYTES
from shm import configuration, doorbell, segments
from shm.process import memory_id
from shm.segments import CommandWord, CounterWord, EventWord, JournalWord, ReplyWord, RingSizes, Role
from tests.fake_matcher import FakeMatcher, History, write_segment
from tests.journaler_world import MODES, SEGMENT_BYTES, World, mounted, some_load
from tests.launched import KERNELS, ROOT, WAIT_SECONDS, wait_for
from tools import local_exchange

RINGS = RingSizes(gateways=2, command_slots=64, reply_slots=256, journal_slots=128, event_slots=64)
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


@pytest.fixture(scope="module", autouse=True)
def kernels():
    local_exchange.prepare_kernels()


class Running:
    """A journaler process on a world's data directory; the test holds the other end of the rings."""

    def __init__(self, world, sync="always", program=("-m", "pipeline.journaler"), stderr=None):
        self.world, self.config = world, world.data / "exchange.toml"
        self.config.write_text(SETTINGS.format(
            sync=sync, segment_bytes=configuration.segment_bytes_needed(world.sizes), kernels=KERNELS))
        with open(world.data / "journaler.log", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *program, "--config", str(self.config), "--data", str(world.data)], cwd=ROOT,
                stderr=stderr or log)

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


@contextmanager
def runs(data):
    world = World(data, RINGS)
    started = []

    def start(*arguments, **options):
        started.append(Running(world, *arguments, **options))
        return started[-1]
    try:
        yield types.SimpleNamespace(world=world, start=start)
    finally:
        for running in started:
            if running.process.poll() is None:
                running.process.kill()
                running.process.wait()
        segments.unlink(memory_id(world.data))


@pytest.fixture
def run(tmp_path):
    with runs(tmp_path / "data") as run:
        yield run


@pytest.fixture
def run_on_small_disk(tmp_path):
    """All of the data directory on a disk with room for two segments and a little."""
    with (mounted(tmp_path / "disk", 2 * configuration.segment_bytes_needed(RINGS) + 65536) as disk,
          runs(disk / "data") as run):
        yield run


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


def test_a_disk_that_is_full_to_the_last_byte_ends_nothing_but_writes(run_on_small_disk):
    world = run_on_small_disk.world
    running = run_on_small_disk.start()
    wait_for(running.is_ready, "ready")
    world.matcher = FakeMatcher(world.memory)
    bell = doorbell.open_bell(world.data / "run", "journaler")

    def entered(command):
        command(0)
        doorbell.ring(bell)
        wait_for(lambda: all_out(world), "the reply")
    # given a second segment, and then not a byte more, also for what is said of that
    entered(world.matcher.write)
    wait_for((world.directory / "next.prepared").exists, "the next segment")
    fill(world.data / "other")
    while world.word(JournalWord.REFUSING) == 0:
        assert world.matcher.sequence < 2000
        entered(world.matcher.write)
    assert world.word(JournalWord.REFUSING) == errno.ENOSPC
    # then what has entered is still let out, reads go on, and the process is the same
    for _ in range(100):
        entered(world.matcher.write)
        entered(world.matcher.read)
    assert running.is_ready() and world.word(JournalWord.REFUSING) == errno.ENOSPC
    # when there is room again, then writes are taken again
    (world.directory / "00000001.journal").unlink()
    wait_for(lambda: world.word(JournalWord.REFUSING) == 0, "room")
    entered(world.matcher.write)
    assert running.end(signal.SIGTERM) == 0
    os.close(bell)


def fill(path):
    with open(path, "wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError as problem:
                assert problem.errno == errno.ENOSPC


def test_a_stderr_that_nobody_reads_ends_nothing(run):
    reader, writer = os.pipe()
    os.close(reader)
    running = run.start(stderr=writer)
    os.close(writer)
    wait_for(running.is_ready, "ready")
    assert running.end(signal.SIGTERM) in (0, 120)  # Python's own word for a stderr that takes no last flush


def test_trouble_with_anything_but_the_journal_is_not_called_trouble_with_the_journal(run):
    running = run.start(program=("-c", """
from pipeline import journaler
from shm.process import Process

def broken(process):
    raise BrokenPipeError(32, "Broken pipe")
Process.ready = broken
journaler.main()
"""))
    assert running.process.wait(WAIT_SECONDS) == 1
    assert "BrokenPipeError" in running.said() and "cannot be written" not in running.said()
