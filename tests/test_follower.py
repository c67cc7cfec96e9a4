"""Followers: each event once, in order, with the place it leads to, however often they die; where a state begins."""
import random

import numpy as np
import pytest

from pipeline import follower, recovery
from pipeline.digest import state_digest
from pipeline.follower import EventsLost, Follower, OffTheJournal
from pipeline.journal import START, JournalRefused, Place
from pipeline.seeding import limits_of
from pipeline.state import OUTPUT_DIGEST
from shm.records import INT64_MAX
from tests.core_journal import CoreJournal
from tests.test_snapshot import SETTINGS, Flow

LIMITS = limits_of(SETTINGS)


class Rows:
    """A sink in memory: it dies when it is told to, before or after it has stored what it was given."""

    def __init__(self, place=None):
        self.place, self.rows, self.dies = place, [], None

    def checkpoint(self):
        return self.place

    def write(self, events, place, _replica):
        if self.dies == "before":
            raise Died
        self.rows += [event.tobytes() for event in events]
        self.place = place
        if self.dies == "after":
            raise Died

    def __str__(self):
        return "the sink of the test"


class Died(Exception):
    pass


def followed(world, sink, told=None, **options):
    return Follower(world.data, world.instance, sink, LIMITS, (told if told is not None else []).append, **options)


@pytest.fixture
def world(tmp_path):
    return CoreJournal(tmp_path / "data", SETTINGS)


def all_rows(world):
    sink = Rows()
    followed(world, sink).do_work(INT64_MAX)
    return sink.rows


def test_a_follower_has_the_core_s_events_in_their_order(world):
    seen = []
    flow = Flow(1)
    for _ in range(20):
        world.run(flow, 100)
        seen += [event.tobytes() for event in world.replica.drain_events()]
    sink = Rows()
    following = followed(world, sink)
    assert following.do_work(INT64_MAX) == len(seen)
    assert sink.rows == seen and sink.place == following.place == world.place
    assert state_digest(following.replica.state) == state_digest(world.replica.state)
    assert following.replica.state.counters[OUTPUT_DIGEST] == world.replica.state.counters[OUTPUT_DIGEST]


def test_a_live_journal_is_followed_from_segment_to_segment_and_no_further_than_it_may_be(world):
    sink, flow = Rows(), Flow(2)
    following = followed(world, sink)
    while world.number < 4:
        world.run(flow, 37)
        until = world.place.sequence - 5
        following.do_work(until)
        assert following.place == sink.place == world.places[until]
    following.do_work(INT64_MAX)
    assert sink.place == world.place and sink.rows == all_rows(world)


@pytest.mark.parametrize("seed", range(6))
def test_killed_anywhere_a_follower_repeats_nothing_and_skips_nothing(world, seed, monkeypatch):
    monkeypatch.setattr(follower, "EVENTS_AT_ONCE", 64)
    chance, flow, sink = random.Random(seed), Flow(seed), Rows()
    following = followed(world, sink)
    for _ in range(40):
        world.run(flow, chance.randrange(150))
        if chance.random() < 0.3:
            world.save()
        sink.dies = chance.choice([None, "before", "after"])
        try:
            following.do_work(chance.choice([INT64_MAX, world.place.sequence - chance.randrange(50)]))
        except Died:
            sink.dies = None
            following = followed(world, sink)
    sink.dies = None
    following.do_work(INT64_MAX)
    assert sink.place == world.place and sink.rows == all_rows(world)


def test_a_sink_that_has_something_begins_at_the_newest_snapshot_before_it(world):
    flow = Flow(3)
    world.run(flow, 1000)
    world.save()
    sink = Rows()
    followed(world, sink).do_work(INT64_MAX)
    world.run(flow, 50)
    world.save()               # beyond the sink
    world.run(flow, 1500)
    before = len(sink.rows)
    (world.data / "journal" / "00000001.journal").unlink()  # nobody needs it any more
    following = followed(world, sink)
    following.do_work(INT64_MAX)
    assert sink.place == world.place and len(sink.rows) > before
    assert state_digest(following.replica.state) == state_digest(world.replica.state)


@pytest.mark.parametrize("place", [Place(500, 1), Place(10**6, 1)])
def test_a_sink_with_another_history_stops_its_follower(world, place):
    world.run(Flow(4), 1000)
    with pytest.raises(OffTheJournal, match=f"the sink of the test has everything up to sequence {place.sequence}"):
        followed(world, Rows(place))


def test_a_command_with_more_events_than_there_is_room_for_is_noticed(world):
    world.run(Flow(5), 3000)
    with pytest.raises(EventsLost):
        followed(world, Rows(), event_slots=64).do_work(INT64_MAX)


# --- where a state begins

def begun(world, told, **options):
    return recovery.base(world.data, world.instance, LIMITS, told.append, **options)


def recovered(world, told):
    return recovery.recover(world.data, world.instance, LIMITS, told.append, np.zeros(1, np.int64), 0)


@pytest.fixture
def saved(world):
    """Three snapshots, and a journal that goes on behind them."""
    flow = Flow(6)
    snapshots = []
    for _ in range(3):
        world.run(flow, 700)
        snapshots.append(world.save())
    world.run(flow, 300)
    return snapshots


def test_the_newest_snapshot_serves_and_the_journal_goes_on_behind_it(world, saved):
    told = []
    found = recovered(world, told)
    assert (found.snapshot, found.place.sequence, told) == (saved[2], saved[2].sequence, [])
    assert state_digest(found.replica.state) == state_digest(world.replica.state)
    assert (found.found.end_sequence, found.found.end_chain) == world.place


def test_a_damaged_snapshot_is_passed_over_loudly(world, saved):
    for index, offset in ((2, 5000), (1, 20)):
        with open(saved[index].path, "r+b") as file:
            file.seek(offset)
            byte = file.read(1)
            file.seek(offset)
            file.write(bytes([byte[0] ^ 1]))
    told = []
    found = recovered(world, told)
    assert found.snapshot == saved[0] and len(told) == 2
    assert f"{saved[2].path} is passed over: its part" in told[0]
    assert f"{saved[1].path} is passed over: its header is damaged" in told[1]
    assert state_digest(found.replica.state) == state_digest(world.replica.state)
    saved[0].path.unlink()
    assert recovered(world, told).snapshot is None


def test_a_snapshot_that_is_not_on_the_journal_s_chain_is_passed_over(world, saved):
    other = CoreJournal(world.data.parent / "other", SETTINGS)
    other.instance = world.instance
    other.run(Flow(7), 1500)
    foreign = other.save()
    target = world.data / "snapshots" / f"{foreign.sequence:020}.snapshot"
    foreign.path.rename(target)
    told = []
    found = begun(world, told)
    newer = foreign.sequence > saved[2].sequence
    assert found.snapshot == saved[2] and len(told) == newer
    told.clear()
    found = begun(world, told, sequence_max=foreign.sequence)
    assert found.snapshot.sequence < foreign.sequence and "has no record of sequence" in told[0]


def test_without_the_journal_s_beginning_and_without_a_usable_snapshot_nothing_starts(world, saved):
    (world.data / "journal" / "00000001.journal").unlink()
    assert begun(world, []).snapshot == saved[2]
    for found in saved:
        found.path.write_bytes(b"nothing")
    with pytest.raises(JournalRefused, match=r"first segment is 00000002\.journal, its beginning is gone"):
        begun(world, [])


def test_an_empty_directory_begins_with_nothing(tmp_path):
    found = recovery.base(tmp_path, CoreJournal(tmp_path / "x", SETTINGS).instance, LIMITS, [].append)
    assert found.place == START and found.snapshot is None and found.replica.sequence == 0
