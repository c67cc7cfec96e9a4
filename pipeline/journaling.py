"""What the journaler does: it writes the journal ring to segment files, syncs, and lets out what is on disk.

A span of the ring passes through the steps of its mode in their order; a kill between any two of them is harmless. A
restarted journaler goes on at the ring's head in a new segment. With fresh rings it opens the journal first: it finds
where the files end and writes once more what neither a record nor a seal knows to be synced.
"""
import math
import os
import select
import signal
import sys
import time
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import numpy as np

from pipeline import recovery, release
from pipeline.chain import SLOT_WORDS
from pipeline.release import (
    CURSOR,
    DEFECT,
    END,
    ENTRIES,
    FOLLOWABLE,
    FOLLOWABLE_WORD,
    HEAD,
    LAST_CHAIN,
    MOVED,
    NO_ROOM,
    OPENED,
    REFUSING,
    RELEASED_POSITIONS,
    REPLY_TAILS,
    RING_HEAD,
    ROOM_WANTED,
    SEQUENCE,
    SPAN_WORDS,
    STAGED_SLOTS,
    SYNCED,
    SYNCED_WORD,
    journal_word,
    set_journal_word,
)
from pipeline.segment_content import SLOTS_AT_ONCE, as_records, slot_within
from pipeline.segment_file import JournalRefused, NextSegment, make_directory, segments_of, sync_directory
from shm import doorbell
from shm.configuration import reserve_slots
from shm.fatal_log import fatal
from shm.log import say
from shm.process import HEARTBEAT_SECONDS, instance_of, show_progress
from shm.records import JOURNAL, STAMP_FIELDS
from shm.segments import CounterWord, slot_view


class Publication(NamedTuple):
    """What becomes of a span once it is written: whether it is synced first, then the steps of release.py, with records
    in the span and without."""
    is_synced: bool
    steps: np.ndarray
    steps_of_reads: np.ndarray


def _publication(*steps, is_synced=False):
    of_reads = [step for step in steps if step not in (SYNCED_WORD, FOLLOWABLE_WORD)]
    return Publication(is_synced, np.array(steps), np.array(of_reads))


RELEASE = {
    "always": _publication(SYNCED_WORD, REPLY_TAILS, RELEASED_POSITIONS, RING_HEAD, is_synced=True),
    "interval": _publication(REPLY_TAILS, RELEASED_POSITIONS),
    "none": _publication(REPLY_TAILS, RELEASED_POSITIONS, FOLLOWABLE_WORD, RING_HEAD),
}
# of all that is written; interval: now and then; none: of a full segment
SYNC = _publication(SYNCED_WORD, RING_HEAD, is_synced=True)
RETRY_SECONDS = 1.0            # from one try to make the next segment to the next


class Defect(Exception):
    """A broken invariant: the journal ring holds what no matcher writes, or the next segment is made wrongly."""


class Journaler:
    """`process` gives `memory`, `data`, `name`, `role`, `counters`, `stopping` and `beat`; `settings` is [journal].

    Methods raise JournalUnwritable where a write or a sync fails, and Defect for a broken invariant.
    """

    def __init__(self, process, settings):
        memory = self.memory = process.memory
        self.process, self.settings = process, settings
        self.words, self._sleepers = memory.journal.words, memory.sleepers.words
        self.span = np.zeros(SPAN_WORDS, np.int64)
        self.moved = np.zeros(memory.commands.shape.rows, MOVED)
        self.segment = None    # begins with the first record to write
        self.stalled = False   # the record at hand waits for the next segment
        self._is_gapless = False  # all that is in no segment of this process and not in the ring is on disk
        self._ring, self._ring_words = slot_view(memory.journal, JOURNAL)[0], memory.journal.slots[0]
        self._staging_words = np.zeros(self._ring_words.size, np.uint64)
        self._staging = self._staging_words.view(JOURNAL)
        self._reserve_slots = reserve_slots(len(self.moved), memory.commands.shape.capacity, len(self._ring))
        self._sync_at = self._retry_at = 0.0
        self._short_of_room = journal_word(self.words, REFUSING) != 0  # an earlier journaler said so
        bells = process.data / "run"
        self._bell, self._matcher_bell, self._publisher_bell = (
            doorbell.open_bell(bells, name) for name in (process.name, "matcher", "publisher"))
        self._gateway_bells = np.array(
            [doorbell.open_gateway_bell(bells, index) for index in range(len(self.moved))], np.int64)
        self._poll = select.poll()
        self._poll.register(self._bell, select.POLLIN)
        self._instance, self._directory = instance_of(process.data), process.data / "journal"
        self._begun = process.data / "journal.begun"  # that there has been a segment
        make_directory(self._directory)
        existing = segments_of(self._directory, self._instance)
        self._number = existing[-1].number if existing else 0
        self.next_segment = NextSegment(self._directory, self._instance, settings.segment_bytes, self._wake)

    def run(self):
        """Until the process is told to stop. Raises JournalRefused where the files may not be used."""
        signal.set_wakeup_fd(self._bell, warn_on_full_buffer=False)
        self.start()
        self.process.ready()
        while not self.process.stopping:
            if not self.do_work():
                self._sleep()
            self.process.beat()
        self.finish()

    @property
    def _chain(self):
        return self.span.view(np.uint64)[LAST_CHAIN]

    def _wake(self):
        doorbell.ring(self._bell)

    def _say(self, text):
        say(self.process.name, text)

    # --- start and end

    def start(self):
        """Open the journal, or go on with a ring that is open; then wake all who may wait for that."""
        if journal_word(self.words, OPENED) == 1:
            self._resume()
        else:
            self._open()
        self.process.counters[CounterWord.RECORDS] = 0
        self.process.counters[CounterWord.SEQUENCE] = journal_word(self.words, SYNCED)
        self._look_after_room()
        for bell in (self._matcher_bell, self._publisher_bell, *self._gateway_bells.tolist()):
            doorbell.ring(bell)

    def _open(self):
        assert journal_word(self.words, CURSOR) == 0, "the journal ring holds records, but was never opened"
        self._refuse_a_lost_journal()
        found = self._read()
        for remains in found.remains:
            self._say(f"lost before it was synced, not part of the journal: {remains}")
        self._write_again(found, (found.end_sequence if found.is_sealed else found.highest_known_synced) + 1)
        set_journal_word(self.words, OPENED, 1)
        self._say(f"opened the journal, {found.end_sequence} records in {self._number} segments")

    def _resume(self):
        synced = journal_word(self.words, SYNCED)
        self._is_gapless = synced >= journal_word(self.words, FOLLOWABLE)
        if not self._is_gapless and self.settings.sync != "none":
            # it ran with `none`: what left the ring is in files that nobody synced
            self._write_again(self._read(), synced + 1)
        self.span[END], self.span[SEQUENCE] = journal_word(self.words, HEAD), -1

    def _refuse_a_lost_journal(self):
        if self._begun.exists() and not segments_of(self._directory, self._instance):
            raise JournalRefused(
                f"{self._directory} has no segment, but this data directory had a journal: mount or restore it; to"
                f" begin anew with nothing, remove {self._begun} first")

    def _read(self):
        found, _snapshot, _place = recovery.read_journal(
            self.process.data, self._instance, self._say, progress=partial(show_progress, self.process))
        return found

    def _write_again(self, found, sequence):
        """Write the records from `sequence` on to segments of this process: then the whole journal is on disk."""
        for span in found.spans_from(sequence):
            slots, slot = span.slots, span.start_slot
            while slot < span.end_slot:
                behind = slot_within(
                    as_records(slots), slot, span.end_slot, min(self._room_slots(), SLOTS_AT_ONCE))
                if behind > slot:
                    self.segment.append(slots[slot:behind].reshape(-1))
                    self._sync()
                    slot = behind
                    show_progress(self.process)
                else:
                    self._await_segment()
        self.span[SEQUENCE], self.span[LAST_CHAIN] = found.end_sequence, np.uint64(found.end_chain).view(np.int64)
        self._is_gapless = True
        self._publish(np.array([SYNCED_WORD]))
        if self.segment is not None:
            self._seal(is_last=False)

    def _await_segment(self):
        while not self._begin_segment():
            self._look_after_room()
            self._poll.poll(HEARTBEAT_SECONDS * 1000)
            doorbell.empty(self._bell)
            self.process.beat()
            if self.process.stopping:
                sys.exit(0)

    def finish(self):
        """Write and let out what the ring holds now, and sync. What finds no room on the disk stays in the ring."""
        end = journal_word(self.words, CURSOR)
        while self.span[END] < end:
            if not self.do_work():
                self.next_segment.wait()
                if not self.next_segment.ready:
                    break
        self._finish_segment()
        self.next_segment.wait()

    def abandon(self):
        """After a failed write or sync: remove the segment at hand where nothing that left the ring is in it, so that
        a broken disk is not filled with such segments. The first one stays: without any the journal would count as
        lost."""
        if self._number > 1 and self.segment is not None and not self.segment.ever_synced and (
                self.settings.sync != "none"):
            self.segment.remove()

    # --- a span

    def do_work(self):
        """Handle what is ready; returns how many records and marks that was."""
        entries = self._write()
        if entries:
            self._release(RELEASE[self.settings.sync], self.span[STAGED_SLOTS] > 0)
            release.ring_released(self._sleepers, self._gateway_bells, self._publisher_bell, self.moved)
            release.count(self.process.counters, self.words, self.span)
            if self.settings.sync != "interval":
                release.ring_matcher(self._sleepers, self.words, self._matcher_bell)
        if self.settings.sync == "interval" and self._is_sync_due():
            self._sync_written()
        self._look_after_room()
        return entries

    def _write(self):
        """Take a span and write its records; returns its entries, 0 where nothing is there or nothing has room."""
        if self._collect() == NO_ROOM and self.span[ENTRIES] == 0 and self._begin_segment():
            self._collect()
        staged_slots = int(self.span[STAGED_SLOTS])
        if staged_slots:
            if not self.segment.unsynced:
                self._sync_at = time.monotonic() + self.settings.sync_interval_ms / 1000
            self.segment.append(self._staging_words[:staged_slots * SLOT_WORDS])
        return int(self.span[ENTRIES])

    def _collect(self):
        outcome = release.collect(
            self.words, self._ring, self._ring_words, self._room_slots(), self.memory.generation, self._staging,
            self._staging_words, self.span, self.moved)
        if outcome == DEFECT:
            position = int(self.span[END])
            found = self._ring[position % len(self._ring)]
            said = ", ".join(f"{field}={found[field]}" for field, *_ in STAMP_FIELDS)
            raise Defect(f"journal ring position={position} holds nothing that may follow sequence="
                         f"{self.span[SEQUENCE]} chain={self._chain} synced={journal_word(self.words, SYNCED)}"
                         f" generation={self.memory.generation}: {said}")
        return outcome

    def _release(self, publication, is_written):
        if publication.is_synced and is_written:
            self._sync()
        self._publish(publication.steps if is_written else publication.steps_of_reads)

    def _sync(self):
        self.segment.sync()

    def _publish(self, steps):
        if not self._is_gapless:
            steps = steps[steps != SYNCED_WORD]
        release.publish(steps, self.words, self.memory.replies.words, self.memory.events.words,
                        self.memory.commands.words, self.span, self.moved)

    # --- syncs of more than a span

    def _unsynced(self):
        return self.segment is not None and self.segment.unsynced

    def _is_sync_due(self):
        """Whether to sync and let the ring's head follow: after the interval, before the ring is full, and at once
        where there is nothing to sync."""
        held = self.span[END] - journal_word(self.words, HEAD)
        return held > 0 and (
            not self._unsynced() or held >= len(self._ring) // 2 or time.monotonic() >= self._sync_at
            or journal_word(self.words, ROOM_WANTED) != 0)

    def _sync_written(self):
        self._release(SYNC, self._unsynced())
        self.process.counters[CounterWord.SEQUENCE] = journal_word(self.words, SYNCED)
        release.ring_matcher(self._sleepers, self.words, self._matcher_bell)

    # --- segments and their room

    def _room_slots(self):
        return self.segment.room_slots if self.segment is not None else 0

    def _begin_segment(self):
        """Whether a new segment is there to be written. The last one is synced by then, in every mode."""
        self._finish_segment()
        self.stalled = not self.next_segment.ready
        if self.stalled:
            return False
        self.segment = self.next_segment.take()
        self._number += 1
        if not self._begun.exists():
            with suppress(OSError):  # a full disk may have room for it at the next segment
                self._begun.touch()
                sync_directory(self._begun.parent)
        return True

    def _finish_segment(self):
        if self.segment is not None:
            self._sync_written()
            self._seal(is_last=True)
            self.segment.finish()
            self.segment = None

    def _seal(self, is_last):
        if self.span[SEQUENCE] == journal_word(self.words, SYNCED):
            self.segment.seal(self.span[SEQUENCE], self._chain, is_last)

    def _look_after_room(self):
        """Keep the next segment in the making. While the disk has no room for it, refuse writes before the rings'
        content has none."""
        upcoming = self.next_segment
        if upcoming.defect is not None:
            raise Defect(f"the next journal segment cannot be made: {upcoming.defect!r}") from upcoming.defect
        if upcoming.ready:
            if self._short_of_room:
                self._short_of_room = False
                self._refuse(0)
                self._say("the next journal segment has room again")
            return
        problem = upcoming.problem  # of the last try: the next one may be under way
        if problem is not None:
            self._refuse(problem.errno if self._room_slots() < self._reserve_slots else 0)
            self._tell(problem)
        if upcoming.working or (problem is not None and time.monotonic() < self._retry_at):
            return
        self._retry_at = time.monotonic() + RETRY_SECONDS
        upcoming.prepare(self._number + 1)

    def _tell(self, problem):
        if not self._short_of_room:
            self._short_of_room = True
            fatal(self.process.data, self.process.name,
                  f"the next journal segment of {self.settings.segment_bytes} bytes cannot be made in"
                  f" {self._directory}: {problem.strerror}; writes are refused once this one's room,"
                  f" {self._room_slots()} slots, is less than {self._reserve_slots}: make room on that disk")

    def _refuse(self, reason):
        """Tell the gateways why they may take no writes, an errno; 0: they may."""
        if journal_word(self.words, REFUSING) != reason:
            set_journal_word(self.words, REFUSING, reason)
            self._say(f"writes are refused: {os.strerror(reason)}" if reason else "writes are taken again")

    # --- sleeping

    def _sleep(self):
        """Until a bell rings, the next heartbeat or the next sync is due."""
        seconds = HEARTBEAT_SECONDS
        if self._unsynced() and self.settings.sync == "interval":
            seconds = min(seconds, max(0.0, self._sync_at - time.monotonic()))
        doorbell.announce_sleep(self._sleepers, self.process.role)
        rung = self._has_work() or self._poll.poll(math.ceil(seconds * 1000))
        doorbell.announce_waking(self._sleepers, self.process.role)
        if rung:
            doorbell.empty(self._bell)
        self.process.counters[CounterWord.WAKEUPS] += 1

    def _has_work(self):
        return not self.stalled and journal_word(self.words, CURSOR) != self.span[END]
