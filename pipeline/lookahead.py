"""Fetching what the next commands will touch into the cache, while the ones before are applied.

On a large book an order costs a handful of cache misses one after the other; announced a few commands ahead they
overlap. Nothing here changes the state, and nothing depends on it.
"""
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from pipeline.ledger import balance_home, balance_key
from pipeline.order_book import find_order, id_home, list_home, list_key
from pipeline.state import BALANCES, MARKETS, NONE, ORDERS
from shm.records import Kind, Side

FIRST = 8                     # commands ahead: hash cells
SECOND = 4                    # commands ahead: the orders that those cells name
THIRD = 2                     # commands ahead: those orders' neighbours
LARGE_FROM = 20_000           # orders and balances
PUT_LIMIT = int(Kind.PUT_LIMIT)
PUT_MARKET = int(Kind.PUT_MARKET)
CANCEL = int(Kind.CANCEL)
UPDATE_BALANCE = int(Kind.UPDATE_BALANCE)
ASK = int(Side.ASK)


@njit(cache=True, _nrt=False, forceinline=True)
def is_worthwhile(state):
    """Whether the state is larger than the cache: on a small one, looking ahead costs more than it saves."""
    return state.counters[ORDERS] + state.counters[BALANCES] > LARGE_FROM


@intrinsic
def fetch(typingctx, array, index):
    """Ask for the cache line of array[index]; any index that is in bounds."""
    def codegen(context, builder, signature, args):
        array_type = signature.args[0]
        made = context.make_array(array_type)(context, builder, args[0])
        place = context.cast(builder, args[1], signature.args[1], types.intp)
        pointer = cgutils.get_item_pointer(context, builder, array_type, made, [place], wraparound=False)
        raw = builder.bitcast(pointer, cgutils.voidptr_t)
        word = ir.IntType(32)
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, word, word, word]), "llvm.prefetch.p0")
        builder.call(function, [raw, word(1), word(3), word(1)])
        return context.get_dummy_value()
    return types.none(array, index), codegen


@njit(cache=True, _nrt=False, forceinline=True)
def fetch_cells(state, command):
    """The hash cells that the command will look up."""
    kind = command.kind
    if kind == PUT_LIMIT or kind == PUT_MARKET:
        if command.market_id < state.counters[MARKETS]:
            market = state.markets[command.market_id]
            mask = len(state.balances) - 1
            fetch(state.balances, balance_home(balance_key(command.user_id, market.stock_asset_id), mask))
            fetch(state.balances, balance_home(balance_key(command.user_id, market.money_asset_id), mask))
            fetch(state.user_lists, list_home(list_key(command.user_id, command.market_id), len(state.user_lists) - 1))
    elif kind == CANCEL:
        fetch(state.order_index, id_home(command.reference, len(state.order_index) - 1))
        fetch(state.user_lists, list_home(list_key(command.user_id, command.market_id), len(state.user_lists) - 1))
    elif kind == UPDATE_BALANCE:
        fetch(state.balances, balance_home(balance_key(command.user_id, command.asset_id), len(state.balances) - 1))


@njit(cache=True, _nrt=False, forceinline=True)
def fetch_orders(state, command):
    """The orders that those cells name."""
    kind = command.kind
    if kind == PUT_LIMIT:
        key = list_key(command.user_id, command.market_id)
        cell = state.user_lists[list_home(key, len(state.user_lists) - 1)]
        if cell.key == key and cell.head != NONE:
            fetch(state.orders, cell.head)
    elif kind == CANCEL:
        slot = find_order(state, command.reference)
        if slot != NONE:
            fetch(state.orders, slot)


@njit(cache=True, _nrt=False, forceinline=True)
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

