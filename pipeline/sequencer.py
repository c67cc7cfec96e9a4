"""What the matcher does: it takes commands from all gateways' rings in turn, stamps each, applies it, writes reply,
events and journal entry, and publishes once a batch, in the order of ARCHITECTURE.md, "The order of publication".

The loop is compiled, with its clock, its bells and its sleep; it comes back to Python for signals only.
"""
from typing import NamedTuple

import numpy as np
from numba import int64, uint64

from pipeline.chain import chain_value_at
from pipeline.core import apply
from pipeline.lookahead import FIRST, SECOND, THIRD, fetch_cells, fetch_neighbours, fetch_orders, is_worthwhile
from pipeline.replay import BODY_WORDS, COMMAND_WORDS, SLOT_WORDS, STAMP_WORDS
from pipeline.state import DEFECT, EVENT_POSITION, OUTPUT_DIGEST, SEQUENCE
from shm.atomics import fence_release, fence_seq_cst, load_acquire, store_release
from shm.clock import CLOCK_MONOTONIC, CLOCK_REALTIME, now_ns, wait_for_bell
from shm.doorbell import announce_sleep, announce_waking, ring_if_asleep
from shm.kernel import inlined, kernel
from shm.records import COMMAND_SLOTS_MAX, CONFIGURATION_GATEWAY, JOURNAL, LAYOUT_VERSION, RECORD_SLOTS_MAX, RecordKind
from shm.ring import copy_in, copy_out
from shm.segments import CommandWord, CounterWord, JournalWord, ReplyWord, Role

RECORD = int(RecordKind.RECORD)
MARK = int(RecordKind.MARK)
MATCHER = int(Role.MATCHER)
JOURNALER = int(Role.JOURNALER)
FIRST_GATEWAY = int(Role.GATEWAY)
COMMAND_TAIL = int(CommandWord.TAIL)
COMMAND_HEAD = int(CommandWord.HEAD)
COMMAND_ROOM_WANTED = int(CommandWord.ROOM_WANTED)
REPLY_HEAD = int(ReplyWord.HEAD)
JOURNAL_CURSOR = int(JournalWord.CURSOR)
JOURNAL_HEAD = int(JournalWord.HEAD)
JOURNAL_ROOM_WANTED = int(JournalWord.ROOM_WANTED)
SYNCED = int(JournalWord.SYNCED)
HEARTBEAT_WORD = int(CounterWord.HEARTBEAT_NS)
RECORDS_WORD = int(CounterWord.RECORDS)
BATCHES_WORD = int(CounterWord.BATCHES)
LARGEST_BATCH_WORD = int(CounterWord.LARGEST_BATCH)
FULL_WORD = int(CounterWord.FULL)
WAKEUPS_WORD = int(CounterWord.WAKEUPS)
SEQUENCE_WORD = int(CounterWord.SEQUENCE)
DIGEST_WORD = int(CounterWord.OUTPUT_DIGEST)
DIGEST_SEQUENCE_WORD = int(CounterWord.DIGEST_SEQUENCE)
CLOCK_STEPS_WORD = int(CounterWord.CLOCK_STEPS)

# Words of `own`: the matcher's private cursors.
JOURNAL_END = 0                # next slot of the journal ring
CHAIN = 1                      # of the last record
SPIN_NS = 2                    # setting
BATCH_MAX = 3                  # setting
GENERATION = 4                 # of the shared memory
BROKEN = 5                     # which invariant
BROKEN_GATEWAY = 6
STAMPED_NS = 7                 # the last stamp
LOOK_NS = 8                    # setting: how long `serve` goes on until Python looks at signals
OWN_WORDS = 9

# Broken invariants of the rings.
COMMAND_MALFORMED = 1
REPLY_RING_OVERRUN = 2
CORE_DEFECT = 3

# Why `serve` came back.
SIGNALLED = 0
LOOK = 1                       # time for Python to look at signals
BROKE = 2
LOOK_EVERY_NS = 100_000_000
HEARTBEAT_NS = 1_000_000_000


class Rings(NamedTuple):
    command_words: np.ndarray  # int64 (gateway, word)
    commands: np.ndarray       # uint64 (gateway, slot, word)
    command_records: np.ndarray  # COMMAND (gateway, slot): the same memory
    reply_words: np.ndarray
    replies: np.ndarray        # uint64 (gateway, slot, word)
    journal_words: np.ndarray
    journal: np.ndarray        # uint64 (slot, word)
    sleepers: np.ndarray
    counters: np.ndarray       # int64 (role, word)
    bells: np.ndarray          # int64 (role): file descriptors
    own: np.ndarray            # int64 (OWN_WORDS): private cursors
    positions: np.ndarray      # int64 (gateway): next slot of its command ring
    reply_ends: np.ndarray     # int64 (gateway): next slot of its reply ring
    record: np.ndarray         # JOURNAL (RECORD_SLOTS_MAX): the entry in the making
    record_words: np.ndarray   # uint64: the same memory
    scratch: np.ndarray        # for the clock


def make_record():
    """(JOURNAL records, the same memory as words): room for the largest journal entry."""
    record = np.zeros(RECORD_SLOTS_MAX, JOURNAL)
    return record, record.view(np.uint64)


@kernel
def show_digest(state, counters):
    """Show the running digest and its sequence to whoever compares: see divergence.py."""
    store_release(counters, MATCHER, DIGEST_SEQUENCE_WORD, state.counters[SEQUENCE])
    fence_release()
    store_release(counters, MATCHER, DIGEST_WORD, state.counters[OUTPUT_DIGEST])
    store_release(counters, MATCHER, SEQUENCE_WORD, state.counters[SEQUENCE])


@inlined
def journal_room(rings):
    """Free slots of the journal ring beyond what this batch has written."""
    used = rings.own[JOURNAL_END] - load_acquire(rings.journal_words, 0, JOURNAL_HEAD)
    return rings.journal.shape[0] - used


@inlined
def write_entry(state, inbox, rings, changed, time_ns, gateway, position, reply_end, known_synced):
    """Write a record or a mark beyond the journal ring's published cursor."""
    own = rings.own
    entry = rings.record[0]
    entry.sequence = state.counters[SEQUENCE]
    entry.time_ns = time_ns
    entry.position = position
    entry.reply_end = reply_end
    entry.event_end = state.counters[EVENT_POSITION]
    entry.previous = uint64(own[CHAIN])
    entry.chain = uint64(own[CHAIN])
    entry.known_synced = known_synced
    entry.generation = own[GENERATION]
    entry.gateway = gateway
    entry.layout = LAYOUT_VERSION
    if not changed:
        entry.record_kind = MARK
        entry.record_slots = 1
        mask = rings.journal.shape[0] - 1
        slot = own[JOURNAL_END] & mask
        for word in range(STAMP_WORDS):
            rings.journal[slot, word] = rings.record_words[word]
        own[JOURNAL_END] += 1
        return
    payload_words = (int64(inbox.command[0].payload_bytes) + 7) // 8
    slots = 1 + (payload_words + SLOT_WORDS - 1) // SLOT_WORDS
    entry.record_kind = RECORD
    entry.record_slots = slots
    words = rings.record_words
    for word in range(BODY_WORDS):
        words[STAMP_WORDS + word] = inbox.words[1 + word]
    for word in range(payload_words):
        words[SLOT_WORDS + word] = inbox.words[COMMAND_WORDS + word]
    for word in range(SLOT_WORDS + payload_words, slots * SLOT_WORDS):
        words[word] = 0
    chain = chain_value_at(uint64(own[CHAIN]), words, 0, slots * SLOT_WORDS)
    entry.chain = chain
    own[CHAIN] = int64(chain)
    copy_in(rings.journal, own[JOURNAL_END], words, slots)
    own[JOURNAL_END] += slots


@kernel
def stamp_time(rings):
    """The time of this batch, never below the last one: a clock that was set back is held."""
    now = now_ns(CLOCK_REALTIME, rings.scratch)
    if now < rings.own[STAMPED_NS]:
        rings.counters[MATCHER, CLOCK_STEPS_WORD] += 1
        return rings.own[STAMPED_NS]
    rings.own[STAMPED_NS] = now
    return now


@kernel
def journal_configuration(state, inbox, rings, changed, time_ns):
    """Journal the command in `inbox`, applied, which the configuration asked for; nobody waits for its reply."""
    known_synced = load_acquire(rings.journal_words, 0, SYNCED)
    write_entry(state, inbox, rings, changed, time_ns, CONFIGURATION_GATEWAY, 0, 0, known_synced)
    publish(state, rings)


@inlined
def publish(state, rings):
    """The journal ring's cursor, then the journaler's bell."""
    store_release(rings.journal_words, 0, JOURNAL_CURSOR, rings.own[JOURNAL_END])
    ring_if_asleep(rings.sleepers, JOURNALER, rings.bells[JOURNALER])


@kernel
def free_commands(rings):
    """The command rings' heads, then the bells of gateways that wait for room."""
    for gateway in range(rings.commands.shape[0]):
        if rings.positions[gateway] != load_acquire(rings.command_words, gateway, COMMAND_HEAD):
            store_release(rings.command_words, gateway, COMMAND_HEAD, rings.positions[gateway])
            fence_seq_cst()
            if load_acquire(rings.command_words, gateway, COMMAND_ROOM_WANTED) != 0:
                role = FIRST_GATEWAY + gateway
                ring_if_asleep(rings.sleepers, role, rings.bells[role])


@inlined
def look_ahead(state, rings, gateway, position, tail):
    """Fetch what the gateway's next commands will touch; commands of several slots only waste a fetch."""
    mask = rings.commands.shape[1] - 1
    if position + FIRST < tail:
        fetch_cells(state, rings.command_records[gateway, (position + FIRST) & mask])
    if position + SECOND < tail:
        fetch_orders(state, rings.command_records[gateway, (position + SECOND) & mask])
    if position + THIRD < tail:
        fetch_neighbours(state, rings.command_records[gateway, (position + THIRD) & mask])


@inlined
def run_batch(state, inbox, out, rings):
    """Handle what is there, one command of each gateway in turn; returns how many, or -1 for a broken invariant."""
    own = rings.own
    gateways = rings.commands.shape[0]
    time_ns = int64(0)
    known_synced = load_acquire(rings.journal_words, 0, SYNCED)
    handled = int64(0)
    full = False
    progress = True
    while progress and not full and handled < own[BATCH_MAX]:
        progress = False
        for gateway in range(gateways):
            position = rings.positions[gateway]
            tail = load_acquire(rings.command_words, gateway, COMMAND_TAIL)
            if position >= tail:
                continue
            if journal_room(rings) < RECORD_SLOTS_MAX:
                full = True
                break
            if handled == 0:
                time_ns = stamp_time(rings)
            if is_worthwhile(state):
                look_ahead(state, rings, gateway, position, tail)
            mask = rings.commands.shape[1] - 1
            slots = int64(rings.command_records[gateway, position & mask].slots)
            copy_out(rings.commands[gateway], position, min(max(slots, 1), COMMAND_SLOTS_MAX), inbox.words)
            payload_slots = (int64(inbox.command[0].payload_bytes) + COMMAND_WORDS * 8 - 1) // (COMMAND_WORDS * 8)
            if slots != 1 + payload_slots or slots > COMMAND_SLOTS_MAX or position + slots > tail:
                own[BROKEN] = COMMAND_MALFORMED
                own[BROKEN_GATEWAY] = gateway
                return int64(-1)
            changed = apply(state, inbox, out, time_ns)
            if state.counters[DEFECT] != 0:
                own[BROKEN] = CORE_DEFECT
                return int64(-1)
            reply_slots = int64(out.header[0].slots)
            reply_end = rings.reply_ends[gateway] + reply_slots
            if reply_end - load_acquire(rings.reply_words, gateway, REPLY_HEAD) > rings.replies.shape[1]:
                own[BROKEN] = REPLY_RING_OVERRUN
                own[BROKEN_GATEWAY] = gateway
                return int64(-1)
            copy_in(rings.replies[gateway], rings.reply_ends[gateway], out.words, reply_slots)
            rings.reply_ends[gateway] = reply_end
            rings.positions[gateway] = position + slots
            write_entry(state, inbox, rings, changed, time_ns, gateway, position + slots, reply_end, known_synced)
            handled += 1
            progress = True
    if handled > 0:
        publish(state, rings)
        free_commands(rings)
        page = rings.counters[MATCHER]
        page[RECORDS_WORD] += handled
        page[BATCHES_WORD] += 1
        page[LARGEST_BATCH_WORD] = max(page[LARGEST_BATCH_WORD], handled)
        show_digest(state, rings.counters)
    return handled


@inlined
def has_commands(rings):
    for gateway in range(rings.commands.shape[0]):
        if rings.positions[gateway] < load_acquire(rings.command_words, gateway, COMMAND_TAIL):
            return True
    return False


@inlined
def is_stalled(rings):
    """Whether commands wait for room in the journal ring."""
    return journal_room(rings) < RECORD_SLOTS_MAX and has_commands(rings)


@inlined
def sleep(rings, until_room):
    """Sleep until something rings, a heartbeat is due or a signal comes; returns whether it was a signal."""
    if until_room:
        store_release(rings.journal_words, 0, JOURNAL_ROOM_WANTED, 1)
    announce_sleep(rings.sleepers, MATCHER)
    ready = journal_room(rings) >= RECORD_SLOTS_MAX if until_room else has_commands(rings)
    signalled = False
    if not ready:
        signalled = wait_for_bell(rings.bells[MATCHER], HEARTBEAT_NS // 1_000_000, rings.scratch)
    announce_waking(rings.sleepers, MATCHER)
    if until_room:
        store_release(rings.journal_words, 0, JOURNAL_ROOM_WANTED, 0)
    rings.counters[MATCHER, WAKEUPS_WORD] += 1
    return signalled


@kernel
def serve(state, inbox, out, rings):
    """Serve until a signal, a broken invariant, or for LOOK_NS, a batch at least. Returns SIGNALLED, BROKE or LOOK."""
    page = rings.counters[MATCHER]
    now = now_ns(CLOCK_MONOTONIC, rings.scratch)
    look_at = now + rings.own[LOOK_NS]
    idle_since = now
    while True:
        handled = run_batch(state, inbox, out, rings)
        now = now_ns(CLOCK_MONOTONIC, rings.scratch)
        page[HEARTBEAT_WORD] = now
        if handled < 0:
            return BROKE
        if handled > 0:
            idle_since = now
        elif is_stalled(rings):
            page[FULL_WORD] += 1
            if sleep(rings, True):
                return SIGNALLED
        elif now - idle_since >= rings.own[SPIN_NS]:
            if sleep(rings, False):
                return SIGNALLED
            idle_since = now_ns(CLOCK_MONOTONIC, rings.scratch)
        if now >= look_at:
            return LOOK
