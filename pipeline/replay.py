"""Re-running the journal: records of a segment file through the core, as they were applied the first time."""
from numba import int64, uint64

from pipeline.core import apply
from pipeline.ledger import find_balance
from pipeline.lookahead import FIRST, SECOND, THIRD, fetch_cells, fetch_neighbours, fetch_orders, is_worthwhile
from pipeline.segment_content import SLOTS_AT_ONCE, as_records
from pipeline.state import DEFECT, EVENT_POSITION, NONE, SEQUENCE
from shm.kernel import inlined, kernel
from shm.records import COMMAND, JOURNAL, LIMITS, STAMP_BYTES, Kind

SLOT_WORDS = JOURNAL.itemsize // 8
STAMP_WORDS = STAMP_BYTES // 8
COMMAND_WORDS = COMMAND.itemsize // 8
BODY_WORDS = SLOT_WORDS - STAMP_WORDS
assert BODY_WORDS == COMMAND_WORDS - 1  # all but the request id
SET_LIMITS = int(Kind.SET_LIMITS)
ALL_EVENTS = 1 << 62          # no bound


class ReplayDiverged(Exception):
    """A journaled command had another outcome than the first time: journal and program do not belong together."""


@inlined
def take_record(inbox, slots, slot):
    """Copy the command of the record at `slot` to the inbox."""
    inbox.words[0] = 0
    for word in range(BODY_WORDS):
        inbox.words[1 + word] = slots[slot, STAMP_WORDS + word]
    payload_words = (int64(inbox.command[0].payload_bytes) + 7) // 8
    for word in range(payload_words):
        inbox.words[COMMAND_WORDS + word] = slots[slot + 1 + word // SLOT_WORDS, word % SLOT_WORDS]


@kernel
def replay_span(state, inbox, out, records, slots, start, end, positions, generation, events_max):
    """Apply the records in slots [start, end). `records` (JOURNAL) and `slots` (uint64) are the same memory.

    `positions[gateway]` becomes the command ring position after its last record of this generation. Returns (slot where
    it stopped, whether all went well): at `end`, or behind the record that made it `events_max` events or more; else
    at a record that changed nothing or got another sequence.
    """
    slot = start
    events_end = state.counters[EVENT_POSITION] + events_max
    while slot < end and state.counters[EVENT_POSITION] < events_end:
        if slot + FIRST < end and is_worthwhile(state):
            fetch_cells(state, records[slot + FIRST])
            fetch_orders(state, records[slot + SECOND])
            fetch_neighbours(state, records[slot + THIRD])
        record = records[slot]
        take_record(inbox, slots, slot)
        changed = apply(state, inbox, out, record.time_ns)
        if not changed or state.counters[SEQUENCE] != record.sequence or state.counters[DEFECT] != 0:
            return slot, False
        if record.generation == generation and record.gateway < len(positions):
            positions[record.gateway] = record.position
        slot += record.record_slots
    return slot, True


@kernel
def replay_until_change(state, inbox, out, records, slots, start, end, user_id, asset_id):
    """Apply the records in slots [start, end) up to and with the first that changes the balance of (user, asset).
    Returns (slot behind it or `end`, whether it did): (slot, False) before `end` is a record that went wrong."""
    slot = start
    while slot < end:
        row = find_balance(state, user_id, asset_id)
        before_low = state.balances[row].available_low if row != NONE else uint64(0)
        before_frozen = state.balances[row].frozen_low if row != NONE else uint64(0)
        before_high = state.balances[row].available_high if row != NONE else int64(0)
        before_frozen_high = state.balances[row].frozen_high if row != NONE else int64(0)
        take_record(inbox, slots, slot)
        changed = apply(state, inbox, out, records[slot].time_ns)
        if not changed or state.counters[SEQUENCE] != records[slot].sequence or state.counters[DEFECT] != 0:
            return slot, False
        slot += records[slot].record_slots
        row = find_balance(state, user_id, asset_id)
        if row != NONE:
            now = state.balances[row]
            if now.available_low != before_low or now.available_high != before_high or now.frozen_low != before_frozen \
                    or now.frozen_high != before_frozen_high:
                return slot, True
    return slot, False


@kernel
def largest_limits(records, slots, start, end, limits):
    """Raise `limits` (int64: the words of a LIMITS record) to what the SET_LIMITS records in [start, end) ask for.

    Returns the slot behind the last record that begins there.
    """
    slot = start
    while slot < end:
        if records[slot].kind == SET_LIMITS:
            for word in range(len(limits)):
                limits[word] = max(limits[word], int64(slots[slot + 1, word]))
        slot += records[slot].record_slots
    return slot


def limits_in(journal, limits, progress=lambda: None):
    """The LIMITS record that has the largest of each capacity in `limits` and in the journal; `progress()` is called
    now and then."""
    words = limits.reshape(1).view("<i8").copy()
    for span in journal.spans:
        slots, slot = span.slots, span.start_slot
        while slot < span.end_slot:
            slot = largest_limits(as_records(slots), slots, slot, min(slot + SLOTS_AT_ONCE, span.end_slot), words)
            progress()
    return words.view(LIMITS)[0]


def apply_span(replica, path, slots, start, end, positions, generation, events_max=ALL_EVENTS):
    """Apply records of a segment's slots [start, end), see replay_span; returns the slot where it stopped. Raises
    ReplayDiverged naming file, slot and sequence."""
    records = as_records(slots)
    slot, is_well = replay_span(
        replica.state, replica.inbox, replica.out, records, slots, start, end, positions, generation, events_max)
    if not is_well:
        raise ReplayDiverged(
            f"{path} slot {slot}: the command of sequence {records[slot]['sequence']} does not have the outcome it had"
            f" (result {replica.out.header[0]['result']}, defect {replica.state.counters[DEFECT]}): the journal was"
            " written by another version or was changed; restore both from one copy")
    return slot


def replay(replica, journal, positions, generation, progress=lambda: None):
    """Apply the whole journal to a replica that stands where it begins; `progress()` is called now and then.

    Raises ReplayDiverged.
    """
    for span in journal.spans:
        slots, slot = span.slots, span.start_slot
        while slot < span.end_slot:
            slot = apply_span(replica, span.path, slots, slot, min(slot + SLOTS_AT_ONCE, span.end_slot), positions,
                              generation)
            progress()


assert LIMITS.itemsize % 8 == 0
