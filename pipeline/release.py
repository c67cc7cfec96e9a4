"""What a span of the journal ring holds, and the words of shared memory that it lets move on.

Each word here has one writer, the journaler, and never moves back: a restarted journaler may take a shorter span.
"""
import numpy as np
from numba import int64

from pipeline.chain import RECORD, SLOT_WORDS, whole_slots
from shm.atomics import fence_seq_cst, load_acquire, store_release
from shm.doorbell import ring_if_asleep
from shm.kernel import inlined, kernel
from shm.records import CONFIGURATION_GATEWAY, RecordKind
from shm.segments import CommandWord, EventWord, JournalWord, ReplyWord, Role

MARK = int(RecordKind.MARK)
CURSOR, HEAD, OPENED = int(JournalWord.CURSOR), int(JournalWord.HEAD), int(JournalWord.OPENED)
SYNCED, FOLLOWABLE = int(JournalWord.SYNCED), int(JournalWord.FOLLOWABLE)
REFUSING, ROOM_WANTED = int(JournalWord.REFUSING), int(JournalWord.ROOM_WANTED)
REPLY_TAIL, RELEASED, VISIBLE = int(ReplyWord.TAIL), int(CommandWord.RELEASED), int(EventWord.VISIBLE)
MATCHER, PUBLISHER, FIRST_GATEWAY = int(Role.MATCHER), int(Role.PUBLISHER), int(Role.GATEWAY)

SPAN = np.dtype([               # what `collect` took: positions of the ring [start, end)
    ("start", "<i8"), ("end", "<i8"),
    ("entries", "<i8"),         # records and marks
    ("staged_slots", "<i8"),    # of its records
    ("event_end", "<i8"),
    ("sequence", "<i8"),        # of the last record ever taken; -1: not known
    ("chain", "<u8"),           # of that record
])
MOVED = np.dtype([              # of a gateway, from its last record or mark in the span
    ("here", "<i8"),            # 1: the span has one
    ("reply_end", "<i8"), ("position", "<i8"),
])
FIT, NO_ROOM, DEFECT = 0, 1, 2


@kernel
def collect(ring, ring_words, end, room_slots, generation, synced, staging, staging_words, span, moved):
    """Take the span from `span.end` to the ring position `end`: copy its records to `staging`, one behind the other,
    and note in `span` and `moved` what the release needs. Marks are not copied: nothing is written for a read.

    `ring` and `staging` are JOURNAL records, `ring_words` and `staging_words` (uint64) the same memory.
    Returns FIT, or NO_ROOM where `room_slots` ended the span early, before a record that did not fit, or DEFECT where
    the record at `span.end` is not what a matcher writes: not whole, not continuing the chain, of another generation.
    """
    mask = ring.shape[0] - 1
    at, staged = span["end"], int64(0)
    span["start"] = at
    span["entries"] = 0
    moved["here"][:] = 0
    outcome = FIT
    while at < end:
        entry = ring[at & mask]
        slots, gateway = int64(entry["record_slots"]), int64(entry["gateway"])
        if slots < 1 or slots > end - at:
            outcome = DEFECT
            break
        from_gateway = gateway != CONFIGURATION_GATEWAY
        if from_gateway and (gateway >= moved.shape[0] or entry["generation"] != generation):
            outcome = DEFECT
            break
        if entry["record_kind"] == RECORD:
            if staged + slots > room_slots:
                outcome = NO_ROOM
                break
            for index in range(slots):
                for word in range(SLOT_WORDS):
                    staging_words[(staged + index) * SLOT_WORDS + word] = ring_words[(at + index) & mask, word]
            if whole_slots(staging, staging_words, staged) != slots or entry["known_synced"] > synced:
                outcome = DEFECT
                break
            if span["sequence"] >= 0 and (entry["sequence"] != span["sequence"] + 1
                                          or entry["previous"] != span["chain"]):
                outcome = DEFECT
                break
            span["sequence"] = entry["sequence"]
            span["chain"] = entry["chain"]
            staged += slots
        elif entry["record_kind"] != MARK:
            outcome = DEFECT
            break
        if from_gateway:
            moved[gateway]["here"] = 1
            moved[gateway]["reply_end"] = entry["reply_end"]
            moved[gateway]["position"] = entry["position"]
        span["event_end"] = entry["event_end"]
        span["entries"] += 1
        at += slots
        span["end"] = at
    span["staged_slots"] = staged
    return outcome


@inlined
def _raise_word(words, row, word, value):
    """Store a word that never moves back."""
    if value > load_acquire(words, row, word):
        store_release(words, row, word, value)


@kernel
def journal_word(journal_words, word):
    return load_acquire(journal_words, 0, word)


@kernel
def set_journal_word(journal_words, word, value):
    """For OPENED and REFUSING, which are states and no positions."""
    store_release(journal_words, 0, word, value)


@kernel
def publish_synced(journal_words, sequence):
    """Everything up to `sequence` is on disk, so that followers may read it."""
    _raise_word(journal_words, 0, SYNCED, sequence)
    _raise_word(journal_words, 0, FOLLOWABLE, sequence)


@kernel
def publish_followable(journal_words, sequence):
    """Followers may read up to `sequence`, on disk or not."""
    _raise_word(journal_words, 0, FOLLOWABLE, sequence)


@kernel
def publish_replies(reply_words, event_words, span, moved):
    """Show each gateway its replies of the span, and everybody the span's events."""
    for gateway in range(moved.shape[0]):
        if moved[gateway]["here"] != 0:
            _raise_word(reply_words, gateway, REPLY_TAIL, moved[gateway]["reply_end"])
    _raise_word(event_words, 0, VISIBLE, span["event_end"])


@kernel
def publish_released(command_words, moved):
    """The span's commands have visible replies: after this a starting gateway may take its ring for drained."""
    for gateway in range(moved.shape[0]):
        if moved[gateway]["here"] != 0:
            _raise_word(command_words, gateway, RELEASED, moved[gateway]["position"])


@kernel
def publish_head(journal_words, position):
    """The matcher may reuse the ring's slots before `position`."""
    _raise_word(journal_words, 0, HEAD, position)


@kernel
def ring_released(sleepers, gateway_bells, publisher_bell, moved):
    """Wake whom `publish_replies` and `publish_released` gave something."""
    for gateway in range(moved.shape[0]):
        if moved[gateway]["here"] != 0:
            ring_if_asleep(sleepers, FIRST_GATEWAY + gateway, gateway_bells[gateway])
    ring_if_asleep(sleepers, PUBLISHER, publisher_bell)


@kernel
def ring_matcher(sleepers, journal_words, matcher_bell):
    """Wake the matcher if it waits for room, after `publish_head`."""
    fence_seq_cst()
    if load_acquire(journal_words, 0, ROOM_WANTED) != 0:
        ring_if_asleep(sleepers, MATCHER, matcher_bell)
