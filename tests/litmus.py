"""What two processes do to each other's memory in tests: compiled loops over real segments, and their forked processes.

A record or an event carries its number and a checksum over all its words: a torn, lost or doubled one shows.
"""
import os
import signal
import traceback
import uuid
from contextlib import contextmanager

import numpy as np
from numba import int64, njit, types, uint64

from pipeline.output import next_event
from pipeline.state import EVENT_POSITION
from shm import segments
from shm.atomics import fence_seq_cst, load_acquire, store_release
from shm.broadcast import LAPPED, copy_events, visible_end
from shm.clock import CLOCK_MONOTONIC, now_ns, wait_for_bell
from shm.doorbell import announce_sleep, announce_waking, ring_if_asleep
from shm.int128 import folded_product
from shm.ring import copy_in, copy_out
from shm.segments import CommandWord, EventWord

TAIL = int(CommandWord.TAIL)
HEAD = int(CommandWord.HEAD)
VISIBLE = int(EventWord.VISIBLE)
RECORD_SLOTS_MAX = 4
FACTOR = 0x9E3779B97F4A7C15

_sched_yield = types.ExternalFunction("sched_yield", types.int32())


# Processes and their memory.

@contextmanager
def shared_memory(sizes):
    """(instance, SharedMemory) of a new instance, unlinked at the end."""
    instance = uuid.uuid4()
    try:
        yield instance, segments.create(instance, sizes, 1)
    finally:
        segments.unlink(instance)


def fork(work, *arguments):
    """The process id of a child that does `work` and ends: with 0, as it exits, or with 1 and a traceback on stderr."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        work(*arguments)
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def kill(pid):
    """kill -9, and wait until the process is gone."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@contextmanager
def forked(work, *arguments):
    """A child that does `work` while the body runs, and has ended well at its end."""
    pid = fork(work, *arguments)
    try:
        yield pid
    except BaseException:
        kill(pid)
        raise
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the child ended with status {status}"


# Records of one to four slots, whole or not.

@njit(cache=True, _nrt=False, forceinline=True)
def mix(value):
    return folded_product(uint64(value) ^ uint64(FACTOR), uint64(FACTOR))


@njit(cache=True, _nrt=False, forceinline=True)
def slots_of(number):
    """Three records of four take one slot."""
    random = mix(number)
    return int64(1) if random & uint64(3) else int64(1) + int64(random >> uint64(8) & uint64(3))


@njit(cache=True, _nrt=False)
def seal(message, number, count):
    """Fill `count` words: the number, words that follow from it, and a checksum over all of them."""
    value = mix(number)
    message[0] = uint64(number)
    check = value
    for word in range(1, count - 1):
        value ^= value << uint64(13)
        value ^= value >> uint64(7)
        value ^= value << uint64(17)
        message[word] = value
        check = check + value * uint64(2 * word + 1)
    message[count - 1] = check


@njit(cache=True, _nrt=False)
def is_whole(message, number, count):
    """Whether these words are what `seal` made for this number."""
    value = mix(number)
    check = value
    if message[0] != uint64(number):
        return False
    for word in range(1, count - 1):
        value ^= value << uint64(13)
        value ^= value >> uint64(7)
        value ^= value << uint64(17)
        if message[word] != value:
            return False
        check = check + value * uint64(2 * word + 1)
    return message[count - 1] == check


# A ring with one producer and one consumer.

@njit(cache=True, _nrt=False)
def produce(words, slots, first, end, batch, message):
    """Write the records [first, end) from the tail on, and show them once a batch. Waits for room."""
    capacity, width = slots.shape
    tail = load_acquire(words, 0, TAIL)
    head = load_acquire(words, 0, HEAD)
    unseen = 0
    for number in range(first, end):
        count = slots_of(number)
        while tail + count - head > capacity:
            store_release(words, 0, TAIL, tail)
            unseen = 0
            head = load_acquire(words, 0, HEAD)
            if tail + count - head > capacity:
                _sched_yield()
        seal(message, number, count * width)
        copy_in(slots, tail, message, count)
        tail += count
        unseen += 1
        if unseen == batch:
            store_release(words, 0, TAIL, tail)
            unseen = 0
    store_release(words, 0, TAIL, tail)


@njit(cache=True, _nrt=False)
def consume(words, slots, first, end, wait_ns, message, scratch):
    """Read records from `first` on: up to `end`, or until there is nothing more after `wait_ns`.

    Returns (next number, 0), or (number, 1) at a record that is not the next one, whole.
    """
    width = slots.shape[1]
    head = load_acquire(words, 0, HEAD)
    number = first
    stop_at = now_ns(CLOCK_MONOTONIC, scratch) + wait_ns
    while number < end:
        tail = load_acquire(words, 0, TAIL)
        if tail == head:
            if now_ns(CLOCK_MONOTONIC, scratch) >= stop_at:
                break
            _sched_yield()
            continue
        while head < tail and number < end:
            count = slots_of(number)
            if head + count > tail:
                return number, 1
            copy_out(slots, head, count, message)
            if not is_whole(message, number, count * width):
                return number, 1
            head += count
            number += 1
        store_release(words, 0, HEAD, head)
        stop_at = now_ns(CLOCK_MONOTONIC, scratch) + wait_ns
    return number, 0


# The events ring.

@njit(cache=True, _nrt=False)
def write_events(state, out, count, batch):
    """Write `count` events from the state's position on, numbered by it, and make them visible once a batch."""
    width = out.event_words.shape[1]
    for written in range(count):
        number = state.counters[EVENT_POSITION]
        slot = next_event(state, out)
        seal(out.event_words[slot], number, width)
        if (written + 1) % batch == 0:
            store_release(out.event_cursors, 0, VISIBLE, state.counters[EVENT_POSITION])
    store_release(out.event_cursors, 0, VISIBLE, state.counters[EVENT_POSITION])


@njit(cache=True, _nrt=False)
def read_events(words, slots, position, end, wait_ns, events, seen, scratch):
    """Read events from `position` on as they become visible, up to `end` or until none comes for `wait_ns`, dawdling
    more and more until it is lapped; then it goes on in the middle of the ring or at its end. Returns the position.

    `seen`: READ, LAPS, TORN (in copies that were refused), WRONG (in others).
    """
    width = slots.shape[1]
    stop_at = now_ns(CLOCK_MONOTONIC, scratch) + wait_ns
    dawdle = int64(1)
    while position < end:
        visible = visible_end(words)
        if visible == position:
            if now_ns(CLOCK_MONOTONIC, scratch) >= stop_at:
                break
            _sched_yield()
            continue
        stop_at = now_ns(CLOCK_MONOTONIC, scratch) + wait_ns
        count = copy_events(words, slots, position, visible, events)
        torn = 0
        for index in range(min(visible - position, len(events))):
            if not is_whole(events[index], position + index, width):
                torn += 1
        if count == LAPPED:
            seen[1] += 1
            seen[2] += torn
            position = max(position, visible_end(words) - (seen[1] & 1) * slots.shape[0] // 2)
            dawdle = 1
        else:
            seen[0] += count
            seen[3] += torn
            position += count
            dawdle = min(dawdle * 2, 1 << 16)
            for step in range(dawdle):
                scratch[0, 32] += step
    return position


READ, LAPS, TORN, WRONG = range(4)


# Litmus tests: words of one row lie on pairs of cache lines of their own.

X, Y, READY_X, READY_Y = (place * segments.WORD_STRIDE for place in range(4))


@njit(cache=True, _nrt=False, forceinline=True)
def meet(words, mine, other, number):
    """Wait until both are at this round: spinning, so that they go on at one moment, but not for a whole time slice."""
    store_release(words, 0, mine, number)
    spins = 0
    while load_acquire(words, 0, other) < number:
        spins += 1
        if spins % 1024 == 0:
            _sched_yield()


@njit(cache=True, _nrt=False)
def buffer_with_fence(words, mine, other, ready_mine, ready_other, outcomes):
    """A round: store mine, fence, load the other's. outcomes[i]: whether the other's store of round i was seen."""
    for number in range(1, len(outcomes)):
        meet(words, ready_mine, ready_other, number)
        store_release(words, 0, mine, number)
        fence_seq_cst()
        outcomes[number] = load_acquire(words, 0, other) >= number


@njit(cache=True, _nrt=False)
def buffer_without_fence(words, mine, other, ready_mine, ready_other, outcomes):
    """The same without the fence: both may miss the other's store."""
    for number in range(1, len(outcomes)):
        meet(words, ready_mine, ready_other, number)
        store_release(words, 0, mine, number)
        outcomes[number] = load_acquire(words, 0, other) >= number


@njit(cache=True, _nrt=False)
def pass_messages(words, data, end):
    """Write a message into all of `data`, then say its number with release; it waits for nobody."""
    for number in range(1, end):
        for word in range(len(data)):
            data[word] = number
        store_release(words, 0, X, number)
        if number % 64 == 0:
            _sched_yield()


@njit(cache=True, _nrt=False)
def take_messages(words, data, count):
    """Acquire `count` new numbers, read `data` backwards after each; returns how many words were older than that."""
    older = 0
    last = int64(0)
    for _ in range(count):
        number = load_acquire(words, 0, X)
        while number == last:
            _sched_yield()
            number = load_acquire(words, 0, X)
        for word in range(len(data) - 1, -1, -1):
            if data[word] < number:
                older += 1
        last = number
    return older


# Sleeping and waking.

@njit(cache=True, _nrt=False)
def sleep_and_take(words, sleepers, role, bell, rounds, timeout_ms, budget_ns, scratch):
    """Take what is published, sleeping whenever there is nothing, for so many rounds or so long.

    Returns (rounds, times it slept, wake-ups lost).
    """
    head = int64(0)
    slept = lost = 0
    stop_at = now_ns(CLOCK_MONOTONIC, scratch) + budget_ns
    while head < rounds and now_ns(CLOCK_MONOTONIC, scratch) < stop_at:
        tail = load_acquire(words, 0, TAIL)
        if tail > head:
            head = tail
            store_release(words, 0, HEAD, head)
            continue
        announce_sleep(sleepers, role)
        if load_acquire(words, 0, TAIL) == head:
            began = now_ns(CLOCK_MONOTONIC, scratch)
            wait_for_bell(bell, timeout_ms, scratch)
            slept += 1
            late = now_ns(CLOCK_MONOTONIC, scratch) - began >= int64(timeout_ms) * 1_000_000
            if late and load_acquire(words, 0, TAIL) > head:
                lost += 1
        announce_waking(sleepers, role)
    return head, slept, lost


@njit(cache=True, _nrt=False)
def publish_and_ring(words, sleepers, role, bell, rounds, scratch):
    """Publish one after the other, each as soon as the one before was taken, or a little later."""
    for number in range(1, rounds + 1):
        store_release(words, 0, TAIL, number)
        ring_if_asleep(sleepers, role, bell)
        while load_acquire(words, 0, HEAD) < number:
            _sched_yield()
        for step in range(int64(mix(number) & uint64(1023))):
            scratch[0, 32] += step


def message_buffer(slots):
    """Room for the largest record of a ring with such slots."""
    return np.zeros(RECORD_SLOTS_MAX * slots.shape[1], np.uint64)
