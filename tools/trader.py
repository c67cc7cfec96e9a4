"""Sends orders of a flow to one market, as many users, and knows what must have come of them.

An `Api` reaches the exchange, over HTTP or in this process. `find_trades` says which trades an order made.
"""
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from typing import NamedTuple

from tools.api import CallRefused
from tools.order_flow import ASK, BID
from tools.report import Failed

USER_FIRST = 1_000_001         # no user of anybody's, one would think
USERS = 100
TAKER_FEE, MAKER_FEE = Decimal("0.002"), Decimal("0.001")
FUNDS_FACTOR = 10              # times what the orders can need: enough for further runs with the same deposits
BOOK_PAGE = 100


class Made(NamedTuple):
    """A trade that an order made, by id of the order that was resting."""
    maker_id: int
    price: Decimal
    amount: Decimal


@dataclass
class Resting:
    key: object
    user: int
    order_id: int
    side: int
    price: Decimal
    left: Decimal


class Trader:
    def __init__(self, api, market, find_trades):
        """`find_trades(trader, order)` gives [Made] for an Order that has deals; it is called before the trader counts
        them in.
        """
        self.api, self.market, self._find_trades = api, market, find_trades
        self.name = market.name
        self.resting = {}          # order id: Resting
        self.order_ids = {}        # key: (user, order id) of every order accepted
        self.rejections = Counter()  # "method: code message"
        self.refused = 0           # orders
        self.fees = Counter()      # asset: what the trades cost
        self._before = {}          # asset: its summary, once the deposits are made

    def user_of(self, key):
        return USER_FIRST + zlib.crc32(str(key).encode()) % USERS

    def fund(self, puts, seed):
        """Deposit what the orders can need. Doing it again with this seed deposits nothing."""
        needed = defaultdict(Decimal)
        for put in puts:
            asset, need = (self.market.stock, put.amount) if put.side == ASK \
                else (self.market.money, put.amount * put.price)
            needed[self.user_of(put.key), asset] += need
        for (user, asset), need in sorted(needed.items()):
            amount = (need * FUNDS_FACTOR).to_integral_value(ROUND_CEILING)
            deposit(self.api, user, asset, amount, seed)
        self._before = self._summaries()

    def put(self, put):
        """[Made] of a limit order; None where it was refused."""
        user = self.user_of(put.key)
        try:
            order = self.api.order_put_limit(
                user, self.name, put.side, put.amount, put.price, TAKER_FEE, MAKER_FEE, "feed")
        except CallRefused as refusal:
            self._reject("order.put_limit", refusal)
            self.refused += 1
            return None
        self.order_ids[put.key] = user, order.id
        made = self._find_trades(self, order) if order.deal_stock else []
        for trade in made:
            self._count_in(put.side, trade)
        if order.left > 0:
            self.resting[order.id] = Resting(put.key, user, order.id, put.side, put.price, order.left)
        return made

    def _count_in(self, taker_side, trade):
        maker = self.resting.get(trade.maker_id)
        if maker is None:
            raise Failed(f"order {trade.maker_id} of somebody else is dealt with: nobody else may use {self.name} now")
        maker.left -= trade.amount
        if maker.left == 0:
            del self.resting[trade.maker_id]
        ask_rate, bid_rate = (TAKER_FEE, MAKER_FEE) if taker_side == ASK else (MAKER_FEE, TAKER_FEE)
        self.fees[self.market.money] += trade.price * trade.amount * ask_rate
        self.fees[self.market.stock] += trade.amount * bid_rate

    def cancel(self, key):
        """Whether the order was found and is cancelled."""
        if key not in self.order_ids:
            return False
        user, order_id = self.order_ids[key]
        try:
            self.api.order_cancel(user, self.name, order_id)
        except CallRefused as refusal:
            self._reject("order.cancel", refusal)
            return False
        self.resting.pop(order_id, None)
        return True

    def _reject(self, method, refusal):
        self.rejections[f"{method}: {refusal.code} {refusal.message}"] += 1

    def resting_at_the_exchange(self):
        """{order id: (side, price, left)} of all orders in the exchange's book."""
        found = {}
        for side in (ASK, BID):
            offset, total = 0, 1
            while offset < total:
                page = self.api.order_book(self.name, side, offset, BOOK_PAGE)
                total, offset = page.total, offset + BOOK_PAGE
                found.update((order.id, (side, order.price, order.left)) for order in page.orders)
        return found

    def problems(self):
        """What is not well since `fund`, in words: every order was taken; deposits - fees = balances, exactly; frozen
        is what resting orders need; the book is what was sent and dealt.

        Only this trader may have traded in these assets meanwhile.
        """
        problems = [f"{self.refused} orders are refused"] if self.refused else []
        needed = Counter({self.market.stock: Decimal(0), self.market.money: Decimal(0)})
        for order in self.resting.values():
            asset, need = (self.market.stock, order.left) if order.side == ASK \
                else (self.market.money, order.left * order.price)
            needed[asset] += need
        for asset, after in self._summaries().items():
            before = self._before[asset]
            for what, expected, got in (
                    ("total", before.total_balance - self.fees[asset], after.total_balance),
                    ("frozen", before.freeze_balance + needed[asset], after.freeze_balance)):
                if expected != got:
                    problems.append(f"{asset}: the {what} should be {expected}, and is {got}")
        expected = {order.order_id: (order.side, order.price, order.left) for order in self.resting.values()}
        got = self.resting_at_the_exchange()
        if differing := {order_id for order_id, _order in expected.items() ^ got.items()}:
            first = min(differing)
            problems.append(f"{len(differing)} orders of the book differ from what was sent and dealt: order {first}"
                            f" should be {_shown(expected.get(first))}, and is {_shown(got.get(first))}")
        return problems

    def _summaries(self):
        return {summary.name: summary for summary in self.api.asset_summary(self.market.stock, self.market.money)}


def _shown(order):
    return "gone" if order is None else "side {}, price {}, left {}".format(*order)


def find_market(api, name=None):
    """The Market of that name, or the first one; raises Failed where there is none."""
    markets = {market.name: market for market in api.market_list()}
    if name is None:
        return next(iter(markets.values()))
    if name not in markets:
        raise Failed(f"the exchange has no market {name}; it has {', '.join(markets)}")
    return markets[name]


def deposit(api, user, asset, amount, seed):
    """Deposit once: a repeat changes nothing. The business id is the seed."""
    try:
        api.balance_update(user, asset, "feed", seed, amount)
    except CallRefused as refusal:
        if refusal.message != "repeat update":
            raise Failed(f"depositing {amount} {asset} for user {user} is refused: {refusal}") from None
