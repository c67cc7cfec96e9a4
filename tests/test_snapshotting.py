"""The snapshotter: when it saves, what it keeps, and that nothing is let go that somebody needs."""
import random
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline import recovery, retention, snapshot
from pipeline.digest import state_digest
from pipeline.follower import Follower
from pipeline.journal import Place
from pipeline.seeding import limits_of
from pipeline.segment_file import segments_of
from pipeline.snapshotting import REQUEST, Snapshots
from shm.records import INT64_MAX
from tests.core_journal import CoreJournal
from tests.test_follower import Rows
from tests.test_snapshot import SETTINGS, Flow

LIMITS = limits_of(SETTINGS)


class Snapshotter:
    """The sink and its follower, over a journal that grows."""

    def __init__(self, world, every_operations=500, every_s=3600, keep=2, keep_bytes=10**9, archive=""):
        self.world, self.said, self.told = world, [], []
        self.options = SimpleNamespace(every_operations=every_operations, every_s=every_s, keep=keep)
        self.journal_options = SimpleNamespace(keep_bytes=keep_bytes, archive=archive)
        (world.data / "run").mkdir(exist_ok=True)
        self.start()

    def start(self):
        self.sink = Snapshots(self.world.data, self.world.instance, self.options, self.journal_options,
                              self.said.append, self.told.append)
        self.follower = Follower(self.world.data, self.world.instance, self.sink, LIMITS, self.told.append)

    def work(self):
        self.follower.do_work(INT64_MAX)
        self.sink.meet_request(self.follower.place, self.follower.replica)

    def sequences(self):
        return [found.sequence for found in snapshot.snapshots_of(self.world.data / recovery.SNAPSHOTS)]


@pytest.fixture
def world(tmp_path):
    return CoreJournal(tmp_path / "data", SETTINGS)


def segments(world):
    return [segment.number for segment in segments_of(world.data / recovery.JOURNAL, world.instance)]


def recovered(world):
    return recovery.recover(world.data, world.instance, LIMITS, [].append, np.zeros(1, np.int64), 0)


def test_a_snapshot_is_made_when_enough_has_happened_and_not_before(world):
    flow, made = Flow(1), Snapshotter(world, every_operations=400)
    while world.place.sequence < 399:
        world.run(flow, 1)
    made.work()
    assert made.sequences() == []
    world.run(flow, 50)
    made.work()
    assert made.sequences() == [world.place.sequence] and "written and read back" in made.said[0]


def test_a_snapshot_is_made_after_a_time_and_on_demand_but_not_of_nothing(world):
    flow, made = Flow(2), Snapshotter(world, every_operations=10**9, every_s=10**9)
    world.run(flow, 100)
    (world.data / "run" / REQUEST).touch()
    made.work()
    assert made.sequences() == [world.place.sequence] and not (world.data / "run" / REQUEST).exists()
    made.options.every_s = 0
    made.work()
    assert len(made.sequences()) == 1
    world.run(flow, 100)
    made.work()
    assert len(made.sequences()) == 2


def test_it_goes_on_behind_its_newest_snapshot(world):
    flow, made = Flow(3), Snapshotter(world)
    world.run(flow, 2000)
    made.work()
    newest = made.sequences()[0]
    made.start()
    assert made.follower.place.sequence == newest
    world.run(flow, 1000)
    made.work()
    assert state_digest(made.follower.replica.state) == state_digest(world.replica.state)


def test_what_older_snapshots_needed_is_let_go_and_every_kept_one_still_serves(world):
    flow, made = Flow(4), Snapshotter(world, keep=3)
    for _ in range(30):
        world.run(flow, 200)
        made.work()
    assert len(made.sequences()) == 3 and segments(world)[0] > 1
    for _ in range(3):         # the newest, the one before, the one before that
        found = recovered(world)
        assert found.snapshot.sequence == made.sequences()[0]
        assert state_digest(found.replica.state) == state_digest(world.replica.state)
        found.snapshot.path.unlink()


@pytest.mark.parametrize("seed", range(4))
def test_whatever_dies_when_what_is_left_is_enough(world, seed, monkeypatch):
    """A copy of the directory at each step of saving and pruning, as a kill would leave it, gives the same state."""
    chance, flow, made = random.Random(seed), Flow(seed), Snapshotter(world, every_operations=150)
    checked, is_working = [], []

    def check():
        copy = world.data.parent / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(world.data, copy)
        found = recovery.recover(copy, world.instance, LIMITS, [].append, np.zeros(1, np.int64), 0)
        assert state_digest(found.replica.state) == state_digest(world.replica.state)
        checked.append(found.snapshot)

    def seen(owner, name):
        real = getattr(owner, name)

        def call(*arguments, **options):
            result = real(*arguments, **options)
            if is_working:
                check()
            return result
        monkeypatch.setattr(owner, name, call)
    for owner, name in ((snapshot.os, "rename"), (snapshot, "write"), (retention, "needed"),
                        (type(world.data), "unlink")):
        seen(owner, name)
    for _ in range(20):
        world.run(flow, chance.randrange(1000))
        is_working.append(True)
        made.work()
        is_working.clear()
    assert len(checked) > 20 and any(checked) and segments(world)[0] > 1


def test_segments_that_a_killed_journaler_left_go_too(world):
    flow, made = Flow(5), Snapshotter(world, keep=1, every_operations=10**9)
    for _ in range(4):
        world.run(flow, 300)
        path = world.segment.segment.path
        world.segment.sync()
        world.segment.finish()  # no seal
        world.segment = None
    assert path.exists()
    world.run(flow, 10)
    (world.data / "run" / REQUEST).touch()
    made.work()
    assert segments(world) == [world.number]
    assert state_digest(recovered(world).replica.state) == state_digest(world.replica.state)


def test_the_archive_has_what_was_let_go(world, tmp_path):
    flow, archive = Flow(6), tmp_path / "archive"
    made = Snapshotter(world, keep=1, archive=str(archive))
    for _ in range(20):
        world.run(flow, 200)
        made.work()
    gone = sorted(path.name for path in archive.iterdir())
    assert gone[0] == "00000001.journal" and len(gone) == segments(world)[0] - 1
    for path in archive.iterdir():
        shutil.copy(path, world.data / recovery.JOURNAL)
    shutil.rmtree(world.data / recovery.SNAPSHOTS)
    assert state_digest(recovered(world).replica.state) == state_digest(world.replica.state)


def test_a_follower_that_is_behind_keeps_its_journal_up_to_a_limit(world):
    flow, sink = Flow(7), Rows()
    world.run(flow, 300)
    Follower(world.data, world.instance, sink, LIMITS, [].append).do_work(200)
    retention.note_place(world.data, "history", sink.place)
    made = Snapshotter(world, keep=1)
    while segments(world)[-1] < 12:
        world.run(flow, 200)
        made.work()
    assert segments(world)[0] == 1 and made.told == []
    slow = Follower(world.data, world.instance, sink, LIMITS, [].append)
    slow.do_work(INT64_MAX)
    assert sink.place == world.place
    # a smaller limit: it is told, and not waited for
    retention.note_place(world.data, "history", Place(200, 1))
    made.journal_options.keep_bytes = 2 * 4096
    world.run(flow, 5000)
    made.work()
    assert segments(world)[0] > 1 and "follower history stands at sequence 200" in made.told[0]


def test_nothing_is_let_go_while_digests_differ(world):
    flow, made = Flow(8), Snapshotter(world, keep=1)
    made.sink.may_prune = False
    for _ in range(20):
        world.run(flow, 600)
        made.work()
    assert segments(world)[0] == 1 and len(made.sequences()) > 3


def test_a_snapshot_that_cannot_be_written_or_read_back_is_told_and_nothing_is_let_go(world, monkeypatch):
    flow, made = Flow(9), Snapshotter(world, keep=1)
    world.run(flow, 3000)
    real = snapshot.restored

    def broken(header, content, limits):
        content["balances"]["available_low"][0] += 1
        return real(header, content, limits)
    monkeypatch.setattr(snapshot, "restored", broken)
    made.work()
    assert "not the one that it was made of" in made.told[0] and segments(world)[0] == 1


def test_the_snapshot_that_a_follower_begins_at_is_kept_with_the_journal_behind_it(world):
    flow, sink, made = Flow(10), Rows(), Snapshotter(world, every_operations=150, keep=1)
    retention.note_place(world.data, "history", Place(0, 0))
    world.run(flow, 2000)
    made.work()
    first = made.sequences()[0]
    world.run(flow, 100)
    Follower(world.data, world.instance, sink, LIMITS, [].append).do_work(first + 20)
    retention.note_place(world.data, "history", sink.place)
    for _ in range(20):
        world.run(flow, 300)
        made.work()
    assert first in made.sequences() and segments(world)[0] > 1
    Follower(world.data, world.instance, sink, LIMITS, [].append).do_work(INT64_MAX)
    assert sink.place == world.place


def test_a_segment_that_goes_on_behind_its_seal_is_read_and_kept(world):
    # given a segment that was sealed when the journal was opened, and goes on
    flow, made = Flow(11), Snapshotter(world, every_operations=1, keep=1)
    world.run(flow, 200)
    world.segment.sync()
    world.segment.seal(*world.place, False)
    world.run(flow, 200)
    # when a snapshot stands on a record behind the seal
    made.work()
    # then it serves, with what comes behind it
    stands_at = world.place.sequence
    world.run(flow, 200)
    assert world.number == 1
    found = recovered(world)
    assert found.snapshot.sequence == stands_at
    assert state_digest(found.replica.state) == state_digest(world.replica.state)
