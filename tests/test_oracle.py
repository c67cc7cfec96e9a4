"""The core and the plain reference agree on every reply, event and balance of random commands, and money is conserved.

`--oracle-commands 1000000` is a full run; `--oracle-seed` another one. A failure prints the few requests that do it.
"""
import json
import random
import time
from collections import Counter
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracle import episode
from tests.oracle.commands import FEES, INTEGERS, INTERVALS, NOT_NUMBERS, NUMBERS, PROFILES, TEXTS, random_config
from tests.oracle.comparison import Comparison

RECORDINGS = Path(__file__).parent / "conformance" / "http"
CONFIG = json.loads((RECORDINGS / "q12_prec_zero_everywhere.jsonl").read_text().partition("\n")[0])["meta"]["config"]
EPISODE_COMMANDS = 2_000
# What a flow must have reached: these answers of these methods, by their code.
REACHED = {(method, code) for method, codes in {
    "balance.update": (0, 1, 10, 11), "order.put_limit": (0, 1, 10, 11), "order.put_market": (0, 1, 10, 11, 12),
    "order.cancel": (0, 1, 10, 11), "order.book": (0, 1), "order.depth": (0, 1), "order.pending": (0, 1),
    "order.pending_detail": (0, 1), "balance.query": (0, 1), "asset.summary": (0, 1), "market.summary": (0, 1),
    "asset.list": (0,), "market.list": (0,), "no.such": (4,), "order.finished": (2,)}.items() for code in codes}


def test_core_and_reference_agree_on_random_commands(request):
    wanted, seed = request.config.getoption("--oracle-commands"), request.config.getoption("--oracle-seed")
    print(f"{wanted} commands from seed {seed} on")
    codes, done, deals, resting_max, began = Counter(), 0, 0, 0, time.monotonic()
    while done < wanted:
        profile = PROFILES[seed % len(PROFILES)]
        config = CONFIG if seed // len(PROFILES) % 2 == 0 else random_config(random.Random(seed))
        comparison = episode.run(profile, config, seed, min(EPISODE_COMMANDS, wanted - done))
        codes.update(comparison.codes)
        deals, resting_max = deals + comparison.deals, max(resting_max, comparison.resting_max)
        done += sum(comparison.codes.values())
        seed += 1
    print(f"{done} commands in {time.monotonic() - began:.1f} s, {deals} deals, at most {resting_max} orders at rest:"
          f" {sorted(codes.items())}")
    assert done == wanted
    assert wanted < 50_000 or set(codes) >= REACHED


# The same, found and shrunk by hypothesis.

def call(method, *parameters):
    return st.tuples(st.just(method), st.tuples(*parameters).map(list))


def text_of(units, decimals):
    digits = str(units).rjust(decimals + 1, "0")
    return f"{digits[:-decimals]}.{digits[-decimals:]}" if decimals else digits


USER = st.sampled_from([1, 2, 3]) | st.sampled_from(INTEGERS)
SIDE = st.sampled_from([1, 2])
FEE = st.sampled_from(FEES)
NUMBER = st.one_of(
    st.sampled_from(["1", "2", "0.5", "100", "3"]), st.sampled_from(NUMBERS), st.sampled_from(NOT_NUMBERS),
    st.builds(text_of, st.integers(0, 2**64), st.integers(0, 21)))
CHANGE = st.sampled_from(["1000", "1e17", "-1", "1e18"]) | NUMBER
ORDER_ID = st.integers(1, 12) | st.sampled_from(INTEGERS)
SMALL = st.integers(0, 5) | st.sampled_from(INTEGERS)
SOURCE = st.sampled_from(TEXTS)


def requests_for(config):
    market = st.sampled_from([market["name"] for market in config["markets"][:2]])
    asset = st.sampled_from([asset["name"] for asset in config["assets"]])
    return st.lists(st.one_of(
        call("balance.update", USER, asset, SOURCE, st.integers(0, 3), CHANGE, st.just({})),
        call("order.put_limit", USER, market, SIDE, NUMBER, NUMBER, FEE, FEE, SOURCE),
        call("order.put_market", USER, market, SIDE, NUMBER, FEE, SOURCE),
        call("order.cancel", USER, market, ORDER_ID),
        call("order.book", market, SIDE, SMALL, SMALL),
        call("order.depth", market, SMALL, st.sampled_from(INTERVALS) | NUMBER),
        call("order.pending", USER, market, SMALL, SMALL),
        call("order.pending_detail", market, ORDER_ID),
        call("balance.query", USER, asset), call("asset.summary"), call("market.summary", market),
    ), min_size=1, max_size=40)


CONFIGS = st.just(CONFIG) | st.integers(0, 2**32).map(lambda seed: random_config(random.Random(seed)))


@settings(max_examples=150)
@given(st.data())
def test_core_and_reference_agree_on_whatever_is_sent(data):
    config = data.draw(CONFIGS)
    comparison, moments = Comparison(config), episode.times()
    for number, asset in enumerate(config["assets"]):
        comparison.step("balance.update", [1 + number % 2, asset["name"], "begin", number, "100000", {}], next(moments))
    for method, params in data.draw(requests_for(config)):
        comparison.step(method, params, next(moments))
    comparison.finish()
