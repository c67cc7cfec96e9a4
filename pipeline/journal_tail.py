"""Reading the journal while it grows: from one place on, as far as a reader may go, each record once."""
import numpy as np

from pipeline import journal
from pipeline.journal import Place
from pipeline.segment_content import SLOTS_AT_ONCE, as_records, continue_run


class JournalTail:
    """`place` is how far it has been read. `progress()` is called now and then."""

    def __init__(self, directory, instance, place, progress=lambda: None):
        self.place = place
        self._directory, self._instance, self._progress = directory, instance, progress
        self._path = self._slots = None
        self._slot = 0

    def read(self, until):
        """Yield (path, slots, first slot, end slot) of the records behind `place` up to the sequence `until`, or as far
        as the journal goes: records that follow each other in one segment. `place` is behind them then.

        Raises JournalRefused as `journal.spans` does.
        """
        while self.place.sequence < until:
            if self._slots is None and not self._find():
                return
            records, words, slot = as_records(self._slots), self._slots.reshape(-1), self._slot
            sequence, chain = self.place
            self._slot, *place = continue_run(records, words, slot, sequence, np.uint64(chain), until, SLOTS_AT_ONCE)
            if self._slot == slot:
                self._slots = None  # the journal goes on in another segment
                continue
            self.place = Place(*map(int, place))
            yield self._path, self._slots, slot, self._slot
            self._progress()

    def _find(self):
        """Where the journal goes on; returns whether it does."""
        spans = journal.spans(self._directory, self._instance, progress=self._progress, behind=self.place).spans
        if spans:
            self._path, self._slots, self._slot = spans[0].path, spans[0].slots, spans[0].start_slot
        return bool(spans)
