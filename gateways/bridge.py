"""The way into the pipeline: commands go into this gateway's ring, replies come back. Nothing else touches a ring.

Order of publication, a gateway's part: room for the largest reply that a command can have is reserved before it is
written (credit); the ring's tail is published once an event-loop tick; then the matcher is woken. A reply is visible
only when its command is on disk. Commands come from coroutines, one at a time (`call`), and from a front, which writes
those of its connections itself when its turn in the tick comes.
"""
import os
import select
import struct
import time
import traceback
from collections import deque
from pathlib import Path

import numpy as np

from gateways.fast_answer import ANSWER, QUESTION, REPLY, TOLD, answer_bytes_max, drain, make_outbox
from gateways.lane import (
    FULL,
    GIVEN_UP,
    HEAD,
    NEXT,
    NOBODY,
    OLDEST,
    PUBLISHED,
    REPLY_HEAD,
    ROOM_WANTED,
    TAIL,
    WAITING,
    append_call,
    make_lane,
)
from gateways.messages import unsigned
from gateways.sockets import make_sockets
from shm import doorbell
from shm.configuration import reply_slots_needed
from shm.gateway_rings import (
    command_head,
    is_answered,
    publish_commands,
    release_replies,
    reply_tail,
    want_room,
)
from shm.process import HEARTBEAT_SECONDS
from shm.records import COMMAND
from shm.segments import CounterWord, JournalWord, Role

NO_EPOLL = -1
ROOM_WAIT_SECONDS = 0.2        # for a place in the rings; then code 3
MATCHER_GONE_NS = 2 * 10**9    # without a process for this long: nobody brings it back
_START_TICKS_AT = 22 - 3       # of /proc/PID/stat: its field 22, counted from the one behind the name
_STAMP = struct.Struct("<QqQ")  # the first fields of a COMMAND
assert COMMAND.names[:3] == ("request_id", "received_at_ns", "correlation_id") and COMMAND.fields["reference"][1] == 24


class ServiceUnavailable(Exception):
    """The command has not been written; `data` says why."""

    def __init__(self, data):
        super().__init__(data["reason"])
        self.data = data


class ServiceTimeout(Exception):
    """No reply in time. The command was written: it may still be executed, its reply is dropped."""

    def __init__(self, timeout_ms):
        super().__init__(f"no reply within {timeout_ms} ms")
        self.data = {"reason": "no reply in time; the request may still be executed", "limit_ms": timeout_ms}


class MatcherGone(Exception):
    """There is no matcher, and none has come back for a while: the command has not been written."""


def _started_ns(pid):
    """When the process was started, on the monotonic clock; None where there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    ticks = int(stat.rpartition(")")[2].split()[_START_TICKS_AT])  # behind the name, which may hold anything
    suspended_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
    return ticks * 10**9 // os.sysconf("SC_CLK_TCK") - suspended_ns


class _Call:
    """A command on its way. `future` is done when it is answered or given up."""
    __slots__ = (
        "correlation_id", "deadline", "future", "is_write", "received_at_ns", "reply_slots_max", "room_deadline",
        "slots")

    def __init__(self, command, correlation_id, received_at_ns, future, now, timeout):
        self.slots, self.reply_slots_max, self.is_write = command.slots, command.reply_slots_max, command.is_write
        self.correlation_id, self.received_at_ns, self.future = correlation_id, received_at_ns, future
        self.deadline, self.room_deadline = now + timeout, now + min(timeout, ROOM_WAIT_SECONDS)


class Bridge:
    def __init__(self, process, index, timeout_ms, catalog):
        """The rings of gateway `index` in `process.memory`; nothing happens before `take_over`."""
        memory = process.memory
        self._process, self._row, self.timeout_ms = process, index, timeout_ms
        self._commands, self._replies = memory.commands.words, memory.replies.words
        self._sleepers, self._counters = memory.sleepers.words, process.counters
        self._journal = memory.journal.words[0]
        self._matcher = memory.counters.words[Role.MATCHER]
        self._command_slots = memory.commands.shape.capacity
        self._reply_slots = memory.replies.shape.capacity
        bells = process.data / "run"
        self._bell = doorbell.open_bell(bells, process.name)
        self._matcher_bell = doorbell.open_bell(bells, "matcher")
        self._facts = catalog.facts
        reply_slots_max = reply_slots_needed(catalog.limits)
        self._box, self._room_bytes = make_outbox(reply_slots_max), answer_bytes_max(reply_slots_max)
        self._out = memoryview(self._box.out)
        self._calls_published = 1      # number of the next call to publish
        self.lane = make_lane(memory, index)
        self._front = NoFront()
        self._waiting = deque()        # calls that are not in the ring yet
        self._deadlines = deque()      # calls in the order of their deadlines
        self._in_flight = {}           # number: call that is in the ring or beyond
        self._oldest_waiting = 1       # number of a call: older ones of the front have been answered or given up
        self._tick_is_due = False
        self._room_is_wanted = False
        self._timer = None
        self._loop = None

    def take_over(self):
        """Wait until all that this gateway's predecessor wrote is answered, and drop those replies: their clients are
        gone. Returns early when the process is told to stop."""
        doorbell.ring(self._matcher_bell)  # the predecessor may have died before it rang
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        while not self._process.stopping:
            doorbell.announce_sleep(self._sleepers, self._process.role)
            if is_answered(self._commands, self._row):
                break
            poll.poll(HEARTBEAT_SECONDS * 1000)
            doorbell.empty(self._bell)
            self._process.beat()
        doorbell.announce_waking(self._sleepers, self._process.role)
        want_room(self._commands, self._row, 0)
        self.lane.own[REPLY_HEAD] = reply_tail(self._replies, self._row)
        release_replies(self._replies, self._row, self.lane.own[REPLY_HEAD])

    def attach(self, loop):
        """Look at the replies whenever the bell rings, from now on."""
        self._loop = loop
        loop.add_reader(self._bell, self._on_bell)
        loop.call_soon(self._on_bell)

    def join(self, front):
        """Give the front its turn in each tick, and what its calls are answered: see NoFront."""
        self._front = front

    def is_open(self):
        """Whether there is a matcher, or one is expected back."""
        return not self._matcher_is_gone()

    def takes_writes(self):
        return not self._journal[JournalWord.REFUSING]

    def check_writable(self):
        """Raises ServiceUnavailable while the journal takes no writes."""
        refusal = self._refusal_of_writes()
        if refusal:
            raise refusal

    async def call(self, command, correlation_id=0):
        """The reply message (bytes) to the command, once it is on disk.

        Raises MatcherGone and ServiceUnavailable with nothing written, ServiceTimeout when it was.
        """
        if self._matcher_is_gone():
            raise MatcherGone
        if len(self._waiting) >= self._command_slots:
            raise self._no_room()
        call = _Call(command, correlation_id, time.time_ns(), self._loop.create_future(), self._loop.time(),
                     self.timeout_ms / 1000)
        self._waiting.append(call)
        self._deadlines.append(call)
        self.request_tick()
        self._set_timer(call.deadline)
        return await call.future

    def request_tick(self):
        """Write and publish what waits, soon."""
        if not self._tick_is_due:
            self._tick_is_due = True
            self._loop.call_soon(self.tick_now)

    def _matcher_is_gone(self):
        heartbeat_ns = int(self._matcher[CounterWord.HEARTBEAT_NS])
        if time.monotonic_ns() - heartbeat_ns < MATCHER_GONE_NS:
            return False
        started_ns = _started_ns(int(self._matcher[CounterWord.PID]))
        return started_ns is None or started_ns > heartbeat_ns  # by now another process may have its number

    def _refusal_of_writes(self):
        error = int(self._journal[JournalWord.REFUSING])
        if not error:
            return None
        return ServiceUnavailable({"reason": f"the journal has no room for writes: {os.strerror(error)}; reads go on"})

    def _no_room(self):
        return ServiceUnavailable({
            "reason": "the rings between gateway and matcher stayed full",
            "limit": {"rings.command_slots": self._command_slots, "rings.reply_slots": self._reply_slots}})

    # Commands.

    def tick_now(self):
        """Write and publish what waits."""
        self._tick_is_due = False
        self._guard(self._tick)

    def _tick(self):
        """Write what waits, as far as credit and ring go, and publish it at once."""
        self._flush()
        self._front.take(self.lane)
        own = self.lane.own
        full, wants_room = int(own[FULL]), bool(own[ROOM_WANTED])
        if full:
            self._counters[CounterWord.FULL] += full
            own[FULL] = own[ROOM_WANTED] = 0
            self._set_timer(self._loop.time() + ROOM_WAIT_SECONDS)
        if wants_room or self._room_is_wanted:
            self._room_is_wanted = wants_room
            seen, own[HEAD] = own[HEAD], want_room(self._commands, self._row, int(wants_room))
            if wants_room and own[HEAD] != seen:
                self.request_tick()    # it came in between
        tail, published = int(own[TAIL]), int(own[PUBLISHED])
        if tail != published:
            calls = int(own[NEXT]) - self._calls_published
            self._calls_published += calls
            own[PUBLISHED] = tail
            publish_commands(self._commands, self._row, tail, self._sleepers, self._matcher_bell)
            self._counters[CounterWord.RECORDS] += calls
            self._counters[CounterWord.BATCHES] += 1
            self._counters[CounterWord.LARGEST_BATCH] = max(calls, int(self._counters[CounterWord.LARGEST_BATCH]))
            if self._timer is None:
                self._set_timer(self._loop.time() + self.timeout_ms / 1000)

    def _flush(self):
        """Write the calls of coroutines.

        Whether the journal takes writes is asked for each: from when it refuses, its reserve has room for what the
        command ring holds and for the one write that passed the question before.
        """
        while self._waiting:
            call = self._waiting[0]
            if not call.future.done():
                refusal = self._refusal_of_writes() if call.is_write else None
                if refusal:
                    call.future.set_exception(refusal)
                elif not self._write(call):
                    self._set_timer(call.room_deadline)
                    break
            self._waiting.popleft()

    def _write(self, call):
        """Put the command into its slots, unseen yet; returns whether there was room."""
        stamp = _STAMP.pack(0, call.received_at_ns, unsigned(call.correlation_id))
        message = np.frombuffer(stamp + call.slots[_STAMP.size:], np.uint64)
        number = append_call(self.lane, message, call.reply_slots_max, time.monotonic_ns())
        if number:
            self._in_flight[number] = call
        return number != 0

    # Replies.

    def _on_bell(self):
        self._guard(self._look)

    def _look(self):
        """Take what has come, then say that this process may sleep, and look once more."""
        self._counters[CounterWord.WAKEUPS] += 1
        doorbell.empty(self._bell)
        doorbell.announce_waking(self._sleepers, self._process.role)
        while True:
            self._drain()
            if self._waiting or self._front.has_waiting:
                self._tick()
            doorbell.announce_sleep(self._sleepers, self._process.role)
            if not self._has_news():
                break

    def _has_news(self):
        """Whether replies or wanted room came while this process was awake: nobody rang for them."""
        own = self.lane.own
        if self._room_is_wanted:
            seen, own[HEAD] = own[HEAD], command_head(self._commands, self._row)
            if own[HEAD] != seen:
                return True
        return reply_tail(self._replies, self._row) != own[REPLY_HEAD]

    def _drain(self):
        """Hand every visible reply to its caller; their slots are free afterwards."""
        box, front = self._box, self._front
        while True:
            front.set_head(box.head)
            count, left_over = drain(self.lane, front.sockets, box, self._facts, self._room_bytes)
            assert count >= 0, f"a reply that is not of call {self.lane.own[OLDEST]}, the oldest in flight"
            if count == 0:
                break
            if left_over:
                for delivery in box.deliveries[:count].tolist():
                    self._deliver(*delivery)
            front.see_version(int(box.header[0]["catalog_version"]))
        while self._deadlines and self._deadlines[0].future.done():
            self._deadlines.popleft()

    def _deliver(self, kind, connection, begin, middle, end, number):
        """What compiled code has left of a delivery."""
        if kind == REPLY:
            future = self._in_flight.pop(number).future
            if not future.done():
                future.set_result(self._out[begin:middle].tobytes())
        elif kind == ANSWER:
            self._front.answer(connection, self._out[begin:end].tobytes())
        elif kind == QUESTION:
            self._front.decide(connection, self._out[begin:middle].tobytes(), self._out[middle:end].tobytes())
        elif kind == TOLD:
            self._front.told(connection)

    # Time.

    def _set_timer(self, due):
        """Look for late calls at `due`, or earlier."""
        if self._timer is not None:
            if self._timer.when() <= due:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._on_timer)

    def _on_timer(self):
        self._timer = None
        self._guard(self._give_up_late_calls)

    def _give_up_late_calls(self):
        now = self._loop.time()
        while self._waiting and (self._waiting[0].future.done() or self._waiting[0].room_deadline <= now):
            call = self._waiting.popleft()
            if not call.future.done():
                call.future.set_exception(self._no_room())
        while self._deadlines and (self._deadlines[0].future.done() or self._deadlines[0].deadline <= now):
            call = self._deadlines.popleft()
            if not call.future.done():
                call.future.set_exception(ServiceTimeout(self.timeout_ms))
        if self._deadlines:
            self._set_timer(self._deadlines[0].deadline)
        self._give_up_late_calls_of_front()
        if self._waiting or self._front.has_waiting:
            self._tick()       # what stood behind a large one may fit

    def _give_up_late_calls_of_front(self):
        """Answer the front's calls that are late, and set the timer for the next one."""
        own, calls = self.lane.own, self.lane.calls
        late_ns = time.monotonic_ns() - self.timeout_ms * 1_000_000
        number = max(self._oldest_waiting, int(own[OLDEST]))
        while number < own[NEXT]:
            call = calls[number & (len(calls) - 1)]
            if call["connection"] != NOBODY and call["state"] == WAITING:
                if call["asked_ns"] > late_ns:
                    self._set_timer(self._loop.time() + (int(call["asked_ns"]) - late_ns) / 1e9)
                    break
                call["state"] = GIVEN_UP
                self._front.give_up(int(call["connection"]), int(call["id"]), ServiceTimeout(self.timeout_ms))
            number += 1
        self._oldest_waiting = number

    def _guard(self, work):
        """Do the work; an error in it is a defect of this process, not of one request."""
        try:
            work()
        except Exception as problem:
            self.defect("the bridge to the matcher failed", problem)

    def defect(self, words, problem):
        """End this process: an exception that nobody expects."""
        self._process.defect(f"{words}: {''.join(traceback.format_exception(problem))}")


class NoFront:
    """What a bridge asks of the front that writes commands of its own; this one writes none."""
    has_waiting = False        # whether some of its connections wait for room or for an answer
    sockets = make_sockets(0, NO_EPOLL)

    def take(self, lane):
        """Write commands for what has come, as far as there is room. Nothing is published yet."""

    def set_head(self, head):
        """Bring the head of HTTP answers up to date, where it is asked for."""

    def answer(self, connection, data):
        """The bytes that answer calls of a connection, or what compiled code could not send of them."""

    def told(self, connection):
        """Compiled code has answered a connection that is marked TELL."""

    def decide(self, connection, message, request):
        """A reply that compiled code does not print, and the request that it answers."""

    def give_up(self, connection, request_id, timeout):
        """A call of the connection has no reply in time (`timeout`: a ServiceTimeout)."""

    def see_version(self, catalog_version):
        """The catalog's version by the last reply."""
