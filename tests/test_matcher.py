"""The matcher in this process, on real shared memory and with a real journaler: how it starts, and what ends it."""
import json
import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline import journal, matcher_agent, replay, segment_content
from pipeline.matcher_agent import Broken, Matcher
from pipeline.release import journal_word, set_journal_word
from pipeline.sequencer import BROKE, LOOK, LOOK_EVERY_NS, SPIN_NS, STAMPED_NS, serve
from pipeline.state import SEQUENCE
from shm import configuration, doorbell, segments
from shm.doorbell import ring
from shm.process import memory_id
from shm.records import (
    ALL_ASSETS,
    COMMAND,
    DETAIL_BYTES_MAX,
    EVENT_HEADER,
    RECORD_SLOTS_MAX,
    REPLY,
    EventKind,
    Kind,
    Result,
)
from shm.ring import copy_in
from shm.segments import CommandWord, CounterWord, EventWord, JournalWord, ReplyWord, Role, SleeperWord, slot_view
from tests import litmus
from tests.fake_matcher import ring_records
from tests.journaler_world import RINGS, World
from tests.launched import wait_for
from tools.launcher import Page

SETTINGS = configuration.load(Path(__file__).parents[1] / "exchange.toml")
HOUR_NS = 3600 * 10**9


class Member:
    """What the matcher needs of its process. `on_beat` is called with each heartbeat."""
    name, role, stopping = "matcher", int(Role.MATCHER), False

    def __init__(self, data, memory, on_beat=lambda: None):
        self.data, self.memory, self.counters = data, memory, memory.counters.words[int(Role.MATCHER)]
        self.on_beat = on_beat

    def beat(self):
        self.counters[CounterWord.HEARTBEAT_NS] += 1
        self.on_beat()


class Exchange:
    """A journaler, one matcher after the other, and this test as the first gateway."""

    def __init__(self, data):
        self.world = World(data)
        self.world.start()
        self.memory = self.world.memory
        self.commands, self.replies = self.memory.commands, self.memory.replies
        self.matcher = None
        self.number = 0

    def start(self):
        """A matcher that takes over from the one before, as after its death."""
        self.journal()
        self.next_matcher().start()
        self.journal()
        return self.matcher

    def next_matcher(self, **options):
        """A matcher that has not begun. Of the one before, nothing is left but what it wrote."""
        self.matcher = Matcher(Member(self.world.data, self.memory, **options), SETTINGS)
        return self.matcher

    def journal(self):
        while self.world.journaler.do_work():
            pass

    def put(self, payload=b"", **fields):
        """Publish a command as gateway 0."""
        self.number += 1
        slots = 1 + -(-len(payload) // COMMAND.itemsize)
        message = np.zeros(slots, COMMAND)
        message.view(np.uint8)[COMMAND.itemsize:COMMAND.itemsize + len(payload)] = np.frombuffer(payload, np.uint8)
        for name, value in {
                "request_id": self.number, "slots": slots, "payload_bytes": len(payload), **fields}.items():
            message[name][0] = value
        words = self.commands.words[0]
        tail = int(words[CommandWord.TAIL])
        copy_in(self.commands.slots[0], tail, message.view(np.uint64), slots)
        words[CommandWord.TAIL] = tail + slots

    def deposit(self, business_id, payload=b""):
        self.put(payload, kind=Kind.UPDATE_BALANCE, user_id=1, asset_id=0, reference=business_id, change_low=10**18)

    def query(self, asset_id=ALL_ASSETS):
        self.put(kind=Kind.QUERY_BALANCE, user_id=1, asset_id=asset_id)

    def serve(self):
        """Let the matcher handle what is there. It spins until it comes back: it would sleep for a heartbeat."""
        self.matcher.rings.own[SPIN_NS] = LOOK_EVERY_NS
        self.matcher._check(serve(self.matcher.state, self.matcher.inbox, self.matcher.out, self.matcher.rings))

    @contextmanager
    def serving(self):
        """The matcher at work in a process of its own, which is killed at the end."""
        def work():
            while True:
                self.matcher._check(serve(self.matcher.state, self.matcher.inbox, self.matcher.out, self.matcher.rings))
        pid = litmus.fork(work)
        try:
            yield
        finally:
            litmus.kill(pid)

    def word(self, word):
        return self.world.word(word)

    @property
    def journal_slots_used(self):
        return self.word(JournalWord.CURSOR) - self.word(JournalWord.HEAD)

    def last_stamp_ns(self):
        """Of the last entry in the journal ring, one of a single slot."""
        cursor = self.word(JournalWord.CURSOR)
        entry, = ring_records(self.memory, cursor - 1, cursor)
        return int(entry["time_ns"])

    @property
    def sequence(self):
        return int(self.matcher.state.counters[SEQUENCE])


@pytest.fixture
def exchange(tmp_path):
    exchange = Exchange(tmp_path / "data")
    yield exchange
    exchange.world.bury()
    segments.unlink(memory_id(exchange.world.data))


def test_a_fresh_matcher_journals_what_the_configuration_defines_and_a_restarted_one_finds_it_there(exchange):
    exchange.start()
    defined = exchange.sequence
    assert defined == 1 + len(SETTINGS.assets) + len(SETTINGS.markets)
    exchange.start()
    assert exchange.sequence == defined


def test_a_restarted_matcher_stores_the_released_position_as_the_command_head(exchange):
    exchange.start()
    exchange.deposit(1)
    exchange.query()
    exchange.serve()
    exchange.journal()
    # given a matcher that died between publishing the journal cursor and storing the head
    exchange.commands.words[0, CommandWord.HEAD] = 0
    # when the next one starts
    exchange.start()
    # then the slots of the released commands may be refilled
    assert exchange.word(CommandWord.HEAD) == exchange.word(CommandWord.RELEASED) == 2


def test_a_gateway_that_waits_for_room_is_rung_when_a_restarted_matcher_stores_the_command_head(exchange):
    exchange.start()
    exchange.deposit(1)
    exchange.serve()
    exchange.journal()
    # given a matcher that died before it stored the head, and a gateway that sleeps until there is room
    exchange.commands.words[0, CommandWord.HEAD] = 0
    exchange.commands.words[0, CommandWord.ROOM_WANTED] = 1
    doorbell.announce_sleep(exchange.memory.sleepers.words, int(Role.GATEWAY))
    bell = doorbell.open_bell(exchange.world.data / "run", "gateway-0")
    doorbell.empty(bell)
    # when the next one starts
    exchange.start()
    # then it rings once as every start does, and once for the flag: its byte is the flag's
    assert os.read(bell, 10) == b"\0\1"


def test_a_starting_matcher_waits_until_the_journal_ring_is_empty_and_has_rung_every_bell_before(exchange):
    # given a deposit that is in the journal ring and not on disk
    exchange.start()
    before = exchange.sequence
    exchange.deposit(1)
    exchange.serve()
    bells = [doorbell.open_bell(exchange.world.data / "run", name) for name in ("journaler", "gateway-0", "gateway-1")]
    exchange.world.journaler.next_segment.wait()
    for bell in bells:
        doorbell.empty(bell)
    rung = []

    def journal_when_room_is_wanted():
        if exchange.word(JournalWord.ROOM_WANTED):
            rung.extend(os.read(bell, 10) for bell in bells)
            exchange.journal()
    # when the next matcher starts
    ring(exchange.next_matcher(on_beat=journal_when_room_is_wanted)._bell)
    exchange.matcher.start()
    # then it waited for the deposit, has it, and does not run it again
    assert exchange.sequence == before + 1
    assert exchange.word(CommandWord.HEAD) == 1
    # and whoever may have been owed a bell was rung, though nobody's flag was up
    assert rung == [b"\0"] * len(bells)


def test_a_starting_matcher_waits_until_the_journaler_has_opened_the_journal(exchange):
    words, sleepers = exchange.memory.journal.words, exchange.memory.sleepers.words

    def open_while_it_sleeps():
        if sleepers[Role.MATCHER, SleeperWord.ASLEEP]:
            set_journal_word(words, int(JournalWord.OPENED), 1)
    set_journal_word(words, int(JournalWord.OPENED), 0)
    ring(exchange.next_matcher(on_beat=open_while_it_sleeps)._bell)
    exchange.matcher.start()
    assert exchange.word(JournalWord.OPENED) == 1


def test_a_restarted_matcher_writes_behind_the_visible_replies_and_events(exchange):
    # given replies that the gateway has not taken
    exchange.start()
    exchange.deposit(1)
    exchange.deposit(2)
    exchange.serve()
    exchange.journal()
    visible = exchange.word(EventWord.VISIBLE)
    # when the next matcher handles a deposit
    exchange.start()
    exchange.deposit(3)
    exchange.serve()
    exchange.journal()
    # then its reply and its event are behind theirs
    replies = slot_view(exchange.replies, REPLY)[0]
    assert exchange.word(ReplyWord.TAIL) == 3
    assert [int(reply["request_id"]) for reply in replies[:3]] == [1, 2, 3]
    assert exchange.word(EventWord.VISIBLE) == visible + 1
    event = exchange.memory.events.slots[0, visible % RINGS.event_slots].view(np.uint8)[:EVENT_HEADER.itemsize]
    assert event.view(EVENT_HEADER)[0]["kind"] == EventKind.BALANCE
    assert event.view(EVENT_HEADER)[0]["sequence"] == exchange.sequence


def test_a_restarted_matcher_runs_no_released_command_again_though_reads_are_not_journaled(exchange):
    exchange.start()
    exchange.deposit(1)
    exchange.query()
    exchange.serve()
    exchange.journal()
    sequence, reply_tail = exchange.sequence, int(exchange.replies.words[0, ReplyWord.TAIL])
    exchange.start()
    exchange.serve()
    exchange.journal()
    assert exchange.sequence == sequence
    assert exchange.replies.words[0, ReplyWord.TAIL] == reply_tail


def test_a_command_that_was_applied_but_not_published_runs_once_after_the_restart(exchange):
    exchange.start()
    before = exchange.sequence
    exchange.deposit(1)
    exchange.start()  # the one before never saw it: as if it died before its cursor
    exchange.serve()
    exchange.journal()
    assert exchange.sequence == before + 1
    assert exchange.word(CommandWord.RELEASED) == 1


def test_a_refusal_and_a_read_pass_as_marks_and_take_no_sequence(exchange):
    exchange.start()
    exchange.deposit(1)
    exchange.deposit(1)
    exchange.query()
    before = exchange.sequence
    exchange.serve()
    exchange.journal()
    assert exchange.sequence == before + 1
    assert exchange.word(CommandWord.RELEASED) == 3
    assert exchange.matcher.out.header[0]["result"] == Result.OK


def test_a_start_on_a_long_journal_shows_watcher_and_launcher_that_it_goes_on(exchange, monkeypatch):
    # given some records in a file of 1,000 slots
    exchange.start()
    for business_id in range(50):
        exchange.deposit(business_id)
    exchange.serve()
    exchange.journal()
    records = exchange.sequence
    for module in (segment_content, replay):
        monkeypatch.setattr(module, "SLOTS_AT_ONCE", 5)
    pages, beat = set(), Member.beat

    def watched(process):
        beat(process)
        pages.add(Page.of(process.counters.tolist()))
    monkeypatch.setattr(Member, "beat", watched)
    # when a matcher starts, then it beats, and its page changes, with every 5 slots
    exchange.start()
    assert exchange.sequence == records > 50
    assert len(pages) >= (1000 + 50 + 50) // 5  # read, searched for limits, applied
    assert exchange.matcher.process.counters[CounterWord.RECORDS] == 0


def test_nothing_is_visible_before_the_journaler_has_written_it(exchange):
    exchange.start()
    exchange.deposit(1)
    exchange.serve()
    assert exchange.replies.words[0, ReplyWord.TAIL] == 0
    assert exchange.word(CommandWord.HEAD) == 1
    exchange.journal()
    assert exchange.replies.words[0, ReplyWord.TAIL] == 1


def test_the_command_heads_move_behind_the_journal_cursor(exchange):
    exchange.start()
    cursor = exchange.word(JournalWord.CURSOR)
    # given a matcher that is held where it rings the journaler: that bell is a pipe without room
    held, bell = os.pipe()
    os.set_blocking(bell, False)
    while True:
        try:
            os.write(bell, bytes(4096))
        except BlockingIOError:
            break
    os.set_blocking(bell, True)
    exchange.matcher.rings.bells[Role.JOURNALER] = bell
    doorbell.announce_sleep(exchange.memory.sleepers.words, int(Role.JOURNALER))
    exchange.deposit(1)
    with exchange.serving():
        # when the cursor has moved
        wait_for(lambda: journal_word(exchange.memory.journal.words, int(JournalWord.CURSOR)) == cursor + 1, "cursor")
        # then the reply is there, and the command's slot is not yet the gateway's
        assert slot_view(exchange.replies, REPLY)[0, 0]["request_id"] == 1
        assert exchange.word(CommandWord.HEAD) == 0
        # when the bell takes the byte
        os.read(held, 1 << 20)
        wait_for(lambda: exchange.word(CommandWord.HEAD) == 1, "head")
    os.close(held)
    os.close(bell)


def test_a_matcher_without_room_in_the_journal_ring_waits_and_loses_nothing(exchange):
    exchange.start()
    before = exchange.sequence
    for business_id in range(RINGS.command_slots):
        exchange.deposit(business_id)
    exchange.serve()
    assert exchange.word(CommandWord.HEAD) == RINGS.command_slots
    # given more commands than the largest record leaves room for
    for business_id in range(RINGS.command_slots, 2 * RINGS.command_slots):
        exchange.deposit(business_id)
    with exchange.serving():
        wait_for(lambda: exchange.word(JournalWord.ROOM_WANTED), "room is wanted")
        assert exchange.journal_slots_used == RINGS.journal_slots - RECORD_SLOTS_MAX + 1
        assert exchange.matcher.process.counters[CounterWord.FULL] >= 1
        # when there is room
        exchange.journal()
        wait_for(lambda: exchange.word(CommandWord.HEAD) == 2 * RINGS.command_slots, "all commands are taken")
        wait_for(lambda: exchange.word(JournalWord.ROOM_WANTED) == 0, "room is not wanted")
    exchange.journal()
    assert exchange.world.sequences() == list(range(1, before + 2 * RINGS.command_slots + 1))
    assert exchange.word(CommandWord.RELEASED) == 2 * RINGS.command_slots


def test_a_journal_ring_with_one_slot_less_than_the_largest_record_needs_is_not_overrun(exchange):
    exchange.start()
    before, cursor = exchange.sequence, exchange.word(JournalWord.CURSOR)
    # given a ring that reads have filled until one slot was wanting
    for _ in range(2):
        for _ in range((RINGS.journal_slots - RECORD_SLOTS_MAX + 1) // 2):
            exchange.query(asset_id=0)
        exchange.serve()
    filled = exchange.word(JournalWord.CURSOR)
    assert filled == cursor + RINGS.journal_slots - RECORD_SLOTS_MAX + 1
    # when the largest command comes
    detail = b"x" * DETAIL_BYTES_MAX
    exchange.deposit(1, detail)
    with exchange.serving():
        # then it waits for room
        wait_for(lambda: exchange.word(JournalWord.ROOM_WANTED) or exchange.word(JournalWord.CURSOR) > filled, "a step")
        assert exchange.word(JournalWord.CURSOR) == filled
        exchange.journal()
        wait_for(lambda: exchange.word(JournalWord.CURSOR) == filled + RECORD_SLOTS_MAX, "it is taken")
    exchange.journal()
    assert [(int(record["sequence"]), bytes(payload)) for record, payload in journal.records(
        exchange.world.directory, exchange.world.instance)][before:] == [(before + 1, detail)]


def test_a_command_that_comes_right_after_an_empty_batch_is_no_stall(exchange):
    # given a counter page that lies where the heartbeat stored behind the batch is the command ring's tail
    exchange.start()
    commands = exchange.commands
    offset = segments.HEADER_BYTES - CounterWord.HEARTBEAT_NS * 8
    page = np.frombuffer(commands.mapping, np.int64, segments.COUNTER_WORDS, offset).reshape(1, -1)
    rings = exchange.matcher.rings._replace(counters=page)
    # when commands, though malformed ones, come that way
    assert serve(exchange.matcher.state, exchange.matcher.inbox, exchange.matcher.out, rings) == BROKE
    # then nothing was counted as full
    assert exchange.word(CommandWord.TAIL) > 0
    assert (page[0, CounterWord.FULL], page[0, CounterWord.WAKEUPS]) == (0, 1)


# --- time


def test_stamps_stand_still_while_the_clock_is_behind_the_last_one_be_it_a_reads(exchange):
    exchange.start()
    # given a read, whose stamp is the last one
    exchange.query()
    exchange.serve()
    own = exchange.matcher.rings.own
    assert own[STAMPED_NS] == exchange.last_stamp_ns() > 0
    # when the clock stands an hour before it
    own[STAMPED_NS] += HOUR_NS
    last = int(own[STAMPED_NS])
    exchange.deposit(1)
    exchange.serve()
    assert exchange.last_stamp_ns() == last
    exchange.query()
    exchange.serve()
    assert exchange.last_stamp_ns() == last
    assert exchange.matcher.process.counters[CounterWord.CLOCK_STEPS] == 2
    # then a restarted matcher goes on from the last record
    exchange.start()
    exchange.query()
    exchange.serve()
    assert exchange.last_stamp_ns() == last


def test_a_jump_of_the_hosts_clock_is_told_once_and_a_small_step_is_not(exchange, monkeypatch):
    steps_ms = iter([0, SETTINGS.matcher.clock_jump_max_ms, 5000, 5000])  # at the start, then at each look
    monkeypatch.setattr(matcher_agent, "time", SimpleNamespace(
        time_ns=lambda: 10**18 + next(steps_ms) * 10**6, monotonic_ns=lambda: 0, monotonic=time.monotonic))
    monkeypatch.setattr(matcher_agent, "serve", lambda *_: LOOK)
    process = exchange.next_matcher().process
    looks = iter([False, False, False, True])
    monkeypatch.setattr(Member, "stopping", property(lambda _: next(looks)))
    process.ready = lambda: None
    try:
        exchange.matcher.run()
    finally:
        signal.set_wakeup_fd(-1)
    line, = (exchange.world.data / "log" / "fatal.log").read_text().splitlines()
    assert json.loads(line)["text"] == "the host's clock jumped by 5000 ms"


# --- what ends it


def test_a_command_whose_slots_do_not_fit_its_payload_ends_the_matcher_naming_the_gateway(exchange):
    exchange.start()
    exchange.put(kind=Kind.CANCEL, slots=3)
    with pytest.raises(Broken, match="gateway 0 published a malformed command"):
        exchange.serve()


def test_a_gateway_that_reserved_no_room_for_its_replies_ends_the_matcher(exchange):
    exchange.start()
    for _ in range(3):
        for _ in range(RINGS.command_slots - 1):
            exchange.query()
        try:
            exchange.serve()
        except Broken as broken:
            assert "did not reserve room" in str(broken)
            return
        exchange.journal()
    pytest.fail("the reply ring was overrun unnoticed")
