"""How far an exchange that is fed a recording agrees with what the recording says."""
from collections import Counter, defaultdict
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from tools.order_flow import ASK, BookTop, Cancel, Filled, Put, Trade

LEVELS_COMPARED = 5
LEVELS_PUBLISHED = 20
INTERVALS = tuple(map(Decimal, ("0", "0.1", "1", "10", "100")))
LIMITS = (20, 101)

# What a correct engine reaches on recordings that are known, by their SHA-256: `in_advance` with the early orders put
# before, else from an empty book. The rest of the trades involve orders that the recording does not have.
KNOWN_LOGS = {
    "4dc3dcd18f02938374f941612ccef5cbbec1dc2f2dd580d5de4519c7d86e01dc": {
        False: {"trades": 517, "trades_equal": 508, "best_equal": 4953},
        True: {"trades": 519, "trades_equal": 509, "best_equal": 4971, "top_equal": 4526},
    },
}


def follow_log(log, trader, in_advance, advance, count=None):
    """Send a log's orders as they came, and compare trades and books with the published ones; the figures by name.

    `in_advance`: put the early orders first. `advance()` is called after each event. `count`: stop after as many
    orders and cancels.
    """
    made, published = Counter(), Counter()
    figures = Counter(trades=0, trades_equal=0, trades_published=0, pictures=0, best_equal=0, top_equal=0,
                      cancels_of_no_order=0, filled_but_held=0)
    sent = 0
    for event in [*(log.early if in_advance else []), *log.events]:
        if isinstance(event, (Put, Cancel)):
            if sent == count:
                break
            sent += 1
        if isinstance(event, Put):
            made.update((trade.price, trade.amount) for trade in trader.put(event) or ())
        elif isinstance(event, Cancel):
            figures["cancels_of_no_order"] += not trader.cancel(event.key)
        elif isinstance(event, Filled):
            figures["filled_but_held"] += trader.cancel(event.key)
        elif isinstance(event, Trade):
            published[event.price, event.amount] += 1
        elif isinstance(event, BookTop):
            figures["pictures"] += 1
            _compare(event, trader.api.order_depth(trader.name, LEVELS_PUBLISHED), figures)
        advance()
    figures.update(trades=made.total(), trades_equal=(made & published).total(), trades_published=published.total())
    return {"in_advance": len(log.early) if in_advance else 0, "orders_and_cancels": sent, **figures}


def _compare(picture, depth, figures):
    published = picture.asks, picture.bids
    figures["best_equal"] += all(
        [price for price, _amount in one[:1]] == [price for price, _amount in other[:1]]
        for one, other in zip(published, depth))
    figures["top_equal"] += all(
        one[:LEVELS_COMPARED] == other[:LEVELS_COMPARED] for one, other in zip(published, depth))


def shortfalls(log, figures):
    """Figures below those that a correct engine reaches, in words; nothing for a recording that is not known."""
    known = KNOWN_LOGS.get(log.sha256, {}).get(figures["in_advance"] > 0, {})
    return [f"{name} is {figures[name]} of at least {least}" for name, least in known.items() if figures[name] < least]


def load_book(book, trader, advance):
    """Put all orders of a book; the figures by name."""
    trades = 0
    for put in book.puts:
        trades += len(trader.put(put) or ())
        advance()
    return {"orders": len(book.puts), "accepted": len(book.puts) - trader.refused,
            "problems": [f"{trades} trades: no order of a book crosses another"] if trades else []}


def compare_depths(book, trader):
    """The exchange's depth against one computed from the book alone; the figures by name."""
    equal, problems = 0, []
    for interval in INTERVALS:
        expected = depth_of(book.puts, interval)
        for limit in LIMITS:
            if trader.api.order_depth(trader.name, limit, interval) == tuple(side[:limit] for side in expected):
                equal += 1
            else:
                problems.append(f"the depth at interval {interval} and limit {limit} differs")
    return {"depths": len(INTERVALS) * len(LIMITS), "depths_equal": equal, "problems": problems}


def depth_of(puts, interval):
    """(asks, bids), each [(price, amount)] with the best first; merged upwards and downwards by a positive interval."""
    asks, bids = defaultdict(Decimal), defaultdict(Decimal)
    for put in puts:
        price = put.price
        if interval:
            rounding = ROUND_CEILING if put.side == ASK else ROUND_FLOOR
            price = (price / interval).to_integral_value(rounding) * interval
        (asks if put.side == ASK else bids)[price] += put.amount
    return sorted(asks.items()), sorted(bids.items(), reverse=True)
