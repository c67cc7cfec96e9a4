"""The way into the pipeline: commands go into this gateway's ring, replies come back. Nothing else touches a ring.

Order of publication, a gateway's part: room for the largest reply that a command can have is reserved before it is
written (credit); the ring's tail is published once a turn; then the matcher is woken. A reply is visible only when its
command is on disk. Commands come from coroutines, one at a time (`call`), and from the connections of a front. The
turns themselves are in turns.py; Python does what they leave to it.
"""
import os
import select
import struct
import time
import traceback
from collections import deque
from pathlib import Path

import numpy as np

from gateways.fast_answer import ANSWER, QUESTION, REPLY, TOLD, answer_bytes_max, make_outbox
from gateways.intake import make_intake
from gateways.lane import (
    FULL,
    GIVEN_UP,
    HEAD,
    NEXT,
    NOBODY,
    OLDEST,
    REPLY_HEAD,
    ROOM_WANTED,
    WAITING,
    append_call,
    make_lane,
)
from gateways.messages import unsigned
from gateways.sockets import make_sockets
from gateways.turns import MATCHER_SILENT_NS, NEVER, make_turn, serve
from shm import doorbell
from shm.clock import make_scratch
from shm.configuration import reply_slots_needed
from shm.gateway_rings import is_answered, release_replies, reply_tail, want_room
from shm.log import say
from shm.process import HEARTBEAT_SECONDS
from shm.records import COMMAND
from shm.segments import CounterWord, JournalWord, Role

ROOM_WAIT_SECONDS = 0.2        # for a place in the rings; then code 3
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
    def __init__(self, process, index, timeout_ms, catalog, files_max=0):
        """The rings of gateway `index` in `process.memory`; nothing happens before `take_over`. `files_max`: above
        every file descriptor that a connection of the front can have."""
        memory = process.memory
        self._process, self._row, self.timeout_ms = process, index, timeout_ms
        self._commands, self._replies = memory.commands.words, memory.replies.words
        self._sleepers, self._counters = memory.sleepers.words, process.counters
        self._journal = memory.journal.words[0]
        self._pages, self._matcher = memory.counters.words, memory.counters.words[Role.MATCHER]
        self._command_slots = memory.commands.shape.capacity
        self._reply_slots = memory.replies.shape.capacity
        bells = process.data / "run"
        self._bell = doorbell.open_gateway_bell(bells, index)
        self._matcher_bell = doorbell.open_bell(bells, "matcher")
        self._catalog, self._facts = catalog, catalog.facts
        reply_slots_max = reply_slots_needed(catalog.limits)
        self._box = make_outbox(reply_slots_max)
        self._out = memoryview(self._box.out)
        self.lane = make_lane(memory, index)
        self.epoll = select.epoll()
        self.sockets = make_sockets(files_max, self.epoll.fileno())
        self._turn, self._scratch = make_turn(), make_scratch()
        self._turn["bell"], self._turn["matcher_bell"] = self._bell, self._matcher_bell
        self._turn["role"], self._turn["timeout_ns"] = process.role, timeout_ms * 1_000_000
        self._turn["room_bytes"] = answer_bytes_max(reply_slots_max)
        self._front = NoFront()
        self._waiting = deque()        # calls that are not in the ring yet
        self._deadlines = deque()      # calls in the order of their deadlines
        self._in_flight = {}           # number: call that is in the ring or beyond
        self._room_is_wanted = False
        self._is_blocked = False       # the first call that waits has found no room
        self._has_room = False         # there may be some again
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
        """Work whenever this loop waits, from now on: a GatewayLoop."""
        self._loop = loop
        self._turn["event_loop"] = loop.waiting.fileno()
        for file in (self._bell, loop.waiting.fileno()):
            self.epoll.register(file, select.EPOLLIN)
        loop.work_while_waiting(self._work)

    def join(self, front, body_bytes_max, in_flight_max):
        """Take the front's requests, and give it what Python has to do with them: see NoFront. `body_bytes_max`: of a
        request; `in_flight_max`: calls of a connection."""
        self._front = front
        self._turn["body_bytes_max"], self._turn["in_flight_max"] = body_bytes_max, in_flight_max

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
        self._set_timer(call.deadline)
        return await call.future

    def _matcher_is_silent(self):
        return time.monotonic_ns() - int(self._matcher[CounterWord.HEARTBEAT_NS]) >= MATCHER_SILENT_NS

    def _matcher_is_gone(self):
        """Whether there is none, for so long that nobody brings one back."""
        if not self._matcher_is_silent():
            return False
        heartbeat_ns = int(self._matcher[CounterWord.HEARTBEAT_NS])
        try:
            started_ns = _started_ns(int(self._matcher[CounterWord.PID]))
        except OSError:        # this process can open no file: nobody knows
            return False
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

    # Turns.

    def _work(self, seconds):
        """Turns, for so long at most (None: without end), or until Python has something to do."""
        try:
            self._take_turns(seconds)
        except Exception as problem:
            self.defect("the bridge to the matcher failed", problem)

    def _take_turns(self, seconds):
        front, turn = self._front, self._turn
        now_ns = time.monotonic_ns()
        is_refused = self._flush()
        self._see_full()
        count, used = front.begin(now_ns, self._has_room)
        self._has_room = False
        turn["wants_retry"] = bool(self._waiting) or front.has_waiting
        turn["until_ns"] = 0 if is_refused else self._until_ns(now_ns, seconds)
        turn["catalog_version"] = self._catalog.version
        turn["head_until_ns"] = front.set_head(self._box.head)
        self._serve(count, used, False)
        while turn["is_received"]:
            front.continue_messages(count, int(turn["pieces"]))
            self._serve(int(turn["pieces"]), 0, True)
        self._has_room = bool(turn["has_room"])
        self._see_full()
        front.see_pieces(int(turn["pieces"]), bool(turn["pieces_left"]))
        self._deliver()
        if turn["is_late"]:
            self._give_up_late_calls_of_front()

    def _until_ns(self, now_ns, seconds):
        """When the event loop, which would wait so long, or the timer that was set since needs its turn."""
        until_ns = NEVER if seconds is None else now_ns + int(seconds * 1e9)
        return until_ns if self._timer is None else min(until_ns, int(self._timer.when() * 1e9))

    def _serve(self, count, used, is_received):
        turn = self._turn
        turn["is_silent"] = self._matcher_is_silent()
        turn["all_plain"] = self._front.is_plain or (turn["is_silent"] and self._matcher_is_gone())
        serve(self.lane, self.sockets, self._front.intake, self._box, self._facts, self._sleepers, self._pages, turn,
              self._scratch, count, used, is_received)

    def _see_full(self):
        """Ask for room, if what found none lacks command slots."""
        own = self.lane.own
        full, wants_room = int(own[FULL]), bool(own[ROOM_WANTED])
        if full:
            self._counters[CounterWord.FULL] += full
            own[FULL] = own[ROOM_WANTED] = 0
            self._set_timer(self._loop.time() + ROOM_WAIT_SECONDS)
        elif self._waiting or self._front.has_waiting:
            return             # it was not tried again
        if wants_room or self._room_is_wanted:
            self._room_is_wanted = wants_room
            seen, own[HEAD] = own[HEAD], want_room(self._commands, self._row, int(wants_room))
            if wants_room and own[HEAD] != seen:
                self._has_room = True  # it came in between

    # Commands.

    def _flush(self):
        """Write the calls of coroutines; returns whether one of them has been refused.

        Whether the journal takes writes is asked for each: from when it refuses, its reserve has room for what the
        command ring holds and for the one write that passed the question before.
        """
        is_refused = False
        if self._is_blocked and not self._has_room:
            return is_refused
        self._is_blocked = False
        while self._waiting:
            call = self._waiting[0]
            if not call.future.done():
                refusal = self._refusal_of_writes() if call.is_write else None
                if refusal:
                    is_refused = True
                    call.future.set_exception(refusal)
                elif not self._write(call):
                    self._is_blocked = True
                    self._set_timer(call.room_deadline)
                    break
            self._waiting.popleft()
        return is_refused

    def _write(self, call):
        """Put the command into its slots, unseen yet; returns whether there was room."""
        stamp = _STAMP.pack(0, call.received_at_ns, unsigned(call.correlation_id))
        message = np.frombuffer(stamp + call.slots[_STAMP.size:], np.uint64)
        number = append_call(self.lane, message, call.reply_slots_max, time.monotonic_ns())
        if number:
            self._in_flight[number] = call
        return number != 0

    # Replies.

    def _deliver(self):
        """See to what compiled code has left of the deliveries."""
        turn, box = self._turn, self._box
        assert turn["deliveries"] >= 0, f"a reply that is not of call {self.lane.own[OLDEST]}, the oldest in flight"
        if turn["deliveries_left"]:
            for delivery in box.deliveries[:turn["deliveries"]].tolist():
                self._hand_over(*delivery)
        self._front.see_version(int(box.header[0]["catalog_version"]))
        while self._deadlines and self._deadlines[0].future.done():
            self._deadlines.popleft()

    def _hand_over(self, kind, connection, begin, middle, end, number):
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
        self._give_up_late_calls()

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
        self._has_room = True  # what stood behind a large one may fit; what has waited long enough goes the plain way

    def _give_up_late_calls_of_front(self):
        """Answer the front's calls that are late."""
        own, calls = self.lane.own, self.lane.calls
        late_ns = time.monotonic_ns() - self.timeout_ms * 1_000_000
        for number in range(int(self._turn["oldest_waiting"]), int(own[NEXT])):
            call = calls[number & (len(calls) - 1)]
            if call["connection"] != NOBODY and call["state"] == WAITING:
                if call["asked_ns"] > late_ns:
                    break
                call["state"] = GIVEN_UP
                self._front.give_up(int(call["connection"]), int(call["id"]), int(call["shape"]),
                                    ServiceTimeout(self.timeout_ms))

    def say(self, words):
        """A line of this process's log."""
        say(self._process.name, words)

    def defect(self, words, problem):
        """End this process: an exception that nobody expects."""
        self._process.defect(f"{words}: {''.join(traceback.format_exception(problem))}")


class NoFront:
    """What a bridge asks of the front, whose connections are read and answered in its turns; this one has none."""
    is_plain = False           # whether every request goes the plain way
    has_waiting = False        # whether some of its connections wait for room
    intake = make_intake(1, 1)

    def begin(self, now_ns, has_room):
        """Put into the intake what is to be taken before anything is read; `has_room`: there may be some again for
        whom has waited. Returns (pieces, their bytes)."""
        return 0, 0

    def continue_messages(self, begin, end):
        """Put before the pieces [begin, end) what their connections have sent before."""

    def see_pieces(self, count, is_left):
        """The first `count` pieces are taken; `is_left`: not all of them wholly."""

    def set_head(self, head):
        """Bring the head of HTTP answers up to date; until when it is, CLOCK_REALTIME in ns."""
        return NEVER

    def answer(self, connection, data):
        """The bytes that answer calls of a connection, or what compiled code could not send of them."""

    def told(self, connection):
        """Compiled code has answered a connection that is marked TELL."""

    def decide(self, connection, message, request):
        """A reply that compiled code does not print, and the request that it answers."""

    def give_up(self, connection, request_id, shape, timeout):
        """A call of the connection, whose answer has this shape, has no reply in time (`timeout`: a ServiceTimeout)."""

    def see_version(self, catalog_version):
        """The catalog's version by the last reply."""
