"""The pipeline's kernels, with the types they are called with: see shm/kernel_compiler.py."""
import numpy as np

from pipeline import release, segment_content, snapshot
from pipeline.chain import chain_value
from pipeline.core import apply_one
from pipeline.digest import state_digest
from pipeline.divergence import digest_of_matcher
from pipeline.inbox import make_inbox
from pipeline.output import make_output, private_output
from pipeline.replay import largest_limits, replay_span, replay_until_change
from pipeline.sequencer import (
    OWN_WORDS,
    Rings,
    free_commands,
    journal_configuration,
    make_record,
    serve,
    show_digest,
    stamp_time,
)
from pipeline.state import allocate
from shm import doorbell, segments
from shm.clock import make_scratch
from shm.records import COMMAND, JOURNAL, LIMITS, ORDER
from shm.segments import ROLES, slot_view


def _samples():
    """Objects of the types that processes pass."""
    memory = segments.sample()
    limits = np.zeros((), LIMITS)
    for name in LIMITS.names:
        limits[name] = 1
    state, inbox = allocate(limits), make_inbox()
    out = make_output(1, 1, memory.events.slots[0], memory.events.words)
    record, record_words = make_record()
    words = np.zeros(1, np.int64)
    rings = Rings(
        command_words=memory.commands.words, commands=memory.commands.slots,
        command_records=slot_view(memory.commands, COMMAND), reply_words=memory.replies.words,
        replies=memory.replies.slots, journal_words=memory.journal.words, journal=memory.journal.slots[0],
        sleepers=memory.sleepers.words, counters=memory.counters.words, bells=np.zeros(ROLES, np.int64),
        own=np.zeros(OWN_WORDS, np.int64), positions=words, reply_ends=words, record=record,
        record_words=record_words, scratch=make_scratch())
    return memory, state, inbox, out, rings


def _file_slots():
    """A segment file's slots as they are mapped: read-only."""
    slots = np.frombuffer(bytes(JOURNAL.itemsize * 2), np.uint64).reshape(2, -1)
    return slots, slots.reshape(-1).view(JOURNAL)


def kernels():
    """Groups of (function, arguments of the types it is called with), in the order in which they are best begun."""
    memory, state, inbox, out, rings = _samples()
    slots, records = _file_slots()
    number, check = 0, np.uint64(0)
    words = np.zeros(1, np.int64)
    ring = slot_view(memory.journal, JOURNAL)[0]
    ring_words = memory.journal.slots[0]
    staging_words = np.zeros(ring_words.size, np.uint64)
    span, moved = np.zeros(release.SPAN_WORDS, np.int64), np.zeros(1, release.MOVED)
    journal_words, command_words = memory.journal.words, memory.commands.words
    reply_words, sleepers = memory.replies.words, memory.sleepers.words
    private = private_output(1, 1)
    small = [
        (state_digest, (state,)),
        (snapshot.copy_balances, (state, np.zeros(1, snapshot.SNAPSHOT_BALANCE))),
        (snapshot.copy_orders, (state, np.zeros((1, 1), np.uint64))),
        (snapshot.copy_keys, (state, np.zeros(1, snapshot.SNAPSHOT_KEY))),
        (snapshot.restore_balances, (state, np.zeros(1, snapshot.SNAPSHOT_BALANCE))),
        (snapshot.restore_orders, (state, np.zeros(1, ORDER), np.zeros((1, 1), np.uint64))),
        (snapshot.restore_keys, (state, np.zeros(1, snapshot.SNAPSHOT_KEY))),
        (release.collect, (journal_words, ring, ring_words, number, number, staging_words.view(JOURNAL), staging_words,
                           span, moved)),
        (segment_content.find_runs, (
            records, slots.reshape(-1), number, number, np.zeros(1, segment_content.RUN), number)),
        (segment_content.continue_run, (records, slots.reshape(-1), number, number, check, number, number)),
        (segment_content.slot_after, (records, number, number)),
        (segment_content.slot_within, (records, number, number, number)),
        (largest_limits, (records, slots, number, number, words)),
        (chain_value, (check, staging_words, number)),
        (release.journal_word, (journal_words, number)),
        (release.set_journal_word, (journal_words, number, number)),
        (release.publish, (words, journal_words, reply_words, memory.events.words, command_words, span, moved)),
        (release.count, (words, journal_words, span)),
        (release.ring_released, (sleepers, words, number, moved)),
        (release.ring_matcher, (sleepers, journal_words, number)),
        (doorbell.announce_sleep, (sleepers, number)),
        (doorbell.announce_waking, (sleepers, number)),
    ]
    core = [
        (serve, (state, inbox, out, rings)),
        (replay_span, (state, inbox, private, records, slots, number, number, words, number, number)),
        (replay_until_change, (state, inbox, private, records, slots, number, number, number, number)),
        (apply_one, (state, inbox, private, number)),
        (journal_configuration, (state, inbox, rings, True, number)),
        (stamp_time, (rings,)),
        (show_digest, (state, memory.counters.words)),
        (digest_of_matcher, (memory.counters.words,)),
        (free_commands, (rings,)),
    ]
    return [core, *([kernel] for kernel in small)]
