"""Recorded flows: how they are read, what counts as agreement, and that a wrong exchange is found out."""
import gzip
import json
from decimal import Decimal

import pytest

from tools import agreement, order_flow
from tools.api import Market
from tools.core_calls import CoreCalls
from tools.order_flow import ASK, BID, BookTop, Cancel, Filled, Put, SyntheticFlow, Trade
from tools.replay import replay_book, replay_log
from tools.report import Failed


def event(name, **body):
    return f"1430438404518 {name} {json.dumps(body)}"


def order(name, key, side, price, amount):
    return event(name, id=key, order_type=1 if side == ASK else 0, price=price, amount=amount, datetime="1430438404")


LOG = "\n".join([
    order("order_created", 10, ASK, "100.00", "1.00000000"),
    order("order_created", 11, ASK, "101.00", "2.00000000"),
    event("order_book", bids=[["99.00", "3.00000000"]], asks=[["100.00", "1.00000000"], ["101.00", "2.00000000"]]),
    order("order_created", 12, BID, "101.00", "1.50000000"),
    order("order_changed", 11, ASK, "101.00", "1.50000000"),
    order("order_deleted", 10, ASK, "100.00", "0.00000000"),
    order("order_deleted", 12, BID, "101.00", "0.00000000"),
    event("trade", id=1, price=100, amount=1.0),
    event("trade", id=2, price=101.00000000000001, amount=0.50000000000000011),
    event("trade", id=3, price=102.5, amount=1.0),
    order("order_deleted", 5, BID, "99.00", "3.00000000"),   # from before the recording
    order("order_deleted", 6, BID, "98.00", "0.00000000"),   # nobody knows how much it was
    order("order_deleted", 11, ASK, "101.00", "0.00000000"),  # filled, it says
    event("order_book", bids=[], asks=[]),
])
BOOK = json.dumps({"product": "X", "bids": [["99.95", "1", "a"], ["99.9", "2", "b"], ["0.01", "7", "c"]],
                   "asks": [["100.01", "0.5", "d"], ["100.1", "0.25", "e"], ["138991023.41", "0.00000001", "f"]]})


def flow_of(folder, text, name="flow.log"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return order_flow.read(path)


def test_a_log_is_read_as_its_events(tmp_path):
    log = flow_of(tmp_path, LOG)
    assert log.early == [Put(5, BID, Decimal(99), Decimal(3))]
    assert log.events == [
        Put(10, ASK, Decimal(100), Decimal(1)),
        Put(11, ASK, Decimal(101), Decimal(2)),
        BookTop([(Decimal(100), Decimal(1)), (Decimal(101), Decimal(2))], [(Decimal(99), Decimal(3))]),
        Put(12, BID, Decimal(101), Decimal("1.5")),
        Filled(10), Filled(12),
        Trade(Decimal(100), Decimal(1)), Trade(Decimal(101), Decimal("0.5")), Trade(Decimal("102.5"), Decimal(1)),
        Cancel(5), Filled(6), Filled(11), BookTop([], []),
    ]


def test_a_book_is_read_as_its_orders_plain_or_gzip(tmp_path):
    path = tmp_path / "book.gz"
    path.write_bytes(gzip.compress(BOOK.encode()))
    assert order_flow.read(path).puts == flow_of(tmp_path, BOOK).puts == [
        Put(key, side, Decimal(price), Decimal(amount)) for key, side, price, amount in (
            ("a", BID, "99.95", "1"), ("b", BID, "99.9", "2"), ("c", BID, "0.01", "7"),
            ("d", ASK, "100.01", "0.5"), ("e", ASK, "100.1", "0.25"), ("f", ASK, "138991023.41", "0.00000001"))]


@pytest.mark.parametrize("text, words", [
    ("", "has no orders"),
    ('{"bids": [], "asks": []}', "has no orders"),
    ('{"bids": []}', "is no book"),
    ('{"bids": [["1", "one", "a"]], "asks": []}', "is no book"),
    ("{", "is no book"),
    (LOG + "\nrubbish", "line 15: not `time event JSON` of a Bitstamp log"),
    ("1 order_moved {}", "line 1: not `time event JSON`"),
    (order("order_created", 1, ASK, "1", "x"), "line 1: not `time event JSON`"),
    (event("order_created", id=1), "line 1: not `time event JSON`"),
])
def test_what_is_no_recording_is_told_with_its_line(tmp_path, text, words):
    with pytest.raises(Failed) as told:
        flow_of(tmp_path, text)
    assert str(tmp_path / "flow.log") in str(told.value) and words in str(told.value)


def test_what_cannot_be_read_is_told(tmp_path):
    for content, words in ((None, "is not there"), (b"\x1f\x8bhalf", "cannot be read"), (b"\xff", "cannot be read")):
        path = tmp_path / "flow"
        if content:
            path.write_bytes(content)
        with pytest.raises(Failed, match=words):
            order_flow.read(path)


def test_agreement_is_counted_from_an_empty_book_and_with_early_orders(tmp_path):
    log = flow_of(tmp_path, LOG)
    from_empty, in_advance = replay_log(log, False), replay_log(log, True)
    both = {"trades": 2, "trades_equal": 2, "trades_published": 3, "pictures": 2, "filled_but_held": 1, "problems": []}
    assert from_empty.items() >= {
        **both, "in_advance": 0, "best_equal": 1, "top_equal": 1, "cancels_of_no_order": 1}.items()
    assert in_advance.items() >= {
        **both, "in_advance": 1, "best_equal": 2, "top_equal": 2, "cancels_of_no_order": 0}.items()


def test_a_known_log_that_agrees_less_is_a_problem(tmp_path, monkeypatch):
    log = flow_of(tmp_path, LOG)
    monkeypatch.setitem(agreement.KNOWN_LOGS, log.sha256, {False: {"trades": 2}, True: {"trades": 2, "top_equal": 3}})
    assert replay_log(log, False)["problems"] == []
    assert replay_log(log, True)["problems"] == ["top_equal is 2 of at least 3"]


def test_a_book_loads_and_its_depths_are_those_of_the_file(tmp_path):
    figures = replay_book(flow_of(tmp_path, BOOK))
    assert (figures["orders"], figures["accepted"]) == (6, 6)
    assert (figures["depths"], figures["depths_equal"], figures["problems"]) == (10, 10, [])


def test_asks_are_merged_upwards_and_bids_downwards(tmp_path):
    asks, bids = agreement.depth_of(flow_of(tmp_path, BOOK).puts, Decimal(10))
    assert asks == [(110, Decimal("0.75")), (138991030, Decimal("0.00000001"))]
    assert bids == [(90, 3), (0, 7)]


@pytest.mark.parametrize("method, change, words", [
    ("asset.summary", lambda rows: rows[0].update(total_balance="1"), "BTC: the total should be"),
    ("asset.summary", lambda rows: rows[1].update(freeze_balance="1"), "USD: the frozen should be"),
    ("order.book", lambda page: page["orders"][0].update(left="0.123"),
     "2 orders of the book differ from what was sent and dealt: order 1 should be side 2, price 99.95, left 1, and is"
     " side 2, price 99.95, left 0.123"),
    ("order.depth", lambda depth: depth["asks"].pop(), "the depth at interval 0 and limit 20 differs"),
])
def test_an_exchange_that_is_wrong_is_found_out(tmp_path, monkeypatch, method, change, words):
    # given a core that answers one method wrongly from its second call on
    calls, asked = CoreCalls.call, []

    def wrong(self, name, *params):
        result = calls(self, name, *params)
        asked.append(name)
        if name == method and (asked.count(name) > 1 or name.startswith("order")):
            change(result)
        return result
    monkeypatch.setattr(CoreCalls, "call", wrong)
    # when a book is loaded
    problems = replay_book(flow_of(tmp_path, BOOK))["problems"]
    # then the problem is told
    assert any(words in problem for problem in problems), problems


MARKET = Market("BTCUSDT", "BTC", "USDT", fee_prec=4, stock_prec=8, money_prec=2, min_amount=Decimal("0.001"))


def calls_of(flow, count=2000):
    calls = []
    for number in range(count):
        method, params = flow.next_call()
        calls.append((method, params))
        flow.answered(method, {"left": "1", "id": number, "user": params[0]})
    return calls


def test_a_synthetic_flow_is_the_same_from_the_same_seed_and_another_from_another():
    def flow(seed, client):
        return calls_of(SyntheticFlow(seed, client, MARKET, 8000, range(1, 9)))
    assert flow(1, 0) == flow(1, 0)
    assert flow(1, 0) != flow(2, 0) and flow(1, 0) != flow(1, 1)


def test_a_synthetic_flow_cancels_its_own_orders_and_each_once():
    calls = calls_of(SyntheticFlow(1, 0, MARKET, 8000, range(1, 9)))
    put = {number: params[0] for number, (method, params) in enumerate(calls) if method == "order.put_limit"}
    cancelled = [(params[2], params[0]) for method, params in calls if method == "order.cancel"]
    assert len(cancelled) == len(set(cancelled)) > 400
    assert all(put[order_id] == user for order_id, user in cancelled)
    assert 100 < sum(method == "order.put_market" for method, _params in calls) < 300


@pytest.mark.parametrize("market", [MARKET, MARKET._replace(stock_prec=0, money_prec=0, min_amount=Decimal(1))])
def test_a_synthetic_flow_keeps_to_the_decimals_and_the_least_amount_of_its_market(market):
    for method, params in calls_of(SyntheticFlow(1, 0, market, 8000, range(1, 9))):
        if method == "order.put_limit":
            amount, price = map(Decimal, params[3:5])
            assert amount >= market.min_amount and -amount.as_tuple().exponent == market.stock_prec
            assert price > 0 and -price.as_tuple().exponent == market.money_prec
