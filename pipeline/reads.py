"""What the core answers about its state. Reads change nothing; each is bounded by LIST_LIMIT_MAX rows or the catalog.

Cost: list_book and list_pending walk past `offset` (whole levels at a time; orders within one), list_depth walks every
level that it merges. On a large book deep offsets and wide merges are the slow ones: see PERFORMANCE.md.
"""
from numba import int64

from pipeline.ledger import find_balance
from pipeline.order_book import amount_of, find_order, list_cell, list_key
from pipeline.output import refuse, write_order
from pipeline.price_levels import side_index_of
from pipeline.state import ASSETS, MARKETS, NONE
from shm.int128 import from_int64, high_half, low_half, multiply_int64
from shm.kernel import called, inlined
from shm.records import ALL_ASSETS, LIST_LIMIT_MAX, Field, Result, Side

ASK = int(Side.ASK)
BID = int(Side.BID)
INVALID = int(Result.INVALID)
ORDER_NOT_FOUND = int(Result.ORDER_NOT_FOUND)
FIELD_USER = int(Field.USER)
FIELD_ASSET = int(Field.ASSET)
FIELD_MARKET = int(Field.MARKET)
FIELD_SIDE = int(Field.SIDE)
FIELD_LIMIT = int(Field.LIMIT)
FIELD_PRICE = int(Field.PRICE)


@inlined
def write_balance(state, out, row_index, user_id, asset_id):
    row = out.balances[row_index]
    row.asset_id = asset_id
    found = find_balance(state, user_id, asset_id)
    if found == NONE:
        row.available_low = 0
        row.available_high = 0
        row.frozen_low = 0
        row.frozen_high = 0
    else:
        balance = state.balances[found]
        row.available_low = balance.available_low
        row.available_high = balance.available_high
        row.frozen_low = balance.frozen_low
        row.frozen_high = balance.frozen_high


@called
def query_balance(state, out, command):
    if command.user_id == 0:
        return refuse(out, INVALID, FIELD_USER, 0)
    if command.asset_id == ALL_ASSETS:
        for asset_id in range(state.counters[ASSETS]):
            write_balance(state, out, asset_id, command.user_id, asset_id)
        out.header[0].rows = state.counters[ASSETS]
        return True
    count = int64(command.label_bytes) // 2
    if count > 16:
        return refuse(out, INVALID, FIELD_ASSET, 16)
    for index in range(count):
        asset_id = int64(command.label[2 * index]) | int64(command.label[2 * index + 1]) << 8
        if asset_id >= state.counters[ASSETS]:
            return refuse(out, INVALID, FIELD_ASSET, state.counters[ASSETS])
        write_balance(state, out, index, command.user_id, asset_id)
    out.header[0].rows = count
    return True


@called
def list_assets(state, out):
    for index in range(state.counters[ASSETS]):
        asset = state.assets[index]
        row = out.assets[index]
        row.prec_save = asset.prec_save
        row.prec_show = asset.prec_show
        row.name_bytes = asset.name_bytes
        for byte in range(15):
            row.name[byte] = asset.name[byte]
    out.header[0].rows = state.counters[ASSETS]


@called
def summarize_assets(state, out):
    for index in range(state.counters[ASSETS]):
        asset = state.assets[index]
        row = out.asset_summaries[index]
        row.available_low = asset.available_low
        row.available_high = asset.available_high
        row.frozen_low = asset.frozen_low
        row.frozen_high = asset.frozen_high
        row.available_count = asset.available_count
        row.frozen_count = asset.frozen_count
    out.header[0].rows = state.counters[ASSETS]


@called
def list_markets(state, out):
    for index in range(state.counters[MARKETS]):
        market = state.markets[index]
        row = out.markets[index]
        row.min_amount = market.min_amount
        row.stock_asset_id = market.stock_asset_id
        row.money_asset_id = market.money_asset_id
        row.stock_prec = market.stock_prec
        row.money_prec = market.money_prec
        row.fee_prec = market.fee_prec
        row.min_amount_decimals = market.min_amount_decimals
        row.name_bytes = market.name_bytes
        for byte in range(30):
            row.name[byte] = market.name[byte]
    out.header[0].rows = state.counters[MARKETS]


@called
def summarize_markets(state, out):
    for index in range(state.counters[MARKETS]):
        asks = state.sides[side_index_of(index, ASK)]
        bids = state.sides[side_index_of(index, BID)]
        row = out.market_summaries[index]
        row.ask_amount_low = asks.amount_low
        row.ask_amount_high = asks.amount_high
        row.bid_amount_low = bids.amount_low
        row.bid_amount_high = bids.amount_high
        row.ask_count = asks.count
        row.bid_count = bids.count
    out.header[0].rows = state.counters[MARKETS]


@called
def list_book(state, out, command):
    """order.book: `limit` orders of a side in matching priority, after `offset`. `total`: all of that side."""
    if command.market_id >= state.counters[MARKETS]:
        return refuse(out, INVALID, FIELD_MARKET, 0)
    if command.side != ASK and command.side != BID:
        return refuse(out, INVALID, FIELD_SIDE, 0)
    if command.limit > LIST_LIMIT_MAX:
        return refuse(out, INVALID, FIELD_LIMIT, LIST_LIMIT_MAX)
    side_index = side_index_of(command.market_id, command.side)
    total = state.sides[side_index].count
    out.header[0].total = total
    skip = command.offset
    if skip < 0 or skip >= total:
        return True
    rows = 0
    leaf = state.sides[side_index].first_leaf
    while leaf != NONE and rows < command.limit:
        for place in range(state.nodes[leaf].count):
            level = state.levels[state.node_children[leaf, place]]
            if skip >= level.count:
                skip -= level.count
                continue
            slot = int64(level.head)
            while slot != NONE and rows < command.limit:
                if skip > 0:
                    skip -= 1
                else:
                    write_order(state, out, rows, slot)
                    rows += 1
                slot = int64(state.orders[slot].next)
            if rows >= command.limit:
                break
        leaf = state.nodes[leaf].next
    out.header[0].rows = rows
    return True


@called
def list_depth(state, out, command):
    """order.depth: `limit` levels a side, asks then bids, merged to multiples of the interval in `price` (0: not).

    An ask's price is rounded up to a multiple, a bid's down (to zero, for a bid below one interval).
    """
    if command.market_id >= state.counters[MARKETS]:
        return refuse(out, INVALID, FIELD_MARKET, 0)
    if command.limit > LIST_LIMIT_MAX:
        return refuse(out, INVALID, FIELD_LIMIT, LIST_LIMIT_MAX)
    if command.price < 0:
        return refuse(out, INVALID, FIELD_PRICE, 0)
    asks = depth_of_side(state, out, command, ASK, 0)
    bids = depth_of_side(state, out, command, BID, asks)
    out.header[0].rows = asks
    out.header[0].total = bids
    return True


@called
def depth_of_side(state, out, command, side, first_row):
    interval = command.price
    rows = 0
    leaf = state.sides[side_index_of(command.market_id, side)].first_leaf
    last_multiple = int64(-1)
    while leaf != NONE:
        for place in range(state.nodes[leaf].count):
            level = state.levels[state.node_children[leaf, place]]
            multiple = level.price
            if interval > 0:
                multiple = level.price // interval
                if side == ASK and level.price % interval != 0:
                    multiple += 1
            if rows == 0 or multiple != last_multiple:
                if rows >= command.limit:
                    return rows
                row = out.depth[first_row + rows]
                price = from_int64(multiple)
                if interval > 0:
                    price = multiply_int64(multiple, interval)
                row.price_low = low_half(price)
                row.price_high = high_half(price)
                row.amount_low = level.amount_low
                row.amount_high = level.amount_high
                rows += 1
                last_multiple = multiple
            else:
                row = out.depth[first_row + rows - 1]
                amount = amount_of(row) + amount_of(level)
                row.amount_low = low_half(amount)
                row.amount_high = high_half(amount)
        leaf = state.nodes[leaf].next
    return rows


@called
def list_pending(state, out, command):
    """order.pending: a user's orders of a market, newest first. `total`: all of them."""
    if command.user_id == 0:
        return refuse(out, INVALID, FIELD_USER, 0)
    if command.market_id >= state.counters[MARKETS]:
        return refuse(out, INVALID, FIELD_MARKET, 0)
    if command.limit > LIST_LIMIT_MAX:
        return refuse(out, INVALID, FIELD_LIMIT, LIST_LIMIT_MAX)
    key = list_key(command.user_id, command.market_id)
    cell = state.user_lists[list_cell(state.user_lists, key)]
    if cell.key != key:
        return True
    out.header[0].total = cell.count
    skip = command.offset
    if skip < 0 or skip >= cell.count:
        return True
    rows = 0
    slot = int64(cell.head)
    while slot != NONE and rows < command.limit:
        if skip > 0:
            skip -= 1
        else:
            write_order(state, out, rows, slot)
            rows += 1
        slot = int64(state.orders[slot].older)
    out.header[0].rows = rows
    return True


@called
def find_pending(state, out, command):
    """order.pending_detail: one resting order of a market by its id, whoever owns it."""
    if command.market_id >= state.counters[MARKETS]:
        return refuse(out, INVALID, FIELD_MARKET, 0)
    slot = find_order(state, command.reference)
    if slot == NONE or state.orders[slot].market_id != command.market_id:
        return refuse(out, ORDER_NOT_FOUND, 0, 0)
    write_order(state, out, 0, slot)
    out.header[0].rows = 1
    return True
