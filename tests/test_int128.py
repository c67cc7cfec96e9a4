"""128-bit integers in compiled code agree with Python's, at every edge of a word and of two."""
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numba import njit

from shm.int128 import (
    INT128_MAX,
    MASK64,
    divide,
    folded_product,
    from_halves,
    from_int64,
    halves,
    high_half,
    join,
    low_half,
    multiply_int64,
    product_overflows,
)
from shm.records import INT64_MAX, WHOLE_UNITS_MAX

INT128_MIN = -INT128_MAX - 1
INT64_MIN = -INT64_MAX - 1
EDGES = sorted({sign * (2**power + step) for sign in (1, -1) for power in (0, 1, 31, 32, 62, 63, 64, 65, 96, 126)
                for step in (-1, 0, 1)} | {0, INT128_MAX, INT128_MIN, WHOLE_UNITS_MAX * 10**20})

any_int128 = st.one_of(st.sampled_from(EDGES), st.integers(INT128_MIN, INT128_MAX))
any_int64 = st.one_of(st.sampled_from([edge for edge in EDGES if INT64_MIN <= edge <= INT64_MAX]),
                      st.integers(INT64_MIN, INT64_MAX))
any_word = st.one_of(st.sampled_from([0, 1, 2**32, 2**63, MASK64]), st.integers(0, MASK64))


@njit(cache=True, _nrt=False)
def compute(a_low, a_high, b_low, b_high):
    a, b = from_halves(a_low, a_high), from_halves(b_low, b_high)
    added, subtracted = a, a
    added += b
    subtracted -= b
    return (low_half(a + b), high_half(a + b), low_half(added), high_half(added), low_half(a - b), high_half(a - b),
            low_half(subtracted), high_half(subtracted), low_half(a * b), high_half(a * b), low_half(-a),
            high_half(-a))


@njit(cache=True, _nrt=False)
def compare(a_low, a_high, b_low, b_high):
    a, b = from_halves(a_low, a_high), from_halves(b_low, b_high)
    return a < b, a <= b, a > b, a >= b, a == b, a != b


@njit(cache=True, _nrt=False)
def quotient(a_low, a_high, b_low, b_high):
    result = divide(from_halves(a_low, a_high), from_halves(b_low, b_high))
    return low_half(result), high_half(result)


@njit(cache=True, _nrt=False)
def overflows(a_low, a_high, b_low, b_high):
    return product_overflows(from_halves(a_low, a_high), from_halves(b_low, b_high))


@njit(cache=True, _nrt=False)
def product_of_int64(a, b):
    product, wide = multiply_int64(a, b), from_int64(a) * from_int64(b)
    return low_half(product), high_half(product), low_half(wide), high_half(wide)


@njit(cache=True, _nrt=False)
def fold(a, b):
    return folded_product(a, b)


def words(value):
    """The two halves as a record's fields give them to compiled code."""
    low, high = halves(value)
    return np.uint64(low), np.int64(high)


def wrapped(value):
    return (value - INT128_MIN) % 2**128 + INT128_MIN


def joined(results):
    return [join(low, high) for low, high in zip(results[::2], results[1::2])]


@given(any_int128)
def test_halves_of_a_record_and_a_python_integer_are_one_value(value):
    low, high = halves(value)
    assert 0 <= low <= MASK64 and INT64_MIN <= high <= INT64_MAX
    assert join(low, high) == join(np.uint64(low), np.int64(high)) == value


@pytest.mark.parametrize("value", [INT128_MAX + 1, INT128_MIN - 1])
def test_a_python_integer_beyond_128_bits_is_a_defect(value):
    with pytest.raises(AssertionError):
        halves(value)


@given(any_int128, any_int128)
def test_sums_differences_and_products_wrap_like_two_s_complement(a, b):
    expected = [a + b, a + b, a - b, a - b, a * b, -a]
    assert joined(compute(*words(a), *words(b))) == [wrapped(value) for value in expected]


@given(any_int128, any_int128)
def test_comparisons_see_the_sign(a, b):
    assert compare(*words(a), *words(b)) == (a < b, a <= b, a > b, a >= b, a == b, a != b)
    assert compare(*words(a), *words(a)) == (False, True, False, True, True, False)


@given(st.integers(0, INT128_MAX) | st.sampled_from([edge for edge in EDGES if edge >= 0]),
       st.integers(1, INT128_MAX) | st.sampled_from([edge for edge in EDGES if edge > 0]))
@example(INT128_MAX, 1)
@example(2**64, 2**64 - 1)
@example(MASK64, 1)
def test_a_quotient_is_rounded_down_whatever_the_widths(dividend, divisor):
    assert join(*quotient(*words(dividend), *words(divisor))) == dividend // divisor


@given(any_int64, any_int64)
def test_the_product_of_two_words_is_exact(a, b):
    assert joined(product_of_int64(np.int64(a), np.int64(b))) == [a * b, a * b]


@given(any_int128.filter(lambda value: value > INT128_MIN), st.integers(1, INT128_MAX)
       | st.sampled_from([1, 10, 10**19, 10**20, 2**63, 2**64, INT128_MAX]))
@example(INT128_MAX, 1)
@example(INT128_MAX // 10, 10)
@example(INT128_MAX // 10 + 1, 10)
@example(-(INT128_MAX // 10) - 1, 10)
def test_a_product_that_does_not_fit_is_known_before_it_is_made(value, factor):
    assert overflows(*words(value), *words(factor)) == (abs(value * factor) > INT128_MAX)


@given(any_word, any_word)
def test_the_mixing_step_folds_the_whole_product(a, b):
    assert fold(np.uint64(a), np.uint64(b)) == (a * b >> 64) ^ (a * b & MASK64)


def test_the_most_money_of_an_asset_fits_and_twice_as_much_does_not():
    most = WHOLE_UNITS_MAX * 10**20
    assert most <= INT128_MAX < 2 * most  # so whoever adds to it compares with what is left
