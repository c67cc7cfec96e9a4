"""The client against an exchange of its own: every method with its types, every way in which a call can fail."""
import http.client
import inspect
import signal
import time
from decimal import Decimal

import pytest

from gateways import protocol
from gateways.protocol import METHODS, WireError
from shm import configuration
from shm.records import OrderType, Side
from tests.launched import free_port
from tools import local_exchange
from tools.api import Api, Asset, AssetSummary, CallRefused, Code, Market, MarketSummary, Order
from tools.client import Client, NoAnswer, result_of
from tools.report import Failed

TAKER_FEE, MAKER_FEE = Decimal("0.002"), Decimal("0.001")
OWN_CODES_FROM = 10


@pytest.fixture(scope="module")
def exchange(tmp_path_factory):
    settings = configuration.load(local_exchange.PROJECT / "exchange.toml")
    with local_exchange.running(tmp_path_factory.mktemp("client") / "data", local_exchange.private(settings)) as made:
        yield made


@pytest.fixture
def client(exchange):
    with Client(exchange.url) as made:
        yield made


@pytest.fixture
def connections(monkeypatch):
    """Hosts and ports that were connected to."""
    made, connect = [], http.client.HTTPConnection.connect

    def counted(connection):
        made.append((connection.host, connection.port))
        connect(connection)
    monkeypatch.setattr(http.client.HTTPConnection, "connect", counted)
    return made


# The API.

def test_every_method_of_the_wire_is_there_with_its_parameters():
    methods = {name: method for name, method in inspect.getmembers(Api, inspect.isfunction) if not name.startswith("_")}
    assert methods.keys() - {"call"} == {name.replace(".", "_") for name in METHODS}
    for name, wire in METHODS.items():
        signature = inspect.signature(methods[name.replace(".", "_")])
        parameters = [parameter for parameter in signature.parameters.values() if parameter.name != "self"]
        assert all(parameter.annotation is not parameter.empty for parameter in parameters)
        assert signature.return_annotation is not signature.empty
        named = [parameter.name for parameter in parameters if parameter.kind != parameter.VAR_POSITIONAL]
        assert tuple(named) == wire.parameters, name


def test_the_codes_are_those_of_the_wire():
    errors = [value for value in vars(protocol).values() if isinstance(value, WireError)]
    assert {error.code: error.message for error in errors if error.code < OWN_CODES_FROM} == {
        code.value: code.name.lower().replace("_", " ") for code in Code}


def test_assets_and_markets_have_the_precisions_of_the_configuration(client):
    assert client.asset_list()[3] == Asset("CNY", 2)
    assert client.market_list()[0] == Market("BTCUSDT", "BTC", "USDT", 4, 8, 2, Decimal("0.001"))
    assert client.market_summary("ETHUSDT", "BTCCNY") == [
        MarketSummary("ETHUSDT", 0, Decimal(0), 0, Decimal(0)), MarketSummary("BTCCNY", 0, Decimal(0), 0, Decimal(0))]
    assert [summary.name for summary in client.market_summary()] == [market.name for market in client.market_list()]


def test_a_trade_is_exact_to_the_last_decimal(client):
    # given a seller and a buyer
    client.balance_update(11, "ETH", "deposit", 1, 10)
    client.balance_update(12, "BTC", "deposit", 1, Decimal("2.5"), {"note": "of a friend"})
    # when an order rests and others take a part of it
    started = time.time()
    ask = client.order_put_limit(11, "ETHBTC", Side.ASK, Decimal("1.5"), Decimal("0.00000003"), TAKER_FEE, MAKER_FEE,
                                 "seller")
    taken = client.order_put_limit(12, "ETHBTC", Side.BID, Decimal("0.5"), 1, TAKER_FEE, MAKER_FEE, "buyer")
    spent = client.order_put_market(12, "ETHBTC", Side.BID, Decimal("0.00000002"), TAKER_FEE, "buyer")
    # then every number is what it is on paper
    assert ask == Order(
        ask.id, "ETHBTC", "seller", OrderType.LIMIT, Side.ASK, 11, ask.ctime, ask.ctime, Decimal("0.00000003"),
        Decimal("1.5"), TAKER_FEE, MAKER_FEE, Decimal("1.5"), Decimal(0), Decimal(0), Decimal(0))
    assert started - 1 < ask.ctime < time.time() + 1
    assert taken.id == ask.id + 1 and taken.mtime >= taken.ctime
    assert (taken.left, taken.deal_stock, taken.deal_money, taken.deal_fee) == (
        0, Decimal("0.5"), Decimal("0.000000015"), Decimal("0.001"))
    assert (spent.type, spent.price, spent.maker_fee) == (OrderType.MARKET, 0, 0)
    assert (spent.left, spent.deal_stock, spent.deal_money, spent.deal_fee) == (
        Decimal("2e-16"), Decimal("0.66666666"), Decimal("0.0000000199999998"), Decimal("0.00133333332"))
    rest = client.order_pending_detail("ETHBTC", ask.id)
    assert (rest.left, rest.deal_stock, rest.deal_money, rest.deal_fee) == (
        Decimal("0.33333334"), Decimal("1.16666666"), Decimal("0.0000000349999998"), Decimal("0.0000000000349999998"))
    assert client.balance_query(11, "ETH", "BTC") == {  # shown with 8 decimals
        "ETH": (Decimal("8.5"), rest.left), "BTC": (Decimal("0.00000003"), 0)}
    assert client.balance_query(12)["ETH"] == (Decimal("1.16433332"), 0)
    assert client.asset_summary("ETH") == [AssetSummary(
        "ETH", Decimal("9.99766666668"), 2, Decimal("9.66433332668"), 1, Decimal("0.33333334"))]


def test_orders_are_listed_merged_and_cancelled(client):
    client.balance_update(21, "DOGE", "deposit", 1, 1000)
    client.balance_update(21, "USDT", "deposit", 1, Decimal("1e3"))
    asks = [client.order_put_limit(21, "DOGEUSDT", Side.ASK, amount, Decimal(price), 0, 0, "")
            for amount, price in ((10, "0.5"), (11, "0.6"), (12, "0.6"))]
    bid = client.order_put_limit(21, "DOGEUSDT", Side.BID, 7, Decimal("0.04"), 0, 0, "")
    assert client.order_book("DOGEUSDT", Side.ASK) == (0, 101, 3, asks)
    assert client.order_book("DOGEUSDT", Side.ASK, 1, 1) == (1, 1, 3, asks[1:2])
    assert client.order_pending(21, "DOGEUSDT") == (0, 101, 4, [bid, *reversed(asks)])
    assert client.order_depth("DOGEUSDT") == ([(Decimal("0.5"), 10), (Decimal("0.6"), 23)], [(Decimal("0.04"), 7)])
    assert client.order_depth("DOGEUSDT", 1, Decimal("0.1")) == ([(Decimal("0.5"), 10)], [(0, 7)])
    assert client.order_depth("DOGEUSDT", interval=1) == ([(1, 33)], [(0, 7)])
    for order in (bid, *asks):
        assert client.order_cancel(21, "DOGEUSDT", order.id) == order
        assert client.order_pending_detail("DOGEUSDT", order.id) is None
    assert client.order_book("DOGEUSDT", Side.ASK).orders == []
    assert client.balance_query(21, "DOGE") == {"DOGE": (1000, 0)}


def test_a_method_that_has_no_name_here_can_be_called(client):
    assert client.call("asset.list")[0] == {"name": "BTC", "prec": 8}
    with pytest.raises(CallRefused) as refused:
        client.call("market.last", "BTCUSDT")
    assert refused.value.code == Code.INTERNAL_ERROR and "market.last is not built yet" in refused.value.reason


@pytest.mark.parametrize("money", [0.5, "0.5", True, None])
def test_money_that_is_not_exact_is_not_sent(client, money):
    with pytest.raises(TypeError, match="must be a Decimal or an int"):
        client.balance_update(1, "BTC", "inexact", 1, money)


# Errors.

def test_what_the_exchange_refuses_is_told_in_its_parts(client):
    client.balance_update(31, "BTC", "deposit", 1, 1)
    calls = {
        (10, "repeat update", "business_id", 1, None): lambda: client.balance_update(31, "BTC", "deposit", 1, 1),
        (11, "balance not enough", "change", "-2", None): lambda: client.balance_update(31, "BTC", "deposit", 2, -2),
        (10, "order not found", "order_id", 10**9, None): lambda: client.order_cancel(31, "BTCUSDT", 10**9),
        (11, "amount too small", "amount", "0.0001", "0.001"): lambda: client.order_put_limit(
            31, "BTCUSDT", Side.ASK, Decimal("0.0001"), 1, 0, 0, ""),
        (12, "no enough trader", "market", "BTCUSDT", None): lambda: client.order_put_market(
            31, "BTCUSDT", Side.ASK, 1, 0, ""),
        (1, "invalid argument", "limit", 102, 101): lambda: client.order_book("BTCUSDT", Side.ASK, 0, 102),
        (1, "invalid argument", "change", "NaN", None): lambda: client.balance_update(
            31, "BTC", "deposit", 3, Decimal("nan")),
    }
    for expected, call in calls.items():
        with pytest.raises(CallRefused) as refused:
            call()
        error = refused.value
        assert (error.code, error.message, error.parameter, error.value, error.limit) == expected
        assert error.rule and error.rule in str(error) and error.data["rule"] == error.rule
        assert error.reason is None and not error.may_be_executed
    assert client.balance_query(31, "BTC") == {"BTC": (1, 0)}


def test_a_method_that_is_unknown_is_refused_on_a_connection_that_stays(client, connections):
    with pytest.raises(CallRefused) as refused:
        client.call("asset.count")
    assert (refused.value.code, refused.value.value) == (Code.METHOD_NOT_FOUND, "asset.count")
    client.asset_list()
    assert len(connections) == 1


def test_a_body_that_is_too_large_is_refused(client):
    with pytest.raises(CallRefused) as refused:
        client.balance_update(1, "BTC", "large", 1, 1, {"note": "x" * 102_400})
    assert (refused.value.code, refused.value.parameter, refused.value.limit) == (
        Code.INVALID_ARGUMENT, "body", 102_400)
    client.asset_list()


@pytest.mark.parametrize("parameters", [(1, "BTC", "d", 2**63, "1", {}), (1, "BTC", "\ud800", 1, "1", {})])
def test_what_is_no_request_is_told_and_not_executed(client, parameters):
    with pytest.raises(NoAnswer, match="the exchange reads no request in it") as problem:
        client.call("balance.update", *parameters)
    assert not problem.value.may_be_executed
    client.asset_list()


@pytest.mark.parametrize("status, body, may_be_executed", [
    (500, b"", False), (400, b"", False), (502, b"", True), (500, b"<html>", True), (200, b"", True),
    (200, b"[]", True), (200, b'{"result": 1}', True), (200, b'{"error": {"code": 1}, "result": null}', True),
])
def test_what_is_no_answer_says_whether_the_call_may_be_executed(status, body, may_be_executed):
    with pytest.raises(NoAnswer, match=f"http://x answers y with HTTP status {status}") as problem:
        result_of("http://x", "y", status, body)
    assert problem.value.may_be_executed == may_be_executed


# Connections.

def test_where_nobody_listens_is_one_sentence_and_nothing_was_executed():
    url = f"http://127.0.0.1:{free_port()}"
    with Client(url) as client, pytest.raises(NoAnswer) as problem:
        client.asset_list()
    assert str(problem.value) == (
        f"{url} does not answer asset.list: Connection refused; see that an exchange serves there")
    assert not problem.value.may_be_executed
    assert Client(url).send(b"{}") == (0, b"")


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "https://127.0.0.1", "http://", "http://x:port", ""])
def test_what_is_no_address_is_told(url):
    with pytest.raises(Failed, match="is no address of an exchange"):
        Client(url)


def test_a_connection_is_kept_until_the_client_is_closed(exchange, connections):
    with Client(exchange.url) as client:
        assert connections == []
        for _ in range(3):
            client.asset_list()
        assert len(connections) == 1
    client.asset_list()
    assert len(connections) == 2
    client.close()
    client.close()


def test_a_connection_that_ended_meanwhile_is_replaced_unnoticed(exchange, client, connections):
    client.balance_update(41, "BTC", "restart", 1, 1)
    exchange.restart("gateway-0")
    client.balance_update(41, "BTC", "restart", 2, 1)
    assert client.balance_query(41, "BTC")["BTC"].available == 2
    assert len(connections) == 3  # and one that asked whether the exchange is back


def test_a_late_answer_is_given_up_and_the_same_business_id_makes_it_safe(exchange, client):
    # given a gateway that hangs
    client.balance_update(51, "BTC", "late", 1, 1)
    exchange.kill("gateway-0", signal.SIGSTOP)
    with Client(exchange.url, answer_seconds=0.2) as impatient, pytest.raises(NoAnswer) as problem:
        impatient.balance_update(51, "BTC", "late", 2, 1)
    exchange.kill("gateway-0", signal.SIGCONT)
    # when the call is made again
    assert problem.value.may_be_executed and "timed out; it may be executed nevertheless" in str(problem.value)
    try:
        client.balance_update(51, "BTC", "late", 2, 1)
    except CallRefused as refused:
        assert refused.message == "repeat update"
    # then it is executed once
    assert client.balance_query(51, "BTC")["BTC"].available == 2


def test_a_timeout_of_the_exchange_says_that_the_call_may_be_executed(exchange, client):
    exchange.kill("matcher", signal.SIGSTOP)
    try:
        with pytest.raises(CallRefused) as refused:
            client.balance_update(61, "BTC", "late", 1, 1)
    finally:
        exchange.kill("matcher", signal.SIGCONT)
    assert refused.value.code == Code.SERVICE_TIMEOUT and refused.value.may_be_executed
    with pytest.raises(CallRefused, match="repeat update"):
        client.balance_update(61, "BTC", "late", 1, 1)
    assert client.balance_query(61, "BTC")["BTC"].available == 1


def test_an_interrupted_call_leaves_no_answer_for_the_next_one(exchange, client, monkeypatch):
    def interrupted(_connection):
        raise KeyboardInterrupt
    client.asset_list()
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(http.client.HTTPConnection, "getresponse", interrupted)
        client.market_list()
    assert client.asset_list()[0].name == "BTC"
