"""A client of the binary port: docs/binary-port.md tells what the records mean.

    with BinaryClient("127.0.0.1", 8070) as client:
        order = client.put_limit(user_id=1, market_id=0, side=Side.ASK, amount=50_000_000, price=800_000, label="me")

Prices, amounts and fee rates are integers of the market's precisions. Whoever has many requests makes an array of them
and gets an array of replies: `requests`, `send`, `receive`.
"""
import operator
import socket
from typing import NamedTuple

import numpy as np

from gateways.binary_protocol import (
    BALANCE_REPLY,
    HELLO,
    MAGIC,
    OK,
    ORDER_REPLY,
    REQUEST,
    VERSION,
    WELCOME,
    RequestKind,
)
from tools.api import OUTCOME_UNKNOWN
from tools.report import Failed

ANSWER_SECONDS = 10.0          # of silence; the exchange itself gives up much earlier


class BinaryRefused(Failed):
    """A request or a connection that was refused: `code`, `result`, `field` and `bound` as the record says."""

    def __init__(self, what, record):
        self.code, self.field, self.bound = (int(record[name]) for name in ("code", "field", "bound"))
        super().__init__(f"{what} is refused: code {self.code}, field {self.field}, bound {self.bound}")

    @property
    def may_be_executed(self):
        """Whether it may have been executed, or may be yet. With every other code it has changed nothing."""
        return self.code in OUTCOME_UNKNOWN


class HungUp(Failed):
    """The connection has ended, or a request had no reply on it; what is not answered may be executed."""


class OrderState(NamedTuple):
    """An order after the request, in the integers of the record; 128-bit numbers are whole."""
    order_id: int
    market_id: int
    side: int
    order_type: int
    price: int
    amount: int
    left: int
    deal_stock: int
    deal_money: int
    deal_fee: int
    created_at_ns: int
    updated_at_ns: int


class BalanceState(NamedTuple):
    """In 10^-20 of one whole unit."""
    available: int
    frozen: int


class BinaryClient:
    """One connection: for one thread at a time, without locks. `welcome` is what the exchange said first."""

    def __init__(self, host, port, answer_seconds=ANSWER_SECONDS):
        try:
            self._socket = socket.create_connection((host, port), answer_seconds)
        except OSError as problem:
            raise Failed(f"no binary port answers at {host}:{port}: {problem.strerror or problem}") from None
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._last_id = 0
        try:
            self._socket.sendall(np.array([(MAGIC, VERSION, 0)], HELLO).tobytes())
            self.welcome = self._read(WELCOME, 1)[0]
            if self.welcome["magic"] != MAGIC:
                raise Failed(f"what answers at {host}:{port} is no binary port of an exchange")
            if self.welcome["code"] != OK:
                raise BinaryRefused(f"the connection to {host}:{port}", self.welcome)
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_problem):
        self.close()

    def close(self):
        self._socket.close()

    @property
    def file(self):
        """The connection's file descriptor, to wait for."""
        return self._socket.fileno()

    # Many at once.

    def requests(self, count, kind):
        """`count` empty records of this RequestKind, with request ids that go on from the last ones."""
        made = np.zeros(count, REQUEST)
        made["kind"] = kind
        made["request_id"] = np.arange(self._last_id + 1, self._last_id + 1 + count, dtype=np.uint64)
        self._last_id += count
        return made

    def send(self, requests):
        """All of an array of REQUEST, or of its bytes; how many may be on their way `welcome` says."""
        self._socket.sendall(requests)

    def receive(self, count):
        """The next replies, an array of ORDER_REPLY; those to QUERY_BALANCE are seen with `.view(BALANCE_REPLY)`."""
        return self._read(ORDER_REPLY, count)

    def receive_some(self, room):
        """How many bytes of replies were written to this memoryview: what has come, or comes first."""
        size = self._socket.recv_into(room)
        if size == 0:
            raise HungUp("the exchange has ended the connection")
        return size

    def _read(self, dtype, count):
        data = bytearray(count * dtype.itemsize)
        rest = memoryview(data)
        while rest:
            rest = rest[self.receive_some(rest):]
        return np.frombuffer(data, dtype)

    # One after the other. Each raises BinaryRefused or HungUp.

    def call(self, kind, **fields):
        """The reply to one request, an ORDER_REPLY. Numbers are integers: a float or a Decimal is a TypeError.

        Raises HungUp where none comes, and hangs up.
        """
        request = self.requests(1, kind)
        for name, value in fields.items():
            request[name] = value if name == "label" else operator.index(value)
        try:
            self.send(request)
            reply = self.receive(1)
        except BaseException as problem:
            self.close()           # a late reply would be taken for that to the next request
            if isinstance(problem, OSError):
                raise HungUp(f"{RequestKind(kind).name} has no reply: {problem.strerror or problem}; it may be executed"
                             " nevertheless") from None
            raise
        if reply["code"][0] != OK:
            raise BinaryRefused(RequestKind(kind).name, reply[0])
        return reply

    def put_limit(self, user_id, market_id, side, amount, price, taker_fee=0, maker_fee=0, label=""):
        return _order(self.call(
            RequestKind.PUT_LIMIT, user_id=user_id, market_id=market_id, side=side, amount=amount, price=price,
            taker_fee=taker_fee, maker_fee=maker_fee, **_label(label)))

    def put_market(self, user_id, market_id, side, amount, taker_fee=0, label=""):
        return _order(self.call(
            RequestKind.PUT_MARKET, user_id=user_id, market_id=market_id, side=side, amount=amount,
            taker_fee=taker_fee, **_label(label)))

    def cancel(self, user_id, market_id, order_id):
        """The order as it was."""
        return _order(self.call(RequestKind.CANCEL, user_id=user_id, market_id=market_id, order_id=order_id))

    def query_balance(self, user_id, asset_id):
        row = self.call(RequestKind.QUERY_BALANCE, user_id=user_id, asset_id=asset_id).view(BALANCE_REPLY)[0]
        return BalanceState(_join(row, "available"), _join(row, "frozen"))

    def ping(self):
        """Come back when everything before it is answered."""
        self.call(RequestKind.PING)


def _label(text):
    encoded = text.encode()
    room = REQUEST["label"].itemsize
    return {"label": np.frombuffer(encoded[:room].ljust(room, b"\0"), np.uint8), "label_bytes": min(len(encoded), 255)}


def _join(record, name):
    return int(record[f"{name}_high"]) << 64 | int(record[f"{name}_low"])


def _order(reply):
    record = reply[0]
    return OrderState(*(
        int(record[name]) if name in record.dtype.names else _join(record, name) for name in OrderState._fields))
