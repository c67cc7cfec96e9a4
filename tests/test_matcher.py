"""The matcher in this process, on real shared memory and with a real journaler: how it starts, and what ends it."""
from pathlib import Path

import numpy as np
import pytest

from pipeline import replay, segment_content
from pipeline.matcher_agent import Broken, Matcher
from pipeline.sequencer import serve
from pipeline.state import SEQUENCE
from shm import configuration, segments
from shm.doorbell import ring
from shm.records import ALL_ASSETS, COMMAND, Kind, Result
from shm.segments import CommandWord, CounterWord, JournalWord, ReplyWord, Role
from tests.journaler_world import RINGS, World
from tools.launcher import Page

SETTINGS = configuration.load(Path(__file__).parents[1] / "exchange.toml")


class Member:
    """What the matcher needs of its process."""
    name, role, stopping = "matcher", int(Role.MATCHER), False

    def __init__(self, data, memory):
        self.data, self.memory, self.counters = data, memory, memory.counters.words[int(Role.MATCHER)]

    def beat(self):
        self.counters[CounterWord.HEARTBEAT_NS] += 1


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
        self.matcher = Matcher(Member(self.world.data, self.memory), SETTINGS)
        self.matcher.start()
        self.journal()
        return self.matcher

    def journal(self):
        while self.world.journaler.do_work():
            pass

    def put(self, **fields):
        """Publish a command as gateway 0."""
        self.number += 1
        command = np.zeros((), COMMAND)
        command["request_id"], command["slots"] = self.number, 1
        for name, value in fields.items():
            command[name] = value
        words = self.commands.words[0]
        tail = int(words[CommandWord.TAIL])
        self.commands.slots[0, tail % RINGS.command_slots] = command.reshape(1).view(np.uint64)
        words[CommandWord.TAIL] = tail + 1

    def deposit(self, business_id):
        self.put(kind=Kind.UPDATE_BALANCE, user_id=1, asset_id=0, reference=business_id, change_low=10**18)

    def query(self):
        self.put(kind=Kind.QUERY_BALANCE, user_id=1, asset_id=ALL_ASSETS)

    def serve(self):
        """Let the matcher handle what is there."""
        ring(self.matcher._bell)
        self.matcher._check(serve(self.matcher.state, self.matcher.inbox, self.matcher.out, self.matcher.rings))

    def word(self, word):
        return int(self.commands.words[0, word])

    @property
    def sequence(self):
        return int(self.matcher.state.counters[SEQUENCE])


@pytest.fixture
def exchange(tmp_path):
    exchange = Exchange(tmp_path / "data")
    yield exchange
    exchange.world.bury()
    segments.unlink(exchange.world.instance)


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


def test_a_matcher_without_room_in_the_journal_ring_waits_and_loses_nothing(exchange):
    exchange.start()
    before = exchange.sequence
    for business_id in range(RINGS.command_slots):
        exchange.deposit(business_id)
    for _ in range(8):
        exchange.serve()
        exchange.replies.words[0, ReplyWord.HEAD] = exchange.replies.words[0, ReplyWord.TAIL]
        exchange.journal()
    assert exchange.sequence == before + RINGS.command_slots
    assert exchange.memory.journal.words[0, JournalWord.ROOM_WANTED] == 0


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
