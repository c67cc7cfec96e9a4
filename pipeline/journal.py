"""Reading the journal: which records it holds, in which files, and where it ends.

Segments overlap: a restarted journaler writes once more what the last one may not have synced, and a power cut may keep
any part of what was not synced. So each sequence is taken from the newest segment that holds it whole and continuing
the chain, and the journal ends where none does. What lies beyond are the remains of a lost tail, unless any whole
record says that the missing one was synced: that is damage, and nobody may go on as if nothing were missing.
"""
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from pipeline.chain import SLOT_BYTES
from pipeline.segment_content import SegmentContent, as_records, runs_of
from pipeline.segment_file import HEADER_BYTES, JournalRefused, last_sequence_of, seal_of, segments_of


class JournalDamaged(JournalRefused):
    """A record is missing that was written: `path`, `offset` (where it should be), `sequence`."""

    def __init__(self, path, offset, sequence, synced):
        super().__init__(
            f"{path} at offset {offset}: the record of sequence {sequence} is damaged or missing, but everything up to"
            f" sequence {synced} was written and may have been answered: restore this file from a copy, then start"
            " again (keep what is in the directory until then)")
        self.path, self.offset, self.sequence = path, offset, sequence


class Place(NamedTuple):
    """A place in the journal: behind the record of this sequence, which has this chain value."""
    sequence: int
    chain: int


START = Place(0, 0)


class NotOnTheJournal(JournalRefused):
    """The journal has no record of this sequence with this chain value."""

    def __init__(self, directory, place):
        super().__init__(f"{directory} has no record of sequence {place.sequence} with chain value {place.chain:016x}")
        self.place = place


@dataclass(frozen=True)
class Span:
    """Records that follow each other in one segment: a replay loops over `slots` from `start_slot` to `end_slot`."""
    content: SegmentContent
    start_slot: int
    end_slot: int
    first_sequence: int
    last_sequence: int

    @property
    def path(self):
        return self.content.path

    @property
    def slots(self):
        """uint64 (slots, 32), read-only: the file after its header. Mapped anew at each call: hold it while in use."""
        return self.content.slots


@dataclass(frozen=True)
class Remains:
    """What lies beyond the journal's end, of a tail that was lost before it was synced."""
    path: Path
    offset: int
    size: int                  # bytes
    first_sequence: int        # 0: no whole record, something torn
    last_sequence: int

    def __str__(self):
        what = f"sequences {self.first_sequence} to {self.last_sequence}" if self.first_sequence else "no whole record"
        return f"{self.path} at offset {self.offset}, {self.size} bytes, {what}"


@dataclass(frozen=True)
class Journal:
    end_sequence: int          # 0: empty
    end_chain: int
    highest_known_synced: int  # that any whole record carries
    is_sealed: bool            # a segment notes that all of it is on disk
    remains: list
    spans: list                # of Span, in order of sequences

    def spans_from(self, sequence):
        """The spans without the records before `sequence`."""
        kept = []
        for span in self.spans:
            skipped = max(0, sequence - span.first_sequence)
            if sequence <= span.last_sequence:
                start = span.content.slot_after(span.start_slot, skipped)
                kept.append(replace(span, start_slot=start, first_sequence=span.first_sequence + skipped))
        return kept


def spans(directory, instance, from_sequence=1, written=0, progress=lambda: None, behind=START):
    """The journal of this instance in a directory, as `Journal`; empty where there is none.

    `behind`: a Place; nothing up to it is looked at, and segments that hold nothing else may be gone. `written` is a
    sequence up to which all was written, as shared memory knows it; `progress()` is called now and then, also by what
    is done with the result later.
    Raises JournalRefused for files that do not belong there, NotOnTheJournal where the place is not in it,
    JournalDamaged where a record is missing that was synced, as a later record or a seal says, or written.
    """
    runs, damage, highest = [], [], 0
    contents = [SegmentContent(segment, progress) for segment in segments_of(directory, instance)
                if not is_behind(segment, behind)]
    for content in contents:
        found, known_synced = runs_of(content)
        highest = max(highest, known_synced)
        runs += [run for run in found if run.first_sequence]
        damage += [run for run in found if not run.first_sequence]
    if behind != START and not any(run.holds(*behind) for run in runs):
        raise NotOnTheJournal(directory, behind)
    in_order, end_sequence, end_chain = read_order(runs, behind)
    seals = [seal_of(content.path) for content in contents]
    known = max(highest, written, *(sequence for sequence, _chain in seals)) if seals else written
    if known > end_sequence:
        path, offset = _place_of_missing(contents, in_order, runs + damage) if contents else (directory, 0)
        raise JournalDamaged(path, offset, end_sequence + 1, known)
    is_sealed = (end_sequence, end_chain) in seals
    journal = Journal(end_sequence, end_chain, highest, is_sealed, _remains(in_order, runs, damage, end_sequence),
                      in_order)
    return journal if from_sequence == 1 else replace(journal, spans=journal.spans_from(from_sequence))


def records(directory, instance, from_sequence=1):
    """Each record as a pair: a JOURNAL scalar, its payload as bytes. For tools and tests: it is slow."""
    for span in spans(directory, instance, from_sequence).spans:
        slots = span.slots
        rows, slot = as_records(slots), span.start_slot
        while slot < span.end_slot:
            record = rows[slot]
            behind = slot + int(record["record_slots"])
            yield record, slots[slot + 1:behind].tobytes()[:int(record["payload_bytes"])]
            slot = behind


def is_behind(segment, place):
    """Whether a segment holds nothing but records before the one that the place is behind: its seal says so, if it was
    made when the segment was finished."""
    return 0 < last_sequence_of(segment.path) < place.sequence


def read_order(runs, behind=START):
    """(spans in order, last sequence, its chain value): each sequence after `behind` from the newest run that has it
    and continues the chain."""
    waiting = sorted(runs, key=lambda run: run.first_sequence, reverse=True)
    covering, in_order, chosen, (sequence, chain) = [], [], None, behind
    while True:
        sequence += 1
        while waiting and waiting[-1].first_sequence <= sequence:
            covering.append(waiting.pop())
        covering = [run for run in covering if run.last_sequence >= sequence]
        before, chosen = chosen, max((run for run in covering if run.chain_before(sequence) == chain),
                                     key=lambda run: run.age, default=None)
        if chosen is None:
            return in_order, sequence - 1, chain
        last = min(chosen.last_sequence, waiting[-1].first_sequence - 1) if waiting else chosen.last_sequence
        span = Span(chosen.content, chosen.slot_of(sequence), chosen.slot_of(last + 1), sequence, last)
        if chosen is before:
            earlier = in_order.pop()
            span = replace(span, start_slot=earlier.start_slot, first_sequence=earlier.first_sequence)
        in_order.append(span)
        sequence, chain = last, chosen.chain_before(last + 1)


def _remains(in_order, runs, damage, end_sequence):
    """Whole records beyond the end, and what is torn behind all that the journal is read from."""
    end = max(((span.content.segment.number, span.end_slot) for span in in_order), default=(0, 0))
    lost = []
    for run in sorted(runs + damage, key=lambda run: run.age):
        if run.last_sequence > end_sequence:
            first = max(run.first_sequence, end_sequence + 1)
            lost.append((run, run.slot_of(first), first))
        elif not run.first_sequence and run.age >= end:
            lost.append((run, run.start_slot, 0))
    return [Remains(run.content.path, HEADER_BYTES + slot * SLOT_BYTES, (run.end_slot - slot) * SLOT_BYTES, first,
                    run.last_sequence) for run, slot, first in lost]


def _place_of_missing(contents, in_order, runs):
    """(path, offset) where the first missing record should be."""
    if not in_order:
        return contents[0].path, HEADER_BYTES
    content, slot = in_order[-1].content, in_order[-1].end_slot
    more = any(run.content is content and run.start_slot >= slot for run in runs)
    later = [other for other in contents if other.segment.number > content.segment.number]
    if later and not more:
        content, slot = later[0], 0
    return content.path, HEADER_BYTES + slot * SLOT_BYTES
