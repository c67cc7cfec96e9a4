"""Rings between two processes: nothing torn, lost or seen too early, whoever is killed; a lapped reader knows it."""
import random
import time
from dataclasses import replace

import numpy as np
import pytest

from pipeline.output import make_output
from pipeline.state import EVENT_POSITION, EVENTS_FOLDED, allocate
from shm import segments
from shm.broadcast import LAPPED, copy_events, visible_end
from shm.clock import make_scratch
from shm.records import LIMITS
from shm.ring import copy_in, copy_out
from shm.segments import CommandWord, EventWord, RingSizes
from tests import litmus
from tests.litmus import LAPS, READ, TORN, WRONG

SIZES = RingSizes(gateways=1, command_slots=256, reply_slots=256, journal_slots=64, event_slots=256)
ROOMY = replace(SIZES, command_slots=2**16)
PATIENCE_NS = 60_000_000_000   # without anything new, a test gives up
FOR_EVER = 2**62


@pytest.fixture
def shared():
    """(instance, memory): segments of their own."""
    with litmus.shared_memory(SIZES) as shared:
        yield shared


def number_of(request, option):
    return request.config.getoption(option)


# One producer, one consumer.

@pytest.mark.parametrize("position", [0, 254, 255, 2**40 + 255])
@pytest.mark.parametrize("count", [1, 2, 4, 256])
def test_a_message_of_several_slots_goes_round_the_end_of_the_ring(position, count):
    slots, width = np.zeros((256, 24), np.uint64), 24
    message, copy = np.arange(1, count * width + 1, dtype=np.uint64), np.zeros(count * width, np.uint64)
    copy_in(slots, position, message, count)
    copy_out(slots, position, count, copy)
    assert (copy == message).all()
    assert (slots[position % 256] == message[:width]).all()
    assert np.count_nonzero(slots) == count * width


def produce(instance, sizes, ring, first, count, batch):
    segment = getattr(segments.attach(instance, sizes), ring)
    slots = segment.slots[0]
    litmus.produce(segment.words, slots, first, first + count, batch, litmus.message_buffer(slots))


def compile_ring_kernels(segment):
    """In the parent, so that no child compiles."""
    slots = segment.slots[0]
    litmus.produce(segment.words, slots, 0, 0, 1, litmus.message_buffer(slots))
    litmus.consume(segment.words, slots, 0, 0, 0, litmus.message_buffer(slots), make_scratch())


@pytest.mark.parametrize("ring, batch, capacity", [("commands", 64, 4096), ("commands", 1, 256), ("replies", 16, 4096)])
def test_records_of_another_process_arrive_whole_and_in_order(request, ring, batch, capacity):
    count = number_of(request, "--ring-records") // (30 if batch == 1 else 2)
    sizes = replace(SIZES, command_slots=capacity, reply_slots=capacity)
    with litmus.shared_memory(sizes) as (instance, memory):
        segment = getattr(memory, ring)
        compile_ring_kernels(segment)
        with litmus.forked(produce, instance, sizes, ring, 0, count, batch):
            number, wrong = litmus.consume(segment.words, segment.slots[0], 0, count, PATIENCE_NS,
                                           litmus.message_buffer(segment.slots[0]), make_scratch())
            assert (number, wrong) == (count, 0)
        assert segment.words[0, CommandWord.HEAD] == segment.words[0, CommandWord.TAIL]


def test_a_producer_killed_in_mid_batch_shows_nothing_half_written_and_goes_on_at_the_tail(request):
    chance = random.Random(7)
    number, in_mid_batch = 0, 0
    with litmus.shared_memory(ROOMY) as (instance, memory):  # so much room that it is killed writing, not waiting
        words, slots = memory.commands.words, memory.commands.slots[0]
        compile_ring_kernels(memory.commands)
        message, scratch = litmus.message_buffer(slots), make_scratch()
        for _ in range(number_of(request, "--ring-kills")):
            before = number
            producer = litmus.fork(produce, instance, ROOMY, "commands", number, FOR_EVER, 100)
            try:
                number, wrong = litmus.consume(words, slots, number, number + chance.randrange(1, 20_000), PATIENCE_NS,
                                               message, scratch)
            finally:
                litmus.kill(producer)
            assert not wrong and number > before, number
            number, wrong = litmus.consume(words, slots, number, FOR_EVER, 0, message, scratch)  # all that it has shown
            assert not wrong, number
            tail = words[0, CommandWord.TAIL]
            assert words[0, CommandWord.HEAD] == tail
            in_mid_batch += int(slots[tail & (len(slots) - 1), 0] == number)
    assert in_mid_batch > 0    # a record beyond the tail was begun, and never seen


# The events ring.

def make_writer(memory):
    """(state, out) that write events on, as a matcher continues them."""
    limits = np.zeros((), LIMITS)
    for name in LIMITS.names:
        limits[name] = 1
    state = allocate(limits)
    state.counters[EVENT_POSITION] = state.counters[EVENTS_FOLDED] = memory.events.words[0, EventWord.VISIBLE]
    return state, make_output(1, 1, memory.events.slots[0], memory.events.words)


def write_events(instance, count, batch):
    state, out = make_writer(segments.attach(instance, SIZES))
    litmus.write_events(state, out, count, batch)


def write(memory, count, batch=1):
    litmus.write_events(*make_writer(memory), count, batch)


def rows(memory, count=64):
    return np.zeros((count, memory.events.slots.shape[2]), np.uint64)


def test_a_reader_gets_what_is_visible_and_no_more_than_it_has_room_for(shared):
    _, memory = shared
    words, slots, events = memory.events.words, memory.events.slots[0], rows(memory, 3)
    write(memory, 5)
    assert visible_end(words) == 5
    assert copy_events(words, slots, 0, 5, events) == 3
    assert events[:, 0].tolist() == [0, 1, 2]
    assert copy_events(words, slots, 3, 5, events) == 2
    assert events[:, 0].tolist() == [3, 4, 2]
    assert copy_events(words, slots, 5, 5, events) == 0


def test_a_reader_is_lapped_as_soon_as_its_first_slot_is_announced_and_not_before(shared):
    _, memory = shared
    words, slots, events = memory.events.words, memory.events.slots[0], rows(memory, 1)
    write(memory, 200)
    intent = int(words[0, EventWord.INTENT])
    assert 200 <= intent <= 256
    assert copy_events(words, slots, 0, 200, events) == 1
    write(memory, 256 + 100)
    oldest = int(words[0, EventWord.INTENT]) - 256
    assert 0 < oldest <= 200 + 356 - 256 + 64
    assert copy_events(words, slots, oldest - 1, 556, events) == LAPPED
    assert copy_events(words, slots, oldest, 556, events) == 1
    assert events[0, 0] == oldest


def read_along(memory, position, end, seen, wait_ns=PATIENCE_NS):
    return litmus.read_events(memory.events.words, memory.events.slots[0], position, end, wait_ns, rows(memory), seen,
                              make_scratch())


def compile_event_kernels(memory):
    write(memory, 0)
    read_along(memory, 0, 0, np.zeros(4, np.int64))


def test_a_reader_lapped_on_purpose_never_returns_a_torn_event_and_knows_that_it_was_lapped(shared, request):
    instance, memory = shared
    compile_event_kernels(memory)
    seen, position, wanted = np.zeros(4, np.int64), 0, number_of(request, "--ring-records")
    give_up = time.monotonic() + PATIENCE_NS / 1e9 + wanted / 1e5
    writer = litmus.fork(write_events, instance, FOR_EVER, 16)
    try:
        while position < wanted or seen[READ] < wanted // 100 or seen[LAPS] < 100:
            assert time.monotonic() < give_up, seen
            position = read_along(memory, position, position + 10_000, seen)
    finally:
        litmus.kill(writer)
    assert seen[WRONG] == 0
    print(f"read {seen[READ]} events, lapped {seen[LAPS]} times; refused with that: {seen[TORN]} torn events")


def test_events_of_a_killed_writer_are_whole_or_refused_and_its_successor_goes_on_where_they_end(shared, request):
    instance, memory = shared
    compile_event_kernels(memory)
    seen = np.zeros(4, np.int64)
    chance = random.Random(11)
    position = 0
    for _ in range(number_of(request, "--ring-kills")):
        writer = litmus.fork(write_events, instance, FOR_EVER, 16)
        try:
            end = position + chance.randrange(1, 20_000)
            position = read_along(memory, position, end, seen)
            assert position >= end
        finally:
            litmus.kill(writer)
        intent = int(memory.events.words[0, EventWord.INTENT])
        position = read_along(memory, position, FOR_EVER, seen, wait_ns=0)  # what is left
        assert position == visible_end(memory.events.words) <= intent
        assert int(memory.events.words[0, EventWord.INTENT]) >= intent
    assert seen[WRONG] == 0
    assert seen[READ] > 0
