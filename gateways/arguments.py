"""What a parameter may be. Everything else is refused, naming the parameter, its value and the rule."""
from shm.decimals import NotADecimal, fmt, parse
from shm.records import INT64_MAX, LABEL_BYTES_MAX, LIST_LIMIT_MAX, WHOLE_UNITS_MAX, Side

USER_ID_MAX = 2**32 - 1
_SHOWN_CHARACTERS_MAX = 64


class InvalidArgument(Exception):
    """A parameter that breaks a rule; `data` says so to people. Nothing has been changed."""

    def __init__(self, parameter, value, rule, limit=None):
        super().__init__(f"{parameter} {rule}")
        self.data = {"parameter": parameter, "value": shown(value), "rule": rule}
        if limit is not None:
            self.data["limit"] = limit


class UnknownName(InvalidArgument):
    """An asset or a market that the catalog does not have, as far as this gateway knows."""


def shown(value):
    """The value as an error repeats it: the beginning of a long text, no arrays and objects."""
    if isinstance(value, str) and len(value) > _SHOWN_CHARACTERS_MAX:
        return f"{value[:_SHOWN_CHARACTERS_MAX]}... ({len(value)} characters)"
    if isinstance(value, (list, dict)):
        return "a JSON array" if isinstance(value, list) else "a JSON object"
    return value


def check_count(params, names):
    if len(params) != len(names):
        raise InvalidArgument(
            "params", len(params), f"must be exactly these {len(names)}: {', '.join(names)}", len(names))


def integer(parameter, value):
    """Any JSON integer: the envelope has bounded it to 64 bits."""
    if type(value) is not int:  # a JSON true is no integer
        raise InvalidArgument(parameter, value, "must be a JSON integer")
    return value


def user_id(parameter, value):
    if not 1 <= integer(parameter, value) <= USER_ID_MAX:
        raise InvalidArgument(parameter, value, f"must be an integer from 1 to {USER_ID_MAX}", USER_ID_MAX)
    return value


def side(parameter, value):
    if integer(parameter, value) not in (Side.ASK, Side.BID):
        raise InvalidArgument(parameter, value, f"must be {Side.ASK:d} (ask) or {Side.BID:d} (bid)")
    return value


def list_limit(parameter, value):
    if not 0 <= integer(parameter, value) <= LIST_LIMIT_MAX:
        raise InvalidArgument(parameter, value, f"must be an integer from 0 to {LIST_LIMIT_MAX}", LIST_LIMIT_MAX)
    return value


def string(parameter, value):
    if not isinstance(value, str):
        raise InvalidArgument(parameter, value, "must be a JSON string")
    return value


def label(parameter, value):
    """A short text, as UTF-8."""
    encoded = string(parameter, value).encode()
    if len(encoded) > LABEL_BYTES_MAX:
        raise InvalidArgument(parameter, value, f"must have at most {LABEL_BYTES_MAX} bytes as UTF-8", LABEL_BYTES_MAX)
    return encoded


def name(parameter, value, ids):
    """The id that `ids` has for the name."""
    found = ids.get(string(parameter, value))
    if found is None:
        raise UnknownName(parameter, value, f"must be the name of {'an asset' if parameter == 'asset' else 'a market'}")
    return found


def decimal(parameter, value, decimals):
    """A decimal number in a string, in units of 10^-decimals, cut toward zero."""
    if not isinstance(value, str):
        raise InvalidArgument(parameter, value, "must be a decimal number in a JSON string")
    try:
        return parse(value, decimals)
    except NotADecimal as broken:
        raise InvalidArgument(parameter, value, f"must be {broken}") from None


def positive(parameter, value, decimals, most=INT64_MAX):
    """A decimal number above zero once it is cut, and at most `most` units."""
    units = decimal(parameter, value, decimals)
    if units <= 0:
        raise InvalidArgument(parameter, value, f"must be above 0 at {decimals} decimals")
    return _at_most(most, parameter, value, units, decimals)


def not_negative(parameter, value, decimals):
    units = decimal(parameter, value, decimals)
    if units < 0:
        raise InvalidArgument(parameter, value, f"must not be below 0 at {decimals} decimals")
    return _at_most(INT64_MAX, parameter, value, units, decimals)


def _at_most(most, parameter, value, units, decimals):
    if units > most:
        raise InvalidArgument(parameter, value, "must be at most the limit", fmt(most, decimals))
    return units


def fee_rate(parameter, value, decimals):
    units = decimal(parameter, value, decimals)
    if not 0 <= units < 10**decimals:
        raise InvalidArgument(parameter, value, f"must be at least 0 and below 1 at {decimals} decimals", "1")
    return units


def change(parameter, value, decimals):
    """A balance's change, of either sign."""
    units = decimal(parameter, value, decimals)
    if abs(units) > WHOLE_UNITS_MAX * 10**decimals:
        raise InvalidArgument(parameter, value, "must be at most the limit, either way", str(WHOLE_UNITS_MAX))
    return units
