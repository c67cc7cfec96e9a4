"""The configuration as commands: what it defines and the state does not have yet, to be journaled like any other."""
import json
from decimal import Decimal

import numpy as np

from pipeline.state import (
    ASSETS,
    ASSETS_MAX,
    BALANCES,
    BALANCES_MAX,
    LEVELS,
    LEVELS_MAX,
    MARKETS,
    MARKETS_MAX,
    ORDERS,
    ORDERS_MAX,
    RULES_VERSION,
)
from shm.records import ASSET, COMMAND, LIMITS, MARKET, Kind

_CAPACITIES = (                # key under [limits], counter of the capacity, counter of what is in use
    ("orders_max", ORDERS_MAX, ORDERS), ("levels_max", LEVELS_MAX, LEVELS), ("balances_max", BALANCES_MAX, BALANCES),
    ("assets_max", ASSETS_MAX, ASSETS), ("markets_max", MARKETS_MAX, MARKETS))


class Contradiction(Exception):
    """The configuration defines something otherwise than the journal did; `problems` lists every one."""

    def __init__(self, problems):
        self.problems = problems
        super().__init__("\n".join([
            "the configuration contradicts the journal; restore the values that it has, nothing was changed:",
            *(f"  - {problem}" for problem in problems)]))


def limits_of(configuration):
    """The LIMITS record that the configuration asks for."""
    limits = np.zeros((), LIMITS)
    limits["rules_version"] = RULES_VERSION
    for name, _word, _used in _CAPACITIES:
        limits[name] = getattr(configuration.limits, name)
    return limits


def definition(kind, record):
    """(COMMAND, payload) that asks for this definition: a LIMITS, an ASSET, a MARKET."""
    command = np.zeros((), COMMAND)
    command["kind"], command["slots"], command["payload_bytes"] = kind, 2, record.dtype.itemsize
    return command, record.tobytes()


def _name(record, text):
    encoded = text.encode()
    record["name_bytes"] = len(encoded)
    record["name"][:len(encoded)] = np.frombuffer(encoded, np.uint8)


def _text(record):
    return record["name"][:record["name_bytes"]].tobytes().decode()


def asset_names(state):
    return [_text(asset) for asset in state.assets[:state.counters[ASSETS]]]


def market_names(state):
    return [_text(market) for market in state.markets[:state.counters[MARKETS]]]


def _asset_record(asset):
    record = np.zeros((), ASSET)
    record["prec_save"], record["prec_show"] = asset.prec_save, asset.prec_show
    _name(record, asset.name)
    return record


def _market_record(market, asset_ids):
    record = np.zeros((), MARKET)
    _sign, digits, exponent = Decimal(market.min_amount).as_tuple()
    mantissa = int("".join(map(str, digits))) * 10 ** max(exponent, 0)
    record["min_amount"], record["min_amount_decimals"] = mantissa, max(-exponent, 0)
    record["stock_asset_id"], record["money_asset_id"] = asset_ids[market.stock], asset_ids[market.money]
    for name in ("stock_prec", "money_prec", "fee_prec"):
        record[name] = getattr(market, name)
    _name(record, market.name)
    return record


def commands(configuration, state):
    """[(COMMAND, payload)] of the definitions that the state lacks, in the configuration's order.

    Raises Contradiction with every one that the state has otherwise: then nothing of it may be applied.
    """
    counters = state.counters
    known, markets = asset_names(state), market_names(state)
    new_assets = [asset for asset in configuration.assets if asset.name not in known]
    new_markets = [market for market in configuration.markets if market.name not in markets]
    problems = _capacity_problems(configuration, state, len(new_assets), len(new_markets))
    for asset in configuration.assets:
        if asset.name in known:
            problems += _differences("assets", asset, _asset_of(state.assets[known.index(asset.name)]))
    for market in configuration.markets:
        if market.name in markets:
            problems += _differences("markets", market, _market_of(state.markets[markets.index(market.name)], known))
    if problems:
        raise Contradiction(problems)
    made = []
    wanted = limits_of(configuration)
    if any(counters[word] != wanted[name] for name, word, _used in _CAPACITIES):
        made.append(definition(Kind.SET_LIMITS, wanted))
    made += [definition(Kind.ADD_ASSET, _asset_record(asset)) for asset in new_assets]
    ids = {name: index for index, name in enumerate([*known, *(asset.name for asset in new_assets)])}
    return made + [definition(Kind.ADD_MARKET, _market_record(market, ids)) for market in new_markets]


def _asset_of(record):
    return {name: int(record[name]) for name in ("prec_save", "prec_show")}


def _market_of(record, names):
    return {
        "stock": names[record["stock_asset_id"]], "money": names[record["money_asset_id"]],
        **{name: int(record[name]) for name in ("stock_prec", "money_prec", "fee_prec")},
        "min_amount": Decimal(int(record["min_amount"])).scaleb(-int(record["min_amount_decimals"]))}


def _differences(table, wanted, have):
    """A line for each key in which the configuration's definition is not the journal's."""
    return [
        f'{table} "{wanted.name}" {key} = {_shown(getattr(wanted, key))}: the journal has {_shown(value)}, which cannot'
        " change" for key, value in have.items() if type(value)(getattr(wanted, key)) != value]


def _shown(value):
    return f'"{value:f}"' if isinstance(value, Decimal) else json.dumps(value, ensure_ascii=False)


def _capacity_problems(configuration, state, new_assets, new_markets):
    """A line for each capacity below what is in use or will be."""
    more = {"assets_max": new_assets, "markets_max": new_markets}
    problems = []
    for name, _word, used in _CAPACITIES:
        wanted, needed = getattr(configuration.limits, name), int(state.counters[used]) + more.get(name, 0)
        if wanted < needed:
            problems.append(f"limits.{name} = {wanted}: the journal needs at least {needed}")
    return problems
