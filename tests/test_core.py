"""The core's rules, example by example: the specification's own, every bound, and what is full stays right."""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba import njit

from pipeline.digest import state_digest
from pipeline.replay import ALL_EVENTS, replay_span
from pipeline.replica import Replica
from pipeline.state import DEFECT, FREE_NODES, OUTPUT_DIGEST, TREE_HEIGHT_MAX, capacity
from shm.int128 import join
from shm.records import (
    COMMAND,
    COMMAND_BODY_FIELDS,
    INT64_MAX,
    JOURNAL,
    LIMITS,
    Field,
    Kind,
    Result,
    Side,
)
from tests.fake_matcher import History
from tests.oracle.audit import assert_sound
from tests.oracle.comparison import Comparison, Core

ROOT = Path(__file__).resolve().parents[1]
ASK, BID = int(Side.ASK), int(Side.BID)
PUT, UPDATE, FINISH = 1, 2, 3
START_NS = 1_511_967_600_000_000_000


def market_of(name="BTCCNY", stock=("BTC", 8), money=("CNY", 8), fee_prec=4, min_amount="0.001"):
    stock, money = ({"name": asset, "prec": decimals} for asset, decimals in (stock, money))
    return {"name": name, "stock": stock, "money": money, "fee_prec": fee_prec, "min_amount": min_amount}


def config_of(*markets):
    assets = [{"name": name, "prec_save": 20, "prec_show": 8} for name in ("BTC", "CNY")]
    return {"assets": assets, "markets": list(markets) or [market_of()]}


class Trading:
    """A core under test: each call at its own time, with an answer or the code of its error."""

    def __init__(self, *markets, **limits):
        self.core = Core(config_of(*markets), **limits)
        self.state = self.core.state
        self.calls, self.happened = 0, []  # by the last call

    def call(self, method, *params):
        self.calls += 1
        now = START_NS + self.calls * 1_000
        result, error = self.core.call(method, list(params), now)
        self.happened = self.core.new_events(now)
        assert_sound(self.state)
        return error[0] if error else result

    def deposit(self, user, asset, change, business="deposit"):
        return self.call("balance.update", user, asset, business, self.calls, change, {})

    def limit(self, user, side, amount, price, taker_fee="0.002", maker_fee="0.001"):
        return self.call("order.put_limit", user, "BTCCNY", side, amount, price, taker_fee, maker_fee, "web")

    def market(self, user, side, amount, taker_fee="0.002"):
        return self.call("order.put_market", user, "BTCCNY", side, amount, taker_fee, "web")

    def cancel(self, user, order_id):
        return self.call("order.cancel", user, "BTCCNY", order_id)

    def funds(self, user):
        """{asset: (available, freeze)} as the API shows them."""
        return {asset: tuple(shown.values()) for asset, shown in self.call("balance.query", user).items()}

    def digest(self):
        return int(np.uint64(state_digest(self.state)))

    def refused_as_full(self, field, bound, method, *params):
        """Whether the call is refused for that capacity and changes nothing."""
        digest = self.digest()
        code = self.call(method, *params)
        header = self.core.out.header[0]
        return (code == 3 and (header["result"], header["field"], header["bound"]) == (Result.FULL, field, bound)
                and self.digest() == digest)


def units(text):
    """Money in 10^-20."""
    whole, _, fraction = text.partition(".")
    return int(whole + fraction.ljust(20, "0"))


# The specification's examples.

def test_the_worked_example_of_the_specification():
    trading = Trading()
    trading.deposit(1, "CNY", "24000")
    trading.deposit(2, "BTC", "2")
    assert trading.limit(1, BID, "3", "8000")["left"] == "3"
    assert trading.funds(1)["CNY"] == ("0", "24000")
    order = trading.limit(2, ASK, "1.5", "7990")
    deal, maker, taker = trading.happened
    assert deal == (
        "deal", 1, "BTCCNY", 8000 * 10**8, 15 * 10**7, units("12000"), units("24"), units("0.0015"), 2, 1, 2, 1, ASK,
        [(2, "BTC", units("0.5")), (2, "CNY", units("12000")), (2, "CNY", units("11976")),
         (1, "CNY", units("12000")), (1, "BTC", units("1.5")), (1, "BTC", units("1.4985"))])
    assert maker[:2] == ("order", UPDATE) and taker[:2] == ("order", FINISH)
    assert (order["left"], order["deal_stock"], order["deal_money"], order["deal_fee"]) == (
        "0e-8", "1.5", "12000", "24")
    assert trading.funds(1) == {"BTC": ("1.4985", "0"), "CNY": ("0", "12000")}
    assert trading.funds(2) == {"BTC": ("0.5", "0"), "CNY": ("11976", "0")}
    resting = trading.call("order.pending_detail", "BTCCNY", 1)
    assert (resting["left"], resting["deal_stock"], resting["deal_money"], resting["deal_fee"]) == (
        "1.5", "1.5", "12000", "0.0015")


def test_a_market_bid_spends_money_until_it_no_longer_buys_a_lot():
    trading = Trading()
    trading.deposit(1, "BTC", "2")
    trading.deposit(3, "CNY", "6000")
    trading.limit(1, ASK, "0.4", "8000")
    trading.limit(1, ASK, "1", "8010")
    order = trading.market(3, BID, "5000")
    deals = [(event[4], event[5]) for event in trading.happened if event[0] == "deal"]
    assert deals == [(40_000_000, units("3200")), (22_471_910, units("1799.999991"))]
    assert (order["left"], order["deal_stock"], order["deal_money"]) == ("0.000009", "0.6247191", "4999.999991")
    assert trading.funds(3)["CNY"] == ("1000.000009", "0")
    assert trading.funds(3)["BTC"][0] == "0.62346966"  # less 0.2 % of 0.6247191, cut when shown


def test_price_goes_before_time_and_time_before_size():
    trading = Trading()
    trading.deposit(1, "BTC", "9")
    trading.deposit(2, "CNY", "1000")
    for amount, price in (("1", "101"), ("1", "100"), ("3", "100")):
        trading.limit(1, ASK, amount, price)
    trading.limit(2, BID, "5.5", "101")
    assert [(event[8], event[4]) for event in trading.happened if event[0] == "deal"] == [
        (2, 10**8), (3, 3 * 10**8), (1, 10**8)]
    assert [(event[1], '"id": 4' in event[2]) for event in trading.happened if event[0] == "order"] == [
        (FINISH, False), (FINISH, False), (FINISH, False), (PUT, True)]


def test_a_self_trade_costs_both_fees_and_shares_its_balances_step_by_step():
    trading = Trading()
    trading.deposit(1, "BTC", "1")
    trading.deposit(1, "CNY", "100")
    trading.limit(1, ASK, "1", "100")
    trading.limit(1, BID, "1", "100")
    steps = trading.happened[0][13]
    assert [(asset, total) for _, asset, total in steps] == [
        ("CNY", 0), ("BTC", units("2")), ("BTC", units("1.998")),
        ("BTC", units("0.998")), ("CNY", units("100")), ("CNY", units("99.9"))]
    assert trading.funds(1) == {"BTC": ("0.998", "0"), "CNY": ("99.9", "0")}


def test_a_fee_of_zero_is_no_step():
    trading = Trading()
    trading.deposit(1, "BTC", "1")
    trading.deposit(2, "CNY", "100")
    trading.limit(1, ASK, "1", "100", "0", "0")
    trading.limit(2, BID, "1", "100", "0", "0")
    totals = [total for _, _, total in trading.happened[0][13]]
    assert totals == [0, units("1"), units("1"), 0, units("100"), units("100")]


# Bounds.

def test_who_trades_with_himself_at_the_bound_is_shown_with_twice_of_it_in_between():
    trading = Trading(market_of(stock=("BTC", 0), money=("CNY", 0)))
    trading.deposit(1, "BTC", "1000")
    trading.deposit(1, "CNY", "1e18")
    trading.limit(1, BID, "1000", "1000000000000000", "0", "0")
    trading.limit(1, ASK, "1000", "1000000000000000", "0", "0")
    steps = trading.happened[0][13]
    assert [total for _, asset, total in steps if asset == "CNY"] == [2 * 10**38, 2 * 10**38, 10**38]
    assert trading.funds(1) == {"BTC": ("1000", "0"), "CNY": ("1000000000000000000", "0")}


def test_fees_count_towards_the_bound_of_deposits():
    trading = Trading(market_of(stock=("BTC", 0), money=("CNY", 0)))
    trading.deposit(1, "BTC", "1000")
    trading.deposit(2, "CNY", "9e17")
    trading.limit(2, BID, "1000", "900000000000000", "0", "0")
    trading.limit(1, ASK, "1000", "900000000000000", "0.9", "0")  # the fee leaves 9e16 with its users
    assert trading.deposit(3, "CNY", "100000000000000001") == 1
    assert trading.deposit(3, "CNY", "1e17") == {"status": "success"}
    trading.deposit(3, "CNY", "-1e17")
    assert trading.deposit(3, "CNY", "1e17") == {"status": "success"}


@pytest.mark.parametrize("side", [ASK, BID])
@pytest.mark.parametrize("amount, price, code", [
    ("92233720368.54775807", "0.00000001", 10),      # the largest int64 of lots
    ("92233720368.54775808", "0.00000001", 1),
    ("0.00000001", "92233720368.54775807", 10),
    ("0.00000001", "92233720368.54775808", 1),
    ("10000000000", "100000000", 10),                # 10^18 of money
    ("10000000000", "100000000.00000001", 1),
    ("10000000000.00000001", "100000000", 1),
    ("92233720368.54775807", "92233720368.54775807", 1),
])
def test_price_times_amount_is_bounded_to_the_last_unit(side, amount, price, code):
    assert Trading().limit(1, side, amount, price) == code


def test_the_largest_order_is_paid_frozen_matched_and_charged_exactly():
    trading = Trading()
    trading.deposit(1, "CNY", "1000000000000000000")
    trading.deposit(2, "BTC", "10000000000")
    trading.limit(1, BID, "10000000000", "100000000", "0.9999", "0.9999")
    assert trading.funds(1)["CNY"] == ("0", "1000000000000000000")
    order = trading.limit(2, ASK, "10000000000", "100000000", "0.9999", "0.9999")
    assert (order["deal_money"], order["deal_fee"]) == ("1000000000000000000", "999900000000000000")
    assert trading.funds(1) == {"BTC": ("1000000", "0"), "CNY": ("0", "0")}
    assert trading.funds(2) == {"BTC": ("0", "0"), "CNY": ("100000000000000", "0")}


def test_the_smallest_deal_and_fee_are_exact_too():
    trading = Trading(market_of(min_amount="0.00000001"))
    trading.deposit(1, "CNY", "1")
    trading.deposit(2, "BTC", "1")
    trading.limit(1, BID, "0.00000001", "0.00000001", "0.0001", "0.0001")
    order = trading.limit(2, ASK, "0.00000001", "0.00000001", "0.0001", "0.0001")
    assert (order["deal_money"], order["deal_fee"]) == ("1e-16", "1e-20")
    asset = trading.state.assets[1]
    assert join(asset["fees_low"], asset["fees_high"]) == 1
    assert trading.happened[0][13][2] == (2, "CNY", units("0.0000000000000001") - 1)


@pytest.mark.parametrize("held, change, code", [
    ("999999999999999999", "1", None), ("999999999999999999", "1.00000001", 1),
    ("1000000000000000000", "0.00000001", 1),
    ("800000000000000000", "1000000000000000000", 1), ("1000000000000000000", "1000000000000000000", 1),
    ("1000000000000000000", "0", None), ("1000000000000000000", "0.000000001", None),
    ("0", "1000000000000000000", None),
    ("0", "1000000000000000000.00000001", 1), ("0", "-1000000000000000000.00000001", 1),
])
def test_an_asset_never_exceeds_its_bound_over_all_users(held, change, code):
    trading = Trading()
    trading.deposit(1, "CNY", held)
    assert trading.deposit(2, "CNY", change) == (code or {"status": "success"})


def test_a_market_bid_buys_at_most_what_its_record_counts():
    trading = Trading()
    most = "92233720368.54775807"
    for user in (1, 2):
        trading.deposit(user, "BTC", most)
        trading.limit(user, ASK, most, "0.00000001", "0", "0")
    trading.deposit(3, "CNY", "2000")
    order = trading.market(3, BID, "2000", "0")
    assert (order["deal_stock"], order["deal_money"]) == (most, "922.3372036854775807")
    assert trading.call("market.summary")[0]["ask_amount"] == most


def test_an_ask_that_takes_and_then_rests_may_turn_over_twice_the_bound():
    trading = Trading(market_of(stock=("BTC", 4), money=("CNY", 0), fee_prec=4, min_amount="1"))
    all_money = "1000000000000000000"
    trading.deposit(1, "CNY", all_money)
    trading.deposit(2, "BTC", "900000000001")
    trading.limit(1, BID, "1", all_money, "0", "0")
    trading.limit(2, ASK, "900000000001", "1000000", "0", "0")
    trading.deposit(2, "CNY", f"-{all_money}")
    trading.deposit(1, "CNY", all_money)
    trading.limit(1, BID, "900000000000", "1000000", "0", "0")
    finished = trading.happened[1]
    assert finished[:2] == ("order", FINISH) and '"deal_money": "1900000000000000000"' in finished[2]


# The smallest amount.

@pytest.mark.parametrize("min_amount, too_small, enough", [
    ("0.0101", "0.01", "0.02"), ("0.02", "0.01", "0.02"), ("0.020000000000001", "0.02", "0.03"), ("1", "0.99", "1"),
    ("0.00000000000000000001", None, "0.01"), ("92233720368547758.07", "92233720368547758.06", "92233720368547758.07"),
])
def test_a_min_amount_finer_than_a_lot_counts_to_its_last_decimal(min_amount, too_small, enough):
    trading = Trading(market_of(stock=("BTC", 2), money=("CNY", 0), min_amount=min_amount))
    trading.deposit(1, "BTC", "1000000000000000000")
    trading.deposit(2, "CNY", "1")
    if too_small:
        assert trading.limit(1, ASK, too_small, "1") == 11
    assert trading.limit(1, ASK, enough, "1")["left"] == enough
    trading.limit(2, BID, "1", "1", "0", "0")


@pytest.mark.parametrize("min_amount, price, too_little, enough", [
    ("0.0101", "3", "0.03", "0.04"),                 # 0.0303 of money
    ("0.01", "3", "0.02", "0.03"),
    ("0.0100000000000001", "300", "3", "3.01"),
    ("0.00000000000000000001", "1", None, "0.01"),
    ("1", "1000000000000000", "999999999999999.99", "1000000000000000"),
])
def test_a_market_bid_is_large_enough_when_it_buys_min_amount_at_the_best_price(min_amount, price, too_little, enough):
    trading = Trading(market_of(stock=("BTC", 2), money=("CNY", 0), min_amount=min_amount))
    trading.deposit(1, "BTC", "1000")
    trading.deposit(2, "CNY", "1000000000000000")
    trading.limit(1, ASK, "1", price)
    trading.limit(1, ASK, "999", str(int(price) + 1))
    if too_little:
        assert trading.market(2, BID, too_little) == 11
    assert trading.market(2, BID, enough)["type"] == 2


# What is full.

def test_orders_beyond_the_capacity_are_refused_until_one_leaves():
    trading = Trading(orders_max=3)
    trading.deposit(1, "BTC", "10")
    trading.deposit(2, "CNY", "1000")
    ids = [trading.limit(1, ASK, "1", price)["id"] for price in ("100", "101", "101")]
    for side, user in ((ASK, 1), (BID, 2)):
        order = (user, "BTCCNY", side, "1", "100", "0", "0", "")
        assert trading.refused_as_full(Field.ORDERS, 3, "order.put_limit", *order)
    assert trading.market(2, BID, "50")["deal_stock"] == "0.5"  # it never rests
    assert trading.cancel(1, ids[1])["id"] == ids[1]
    assert trading.limit(1, ASK, "1", "102")["id"] == 5


def test_price_levels_beyond_the_capacity_are_refused_until_one_is_empty():
    trading = Trading(levels_max=2)
    trading.deposit(1, "BTC", "10")
    trading.deposit(2, "CNY", "1000")
    first, second = (trading.limit(1, ASK, "1", price)["id"] for price in ("100", "101"))
    assert trading.refused_as_full(Field.LEVELS, 2, "order.put_limit", 1, "BTCCNY", ASK, "1", "102", "0", "0", "")
    assert trading.refused_as_full(Field.LEVELS, 2, "order.put_limit", 2, "BTCCNY", BID, "1", "99", "0", "0", "")
    third = trading.limit(1, ASK, "2", "101")["id"]  # that level is there
    for order_id in (second, third):
        trading.cancel(1, order_id)
    assert trading.limit(1, ASK, "2", "103")["left"] == "2"
    trading.cancel(1, first)
    assert trading.limit(1, ASK, "1", "102")["left"] == "1"


def test_without_nodes_for_the_deepest_split_orders_are_refused():
    trading = Trading()
    trading.deposit(1, "BTC", "10")
    nodes = int(trading.state.counters[FREE_NODES])
    trading.state.counters[FREE_NODES] = 2 * TREE_HEIGHT_MAX - 1
    digest = trading.digest()
    assert trading.core.call("order.put_limit", [1, "BTCCNY", ASK, "1", "100", "0", "0", ""], START_NS) == (
        None, (3, "service unavailable"))
    assert trading.digest() == digest
    trading.state.counters[FREE_NODES] = nodes
    assert trading.limit(1, ASK, "1", "100")["left"] == "1"


def test_balances_beyond_the_capacity_are_refused_and_those_that_are_there_go_on():
    trading = Trading(balances_max=3)
    trading.deposit(1, "BTC", "10")
    trading.deposit(2, "CNY", "1000")
    trading.deposit(3, "BTC", "1")
    assert trading.refused_as_full(Field.BALANCES, 3, "balance.update", 4, "BTC", "deposit", 1, "1", {})
    # an order needs the balance that it would receive
    assert trading.refused_as_full(Field.BALANCES, 3, "order.put_limit", 1, "BTCCNY", ASK, "1", "100", "0", "0", "")
    assert trading.deposit(1, "BTC", "1") == {"status": "success"}
    assert trading.call("balance.query", 4, "BTC") == {"BTC": {"available": "0", "freeze": "0"}}


def test_a_refused_update_may_be_sent_again_where_there_is_room():
    trading = Trading(balances_max=1)
    trading.deposit(1, "BTC", "10")
    update = ("balance.update", 2, "CNY", "deposit", 77, "1", {})
    assert trading.refused_as_full(Field.BALANCES, 1, *update)
    assert trading.refused_as_full(Field.BALANCES, 1, *update)


def definition(kind, dtype, **fields):
    record = np.zeros((), dtype)
    for name, value in fields.items():
        record[name] = value
    command = np.zeros((), COMMAND)
    command["kind"], command["slots"], command["payload_bytes"] = kind, 2, record.dtype.itemsize
    return command, record.tobytes()


@pytest.mark.parametrize("changes, result", [
    ({}, Result.OK), ({"orders_max": 1}, Result.OK), ({"orders_max": 0}, Result.INVALID),
    ({"balances_max": 1}, Result.INVALID), ({"levels_max": 0}, Result.INVALID), ({"assets_max": 1}, Result.INVALID),
    ({"markets_max": 0}, Result.INVALID), ({"orders_max": 10**6}, Result.INVALID),
    ({"levels_max": 10**6}, Result.INVALID),
    ({"balances_max": 10**6}, Result.INVALID), ({"assets_max": 10**6}, Result.INVALID),
    ({"markets_max": 10**6}, Result.INVALID), ({"rules_version": 2}, Result.INVALID),
])
def test_limits_change_between_what_is_used_and_what_there_is_room_for(changes, result):
    trading = Trading()
    trading.deposit(1, "BTC", "10")
    trading.limit(1, ASK, "1", "100")
    limits = {name: int(capacity(trading.state)[name]) for name in LIMITS.names} | changes
    digest, sequence = trading.digest(), trading.core.sequence
    header = trading.core.replica.apply(*definition(Kind.SET_LIMITS, LIMITS, **limits), START_NS)
    assert header["result"] == result
    assert (trading.digest() == digest) == (trading.core.sequence == sequence) == (result != Result.OK)
    assert_sound(trading.state)


def test_an_unknown_kind_is_refused_and_changes_nothing():
    trading = Trading()
    command = np.zeros((), COMMAND)
    command["slots"] = 1
    for kind in (0, 8, 31, 41, 255):
        command["kind"] = kind
        digest = trading.digest()
        header = trading.core.replica.apply(command, b"", START_NS)
        assert (header["result"], header["field"]) == (Result.INVALID, Field.KIND)
        assert trading.digest() == digest


@pytest.mark.parametrize("changes, field", [
    ({"user_id": 0}, Field.USER), ({"market_id": 1}, Field.MARKET), ({"side": 0}, Field.SIDE),
    ({"side": 3}, Field.SIDE),
    ({"amount": 0}, Field.AMOUNT), ({"amount": -1}, Field.AMOUNT), ({"amount": -2**63}, Field.AMOUNT),
    ({"price": 0}, Field.PRICE), ({"price": -2**63}, Field.PRICE), ({"taker_fee": -1}, Field.TAKER_FEE),
    ({"taker_fee": 10_000}, Field.TAKER_FEE), ({"maker_fee": 10_000}, Field.MAKER_FEE),
    ({"maker_fee": -2**63}, Field.MAKER_FEE),
    ({"label_bytes": 31}, Field.LABEL), ({"amount": INT64_MAX, "price": INT64_MAX}, Field.PRODUCT),
])
def test_the_core_refuses_what_a_gateway_should_not_have_sent(changes, field):
    trading = Trading()
    trading.deposit(1, "BTC", "10")
    command = np.zeros((), COMMAND)
    fields = {"kind": Kind.PUT_LIMIT, "slots": 1, "user_id": 1, "side": ASK, "amount": 10**8, "price": 10**8, **changes}
    for name, value in fields.items():
        command[name] = value
    digest = trading.digest()
    header = trading.core.replica.apply(command, b"", START_NS)
    assert (header["result"], header["field"]) == (Result.INVALID, field)
    assert trading.digest() == digest and trading.state.counters[DEFECT] == 0


# Reads of large books.

def test_pages_depth_and_summaries_of_a_large_book_are_those_of_a_sorted_list():
    trading = Trading(orders_max=6000, levels_max=6000)
    for user in (1, 2):
        trading.deposit(user, "BTC", "1000000")
    chance = np.random.default_rng(1)
    orders = []
    for number, price in enumerate(chance.integers(100, 2_000, 5_000)):
        amount, user = int(chance.integers(1, 100)), number % 2 + 1
        params = [user, "BTCCNY", ASK, str(amount), str(price), "0", "0", ""]
        order, _ = trading.core.call("order.put_limit", params, START_NS)
        trading.core.new_events(START_NS)
        orders.append((int(price), order["id"], amount, user))
    orders.sort()
    for offset in (0, 1, 30, 31, 32, 33, 2_500, 4_899, 4_999, 5_000, 10**12):
        for limit in (0, 1, 101):
            book = trading.call("order.book", "BTCCNY", ASK, offset, limit)
            assert [order["id"] for order in book["orders"]] == [order[1] for order in orders[offset:offset + limit]]
            assert book["total"] == 5_000
    newest = sorted((order[1] for order in orders if order[3] == 2), reverse=True)
    for offset in (0, 1, 100, 2_400, 2_499, 2_500):
        pending = trading.call("order.pending", 2, "BTCCNY", offset, 101)
        assert [order["id"] for order in pending["records"]] == newest[offset:offset + 101]
        assert pending["total"] == 2_500
    for interval in (0, 1, 7, 100, 1999, 2000, 10**9):
        levels = {}
        for price, _, amount, _ in orders:
            rounded = -(-price // interval) * interval if interval else price
            levels[rounded] = levels.get(rounded, 0) + amount
        expected = [[str(price), str(amount)] for price, amount in sorted(levels.items())]
        for limit in (0, 1, 20, 101):
            assert trading.call("order.depth", "BTCCNY", limit, str(interval))["asks"] == expected[:limit]
    summary = trading.call("market.summary", "BTCCNY")[0]
    assert (summary["ask_count"], summary["ask_amount"]) == (5_000, str(sum(order[2] for order in orders)))


# The journal.

def test_one_command_may_make_more_events_than_the_ring_has_slots_and_the_digest_is_the_same():
    cores = [Core(config_of(), event_slots=slots) for slots in (256, 4096)]
    for core in cores:
        core.call("balance.update", [1, "BTC", "d", 1, "1000", {}], START_NS)
        core.call("balance.update", [2, "CNY", "d", 2, "1000000", {}], START_NS)
        for price in range(100, 500):
            core.call("order.put_limit", [1, "BTCCNY", ASK, "1", str(price), "0.001", "0.001", ""], START_NS)
        result, _ = core.call("order.put_limit", [2, "BTCCNY", BID, "400", "1000", "0.001", "0.001", ""], START_NS)
        assert result["deal_stock"] == "400"
    assert cores[0].state.counters[OUTPUT_DIGEST] == cores[1].state.counters[OUTPUT_DIGEST]


def test_journal_records_run_again_give_the_same_state_and_the_same_words():
    comparison = Comparison(config_of())
    moment = START_NS
    for number in range(200):
        moment += number % 3
        user, asset = ((1, "BTC"), (2, "CNY"))[number % 2]
        comparison.step("balance.update", [user, asset, "d", number, "1000", {"n": "y" * number}], moment)
        order = [user, "BTCCNY", user, "1.5", str(100 - number % 7), "0.1", "0", "w"]
        comparison.step("order.put_limit", order, moment)
        comparison.step("order.cancel", [1, "BTCCNY", number], moment)
        comparison.step("order.book", ["BTCCNY", 1, 0, 10], moment)
    journal, history = comparison.core.journal, History()
    body = [name for name, *_ in COMMAND_BODY_FIELDS if name != "payload_bytes"]
    slots = np.concatenate([
        history.record(payload, time_ns=now, gateway=0, generation=1, position=place + 1,
                       **{name: command[name] for name in body})
        for place, (command, payload, now) in enumerate(journal)]).reshape(-1, JOURNAL.itemsize // 8)
    replica, positions = Replica(capacity(comparison.core.state)), np.zeros(1, np.int64)
    records = slots.reshape(-1).view(JOURNAL)
    stopped = replay_span(
        replica.state, replica.inbox, replica.out, records, slots, 0, len(slots), positions, 1, ALL_EVENTS)
    assert stopped == (len(slots), True) and positions[0] == len(journal)
    assert state_digest(replica.state) == state_digest(comparison.core.state)
    assert replica.state.counters[OUTPUT_DIGEST] == comparison.core.state.counters[OUTPUT_DIGEST]


# Once more, with every index checked.

@njit(_nrt=False)
def item(array, place):
    return array[place]


@pytest.mark.skipif("NUMBA_BOUNDSCHECK" not in os.environ, reason="only that run checks")
def test_in_that_run_an_index_beyond_an_array_is_an_error():
    with pytest.raises(IndexError):
        item(np.zeros(3), 3)


@pytest.mark.skipif("NUMBA_BOUNDSCHECK" in os.environ, reason="this is the run with every index checked")
def test_no_index_is_out_of_bounds():
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--oracle-commands", "20000",
         "tests/test_core.py", "tests/test_price_levels.py", "tests/test_idempotency.py", "tests/test_oracle.py"],
        cwd=ROOT, env={**environment, "NUMBA_BOUNDSCHECK": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
