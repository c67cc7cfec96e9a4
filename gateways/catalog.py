"""Assets and markets as the gateway knows them: names to ids, and the decimals that each number is held with.

Learnt from the matcher's replies, never from the configuration. An id is a place in the list; the lists only grow.
"""
import struct

from gateways.facts import learn, make_facts
from gateways.messages import make_command
from shm.decimals import fmt
from shm.records import (
    ASSET,
    INT64_MAX,
    MARKET,
    MONEY_DECIMALS,
    WHOLE_UNITS_MAX,
    Kind,
    Result,
    struct_format,
)

_ASSET = struct.Struct(struct_format(ASSET))
_MARKET = struct.Struct(struct_format(MARKET))


class Asset:
    def __init__(self, row):
        self.prec_save, self.prec_show, name_bytes, name, _reserved = row
        self.name = name[:name_bytes].decode()
        self.saved_unit = 10 ** (MONEY_DECIMALS - self.prec_save)
        self.shown_unit = 10 ** (MONEY_DECIMALS - self.prec_show)


class Market:
    def __init__(self, row, assets):
        (self.min_units, stock_id, money_id, self.stock_prec, self.money_prec, self.fee_prec, self.min_decimals,
         name_bytes, name, _reserved) = row
        self.name = name[:name_bytes].decode()
        self.stock, self.money = assets[stock_id].name, assets[money_id].name
        self.min_amount = fmt(self.min_units, self.min_decimals)
        self.amount_max = min(INT64_MAX, WHOLE_UNITS_MAX * 10**self.stock_prec)  # lots
        self.deal_decimals = self.stock_prec + self.money_prec
        self.ask_fee_decimals = self.deal_decimals + self.fee_prec
        self.bid_fee_decimals = self.stock_prec + self.fee_prec


class Catalog:
    """`assets` and `markets` by id, `asset_ids` and `market_ids` by name, as of the matcher's `version`; `facts`: the
    same for compiled code."""

    def __init__(self, limits):
        """Empty, as of no version. `limits`: the configuration's, which bound how much a reply can list."""
        self.limits = limits
        self.version = -1
        self.assets, self.markets = [], []
        self.asset_ids, self.market_ids = {}, {}
        self.facts = make_facts(limits)

    def list_assets(self):
        """The command whose reply `update` takes."""
        return make_command(Kind.LIST_ASSETS, self.limits.assets_max, ASSET.itemsize)

    def list_markets(self):
        """The command whose reply `update` takes."""
        return make_command(Kind.LIST_MARKETS, self.limits.markets_max, MARKET.itemsize)

    def update(self, assets_reply, markets_reply):
        """Become what the replies say; returns False, changing nothing, where they are of different versions."""
        assert assets_reply.header.result == markets_reply.header.result == Result.OK
        if assets_reply.header.catalog_version != markets_reply.header.catalog_version:
            return False
        self.assets = [Asset(row) for row in assets_reply.rows(_ASSET, assets_reply.header.rows)]
        self.markets = [Market(row, self.assets) for row in markets_reply.rows(_MARKET, markets_reply.header.rows)]
        self.asset_ids = {asset.name: index for index, asset in enumerate(self.assets)}
        self.market_ids = {market.name: index for index, market in enumerate(self.markets)}
        self.version = assets_reply.header.catalog_version
        learn(self.facts, self)
        return True
