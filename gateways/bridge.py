"""The way into the pipeline: commands go into this gateway's ring, replies come back. Nothing else touches a ring.

Order of publication, a gateway's part: room for the largest reply that a command can have is reserved before it is
written (credit); the ring's tail is published once an event-loop tick; then the matcher is woken. A reply is visible
only when its command is on disk.
"""
import os
import select
import struct
import time
import traceback
from collections import deque
from pathlib import Path

from gateways.messages import unsigned
from shm import doorbell
from shm.gateway_rings import (
    command_head,
    is_answered,
    publish_commands,
    release_replies,
    reply_tail,
    want_room,
)
from shm.process import HEARTBEAT_SECONDS
from shm.records import COMMAND, REPLY_HEADER, REPLY_SLOT_BYTES
from shm.segments import CommandWord, CounterWord, JournalWord, Role

ROOM_WAIT_SECONDS = 0.2        # for a place in the rings; then code 3
MATCHER_GONE_NS = 2 * 10**9    # without a process for this long: nobody brings it back
_START_TICKS_AT = 22 - 3       # of /proc/PID/stat: its field 22, counted from the one behind the name
_STAMP = struct.Struct("<QqQ")  # the first fields of a COMMAND
_REQUEST_ID = struct.Struct("<Q")
_SLOTS = struct.Struct("<H")
_SLOTS_AT = REPLY_HEADER.fields["slots"][1]
assert COMMAND.names[:3] == ("request_id", "received_at_ns", "correlation_id") and COMMAND.fields["reference"][1] == 24
assert REPLY_HEADER.names[0] == "request_id"


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
    def __init__(self, process, index, timeout_ms):
        """The rings of gateway `index` in `process.memory`; nothing happens before `take_over`."""
        memory = process.memory
        self._process, self._row, self._timeout_ms = process, index, timeout_ms
        self._commands, self._replies = memory.commands.words, memory.replies.words
        self._sleepers, self._counters = memory.sleepers.words, process.counters
        self._journal = memory.journal.words[0]
        self._matcher = memory.counters.words[Role.MATCHER]
        self._command_bytes = memoryview(memory.commands.slots[index]).cast("B")
        self._reply_bytes = memoryview(memory.replies.slots[index]).cast("B")
        self._command_slots = memory.commands.shape.capacity
        self._reply_slots = memory.replies.shape.capacity
        bells = process.data / "run"
        self._bell = doorbell.open_bell(bells, process.name)
        self._matcher_bell = doorbell.open_bell(bells, "matcher")
        self._tail = int(self._commands[index, CommandWord.TAIL])
        self._head = command_head(self._commands, index)  # the last one seen
        self._reply_head = 0
        self._credit = self._reply_slots
        self._waiting = deque()        # calls that are not in the ring yet
        self._deadlines = deque()      # calls in the order of their deadlines
        self._in_flight = {}           # request id: call that is in the ring or beyond
        self._next_request_id = 1
        self._flush_is_due = False
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
        self._reply_head = reply_tail(self._replies, self._row)
        release_replies(self._replies, self._row, self._reply_head)

    def attach(self, loop):
        """Look at the replies whenever the bell rings, from now on."""
        self._loop = loop
        loop.add_reader(self._bell, self._on_bell)
        loop.call_soon(self._on_bell)

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
                     self._timeout_ms / 1000)
        self._waiting.append(call)
        self._deadlines.append(call)
        if not self._flush_is_due:
            self._flush_is_due = True
            self._loop.call_soon(self._flush_now)
        if self._timer is None:
            self._set_timer(call.deadline)
        return await call.future

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

    def _flush_now(self):
        self._flush_is_due = False
        self._guard(self._flush)

    def _flush(self):
        """Write what waits, as far as credit and ring go, and publish it at once.

        Whether the journal takes writes is asked for each: from when it refuses, its reserve has room for what the
        command ring holds and for the one write that passed the question before.
        """
        tail, written = self._tail, 0
        while self._waiting:
            call = self._waiting[0]
            if not call.future.done():
                refusal = self._refusal_of_writes() if call.is_write else None
                if refusal:
                    call.future.set_exception(refusal)
                elif self._has_room(call, tail):
                    tail = self._write(call, tail)
                    written += 1
                else:
                    self._counters[CounterWord.FULL] += 1
                    self._set_timer(call.room_deadline)
                    break
            self._waiting.popleft()
        if self._room_is_wanted and not self._waiting:
            self._room_is_wanted = False
            want_room(self._commands, self._row, 0)
        if written:
            self._tail = tail
            publish_commands(self._commands, self._row, tail, self._sleepers, self._matcher_bell)
            self._counters[CounterWord.RECORDS] += written
            self._counters[CounterWord.BATCHES] += 1
            self._counters[CounterWord.LARGEST_BATCH] = max(written, int(self._counters[CounterWord.LARGEST_BATCH]))

    def _has_room(self, call, tail):
        if call.reply_slots_max > self._credit:
            return False       # replies on their way will bring credit
        end = tail + len(call.slots) // COMMAND.itemsize
        if end - self._head <= self._command_slots:
            return True
        self._head = command_head(self._commands, self._row)
        if end - self._head <= self._command_slots:
            return True
        self._room_is_wanted = True
        self._head = want_room(self._commands, self._row, 1)
        return end - self._head <= self._command_slots

    def _write(self, call, tail):
        """Put the command into its slots, unseen yet; returns the tail behind it."""
        request_id = self._next_request_id
        self._next_request_id += 1
        self._in_flight[request_id] = call
        self._credit -= call.reply_slots_max
        message = _STAMP.pack(request_id, call.received_at_ns, unsigned(call.correlation_id)) + call.slots[_STAMP.size:]
        count = len(message) // COMMAND.itemsize
        at = tail % self._command_slots * COMMAND.itemsize
        until_end = len(self._command_bytes) - at
        self._command_bytes[at:at + len(message)] = message[:until_end]
        if len(message) > until_end:
            self._command_bytes[:len(message) - until_end] = message[until_end:]
        return tail + count

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
            if self._waiting:
                self._flush()
            doorbell.announce_sleep(self._sleepers, self._process.role)
            if not self._has_news():
                break

    def _has_news(self):
        """Whether replies or wanted room came while this process was awake: nobody rang for them."""
        if self._room_is_wanted:
            seen, self._head = self._head, command_head(self._commands, self._row)
            if self._head != seen:
                return True
        return reply_tail(self._replies, self._row) != self._reply_head

    def _drain(self):
        """Hand every visible reply to its caller; their slots are free afterwards."""
        head, tail = self._reply_head, reply_tail(self._replies, self._row)
        if head == tail:
            return
        messages = []
        while head < tail:
            message, slots = self._message(head)
            messages.append((message, slots))
            head += slots
        assert head == tail, f"the replies end at slot {head}, the ring's tail is {tail}"
        self._reply_head = head
        release_replies(self._replies, self._row, head)
        for message, slots in messages:
            request_id, = _REQUEST_ID.unpack_from(message)
            call = self._in_flight.pop(request_id, None)
            assert call is not None, f"a reply to request {request_id}, which is not in flight"
            assert slots <= call.reply_slots_max, f"{slots} reply slots where {call.reply_slots_max} were reserved"
            self._credit += call.reply_slots_max
            if not call.future.done():
                call.future.set_result(message)
        while self._deadlines and self._deadlines[0].future.done():
            self._deadlines.popleft()

    def _message(self, position):
        """A copy of the reply at `position`, and its number of slots."""
        at = position % self._reply_slots * REPLY_SLOT_BYTES
        slots, = _SLOTS.unpack_from(self._reply_bytes, at + _SLOTS_AT)
        assert slots > 0, f"a reply of no slots at slot {position}"
        size = slots * REPLY_SLOT_BYTES
        message = bytes(self._reply_bytes[at:at + size])
        if len(message) < size:
            message += bytes(self._reply_bytes[:size - len(message)])
        return message, slots

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
                call.future.set_exception(ServiceTimeout(self._timeout_ms))
        if self._deadlines:
            self._set_timer(self._deadlines[0].deadline)
        if self._waiting:
            self._flush()      # what stood behind a large one may fit

    def _guard(self, work):
        """Do the work; an error in it is a defect of this process, not of one request."""
        try:
            work()
        except Exception:
            self._process.defect(f"the bridge to the matcher failed: {traceback.format_exc()}")
