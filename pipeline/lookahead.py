"""Fetching what the next commands will touch into the cache, while the ones before are applied.

On a large book an order costs a handful of cache misses one after the other; announced a few commands ahead they
overlap. Nothing here changes the state, and nothing depends on it.
"""
from pipeline.ledger import balance_home, balance_key
from pipeline.order_book import find_order, id_home, list_home, list_key
from pipeline.prefetch import fetch
from pipeline.state import BALANCES, MARKETS, NONE, ORDER_STATE, ORDERS
from shm.kernel import inlined
from shm.records import Kind, Side

FIRST = 8                     # commands ahead: hash cells
SECOND = 4                    # commands ahead: the orders that those cells name
THIRD = 2                     # commands ahead: those orders' neighbours
CACHE_LINE_WORDS = 8
LARGE_FROM = 20_000           # orders and balances
ORDER_STATE_WORDS = ORDER_STATE.itemsize // 8
PUT_LIMIT = int(Kind.PUT_LIMIT)
PUT_MARKET = int(Kind.PUT_MARKET)
CANCEL = int(Kind.CANCEL)
UPDATE_BALANCE = int(Kind.UPDATE_BALANCE)
ASK = int(Side.ASK)


@inlined
def is_worthwhile(state):
    """Whether the state is larger than the cache: on a small one, looking ahead costs more than it saves."""
    return state.counters[ORDERS] + state.counters[BALANCES] > LARGE_FROM


@inlined
def fetch_cells(state, command):
    """The hash cells that the command will look up."""
    kind = command.kind
    if kind == PUT_LIMIT or kind == PUT_MARKET:
        if command.market_id < state.counters[MARKETS]:
            market = state.markets[command.market_id]
            fetch(state.balances, balance_home(state.balances, balance_key(command.user_id, market.stock_asset_id)))
            fetch(state.balances, balance_home(state.balances, balance_key(command.user_id, market.money_asset_id)))
            fetch(state.user_lists, list_home(state.user_lists, list_key(command.user_id, command.market_id)))
    elif kind == CANCEL:
        fetch(state.order_index, id_home(state.order_index, command.reference))
        fetch(state.user_lists, list_home(state.user_lists, list_key(command.user_id, command.market_id)))
    elif kind == UPDATE_BALANCE:
        fetch(state.balances, balance_home(state.balances, balance_key(command.user_id, command.asset_id)))


@inlined
def fetch_orders(state, command):
    """The orders that those cells name."""
    kind = command.kind
    if kind == PUT_LIMIT:
        key = list_key(command.user_id, command.market_id)
        cell = state.user_lists[list_home(state.user_lists, key)]
        if cell.key == key and cell.head != NONE:
            fetch(state.orders, cell.head)
    elif kind == CANCEL:
        slot = find_order(state, command.reference)
        if slot != NONE:
            words = state.order_words[slot]
            for word in range(0, ORDER_STATE_WORDS, CACHE_LINE_WORDS):
                fetch(words, word)


@inlined
def fetch_neighbours(state, command):
    """The orders beside one that will be cancelled."""
    if command.kind == CANCEL:
        slot = find_order(state, command.reference)
        if slot != NONE:
            order = state.orders[slot]
            fetch(state.levels, order.level)
            fetch(state.balances, order.stock_row if order.side == ASK else order.money_row)
            if order.next != NONE:
                fetch(state.orders, order.next)
            if order.previous != NONE:
                fetch(state.orders, order.previous)
            if order.newer != NONE:
                fetch(state.orders, order.newer)
            if order.older != NONE:
                fetch(state.orders, order.older)

