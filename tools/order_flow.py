"""Order flows: recorded ones from files, a synthetic one from a seed.

A recording is known by its content: a Bitstamp log (one event a line) or a Coinbase book (one JSON object), plain or
gzip.
"""
import gzip
import hashlib
import json
import os
import random
from dataclasses import dataclass
from decimal import Decimal, DecimalException
from pathlib import Path
from typing import NamedTuple

from shm.records import Side
from tools.report import Failed

ASK, BID = Side
PRICE_DECIMALS, AMOUNT_DECIMALS = 2, 8   # of both recordings
BITSTAMP = "bitstamp_btcusd_l3_20150501.log.gz"
COINBASE = "coinbase_btcusd_l3_snapshot_20260807.json.gz"
_CENT, _SATOSHI = Decimal("0.01"), Decimal("0.00000001")


class Put(NamedTuple):
    """A limit order. `key`: what the flow calls it."""
    key: object
    side: Side
    price: Decimal
    amount: Decimal


class Cancel(NamedTuple):
    key: object


class Filled(NamedTuple):
    """The record says that this order is filled: an exchange that still holds it differs, and has to let it go."""
    key: object


class Trade(NamedTuple):
    """A published trade."""
    price: Decimal
    amount: Decimal


class BookTop(NamedTuple):
    """A published picture of the best levels: [(price, amount)] a side, best first."""
    asks: list
    bids: list


@dataclass(frozen=True)
class OrderLog:
    """A recorded flow. `early`: orders from before its begin, as far as it tells them, to be put in advance."""
    sha256: str
    early: list
    events: list

    @property
    def puts(self):
        return [*self.early, *(event for event in self.events if isinstance(event, Put))]


@dataclass(frozen=True)
class Book:
    """All orders of a book, each side best first; none crosses another."""
    sha256: str
    puts: list


def recorded(name):
    """Where a recording is looked for, as the project does not hold them: in the folder that EXCHANGE_RECORDED_DATA
    names, else in ../shared/data beside the project."""
    folder = os.environ.get("EXCHANGE_RECORDED_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(folder) / name


def read(path):
    """The OrderLog or Book in a file; raises Failed naming the file and the line that is neither."""
    try:
        content = path.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        text = content.decode()
    except FileNotFoundError:
        raise Failed(f"{path} is not there: name a recorded order flow") from None
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise Failed(f"{path} cannot be read: {error}") from None
    flow = _book(path, sha256, text) if text[:1] == "{" else _order_log(path, sha256, text)
    if not flow.puts:
        raise Failed(f"{path} has no orders")
    return flow


def _book(path, sha256, text):
    try:
        document = json.loads(text)
        return Book(sha256, [_put(key, side, price, amount) for side, name in ((BID, "bids"), (ASK, "asks"))
                             for price, amount, key in document[name]])
    except (ValueError, TypeError, KeyError, DecimalException) as error:
        raise Failed(f"{path} is no book: a JSON object with bids and asks, lists of [price, amount, id]: {error!r}"
                     ) from None


def _order_log(path, sha256, text):
    events, created, early = [], set(), {}
    for number, line in enumerate(text.splitlines(), 1):
        try:
            _time, name, body = line.split(" ", 2)
            body = json.loads(body, parse_float=Decimal)
            event = _EVENTS[name](body)
        except (ValueError, TypeError, KeyError, IndexError, DecimalException) as error:
            raise Failed(f"{path} line {number}: not `time event JSON` of a Bitstamp log: {error!r}") from None
        if name in ("order_changed", "order_deleted") and body["id"] not in created:
            early.setdefault(body["id"], _created(body))
        if event is not None:
            events.append(event)
        if isinstance(event, Put):
            created.add(event.key)
    placeable = [put for key, put in sorted(early.items()) if key not in created and put.amount > 0]
    return OrderLog(sha256, placeable, events)


def _put(key, side, price, amount):
    """Raises where price and amount are not the text of numbers."""
    return Put(key, side, Decimal(price), Decimal(amount))


def _created(body):
    return _put(body["id"], {0: BID, 1: ASK}[body["order_type"]], body["price"], body["amount"])


def _deleted(body):
    return Cancel(body["id"]) if Decimal(body["amount"]) > 0 else Filled(body["id"])


def _trade(body):
    # The only numbers that were printed from doubles: 1.7885566900000001 means 1.78855669.
    return Trade(Decimal(body["price"]).quantize(_CENT), Decimal(body["amount"]).quantize(_SATOSHI))


def _book_top(body):
    return BookTop(*([(Decimal(price), Decimal(amount)) for price, amount in body[side]] for side in ("asks", "bids")))


def _nothing(_body):
    """A change is what a fill did: the exchange makes it by itself."""


_EVENTS = {
    "order_created": _created, "order_changed": _nothing, "order_deleted": _deleted, "trade": _trade,
    "order_book": _book_top,
}


class SyntheticFlow:
    """An endless random flow of one client: of 100 requests about 60 are limit orders near a price that wanders, 30
    cancel one of its resting orders, 10 are market orders. The same seed and client draw the same.
    """

    def __init__(self, seed, client, market, price, users):
        """`price`: where the orders begin; `users`: ids to trade as."""
        self._random = random.Random(f"{seed} {client}")
        self._market, self._price, self._users = market.name, float(price), users
        self._price_decimals = market.money_prec
        self._amount_decimals = market.stock_prec
        self._least = float(market.min_amount)
        self._resting = []         # (user, order id)

    def next_call(self):
        """(method, params) of the next request."""
        draw = self._random
        user, side, dice = draw.choice(self._users), draw.choice((ASK, BID)), draw.random()
        if dice < 0.3 and self._resting:
            at = draw.randrange(len(self._resting))
            self._resting[at], self._resting[-1] = self._resting[-1], self._resting[at]
            user, order_id = self._resting.pop()
            return "order.cancel", [user, self._market, order_id]
        amount = self._least * draw.uniform(1.01, 100)
        if dice > 0.9:
            if side == BID:
                amount *= self._price  # a market bid's amount is money
            return "order.put_market", [user, self._market, side, self._text(amount, self._amount_decimals), "0.002",
                                        "feed"]
        self._price *= 1 + draw.gauss(0, 0.0001)
        price = self._price * (1 + (1 if side == ASK else -1) * draw.expovariate(1 / 0.002) + draw.gauss(0, 0.0005))
        return "order.put_limit", [
            user, self._market, side, self._text(amount, self._amount_decimals),
            self._text(price, self._price_decimals), "0.002", "0.001", "feed"]

    def answered(self, method, result):
        """What came of a request that was not refused."""
        if method == "order.put_limit" and Decimal(result["left"]) > 0:
            self._resting.append((result["user"], result["id"]))

    @staticmethod
    def _text(number, decimals):
        """At least one unit of the last decimal."""
        return f"{max(number, 10**-decimals):.{decimals}f}"
