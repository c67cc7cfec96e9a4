"""Core and reference side by side: every reply, event and balance, and the sums that must hold after every step."""
import json
from struct import Struct

import numpy as np

from gateways.arguments import InvalidArgument
from gateways.catalog import Catalog
from gateways.messages import Reply
from gateways.protocol import Refused, encode, find_method, order_object
from pipeline import seeding
from pipeline.digest import state_digest
from pipeline.replica import Replica
from pipeline.state import EVENT_POSITION, ORDERS, OUTPUT_DIGEST
from shm import configuration
from shm.int128 import join
from shm.records import (
    BALANCE_EVENT,
    COMMAND,
    DEAL_EVENT,
    EVENT_HEADER,
    LIMITS,
    MONEY_DECIMALS,
    ORDER,
    REPLY_SLOT_BYTES,
    EventKind,
    Side,
    struct_format,
)
from tests.oracle.audit import assert_sound
from tests.reference.decimals import EXACT, ZERO
from tests.reference.exchange import ReferenceExchange
from tests.reference.ledger import Ledger

_ORDER = Struct(struct_format(ORDER))
_EVENT = {kind: np.dtype(dtype) for kind, dtype in ((EventKind.BALANCE, BALANCE_EVENT), (EventKind.DEAL, DEAL_EVENT))}
LIMITS_OF_CORE = {"orders_max": 1000, "levels_max": 1000, "balances_max": 64, "assets_max": 16, "markets_max": 16}


class Difference(AssertionError):
    """Core and reference disagree, or a sum does not hold."""


class Core:
    """The core behind the wire, without rings: `call` answers like the reference's."""

    def __init__(self, config, event_slots=1 << 14, **limits):
        settings = configuration.from_recording(config, limits={**LIMITS_OF_CORE, **limits})
        self.replica = Replica(seeding.limits_of(settings), event_slots)
        self.state, self.out = self.replica.state, self.replica.out
        self.journal = []               # (command, payload, time) of all that changed the state
        for command, payload in seeding.commands(settings, self.state):
            self._apply(command, payload, 0)
        self.catalog = Catalog(settings.limits)
        self.catalog.update(self._ask(self.catalog.list_assets(), 0), self._ask(self.catalog.list_markets(), 0))
        self._events_read = 0

    @property
    def sequence(self):
        return self.replica.sequence

    def _apply(self, command, payload, now):
        before = self.sequence
        self.replica.apply(command, payload, now)
        if self.sequence != before:
            assert self.sequence == before + 1
            self.journal.append((command.copy(), payload, now))

    def _ask(self, command, now):
        record = np.frombuffer(command.slots, COMMAND, 1)[0]
        self._apply(record, command.slots[COMMAND.itemsize:][:record["payload_bytes"]], now)
        message = self.replica.reply_message()
        assert len(message) <= command.reply_slots_max * REPLY_SLOT_BYTES
        return Reply(message)

    def call(self, method, params, now):
        """(result, error) of a request that arrived `now`, in nanoseconds; error is None or (code, message)."""
        try:
            found = find_method(method)
            return encode(found, params, self._ask(found.decode(params, self.catalog), now), self.catalog), None
        except InvalidArgument:
            return None, (1, "invalid argument")
        except Refused as refusal:
            return None, tuple(refusal.error)

    def new_events(self, now):
        """The events since the last call, as `comparable` gives the reference's."""
        end = int(self.state.counters[EVENT_POSITION])
        slots = self.out.event_words
        assert end - self._events_read <= len(slots)
        events = []
        for position in range(self._events_read, end):
            raw = slots[position & (len(slots) - 1)].tobytes()
            header = np.frombuffer(raw, EVENT_HEADER, 1)[0]
            assert (header["sequence"], header["time_ns"]) == (self.sequence, now) and not header["room"].any()
            events.append(self._event(raw, header))
        self._events_read = end
        return events

    def _event(self, raw, header):
        if header["kind"] == EventKind.ORDER:
            assert not any(raw[EVENT_HEADER.itemsize + ORDER.itemsize:])
            row = _ORDER.unpack_from(raw, EVENT_HEADER.itemsize)
            return "order", int(header["order_event"]), json.dumps(order_object(row, self.catalog))
        event = np.frombuffer(raw, _EVENT[header["kind"]], 1)[0]
        assert not event["padding"].any() and not event["unused"].any() and header["order_event"] == 0

        def money(name):
            return join(event[f"{name}_low"], event[f"{name}_high"])
        if header["kind"] == EventKind.BALANCE:
            business = event["label"].tobytes()
            assert not any(business[event["label_bytes"]:])
            return ("balance", int(event["user_id"]), self.catalog.assets[event["asset_id"]].name,
                    business[:event["label_bytes"]].decode(), int(event["business_id"]), money("change"),
                    money("available") + money("frozen"))
        market = self.catalog.markets[event["market_id"]]
        takes_money = event["taker_side"] == Side.ASK
        taker, maker = (event["ask_user_id"], event["bid_user_id"])[::1 if takes_money else -1]
        given, taken = (market.stock, market.money)[::1 if takes_money else -1]
        steps = [(int(user), asset, money(name)) for user, asset, name in (
            (taker, given, "taker_out"), (taker, taken, "taker_in"), (taker, taken, "taker_fee_paid"),
            (maker, taken, "maker_out"), (maker, given, "maker_in"), (maker, given, "maker_fee_paid"))]
        return ("deal", int(event["deal_id"]), market.name, int(event["price"]), int(event["amount"]), money("deal"),
                money("ask_fee"), money("bid_fee"), int(event["ask_order_id"]), int(event["bid_order_id"]),
                int(event["ask_user_id"]), int(event["bid_user_id"]), int(event["taker_side"]), steps)


class _WatchedLedger(Ledger):
    """A ledger that remembers which balances were touched."""

    def __init__(self, assets):
        super().__init__({asset.name: asset.prec_save for asset in assets.values()})
        self.touched = set()

    def _add(self, balances, user, asset, change):
        super()._add(balances, user, asset, change)
        self.touched.add((user, asset))


def _units(number, decimals=MONEY_DECIMALS):
    """Exact: a decimal that equals the integer of the core."""
    return number.scaleb(decimals, context=EXACT)


class Comparison:
    """One core and one reference through the same requests."""

    def __init__(self, config):
        self.core, self.reference = Core(config), ReferenceExchange(config)
        self.reference.ledger = _WatchedLedger(self.reference.assets)
        self.asset_names = list(self.reference.assets)
        self._table = self.core.state.balances.view(np.uint64).reshape(len(self.core.state.balances), -1)
        self._table_before = self._table.copy()
        self._rows = {}                 # (user, asset): the core's (available, frozen)
        self._digest = self._state_digest()
        self.codes = {}                 # (method, error code or 0): how often
        self.deals, self.resting_max = 0, 0

    def _state_digest(self):
        return int(np.uint64(state_digest(self.core.state)))

    def step(self, method, params, now):
        """One request to both. Raises Difference."""
        expected = self.reference.call(method, params, now)
        sequence = self.core.sequence
        given = self.core.call(method, params, now)
        if json.dumps(given) != json.dumps(expected) and not self._is_not_built(method, given):
            raise Difference(f"the reply\n  core      {json.dumps(given)}\n  reference {json.dumps(expected)}")
        self._compare_events(now)
        self._compare_balances()
        self._compare_state(sequence)
        code = given[1][0] if given[1] else 0
        self.codes[method, code] = self.codes.get((method, code), 0) + 1

    @staticmethod
    def _is_not_built(method, given):
        """Methods of history and market data: none of the reference's."""
        return given == (None, (2, "internal error")) and method == "order.finished"

    def _compare_events(self, now):
        expected, self.reference.events = [self._comparable(event) for event in self.reference.events], []
        given = self.core.new_events(now)
        self.deals += sum(event[0] == "deal" for event in given)
        self.resting_max = max(self.resting_max, int(self.core.state.counters[ORDERS]))
        for place in range(max(len(given), len(expected))):
            core = given[place] if place < len(given) else None
            reference = expected[place] if place < len(expected) else None
            if core != reference:
                raise Difference(f"event {place}\n  core      {core}\n  reference {reference}")

    def _comparable(self, event):
        kind, *fields = event
        if kind == "order":
            return kind, fields[0], json.dumps(fields[1])
        if kind == "balance":
            user, asset, business, business_id, change, total = fields
            return kind, user, asset, business, business_id % 2**64, _units(change), _units(total)
        deal_id, market, price, amount, deal, ask_fee, bid_fee, *parties, steps = fields
        decimals = self.reference.markets[market]
        return (kind, deal_id, market, _units(price, decimals.money_prec), _units(amount, decimals.stock_prec),
                _units(deal), _units(ask_fee), _units(bid_fee), *parties,
                [(user, asset, _units(total)) for user, asset, total in steps])

    def _compare_balances(self):
        """Every balance that either side touched; the others agreed before."""
        touched, ledger = self.reference.ledger.touched, self.reference.ledger
        changed = set()
        for row in np.flatnonzero((self._table != self._table_before).any(axis=1)):
            self._table_before[row] = self._table[row]
            balance = self.core.state.balances[row]
            key = int(balance["key"])
            owner = key >> 16 & 0xFFFFFFFF, self.asset_names[key & 0xFFFF]
            self._rows[owner] = (join(balance["available_low"], balance["available_high"]),
                                 join(balance["frozen_low"], balance["frozen_high"]))
            changed.add(owner)
        for user, asset in touched | changed:
            given = self._rows.get((user, asset), (0, 0))
            expected = _units(ledger.available_of(user, asset)), _units(ledger.frozen[asset].get(user, ZERO))
            if given != expected:
                raise Difference(f"balance of user {user} in {asset}\n  core      {given}\n  reference {expected}")
        touched.clear()

    def _compare_state(self, sequence):
        """Sums and links hold; whoever got no sequence changed nothing."""
        assert_sound(self.core.state)
        digest = self._state_digest()
        if (digest == self._digest) != (self.core.sequence == sequence):
            raise Difference(f"sequence {sequence} became {self.core.sequence}, the state's digest"
                             f" {self._digest:016x} became {digest:016x}")
        self._digest = digest

    def finish(self):
        """All balances and totals, and a second core that runs the journal, with other capacities, to the same end."""
        given = {owner: row for owner, row in self._rows.items() if any(row)}
        expected = {owner: tuple(map(_units, row)) for owner, row in self.reference.balances().items()}
        if given != expected:
            raise Difference(f"all balances\n  core      {given}\n  reference {expected}")
        for asset_id, totals in enumerate(self.reference.totals().values()):
            asset = self.core.state.assets[asset_id]
            totals["deposited"] = EXACT.subtract(totals["deposits"], totals["withdrawals"])
            for name in ("deposited", "fees", "available", "frozen"):
                more = join(asset[f"{name}_low"], asset[f"{name}_high"]) - _units(totals[name])
                if more % 2**128:       # what was ever paid in or in fees may pass 128 bits: it is counted, not held
                    raise Difference(f"{name} of {self.asset_names[asset_id]}: {more} more than the reference's")
        for scale, event_slots in ((1, 256), (5, 4096)):
            self._rerun(scale, event_slots)

    def _rerun(self, scale, event_slots):
        limits = np.zeros((), LIMITS)
        for name, value in LIMITS_OF_CORE.items():
            limits[name] = scale * value
        replica = Replica(limits, event_slots)
        for command, payload, now in self.core.journal:
            replica.apply(command, payload, now)
        again, once = replica.state, self.core.state
        if replica.sequence != self.core.sequence or state_digest(again) != state_digest(once):
            raise Difference("a second core that ran the journal has another state")
        if again.counters[OUTPUT_DIGEST] != once.counters[OUTPUT_DIGEST]:
            raise Difference("a second core that ran the journal has said something else")
        assert_sound(again)
