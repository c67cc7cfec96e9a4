"""The snapshotter: a follower that keeps snapshots of its core, and lets go what nobody needs any more.

A snapshot counts once it has been read back and has given the same state. Only then is anything older removed, and
nothing is while the matcher's running digest and this core's differ.
"""
import math
import select
import signal
import time
from functools import partial

import numpy as np

from pipeline import recovery, retention, snapshot
from pipeline.divergence import Comparison
from pipeline.follower import EventsLost, Follower
from pipeline.release import journal_word
from pipeline.replica import EVENT_SLOTS
from pipeline.seeding import limits_of
from pipeline.segment_file import sync_directory
from pipeline.snapshot import SnapshotDamaged
from shm import doorbell
from shm.fatal_log import fatal
from shm.log import say
from shm.process import HEARTBEAT_SECONDS, instance_of, show_progress
from shm.records import LIMITS
from shm.segments import CounterWord, JournalWord

REQUEST = "snapshot.wanted"    # file in `run`: somebody asks for one now
EVENT_SLOTS_MAX = 1 << 24      # of one command; more is a defect
RECORDS_AT_ONCE = 1 << 17      # between two signs of life


class Snapshots:
    def __init__(self, data, instance, settings, journal_settings, say, tell, beat=lambda: None):
        """`settings`: the configuration's [snapshots]; `say(text)`, `tell(text)`: to the log, to the fatal log;
        `beat()` is called between the parts of a long work."""
        self._data, self._instance, self._say, self._tell = data, instance, say, tell
        self._settings, self._journal_settings = settings, journal_settings
        self._directory = data / recovery.SNAPSHOTS
        self.may_prune, self._beat = True, beat
        self._saved_at, self._saved_sequence = time.monotonic(), 0

    def __str__(self):
        return f"the snapshotter of {self._data}"

    def checkpoint(self):
        _found, _saved, place = recovery.read_journal(self._data, self._instance, self._tell)
        self._saved_sequence = place.sequence
        return place

    def write(self, _events, place, replica):
        """A snapshot, if one is due."""
        if self._is_due(place):
            self.save(place, replica)

    def _is_due(self, place):
        operations = place.sequence - self._saved_sequence
        return operations > 0 and (operations >= self._settings.every_operations
                                   or time.monotonic() - self._saved_at >= self._settings.every_s)

    def meet_request(self, place, replica):
        """A snapshot of the replica, which has caught up, if somebody asks for one."""
        request = self._data / "run" / REQUEST
        if request.exists():
            asked_ns = request.stat().st_mtime_ns
            if place.sequence == self._saved_sequence or self.save(place, replica):
                if request.stat().st_mtime_ns == asked_ns:  # else somebody has asked again meanwhile
                    request.unlink()

    def save(self, place, replica):
        """Write a snapshot of the replica, which stands at this place; if it can be read back, let go what is older.
        Returns whether it can."""
        began = time.monotonic()
        self._saved_at, self._saved_sequence = began, place.sequence
        try:
            self._beat()
            saved = snapshot.write(self._directory, self._instance, replica.state, np.uint64(place.chain))
            self._beat()
            header, content = snapshot.read(saved, self._instance)
            self._beat()
            snapshot.restored(header, content, np.zeros((), LIMITS))
            self._beat()
        except (OSError, SnapshotDamaged) as problem:
            self._tell(f"no snapshot at sequence {place.sequence}: {problem}")
            return False
        self._say(f"snapshot at sequence {place.sequence}, {saved.path.stat().st_size} bytes, written and read back in"
                  f" {time.monotonic() - began:.2f} s")
        if self.may_prune:
            self.prune()
        return True

    def prune(self):
        """Keep the newest snapshots, those that followers begin at, and of the journal what is behind them."""
        found = []             # (Snapshot, Place), the newest first
        for saved in snapshot.snapshots_of(self._directory):
            try:
                found.append((saved, snapshot.place_of(saved, self._instance)))
            except (SnapshotDamaged, OSError):
                saved.path.unlink()
        kept = retention.needed(self._data, self._instance, [place for _saved, place in found], self._settings.keep,
                                self._journal_settings.keep_bytes, self._tell)
        for saved, place in found:
            if place not in kept:
                saved.path.unlink()
        sync_directory(self._directory)  # else a power cut could bring one back whose journal is gone
        sequence = min(place.sequence for place in kept)
        gone = retention.let_go(self._data / recovery.JOURNAL, self._instance, sequence,
                                self._journal_settings.archive or None)
        if gone:
            self._say(f"{len(gone)} segments before sequence {sequence} {self._where()}: {gone[0].name} to"
                      f" {gone[-1].name}")

    def _where(self):
        archive = self._journal_settings.archive
        return f"moved to {archive}" if archive else "removed"


class Snapshotter:
    """`process` gives `memory`, `data`, `name`, `counters`, `stopping` and `beat`; `settings` is the whole
    configuration. It follows the journal up to what is synced, once a second: nobody waits for it, so nobody wakes it
    but who asks for a snapshot."""

    def __init__(self, process, settings):
        self._process, self._settings = process, settings
        self._words = process.memory.journal.words
        self._bell = doorbell.open_bell(process.data / "run", process.name)
        self._poll = select.poll()
        self._poll.register(self._bell, select.POLLIN)
        self._tell = partial(fatal, process.data, process.name)
        self._sink = Snapshots(process.data, instance_of(process.data), settings.snapshots, settings.journal,
                               partial(say, process.name), self._tell, process.beat)
        self._comparison = Comparison(process.memory.counters.words)
        self._follower, self._event_slots = None, 0

    def run(self):
        """Until the process is told to stop. Raises JournalRefused, ReplayDiverged."""
        signal.set_wakeup_fd(self._bell, warn_on_full_buffer=False)
        while not self._process.stopping and self._word(JournalWord.OPENED) != 1:
            self._sleep()
        if self._process.stopping:
            return
        self._begin(EVENT_SLOTS)
        self._process.ready()
        while not self._process.stopping:
            self._work()
            self._sleep()

    def _word(self, word):
        return int(journal_word(self._words, int(word)))

    def _sleep(self):
        self._poll.poll(math.ceil(HEARTBEAT_SECONDS * 1000))
        doorbell.empty(self._bell)
        self._process.beat()

    def _begin(self, event_slots):
        self._event_slots = event_slots
        self._follower = Follower(
            self._process.data, instance_of(self._process.data), self._sink, limits_of(self._settings), self._tell,
            partial(show_progress, self._process), event_slots)

    def _work(self):
        """Follow as far as all is synced, and compare where that is possible."""
        synced = self._word(JournalWord.SYNCED)
        while self._follower.place.sequence < synced and not self._process.stopping:
            sequence = self._follower.place.sequence
            self._comparison.look(sequence)
            stop = self._comparison.stop if self._comparison.stop > sequence else synced
            try:
                self._follower.do_work(min(synced, stop, sequence + RECORDS_AT_ONCE))
            except EventsLost as problem:
                assert self._event_slots < EVENT_SLOTS_MAX, problem
                self._begin(self._event_slots * 4)
                continue
            if self._follower.place.sequence == sequence:
                break          # what is synced is not in the files yet: they are looked at again in a second
            self._compare()
            self._process.counters[CounterWord.SEQUENCE] = self._follower.place.sequence
            self._process.beat()
        self._sink.meet_request(self._follower.place, self._follower.replica)

    def _compare(self):
        if self._sink.may_prune and not self._comparison.is_equal(self._follower.replica):
            self._sink.may_prune = False
            self._tell(f"the matcher and the journal diverge: at sequence {self._comparison.stop} their digests differ."
                       " Nothing of the journal is let go any more. Stop the exchange, keep a copy of the data"
                       " directory, and start it: the journal decides")
