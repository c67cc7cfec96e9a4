"""Snapshots: the state at one sequence as a file, from which a replica goes on without the journal before it.

A snapshot says what is in the state, not how its memory looks: assets, markets, balances, resting orders, idempotency
keys. So it outlives any change of the core's tables, fits larger capacities, and is rebuilt through the core's own
functions; that the result is the same state, `state_digest` shows. A file is whole or it is none: written beside its
name, synced, renamed; a checksum for each part.
"""
import os
import uuid
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numba import int64, uint32

from pipeline.digest import state_digest
from pipeline.idempotency import remember
from pipeline.journal import Place
from pipeline.ledger import available, change_available, change_frozen, frozen, open_balance
from pipeline.order_book import rest, take_slot
from pipeline.replica import EVENT_SLOTS, Replica
from pipeline.seeding import definition
from pipeline.segment_file import sync_directory
from pipeline.state import (
    ASSETS,
    ASSETS_MAX,
    BALANCES,
    BALANCES_MAX,
    CATALOG_VERSION,
    DEAL_ID,
    DEFECT,
    EVENT_POSITION,
    EVENTS_FOLDED,
    KEY_CELLS,
    KEY_MIGRATED,
    KEYS,
    LEVELS_MAX,
    MARKETS,
    MARKETS_MAX,
    NONE,
    ORDER_ID,
    ORDER_WORD,
    ORDERS,
    ORDERS_MAX,
    OUTPUT_DIGEST,
    RULES,
    SEQUENCE,
    TIME_NS,
)
from shm.kernel import kernel
from shm.records import ASSET, LIMITS, MARKET, ORDER, Kind, Result

MAGIC, VERSION = 0x544F48535041_4E53, 1
SUFFIX, TEMPORARY = ".snapshot", "snapshot.new"
HEADER_BYTES = 4096

SNAPSHOT_ASSET = np.dtype([
    ("asset", ASSET), ("deposited_low", "<u8"), ("deposited_high", "<i8"), ("fees_low", "<u8"), ("fees_high", "<i8")])
SNAPSHOT_BALANCE = np.dtype([
    ("available_low", "<u8"), ("available_high", "<i8"), ("frozen_low", "<u8"), ("frozen_high", "<i8"),
    ("user_id", "<u4"), ("asset_id", "<u4")])
SNAPSHOT_KEY = np.dtype([
    ("business_id", "<u8"), ("user_id", "<u4"), ("asset_id", "<u2"), ("unused", "u1"), ("label_bytes", "u1"),
    ("label", "<u8", (4,))])
PARTS = (("assets", SNAPSHOT_ASSET), ("markets", MARKET), ("balances", SNAPSHOT_BALANCE), ("orders", ORDER),
         ("keys", SNAPSHOT_KEY))
_PART = np.dtype([("rows", "<i8"), ("checksum", "<u4"), ("row_bytes", "<u4")])
HEADER = np.dtype([
    ("magic", "<u8"), ("version", "<u4"), ("unused", "<u4"),
    ("instance", "u1", (16,)),
    ("sequence", "<i8"), ("chain", "<u8"),                 # of the last record in the state
    ("time_ns", "<i8"), ("order_id", "<u8"), ("deal_id", "<u8"), ("catalog_version", "<i8"),
    ("output_digest", "<u8"), ("state_digest", "<u8"),
    ("limits", LIMITS),
    ("parts", _PART, (len(PARTS),)),
    ("checksum", "<u4"),
])
_COUNTERS = ((SEQUENCE, "sequence"), (TIME_NS, "time_ns"), (ORDER_ID, "order_id"), (DEAL_ID, "deal_id"),
             (CATALOG_VERSION, "catalog_version"), (OUTPUT_DIGEST, "output_digest"))


class SnapshotDamaged(Exception):
    """The file is no whole snapshot of this instance; the text says why."""


@dataclass(frozen=True)
class Snapshot:
    """A snapshot file that was found: what it holds is known only when it is loaded."""
    path: Path
    sequence: int


# Out of a state.

@kernel
def copy_balances(state, rows):
    """Every balance into `rows` (SNAPSHOT_BALANCE); how many."""
    count = int64(0)
    for cell in range(len(state.balances)):
        balance = state.balances[cell]
        if balance.key != 0:
            row = rows[count]
            row.available_low, row.available_high = balance.available_low, balance.available_high
            row.frozen_low, row.frozen_high = balance.frozen_low, balance.frozen_high
            row.user_id = uint32(balance.key >> 16)
            row.asset_id = balance.asset_id
            count += 1
    return count


@kernel
def copy_orders(state, rows):
    """Every resting order into `rows` (uint64: an ORDER each); how many."""
    count = int64(0)
    for side_index in range(2 * state.counters[MARKETS]):
        leaf = int64(state.sides[side_index].first_leaf)
        while leaf != NONE:
            for place in range(state.nodes[leaf].count):
                slot = int64(state.levels[state.node_children[leaf, place]].head)
                while slot != NONE:
                    for word in range(rows.shape[1]):
                        rows[count, word] = state.order_words[slot, ORDER_WORD + word]
                    count += 1
                    slot = int64(state.orders[slot].next)
            leaf = int64(state.nodes[leaf].next)
    return count


@kernel
def copy_keys(state, rows):
    """Every idempotency key into `rows` (SNAPSHOT_KEY); how many."""
    size = state.counters[KEY_CELLS]  # the table before ends where this one begins: what has not moved is its end
    count = int64(0)
    for index in range(size // 2 + state.counters[KEY_MIGRATED], 2 * size):
        cell = state.keys[index]
        if cell.used != 0:
            row = rows[count]
            row.business_id, row.user_id, row.asset_id = cell.business_id, cell.user_id, cell.asset_id
            row.label_bytes = cell.label_bytes
            for word in range(4):
                row.label[word] = cell.label[word]
            count += 1
    return count


def _ids_and_names(rows, dtype):
    """The records of `dtype` in state rows that have its fields."""
    records = np.zeros(len(rows), dtype)
    for name in dtype.names:
        if name in rows.dtype.names:
            records[name] = rows[name]
    return records


def _as_words(orders):
    return orders.view(np.uint64).reshape(len(orders), ORDER.itemsize // 8)


def content_of(state):
    """{part: rows} of a state; equal for equal states but for the order of the keys."""
    counters = state.counters
    assets = state.assets[:counters[ASSETS]]
    asset_rows = np.zeros(len(assets), SNAPSHOT_ASSET)
    asset_rows["asset"] = _ids_and_names(assets, ASSET)
    for name in ("deposited_low", "deposited_high", "fees_low", "fees_high"):
        asset_rows[name] = assets[name]
    balances = np.zeros(counters[BALANCES], SNAPSHOT_BALANCE)
    orders = np.zeros(counters[ORDERS], ORDER)
    keys = np.zeros(counters[KEYS], SNAPSHOT_KEY)
    copied = (copy_balances(state, balances), copy_keys(state, keys),
              copy_orders(state, _as_words(orders)))
    assert copied == (len(balances), len(keys), len(orders)), (copied, counters)
    return {
        "assets": asset_rows, "markets": _ids_and_names(state.markets[:counters[MARKETS]], MARKET),
        "balances": balances[np.argsort(balances["user_id"].astype(np.uint64) << np.uint64(32) | balances["asset_id"])],
        "orders": orders[np.argsort(orders["order_id"])], "keys": keys}


# Into a state.

@kernel
def restore_balances(state, rows):
    """The balances, with the totals of their assets; the caller has checked that there is room."""
    for row in rows:
        cell = open_balance(state, row.user_id, row.asset_id)
        change_available(state, cell, available(row))
        change_frozen(state, cell, frozen(row))


@kernel
def restore_orders(state, records, words):
    """The resting orders, in the order of their ids. Both are the same memory: ORDER records, and uint64 rows."""
    for index in range(len(records)):
        slot = take_slot(state)
        for word in range(words.shape[1]):
            state.order_words[slot, ORDER_WORD + word] = words[index, word]
        market = state.markets[records[index].market_id]
        order = state.orders[slot]
        order.stock_row = open_balance(state, records[index].user_id, market.stock_asset_id)
        order.money_row = open_balance(state, records[index].user_id, market.money_asset_id)
        rest(state, slot)


@kernel
def restore_keys(state, rows):
    for row in rows:
        remember(state, row.business_id, row.user_id, row.asset_id, row.label, row.label_bytes)


def restored(header, content, limits, event_slots=EVENT_SLOTS):
    """A Replica with this content, and room for `limits` or what the snapshot needs, whichever is more.

    Raises SnapshotDamaged where the state is not the one that the snapshot was made of.
    """
    room = np.zeros((), LIMITS)
    for name in LIMITS.names:
        room[name] = max(limits[name], header["limits"][name])
    replica = Replica(room, event_slots)
    _define(replica, Kind.SET_LIMITS, header["limits"])
    for row in content["assets"]:
        _define(replica, Kind.ADD_ASSET, row["asset"])
    for row in content["markets"]:
        _define(replica, Kind.ADD_MARKET, row)
    state, orders = replica.state, content["orders"]
    restore_balances(state, content["balances"])
    restore_orders(state, orders, _as_words(orders))
    restore_keys(state, content["keys"])
    for name in ("deposited_low", "deposited_high", "fees_low", "fees_high"):
        state.assets[name][:len(content["assets"])] = content["assets"][name]
    counters = state.counters
    for word, name in _COUNTERS:
        counters[word] = header[name].astype(np.int64)
    counters[EVENTS_FOLDED] = counters[EVENT_POSITION]
    if counters[DEFECT] or np.uint64(state_digest(state)) != header["state_digest"]:
        raise SnapshotDamaged("the state in it is not the one that it was made of")
    return replica


def _define(replica, kind, record):
    reply = replica.apply(*definition(kind, record))
    if reply["result"] != Result.OK:
        raise SnapshotDamaged(f"its {kind.name} is refused with result {reply['result']}")


# Files.

def snapshots_of(directory):
    """The snapshot files in a directory, the newest first."""
    found = []
    for path in Path(directory).glob(f"*{SUFFIX}"):
        if path.stem.isdecimal():
            found.append(Snapshot(path, int(path.stem)))
    return sorted(found, key=lambda snapshot: snapshot.sequence, reverse=True)


def write(directory, instance, state, chain):
    """Write the snapshot of a state whose last record has this chain value; returns it. It is on disk then, with its
    name. Raises OSError, and leaves no file."""
    directory = Path(directory)
    directory.mkdir(mode=0o700, exist_ok=True)
    content = content_of(state)
    header = _header_of(state, instance, chain, content)
    path = directory / f"{int(header['sequence']):020}{SUFFIX}"
    temporary = directory / TEMPORARY
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(header.tobytes().ljust(HEADER_BYTES, b"\0"))
            for name, _dtype in PARTS:
                file.write(content[name].view(np.uint8).data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
        sync_directory(directory)
        sync_directory(directory.parent)  # that has the folder's own name, which may be new
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    return Snapshot(path, int(header["sequence"]))


def limits_of(state):
    """The LIMITS in force."""
    limits = np.zeros((), LIMITS)
    for word, name in ((RULES, "rules_version"), (ORDERS_MAX, "orders_max"), (LEVELS_MAX, "levels_max"),
                       (BALANCES_MAX, "balances_max"), (ASSETS_MAX, "assets_max"), (MARKETS_MAX, "markets_max")):
        limits[name] = state.counters[word]
    return limits


def _header_of(state, instance, chain, content):
    header = np.zeros(1, HEADER)
    header["magic"], header["version"], header["chain"] = MAGIC, VERSION, chain
    header["instance"] = np.frombuffer(instance.bytes, np.uint8)
    for word, name in _COUNTERS:
        header[name] = state.counters[word].astype(header[name].dtype)
    header["state_digest"], header["limits"] = state_digest(state), limits_of(state)
    for index, (name, dtype) in enumerate(PARTS):
        rows = content[name]
        header["parts"][0, index] = len(rows), zlib.crc32(rows.view(np.uint8).data), dtype.itemsize
    header["checksum"] = _checksum(header)
    return header[0]


def _checksum(header):
    return zlib.crc32(header.tobytes()[:HEADER.fields["checksum"][1]])


def read(snapshot, instance):
    """(header, {part: rows}) of a snapshot file. Raises SnapshotDamaged where it is not whole, of another version or
    another instance's, OSError where it cannot be read."""
    with open(snapshot.path, "rb") as file:
        header = _read_header(file, snapshot, instance)
        content = {}
        for (name, dtype), (rows, checksum, _bytes) in zip(PARTS, header["parts"].tolist(), strict=True):
            content[name] = np.fromfile(file, dtype, rows)
            if len(content[name]) != rows or zlib.crc32(content[name].view(np.uint8).data) != checksum:
                raise SnapshotDamaged(f"its part {name} is damaged or cut short")
        if file.read(1):
            raise SnapshotDamaged("something stands behind its last part")
    return header, content


def place_of(snapshot, instance):
    """Where in the journal a snapshot stands, by its header. Raises as `read` does."""
    with open(snapshot.path, "rb") as file:
        header = _read_header(file, snapshot, instance)
    return Place(int(header["sequence"]), int(header["chain"]))


def _read_header(file, snapshot, instance):
    start = file.read(HEADER_BYTES)
    if len(start) < HEADER_BYTES:
        raise SnapshotDamaged(f"it has {len(start)} bytes, which is less than its header")
    header = np.frombuffer(start, HEADER, 1)[0]
    if header["magic"] != MAGIC:
        raise SnapshotDamaged("it does not begin as a snapshot")
    if header["version"] != VERSION:
        raise SnapshotDamaged(f"it has version {header['version']}, and this program reads version {VERSION}")
    if header["checksum"] != _checksum(header):
        raise SnapshotDamaged("its header is damaged")
    owner = uuid.UUID(bytes=header["instance"].tobytes())
    if owner != instance:
        raise SnapshotDamaged(f"it belongs to instance {owner}, not to {instance}")
    if header["sequence"] != snapshot.sequence:
        raise SnapshotDamaged(f"it holds sequence {header['sequence']}, which is not what its name says")
    if header["parts"]["row_bytes"].tolist() != [dtype.itemsize for _name, dtype in PARTS]:
        raise SnapshotDamaged("its parts have rows of other sizes")
    return header
