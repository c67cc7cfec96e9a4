"""The audit after a kill test: what clients were told, against the journal and against the core run on it once more.

Whoever was answered finds the operation in the journal exactly once, with the ids and figures of the answer; everybody
else at most once; what was refused not at all. One operation that was answered before another was sent stands before
it, and no read shows a state older than an answer that came before the read was sent.
"""
import json
import struct
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict, namedtuple
from decimal import Context

import numpy as np

from pipeline import journal, seeding
from pipeline.digest import state_digest
from pipeline.replay import ALL_EVENTS, limits_in, replay_span
from pipeline.replica import Replica
from pipeline.segment_file import HEADER_BYTES, JournalRefused
from pipeline.state import BALANCE_STATE, BALANCES, EVENT_POSITION, ORDER_ID, OUTPUT_DIGEST, SEQUENCE
from shm.int128 import join
from shm.process import instance_of
from shm.records import (
    BALANCE_EVENT,
    CONFIGURATION_GATEWAY,
    DEAL_EVENT,
    EVENT_BYTES,
    EVENT_HEADER,
    JOURNAL,
    MONEY_DECIMALS,
    ORDER,
    ORDER_EVENT,
    REPLY_HEADER,
    EventKind,
    Kind,
    OrderEvent,
    struct_format,
)
from tools.kill_load import UNKNOWN

STORIES_MAX = 20
REPEATED = 10                  # the error code of a balance update that was applied before
_EXACT = Context(prec=100)


def _struct_of(dtype):
    return struct.Struct(struct_format(dtype)), namedtuple(f"_Row{id(dtype)}", dtype.names, rename=True)


_RECORD, _Record = _struct_of(JOURNAL)
_DEAL, _Deal = _struct_of(DEAL_EVENT)
_ORDER_EVENT, _OrderEvent = _struct_of(ORDER_EVENT)
_BALANCE_EVENT, _BalanceEvent = _struct_of(BALANCE_EVENT)
_ORDER, _Order = _struct_of(ORDER)
_HALVES = struct.Struct("<QqQq")
_ORDER_KINDS = {Kind.PUT_LIMIT, Kind.PUT_MARKET}


def units(text, decimals):
    """A decimal number of the wire in 10^-decimals, cut."""
    return int(_EXACT.scaleb(_EXACT.create_decimal(text), decimals))


class Entry:
    """A client's record in the journal, with what the core made of it."""
    __slots__ = ("order", "path", "record", "slot")

    def __init__(self, record, path, slot, order):
        self.record, self.path, self.slot, self.order = record, path, slot, order

    @property
    def sequence(self):
        return self.record.sequence

    def place(self):
        return (f"sequence {self.sequence}, ring position {self.record.position} of generation"
                f" {self.record.generation}, {self.path.name} at offset {HEADER_BYTES + self.slot * JOURNAL.itemsize}")


class History:
    """What something was after each sequence."""

    def __init__(self, first):
        self._sequences, self._values = [0], [first]

    def add(self, sequence, value):
        if value == self._values[-1]:
            return
        if sequence == self._sequences[-1]:
            self._values[-1] = value
        else:
            self._sequences.append(sequence)
            self._values.append(value)

    def at(self, sequence):
        return self._values[bisect_right(self._sequences, sequence) - 1]

    def changes(self, low, high):
        """The sequences in (low, high] after which it was another."""
        return self._sequences[bisect_right(self._sequences, low):bisect_right(self._sequences, high)]


class Rerun:
    """The journal through the core, record by record: entries by their key, and what reads could have seen."""

    def __init__(self, data, settings):
        self.problems = []
        try:
            self.journal = journal.spans(data / "journal", instance_of(data))
        except JournalRefused as refusal:      # then all that was answered counts as lost
            self.problems.append(str(refusal))
            self.journal = journal.Journal(0, 0, 0, False, [], [])
        self.replica = Replica(limits_in(self.journal, seeding.limits_of(settings)))
        self.entries = defaultdict(list)       # key: Entry each time it is in the journal
        self.balances = defaultdict(lambda: History((0, 0)))        # (user, asset id): available, frozen
        self.pending = defaultdict(lambda: History(frozenset()))    # (user, market id): order ids
        self.fees = Counter()                  # asset id: by the deals
        self._deal_id = 0
        self._rows = {}                        # of the state's balances, by their key
        self._open = defaultdict(set)          # (user, market id): order ids
        state, out = self.replica.state, self.replica.out
        self._balance_bytes = memoryview(state.balances.view(np.uint8))
        self._event_bytes = memoryview(out.event_words.view(np.uint8).reshape(-1))
        self._reply_bytes = memoryview(out.words.view(np.uint8))
        self._run()

    def _run(self):
        state, out, inbox = self.replica.state, self.replica.out, self.replica.inbox
        positions, none = np.zeros(0, np.int64), 0
        for span in self.journal.spans:
            slots, slot = span.slots, span.start_slot
            rows, content = slots.reshape(-1).view(JOURNAL), memoryview(slots.reshape(-1)).cast("B")
            while slot < span.end_slot:
                record = _Record._make(_RECORD.unpack_from(content, slot * JOURNAL.itemsize))
                behind, order_id = slot + record.record_slots, int(state.counters[ORDER_ID])
                events = int(state.counters[EVENT_POSITION])
                if replay_span(state, inbox, out, rows, slots, slot, behind, positions, none, ALL_EVENTS)[0] != behind:
                    self.problems.append(f"replay stops at sequence {record.sequence}, {span.path}")
                    return
                self._note(record, span.path, slot, order_id)
                self._look_at_events(record.sequence, events)
                slot = behind

    def _note(self, record, path, slot, order_id):
        if record.gateway == CONFIGURATION_GATEWAY:
            return
        order = None
        if record.kind in (*_ORDER_KINDS, Kind.CANCEL):
            order = _Order._make(_ORDER.unpack_from(self._reply_bytes, REPLY_HEADER.itemsize))
            if record.kind in _ORDER_KINDS and order.order_id != order_id + 1:
                self.problems.append(f"order id {order.order_id} follows {order_id} at sequence {record.sequence}")
        self.entries[_key_of_record(record)].append(Entry(record, path, slot, order))

    def _look_at_events(self, sequence, events):
        mask = len(self.replica.out.event_words) - 1
        touched, markets = set(), self.replica.state.markets
        for position in range(events, int(self.replica.state.counters[EVENT_POSITION])):
            at = (position & mask) * EVENT_BYTES
            kind = self._event_bytes[at + EVENT_HEADER.fields["kind"][1]]
            if kind == EventKind.BALANCE:
                event = _BalanceEvent._make(_BALANCE_EVENT.unpack_from(self._event_bytes, at))
                touched.add((event.user_id, event.asset_id))
            elif kind == EventKind.DEAL:
                event = _Deal._make(_DEAL.unpack_from(self._event_bytes, at))
                market = markets[event.market_id]
                stock, money = int(market["stock_asset_id"]), int(market["money_asset_id"])
                self.fees[money] += join(event.ask_fee_low, event.ask_fee_high)
                self.fees[stock] += join(event.bid_fee_low, event.bid_fee_high)
                touched.update((user, asset) for user in (event.ask_user_id, event.bid_user_id)
                               for asset in (stock, money))
                if event.deal_id != self._deal_id + 1:
                    self.problems.append(f"deal id {event.deal_id} follows {self._deal_id} at sequence {sequence}")
                self._deal_id = event.deal_id
            else:
                event = _OrderEvent._make(_ORDER_EVENT.unpack_from(self._event_bytes, at))
                market, key = markets[event.market_id], (event.user_id, event.market_id)
                touched.update(((event.user_id, int(market["stock_asset_id"])),
                                (event.user_id, int(market["money_asset_id"]))))
                open_orders = self._open[key]
                if event.order_event == OrderEvent.PUT:
                    open_orders.add(event.order_id)
                elif event.order_event == OrderEvent.FINISH:
                    open_orders.discard(event.order_id)
                self.pending[key].add(sequence, frozenset(open_orders))
        for user, asset in touched:
            self.balances[user, asset].add(sequence, self._balance(user, asset))

    def _balance(self, user, asset):
        """(available, frozen) as the state has them now."""
        if len(self._rows) != self.replica.state.counters[BALANCES]:
            keys = self.replica.state.balances["key"]
            self._rows = {int(keys[row]) & (1 << 63) - 1: int(row) for row in np.flatnonzero(keys)}
        row = self._rows.get(user << 16 | asset)
        if row is None:
            return 0, 0
        halves = _HALVES.unpack_from(self._balance_bytes, row * BALANCE_STATE.itemsize)
        return join(*halves[:2]), join(*halves[2:])


def _key_of_record(record):
    if record.kind == Kind.UPDATE_BALANCE:
        label = record.label[:record.label_bytes].decode()
        return "balance.update", record.user_id, record.asset_id, label, record.reference
    if record.kind == Kind.CANCEL:
        return "order.cancel", record.reference
    return "order", record.label[:record.label_bytes].decode()


def unasked_ends(data):
    """Fatal lines that tell of more than deaths by kill and a host's clock that jumps."""
    path = data / "log" / "fatal.log"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    return [f"{line['process']} (process {line['pid']}): {line['text']}" for line in lines
            if " died " not in line["text"] and "clock jumped" not in line["text"]]


class Audit:
    """The verdict on a kill test's Evidence. `story` tells of the first problems what there is to tell."""

    def __init__(self, evidence):
        self.settings, self.operations, self.kills = evidence.exchange.settings, evidence.operations, evidence.kills
        self.lost = self.doubled = self.problems = 0
        self.story = []
        self._asset_ids = {asset.name: index for index, asset in enumerate(self.settings.assets)}
        self._market_ids = {market.name: index for index, market in enumerate(self.settings.markets)}
        self.rerun = Rerun(evidence.exchange.data, self.settings)
        self._readings = {operation: operation.reading() for operation in self.operations}
        self._groups = defaultdict(list)       # key: operations
        for operation in self.operations:
            if operation.is_write:
                self._groups[self._key(operation)].append(operation)
        for text in self.rerun.problems:
            self._tell(text)
        for text in unasked_ends(evidence.exchange.data):
            self._tell(f"a process ended by itself, {text}")
        for operation in evidence.unfinished:
            self._tell("never answered, though all processes ran", operation)
        self._compare_with_journal()
        self._compare_order()
        self.digest_equal = self._compare_digests(evidence.live)
        self.money_exact = self._add_up()

    @property
    def is_well(self):
        return not (self.lost or self.doubled or self.problems) and self.digest_equal and self.money_exact

    def _tell(self, what, operation=None, entries=()):
        self.problems += 1
        if len(self.story) < STORIES_MAX:
            self.story.append({"what": what, **(self._tale(operation) if operation else {}),
                               "journal": [entry.place() for entry in entries]})

    def _tale(self, operation):
        answer = operation.body.decode(errors="replace")
        return {
            "operation": {"method": operation.method, "params": [
                param if len(str(param)) < 100 else f"{str(param)[:80]}..." for param in operation.params]},
            "answered": f"HTTP {operation.status} {answer}" if operation.status else "not at all",
            "sent_at": operation.sent_at, "answered_at": operation.answered_at,
            "in_flight_at_kills": [kill.number for kill in self.kills if operation in kill.operations]}

    def _key(self, operation):
        params = operation.params
        if operation.method == "balance.update":
            return "balance.update", params[0], self._asset_ids[params[1]], params[2], params[3]
        if operation.method == "order.cancel":
            return operation.method, params[2]
        return "order", params[-1]

    # --- exactly once

    def _compare_with_journal(self):
        for key, entries in self.rerun.entries.items():
            if key not in self._groups:
                self._tell(f"in the journal, but nobody asked for it: {key}", entries=entries)
        for key, operations in self._groups.items():
            entries = self.rerun.entries.get(key, ())
            successes = [operation for operation in operations if self._readings[operation][0] is not None]
            executed = successes + [operation for operation in operations if self._was_repeated(operation)]
            if len(entries) > 1 or len(successes) > 1:
                self.doubled += 1
                self._tell(f"executed {max(len(entries), len(successes))} times", operations[0], entries)
            elif executed and not entries:
                self.lost += 1
                self._tell("answered, but not in the journal, which ends at sequence"
                           f" {self.rerun.journal.end_sequence}", executed[0])
            elif entries and all(self._readings[operation][1] not in (None, 0) for operation in operations) \
                    and not executed:
                self._tell("refused, but in the journal", operations[0], entries)
            if len(entries) == 1:
                self._compare_content(operations[0], successes, entries[0])

    def _was_repeated(self, operation):
        return operation.method == "balance.update" and self._readings[operation][1] == REPEATED

    def _compare_content(self, operation, successes, entry):
        """Whether the journal has what was sent, and the answers are what the core makes of it."""
        record, params = entry.record, operation.params
        if operation.method == "balance.update":
            unit = MONEY_DECIMALS - self.settings.assets[record.asset_id].prec_show
            sent = units(params[4], MONEY_DECIMALS - unit) * 10**unit
            if (record.user_id, join(record.change_low, record.change_high)) != (params[0], sent):
                self._tell("the journal has another change than was sent", operation, [entry])
            return
        order = entry.order
        market = self.settings.markets[record.market_id]
        if (record.user_id, market.name) != tuple(params[:2]):
            self._tell("the journal has another user or market than was sent", operation, [entry])
        if operation.method != "order.cancel":
            sent = params[2], units(params[3], market.stock_prec)
            if (record.side, record.amount) != sent:
                self._tell("the journal has another side or amount than was sent", operation, [entry])
        decimals = market.money_prec + market.stock_prec
        for success in successes:
            result = self._readings[success][0]
            told = (result.get("id"), result.get("user"), result.get("source"), *(
                units(result.get(name, "0"), places) for name, places in (
                    ("deal_stock", market.stock_prec), ("deal_money", decimals), ("deal_fee", MONEY_DECIMALS))))
            made = (order.order_id, order.user_id, order.source[:order.source_bytes].decode(), order.deal_stock,
                    join(order.deal_money_low, order.deal_money_high) // 10**(MONEY_DECIMALS - decimals),
                    join(order.deal_fee_low, order.deal_fee_high))
            if told != made:
                self._tell(f"the answer says {told}, the journal leads to {made}", success, [entry])

    # --- order in time

    def _compare_order(self):
        """Go through all sends and answers in their order, with the highest sequence that an answer has shown."""
        sequence_of = {}
        for key, operations in self._groups.items():
            entries = self.rerun.entries.get(key, ())
            if len(entries) == 1 and len(operations) == 1:
                sequence_of[operations[0]] = entries[0].sequence
        moments = [(operation.sent_at, False, operation) for operation in self.operations]
        moments += [(operation.answered_at, True, operation) for operation in self.operations if operation.answered_at]
        moments.sort(key=lambda moment: moment[0])
        later = self._sequences_sent_after(sequence_of)
        shown, least = 0, {}
        for _at, is_answer, operation in moments:
            if not is_answer:
                least[operation] = shown
                continue
            low, sequence = least.pop(operation), sequence_of.get(operation)
            if sequence is not None and sequence <= low:
                self._tell(f"stands before sequence {low}, which was answered before it was sent", operation,
                           self.rerun.entries[self._key(operation)])
            if self._readings[operation][0] is None:
                continue
            if operation.is_write:
                shown = max(shown, sequence or 0)
            else:
                seen = self._state_seen(operation, low, later(operation.answered_at))
                if seen is None:
                    self._tell(f"shows no state from sequence {low} on, which was answered before it was sent",
                               operation)
                else:
                    shown = max(shown, seen)

    def _sequences_sent_after(self, sequence_of):
        """A function: the lowest sequence of what was sent after a moment, a bound for what could be seen before."""
        sent = sorted((operation.sent_at, sequence) for operation, sequence in sequence_of.items())
        moments, lowest = [moment for moment, _sequence in sent], [self.rerun.journal.end_sequence + 1]
        for _moment, sequence in reversed(sent):
            lowest.append(min(lowest[-1], sequence))
        lowest.reverse()
        return lambda moment: lowest[bisect_left(moments, moment)] - 1

    def _state_seen(self, operation, low, high):
        """The first sequence in [low, high] whose state is what the read shows; None where none is."""
        result, params = self._readings[operation][0], operation.params
        if operation.method == "balance.query":
            shown = []
            for name, row in result.items():
                asset = self.settings.assets[self._asset_ids[name]]
                unit = 10**(MONEY_DECIMALS - asset.prec_show)
                shown.append((self.rerun.balances[params[0], self._asset_ids[name]], unit, (
                    units(row["available"], asset.prec_show), units(row["freeze"], asset.prec_show))))
            return _first(low, high, [history for history, _unit, _row in shown], lambda sequence: all(
                tuple(part // unit for part in history.at(sequence)) == row for history, unit, row in shown))
        if operation.method == "order.pending":
            history = self.rerun.pending[params[0], self._market_ids[params[1]]]
            ids = [record["id"] for record in result["records"]]
            return _first(low, high, [history], lambda sequence: (
                len(history.at(sequence)) == result["total"]
                and sorted(history.at(sequence), reverse=True)[:params[3]] == ids))
        return low             # a depth is not compared

    # --- the whole state

    def _compare_digests(self, live):
        state = self.rerun.replica.state
        replayed = (int(state.counters[SEQUENCE]), int(state.counters[OUTPUT_DIGEST]),
                    int(np.uint64(state_digest(state)).view(np.int64)))
        if live != replayed:
            self._tell(f"the matcher stopped with (sequence, output digest, state digest) {live}, the journal leads to"
                       f" {replayed}")
        return live == replayed

    def _add_up(self):
        """Whether each asset's balances are exactly what clients brought and took, less the fees of the deals."""
        state, balances = self.rerun.replica.state, self.rerun.replica.state.balances
        exact = not self.rerun.problems
        for name, index in self._asset_ids.items():
            prec_show = self.settings.assets[index].prec_show
            brought = sum(
                units(self._groups[key][0].params[4], prec_show) * 10**(MONEY_DECIMALS - prec_show)
                for key in self.rerun.entries if key[0] == "balance.update" and key[2] == index and key in self._groups)
            rows = balances[(balances["key"] != 0) & (balances["asset_id"] == index)]
            held = sum(join(int(row["available_low"]), int(row["available_high"]))
                       + join(int(row["frozen_low"]), int(row["frozen_high"])) for row in rows)
            asset = state.assets[index]

            def total(part, asset=asset):
                return join(int(asset[f"{part}_low"]), int(asset[f"{part}_high"]))
            figures = {"deposited less withdrawn, by the clients": brought, "by the exchange": total("deposited"),
                       "fees, by the deals": self.rerun.fees[index], "fees, by the exchange": total("fees"),
                       "balances": held, "available": total("available"), "frozen": total("frozen")}
            if not (brought == total("deposited") and self.rerun.fees[index] == total("fees")
                    and held == total("available") + total("frozen") == brought - total("fees")):
                exact = False
                self._tell(f"money of {name} does not add up: {figures}")
        return exact

    # --- the report

    def of_kill(self, kill):
        """What became of the operations in flight at a kill."""
        silent = [operation for operation in kill.operations if self._readings[operation] == UNKNOWN]
        executed = sum(
            operation.is_write and bool(self.rerun.entries.get(self._key(operation))) for operation in silent)
        return {"answered": len(kill.operations) - len(silent), "executed_but_unanswered": executed}

    def summary(self):
        outcomes = Counter("answered" if result is not None else "unanswered" if code == 0 else "refused"
                           for result, code in self._readings.values())
        return {
            "operations": len(self.operations), "writes": sum(operation.is_write for operation in self.operations),
            **{name: outcomes[name] for name in ("answered", "refused", "unanswered")},
            "records": self.rerun.journal.end_sequence,
            "segments": len({span.path for span in self.rerun.journal.spans}),
            "lost": self.lost, "doubled": self.doubled, "digest_equal": self.digest_equal,
            "money_exact": self.money_exact, "problems": self.problems, "story": self.story}


def _first(low, high, histories, holds):
    """The first sequence in [low, high] at which `holds`; what it depends on changes where the histories do."""
    if holds(low):
        return low
    changes = sorted({sequence for history in histories for sequence in history.changes(low, high)})
    return next((sequence for sequence in changes if holds(sequence)), None)


