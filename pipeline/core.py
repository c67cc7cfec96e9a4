"""The core: `apply(state, command) -> reply, events`. Deterministic and jitted: no clock, no I/O, no Python object.

A command that changed the state gets the next sequence; a read or a refusal changes nothing and gets none.
"""
from numba import int64, uint64

from pipeline.catalog import add_asset, add_market, set_limits
from pipeline.digest import fold_words
from pipeline.idempotency import has_room, is_known, remember
from pipeline.inbox import label_word
from pipeline.ledger import available, change_available, find_balance, open_balance
from pipeline.matching import cancel_order, put_order
from pipeline.money import money_max
from pipeline.output import fold_events, next_event, refuse
from pipeline.reads import (
    find_pending,
    list_assets,
    list_book,
    list_depth,
    list_markets,
    list_pending,
    query_balance,
    summarize_assets,
    summarize_markets,
)
from pipeline.state import (
    ASSETS,
    BALANCES,
    BALANCES_MAX,
    CATALOG_VERSION,
    EVENT_POSITION,
    EVENTS_FOLDED,
    KEYS,
    NONE,
    OUTPUT_DIGEST,
    SEQUENCE,
    TIME_NS,
)
from shm.int128 import divide, from_halves, from_int64, high_half, low_half
from shm.kernel import called, inlined, kernel
from shm.records import (
    ASSET,
    ASSET_SUMMARY,
    BALANCE_ROW,
    DEPTH_ROW,
    DETAIL_BYTES_MAX,
    FIRST_READ,
    LABEL_BYTES_MAX,
    MARKET,
    MARKET_SUMMARY,
    ORDER,
    REPLY_HEADER,
    REPLY_SLOT_BYTES,
    WHOLE_UNITS_MAX,
    EventKind,
    Field,
    Kind,
    Result,
)

OK = int(Result.OK)
INVALID = int(Result.INVALID)
REPEATED = int(Result.REPEATED)
BALANCE_TOO_LOW = int(Result.BALANCE_TOO_LOW)
FULL = int(Result.FULL)
FIELD_KIND = int(Field.KIND)
FIELD_USER = int(Field.USER)
FIELD_ASSET = int(Field.ASSET)
FIELD_LABEL = int(Field.LABEL)
FIELD_CHANGE = int(Field.CHANGE)
FIELD_DETAIL = int(Field.DETAIL)
FIELD_ASSET_TOTAL = int(Field.ASSET_TOTAL)
FIELD_BALANCES = int(Field.BALANCES)
FIELD_KEYS = int(Field.IDEMPOTENCY_KEYS)
SET_LIMITS = int(Kind.SET_LIMITS)
ADD_ASSET = int(Kind.ADD_ASSET)
ADD_MARKET = int(Kind.ADD_MARKET)
UPDATE_BALANCE = int(Kind.UPDATE_BALANCE)
PUT_LIMIT = int(Kind.PUT_LIMIT)
PUT_MARKET = int(Kind.PUT_MARKET)
CANCEL = int(Kind.CANCEL)
QUERY_BALANCE = int(Kind.QUERY_BALANCE)
LIST_ASSETS = int(Kind.LIST_ASSETS)
SUMMARIZE_ASSETS = int(Kind.SUMMARIZE_ASSETS)
LIST_MARKETS = int(Kind.LIST_MARKETS)
SUMMARIZE_MARKETS = int(Kind.SUMMARIZE_MARKETS)
LIST_BOOK = int(Kind.LIST_BOOK)
LIST_DEPTH = int(Kind.LIST_DEPTH)
LIST_PENDING = int(Kind.LIST_PENDING)
FIND_PENDING = int(Kind.FIND_PENDING)
BALANCE_EVENT_KIND = int(EventKind.BALANCE)
HEADER_BYTES = REPLY_HEADER.itemsize
HEADER_WORDS = HEADER_BYTES // 8
ORDER_BYTES, BALANCE_BYTES, DEPTH_BYTES = ORDER.itemsize, BALANCE_ROW.itemsize, DEPTH_ROW.itemsize
ASSET_BYTES, ASSET_SUMMARY_BYTES = ASSET.itemsize, ASSET_SUMMARY.itemsize
MARKET_BYTES, MARKET_SUMMARY_BYTES = MARKET.itemsize, MARKET_SUMMARY.itemsize


@inlined
def update_balance(state, out, inbox, sequence, time_ns):
    """balance.update: engine.md 4. A repeat is REPEATED for ever; the change is cut to prec_show, to zero too."""
    command = inbox.command[0]
    counters = state.counters
    if command.user_id == 0:
        return refuse(out, INVALID, FIELD_USER, 0)
    if command.asset_id >= counters[ASSETS]:
        return refuse(out, INVALID, FIELD_ASSET, 0)
    if command.label_bytes > LABEL_BYTES_MAX:
        return refuse(out, INVALID, FIELD_LABEL, LABEL_BYTES_MAX)
    if command.payload_bytes > DETAIL_BYTES_MAX:
        return refuse(out, INVALID, FIELD_DETAIL, DETAIL_BYTES_MAX)
    asset = state.assets[command.asset_id]
    zero = from_int64(0)
    most = money_max()
    change = from_halves(command.change_low, command.change_high)
    if change > most or change < -most:
        return refuse(out, INVALID, FIELD_CHANGE, WHOLE_UNITS_MAX)
    show_unit = from_halves(asset.show_unit_low, asset.show_unit_high)
    if change >= zero:
        change = divide(change, show_unit) * show_unit
    else:
        change = -(divide(-change, show_unit) * show_unit)
    label = (label_word(inbox.words, 0, command.label_bytes), label_word(inbox.words, 1, command.label_bytes),
             label_word(inbox.words, 2, command.label_bytes), label_word(inbox.words, 3, command.label_bytes))
    if is_known(state, command.reference, command.user_id, command.asset_id, label, command.label_bytes):
        return refuse(out, REPEATED, 0, 0)
    row = find_balance(state, command.user_id, command.asset_id)
    if change < zero:
        if row == NONE or available(state.balances[row]) < -change:
            return refuse(out, BALANCE_TOO_LOW, 0, 0)
    elif change > most - from_halves(asset.deposited_low, asset.deposited_high):  # what bounds every sum of the asset
        return refuse(out, INVALID, FIELD_ASSET_TOTAL, WHOLE_UNITS_MAX)
    if not has_room(state):
        return refuse(out, FULL, FIELD_KEYS, counters[KEYS])
    if row == NONE:
        if counters[BALANCES] >= counters[BALANCES_MAX]:
            return refuse(out, FULL, FIELD_BALANCES, counters[BALANCES_MAX])
        row = open_balance(state, command.user_id, command.asset_id)

    remember(state, command.reference, command.user_id, command.asset_id, label, command.label_bytes)
    change_available(state, row, change)
    deposited = from_halves(asset.deposited_low, asset.deposited_high) + change
    asset.deposited_low = low_half(deposited)
    asset.deposited_high = high_half(deposited)
    balance = state.balances[row]
    event = out.balance_events[next_event(state, out)]
    event.sequence = sequence
    event.time_ns = time_ns
    event.kind = BALANCE_EVENT_KIND
    event.order_event = 0
    event.business_id = command.reference
    event.change_low = low_half(change)
    event.change_high = high_half(change)
    event.available_low = balance.available_low
    event.available_high = balance.available_high
    event.frozen_low = balance.frozen_low
    event.frozen_high = balance.frozen_high
    event.user_id = command.user_id
    event.asset_id = command.asset_id
    event.label_bytes = command.label_bytes
    for index in range(32):
        event.label[index] = command.label[index] if index < command.label_bytes else 0
    return True


@inlined
def apply(state, inbox, out, time_ns):
    """Apply the command in `inbox`; the reply is in `out`, events are in its ring. Returns whether it changed the
    state: then its sequence is state.counters[SEQUENCE] and it must be journaled.
    """
    command = inbox.command[0]
    kind = command.kind
    header = out.header[0]
    header.request_id = command.request_id
    header.time_ns = time_ns
    header.total = 0
    header.bound = 0
    header.rows = 0
    header.result = OK
    header.field = 0
    header.kind = kind
    counters = state.counters
    sequence = counters[SEQUENCE] + 1
    counters[EVENTS_FOLDED] = counters[EVENT_POSITION]
    payload = int64(0)
    if kind == PUT_LIMIT or kind == PUT_MARKET:
        put_order(state, out, inbox, sequence, time_ns)
        payload = int64(header.rows) * ORDER_BYTES
    elif kind == CANCEL:
        cancel_order(state, out, command, sequence, time_ns)
        payload = int64(header.rows) * ORDER_BYTES
    elif kind == UPDATE_BALANCE:
        update_balance(state, out, inbox, sequence, time_ns)
    else:
        payload = apply_rare(state, inbox, out)
    header.payload_bytes = payload
    header.slots = (HEADER_BYTES + payload + REPLY_SLOT_BYTES - 1) // REPLY_SLOT_BYTES
    changed = kind < FIRST_READ and header.result == OK
    if changed:
        counters[SEQUENCE] = sequence
        counters[TIME_NS] = time_ns
        fold_events(state, out)
        digest = fold_words(uint64(counters[OUTPUT_DIGEST]), out.words, HEADER_WORDS, payload >> 3)
        counters[OUTPUT_DIGEST] = int64(digest)
    header.sequence = counters[SEQUENCE]
    header.catalog_version = counters[CATALOG_VERSION]
    return changed


@called
def apply_rare(state, inbox, out):
    """Reads and definitions; returns the payload's bytes."""
    command = inbox.command[0]
    kind = command.kind
    header = out.header[0]
    if kind == QUERY_BALANCE:
        query_balance(state, out, command)
        return int64(header.rows) * BALANCE_BYTES
    if kind == LIST_DEPTH:
        list_depth(state, out, command)
        return (int64(header.rows) + header.total) * DEPTH_BYTES
    if kind == LIST_BOOK:
        list_book(state, out, command)
        return int64(header.rows) * ORDER_BYTES
    if kind == LIST_PENDING:
        list_pending(state, out, command)
        return int64(header.rows) * ORDER_BYTES
    if kind == FIND_PENDING:
        find_pending(state, out, command)
        return int64(header.rows) * ORDER_BYTES
    if kind == LIST_ASSETS:
        list_assets(state, out)
        return int64(header.rows) * ASSET_BYTES
    if kind == SUMMARIZE_ASSETS:
        summarize_assets(state, out)
        return int64(header.rows) * ASSET_SUMMARY_BYTES
    if kind == LIST_MARKETS:
        list_markets(state, out)
        return int64(header.rows) * MARKET_BYTES
    if kind == SUMMARIZE_MARKETS:
        summarize_markets(state, out)
        return int64(header.rows) * MARKET_SUMMARY_BYTES
    if kind == SET_LIMITS:
        set_limits(state, out, inbox.limits[0])
    elif kind == ADD_ASSET:
        add_asset(state, out, inbox.asset[0])
    elif kind == ADD_MARKET:
        add_market(state, out, inbox.market[0])
    else:
        refuse(out, INVALID, FIELD_KIND, 0)
    return int64(0)


@kernel
def apply_one(state, inbox, out, time_ns):
    """`apply` for callers in Python."""
    return apply(state, inbox, out, time_ns)
