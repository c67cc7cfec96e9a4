"""POSIX shared memory: one segment a kind of ring, all of one generation, named after the data directory's instance.

A segment is a header page, then words (each alone on a pair of cache lines), then slots. Its maker stores READY last;
whoever attaches refuses another magic, layout version, instance, generation or shape in one sentence. Made by
posix_fallocate: on a small /dev/shm plain creation succeeds and the first touch kills.
"""
import mmap
import os
import uuid
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import posix_ipc

from shm import records
from shm.records import COMMAND, EVENT_BYTES, JOURNAL, LAYOUT_VERSION, REPLY_SLOT_BYTES

MAGIC = 0x31474E4148435845  # "EXCHANG1"
HEADER_BYTES = 4096
WORD_STRIDE = 16            # int64 words from one shared word to the next: 128 bytes, a pair of cache lines

HEADER = np.dtype([
    ("magic", "<u8"), ("layout", "<u4"), ("slot_bytes", "<u4"), ("generation", "<i8"),
    ("rows", "<i8"), ("words", "<i8"), ("capacity", "<i8"), ("instance", "u1", (16,)), ("ready", "<i8"),
])


class SegmentError(Exception):
    """A segment cannot be made or attached; the text says which, why and what to do."""


class CommandWord(IntEnum):
    """A gateway's command ring. Positions count slots from 0 and never wrap."""
    TAIL = 0 * WORD_STRIDE         # gateway: published
    HEAD = 1 * WORD_STRIDE         # matcher: slots before it may be reused
    RELEASED = 2 * WORD_STRIDE     # journaler: commands before it have visible replies
    ROOM_WANTED = 3 * WORD_STRIDE  # gateway: ring me when HEAD moves


class ReplyWord(IntEnum):
    """A gateway's reply ring. The matcher writes slots beyond TAIL; it holds its own end in private memory."""
    TAIL = 0 * WORD_STRIDE         # journaler: visible
    HEAD = 1 * WORD_STRIDE         # gateway: slots before it may be reused


class JournalWord(IntEnum):
    """The journal ring, from matcher to journaler, and what the journaler knows of the disk."""
    CURSOR = 0 * WORD_STRIDE       # matcher: published
    HEAD = 1 * WORD_STRIDE         # journaler: slots before it may be reused
    OPENED = 2 * WORD_STRIDE       # journaler: 1 once the files are recovered; without it the ring counts as none
    SYNCED = 3 * WORD_STRIDE       # journaler: sequence up to which all is on disk
    FOLLOWABLE = 4 * WORD_STRIDE   # journaler: sequence up to which followers may read
    REFUSING = 5 * WORD_STRIDE     # journaler: 0, or an errno: no room for writes beyond what has entered
    ROOM_WANTED = 6 * WORD_STRIDE  # matcher: ring me when HEAD moves


class EventWord(IntEnum):
    """The events ring, a broadcast: the matcher overwrites the oldest."""
    INTENT = 0 * WORD_STRIDE       # matcher: slots before it may be overwritten at any moment
    VISIBLE = 1 * WORD_STRIDE      # journaler: events before it are on disk


class Role(IntEnum):
    """Who may sleep and who beats: a row of the `sleepers` and `counters` segments."""
    MATCHER = 0
    JOURNALER = 1
    PUBLISHER = 2
    WATCHER = 3
    SNAPSHOTTER = 4
    GATEWAY = 16                   # the first; gateway g is GATEWAY + g


class SleeperWord(IntEnum):
    ASLEEP = 0 * WORD_STRIDE       # the sleeper alone stores it


class CounterWord(IntEnum):
    """A process's page of counters; it alone writes it."""
    PID = 0
    STARTED_NS = 1                 # CLOCK_REALTIME
    HEARTBEAT_NS = 2               # CLOCK_MONOTONIC
    READY = 3                      # 1 once it serves
    RECORDS = 4                    # handled since it serves; matcher, journaler: before that, parts of the journal
    BATCHES = 5
    LARGEST_BATCH = 6
    FULL = 7                       # times a ring had no room
    WAKEUPS = 8
    SEQUENCE = 9                   # matcher: applied; journaler: synced
    OUTPUT_DIGEST = 10             # matcher: running digest of replies and events at SEQUENCE
    STATE_DIGEST = 11              # matcher: of the whole state, stored at a clean stop
    CLOCK_STEPS = 12               # matcher: times the clock went back and was held
    DIGEST_SEQUENCE = 13           # matcher: stored before OUTPUT_DIGEST, as SEQUENCE is behind it


COUNTER_WORDS = 64
GATEWAYS_MAX = 64
ROLES = int(Role.GATEWAY) + GATEWAYS_MAX


@dataclass(frozen=True)
class RingSizes:
    """Capacities in slots, powers of two. They are the layout: another value makes all segments anew."""
    gateways: int = 1
    command_slots: int = 4096      # of 192 bytes, a gateway
    reply_slots: int = 8192        # of 256 bytes, a gateway
    journal_slots: int = 16384     # of 256 bytes
    event_slots: int = 16384       # of 256 bytes


@dataclass(frozen=True)
class Shape:
    rows: int
    words: int                     # int64 of a row
    capacity: int                  # slots of a row
    slot_bytes: int

    @property
    def bytes(self):
        return HEADER_BYTES + self.rows * self.words * 8 + self.rows * self.capacity * self.slot_bytes


def shapes(sizes):
    """Each segment's name and shape."""
    return {
        "commands": Shape(sizes.gateways, len(CommandWord) * WORD_STRIDE, sizes.command_slots, COMMAND.itemsize),
        "replies": Shape(sizes.gateways, len(ReplyWord) * WORD_STRIDE, sizes.reply_slots, REPLY_SLOT_BYTES),
        "journal": Shape(1, len(JournalWord) * WORD_STRIDE, sizes.journal_slots, JOURNAL.itemsize),
        "events": Shape(1, len(EventWord) * WORD_STRIDE, sizes.event_slots, EVENT_BYTES),
        "sleepers": Shape(ROLES, len(SleeperWord) * WORD_STRIDE, 0, 0),
        "counters": Shape(ROLES, COUNTER_WORDS, 0, 0),
    }


class Segment:
    """A mapped segment: `words` int64 (rows, words), `slots` uint64 (rows, capacity, slot_bytes / 8)."""

    def __init__(self, name, mapping, shape):
        self.name, self.mapping, self.shape = name, mapping, shape
        words_bytes = shape.rows * shape.words * 8
        self.header = np.frombuffer(mapping, HEADER, 1)[0]
        self.words = np.frombuffer(mapping, np.int64, shape.rows * shape.words, HEADER_BYTES).reshape(
            shape.rows, shape.words)
        self.slots = np.frombuffer(
            mapping, np.uint64, shape.rows * shape.capacity * shape.slot_bytes // 8, HEADER_BYTES + words_bytes,
        ).reshape(shape.rows, shape.capacity, shape.slot_bytes // 8) if shape.capacity else None

    @property
    def generation(self):
        return int(self.header["generation"])


@dataclass(frozen=True)
class SharedMemory:
    """All segments of one instance, attached."""
    generation: int
    commands: Segment
    replies: Segment
    journal: Segment
    events: Segment
    sleepers: Segment
    counters: Segment


def posix_name(instance, segment):
    return f"/exchange-{instance.hex[:12]}-{segment}"


def _refusal(name, mapping, instance, shape):
    """Why a mapped segment is not ours, or None."""
    header = np.frombuffer(mapping, HEADER, 1)[0]
    if header["magic"] != MAGIC:
        return f"{name} is not an exchange segment (magic {int(header['magic']):#x})"
    if header["ready"] != 1:
        return f"{name} was never finished by its maker"
    if header["layout"] != LAYOUT_VERSION:
        return f"{name} has layout version {header['layout']}, this program has {LAYOUT_VERSION}"
    if header["instance"].tobytes() != instance.bytes:
        return f"{name} belongs to instance {uuid.UUID(bytes=header['instance'].tobytes())}, not to {instance}"
    found = tuple(int(header[key]) for key in ("rows", "words", "capacity", "slot_bytes"))
    wanted = (shape.rows, shape.words, shape.capacity, shape.slot_bytes)
    if found != wanted:
        return f"{name} has (rows, words, capacity, slot bytes) {found}, the configuration asks for {wanted}"
    return None


def _map(name, write):
    memory = posix_ipc.SharedMemory(name, read_only=not write)
    try:
        size = os.fstat(memory.fd).st_size
        if size < HEADER_BYTES:
            raise SegmentError(f"{name} has {size} bytes, not even a header")
        return mmap.mmap(memory.fd, size, prot=mmap.PROT_READ | (mmap.PROT_WRITE if write else 0))
    finally:
        os.close(memory.fd)


def attach(instance, sizes, write=True):
    """Attach to all segments of this instance.

    Raises SegmentError where one is missing, of another layout, instance or generation.
    """
    found = {}
    for segment, shape in shapes(sizes).items():
        name = posix_name(instance, segment)
        try:
            mapping = _map(name, write)
        except posix_ipc.ExistentialError:
            raise SegmentError(f"{name} is missing") from None
        except posix_ipc.PermissionsError:
            raise SegmentError(f"{name} belongs to another user") from None
        except ValueError as error:
            raise SegmentError(f"{name} cannot be mapped: {error}") from None
        refusal = _refusal(name, mapping, instance, shape)
        if refusal is None and len(mapping) != shape.bytes:
            refusal = f"{name} has {len(mapping)} bytes instead of {shape.bytes}"
        if refusal:
            raise SegmentError(refusal)
        found[segment] = Segment(name, mapping, shape)
    generations = {segment.name: segment.generation for segment in found.values()}
    if len(set(generations.values())) > 1:
        raise SegmentError(f"the segments are of different generations: {generations}")
    return SharedMemory(generation=next(iter(generations.values())), **found)


def create(instance, sizes, generation):
    """Make all segments of this instance anew, empty, and attach to them; what had these names is unlinked.

    Raises SegmentError with needed and available bytes where /dev/shm is too small.
    """
    unlink(instance)
    needed = sum(shape.bytes for shape in shapes(sizes).values())
    free = os.statvfs("/dev/shm")
    found = {}
    try:
        for segment, shape in shapes(sizes).items():
            name = posix_name(instance, segment)
            memory = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o600)
            try:
                os.posix_fallocate(memory.fd, 0, shape.bytes)
                mapping = mmap.mmap(memory.fd, shape.bytes)
            finally:
                os.close(memory.fd)
            found[segment] = made = Segment(name, mapping, shape)
            header = made.header
            header["magic"], header["layout"], header["generation"] = MAGIC, LAYOUT_VERSION, generation
            header["rows"], header["words"] = shape.rows, shape.words
            header["capacity"], header["slot_bytes"] = shape.capacity, shape.slot_bytes
            header["instance"] = np.frombuffer(instance.bytes, np.uint8)
    except OSError as error:
        unlink(instance)
        raise SegmentError(
            f"the shared memory segments need {needed} bytes and /dev/shm has {free.f_bavail * free.f_frsize} free"
            f" ({error.strerror}): make /dev/shm larger or the [rings] of the configuration smaller") from None
    for made in found.values():
        made.header["ready"] = 1
    return SharedMemory(generation=generation, **found)


def unlink(instance):
    """Remove the names of this instance's segments; processes that have them mapped keep their memory.

    Raises SegmentError where they belong to another user.
    """
    for segment in shapes(RingSizes()):
        name = posix_name(instance, segment)
        try:
            posix_ipc.unlink_shared_memory(name)
        except posix_ipc.ExistentialError:
            pass
        except posix_ipc.PermissionsError:
            raise SegmentError(f"{name} belongs to another user") from None


def sample():
    """The smallest segments, without a name already: for the types of what is in them."""
    instance = uuid.uuid4()
    memory = create(instance, RingSizes(command_slots=64, reply_slots=64, journal_slots=64, event_slots=256), 1)
    unlink(instance)
    return memory


def slot_view(segment, dtype):
    """The segment's slots as records of `dtype`, shape (rows, capacity)."""
    assert dtype.itemsize == segment.shape.slot_bytes, (segment.name, dtype.itemsize)
    return segment.slots.view(dtype).reshape(segment.shape.rows, segment.shape.capacity)


assert records.CACHE_LINE_BYTES * 2 == WORD_STRIDE * 8
