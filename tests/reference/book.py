"""Orders, and the book of one market in which limit orders rest."""

from bisect import bisect_left, insort
from dataclasses import dataclass
from decimal import Decimal

from .decimals import ZERO, fmt

ASK, BID = 1, 2
LIMIT, MARKET = 1, 2


@dataclass
class Order:
    """One order. `left` counts stock; only a market bid counts the money it still has to spend."""

    id: int
    market: str
    source: str
    type: int
    side: int
    user: int
    created_at: int  # nanoseconds
    updated_at: int  # its last deal, or its creation
    price: Decimal
    amount: Decimal
    taker_fee: Decimal
    maker_fee: Decimal
    left: Decimal
    deal_stock: Decimal = ZERO
    deal_money: Decimal = ZERO
    deal_fee: Decimal = ZERO

    def to_json(self):
        """The order object of the API, as the order is now."""
        return {
            "id": self.id,
            "market": self.market,
            "source": self.source,
            "type": self.type,
            "side": self.side,
            "user": self.user,
            "ctime": seconds(self.created_at),
            "mtime": seconds(self.updated_at),
            "price": fmt(self.price),
            "amount": fmt(self.amount),
            "taker_fee": fmt(self.taker_fee),
            "maker_fee": fmt(self.maker_fee),
            "left": fmt(self.left),
            "deal_stock": fmt(self.deal_stock),
            "deal_money": fmt(self.deal_money),
            "deal_fee": fmt(self.deal_fee),
        }


def seconds(nanoseconds):
    """Time as the API shows it, whole microseconds."""
    return nanoseconds // 1_000 / 1_000_000


class Book:
    """The resting orders of a market. A side is sorted best price first, then oldest, which is the lowest id."""

    def __init__(self):
        self.by_id = {}
        self.by_user = {}  # user: {id: order}, ids ascending, because an order rests as soon as it is numbered
        self.places = {ASK: [], BID: []}  # (price, ascending when better; id)

    def insert(self, order):
        insort(self.places[order.side], _place(order))
        self.by_id[order.id] = order
        self.by_user.setdefault(order.user, {})[order.id] = order

    def remove(self, order):
        places = self.places[order.side]
        del places[bisect_left(places, _place(order))]
        del self.by_id[order.id]
        del self.by_user[order.user][order.id]

    def count(self, side):
        return len(self.places[side])

    def best(self, side):
        """The order first in line, or None."""
        return self.by_id[self.places[side][0][1]] if self.places[side] else None

    def in_priority(self, side):
        """The side's orders, first in line first."""
        return (self.by_id[order_id] for _, order_id in self.places[side])

    def newest_of(self, user):
        """A user's orders, newest first."""
        return list(reversed(self.by_user.get(user, {}).values()))

    def levels(self, side, interval, limit):
        """At most `limit` (price, amount) levels; prices rounded away from the spread to multiples of `interval`.

        An interval of zero leaves prices as they are.
        """
        levels = []
        for order in self.in_priority(side):
            price = _level_price(order, interval)
            if levels and levels[-1][0] == price:
                levels[-1][1] += order.left
            elif len(levels) == limit:
                break
            else:
                levels.append([price, order.left])
        return levels


def _place(order):
    return (order.price if order.side == ASK else -order.price, order.id)


def _level_price(order, interval):
    if not interval:
        return order.price
    below = order.price // interval * interval
    return below + interval if order.side == ASK and below < order.price else below
