"""A data directory whose journal a core has made, a few commands at a time, with no process behind it."""
import uuid

import numpy as np

from pipeline import snapshot
from pipeline.journal import Place
from pipeline.recovery import JOURNAL, SNAPSHOTS
from pipeline.replica import Replica
from pipeline.seeding import commands, limits_of
from pipeline.segment_file import HEADER_BYTES, NextSegment
from shm.records import COMMAND, Kind
from tests.fake_matcher import History

SEGMENT_BYTES = HEADER_BYTES + 300 * 256


class CoreJournal:
    def __init__(self, data, settings, segment_bytes=SEGMENT_BYTES):
        self.data, self.settings, self.instance = data, settings, uuid.uuid4()
        self.replica, self.history = Replica(limits_of(settings)), History()
        self.number, self.segment, self.places = 0, None, {}
        self._segment_bytes = segment_bytes
        (data / JOURNAL).mkdir(parents=True)
        for command, payload in commands(settings, self.replica.state):
            self.apply(command, payload, 0)

    @property
    def place(self):
        return Place(self.history.sequence, int(self.history.chain))

    def apply(self, command, payload, time_ns):
        """Apply a command, and journal it where it changed something; returns whether it did."""
        before = self.replica.sequence
        self.replica.apply(command, payload, time_ns)
        if self.replica.sequence == before:
            return False
        fields = {name: command[name] for name in COMMAND.names if name not in ("request_id", "slots")}
        self._append(self.history.record(payload, time_ns=time_ns, slots=command["slots"], **{
            **fields, "payload_bytes": len(payload)}))
        return True

    def _append(self, words):
        if self.segment is None or self.segment.room_slots < len(words) // 32:
            self.next_segment()
        self.segment.append(words)
        self.places[self.history.sequence] = self.place

    def next_segment(self):
        """End the segment as a journaler does, and begin another."""
        if self.segment is not None:
            self.segment.sync()
            self.segment.seal(self.history.sequence - 1, self.places[self.history.sequence - 1].chain, True)
            self.segment.finish()
        self.number += 1
        upcoming = NextSegment(self.data / JOURNAL, self.instance, self._segment_bytes, lambda: None)
        upcoming.prepare(self.number)
        upcoming.wait()
        self.segment = upcoming.take()

    def run(self, flow, count):
        """The next `count` commands of a flow."""
        for _ in range(count):
            command, time_ns = flow.next()
            self.apply(command, b"{}" if command["kind"] == Kind.UPDATE_BALANCE else b"", time_ns)

    def save(self):
        """A snapshot of the state as it is."""
        return snapshot.write(self.data / SNAPSHOTS, self.instance, self.replica.state, np.uint64(self.place.chain))
