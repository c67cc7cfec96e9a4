"""Journal records as a matcher makes them, into files and into the rings, without a core behind them."""
import numpy as np

from pipeline.chain import SLOT_WORDS, chain_value
from pipeline.release import CURSOR, SYNCED, journal_word, set_journal_word
from pipeline.segment_file import NextSegment
from shm.records import CONFIGURATION_GATEWAY, JOURNAL, LAYOUT_VERSION, RecordKind
from shm.segments import JournalWord, slot_view

SEGMENT_BYTES = 4096 + 256 * 1024


class History:
    """Makes records that continue each other."""

    def __init__(self, sequence=0, chain=0):
        self.sequence, self.chain = sequence, np.uint64(chain)

    def branch(self):
        """Another history that is the same up to here."""
        return History(self.sequence, self.chain)

    def record(self, payload=b"", **fields):
        """The next record: uint64 words, whole slots."""
        slots = 1 + -(-len(payload) // JOURNAL.itemsize)
        words = np.zeros(slots * SLOT_WORDS, np.uint64)
        words[SLOT_WORDS:].view(np.uint8)[:len(payload)] = np.frombuffer(payload, np.uint8)
        self.sequence += 1
        record = words.view(JOURNAL)[0]
        for field, value in {
                "sequence": self.sequence, "time_ns": 1_000_000 + self.sequence, "previous": self.chain,
                "record_slots": slots, "record_kind": RecordKind.RECORD, "layout": LAYOUT_VERSION,
                "payload_bytes": len(payload), "gateway": CONFIGURATION_GATEWAY, "user_id": self.sequence % 1000,
                **fields}.items():
            record[field] = value
        self.chain = np.uint64(chain_value(self.chain, words, len(words)))
        record["chain"] = self.chain
        return words

    def records(self, count, **fields):
        return [self.record(**fields) for _ in range(count)]


def write_segment(directory, instance, number, records, segment_bytes=SEGMENT_BYTES):
    """A segment file with these records, as a journaler that finished it leaves it; returns its path."""
    directory.mkdir(exist_ok=True)
    upcoming = NextSegment(directory, instance, segment_bytes, wake=lambda: None)
    upcoming.prepare(number)
    upcoming.wait()
    segment = upcoming.take()
    for words in records:
        segment.append(words)
    segment.finish()
    return segment.segment.path


class FakeMatcher(History):
    """Writes records and marks into the journal ring of real shared memory, with the positions they would have."""

    def __init__(self, memory):
        super().__init__()
        self.memory, self.ring = memory, memory.journal.slots[0]
        self.cursor = journal_word(memory.journal.words, CURSOR)
        self.positions, self.reply_ends, self.event_end = {}, {}, 0
        self.stamps = []       # of everything written: (cursor after it, sequence, gateway, position, reply_end)

    @property
    def room(self):
        return len(self.ring) - (self.cursor - journal_word(self.memory.journal.words, JournalWord.HEAD))

    def write(self, gateway=0, payload=b"", publish=True, **fields):
        """A command that changed the state."""
        fields = {"known_synced": journal_word(self.memory.journal.words, SYNCED), **self._stamp(gateway, 2), **fields}
        self._put(self.record(payload, **fields), gateway, publish)

    def read(self, gateway=0, publish=True, **fields):
        """A command that did not: a mark."""
        words = np.zeros(SLOT_WORDS, np.uint64)
        mark = words.view(JOURNAL)[0]
        mark["sequence"], mark["record_kind"], mark["layout"] = self.sequence, RecordKind.MARK, LAYOUT_VERSION
        mark["record_slots"] = 1
        for field, value in {**self._stamp(gateway, 0), **fields}.items():
            mark[field] = value
        self._put(words, gateway, publish)

    def publish(self):
        set_journal_word(self.memory.journal.words, CURSOR, self.cursor)

    def _stamp(self, gateway, events):
        self.event_end += events
        if gateway != CONFIGURATION_GATEWAY:
            self.positions[gateway] = self.positions.get(gateway, 0) + 1
            self.reply_ends[gateway] = self.reply_ends.get(gateway, 0) + 3
        return {"gateway": gateway, "generation": self.memory.generation, "event_end": self.event_end,
                "position": self.positions.get(gateway, 0), "reply_end": self.reply_ends.get(gateway, 0)}

    def _put(self, words, gateway, publish):
        slots = words.reshape(-1, SLOT_WORDS)
        assert len(slots) <= self.room, "the test overfills the ring"
        for index, slot in enumerate(slots):
            self.ring[(self.cursor + index) % len(self.ring)] = slot
        self.cursor += len(slots)
        self.stamps.append((self.cursor, self.sequence, gateway, self.positions.get(gateway, 0),
                            self.reply_ends.get(gateway, 0)))
        if publish:
            self.publish()


def ring_records(memory, start, end):
    """What the journal ring holds from one position to another, slot by slot."""
    ring = slot_view(memory.journal, JOURNAL)[0]
    return [ring[position % len(ring)] for position in range(start, end)]
