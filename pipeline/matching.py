"""Orders: matching, resting, cancelling. One matching function for both sides and both types: side is data.

Price-time priority; a deal is at the resting order's price. Source: engine.md 5 to 8. Whether an order may enter is
decided in admission.py, how a deal is paid in settlement.py.
"""
from numba import int64

from pipeline.admission import is_admitted, is_well_formed
from pipeline.inbox import label_word
from pipeline.ledger import change_available, change_frozen, find_balance, open_balance
from pipeline.money import money_of, stock_of
from pipeline.order_book import find_order, give_slot, leave, left_of, reduce_resting, rest, take_slot
from pipeline.output import next_event, refuse, write_order, write_order_event
from pipeline.price_levels import best_level, side_index_of
from pipeline.settlement import settle
from pipeline.state import BALANCES, BALANCES_MAX, DEAL_ID, MARKETS, NONE, ORDER_ID, ORDER_STATE
from shm.int128 import divide, from_halves, from_int64, high_half, low_half
from shm.kernel import inlined
from shm.records import INT64_MAX, EventKind, Field, Kind, OrderEvent, OrderType, Result, Side

INVALID = int(Result.INVALID)
FULL = int(Result.FULL)
ORDER_NOT_FOUND = int(Result.ORDER_NOT_FOUND)
NOT_THE_OWNER = int(Result.NOT_THE_OWNER)
FIELD_USER = int(Field.USER)
FIELD_MARKET = int(Field.MARKET)
FIELD_BALANCES = int(Field.BALANCES)
PUT_LIMIT = int(Kind.PUT_LIMIT)
ASK = int(Side.ASK)
BID = int(Side.BID)
LIMIT_TYPE = int(OrderType.LIMIT)
MARKET_TYPE = int(OrderType.MARKET)
PUT = int(OrderEvent.PUT)
UPDATE = int(OrderEvent.UPDATE)
FINISH = int(OrderEvent.FINISH)
DEAL_EVENT_KIND = int(EventKind.DEAL)
ORDER_STATE_WORDS = ORDER_STATE.itemsize // 8
SOURCE_WORD = ORDER_STATE.fields["source"][1] // 8
assert ORDER_STATE.fields["source"][1] % 8 == 0  # the word after the source belongs to its count


@inlined
def make_order(state, inbox, pays_row, gets_row, time_ns):
    """The slot of a new order with the next id: it has dealt nothing and rests nowhere."""
    command = inbox.command[0]
    slot = take_slot(state)
    for word in range(ORDER_STATE_WORDS):
        state.order_words[slot, word] = 0
    for word in range(4):
        state.order_words[slot, SOURCE_WORD + word] = label_word(inbox.words, word, command.label_bytes)
    state.counters[ORDER_ID] += 1
    order = state.orders[slot]
    order.order_id = state.counters[ORDER_ID]
    order.created_at_ns = time_ns
    order.updated_at_ns = time_ns
    order.amount = command.amount
    order.taker_fee = command.taker_fee
    order.user_id = command.user_id
    order.market_id = command.market_id
    order.side = command.side
    order.stock_row = pays_row if command.side == ASK else gets_row
    order.money_row = gets_row if command.side == ASK else pays_row
    order.order_flags = command.order_flags
    order.source_bytes = command.label_bytes
    order.left_low = command.amount
    if command.kind == PUT_LIMIT:
        order.order_type = LIMIT_TYPE
        order.price = command.price
        order.maker_fee = command.maker_fee
    else:
        order.order_type = MARKET_TYPE
        if command.side == BID:
            money = stock_of(state.markets[command.market_id], command.amount)
            order.left_low = low_half(money)
            order.left_high = high_half(money)
    return slot


@inlined
def put_order(state, out, inbox, sequence, time_ns):
    """order.put_limit and order.put_market: check all, then match, then rest or finish. The reply is the order."""
    command = inbox.command[0]
    if not is_well_formed(state, out, command):
        return False
    side = command.side
    market = state.markets[command.market_id]
    is_limit = command.kind == PUT_LIMIT
    required = stock_of(market, command.amount)  # a market bid's money is cut to stock_prec too
    if side == BID and is_limit:
        required = money_of(market, command.price, command.amount)
    pays_asset = market.stock_asset_id if side == ASK else market.money_asset_id
    gets_asset = market.money_asset_id if side == ASK else market.stock_asset_id
    pays_row = find_balance(state, command.user_id, pays_asset)
    opposite_index = side_index_of(command.market_id, ASK + BID - side)
    if not is_admitted(state, out, command, pays_row, required, opposite_index):
        return False
    gets_row = find_balance(state, command.user_id, gets_asset)
    if gets_row == NONE:
        if state.counters[BALANCES] >= state.counters[BALANCES_MAX]:
            return refuse(out, FULL, FIELD_BALANCES, state.counters[BALANCES_MAX])
        gets_row = open_balance(state, command.user_id, gets_asset)

    slot = make_order(state, inbox, pays_row, gets_row, time_ns)
    taker = state.orders[slot]
    match(state, out, slot, opposite_index, sequence, time_ns)

    left = left_of(taker)
    if is_limit and left > 0:
        write_order_event(state, out, sequence, time_ns, PUT, slot)
        write_order(state, out, 0, slot)
        rest(state, slot)
        change = stock_of(market, left)
        if side == BID:
            change = money_of(market, command.price, left)
        change_available(state, pays_row, -change)
        change_frozen(state, pays_row, change)
    else:
        write_order_event(state, out, sequence, time_ns, FINISH, slot)
        write_order(state, out, 0, slot)
        give_slot(state, slot)
    out.header[0].rows = 1
    return True


@inlined
def crosses(taker, maker_price):
    """Whether a taker accepts a resting price, its own limit included; a market order accepts any."""
    if taker.order_type == MARKET_TYPE:
        return True
    if taker.side == BID:
        return maker_price <= taker.price
    return maker_price >= taker.price


@inlined
def lots_for_money(market, taker, price, money_left):
    """What a market bid can still buy at `price`, rounded down to a lot and to what its totals can hold."""
    unit = from_halves(market.deal_unit_low, market.deal_unit_high)
    lots = divide(divide(money_left, unit), from_int64(price))
    most = from_int64(INT64_MAX - taker.deal_stock)
    return low_half(lots if lots < most else most)


@inlined
def match(state, out, slot, opposite_index, sequence, time_ns):
    """Fill the taker in `slot` from the opposite side, best price first, then oldest.

    Lots are conserved: what the taker loses, the makers lose. Money is: what one pays, the other gets, less the fees.
    """
    taker = state.orders[slot]
    market = state.markets[taker.market_id]
    spends_money = taker.order_type == MARKET_TYPE and taker.side == BID
    money_left = from_int64(0)
    while taker.left_low != 0 or taker.left_high != 0:
        level = best_level(state, opposite_index)
        if level == NONE or not crosses(taker, state.levels[level].price):
            break
        maker_slot = state.levels[level].head
        maker = state.orders[maker_slot]
        amount = left_of(maker)
        if spends_money:
            money_left = from_halves(taker.left_low, taker.left_high)
            amount = min(amount, int64(lots_for_money(market, taker, maker.price, money_left)))
            if amount == 0:
                break
        else:
            amount = min(amount, left_of(taker))
        taker.updated_at_ns = time_ns
        maker.updated_at_ns = time_ns
        state.counters[DEAL_ID] += 1

        event = out.deal_events[next_event(state, out)]
        event.sequence = sequence
        event.time_ns = time_ns
        event.kind = DEAL_EVENT_KIND
        event.deal_id = state.counters[DEAL_ID]
        settle(state, event, market, taker, maker, amount)

        if spends_money:
            money_left = money_left - money_of(market, maker.price, amount)
            taker.left_low = low_half(money_left)
            taker.left_high = high_half(money_left)
        else:
            taker.left_low = left_of(taker) - amount
        reduce_resting(state, maker_slot, amount)
        if left_of(maker) == 0:
            write_order_event(state, out, sequence, time_ns, FINISH, maker_slot)
            leave(state, maker_slot)
        else:
            write_order_event(state, out, sequence, time_ns, UPDATE, maker_slot)


@inlined
def cancel_order(state, out, command, sequence, time_ns):
    """order.cancel: the reply is the order as it was; what it had frozen is available again."""
    if command.user_id == 0:
        return refuse(out, INVALID, FIELD_USER, 0)
    if command.market_id >= state.counters[MARKETS]:
        return refuse(out, INVALID, FIELD_MARKET, 0)
    slot = find_order(state, command.reference)
    if slot == NONE or state.orders[slot].market_id != command.market_id:
        return refuse(out, ORDER_NOT_FOUND, 0, 0)
    order = state.orders[slot]
    if order.user_id != command.user_id:
        return refuse(out, NOT_THE_OWNER, 0, 0)
    market = state.markets[order.market_id]
    write_order_event(state, out, sequence, time_ns, FINISH, slot)
    write_order(state, out, 0, slot)
    out.header[0].rows = 1
    row = order.stock_row
    change = stock_of(market, left_of(order))
    if order.side == BID:
        row = order.money_row
        change = money_of(market, order.price, left_of(order))
    change_frozen(state, row, -change)
    change_available(state, row, change)
    leave(state, slot)
    return True
