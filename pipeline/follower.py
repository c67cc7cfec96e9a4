"""Followers: whoever re-runs the core on the journal and hands what happened to a sink.

A sink stores what it makes of the events together with the place up to which it has them, so a restart repeats nothing
and skips nothing. Live, after a restart, catching up and rebuilding are the same loop: from the newest snapshot at or
before the sink's place, over the journal's files, as far as may be followed. Nothing waits for a follower.
"""
from typing import Protocol

import numpy as np

from pipeline import recovery
from pipeline.journal import START, JournalRefused, Place
from pipeline.journal_tail import JournalTail
from pipeline.replay import apply_span
from pipeline.replica import EVENT_SLOTS
from pipeline.segment_content import as_records
from pipeline.state import EVENT_POSITION

EVENTS_AT_ONCE = 1 << 12       # that a sink is given, unless one command makes more
NO_POSITIONS, NO_GENERATION = np.zeros(0, np.int64), 0


class Sink(Protocol):
    def checkpoint(self):
        """The Place up to which this sink has everything; None: it has nothing."""

    def write(self, events, place, replica):
        """Store what the events mean, and the place that they lead to, in one step: after a crash both are there or
        neither. `events`: uint64 (event, word), records of EVENT_HEADER and more, in order; `replica`: the core at that
        place, to be looked at only."""


class OffTheJournal(JournalRefused):
    """A sink has what the journal does not have: it was lost by a power cut, or one of both was restored."""


class EventsLost(Exception):
    """One command made more events than the follower has room for: it has to start again with more."""


class Follower:
    def __init__(self, data, instance, sink: Sink, limits, tell, progress=lambda: None, event_slots=EVENT_SLOTS):
        """`limits`: room for as many at least; `tell(text)` hears of snapshots that are passed over; `progress()` is
        called now and then; `event_slots` (a power of two): of the largest command.

        Raises OffTheJournal, JournalRefused, ReplayDiverged.
        """
        self._sink = sink
        checkpoint = sink.checkpoint() or START
        begun = recovery.base(data, instance, limits, tell, progress=progress, sequence_max=checkpoint.sequence,
                              event_slots=event_slots)
        self.replica = begun.replica
        self._tail = JournalTail(data / recovery.JOURNAL, instance, begun.place, progress)
        for path, slots, slot, end in self._tail.read(checkpoint.sequence):
            apply_span(self.replica, path, slots, slot, end, NO_POSITIONS, NO_GENERATION)
        if self._tail.place != checkpoint:
            raise OffTheJournal(
                f"{sink} has everything up to sequence {checkpoint.sequence} with chain value {checkpoint.chain:016x},"
                f" and the journal in {data / recovery.JOURNAL} has another history: rebuild it from the journal")
        self.place = checkpoint  # up to where the sink has everything
        self._drained = self._event_position()

    def _event_position(self):
        return int(self.replica.state.counters[EVENT_POSITION])

    def do_work(self, until):
        """Hand the sink what happened up to the sequence `until`, as far as the journal goes; returns how many events
        that were.

        Raises EventsLost, JournalRefused, ReplayDiverged; what the sink raises passes through, and ends the follower.
        """
        given = 0
        for path, slots, slot, end in self._tail.read(until):
            while slot < end:
                slot = apply_span(
                    self.replica, path, slots, slot, end, NO_POSITIONS, NO_GENERATION, EVENTS_AT_ONCE)
                place = self._tail.place if slot == end else Place(
                    self.replica.sequence, int(as_records(slots)[slot]["previous"]))
                events = self._take_events()
                self._sink.write(events, place, self.replica)
                self.place = place
                given += len(events)
        return given

    def _take_events(self):
        """The events since the last call, copied."""
        ring, begin, end = self.replica.out.event_words, self._drained, self._event_position()
        if end - begin > len(ring):
            raise EventsLost(f"{end - begin} events at once")
        self._drained = end
        first, last = begin % len(ring), end % len(ring)
        return ring[first:last].copy() if first <= last and end - begin < len(ring) else np.concatenate(
            (ring[first:], ring[:last]))
