"""The simulated processes: the pipeline's own agents, as their entry points run them, and two that stand for others:
a gateway with its clients, and a follower with a database.
"""
from collections import deque
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from gateways.lane import CREDIT, OLDEST, PUBLISHED, REPLY_HEAD, TAIL, append_call, make_lane
from pipeline import retention
from pipeline.follower import Follower
from pipeline.journaling import Journaler
from pipeline.matcher_agent import Matcher
from pipeline.release import FOLLOWABLE, OPENED, REFUSING, journal_word
from pipeline.seeding import limits_of
from pipeline.segment_file import JournalUnwritable
from pipeline.snapshotting import Snapshotter
from shm import role_lock
from shm.gateway_rings import is_answered, publish_commands, release_replies, reply_tail, want_room
from shm.process import instance_of
from shm.records import COMMAND, FIRST_READ, REPLY_HEADER, Kind
from shm.segments import Role

EVENT_SLOTS = 1 << 10
REPLY_SLOTS_OF_LIST = 3        # of three orders
_LISTS = (Kind.LIST_BOOK, Kind.LIST_PENDING)


class Unlike(AssertionError):
    """Something that a client or a database sees is not what was promised."""


class Member:
    """What an agent needs of its process."""

    def __init__(self, world, name, role):
        self.name, self.role, self.stopping = name, int(role), False
        self.data, self.memory = world.data, world.memory
        self.counters = self.memory.counters.words[self.role]
        self.counters[:] = 0

    def beat(self):
        """Nobody watches."""

    def ready(self):
        """Nobody waits for it."""


def run_matcher(world):
    with world.role("matcher"):
        Matcher(Member(world, "matcher", Role.MATCHER), world.settings).run()


def run_journaler(world):
    with world.role("journaler"):
        journaler = Journaler(Member(world, "journaler", Role.JOURNALER), world.settings.journal)
        try:
            journaler.run()
        except JournalUnwritable:
            journaler.abandon()
            raise


def run_snapshotter(world):
    with world.role("snapshotter"):
        Snapshotter(Member(world, "snapshotter", Role.SNAPSHOTTER), world.settings).run()


def second_copy(world, name):
    """Whether a second process with the role of one that runs is refused."""
    try:
        role_lock.take(world.data, name)
    except role_lock.RoleTaken:
        return True
    return False


# --- clients

@dataclass(eq=False)
class Operation:
    """What a client wants, once; a deposit that was not answered is sent again, under the same business id."""
    number: int
    fields: dict
    payload: bytes = b""
    answers: list = field(default_factory=list)  # reply messages
    sent: int = 0

    @property
    def is_write(self):
        return self.fields["kind"] < FIRST_READ

    @property
    def may_repeat(self):
        return self.fields["kind"] == Kind.UPDATE_BALANCE

    @property
    def reply_slots_max(self):
        return REPLY_SLOTS_OF_LIST if self.fields["kind"] in _LISTS else 1

    def command(self):
        slots = 1 + -(-len(self.payload) // COMMAND.itemsize)
        message = np.zeros(slots, COMMAND)
        first = message[0]
        for name, value in {**self.fields, "correlation_id": self.number, "slots": slots,
                            "payload_bytes": len(self.payload)}.items():
            first[name] = value
        message.view(np.uint8)[COMMAND.itemsize:COMMAND.itemsize + len(self.payload)] = np.frombuffer(
            self.payload, np.uint8)
        return message

    def __str__(self):
        told = ", ".join(f"{name} {value}" for name, value in self.fields.items() if name not in ("kind", "label"))
        return f"{Kind(self.fields['kind']).name.lower()} no. {self.number} ({told})"


class Clients:
    """The clients of one gateway: `waiting` to be sent, `open` between the rings (in order)."""

    def __init__(self):
        self.waiting, self.open = deque(), deque()

    def disconnected(self):
        """The gateway is gone: what may be repeated is sent to the next one."""
        self.waiting.extendleft(reversed([operation for operation in self.open if operation.may_repeat]))
        self.open.clear()

    @property
    def are_served(self):
        return not self.waiting and not self.open


class Gateway:
    """The ring's end of a gateway, with the order of publication that gateways/bridge.py has."""

    def __init__(self, world, row):
        self._world, self._row, self._clients = world, row, world.clients[row]
        self._commands, self._replies = world.memory.commands.words, world.memory.replies.words
        self._journal, self._sleepers = world.memory.journal.words, world.memory.sleepers.words

    def run(self):
        with self._world.role(f"gateway-{self._row}"):
            self.take_over()
            while True:
                sent = self._send()
                if not self._receive() and not sent:
                    self._world.idle()

    def take_over(self):
        """Wait until all that this gateway's predecessor wrote is answered, and drop those replies."""
        self.lane = make_lane(self._world.memory, self._row)
        self._world.step("taking over")
        while not is_answered(self._commands, self._row):
            self._world.idle()
        self._world.step("the reply tail")
        want_room(self._commands, self._row, 0)
        self.lane.own[REPLY_HEAD] = reply_tail(self._replies, self._row)
        release_replies(self._replies, self._row, self.lane.own[REPLY_HEAD])

    def _send(self):
        """Write what is waiting, as far as there is room; returns whether anything was."""
        own, waiting = self.lane.own, self._clients.waiting
        while waiting:
            operation = waiting[0]
            if operation.is_write and journal_word(self._journal, REFUSING):
                break
            message = operation.command().view(np.uint64)
            if not append_call(self.lane, message, operation.reply_slots_max, 0):
                break
            self._clients.open.append(waiting.popleft())
            operation.sent += 1
        if own[TAIL] == own[PUBLISHED]:
            return False
        self._world.step("the command tail")
        publish_commands(self._commands, self._row, own[TAIL], self._sleepers, self._world.bell)
        own[PUBLISHED] = own[TAIL]
        return True

    def _receive(self):
        """Take the replies that are visible; returns whether there were any."""
        own, slots = self.lane.own, self._world.memory.replies.slots[self._row]
        self._world.step("the replies")
        tail, head = reply_tail(self._replies, self._row), int(own[REPLY_HEAD])
        if head == tail:
            return False
        if head > tail:
            raise Unlike(f"gateway {self._row} has read up to position {head}, and the reply tail is {tail}")
        while head < tail:
            header = slots[head % len(slots)].view(np.uint8)[:REPLY_HEADER.itemsize].view(REPLY_HEADER)[0]
            count = int(header["slots"])
            if not self._clients.open or header["request_id"] != own[OLDEST] or not 0 < count <= tail - head:
                raise Unlike(f"gateway {self._row} has a reply at position {head} (request {header['request_id']},"
                             f" {count} slots) that is not of its call {own[OLDEST]}")
            operation = self._clients.open.popleft()
            message = slots[np.arange(head, head + count) % len(slots)].tobytes()
            self._world.answered(operation, message[:REPLY_HEADER.itemsize + int(header["payload_bytes"])])
            own[OLDEST] += 1
            own[CREDIT] += operation.reply_slots_max
            head += count
        self._world.step("the reply head")
        own[REPLY_HEAD] = head
        release_replies(self._replies, self._row, head)
        return True


# --- a follower with a database

class Rows:
    """A sink: rows and checkpoint change in one transaction, and outlive every crash."""

    def __init__(self, step):
        self.place, self.rows = None, []
        self._step = step

    def checkpoint(self):
        return self.place

    def write(self, events, place, _replica):
        self._step("the transaction")
        self.rows += [(int(event[0]), event.tobytes()) for event in events]
        self.place = place
        self._step("the end of the transaction")

    def __str__(self):
        return "the database"


def run_history(world):
    """Rows of everything that happened, as far as may be followed."""
    with world.role("history"):
        words = world.memory.journal.words
        while journal_word(words, OPENED) != 1:
            world.idle()
        follower = Follower(world.data, instance_of(world.data), world.sink, limits_of(world.settings), world.say,
                            event_slots=EVENT_SLOTS)
        while True:
            world.step("following")
            until = followable(words)
            before = follower.place
            follower.do_work(until)
            if follower.place == before:
                world.idle()
            else:
                retention.note_place(world.data, "history", follower.place)


def followable(words):
    """Up to where a follower may read."""
    return int(journal_word(words, FOLLOWABLE))


RUN = {"matcher": run_matcher, "journaler": run_journaler, "snapshotter": run_snapshotter, "history": run_history}
GATEWAYS = ("gateway 0", "gateway 1")


def work_of(world, name):
    """The code of the process of this name."""
    if name in GATEWAYS:
        return lambda: Gateway(world, GATEWAYS.index(name)).run()
    return partial(RUN[name], world)
