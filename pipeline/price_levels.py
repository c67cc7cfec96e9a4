"""The price levels of each side, best first: a B+ tree a side, its nodes from one pool.

Keys ascend from the best price on: an ask's price, a bid's price negated. Hot inserts and lookups are near the best
price, so a search looks at the first leaf before it descends. A leaf that becomes empty is removed, half-empty ones
are not merged. In an inner node, keys[i] (i > 0) bounds child i from below and child i - 1 from above. Keys beyond a
node's count are UNUSED_KEY, so that a search compares all keys at once: no branch to be guessed wrong.
"""
from numba import int64, uint32, uint64

from pipeline.state import (
    DEFECT,
    FREE_LEVEL,
    FREE_NODE,
    FREE_NODES,
    LEVEL_MISSING,
    LEVELS,
    NEW_LEVEL,
    NEW_NODE,
    NODE_FANOUT,
    NONE,
    POOL_EMPTY,
    TREE_HEIGHT_MAX,
)
from shm.kernel import called, inlined
from shm.records import INT64_MAX, Side

ASK = int(Side.ASK)
UNUSED_KEY = INT64_MAX        # not below any key, and counted with those that are not above one


@inlined
def side_index_of(market_id, side):
    return uint64(market_id) * uint64(2) + uint64(side) - uint64(1)


@inlined
def level_key(side, price):
    return price if side == ASK else -price


@called
def take_node(state, is_leaf):
    counters = state.counters
    node = counters[FREE_NODE]
    if node != NONE:
        counters[FREE_NODE] = state.nodes[node].next
    else:
        node = counters[NEW_NODE]
        if node >= len(state.nodes):
            counters[DEFECT] = POOL_EMPTY
            return uint32(0)
        counters[NEW_NODE] = node + 1
    counters[FREE_NODES] -= 1
    info = state.nodes[node]
    info.count = 0
    info.parent = NONE
    info.next = NONE
    info.previous = NONE
    info.is_leaf = is_leaf
    for place in range(NODE_FANOUT):
        state.node_keys[node, place] = UNUSED_KEY
    return uint32(node)


@called
def give_node(state, node):
    state.nodes[node].next = state.counters[FREE_NODE]
    state.counters[FREE_NODE] = node
    state.counters[FREE_NODES] += 1


@inlined
def place_in_node(node_keys, node, key):
    """The first place in the node whose key is not below `key`."""
    place = 0
    for index in range(NODE_FANOUT):
        place += int64(node_keys[node, index] < key)
    return place


@inlined
def child_for(node_keys, node, count, key):
    """The place in an inner node of the child that `key` belongs to. The first child has no lower bound: what
    keys[0] says is stale once a smaller key has come."""
    place = 0
    for index in range(1, NODE_FANOUT):
        place += int64(node_keys[node, index] <= key)
    return min(place, count - 1)


@inlined
def leaf_of(state, side_index, key):
    """The leaf where `key` is or belongs; NONE for an empty side."""
    leaf = state.sides[side_index].first_leaf
    if leaf == NONE:
        return NONE
    info = state.nodes[leaf]
    if info.next == NONE or key <= state.node_keys[leaf, info.count - 1]:
        return leaf
    node = state.sides[side_index].root
    while state.nodes[node].is_leaf == 0:
        node = state.node_children[node, child_for(state.node_keys, node, int64(state.nodes[node].count), key)]
    return node


@inlined
def locate(state, side_index, key):
    """(leaf, place) where `key` is or belongs; the leaf is NONE on an empty side."""
    leaf = leaf_of(state, side_index, key)
    if leaf == NONE:
        return leaf, 0
    return leaf, place_in_node(state.node_keys, leaf, key)


@inlined
def level_at(state, leaf, place, key):
    """The level of this key, or NONE; (leaf, place) is where `locate` has found it to belong."""
    if leaf == NONE or place >= state.nodes[leaf].count or state.node_keys[leaf, place] != key:
        return NONE
    return state.node_children[leaf, place]


@inlined
def best_level(state, side_index):
    leaf = state.sides[side_index].first_leaf
    if leaf == NONE:
        return NONE
    return state.node_children[leaf, 0]


@inlined
def insert_into_node(state, node, place, key, child):
    count = state.nodes[node].count
    for index in range(count, place, -1):
        state.node_keys[node, index] = state.node_keys[node, index - 1]
        state.node_children[node, index] = state.node_children[node, index - 1]
    state.node_keys[node, place] = key
    state.node_children[node, place] = child
    state.nodes[node].count = count + 1
    if state.nodes[node].is_leaf == 0:
        state.nodes[child].parent = node


@inlined
def remove_from_node(state, node, place):
    count = state.nodes[node].count - 1
    for index in range(place, count):
        state.node_keys[node, index] = state.node_keys[node, index + 1]
        state.node_children[node, index] = state.node_children[node, index + 1]
    state.node_keys[node, count] = UNUSED_KEY
    state.nodes[node].count = count


@called
def split_node(state, node):
    """Move the upper half of a full node to a new one on its right; return that."""
    right = take_node(state, state.nodes[node].is_leaf)
    half = NODE_FANOUT // 2
    for index in range(half, NODE_FANOUT):
        child = state.node_children[node, index]
        state.node_keys[right, index - half] = state.node_keys[node, index]
        state.node_keys[node, index] = UNUSED_KEY
        state.node_children[right, index - half] = child
        if state.nodes[node].is_leaf == 0:
            state.nodes[child].parent = right
    state.nodes[right].count = NODE_FANOUT - half
    state.nodes[node].count = half
    if state.nodes[node].is_leaf:
        after = state.nodes[node].next
        state.nodes[right].next = after
        state.nodes[right].previous = node
        state.nodes[node].next = right
        if after != NONE:
            state.nodes[after].previous = right
    return right


@called
def grow_upwards(state, side_index, left, right):
    """Hang `right`, just split off `left`, into the tree above; full parents split in turn."""
    key = state.node_keys[right, 0]
    while True:
        parent = state.nodes[left].parent
        if parent == NONE:
            root = take_node(state, 0)
            state.nodes[root].count = 0
            insert_into_node(state, root, 0, state.node_keys[left, 0], left)
            insert_into_node(state, root, 1, key, right)
            state.sides[side_index].root = root
            return
        if state.nodes[parent].count < NODE_FANOUT:
            insert_into_node(state, parent, place_of_child(state, parent, left) + 1, key, right)
            return
        uncle = split_node(state, parent)
        host = state.nodes[left].parent  # parent, or uncle where `left` has moved
        insert_into_node(state, host, place_of_child(state, host, left) + 1, key, right)
        left = parent
        right = uncle
        key = state.node_keys[uncle, 0]


@inlined
def place_of_child(state, node, child):
    for place in range(state.nodes[node].count):
        if state.node_children[node, place] == child:
            return place
    state.counters[DEFECT] = LEVEL_MISSING
    return 0


@inlined
def add_level(state, side_index, leaf, place, key, price):
    """A new, empty level of this key, which belongs at (leaf, place); the caller has checked that there is room."""
    counters = state.counters
    level = counters[FREE_LEVEL]
    if level != NONE:
        counters[FREE_LEVEL] = state.levels[level].head
    else:
        level = counters[NEW_LEVEL]
        if level >= len(state.levels):
            counters[DEFECT] = POOL_EMPTY
            return uint32(0)
        counters[NEW_LEVEL] = level + 1
    counters[LEVELS] += 1
    record = state.levels[level]
    record.price = price
    record.amount_low = 0
    record.amount_high = 0
    record.head = NONE
    record.tail = NONE
    record.count = 0
    record.side_index = side_index
    if leaf == NONE:
        leaf = take_node(state, 1)
        state.sides[side_index].root = leaf
        state.sides[side_index].first_leaf = leaf
    elif state.nodes[leaf].count == NODE_FANOUT:
        right = split_node(state, leaf)
        grow_upwards(state, side_index, leaf, right)
        if place > state.nodes[leaf].count:
            place -= state.nodes[leaf].count
            leaf = right
    insert_into_node(state, leaf, place, key, level)
    return uint32(level)


@inlined
def remove_level(state, level, key):
    """Take an empty level out of its side."""
    side_index = state.levels[level].side_index
    leaf, place = locate(state, side_index, key)
    if level_at(state, leaf, place, key) != level:
        state.counters[DEFECT] = LEVEL_MISSING
        return
    remove_from_node(state, leaf, place)
    state.levels[level].head = state.counters[FREE_LEVEL]
    state.counters[FREE_LEVEL] = level
    state.counters[LEVELS] -= 1
    if state.nodes[leaf].count == 0:
        remove_leaf(state, side_index, leaf)


@called
def remove_leaf(state, side_index, leaf):
    before = state.nodes[leaf].previous
    after = state.nodes[leaf].next
    if before != NONE:
        state.nodes[before].next = after
    else:
        state.sides[side_index].first_leaf = after
    if after != NONE:
        state.nodes[after].previous = before
    node = leaf
    while True:
        parent = state.nodes[node].parent
        if parent == NONE:  # the last one
            give_node(state, node)
            state.sides[side_index].root = NONE
            return
        remove_from_node(state, parent, place_of_child(state, parent, node))
        give_node(state, node)
        if state.nodes[parent].count > 0:
            break
        node = parent
    root = state.sides[side_index].root
    while state.nodes[root].is_leaf == 0 and state.nodes[root].count == 1:
        child = state.node_children[root, 0]
        give_node(state, root)
        state.nodes[child].parent = NONE
        root = child
    state.sides[side_index].root = root


assert NODE_FANOUT ** (TREE_HEIGHT_MAX // 2) > 2**24, "a tree this high holds more levels than any pool"
