"""Decimal strings of the API: PARSE, RAW and FMT of the specification, and the exact arithmetic between them."""

import re
from decimal import ROUND_DOWN, Context, Decimal, DivisionByZero, Inexact, InvalidOperation

ZERO = Decimal(0)

# Any sum or product that does not fit is a defect, not a rounding.
EXACT = Context(prec=100, rounding=ROUND_DOWN, traps=[Inexact, InvalidOperation, DivisionByZero])
CUT = Context(prec=100, rounding=ROUND_DOWN, traps=[InvalidOperation])

_SYNTAX = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_READ = Context(prec=34, rounding=ROUND_DOWN, Emin=-6143, Emax=6144, traps=[])
_MAGNITUDE_LIMIT = Decimal("1e30")


def parse(text, decimals):
    """What `text` stands for, cut toward zero to `decimals` decimals; None if it is no number or 1e30 or beyond."""
    if not _SYNTAX.fullmatch(text):
        return None
    number = _READ.create_decimal(text)
    if number.copy_abs() >= _MAGNITUDE_LIMIT:
        return None
    return cut(number, decimals)


def unit(decimals):
    """The smallest step of that many decimals."""
    return Decimal((0, (1,), -decimals))


def cut(number, decimals):
    """`number` with exactly that many decimals, the rest dropped; the sign of a zero stays."""
    return number.quantize(unit(decimals), context=CUT)


def raw(number):
    """RAW: every decimal held, exponent form from 1e-7 down."""
    return str(number).lower()


def fmt(number):
    """FMT: RAW without trailing zeros, unless it is in exponent form."""
    text = raw(number)
    if "." in text and "e" not in text:
        text = text.rstrip("0").rstrip(".")
    return text
