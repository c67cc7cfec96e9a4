"""What a segment file holds: runs of whole records that continue each other, and damage."""
import mmap
import os

import numpy as np
from numba import int64, uint64

from pipeline.chain import SLOT_BYTES, SLOT_WORDS, whole_slots
from pipeline.segment_file import HEADER_BYTES, JournalRefused
from shm.kernel import inlined, kernel
from shm.records import JOURNAL

RUN = np.dtype([                # a stretch of a segment: records that continue each other, or damage
    ("start_slot", "<i8"), ("end_slot", "<i8"),
    ("first_sequence", "<i8"), ("last_sequence", "<i8"),  # 0, 0: damage, slots that are neither zero nor whole records
    ("previous", "<u8"),        # of the first record
    ("chain", "<u8"),           # of the last record
])
SLOTS_AT_ONCE = 1 << 16         # read, from a disk if need be, between two signs of life
_RUNS_AT_ONCE = 1024
_READ_BYTES = 1 << 20


class SegmentContent:
    """A segment file, mapped anew at each use, so that a long journal holds no descriptors.

    Whole records never change, so it may be the one that is being written: more of them appear behind. `progress()` is
    called now and then by whatever reads a lot of it, so that a process can show that it is alive.
    """

    def __init__(self, segment, progress):
        self.segment, self.path, self.progress = segment, segment.path, progress

    @property
    def slots(self):
        """uint64 (slots, 32), read-only: the file after its header."""
        with open(self.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            mapping = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        count = (size - HEADER_BYTES) // SLOT_BYTES
        return np.frombuffer(mapping, np.uint64, count * SLOT_WORDS, HEADER_BYTES).reshape(count, SLOT_WORDS)

    @property
    def records(self):
        """The same as JOURNAL records, a record's payload slots among them."""
        return as_records(self.slots)

    def slot_after(self, slot, count):
        """The slot after `count` records from `slot` on. They are known to be whole."""
        records = self.records
        while count > 0:
            slot = slot_after(records, slot, min(count, SLOTS_AT_ONCE))
            count -= SLOTS_AT_ONCE
            self.progress()
        return slot

    def check_readable(self):
        """Raises JournalRefused where the disk cannot read the file: touching the mapping would kill the process."""
        buffer, offset = bytearray(_READ_BYTES), 0
        with open(self.path, "rb", buffering=0) as file:
            try:
                while count := file.readinto(buffer):
                    offset += count
                    self.progress()
            except OSError as problem:
                raise JournalRefused(f"{self.path} cannot be read at offset {offset} ({problem.strerror}): restore this"
                                     " file from a copy, on a disk that can be read") from problem


def as_records(slots):
    return slots.reshape(-1).view(JOURNAL)


@kernel
def find_runs(records, words, slot, end_slot, runs, count):
    """Add to the `count` runs in `runs`, the last of which may go on, what begins in slots [slot, end_slot).

    `records` and `words` are the same memory. Returns (runs filled, slot to go on from, highest known_synced): a slot
    before `end_slot` where there is no room for one more run.
    """
    highest = int64(0)
    while slot < end_slot:
        slots = whole_slots(records, words, slot)
        if slots == 0:
            bits = words[slot * SLOT_WORDS]
            for word in range(1, SLOT_WORDS):
                bits |= words[slot * SLOT_WORDS + word]
            if bits == 0:
                slot += 1
                continue
        last = runs[count - 1]
        adjoins = count > 0 and last["end_slot"] == slot
        if slots == 0:
            if not (adjoins and last["last_sequence"] == 0):
                if count == runs.shape[0]:
                    break
                _begin_run(runs[count], slot, int64(0))
                count += 1
            slot += 1
            runs[count - 1]["end_slot"] = slot
            continue
        record = records[slot]
        if not (adjoins and last["last_sequence"] > 0 and record["sequence"] == last["last_sequence"] + 1
                and record["previous"] == last["chain"]):
            if count == runs.shape[0]:
                break
            _begin_run(runs[count], slot, record["sequence"])
            runs[count]["previous"] = record["previous"]
            count += 1
        slot += slots
        current = runs[count - 1]
        current["end_slot"] = slot
        current["last_sequence"] = record["sequence"]
        current["chain"] = record["chain"]
        highest = max(highest, record["known_synced"])
    return count, slot, highest


@inlined
def _begin_run(run, slot, sequence):
    run["start_slot"] = slot
    run["first_sequence"] = sequence
    run["last_sequence"] = sequence
    run["previous"] = 0
    run["chain"] = 0


@kernel
def slot_after(records, slot, count):
    for _ in range(count):
        slot += int64(records[slot]["record_slots"])
    return slot


@kernel
def slot_within(records, slot, end_slot, count):
    """The last slot up to `end_slot` where a record ends and that is at most `count` slots behind `slot`."""
    last = min(end_slot, slot + count)
    while slot < last:
        behind = slot + int64(records[slot]["record_slots"])
        if behind > last:
            break
        slot = behind
    return slot


@kernel
def continue_run(records, words, slot, sequence, chain, until, slots_max):
    """How far the records from `slot` on continue a place of the journal, at most to the sequence `until` and some
    `slots_max` slots. Returns (slot, sequence, chain value) behind the last of them."""
    end_slot = min(len(records), slot + slots_max)
    while slot < end_slot and sequence < until:
        slots = whole_slots(records, words, slot)
        record = records[slot]
        if slots == 0 or record["sequence"] != sequence + 1 or record["previous"] != uint64(chain):
            break
        sequence += 1
        chain = record["chain"]
        slot += slots
    return slot, sequence, chain


class Run:
    """A run of records. Places in it are asked for in ascending order of sequences: it keeps the last one."""

    def __init__(self, content, row):
        self.content = content
        (self.start_slot, self.end_slot, self.first_sequence, self.last_sequence, self.previous,
         self.chain) = row.item()
        self._sequence, self._slot = self.first_sequence, self.start_slot

    @property
    def age(self):
        """Orders runs from the oldest to the newest."""
        return self.content.segment.number, self.start_slot

    def slot_of(self, sequence):
        """Where this sequence's record begins, or, after the last one, where the run ends."""
        if sequence > self.last_sequence:
            return self.end_slot
        self._slot = self.content.slot_after(self._slot, sequence - self._sequence)
        self._sequence = sequence
        return self._slot

    def holds(self, sequence, chain):
        """Whether it has the record of this sequence with this chain value."""
        return self.first_sequence <= sequence <= self.last_sequence and self.chain_before(sequence + 1) == chain

    def chain_before(self, sequence):
        """The chain value that the record of this sequence continues; after the last one, the last one's own."""
        if sequence == self.first_sequence:
            return self.previous
        if sequence > self.last_sequence:
            return self.chain
        return int(self.content.records[self.slot_of(sequence)]["previous"])


def runs_of(content):
    """The runs in a segment and the highest synced position that a record in it carries."""
    content.check_readable()
    slots = content.slots
    rows, words = as_records(slots), slots.reshape(-1)
    found, highest, slot = [], 0, 0
    batch, count = np.zeros(_RUNS_AT_ONCE, RUN), 0
    while slot < len(rows):
        count, slot, known_synced = find_runs(
            rows, words, slot, min(slot + SLOTS_AT_ONCE, len(rows)), batch, count)
        if count > 1:          # all but the last are at their ends
            found += [Run(content, row) for row in batch[:count - 1]]
            batch[0], count = batch[count - 1], 1
        highest = max(highest, known_synced)
        content.progress()
    return found + [Run(content, row) for row in batch[:count]], highest
