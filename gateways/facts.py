"""The catalog as compiled code reads it: names to ids, and what numbers of an asset or a market are printed with."""
from typing import NamedTuple

import numpy as np
from numba import int64, uint32

from gateways.envelope import one_line
from shm.kernel import called, kernel
from shm.records import ASSET_NAME_BYTES_MAX, MARKET_NAME_BYTES_MAX, MONEY_DECIMALS

UNKNOWN = -1                   # no such name
_ESCAPED_MAX = 6               # bytes that one byte of a name may take as JSON
_HASH_BASIS, _HASH_PRIME = 2166136261, 16777619  # FNV-1a
_CELLS_PER_NAME = 4


def _facts(name_bytes_max, fields):
    return np.dtype([*fields, ("name_bytes", "u1"), ("json_bytes", "<u2"), ("json_begin", "<u4"),
                     ("name", "u1", (name_bytes_max,))], align=True)


ASSET_FACTS = _facts(ASSET_NAME_BYTES_MAX, [("prec_show", "u1")])
MARKET_FACTS = _facts(MARKET_NAME_BYTES_MAX, [
    ("amount_max", "<i8"),     # lots
    ("fee_one", "<i8"),        # a fee rate of 1
    ("stock_prec", "u1"), ("money_prec", "u1"), ("fee_prec", "u1"),
    ("deal_decimals", "u1"), ("ask_fee_decimals", "u1"), ("bid_fee_decimals", "u1"),
])


class Facts(NamedTuple):
    assets: np.ndarray         # ASSET_FACTS by id
    markets: np.ndarray        # MARKET_FACTS by id
    asset_cells: np.ndarray    # int32: ids by hash of the name, UNKNOWN where there is none
    market_cells: np.ndarray
    counts: np.ndarray         # int64: assets, markets, bytes of `json`
    json: np.ndarray           # uint8: every name as JSON text


ASSETS, MARKETS, JSON_BYTES = range(3)


def make_facts(limits):
    """Of an empty catalog that may grow to these limits."""
    return Facts(np.zeros(limits.assets_max, ASSET_FACTS), np.zeros(limits.markets_max, MARKET_FACTS),
                 _cells(limits.assets_max), _cells(limits.markets_max), np.zeros(3, np.int64),
                 np.zeros(limits.assets_max * (_ESCAPED_MAX * ASSET_NAME_BYTES_MAX + 2)
                          + limits.markets_max * (_ESCAPED_MAX * MARKET_NAME_BYTES_MAX + 2), np.uint8))


def _cells(names_max):
    return np.full(1 << (_CELLS_PER_NAME * names_max - 1).bit_length(), UNKNOWN, np.int32)


def learn(facts, catalog):
    """Make the facts those of the catalog, which has only grown."""
    for index in range(facts.counts[ASSETS], len(catalog.assets)):
        facts.assets[index]["prec_show"] = catalog.assets[index].prec_show
        _set_name(facts, facts.assets, facts.asset_cells, index, catalog.assets[index].name)
    for index in range(facts.counts[MARKETS], len(catalog.markets)):
        market, row = catalog.markets[index], facts.markets[index]
        row["amount_max"], row["fee_one"] = market.amount_max, 10**market.fee_prec
        for field in ("stock_prec", "money_prec", "fee_prec", "deal_decimals", "ask_fee_decimals", "bid_fee_decimals"):
            row[field] = getattr(market, field)
            assert row[field] <= MONEY_DECIMALS, (market.name, field)
        _set_name(facts, facts.markets, facts.market_cells, index, market.name)
    facts.counts[ASSETS], facts.counts[MARKETS] = len(catalog.assets), len(catalog.markets)


def _set_name(facts, rows, cells, index, name):
    row, text, json = rows[index], name.encode(), one_line(name)
    begin = facts.counts[JSON_BYTES]
    row["name_bytes"], row["json_bytes"], row["json_begin"] = len(text), len(json), begin
    row["name"][:len(text)] = np.frombuffer(text, np.uint8)
    facts.json[begin:begin + len(json)] = np.frombuffer(json, np.uint8)
    facts.counts[JSON_BYTES] += len(json)
    cell = hash_of(row["name"], 0, int(row["name_bytes"])) & (len(cells) - 1)
    while cells[cell] != UNKNOWN:
        cell = (cell + 1) & (len(cells) - 1)
    cells[cell] = index


@kernel
def hash_of(text, begin, end):
    value = uint32(_HASH_BASIS)
    for at in range(begin, end):
        value = uint32((value ^ text[at]) * _HASH_PRIME)
    return int64(value)


@called
def find(rows, cells, text, begin, end):
    """The id of the name text[begin:end], or UNKNOWN."""
    cell = hash_of(text, begin, end) & (len(cells) - 1)
    while cells[cell] != UNKNOWN:
        row = rows[cells[cell]]
        if row.name_bytes == end - begin:
            at = begin
            while at < end and row.name[at - begin] == text[at]:
                at += 1
            if at == end:
                return int64(cells[cell])
        cell = (cell + 1) & (len(cells) - 1)
    return int64(UNKNOWN)
