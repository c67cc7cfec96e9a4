"""The journal's files: what is written is read back, and what was lost is noticed, reported or refused."""
import errno
import os
import random
import shutil
import uuid

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import journal, segment_content, segment_file
from pipeline.chain import CHAIN_WORD, SLOT_BYTES, SLOT_WORDS, chain_value
from pipeline.journal import JournalDamaged, Remains
from pipeline.segment_content import SegmentContent, runs_of
from pipeline.segment_file import HEADER_BYTES, SEAL_OFFSET, JournalRefused, NextSegment
from shm.records import DETAIL_BYTES_MAX, JOURNAL, RecordKind
from tests.fake_matcher import SEGMENT_BYTES, History, write_segment

INSTANCE = uuid.UUID(int=0x1234)


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "journal"


def sequences(directory, from_sequence=1):
    return [int(record["sequence"]) for record, _ in journal.records(directory, INSTANCE, from_sequence)]


def as_tuple(span):
    return int(span.path.name[:8]), span.first_sequence, span.last_sequence


def places(directory):
    """(segment, first sequence, last sequence) of each span."""
    return [as_tuple(span) for span in journal.spans(directory, INSTANCE).spans]


def overwrite(path, offset, content):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(content)


def offset_of(slot):
    return HEADER_BYTES + slot * SLOT_BYTES


# --- the chain


def some_words(slots, seed=1):
    return np.random.default_rng(seed).integers(0, 2**64, slots * SLOT_WORDS, dtype=np.uint64)


def chain_of(words, previous=7):
    return int(chain_value(np.uint64(previous), words, len(words)))


def reference_chain(previous, words):
    """The chain value in plain integers: the files' format, written down a second time."""
    mask = 2**64 - 1
    keys = 0x243F6A8885A308D3, 0x13198A2E03707345, 0xA4093822299F31D1, 0x082EFA98EC4E6C89
    lanes = [0x452821E638D01377, 0xBE5466CF34E90C6D, 0xC0AC29B7C97C50DD, 0x3F84D5B5B5470917]
    first_lanes = list(lanes)

    def fold(left, right):
        product = left * right
        return (product >> 64) ^ (product & mask)
    words = [len(words) if at == CHAIN_WORD else int(word) for at, word in enumerate(words)]
    for at in range(0, len(words), 8):
        lanes = [fold(lane ^ words[at + 2 * i], keys[i] ^ words[at + 2 * i + 1]) for i, lane in enumerate(lanes)]
    upper = fold(lanes[0] ^ keys[1], lanes[1] ^ keys[0])
    lower = fold(lanes[2] ^ keys[3], lanes[3] ^ keys[2])
    return fold(upper ^ previous ^ first_lanes[1], lower ^ first_lanes[0])


@pytest.mark.parametrize("slots", [1, 2, 3, 33])
def test_the_chain_value_is_the_one_that_files_on_disk_hold(slots):
    for seed in range(20):
        words = some_words(slots, seed)
        assert chain_of(words, 2**63 + seed) == reference_chain(2**63 + seed, words)


def test_every_single_flipped_bit_changes_the_chain_value():
    for slots in (1, 2):
        words = some_words(slots)
        before = chain_of(words)
        for word in range(len(words)):
            for bit in range(64):
                words[word] ^= np.uint64(1 << bit)
                assert (chain_of(words) == before) == (word == CHAIN_WORD), (word, bit)
                words[word] ^= np.uint64(1 << bit)


def test_the_bits_of_a_record_that_is_almost_all_zero_count_as_well():
    words = np.zeros(2 * SLOT_WORDS, np.uint64)
    seen = {chain_of(words)}
    for word in range(len(words)):
        for bit in range(64):
            if word != CHAIN_WORD:
                words[word] = 1 << bit
                seen.add(chain_of(words))
                words[word] = 0
    assert len(seen) == 1 + 64 * (len(words) - 1)


@given(st.integers(1, 4), st.integers(0, 2**32), st.data())
def test_swapped_words_and_any_other_previous_change_the_chain_value(slots, seed, data):
    words = some_words(slots, seed)
    before = chain_of(words)
    word = st.integers(0, len(words) - 1).filter(lambda at: at != CHAIN_WORD)
    one, other = data.draw(word), data.draw(word)
    words[[one, other]] = words[[other, one]]
    assert (chain_of(words) == before) == (one == other)
    assert chain_of(words, data.draw(st.integers(0, 2**64 - 1).filter(lambda value: value != 7))) != chain_of(words)


def test_a_record_cut_to_fewer_slots_or_lengthened_by_zeros_has_another_chain_value():
    words = some_words(33)
    words[-SLOT_WORDS:] = 0
    assert len({chain_of(words[:slots * SLOT_WORDS]) for slots in range(1, 34)}) == 33


# --- whole records


def whole_in(words):
    """The sequences of the runs in these slots, as (first, last)."""
    content = _Memory(words)
    return [(run.first_sequence, run.last_sequence) for run in runs_of(content)[0] if run.first_sequence]


class _Memory:
    """Slots in memory in the place of a file."""

    def __init__(self, words):
        self.slots = np.ascontiguousarray(words).reshape(-1, SLOT_WORDS)
        self.slots.flags.writeable = False

    def check_readable(self):
        pass

    def progress(self):
        pass


def test_zeros_and_ones_hold_no_record():
    assert whole_in(np.zeros(100 * SLOT_WORDS, np.uint64)) == []
    assert whole_in(np.full(100 * SLOT_WORDS, 2**64 - 1, np.uint64)) == []


@pytest.mark.parametrize("change", [
    {"record_kind": RecordKind.MARK}, {"record_kind": 0}, {"layout": 0}, {"layout": 2}, {"sequence": 0},
    {"sequence": -1}, {"record_slots": 0}, {"record_slots": 2}, {"payload_bytes": 1},
    {"payload_bytes": DETAIL_BYTES_MAX + 1, "record_slots": 34}, {"payload_bytes": 2**32 - 1, "record_slots": 1},
])
def test_a_record_that_no_matcher_would_make_is_not_whole_even_with_a_right_chain_value(change):
    assert whole_in(History().record()) == [(1, 1)]
    words = np.zeros(40 * SLOT_WORDS, np.uint64)
    record = words.view(JOURNAL)[0]
    record["sequence"], record["record_kind"], record["layout"], record["record_slots"] = 1, RecordKind.RECORD, 1, 1
    for field, value in change.items():
        record[field] = value
    slots = max(1, int(record["record_slots"]))
    record["chain"] = chain_value(np.uint64(0), words, slots * SLOT_WORDS)
    assert whole_in(words) == []


def test_a_text_cannot_pass_for_a_record():
    # given a record whose payload holds the bytes of another record, which no JSON text could
    inner = History(41).record(known_synced=99)
    words = History().record(inner.tobytes())
    assert whole_in(words) == [(1, 1)]
    # when the first slot is lost, the inner one is found; so what keeps it out is a byte that text cannot hold
    assert whole_in(words[SLOT_WORDS:]) == [(42, 42)]
    assert inner.view(JOURNAL)[0]["layout"] < 0x20 and inner.view(JOURNAL)[0]["record_kind"] < 0x20


# --- round trip


def test_an_empty_or_missing_directory_is_an_empty_journal(directory):
    for _ in range(2):
        found = journal.spans(directory, INSTANCE)
        assert (found.end_sequence, found.end_chain, found.highest_known_synced) == (0, 0, 0)
        assert found.spans == [] and found.remains == []
        directory.mkdir(exist_ok=True)


def test_records_come_back_as_they_were_written_through_several_segments(directory):
    history = History()
    payloads = [os.urandom(size) for size in (0, 1, 255, 256, 257, 511, 512, 513, 8191, 8192)]
    written = [history.record(payload, price=size, known_synced=3) for size, payload in enumerate(payloads)]
    write_segment(directory, INSTANCE, 1, written[:4])
    write_segment(directory, INSTANCE, 2, written[4:5])
    write_segment(directory, INSTANCE, 3, written[5:])
    read = list(journal.records(directory, INSTANCE))
    assert [payload for _, payload in read] == payloads
    assert [int(record["price"]) for record, _ in read] == list(range(10))
    assert [record.tobytes() for record, _ in read] == [words[:SLOT_WORDS].tobytes() for words in written]
    found = journal.spans(directory, INSTANCE)
    assert (found.end_sequence, found.end_chain, found.highest_known_synced) == (10, int(history.chain), 3)
    assert found.remains == []
    assert places(directory) == [(1, 1, 4), (2, 5, 5), (3, 6, 10)]


def test_a_long_reading_shows_that_it_goes_on(directory, monkeypatch):
    monkeypatch.setattr(segment_content, "SLOTS_AT_ONCE", 512)
    history = History()
    for number in (1, 2, 3):
        write_segment(directory, INSTANCE, number, history.records(2048), HEADER_BYTES + 8192 * SLOT_BYTES)
    calls = []
    found = journal.spans(directory, INSTANCE, progress=lambda: calls.append(True))
    assert len(calls) == 3 * (3 + 16)  # once a megabyte that is read, once for 512 slots that are looked at
    found.spans_from(2048)
    assert len(calls) == 3 * (3 + 16) + 4  # once for 512 records that are passed over


@pytest.mark.parametrize("slots", [1, 2, 3, 7])
def test_a_segment_looked_at_in_small_pieces_holds_the_same(directory, slots, monkeypatch):
    # given records of one slot and of several, two histories, damage of several slots, and zeros between them
    history, rng = History(), random.Random(slots)
    written = [history.record(bytes(rng.choice((0, 0, 700)))) for _ in range(60)] + History(90).records(20)
    path = write_segment(directory, INSTANCE, 1, written)
    for slot in rng.sample(range(100), 8):
        overwrite(path, offset_of(slot), rng.choice((b"damage", bytes(SLOT_BYTES), bytes([7]) * 3 * SLOT_BYTES)))
    content = SegmentContent(segment_file.segments_of(directory, INSTANCE)[0], lambda: None)

    def found():
        runs, highest = runs_of(content)
        return [(run.start_slot, run.end_slot, run.first_sequence, run.last_sequence, run.previous, run.chain)
                for run in runs], highest
    whole = found()
    assert len(whole[0]) > 8
    monkeypatch.setattr(segment_content, "SLOTS_AT_ONCE", slots)
    assert found() == whole


def test_reading_from_any_sequence_on_skips_just_those_before(directory):
    history = History()
    for number in (1, 2, 3):
        write_segment(directory, INSTANCE, number, [history.record(bytes(300 * i)) for i in range(4)])
    for start in range(1, 14):
        assert sequences(directory, start) == list(range(start, 13))
    assert journal.spans(directory, INSTANCE, 6).end_sequence == 12


def test_spans_are_read_only_and_hold_what_a_replay_needs(directory):
    write_segment(directory, INSTANCE, 1, History().records(5))
    span, = journal.spans(directory, INSTANCE, 3).spans
    assert (span.start_slot, span.end_slot, span.first_sequence, span.last_sequence) == (2, 5, 3, 5)
    assert span.slots.shape == ((SEGMENT_BYTES - HEADER_BYTES) // SLOT_BYTES, SLOT_WORDS)
    with pytest.raises(ValueError, match="read-only"):
        span.slots[0, 0] = 1


def test_more_stretches_in_a_segment_than_are_looked_at_at_once(directory):
    # given 3,000 records, every second one damaged in the file
    path = write_segment(directory, INSTANCE, 1, History().records(3000), HEADER_BYTES + 3000 * SLOT_BYTES)
    for slot in range(1, 3000, 2):
        overwrite(path, offset_of(slot) + 100, b"damage")
    # when it is read, then the journal ends before the first of them and the rest is told
    found = journal.spans(directory, INSTANCE)
    assert found.end_sequence == 1
    assert [(remains.first_sequence, remains.offset) for remains in found.remains if remains.first_sequence] == [
        (sequence, offset_of(sequence - 1)) for sequence in range(3, 3001, 2)]
    assert sum(not remains.first_sequence for remains in found.remains) == 1500


# --- tails and holes


def test_a_tail_torn_at_any_byte_of_the_last_record_ends_the_journal_before_it(directory):
    # given a last record of three slots behind two others
    history = History()
    kept = history.records(2)
    last = history.record(os.urandom(500))
    path = write_segment(directory, INSTANCE, 1, [*kept, last], HEADER_BYTES + 5 * SLOT_BYTES)
    whole = path.read_bytes()
    assert sequences(directory) == [1, 2, 3]
    used = offset_of(2) + (last.nbytes - (-500 % SLOT_BYTES))  # behind it is only padding, which is zero anyway
    noise = random.Random(5).randbytes(len(whole))
    for torn_at in range(offset_of(2), used):
        zeros = bytes(len(whole) - torn_at)
        for content in (whole[:torn_at], whole[:torn_at] + zeros, whole[:torn_at] + noise[torn_at:]):
            if content == whole or whole[torn_at:] == zeros:
                continue
            # when the file ends there, or goes on with zeros or with garbage
            path.write_bytes(content)
            found = journal.spans(directory, INSTANCE)
            # then the two others are the journal, and the torn one is reported where any of it is left
            assert (found.end_sequence, len(found.spans)) == (2, 1), torn_at
            left = any(content[offset_of(2):(len(content) // SLOT_BYTES) * SLOT_BYTES])
            assert [(remains.offset, remains.first_sequence) for remains in found.remains] == [
                (offset_of(2), 0)] * left, torn_at


def test_whole_records_behind_a_hole_that_nobody_called_synced_are_remains(directory):
    history = History()
    path = write_segment(directory, INSTANCE, 1, history.records(6, known_synced=2))
    overwrite(path, offset_of(2), bytes(SLOT_BYTES))
    found = journal.spans(directory, INSTANCE)
    assert found.end_sequence == 2
    assert found.remains == [Remains(path, offset_of(3), 3 * SLOT_BYTES, 4, 6)]
    assert str(found.remains[0]) == f"{path} at offset {offset_of(3)}, 768 bytes, sequences 4 to 6"


def test_the_newest_segment_that_has_a_record_wins(directory):
    history = History()
    first = history.records(5)
    write_segment(directory, INSTANCE, 1, first)
    write_segment(directory, INSTANCE, 2, first[2:4])
    assert places(directory) == [(1, 1, 2), (2, 3, 4), (1, 5, 5)]
    write_segment(directory, INSTANCE, 3, first[3:])
    assert places(directory) == [(1, 1, 2), (2, 3, 3), (3, 4, 5)]


def test_a_newer_record_that_does_not_continue_the_chain_is_passed_over(directory):
    # given a power cut that kept 3 but lost 2, and another 2 after it
    history = History()
    one = history.record(known_synced=0)
    other = history.branch()
    path = write_segment(directory, INSTANCE, 1, [one, *history.records(2)])
    overwrite(path, offset_of(1), bytes(SLOT_BYTES))
    write_segment(directory, INSTANCE, 2, [other.record(price=77)])
    # when it is read, then the old 3 is no part of it
    found = journal.spans(directory, INSTANCE)
    assert places(directory) == [(1, 1, 1), (2, 2, 2)]
    assert (found.end_sequence, found.end_chain) == (2, int(other.chain))
    assert found.remains == [Remains(path, offset_of(2), SLOT_BYTES, 3, 3)]


def test_an_older_tail_is_replaced_from_where_a_newer_one_branches_off(directory):
    history = History()
    one = history.record()
    newer = history.branch()
    write_segment(directory, INSTANCE, 1, [one, *history.records(4)])
    write_segment(directory, INSTANCE, 2, newer.records(2, price=5))
    found = journal.spans(directory, INSTANCE)
    assert places(directory) == [(1, 1, 1), (2, 2, 3)]
    assert [(remains.first_sequence, remains.last_sequence) for remains in found.remains] == [(4, 5)]
    assert [int(record["price"]) for record, _ in journal.records(directory, INSTANCE)] == [0, 5, 5]


def test_what_is_torn_before_a_newer_segment_took_over_is_not_reported(directory):
    # given a write that a kill cut short, and the same records in the next segment
    history = History()
    written = history.records(4)
    path = write_segment(directory, INSTANCE, 1, written)
    overwrite(path, offset_of(3) + 50, os.urandom(100))
    assert [remains.first_sequence for remains in journal.spans(directory, INSTANCE).remains] == [0]
    write_segment(directory, INSTANCE, 2, written[2:])
    found = journal.spans(directory, INSTANCE)
    assert (found.end_sequence, found.remains) == (4, [])


# --- damage


def damaged(directory):
    with pytest.raises(JournalDamaged) as raised:
        journal.spans(directory, INSTANCE)
    text = str(raised.value)
    assert str(raised.value.path) in text and str(raised.value.offset) in text and "restore this file" in text
    assert f"sequence {raised.value.sequence} " in text
    return int(raised.value.path.name[:8]), raised.value.offset, raised.value.sequence


@pytest.mark.parametrize("content", [b"\0" * SLOT_BYTES, b"x", None])
@pytest.mark.parametrize("slot", range(6))
def test_damage_below_what_any_record_knows_to_be_synced_is_refused_with_its_place(directory, slot, content):
    history = History()
    path = write_segment(directory, INSTANCE, 1, history.records(6))
    write_segment(directory, INSTANCE, 2, history.records(3, known_synced=6))
    if content is None:
        path.write_bytes(path.read_bytes()[:offset_of(slot)])
    else:
        overwrite(path, offset_of(slot) + 30, content[:SLOT_BYTES - 30])
    number, offset, sequence = damaged(directory)
    assert sequence == slot + 1
    # a file that is cut leaves nothing there to point at: its end, or the next one's beginning
    assert (number, offset) in {(1, offset_of(slot)), (2, HEADER_BYTES)} if content is None else (
        number, offset) == (1, offset_of(slot))


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_a_missing_segment_is_refused(directory, missing):
    history = History()
    for number in (1, 2, 3, 4):
        write_segment(directory, INSTANCE, number, history.records(2, known_synced=2 * number - 2))
    (directory / f"{missing:08}.journal").unlink()
    _, _, sequence = damaged(directory)
    assert sequence == 2 * missing - 1


def test_damage_in_the_first_record_of_a_later_segment_is_named_there(directory):
    history = History()
    write_segment(directory, INSTANCE, 1, history.records(2))
    path = write_segment(directory, INSTANCE, 2, history.records(2, known_synced=3))
    overwrite(path, HEADER_BYTES + 8, b"?")
    assert damaged(directory) == (2, HEADER_BYTES, 3)


def test_damage_of_a_copy_that_a_newer_segment_holds_is_no_loss(directory):
    history = History()
    written = history.records(4)
    path = write_segment(directory, INSTANCE, 1, written)
    write_segment(directory, INSTANCE, 2, [*written[2:], history.record(known_synced=4)])
    overwrite(path, offset_of(2) + 9, b"?")
    assert places(directory) == [(1, 1, 2), (2, 3, 5)]
    assert journal.spans(directory, INSTANCE).remains == []


def test_a_lost_record_is_damage_even_if_only_remains_know_that_it_was_synced(directory):
    history = History()
    path = write_segment(directory, INSTANCE, 1, [*history.records(3), history.record(known_synced=3)])
    overwrite(path, offset_of(1), bytes(SLOT_BYTES))
    assert damaged(directory) == (1, offset_of(1), 2)


def test_a_file_that_the_disk_cannot_read_is_refused_in_words(directory, monkeypatch):
    path = write_segment(directory, INSTANCE, 1, History().records(3))

    class BadSector:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def readinto(self, _):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
    content = SegmentContent(segment_file.segments_of(directory, INSTANCE)[0], lambda: None)
    monkeypatch.setattr(segment_content, "open", lambda *_, **__: BadSector(), raising=False)
    with pytest.raises(JournalRefused, match=f"{path} cannot be read at offset 0 .Input/output error.: restore"):
        content.check_readable()


# --- what does not belong there


def refusal(directory, instance=INSTANCE):
    with pytest.raises(JournalRefused) as raised:
        journal.spans(directory, instance)
    return str(raised.value)


def test_segments_of_another_instance_are_refused(directory):
    path = write_segment(directory, uuid.UUID(int=77), 1, History().records(1))
    text = refusal(directory)
    assert str(path) in text and f"belongs to instance {uuid.UUID(int=77)}, not to {INSTANCE}" in text


def test_segments_of_another_layout_are_refused(directory, monkeypatch):
    monkeypatch.setattr(segment_file, "LAYOUT_VERSION", 9)
    path = write_segment(directory, INSTANCE, 1, History().records(1))
    monkeypatch.undo()
    assert f"{path} has layout version 9, this program reads 1" in refusal(directory)


@pytest.mark.parametrize("name", ["notes.txt", "1.journal", "00000001.journal.bak", ".hidden", "00000001.journa"])
def test_files_that_are_no_segments_are_refused_by_name(directory, name):
    write_segment(directory, INSTANCE, 1, History().records(1))
    (directory / name).write_text("something")
    assert f"{directory / name} is no journal segment: move it" in refusal(directory)


def test_what_the_exchange_and_the_file_system_keep_there_is_no_part_of_the_journal(directory):
    write_segment(directory, INSTANCE, 1, History().records(1))
    (directory / "next.prepared").write_bytes(b"half")
    (directory / "next.making").write_bytes(b"")
    (directory / "lost+found").mkdir()
    assert sequences(directory) == [1]


@pytest.mark.parametrize(("change", "words"), [
    (lambda content: b"", "has 0 bytes, not even a segment's header"),
    (lambda content: content[:40], "has 40 bytes, not even a segment's header"),
    (lambda content: bytes(len(content)), "is no journal segment (magic 0x0)"),
    (lambda content: content[:45] + bytes([content[45] ^ 1]) + content[46:], "has a damaged header"),
])
def test_a_segment_without_a_whole_header_is_refused(directory, change, words):
    path = write_segment(directory, INSTANCE, 1, History().records(1))
    path.write_bytes(change(path.read_bytes()))
    assert f"{path} {words}" in refusal(directory)


def test_a_renamed_segment_is_refused(directory):
    path = write_segment(directory, INSTANCE, 1, History().records(1))
    shutil.copy(path, directory / "00000002.journal")
    assert "00000002.journal holds segment 1, which is not what its name says" in refusal(directory)


def test_a_file_with_nothing_but_its_header_holds_nothing(directory):
    path = write_segment(directory, INSTANCE, 1, [])
    assert sequences(directory) == []
    path.write_bytes(path.read_bytes()[:HEADER_BYTES])
    assert sequences(directory) == []


# --- against a plain reader of records, one by one


def plain_order(segments):
    """The rule as it is written: each sequence from the newest segment that holds it continuing the chain."""
    copies = [(number, words.view(JOURNAL)[0]) for number, records in sorted(segments.items(), reverse=True)
              for words in records]
    taken, chain = [], 0
    while True:
        found = [(number, record) for number, record in copies
                 if record["sequence"] == len(taken) + 1 and record["previous"] == chain]
        if not found:
            return taken, int(chain)
        number, record = found[0]
        taken.append((number, int(record["sequence"])))
        chain = record["chain"]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_any_mixture_of_histories_is_read_as_the_rule_says(tmp_path_factory, seed):
    # given segments with parts of histories that branch off each other, with records missing here and there
    rng = random.Random(seed)
    branches = [[]]
    for _ in range(rng.randrange(1, 5)):
        trunk = rng.choice(branches)
        kept = trunk[:rng.randrange(len(trunk) + 1)]
        last = kept[-1].view(JOURNAL)[0] if kept else None
        history = History(int(last["sequence"]), last["chain"]) if kept else History()
        branches.append(kept + [history.record(bytes(rng.choice((0, 0, 300))), user_id=rng.randrange(1000))
                                for _ in range(rng.randrange(1, 8))])
    segments = {}
    for number in range(1, rng.randrange(2, 7)):
        branch = rng.choice(branches)
        start = rng.randrange(len(branch) + 1)
        part = branch[start:rng.randrange(start, len(branch) + 1)]
        segments[number] = [words for words in part if rng.random() < 0.9]
    directory = tmp_path_factory.mktemp("mixture") / "journal"
    for number, records in segments.items():
        write_segment(directory, INSTANCE, number, records, HEADER_BYTES + 64 * SLOT_BYTES)
    # when they are read
    found = journal.spans(directory, INSTANCE)
    # then it is what the plain reader takes
    taken, chain = plain_order(segments)
    got = [(int(span.path.name[:8]), sequence) for span in found.spans
           for sequence in range(span.first_sequence, span.last_sequence + 1)]
    assert (got, found.end_chain) == (taken, chain), seed
    for start in range(1, len(taken) + 2):
        assert sequences(directory, start) == list(range(start, len(taken) + 1))
    beyond = {(number, int(words.view(JOURNAL)[0]["sequence"])) for number, records in segments.items()
              for words in records if words.view(JOURNAL)[0]["sequence"] > len(taken)}
    told = {(int(remains.path.name[:8]), sequence) for remains in found.remains
            for sequence in range(remains.first_sequence, remains.last_sequence + 1)}
    assert told == beyond, seed
    shutil.rmtree(directory)


# --- writing segment files


def prepared(directory, number=1, segment_bytes=SEGMENT_BYTES):
    directory.mkdir(exist_ok=True)
    woken = []
    upcoming = NextSegment(directory, INSTANCE, segment_bytes, wake=lambda: woken.append(True))
    upcoming.prepare(number)
    upcoming.wait()
    assert woken == [True]
    return upcoming


def test_a_segment_is_made_whole_under_another_name_and_has_its_own_on_disk_when_it_is_taken(directory, monkeypatch):
    calls = []

    def watched(name):
        real = getattr(os, name)

        def call(first, *rest):
            calls.append(name)
            return real(first, *rest)
        return call
    for name in ("posix_fallocate", "fsync", "rename"):
        monkeypatch.setattr(segment_file.os, name, watched(name))
    upcoming = prepared(directory)
    assert calls == ["posix_fallocate", "fsync", "rename"]
    assert [path.name for path in directory.iterdir()] == ["next.prepared"]
    assert (directory / "next.prepared").stat().st_blocks * 512 >= SEGMENT_BYTES
    segment = upcoming.take()
    assert calls[3:] == ["rename", "fsync"] and not upcoming.ready
    assert [path.name for path in directory.iterdir()] == ["00000001.journal"]
    assert (directory / "00000001.journal").stat().st_mode & 0o777 == 0o600
    segment.finish()


def test_a_segment_that_an_earlier_process_prepared_is_taken_over_if_it_is_the_right_one(directory):
    prepared(directory, 3)
    made = (directory / "next.prepared").stat().st_ino
    again = prepared(directory, 3)
    assert again.ready and (directory / "next.prepared").stat().st_ino == made
    for other in ({"number": 4}, {"number": 4, "segment_bytes": 2 * SEGMENT_BYTES}):
        before = (directory / "next.prepared").stat().st_ino
        keep = os.open(directory / "next.prepared", os.O_RDONLY)  # so that its inode is not used again
        anew = prepared(directory, **other)
        assert [path.name for path in directory.iterdir()] == ["next.prepared"]
        assert anew.ready and (directory / "next.prepared").stat().st_ino != before
        os.close(keep)


def test_a_half_made_segment_of_a_killed_process_is_thrown_away(directory):
    directory.mkdir()
    (directory / "next.making").write_bytes(b"half")
    upcoming = prepared(directory)
    assert upcoming.ready and [path.name for path in directory.iterdir()] == ["next.prepared"]


def test_a_failed_preparation_leaves_nothing_and_can_be_tried_again(directory, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(segment_file.os, "posix_fallocate", full)
    upcoming = prepared(directory)
    assert not upcoming.ready and upcoming.problem.errno == errno.ENOSPC and list(directory.iterdir()) == []
    monkeypatch.undo()
    upcoming.prepare(1)
    upcoming.wait()
    assert upcoming.ready and upcoming.problem is None


def test_short_writes_are_gone_on_with(directory, monkeypatch):
    segment = prepared(directory).take()
    real = os.pwrite
    monkeypatch.setattr(segment_file.os, "pwrite", lambda fd, content, at: real(fd, content[:100], at))
    for words in History().records(5):
        segment.append(words)
    monkeypatch.undo()
    segment.finish()
    assert sequences(directory) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
def test_a_file_whose_write_or_sync_failed_is_never_written_or_synced_again(directory, monkeypatch, call):
    def broken(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    segment = prepared(directory).take()
    history = History()
    segment.append(history.record())
    monkeypatch.setattr(segment_file.os, call, broken)
    with pytest.raises(OSError, match="Input/output"):
        segment.append(history.record()) if call == "pwrite" else segment.sync()
    monkeypatch.undo()
    with pytest.raises(AssertionError):
        segment.sync()
    with pytest.raises(AssertionError):
        segment.append(history.record())
    with pytest.raises(AssertionError):
        segment.finish()


def test_a_seal_names_the_journals_end_or_is_none(directory):
    history = History()
    segment = prepared(directory).take()
    segment.append(history.record())
    with pytest.raises(AssertionError):
        segment.seal(1, history.chain, False)
    segment.sync()
    assert not journal.spans(directory, INSTANCE).is_sealed
    segment.seal(1, history.chain, False)
    assert journal.spans(directory, INSTANCE).is_sealed
    # when a record follows, or the seal is torn, then it says nothing
    segment.append(history.record())
    assert not journal.spans(directory, INSTANCE).is_sealed
    segment.sync()
    segment.seal(2, history.chain, False)
    assert journal.spans(directory, INSTANCE).is_sealed
    overwrite(segment.segment.path, SEAL_OFFSET + 3, b"x")
    assert segment_file.seal_of(segment.segment.path) == (0, 0)
    assert sequences(directory) == [1, 2]
    segment.finish()


def test_a_finished_segment_gives_its_room_back_and_stays_readable_for_who_has_it_mapped(directory):
    size = HEADER_BYTES + 4096 * SLOT_BYTES
    segment = prepared(directory, segment_bytes=size).take()
    segment.append(History().record())
    span, = journal.spans(directory, INSTANCE).spans
    slots = span.slots
    segment.finish()
    assert not slots[1:].any() and slots[0].any()
    stat = segment.segment.path.stat()
    assert stat.st_size == size
    if stat.st_blocks * 512 >= size:
        pytest.skip("this file system gives no room of a file back")
    assert stat.st_blocks * 512 <= HEADER_BYTES + 4 * 4096


def test_a_record_does_not_change_what_a_reader_got_before_it(directory):
    segment = prepared(directory).take()
    history = History()
    segment.append(history.record())
    before = journal.spans(directory, INSTANCE)
    segment.append(history.record())
    assert (before.end_sequence, before.spans[0].end_slot) == (1, 1)
    assert journal.spans(directory, INSTANCE).end_sequence == 2
    segment.finish()
