"""What really happened: a copy of every record that a matcher has published, kept aside, and what it leads to."""
import numpy as np

from pipeline.chain import SLOT_WORDS
from pipeline.digest import state_digest
from pipeline.journal import START, Place
from pipeline.replay import ALL_EVENTS, BODY_WORDS, COMMAND_WORDS, STAMP_WORDS, replay_span
from pipeline.replica import Replica
from pipeline.segment_content import as_records
from pipeline.snapshot import content_of
from pipeline.state import ASSETS, DEAL_ID, ORDER_ID
from shm.int128 import join
from shm.records import COMMAND, CONFIGURATION_GATEWAY, REPLY_HEADER, EventKind, Kind, Result
from tools.simulation.agents import EVENT_SLOTS

NO_POSITIONS = np.zeros(0, np.int64)
_ORDERS = (Kind.PUT_LIMIT, Kind.PUT_MARKET)


class Violation(Exception):
    """A promise is broken: `kind` in a few words, the text in full."""

    def __init__(self, kind, text):
        super().__init__(f"{kind}: {text}")
        self.kind = kind


class History:
    """The records in order, and a replica that re-runs them from the beginning."""

    def __init__(self, limits):
        self._limits = limits
        self.records = []      # uint64 words each; sequence n at n - 1
        self._operations = {}  # operation number: sequence
        self._replica = None

    @property
    def end(self):
        return self.place(len(self.records))

    def place(self, sequence):
        return Place(sequence, int(_stamp(self.records[sequence - 1])["chain"])) if sequence else START

    def known_synced(self, sequence):
        """Up to where the record of this sequence says that all is on disk."""
        return int(_stamp(self.records[sequence - 1])["known_synced"])

    def add(self, words, operations):
        """A record from the journal ring. `operations`: {number: Operation} of all that clients ever wanted."""
        stamp, end = _stamp(words), self.end
        if (int(stamp["sequence"]), int(stamp["previous"])) != (end.sequence + 1, end.chain):
            raise Violation("two histories", f"sequence {stamp['sequence']} is made after {end.sequence}"
                            " and does not continue it: something published was forgotten")
        if self.records and stamp["time_ns"] < _stamp(self.records[-1])["time_ns"]:
            raise Violation("time goes back", f"at sequence {stamp['sequence']}")
        if stamp["gateway"] != CONFIGURATION_GATEWAY:
            self._note(words, stamp, operations)
        self.records.append(words)

    def _note(self, words, stamp, operations):
        operation = operations.get(int(stamp["correlation_id"]))
        if operation is None or not _is_same(words, operation):
            raise Violation("a command that nobody sent", f"at sequence {stamp['sequence']}: {operation}")
        if operation.number in self._operations:
            raise Violation("done twice", f"{operation}, at sequences {self._operations[operation.number]} and"
                            f" {stamp['sequence']}")
        self._operations[operation.number] = int(stamp["sequence"])

    def forget_after(self, sequence):
        """A power cut took the records after it."""
        for words in self.records[sequence:]:
            self._operations.pop(int(_stamp(words)["correlation_id"]), None)
        del self.records[sequence:]

    def sequence_of(self, operation):
        """Where the operation was carried out; None: nowhere."""
        return self._operations.get(operation.number)

    def digest(self, sequence):
        """Of the state that the records up to `sequence` lead to from the beginning."""
        replica = self._replica
        if replica is None or replica.sequence > sequence or not self._is_current(replica):
            replica = self._replica = Replica(self._limits, EVENT_SLOTS)
        if replica.sequence < sequence:
            slots = np.concatenate(self.records[replica.sequence:sequence]).reshape(-1, SLOT_WORDS)
            slots.flags.writeable = False  # as those of a file
            _slot, is_well = replay_span(replica.state, replica.inbox, replica.out, as_records(slots), slots, 0,
                                         len(slots), NO_POSITIONS, 0, ALL_EVENTS)
            assert is_well, "the history cannot be re-run"
            self._replayed = self.place(sequence)
        return int(np.uint64(state_digest(replica.state)))

    def rows(self, sequence):
        """What a database has that has everything up to `sequence`."""
        replica = Replica(self._limits, EVENT_SLOTS)
        rows = []
        for words in self.records[:sequence]:
            replica.apply(*_command(words), int(_stamp(words)["time_ns"]))
            rows += _drained(replica)
        return rows

    def _is_current(self, replica):
        return replica.sequence == 0 or self._replayed == self.place(replica.sequence)

    # --- at the end

    def check(self, answered, rows):
        """Every answer, every row of a database that has everything, money and ids, by one replay.

        `answered`: Operations with answers; `rows`: (sequence, event) each.
        """
        replica, events = Replica(self._limits, EVENT_SLOTS), []
        waiting = sorted(((_header(message), message, operation) for operation in answered
                          for message in operation.answers), key=lambda answer: int(answer[0]["sequence"]))
        waiting.reverse()
        deposited, orders = {}, 0
        for sequence in range(len(self.records) + 1):
            said, number = None, 0
            if sequence:
                record = _stamp(self.records[sequence - 1])
                command, payload = _command(self.records[sequence - 1])
                replica.apply(command, payload, int(record["time_ns"]))
                said, number = replica.reply_message(), int(record["correlation_id"])
                events += _drained(replica)
                if record["kind"] == Kind.UPDATE_BALANCE:
                    asset = int(record["asset_id"])
                    deposited[asset] = deposited.get(asset, 0) + _number(record, "change")
                orders += int(record["kind"]) in _ORDERS
            while waiting and int(waiting[-1][0]["sequence"]) == sequence:
                header, message, operation = waiting.pop()
                is_done = header["result"] == Result.OK and operation.is_write
                if is_done and operation.number != number:
                    raise Violation("answered and not done", f"{operation}, answered with sequence {sequence}")
                self._check_answer(replica, header, message, operation, said if is_done else None)
        if waiting:
            raise Violation("answered and lost", f"{waiting[0][2]}, answered with sequence"
                            f" {waiting[0][0]['sequence']} of {len(self.records)}")
        if rows != events[:len(rows)] or len(rows) != len(events):
            first = next((index for index, pair in enumerate(zip(rows, events)) if pair[0] != pair[1]),
                         min(len(rows), len(events)))
            raise Violation("rows are not what happened", f"{len(rows)} rows for {len(events)} events, other ones from"
                            f" row {first} on")
        _check_money(replica.state, deposited)
        _check_ids(replica.state, events, orders)

    @staticmethod
    def _check_answer(replica, header, message, operation, expected):
        if expected is None:
            before, command = replica.sequence, operation.command()
            replica.apply(command[0], operation.payload, int(header["time_ns"]))
            expected = replica.reply_message()
            if replica.sequence != before:
                raise Violation("answered otherwise", f"{operation} was refused, and is not refused in the replay")
        if message[8:] != expected[8:]:  # the request id is the gateway's
            raise Violation("answered otherwise", f"{operation}: {header} and in the replay {_header(expected)}")


def _stamp(words):
    return as_records(words[:SLOT_WORDS])[0]


def _header(message):
    return np.frombuffer(message, REPLY_HEADER, 1)[0]


def _command(words):
    """(COMMAND, payload) of a record."""
    body = np.zeros(COMMAND_WORDS, np.uint64)
    body[1:] = words[STAMP_WORDS:STAMP_WORDS + BODY_WORDS]
    command = body.view(COMMAND)[0]
    return command, words[SLOT_WORDS:].tobytes()[:int(command["payload_bytes"])]


def _is_same(words, operation):
    command, payload = _command(words)
    return command.tobytes()[8:] == operation.command()[0].tobytes()[8:] and payload == operation.payload


def _drained(replica):
    """The events since the last call, as the sink has them."""
    return [(int(event["sequence"]), event.tobytes()) for event in replica.drain_events()]


def _number(record, name):
    return join(int(record[f"{name}_low"]), int(record[f"{name}_high"]))


def _check_money(state, deposited):
    content = content_of(state)
    for asset in range(int(state.counters[ASSETS])):
        held = sum(_number(row, "available") + _number(row, "frozen") for row in content["balances"]
                   if row["asset_id"] == asset)
        brought, fees = (_number(state.assets[asset], name) for name in ("deposited", "fees"))
        if not held == brought - fees == deposited.get(asset, 0) - fees:
            raise Violation("money is not exact", f"asset {asset}: {held} held, {brought} brought, {fees} in fees,"
                            f" {deposited.get(asset, 0)} in the journal")


def _check_ids(state, events, orders):
    deals = [int.from_bytes(event[24:32], "little") for _sequence, event in events if event[16] == EventKind.DEAL]
    if deals != list(range(1, len(deals) + 1)) or state.counters[DEAL_ID] != len(deals):
        raise Violation("deal ids have gaps", f"{deals}")
    if state.counters[ORDER_ID] != orders:
        raise Violation("order ids have gaps", f"{orders} orders, last id {state.counters[ORDER_ID]}")
