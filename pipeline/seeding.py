"""The configuration as commands: what it defines and the state does not have yet, to be journaled like any other."""
from decimal import Decimal

import numpy as np

from pipeline.state import ASSETS, ASSETS_MAX, BALANCES_MAX, LEVELS_MAX, MARKETS, MARKETS_MAX, ORDERS_MAX, RULES_VERSION
from shm.records import ASSET, COMMAND, LIMITS, MARKET, Kind


class Contradiction(Exception):
    """The configuration defines an asset or a market otherwise than the journal did."""


def limits_of(configuration):
    """The LIMITS record that the configuration asks for."""
    limits = np.zeros((), LIMITS)
    limits["rules_version"] = RULES_VERSION
    for name in ("orders_max", "levels_max", "balances_max", "assets_max", "markets_max"):
        limits[name] = getattr(configuration.limits, name)
    return limits


def _command(kind, record):
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


def _same(record, other, names):
    return all(int(record[name]) == int(other[name]) for name in names)


def commands(configuration, state):
    """(COMMAND, payload) of each definition that the state lacks, in the configuration's order.

    Raises Contradiction naming the asset or market whose definition differs from the journal's.
    """
    counters = state.counters
    wanted = limits_of(configuration)
    have = (ORDERS_MAX, LEVELS_MAX, BALANCES_MAX, ASSETS_MAX, MARKETS_MAX)
    if any(counters[word] != wanted[name] for word, name in zip(have, LIMITS.names[1:])):
        yield _command(Kind.SET_LIMITS, wanted)
    known = asset_names(state)
    for asset in configuration.assets:
        record = _asset_record(asset)
        if asset.name not in known:
            known.append(asset.name)
            yield _command(Kind.ADD_ASSET, record)
        elif not _same(record, state.assets[known.index(asset.name)], ("prec_save", "prec_show")):
            raise Contradiction(
                f"asset {asset.name}: the configuration says prec_save={asset.prec_save} prec_show={asset.prec_show},"
                " the journal defined it otherwise; precisions cannot change: restore the old values")
    asset_ids = {name: index for index, name in enumerate(known)}
    have_markets = market_names(state)
    for market in configuration.markets:
        record = _market_record(market, asset_ids)
        if market.name not in have_markets:
            yield _command(Kind.ADD_MARKET, record)
        elif not _same(record, state.markets[have_markets.index(market.name)], (
                "min_amount", "min_amount_decimals", "stock_asset_id", "money_asset_id", "stock_prec", "money_prec",
                "fee_prec")):
            raise Contradiction(
                f"market {market.name}: the journal defined it with other assets, precisions or min_amount;"
                " they cannot change: restore the old values")
