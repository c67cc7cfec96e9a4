"""Assets, markets and limits as journaled commands: replay never reads the configuration.

A definition that stands already is INVALID: precisions never change. Rules: engine.md 1, quirk Q11.
"""
from numba import int64

from pipeline.money import money_max
from pipeline.output import refuse
from pipeline.state import (
    ASSETS,
    ASSETS_MAX,
    BALANCES,
    BALANCES_MAX,
    CATALOG_VERSION,
    LEVELS,
    LEVELS_MAX,
    MARKETS,
    MARKETS_MAX,
    ORDERS,
    ORDERS_MAX,
    RULES,
    RULES_VERSION,
)
from shm.int128 import divide, from_int64, high_half, low_half
from shm.kernel import called
from shm.records import (
    ASSET_NAME_BYTES_MAX,
    INT64_MAX,
    MARKET_NAME_BYTES_MAX,
    MONEY_DECIMALS,
    WHOLE_UNITS_MAX,
    Field,
    Result,
)

INVALID = int(Result.INVALID)
FULL = int(Result.FULL)
FIELD_DEFINITION = int(Field.DEFINITION)
FIELD_ASSETS = int(Field.ASSETS)
FIELD_MARKETS = int(Field.MARKETS)
FEE_PREC_MAX = 9
PRECISION_MAX = 18


@called
def power_of_ten(exponent):
    power = from_int64(1)
    for _ in range(exponent):
        power = power * from_int64(10)
    return power


@called
def set_limits(state, out, limits):
    """New capacities: not below what is in use, not above what the process has room for."""
    counters = state.counters
    wrong = limits.rules_version != RULES_VERSION
    wrong |= limits.orders_max < counters[ORDERS] or limits.orders_max > len(state.orders) - 1
    wrong |= limits.levels_max < counters[LEVELS] or limits.levels_max > len(state.levels) - 1
    wrong |= limits.balances_max < counters[BALANCES] or limits.balances_max > len(state.balances) // 2
    wrong |= limits.assets_max < counters[ASSETS] or limits.assets_max > len(state.assets)
    wrong |= limits.markets_max < counters[MARKETS] or limits.markets_max > len(state.markets)
    if wrong:
        return refuse(out, INVALID, FIELD_DEFINITION, 0)
    counters[RULES] = limits.rules_version
    counters[ORDERS_MAX] = limits.orders_max
    counters[LEVELS_MAX] = limits.levels_max
    counters[BALANCES_MAX] = limits.balances_max
    counters[ASSETS_MAX] = limits.assets_max
    counters[MARKETS_MAX] = limits.markets_max
    return True


@called
def same_name(name, name_bytes, other, other_bytes):
    if name_bytes != other_bytes:
        return False
    for index in range(name_bytes):
        if name[index] != other[index]:
            return False
    return True


@called
def add_asset(state, out, asset):
    counters = state.counters
    if counters[ASSETS] >= counters[ASSETS_MAX]:
        return refuse(out, FULL, FIELD_ASSETS, counters[ASSETS_MAX])
    wrong = asset.name_bytes == 0 or asset.name_bytes > ASSET_NAME_BYTES_MAX
    wrong |= asset.prec_save > MONEY_DECIMALS or asset.prec_show > asset.prec_save
    if wrong:
        return refuse(out, INVALID, FIELD_DEFINITION, 0)
    for index in range(counters[ASSETS]):
        if same_name(asset.name, asset.name_bytes, state.assets[index].name, state.assets[index].name_bytes):
            return refuse(out, INVALID, FIELD_DEFINITION, 0)
    record = state.assets[counters[ASSETS]]
    record.prec_save = asset.prec_save
    record.prec_show = asset.prec_show
    record.name_bytes = asset.name_bytes
    for index in range(asset.name_bytes):
        record.name[index] = asset.name[index]
    show_unit = power_of_ten(MONEY_DECIMALS - int64(asset.prec_show))
    record.show_unit_low = low_half(show_unit)
    record.show_unit_high = high_half(show_unit)
    counters[ASSETS] += 1
    counters[CATALOG_VERSION] += 1
    return True


@called
def add_market(state, out, market):
    counters = state.counters
    if counters[MARKETS] >= counters[MARKETS_MAX]:
        return refuse(out, FULL, FIELD_MARKETS, counters[MARKETS_MAX])
    wrong = market.name_bytes == 0 or market.name_bytes > MARKET_NAME_BYTES_MAX
    wrong |= market.stock_asset_id >= counters[ASSETS] or market.money_asset_id >= counters[ASSETS]
    wrong |= market.stock_asset_id == market.money_asset_id
    wrong |= market.stock_prec > PRECISION_MAX or market.money_prec > PRECISION_MAX or market.fee_prec > FEE_PREC_MAX
    wrong |= market.min_amount < 0 or market.min_amount_decimals > MONEY_DECIMALS
    if wrong:
        return refuse(out, INVALID, FIELD_DEFINITION, 0)
    stock_prec = int64(market.stock_prec)
    money_prec = int64(market.money_prec)
    fee_prec = int64(market.fee_prec)
    if (stock_prec + money_prec + fee_prec > state.assets[market.money_asset_id].prec_save
            or stock_prec + fee_prec > state.assets[market.stock_asset_id].prec_save):
        return refuse(out, INVALID, FIELD_DEFINITION, 0)
    for index in range(counters[MARKETS]):
        if same_name(market.name, market.name_bytes, state.markets[index].name, state.markets[index].name_bytes):
            return refuse(out, INVALID, FIELD_DEFINITION, 0)
    min_lots = lots_rounded_up(market.min_amount, int64(market.min_amount_decimals), stock_prec)
    if min_lots > from_int64(INT64_MAX):  # no order could be as large
        return refuse(out, INVALID, FIELD_DEFINITION, 0)
    record = state.markets[counters[MARKETS]]
    record.stock_asset_id = market.stock_asset_id
    record.money_asset_id = market.money_asset_id
    record.stock_prec = market.stock_prec
    record.money_prec = market.money_prec
    record.fee_prec = market.fee_prec
    record.min_amount = market.min_amount
    record.min_amount_decimals = market.min_amount_decimals
    record.name_bytes = market.name_bytes
    for index in range(market.name_bytes):
        record.name[index] = market.name[index]
    unit = power_of_ten(MONEY_DECIMALS - stock_prec - money_prec)
    record.deal_unit_low = low_half(unit)
    record.deal_unit_high = high_half(unit)
    most = divide(money_max(), unit)
    record.ticks_lots_max_low = low_half(most)
    record.ticks_lots_max_high = high_half(most)
    unit = power_of_ten(MONEY_DECIMALS - stock_prec)
    record.stock_unit_low = low_half(unit)
    record.stock_unit_high = high_half(unit)
    unit = power_of_ten(MONEY_DECIMALS - stock_prec - money_prec - fee_prec)
    record.ask_fee_unit_low = low_half(unit)
    record.ask_fee_unit_high = high_half(unit)
    unit = power_of_ten(MONEY_DECIMALS - stock_prec - fee_prec)
    record.bid_fee_unit_low = low_half(unit)
    record.bid_fee_unit_high = high_half(unit)
    record.fee_one = int64(low_half(power_of_ten(fee_prec)))
    record.amount_max = WHOLE_UNITS_MAX if stock_prec == 0 else INT64_MAX
    record.min_lots = int64(low_half(min_lots))
    counters[MARKETS] += 1
    counters[CATALOG_VERSION] += 1
    return True


@called
def lots_rounded_up(amount, decimals, stock_prec):
    """`amount` x 10^-decimals in lots, 128-bit, rounded up."""
    lots = from_int64(amount)
    if decimals <= stock_prec:
        return lots * power_of_ten(stock_prec - decimals)
    unit = power_of_ten(decimals - stock_prec)
    quotient = divide(lots, unit)
    if quotient * unit != lots:
        quotient += from_int64(1)
    return quotient
