"""The reference exchange answers as the recordings do, and its own rules hold beyond them."""

import gzip
import json
import random
from decimal import ROUND_HALF_UP, Context, Decimal
from pathlib import Path

import pytest

from tests.deviations import DEVIATIONS, meant
from tests.reference.book import ASK, BID
from tests.reference.decimals import fmt, parse, raw
from tests.reference.exchange import FINISH, PUT, UPDATE, ReferenceExchange

HTTP = Path(__file__).parent / "conformance" / "http"
SIDECARS = Path(__file__).parent / "conformance" / "sidecars"

# Answers of the thirteen methods in each recording: none may silently drop out.
ANSWERS = {
    "h01_lists": 82,
    "h02_balance_update": 139,
    "h04_put_limit_validation": 177,
    "h06_put_market": 146,
    "h07_cancel": 53,
    "h08_book_depth": 249,
    "h10_history": 19,
    "h11_market_data": 16,
    "h12_protocol": 7,
    "h13_restart": 198,
    "h14_precision": 385,
    "h16_strings": 33,
    "h17_snapshot_restart": 178,
    "q01_nonfinite": 86,
    "q02_huge_numbers": 58,
    "q03_user_ids": 111,
    "q04_int_range": 25,
    "q05_prec_zero": 36,
    "q07_business_length": 40,
    "q08_quotes_in_text": 34,
    "q09_repeat_after_restart": 37,
    "q11_acknowledged_is_durable": 64,
    "q12_prec_zero_everywhere": 43,
    "r01_btcusdt_basic": 519,
    "r02_two_markets": 736,
    "r03_three_markets": 1065,
    "r04_grid_levels": 627,
    "r05_market_heavy": 636,
    "r06_cancel_heavy": 633,
    "r07_high_precision": 630,
    "r08_cny_doge": 630,
    "r11_self_trade": 411,
    "r14_all_markets": 1117,
    "r18_poor_all_markets": 1017,
    "r21_market_only_thin": 617,
}

WITH_SIDECARS = (
    "h02_balance_update",
    "h06_put_market",
    "r01_btcusdt_basic",
    "r03_three_markets",
    "r08_cny_doge",
    "r14_all_markets",
)

START = 1_511_967_600_000_000_000


# recordings


def recorded(name):
    """The meta object and the other lines of a recording."""
    with open(HTTP / f"{name}.jsonl", encoding="utf-8") as lines:
        first, *rest = map(json.loads, lines)
    return first["meta"], rest


def replay(name):
    """Yield (line number, recorded response, response of the reference, exchange) for every request it understands."""
    meta, lines = recorded(name)
    exchange = ReferenceExchange(meta["config"])
    for number, line in enumerate(lines, start=2):
        request = line.get("request")
        if not isinstance(request, dict) or request.get("method") not in exchange.methods or line["status"] != 200:
            continue
        request = meant(name, request)
        result, error = exchange.call(request["method"], request["params"], START + number * 1_000_000)
        error = error and {"code": error[0], "message": error[1]}
        response = {"error": error, "result": result, "id": request["id"]}
        yield number, masked(line["response"], meta["volatile"]), masked(response, meta["volatile"]), exchange


def masked(value, volatile):
    """`value` as JSON text with sorted keys; of volatile members only whether they are numbers."""

    def mask(node):
        if isinstance(node, dict):
            return {key: is_number(member) if key in volatile else mask(member) for key, member in node.items()}
        return [mask(member) for member in node] if isinstance(node, list) else node

    return json.dumps(mask(value), sort_keys=True, ensure_ascii=False)


def is_number(value):
    return type(value) in (int, float)


def sidecar(name, kind):
    for path, opened in ((SIDECARS / f"{name}.{kind}.jsonl", open), (SIDECARS / f"{name}.{kind}.jsonl.gz", gzip.open)):
        if path.exists():
            with opened(path, "rt", encoding="utf-8") as lines:
                return [json.loads(line) for line in lines]
    raise FileNotFoundError(f"{name}.{kind}")


def events_of(name):
    """What happened in a recording, with its markets by name."""
    meta, _ = recorded(name)
    *_, (_, _, _, exchange) = replay(name)
    return exchange.events, {market["name"]: market for market in meta["config"]["markets"]}


@pytest.mark.parametrize("name", ANSWERS)
def test_every_recorded_answer_is_given(name):
    answers = 0
    for number, expected, answer, _ in replay(name):
        assert answer == expected, f"{name}.jsonl line {number}"
        answers += 1
    assert answers == ANSWERS[name]


def test_no_recording_is_left_out():
    assert sorted(path.stem for path in HTTP.glob("*.jsonl")) == sorted(ANSWERS)
    assert sum(ANSWERS.values()) == 10_854


@pytest.mark.parametrize("deviation", DEVIATIONS, ids=lambda deviation: f"{deviation['file']}:{deviation['line']}")
def test_a_listed_deviation_calls_the_first_update_of_a_key_a_repeat(deviation):
    _, lines = recorded(deviation["file"].removesuffix(".jsonl"))
    line = lines[deviation["line"] - 2]
    updates = [earlier["request"]["params"][:4] for earlier in lines[: deviation["line"] - 2] if is_update(earlier)]
    assert line["request"] == deviation["request"]
    assert line["response"]["error"] == {"code": 10, "message": "repeat update"}
    assert line["request"]["params"][:4] not in updates
    assert deviation["meant"]["params"][:4] in updates


def is_update(line):
    return line.get("request", {}).get("method") == "balance.update"


@pytest.mark.parametrize("name", WITH_SIDECARS)
def test_the_events_are_the_recorded_kafka_messages(name):
    events, markets = events_of(name)
    produced = {"balances": [], "orders": [], "deals": []}
    for kind, *event in events:
        if kind == "balance":
            user, asset, business, _, change, _ = event
            produced["balances"].append([user, asset, business, raw(change)])
        elif kind == "order":
            number, order = event
            market = markets[order["market"]]
            assets = {"stock": market["stock"]["name"], "money": market["money"]["name"]}
            produced["orders"].append({"event": number, "order": timeless(order)} | assets)
        else:
            deal_id, market, price, amount, _, ask_fee, bid_fee, ask, bid, ask_user, bid_user, taker_side, _ = event
            names = [markets[market]["stock"]["name"], markets[market]["money"]["name"]]
            numbers = [raw(price), raw(amount), raw(ask_fee), raw(bid_fee)]
            produced["deals"].append([market, ask, bid, ask_user, bid_user, *numbers, taker_side, deal_id, *names])

    expected = {"balances": [], "orders": [], "deals": []}
    for message in sidecar(name, "kafka"):
        value = json.loads(message["value"])
        if message["topic"] == "orders":
            value["order"] = timeless(value["order"])
        else:
            value = value[1:]  # without its time
        expected[message["topic"]].append(value)
    assert produced == expected


def timeless(order):
    return {key: member for key, member in order.items() if key not in ("ctime", "mtime")}


@pytest.mark.parametrize("name", WITH_SIDECARS)
def test_each_step_of_a_deal_leaves_the_recorded_balance(name):
    events, _ = events_of(name)
    produced = {}
    for user, asset, business, change, balance in balance_rows(events):
        produced.setdefault((user, asset), []).append((business, column(change, 8), column(balance, 16)))

    expected = {}
    for line in sidecar(name, "mysql"):
        if line["table"].startswith("balance_history_"):
            row = line["row"]
            key = (int(row["user_id"]), row["asset"])
            expected.setdefault(key, []).append((row["business"], Decimal(row["change"]), Decimal(row["balance"])))
    assert produced == expected


def balance_rows(events):
    """(user, asset, business, change, balance after) of the history rows that the events stand for."""
    for kind, *event in events:
        if kind == "balance":
            user, asset, business, _, change, balance = event
            yield user, asset, business, change, balance
        elif kind == "deal":
            _, _, _, amount, deal, ask_fee, bid_fee, *_, taker_side, steps = event
            flows = {ASK: (-amount, deal, -ask_fee), BID: (-deal, amount, -bid_fee)}
            changes = flows[taker_side] + flows[ASK + BID - taker_side]
            for (user, asset, balance), change in zip(steps, changes, strict=True):
                if change:
                    yield user, asset, "trade", change, balance


def column(number, decimals):
    """A number as the recorded MySQL column keeps it."""
    return number.quantize(Decimal(1).scaleb(-decimals), rounding=ROUND_HALF_UP, context=Context(prec=100))


# worked examples


def market_of(name="BTCCNY", stock=("BTC", 8), money=("CNY", 8), fee_prec=4, min_amount="0.001"):
    stock, money = ({"name": asset, "prec": decimals} for asset, decimals in (stock, money))
    return {"name": name, "stock": stock, "money": money, "fee_prec": fee_prec, "min_amount": min_amount}


CONFIG = {
    "assets": [
        {"name": "BTC", "prec_save": 12, "prec_show": 8},
        {"name": "CNY", "prec_save": 20, "prec_show": 8},
    ],
    "markets": [market_of()],
}


class Trading:
    """An exchange under test: each call at its own time, with an answer or the code of its error."""

    def __init__(self, config=CONFIG):
        self.exchange = ReferenceExchange(config)
        self.calls = 0

    def call(self, method, *params):
        self.calls += 1
        result, error = self.exchange.call(method, list(params), START + self.calls * 1_000)
        return error[0] if error else result

    def deposit(self, user, asset, change, business="deposit"):
        return self.call("balance.update", user, asset, business, self.calls, change, {})

    def limit(self, user, side, amount, price, taker_fee="0.002", maker_fee="0.001"):
        return self.call("order.put_limit", user, "BTCCNY", side, amount, price, taker_fee, maker_fee, "web")

    def market(self, user, side, amount, taker_fee="0.002"):
        return self.call("order.put_market", user, "BTCCNY", side, amount, taker_fee, "web")

    def funds(self, user):
        """{asset: (available, freeze)} as the API shows them."""
        return {asset: tuple(shown.values()) for asset, shown in self.call("balance.query", user).items()}

    def drain(self):
        """The events since the last drain."""
        events, self.exchange.events = self.exchange.events, []
        return events


def order_events(events):
    return [(event[1], event[2]["id"]) for event in events if event[0] == "order"]


def test_a_crossing_ask_trades_at_the_resting_bid_and_each_side_pays_its_fee_in_what_it_receives():
    # given engine.md 18: user 1 has 24000 CNY and bids for 3 BTC at 8000, user 2 has 2 BTC
    trading = Trading()
    trading.deposit(1, "CNY", "24000")
    trading.deposit(2, "BTC", "2")
    trading.limit(1, BID, "3", "8000")
    assert trading.funds(1)["CNY"] == ("0", "24000")
    assert order_events(trading.drain()) == [(PUT, 1)]
    # when user 2 offers 1.5 BTC from 7990 on
    order = trading.limit(2, ASK, "1.5", "7990")
    # then they trade at 8000
    deal, maker_event, taker_event = trading.drain()
    assert [str(number) for number in deal[3:8]] == [
        "8000.00000000",
        "1.50000000",
        "12000.0000000000000000",
        "24.00000000000000000000",
        "0.001500000000",
    ]
    assert deal[:3] + deal[8:13] == ("deal", 1, "BTCCNY", 2, 1, 2, 1, ASK)
    assert [(user, asset, fmt(balance)) for user, asset, balance in deal[13]] == [
        (2, "BTC", "0.5"),
        (2, "CNY", "12000"),
        (2, "CNY", "11976"),
        (1, "CNY", "12000"),
        (1, "BTC", "1.5"),
        (1, "BTC", "1.4985"),
    ]
    # and the maker is told before the taker
    assert order_events([maker_event, taker_event]) == [(UPDATE, 1), (FINISH, 2)]
    assert maker_event[2]["left"] == "1.5" and maker_event[2]["deal_fee"] == "0.0015"
    assert order["left"] == "0e-8" and order["deal_fee"] == "24"
    assert trading.funds(2) == {"BTC": ("0.5", "0"), "CNY": ("11976", "0")}
    assert trading.funds(1) == {"BTC": ("1.4985", "0"), "CNY": ("0", "12000")}


def test_a_market_bid_spends_money_until_it_no_longer_buys_the_smallest_amount():
    # given engine.md 7.3: asks of 0.4 at 8000 and 1 at 8010
    trading = Trading()
    trading.deposit(1, "BTC", "2")
    trading.deposit(3, "CNY", "6000")
    trading.limit(1, ASK, "0.4", "8000")
    trading.limit(1, ASK, "1", "8010")
    # when 5000 are to be spent
    order = trading.market(3, BID, "5000")
    # then the last 0.000009 stay where they were
    assert (order["type"], order["price"], order["maker_fee"], order["amount"]) == (2, "0", "0", "5000")
    assert (order["left"], order["deal_stock"], order["deal_money"]) == ("0.000009", "0.6247191", "4999.999991")
    assert order["deal_fee"] == "0.0012494382"
    assert trading.funds(3)["CNY"] == ("1000.000009", "0")


def test_better_prices_are_taken_before_worse_ones_and_older_orders_before_newer_ones():
    trading = Trading()
    trading.deposit(1, "BTC", "9")
    trading.deposit(2, "CNY", "1000")
    for price in ("101", "100", "100"):
        trading.limit(1, ASK, "1", price)
    trading.drain()
    trading.limit(2, BID, "2.5", "101")
    deals = [(event[8], event[3], event[4]) for event in trading.drain() if event[0] == "deal"]
    assert deals == [(2, 100, 1), (3, 100, 1), (1, 101, Decimal("0.5"))]


def test_a_partly_filled_taker_is_told_once_when_its_rest_rests():
    trading = Trading()
    trading.deposit(1, "BTC", "1")
    trading.deposit(2, "CNY", "1000")
    trading.limit(1, ASK, "1", "100")
    trading.drain()
    trading.limit(2, BID, "3", "110")
    assert order_events(trading.drain()) == [(FINISH, 1), (PUT, 2)]
    assert trading.funds(2)["CNY"] == ("680", "220")


def test_a_cancelled_order_keeps_its_left_and_gives_back_what_it_held():
    trading = Trading()
    trading.deposit(1, "CNY", "1000")
    trading.limit(1, BID, "2", "100")
    trading.drain()
    assert trading.call("order.cancel", 2, "BTCCNY", 1) == 11
    assert trading.call("order.cancel", 1, "BTCCNY", 1)["left"] == "2"
    assert order_events(trading.drain()) == [(FINISH, 1)]
    assert trading.funds(1)["CNY"] == ("1000", "0")
    assert trading.call("order.cancel", 1, "BTCCNY", 1) == 10


def test_a_self_trade_costs_both_fees_and_nothing_else():
    trading = Trading()
    trading.deposit(1, "BTC", "1")
    trading.deposit(1, "CNY", "100")
    trading.limit(1, ASK, "1", "100")
    trading.limit(1, BID, "1", "100")
    assert trading.funds(1) == {"BTC": ("0.998", "0"), "CNY": ("99.9", "0")}


def test_cover_is_tested_before_size_and_an_empty_book_before_size():
    trading = Trading()
    assert trading.limit(1, ASK, "0.0001", "100") == 10
    trading.deposit(1, "BTC", "1")
    assert trading.limit(1, ASK, "0.0001", "100") == 11
    assert trading.market(1, ASK, "0.0001") == 12


def test_a_refused_order_uses_up_no_id():
    trading = Trading()
    trading.deposit(1, "BTC", "1")
    trading.limit(1, ASK, "2", "100")
    trading.limit(1, ASK, "0.0001", "100")
    assert trading.limit(1, ASK, "1", "100")["id"] == 1


def test_a_repeat_is_told_before_a_lack_of_money_and_a_failed_update_may_be_tried_again():
    trading = Trading()
    update = ("balance.update", 1, "BTC", "withdraw", 7)
    assert trading.call(*update, "-1", {}) == 11
    assert trading.call(*update, "1", {}) == {"status": "success"}
    assert trading.call(*update, "-5", {}) == 10


def test_times_are_whole_microseconds_of_the_placing_and_of_the_last_deal():
    exchange = ReferenceExchange(CONFIG)
    exchange.call("balance.update", [1, "BTC", "deposit", 1, "2", {}], START)
    exchange.call("balance.update", [2, "CNY", "deposit", 1, "9", {}], START)
    ask = [1, "BTCCNY", ASK, "2", "9", "0", "0", ""]
    order, _ = exchange.call("order.put_limit", ask, 1_511_967_657_649_282_999)
    assert (order["ctime"], order["mtime"]) == (1511967657.649282, 1511967657.649282)
    order, _ = exchange.call("order.put_market", [2, "BTCCNY", BID, "9", "0", ""], 1_511_967_658_000_000_000)
    assert (order["ctime"], order["mtime"]) == (1511967658.0, 1511967658.0)
    order, _ = exchange.call("order.cancel", [1, "BTCCNY", 1], 1_511_967_659_000_000_000)
    assert (order["ctime"], order["mtime"]) == (1511967657.649282, 1511967658.0)


# bounds


@pytest.mark.parametrize(
    "amount, price, code",
    [
        ("92233720368.54775807", "1", 10),  # the largest 64-bit integer in units of 1e-8
        ("92233720368.54775808", "1", 1),
        ("1", "92233720368.54775807", 10),
        ("1", "92233720368.54775808", 1),
        ("10000000000", "92233720368", 1),  # a value beyond 1e18
        ("10000000000", "100000000", 10),
        ("10000000000.00000001", "100000000", 1),
    ],
)
@pytest.mark.parametrize("side", [ASK, BID])
def test_a_limit_order_beyond_the_bounds_is_an_invalid_argument(side, amount, price, code):
    assert Trading().limit(1, side, amount, price) == code


def test_amounts_in_whole_units_end_at_a_quintillion():
    config = {"assets": CONFIG["assets"], "markets": [market_of(stock=("BTC", 0), min_amount="1")]}
    assert Trading(config).market(1, ASK, "1000000000000000000") == 10
    assert Trading(config).market(1, ASK, "1000000000000000001") == 1


def test_an_asset_never_exceeds_a_quintillion_over_all_users():
    trading = Trading()
    assert trading.deposit(1, "BTC", "1000000000000000001") == 1
    assert trading.deposit(1, "BTC", "-1000000000000000001") == 1
    assert trading.deposit(1, "BTC", "-1000000000000000000") == 11
    assert trading.deposit(1, "BTC", "999999999999999999") == {"status": "success"}
    assert trading.deposit(2, "BTC", "1.00000001") == 1
    assert trading.deposit(2, "BTC", "1") == {"status": "success"}
    assert trading.deposit(2, "BTC", "0") == {"status": "success"}
    assert trading.deposit(2, "BTC", "0.00000001") == 1


def test_a_repeat_is_told_before_a_full_asset():
    trading = Trading()
    trading.call("balance.update", 1, "BTC", "deposit", 1, "1000000000000000000", {})
    assert trading.call("balance.update", 1, "BTC", "deposit", 1, "1", {}) == 10


@pytest.mark.parametrize("interval, code", [("92233720368.54775807", None), ("92233720368.54775808", 1), ("1e29", 1)])
def test_a_depth_interval_is_a_64_bit_integer_in_units_of_the_price(interval, code):
    assert Trading().call("order.depth", "BTCCNY", 10, interval) == (code or {"asks": [], "bids": []})


def test_a_detail_counts_in_bytes_and_with_its_business_id():
    trading = Trading()
    room = 8192 - len('{"text": "", "id": 77}')
    update = ("balance.update", 1, "BTC", "deposit", 77, "1")
    assert trading.call(*update, {"text": "x" * (room + 1)}) == 1
    assert trading.call(*update, {"text": "é" * (room // 2 + 1)}) == 1
    assert trading.call(*update, {"text": "x" * room}) == {"status": "success"}


@pytest.mark.parametrize("offset", [-1, -(2**63), 2**63 - 1])
def test_an_offset_outside_the_book_finds_nothing_and_is_given_back(offset):
    trading = Trading()
    trading.deposit(1, "BTC", "1")
    trading.limit(1, ASK, "1", "100")
    book = trading.call("order.book", "BTCCNY", ASK, offset, 10)
    assert book == {"offset": offset, "limit": 10, "total": 1, "orders": []}
    pending = trading.call("order.pending", 1, "BTCCNY", offset, 10)
    assert pending == {"offset": offset, "limit": 10, "total": 1, "records": []}


# numbers


@pytest.mark.parametrize(
    "text, decimals, held",
    [
        ("0.123456789", 8, "0.12345678"),
        ("1e-9", 8, "0e-8"),
        ("-1e-9", 8, "-0e-8"),
        ("1.", 2, "1.00"),
        (".5", 0, "0"),
        ("1e1", 0, "10"),
        ("0e400", 2, "0.00"),
        ("9" * 40, 2, None),
        ("1e30", 2, None),
        ("-1e30", 2, None),
        ("99999999999999999999.99999999999999999", 16, "99999999999999999999.9999999999999900"),  # 34 digits are read
        ("1e999999999999999999999", 2, None),
        ("1e-999999999999999999999", 2, "0.00"),
        ("", 2, None),
        (".", 2, None),
        ("e5", 2, None),
        ("1_0", 2, None),
        (" 1", 2, None),
        ("1\n", 2, None),
        ("\u0661", 2, None),
        ("NaN", 2, None),
        ("-inf", 2, None),
    ],
)
def test_a_decimal_string_is_read_or_refused(text, decimals, held):
    number = parse(text, decimals)
    assert (None if number is None else raw(number)) == held


@pytest.mark.parametrize(
    "held, shown",
    [
        ("8000.00000000", "8000"),
        ("0.00000100", "0.000001"),
        ("9.9E-7", "9.9e-7"),
        ("1.0E-7", "1.0e-7"),
        ("1E-8", "1e-8"),
        ("0E-8", "0e-8"),
        ("0.000000", "0"),
        ("-5.00000000", "-5"),
        ("100", "100"),
    ],
)
def test_trailing_zeros_are_not_shown_except_in_exponent_form(held, shown):
    assert fmt(Decimal(held)) == shown


# conservation


def random_commands(exchange, config, seed, count):
    """Yield (method, params) of a busy, often refused flow in all markets; look at the books only to cancel."""
    chance = random.Random(seed)
    users = range(1, 7)
    fees = ("0", "0.0005", "0.001", "0.002", "0.3", "0.9999")

    def number(low, high, decimals):
        return f"{chance.uniform(low, high):.{decimals}f}"

    for business_id in range(count):
        user, side, kind = chance.choice(users), chance.choice((ASK, BID)), chance.random()
        market = chance.choice(config["markets"])
        stock_prec, money_prec = market["stock"]["prec"], market["money"]["prec"]
        if kind < 0.1:
            asset = chance.choice(config["assets"])["name"]
            yield "balance.update", [user, asset, "flow", business_id, number(-50, 200, 9), {}]
        elif kind < 0.7:
            amount = number(0, chance.choice((0.01, 3)), stock_prec + 1)
            price = number(90, 110, min(1, money_prec))
            yield "order.put_limit", [user, market["name"], side, amount, price, *chance.choices(fees, k=2), "flow"]
        elif kind < 0.85:
            amount = number(0, 3 if side == ASK else 300, stock_prec)
            yield "order.put_market", [user, market["name"], side, amount, chance.choice(fees), "flow"]
        else:
            resting = list(exchange.markets[market["name"]].book.by_id.values())
            order = chance.choice(resting) if resting else None
            owner = order.user if order and chance.random() < 0.8 else user
            yield "order.cancel", [owner, market["name"], order.id if order else 1]


@pytest.mark.parametrize("seed", range(6))
def test_no_money_is_made_or_lost_and_exactly_what_resting_orders_need_is_frozen(seed):
    config = recorded("q12_prec_zero_everywhere")[0]["config"]
    exchange = ReferenceExchange(config)
    done = set()
    for moment, (method, params) in enumerate(random_commands(exchange, config, seed, count=3_000)):
        _, error = exchange.call(method, params, START + moment)
        done.add((method, error and error[0]))
        if moment % 100 == 0:
            assert_conserved(exchange)
    assert_conserved(exchange)
    # the flow reached what it is meant to reach
    assert any(event[0] == "deal" for event in exchange.events)
    assert {(method, None) for method, _ in done} <= done
    assert {("balance.update", 11), ("order.put_limit", 10), ("order.put_limit", 11)} <= done
    assert {("order.put_market", 10), ("order.put_market", 12), ("order.cancel", 10), ("order.cancel", 11)} <= done


def assert_conserved(exchange):
    needed = {}
    for market in exchange.markets.values():
        for order in market.book.by_id.values():
            asset, amount = market.needs(order.side, order.price, order.left)
            needed[order.user, asset] = needed.get((order.user, asset), 0) + amount
    balances = exchange.balances()
    assert {owner: frozen for owner, (_, frozen) in balances.items() if frozen} == needed
    assert all(available >= 0 and frozen >= 0 for available, frozen in balances.values())
    for asset, total in exchange.totals().items():
        owned = total["available"] + total["frozen"]
        assert total["deposits"] - total["withdrawals"] - total["fees"] == owned, asset
