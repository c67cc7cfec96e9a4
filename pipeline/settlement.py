"""One deal between two orders: what each pays, gets and is charged; on balances, in their totals and in the event."""
from pipeline.ledger import change_available, change_frozen, held
from pipeline.money import money_of, stock_of
from shm.int128 import from_halves, from_int64, high_half, low_half, multiply_int64
from shm.kernel import inlined
from shm.records import Side

ASK = int(Side.ASK)


@inlined
def settle(state, event, market, taker, maker, amount):
    """Let `amount` lots change hands at the maker's price.

    The taker pays from what it has available, the maker from what it has frozen; each side's fee, at the rate of its
    role, is taken from what it receives. Source: engine.md 6.2, whose steps are made one by one: a self-trade shares
    the rows.
    """
    taker_is_ask = taker.side == ASK
    deal = money_of(market, maker.price, amount)
    stock = stock_of(market, amount)
    ask_rate = taker.taker_fee if taker_is_ask else maker.maker_fee
    bid_rate = maker.maker_fee if taker_is_ask else taker.taker_fee
    ask_fee = multiply_int64(maker.price, amount) * (
        from_int64(ask_rate) * from_halves(market.ask_fee_unit_low, market.ask_fee_unit_high))
    bid_fee = from_int64(amount) * (
        from_int64(bid_rate) * from_halves(market.bid_fee_unit_low, market.bid_fee_unit_high))
    taker_fee = ask_fee if taker_is_ask else bid_fee
    maker_fee = bid_fee if taker_is_ask else ask_fee
    write_deal(event, taker, maker, amount, deal, ask_fee, bid_fee)
    move(state, event, taker, maker, deal, stock, taker_fee, maker_fee)
    add_deal(taker, amount, deal, taker_fee)
    add_deal(maker, amount, deal, maker_fee)


@inlined
def write_deal(event, taker, maker, amount, deal, ask_fee, bid_fee):
    """What the event says of the deal itself."""
    taker_is_ask = taker.side == ASK
    event.price = maker.price
    event.amount = amount
    event.deal_low = low_half(deal)
    event.deal_high = high_half(deal)
    event.ask_fee_low = low_half(ask_fee)
    event.ask_fee_high = high_half(ask_fee)
    event.bid_fee_low = low_half(bid_fee)
    event.bid_fee_high = high_half(bid_fee)
    event.ask_order_id = taker.order_id if taker_is_ask else maker.order_id
    event.bid_order_id = maker.order_id if taker_is_ask else taker.order_id
    event.taker_fee = taker.taker_fee
    event.maker_fee = maker.maker_fee
    event.ask_user_id = taker.user_id if taker_is_ask else maker.user_id
    event.bid_user_id = maker.user_id if taker_is_ask else taker.user_id
    event.market_id = taker.market_id
    event.taker_side = taker.side


@inlined
def move(state, event, taker, maker, deal, stock, taker_fee, maker_fee):
    """Pay, receive and charge, the taker first; the event shows what each has after each step."""
    zero = from_int64(0)
    taker_is_ask = taker.side == ASK
    taker_pays = taker.stock_row if taker_is_ask else taker.money_row
    taker_gets = taker.money_row if taker_is_ask else taker.stock_row
    maker_pays = maker.money_row if taker_is_ask else maker.stock_row
    maker_gets = maker.stock_row if taker_is_ask else maker.money_row
    taker_outflow = stock if taker_is_ask else deal
    maker_outflow = deal if taker_is_ask else stock
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


@inlined
def charge(state, row, fee):
    """A fee leaves the ledger; its asset's record remembers how much."""
    asset = state.assets[state.balances[row].asset_id]
    total = from_halves(asset.fees_low, asset.fees_high) + fee
    asset.fees_low = low_half(total)
    asset.fees_high = high_half(total)


@inlined
def add_deal(order, amount, deal, fee):
    order.deal_stock += amount
    money = from_halves(order.deal_money_low, order.deal_money_high) + deal
    order.deal_money_low = low_half(money)
    order.deal_money_high = high_half(money)
    fees = from_halves(order.deal_fee_low, order.deal_fee_high) + fee
    order.deal_fee_low = low_half(fees)
    order.deal_fee_high = high_half(fees)
