"""Orders: admission, matching, cancelling. One matching function for both sides and both types: side is data.

Price-time priority; a deal is at the resting order's price; each side pays its fee from what it receives, at the rate
of its role; a taker pays from what it has available, a maker from what it has frozen. Source: engine.md 5 to 8.
Everything is checked before anything is changed: a refusal leaves no trace.
"""
from numba import int64, njit

from pipeline.inbox import label_word
from pipeline.ledger import available, change_available, change_frozen, find_balance, held, open_balance
from pipeline.order_book import find_order, give_slot, leave, left_of, reduce_resting, rest, side_index_of, take_slot
from pipeline.output import next_event, refuse, write_order, write_order_event
from pipeline.price_levels import best_level
from pipeline.state import (
    BALANCES,
    BALANCES_MAX,
    DEAL_ID,
    FREE_NODES,
    LEVELS,
    LEVELS_MAX,
    MARKETS,
    NONE,
    ORDER_ID,
    ORDER_STATE,
    ORDERS,
    ORDERS_MAX,
    TREE_HEIGHT_MAX,
)
from shm.int128 import divide, from_halves, from_int64, high_half, low_half, multiply_int64, product_overflows
from shm.records import (
    INT64_MAX,
    LABEL_BYTES_MAX,
    MONEY_DECIMALS,
    WHOLE_UNITS_MAX,
    EventKind,
    Field,
    Kind,
    OrderEvent,
    OrderType,
    Result,
    Side,
)

OK = int(Result.OK)
INVALID = int(Result.INVALID)
FULL = int(Result.FULL)
BALANCE_TOO_LOW = int(Result.BALANCE_TOO_LOW)
AMOUNT_TOO_SMALL = int(Result.AMOUNT_TOO_SMALL)
NO_COUNTERPARTY = int(Result.NO_COUNTERPARTY)
ORDER_NOT_FOUND = int(Result.ORDER_NOT_FOUND)
NOT_THE_OWNER = int(Result.NOT_THE_OWNER)
FIELD_USER = int(Field.USER)
FIELD_MARKET = int(Field.MARKET)
FIELD_SIDE = int(Field.SIDE)
FIELD_AMOUNT = int(Field.AMOUNT)
FIELD_PRICE = int(Field.PRICE)
FIELD_TAKER_FEE = int(Field.TAKER_FEE)
FIELD_MAKER_FEE = int(Field.MAKER_FEE)
FIELD_LABEL = int(Field.LABEL)
FIELD_PRODUCT = int(Field.PRODUCT)
FIELD_ORDERS = int(Field.ORDERS)
FIELD_LEVELS = int(Field.LEVELS)
FIELD_BALANCES = int(Field.BALANCES)
PUT_LIMIT = int(Kind.PUT_LIMIT)
ASK = int(Side.ASK)
BID = int(Side.BID)
LIMIT_TYPE = int(OrderType.LIMIT)
MARKET_TYPE = int(OrderType.MARKET)
PUT = int(OrderEvent.PUT)
UPDATE = int(OrderEvent.UPDATE)
FINISH = int(OrderEvent.FINISH)
DEAL = int(EventKind.DEAL)
SOURCE_WORD = ORDER_STATE.fields["source"][1] // 8
assert ORDER_STATE.fields["source"][1] % 8 == 0  # the word after the source belongs to its count


@njit(cache=True, _nrt=False, forceinline=True)
def unit_of(low, high):
    return from_halves(low, high)


@njit(cache=True, _nrt=False, forceinline=True)
def money_of(market, price, lots):
    """Exact money of `lots` at `price`; both sides' orders are bounded so that it fits."""
    return multiply_int64(price, lots) * unit_of(market.deal_unit_low, market.deal_unit_high)


@njit(cache=True, _nrt=False, forceinline=True)
def stock_of(market, lots):
    return from_int64(lots) * unit_of(market.stock_unit_low, market.stock_unit_high)


@njit(cache=True, _nrt=False, forceinline=True)
def product_too_large(market, price, lots):
    """Whether price x lots exceeds WHOLE_UNITS_MAX of money."""
    unit = unit_of(market.deal_unit_low, market.deal_unit_high)
    ticks_lots = multiply_int64(price, lots)
    if product_overflows(ticks_lots, unit):
        return True
    return ticks_lots * unit > from_int64(WHOLE_UNITS_MAX) * from_int64(10**10) * from_int64(10**10)


@njit(cache=True, _nrt=False, forceinline=True)
def less_than_min_amount(market, price, money):
    """Whether `money` (of a market bid, in 10^-stock_prec) buys less than min_amount at `price`: exact, any size."""
    wanted = multiply_int64(price, market.min_amount)
    scale = int64(market.money_prec) + int64(market.min_amount_decimals) - int64(market.stock_prec)
    given = from_int64(money)
    ten = from_int64(10)
    for _ in range(scale):
        if product_overflows(given, ten):
            return False
        given = given * ten
    for _ in range(-scale):
        if product_overflows(wanted, ten):
            return True
        wanted = wanted * ten
    return given < wanted


@njit(cache=True, _nrt=False, forceinline=True)
def put_order(state, out, inbox, sequence, time_ns):
    """order.put_limit and order.put_market: check all, then match, then rest or finish. The reply is the order."""
    command = inbox.command[0]
    if command.user_id == 0:
        return refuse(out, INVALID, FIELD_USER, 0)
    if command.market_id >= state.counters[MARKETS]:
        return refuse(out, INVALID, FIELD_MARKET, 0)
    side = command.side
    if side != ASK and side != BID:
        return refuse(out, INVALID, FIELD_SIDE, 0)
    market = state.markets[command.market_id]
    is_limit = command.kind == PUT_LIMIT
    amount = command.amount
    if amount <= 0 or amount > market.amount_max:
        return refuse(out, INVALID, FIELD_AMOUNT, market.amount_max)
    price = command.price if is_limit else 0
    if is_limit and price <= 0:
        return refuse(out, INVALID, FIELD_PRICE, INT64_MAX)
    if command.taker_fee < 0 or command.taker_fee >= market.fee_one:
        return refuse(out, INVALID, FIELD_TAKER_FEE, market.fee_one - 1)
    maker_fee = command.maker_fee if is_limit else 0
    if maker_fee < 0 or maker_fee >= market.fee_one:
        return refuse(out, INVALID, FIELD_MAKER_FEE, market.fee_one - 1)
    if command.label_bytes > LABEL_BYTES_MAX:
        return refuse(out, INVALID, FIELD_LABEL, LABEL_BYTES_MAX)
    if is_limit and product_too_large(market, price, amount):
        return refuse(out, INVALID, FIELD_PRODUCT, WHOLE_UNITS_MAX)

    pays_asset = market.stock_asset_id if side == ASK else market.money_asset_id
    gets_asset = market.money_asset_id if side == ASK else market.stock_asset_id
    stock_unit = unit_of(market.stock_unit_low, market.stock_unit_high)
    required = from_int64(amount) * stock_unit  # a market bid's money is cut to stock_prec too
    if side == BID and is_limit:
        required = money_of(market, price, amount)
    pays_row = find_balance(state, command.user_id, pays_asset)
    if pays_row == NONE or available(state.balances[pays_row]) < required:
        return refuse(out, BALANCE_TOO_LOW, 0, 0)
    opposite_index = side_index_of(command.market_id, ASK + BID - side)
    if not is_limit:
        best = best_level(state, opposite_index)
        if best == NONE:
            return refuse(out, NO_COUNTERPARTY, 0, 0)
        if side == BID:
            if less_than_min_amount(market, state.levels[best].price, amount):
                return refuse(out, AMOUNT_TOO_SMALL, 0, 0)
        elif amount < market.min_lots:
            return refuse(out, AMOUNT_TOO_SMALL, 0, 0)
    elif amount < market.min_lots:
        return refuse(out, AMOUNT_TOO_SMALL, 0, 0)
    counters = state.counters
    if is_limit:
        if counters[ORDERS] >= counters[ORDERS_MAX]:
            return refuse(out, FULL, FIELD_ORDERS, counters[ORDERS_MAX])
        if counters[LEVELS] >= counters[LEVELS_MAX] or counters[FREE_NODES] < 2 * TREE_HEIGHT_MAX:
            return refuse(out, FULL, FIELD_LEVELS, counters[LEVELS_MAX])
    gets_row = find_balance(state, command.user_id, gets_asset)
    if gets_row == NONE:
        if counters[BALANCES] >= counters[BALANCES_MAX]:
            return refuse(out, FULL, FIELD_BALANCES, counters[BALANCES_MAX])
        gets_row = open_balance(state, command.user_id, gets_asset)

    counters[ORDER_ID] += 1
    slot = take_slot(state)
    for word in range(state.order_words.shape[1]):
        state.order_words[slot, word] = 0
    for word in range(4):
        state.order_words[slot, SOURCE_WORD + word] = label_word(inbox.words, word, command.label_bytes)
    taker = state.orders[slot]
    taker.order_id = counters[ORDER_ID]
    taker.created_at_ns = time_ns
    taker.updated_at_ns = time_ns
    taker.price = price
    taker.amount = amount
    taker.left_low = amount
    if side == BID and not is_limit:
        taker.left_low = low_half(required)
        taker.left_high = high_half(required)
    taker.taker_fee = command.taker_fee
    taker.maker_fee = maker_fee
    taker.user_id = command.user_id
    taker.market_id = command.market_id
    taker.side = side
    taker.order_type = LIMIT_TYPE if is_limit else MARKET_TYPE
    taker.stock_row = pays_row if side == ASK else gets_row
    taker.money_row = gets_row if side == ASK else pays_row
    taker.order_flags = command.order_flags
    taker.source_bytes = command.label_bytes

    match(state, out, slot, opposite_index, sequence, time_ns)

    left = left_of(taker)
    if is_limit and left > 0:
        write_order_event(state, out, sequence, time_ns, PUT, slot)
        write_order(state, out, 0, slot)
        rest(state, slot)
        change = stock_of(market, left)
        if side == BID:
            change = money_of(market, price, left)
        change_available(state, pays_row, -change)
        change_frozen(state, pays_row, change)
    else:
        write_order_event(state, out, sequence, time_ns, FINISH, slot)
        write_order(state, out, 0, slot)
        give_slot(state, slot)
    out.header[0].rows = 1
    return None


@njit(cache=True, _nrt=False, forceinline=True)
def crosses(taker, maker_price):
    """Whether a taker accepts a resting price, its own limit included; a market order accepts any."""
    if taker.order_type == MARKET_TYPE:
        return True
    if taker.side == BID:
        return maker_price <= taker.price
    return maker_price >= taker.price


@njit(cache=True, _nrt=False, forceinline=True)
def lots_for_money(market, taker, price, money_left):
    """What a market bid can still buy at `price`, rounded down to a lot and to what its totals can hold."""
    unit = unit_of(market.deal_unit_low, market.deal_unit_high)
    lots = divide(divide(money_left, unit), from_int64(price))
    most = from_int64(INT64_MAX - taker.deal_stock)
    return low_half(lots if lots < most else most)


@njit(cache=True, _nrt=False, forceinline=True)
def match(state, out, slot, opposite_index, sequence, time_ns):
    """Fill the taker in `slot` from the opposite side, best price first, then oldest.

    Lots are conserved: what the taker loses, the makers lose. Money is: what one pays, the other gets, less the fees.
    """
    taker = state.orders[slot]
    market = state.markets[taker.market_id]
    spends_money = taker.order_type == MARKET_TYPE and taker.side == BID
    zero = from_int64(0)
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
        deal = money_of(market, maker.price, amount)
        stock = stock_of(market, amount)
        ask_rate = taker.taker_fee if taker.side == ASK else maker.maker_fee
        bid_rate = maker.maker_fee if taker.side == ASK else taker.taker_fee
        ask_fee = multiply_int64(maker.price, amount) * (
            from_int64(ask_rate) * unit_of(market.ask_fee_unit_low, market.ask_fee_unit_high))
        bid_fee = from_int64(amount) * (
            from_int64(bid_rate) * unit_of(market.bid_fee_unit_low, market.bid_fee_unit_high))
        taker.updated_at_ns = time_ns
        maker.updated_at_ns = time_ns
        state.counters[DEAL_ID] += 1

        event = out.deal_events[next_event(state, out)]
        event.sequence = sequence
        event.time_ns = time_ns
        event.kind = DEAL
        event.order_event = 0
        event.deal_id = state.counters[DEAL_ID]
        event.price = maker.price
        event.amount = amount
        event.deal_low = low_half(deal)
        event.deal_high = high_half(deal)
        event.ask_fee_low = low_half(ask_fee)
        event.ask_fee_high = high_half(ask_fee)
        event.bid_fee_low = low_half(bid_fee)
        event.bid_fee_high = high_half(bid_fee)
        event.ask_order_id = taker.order_id if taker.side == ASK else maker.order_id
        event.bid_order_id = maker.order_id if taker.side == ASK else taker.order_id
        event.taker_fee = taker.taker_fee
        event.maker_fee = maker.maker_fee
        event.ask_user_id = taker.user_id if taker.side == ASK else maker.user_id
        event.bid_user_id = maker.user_id if taker.side == ASK else taker.user_id
        event.market_id = taker.market_id
        event.taker_side = taker.side

        # the steps of engine.md 6.2, each on the rows as the step before left them: a self-trade shares them
        taker_is_ask = taker.side == ASK
        taker_pays = taker.stock_row if taker_is_ask else taker.money_row
        taker_gets = taker.money_row if taker_is_ask else taker.stock_row
        maker_pays = maker.money_row if taker_is_ask else maker.stock_row
        maker_gets = maker.stock_row if taker_is_ask else maker.money_row
        taker_outflow = stock if taker_is_ask else deal
        maker_outflow = deal if taker_is_ask else stock
        taker_fee = ask_fee if taker_is_ask else bid_fee
        maker_fee = bid_fee if taker_is_ask else ask_fee
        change_available(state, taker_pays, -taker_outflow)
        total = held(state, taker_pays)
        event.taker_out_low = low_half(total)
        event.taker_out_high = high_half(total)
        change_available(state, taker_gets, maker_outflow)
        total = held(state, taker_gets)
        event.taker_in_low = low_half(total)
        event.taker_in_high = high_half(total)
        if taker_fee > zero:
            change_available(state, taker_gets, -taker_fee)
            charge(state, taker_gets, taker_fee)
            total = held(state, taker_gets)
        event.taker_fee_paid_low = low_half(total)
        event.taker_fee_paid_high = high_half(total)
        change_frozen(state, maker_pays, -maker_outflow)
        total = held(state, maker_pays)
        event.maker_out_low = low_half(total)
        event.maker_out_high = high_half(total)
        change_available(state, maker_gets, taker_outflow)
        total = held(state, maker_gets)
        event.maker_in_low = low_half(total)
        event.maker_in_high = high_half(total)
        if maker_fee > zero:
            change_available(state, maker_gets, -maker_fee)
            charge(state, maker_gets, maker_fee)
            total = held(state, maker_gets)
        event.maker_fee_paid_low = low_half(total)
        event.maker_fee_paid_high = high_half(total)

        if spends_money:
            money_left = from_halves(taker.left_low, taker.left_high) - deal
            taker.left_low = low_half(money_left)
            taker.left_high = high_half(money_left)
        else:
            taker.left_low = left_of(taker) - amount
        add_deal(taker, amount, deal, taker_fee)
        add_deal(maker, amount, deal, maker_fee)
        reduce_resting(state, maker_slot, amount)
        if left_of(maker) == 0:
            write_order_event(state, out, sequence, time_ns, FINISH, maker_slot)
            leave(state, maker_slot)
        else:
            write_order_event(state, out, sequence, time_ns, UPDATE, maker_slot)


@njit(cache=True, _nrt=False, forceinline=True)
def charge(state, row, fee):
    """A fee leaves the ledger; its asset's record remembers how much."""
    asset = state.assets[state.balances[row].asset_id]
    total = from_halves(asset.fees_low, asset.fees_high) + fee
    asset.fees_low = low_half(total)
    asset.fees_high = high_half(total)


@njit(cache=True, _nrt=False, forceinline=True)
def add_deal(order, amount, deal, fee):
    order.deal_stock += amount
    money = from_halves(order.deal_money_low, order.deal_money_high) + deal
    order.deal_money_low = low_half(money)
    order.deal_money_high = high_half(money)
    fees = from_halves(order.deal_fee_low, order.deal_fee_high) + fee
    order.deal_fee_low = low_half(fees)
    order.deal_fee_high = high_half(fees)


@njit(cache=True, _nrt=False, forceinline=True)
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
    return None


assert MONEY_DECIMALS == 20
