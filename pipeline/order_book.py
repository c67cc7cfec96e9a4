"""Resting orders: a pool of slots, first in first out within a price level, found by id, listed by (user, market).

Only limit orders rest. A slot is taken for every arriving order; one that does not rest gives it back at once.
"""
from numba import int64, uint32, uint64

from pipeline.prefetch import fetch
from pipeline.price_levels import add_level, level_at, level_key, locate, remove_level, side_index_of
from pipeline.state import (
    DEFECT,
    FREE_ORDER,
    HASH_FACTOR,
    KEY_USED,
    LEVEL_AMOUNT_NEGATIVE,
    NEW_ORDER,
    NONE,
    ORDER_INDEX_MISSING,
    ORDERS,
    POOL_EMPTY,
    USER_LIST_MISSING,
)
from shm.int128 import folded_product, from_halves, from_int64, high_half, low_half
from shm.kernel import inlined

ID_NEIGHBOURS = 8             # a cache line of cells


@inlined
def take_slot(state):
    counters = state.counters
    slot = counters[FREE_ORDER]
    if slot != NONE:
        counters[FREE_ORDER] = state.orders[slot].next
        return uint32(slot)
    slot = counters[NEW_ORDER]
    if slot >= len(state.orders):
        counters[DEFECT] = POOL_EMPTY
        return uint32(0)
    counters[NEW_ORDER] = slot + 1
    return uint32(slot)


@inlined
def give_slot(state, slot):
    state.orders[slot].next = state.counters[FREE_ORDER]
    state.counters[FREE_ORDER] = slot


@inlined
def left_of(order):
    """Lots that a limit order or a market ask has left: its upper half is zero."""
    return int64(order.left_low)


@inlined
def amount_of(record):
    """The 128-bit sum of a level or a side, in lots."""
    return from_halves(record.amount_low, record.amount_high)


@inlined
def add_amount(record, change):
    total = amount_of(record) + change
    record.amount_low = low_half(total)
    record.amount_high = high_half(total)
    return total


# The index from order id to slot: linear probing, at most three quarters full, deletion by shifting back. A cell has
# the lower half of the id; the order itself has the whole.

@inlined
def id_home(index, order_id):
    """ID_NEIGHBOURS ids in a row are neighbours, so new orders find their cells in the cache; the groups are spread."""
    low = uint64(order_id) & uint64(0xFFFFFFFF)
    spread = low // uint64(ID_NEIGHBOURS) * uint64(HASH_FACTOR) >> uint64(20)
    return (spread * uint64(ID_NEIGHBOURS) | low % uint64(ID_NEIGHBOURS)) & uint64(len(index) - 1)


@inlined
def find_cell(state, order_id):
    """The cell of a resting order's id, or NONE."""
    index = state.order_index
    mask = uint64(len(index) - 1)
    cell = id_home(index, order_id)
    tag = uint64(order_id) & uint64(0xFFFFFFFF)
    while index[cell].slot_after != 0:
        if index[cell].tag == tag and state.orders[index[cell].slot_after - uint32(1)].order_id == order_id:
            return cell
        cell = (cell + uint64(1)) & mask
    return NONE


@inlined
def find_order(state, order_id):
    """The slot of a resting order, or NONE."""
    cell = find_cell(state, order_id)
    return NONE if cell == NONE else state.order_index[cell].slot_after - uint32(1)


@inlined
def index_order(state, order_id, slot):
    index = state.order_index
    mask = uint64(len(index) - 1)
    cell = id_home(index, order_id)
    while index[cell].slot_after != 0:
        cell = (cell + uint64(1)) & mask
    index[cell].tag = uint64(order_id) & uint64(0xFFFFFFFF)
    index[cell].slot_after = slot + uint32(1)
    fetch(index, id_home(index, uint64(order_id) + uint64(ID_NEIGHBOURS)))


@inlined
def forget_order(state, order_id):
    index = state.order_index
    mask = uint64(len(index) - 1)
    hole = find_cell(state, order_id)
    if hole == NONE:
        state.counters[DEFECT] = ORDER_INDEX_MISSING
        return
    cell = (hole + uint64(1)) & mask
    while index[cell].slot_after != 0:
        home = id_home(index, index[cell].tag)
        if ((cell - home) & mask) >= ((cell - hole) & mask):
            index[hole].tag = index[cell].tag
            index[hole].slot_after = index[cell].slot_after
            hole = cell
        cell = (cell + uint64(1)) & mask
    index[hole].slot_after = 0


# The orders of each (user, market), newest first.

@inlined
def list_key(user_id, market_id):
    return uint64(KEY_USED) | (uint64(user_id) << uint64(16)) | uint64(market_id)


@inlined
def list_home(user_lists, key):
    """A user's markets are neighbours."""
    spread = folded_product(key >> uint64(16), uint64(HASH_FACTOR)) + (key & uint64(0xFFFF))
    return spread & uint64(len(user_lists) - 1)


@inlined
def list_cell(user_lists, key):
    mask = uint64(len(user_lists) - 1)
    cell = list_home(user_lists, key)
    while user_lists[cell].key != key and user_lists[cell].key != 0:
        cell = (cell + uint64(1)) & mask
    return cell


@inlined
def add_to_list(state, slot):
    order = state.orders[slot]
    key = list_key(order.user_id, order.market_id)
    cell = state.user_lists[list_cell(state.user_lists, key)]
    if cell.key == 0:
        cell.key = key
        cell.head = NONE
        cell.count = 0
    order.newer = NONE
    order.older = cell.head
    if cell.head != NONE:
        state.orders[cell.head].newer = slot
    cell.head = slot
    cell.count += 1


@inlined
def remove_from_list(state, slot):
    order = state.orders[slot]
    user_lists = state.user_lists
    hole = list_cell(user_lists, list_key(order.user_id, order.market_id))
    if user_lists[hole].key == 0:
        state.counters[DEFECT] = USER_LIST_MISSING
        return
    if order.newer != NONE:
        state.orders[order.newer].older = order.older
    else:
        user_lists[hole].head = order.older
    if order.older != NONE:
        state.orders[order.older].newer = order.newer
    user_lists[hole].count -= 1
    if user_lists[hole].count > 0:
        return
    mask = uint64(len(user_lists) - 1)
    cell = (hole + uint64(1)) & mask
    while user_lists[cell].key != 0:
        home = list_home(user_lists, user_lists[cell].key)
        if ((cell - home) & mask) >= ((cell - hole) & mask):
            user_lists[hole].key = user_lists[cell].key
            user_lists[hole].head = user_lists[cell].head
            user_lists[hole].count = user_lists[cell].count
            hole = cell
        cell = (cell + uint64(1)) & mask
    user_lists[hole].key = 0


# Onto the book and off it.

@inlined
def rest(state, slot):
    """Put an order at the end of its price level."""
    order = state.orders[slot]
    side_index = side_index_of(order.market_id, order.side)
    key = level_key(order.side, order.price)
    leaf, place = locate(state, side_index, key)
    level = level_at(state, leaf, place, key)
    if level == NONE:
        level = add_level(state, side_index, leaf, place, key, order.price)
    record = state.levels[level]
    order.level = level
    order.next = NONE
    order.previous = record.tail
    if record.tail != NONE:
        state.orders[record.tail].next = slot
    else:
        record.head = slot
    record.tail = slot
    record.count += 1
    left = from_int64(left_of(order))
    add_amount(record, left)
    side = state.sides[side_index]
    add_amount(side, left)
    side.count += 1
    state.counters[ORDERS] += 1
    index_order(state, order.order_id, slot)
    add_to_list(state, slot)


@inlined
def reduce_resting(state, slot, amount):
    """Take `amount` lots off a resting order that a deal has filled by as much."""
    order = state.orders[slot]
    order.left_low = uint64(left_of(order) - amount)
    change = -from_int64(amount)
    if add_amount(state.levels[order.level], change) < from_int64(0):
        state.counters[DEFECT] = LEVEL_AMOUNT_NEGATIVE
    add_amount(state.sides[side_index_of(order.market_id, order.side)], change)


@inlined
def leave(state, slot):
    """Take an order off the book, whatever is left of it, and free its slot."""
    order = state.orders[slot]
    level = order.level
    record = state.levels[level]
    if order.previous != NONE:
        state.orders[order.previous].next = order.next
    else:
        record.head = order.next
    if order.next != NONE:
        state.orders[order.next].previous = order.previous
    else:
        record.tail = order.previous
    record.count -= 1
    change = -from_int64(left_of(order))
    amount = add_amount(record, change)
    side = state.sides[side_index_of(order.market_id, order.side)]
    add_amount(side, change)
    side.count -= 1
    state.counters[ORDERS] -= 1
    if record.count == 0:
        if amount != from_int64(0):
            state.counters[DEFECT] = LEVEL_AMOUNT_NEGATIVE
        remove_level(state, level, level_key(order.side, order.price))
    forget_order(state, order.order_id)
    remove_from_list(state, slot)
    give_slot(state, slot)
