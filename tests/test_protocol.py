"""The wire: strict JSON, parameters in their order, results and errors as recorded.

The recordings are answered by the whole way of a call over a core in this process; the rings are another test's.
"""
import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from gateways.answers import Answers
from gateways.bridge import MatcherGone, ServiceTimeout, ServiceUnavailable
from gateways.catalog import Catalog
from gateways.envelope import MalformedRequest, decode_request
from gateways.protocol import METHODS, NOT_BUILT, find_method
from pipeline.replica import Replica
from shm import configuration
from shm.records import COMMAND, OrderFlag
from tests.deviations import meant

RECORDINGS = Path(__file__).parent / "conformance" / "http"
VOLATILE = ("ctime", "mtime", "time", "ftime")
BUILT_LINES = 10926            # of all recordings: those that name no method of history and market data
REPORTS = []                   # of what should not happen
START_NS = 1_511_967_600_000_000_000


class CoreBridge:
    """Commands go straight into a core, as the matcher would apply them."""

    def __init__(self, settings):
        self.replica = Replica.configured(settings)
        self.now_ns = START_NS
        self.refusal = None    # an exception that every call raises
        self.timeout_ms = settings.http.timeout_ms
        self.commands = []

    def check_writable(self):
        if isinstance(self.refusal, ServiceUnavailable):
            raise self.refusal

    async def call(self, command, correlation_id=0):
        await asyncio.sleep(0)
        if self.refusal is not None:
            raise self.refusal
        record = np.frombuffer(command.slots, COMMAND, 1)[0].copy()
        record["correlation_id"] = correlation_id % 2**64
        payload = command.slots[COMMAND.itemsize:][:record["payload_bytes"]]
        self.commands.append(record)
        self.now_ns += 1_000
        self.replica.apply(record, payload, self.now_ns)
        message = self.replica.reply_message()
        assert len(message) <= command.reply_slots_max * 256
        return message


def recordings():
    return sorted(RECORDINGS.glob("*.jsonl"))


def read(path):
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return lines[0]["meta"]["config"], [line for line in lines[1:] if "request" in line]


def body_of(line):
    request = line["request"]
    return request.encode() if isinstance(request, str) else json.dumps(request).encode()


def answers_over_a_core(config, **sections):
    settings = configuration.from_recording(config, **{
        "limits": {"orders_max": 20_000, "levels_max": 20_000, "balances_max": 2_000}, **sections})
    return Answers(CoreBridge(settings), Catalog(settings.limits), REPORTS.append, settings.http.pretty,
                   settings.http.batch_max)


def comparable(document):
    """The document without the values that differ from run to run, and without details for people."""
    if isinstance(document, dict):
        return {key: type(value).__name__ if key in VOLATILE else comparable(value)
                for key, value in document.items() if not (key == "data" and "code" in document)}
    return [comparable(value) for value in document] if isinstance(document, list) else document


def ask(answers, method, *params, request_id=1):
    answer = asyncio.run(answers.answer(json.dumps({"id": request_id, "method": method, "params": params}).encode()))
    assert answer.status == 200
    return json.loads(answer.body)


CONFIG, _ = read(RECORDINGS / "h01_lists.jsonl")


@pytest.fixture
def answers():
    return answers_over_a_core(CONFIG)


@pytest.fixture(autouse=True)
def nothing_unexpected():
    yield
    assert [REPORTS.pop() for _ in REPORTS[:]] == []


@pytest.mark.parametrize("path", recordings(), ids=lambda path: path.stem)
def test_every_recorded_answer_of_a_built_method_is_given_again(path):
    config, lines = read(path)
    exchange = answers_over_a_core(config)
    differences = []

    async def replay():
        for line in lines:
            request = line["request"]
            named = request if isinstance(request, dict) else {}
            if "verb" in line or named.get("method") in NOT_BUILT:
                continue       # the verb is the carrier's, not the wire's
            answer = await exchange.answer(body_of({**line, "request": meant(path.stem, request)}))
            got = json.loads(answer.body) if answer.body else ""
            if answer.status != line["status"] or comparable(got) != comparable(line["response"]):
                differences.append((request, line["response"], answer))
    asyncio.run(replay())
    assert not differences[:3]


def test_the_recordings_hold_the_lines_that_count():
    requests = [line["request"] for path in recordings() for line in read(path)[1]]
    assert sum(not (isinstance(request, dict) and request.get("method") in NOT_BUILT) for request in requests) \
        == BUILT_LINES


def test_every_method_of_the_interface_is_built_or_says_that_it_is_not(answers):
    assert len(METHODS) + len(NOT_BUILT) == 23
    for method in NOT_BUILT:
        error = ask(answers, method)["error"]
        assert (error["code"], error["message"]) == (2, "internal error")
        assert f"{method} is not built yet" in error["data"]["reason"]


def test_an_unknown_method_is_404_on_one_line_even_where_answers_are_indented():
    exchange = answers_over_a_core(CONFIG, http={"pretty": True})
    answer = asyncio.run(exchange.answer(b'{"id": 7, "method": "asset.lists", "params": []}'))
    assert answer.status == 404 and not answer.close and b"\n" not in answer.body
    assert json.loads(answer.body)["error"]["code"] == 4


def test_an_answer_has_the_members_in_their_order_on_one_line(answers):
    asyncio.run(answers.answer(b'{"id": 1, "method": "asset.list", "params": []}'))
    answer = asyncio.run(answers.answer(b'{"id": -5, "method": "balance.query", "params": [1, "BTC"]}'))
    assert answer.body == b'{"error": null, "result": {"BTC": {"available": "0", "freeze": "0"}}, "id": -5}'


def test_pretty_answers_are_indented_by_four():
    exchange = answers_over_a_core(CONFIG, http={"pretty": True})
    answer = asyncio.run(exchange.answer(b'{"id": 1, "method": "balance.query", "params": [1, "BTC"]}'))
    assert answer.body.startswith(b'{\n    "error": null,\n    "result": {\n        "BTC": {\n')


# Requests.

def call_with(params):
    """A call with this JSON text as its parameters; U+DC80 and on stand for single bytes."""
    return f'{{"id": 1, "method": "m", "params": {params}}}'.encode("utf-8", "surrogateescape")


@pytest.mark.parametrize("body", [
    b"", b" ", b"{", b"null", b"1", b'"x"', b"[]", b"{}",
    b'[{"id": 1, "method": "m", "params": []}]',
    b'{"id": 1, "method": "m"}',
    b'{"id": "1", "method": "m", "params": []}',
    b'{"id": 1.0, "method": "m", "params": []}',
    b'{"id": true, "method": "m", "params": []}',
    b'{"id": null, "method": "m", "params": []}',
    b'{"id": 1, "method": null, "params": []}',
    b'{"id": 1, "method": "m", "params": {}}',
    b'{"id": 1, "method": "m", "params": []} x',
    b'{"id": 1, "method": "m", "params": [],}',
    b'{"id": 01, "method": "m", "params": []}',
    b"{'id': 1, 'method': 'm', 'params': []}",
    b'\xef\xbb\xbf{"id": 1, "method": "m", "params": []}',
    '{"id": 1, "method": "m", "params": []}'.encode("utf-16"),
    *map(call_with, [
        "[NaN]", "[Infinity]", "[-Infinity]", "[1e999]", "[-1e999]", "[9223372036854775808]", "[-9223372036854775809]",
        "[" + "9" * 50_000 + "]", "[1.]", "[.5]", "[+1]", "[1]//", "[tru]",
        '["\t"]', '["\0"]', r'["\u0000"]', r'[{"\u0000": 1}]', r'["\x41"]',
        r'["\ud800"]', r'["\udc00"]', r'["\ud800x\udc00"]', r'["\ud800\ud800\udc00"]', r'["\ud800", "\udc00"]',
        '["\udcff"]', '["\udced\udca0\udc80"]', '["\udcc0\udc80"]',
        "[" * 2048 + "]" * 2048, "[" * 2047 + "1" + "]" * 2047, "[" * 50_000, "[" * 2048 + '"' + r"\"" * 45_000,
    ]),
])
def test_what_is_no_strict_json_request_is_refused(body):
    with pytest.raises(MalformedRequest):
        decode_request(body)


@pytest.mark.parametrize("params, read_as", [
    (r'["\u0041\\u0000"]', [r"A\u0000"]),
    (r'["\ud83d\ude00"]', ["\U0001f600"]),
    (r'["\ud83d\ude00\ud83d\ude00"]', ["\U0001f600" * 2]),
    ("[9223372036854775807, -9223372036854775808, -0]", [2**63 - 1, -(2**63), 0]),
    ("[1e5, 1E-400]", [1e5, 0.0]),
    ('[{"a": 1, "a": 2}]', [{"a": 2}]),
    ('["\x7f\u2028"]', ["\x7f\u2028"]),
    (" [\r\n\t1 ] ", [1]),
])
def test_unusual_json_is_read(params, read_as):
    assert decode_request(call_with(params)).params == read_as


def test_the_last_of_equal_members_counts_and_unknown_ones_do_not():
    request = decode_request(b'{"jsonrpc": "2.0", "id": 1, "id": 2, "method": "m", "params": [], "x": {"id": 3}}')
    assert request == (2, "m", [])


def test_values_nested_as_deep_as_the_original_takes_them_are_read():
    request = decode_request(call_with("[" * 2047 + "]" * 2047))  # and the object around it
    depth = 0
    value = request.params
    while value is not None:
        depth, value = depth + 1, value[0] if value else None
    assert depth == 2047


# Parameters.

GOOD = {
    "balance.update": [1, "BTC", "deposit", 1, "1", {}],
    "order.put_limit": [1, "BTCUSDT", 1, "1", "8000", "0.002", "0.001", "web"],
    "order.put_market": [1, "BTCUSDT", 1, "1", "0.002", "web"],
    "order.cancel": [1, "BTCUSDT", 1],
    "order.book": ["BTCUSDT", 1, 0, 10],
    "order.depth": ["BTCUSDT", 10, "0"],
    "order.pending": [1, "BTCUSDT", 0, 10],
    "order.pending_detail": ["BTCUSDT", 1],
}


@pytest.mark.parametrize("method", GOOD)
def test_parameters_are_checked_from_left_to_right(answers, method):
    names = METHODS[method].parameters
    assert len(names) == len(GOOD[method])
    for first_bad in range(len(names)):
        params = GOOD[method][:first_bad] + [[None]] * (len(names) - first_bad)
        data = ask(answers, method, *params)["error"]["data"]
        assert data["parameter"] == names[first_bad]
        assert data["value"] == "a JSON array" and data["rule"].startswith("must be ")
    for params in (GOOD[method][:-1], GOOD[method] + [None]):
        assert ask(answers, method, *params)["error"] == {
            "code": 1, "message": "invalid argument", "data": {
                "parameter": "params", "value": len(params), "limit": len(names),
                "rule": f"must be exactly these {len(names)}: {', '.join(names)}"}}


@pytest.mark.parametrize("method, place, value, data", [
    ("balance.update", 0, 2**32, {"rule": "must be an integer from 1 to 4294967295", "limit": 4294967295}),
    ("balance.update", 2, "é" * 16, {"rule": "must have at most 30 bytes as UTF-8", "limit": 30}),
    ("balance.update", 4, "1000000000000000000.00000001", {"rule": "must be at most the limit, either way",
                                                           "limit": "1000000000000000000"}),
    ("balance.update", 4, "NaN", {"rule": "must be a decimal number such as 0.5"}),
    ("balance.update", 4, "1e30", {"rule": "must be a number below 1e30"}),
    ("balance.update", 4, "x" * 100, {"value": "x" * 64 + "... (100 characters)"}),
    ("balance.update", 5, {"x": "y" * 8192}, {"value": "a JSON object", "limit": 8192}),
    ("order.put_limit", 1, "BTCUSD", {"rule": "must be the name of a market"}),
    ("order.put_limit", 3, "92233720368.54775808", {"rule": "must be at most the limit",
                                                    "limit": "92233720368.54775807"}),
    ("order.put_limit", 3, "0.000000009", {"rule": "must be above 0 at 8 decimals"}),
    ("order.put_limit", 5, "1", {"rule": "must be at least 0 and below 1 at 4 decimals"}),
    ("order.book", 1, 4294967297, {"rule": "must be 1 (ask) or 2 (bid)"}),
    ("order.book", 3, 102, {"rule": "must be an integer from 0 to 101", "limit": 101}),
    ("order.depth", 2, "-1", {"rule": "must not be below 0 at 2 decimals"}),
    ("order.depth", 2, "1e18", {"limit": "92233720368547758.07"}),
])
def test_a_refusal_names_the_parameter_its_value_the_rule_and_the_limit(answers, method, place, value, data):
    params = list(GOOD[method])
    params[place] = value
    error = ask(answers, method, *params)["error"]
    assert (error["code"], error["message"]) == (1, "invalid argument")
    expected = {"parameter": METHODS[method].parameters[place], "value": value, **data}
    assert {key: error["data"].get(key) for key in expected} == expected


def test_a_detail_of_exactly_the_limit_is_taken_with_its_id_in_it(answers):
    room = 8192 - len('{"x": "", "id": 12}')
    assert ask(answers, "balance.update", 1, "BTC", "d", 12, "1", {"x": "y" * room})["error"] is None
    assert ask(answers, "balance.update", 1, "BTC", "d", 13, "1", {"x": "y" * room, "id": 123456})["error"] is None
    assert ask(answers, "balance.update", 1, "BTC", "d", 14, "1", {"x": "y" * room + "y"})["error"]["code"] == 1
    assert ask(answers, "balance.update", 1, "BTC", "d", 15, "1", {"x": "é" * (room // 2), "id": 0})["error"] is None


def test_integers_that_are_not_folded_back_are_refused_and_ids_of_64_bits_are_taken(answers):
    assert ask(answers, "order.cancel", 1, "BTCUSDT", -1)["error"]["code"] == 10
    assert ask(answers, "order.pending_detail", "BTCUSDT", -(2**63)) == {"error": None, "result": None, "id": 1}
    assert ask(answers, "balance.update", 1, "BTC", "d", -1, "1", {})["error"] is None
    assert ask(answers, "balance.update", 1, "BTC", "d", -1, "1", {})["error"]["code"] == 10
    assert ask(answers, "order.book", "BTCUSDT", 1, -(2**63), 5)["result"]["offset"] == -(2**63)


def test_what_the_core_refuses_names_parameter_value_and_limit_too(answers):
    assert ask(answers, *["order.put_limit"], *GOOD["order.put_limit"])["error"] == {
        "code": 10, "message": "balance not enough", "data": {
            "parameter": "amount", "value": "1", "rule": "must be covered by the user's available balance"}}
    ask(answers, "balance.update", 1, "BTC", "d", 1, "1000", {})
    assert ask(answers, "order.put_limit", 1, "BTCUSDT", 1, "0.0001", "8000", "0", "0", "")["error"] == {
        "code": 11, "message": "amount too small", "data": {
            "parameter": "amount", "value": "0.0001", "rule": "must be at least the market's min_amount of stock",
            "limit": "0.001"}}
    assert ask(answers, "order.put_market", 1, "BTCUSDT", 1, "1", "0", "")["error"]["code"] == 12
    ask(answers, "order.put_limit", 1, "BTCUSDT", 1, "1", "8000", "0", "0", "")
    ask(answers, "balance.update", 3, "USDT", "d", 1, "1000", {})
    assert ask(answers, "order.put_market", 3, "BTCUSDT", 2, "5", "0", "")["error"]["data"] == {
        "parameter": "amount", "value": "5", "limit": "8",
        "rule": "must pay for the market's min_amount of stock at the best price"}
    assert ask(answers, "balance.update", 1, "BTC", "d", 2, "-1000.5", {})["error"]["data"]["value"] == "-1000.5"
    assert ask(answers, "balance.update", 2, "BTC", "d", 3, "1e18", {})["error"] == {
        "code": 1, "message": "invalid argument", "data": {
            "parameter": "change", "value": "1e18",
            "rule": "takes the deposits of the asset, less withdrawals, past the limit", "limit": 10**18}}
    assert ask(answers, "order.put_limit", 1, "BTCUSDT", 1, "90000000000", "90000000000", "0", "0", "")["error"][
        "data"] == {"parameter": "amount", "value": "90000000000", "rule": "x price must be at most the limit",
                    "limit": 10**18}


def test_a_capacity_that_is_used_up_is_code_3_with_its_setting_and_size():
    exchange = answers_over_a_core(CONFIG, limits={"balances_max": 1})
    assert ask(exchange, "balance.update", 1, "BTC", "d", 1, "1", {})["error"] is None
    assert ask(exchange, "balance.update", 1, "ETH", "d", 1, "1", {})["error"] == {
        "code": 3, "message": "service unavailable", "data": {
            "reason": "a capacity of the exchange is used up", "capacity": "limits.balances_max", "limit": 1}}


def test_a_fee_rate_of_minus_zero_goes_into_the_command_with_its_sign(answers):
    for taker_fee, maker_fee, flags in (
            ("-0", "0", OrderFlag.TAKER_FEE_MINUS_ZERO), ("0", "-0.00001", OrderFlag.MAKER_FEE_MINUS_ZERO),
            ("+0", "0.1", 0), ("-0", "-0", OrderFlag.TAKER_FEE_MINUS_ZERO | OrderFlag.MAKER_FEE_MINUS_ZERO)):
        ask(answers, "order.put_limit", 1, "BTCUSDT", 1, "1", "8000", taker_fee, maker_fee, "web")
        assert answers._bridge.commands[-1]["order_flags"] == flags


def test_more_assets_than_a_command_names_are_answered_too():
    config = {**CONFIG, "assets": [{"name": f"A{index}", "prec_save": 8} for index in range(40)], "markets": []}
    exchange = answers_over_a_core(config)
    ask(exchange, "balance.update", 1, "A39", "d", 1, "5", {})
    for wanted in (["A39"], [f"A{39 - index}" for index in range(16)], [f"A{39 - index}" for index in range(17)],
                   ["A39", "A1", "A39"]):
        result = ask(exchange, "balance.query", 1, *wanted)["result"]
        assert list(result) == list(dict.fromkeys(wanted)) and result["A39"] == {"available": "5", "freeze": "0"}
    assert list(ask(exchange, "balance.query", 1)["result"]) == [f"A{index}" for index in range(40)]
    assert [row["name"] for row in ask(exchange, "asset.summary", "A3", "A1", "A3")["result"]] == ["A3", "A1", "A3"]


def test_more_names_than_there_can_be_are_refused_as_each_repetition_costs_what_a_name_does():
    exchange = answers_over_a_core(CONFIG, limits={"assets_max": 20, "markets_max": 10})
    for method, before, name, most in (("asset.summary", (), "BTC", 20), ("market.summary", (), "BTCUSDT", 10),
                                       ("balance.query", (1,), "BTC", 20)):
        assert ask(exchange, method, *before, *[name] * most)["error"] is None
        assert ask(exchange, method, *before, *[name] * (most + 1))["error"] == {
            "code": 1, "message": "invalid argument", "data": {
                "parameter": "params", "value": most + 1, "rule": f"must be at most {most} names", "limit": most}}


# What the way there can do.

def test_a_name_that_the_gateway_does_not_know_is_looked_for_once_by_all_who_ask(answers):
    async def ask_many():
        body = json.dumps({"id": 1, "method": "order.depth", "params": ["NOPE", 1, "0"]}).encode()
        return await asyncio.gather(*[answers.answer(body) for _ in range(50)])
    asked = asyncio.run(ask_many())
    assert all(json.loads(answer.body)["error"]["data"]["rule"] == "must be the name of a market" for answer in asked)
    assert len(answers._bridge.commands) == 2  # one list of assets, one of markets


def test_a_market_added_by_anyone_is_found_and_a_newer_catalog_is_fetched(answers):
    assert len(ask(answers, "market.list")["result"]) == len(CONFIG["markets"])
    replica = answers._bridge.replica
    new_market = {"name": "NEWBTC", "stock": {"name": "NEW", "prec": 2}, "money": {"name": "BTC", "prec": 8}}
    other = answers_over_a_core({"assets": CONFIG["assets"] + [{"name": "NEW", "prec_save": 8}],
                                 "markets": CONFIG["markets"] + [new_market]})
    answers._bridge.replica = other._bridge.replica
    assert ask(answers, "order.depth", "NEWBTC", 1, "0")["result"] == {"asks": [], "bids": []}
    assert ask(answers, "market.list")["result"][-1] == {
        "name": "NEWBTC", "stock": "NEW", "money": "BTC", "fee_prec": 4, "stock_prec": 2, "money_prec": 8,
        "min_amount": "0.01"}
    answers._bridge.replica = replica
    assert len(ask(answers, "market.list")["result"]) == len(CONFIG["markets"])


@pytest.mark.parametrize("refusal, status, code", [
    (MatcherGone(), 500, None),
    (ServiceTimeout(1000), 504, 5),
    (ServiceUnavailable({"reason": "full"}), 200, 3),
])
def test_what_the_way_to_the_matcher_cannot_do_has_its_status_and_code(answers, refusal, status, code):
    ask(answers, "asset.list")
    answers._bridge.refusal = refusal
    body = b'{"id": 9, "method": "order.cancel", "params": [1, "BTCUSDT", 1]}'
    answer = asyncio.run(answers.answer(body))
    assert answer.status == status and not answer.close
    if code is None:
        assert answer.body == b""
    else:
        document = json.loads(answer.body)
        assert (document["error"]["code"], document["result"], document["id"]) == (code, None, 9)


def test_a_defect_of_one_request_is_code_2_and_reported(answers):
    ask(answers, "asset.list")
    answers._bridge.refusal = ZeroDivisionError("a defect")
    error = ask(answers, "order.depth", "BTCUSDT", 1, "0")["error"]
    assert (error["code"], error["message"]) == (2, "internal error")
    assert "order.depth failed" in REPORTS[0] and "a defect" in REPORTS.pop()


def test_a_journal_without_room_refuses_writes_before_their_parameters_and_no_reads(answers):
    ask(answers, "asset.list")
    answers._bridge.check_writable = lambda: (_ for _ in ()).throw(ServiceUnavailable({"reason": "disk full"}))
    for method in ("balance.update", "order.put_limit", "order.put_market", "order.cancel"):
        assert ask(answers, method)["error"] == {
            "code": 3, "message": "service unavailable", "data": {"reason": "disk full"}}
    assert ask(answers, "order.depth", "BTCUSDT", 1, "0")["error"] is None


def test_every_write_method_and_no_other_is_marked_as_one():
    assert {name for name, method in METHODS.items() if method.is_write} == {
        "balance.update", "order.put_limit", "order.put_market", "order.cancel"}
    assert find_method("order.cancel").is_write


def batch(*calls):
    return json.dumps([{"id": number, "method": method, "params": params}
                       for number, (method, *params) in enumerate(calls)]).encode()


@pytest.mark.parametrize("batch_max, status", [(0, 400), (1, 400), (2, 200), (1000, 200)])
def test_a_batch_is_taken_where_the_configuration_allows_its_size(batch_max, status):
    answers = answers_over_a_core(CONFIG, http={"batch_max": batch_max})
    answer = asyncio.run(answers.answer(batch(("balance.query", 1, "BTC"), ("order.nope",))))
    assert answer.status == status
    if status == 200:
        documents = json.loads(answer.body)
        assert [document["id"] for document in documents] == [0, 1]
        assert documents[0]["result"] == {"BTC": {"available": "0", "freeze": "0"}}
        assert documents[1]["error"]["code"] == 4


@pytest.mark.parametrize("body", [b"[]", b"[[]]", b"[1]", b'[{"id": 1, "method": "market.list", "params": []}, null]'])
def test_a_batch_with_anything_that_is_no_request_is_400_and_nothing_of_it_is_executed(body):
    answers = answers_over_a_core(CONFIG, http={"batch_max": 10})
    assert asyncio.run(answers.answer(body)) == (400, b"", True)
    assert answers._bridge.commands == []


def test_a_batch_is_indented_where_answers_are():
    pretty = answers_over_a_core(CONFIG, http={"batch_max": 10, "pretty": True})
    body = asyncio.run(pretty.answer(batch(("balance.query", 1, "BTC")))).body
    assert b"\n" in body and json.loads(body)[0]["result"] == {"BTC": {"available": "0", "freeze": "0"}}


def test_a_batch_without_a_matcher_is_500():
    answers = answers_over_a_core(CONFIG, http={"batch_max": 10})
    answers._bridge.refusal = MatcherGone()
    assert asyncio.run(answers.answer(batch(("balance.query", 1), ("balance.query", 2)))) == (500, b"", False)


@pytest.mark.parametrize("refusal", [MatcherGone(), ServiceUnavailable({"reason": "none"})])
def test_a_write_that_was_carried_out_is_never_answered_as_one_that_was_not(answers, refusal):
    """Its reply tells of a newer catalog, which cannot be had."""
    ask(answers, "asset.list")
    answers._catalog.version -= 1
    call = answers._bridge.call

    async def call_once(command, correlation_id=0):
        message = await call(command, correlation_id)
        answers._bridge.refusal = refusal
        return message
    answers._bridge.call = call_once
    body = json.dumps({"id": 1, "method": "balance.update", "params": [1, "BTC", "d", 1, "1", {}]}).encode()
    answer = asyncio.run(answers.answer(body))
    assert answer.status == 504 and json.loads(answer.body)["error"]["code"] == 5
