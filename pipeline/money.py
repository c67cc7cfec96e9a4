"""Lots and ticks as 128-bit money, exact: what an order is worth in its market's two assets."""
from shm.int128 import from_halves, from_int64, multiply_int64
from shm.kernel import inlined
from shm.records import MONEY_DECIMALS, WHOLE_UNITS_MAX


@inlined
def money_max():
    """WHOLE_UNITS_MAX as money: bounds an asset's total, an order's amount and price x amount."""
    return from_int64(WHOLE_UNITS_MAX) * from_int64(10**10) * from_int64(10**10)


@inlined
def money_of(market, price, lots):
    """Exact money of `lots` at `price`; both sides' orders are bounded so that it fits."""
    return multiply_int64(price, lots) * from_halves(market.deal_unit_low, market.deal_unit_high)


@inlined
def stock_of(market, lots):
    return from_int64(lots) * from_halves(market.stock_unit_low, market.stock_unit_high)


assert MONEY_DECIMALS == 20
