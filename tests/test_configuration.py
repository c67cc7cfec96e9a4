"""The configuration file: what it gives, and that every problem is told at once in words that help."""
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shm import configuration
from shm.configuration import ConfigurationError
from shm.segments import RingSizes, Role

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
RECORDINGS = sorted((ROOT / "tests" / "conformance" / "http").glob("*.jsonl"))

ASSETS = [{"name": "BTC", "prec_save": 20, "prec_show": 8}, {"name": "USDT", "prec_save": 20}]
MARKET = {"name": "BTCUSDT", "stock": "BTC", "money": "USDT", "stock_prec": 8, "money_prec": 2}


def document(**sections):
    return {"assets": ASSETS, "markets": [MARKET], **sections}


def problems_of(found):
    with pytest.raises(ConfigurationError) as refused:
        configuration.parse(found)
    return refused.value.problems


def only_problem_of(found):
    problems = problems_of(found)
    assert len(problems) == 1, problems
    return problems[0]


def test_what_is_left_out_has_the_default_that_the_file_in_the_root_spells_out():
    written_out = configuration.load(ROOT / "exchange.toml")
    left_out = configuration.parse(document())
    for section in ("http", "binary", "journal", "rings", "limits", "matcher", "watcher", "cache"):
        assert getattr(written_out, section) == getattr(left_out, section)
    assert left_out.rings == RingSizes()
    assert left_out.assets[1].prec_show == 20
    assert (left_out.markets[0].fee_prec, left_out.markets[0].min_amount) == (4, "0.01")


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_every_recording_has_a_configuration_that_a_file_can_carry(path, tmp_path):
    config = json.loads(path.open(encoding="utf-8").readline())["meta"]["config"]
    made = configuration.from_recording(config, http={"port": 9000, "gateways": 2}, journal={"sync": "none"})
    assert [asset.name for asset in made.assets] == [asset["name"] for asset in config["assets"]]
    assert [market.min_amount for market in made.markets] == [
        market.get("min_amount", "0.01") for market in config["markets"]]
    assert (made.http.port, made.http.timeout_ms, made.rings.gateways, made.journal.sync) == (9000, 1000, 2, "none")
    configuration.write(made, tmp_path / "made.toml")
    assert configuration.load(tmp_path / "made.toml") == made


@given(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=3), st.text(max_size=20))
def test_any_text_survives_being_written(name, directory):
    settings = configuration.parse(document())
    settings = replace(settings, assets=(replace(settings.assets[0], name=name),), markets=(),
                       cache=configuration.Cache(directory.replace("\0", "")))
    assert configuration.parse(tomllib.loads(configuration.to_toml(settings))) == settings


def test_all_problems_stand_in_one_list_each_with_key_value_and_rule():
    problems = problems_of({
        "http": {"port": 99999, "timeout_ms": "1000", "pretty": 1},
        "journal": {"sync": "sometimes", "segment_bytes": 4097},
        "rings": {"command_slots": 1000},
        "limits": {"orders_max": 0, "levels_max": True},
        "assets": [{"name": "BTC", "prec_save": 21}, {"prec_save": 8}, ASSETS[1]],
        "markets": [{**MARKET, "money": "USD", "min_amount": 0.01}],
        "colour": "blue",
    })
    assert problems == [
        'colour = "blue": no such key; known here: http, binary, journal, snapshots, limits, matcher, watcher,'
        " cache, rings, assets, markets",
        "http.port = 99999: must be a whole number from 1 to 65535",
        'http.timeout_ms = "1000": must be a whole number from 1 to 10000',
        "http.pretty = 1: must be true or false",
        'journal.sync = "sometimes": must be "always", "interval" or "none"',
        "journal.segment_bytes = 4097: must be a whole number from 4096 to 17179869184, a multiple of 4096",
        "limits.orders_max = 0: must be a whole number from 1 to 1073741824",
        "limits.levels_max = true: must be a whole number from 1 to 1073741824",
        "rings.command_slots = 1000: must be a power of two from 64 to 16777216",
        'assets "BTC" prec_save = 21: must be a whole number from 0 to 20',
        "assets #2 name is missing: must be text of 1 to 15 bytes without control characters",
        'markets "BTCUSDT" min_amount = 0.01: must be a positive decimal number in quotes, such as "0.01", of at most'
        " 20 decimals, its digits together at most 9223372036854775807",
        'markets "BTCUSDT" money = "USD": must be the name of one of the assets; did you mean "USDT"?',
    ]


def test_an_unknown_key_is_told_with_the_one_that_was_meant():
    assert only_problem_of(document(http={"prot": 80})) == "http.prot = 80: no such key; did you mean port?"
    assert only_problem_of(document(journl={})) == "journl = {}: no such key; did you mean journal?"
    assert only_problem_of(document(markets=[{**MARKET, "stock_precision": 8}])) == (
        'markets "BTCUSDT" stock_precision = 8: no such key; did you mean stock_prec?')


def test_a_market_whose_fee_has_more_decimals_than_its_money_keeps_is_refused_in_words():
    # given the precisions that the original started with, cutting the fee silently
    assets = [ASSETS[0], {"name": "USDT", "prec_save": 12}]
    problem = only_problem_of({"assets": assets, "markets": [{**MARKET, "fee_prec": 3}]})
    # then the sum, the bound, the reason and the remedy are named
    assert problem == (
        'markets "BTCUSDT" stock_prec + money_prec + fee_prec = 13: must be at most the prec_save of USDT, 12: a'
        " seller's fee is price x amount x rate and has 2 + 8 + 3 decimals. The original server started with such a"
        " market and silently cut what did not fit off the seller's balance, while the deal showed the whole fee. Raise"
        " that prec_save (at most 20) or lower one of the three")


def test_a_buyers_fee_fits_what_the_stock_keeps():
    assets = [{"name": "BTC", "prec_save": 11}, ASSETS[1]]
    assert 'markets "BTCUSDT" stock_prec + fee_prec = 12: must be at most the prec_save of BTC, 11' in only_problem_of(
        {"assets": assets, "markets": [MARKET]})


@pytest.mark.parametrize(("found", "words"), [
    ({}, "assets is missing: at least one [[assets]]"),
    (document(assets=ASSETS + ASSETS[:1]), 'assets "BTC" name = "BTC": stands twice'),
    (document(markets=[MARKET, MARKET]), 'markets "BTCUSDT" name = "BTCUSDT": stands twice'),
    (document(assets=[*ASSETS, {"name": "ABCDEFGHIJKLMNOP", "prec_save": 8}]), "must be text of 1 to 15 bytes"),
    (document(assets=[*ASSETS, {"name": "ÄÖÜäöüßÄ", "prec_save": 8}]), "must be text of 1 to 15 bytes"),
    (document(assets=[*ASSETS, {"name": "A\n", "prec_save": 8}]), "without control characters"),
    (document(assets=[*ASSETS, {"name": "A", "prec_save": 8, "prec_show": 9}]),
     'assets "A" prec_show = 9: must be at most its prec_save, 8'),
    (document(markets=[{**MARKET, "name": "M" * 31}]), "must be text of 1 to 30 bytes"),
    (document(markets=[{**MARKET, "fee_prec": 10}]), "must be a whole number from 0 to 9"),
    (document(markets=[{**MARKET, "stock_prec": 19}]), "must be a whole number from 0 to 18"),
    (document(markets={"name": "X"}), "markets = {\"name\": \"X\"}: must be tables, each begun with [[markets]]"),
    (document(http=80), "http = 80: must be a table, [http]"),
    (document(http={"host": "a b"}), "http.host = \"a b\": must be a host name"),
    (document(binary={"gateways": 64}), "binary.gateways = 64: must be at most 63 beside http.gateways = 1"),
    (document(binary={"gateways": 1, "port": 8080}), "binary.port = 8080: must be another one than http.port"),
    (document(binary={"gateways": -1}), "binary.gateways = -1: must be a whole number from 0 to 64"),
    (document(http={"gateways": 65}), "http.gateways = 65: must be a whole number from 1 to 64"),
    (document(limits={"assets_max": 1}), "limits.assets_max = 1: must be at least 2, the number of [[assets]]"),
    (document(limits={"markets_max": 60000}), "rings.reply_slots = 8192: must be at least 11251"),
    (document(rings={"journal_slots": 65536}), "journal.segment_bytes = 33554432: must be at least 69234688"),
    (document(watcher={"stuck_after_ms": 1999}), "watcher.stuck_after_ms = 1999"),
])
def test_a_broken_rule_is_the_only_problem_told(found, words):
    assert words in only_problem_of(found)


@pytest.mark.parametrize("text", [
    "0.01", "1", "0.00000000000000000001", "92233720368.54775807", "1e3", "2.5E-3", "0.010"])
def test_a_smallest_amount_is_a_positive_decimal_number(text):
    assert configuration.parse(document(markets=[{**MARKET, "min_amount": text}])).markets[0].min_amount == text


@pytest.mark.parametrize("text", [
    "", "0", "0.0", "-1", "+1", " 1", "1_0", "nan", "inf", "1e99", "9223372036854775808", "0.000000000000000000001",
    "1.", ".1", "١"])
def test_a_smallest_amount_is_nothing_else(text):
    assert "must be a positive decimal number in quotes" in only_problem_of(
        document(markets=[{**MARKET, "min_amount": text}]))


@pytest.mark.parametrize("min_amount, stock_prec, taken", [
    ("9223372036854775807", 0, True), ("92233720368.54775807", 8, True),
    ("92233720369", 8, False), ("9223372036854775807", 1, False)])
def test_a_smallest_amount_is_one_that_an_order_can_have(min_amount, stock_prec, taken):
    made = document(markets=[{**MARKET, "min_amount": min_amount, "stock_prec": stock_prec}])
    if taken:
        assert configuration.parse(made).markets[0].min_amount == min_amount
    else:
        assert only_problem_of(made) == (
            f'markets "BTCUSDT" min_amount = "{min_amount}": must be at most 9223372036854775807 units of'
            f" 10^-{stock_prec}, as stock_prec says: no order could be as large")


def test_gateways_have_rows_in_the_rings_those_for_http_first():
    settings = configuration.parse(document(http={"gateways": 2}, binary={"gateways": 3}))
    assert settings.gateways == ("gateway-0", "gateway-1", "binary-0", "binary-1", "binary-2")
    assert [settings.role_of(name) - Role.GATEWAY for name in settings.gateways] == [0, 1, 2, 3, 4]
    assert (settings.role_of("matcher"), settings.role_of("watcher")) == (Role.MATCHER, Role.WATCHER)
    assert settings.rings.gateways == 5
    assert replace(settings, http=replace(settings.http, gateways=1)).rings.gateways == 4


def test_small_rings_are_taken_down_to_the_largest_reply():
    rings = {"command_slots": 64, "reply_slots": 128, "journal_slots": 128, "event_slots": 64}
    assert configuration.parse(document(rings=rings)).rings == RingSizes(1, 64, 128, 128, 64)


@pytest.mark.parametrize(("content", "words"), [
    (b"[http\n", "it is not TOML: "),
    (b"a = \xff", "byte 4 is not UTF-8 text"),
    (None, "there is no file "),
])
def test_a_file_that_cannot_be_read_is_a_problem_too(content, words, tmp_path):
    path = tmp_path / "exchange.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError) as refused:
        configuration.load(path)
    assert words in refused.value.problems[0] and str(path) in str(refused.value)


def test_a_relative_cache_directory_is_meant_from_the_files_folder(tmp_path):
    settings = configuration.parse(document(cache={"directory": "shared"}))
    configuration.write(settings, tmp_path / "exchange.toml")
    assert configuration.load(tmp_path / "exchange.toml").cache_root("/data") == tmp_path / "shared"
    assert configuration.parse(document()).cache_root("/data") == Path("/data/cache")


@pytest.mark.parametrize(("text", "address"), [
    ("127.0.0.1:8080", ("127.0.0.1", 8080)), ("[::1]:80", ("::1", 80)), ("localhost:65535", ("localhost", 65535))])
def test_an_address_is_host_and_port(text, address):
    assert configuration.parse_address(text) == address


@pytest.mark.parametrize("text", [
    "8080", ":8080", "::1:8080", "localhost", "localhost:0", "localhost:65536", "a b:1", "a:"])
def test_an_address_is_nothing_else(text):
    with pytest.raises(ConfigurationError, match="must be HOST:PORT"):
        configuration.parse_address(text)
