"""The gateway's side of the rings, step by step against a core; then whole processes over sockets."""
import asyncio
import os
import random
import struct
import threading
import time

import numpy as np
import pytest

import gateways.bridge as bridge_module
from gateways import event_loop
from gateways.bridge import Bridge, MatcherGone, ServiceTimeout, ServiceUnavailable
from gateways.messages import Reply, make_command
from shm import configuration, doorbell, segments
from shm.gateway_rings import want_room
from shm.records import COMMAND, ORDER, Kind, Result, struct_format
from shm.segments import CommandWord, CounterWord, JournalWord, ReplyWord, Role, SleeperWord
from tests.gateway_world import Pipeline, Rings
from tools.local_exchange import prepare_kernels

SETTINGS = configuration.parse({
    "limits": {"orders_max": 4096, "levels_max": 4096, "balances_max": 4096, "assets_max": 8, "markets_max": 8},
    "assets": [{"name": "BTC", "prec_save": 16, "prec_show": 8}, {"name": "USD", "prec_save": 16, "prec_show": 2}],
    "markets": [{"name": "BTCUSD", "stock": "BTC", "money": "USD", "stock_prec": 8, "money_prec": 2}],
})
ROUND_TRIPS = 3000
ORDER_STRUCT = struct.Struct(struct_format(ORDER))


@pytest.fixture(scope="module", autouse=True)
def compiled():
    """No kernel is compiled while something has to be answered in time."""
    prepare_kernels()


@pytest.fixture
def rings(tmp_path):
    made = []

    def make(**sizes):
        made.append(Rings(tmp_path, SETTINGS, **sizes))
        return made[-1]
    yield make
    for each in made:
        segments.unlink(each.instance)
        assert not each.defects


def deposit(user_id, business_id, detail=b"{}", amount=10**20):
    return make_command(
        Kind.UPDATE_BALANCE, payload=detail, user_id=user_id, reference=business_id, change_low=amount % 2**64,
        change_high=amount >> 64, label=b"d", label_bytes=1)


def record_of(command):
    return np.frombuffer(command.slots, COMMAND, 1)[0]


def fill_book(replica):
    """101 asks, order ids from 1, behind the rings."""
    replica.apply(record_of(deposit(9, 0, amount=10**24)), b"{}", 1)
    for number in range(101):
        replica.apply(record_of(make_command(
            Kind.PUT_LIMIT, user_id=9, side=1, amount=10**8, price=800_000 + number)), b"", 1)


def book(limit):
    return make_command(Kind.LIST_BOOK, limit, side=1, limit=limit)


async def published(rings, count=1):
    """Give the bridge ticks to write what was called, until `count` batches are published."""
    while rings.process.counters[CounterWord.BATCHES] < count:
        await asyncio.sleep(0)


def attached(rings):
    bridge = rings.bridge()
    bridge.take_over()
    bridge.attach(asyncio.get_running_loop())
    return bridge


def test_calls_of_one_tick_are_one_batch_and_each_gets_its_own_reply(rings):
    memory = rings()
    pipeline = Pipeline(memory)

    async def run():
        bridge = attached(memory)
        calls = [asyncio.ensure_future(bridge.call(deposit(user, 1), user * 7)) for user in range(1, 11)]
        await published(memory)
        assert pipeline.apply() == 10
        assert not any(call.done() for call in calls)
        pipeline.free()
        await asyncio.sleep(0.01)
        assert not any(call.done() for call in calls), "a reply was seen before it was released"
        pipeline.release()
        replies = [Reply(message).header for message in await asyncio.gather(*calls)]
        assert [reply.sequence for reply in replies] == sorted(reply.sequence for reply in replies)
        assert all(reply.result == Result.OK and reply.kind == Kind.UPDATE_BALANCE for reply in replies)
        wakeups = int(memory.process.counters[CounterWord.WAKEUPS])
        await asyncio.sleep(0.05)
        assert memory.process.counters[CounterWord.WAKEUPS] == wakeups, "it does not sleep"
    event_loop.run(run())
    counters = memory.process.counters
    assert counters[CounterWord.RECORDS] == counters[CounterWord.LARGEST_BATCH] == 10
    assert counters[CounterWord.BATCHES] == 1
    for user, (command, payload) in enumerate(pipeline.taken, 1):
        assert (command["user_id"], command["correlation_id"], payload) == (user, user * 7, b"{}")
        assert abs(int(command["received_at_ns"]) - time.time_ns()) < 10**10


def test_a_slow_matcher_is_never_given_more_than_its_replies_have_room_for(rings):
    """Random commands with small and large replies and payloads, rings that wrap; the Pipeline asserts the room."""
    memory = rings()
    pipeline = Pipeline(memory)
    fill_book(pipeline.replica)
    chance = random.Random(7)

    async def run():
        bridge = attached(memory)

        async def one(number):
            await asyncio.sleep(chance.random() * 0.2)
            detail = b"x" * chance.choice([2, 500, 3000, 8192])
            kind = chance.random()
            command = deposit(1, number, detail) if kind < 0.4 else book(chance.choice([0, 1, 20, 101]))
            while True:
                try:
                    reply = Reply(await bridge.call(command, number))
                except (ServiceUnavailable, ServiceTimeout):
                    await asyncio.sleep(chance.random() * 0.2)
                    continue
                assert reply.header.kind == command.kind
                if command.kind == Kind.LIST_BOOK:
                    order_ids = [row[0] for row in reply.rows(ORDER_STRUCT, reply.header.rows)]
                    assert order_ids == list(range(1, int(record_of(command)["limit"]) + 1))
                return command

        async def work():
            while True:
                pipeline.apply(chance.choice([1, 2, 5, 100]))
                if chance.random() < 0.7:
                    pipeline.free()
                if chance.random() < 0.7:
                    pipeline.release()
                await asyncio.sleep(0.0005)
        working = asyncio.ensure_future(work())
        done = await asyncio.gather(*[one(number) for number in range(600)])
        working.cancel()
        assert len(done) == 600
    event_loop.run(run())
    details = [payload for command, payload in pipeline.taken if command["kind"] == Kind.UPDATE_BALANCE]
    assert details and all(set(payload) <= {ord("x")} and len(payload) in (2, 500, 3000, 8192) for payload in details)
    assert memory.process.counters[CounterWord.FULL] > 0


def test_without_room_a_call_waits_a_bounded_time_and_is_not_written(rings):
    memory = rings()
    pipeline = Pipeline(memory)

    async def run():
        bridge = attached(memory)
        large = [asyncio.ensure_future(bridge.call(deposit(1, number, b"x" * 8192))) for number in range(2)]
        started = asyncio.get_running_loop().time()
        with pytest.raises(ServiceUnavailable) as refused:
            await large[1]     # 44 of 64 slots each
        assert 0.1 < asyncio.get_running_loop().time() - started < 0.39
        assert refused.value.data["limit"] == {"rings.command_slots": 64, "rings.reply_slots": 128}
        small = Reply(await answered(bridge.call(deposit(1, 9)), pipeline))
        assert small.header.result == Result.OK
        await large[0]
    event_loop.run(run())
    assert [int(command["reference"]) for command, _ in pipeline.taken] == [0, 9]


async def answered(call, pipeline):
    """The reply to the call, once the pipeline has answered it."""
    task = asyncio.ensure_future(call)
    while not task.done():
        pipeline.answer()
        await asyncio.sleep(0.001)
    return await task


def test_a_gateway_that_waits_for_room_is_rung_when_there_is_some(rings):
    memory = rings()
    pipeline = Pipeline(memory)

    async def run():
        bridge = attached(memory)
        calls = [asyncio.ensure_future(bridge.call(deposit(1, number, b"x" * 8192))) for number in range(2)]
        await published(memory)
        await asyncio.sleep(0.01)
        assert memory.memory.commands.words[0, CommandWord.ROOM_WANTED] == 1
        pipeline.apply()
        pipeline.free()        # rings, though no reply is released
        await published(memory, 2)
        assert memory.memory.commands.words[0, CommandWord.ROOM_WANTED] == 0
        pipeline.answer()
        await asyncio.gather(*calls)
    event_loop.run(run())


def test_room_that_comes_just_before_it_is_wanted_is_found_without_a_bell(rings, monkeypatch):
    memory = rings()
    pipeline = Pipeline(memory)

    def freed_just_before(commands, row, wanted):
        if wanted and memory.memory.sleepers.words[Role.GATEWAY, SleeperWord.ASLEEP] == 0:
            assert commands[row, CommandWord.ROOM_WANTED] == 0
            pipeline.answer()  # sees that nobody wants room or sleeps: it does not ring
        return want_room(commands, row, wanted)
    monkeypatch.setattr(bridge_module, "want_room", freed_just_before)

    async def run():
        bridge = attached(memory)
        calls = [asyncio.ensure_future(bridge.call(deposit(1, number, b"x" * 5000))) for number in range(2)]
        await published(memory)  # 56 of 64 slots
        memory.memory.sleepers.words[Role.GATEWAY, SleeperWord.ASLEEP] = 0
        calls.append(asyncio.ensure_future(bridge.call(deposit(1, 2, b"x" * 5000))))
        await asyncio.sleep(0.01)
        assert memory.process.counters[CounterWord.BATCHES] == 2
        doorbell.ring(pipeline.bell)
        await answered(asyncio.gather(*calls), pipeline)
    event_loop.run(run())


def test_room_that_comes_while_the_gateway_is_awake_is_found_without_a_bell(rings, monkeypatch):
    memory = rings()
    pipeline = Pipeline(memory)

    def freed_just_after(commands, row, wanted):
        head = want_room(commands, row, wanted)
        if wanted and memory.memory.sleepers.words[Role.GATEWAY, SleeperWord.ASLEEP] == 0:
            pipeline.free()    # sees that room is wanted and that nobody sleeps: it does not ring
        return head
    monkeypatch.setattr(bridge_module, "want_room", freed_just_after)

    async def run():
        # given a call that waits for room, behind two that take 56 of 64 slots
        bridge = attached(memory)
        calls = [asyncio.ensure_future(bridge.call(deposit(1, number, b"x" * 5000))) for number in range(3)]
        await published(memory)
        assert memory.memory.commands.words[0, CommandWord.ROOM_WANTED] == 1
        # when the two replies come before the matcher lets the slots go
        pipeline.apply()
        pipeline.release()
        await asyncio.wait([calls[2], asyncio.ensure_future(published(memory, 2))], return_when="FIRST_COMPLETED")
        # then the waiting call is written
        assert not calls[2].done()
        await answered(asyncio.gather(*calls), pipeline)
    event_loop.run(run())


def test_no_reply_is_missed_between_the_last_look_and_sleep(rings):
    # nothing but the bell wakes the gateway within the calls' timeout
    memory = rings()
    pipeline = Pipeline(memory)
    stop = threading.Event()

    def answer_at_once():
        while not stop.is_set():
            pipeline.answer()
    matcher = threading.Thread(target=answer_at_once)

    async def run():
        bridge = attached(memory)
        for number in range(ROUND_TRIPS):
            assert Reply(await bridge.call(deposit(1, number))).header.result == Result.OK
    matcher.start()
    try:
        event_loop.run(run())
    finally:
        stop.set()
        matcher.join()
    assert memory.process.counters[CounterWord.WAKEUPS] > ROUND_TRIPS // 10, "it hardly slept"


def test_a_reply_after_the_timeout_is_dropped_and_its_room_comes_back(rings):
    memory = rings()
    pipeline = Pipeline(memory)

    async def run():
        bridge = attached(memory)
        started = asyncio.get_running_loop().time()
        with pytest.raises(ServiceTimeout):
            await bridge.call(book(101))
        assert 0.39 < asyncio.get_running_loop().time() - started < 0.6
        with pytest.raises(ServiceUnavailable):
            await bridge.call(book(101))  # the first still holds its 76 of 128 slots
        assert pipeline.answer() == 1
        await asyncio.sleep(0.01)
        reply = Reply(await answered(bridge.call(deposit(5, 1)), pipeline))
        assert reply.header.kind == Kind.UPDATE_BALANCE
        assert Reply(await answered(bridge.call(book(101)), pipeline)).header.kind == Kind.LIST_BOOK
    event_loop.run(run())


def test_a_new_gateway_waits_for_its_predecessors_commands_and_drops_their_replies(rings):
    memory = rings()
    pipeline = Pipeline(memory)

    async def predecessor():
        bridge = attached(memory)
        calls = [asyncio.ensure_future(bridge.call(deposit(1, number))) for number in range(5)]
        await published(memory)
        assert not any(call.done() for call in calls)
    event_loop.run(predecessor())
    pipeline.apply(3)
    pipeline.release()         # three of five
    successor = memory.bridge()
    taking_over = threading.Thread(target=successor.take_over)
    taking_over.start()
    taking_over.join(0.1)
    assert taking_over.is_alive()
    assert memory.memory.sleepers.words[Role.GATEWAY, SleeperWord.ASLEEP] == 1
    assert pipeline.answer() == 2
    taking_over.join(2)
    assert not taking_over.is_alive()
    replies = memory.memory.replies.words[0]
    assert replies[ReplyWord.HEAD] == replies[ReplyWord.TAIL] == 5

    async def go_on():
        successor.attach(asyncio.get_running_loop())
        reply = Reply(await answered(successor.call(book(1)), pipeline))
        assert reply.header.kind == Kind.LIST_BOOK
    event_loop.run(go_on())


def test_a_starting_gateway_rings_the_matcher_whatever_the_flags_say(rings):
    memory = rings()
    bell = doorbell.open_bell(memory.data / "run", "matcher")
    memory.bridge().take_over()
    assert os.read(bell, 10) == b"\0"


def test_a_journal_that_takes_no_writes_lets_reads_go_on(rings):
    memory = rings()
    pipeline = Pipeline(memory)
    memory.memory.journal.words[0, JournalWord.REFUSING] = 28

    async def run():
        bridge = attached(memory)
        with pytest.raises(ServiceUnavailable, match="No space left on device"):
            await bridge.call(deposit(1, 1))
        assert Reply(await answered(bridge.call(book(1)), pipeline)).header.result == Result.OK
    event_loop.run(run())
    assert len(pipeline.taken) == 1


def test_writes_that_wait_for_room_when_the_journal_stops_taking_them_are_refused_and_reads_go_on(rings):
    memory = rings()
    pipeline = Pipeline(memory)

    async def run():
        # given a write and a read that wait for room, behind two writes that take 56 of 64 slots
        bridge = attached(memory)
        calls = [asyncio.ensure_future(bridge.call(deposit(1, number, b"x" * 5000))) for number in range(3)]
        read = asyncio.ensure_future(bridge.call(book(1)))
        await published(memory)
        # when the journal refuses writes, and there is room
        memory.memory.journal.words[0, JournalWord.REFUSING] = 28
        assert pipeline.answer() == 2
        # then those in the ring are executed, the waiting one is not, and the read is
        with pytest.raises(ServiceUnavailable, match="No space left on device"):
            await calls[2]
        assert Reply(await answered(read, pipeline)).header.result == Result.OK
        assert [Reply(message).header.result for message in await asyncio.gather(*calls[:2])] == [Result.OK] * 2
    event_loop.run(run())
    assert [int(command["kind"]) for command, _ in pipeline.taken] == [Kind.UPDATE_BALANCE] * 2 + [Kind.LIST_BOOK]


def test_of_writes_that_pass_together_at_most_one_enters_after_the_journal_stopped_taking_them(rings, monkeypatch):
    memory = rings()
    pipeline = Pipeline(memory)
    write = Bridge._write

    def refused_meanwhile(bridge, call):
        memory.memory.journal.words[0, JournalWord.REFUSING] = 28
        return write(bridge, call)
    monkeypatch.setattr(Bridge, "_write", refused_meanwhile)

    async def run():
        bridge = attached(memory)
        calls = [asyncio.ensure_future(bridge.call(deposit(1, number))) for number in range(3)]
        assert Reply(await answered(calls[0], pipeline)).header.result == Result.OK
        refused = await asyncio.gather(*calls[1:], return_exceptions=True)
        assert [type(outcome) for outcome in refused] == [ServiceUnavailable] * 2
    event_loop.run(run())
    assert len(pipeline.taken) == 1


@pytest.mark.parametrize("pid, heartbeat_age_ns, is_gone", [
    pytest.param(0, 3 * 10**9, True, id="none was ever started"),
    pytest.param(2**22 + 1, 3 * 10**9, True, id="it ended"),
    pytest.param(1, 3 * 10**9, False, id="it hangs"),
    pytest.param(os.getpid(), time.monotonic_ns(), True, id="it ended and another process got its number"),
])
def test_a_matcher_without_process_and_heartbeat_is_gone_but_one_that_only_hangs_is_waited_for(
        rings, pid, heartbeat_age_ns, is_gone):
    memory = rings()
    matcher = memory.memory.counters.words[Role.MATCHER]
    matcher[CounterWord.PID], matcher[CounterWord.HEARTBEAT_NS] = pid, time.monotonic_ns() - heartbeat_age_ns

    async def run():
        with pytest.raises(MatcherGone if is_gone else ServiceTimeout):
            await attached(memory).call(book(1))
    event_loop.run(run())
    assert memory.memory.commands.words[0, CommandWord.TAIL] == (0 if is_gone else 1)


def test_a_reply_to_nobodys_request_is_a_defect(rings):
    memory = rings()
    pipeline = Pipeline(memory)

    async def run():
        attached(memory)
        pipeline.replica.apply(record_of(book(1)), b"", 1)
        pipeline._write_reply(pipeline.replica.reply_message())
        pipeline.release()
        await asyncio.sleep(0.05)
    event_loop.run(run())
    assert "a reply that is not of call 1" in memory.defects.pop(0)
    memory.defects.clear()


def test_a_sleeping_gateway_misses_no_reply(rings):
    """A pipeline in its own thread, asleep and awake at its own pace, against thousands of calls."""
    memory = rings()
    pipeline = Pipeline(memory)
    stop = threading.Event()

    def work():
        while not stop.is_set():
            pipeline.answer()
    worker = threading.Thread(target=work)

    async def run():
        bridge = attached(memory)

        async def client(first):
            for number in range(first, first + 250):
                reply = Reply(await bridge.call(deposit(1, number)))
                assert reply.header.result == Result.OK
        await asyncio.gather(*[client(index * 1000) for index in range(8)])
    worker.start()
    try:
        event_loop.run(run())
    finally:
        stop.set()
        worker.join()
    assert len(pipeline.taken) == 2000
