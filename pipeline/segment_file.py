"""Segment files of the journal: `journal/00000001.journal` and on, a header page, then records in slots of 256 bytes.

A file is made ahead of time under another name: room allocated, header and zeros on disk. Taking it is a rename and a
sync of the directory, so whatever has a segment's name has a whole header, and its name is on disk before its first
record is released. Zeros, because syncing over written blocks takes half the time of syncing into allocated ones. Only
the process that made a file writes to it, and never again once a write or a sync of it failed.
"""
import ctypes
import errno
import os
import re
import threading
import time
import uuid
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.chain import SLOT_BYTES
from shm.records import LAYOUT_VERSION

MAGIC = 0x314C4E524A484358     # "XCHJRNL1"
HEADER_BYTES = 4096
HEADER = np.dtype([
    ("magic", "<u8"), ("layout", "<u4"), ("reserved", "<u4"), ("instance", "u1", (16,)), ("number", "<i8"),
    ("made_ns", "<i8"),        # since the epoch
    ("checksum", "<u8"),       # CRC-32 of all before it
])
SEAL_OFFSET = 512              # a sector of its own in the header page: written later than the header
SEAL = np.dtype([              # the journal was on disk up to here; the last one that the segment's process noted
    ("sequence", "<i8"), ("chain", "<u8"),
    ("is_last", "<u8"),        # 1: no record comes behind it in this segment
    ("checksum", "<u8"),       # CRC-32 of all before it
])
PREPARED, MAKING = "next.prepared", "next.making"
_NAME = re.compile(r"(\d{8,})\.journal")
_NOT_SEGMENTS = {PREPARED, MAKING, "lost+found"}
_ZEROS = bytes(1 << 20)
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2
_libc = ctypes.CDLL(None)


class JournalRefused(Exception):
    """The journal directory cannot be used; the text names the file, why, and what to do."""


class JournalUnwritable(OSError):
    """A write or a sync of the journal failed: nothing more may be done, so that nothing is published that is not on
    disk."""

    @classmethod
    def of(cls, problem, path):
        return cls(problem.errno, problem.strerror, str(path))


@dataclass(frozen=True)
class Segment:
    number: int
    path: Path


def segments_of(directory, instance):
    """The segments in a directory in order of their numbers; none where it does not exist.

    Raises JournalRefused for a file that does not belong there: of another instance or layout, or no segment at all.
    """
    found = []
    for path in sorted(Path(directory).iterdir()) if Path(directory).exists() else ():
        name = _NAME.fullmatch(path.name)
        if name:
            found.append(Segment(int(name[1]), path))
            refusal = _refusal(path, instance, int(name[1]))
            if refusal:
                raise JournalRefused(f"{path} {refusal}: move it out of the journal directory, or restore it from a"
                                     " copy where it is damaged")
        elif path.name not in _NOT_SEGMENTS:
            raise JournalRefused(f"{path} is no journal segment: move it out of the journal directory")
    return sorted(found, key=lambda segment: segment.number)


def _refusal(path, instance, number):
    """Why a file is not this instance's segment of this number, or None."""
    try:
        with open(path, "rb") as file:
            content = file.read(HEADER.itemsize)
    except OSError as problem:
        return f"cannot be read ({problem.strerror})"
    if len(content) < HEADER.itemsize:
        return f"has {len(content)} bytes, not even a segment's header"
    header = np.frombuffer(content, HEADER)[0]
    if header["magic"] != MAGIC:
        return f"is no journal segment (magic {int(header['magic']):#x})"
    if header["layout"] != LAYOUT_VERSION:
        return f"has layout version {header['layout']}, this program reads {LAYOUT_VERSION}"
    if header["checksum"] != _checksum(content):
        return "has a damaged header"
    if header["instance"].tobytes() != instance.bytes:
        other = uuid.UUID(bytes=header["instance"].tobytes())
        return (f"belongs to instance {other}, not to {instance}: where the data directory's file `instance` was lost,"
                f" write {other} into it; where not")
    if header["number"] != number:
        return f"holds segment {header['number']}, which is not what its name says"
    return None


def _checksum(content, dtype=HEADER):
    return zlib.crc32(content[:dtype.fields["checksum"][1]])


def seal_of(path):
    """(sequence, chain) of a segment's seal; (0, 0) where it has none that is whole."""
    sequence, chain, _is_last = _seal_of(path)
    return sequence, chain


def last_sequence_of(path):
    """The last sequence in a segment that its process has finished; 0 where nobody knows without reading it all."""
    sequence, _chain, is_last = _seal_of(path)
    return sequence if is_last else 0


def _seal_of(path):
    with open(path, "rb") as file:
        content = os.pread(file.fileno(), SEAL.itemsize, SEAL_OFFSET)
    if len(content) < SEAL.itemsize:
        return 0, 0, 0
    *seal, checksum = np.frombuffer(content, SEAL)[0].item()
    return seal if checksum == _checksum(content, SEAL) else (0, 0, 0)


def _header(instance, number):
    header = np.zeros(1, HEADER)
    header["magic"], header["layout"], header["number"] = MAGIC, LAYOUT_VERSION, number
    header["instance"], header["made_ns"] = np.frombuffer(instance.bytes, np.uint8), time.time_ns()
    header["checksum"] = _checksum(header.tobytes())
    return header.tobytes()


def make_directory(directory):
    """The journal directory, with its name on disk. Raises JournalUnwritable."""
    try:
        if not directory.exists():
            directory.mkdir(0o700)
            sync_directory(directory.parent)
    except OSError as problem:
        raise JournalUnwritable.of(problem, directory) from problem


def sync_directory(directory):
    """Put the directory's entries on disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor, content, offset):
    """Write all bytes of `content` at `offset`, however many calls that takes."""
    while content:
        written = os.pwrite(descriptor, content, offset)
        if written == 0:
            raise OSError(errno.EIO, "nothing was written")
        content, offset = content[written:], offset + written


class SegmentFile:
    """The segment that this process writes, from `take_next` to `finish`."""

    def __init__(self, descriptor, segment, size):
        self.segment = segment
        self.unsynced = False
        self.ever_synced = False
        self._descriptor, self._size, self._end, self._failed = descriptor, size, HEADER_BYTES, False

    @property
    def room_slots(self):
        return (self._size - self._end) // SLOT_BYTES

    def append(self, content):
        """Write whole slots (a contiguous buffer) behind what is there. Raises JournalUnwritable."""
        content = memoryview(content).cast("B")
        assert not self._failed and len(content) <= self._size - self._end, (self.segment, self._end, len(content))
        self.unsynced = True
        try:
            write_all(self._descriptor, content, self._end)
        except OSError as problem:
            raise self._failure(problem) from problem
        self._end += len(content)

    def sync(self):
        """Put on disk what was appended. Raises JournalUnwritable; then part of it may be lost though the file reads
        well, and a second sync would call it synced: so there is none."""
        assert not self._failed, self.segment
        try:
            os.fdatasync(self._descriptor)
        except OSError as problem:
            raise self._failure(problem) from problem
        self.unsynced, self.ever_synced = False, True

    def _failure(self, problem):
        self._failed = True
        return JournalUnwritable.of(problem, self.segment.path)

    def seal(self, sequence, chain, is_last):
        """Note that the whole journal up to this record is on disk: a start with fresh rings that finds it ending there
        has nothing to write again. Where the note is lost it writes once more, so it is not synced. `is_last`: the
        segment gets no more records. Raises JournalUnwritable."""
        assert not self._failed and not self.unsynced, self.segment
        seal = np.zeros(1, SEAL)
        seal["sequence"], seal["chain"], seal["is_last"] = sequence, chain, is_last
        seal["checksum"] = _checksum(seal.tobytes(), SEAL)
        try:
            write_all(self._descriptor, seal.tobytes(), SEAL_OFFSET)
        except OSError as problem:
            raise self._failure(problem) from problem

    def finish(self):
        """Sync what is not, and give back the room that was not used. The file is not written again.

        It keeps its size, with a hole at its end: cutting it short would kill a reader that has it mapped.
        """
        if self.unsynced:
            self.sync()
        _libc.fallocate(self._descriptor, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
                        ctypes.c_int64(self._end), ctypes.c_int64(self._size - self._end))
        os.close(self._descriptor)

    def remove(self):
        """Take the file out of the journal, where nothing depends on it and the disk lets it go."""
        with suppress(OSError):
            self.segment.path.unlink()


class NextSegment:
    """The segment to come, made by a thread; it calls `wake` when it is `ready`, or the disk has a `problem` (OSError),
    or the thread ended of a `defect`: nobody else hears of that one."""

    def __init__(self, directory, instance, segment_bytes, wake):
        self.ready, self.working, self.problem, self.defect = False, False, None, None
        self._directory, self._instance, self._segment_bytes, self._wake = directory, instance, segment_bytes, wake
        self._number = self._thread = None

    def prepare(self, number):
        """Begin to make the segment of this number, or take over the one that an earlier process made ready."""
        assert not self.ready and not self.working, self._number
        self.wait()
        self._number = number
        if self._is_prepared(number):
            self.ready, self.problem = True, None
            self._wake()
            return
        self.working = True
        self._thread = threading.Thread(target=self._make, args=(number,), name="next segment", daemon=True)
        self._thread.start()

    def _is_prepared(self, number):
        path = self._directory / PREPARED
        return (path.exists() and path.stat().st_size == self._segment_bytes
                and _refusal(path, self._instance, number) is None)

    def _make(self, number):
        path = self._directory / MAKING
        try:
            for old in (PREPARED, MAKING):  # of another size or number; unfinished, so that its sync may have failed
                (self._directory / old).unlink(missing_ok=True)
            self._fill(path, number)
            os.rename(path, self._directory / PREPARED)
            self.ready, self.problem = True, None
        except OSError as problem:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            self.problem = problem
        except Exception as defect:
            self.defect = defect
        self.working = False
        self._wake()

    def _fill(self, path, number):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, self._segment_bytes)
            for offset in range(0, self._segment_bytes, len(_ZEROS)):
                write_all(descriptor, _ZEROS[:self._segment_bytes - offset], offset)
            write_all(descriptor, _header(self._instance, number), 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def take(self):
        """The prepared segment under its own name, which is on disk by then. Raises JournalUnwritable, and leaves no
        segment."""
        assert self.ready
        segment = Segment(self._number, self._directory / f"{self._number:08}.journal")
        assert not segment.path.exists(), segment
        try:
            os.rename(self._directory / PREPARED, segment.path)
            sync_directory(self._directory)
            descriptor = os.open(segment.path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as problem:
            with suppress(OSError):
                segment.path.unlink(missing_ok=True)
            raise JournalUnwritable.of(problem, segment.path) from problem
        self.ready = False
        return SegmentFile(descriptor, segment, self._segment_bytes)

    def wait(self):
        """Until the thread has ended."""
        if self._thread is not None:
            self._thread.join()
