"""`exchange replay`: a recorded order flow through the core, in this process."""
import time
from pathlib import Path

from shm import configuration
from tools import agreement, local_exchange, order_flow, report
from tools.trader import Trader, find_market

MARKET = "BTCUSD"
SETTINGS = {
    "limits": {"orders_max": 200_000, "levels_max": 200_000, "balances_max": 10_000},
    "assets": [{"name": "BTC", "prec_save": 20, "prec_show": 8}, {"name": "USD", "prec_save": 20, "prec_show": 8}],
    "markets": [{"name": MARKET, "stock": "BTC", "money": "USD", "stock_prec": order_flow.AMOUNT_DECIMALS,
                 "money_prec": order_flow.PRICE_DECIMALS, "min_amount": "0.00000001"}],
}


def add_parser(subparsers):
    parser = subparsers.add_parser(
        "replay", help="a recorded order flow through the core, in this process",
        description="Sends a recorded order flow through the core and compares what comes of it with what the"
        " recording says. A Bitstamp log is sent twice: from an empty book, and with those orders put in advance that"
        " it tells of. Exit code 0: money is exact, and a known recording agrees as far as it can.")
    parser.add_argument("file", type=Path, metavar="FILE", help="a Bitstamp log or a Coinbase book, plain or .gz")
    report.add_json_option(parser)
    parser.set_defaults(run=run)


def run(options):
    flow = order_flow.read(options.file)
    local_exchange.prepare_kernels()
    runs = [replay_book(flow)] if isinstance(flow, order_flow.Book) else [
        replay_log(flow, in_advance) for in_advance in (False, True)]
    problems = [problem for figures in runs for problem in figures["problems"]]
    report.write_json(options.json, {
        "file": str(options.file), "sha256": flow.sha256, "runs": runs, "problems": problems})
    for figures in runs:
        report.say_figures(figures)
    return 1 if problems else 0


def replay_log(log, in_advance):
    """The figures of a log sent through a new core."""
    core, trader = _trader(log.puts)
    with report.progress("replaying", len(log.events)) as advance:
        speed = Speed(core)
        figures = agreement.follow_log(log, trader, in_advance, advance)
    figures.update(speed.figures(), rejections=dict(trader.rejections))
    figures["problems"] = agreement.shortfalls(log, figures) + trader.problems()
    return figures


def replay_book(book):
    """The figures of a book loaded into a new core."""
    core, trader = _trader(book.puts)
    speed = Speed(core)
    with report.progress("loading", len(book.puts)) as advance:
        loaded = agreement.load_book(book, trader, advance)
    depths = agreement.compare_depths(book, trader)
    return {**loaded, **speed.figures(), **depths, "rejections": dict(trader.rejections),
            "problems": loaded["problems"] + depths["problems"] + trader.problems()}


class Speed:
    """Calls a second from now on, with all that Python does around the core."""

    def __init__(self, core):
        self._core, self._calls, self._started = core, core.count, time.monotonic()

    def figures(self):
        seconds = time.monotonic() - self._started
        return {"seconds": round(seconds, 2), "calls_per_second": round((self._core.count - self._calls) / seconds)}


def _trader(puts):
    from tools.core_calls import CoreCalls  # late: the cache of its kernels is chosen by now

    core = CoreCalls(configuration.parse(SETTINGS))
    trader = Trader(core, find_market(core, MARKET), core.find_trades)
    trader.fund(puts, seed=1)
    return core, trader
