"""A journaler in a test: real files and shared memory, the process around it and the matcher before it made up."""
import errno
import os
import shutil
import subprocess
import types
import uuid
from contextlib import contextmanager

import numpy as np
import pytest

from pipeline import journal, segment_file
from pipeline.chain import SLOT_BYTES
from pipeline.journaling import Journaler
from pipeline.release import (
    CURSOR,
    END,
    FOLLOWABLE_WORD,
    RELEASED_POSITIONS,
    REPLY_TAILS,
    RING_HEAD,
    STAGED_SLOTS,
    SYNCED_WORD,
    journal_word,
)
from pipeline.segment_file import HEADER_BYTES, SEAL, SEAL_OFFSET
from shm import segments
from shm.process import memory_id
from shm.records import CONFIGURATION_GATEWAY
from shm.segments import CommandWord, CounterWord, EventWord, JournalWord, ReplyWord, RingSizes, Role
from tests.fake_matcher import FakeMatcher

RINGS = RingSizes(gateways=2, command_slots=64, reply_slots=128, journal_slots=128, event_slots=64)
SEGMENT_BYTES = HEADER_BYTES + 1000 * SLOT_BYTES
STEP_NAMES = {                 # those of the model
    SYNCED_WORD: "synced word", FOLLOWABLE_WORD: "followable word", REPLY_TAILS: "reply tails",
    RELEASED_POSITIONS: "released positions", RING_HEAD: "ring head"}
MODES = ("always", "interval", "none")


class Killed(Exception):
    """The journaler ends here as by kill -9: it does nothing more, and nobody closes anything."""


class StandIn:
    """What the journaler needs of its process."""
    name, role, stopping = "journaler", int(Role.JOURNALER), False

    def __init__(self, data, memory):
        self.data, self.memory, self.counters = data, memory, memory.counters.words[int(Role.JOURNALER)]

    def beat(self):
        self.counters[CounterWord.HEARTBEAT_NS] += 1


class World:
    """A data directory with shared memory, a matcher and one journaler after the other."""

    def __init__(self, data, sizes=RINGS):
        self.data, self.sizes, self.instance = data, sizes, uuid.uuid4()
        (data / "run").mkdir(parents=True)
        (data / "instance").write_text(f"{self.instance}\n")
        self.generation, self.matcher, self.journaler = 0, None, None
        self.renew_memory()

    @property
    def directory(self):
        return self.data / "journal"

    def renew_memory(self):
        """As a reboot: all rings anew."""
        self.generation += 1
        self.memory = segments.create(memory_id(self.data), self.sizes, self.generation)

    def start(self, mode="always", interval_ms=3_600_000, segment_bytes=SEGMENT_BYTES):
        """A new journaler, with its next segment ready. Of the one before, nothing is left but its files and words."""
        self.bury()
        self.journaler = Journaler(StandIn(self.data, self.memory), types.SimpleNamespace(
            sync=mode, sync_interval_ms=interval_ms, segment_bytes=segment_bytes))
        self.journaler.start()
        self.journaler.next_segment.wait()
        return self.journaler

    def bury(self):
        """Close the descriptors of a journaler that does nothing more, as its death would."""
        if self.journaler is not None:
            dead = self.journaler
            dead.next_segment.wait()
            for bell in (dead._bell, dead._matcher_bell, dead._publisher_bell, *dead._gateway_bells):
                os.close(bell)
            if dead.segment is not None:
                os.close(dead.segment._descriptor)

    def open(self, mode="always", **options):
        """A new journaler, and a matcher behind it that goes on where the journal ends."""
        journaler = self.start(mode, **options)
        self.matcher = FakeMatcher(self.memory)
        found = journal.spans(self.directory, self.instance)
        self.matcher.sequence, self.matcher.chain = found.end_sequence, np.uint64(found.end_chain)
        return journaler

    def drain(self):
        """All that the ring holds, through do_work."""
        while self.journaler.do_work() or self.journaler.span[END] != journal_word(self.memory.journal.words, CURSOR):
            self.journaler.next_segment.wait()

    def word(self, word, gateway=0):
        segment = {JournalWord: self.memory.journal, EventWord: self.memory.events, CommandWord: self.memory.commands,
                   ReplyWord: self.memory.replies}[type(word)]
        return int(segment.words[gateway, word])

    def words(self):
        """Every word that the journaler moves."""
        found = {name: self.word(word) for name, word in {
            "synced": JournalWord.SYNCED, "followable": JournalWord.FOLLOWABLE, "head": JournalWord.HEAD,
            "opened": JournalWord.OPENED, "visible": EventWord.VISIBLE}.items()}
        for gateway in range(self.sizes.gateways):
            found[f"reply tail {gateway}"] = self.word(ReplyWord.TAIL, gateway)
            found[f"released {gateway}"] = self.word(CommandWord.RELEASED, gateway)
        return found

    def sequences(self):
        return [int(record["sequence"]) for record, _ in journal.records(self.directory, self.instance)]


def trace(journaler, see):
    """Call `see(name)` after each step of this journaler, the write of a span among them, from now on taken one by one.
    """
    write, sync, publish = journaler._write, journaler._sync, journaler._publish

    def seen_write():
        entries = write()
        if entries and journaler.span[STAGED_SLOTS] > 0:
            see("write")
        return entries

    def seen_sync():
        sync()
        see("sync")

    def seen_publish(steps):
        for step in steps:
            publish(np.array([step]))
            see(STEP_NAMES[step])
    journaler._write, journaler._sync, journaler._publish = seen_write, seen_sync, seen_publish


class Disk:
    """What is on disk, as the calls of the segment files promise it: watched through the `os` they use."""

    def __init__(self, world, monkeypatch):
        self.world, self.synced, self.names, self.failed = world, {}, set(), set()
        for name in ("fdatasync", "fsync"):
            monkeypatch.setattr(segment_file.os, name, self._watch(getattr(os, name)))

    def _watch(self, real):
        def sync(descriptor):
            stat = os.fstat(descriptor)
            if os.path.isdir(f"/proc/self/fd/{descriptor}"):
                self.names |= {path.name for path in self.world.directory.glob("*.journal")}
            else:
                assert stat.st_ino not in self.failed, "a file was synced again after its sync had failed"
                with open(f"/proc/self/fd/{descriptor}", "rb") as file:
                    self.synced[stat.st_ino] = file.read()
            return real(descriptor)
        return sync

    def survivors(self, rng):
        """{name: content} of the segments after a power cut that keeps what was synced and any part of the rest."""
        kept = {}
        for path in sorted(self.world.directory.glob("*.journal")):
            if path.name not in self.names and rng.random() < 0.5:
                continue
            old, new = self.synced[path.stat().st_ino], path.read_bytes()
            content = bytearray(old)
            if rng.random() < 0.5:
                content[SEAL_OFFSET:SEAL_OFFSET + SEAL.itemsize] = new[SEAL_OFFSET:SEAL_OFFSET + SEAL.itemsize]
            for offset in range(HEADER_BYTES, len(old), SLOT_BYTES):
                if rng.random() < 0.6:
                    content[offset:offset + SLOT_BYTES] = new[offset:offset + SLOT_BYTES]
                elif rng.random() < 0.3:
                    half = offset + rng.randrange(SLOT_BYTES)
                    content[offset:half] = new[offset:half]
            kept[path.name] = bytes(content)
        return kept

    def sequence(self):
        """How far the journal reaches with nothing but what is on disk."""
        scratch = self.world.data / "surely"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        for path in self.world.directory.glob("*.journal"):
            if path.name in self.names:
                (scratch / path.name).write_bytes(self.synced[path.stat().st_ino])
        return journal.spans(scratch, self.world.instance).end_sequence


def check_words(world, disk, mode):
    """Nothing is shown that may not be: the promise of each mode, for the words as they are now."""
    written = journal.spans(world.directory, world.instance).end_sequence
    durable = disk.sequence()
    assert world.word(JournalWord.SYNCED) <= durable
    shown = durable if mode == "always" else written
    followable = written if mode == "none" else durable
    assert world.word(JournalWord.FOLLOWABLE) <= followable
    for cursor, sequence, gateway, position, reply_end in world.matcher.stamps:
        if gateway != CONFIGURATION_GATEWAY:
            if world.word(ReplyWord.TAIL, gateway) >= reply_end:
                assert sequence <= shown, "a reply is visible, but its record is not where it should be"
            if world.word(CommandWord.RELEASED, gateway) >= position:
                assert world.word(ReplyWord.TAIL, gateway) >= reply_end, "released before its reply is visible"
        if world.word(JournalWord.HEAD) >= cursor:
            assert sequence <= (written if mode == "none" else durable), "left the ring, but not on disk"
            if gateway != CONFIGURATION_GATEWAY:
                assert world.word(CommandWord.RELEASED, gateway) >= position, "left the ring before it was released"


def some_load(matcher, rng, most):
    """A few commands of either kind, published at once or one by one."""
    for _ in range(rng.randrange(most)):
        payload = bytes(rng.choice((0, 0, 0, 40, 300)))
        if matcher.room <= 3:
            break
        if rng.random() < 0.7:
            matcher.write(rng.choice((0, 0, 1, CONFIGURATION_GATEWAY)), payload, publish=rng.random() < 0.5)
        else:
            matcher.read(rng.randrange(2), publish=rng.random() < 0.5)
    matcher.publish()


@contextmanager
def mounted(place, size):
    """A file system of its own with `size` bytes."""
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)],
                          capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {made.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def broken_sync(monkeypatch, disk=None):
    def fail(descriptor):
        if disk is not None:
            disk.failed.add(os.fstat(descriptor).st_ino)
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    monkeypatch.setattr(segment_file.os, "fdatasync", fail)
