"""The wire of the HTTP interface: methods, error codes, how parameters become commands and replies become results.

Pure: no socket, no ring, no clock. `decode` checks parameters left to right and knows no rule of trading; what the
core refuses `encode` raises as the method's own error.
"""
import struct
from typing import NamedTuple

from gateways import arguments
from gateways.arguments import InvalidArgument
from gateways.envelope import one_line
from gateways.messages import make_command, unsigned
from shm.decimals import fmt, is_negative
from shm.int128 import halves, join
from shm.records import (
    ALL_ASSETS,
    ASSET_SUMMARY,
    BALANCE_ROW,
    COMMAND,
    DEPTH_ROW,
    DETAIL_BYTES_MAX,
    MARKET_SUMMARY,
    MONEY_DECIMALS,
    ORDER,
    Field,
    Kind,
    OrderFlag,
    OrderType,
    Result,
    Side,
    struct_format,
)

_ASSET_SUMMARY = struct.Struct(struct_format(ASSET_SUMMARY))
_BALANCE_ROW = struct.Struct(struct_format(BALANCE_ROW))
_DEPTH_ROW = struct.Struct(struct_format(DEPTH_ROW))
_MARKET_SUMMARY = struct.Struct(struct_format(MARKET_SUMMARY))
_ORDER = struct.Struct(struct_format(ORDER))
_NAMED_ASSETS_MAX = COMMAND.fields["label"][0].itemsize // 2


class WireError(NamedTuple):
    code: int
    message: str


INVALID_ARGUMENT = WireError(1, "invalid argument")
INTERNAL_ERROR = WireError(2, "internal error")
SERVICE_UNAVAILABLE = WireError(3, "service unavailable")
METHOD_NOT_FOUND = WireError(4, "method not found")
SERVICE_TIMEOUT = WireError(5, "service timeout")
REPEAT_UPDATE = WireError(10, "repeat update")
CHANGE_NOT_COVERED = WireError(11, "balance not enough")
ORDER_NOT_COVERED = WireError(10, "balance not enough")
AMOUNT_TOO_SMALL = WireError(11, "amount too small")
NO_ENOUGH_TRADER = WireError(12, "no enough trader")
ORDER_NOT_FOUND = WireError(10, "order not found")
USER_NOT_MATCH = WireError(11, "user not match")


HTTP_STATUS = {METHOD_NOT_FOUND: 404, SERVICE_TIMEOUT: 504}  # every other answer is a 200


class Refused(Exception):
    """The answer is this error; `data` says more to people."""

    def __init__(self, error, data):
        super().__init__(error.message)
        self.error, self.data = error, data


class Method(NamedTuple):
    """`decode(params, catalog)` gives the command, or raises InvalidArgument; `encode(params, reply, catalog)` the
    result of a reply that is OK; `refusals` the (error, parameter, rule) of other outcomes, None for a null result."""
    parameters: tuple
    decode: object
    encode: object
    refusals: dict
    is_write: bool = False


def find_method(name):
    """The Method of that name; raises Refused where there is none."""
    method = METHODS.get(name)
    if method is not None:
        return method
    if name in NOT_BUILT:
        raise Refused(INTERNAL_ERROR, {"reason": f"{name} is not built yet: {NOT_BUILT[name]}"})
    raise Refused(METHOD_NOT_FOUND, InvalidArgument("method", name, "must be one of the methods of the API").data)


def encode(method, params, reply, catalog):
    """The result that the reply means, in the catalog's names; raises Refused where it is an error.

    The catalog is of the reply's version, or newer.
    """
    outcome = reply.header.result
    if outcome == Result.OK:
        return method.encode(params, reply, catalog)
    if outcome == Result.INVALID:
        raise Refused(INVALID_ARGUMENT, _invalid(method, params, reply.header))
    if outcome == Result.FULL:
        raise Refused(SERVICE_UNAVAILABLE, _full(reply.header))
    if method.refusals[outcome] is None:
        return None
    error, parameter, rule = method.refusals[outcome]
    limit = None
    if outcome == Result.AMOUNT_TOO_SMALL:
        rule, limit = _smallest(catalog.markets[catalog.market_ids[params[1]]], reply.header.bound)
    raise Refused(error, InvalidArgument(parameter, _given(method, params, parameter), rule, limit).data)


def _smallest(market, price):
    """(rule, limit) of an order's amount; `price`, in ticks, of a market order that spends money, else 0."""
    if price == 0:
        return "must be at least the market's min_amount of stock", market.min_amount
    return ("must pay for the market's min_amount of stock at the best price",
            fmt(market.min_units * price, market.min_decimals + market.money_prec))


_PARAMETERS = {  # a Field's name on the wire where it is another
    Field.USER: "user_id", Field.DEFINITION: "params", Field.ASSET_TOTAL: "change", Field.PRODUCT: "amount",
}
_RULES = {
    Field.ASSET_TOTAL: "takes the deposits of the asset, less withdrawals, past the limit",
    Field.PRODUCT: "x price must be at most the limit",
}
_CAPACITIES = {
    Field.ORDERS: "limits.orders_max", Field.LEVELS: "limits.levels_max", Field.BALANCES: "limits.balances_max",
    Field.ASSETS: "limits.assets_max", Field.MARKETS: "limits.markets_max",
    Field.IDEMPOTENCY_KEYS: "business ids of balance updates",
}


def _given(method, params, parameter):
    return params[method.parameters.index(parameter)] if parameter in method.parameters else None


def _invalid(method, params, header):
    """What the core refused, in the words of the wire."""
    field = Field(header.field)
    parameter = _PARAMETERS.get(field, field.name.lower())
    if field == Field.LABEL:
        parameter = "business" if "business" in method.parameters else "source"
    elif field == Field.PRICE and "interval" in method.parameters:
        parameter = "interval"
    rule = _RULES.get(field, "is out of range")
    return InvalidArgument(parameter, _given(method, params, parameter), rule, header.bound or None).data


def _full(header):
    return {"reason": "a capacity of the exchange is used up", "capacity": _CAPACITIES[Field(header.field)],
            "limit": header.bound}


# What commands are made of.

def _decode_asset_list(params, catalog):
    return catalog.list_assets()


def _decode_market_list(params, catalog):
    return catalog.list_markets()


def _ids(params, parameter, ids):
    return [arguments.name(parameter, given, ids) for given in params]


def _ids_of_names(params, parameter, ids, names_max):
    """Names, which may be repeated: each repetition costs what another name does, so there are no more of them than
    there could be names."""
    if len(params) > names_max:
        raise InvalidArgument("params", len(params), f"must be at most {names_max} names", names_max)
    return _ids(params, parameter, ids)


def _decode_asset_summary(params, catalog):
    _ids_of_names(params, "asset", catalog.asset_ids, catalog.limits.assets_max)
    return make_command(Kind.SUMMARIZE_ASSETS, catalog.limits.assets_max, ASSET_SUMMARY.itemsize)


def _decode_market_summary(params, catalog):
    _ids_of_names(params, "market", catalog.market_ids, catalog.limits.markets_max)
    return make_command(Kind.SUMMARIZE_MARKETS, catalog.limits.markets_max, MARKET_SUMMARY.itemsize)


def _decode_balance_query(params, catalog):
    if not params:
        raise InvalidArgument("params", 0, "must be a user_id, then assets or none")
    user_id = arguments.user_id("user_id", params[0])
    asset_ids = dict.fromkeys(_ids_of_names(params[1:], "asset", catalog.asset_ids, catalog.limits.assets_max))
    if len(params) == 1 or len(asset_ids) > _NAMED_ASSETS_MAX:
        return make_command(Kind.QUERY_BALANCE, catalog.limits.assets_max, BALANCE_ROW.itemsize, user_id=user_id,
                            asset_id=ALL_ASSETS)
    label = struct.pack(f"<{len(asset_ids)}H", *asset_ids)
    return make_command(Kind.QUERY_BALANCE, len(asset_ids), BALANCE_ROW.itemsize, user_id=user_id, label=label,
                        label_bytes=len(label))


_BALANCE_UPDATE = ("user_id", "asset", "business", "business_id", "change", "detail")


def _decode_balance_update(params, catalog):
    arguments.check_count(params, _BALANCE_UPDATE)
    user_id = arguments.user_id("user_id", params[0])
    asset_id = arguments.name("asset", params[1], catalog.asset_ids)
    business = arguments.label("business", params[2])
    business_id = arguments.integer("business_id", params[3])
    asset = catalog.assets[asset_id]
    change = arguments.change("change", params[4], asset.prec_show)
    change_low, change_high = halves(change * asset.shown_unit)
    return make_command(
        Kind.UPDATE_BALANCE, payload=_detail(params[5], business_id), user_id=user_id, asset_id=asset_id,
        label=business, label_bytes=len(business), reference=unsigned(business_id), change_low=change_low,
        change_high=change_high)


def _detail(value, business_id):
    """The text that is stored: the object with the business id in it."""
    if not isinstance(value, dict):
        raise InvalidArgument("detail", value, "must be a JSON object")
    text = one_line({**value, "id": business_id})
    if len(text) > DETAIL_BYTES_MAX:
        raise InvalidArgument("detail", value, f"must have at most {DETAIL_BYTES_MAX} bytes as JSON text with its id;"
                              f" it has {len(text)}", DETAIL_BYTES_MAX)
    return text


_PUT_LIMIT = ("user_id", "market", "side", "amount", "price", "taker_fee", "maker_fee", "source")


def _decode_put_limit(params, catalog):
    arguments.check_count(params, _PUT_LIMIT)
    user_id = arguments.user_id("user_id", params[0])
    market_id = arguments.name("market", params[1], catalog.market_ids)
    market = catalog.markets[market_id]
    side = arguments.side("side", params[2])
    amount = arguments.positive("amount", params[3], market.stock_prec, market.amount_max)
    price = arguments.positive("price", params[4], market.money_prec)
    taker_fee = arguments.fee_rate("taker_fee", params[5], market.fee_prec)
    maker_fee = arguments.fee_rate("maker_fee", params[6], market.fee_prec)
    source = arguments.label("source", params[7])
    flags = _flag_minus_zero(taker_fee, params[5], OrderFlag.TAKER_FEE_MINUS_ZERO) \
        | _flag_minus_zero(maker_fee, params[6], OrderFlag.MAKER_FEE_MINUS_ZERO)
    return make_command(
        Kind.PUT_LIMIT, user_id=user_id, market_id=market_id, side=side, amount=amount, price=price,
        taker_fee=taker_fee, maker_fee=maker_fee, label=source, label_bytes=len(source), order_flags=flags)


_PUT_MARKET = ("user_id", "market", "side", "amount", "taker_fee", "source")


def _decode_put_market(params, catalog):
    arguments.check_count(params, _PUT_MARKET)
    user_id = arguments.user_id("user_id", params[0])
    market_id = arguments.name("market", params[1], catalog.market_ids)
    market = catalog.markets[market_id]
    side = arguments.side("side", params[2])
    amount = arguments.positive("amount", params[3], market.stock_prec, market.amount_max)  # a bid's money too
    taker_fee = arguments.fee_rate("taker_fee", params[4], market.fee_prec)
    source = arguments.label("source", params[5])
    flags = _flag_minus_zero(taker_fee, params[4], OrderFlag.TAKER_FEE_MINUS_ZERO)
    return make_command(
        Kind.PUT_MARKET, user_id=user_id, market_id=market_id, side=side, amount=amount, taker_fee=taker_fee,
        label=source, label_bytes=len(source), order_flags=flags)


def _flag_minus_zero(units, text, flag):
    return flag if units == 0 and is_negative(text) else 0


_CANCEL = ("user_id", "market", "order_id")


def _decode_cancel(params, catalog):
    arguments.check_count(params, _CANCEL)
    return make_command(
        Kind.CANCEL, user_id=arguments.user_id("user_id", params[0]),
        market_id=arguments.name("market", params[1], catalog.market_ids),
        reference=unsigned(arguments.integer("order_id", params[2])))


_BOOK = ("market", "side", "offset", "limit")


def _decode_book(params, catalog):
    arguments.check_count(params, _BOOK)
    market_id = arguments.name("market", params[0], catalog.market_ids)
    side = arguments.side("side", params[1])
    offset = arguments.integer("offset", params[2])
    limit = arguments.list_limit("limit", params[3])
    return make_command(Kind.LIST_BOOK, limit, market_id=market_id, side=side, offset=offset, limit=limit)


_DEPTH = ("market", "limit", "interval")


def _decode_depth(params, catalog):
    arguments.check_count(params, _DEPTH)
    market_id = arguments.name("market", params[0], catalog.market_ids)
    limit = arguments.list_limit("limit", params[1])
    interval = arguments.not_negative("interval", params[2], catalog.markets[market_id].money_prec)
    return make_command(Kind.LIST_DEPTH, 2 * limit, DEPTH_ROW.itemsize, market_id=market_id, limit=limit,
                        price=interval)


_PENDING = ("user_id", "market", "offset", "limit")


def _decode_pending(params, catalog):
    arguments.check_count(params, _PENDING)
    user_id = arguments.user_id("user_id", params[0])
    market_id = arguments.name("market", params[1], catalog.market_ids)
    offset = arguments.integer("offset", params[2])
    limit = arguments.list_limit("limit", params[3])
    return make_command(Kind.LIST_PENDING, limit, user_id=user_id, market_id=market_id, offset=offset, limit=limit)


_PENDING_DETAIL = ("market", "order_id")


def _decode_pending_detail(params, catalog):
    arguments.check_count(params, _PENDING_DETAIL)
    market_id = arguments.name("market", params[0], catalog.market_ids)
    return make_command(Kind.FIND_PENDING, market_id=market_id,
                        reference=unsigned(arguments.integer("order_id", params[1])))


# What results are made of. Numbers are printed with the decimals that they are held with: engine.md 2.

def order_object(row, catalog):
    """The order object of the API from the fields of an ORDER."""
    (order_id, created_at_ns, updated_at_ns, price, amount, left_low, left_high, taker_fee, maker_fee, deal_stock,
     deal_money_low, deal_money_high, deal_fee_low, deal_fee_high, user_id, market_id, side, order_type, source,
     source_bytes, _client_id_bytes, _client_id, _time_in_force, flags, _self_trade, _reserved) = row
    market = catalog.markets[market_id]
    is_limit = order_type == OrderType.LIMIT
    is_dealt = deal_stock != 0
    left, left_decimals = join(left_low, left_high), market.stock_prec
    if side == Side.BID and not is_limit:  # money
        left_decimals = market.deal_decimals if is_dealt else market.stock_prec
        left = _cut(left, left_decimals)
    fee_decimals = market.ask_fee_decimals if side == Side.ASK else market.bid_fee_decimals
    return {
        "id": order_id,
        "market": market.name,
        "source": source[:source_bytes].decode(),
        "type": order_type,
        "side": side,
        "user": user_id,
        "ctime": seconds(created_at_ns),
        "mtime": seconds(updated_at_ns),
        "price": fmt(price, market.money_prec) if is_limit else "0",
        "amount": fmt(amount, market.stock_prec),
        "taker_fee": _rate(taker_fee, market, flags & OrderFlag.TAKER_FEE_MINUS_ZERO),
        "maker_fee": _rate(maker_fee, market, flags & OrderFlag.MAKER_FEE_MINUS_ZERO) if is_limit else "0",
        "left": fmt(left, left_decimals),
        "deal_stock": fmt(deal_stock, market.stock_prec) if is_dealt else "0",
        "deal_money": _money(deal_money_low, deal_money_high, market.deal_decimals) if is_dealt else "0",
        "deal_fee": _money(deal_fee_low, deal_fee_high, fee_decimals) if is_dealt else "0",
    }


def seconds(time_ns):
    """Whole microseconds, as JSON real numbers show them: always with a point."""
    return time_ns // 1_000 / 1_000_000


def _rate(units, market, minus_zero):
    text = fmt(units, market.fee_prec)
    return f"-{text}" if minus_zero else text


def _cut(money, decimals):
    return money // 10 ** (MONEY_DECIMALS - decimals)


def _money(low, high, decimals):
    return fmt(_cut(join(low, high), decimals), decimals)


def _orders(reply, catalog):
    return [order_object(row, catalog) for row in reply.rows(_ORDER, reply.header.rows)]


def _encode_order(params, reply, catalog):
    return _orders(reply, catalog)[0]


def _encode_asset_list(params, reply, catalog):
    return [{"name": asset.name, "prec": asset.prec_show} for asset in catalog.assets]


def _encode_asset_summary(params, reply, catalog):
    rows = reply.rows(_ASSET_SUMMARY, reply.header.rows)
    return [_asset_summary(catalog.assets[index], *rows[index])
            for index in _ids(params, "asset", catalog.asset_ids) or range(len(rows))]


def _asset_summary(asset, available_low, available_high, frozen_low, frozen_high, available_count, frozen_count):
    available, frozen = join(available_low, available_high), join(frozen_low, frozen_high)

    def saved(money):
        return fmt(money // asset.saved_unit, asset.prec_save) if money else "0"
    return {
        "name": asset.name, "total_balance": saved(available + frozen),
        "available_count": available_count, "available_balance": saved(available),
        "freeze_count": frozen_count, "freeze_balance": saved(frozen),
    }


def _encode_balance_query(params, reply, catalog):
    found = {row[4]: row for row in reply.rows(_BALANCE_ROW, reply.header.rows)}
    result = {}
    for index in _ids(params[1:], "asset", catalog.asset_ids) or found:
        asset = catalog.assets[index]
        available_low, available_high, frozen_low, frozen_high, _asset_id, _reserved = found[index]
        result[asset.name] = {"available": _shown(available_low, available_high, asset),
                              "freeze": _shown(frozen_low, frozen_high, asset)}
    return result


def _shown(low, high, asset):
    """A balance as balance.query shows it; one below the last decimal shown is not the same zero as none."""
    money = join(low, high)
    return fmt(money // asset.shown_unit, asset.prec_show) if money else "0"


def _encode_balance_update(params, reply, catalog):
    return {"status": "success"}


def _encode_book(params, reply, catalog):
    return {"offset": params[2], "limit": params[3], "total": reply.header.total, "orders": _orders(reply, catalog)}


def _encode_depth(params, reply, catalog):
    market = catalog.markets[catalog.market_ids[params[0]]]

    def levels(count, skip):
        return [[fmt(join(*row[:2]), market.money_prec), fmt(join(*row[2:]), market.stock_prec)]
                for row in reply.rows(_DEPTH_ROW, count, skip)]
    asks, bids = reply.header.rows, reply.header.total
    return {"asks": levels(asks, 0), "bids": levels(bids, asks)}


def _encode_pending(params, reply, catalog):
    return {"limit": params[3], "offset": params[2], "total": reply.header.total, "records": _orders(reply, catalog)}


def _encode_market_list(params, reply, catalog):
    return [{
        "name": market.name, "stock": market.stock, "money": market.money, "fee_prec": market.fee_prec,
        "stock_prec": market.stock_prec, "money_prec": market.money_prec, "min_amount": market.min_amount,
    } for market in catalog.markets]


def _encode_market_summary(params, reply, catalog):
    rows = reply.rows(_MARKET_SUMMARY, reply.header.rows)
    return [_market_summary(catalog.markets[index], *rows[index])
            for index in _ids(params, "market", catalog.market_ids) or range(len(rows))]


def _market_summary(market, ask_low, ask_high, bid_low, bid_high, ask_count, bid_count):
    def side(count, low, high):
        return fmt(join(low, high), market.stock_prec) if count else "0"
    return {
        "name": market.name,
        "ask_count": ask_count, "ask_amount": side(ask_count, ask_low, ask_high),
        "bid_count": bid_count, "bid_amount": side(bid_count, bid_low, bid_high),
    }


_ORDER_REFUSALS = {
    Result.BALANCE_TOO_LOW: (ORDER_NOT_COVERED, "amount", "must be covered by the user's available balance"),
    Result.AMOUNT_TOO_SMALL: (AMOUNT_TOO_SMALL, "amount", None),
    Result.NO_COUNTERPARTY: (NO_ENOUGH_TRADER, "market", "has no order on the opposite side"),
}
METHODS = {
    "asset.list": Method((), _decode_asset_list, _encode_asset_list, {}),
    "asset.summary": Method((), _decode_asset_summary, _encode_asset_summary, {}),
    "balance.query": Method(("user_id",), _decode_balance_query, _encode_balance_query, {}),
    "balance.update": Method(_BALANCE_UPDATE, _decode_balance_update, _encode_balance_update, {
        Result.REPEATED: (REPEAT_UPDATE, "business_id", "must be new for this user, asset and business"),
        Result.BALANCE_TOO_LOW: (CHANGE_NOT_COVERED, "change", "must be covered by the user's available balance"),
    }, is_write=True),
    "order.put_limit": Method(_PUT_LIMIT, _decode_put_limit, _encode_order, _ORDER_REFUSALS, is_write=True),
    "order.put_market": Method(_PUT_MARKET, _decode_put_market, _encode_order, _ORDER_REFUSALS, is_write=True),
    "order.cancel": Method(_CANCEL, _decode_cancel, _encode_order, {
        Result.ORDER_NOT_FOUND: (ORDER_NOT_FOUND, "order_id", "must be an open order of the market"),
        Result.NOT_THE_OWNER: (USER_NOT_MATCH, "user_id", "must be the owner of the order"),
    }, is_write=True),
    "order.book": Method(_BOOK, _decode_book, _encode_book, {}),
    "order.depth": Method(_DEPTH, _decode_depth, _encode_depth, {}),
    "order.pending": Method(_PENDING, _decode_pending, _encode_pending, {}),
    "order.pending_detail": Method(_PENDING_DETAIL, _decode_pending_detail, _encode_order,
                                   {Result.ORDER_NOT_FOUND: None}),
    "market.list": Method((), _decode_market_list, _encode_market_list, {}),
    "market.summary": Method((), _decode_market_summary, _encode_market_summary, {}),
}
_HISTORY, _MARKET_DATA = "the history service is missing", "the market data service is missing"
NOT_BUILT = {
    "balance.history": _HISTORY, "order.deals": _HISTORY, "order.finished": _HISTORY,
    "order.finished_detail": _HISTORY, "market.user_deals": _HISTORY,
    "market.last": _MARKET_DATA, "market.deals": _MARKET_DATA, "market.kline": _MARKET_DATA,
    "market.status": _MARKET_DATA, "market.status_today": _MARKET_DATA,
}
