"""The thirteen methods of the matching engine, written to be believed by reading."""

from dataclasses import dataclass, field
from decimal import Decimal, localcontext

from . import arguments
from .arguments import INT64_MAX, WHOLE_UNITS_MAX, Refused, require
from .book import ASK, BID, LIMIT, MARKET, Book, Order
from .decimals import CUT, EXACT, ZERO, cut, fmt
from .ledger import Ledger

METHOD_NOT_FOUND = (4, "method not found")
REPEAT_UPDATE = (10, "repeat update")
CHANGE_NOT_COVERED = (11, "balance not enough")
ORDER_NOT_COVERED = (10, "balance not enough")
AMOUNT_TOO_SMALL = (11, "amount too small")
NO_ENOUGH_TRADER = (12, "no enough trader")
ORDER_NOT_FOUND = (10, "order not found")
USER_NOT_MATCH = (11, "user not match")

PUT, UPDATE, FINISH = 1, 2, 3  # what an order event tells


@dataclass(frozen=True)
class Asset:
    name: str
    prec_save: int
    prec_show: int


@dataclass(frozen=True)
class Market:
    name: str
    stock: str
    money: str
    stock_prec: int
    money_prec: int
    fee_prec: int
    min_amount: Decimal
    book: Book = field(default_factory=Book)

    def needs(self, side, price, left):
        """(asset, amount) that an order for `left` stock at `price` has to hold."""
        return (self.stock, left) if side == ASK else (self.money, price * left)


class ReferenceExchange:
    """An exchange in memory: `call` answers one request and appends what happened to `events`.

    ("balance", user, asset, business, business_id, change, total balance after)
    ("deal", deal_id, market, price, amount, deal, ask_fee, bid_fee, ask_order_id, bid_order_id, ask_user, bid_user,
        taker_side, [(user, asset, total balance after) of the taker's outflow, inflow, fee, then the maker's])
    ("order", 1 put | 2 update | 3 finish, the order object as it is at that moment)
    """

    def __init__(self, config):
        self.assets = {asset["name"]: _asset(asset) for asset in config["assets"]}
        self.markets = {market["name"]: _market(market) for market in config["markets"]}
        self.ledger = Ledger({asset.name: asset.prec_save for asset in self.assets.values()})
        self.applied_updates = set()  # for ever
        self.last_order_id = 0
        self.last_deal_id = 0
        self.now = 0  # of the call being answered
        self.events = []
        self.methods = {
            "asset.list": self._asset_list,
            "asset.summary": self._asset_summary,
            "balance.query": self._balance_query,
            "balance.update": self._balance_update,
            "order.put_limit": self._put_limit,
            "order.put_market": self._put_market,
            "order.cancel": self._cancel,
            "order.book": self._order_book,
            "order.depth": self._depth,
            "order.pending": self._pending,
            "order.pending_detail": self._pending_detail,
            "market.list": self._market_list,
            "market.summary": self._market_summary,
        }

    def call(self, method, params, now):
        """(result, error) of a request that arrived `now`, in nanoseconds; error is None or (code, message)."""
        if method not in self.methods:
            return None, METHOD_NOT_FOUND
        self.now = now
        with localcontext(EXACT):
            try:
                return self.methods[method](params), None
            except Refused as refusal:
                return None, refusal.args

    def balances(self):
        """{(user, asset): (available, frozen)} of everybody who owns something."""
        available, frozen = self.ledger.available, self.ledger.frozen
        return {
            (user, asset): (available[asset].get(user, ZERO), frozen[asset].get(user, ZERO))
            for asset in self.assets
            for user in available[asset].keys() | frozen[asset].keys()
        }

    def totals(self):
        """Per asset: everything that came in, went out, was paid in fees, is available, is frozen."""
        with localcontext(EXACT):
            return {
                asset: {
                    "deposits": self.ledger.deposits[asset],
                    "withdrawals": self.ledger.withdrawals[asset],
                    "fees": self.ledger.fees[asset],
                    "available": sum(self.ledger.available[asset].values(), ZERO),
                    "frozen": sum(self.ledger.frozen[asset].values(), ZERO),
                }
                for asset in self.assets
            }

    # assets and balances

    def _asset_list(self, params):
        return [{"name": asset.name, "prec": asset.prec_show} for asset in self.assets.values()]

    def _asset_summary(self, params):
        return [self._summary_of_asset(asset) for asset in arguments.some_of(params, self.assets)]

    def _summary_of_asset(self, asset):
        available = self.ledger.available[asset.name].values()
        frozen = self.ledger.frozen[asset.name].values()
        return {
            "name": asset.name,
            "total_balance": fmt(sum(available, ZERO) + sum(frozen, ZERO)),
            "available_count": len(available),
            "available_balance": fmt(sum(available, ZERO)),
            "freeze_count": len(frozen),
            "freeze_balance": fmt(sum(frozen, ZERO)),
        }

    def _balance_query(self, params):
        require(len(params) >= 1)
        user = arguments.user_id(params[0])
        return {
            asset.name: {
                "available": _shown(self.ledger.available[asset.name].get(user), asset),
                "freeze": _shown(self.ledger.frozen[asset.name].get(user), asset),
            }
            for asset in arguments.some_of(params[1:], self.assets)
        }

    def _balance_update(self, params):
        require(len(params) == 6)
        user = arguments.user_id(params[0])
        asset = arguments.one_of(params[1], self.assets)
        business = arguments.text(params[2])
        business_id = arguments.integer(params[3])
        change = arguments.balance_change(params[4], asset.prec_show)
        arguments.detail(params[5], business_id)

        key = (user, asset.name, business, business_id)
        if key in self.applied_updates:
            raise Refused(*REPEAT_UPDATE)
        if change >= 0:
            require(self.ledger.deposited(asset.name) + change <= WHOLE_UNITS_MAX)
            self.ledger.deposit(user, asset.name, change)
        else:
            if self.ledger.available_of(user, asset.name) < -change:
                raise Refused(*CHANGE_NOT_COVERED)
            self.ledger.withdraw(user, asset.name, -change)
        self.applied_updates.add(key)
        balance = self.ledger.total_of(user, asset.name)
        self.events.append(("balance", user, asset.name, business, business_id, change, balance))
        return {"status": "success"}

    # orders

    def _put_limit(self, params):
        require(len(params) == 8)
        user = arguments.user_id(params[0])
        market = arguments.one_of(params[1], self.markets)
        side = arguments.side(params[2])
        amount = arguments.order_amount(params[3], market.stock_prec)
        price = arguments.order_number(params[4], market.money_prec)
        taker_fee = arguments.fee_rate(params[5], market.fee_prec)
        maker_fee = arguments.fee_rate(params[6], market.fee_prec)
        source = arguments.text(params[7])
        require(price * amount <= WHOLE_UNITS_MAX)

        asset, needed = market.needs(side, price, amount)
        if self.ledger.available_of(user, asset) < needed:
            raise Refused(*ORDER_NOT_COVERED)
        if amount < market.min_amount:
            raise Refused(*AMOUNT_TOO_SMALL)

        order = self._new_order(market, LIMIT, side, user, price, amount, taker_fee, maker_fee, source)
        self._match(market, order)
        if order.left > 0:
            self._tell(PUT, order)
            market.book.insert(order)
            self.ledger.freeze(user, *market.needs(side, price, order.left))
        else:
            self._tell(FINISH, order)
        return order.to_json()

    def _put_market(self, params):
        require(len(params) == 6)
        user = arguments.user_id(params[0])
        market = arguments.one_of(params[1], self.markets)
        side = arguments.side(params[2])
        amount = arguments.order_amount(params[3], market.stock_prec)  # a bid's money is cut to stock decimals too
        taker_fee = arguments.fee_rate(params[4], market.fee_prec)
        source = arguments.text(params[5])

        asset = market.stock if side == ASK else market.money
        if self.ledger.available_of(user, asset) < amount:
            raise Refused(*ORDER_NOT_COVERED)
        best = market.book.best(_opposite(side))
        if best is None:
            raise Refused(*NO_ENOUGH_TRADER)
        if amount < (market.min_amount if side == ASK else best.price * market.min_amount):
            raise Refused(*AMOUNT_TOO_SMALL)

        order = self._new_order(market, MARKET, side, user, ZERO, amount, taker_fee, ZERO, source)
        self._match(market, order)
        self._tell(FINISH, order)
        return order.to_json()

    def _cancel(self, params):
        require(len(params) == 3)
        user = arguments.user_id(params[0])
        market = arguments.one_of(params[1], self.markets)
        order = market.book.by_id.get(arguments.integer(params[2]))
        if order is None:
            raise Refused(*ORDER_NOT_FOUND)
        if order.user != user:
            raise Refused(*USER_NOT_MATCH)
        self._tell(FINISH, order)
        market.book.remove(order)
        self.ledger.unfreeze(user, *market.needs(order.side, order.price, order.left))
        return order.to_json()

    def _new_order(self, market, order_type, side, user, price, amount, taker_fee, maker_fee, source):
        self.last_order_id += 1
        return Order(
            id=self.last_order_id,
            market=market.name,
            source=source,
            type=order_type,
            side=side,
            user=user,
            created_at=self.now,
            updated_at=self.now,
            price=price,
            amount=amount,
            taker_fee=taker_fee,
            maker_fee=maker_fee,
            left=amount,
        )

    def _match(self, market, taker):
        """Fill the taker from the other side, best price first, then oldest, as far as its limit and means go."""
        while taker.left > 0:
            maker = market.book.best(_opposite(taker.side))
            if maker is None or not _crosses(taker, maker):
                break
            amount = min(_wanted(taker, maker.price, market), maker.left)
            if amount == 0:  # the money left does not buy the smallest amount, here or at any price behind
                break
            self._trade(market, taker, maker, amount)
            if maker.left > 0:
                self._tell(UPDATE, maker)
            else:
                self._tell(FINISH, maker)
                market.book.remove(maker)

    def _trade(self, market, taker, maker, amount):
        """One deal, at the maker's price. The taker pays what is available to it, the maker what it has frozen."""
        self.last_deal_id += 1
        ask, bid = (taker, maker) if taker.side == ASK else (maker, taker)
        deal = maker.price * amount
        ask_fee = deal * (ask.taker_fee if ask is taker else ask.maker_fee)
        bid_fee = amount * (bid.taker_fee if bid is taker else bid.maker_fee)

        steps = []
        for order, pay in ((taker, self.ledger.pay), (maker, self.ledger.pay_frozen)):
            if order is ask:
                outflow, inflow, fee = (market.stock, amount), (market.money, deal), (market.money, ask_fee)
            else:
                outflow, inflow, fee = (market.money, deal), (market.stock, amount), (market.stock, bid_fee)
            for step, (asset, moved) in ((pay, outflow), (self.ledger.receive, inflow), (self.ledger.pay_fee, fee)):
                step(order.user, asset, moved)
                steps.append((order.user, asset, self.ledger.total_of(order.user, asset)))
            order.left -= deal if _counts_money(order) else amount
            order.deal_stock += amount
            order.deal_money += deal
            order.deal_fee += fee[1]
            order.updated_at = self.now

        numbers = (maker.price, amount, deal, ask_fee, bid_fee)
        parties = (ask.id, bid.id, ask.user, bid.user, taker.side)
        self.events.append(("deal", self.last_deal_id, market.name, *numbers, *parties, steps))

    def _tell(self, event, order):
        self.events.append(("order", event, order.to_json()))

    # the book

    def _order_book(self, params):
        require(len(params) == 4)
        market = arguments.one_of(params[0], self.markets)
        side = arguments.side(params[1])
        offset = arguments.integer(params[2])
        limit = arguments.page_limit(params[3])
        orders = list(market.book.in_priority(side))
        return {"offset": offset, "limit": limit, "total": len(orders), "orders": _page(orders, offset, limit)}

    def _depth(self, params):
        require(len(params) == 3)
        market = arguments.one_of(params[0], self.markets)
        limit = arguments.page_limit(params[1])
        interval = arguments.depth_interval(params[2], market.money_prec)
        return {
            name: [[fmt(price), fmt(amount)] for price, amount in market.book.levels(side, interval, limit)]
            for name, side in (("asks", ASK), ("bids", BID))
        }

    def _pending(self, params):
        require(len(params) == 4)
        user = arguments.user_id(params[0])
        market = arguments.one_of(params[1], self.markets)
        offset = arguments.integer(params[2])
        limit = arguments.page_limit(params[3])
        orders = market.book.newest_of(user)
        return {"limit": limit, "offset": offset, "total": len(orders), "records": _page(orders, offset, limit)}

    def _pending_detail(self, params):
        require(len(params) == 2)
        market = arguments.one_of(params[0], self.markets)
        order = market.book.by_id.get(arguments.integer(params[1]))
        return order.to_json() if order else None

    # markets

    def _market_list(self, params):
        return [
            {
                "name": market.name,
                "stock": market.stock,
                "money": market.money,
                "fee_prec": market.fee_prec,
                "stock_prec": market.stock_prec,
                "money_prec": market.money_prec,
                "min_amount": fmt(market.min_amount),
            }
            for market in self.markets.values()
        ]

    def _market_summary(self, params):
        return [
            {
                "name": market.name,
                "ask_count": market.book.count(ASK),
                "ask_amount": fmt(sum((order.left for order in market.book.in_priority(ASK)), ZERO)),
                "bid_count": market.book.count(BID),
                "bid_amount": fmt(sum((order.left for order in market.book.in_priority(BID)), ZERO)),
            }
            for market in arguments.some_of(params, self.markets)
        ]


def _asset(entry):
    return Asset(entry["name"], entry["prec_save"], entry.get("prec_show", entry["prec_save"]))


def _market(entry):
    return Market(
        name=entry["name"],
        stock=entry["stock"]["name"],
        money=entry["money"]["name"],
        stock_prec=entry["stock"]["prec"],
        money_prec=entry["money"]["prec"],
        fee_prec=entry.get("fee_prec", 4),
        min_amount=Decimal(entry.get("min_amount", "0.01")),
    )


def _shown(balance, asset):
    """A balance as balance.query prints it; one below the last shown decimal is not the same zero as none."""
    return "0" if balance is None else fmt(cut(balance, asset.prec_show))


def _page(orders, offset, limit):
    """The original's offsets are unsigned: a negative one lies behind the end."""
    return [order.to_json() for order in orders[offset : offset + limit]] if offset >= 0 else []


def _opposite(side):
    return BID if side == ASK else ASK


def _crosses(taker, maker):
    """Whether the taker accepts the maker's price, its own limit included."""
    if taker.type == MARKET:
        return True
    return maker.price >= taker.price if taker.side == ASK else maker.price <= taker.price


def _counts_money(order):
    return order.type == MARKET and order.side == BID


def _wanted(taker, price, market):
    """The stock that the taker still wants, or can still buy at `price`: a 64-bit integer of its units in all."""
    if not _counts_money(taker):
        return taker.left
    room = Decimal(INT64_MAX).scaleb(-market.stock_prec) - taker.deal_stock
    return min(cut(CUT.divide(taker.left, price), market.stock_prec), room)
