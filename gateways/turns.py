"""A gateway's turns, in compiled code: what has come is read and becomes commands, replies become answers, and where
there is nothing to do it sleeps. It comes back to Python where Python has something to do.

One way from Python into compiled code costs as much as several requests do, and so does an iteration of the event loop:
so a turn needs neither.
"""
import numpy as np
from numba import int64

from gateways.fast_answer import drain
from gateways.fast_request import receive, take
from gateways.lane import HEAD, NEXT, NOBODY, OLDEST, PUBLISHED, REPLY_HEAD, ROW, TAIL, WAITING
from gateways.sockets import wait_for_events
from shm.atomics import load_acquire
from shm.clock import CLOCK_MONOTONIC, CLOCK_REALTIME, empty_bell, now_ns
from shm.doorbell import announce_sleep, announce_waking
from shm.gateway_rings import command_head, publish_commands, reply_tail
from shm.kernel import called, sleeping_kernel
from shm.segments import CounterWord, Role

MATCHER = int(Role.MATCHER)
HEARTBEAT_NS, RECORDS, BATCHES = int(CounterWord.HEARTBEAT_NS), int(CounterWord.RECORDS), int(CounterWord.BATCHES)
LARGEST_BATCH, WAKEUPS = int(CounterWord.LARGEST_BATCH), int(CounterWord.WAKEUPS)
MATCHER_SILENT_NS = 2 * 10**9  # without a heartbeat for this long the matcher may be gone: Python looks
NEVER = np.iinfo(np.int64).max

TURN = np.dtype([(name, "<i8") for name in (
    # what Python says
    "bell", "matcher_bell",    # files
    "event_loop",              # file that is readable when the event loop has something to do
    "role",
    "timeout_ns",              # of a call
    "body_bytes_max",          # of a request
    "in_flight_max",           # calls of a connection
    "room_bytes",              # of the largest answer
    "catalog_version",         # that Python knows
    "until_ns",                # CLOCK_MONOTONIC: when the event loop has something to do in any case
    "head_until_ns",           # CLOCK_REALTIME: until then the head of answers is right
    "all_plain",               # 1: every request goes the plain way
    "is_silent",               # 1: Python knows that the matcher is silent
    "wants_retry",             # 1: something waits for room in the rings
    # what is left to Python
    "pieces", "pieces_left",   # of the intake, and how many of them are not wholly taken
    "continued",               # pieces that begin with room for what their connection has sent before
    "deliveries", "deliveries_left",
    "is_received",             # 1: no piece is taken yet: some are `continued`, or the matcher became silent
    "has_room",                # 1: there may be room again in the rings
    "is_late",                 # 1: calls of the front have waited too long
    # for the turns alone
    "oldest_waiting",          # number of a call: older ones of the front have been answered or given up
    "calls_published",
    "is_asked",                # the event loop has something to do
)])


def make_turn():
    """Nothing said yet; the first call is number 1."""
    turn = np.zeros(1, TURN)[0]
    turn["calls_published"] = turn["oldest_waiting"] = 1
    turn["bell"] = turn["matcher_bell"] = turn["event_loop"] = -1
    return turn


@called
def due_of_oldest(lane, turn):
    """When the oldest call of the front that waits will be late, or NEVER."""
    own, calls = lane.own, lane.calls
    number = max(turn.oldest_waiting, own[OLDEST])
    while number < own[NEXT]:
        call = calls[number & (len(calls) - 1)]
        if call.connection != NOBODY and call.state == WAITING:
            break
        number += 1
    turn.oldest_waiting = number
    return calls[number & (len(calls) - 1)].asked_ns + turn.timeout_ns if number < own[NEXT] else int64(NEVER)


@called
def has_news(lane, turn):
    """Whether there is a reply, or room that something waits for."""
    own = lane.own
    if reply_tail(lane.reply_words, own[ROW]) != own[REPLY_HEAD]:
        return True
    return turn.wants_retry != 0 and command_head(lane.command_words, own[ROW]) != own[HEAD]


@called
def sleep(lane, sockets, sleepers, turn, events_max, timeout_ms):
    """Sleep until something comes or the time is over; how many files are ready."""
    announce_sleep(sleepers, turn.role)
    ready = wait_for_events(sockets, events_max, int64(0) if has_news(lane, turn) else timeout_ms)
    announce_waking(sleepers, turn.role)
    return ready


@called
def see_events(sockets, turn, ready, scratch):
    """Empty the bell, and note whether the event loop has something to do."""
    for index in range(ready):
        file = sockets.events[index].file
        if file == turn.bell:
            empty_bell(turn.bell, scratch)
        elif file == turn.event_loop:
            turn.is_asked = 1


@called
def publish(lane, sleepers, page, turn):
    """Show the matcher what was written since the last time, and wake it if it sleeps."""
    own = lane.own
    if own[TAIL] == own[PUBLISHED]:
        return
    calls = own[NEXT] - turn.calls_published
    turn.calls_published = own[NEXT]
    own[PUBLISHED] = own[TAIL]
    publish_commands(lane.command_words, own[ROW], own[TAIL], sleepers, turn.matcher_bell)
    page[RECORDS] += calls
    page[BATCHES] += 1
    page[LARGEST_BATCH] = max(page[LARGEST_BATCH], calls)


@sleeping_kernel
def serve(lane, sockets, intake, box, facts, sleepers, counters, turn, scratch, count, used, is_received):
    """Turns until Python has something to do: `turn` says what, and when that is at the latest.

    The intake has `count` pieces of `used` bytes to begin with; `is_received`: they are all of this turn.
    """
    page = counters[turn.role]
    is_last = count > 0        # Python sees to the pieces that it gave
    events_max = int64(len(sockets.events))
    while True:
        now = now_ns(CLOCK_MONOTONIC, scratch)
        turn.is_asked = turn.is_received = turn.has_room = turn.is_late = 0
        if not is_received:
            until = min(turn.until_ns, due_of_oldest(lane, turn))
            places = min(events_max, len(intake.pieces) - count)
            if count == 0 and until > now and lane.own[TAIL] == lane.own[PUBLISHED]:
                ready = sleep(lane, sockets, sleepers, turn, places, (until - now + 999_999) // 1_000_000)
                page[WAKEUPS] += ready > 0
                now = now_ns(CLOCK_MONOTONIC, scratch)
            else:
                ready = wait_for_events(sockets, places, int64(0))
            see_events(sockets, turn, ready, scratch)
            count, turn.continued = receive(sockets, intake, ready, count, used, now)
            turn.pieces = count
            is_silent = now - load_acquire(counters, MATCHER, HEARTBEAT_NS) >= MATCHER_SILENT_NS
            if turn.continued != 0 or (is_silent and turn.is_silent == 0):
                turn.is_received = 1
                return
        is_received = False
        turn.pieces_left = 0
        if count > 0:
            realtime = now_ns(CLOCK_REALTIME, scratch)
            turn.pieces_left = take(lane, sockets, intake, facts, count, turn.body_bytes_max, turn.in_flight_max,
                                    turn.all_plain != 0, realtime, now)
        publish(lane, sleepers, page, turn)
        reply_head = lane.own[REPLY_HEAD]
        turn.deliveries, turn.deliveries_left = drain(lane, sockets, box, facts, turn.room_bytes)
        head = command_head(lane.command_words, lane.own[ROW])
        turn.has_room = lane.own[REPLY_HEAD] != reply_head or head != lane.own[HEAD]
        lane.own[HEAD] = head
        turn.is_late = due_of_oldest(lane, turn) <= now
        if turn.pieces_left != 0 or turn.deliveries < 0 or turn.deliveries_left != 0 or turn.is_asked != 0 \
                or turn.is_late != 0 or turn.is_silent != 0 or (turn.wants_retry != 0 and turn.has_room != 0) \
                or is_last or now >= turn.until_ns or now_ns(CLOCK_REALTIME, scratch) >= turn.head_until_ns \
                or int64(box.header[0].catalog_version) != turn.catalog_version:
            return
        count = used = int64(0)
