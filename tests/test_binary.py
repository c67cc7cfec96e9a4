"""The binary port as clients meet it, on real sockets and rings, over a core in this process."""
import asyncio
import errno
import json
import random
import socket
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from tornado.netutil import bind_sockets

from gateways import event_loop
from gateways.answers import Answers
from gateways.binary_front import BinaryFront
from gateways.binary_protocol import (
    BALANCE_REPLY,
    FIELD_NUMBERS,
    FIELDS_USED,
    HELLO,
    MAGIC,
    NO_RESULT,
    OK,
    ORDER_REPLY,
    REPLY_BYTES,
    REQUEST,
    REQUEST_BYTES,
    VERSION,
    WELCOME,
    GatewayField,
    RequestKind,
)
from gateways.bridge import ROOM_WAIT_SECONDS
from gateways.catalog import Catalog
from gateways.front import ROOM_RETRIES_MAX
from gateways.messages import make_command
from shm import configuration, segments
from shm.decimals import fmt
from shm.records import COMMAND, INT64_MAX, LABEL_BYTES_MAX, WHOLE_UNITS_MAX, Field, Kind, OrderType, Result, Side
from shm.segments import CounterWord, JournalWord, Role
from tests.gateway_world import Pipeline, Rings
from tests.launched import wait_for
from tests.test_protocol import CONFIG, REPORTS, CoreBridge
from tools.binary_client import BinaryClient, BinaryRefused, HungUp
from tools.local_exchange import prepare_kernels
from tools.report import Failed

FILES_MAX = 4096
INSTANCE = bytes(range(16))
USER, OTHER = 7, 8
FUNDS = 10**26                 # 10^6 whole units of each asset
MARKETS = [market["name"] for market in CONFIG["markets"]]
MARKET = MARKETS.index("BTCUSDT")
STOCK_PREC, MONEY_PREC, FEE_PREC = 8, 2, 4
TICKS, LOTS = 10**MONEY_PREC, 10**STOCK_PREC  # of one
PUT = {"user_id": USER, "market_id": MARKET, "side": Side.ASK, "amount": LOTS, "price": 8000 * TICKS, "taker_fee": 20,
       "maker_fee": 10}
GOOD = {                       # fields of a request of each kind
    RequestKind.PUT_LIMIT: PUT,
    RequestKind.PUT_MARKET: {name: value for name, value in PUT.items() if name not in ("price", "maker_fee")},
    RequestKind.CANCEL: {"user_id": USER, "market_id": MARKET, "order_id": 12345},
    RequestKind.QUERY_BALANCE: {"user_id": USER, "asset_id": 0},
    RequestKind.PING: {},
}
GREETING = np.array([(MAGIC, VERSION, 0)], HELLO).tobytes()


class Exchange:
    """A binary gateway's front on a port of its own, in a thread, over rings that a core in the same thread answers."""

    def __init__(self, directory, **binary):
        self.settings = configuration.from_recording(
            CONFIG, binary={"gateways": 1, "timeout_ms": 5000, **binary},
            limits={"orders_max": 20_000, "levels_max": 20_000, "balances_max": 2_000})
        self.rings = Rings(directory, self.settings, command_slots=256, reply_slots=512)
        self.pipeline = Pipeline(self.rings)
        fund(self.pipeline.replica, self.settings)
        self.port, self._ready, self._stop = None, threading.Event(), None
        self._thread = threading.Thread(target=lambda: event_loop.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(60)

    async def _serve(self):
        self._stop, self._loop = asyncio.Event(), asyncio.get_running_loop()
        catalog = Catalog(self.settings.limits)
        bridge = self.rings.bridge(catalog, self.settings.binary.timeout_ms, FILES_MAX)
        answers = Answers(bridge, catalog, REPORTS.append)
        self.front = BinaryFront(bridge, answers, catalog, self.settings.binary, INSTANCE)
        bridge.attach(self._loop)
        self.pipeline.attend(self._loop, self.rings)
        assert await answers.try_to_learn()
        listener = bind_sockets(0, "127.0.0.1")[0]
        self.port = listener.getsockname()[1]
        self.front.listen(listener)
        self._ready.set()
        await self._stop.wait()
        await self.front.stop(5)

    def run(self, work):
        """Call `work` where the front runs; its result."""
        async def call():
            return work()
        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(10)

    def client(self):
        return BinaryClient("127.0.0.1", self.port)

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def thaw(self):
        """Let a frozen matcher answer what it was asked."""
        def go_on():
            self.pipeline.is_frozen = False
            self.pipeline.answer()
        self.run(go_on)

    def close(self):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        segments.unlink(self.rings.instance)
        assert not self.rings.defects


def fund(replica, settings):
    for user in (USER, OTHER):
        for asset in range(len(settings.assets)):
            command = make_command(Kind.UPDATE_BALANCE, payload=b"{}", user_id=user, asset_id=asset, reference=1,
                                   change_low=FUNDS % 2**64, change_high=FUNDS >> 64)
            replica.apply(np.frombuffer(command.slots, COMMAND, 1)[0], b"{}", time.time_ns())


@contextmanager
def exchange_at(directory, **binary):
    made = Exchange(directory, **binary)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module", autouse=True)
def compiled():
    """No kernel is compiled while something has to be answered in time."""
    prepare_kernels()


@pytest.fixture(scope="module")
def exchange(tmp_path_factory):
    with exchange_at(tmp_path_factory.mktemp("gateway")) as made:
        yield made


@pytest.fixture
def client(exchange):
    with exchange.client() as made:
        yield made


def is_open(client):
    """Whether the next request is answered."""
    client.ping()
    return client.query_balance(USER, 0).available > 0


def record(kind, request_id=1, **fields):
    made = np.zeros(1, REQUEST)
    for name, value in {**GOOD[kind], **fields}.items():
        made[name] = value
    made["kind"], made["request_id"] = kind, request_id
    return made


def reply_to(client, made):
    client.send(made)
    reply = client.receive(1)
    assert reply["request_id"] == made["request_id"] and reply["kind"] == made["kind"]
    return reply[0]


# The session.

def test_the_exchange_says_who_it_is_and_what_it_takes(exchange):
    with exchange.client() as client:
        welcome = client.welcome
        assert welcome["instance"].tobytes() == INSTANCE and welcome["version"] == VERSION
        assert (welcome["in_flight_max"], welcome["timeout_ms"]) == (1024, 5000)
        assert (welcome["request_bytes"], welcome["reply_bytes"]) == (REQUEST_BYTES, REPLY_BYTES)
        assert (welcome["assets"], welcome["markets"]) == (len(CONFIG["assets"]), len(MARKETS))
        assert not welcome["reserved"].any() and not welcome["room"].any()


@pytest.mark.parametrize("byte", range(len(GREETING)))
def test_another_magic_or_version_is_told_so_once_and_hung_up_on(exchange, byte):
    data = bytearray(GREETING)
    data[byte] ^= 0x40
    field = GatewayField.MAGIC if byte < 8 else GatewayField.VERSION if byte < 12 else GatewayField.RESERVED
    with exchange.connect() as connection:
        connection.sendall(bytes(data) + record(RequestKind.PING).tobytes())
        said = connection.makefile("rb").read()
    assert len(said) == REPLY_BYTES
    welcome = np.frombuffer(said, WELCOME)[0]
    assert (welcome["magic"], welcome["version"], welcome["code"], welcome["field"]) == (MAGIC, VERSION, 1, field)
    assert welcome["bound"] == (VERSION if field == GatewayField.VERSION else 0)


def test_who_speaks_http_is_told_so_at_once(exchange):
    with exchange.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
        said = np.frombuffer(connection.makefile("rb").read(), WELCOME)
    assert said["code"] == 1 and said["field"] == GatewayField.MAGIC


def test_a_client_that_meets_something_else_says_so():
    listener = socket.create_server(("127.0.0.1", 0))

    def answer():
        with listener.accept()[0] as connection:
            connection.sendall(bytes(REPLY_BYTES))
    threading.Thread(target=answer, daemon=True).start()
    with pytest.raises(Failed, match="is no binary port of an exchange"):
        BinaryClient(*listener.getsockname())
    listener.close()


def test_beyond_the_limit_of_connections_one_is_told_so(tmp_path):
    with exchange_at(tmp_path, connections_max=2) as small:
        clients = [small.client() for _ in range(2)]
        with small.connect() as refused:
            said = np.frombuffer(refused.makefile("rb").read(), WELCOME)[0]
        assert (said["code"], said["field"], said["bound"]) == (3, GatewayField.CONNECTIONS, 2)
        clients.pop().close()
        wait_for(lambda: small.run(lambda: len(small.front._connections)) == 1, "the place is free again")
        with small.client() as another:
            assert is_open(another) and is_open(clients[0])
        clients[0].close()


# Every kind.

def test_a_limit_order_rests_is_taken_and_cancelled(client):
    resting = client.put_limit(USER, MARKET, Side.ASK, 3 * LOTS, 8000 * TICKS, 20, 10, "me")
    assert (resting.market_id, resting.side, resting.order_type) == (MARKET, Side.ASK, OrderType.LIMIT)
    assert (resting.price, resting.amount, resting.left, resting.deal_stock) == (8000 * TICKS, 3 * LOTS, 3 * LOTS, 0)
    assert resting.created_at_ns == resting.updated_at_ns and abs(resting.created_at_ns - time.time_ns()) < 10**11
    taking = client.put_limit(OTHER, MARKET, Side.BID, LOTS, 8001 * TICKS, 20, 10)
    assert taking.order_id == resting.order_id + 1
    # at the maker's price; a bid's fee is stock
    assert (taking.left, taking.deal_stock, taking.deal_money) == (0, LOTS, 8000 * 10**20)
    assert taking.deal_fee == 20 * 10**(20 - FEE_PREC)
    cancelled = client.cancel(USER, MARKET, resting.order_id)
    assert (cancelled.order_id, cancelled.left, cancelled.deal_stock) == (resting.order_id, 2 * LOTS, LOTS)
    assert cancelled.deal_money == 8000 * 10**20 and cancelled.deal_fee == 8 * 10**20  # an ask's fee is money
    assert cancelled.created_at_ns == resting.created_at_ns and cancelled.updated_at_ns == taking.created_at_ns


def test_a_market_bid_spends_money_and_shows_what_is_left_of_it_exactly(client):
    resting = client.put_limit(USER, MARKET, Side.ASK, LOTS, 7000 * TICKS)
    order = client.put_market(OTHER, MARKET, Side.BID, 3500 * 10**STOCK_PREC + 1, 20, "money")
    assert (order.order_type, order.price, order.deal_stock) == (OrderType.MARKET, 0, LOTS // 2)
    assert (order.deal_money, order.left) == (3500 * 10**20, 10**(20 - STOCK_PREC))
    client.cancel(USER, MARKET, resting.order_id)


def test_a_balance_is_told_exactly(exchange, client):
    before = client.query_balance(USER, 0)
    order = client.put_limit(USER, MARKET, Side.ASK, 5 * LOTS, 9999 * TICKS)
    after = client.query_balance(USER, 0)
    assert (before.available - after.available, after.frozen - before.frozen) == (5 * 10**20, 5 * 10**20)
    client.cancel(USER, MARKET, order.order_id)
    for asset in range(len(CONFIG["assets"])):
        reply = reply_to(client, record(RequestKind.QUERY_BALANCE, asset_id=asset, user_id=4711))
        row = np.array([reply]).view(BALANCE_REPLY)[0]
        assert (row["asset_id"], row["code"], row["result"]) == (asset, OK, Result.OK)
        assert not any(int(row[name]) for name in ("available_low", "available_high", "frozen_low", "frozen_high"))


def test_a_ping_is_answered_by_the_gateway_behind_everything_before_it(exchange, client):
    made = np.concatenate([record(RequestKind.QUERY_BALANCE, number) for number in range(1, 101)]
                          + [record(RequestKind.PING, 101), record(RequestKind.QUERY_BALANCE, 102)])
    taken = len(exchange.pipeline.taken)
    client.send(made)
    replies = client.receive(len(made))
    assert replies["request_id"].tolist() == made["request_id"].tolist()
    assert not replies["code"].any() and (replies["result"] == NO_RESULT).tolist() == [False] * 100 + [True, False]
    assert len(exchange.pipeline.taken) == taken + 101


def test_request_ids_are_the_clients_own_and_stand_in_the_journal(exchange, client):
    for request_id in (0, 1, 2**63, 2**64 - 1, 1):
        assert reply_to(client, record(RequestKind.QUERY_BALANCE, request_id))["code"] == OK
        assert int(exchange.pipeline.taken[-1][0]["correlation_id"]) == request_id


def test_a_label_is_the_orders_source(exchange, client):
    for label in ("", "a", "x" * LABEL_BYTES_MAX, "ä" * 15, "\u20ac\u20ac", "\U0001f600", "\x01\x7f", "\ud7ff\ue000"):
        order = client.put_limit(**PUT, label=label)
        command, _ = exchange.pipeline.taken[-1]
        assert command["label"][:command["label_bytes"]].tobytes().decode() == label
        client.cancel(USER, MARKET, order.order_id)


# What is refused, and which field it names.

def with_bytes(at, value):
    """A change of a record's byte."""
    def change(made):
        made.view(np.uint8)[at] = value
    return change


LABEL_AT = REQUEST.fields["label"][1]


def label_of(data, count=None):
    def change(made):
        made["label"][0, :len(data)] = np.frombuffer(data, np.uint8)
        made["label_bytes"] = len(data) if count is None else count
    return change


INVALID = [  # (kind, fields or a change, field, bound)
    *((kind, {"user_id": 0}, Field.USER, 0) for kind in GOOD if kind != RequestKind.PING),
    *((kind, {"market_id": market}, Field.MARKET, 0) for kind in (
        RequestKind.PUT_LIMIT, RequestKind.PUT_MARKET, RequestKind.CANCEL) for market in (len(MARKETS), 2**16 - 1)),
    *((RequestKind.QUERY_BALANCE, {"asset_id": asset}, Field.ASSET, len(CONFIG["assets"]))
      for asset in (len(CONFIG["assets"]), 2**16 - 1)),
    *((kind, {"side": side}, Field.SIDE, 0) for kind in (RequestKind.PUT_LIMIT, RequestKind.PUT_MARKET)
      for side in (0, 3, 255)),
    *((kind, {"amount": amount}, Field.AMOUNT, INT64_MAX) for kind in (RequestKind.PUT_LIMIT, RequestKind.PUT_MARKET)
      for amount in (0, -1, -2**63)),
    *((RequestKind.PUT_LIMIT, {"price": price}, Field.PRICE, INT64_MAX) for price in (0, -1, -2**63)),
    *((kind, {"taker_fee": fee}, Field.TAKER_FEE, 9999) for kind in (RequestKind.PUT_LIMIT, RequestKind.PUT_MARKET)
      for fee in (10_000, 2**32 - 1)),
    (RequestKind.PUT_LIMIT, {"maker_fee": 10_000}, Field.MAKER_FEE, 9999),
    (RequestKind.PUT_LIMIT, {"amount": INT64_MAX, "price": INT64_MAX}, Field.PRODUCT, WHOLE_UNITS_MAX),
    *((RequestKind.PUT_LIMIT, change, Field.LABEL, 0) for change in (
        label_of(b"a" * 30, 31), label_of(b"a", 255), label_of(b"ab", 1), label_of(b"", 1), label_of(b"a\0b"),
        label_of(b"\x80"), label_of(b"\xc0\x80"), label_of(b"\xc1\xbf"), label_of(b"\xe0\x9f\xbf"),
        label_of(b"\xed\xa0\x80"), label_of(b"\xf0\x8f\xbf\xbf"), label_of(b"\xf4\x90\x80\x80"),
        label_of(b"\xf5\x80\x80\x80"), label_of(b"\xff"), label_of("ä".encode(), 1), label_of("€".encode() * 10, 29),
        label_of(b"\xe2\x82\x20"), label_of(b"\xe2\x28\xa1"), label_of(b"\xf0\x9f\x98\x20"))),
    *((RequestKind.PING, with_bytes(REQUEST.fields["kind"][1], kind), Field.KIND, 0) for kind in (0, 6, 128, 255)),
]


@pytest.mark.parametrize("kind, change, field, bound", INVALID)
def test_what_a_field_may_not_be_is_code_1_with_its_number_and_the_connection_stays(client, kind, change, field, bound):
    made = record(kind, 77, **(change if isinstance(change, dict) else {}))
    if not isinstance(change, dict):
        change(made)
    reply = reply_to(client, made)
    assert (reply["code"], reply["field"], reply["bound"]) == (1, field, bound)
    assert reply["result"] in (Result.INVALID, NO_RESULT)
    assert not reply.tobytes()[32:].strip(b"\0")
    assert is_open(client)


@pytest.mark.parametrize("kind", RequestKind)
def test_each_byte_that_a_kind_does_not_use_must_be_zero(client, kind):
    owners = {byte: name for name in REQUEST.names
              for byte in range(REQUEST.fields[name][1], REQUEST.fields[name][1] + REQUEST[name].itemsize)}
    assert len(owners) == REQUEST_BYTES
    unused = [byte for byte, name in owners.items() if name not in (*FIELDS_USED[kind], "request_id", "kind")]
    made = np.concatenate([record(kind, number) for number in range(len(unused))])
    for number, byte in enumerate(unused):
        made[number:number + 1].view(np.uint8)[byte] = 1 << number % 8
    client.send(made)
    replies = client.receive(len(made))
    assert replies["request_id"].tolist() == list(range(len(unused)))
    assert set(replies["code"].tolist()) == {1} and set(replies["result"].tolist()) == {NO_RESULT}
    assert replies["field"].tolist() == [FIELD_NUMBERS[owners[byte]] for byte in unused]
    assert is_open(client)


def test_what_the_rules_of_trading_refuse_has_the_codes_of_the_http_interface(exchange, client):
    def refusal(kind, **fields):
        reply = reply_to(client, record(kind, 5, **fields))
        return int(reply["code"]), Result(reply["result"]), int(reply["bound"])
    poor = {"user_id": 999}
    assert refusal(RequestKind.PUT_LIMIT, **poor) == (10, Result.BALANCE_TOO_LOW, 0)
    assert refusal(RequestKind.PUT_MARKET, **poor) == (10, Result.BALANCE_TOO_LOW, 0)
    assert refusal(RequestKind.PUT_LIMIT, amount=1) == (11, Result.AMOUNT_TOO_SMALL, 0)
    assert refusal(RequestKind.PUT_MARKET) == (12, Result.NO_COUNTERPARTY, 0)
    assert refusal(RequestKind.CANCEL, order_id=2**64 - 1) == (10, Result.ORDER_NOT_FOUND, 0)
    order = client.put_limit(**PUT)
    assert refusal(RequestKind.CANCEL, user_id=OTHER, order_id=order.order_id) == (11, Result.NOT_THE_OWNER, 0)
    assert refusal(RequestKind.PUT_MARKET, user_id=OTHER, side=Side.BID, amount=1) == (
        11, Result.AMOUNT_TOO_SMALL, 8000 * TICKS)
    client.cancel(USER, MARKET, order.order_id)


def test_a_client_raises_what_it_was_refused(client):
    with pytest.raises(BinaryRefused, match="CANCEL is refused: code 10") as refused:
        client.cancel(USER, MARKET, 10**15)
    assert not refused.value.may_be_executed
    with pytest.raises(BinaryRefused) as refused:
        client.put_limit(**PUT, label="ä" * 16)
    assert (refused.value.code, refused.value.field) == (1, Field.LABEL)


# Bytes.

def some_requests(rng, count):
    """Requests of every kind, a few of them wrong."""
    made = []
    for number in range(count):
        kind = rng.choice([*RequestKind, RequestKind.PUT_LIMIT, RequestKind.PUT_LIMIT])
        fields = {"user_id": rng.choice([USER, OTHER])} if kind != RequestKind.PING else {}
        if kind == RequestKind.PUT_LIMIT:
            fields.update(side=rng.choice([1, 2]), price=rng.randrange(799_000, 801_000),
                          amount=rng.randrange(LOTS // 10, LOTS))
        if kind == RequestKind.CANCEL:
            fields.update(order_id=rng.randrange(1, 400))
        made.append(record(kind, number, **fields))
        if rng.random() < 0.05:
            made[-1]["reserved"] = 1
    return np.concatenate(made)


def test_records_cut_at_any_byte_are_answered_in_their_order(exchange):
    rng = random.Random(3)
    made = some_requests(rng, 300)
    data = GREETING + made.tobytes()
    with exchange.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        at = 0
        while at < len(data):
            size = rng.choice([1, 7, 95, 96, 97, 500])
            connection.sendall(data[at:at + size])
            at += size
            if rng.random() < 0.2:
                time.sleep(0.001)
        said = read_all(connection, (1 + len(made)) * REPLY_BYTES)
    replies = np.frombuffer(said[REPLY_BYTES:], ORDER_REPLY)
    assert replies["request_id"].tolist() == list(range(len(made)))
    assert replies["kind"].tolist() == made["kind"].tolist()
    assert ((replies["field"] == GatewayField.RESERVED) == made["reserved"].any(axis=1)).all()


def read_all(connection, count):
    data = b""
    while len(data) < count:
        part = connection.recv(2**20)
        assert part, f"hung up after {len(data)} of {count} bytes"
        data += part
    return data


def test_a_hello_cut_at_any_byte_is_put_together(exchange):
    for cut in range(1, len(GREETING)):
        with exchange.connect() as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(GREETING[:cut])
            time.sleep(0.002)
            connection.sendall(GREETING[cut:] + record(RequestKind.PING).tobytes())
            assert len(read_all(connection, 2 * REPLY_BYTES)) == 2 * REPLY_BYTES


def test_hostile_bytes_get_a_reply_a_record_and_harm_nobody(exchange, client, request):
    """Whole records of any bytes: each has one reply, in its order, and an order only where the record is one."""
    rng = random.Random(request.config.getoption("--fuzz-seed"))
    count = request.config.getoption("--fuzz-inputs") // 10
    made = some_requests(rng, count)
    raw = made.view(np.uint8).reshape(count, REQUEST_BYTES)
    for number in range(count):
        if rng.random() < 0.5:
            for _ in range(rng.choice([1, 1, 2, 10])):
                raw[number, rng.randrange(8, REQUEST_BYTES)] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
        elif rng.random() < 0.2:
            raw[number, 8:] = np.frombuffer(rng.randbytes(REQUEST_BYTES - 8), np.uint8)
    with exchange.client() as hostile:
        for begin in range(0, count, 1000):
            part = made[begin:begin + 1000]
            hostile.send(part)
            replies = hostile.receive(len(part))
            assert replies["request_id"].tolist() == part["request_id"].tolist()
            assert replies["kind"].tolist() == part["kind"].tolist()
            assert set(replies["code"].tolist()) <= {0, 1, 10, 11, 12}
            assert (replies["field"][replies["code"] == 1] != 0).all()
    for command, _ in exchange.pipeline.taken:
        if command["kind"] == Kind.PUT_LIMIT:
            assert "\0" not in command["label"][:command["label_bytes"]].tobytes().decode()
    assert is_open(client)


def test_a_client_that_says_nothing_more_is_answered_before_the_end(exchange):
    with exchange.connect() as connection:
        connection.sendall(GREETING + record(RequestKind.QUERY_BALANCE).tobytes() * 3 + b"half")
        connection.shutdown(socket.SHUT_WR)
        assert len(connection.makefile("rb").read()) == 4 * REPLY_BYTES


def test_clients_that_leave_with_requests_in_flight_leave_nothing_behind(exchange, client):
    for number in range(100):
        with exchange.connect() as other:
            other.sendall(GREETING + record(RequestKind.QUERY_BALANCE).tobytes() * (number % 7))
            if number % 3 == 0:  # a reset instead of an end
                other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    wait_for(lambda: exchange.run(lambda: len(exchange.front._connections)) == 1, "all others are gone")
    assert is_open(client)


def test_a_client_never_takes_a_late_reply_for_that_to_another_request(tmp_path):
    with exchange_at(tmp_path) as frozen, BinaryClient("127.0.0.1", frozen.port, answer_seconds=0.2) as client:
        frozen.pipeline.is_frozen = True
        with pytest.raises(HungUp, match="PUT_LIMIT has no reply: timed out; it may be executed"):
            client.put_limit(**PUT)
        frozen.thaw()
        with pytest.raises(HungUp, match="QUERY_BALANCE has no reply"):
            client.query_balance(USER, 0)


@pytest.mark.parametrize("value", [8000.25, 8000.0, "8000"])
def test_a_client_takes_no_number_that_is_no_integer(client, value):
    with pytest.raises(TypeError):
        client.put_limit(**{**PUT, "price": value})
    assert is_open(client)


# Bounds.

def test_more_records_than_may_be_in_flight_or_in_the_rings_wait_their_turn(exchange):
    """256 command slots; 1,024 in flight."""
    made = np.concatenate([record(RequestKind.QUERY_BALANCE, number) for number in range(5000)])
    with exchange.client() as client:
        sending = threading.Thread(target=client.send, args=(made,))
        sending.start()
        replies = client.receive(len(made))
        sending.join()
        assert replies["request_id"].tolist() == list(range(5000)) and not replies["code"].any()


def test_no_more_of_a_connection_are_in_flight_than_may_be(tmp_path):
    with exchange_at(tmp_path, in_flight_max=3) as narrow:
        narrow.pipeline.is_frozen = True
        with narrow.client() as client:
            client.send(np.concatenate([record(RequestKind.QUERY_BALANCE, number) for number in range(10)]))
            words = narrow.rings.memory.commands.words[0]
            asked = len(narrow.pipeline.taken)
            wait_for(lambda: narrow.run(lambda: int(narrow.front.sockets.in_flight.sum())) == 3, "three are taken")
            time.sleep(0.05)
            assert narrow.run(lambda: int(narrow.front.sockets.in_flight.sum())) == 3
            assert int(words[segments.CommandWord.TAIL]) == asked + 3
            narrow.thaw()
            assert client.receive(10)["request_id"].tolist() == list(range(10))


def test_a_client_that_never_reads_is_not_read_and_harms_nobody(exchange, client):
    with exchange.client() as deaf:
        deaf._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf._socket.settimeout(0.5)
        made = np.concatenate([record(RequestKind.QUERY_BALANCE, number) for number in range(1000)])
        with pytest.raises(TimeoutError):
            for _ in range(1000):
                deaf.send(made)
        assert is_open(client)
        assert exchange.run(lambda: exchange.front._unsent_bytes) < 10**6
    assert is_open(client)


def test_requests_without_a_reply_in_time_are_code_5_in_their_order_and_their_late_replies_go_to_nobody(tmp_path):
    with exchange_at(tmp_path, timeout_ms=300) as frozen, frozen.client() as client:
        frozen.pipeline.is_frozen = True
        began = time.monotonic()
        client.send(np.concatenate([record(kind, 2**64 - 1 - kind) for kind in RequestKind]))
        replies = client.receive(len(RequestKind))
        assert time.monotonic() - began > 0.28
        assert replies["request_id"].tolist() == [2**64 - 1 - kind for kind in RequestKind]
        assert replies["kind"].tolist() == [*RequestKind]
        assert replies["code"].tolist() == [5, 5, 5, 5, OK] and set(replies["result"].tolist()) == {NO_RESULT}
        assert replies["bound"].tolist() == [300] * 4 + [0]
        frozen.thaw()
        assert is_open(client)


def test_full_rings_are_code_3_after_a_bounded_wait_and_end_by_themselves(tmp_path):
    with exchange_at(tmp_path, timeout_ms=1500) as frozen, frozen.client() as first, frozen.client() as second:
        frozen.pipeline.is_frozen = True
        first.send(np.concatenate([record(RequestKind.QUERY_BALANCE, number) for number in range(256)]))
        wait_for(lambda: frozen.run(lambda: int(frozen.front.sockets.in_flight.sum())) == 256, "the ring is full")
        began = time.monotonic()
        second.send(np.concatenate([record(RequestKind.QUERY_BALANCE, number) for number in range(3)]))
        replies = second.receive(3)
        assert 0.15 < time.monotonic() - began < 1.2
        assert replies["code"].tolist() == [3] * 3 and set(replies["field"].tolist()) == {GatewayField.ROOM}
        frozen.thaw()
        assert not first.receive(256)["code"].any()
        assert is_open(first) and is_open(second)


def test_the_wait_for_room_is_as_short_however_many_wait(tmp_path):
    with exchange_at(tmp_path, timeout_ms=5000) as frozen, frozen.client() as first:
        frozen.pipeline.is_frozen = True
        first.send(np.concatenate([record(RequestKind.QUERY_BALANCE, number) for number in range(256)]))
        wait_for(lambda: frozen.run(lambda: int(frozen.front.sockets.in_flight.sum())) == 256, "the ring is full")
        clients = [frozen.client() for _ in range(6 * ROOM_RETRIES_MAX)]
        began = time.monotonic()
        for client in clients:
            client.send(record(RequestKind.QUERY_BALANCE))
        assert {int(client.receive(1)["code"][0]) for client in clients} == {3}
        assert time.monotonic() - began < 5 * ROOM_WAIT_SECONDS
        for client in clients:
            client.close()
        frozen.thaw()
        assert not first.receive(256)["code"].any()


def test_without_a_matcher_requests_are_code_3_until_there_is_one(tmp_path):
    with exchange_at(tmp_path) as gone, gone.client() as client:
        counters = gone.rings.memory.counters.words[Role.MATCHER]
        heartbeat = int(counters[CounterWord.HEARTBEAT_NS])
        counters[CounterWord.HEARTBEAT_NS] = 1
        client.send(np.concatenate([record(kind) for kind in RequestKind]))
        replies = client.receive(len(RequestKind))
        assert replies["code"].tolist() == [3, 3, 3, 3, OK]
        assert replies["field"].tolist() == [GatewayField.MATCHER] * 4 + [0]
        counters[CounterWord.HEARTBEAT_NS] = heartbeat
        assert is_open(client)


def test_while_the_journal_takes_no_writes_only_reads_go_on(tmp_path):
    with exchange_at(tmp_path) as full, full.client() as client:
        full.rings.memory.journal.words[0, JournalWord.REFUSING] = errno.ENOSPC
        client.send(np.concatenate([record(kind) for kind in RequestKind]))
        replies = client.receive(len(RequestKind))
        assert replies["code"].tolist() == [3, 3, 3, OK, OK]
        assert replies["field"].tolist() == [GatewayField.JOURNAL] * 3 + [0, 0]
        assert replies["bound"].tolist() == [errno.ENOSPC] * 3 + [0, 0]
        full.rings.memory.journal.words[0, JournalWord.REFUSING] = 0
        assert client.put_limit(**PUT).left == LOTS


def test_a_gateway_that_stops_answers_what_is_on_its_way_and_hangs_up(tmp_path):
    with exchange_at(tmp_path) as stopping:
        client = stopping.client()
        stopping.pipeline.is_frozen = True
        client.send(record(RequestKind.QUERY_BALANCE, 9))
        wait_for(lambda: stopping.run(lambda: int(stopping.front.sockets.in_flight.sum())) == 1, "it is on its way")
        stopping.run(lambda: stopping._loop.call_later(0.2, stopping.pipeline.answer))
    assert client.receive(1)["request_id"] == 9
    with pytest.raises(HungUp):
        client.receive(1)
    client.close()


# Beside HTTP.

def test_the_same_requests_over_http_give_the_same_results(tmp_path):
    """A second core is asked by the plain way of HTTP what the first is asked by records."""
    with exchange_at(tmp_path) as exchange, exchange.client() as client:
        plain = CoreBridge(exchange.settings)
        fund(plain.replica, exchange.settings)
        catalog = Catalog(exchange.settings.limits)
        answers = Answers(plain, catalog, REPORTS.append)
        asyncio.run(answers.refresh_catalog())
        rng = random.Random(5)
        made = [wild(rng) for _ in range(2000)]
        codes = set()
        for fields, (method, params) in made:
            expected = json.loads(asyncio.run(answers.answer(json.dumps(
                {"id": 1, "method": method, "params": params}).encode())).body)
            client.send(fields)
            reply = client.receive(1)
            codes.add(int(reply["code"][0]))
            if expected["error"] is not None:
                assert reply["code"] == expected["error"]["code"], (method, params, expected)
            else:
                assert reply["code"] == OK, (method, params)
                assert shown(reply, catalog) == without_times(expected["result"]), (method, params)
        assert codes == {0, 1, 10, 11, 12}


def wild(rng):
    """(a record, (method, params) that say the same over HTTP), now and then out of bounds."""
    kind = rng.choice([kind for kind in RequestKind if kind != RequestKind.PING])
    user, market, side = rng.choice([USER, OTHER, OTHER, 99, 0]), MARKET, rng.choice([Side.ASK, Side.BID])
    amount = rng.choice([rng.randrange(1, 10 * LOTS), rng.randrange(1, 10 * LOTS), 1, 0, -1, INT64_MAX])
    price = rng.choice([rng.randrange(790_000, 810_000), rng.randrange(799_000, 801_000), 0, INT64_MAX])
    taker, maker = rng.choice([0, 20, 9999, 10_000]), rng.choice([0, 10, 10, 10_000])
    order_id, asset = rng.randrange(600), rng.randrange(len(CONFIG["assets"]))
    label = rng.choice(["", "me", "ä€"])
    texts = fmt(amount, STOCK_PREC), fmt(price, MONEY_PREC), fmt(taker, FEE_PREC), fmt(maker, FEE_PREC)
    encoded = label.encode()
    source = {"label_bytes": len(encoded), "label": np.frombuffer(encoded.ljust(LABEL_BYTES_MAX, b"\0"), np.uint8)}
    if kind == RequestKind.PUT_LIMIT:
        return record(kind, user_id=user, side=side, amount=amount, price=price, taker_fee=taker, maker_fee=maker,
                       **source), ("order.put_limit", [user, MARKETS[market], side, *texts, label])
    if kind == RequestKind.PUT_MARKET:
        return record(kind, user_id=user, side=side, amount=amount, taker_fee=taker, **source), (
            "order.put_market", [user, MARKETS[market], side, texts[0], texts[2], label])
    if kind == RequestKind.CANCEL:
        return record(kind, user_id=user, order_id=order_id), ("order.cancel", [user, MARKETS[market], order_id])
    return record(kind, user_id=user, asset_id=asset), ("balance.query", [user, CONFIG["assets"][asset]["name"]])


def without_times(result):
    """What a record tells of a result: numbers by name."""
    if "id" not in result:
        (name, balance), = result.items()
        return {name: balance}
    return {name: result[name] for name in (
        "id", "market", "type", "side", "price", "amount", "left", "deal_stock", "deal_money", "deal_fee")}


def whole(record, name):
    return int(record[f"{name}_high"]) << 64 | int(record[f"{name}_low"])


def shown(reply, catalog):
    """The same, from a record, as the API writes it."""
    record = reply[0]
    if record["kind"] == RequestKind.QUERY_BALANCE:
        record = reply.view(BALANCE_REPLY)[0]
        asset = catalog.assets[record["asset_id"]]

        def balance(name):
            money = whole(record, name)
            return fmt(money // asset.shown_unit, asset.prec_show) if money else "0"
        return {asset.name: {"available": balance("available"), "freeze": balance("frozen")}}
    market = catalog.markets[record["market_id"]]
    is_limit, is_dealt = record["order_type"] == OrderType.LIMIT, record["deal_stock"] != 0
    fee_decimals = market.ask_fee_decimals if record["side"] == Side.ASK else market.bid_fee_decimals

    def money(value, decimals):
        return fmt(value // 10**(20 - decimals), decimals)
    left = fmt(whole(record, "left"), market.stock_prec)
    if record["side"] == Side.BID and not is_limit:
        left = money(whole(record, "left"), market.deal_decimals if is_dealt else market.stock_prec)
    return {
        "id": int(record["order_id"]), "market": market.name, "type": int(record["order_type"]),
        "side": int(record["side"]), "price": fmt(int(record["price"]), market.money_prec) if is_limit else "0",
        "amount": fmt(int(record["amount"]), market.stock_prec), "left": left,
        "deal_stock": fmt(int(record["deal_stock"]), market.stock_prec) if is_dealt else "0",
        "deal_money": money(whole(record, "deal_money"), market.deal_decimals) if is_dealt else "0",
        "deal_fee": money(whole(record, "deal_fee"), fee_decimals) if is_dealt else "0",
    }
