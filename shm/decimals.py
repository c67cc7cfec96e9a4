"""The API's decimal numbers: text to integers of a fixed unit and back. PARSE, RAW and FMT of the specification.

An integer `value` held with `decimals` means value x 10^-decimals; how many decimals a number is held with shows where
it is printed ("0", "0e-8", "1.0e-7"). A zero's sign is not held: who must show it asks `is_negative`.
"""
import re

SIGNIFICANT_DIGITS_MAX = 34    # more are cut, toward zero
MAGNITUDE_DIGITS_MAX = 30      # before the point: 1e30 and more is refused
EXPONENT_DIGITS_MAX = 9        # longer exponents saturate: beyond every magnitude, or below every unit
PLAIN_EXPONENT_MIN = -6        # of the first digit: below, RAW writes an exponent

_SYNTAX = re.compile(r"([+-]?)(?:([0-9]+)\.?([0-9]*)|\.([0-9]+))(?:[eE]([+-]?)([0-9]+))?")


class NotADecimal(ValueError):
    """Text that is no decimal number, or one too large; the message is the rule that it breaks."""


def is_negative(text):
    """Whether a number that `parse` takes has a minus sign, be it zero or not."""
    return text.startswith("-")


def parse(text, decimals):
    """PARSE: the number that `text` stands for, in units of 10^-decimals, cut toward zero.

    Raises NotADecimal for anything that is not `[+-]digits[.digits][e[+-]digits]` and for 1e30 and more. The cost is
    linear in the length of the text, whatever the exponent.
    """
    match = _SYNTAX.fullmatch(text)
    if match is None:
        raise NotADecimal("a decimal number such as 0.5")
    sign, whole, fraction, bare_fraction, exponent_sign, exponent_digits = match.groups()
    fraction = fraction or bare_fraction or ""
    digits = ((whole or "") + fraction).lstrip("0")
    if not digits:
        return 0
    exponent = -len(fraction)
    if exponent_digits is not None:
        exponent += _saturated(exponent_sign, exponent_digits)
    if len(digits) + exponent > MAGNITUDE_DIGITS_MAX:
        raise NotADecimal(f"a number below 1e{MAGNITUDE_DIGITS_MAX}")
    if len(digits) > SIGNIFICANT_DIGITS_MAX:
        exponent += len(digits) - SIGNIFICANT_DIGITS_MAX
        digits = digits[:SIGNIFICANT_DIGITS_MAX]
    shift = exponent + decimals
    if shift >= 0:
        value = int(digits) * 10**shift
    else:
        value = int(digits[:shift] or "0")  # cut: the last -shift digits lie below the unit
    return -value if sign == "-" else value


def _saturated(sign, digits):
    digits = digits.lstrip("0")
    magnitude = int(digits or "0") if len(digits) <= EXPONENT_DIGITS_MAX else 10**EXPONENT_DIGITS_MAX
    return -magnitude if sign == "-" else magnitude


def raw(value, decimals):
    """RAW: every decimal held, with an exponent where the first digit stands after the sixth decimal."""
    digits = str(value)
    sign = ""
    if value < 0:
        sign, digits = "-", digits[1:]
    if decimals == 0:
        return sign + digits
    point = len(digits) - decimals  # digits before the point; below one: zeros after it
    if point > 0:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if point > PLAIN_EXPONENT_MIN:
        return f"{sign}0.{'0' * -point}{digits}"
    if len(digits) == 1:
        return f"{sign}{digits}e{point - 1}"
    return f"{sign}{digits[0]}.{digits[1:]}e{point - 1}"


def fmt(value, decimals):
    """FMT: RAW without trailing zeros and point, but an exponent form stays as it is."""
    text = raw(value, decimals)
    if decimals == 0 or "e" in text:
        return text
    return text.rstrip("0").rstrip(".")
