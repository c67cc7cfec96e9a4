"""The keys of all balance updates ever applied: (user, asset, business, business id), compared whole, kept for ever.

The table doubles without a pause: the table of n cells (a power of two) lives in cells n to 2n of one reserved array,
so the next one has its place already. Each new key moves a few cells of the table before, until all have moved.
"""
from numba import int64, uint64

from pipeline.state import HASH_FACTOR, KEY_CELLS, KEY_MIGRATED, KEYS
from shm.int128 import folded_product
from shm.kernel import inlined

MOVES_A_KEY = 8               # of n/2 cells: done long before the new table of n is half full


@inlined
def key_hash(business_id, user_id, asset_id, label):
    owner = (uint64(user_id) << uint64(16) | uint64(asset_id)) * uint64(2) + uint64(1)
    mixed = folded_product(business_id ^ uint64(HASH_FACTOR), owner)
    for word in range(4):
        mixed = folded_product(mixed ^ label[word], uint64(HASH_FACTOR))
    return mixed


@inlined
def key_cell(keys, size, business_id, user_id, asset_id, label, label_bytes):
    """The cell of this key in the table of `size` cells, or the free cell where it would go."""
    mask = size - 1
    place = int64(key_hash(business_id, user_id, asset_id, label)) & mask
    while True:
        cell = keys[size + place]
        if cell.used == 0:
            return size + place
        if (cell.business_id == business_id and cell.user_id == user_id and cell.asset_id == asset_id
                and cell.label_bytes == label_bytes and cell.label[0] == label[0] and cell.label[1] == label[1]
                and cell.label[2] == label[2] and cell.label[3] == label[3]):
            return size + place
        place = (place + 1) & mask


@inlined
def is_known(state, business_id, user_id, asset_id, label, label_bytes):
    size = state.counters[KEY_CELLS]
    if state.keys[key_cell(state.keys, size, business_id, user_id, asset_id, label, label_bytes)].used:
        return True
    before = size // 2
    if state.counters[KEY_MIGRATED] == before:
        return False
    return state.keys[key_cell(state.keys, before, business_id, user_id, asset_id, label, label_bytes)].used != 0


@inlined
def has_room(state):
    """Whether one more key fits. The reserve is address space: a machine's memory ends first."""
    counters = state.counters
    return counters[KEYS] * 2 < counters[KEY_CELLS] or counters[KEY_CELLS] * 4 <= len(state.keys)


@inlined
def store_key(keys, size, business_id, user_id, asset_id, label, label_bytes):
    cell = keys[key_cell(keys, size, business_id, user_id, asset_id, label, label_bytes)]
    cell.business_id = business_id
    cell.user_id = user_id
    cell.asset_id = asset_id
    cell.label_bytes = label_bytes
    for word in range(4):
        cell.label[word] = label[word]
    cell.used = 1


@inlined
def remember(state, business_id, user_id, asset_id, label, label_bytes):
    """Store a key that is not known, and move a few of the table before."""
    counters = state.counters
    if counters[KEYS] * 2 >= counters[KEY_CELLS]:
        counters[KEY_CELLS] *= 2
        counters[KEY_MIGRATED] = 0
    size = counters[KEY_CELLS]
    store_key(state.keys, size, business_id, user_id, asset_id, label, label_bytes)
    counters[KEYS] += 1
    before = size // 2
    moved = counters[KEY_MIGRATED]
    for place in range(moved, min(moved + MOVES_A_KEY, before)):
        cell = state.keys[before + place]
        if cell.used:
            store_key(state.keys, size, cell.business_id, cell.user_id, cell.asset_id, cell.label, cell.label_bytes)
    counters[KEY_MIGRATED] = min(moved + MOVES_A_KEY, before)
