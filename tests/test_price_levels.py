"""The tree of price levels holds what a sorted list holds, in its order, whatever comes and goes; both sides alike."""
from bisect import bisect_left, insort
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from pipeline.price_levels import add_level, best_level, level_at, level_key, locate, remove_level
from pipeline.state import DEFECT, FREE_NODES, LEVELS, MARKETS, NODE_FANOUT, NONE, allocate
from shm.records import INT64_MAX, LIMITS, Side
from tests.oracle.audit import Finding, check_trees

LEVELS_MAX = 6_000
SIDES = (Side.ASK, Side.BID)


@njit(cache=True, _nrt=False)
def add(state, side_index, side, prices):
    for price in prices:
        key = level_key(side, price)
        leaf, place = locate(state, side_index, key)
        add_level(state, side_index, leaf, place, key, price)


@njit(cache=True, _nrt=False)
def remove(state, side_index, side, prices):
    for price in prices:
        key = level_key(side, price)
        leaf, place = locate(state, side_index, key)
        remove_level(state, level_at(state, leaf, place, key), key)


@njit(cache=True, _nrt=False)
def prices_of(state, side_index, prices):
    """Fill `prices` from the best on, following the leaves; returns how many there are."""
    count = 0
    leaf = state.sides[side_index].first_leaf
    while leaf != NONE:
        for place in range(state.nodes[leaf].count):
            prices[count] = state.levels[state.node_children[leaf, place]].price
            count += 1
        leaf = state.nodes[leaf].next
    return count


@njit(cache=True, _nrt=False)
def found(state, side_index, side, price):
    """The price of the level that is found for it; 0 where none is."""
    key = level_key(side, price)
    leaf, place = locate(state, side_index, key)
    level = level_at(state, leaf, place, key)
    return state.levels[level].price if level != NONE else 0


@njit(cache=True, _nrt=False)
def best(state, side_index):
    level = best_level(state, side_index)
    return state.levels[level].price if level != NONE else 0


class Tree:
    """One side of a market, with the sorted list that it is compared with."""

    def __init__(self, side, levels_max=LEVELS_MAX):
        limits = np.array((1, 16, levels_max, 16, 1, 1), LIMITS)
        self.state, self.side, self.side_index = allocate(limits), int(side), int(side) - 1
        self.state.counters[MARKETS] = 1
        self.prices = []                # ascending

    def add(self, prices):
        new = [price for price in dict.fromkeys(prices) if not self._holds(price)][:LEVELS_MAX - len(self.prices)]
        for price in new:
            insort(self.prices, price)
        add(self.state, self.side_index, self.side, np.array(new, np.int64))

    def remove(self, prices):
        old = [price for price in dict.fromkeys(prices) if self._holds(price)]
        for price in old:
            del self.prices[bisect_left(self.prices, price)]
        remove(self.state, self.side_index, self.side, np.array(old, np.int64))

    def _holds(self, price):
        place = bisect_left(self.prices, price)
        return place < len(self.prices) and self.prices[place] == price

    def from_the_best_on(self):
        return self.prices if self.side == Side.ASK else self.prices[::-1]

    def check(self):
        listed = np.zeros(LEVELS_MAX + 1, np.int64)
        count = prices_of(self.state, self.side_index, listed)
        assert listed[:count].tolist() == self.from_the_best_on()
        assert best(self.state, self.side_index) == (self.from_the_best_on() or [0])[0]
        assert self.state.counters[LEVELS] == len(self.prices)
        assert self.state.counters[DEFECT] == 0
        finding, where = check_trees(self.state)
        assert finding == Finding.NOTHING, f"{Finding(finding).name} at {where}"
        for price in self.prices[:: max(1, len(self.prices) // 50)]:
            assert found(self.state, self.side_index, self.side, price) == price
            for missing in (price - 1, price + 1):
                assert bool(found(self.state, self.side_index, self.side, missing)) == self._holds(missing)


STEPS = st.one_of(
    st.tuples(st.just("a ladder"), st.integers(1, 5_000), st.integers(1, 1_500), st.sampled_from([1, 2, 7, -1, -3])),
    st.tuples(st.just("anywhere"), st.integers(0, 2**32), st.integers(1, 1_500), st.sampled_from([30, 10_000, 2**62])),
    st.tuples(st.just("from the best"), st.integers(1, 2_000)),
    st.tuples(st.just("from the worst"), st.integers(1, 2_000)),
    st.tuples(st.just("every other"), st.integers(2, 40), st.integers(0, 39)),
    st.tuples(st.just("some"), st.integers(0, 2**32), st.integers(1, 1_000)),
)


def take(tree, step):
    kind, *numbers = step
    if kind == "a ladder":
        first, count, stride = numbers
        tree.add([price for price in range(first, first + stride * count, stride) if price > 0])
    elif kind == "anywhere":
        seed, count, highest = numbers
        chance = Random(seed)
        tree.add([chance.randint(1, highest) for _ in range(count)])
    elif kind == "from the best":
        tree.remove(tree.from_the_best_on()[:numbers[0]])
    elif kind == "from the worst":
        tree.remove(tree.from_the_best_on()[::-1][:numbers[0]])
    elif kind == "every other":
        stride, first = numbers
        tree.remove([price for place, price in enumerate(tree.prices) if place % stride != first])
    else:
        seed, count = numbers
        tree.remove(Random(seed).sample(tree.prices, min(count, len(tree.prices))))


@settings(max_examples=60)
@given(st.sampled_from(SIDES), st.lists(STEPS, min_size=1, max_size=12))
def test_levels_come_and_go_as_in_a_sorted_list(side, steps):
    tree = Tree(side)
    for step in steps:
        take(tree, step)
        tree.check()


@pytest.mark.parametrize("side", SIDES)
def test_thousands_of_levels_in_any_order_of_coming_and_going_leave_an_empty_side_and_all_nodes_free(side):
    chance = Random(5)
    tree = Tree(side)
    nodes = tree.state.counters[FREE_NODES]
    for _ in range(3):
        prices = list(range(1, LEVELS_MAX + 1))
        chance.shuffle(prices)
        tree.add(prices)
        tree.check()
        assert nodes - tree.state.counters[FREE_NODES] > LEVELS_MAX / NODE_FANOUT
        chance.shuffle(prices)
        tree.remove(prices[:-100])
        tree.check()
        tree.remove(prices)
        tree.check()
        assert tree.state.counters[FREE_NODES] == nodes


@pytest.mark.parametrize("side", SIDES)
def test_the_lowest_and_the_highest_price_are_prices_like_others(side):
    tree = Tree(side)
    tree.add([INT64_MAX, 1, INT64_MAX - 1, 2])
    assert tree.from_the_best_on() == ([1, 2, INT64_MAX - 1, INT64_MAX] if side == Side.ASK
                                       else [INT64_MAX, INT64_MAX - 1, 2, 1])
    listed = np.zeros(4, np.int64)
    assert prices_of(tree.state, tree.side_index, listed) == 4
    assert listed.tolist() == tree.from_the_best_on()
    tree.remove([1, INT64_MAX])
    assert best(tree.state, tree.side_index) == (2 if side == Side.ASK else INT64_MAX - 1)

