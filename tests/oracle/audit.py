"""A walk through the core's whole memory: every sum recomputed, every link followed both ways, nothing lost.

It uses the record layouts and 128-bit integers, and none of the core's functions.
"""
from enum import IntEnum

import numpy as np
from numba import int64, njit, uint64

from pipeline.state import (
    ASSETS,
    BALANCES,
    DEFECT,
    FREE_LEVEL,
    FREE_NODE,
    FREE_NODES,
    FREE_ORDER,
    LEVELS,
    MARKETS,
    NEW_LEVEL,
    NEW_NODE,
    NEW_ORDER,
    NODE_FANOUT,
    NONE,
    ORDERS,
    TREE_HEIGHT_MAX,
)
from shm.int128 import from_halves, from_int64, high_half, low_half, multiply_int64
from shm.records import INT64_MAX, WHOLE_UNITS_MAX, OrderType, Side

ASK, BID, LIMIT = int(Side.ASK), int(Side.BID), int(OrderType.LIMIT)


class Finding(IntEnum):
    """What is wrong; the second number that `audit` returns says where."""
    NOTHING = 0
    DEFECT_COUNTER = 1
    BALANCE_NEGATIVE = 2           # row
    BALANCE_ASSET = 3              # row
    BALANCE_COUNT = 4              # rows
    ASSET_TOTAL = 5                # asset
    ASSET_HOLDERS = 6
    MONEY_NOT_CONSERVED = 7        # asset: deposited - fees is not available + frozen
    ASSET_BEYOND_BOUND = 8
    FROZEN_NOT_NEEDED = 9          # row: its frozen money is not what its owner's orders need
    KEYS_NOT_ASCENDING = 10        # side from here on
    LEAF_LINK = 11
    LEVEL_RECORD = 12
    LEVEL_ORDERS = 13
    ORDER_RECORD = 14
    ORDER_LINK = 15
    ORDER_NOT_INDEXED = 16         # cell
    SIDE_TOTAL = 17
    BOOK_CROSSED = 18              # market
    ORDER_COUNT = 19
    LEVEL_COUNT = 20
    INDEX_COUNT = 21
    USER_LIST = 22                 # cell
    USER_LIST_COUNT = 23
    NODE_RECORD = 24               # node
    NODE_BOUNDS = 25
    NODE_DEPTH = 26
    NODE_COUNT = 27
    POOL_OF_ORDERS = 28
    POOL_OF_LEVELS = 29
    CHAIN_MISSES_LEVEL = 30        # side: the leaves' chain and the tree do not hold the same


@njit(cache=True, _nrt=False, forceinline=True)
def check_books(state, needs, seen):
    """Sides, levels and orders; adds to `needs[row]` what each resting order needs, and marks its slot as `seen`."""
    orders = levels = 0
    for side_index in range(2 * state.counters[MARKETS]):
        market_id, side = side_index // 2, side_index % 2 + 1
        market = state.markets[market_id]
        deal_unit = from_halves(market.deal_unit_low, market.deal_unit_high)
        stock_unit = from_halves(market.stock_unit_low, market.stock_unit_high)
        side_amount, side_count = from_int64(0), 0
        leaf, before = int64(state.sides[side_index].first_leaf), int64(NONE)
        last_key, is_first = int64(0), True
        while leaf != NONE:
            info = state.nodes[leaf]
            if info.is_leaf != 1 or info.previous != before or info.count < 1 or info.count > NODE_FANOUT:
                return Finding.LEAF_LINK, side_index, orders, levels
            for place in range(info.count):
                key, level = state.node_keys[leaf, place], int64(state.node_children[leaf, place])
                if not is_first and key <= last_key:
                    return Finding.KEYS_NOT_ASCENDING, side_index, orders, levels
                last_key, is_first = key, False
                record = state.levels[level]
                if record.side_index != side_index or record.price != (key if side == ASK else -key):
                    return Finding.LEVEL_RECORD, side_index, orders, levels
                amount, count, behind, last_id = from_int64(0), 0, int64(NONE), uint64(0)
                slot = int64(record.head)
                while slot != NONE:
                    order = state.orders[slot]
                    left = int64(order.left_low)
                    if (order.market_id != market_id or order.side != side or order.order_type != LIMIT
                            or order.price != record.price or order.left_high != 0 or left <= 0
                            or left > order.amount or order.order_id <= last_id):
                        return Finding.ORDER_RECORD, side_index, orders, levels
                    if order.level != level or order.previous != behind:
                        return Finding.ORDER_LINK, side_index, orders, levels
                    if seen[slot]:
                        return Finding.ORDER_LINK, side_index, orders, levels
                    seen[slot] = True
                    row = int64(order.stock_row) if side == ASK else int64(order.money_row)
                    asset_id = market.stock_asset_id if side == ASK else market.money_asset_id
                    owner = uint64(1) << uint64(63) | uint64(order.user_id) << uint64(16) | uint64(asset_id)
                    if state.balances[row].key != owner:
                        return Finding.ORDER_RECORD, side_index, orders, levels
                    need = from_int64(left) * stock_unit
                    if side == BID:
                        need = multiply_int64(order.price, left) * deal_unit
                    total = from_halves(needs[row, 0], int64(needs[row, 1])) + need
                    needs[row, 0] = low_half(total)
                    needs[row, 1] = uint64(high_half(total))
                    amount += from_int64(left)
                    count += 1
                    behind, last_id = slot, order.order_id
                    slot = int64(order.next)
                if count == 0 or count != record.count or record.tail != behind:
                    return Finding.LEVEL_ORDERS, side_index, orders, levels
                if amount != from_halves(record.amount_low, record.amount_high):
                    return Finding.LEVEL_ORDERS, side_index, orders, levels
                side_amount += amount
                side_count += count
                levels += 1
            before, leaf = leaf, int64(info.next)
        record = state.sides[side_index]
        if side_count != record.count or side_amount != from_halves(record.amount_low, record.amount_high):
            return Finding.SIDE_TOTAL, side_index, orders, levels
        orders += side_count
        asks, bids = state.sides[2 * market_id].first_leaf, state.sides[2 * market_id + 1].first_leaf
        if asks != NONE and bids != NONE and state.node_keys[asks, 0] <= -state.node_keys[bids, 0]:
            return Finding.BOOK_CROSSED, market_id, orders, levels
    if orders != state.counters[ORDERS]:
        return Finding.ORDER_COUNT, orders, orders, levels
    if levels != state.counters[LEVELS]:
        return Finding.LEVEL_COUNT, levels, orders, levels
    indexed = 0
    for place in range(len(state.order_index)):
        cell = state.order_index[place]
        if cell.slot_after != 0:
            indexed += 1
            slot = int64(cell.slot_after) - 1
            if not seen[slot] or uint64(cell.tag) != state.orders[slot].order_id & uint64(0xFFFFFFFF):
                return Finding.ORDER_NOT_INDEXED, place, orders, levels
    if indexed != orders:
        return Finding.INDEX_COUNT, indexed, orders, levels
    return Finding.NOTHING, 0, orders, levels


@njit(cache=True, _nrt=False, forceinline=True)
def check_user_lists(state, orders):
    listed = 0
    for cell in range(len(state.user_lists)):
        user_list = state.user_lists[cell]
        if user_list.key == 0:
            continue
        slot, newer, count, last_id = int64(user_list.head), int64(NONE), 0, ~uint64(0)
        while slot != NONE:
            order = state.orders[slot]
            key = uint64(1) << uint64(63) | uint64(order.user_id) << uint64(16) | uint64(order.market_id)
            if key != user_list.key or order.newer != newer or order.order_id >= last_id:
                return Finding.USER_LIST, cell
            count += 1
            newer, last_id = slot, order.order_id
            slot = int64(order.older)
        if count == 0 or count != user_list.count:
            return Finding.USER_LIST, cell
        listed += count
    if listed != orders:
        return Finding.USER_LIST_COUNT, listed
    return Finding.NOTHING, 0


@njit(cache=True)
def check_trees(state):
    """Every side's tree from its root: parents, bounds, one depth, and the leaves in the order of their chain."""
    used = 0
    path = np.zeros(TREE_HEIGHT_MAX + 2, np.int64)
    places = np.zeros(TREE_HEIGHT_MAX + 2, np.int64)
    for side_index in range(2 * state.counters[MARKETS]):
        root = int64(state.sides[side_index].root)
        chained = int64(state.sides[side_index].first_leaf)
        if root == NONE:
            if chained != NONE:
                return Finding.CHAIN_MISSES_LEVEL, side_index
            continue
        if state.nodes[root].parent != NONE:
            return Finding.NODE_RECORD, root
        leaf_depth = -1
        depth = 0
        path[0], places[0] = root, 0
        used += 1
        while depth >= 0:
            node = path[depth]
            info = state.nodes[node]
            if info.count < 1 or info.count > NODE_FANOUT:
                return Finding.NODE_RECORD, node
            for place in range(info.count, NODE_FANOUT):
                if state.node_keys[node, place] != INT64_MAX:
                    return Finding.NODE_RECORD, node
            if info.is_leaf == 1:
                if leaf_depth < 0:
                    leaf_depth = depth
                if depth != leaf_depth:
                    return Finding.NODE_DEPTH, node
                if node != chained:
                    return Finding.CHAIN_MISSES_LEVEL, side_index
                chained = int64(info.next)
                for above in range(depth):  # what the nodes above say about all keys below them
                    holder, place = path[above], places[above] - 1
                    for key_place in range(info.count):
                        key = state.node_keys[node, key_place]
                        if place > 0 and key < state.node_keys[holder, place]:
                            return Finding.NODE_BOUNDS, node
                        if place + 1 < state.nodes[holder].count and key >= state.node_keys[holder, place + 1]:
                            return Finding.NODE_BOUNDS, node
                depth -= 1
            elif places[depth] < info.count:
                child = int64(state.node_children[node, places[depth]])
                if state.nodes[child].parent != node or depth + 1 > TREE_HEIGHT_MAX:
                    return Finding.NODE_RECORD, child
                places[depth] += 1
                depth += 1
                path[depth], places[depth] = child, 0
                used += 1
            else:
                depth -= 1
        if chained != NONE:
            return Finding.CHAIN_MISSES_LEVEL, side_index
    free = 0
    node = state.counters[FREE_NODE]
    while node != NONE and free <= len(state.nodes):
        free += 1
        node = int64(state.nodes[node].next)
    if used + free != state.counters[NEW_NODE]:
        return Finding.NODE_COUNT, used
    if state.counters[FREE_NODES] != len(state.nodes) - used:
        return Finding.NODE_COUNT, used
    return Finding.NOTHING, 0


@njit(cache=True, _nrt=False, forceinline=True)
def check_pools(state, orders, levels):
    free = 0
    slot = state.counters[FREE_ORDER]
    while slot != NONE and free <= len(state.orders):
        free += 1
        slot = int64(state.orders[slot].next)
    if orders + free != state.counters[NEW_ORDER]:
        return Finding.POOL_OF_ORDERS, free
    free = 0
    level = state.counters[FREE_LEVEL]
    while level != NONE and free <= len(state.levels):
        free += 1
        level = int64(state.levels[level].head)
    if levels + free != state.counters[NEW_LEVEL]:
        return Finding.POOL_OF_LEVELS, free
    return Finding.NOTHING, 0


@njit(cache=True, _nrt=False, forceinline=True)
def check_money(state, needs):
    zero = from_int64(0)
    most = from_int64(WHOLE_UNITS_MAX) * from_int64(10**10) * from_int64(10**10)
    rows = 0
    for row in range(len(state.balances)):
        balance = state.balances[row]
        if balance.key == 0:
            continue
        rows += 1
        available = from_halves(balance.available_low, balance.available_high)
        frozen = from_halves(balance.frozen_low, balance.frozen_high)
        if available < zero or frozen < zero:
            return Finding.BALANCE_NEGATIVE, row
        if int64(balance.key & uint64(0xFFFF)) != balance.asset_id or balance.asset_id >= state.counters[ASSETS]:
            return Finding.BALANCE_ASSET, row
        if frozen != from_halves(needs[row, 0], int64(needs[row, 1])):
            return Finding.FROZEN_NOT_NEEDED, row
    if rows != state.counters[BALANCES]:
        return Finding.BALANCE_COUNT, rows
    for asset_id in range(state.counters[ASSETS]):
        available, frozen, with_available, with_frozen = zero, zero, 0, 0
        for row in range(len(state.balances)):
            balance = state.balances[row]
            if balance.key != 0 and balance.asset_id == asset_id:
                available += from_halves(balance.available_low, balance.available_high)
                frozen += from_halves(balance.frozen_low, balance.frozen_high)
                with_available += balance.available_low != 0 or balance.available_high != 0
                with_frozen += balance.frozen_low != 0 or balance.frozen_high != 0
        asset = state.assets[asset_id]
        if (available != from_halves(asset.available_low, asset.available_high)
                or frozen != from_halves(asset.frozen_low, asset.frozen_high)):
            return Finding.ASSET_TOTAL, asset_id
        if with_available != asset.available_count or with_frozen != asset.frozen_count:
            return Finding.ASSET_HOLDERS, asset_id
        deposited = from_halves(asset.deposited_low, asset.deposited_high)
        if deposited - from_halves(asset.fees_low, asset.fees_high) != available + frozen:
            return Finding.MONEY_NOT_CONSERVED, asset_id
        if available + frozen > most or available + frozen < zero:
            return Finding.ASSET_BEYOND_BOUND, asset_id
    return Finding.NOTHING, 0


@njit(cache=True)
def audit(state):
    """(finding, where): the first thing that is wrong with a state, or (NOTHING, 0).

    Cost: all cells of all tables: for small states.
    """
    if state.counters[DEFECT] != 0:
        return int64(Finding.DEFECT_COUNTER), int64(state.counters[DEFECT])
    needs = np.zeros((len(state.balances), 2), np.uint64)
    seen = np.zeros(len(state.orders), np.bool_)
    finding, where, orders, levels = check_books(state, needs, seen)
    if finding == Finding.NOTHING:
        finding, where = check_user_lists(state, orders)
    if finding == Finding.NOTHING:
        finding, where = check_trees(state)
    if finding == Finding.NOTHING:
        finding, where = check_pools(state, orders, levels)
    if finding == Finding.NOTHING:
        finding, where = check_money(state, needs)
    return int64(finding), int64(where)


def assert_sound(state):
    finding, where = audit(state)
    assert finding == Finding.NOTHING, f"{Finding(finding).name} at {where}"
