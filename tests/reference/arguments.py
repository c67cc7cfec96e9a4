"""What a parameter may be. Everything else is refused as an invalid argument."""

import json

from .book import ASK, BID
from .decimals import parse

INVALID_ARGUMENT = (1, "invalid argument")

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
USER_ID_MAX = 2**32 - 1
PAGE_MAX = 101
TEXT_BYTES_MAX = 30
DETAIL_BYTES_MAX = 8192
WHOLE_UNITS_MAX = 10**18  # of an asset: in one change, one order, one order's value, and altogether


class Refused(Exception):
    """The answer is an error; the arguments are its code and its message. Nothing has changed."""


def require(condition):
    if not condition:
        raise Refused(*INVALID_ARGUMENT)


def integer(value, smallest=INT64_MIN, largest=INT64_MAX):
    require(type(value) is int and smallest <= value <= largest)  # a JSON true is no integer
    return value


def user_id(value):
    return integer(value, 1, USER_ID_MAX)


def side(value):
    return integer(value, ASK, BID)


def page_limit(value):
    return integer(value, 0, PAGE_MAX)


def text(value):
    require(isinstance(value, str) and len(value.encode()) <= TEXT_BYTES_MAX)
    return value


def one_of(value, known):
    """The entry of `known` that `value` names."""
    require(isinstance(value, str) and value in known)
    return known[value]


def some_of(values, known):
    """The entries that `values` name, in their order; all of `known` when none is named."""
    return [one_of(value, known) for value in values] or list(known.values())


def number(value, decimals):
    require(isinstance(value, str))
    parsed = parse(value, decimals)
    require(parsed is not None)
    return parsed


def order_number(value, decimals):
    """An amount or a price: positive, and a 64-bit integer in units of its precision."""
    parsed = number(value, decimals)
    require(parsed > 0 and parsed.scaleb(decimals) <= INT64_MAX)
    return parsed


def order_amount(value, decimals):
    amount = order_number(value, decimals)
    require(amount <= WHOLE_UNITS_MAX)
    return amount


def fee_rate(value, decimals):
    rate = number(value, decimals)
    require(0 <= rate < 1)  # -0 passes, and is shown as -0
    return rate


def depth_interval(value, decimals):
    interval = number(value, decimals)
    require(interval >= 0 and interval.scaleb(decimals) <= INT64_MAX)
    return interval


def balance_change(value, decimals):
    change = number(value, decimals)
    require(-WHOLE_UNITS_MAX <= change <= WHOLE_UNITS_MAX)
    return change


def detail(value, business_id):
    """An object that is still small enough when the business id has been put into it."""
    require(isinstance(value, dict))
    stored = json.dumps({**value, "id": business_id}, ensure_ascii=False)
    require(len(stored.encode()) <= DETAIL_BYTES_MAX)
    return value
