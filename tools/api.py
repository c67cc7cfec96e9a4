"""The API with types: a Python method for each of its methods, money as Decimal, errors in their parts.

An `Api` is whatever carries calls: `client.Client` over HTTP, `core_calls.CoreCalls` into a core in this process.
"""
import json
from decimal import Decimal
from enum import IntEnum
from typing import NamedTuple

from shm.records import LIST_LIMIT_MAX, OrderType, Side

Money = Decimal | int


class Code(IntEnum):
    """Error codes that mean the same for every method. From 10 on they are the method's own, told by the message."""
    INVALID_ARGUMENT = 1
    INTERNAL_ERROR = 2
    SERVICE_UNAVAILABLE = 3
    METHOD_NOT_FOUND = 4
    SERVICE_TIMEOUT = 5


OUTCOME_UNKNOWN = (Code.INTERNAL_ERROR, Code.SERVICE_TIMEOUT)


class CallRefused(Exception):
    """The answer is an error: `code`, `message`, and `data`, the details for people.

    `parameter`, `value`, `rule`, `limit` and `reason` are the parts of `data`, None where it has them not.
    """

    def __init__(self, code, message, data=None):
        super().__init__(f"code {code}, {message}" + (f": {json.dumps(data, ensure_ascii=False)}" if data else ""))
        self.code, self.message, self.data = code, message, data or {}
        self.parameter, self.value = self.data.get("parameter"), self.data.get("value")
        self.rule, self.limit = self.data.get("rule"), self.data.get("limit")
        self.reason = self.data.get("reason")

    @property
    def may_be_executed(self):
        """Whether a write may have been executed, or may be yet. With every other code it has changed nothing."""
        return self.code in OUTCOME_UNKNOWN


# Results, with the API's own names. Times are seconds since the epoch, to the microsecond.

class Asset(NamedTuple):
    name: str
    prec: int                  # decimals that are shown and accepted


class AssetSummary(NamedTuple):
    name: str
    total_balance: Decimal
    available_count: int       # of users
    available_balance: Decimal
    freeze_count: int
    freeze_balance: Decimal


class Balance(NamedTuple):
    available: Decimal
    freeze: Decimal


class Market(NamedTuple):
    name: str
    stock: str
    money: str
    fee_prec: int
    stock_prec: int
    money_prec: int
    min_amount: Decimal


class MarketSummary(NamedTuple):
    name: str
    ask_count: int
    ask_amount: Decimal
    bid_count: int
    bid_amount: Decimal


class Order(NamedTuple):
    id: int
    market: str
    source: str
    type: OrderType
    side: Side
    user: int
    ctime: float
    mtime: float               # of the last deal
    price: Decimal             # 0 of a market order
    amount: Decimal            # of a market bid: money
    taker_fee: Decimal         # rates
    maker_fee: Decimal
    left: Decimal
    deal_stock: Decimal
    deal_money: Decimal
    deal_fee: Decimal          # of an ask in money, of a bid in stock


class Page(NamedTuple):
    """Some orders of `total`."""
    offset: int
    limit: int
    total: int
    orders: list[Order]


class Level(NamedTuple):
    price: Decimal
    amount: Decimal


class Depth(NamedTuple):
    """Levels, best first."""
    asks: list[Level]
    bids: list[Level]


class Api:
    """Raises CallRefused for an error; money is a Decimal or an int, a float is a TypeError.

    More decimals than the asset or market has are cut by the exchange, not refused.
    """

    def call(self, method: str, *params):
        """The result of any method of the API, in JSON's types."""
        raise NotImplementedError

    # Assets and balances.

    def asset_list(self) -> list[Asset]:
        return _read_all(Asset, self.call("asset.list"))

    def asset_summary(self, *assets: str) -> list[AssetSummary]:
        """Of all assets where none is named."""
        return _read_all(AssetSummary, self.call("asset.summary", *assets))

    def balance_query(self, user_id: int, *assets: str) -> dict[str, Balance]:
        """By asset; of all assets where none is named."""
        balances = self.call("balance.query", user_id, *assets)
        return {asset: _read(Balance, balance) for asset, balance in balances.items()}

    def balance_update(self, user_id: int, asset: str, business: str, business_id: int, change: Money,
                       detail: dict | None = None) -> None:
        """Deposit, or withdraw with a change below zero.

        Safe to call again with the same business id when its outcome is unknown: one that was executed before changes
        nothing, and is refused with the message `repeat update`.
        """
        self.call("balance.update", user_id, asset, business, business_id, _text(change), detail or {})

    # Orders. When the outcome of a put is unknown, putting it again may double it: look for it with order_pending.

    def order_put_limit(self, user_id: int, market: str, side: Side, amount: Money, price: Money, taker_fee: Money,
                        maker_fee: Money, source: str) -> Order:
        """The order as it is after matching; what is `left` rests in the book."""
        return _read(Order, self.call("order.put_limit", user_id, market, int(side), _text(amount), _text(price),
                                      _text(taker_fee), _text(maker_fee), source))

    def order_put_market(self, user_id: int, market: str, side: Side, amount: Money, taker_fee: Money,
                         source: str) -> Order:
        """The order as it is after matching; what is `left` is dropped. A bid's amount is the money to spend."""
        return _read(Order, self.call("order.put_market", user_id, market, int(side), _text(amount), _text(taker_fee),
                                      source))

    def order_cancel(self, user_id: int, market: str, order_id: int) -> Order:
        """The order as it was. When the outcome is unknown, cancelling again is safe: it finds no order then."""
        return _read(Order, self.call("order.cancel", user_id, market, order_id))

    def order_book(self, market: str, side: Side, offset: int = 0, limit: int = LIST_LIMIT_MAX) -> Page:
        """The orders of one side, in the order in which they are matched."""
        page = self.call("order.book", market, int(side), offset, limit)
        return Page(page["offset"], page["limit"], page["total"], _read_all(Order, page["orders"]))

    def order_depth(self, market: str, limit: int = LIST_LIMIT_MAX, interval: Money = 0) -> Depth:
        """Price levels of both sides; merged to multiples of a positive interval."""
        depth = self.call("order.depth", market, limit, _text(interval))
        return Depth(*([Level(*map(Decimal, level)) for level in depth[side]] for side in Depth._fields))

    def order_pending(self, user_id: int, market: str, offset: int = 0, limit: int = LIST_LIMIT_MAX) -> Page:
        """The user's orders in the book, newest first."""
        page = self.call("order.pending", user_id, market, offset, limit)
        return Page(page["offset"], page["limit"], page["total"], _read_all(Order, page["records"]))

    def order_pending_detail(self, market: str, order_id: int) -> Order | None:
        """The order; None where the book does not hold it."""
        order = self.call("order.pending_detail", market, order_id)
        return order and _read(Order, order)

    # Markets.

    def market_list(self) -> list[Market]:
        return _read_all(Market, self.call("market.list"))

    def market_summary(self, *markets: str) -> list[MarketSummary]:
        """Of all markets where none is named."""
        return _read_all(MarketSummary, self.call("market.summary", *markets))


def _text(money):
    """The number as the API takes it, exactly."""
    if not isinstance(money, (Decimal, int)) or isinstance(money, bool):
        raise TypeError(f"{money!r} is no amount of money: it must be a Decimal or an int")
    return str(money)


def _read(kind, document):
    """A result from its JSON object: each field's annotation makes the value. Members that it does not name are new."""
    return kind(*(read(document[name]) for name, read in kind.__annotations__.items()))


def _read_all(kind, documents):
    return [_read(kind, document) for document in documents]
