"""Benchmarks of the core in process: operations a second, what reads cost, memory of an order, replay from disk."""
import resource
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from pipeline import journal, seeding
from pipeline.digest import state_digest
from pipeline.replay import ALL_EVENTS, limits_in, replay, replay_span
from pipeline.replica import Replica
from pipeline.segment_file import HEADER_BYTES, NextSegment, make_directory
from pipeline.state import LEVELS, ORDERS
from shm.int128 import halves
from shm.records import COMMAND, CONFIGURATION_GATEWAY, JOURNAL, Kind, RecordKind, Result
from tools.core_flow import blank_records, chase, deposits, record_flow, repeat_command, seal
from tools.load import percentile

CHUNK = 400_000                # operations timed at once
CHUNKS = 5                     # the best of them counts
STRETCH = 1_000                # operations that a percentile is of
PERCENTILES = {"p50_us": 0.5, "p99_us": 0.99, "p999_us": 0.999}
PEER = "dependent random reads in 64 MiB"  # ratio: how many times their rate


@dataclass(frozen=True)
class Book:
    """What is measured: `resting` orders over `markets`, held by `users`."""
    name: str
    markets: int
    resting: int
    users: int
    depth_ticks: int           # how far from the middle orders rest: it makes the number of price levels

    def configuration(self):
        names = [f"A{index}" for index in range(self.markets + 1)]
        return SimpleNamespace(
            limits=SimpleNamespace(
                orders_max=self.resting + 2_000_000, levels_max=1_000_000,
                balances_max=2 * self.users * (self.markets + 1), assets_max=256, markets_max=256),
            assets=[SimpleNamespace(name=name, prec_save=20, prec_show=8) for name in names],
            markets=[SimpleNamespace(name=f"M{index}", stock=names[index + 1], money=names[0], stock_prec=8,
                                     money_prec=2, fee_prec=4, min_amount="0.00000001")
                     for index in range(self.markets)])


BOOKS = (
    Book("core.small_book", markets=1, resting=1_000, users=1_000, depth_ticks=200),
    Book("core.resting_1m", markets=1, resting=1_000_000, users=100_000, depth_ticks=4_000),
    Book("core.markets_100_resting_1m", markets=100, resting=1_000_000, users=10_000, depth_ticks=500),
)


def calibrate():
    """Seconds a read of two million dependent random reads in 64 MiB takes: a fixed piece of work of the same run, so
    that figures of different machines and moments can be put side by side."""
    step = np.random.default_rng(7).permutation(1 << 23).astype(np.int64)
    count = 2_000_000
    chase(step, 1)
    return min(_timed(chase, step, count) for _ in range(3)) / count


def _timed(function, *arguments):
    began = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - began


def apply_records(replica, records, words):
    """Replay records from memory; returns seconds."""
    positions = np.zeros(1, np.int64)
    began = time.perf_counter()
    stopped, is_well = replay_span(
        replica.state, replica.inbox, replica.out, records, words, 0, len(records), positions, -1, ALL_EVENTS)
    seconds = time.perf_counter() - began
    assert is_well, f"record {stopped} of {len(records)} was refused: {records[stopped]}"
    return seconds


class Pair:
    """A core that makes up the flow, and one that is timed on what the first recorded."""

    def __init__(self, book):
        self.book, self.seed = book, np.array([0x9E3779B97F4A7C15], np.uint64)
        self.source = Replica.configured(book.configuration())
        self.timed = Replica.configured(book.configuration())
        funds = deposits(book.users, book.markets + 1, self.source.sequence + 1)
        for replica in (self.source, self.timed):
            apply_records(replica, *funds)
        missing = self.book.resting
        while missing > 0:
            self.run(min(CHUNK, missing), growing=True)
            missing = self.book.resting - int(self.source.state.counters[ORDERS])

    def record(self, count, growing=False):
        records, words = blank_records(count)
        book = self.book
        record_flow(self.source.state, self.source.inbox, self.source.out, records, words, self.seed, book.markets,
                    book.users, book.depth_ticks, book.resting, growing)
        return records, words

    def run(self, count, growing=False):
        """Seconds that the timed core takes for `count` more commands."""
        return apply_records(self.timed, *self.record(count, growing))

    def run_in_stretches(self, count):
        """Seconds that the timed core takes for each STRETCH of `count` more commands."""
        records, words = self.record(count)
        return [apply_records(self.timed, records[start:start + STRETCH], words[start:start + STRETCH])
                for start in range(0, count, STRETCH)]


def operations(book, calibration):
    """Operations a second on a book: the best of CHUNKS chunks; percentiles of what STRETCH operations take."""
    pair = Pair(book)
    pair.run(CHUNK)
    seconds = min(pair.run(CHUNK) for _ in range(CHUNKS)) / CHUNK
    stretches = sorted(pair.run_in_stretches(CHUNK))
    counters = pair.timed.state.counters
    return pair, {
        "name": book.name, "rate": round(1 / seconds), "unit": "operations/s", "ns": round(seconds * 1e9, 1),
        "resting_orders": int(counters[ORDERS]), "price_levels": int(counters[LEVELS]),
        **{name: round(percentile(stretches, share) * 1e6, 1) for name, share in PERCENTILES.items()},
        "percentiles_of": f"{STRETCH} operations", "calibration_ns": round(calibration * 1e9, 1),
        "ratio": round(calibration / seconds, 2), "peer": PEER}


def read_costs(pair, calibration):
    """Matcher time of reads on the book of a pair: the ordinary ones, and the worst that a client can ask for."""
    replica, book = pair.timed, pair.book
    heavy_user = book.users + 1
    _give_orders(replica, heavy_user, 100_000)
    resting = int(replica.state.counters[ORDERS])
    ask = {"market_id": 0, "side": 1}
    reads = [
        ("core.read.balance",
         {"kind": Kind.QUERY_BALANCE, "user_id": 1, "label_bytes": 4, "label": b"\0\0\1\0"}, 10_000),
        ("core.read.depth_20", {"kind": Kind.LIST_DEPTH, "limit": 20}, 10_000),
        ("core.read.depth_100_merged_0.1", {"kind": Kind.LIST_DEPTH, "limit": 100, "price": 10}, 2_000),
        ("core.read.book_20", {"kind": Kind.LIST_BOOK, "limit": 20, **ask}, 10_000),
        ("core.read.pending_20", {"kind": Kind.LIST_PENDING, "user_id": 1, "limit": 20}, 10_000),
        ("core.read.worst.book_101_half_way",
         {"kind": Kind.LIST_BOOK, "limit": 101, "offset": resting // 4, **ask}, 20),
        ("core.read.worst.depth_merged_into_one", {"kind": Kind.LIST_DEPTH, "limit": 101, "price": 10**12}, 20),
        ("core.read.worst.pending_last_of_100000",
         {"kind": Kind.LIST_PENDING, "user_id": heavy_user, "limit": 101, "offset": 99_890}, 20),
    ]
    for name, fields, count in reads:
        command = _command(fields)
        replica.apply(command, time_ns=replica.sequence)
        core = (replica.state, replica.inbox, replica.out)
        seconds = min(_timed(repeat_command, *core, count) for _ in range(3)) / count
        yield {"name": name, "rate": round(1 / seconds), "unit": "reads/s", "us": round(seconds * 1e6, 2),
               "resting_orders": resting, "ratio": round(calibration / seconds, 4), "peer": PEER}


def _command(fields):
    command = np.zeros((), COMMAND)
    command["slots"] = 1
    for name, value in fields.items():
        if name == "label":
            command["label"][:len(value)] = np.frombuffer(value, np.uint8)
        else:
            command[name] = value
    return command


def _give_orders(replica, user, count):
    """`count` resting asks of one user in the first market, far from the middle."""
    low, high = halves(10**9 * 10**20)
    for asset in (0, 1):
        replica.apply(_command({"kind": Kind.UPDATE_BALANCE, "user_id": user, "asset_id": asset, "reference": asset,
                                "change_low": low, "change_high": high}), time_ns=replica.sequence + 1)
    command = _command({"kind": Kind.PUT_LIMIT, "user_id": user, "side": 1, "amount": 1_000, "price": 10**7})
    replica.apply(command, time_ns=replica.sequence + 1)
    repeat_command(replica.state, replica.inbox, replica.out, count - 1)
    assert replica.out.header[0]["result"] == Result.OK


def memory_of_an_order():
    """Resident bytes that a resting order takes, all tables included."""
    count = 1_000_000
    book = Book("core.memory", markets=1, resting=0, users=10_000, depth_ticks=4_000)
    configuration = book.configuration()
    configuration.limits.orders_max = count
    replica = Replica.configured(configuration)
    apply_records(replica, *deposits(book.users, 2, replica.sequence + 1))
    seed = np.array([0x9E3779B97F4A7C15], np.uint64)
    records, words = blank_records(CHUNK // 2)
    before = _resident_bytes()
    while int(replica.state.counters[ORDERS]) <= count - CHUNK // 2:
        record_flow(replica.state, replica.inbox, replica.out, records, words, seed, 1, book.users, book.depth_ticks,
                    count, True)
    orders = int(replica.state.counters[ORDERS])
    return {"name": "core.memory_of_a_resting_order", "unit": "bytes", "resting_orders": orders,
            "rate": round((_resident_bytes() - before - records.nbytes) / orders, 1)}


def _resident_bytes():
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def replay_from_disk(calibration):
    """Commands a second from segment files to a state, finding the journal's end and all checksums included."""
    book = Book("core.replay_from_disk", markets=1, resting=1_000, users=1_000, depth_ticks=200)
    replica = Replica.configured(book.configuration())
    first = replica.sequence + 1
    seed = np.array([0x9E3779B97F4A7C15], np.uint64)
    funds, fund_words = deposits(book.users, 2, first)
    apply_records(replica, funds, fund_words)
    flow, flow_words = blank_records(1_000_000)
    record_flow(
        replica.state, replica.inbox, replica.out, flow, flow_words, seed, 1, book.users, book.depth_ticks,
        book.resting, False)
    with tempfile.TemporaryDirectory(prefix="exchange-bench-") as folder:
        directory, instance = Path(folder) / "journal", uuid.uuid4()
        count = _write_journal(directory, instance, book, (fund_words, flow_words))
        for _ in range(2):  # the second time counts: kernels loaded, pages of the files cached
            began = time.perf_counter()
            found = journal.spans(directory, instance)
            again = Replica(limits_in(found, seeding.limits_of(book.configuration())))
            replay(again, found, np.zeros(1, np.int64), 1)
            seconds = time.perf_counter() - began
    assert again.sequence == replica.sequence and state_digest(again.state) == state_digest(replica.state)
    return {"name": book.name, "rate": round(count / seconds), "unit": "operations/s", "records": count,
            "ratio": round(calibration * count / seconds, 2), "peer": PEER}


def _write_journal(directory, instance, book, parts):
    """A journal of the book's definitions and then `parts`; returns how many records that is."""
    definitions = list(seeding.commands(book.configuration(), Replica(seeding.limits_of(book.configuration())).state))
    seeds, seed_words = blank_records(2 * len(definitions))
    for index, (command, payload) in enumerate(definitions):
        record = seeds[2 * index]
        for name in COMMAND.names[1:]:
            record[name] = command[name]
        record["sequence"], record["record_slots"], record["record_kind"] = index + 1, 2, RecordKind.RECORD
        record["gateway"] = CONFIGURATION_GATEWAY
        seed_words[2 * index + 1].view(np.uint8)[:len(payload)] = np.frombuffer(payload, np.uint8)
    chain = seal(seeds, seed_words.reshape(-1), np.uint64(0))
    for words in parts:
        chain = seal(words.reshape(-1).view(JOURNAL), words.reshape(-1), np.uint64(chain))
    make_directory(directory)
    size = HEADER_BYTES + seed_words.nbytes + sum(words.nbytes for words in parts)
    upcoming = NextSegment(directory, instance, size, lambda: None)
    upcoming.prepare(1)
    upcoming.wait()
    segment = upcoming.take()
    for words in (seed_words, *parts):
        segment.append(words.reshape(-1))
    segment.finish()
    return len(definitions) + sum(len(words) for words in parts)


def run(wanted):
    """Yield the results of the benchmarks that `wanted(name)` asks for."""
    calibration = calibrate()
    for book in BOOKS:
        reads = book.resting == 1_000_000 and book.markets == 1 and wanted("core.read")
        if wanted(book.name) or reads:
            pair, result = operations(book, calibration)
            if wanted(book.name):
                yield result
            if reads:
                yield from read_costs(pair, calibration)
            del pair
    if wanted("core.memory_of_a_resting_order"):
        yield memory_of_an_order()
    if wanted("core.replay_from_disk"):
        yield replay_from_disk(calibration)


NAMES = (*(book.name for book in BOOKS), "core.read", "core.memory_of_a_resting_order", "core.replay_from_disk")
