"""The chained checksum of journal records: each record's covers the record and the checksum of the one before.

It finds what disks and kills do: torn and lost parts, flipped bits, records of another history. It is no signature. A
client's text cannot pass for a record: `layout` and `record_kind` are 1, a character that JSON text never holds raw.
"""
import numpy as np
from numba import int64, uint64

from shm.int128 import folded_product
from shm.kernel import inlined, kernel
from shm.records import DETAIL_BYTES_MAX, JOURNAL, LAYOUT_VERSION, RecordKind

RECORD = int(RecordKind.RECORD)
SLOT_BYTES = JOURNAL.itemsize
SLOT_WORDS = SLOT_BYTES // 8
CHAIN_WORD = JOURNAL.fields["chain"][1] // 8
STEP_WORDS = 8                 # four lanes take two words each, so that four multiplications run at a time
assert CHAIN_WORD == 6 and SLOT_WORDS % STEP_WORDS == 0  # the first step leaves out the last lane's first word

# Any odd numbers without a pattern: these are the first digits of pi.
KEY_0, KEY_1, KEY_2, KEY_3, LANE_0, LANE_1, LANE_2, LANE_3 = (np.uint64(digits) for digits in (
    0x243F6A8885A308D3, 0x13198A2E03707345, 0xA4093822299F31D1, 0x082EFA98EC4E6C89,
    0x452821E638D01377, 0xBE5466CF34E90C6D, 0xC0AC29B7C97C50DD, 0x3F84D5B5B5470917))
ONE, TWO, THREE, FOUR, FIVE, SIX, SEVEN, STEP = np.arange(1, STEP_WORDS + 1, dtype=np.uint64)


@inlined
def chain_value_at(previous, words, first, count):
    """`chain_value` of the `count` words from `words[first]` on."""
    at, end = uint64(first), uint64(first) + uint64(count)  # unsigned: no look for negative indices, twice as fast
    lane_0 = folded_product(LANE_0 ^ words[at], KEY_0 ^ words[at + ONE])
    lane_1 = folded_product(LANE_1 ^ words[at + TWO], KEY_1 ^ words[at + THREE])
    lane_2 = folded_product(LANE_2 ^ words[at + FOUR], KEY_2 ^ words[at + FIVE])
    lane_3 = folded_product(LANE_3 ^ uint64(count), KEY_3 ^ words[at + SEVEN])
    at += STEP
    while at < end:
        lane_0 = folded_product(lane_0 ^ words[at], KEY_0 ^ words[at + ONE])
        lane_1 = folded_product(lane_1 ^ words[at + TWO], KEY_1 ^ words[at + THREE])
        lane_2 = folded_product(lane_2 ^ words[at + FOUR], KEY_2 ^ words[at + FIVE])
        lane_3 = folded_product(lane_3 ^ words[at + SIX], KEY_3 ^ words[at + SEVEN])
        at += STEP
    upper = folded_product(lane_0 ^ KEY_1, lane_1 ^ KEY_0)
    lower = folded_product(lane_2 ^ KEY_3, lane_3 ^ KEY_2)
    return folded_product(upper ^ previous ^ LANE_1, lower ^ LANE_0)  # last, so that records overlap in the processor


@kernel
def chain_value(previous, words, count):
    """The chain value of a record: over `previous` (the chain value of the record before; 0 before the first) and all
    its `count` words (uint64, contiguous, whole slots) but `chain`, which is where the result belongs.

    Cost: 11 ns a slot of 32 words.
    """
    return chain_value_at(uint64(previous), words, 0, count)


@inlined
def whole_slots(records, words, slot):
    """How many slots the record at `slot` has, 0 where no whole record begins: whole by itself, whatever is before it.

    `records` (JOURNAL) and `words` (uint64) are the same memory, one-dimensional.
    """
    record = records[slot]
    if record["record_kind"] != RECORD or record["layout"] != LAYOUT_VERSION or record["sequence"] < 1:
        return 0
    slots, payload_bytes = int64(record["record_slots"]), int64(record["payload_bytes"])
    if payload_bytes > DETAIL_BYTES_MAX or slots != 1 + (payload_bytes + SLOT_BYTES - 1) // SLOT_BYTES:
        return 0
    if slots > records.shape[0] - slot:
        return 0
    if record["chain"] != chain_value_at(record["previous"], words, slot * SLOT_WORDS, slots * SLOT_WORDS):
        return 0
    return slots
