"""Balances: available and frozen money of each (user, asset), exact, in 10^-20 of one unit.

A balance below zero is a defect, never an outcome: whoever debits has checked before. Totals of an asset run along.
"""
from numba import int64, uint64

from pipeline.state import BALANCE_NEGATIVE, BALANCES, DEFECT, HASH_FACTOR, KEY_USED, NONE
from shm.int128 import folded_product, from_halves, from_int64, high_half, low_half
from shm.kernel import inlined


@inlined
def balance_key(user_id, asset_id):
    return uint64(KEY_USED) | (uint64(user_id) << uint64(16)) | uint64(asset_id)


@inlined
def balance_home(balances, key):
    """A user's assets are neighbours."""
    spread = folded_product(key >> uint64(16), uint64(HASH_FACTOR)) + (key & uint64(0xFFFF))
    return spread & uint64(len(balances) - 1)


@inlined
def balance_cell(balances, key):
    """The row of this key, or the free cell where it would go. The table is at most half full."""
    mask = uint64(len(balances) - 1)
    cell = balance_home(balances, key)
    while balances[cell].key != key and balances[cell].key != 0:
        cell = (cell + uint64(1)) & mask
    return cell


@inlined
def find_balance(state, user_id, asset_id):
    """The row of (user, asset), or NONE."""
    key = balance_key(user_id, asset_id)
    cell = balance_cell(state.balances, key)
    return cell if state.balances[cell].key == key else NONE


@inlined
def open_balance(state, user_id, asset_id):
    """The row of (user, asset), made if it is not there; the caller has checked that there is room."""
    key = balance_key(user_id, asset_id)
    cell = balance_cell(state.balances, key)
    if state.balances[cell].key == 0:
        state.balances[cell].key = key
        state.balances[cell].asset_id = asset_id
        state.counters[BALANCES] += 1
    return cell


@inlined
def available(record):
    return from_halves(record.available_low, record.available_high)


@inlined
def frozen(record):
    return from_halves(record.frozen_low, record.frozen_high)


@inlined
def change_available(state, row, change):
    """Add to a row's available money and to its asset's total."""
    record = state.balances[row]
    asset = state.assets[record.asset_id]
    zero = from_int64(0)
    before = available(record)
    after = before + change
    record.available_low = low_half(after)
    record.available_high = high_half(after)
    total = available(asset) + change
    asset.available_low = low_half(total)
    asset.available_high = high_half(total)
    asset.available_count += int64(after != zero) - int64(before != zero)
    if after < zero:
        state.counters[DEFECT] = BALANCE_NEGATIVE


@inlined
def change_frozen(state, row, change):
    """Add to a row's frozen money and to its asset's total."""
    record = state.balances[row]
    asset = state.assets[record.asset_id]
    zero = from_int64(0)
    before = frozen(record)
    after = before + change
    record.frozen_low = low_half(after)
    record.frozen_high = high_half(after)
    total = frozen(asset) + change
    asset.frozen_low = low_half(total)
    asset.frozen_high = high_half(total)
    asset.frozen_count += int64(after != zero) - int64(before != zero)
    if after < zero:
        state.counters[DEFECT] = BALANCE_NEGATIVE


@inlined
def held(state, row):
    """Available and frozen together."""
    record = state.balances[row]
    return available(record) + frozen(record)
