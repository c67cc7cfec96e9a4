"""The journaler lets nothing out that is not on disk, whatever dies: step by step, in this process."""
import errno
import json
import os
import random
import resource
import shutil
import uuid
from pathlib import Path

import numpy as np
import pytest

from pipeline import journal, journaling, segment_content, segment_file
from pipeline.chain import SLOT_BYTES
from pipeline.journal import JournalDamaged
from pipeline.journaling import Defect, Journaler
from pipeline.release import set_journal_word
from pipeline.segment_file import HEADER_BYTES, JournalRefused, JournalUnwritable, NextSegment, SegmentFile
from shm import doorbell, segments
from shm.process import memory_id
from shm.records import CONFIGURATION_GATEWAY, JOURNAL
from shm.segments import CommandWord, CounterWord, EventWord, JournalWord, ReplyWord, Role
from tests.fake_matcher import History, write_segment
from tests.journaler_world import (
    MODES,
    SEGMENT_BYTES,
    Disk,
    Killed,
    StandIn,
    World,
    broken_sync,
    check_words,
    mounted,
    some_load,
    trace,
)
from tools.launcher import Page

RESERVE_SLOTS = 2 * 128 + 2 * (64 + 44)
ORDER = {  # of the model: what becomes of a span once it is written
    "always": ["sync", "synced word", "reply tails", "released positions", "ring head"],
    "interval": ["reply tails", "released positions"],
    "none": ["reply tails", "released positions", "followable word", "ring head"],
}
AT_THE_INTERVAL = ["sync", "synced word", "ring head"]
READ_ONLY = ["reply tails", "released positions", "ring head"]


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path / "data")
    yield world
    world.bury()
    segments.unlink(memory_id(world.data))


def steps_of(journaler):
    names = []
    trace(journaler, names.append)
    return names


# --- the order of publication


@pytest.mark.parametrize("mode", MODES)
def test_a_span_with_records_passes_through_the_steps_of_its_mode_in_their_order(world, mode):
    journaler = world.open(mode)
    names = steps_of(journaler)
    world.matcher.write(0)
    world.matcher.read(1)
    world.matcher.write(1)
    assert journaler.do_work() == 3
    assert names == ["write", *ORDER[mode]]
    assert journaler.do_work() == 0
    assert names == ["write", *ORDER[mode]]


@pytest.mark.parametrize("mode", MODES)
def test_a_span_of_reads_writes_and_syncs_nothing(world, mode):
    journaler = world.open(mode)
    names = steps_of(journaler)
    world.matcher.read(0)
    world.matcher.read(1)
    assert journaler.do_work() == 2
    assert names == READ_ONLY
    assert world.word(ReplyWord.TAIL, 0) == world.word(ReplyWord.TAIL, 1) == 3
    assert world.word(CommandWord.RELEASED, 0) == world.word(CommandWord.RELEASED, 1) == 1
    assert world.word(JournalWord.HEAD) == 2
    assert journal.spans(world.directory, world.instance).end_sequence == 0
    assert list(world.directory.iterdir()) == [world.directory / "next.prepared"]


def test_the_words_after_a_span_are_those_of_its_last_entries(world):
    journaler = world.open()
    world.matcher.write(CONFIGURATION_GATEWAY, b"an asset")
    world.matcher.write(0)
    world.matcher.write(1)
    world.matcher.write(1)
    world.matcher.read(0)
    journaler.do_work()
    assert world.words() == {
        "synced": 4, "followable": 4, "head": 6, "opened": 1, "visible": 8,
        "reply tail 0": 6, "released 0": 2, "reply tail 1": 6, "released 1": 2}


def test_a_record_of_the_configuration_moves_no_gateways_words(world):
    journaler = world.open()
    world.matcher.write(CONFIGURATION_GATEWAY)
    journaler.do_work()
    assert world.sequences() == [1] and world.word(JournalWord.HEAD) == 1 and world.word(EventWord.VISIBLE) == 2
    assert world.word(ReplyWord.TAIL) == world.word(CommandWord.RELEASED) == 0


@pytest.mark.parametrize("mode", MODES)
def test_no_word_ever_shows_what_its_mode_does_not_promise(world, mode, monkeypatch):
    disk, rng = Disk(world, monkeypatch), random.Random(mode)
    journaler = world.open(mode, interval_ms=0 if mode == "interval" else 100,
                           segment_bytes=HEADER_BYTES + 400 * SLOT_BYTES)
    trace(journaler, lambda _: check_words(world, disk, mode))
    for _ in range(40):
        some_load(world.matcher, rng, 12)
        for _ in range(rng.randrange(3)):
            journaler.do_work()
            journaler.next_segment.wait()
    world.drain()
    check_words(world, disk, mode)
    assert world.sequences() == list(range(1, world.matcher.sequence + 1))
    assert world.word(CommandWord.RELEASED, 0) == world.matcher.positions[0]
    assert len(list(world.directory.glob("*.journal"))) >= (1 if world.matcher.sequence < 200 else 2)


def test_a_replies_record_is_synced_before_the_reply_is_visible(world, monkeypatch):
    # given a journaler whose sync takes a look at the words
    journaler = world.open()
    seen = []
    real = os.fdatasync

    def sync(descriptor):
        seen.append(world.words())
        return real(descriptor)
    monkeypatch.setattr(segment_file.os, "fdatasync", sync)
    before = world.words()
    world.matcher.write(0)
    journaler.do_work()
    # then nothing had moved when the sync began
    assert seen == [before] and world.word(ReplyWord.TAIL, 0) == 3


# --- kills


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(4))
def test_a_journaler_killed_between_any_two_steps_loses_doubles_and_moves_back_nothing(world, mode, seed, monkeypatch):
    disk, rng = Disk(world, monkeypatch), random.Random(f"{mode} {seed}")
    monkeypatch.setattr(Journaler, "_room_slots", _at_most(rng))
    world.open(mode, interval_ms=0)
    left, last = 0, world.words()

    def see(_):
        nonlocal left, last
        now = world.words()
        assert all(now[word] >= last[word] for word in now), (last, now)
        last = now
        check_words(world, disk, mode)
        left -= 1
        if left < 0:
            raise Killed
    for _ in range(25):
        left = rng.randrange(12)
        trace(world.journaler, see)
        try:
            while left >= 0:
                some_load(world.matcher, rng, 6)
                if not world.journaler.do_work():
                    left -= 1
                world.journaler.next_segment.wait()
        except Killed:
            pass
        world.start(mode, interval_ms=0)
        assert all(now >= last[word] for word, now in world.words().items())
        last = world.words()
    world.drain()
    assert world.sequences() == list(range(1, world.matcher.sequence + 1))
    assert world.word(JournalWord.HEAD) == world.matcher.cursor
    for gateway in (0, 1):
        assert world.word(CommandWord.RELEASED, gateway) == world.matcher.positions.get(gateway, 0)
        assert world.word(ReplyWord.TAIL, gateway) == world.matcher.reply_ends.get(gateway, 0)
    assert world.word(EventWord.VISIBLE) == world.matcher.event_end


def _at_most(rng):
    """A room that is smaller than it is, now and then: a restarted journaler may take a shorter span."""
    real = Journaler._room_slots
    return lambda journaler: min(real(journaler), rng.choice((1000, 1000, 3, 5))) if real(journaler) > 5 else real(
        journaler)


def test_a_shorter_span_after_a_kill_moves_no_word_back(world, monkeypatch):
    # given a journaler killed after it released three commands, before it gave their slots back
    journaler = world.open()
    for gateway in (0, 1, 0):
        world.matcher.write(gateway)

    def kill(step):
        if step == "released positions":
            raise Killed
    trace(journaler, kill)
    with pytest.raises(Killed):
        journaler.do_work()
    before = world.words()
    assert (before["head"], before["synced"], before["reply tail 0"]) == (0, 3, 6)
    # when the next one takes one record only
    journaler = world.start()
    room = Journaler._room_slots
    monkeypatch.setattr(Journaler, "_room_slots", lambda journaler: min(1, room(journaler)))
    assert journaler.do_work() == 1
    # then its slot is given back, and every other word is where it was
    assert world.words() == {**before, "head": 1}


def test_a_restarted_journaler_writes_what_the_ring_holds_into_a_segment_of_its_own(world):
    # given one that was killed right after its write
    journaler = world.open()
    world.matcher.write(0)
    journaler.do_work()
    for _ in range(3):
        world.matcher.write(0)
    journaler._write()
    old = (world.directory / "00000001.journal").read_bytes()
    assert world.sequences() == [1, 2, 3, 4] and world.word(JournalWord.HEAD) == 1
    # when the next one starts
    world.start()
    world.drain()
    # then readers find each record once, the first segment is as it was, and the second holds the ring's content
    assert world.sequences() == [1, 2, 3, 4]
    assert (world.directory / "00000001.journal").read_bytes() == old
    assert [(span.path.name, span.first_sequence, span.last_sequence)
            for span in journal.spans(world.directory, world.instance).spans] == [
        ("00000001.journal", 1, 1), ("00000002.journal", 2, 4)]
    assert world.word(ReplyWord.TAIL, 0) == 12 and world.word(JournalWord.SYNCED) == 4


def test_a_restart_with_nothing_to_write_makes_no_segment(world):
    world.open()
    world.matcher.write(0)
    world.drain()
    for _ in range(3):
        world.start()
        world.drain()
    assert [path.name for path in sorted(world.directory.iterdir())] == ["00000001.journal", "next.prepared"]


# --- power cuts


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(5))
def test_a_power_cut_between_any_two_steps_loses_nothing_that_was_promised(world, mode, seed, monkeypatch):
    rng = random.Random(f"{mode} {seed}")
    disk = Disk(world, monkeypatch)
    monkeypatch.setattr(Journaler, "_room_slots", _at_most(rng))
    chains = {}  # of each sequence, the chain value of the history that has survived so far
    for _ in range(8):
        # given an exchange that runs a while, its journaler killed and restarted now and then
        left = rng.randrange(25)

        def see(_):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
        world.open(mode, interval_ms=rng.choice((0, 3_600_000)))
        found = journal.spans(world.directory, world.instance)
        trace(world.journaler, see)
        for _ in range(rng.randrange(1, 4)):
            try:
                while left >= 0:
                    some_load(world.matcher, rng, 6)
                    if world.matcher.room < 10 or not world.journaler.do_work():
                        left -= 1
                    world.journaler.next_segment.wait()
            except Killed:
                pass
            if rng.random() < 0.5:
                left = rng.randrange(12)
                world.start(mode, interval_ms=3_600_000)
                trace(world.journaler, see)
        before = {int(record["sequence"]): int(record["chain"])
                  for record, _ in journal.records(world.directory, world.instance)}
        synced = world.word(JournalWord.SYNCED)
        answered = max((sequence for _, sequence, gateway, position, reply_end in world.matcher.stamps
                        if gateway != CONFIGURATION_GATEWAY and world.word(ReplyWord.TAIL, gateway) >= reply_end),
                       default=found.end_sequence)
        # when the power fails, and the files keep what was synced and any part of the rest
        kept = disk.survivors(rng)
        shutil.rmtree(world.directory)
        world.directory.mkdir()
        disk.synced, disk.names = {}, set()
        for name, content in kept.items():
            (world.directory / name).write_bytes(content)
            disk.synced[(world.directory / name).stat().st_ino] = content
            disk.names.add(name)
        world.renew_memory()
        # then the next start is not refused, and what was called synced, or answered with `always`, is there
        world.start(mode)
        chains = {int(record["sequence"]): int(record["chain"])
                  for record, _ in journal.records(world.directory, world.instance)}
        promised = max(synced, answered) if mode == "always" else synced
        assert len(chains) >= promised, seed
        assert world.word(JournalWord.SYNCED) == len(chains) == disk.sequence()
        assert all(before[sequence] == chain for sequence, chain in chains.items() if sequence in before), seed


def test_a_start_with_fresh_rings_writes_the_unsynced_tail_again_and_syncs_it_before_it_opens(world, monkeypatch):
    # given a journal whose last two records nobody knows to be synced
    history = History()
    write_segment(world.directory, world.instance, 1,
                  [*history.records(4), *history.records(2, known_synced=4)], SEGMENT_BYTES)
    disk = Disk(world, monkeypatch)
    set_word, opened_with = journaling.set_journal_word, []

    def watched(words, word, value):
        if word == JournalWord.OPENED:
            opened_with.append((disk.sequence_of_own(), world.words()))
        set_word(words, word, value)
    monkeypatch.setattr(journaling, "set_journal_word", watched)
    disk.sequence_of_own = lambda: [
        int(record["sequence"]) for record in _records_in(disk.synced[
            (world.directory / "00000002.journal").stat().st_ino])]
    # when the journaler opens it
    world.start()
    # then they are on disk in a segment of its own, and `opened` is the last word it stores
    (own, words), = opened_with
    assert own == [5, 6] and "00000002.journal" in disk.names
    assert (words["opened"], words["synced"], words["followable"]) == (0, 6, 6)
    assert world.word(JournalWord.OPENED) == 1 and world.sequences() == [1, 2, 3, 4, 5, 6]


def _records_in(content):
    slots = np.frombuffer(content, JOURNAL, (len(content) - HEADER_BYTES) // SLOT_BYTES, HEADER_BYTES)
    return [record for record in slots if record["sequence"]]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("end", ["stop", "kill"])
def test_reboots_write_the_unsynced_tail_again_and_once_only(world, mode, end):
    # given a journal of three full segments and some more
    world.open(mode)
    while len(segments_in(world)) < 4:
        world.matcher.write(0)
        world.drain()
    world.matcher.write(0)
    world.drain()
    if end == "stop":
        world.journaler.finish()
    # when the rings are lost again and again without a write in between
    for _ in range(3):
        world.renew_memory()
        world.start(mode)
        # then a killed journaler's tail is written again the first time, and what was synced to its end never
        assert len(segments_in(world)) == (4 if end == "stop" else 5)
        assert world.word(JournalWord.SYNCED) == world.matcher.sequence


def segments_in(world):
    return list(world.directory.glob("*.journal"))


@pytest.mark.parametrize("mode", MODES)
def test_a_segment_is_sealed_when_all_up_to_there_is_on_disk_and_not_before(world, mode, monkeypatch):
    disk, sealed = Disk(world, monkeypatch), []
    seal = SegmentFile.seal

    def watched(segment, sequence, chain, is_last):
        assert sequence <= disk.sequence()
        sealed.append(sequence)
        seal(segment, sequence, chain, is_last)
    monkeypatch.setattr(SegmentFile, "seal", watched)
    history = History()
    write_segment(world.directory, world.instance, 1, history.records(3), SEGMENT_BYTES)
    world.open(mode)
    world.matcher.write(0)
    world.journaler.finish()
    assert sealed == [3, 4]


def test_a_seal_of_another_history_is_not_believed(world):
    # given a journal whose sealed tail was lost, and another one of the same length written instead
    world.open()
    world.matcher.write(0)
    world.journaler.finish()
    (path,) = segments_in(world)
    content = bytearray(path.read_bytes())
    content[HEADER_BYTES:HEADER_BYTES + SLOT_BYTES] = bytes(SLOT_BYTES)
    path.write_bytes(content)
    write_segment(world.directory, world.instance, 2, History().records(1, price=5), SEGMENT_BYTES)
    # when it is opened, then the other one is synced
    world.renew_memory()
    world.start()
    assert len(segments_in(world)) == 3 and world.word(JournalWord.SYNCED) == 1


def test_a_start_on_a_long_journal_shows_watcher_and_launcher_that_it_goes_on(world, monkeypatch):
    # given 900 records of which the last 450 are written again, in a file of 1,000 slots
    history = History()
    write_segment(world.directory, world.instance, 1,
                  [*history.records(450), *history.records(450, known_synced=450)], SEGMENT_BYTES)
    for module in (segment_content, journaling):
        monkeypatch.setattr(module, "SLOTS_AT_ONCE", 50)
    pages, beat = set(), StandIn.beat

    def watched(process):
        beat(process)
        pages.add(Page.of(process.counters.tolist()))
    monkeypatch.setattr(StandIn, "beat", watched)
    # when the journaler opens it, then it beats, and its page changes, with every 50 slots
    world.start()
    assert len(pages) >= (1000 + 450 + 450) // 50
    assert world.journaler.process.counters[CounterWord.RECORDS] == 0


def test_an_unsynced_tail_of_several_segments_is_written_again(world):
    history = History()
    for number in (1, 2, 3):
        write_segment(world.directory, world.instance, number,
                      [history.record(bytes(300)) for _ in range(300)], SEGMENT_BYTES)
    world.start()
    found = journal.spans(world.directory, world.instance)
    assert (found.end_sequence, found.end_chain) == (900, int(history.chain))
    assert {span.path.name for span in found.spans} == {f"{number:08}.journal" for number in (4, 5, 6)}
    assert world.word(JournalWord.SYNCED) == 900


def test_a_ring_that_was_never_opened_counts_as_none(world, monkeypatch):
    # given a journaler killed while it was opening the journal
    history = History()
    write_segment(world.directory, world.instance, 1, history.records(3), SEGMENT_BYTES)

    def kill(*_):
        raise Killed
    monkeypatch.setattr(Journaler, "_publish", kill)
    with pytest.raises(Killed):
        world.start()
    monkeypatch.undo()
    # when the next one starts, then it opens it from the beginning
    world.start()
    assert (world.word(JournalWord.OPENED), world.word(JournalWord.SYNCED)) == (1, 3)
    assert world.sequences() == [1, 2, 3]


def test_damage_below_the_highest_synced_position_stops_the_start(world):
    history = History()
    path = write_segment(world.directory, world.instance, 1,
                         [*history.records(3), history.record(known_synced=3)], SEGMENT_BYTES)
    content = bytearray(path.read_bytes())
    content[HEADER_BYTES + SLOT_BYTES] ^= 1
    path.write_bytes(content)
    with pytest.raises(JournalDamaged):
        world.start()
    assert world.word(JournalWord.OPENED) == 0


def test_remains_are_told_and_the_start_goes_on(world, capfd):
    history = History()
    path = write_segment(world.directory, world.instance, 1, history.records(4, known_synced=1), SEGMENT_BYTES)
    content = bytearray(path.read_bytes())
    content[HEADER_BYTES + SLOT_BYTES:HEADER_BYTES + 2 * SLOT_BYTES] = bytes(SLOT_BYTES)
    path.write_bytes(content)
    world.open()
    assert f"not part of the journal: {path} at offset {HEADER_BYTES + 2 * SLOT_BYTES}" in capfd.readouterr().err
    assert world.word(JournalWord.SYNCED) == 1
    world.matcher.write(0)
    world.drain()
    assert world.sequences() == [1, 2]


# --- interval and none


def test_with_interval_replies_go_out_at_once_and_the_rings_head_waits_for_the_sync(world):
    journaler = world.open("interval")
    names = steps_of(journaler)
    world.matcher.write(0)
    world.matcher.read(1)
    journaler.do_work()
    assert names == ["write", "reply tails", "released positions"]
    assert world.word(ReplyWord.TAIL, 0) == 3 and world.word(CommandWord.RELEASED, 1) == 1
    assert world.word(JournalWord.HEAD) == world.word(JournalWord.SYNCED) == world.word(JournalWord.FOLLOWABLE) == 0
    # a read behind the unsynced record is let out too, and waits in the ring
    world.matcher.read(1)
    journaler.do_work()
    assert world.word(CommandWord.RELEASED, 1) == 2 and world.word(JournalWord.HEAD) == 0
    # when the interval is over
    journaler._sync_at = 0
    del names[:]
    assert journaler.do_work() == 0
    assert names == AT_THE_INTERVAL
    assert (world.word(JournalWord.HEAD), world.word(JournalWord.SYNCED), world.word(JournalWord.FOLLOWABLE)) == (
        3, 1, 1)
    assert journaler.do_work() == 0 and names == AT_THE_INTERVAL


def test_with_interval_a_ring_that_fills_up_is_synced_at_once(world):
    journaler = world.open("interval")
    for _ in range(63):
        world.matcher.write(0)
    journaler.do_work()
    assert world.word(JournalWord.HEAD) == 0
    world.matcher.write(0)
    journaler.do_work()
    assert world.word(JournalWord.HEAD) == world.word(JournalWord.SYNCED) == 64


def test_with_interval_a_matcher_that_waits_for_room_is_given_it_at_once_and_woken(world):
    journaler = world.open("interval")
    world.matcher.write(0)
    journaler.do_work()
    assert world.word(JournalWord.HEAD) == 0
    bell = doorbell.open_bell(world.data / "run", "matcher")
    doorbell.empty(bell)
    set_journal_word(world.memory.journal.words, JournalWord.ROOM_WANTED, 1)
    doorbell.announce_sleep(world.memory.sleepers.words, int(Role.MATCHER))
    journaler.do_work()
    assert world.word(JournalWord.HEAD) == 1 and is_rung(bell)
    assert world.word(JournalWord.ROOM_WANTED) == 1, "the matcher's own word"


@pytest.mark.parametrize("mode", MODES)
def test_a_segment_is_synced_before_the_next_one_begins_in_every_mode(world, mode, monkeypatch):
    # given a segment that is nearly full
    disk = Disk(world, monkeypatch)
    journaler = world.open(mode)
    while journaler.segment is None or journaler.segment.room_slots > 32:
        world.matcher.write(0)
        world.drain()
    last = world.matcher.sequence
    taken = journaler.next_segment.take
    seen = []

    def take():
        seen.append((disk.sequence(), world.words()))
        segment = taken()
        assert segment.segment.path.name in disk.names, "its directory entry is not on disk"
        return segment
    journaler.next_segment.take = take
    # when a record comes that has no room in it
    world.matcher.write(0, bytes(8192))
    world.drain()
    # then all before it was on disk when the next one was begun, and that is published
    (durable, words), = seen
    assert durable == words["synced"] == last
    assert world.sequences() == list(range(1, last + 2))


def test_with_none_followers_follow_what_is_released_and_it_is_called_synced_when_its_segment_ends(world):
    journaler = world.open("none")
    seen = {}
    trace(journaler, lambda name: seen.update({name: world.words()}))
    world.matcher.write(0)
    journaler.do_work()
    assert seen["released positions"]["followable"] == 0
    assert seen["followable word"]["followable"] == 1 and seen["followable word"]["head"] == 0
    assert (world.word(JournalWord.HEAD), world.word(JournalWord.SYNCED)) == (1, 0)
    journaler.finish()
    assert (world.word(JournalWord.HEAD), world.word(JournalWord.SYNCED)) == (1, 1)


def test_with_none_nothing_more_is_called_synced_after_a_kill_left_a_segment_that_nobody_syncs(world, monkeypatch):
    # given records that left the ring without a sync
    disk = Disk(world, monkeypatch)
    world.open("none")
    world.matcher.write(0)
    world.drain()
    # when the next journaler syncs its own segment, behind them
    world.start("none")
    world.matcher.write(0)
    world.journaler.finish()
    assert (world.word(JournalWord.SYNCED), disk.sequence()) == (0, 0)
    # when the rings are lost, then all is written again
    world.renew_memory()
    world.start("none")
    assert (world.word(JournalWord.SYNCED), disk.sequence()) == (2, 2)


@pytest.mark.parametrize("mode", ["always", "interval"])
def test_what_was_written_with_none_is_synced_before_another_mode_calls_anything_synced(world, mode, monkeypatch):
    # given records that left the ring without a sync
    disk = Disk(world, monkeypatch)
    world.open("none")
    for _ in range(5):
        world.matcher.write(0)
    world.drain()
    assert (world.word(JournalWord.HEAD), world.word(JournalWord.SYNCED), disk.sequence()) == (5, 0, 0)
    # when the next journaler runs with another setting on the same rings
    world.start(mode)
    assert (world.word(JournalWord.SYNCED), disk.sequence()) == (5, 5)
    world.matcher.write(0)
    world.drain()
    check_words(world, disk, mode)
    assert world.sequences() == [1, 2, 3, 4, 5, 6]


# --- the ring


def test_records_of_8_kib_come_whole_through_the_end_of_the_ring(world):
    rng = random.Random(3)
    world.open()
    payloads = []
    for _ in range(40):
        for size in rng.sample((0, 100, 8192, 8192, 5000), 2):
            payloads.append(rng.randbytes(size))
            world.matcher.write(rng.randrange(2), payloads[-1], publish=False)
        world.matcher.publish()
        world.drain()
    assert world.matcher.cursor > 10 * 128
    read = list(journal.records(world.directory, world.instance))
    assert [payload for _, payload in read] == payloads
    assert [int(record["sequence"]) for record, _ in read] == list(range(1, 81))


@pytest.mark.parametrize("fields", [
    {"sequence": 7}, {"previous": 5}, {"generation": 999}, {"gateway": 2}, {"known_synced": 1_000}, {"layout": 3},
    {"record_kind": 3}, {"record_slots": 0}, {"record_slots": 9}, {"payload_bytes": 400},
])
def test_what_no_matcher_writes_is_a_defect_and_lets_nothing_out(world, fields):
    journaler = world.open()
    world.matcher.write(0)
    journaler.do_work()
    before = world.words()
    world.matcher.write(**{"gateway": 0, **fields})
    with pytest.raises(Defect, match="journal ring position=1 holds nothing that may follow sequence="):
        journaler.do_work()
    assert world.words() == before


def test_a_record_that_was_changed_in_the_ring_is_a_defect(world):
    journaler = world.open()
    world.matcher.write(0, bytes(700))
    world.matcher.ring[2, 5] ^= np.uint64(1 << 40)
    with pytest.raises(Defect):
        journaler.do_work()


# --- a disk that fails


@pytest.mark.parametrize("mode", ["always", "interval"])
def test_a_failed_sync_publishes_nothing_and_the_next_journaler_uses_another_file(world, mode, monkeypatch):
    disk = Disk(world, monkeypatch)
    journaler = world.open(mode)
    world.matcher.write(0)
    journaler.do_work()
    journaler._sync_at = 0
    journaler.do_work()
    world.matcher.write(0)
    watched = segment_file.os.fdatasync
    broken_sync(monkeypatch, disk)
    if mode == "interval":
        journaler.do_work()
    before = world.words()
    journaler._sync_at = 0
    with pytest.raises(OSError, match="Input/output error"):
        journaler.do_work()
    assert world.words() == before and before["head"] == before["synced"] == 1
    # when the disk works again
    monkeypatch.setattr(segment_file.os, "fdatasync", watched)
    world.start(mode)
    world.drain()
    world.journaler.finish()
    assert world.sequences() == [1, 2] and disk.sequence() == 2
    assert world.word(JournalWord.SYNCED) == world.word(JournalWord.HEAD) == 2
    assert len(list(world.directory.glob("*.journal"))) == 2


@pytest.mark.parametrize("mode", MODES)
def test_a_broken_disk_is_not_filled_with_segments_that_hold_nothing(world, mode, monkeypatch):
    # given a disk that syncs nothing any more, and a journaler that is started again and again
    world.open(mode, interval_ms=0)
    world.matcher.write(0)
    world.drain()
    broken_sync(monkeypatch)
    for _ in range(4):
        world.matcher.write(0)
        journaler = world.start(mode, interval_ms=0)
        try:
            journaler.do_work()
            journaler.finish()
        except OSError:
            journaler.abandon()
    # then each took its segment away, but with `none`, where records have left the ring
    names = [path.name for path in sorted(world.directory.glob("*.journal"))]
    assert names == ([f"{number:08}.journal" for number in range(1, 6)] if mode == "none" else ["00000001.journal"])
    # and nothing is lost
    monkeypatch.undo()
    world.start(mode, interval_ms=0)
    world.drain()
    assert world.sequences() == [1, 2, 3, 4, 5]
    assert world.word(JournalWord.HEAD) == 5


@pytest.mark.parametrize("mode", MODES)
def test_a_directory_that_cannot_be_synced_is_not_filled_with_segments(world, mode, monkeypatch):
    world.open(mode)
    world.matcher.write(0)

    def broken(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    monkeypatch.setattr(segment_file, "sync_directory", broken)
    for _ in range(3):
        journaler = world.start(mode)
        with pytest.raises(OSError, match="Input/output error"):
            journaler.do_work()
        journaler.abandon()
        assert segments_in(world) == [] and world.word(ReplyWord.TAIL) == 0
    monkeypatch.undo()
    world.start(mode)
    world.drain()
    assert world.sequences() == [1] and len(segments_in(world)) == 1


def test_a_broken_disk_that_keeps_its_files_too_is_still_told_of_as_such(world, monkeypatch):
    def read_only(_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    journaler = world.open()
    world.matcher.write(0)
    broken_sync(monkeypatch)
    monkeypatch.setattr(Path, "unlink", read_only)
    with pytest.raises(JournalUnwritable, match="Input/output error"):
        journaler.do_work()
    journaler.abandon()


def test_writes_are_refused_before_anybody_is_told_why(world, monkeypatch):
    world.open()
    world.matcher.write(0)
    world.drain()
    no_room_for_files(world, monkeypatch)
    refusing = []
    monkeypatch.setattr(journaling, "fatal", lambda *_: refusing.append(world.word(JournalWord.REFUSING)))
    world.start()
    world.journaler.do_work()
    assert refusing == [errno.ENOSPC]


def test_a_failed_write_publishes_nothing(world):
    journaler = world.open()
    world.matcher.write(0)
    journaler.do_work()
    before = world.words()
    world.matcher.write(0, b"x" * 600)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (HEADER_BYTES + 2 * SLOT_BYTES, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            journaler.do_work()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert world.words() == before
    # the write was cut short within the record, and the next journaler writes it whole
    assert world.sequences() == [1]
    world.start()
    world.drain()
    assert world.sequences() == [1, 2]


@pytest.fixture
def small_disk(tmp_path):
    """Room for two segments and a little."""
    with mounted(tmp_path / "disk", 2 * SEGMENT_BYTES + 16384) as place:
        yield place


@pytest.mark.parametrize("mode", MODES)
def test_a_full_disk_refuses_new_writes_in_time_and_what_has_entered_still_fits(world, small_disk, mode, monkeypatch):
    # given a disk that has room for two segments, and other files on it
    world.data.joinpath("journal").symlink_to(small_disk)
    monkeypatch.setattr(journaling, "RETRY_SECONDS", 0.0)
    journaler = world.open(mode, interval_ms=0)
    world.matcher.write(0)
    world.drain()
    other = small_disk / "lost+found"
    other.mkdir()
    (other / "big").write_bytes(bytes(12288))
    while world.word(JournalWord.REFUSING) == 0:
        assert len(list(small_disk.glob("*.journal"))) < 3
        world.matcher.write(0)
        world.drain()
    # then writes are refused, with the reason, while all that the rings may hold has room
    assert world.word(JournalWord.REFUSING) == errno.ENOSPC
    assert journaler.segment.room_slots >= RESERVE_SLOTS - 1
    for _ in range(RESERVE_SLOTS - 2):
        world.matcher.write(0)
        world.drain()
    assert world.word(ReplyWord.TAIL, 0) == world.matcher.reply_ends[0]
    # when more than that comes, it waits and is not lost
    for _ in range(5):
        world.matcher.write(0)
    for _ in range(5):
        journaler.do_work()
        journaler.next_segment.wait()
    assert world.word(ReplyWord.TAIL, 0) < world.matcher.reply_ends[0] and journaler.stalled
    # when there is room again
    (other / "big").unlink()
    for path in sorted(small_disk.glob("*.journal"))[:1]:
        moved = world.data / path.name
        shutil.move(path, moved)
    world.drain()
    journaler.do_work()
    assert world.word(JournalWord.REFUSING) == 0 and not journaler.stalled
    assert world.word(ReplyWord.TAIL, 0) == world.matcher.reply_ends[0]
    journaler.next_segment.wait()
    together = world.data / "together"
    shutil.copytree(small_disk, together)
    shutil.move(moved, together / moved.name)
    assert [int(record["sequence"]) for record, _ in journal.records(together, world.instance)] == list(
        range(1, world.matcher.sequence + 1))
    # and the alert center is told once
    lines = [json.loads(line) for line in (world.data / "log" / "fatal.log").read_text().splitlines()]
    assert len(lines) == 1 and "No space left on device" in lines[0]["text"] and "make room" in lines[0]["text"]


@pytest.mark.parametrize("mode", MODES)
def test_a_span_as_long_as_the_ring_uses_no_room_that_is_kept_for_what_has_entered(world, mode, monkeypatch):
    # given a full disk, and just enough room to take no notice of that
    journaler = world.open(mode)
    world.matcher.write(0)
    world.drain()
    no_room_for_files(world, monkeypatch)
    while journaler.segment.room_slots > RESERVE_SLOTS:
        world.matcher.write(0)
        world.drain()
    assert world.word(JournalWord.REFUSING) == 0
    # when a full ring is written at once, then writes are refused, though another try to make a file is under way
    journaler.next_segment.working = True
    fill_ring(world)
    journaler.do_work()
    assert world.word(JournalWord.REFUSING) == errno.ENOSPC
    journaler.next_segment.working = False
    # and what has entered by then has room: the ring, full again, full command rings, a last command of each gateway
    fill_ring(world)
    journaler.do_work()
    for _ in range(2 * (64 + 44)):
        world.matcher.write(0)
        world.drain()
    assert not journaler.stalled
    assert world.word(ReplyWord.TAIL, 0) == world.matcher.reply_ends[0]


def no_room_for_files(world, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    world.journaler.next_segment.wait()
    (world.directory / "next.prepared").unlink()
    world.journaler.next_segment.ready = False
    monkeypatch.setattr(segment_file.os, "posix_fallocate", full)
    world.journaler.do_work()
    world.journaler.next_segment.wait()
    assert world.journaler.next_segment.problem.errno == errno.ENOSPC


def fill_ring(world):
    while world.matcher.room:
        world.matcher.write(0, publish=False)
    world.matcher.publish()


def test_a_restart_on_a_full_disk_keeps_refusing_without_a_second_alert(world, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    world.open()
    world.matcher.write(0)
    world.drain()
    world.journaler.next_segment.wait()
    (world.directory / "next.prepared").unlink()
    real = os.posix_fallocate
    monkeypatch.setattr(segment_file.os, "posix_fallocate", full)
    monkeypatch.setattr(journaling, "RETRY_SECONDS", 0.0)
    for _ in range(3):
        journaler = world.start()
        for _ in range(3):
            journaler.do_work()
            journaler.next_segment.wait()
        assert world.word(JournalWord.REFUSING) == errno.ENOSPC
    assert len((world.data / "log" / "fatal.log").read_text().splitlines()) == 1
    # a write that is already there waits for the room
    world.matcher.write(0)
    journaler.do_work()
    assert world.word(ReplyWord.TAIL, 0) == 3 and journaler.stalled
    monkeypatch.setattr(segment_file.os, "posix_fallocate", real)
    world.drain()
    journaler.do_work()
    assert world.word(ReplyWord.TAIL, 0) == 6 and world.word(JournalWord.REFUSING) == 0


def test_a_defect_in_the_making_of_the_next_segment_ends_the_journaler(world, monkeypatch):
    def broken(*_):
        raise ValueError("no such number")
    monkeypatch.setattr(NextSegment, "_fill", broken)
    journaler = world.start()
    assert is_rung(doorbell.open_bell(world.data / "run", "journaler"))
    with pytest.raises(Defect, match="no such number"):
        journaler.do_work()


# --- what does not belong there


def test_a_directory_of_another_instance_stops_the_start(world):
    write_segment(world.directory, uuid.uuid4(), 1, History().records(1), SEGMENT_BYTES)
    with pytest.raises(JournalRefused, match="belongs to instance"):
        world.start()


# --- bells


def is_rung(bell):
    try:
        return os.read(bell, 4096) != b""
    except BlockingIOError:
        return False


def test_a_start_rings_every_bell_that_may_be_owed_whatever_the_flags_say(world):
    bells = {name: doorbell.open_bell(world.data / "run", name)
             for name in ("matcher", "gateway-0", "gateway-1", "publisher")}
    for _ in range(2):
        assert not any(is_rung(bell) for bell in bells.values())
        world.start()
        assert [name for name, bell in bells.items() if is_rung(bell)] == list(bells)


def test_a_span_wakes_the_sleepers_it_has_something_for(world):
    journaler = world.open()
    bells = {name: doorbell.open_bell(world.data / "run", name)
             for name in ("matcher", "gateway-0", "gateway-1", "publisher")}
    for bell in bells.values():
        doorbell.empty(bell)
    world.matcher.write(0)
    journaler.do_work()
    assert not any(is_rung(bell) for bell in bells.values()), "nobody sleeps"
    for role in (Role.MATCHER, Role.PUBLISHER, Role.GATEWAY, Role.GATEWAY + 1):
        doorbell.announce_sleep(world.memory.sleepers.words, int(role))
    world.matcher.write(1)
    journaler.do_work()
    assert {name for name, bell in bells.items() if is_rung(bell)} == {"gateway-1", "publisher"}
    set_journal_word(world.memory.journal.words, JournalWord.ROOM_WANTED, 1)
    world.matcher.read(0)
    journaler.do_work()
    assert {name for name, bell in bells.items() if is_rung(bell)} == {"gateway-0", "publisher", "matcher"}


# --- a clean end


@pytest.mark.parametrize("mode", MODES)
def test_a_stop_writes_and_syncs_what_the_ring_holds(world, mode, monkeypatch):
    disk = Disk(world, monkeypatch)
    journaler = world.open(mode)
    for gateway in (0, 1, 0):
        world.matcher.write(gateway)
    journaler.finish()
    assert disk.sequence() == 3 and world.word(ReplyWord.TAIL, 0) == 6
    if mode != "none":
        assert world.word(JournalWord.HEAD) == world.word(JournalWord.SYNCED) == 3


def test_the_first_segment_stays_where_its_first_sync_fails(world, monkeypatch):
    # given a journaler whose first sync fails: without any segment the next one would take the journal for lost
    journaler = world.open()
    world.matcher.write(0)
    with monkeypatch.context() as patch:
        broken_sync(patch)
        with pytest.raises(JournalUnwritable):
            journaler.do_work()
    journaler.abandon()
    # when the host is started anew, then so is the exchange
    world.renew_memory()
    world.start()
    assert world.word(JournalWord.OPENED) == 1
