"""Whether an order may enter the market: all is looked at before anything is changed, a refusal leaves no trace."""
from numba import int64

from pipeline.ledger import available
from pipeline.output import refuse
from pipeline.price_levels import best_level, level_at, level_key, locate, side_index_of
from pipeline.state import FREE_NODES, LEVELS, LEVELS_MAX, MARKETS, NONE, ORDERS, ORDERS_MAX, TREE_HEIGHT_MAX
from shm.int128 import from_halves, from_int64, multiply_int64, product_overflows
from shm.kernel import called, inlined
from shm.records import INT64_MAX, LABEL_BYTES_MAX, WHOLE_UNITS_MAX, Field, Kind, Result, Side

INVALID = int(Result.INVALID)
FULL = int(Result.FULL)
BALANCE_TOO_LOW = int(Result.BALANCE_TOO_LOW)
AMOUNT_TOO_SMALL = int(Result.AMOUNT_TOO_SMALL)
NO_COUNTERPARTY = int(Result.NO_COUNTERPARTY)
FIELD_USER = int(Field.USER)
FIELD_MARKET = int(Field.MARKET)
FIELD_SIDE = int(Field.SIDE)
FIELD_AMOUNT = int(Field.AMOUNT)
FIELD_PRICE = int(Field.PRICE)
FIELD_TAKER_FEE = int(Field.TAKER_FEE)
FIELD_MAKER_FEE = int(Field.MAKER_FEE)
FIELD_LABEL = int(Field.LABEL)
FIELD_PRODUCT = int(Field.PRODUCT)
FIELD_ORDERS = int(Field.ORDERS)
FIELD_LEVELS = int(Field.LEVELS)
PUT_LIMIT = int(Kind.PUT_LIMIT)
ASK = int(Side.ASK)
BID = int(Side.BID)

@inlined
def product_too_large(market, price, lots):
    """Whether price x lots exceeds WHOLE_UNITS_MAX of money."""
    return multiply_int64(price, lots) > from_halves(market.ticks_lots_max_low, market.ticks_lots_max_high)


@inlined
def less_than_min_amount(market, price, money):
    """Whether `money` (of a market bid, in 10^-stock_prec) buys less than min_amount at `price`: exact, any size."""
    wanted = multiply_int64(price, market.min_amount)
    scale = int64(market.money_prec) + int64(market.min_amount_decimals) - int64(market.stock_prec)
    given = from_int64(money)
    ten = from_int64(10)
    for _ in range(scale):
        if product_overflows(given, ten):
            return False
        given = given * ten
    for _ in range(-scale):
        if product_overflows(wanted, ten):
            return True
        wanted = wanted * ten
    return given < wanted


@inlined
def is_well_formed(state, out, command):
    """Whether each field has a value that it may have; otherwise the reply says which has not."""
    if command.user_id == 0:
        return refuse(out, INVALID, FIELD_USER, 0)
    if command.market_id >= state.counters[MARKETS]:
        return refuse(out, INVALID, FIELD_MARKET, 0)
    if command.side != ASK and command.side != BID:
        return refuse(out, INVALID, FIELD_SIDE, 0)
    market = state.markets[command.market_id]
    if command.amount <= 0 or command.amount > market.amount_max:
        return refuse(out, INVALID, FIELD_AMOUNT, market.amount_max)
    if command.kind == PUT_LIMIT and command.price <= 0:
        return refuse(out, INVALID, FIELD_PRICE, INT64_MAX)
    if command.taker_fee < 0 or command.taker_fee >= market.fee_one:
        return refuse(out, INVALID, FIELD_TAKER_FEE, market.fee_one - 1)
    if command.kind == PUT_LIMIT and (command.maker_fee < 0 or command.maker_fee >= market.fee_one):
        return refuse(out, INVALID, FIELD_MAKER_FEE, market.fee_one - 1)
    if command.label_bytes > LABEL_BYTES_MAX:
        return refuse(out, INVALID, FIELD_LABEL, LABEL_BYTES_MAX)
    if command.kind == PUT_LIMIT and product_too_large(market, command.price, command.amount):
        return refuse(out, INVALID, FIELD_PRODUCT, WHOLE_UNITS_MAX)
    return True


@inlined
def is_admitted(state, out, command, pays_row, required, opposite_index):
    """Whether funds, counterparty, size and capacities allow the order, looked at in this order: engine.md 6.1, 7.1."""
    market, counters = state.markets[command.market_id], state.counters
    if pays_row == NONE or available(state.balances[pays_row]) < required:
        return refuse(out, BALANCE_TOO_LOW, 0, 0)
    too_small = command.amount < market.min_lots
    price = int64(0)
    if command.kind != PUT_LIMIT:
        best = best_level(state, opposite_index)
        if best == NONE:
            return refuse(out, NO_COUNTERPARTY, 0, 0)
        if command.side == BID:
            price = state.levels[best].price
            too_small = less_than_min_amount(market, price, command.amount)
    if too_small:
        return refuse(out, AMOUNT_TOO_SMALL, 0, price)
    if command.kind == PUT_LIMIT:
        if counters[ORDERS] >= counters[ORDERS_MAX]:
            return refuse(out, FULL, FIELD_ORDERS, counters[ORDERS_MAX])
        no_room = counters[LEVELS] >= counters[LEVELS_MAX] or counters[FREE_NODES] < 2 * TREE_HEIGHT_MAX
        if no_room and not has_level(state, command):
            return refuse(out, FULL, FIELD_LEVELS, counters[LEVELS_MAX])
    return True


@called
def has_level(state, command):
    """Whether others rest at the order's side and price already. Rare, so not inlined."""
    key = level_key(command.side, command.price)
    leaf, place = locate(state, side_index_of(command.market_id, command.side), key)
    return level_at(state, leaf, place, key) != NONE
