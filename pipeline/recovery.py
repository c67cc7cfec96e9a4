"""The state again: the newest snapshot that can be used, then the journal behind it.

A snapshot that is damaged, or not on the journal's chain, is passed over, which is said; then the one before it serves,
at last the journal from its beginning. Each way leads to the same state or to none.
"""
from functools import partial
from typing import NamedTuple

from pipeline import journal, snapshot
from pipeline.journal import START, JournalRefused, NotOnTheJournal, Place
from pipeline.replay import limits_in, replay
from pipeline.replica import EVENT_SLOTS, Replica
from pipeline.segment_file import segments_of
from pipeline.snapshot import Snapshot, SnapshotDamaged
from shm.records import INT64_MAX

SNAPSHOTS, JOURNAL = "snapshots", "journal"  # folders of a data directory


class Base(NamedTuple):
    replica: Replica
    place: Place               # of the replica
    found: journal.Journal     # what stands behind it
    snapshot: Snapshot         # None: the replica is empty


def read_journal(data, instance, tell, written=0, progress=lambda: None, sequence_max=INT64_MAX):
    """The Journal behind the newest snapshot that stands on it, with that snapshot and its Place; None and START where
    there is none. What is in the snapshot's parts is not looked at.

    `tell(text)` hears of every snapshot that is passed over; those after `sequence_max` are not meant.
    Raises JournalRefused as `journal.spans` does.
    """
    return next(_journals(data, instance, tell, written, progress, sequence_max))


def _journals(data, instance, tell, written, progress, sequence_max):
    """Each that could serve: the newest snapshot first, at last the journal alone."""
    read = partial(journal.spans, data / JOURNAL, instance, written=written, progress=progress)
    passed_over = []
    for found in snapshot.snapshots_of(data / SNAPSHOTS):
        if found.sequence <= sequence_max:
            try:
                place = snapshot.place_of(found, instance)
                yield read(behind=place), found, place
            except (SnapshotDamaged, OSError, NotOnTheJournal) as problem:
                tell(f"{found.path} is passed over: {problem}")
            passed_over.append(found.path.name)
    segments = segments_of(data / JOURNAL, instance)
    if (segments and segments[0].number > 1) or (passed_over and not segments):
        begins = f"the journal's first segment is {segments[0].path.name}, its beginning" if segments else "the journal"
        raise JournalRefused(
            f"{begins} is gone, and of the snapshots in {data / SNAPSHOTS} none can be used"
            f" ({', '.join(passed_over) or 'there is none'}): restore one from a copy, or the journal from its archive")
    yield read(), None, START


def base(data, instance, limits, tell, written=0, progress=lambda: None, sequence_max=INT64_MAX,
         event_slots=EVENT_SLOTS):
    """Where to begin: a replica from the newest snapshot that can be used, not after `sequence_max`, or an empty one;
    with room for `limits` (a LIMITS record) or what the journal asks for, whichever is more, and for `event_slots`.

    `tell(text)` hears of every snapshot that is passed over. Raises JournalRefused.
    """
    for found, saved, place in _journals(data, instance, tell, written, progress, sequence_max):
        wanted = limits_in(found, limits, progress)
        if saved is None:
            return Base(Replica(wanted, event_slots), place, found, None)
        try:
            return Base(snapshot.restored(*snapshot.read(saved, instance), wanted, event_slots), place, found, saved)
        except (SnapshotDamaged, OSError) as problem:
            tell(f"{saved.path} is passed over: {problem}")
    raise AssertionError("the journal alone is always tried")


def recover(data, instance, limits, tell, positions, generation, written=0, progress=lambda _replica=None: None):
    """The Base, its replica brought to the journal's end. `positions`, `generation`: see replay; `progress(replica)` is
    called now and then. Raises JournalRefused, ReplayDiverged."""
    found = base(data, instance, limits, tell, written, progress)
    replay(found.replica, found.found, positions, generation, partial(progress, found.replica))
    return found
