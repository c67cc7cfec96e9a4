"""The simulator keeps every promise on the pipeline as it is, and finds every rule that is broken on purpose."""
import json
import os
import sys
from itertools import cycle
from typing import NamedTuple

import numpy as np
import pytest

from pipeline import journal, journaling, matcher_agent, recovery, release, retention, segment_file, snapshot
from pipeline.journaling import RELEASE, Journaler, _publication
from pipeline.matcher_agent import Matcher
from pipeline.release import FOLLOWABLE_WORD, RELEASED_POSITIONS, REPLY_TAILS, RING_HEAD, SYNCED_WORD
from pipeline.segment_file import HEADER_BYTES, SegmentFile
from shm.records import INT64_MAX
from shm.segments import CommandWord, EventWord, JournalWord, ReplyWord, Segment, SharedMemory
from tools import cli
from tools.simulation import agents, history, seam, world
from tools.simulation.agents import Gateway, Operation, Rows
from tools.simulation.plan import plan_of
from tools.simulation.runs import run_plan, run_seeds, shrunk

SEEDS_MAX = 1000               # until a broken rule is found


@pytest.fixture(scope="module", autouse=True)
def one_thread_at_a_time():
    """No thread is interrupted for another one: they take turns by themselves."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1.0)
    yield
    sys.setswitchinterval(before)


def test_no_seed_breaks_a_promise(pytestconfig):
    count, faults = pytestconfig.getoption("--simulation-seeds"), 0
    for outcome in run_seeds(range(1, count + 1)):
        assert outcome.violation is None, f"seed {outcome.plan.seed}: {outcome.violation}"
        faults += sum(outcome.injected[kind] for kind in ("kill", "power cut", "reboot", "failed disk operation"))
    assert faults > 5 * count


def test_a_seed_always_does_the_same():
    for seed in range(5):
        first, second = run_plan(plan_of(seed)), run_plan(plan_of(seed))
        assert first.story == second.story and len(first.story) > 50
        assert (first.sequence, first.injected) == (second.sequence, second.injected)


def test_the_command_tells_what_it_did(tmp_path, capsys):
    assert cli.main(["simulate", "--seeds", "3..4", "--sync", "interval", "--json", str(tmp_path / "found")]) == 0
    found = json.loads((tmp_path / "found").read_text())
    assert (found["run"], found["sync"], found["violations"]) == (2, "interval", [])
    assert found["faults"]["kill"] > 0 and "run 2, operations " in capsys.readouterr().out


# --- broken on purpose

class Variant(NamedTuple):
    """A rule that `breaking` breaks. `seed`: one that finds it, with the plans as they are now; it is tried first."""
    breaking: object
    seed: int
    sync: str


VARIANTS = {}


def variant(name, breaking, seed=1, sync=None):
    VARIANTS[name] = Variant(breaking, seed, sync)


def broken(seed, sync=None):
    """A variant by its function's name."""
    def noted(breaking):
        variant(breaking.__name__.replace("_", " "), breaking, seed, sync)
        return breaking
    return noted


def steps_of(mode, *steps, is_synced):
    return {**RELEASE, mode: _publication(*steps, is_synced=is_synced)}


def always(*steps, is_synced=True):
    """The journaler of `always` takes these steps."""
    def breaking(patch):
        patch.setattr(journaling, "RELEASE", steps_of("always", *steps, is_synced=is_synced))
    return breaking


@broken(seed=1, sync="interval")
def ring_head_follows_release_in_interval(patch):
    patch.setattr(journaling, "RELEASE", steps_of("interval", REPLY_TAILS, RELEASED_POSITIONS, RING_HEAD,
                                                  is_synced=False))


@broken(seed=70)
def words_move_back(patch):
    def publish(steps, journal_words, reply_words, event_words, command_words, span, moved):
        for step in steps.tolist():
            if step == SYNCED_WORD:
                journal_words[0, JournalWord.SYNCED] = journal_words[0, JournalWord.FOLLOWABLE] = span[release.SEQUENCE]
            elif step == FOLLOWABLE_WORD:
                journal_words[0, JournalWord.FOLLOWABLE] = span[release.SEQUENCE]
            elif step == RING_HEAD:
                journal_words[0, JournalWord.HEAD] = span[release.END]
            for row in np.flatnonzero(moved["here"]):
                if step == REPLY_TAILS:
                    reply_words[row, ReplyWord.TAIL] = moved[row]["reply_end"]
                    event_words[0, EventWord.VISIBLE] = span[release.EVENT_END]
                elif step == RELEASED_POSITIONS:
                    command_words[row, CommandWord.RELEASED] = moved[row]["position"]
    patch.setattr(release, "publish", publish)
    shorter_spans(patch)


def shorter_spans(patch):
    """Every second journaler takes no more than it must."""
    room, limits = Journaler._room_slots, cycle((3, 1000))

    def room_slots(journaler):
        if not hasattr(journaler, "limit"):
            journaler.limit = next(limits)
        return min(journaler.limit, room(journaler))
    patch.setattr(Journaler, "_room_slots", room_slots)


@broken(seed=6)
def directory_is_not_synced(patch):
    patch.setattr(segment_file, "sync_directory", lambda directory: None)


@broken(seed=69, sync="interval")
def next_segment_begins_before_the_last_is_synced(patch):
    def finish_segment(journaler):
        if journaler.segment is not None:
            segment_file.os.close(journaler.segment._descriptor)
            journaler.segment = None
    patch.setattr(Journaler, "_finish_segment", finish_segment)


@broken(seed=1)
def truncating_journaler(patch):
    real = Journaler._resume

    def resume(journaler):
        real(journaler)
        segments = segment_file.segments_of(journaler._directory, journaler._instance)
        if segments:
            size = os.stat(segments[-1].path).st_size
            with open(segments[-1].path, "rb+") as file:
                os.ftruncate(file.fileno(), HEADER_BYTES)
                os.ftruncate(file.fileno(), size)
                segment_file.os.fsync(file.fileno())
    patch.setattr(Journaler, "_resume", resume)


@broken(seed=1)
def overwriting_journaler(patch):
    """It goes on in the last segment, from its beginning."""
    real = Journaler._begin_segment

    def begin(journaler):
        segments = segment_file.segments_of(journaler._directory, journaler._instance)
        if journaler.segment is None and segments and not getattr(journaler, "has_begun", False):
            journaler.has_begun = True
            descriptor = segment_file.os.open(segments[-1].path, os.O_RDWR)
            journaler.segment = SegmentFile(descriptor, segments[-1], os.stat(segments[-1].path).st_size)
            return True
        return real(journaler)
    patch.setattr(Journaler, "_begin_segment", begin)


@broken(seed=137)
def failed_sync_is_tried_again(patch):
    def sync(segment):
        try:
            segment_file.os.fdatasync(segment._descriptor)
        except OSError:
            segment_file.os.fdatasync(segment._descriptor)
        segment.unsynced, segment.ever_synced = False, True
    patch.setattr(SegmentFile, "sync", sync)


@broken(seed=6)
def unsynced_tail_is_believed(patch):
    patch.setattr(Journaler, "_write_again", lambda journaler, found, _sequence: written(journaler, found))


def written(journaler, found):
    journaler.span[release.SEQUENCE] = found.end_sequence
    journaler.span[release.LAST_CHAIN] = np.uint64(found.end_chain).view(np.int64)
    journaler._is_gapless = True
    journaler._publish(np.array([SYNCED_WORD]))


@broken(seed=121)
def ring_that_exists_counts_as_opened(patch):
    real = Journaler._open

    def open_journal(journaler):
        release.set_journal_word(journaler.words, release.OPENED, 1)
        real(journaler)
    patch.setattr(Journaler, "_open", open_journal)


@broken(seed=21)
def chain_is_not_looked_at(patch):
    """The newest whole record of each sequence, whatever it continues."""
    def read_order(runs, behind=journal.START):
        in_order, (sequence, chain) = [], behind
        while True:
            sequence += 1
            covering = [run for run in runs if run.first_sequence <= sequence <= run.last_sequence]
            if not covering:
                return in_order, sequence - 1, chain
            chosen = max(covering, key=lambda run: run.age)
            chosen._sequence, chosen._slot = chosen.first_sequence, chosen.start_slot
            begin = chosen.slot_of(sequence)
            in_order.append(journal.Span(chosen.content, begin, chosen.slot_of(sequence + 1), sequence, sequence))
            chain = chosen.chain_before(sequence + 1)
    patch.setattr(journal, "read_order", read_order)


@broken(seed=21)
def whole_record_beyond_damage_stops_the_start(patch):
    real = journal.spans

    def spans(directory, instance, *arguments, **options):
        found = real(directory, instance, *arguments, **options)
        if any(remains.first_sequence for remains in found.remains):
            remains = found.remains[0]
            raise journal.JournalDamaged(remains.path, remains.offset, found.end_sequence + 1, remains.last_sequence)
        return found
    patch.setattr(journal, "spans", spans)


@broken(seed=20)
def known_synced_is_not_stored(patch):
    real = journal.runs_of
    patch.setattr(journal, "runs_of", lambda content: (real(content)[0], 0))


@broken(seed=5)
def matcher_does_not_wait_for_an_empty_ring(patch):
    patch.setattr(Matcher, "_wait_for_room", lambda matcher, slots: None)


@broken(seed=380)
def matcher_leaves_the_command_heads(patch):
    patch.setattr(matcher_agent, "free_commands", lambda rings: None)


@broken(seed=7)
def commands_go_on_behind_the_last_journaled_one(patch):
    """Reads are not journaled: what was released only is run again."""
    real, seen = recovery.recover, []

    def recover(data, instance, limits, tell, positions, *arguments, **options):
        found = real(data, instance, limits, tell, positions, *arguments, **options)
        seen[:] = [positions]
        return found
    make = Matcher._make_rings
    patch.setattr(recovery, "recover", recover)
    patch.setattr(Matcher, "_make_rings", lambda matcher, _released, chain: make(matcher, seen[0].copy(), chain))


@broken(seed=24)
def head_before_cursor(patch):
    """The command heads are shown before the journal cursor."""
    patch.setattr(seam, "in_order_of_publication", lambda shown: [*shown[1:], shown[0]])


@broken(seed=3)
def gateway_does_not_drain(patch):
    def take_over(gateway):
        gateway.lane = agents.make_lane(gateway._world.memory, gateway._row)
        gateway.lane.own[agents.REPLY_HEAD] = agents.reply_tail(gateway._replies, gateway._row)
        agents.release_replies(gateway._replies, gateway._row, gateway.lane.own[agents.REPLY_HEAD])
    patch.setattr(Gateway, "take_over", take_over)


@broken(seed=1)
def client_repeats_under_another_business_id(patch):
    """Nobody recognizes the second one."""
    real = Operation.command

    def command(operation):
        message = real(operation)
        if operation.may_repeat:
            message["reference"][0] += 10_000 * operation.sent
        return message
    patch.setattr(Operation, "command", command)
    patch.setattr(history, "_is_same", lambda words, operation: True)


@broken(seed=1)
def snapshot_forgets_the_idempotency_keys(patch):
    patch.setattr(snapshot, "restore_keys", lambda state, rows: None)
    patch.setattr(snapshot, "state_digest", lambda state: 1)


def segments_renewed_alone(*names):
    """Only some of the shared memory is made anew."""
    def breaking(patch):
        real = world.make_memory

        def make_memory(self):
            before = getattr(self, "memory", None)
            renewed = real(self.settings.rings, self._generation)
            if before is None:
                return renewed
            kept = {name: getattr(before, name) for name in vars(before)
                    if name not in names and isinstance(getattr(before, name), Segment)}
            return SharedMemory(**{**vars(renewed), **kept, "generation": before.generation})
        patch.setattr(world.World, "_make_memory", make_memory)
    return breaking


@broken(seed=1, sync="none")
def follower_is_held_to_the_synced_position(patch):
    patch.setattr(agents, "followable", lambda words: int(words[0, JournalWord.SYNCED]))


@broken(seed=89)
def follower_goes_as_far_as_the_files(patch):
    patch.setattr(agents, "followable", lambda words: INT64_MAX)


@broken(seed=45)
def checkpoint_is_not_atomic(patch):
    def write(sink, events, place, _replica):
        sink.rows += [(int(event[0]), event.tobytes()) for event in events]
        sink._step("the checkpoint")
        sink.place = place
    patch.setattr(Rows, "write", write)


@broken(seed=23)
def snapshot_is_not_synced(patch):
    def without_sync(module):
        class Unsynced:
            def __getattr__(self, name):
                return getattr(module, name)

            def fsync(self, _descriptor):
                """Nothing is on disk."""
        return Unsynced()
    real = snapshot.write

    def write(*arguments):
        system, snapshot.os = snapshot.os, without_sync(snapshot.os)
        try:
            return real(*arguments)
        finally:
            snapshot.os = system
    patch.setattr(snapshot, "write", write)


@broken(seed=23)
def snapshots_folder_is_not_synced(patch):
    patch.setattr(snapshot, "sync_directory", lambda directory: None)


@broken(seed=1)
def one_segment_too_many_is_let_go(patch):
    real = retention.let_go

    def let_go(directory, instance, sequence, archive=None):
        gone = real(directory, instance, sequence, archive)
        if gone:
            for segment in segment_file.segments_of(directory, instance)[:1]:
                segment.path.unlink()
        return gone
    patch.setattr(retention, "let_go", let_go)


@broken(seed=39)
def any_seal_counts_as_the_last(patch):
    patch.setattr(journal, "last_sequence_of", lambda path: segment_file.seal_of(path)[0])


@broken(seed=4)
def nothing_is_kept_for_followers_to_begin_at(patch):
    patch.setattr(retention, "places_of_followers", lambda data: {})


@broken(seed=5)
def stamps_follow_the_clock_back(patch):
    make = Matcher._make_rings

    def make_rings(matcher, released, chain):
        rings = make(matcher, released, chain)
        rings.own[matcher_agent.STAMPED_NS] = 0
        return rings
    patch.setattr(Matcher, "_make_rings", make_rings)


variant("reply released before sync", always(SYNCED_WORD, REPLY_TAILS, RELEASED_POSITIONS, RING_HEAD, is_synced=False),
        seed=3, sync="always")
variant("released before reply tail", always(SYNCED_WORD, RELEASED_POSITIONS, REPLY_TAILS, RING_HEAD), seed=534,
        sync="always")
variant("ring head before reply tail", always(SYNCED_WORD, RING_HEAD, REPLY_TAILS, RELEASED_POSITIONS), seed=96,
        sync="always")
for ring in ("journal", "commands", "replies"):
    variant(f"{ring} renewed alone", segments_renewed_alone(ring), seed=3)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_rule_that_is_broken_is_found(name, monkeypatch):
    breaking, seed, sync = VARIANTS[name]
    breaking(monkeypatch)
    for outcome in run_seeds([seed, *range(1, SEEDS_MAX)], sync):
        if outcome.violation is not None:
            print(f"{name}: seed {outcome.plan.seed}, {outcome.violation}")
            return
    pytest.fail(f"{SEEDS_MAX} seeds say that all is well")


def test_a_failing_seed_is_made_short_and_fails_again_in_the_same_way(monkeypatch):
    checkpoint_is_not_atomic(monkeypatch)
    outcome = next(outcome for outcome in run_seeds([45, *range(1, 200)]) if outcome.violation is not None)
    shortest = shrunk(outcome, 5.0)
    assert shortest.violation.kind == outcome.violation.kind
    assert len(shortest.plan.actions) < len(outcome.plan.actions)
    assert run_plan(shortest.plan).story == shortest.story
    assert shortest.story[-1].startswith("VIOLATION: ")
