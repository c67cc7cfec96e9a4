"""What a span of the journal ring holds, and the words of shared memory that it lets move on.

Each word here has one writer, the journaler, and never moves back: a restarted journaler may take a shorter span.
"""
import numpy as np
from numba import int64, uint64

from pipeline.chain import RECORD, SLOT_WORDS, whole_slots
from shm.atomics import fence_seq_cst, load_acquire, store_release
from shm.doorbell import ring_if_asleep
from shm.kernel import inlined, kernel
from shm.records import CONFIGURATION_GATEWAY, RecordKind
from shm.segments import CommandWord, CounterWord, EventWord, JournalWord, ReplyWord, Role

MARK = int(RecordKind.MARK)
CURSOR, HEAD, OPENED = int(JournalWord.CURSOR), int(JournalWord.HEAD), int(JournalWord.OPENED)
SYNCED, FOLLOWABLE = int(JournalWord.SYNCED), int(JournalWord.FOLLOWABLE)
REFUSING, ROOM_WANTED = int(JournalWord.REFUSING), int(JournalWord.ROOM_WANTED)
REPLY_TAIL, RELEASED, VISIBLE = int(ReplyWord.TAIL), int(CommandWord.RELEASED), int(EventWord.VISIBLE)
RECORDS, BATCHES = int(CounterWord.RECORDS), int(CounterWord.BATCHES)
LARGEST_BATCH, PAGE_SEQUENCE = int(CounterWord.LARGEST_BATCH), int(CounterWord.SEQUENCE)
MATCHER, PUBLISHER, FIRST_GATEWAY = int(Role.MATCHER), int(Role.PUBLISHER), int(Role.GATEWAY)

# Words of a span (int64): what `collect` took, positions of the ring [START, END).
START, END = 0, 1
ENTRIES = 2                     # records and marks
STAGED_SLOTS = 3                # of its records
EVENT_END = 4
SEQUENCE = 5                    # of the last record ever taken; -1: not known
LAST_CHAIN = 6                  # of that record
SPAN_WORDS = 7

# Steps of publication that need no system call.
SYNCED_WORD, FOLLOWABLE_WORD, REPLY_TAILS, RELEASED_POSITIONS, RING_HEAD = range(5)
MOVED = np.dtype([              # of a gateway, from its last record or mark in the span
    ("here", "<i8"),            # 1: the span has one
    ("reply_end", "<i8"), ("position", "<i8"),
])
FIT, NO_ROOM, DEFECT = 0, 1, 2


@kernel
def collect(journal_words, ring, ring_words, room_slots, generation, staging, staging_words, span, moved):
    """Take the span from its END to the ring's cursor: copy its records to `staging`, one behind the other, and note in
    `span` and `moved` what the release needs. Marks are not copied: nothing is written for a read.

    `ring` and `staging` are JOURNAL records, `ring_words` and `staging_words` (uint64) the same memory.
    Returns FIT, or NO_ROOM where `room_slots` ended the span early, before a record that did not fit, or DEFECT where
    the record at the span's END is not what a matcher writes: not whole, breaking the chain, of another generation.
    """
    mask = ring.shape[0] - 1
    end, synced = load_acquire(journal_words, 0, CURSOR), load_acquire(journal_words, 0, SYNCED)
    at, staged = span[END], int64(0)
    span[START] = at
    span[ENTRIES] = 0
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
            if span[SEQUENCE] >= 0 and (entry["sequence"] != span[SEQUENCE] + 1
                                        or entry["previous"] != uint64(span[LAST_CHAIN])):
                outcome = DEFECT
                break
            span[SEQUENCE] = entry["sequence"]
            span[LAST_CHAIN] = int64(entry["chain"])
            staged += slots
        elif entry["record_kind"] != MARK:
            outcome = DEFECT
            break
        if from_gateway:
            moved[gateway]["here"] = 1
            moved[gateway]["reply_end"] = entry["reply_end"]
            moved[gateway]["position"] = entry["position"]
        span[EVENT_END] = entry["event_end"]
        span[ENTRIES] += 1
        at += slots
        span[END] = at
    span[STAGED_SLOTS] = staged
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


@inlined
def publish_replies(reply_words, event_words, span, moved):
    """Show each gateway its replies of the span, and everybody the span's events."""
    for gateway in range(moved.shape[0]):
        if moved[gateway]["here"] != 0:
            _raise_word(reply_words, gateway, REPLY_TAIL, moved[gateway]["reply_end"])
    _raise_word(event_words, 0, VISIBLE, span[EVENT_END])


@inlined
def publish_released(command_words, moved):
    """The span's commands have visible replies: after this a starting gateway may take its ring for drained."""
    for gateway in range(moved.shape[0]):
        if moved[gateway]["here"] != 0:
            _raise_word(command_words, gateway, RELEASED, moved[gateway]["position"])


@kernel
def publish(steps, journal_words, reply_words, event_words, command_words, span, moved):
    """Take these steps, in their order: show what the span lets out."""
    for step in steps:
        if step == SYNCED_WORD:          # all up to the last record is on disk, so that followers may read it
            _raise_word(journal_words, 0, SYNCED, span[SEQUENCE])
            _raise_word(journal_words, 0, FOLLOWABLE, span[SEQUENCE])
        elif step == FOLLOWABLE_WORD:    # followers may read up to it, on disk or not
            _raise_word(journal_words, 0, FOLLOWABLE, span[SEQUENCE])
        elif step == REPLY_TAILS:
            publish_replies(reply_words, event_words, span, moved)
        elif step == RELEASED_POSITIONS:
            publish_released(command_words, moved)
        elif step == RING_HEAD:          # the matcher may reuse the slots before it
            _raise_word(journal_words, 0, HEAD, span[END])


@kernel
def ring_released(sleepers, gateway_bells, publisher_bell, moved):
    """Wake whom `publish` gave replies, released positions or events."""
    for gateway in range(moved.shape[0]):
        if moved[gateway]["here"] != 0:
            ring_if_asleep(sleepers, FIRST_GATEWAY + gateway, gateway_bells[gateway])
    ring_if_asleep(sleepers, PUBLISHER, publisher_bell)


@kernel
def ring_matcher(sleepers, journal_words, matcher_bell):
    """Wake the matcher if it waits for room, after the ring's head was published."""
    fence_seq_cst()
    if load_acquire(journal_words, 0, ROOM_WANTED) != 0:
        ring_if_asleep(sleepers, MATCHER, matcher_bell)


@kernel
def count(page, journal_words, span):
    """Count the span in the journaler's page of counters."""
    page[RECORDS] += span[ENTRIES]
    page[BATCHES] += 1
    page[LARGEST_BATCH] = max(page[LARGEST_BATCH], span[ENTRIES])
    page[PAGE_SEQUENCE] = load_acquire(journal_words, 0, SYNCED)
