"""Digests: a running one of all that the core has said, and one of the whole state, equal for equal histories."""
from numba import int64, uint64

from pipeline.state import (
    ASSETS,
    ASSETS_MAX,
    BALANCES,
    BALANCES_MAX,
    CATALOG_VERSION,
    DEAL_ID,
    KEY_CELLS,
    KEY_MIGRATED,
    KEYS,
    LEVELS,
    LEVELS_MAX,
    MARKETS,
    MARKETS_MAX,
    NONE,
    ORDER_ID,
    ORDERS,
    ORDERS_MAX,
    OUTPUT_DIGEST,
    RULES,
    SEQUENCE,
    TIME_NS,
)
from shm.int128 import folded_product
from shm.kernel import called, inlined, kernel

LANES = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93)
DIGESTED_COUNTERS = (
    SEQUENCE, TIME_NS, ORDER_ID, DEAL_ID, ORDERS, LEVELS, BALANCES, ASSETS, MARKETS, KEYS, ORDERS_MAX, LEVELS_MAX,
    BALANCES_MAX, ASSETS_MAX, MARKETS_MAX, CATALOG_VERSION, OUTPUT_DIGEST, RULES)


@inlined
def fold_words(digest, words, first, count):
    """The digest after `count` more words (a multiple of 8) from `words[first]` on: four lanes, so that four
    multiplications run at a time, and `digest` last, so that calls overlap in the processor."""
    at, end = uint64(first), uint64(first) + uint64(count)  # unsigned: no look for negative indices
    lane_0, lane_1, lane_2, lane_3 = uint64(LANES[0]), uint64(LANES[1]), uint64(LANES[2]), uint64(LANES[3])
    while at < end:
        lane_0 = folded_product(lane_0 ^ words[at], words[at + uint64(1)] ^ uint64(LANES[1]))
        lane_1 = folded_product(lane_1 ^ words[at + uint64(2)], words[at + uint64(3)] ^ uint64(LANES[2]))
        lane_2 = folded_product(lane_2 ^ words[at + uint64(4)], words[at + uint64(5)] ^ uint64(LANES[3]))
        lane_3 = folded_product(lane_3 ^ words[at + uint64(6)], words[at + uint64(7)] ^ uint64(LANES[0]))
        at += uint64(8)
    upper = folded_product(lane_0 ^ uint64(LANES[3]), lane_1 ^ uint64(LANES[2]))
    lower = folded_product(lane_2 ^ uint64(LANES[1]), lane_3 ^ uint64(LANES[0]))
    return folded_product(upper ^ digest, lower)


@kernel
def state_digest(state):
    """A digest of all that outcomes depend on, equal for every replica of one history whatever its memory looks like.

    Cost: a walk through all balances, keys and orders; for stops, snapshots and comparisons.
    """
    counters = state.counters
    digest = uint64(0)
    for word in DIGESTED_COUNTERS:
        digest = folded_product(digest ^ uint64(counters[word]), uint64(LANES[0]))
    for index in range(counters[ASSETS]):
        asset = state.assets[index]
        digest = fold_money(digest, asset.available_low, asset.available_high)
        digest = fold_money(digest, asset.frozen_low, asset.frozen_high)
        digest = fold_money(digest, asset.deposited_low, asset.deposited_high)
        digest = fold_money(digest, asset.fees_low, asset.fees_high)
        digest = fold_money(digest, asset.prec_save, asset.prec_show)
    for index in range(counters[MARKETS]):
        market = state.markets[index]
        digest = fold_money(digest, market.min_amount, market.min_amount_decimals)
        digest = fold_money(digest, market.stock_asset_id, market.money_asset_id)
        digest = fold_money(digest, int64(market.stock_prec) << 8 | int64(market.money_prec), market.fee_prec)
    unordered = uint64(0)
    for index in range(len(state.balances)):
        balance = state.balances[index]
        if balance.key != 0:
            mixed = fold_money(balance.key, balance.available_low, balance.available_high)
            unordered += fold_money(mixed, balance.frozen_low, balance.frozen_high)
    size = counters[KEY_CELLS]
    for place in range(size):
        unordered += digest_of_key(state.keys[size + place])
    for place in range(counters[KEY_MIGRATED], size // 2):
        unordered += digest_of_key(state.keys[size // 2 + place])
    digest = folded_product(digest ^ unordered, uint64(LANES[1]))
    for side_index in range(2 * counters[MARKETS]):
        side = state.sides[side_index]
        digest = fold_money(digest, side.amount_low, side.amount_high)
        leaf = int64(side.first_leaf)
        while leaf != NONE:
            for place in range(state.nodes[leaf].count):
                level = state.levels[state.node_children[leaf, place]]
                digest = fold_money(digest, level.amount_low, level.amount_high)
                slot = int64(level.head)
                while slot != NONE:
                    digest = fold_order(digest, state.orders[slot])
                    slot = int64(state.orders[slot].next)
            leaf = int64(state.nodes[leaf].next)
    return digest


@inlined
def fold_money(digest, low, high):
    return folded_product(digest ^ uint64(low), uint64(LANES[2]) ^ (uint64(high) * uint64(LANES[3])))


@called
def fold_order(digest, order):
    digest = fold_money(digest, order.order_id, order.price)
    digest = fold_money(digest, order.amount, order.left_low)
    digest = fold_money(digest, order.taker_fee, order.maker_fee)
    digest = fold_money(digest, order.created_at_ns, order.updated_at_ns)
    digest = fold_money(digest, order.deal_stock, order.order_flags)
    digest = fold_money(digest, order.deal_money_low, order.deal_money_high)
    digest = fold_money(digest, order.deal_fee_low, order.deal_fee_high)
    digest = fold_money(digest, order.user_id, int64(order.market_id) << 8 | int64(order.side))
    for index in range(order.source_bytes):
        digest = fold_money(digest, order.source[index], index)
    return digest


@called
def digest_of_key(cell):
    if cell.used == 0:
        return uint64(0)
    digest = fold_money(cell.business_id, cell.user_id, int64(cell.asset_id) << 8 | int64(cell.label_bytes))
    for word in range(4):
        digest = fold_money(digest, cell.label[word], word)
    return digest
