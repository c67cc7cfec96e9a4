"""Every compiled function that Python calls, with the types it is called with: `python -m pipeline.kernels` compiles
all of them into the kernel cache, so that no process compiles while it serves.
"""
import uuid

import numpy as np
from numba import typeof

from pipeline import release, segment_content
from pipeline.chain import chain_value
from pipeline.core import apply_one
from pipeline.digest import state_digest
from pipeline.inbox import make_inbox
from pipeline.output import make_output, private_output
from pipeline.replay import largest_limits, replay_span
from pipeline.sequencer import OWN_WORDS, Rings, apply_configuration, free_commands, make_record, serve
from pipeline.state import allocate
from shm import doorbell, gateway_rings, segments
from shm.clock import make_scratch
from shm.kernel_cache import progress_line
from shm.records import COMMAND, JOURNAL, LIMITS
from shm.segments import ROLES, slot_view

_SIZES = segments.RingSizes(
    gateways=1, command_slots=64, reply_slots=64, journal_slots=64, event_slots=256)


def _samples():
    """Objects of the types that processes pass: real segments, unlinked at once, and small arrays."""
    instance = uuid.uuid4()
    memory = segments.create(instance, _SIZES, 1)
    segments.unlink(instance)
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


def _kernels():
    """(function, arguments of the types it is called with) each."""
    memory, state, inbox, out, rings = _samples()
    slots, records = _file_slots()
    number, check = 0, np.uint64(0)
    words = np.zeros(1, np.int64)
    ring = slot_view(memory.journal, JOURNAL)[0]
    ring_words = memory.journal.slots[0]
    staging_words = np.zeros(ring_words.size, np.uint64)
    span, moved = np.zeros(1, release.SPAN)[0], np.zeros(1, release.MOVED)
    journal_words, command_words = memory.journal.words, memory.commands.words
    reply_words, sleepers = memory.replies.words, memory.sleepers.words
    private = private_output(1, 1)
    return [
        (serve, (state, inbox, out, rings)),
        (apply_configuration, (state, inbox, out, rings)),
        (free_commands, (rings,)),
        (replay_span, (state, inbox, private, records, slots, number, number, words, number)),
        (apply_one, (state, inbox, private, number)),
        (largest_limits, (records, slots, number, number, words)),
        (state_digest, (state,)),
        (chain_value, (check, staging_words, number)),
        (segment_content.find_runs, (
            records, slots.reshape(-1), number, number, np.zeros(1, segment_content.RUN), number)),
        (segment_content.slot_after, (records, number, number)),
        (segment_content.slot_within, (records, number, number, number)),
        (release.collect, (ring, ring_words, number, number, number, number, staging_words.view(JOURNAL), staging_words,
                           span, moved)),
        (release.journal_word, (journal_words, number)),
        (release.set_journal_word, (journal_words, number, number)),
        (release.publish_synced, (journal_words, span["sequence"])),
        (release.publish_followable, (journal_words, span["sequence"])),
        (release.publish_replies, (reply_words, memory.events.words, span, moved)),
        (release.publish_released, (command_words, moved)),
        (release.publish_head, (journal_words, span["end"])),
        (release.ring_released, (sleepers, words, number, moved)),
        (release.ring_matcher, (sleepers, journal_words, number)),
        (doorbell.announce_sleep, (sleepers, number)),
        (doorbell.announce_waking, (sleepers, number)),
        (gateway_rings.is_answered, (command_words, number)),
        (gateway_rings.command_head, (command_words, number)),
        (gateway_rings.publish_commands, (command_words, number, number, sleepers, number)),
        (gateway_rings.want_room, (command_words, number, number)),
        (gateway_rings.reply_tail, (reply_words, number)),
        (gateway_rings.release_replies, (reply_words, number, number)),
    ]


def compile_all(report):
    """Compile what is not in the cache; `report(done, total, name)` is called before each."""
    kernels = _kernels()
    for done, (function, arguments) in enumerate(kernels):
        report(done, len(kernels), function.py_func.__qualname__)
        function.compile(tuple(map(typeof, arguments)))


if __name__ == "__main__":
    compile_all(progress_line)
