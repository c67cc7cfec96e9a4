"""`exchange feed`: a recorded or a synthetic order flow into a running exchange, over HTTP."""
import argparse
import time
from decimal import Decimal
from functools import partial
from pathlib import Path

from tools import agreement, load, order_flow, report
from tools.api import Api
from tools.client import Client
from tools.order_flow import AMOUNT_DECIMALS, ASK, PRICE_DECIMALS
from tools.report import Failed
from tools.trader import USER_FIRST, USERS, Made, Trader, deposit, find_market

SYNTHETIC = "synthetic"
SYNTHETIC_COUNT = 10_000
SYNTHETIC_PRICE = Decimal(8000)  # where orders begin on an empty book
SYNTHETIC_FUNDS = 10**9        # of each asset, for each user


def add_parser(subparsers):
    parser = subparsers.add_parser(
        "feed", help="an order flow into a running exchange, over HTTP",
        description="Sends an order flow to a running exchange, with the deposits that it needs. A recorded one goes in"
        " its order, one request after another, into a market whose book is empty, and what comes of it is compared"
        " with what the recording says; a synthetic one goes over several connections at once. Exit code 0: every"
        " request was answered as it should be, and a known recording agrees as far as it can.")
    parser.add_argument("file", metavar="FILE|synthetic", help="a Bitstamp log, a Coinbase book (plain or .gz), or the"
                        " word synthetic")
    parser.add_argument("--url", default="http://127.0.0.1:8080", metavar="URL", help="default: %(default)s")
    parser.add_argument("--market", metavar="NAME", help="default: the exchange's first market")
    parser.add_argument("--rate", type=_positive(float), metavar="R",
                        help="requests a second (default: the next as soon as one is answered)")
    parser.add_argument("--count", type=_positive(int), metavar="N", help="orders and cancels to send (default: all of"
                        f" a recording, {SYNTHETIC_COUNT} of the synthetic flow)")
    parser.add_argument("--seed", type=_positive(int), default=1, metavar="S",
                        help="of the synthetic flow, and of the deposits: with the same seed they are made once"
                        " (default: %(default)s)")
    parser.add_argument("--connections", type=_positive(int), default=16, metavar="N",
                        help="of the synthetic flow (default: %(default)s)")
    report.add_json_option(parser)
    parser.set_defaults(run=run)


def _positive(kind):
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < 2**62:
            raise argparse.ArgumentTypeError(f"{text} must be a {'whole ' if kind is int else ''}number above 0")
        return value
    return parse


def run(options):
    flow = None if options.file == SYNTHETIC else order_flow.read(Path(options.file))
    feed_flow = feed_synthetic if flow is None else partial(feed_recording, flow)
    with Client(options.url) as client:
        market = find_market(client, options.market)
        figures = feed_flow(options, client, market)
    report.write_json(options.json, {"flow": options.file, "market": market.name, **figures})
    report.say_figures(figures)
    return 1 if figures["problems"] else 0


# A recording.

def feed_recording(flow, options, client, market):
    check_market(client, market, flow.puts)
    calls = TimedCalls(client, options.rate)
    trader = Trader(calls, market, calls.find_trades)
    trader.fund(flow.puts, options.seed)
    calls.begin()
    if isinstance(flow, order_flow.Book):
        figures = feed_book(flow, trader, options.count)
    else:
        figures = feed_log(flow, trader, options.count)
    return {**figures, **calls.timings.figures(), "rejections": dict(trader.rejections),
            "problems": figures["problems"] + trader.problems()}


def feed_log(log, trader, count):
    with report.progress("feeding", len(log.early) + len(log.events)) as advance:
        figures = agreement.follow_log(log, trader, True, advance, count)
    return {**figures, "problems": agreement.shortfalls(log, figures) if count is None else []}


def feed_book(book, trader, count):
    if count is not None:
        book = order_flow.Book("", book.puts[:count])
    with report.progress("feeding", len(book.puts)) as advance:
        loaded = agreement.load_book(book, trader, advance)
    depths = agreement.compare_depths(book, trader)
    return {**loaded, **depths, "problems": loaded["problems"] + depths["problems"]}


def check_market(client, market, puts):
    """Raises Failed where the market cannot take the recording's orders as they are, or has orders of others."""
    name, least = market.name, min(put.amount for put in puts)
    remedy = "name another with --market NAME"
    kept, needed = (market.stock_prec, market.money_prec), (AMOUNT_DECIMALS, PRICE_DECIMALS)
    if kept[0] < needed[0] or kept[1] < needed[1]:
        raise Failed(f"market {name} keeps {kept[0]} decimals of amounts and {kept[1]} of prices, the recording has"
                     f" {needed[0]} and {needed[1]}: {remedy}")
    if least < market.min_amount:
        raise Failed(f"market {name} refuses amounts below its min_amount {market.min_amount}, the recording has"
                     f" {least:f}: {remedy}")
    summary, = client.market_summary(name)
    if count := summary.ask_count + summary.bid_count:
        raise Failed(f"the book of market {name} holds {count} orders, and a recording needs an empty one: {remedy}")


class TimedCalls(Api):
    """Calls over one connection, one after another: timed, and no faster than `rate` a second."""

    def __init__(self, client, rate):
        self._client, self._rate = client, rate
        self.timings = load.Timings()

    def begin(self):
        """What was called before does not count."""
        self.timings = load.Timings()

    def call(self, method, *params):
        if self._rate is not None:
            time.sleep(max(0, self.timings.started + self.timings.count / self._rate - time.monotonic()))
        started = time.monotonic()
        try:
            return self._client.call(method, *params)
        finally:
            self.timings.add(time.monotonic() - started)

    def find_trades(self, trader, order):
        """The trades that an order made, found by asking what is left of the orders that it can have met: best price
        first, then the oldest, until the deals of the order are explained.
        """
        is_ask, missing = order.side == ASK, order.deal_stock
        met = [resting for resting in trader.resting.values() if resting.side != order.side
               and (resting.price >= order.price if is_ask else resting.price <= order.price)]
        met.sort(key=lambda resting: (-resting.price if is_ask else resting.price, resting.order_id))
        made = []
        for resting in met:
            if missing == 0:
                break
            now = self.order_pending_detail(trader.name, resting.order_id)
            amount = resting.left - (now.left if now else 0)
            if amount:
                made.append(Made(resting.order_id, resting.price, amount))
                missing -= amount
        money = sum(trade.price * trade.amount for trade in made)
        if missing or money != order.deal_money:
            raise Failed(f"order {order.id} has deals of {order.deal_stock} for {order.deal_money}, and the orders that"
                         f" it met lack {order.deal_stock - missing} for {money}: somebody else trades on"
                         f" {trader.name}, or the exchange is wrong")
        return made


# The synthetic flow.

def feed_synthetic(options, client, market):
    users = range(USER_FIRST, USER_FIRST + USERS)
    for user in users:
        for asset in (market.stock, market.money):
            deposit(client, user, asset, SYNTHETIC_FUNDS, options.seed)
    price = _middle_of(client.order_depth(market.name, 1))
    flows = [order_flow.SyntheticFlow(options.seed, index, market, price, users)
             for index in range(options.connections)]
    count = options.count or SYNTHETIC_COUNT
    with report.progress("feeding", count) as advance:
        outcome = load.run(options.url, flows, count, options.rate, advance)
    problems = [f"{number} times {what}" for what, number in sorted(outcome.failures.items())]
    return {**outcome.timings.figures(), "rejections": dict(outcome.rejections), "problems": problems}


def _middle_of(depth):
    best = [side[0].price for side in depth if side]
    return sum(best) / len(best) if best else SYNTHETIC_PRICE
