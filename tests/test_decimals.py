"""PARSE, RAW and FMT agree with decimal arithmetic as the specification defines it."""
import time
from decimal import ROUND_DOWN, Context, Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shm.decimals import NotADecimal, fmt, is_negative, parse, raw

ORIGINAL = Context(prec=34, rounding=ROUND_DOWN, Emin=-6143, Emax=6144, clamp=1, capitals=0, traps=[])
WIDE = Context(prec=20_000, rounding=ROUND_DOWN, capitals=0, traps=[])
DECIMALS = st.integers(0, 20)
INTEGERS = st.one_of(st.integers(-10**3, 10**3), st.integers(-2**127, 2**127 - 1))
DIGITS = st.text("0123456789", max_size=45)


@st.composite
def numbers(draw):
    """Text that the syntax allows, of any length and with small, large and absurd exponents."""
    whole, fraction = draw(DIGITS), draw(DIGITS)
    text = whole + draw(st.sampled_from(["", "."])) if not fraction else f"{whole}.{fraction}"
    if not whole and not fraction:
        text = "0"
    exponent = draw(st.one_of(st.none(), st.integers(-70, 70), st.sampled_from([-10**12, 10**12])))
    if exponent is not None:
        text += draw(st.sampled_from(["e", "E"])) + draw(st.sampled_from(["", "+"] if exponent >= 0 else [""]))
        text += str(exponent)
    return draw(st.sampled_from(["", "+", "-"])) + text


def held(value, decimals):
    """The decimal number that `value` units of 10^-decimals are."""
    return Decimal((int(value < 0), tuple(map(int, str(abs(value)))), -decimals))


@given(numbers(), DECIMALS)
@example("9" * 30, 8)
@example("1" + "0" * 30, 8)
@example("0" * 50 + "1", 0)
@example("-0.999999999999999999999999999999999999999999", 18)
@example("0e999999999999", 3)
def test_parse_cuts_like_the_decimal_context_of_the_specification(text, decimals):
    number = ORIGINAL.create_decimal(text)
    if number.copy_abs() >= Decimal("1e30"):
        with pytest.raises(NotADecimal, match="below 1e30"):
            parse(text, decimals)
    else:
        scaled = WIDE.scaleb(WIDE.quantize(number, Decimal((0, (1,), -decimals))), decimals)
        assert parse(text, decimals) == int(scaled)


@given(INTEGERS, DECIMALS)
def test_raw_is_the_scientific_string_of_general_decimal_arithmetic(value, decimals):
    assert raw(value, decimals) == WIDE.to_sci_string(held(value, decimals))


@given(INTEGERS, DECIMALS)
def test_fmt_strips_raw_unless_it_has_an_exponent(value, decimals):
    text = WIDE.to_sci_string(held(value, decimals))
    if "e" not in text and "." in text:
        text = text.rstrip("0").rstrip(".")
    assert fmt(value, decimals) == text


@given(st.integers(-10**29, 10**29), DECIMALS)
def test_what_fmt_prints_parse_reads(value, decimals):
    if abs(value) < 10**30:
        assert parse(fmt(value, decimals), decimals) == value


@pytest.mark.parametrize("value, decimals, as_raw, as_fmt", [
    (800000000000, 8, "8000.00000000", "8000"),
    (10000000, 8, "0.10000000", "0.1"),
    (100, 8, "0.00000100", "0.000001"),
    (123, 8, "0.00000123", "0.00000123"),
    (99, 8, "9.9e-7", "9.9e-7"),
    (10, 8, "1.0e-7", "1.0e-7"),
    (1, 8, "1e-8", "1e-8"),
    (0, 0, "0", "0"),
    (0, 6, "0.000000", "0"),
    (0, 7, "0e-7", "0e-7"),
    (0, 8, "0e-8", "0e-8"),
    (0, 12, "0e-12", "0e-12"),
    (0, 16, "0e-16", "0e-16"),
    (0, 20, "0e-20", "0e-20"),
    (-500000000, 8, "-5.00000000", "-5"),
])
def test_the_examples_of_the_specification_print_as_they_stand_there(value, decimals, as_raw, as_fmt):
    assert (raw(value, decimals), fmt(value, decimals)) == (as_raw, as_fmt)


@pytest.mark.parametrize("text", [
    "", " ", "abc", "  1", "1 ", "1,5", "0x10", "-", "+", ".", "-.", "--1", "1-", "1.2.3", "1e", "e5", ".e5", "1_0",
    "1e1.5", "１", "1\n", "\u0663", "nan", "NaN", "sNaN", "-NaN", "NaN123", "inf", "-Infinity", "INF",
])
def test_text_that_is_no_number_is_refused(text):
    with pytest.raises(NotADecimal, match="a decimal number"):
        parse(text, 8)


@pytest.mark.parametrize("text, decimals, value", [
    ("1.", 8, 10**8), (".5", 8, 5 * 10**7), ("+1", 0, 1), ("1e3", 0, 1000), ("1e1", 0, 10), ("-0", 8, 0),
    ("0.123456789", 8, 12345678), ("1e-9", 8, 0), ("0.99", 0, 0), ("-0.99", 0, 0), ("-1.99", 0, -1),
    ("1e-999999999999999999999", 8, 0), ("0e999999999", 8, 0), ("0" * 5000 + "7.5", 1, 75),
    ("1" * 34 + "e-10", 0, int("1" * 24)),
])
def test_unusual_spellings_of_numbers_are_read(text, decimals, value):
    assert parse(text, decimals) == value


@pytest.mark.parametrize("text", [
    "1e30", "-1e30", "1e999999999", "9" * 31, "1" + "0" * 30, "1e" + "9" * 5000, "0.01e32",
])
def test_numbers_of_1e30_and_more_are_refused(text):
    with pytest.raises(NotADecimal, match="below 1e30"):
        parse(text, 8)


def test_the_cost_does_not_grow_with_the_exponent():
    started = time.perf_counter()
    for text in ("1e-999999999", "0e999999999", "1e29", "9" * 100_000 + "e-99990", "0." + "0" * 100_000 + "1"):
        parse(text, 18)
    assert time.perf_counter() - started < 0.1


def test_the_sign_of_a_zero_can_be_asked_for():
    assert is_negative("-0") and is_negative("-0.00001")
    assert not is_negative("0") and not is_negative("+0")
