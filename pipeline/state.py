"""The core's memory: preallocated arrays, sized by journaled limits, untouched pages cost nothing.

Everything an outcome depends on is in here. Positions in the arrays (slots, nodes, cells) may differ between two
replicas of one history; what `digest.py` covers may not.
"""
import mmap
from typing import NamedTuple

import numpy as np

from shm.records import ASSET_NAME_BYTES_MAX, LIMITS, MARKET_NAME_BYTES_MAX, ORDER, ORDER_FIELDS

NONE = np.uint32(2**32 - 1)   # no slot, node or cell: all are unsigned, numba tests signed indices at each access
NODE_FANOUT = 32
TREE_HEIGHT_MAX = 10
IDEMPOTENCY_FIRST_CELLS = 1 << 12
IDEMPOTENCY_CELLS_RESERVED = 1 << 33   # address space only: keys are kept for ever
HASH_FACTOR = 0x9E3779B97F4A7C15      # 2^64 / golden ratio: spreads neighbouring keys over a table
KEY_USED = 1 << 63                    # in a hash key, so that 0 means an empty cell
MAP_NORESERVE = 0x4000
MADV_HUGEPAGE = 14
HUGE_PAGE_BYTES = 1 << 21

RULES_VERSION = 1

# Words of `counters`.
SEQUENCE = 0                  # commands that changed the state
TIME_NS = 1                   # of the last one
ORDER_ID = 2                  # last one given
DEAL_ID = 3                   # last one given
ORDERS = 4                    # resting
LEVELS = 5
BALANCES = 6                  # rows in use
ASSETS = 7
MARKETS = 8
KEYS = 9                      # idempotency keys
ORDERS_MAX = 10
LEVELS_MAX = 11
BALANCES_MAX = 12
ASSETS_MAX = 13
MARKETS_MAX = 14
CATALOG_VERSION = 15
FREE_ORDER = 16               # head of the list of used and freed slots
NEW_ORDER = 17                # first slot never used
FREE_LEVEL = 18
NEW_LEVEL = 19
FREE_NODE = 20
NEW_NODE = 21
FREE_NODES = 22               # how many nodes are left
KEY_CELLS = 23                # size of the table that takes new keys; it starts at that cell
KEY_MIGRATED = 24             # cells of the table before that have moved; equal to its size: all
EVENT_POSITION = 25           # where the next event goes
OUTPUT_DIGEST = 26            # running, of all replies and events of writes
DEFECT = 27                   # a Defect: a broken invariant, the process must end
RULES = 28
EVENTS_FOLDED = 29            # events before it are in the output digest
COUNTERS = 32

# Defects.
BALANCE_NEGATIVE = 1
LEVEL_AMOUNT_NEGATIVE = 2
LEVEL_MISSING = 3
ORDER_INDEX_MISSING = 4
USER_LIST_MISSING = 5
POOL_EMPTY = 6

ASSET_STATE = np.dtype([
    ("available_low", "<u8"), ("available_high", "<i8"),   # over all users
    ("frozen_low", "<u8"), ("frozen_high", "<i8"),
    ("deposited_low", "<u8"), ("deposited_high", "<i8"),   # deposits - withdrawals, at most WHOLE_UNITS_MAX
    ("fees_low", "<u8"), ("fees_high", "<i8"),             # left the ledger as fees
    ("available_count", "<i8"), ("frozen_count", "<i8"),   # users with more than zero
    ("show_unit_low", "<u8"), ("show_unit_high", "<i8"),   # 10^(20 - prec_show)
    ("prec_save", "u1"), ("prec_show", "u1"), ("name_bytes", "u1"), ("name", "u1", (ASSET_NAME_BYTES_MAX,)),
    ("padding", "u1", (14,)),
])
MARKET_STATE = np.dtype([
    ("deal_unit_low", "<u8"), ("deal_unit_high", "<i8"),   # money of one tick x lot
    ("stock_unit_low", "<u8"), ("stock_unit_high", "<i8"),  # stock of one lot
    ("ask_fee_unit_low", "<u8"), ("ask_fee_unit_high", "<i8"),  # money of tick x lot x fee unit
    ("bid_fee_unit_low", "<u8"), ("bid_fee_unit_high", "<i8"),  # stock of lot x fee unit
    ("ticks_lots_max_low", "<u8"), ("ticks_lots_max_high", "<i8"),  # price x amount of WHOLE_UNITS_MAX of money
    ("fee_one", "<i8"),                                    # a fee rate of 1
    ("amount_max", "<i8"),                                 # lots of WHOLE_UNITS_MAX, at most int64
    ("min_lots", "<i8"),                                   # the smallest amount, rounded up
    ("min_amount", "<i8"), ("stock_asset_id", "<u2"), ("money_asset_id", "<u2"),
    ("stock_prec", "u1"), ("money_prec", "u1"), ("fee_prec", "u1"), ("min_amount_decimals", "u1"),
    ("name_bytes", "u1"), ("name", "u1", (MARKET_NAME_BYTES_MAX,)), ("padding", "u1", (1,)),
])
SIDE_STATE = np.dtype([       # index: market * 2 + side - 1
    ("amount_low", "<u8"), ("amount_high", "<i8"),         # sum of `left`, lots
    ("count", "<i8"),                                      # resting orders
    ("root", "<u4"), ("first_leaf", "<u4"),                # of its price levels; NONE while empty
])
BALANCE_STATE = np.dtype([    # an open-addressing cell; a row is never removed, so its place is stable
    ("available_low", "<u8"), ("available_high", "<i8"), ("frozen_low", "<u8"), ("frozen_high", "<i8"),
    ("key", "<u8"), ("asset_id", "<u4"), ("padding", "u1", (20,)),
])
ORDER_STATE = np.dtype([
    ("next", "<u4"), ("previous", "<u4"),                  # in its price level, oldest first
    ("newer", "<u4"), ("older", "<u4"),                    # in its user's list of this market
    ("level", "<u4"), ("stock_row", "<u4"), ("money_row", "<u4"), ("padding", "<u4"),
    *ORDER_FIELDS,                                         # as replies and events show it: copied word for word
])
ORDER_WORD = ORDER_STATE.fields["order_id"][1] // 8        # where that begins
LEVEL_STATE = np.dtype([
    ("price", "<i8"), ("amount_low", "<u8"), ("amount_high", "<i8"),
    ("head", "<u4"), ("tail", "<u4"), ("count", "<i4"), ("side_index", "<u4"),
])
NODE_STATE = np.dtype([("count", "<i4"), ("parent", "<u4"), ("next", "<u4"), ("previous", "<u4"), ("is_leaf", "<i4")])
ORDER_CELL = np.dtype([("tag", "<u4"), ("slot_after", "<u4")])           # the id's lower half; slot + 1, 0: empty
USER_CELL = np.dtype([("key", "<u8"), ("head", "<u4"), ("count", "<i4")])  # key 0: empty
KEY_CELL = np.dtype([
    ("business_id", "<u8"), ("user_id", "<u4"), ("asset_id", "<u2"), ("used", "u1"), ("label_bytes", "u1"),
    ("label", "<u8", (4,)),
])
assert (ASSET_STATE.itemsize, BALANCE_STATE.itemsize, ORDER_STATE.itemsize, KEY_CELL.itemsize) == (128, 64, 224, 48)
assert ORDER_STATE.itemsize == 8 * ORDER_WORD + ORDER.itemsize


class State(NamedTuple):
    counters: np.ndarray      # int64
    assets: np.ndarray        # ASSET_STATE
    markets: np.ndarray       # MARKET_STATE
    sides: np.ndarray         # SIDE_STATE
    balances: np.ndarray      # BALANCE_STATE, a hash table
    orders: np.ndarray        # ORDER_STATE, a pool
    order_words: np.ndarray   # uint64 (slot, word): the same memory
    levels: np.ndarray        # LEVEL_STATE, a pool
    nodes: np.ndarray         # NODE_STATE, a pool: the price levels' trees
    node_keys: np.ndarray     # int64 (node, NODE_FANOUT)
    node_children: np.ndarray  # uint32 (node, NODE_FANOUT): nodes, in a leaf levels
    order_index: np.ndarray   # ORDER_CELL, a hash table: order id -> slot
    user_lists: np.ndarray    # USER_CELL, a hash table: (user, market) -> newest order, count
    keys: np.ndarray          # KEY_CELL, growing hash tables: see idempotency.py


def _reserve(dtype, *shape, huge=True):
    """A zeroed array in pages that exist once they are touched."""
    dtype = np.dtype(dtype)
    size = max(1, int(np.prod(shape))) * dtype.itemsize
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    if huge and size >= HUGE_PAGE_BYTES:
        memory.madvise(MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype, int(np.prod(shape))).reshape(shape)


def _power_of_two(least):
    return 1 << max(4, int(least - 1).bit_length())


def allocate(limits):
    """An empty state with room for `limits` (a LIMITS record: the largest any journaled one will ask for)."""
    orders_max, levels_max = int(limits["orders_max"]), int(limits["levels_max"])
    assets_max, markets_max = int(limits["assets_max"]), int(limits["markets_max"])
    nodes = levels_max + levels_max // 4 + 2 * markets_max + 8 * TREE_HEIGHT_MAX
    counters = np.zeros(COUNTERS, np.int64)
    counters[FREE_ORDER] = counters[FREE_LEVEL] = counters[FREE_NODE] = NONE
    counters[FREE_NODES] = nodes
    counters[KEY_CELLS] = IDEMPOTENCY_FIRST_CELLS
    counters[KEY_MIGRATED] = IDEMPOTENCY_FIRST_CELLS // 2
    sides = np.zeros(2 * markets_max, SIDE_STATE)
    sides["root"] = sides["first_leaf"] = NONE
    orders = _reserve(ORDER_STATE, orders_max + 1)  # one more for an order that will not rest
    return State(
        counters=counters,
        assets=np.zeros(assets_max, ASSET_STATE),
        markets=np.zeros(markets_max, MARKET_STATE),
        sides=sides,
        balances=_reserve(BALANCE_STATE, _power_of_two(2 * int(limits["balances_max"]))),
        orders=orders,
        order_words=orders.view(np.uint64).reshape(len(orders), -1),
        levels=_reserve(LEVEL_STATE, levels_max + 1),
        nodes=_reserve(NODE_STATE, nodes),
        node_keys=_reserve(np.int64, nodes, NODE_FANOUT),
        node_children=_reserve(np.uint32, nodes, NODE_FANOUT),
        order_index=_reserve(ORDER_CELL, _power_of_two(orders_max + orders_max // 3)),
        user_lists=_reserve(USER_CELL, _power_of_two(orders_max + orders_max // 3)),
        keys=_reserve(KEY_CELL, IDEMPOTENCY_CELLS_RESERVED, huge=False),
    )


def populate(state):
    """Touch every page of the hash tables, and where the pools begin. Else the first orders of a fresh state would, two
    megabytes a fault: they waited 80 ms."""
    tables = (state.balances, state.order_index, state.user_lists)
    pools = (state.orders, state.levels, state.nodes, state.node_keys, state.node_children, state.keys)
    for array, size in [*((table, table.nbytes) for table in tables), *((pool, HUGE_PAGE_BYTES) for pool in pools)]:
        pages = array.reshape(-1).view(np.uint8)[:size:mmap.PAGESIZE]
        np.bitwise_or(pages, 0, out=pages)


def capacity(state):
    """The LIMITS that this state has room for."""
    limits = np.zeros((), LIMITS)
    limits["rules_version"] = RULES_VERSION
    limits["orders_max"] = len(state.orders) - 1
    limits["levels_max"] = len(state.levels) - 1
    limits["balances_max"] = len(state.balances) // 2
    limits["assets_max"] = len(state.assets)
    limits["markets_max"] = len(state.markets)
    return limits
