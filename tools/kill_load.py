"""The load of the kill test: clients that write and read, and remember what they asked and what was answered.

All speak HTTP; where there is a binary port, every second one puts its orders there.
Each client has a connection and users of its own and waits for each answer, like a careful trader: a balance update
whose answer never came is sent again with the same business id, and open orders are learnt from order.pending.
"""
import asyncio
import json
import random
import threading
import time

import numpy as np

from gateways.binary_protocol import HELLO, MAGIC, OK, ORDER_REPLY, REQUEST, VERSION, WELCOME, RequestKind
from shm.decimals import fmt, parse
from shm.records import MONEY_DECIMALS
from tools.api import OUTCOME_UNKNOWN, Code

RECONNECT_SECONDS = 0.02
NO_ROOM_SECONDS = 0.1          # before the next try
USERS_OF_A_CLIENT = 3
OPEN_ORDERS_KEPT = 8           # of a client; beyond, it cancels more
PACE_SECONDS = 0.05            # operations come in bursts so long: a kill falls into one
STOP_SECONDS = 30.0            # for the last answers
UNANSWERED_STATUSES = (0, 500, 504)
SEEDS = 1 << 15                # whose business ids differ
SUCCESS = b'{"error": null'
UNKNOWN = (None, 0)
WRITES = ("balance.update", "order.put_limit", "order.put_market", "order.cancel")


class Operation:
    """One request. `sent_at` and `answered_at` count sends and answers of all clients, in their order."""
    __slots__ = ("answered_at", "body", "method", "params", "sent_at", "status")

    def __init__(self, method, params):
        self.method, self.params = method, params
        self.sent_at = self.answered_at = 0
        self.status = None     # of HTTP; 0: the connection ended without an answer; None: none yet
        self.body = b""

    @property
    def is_write(self):
        return self.method in WRITES

    def reading(self):
        """(result, error code): one of them is None; UNKNOWN where nobody said what became of it."""
        if self.status is None or self.status in UNANSWERED_STATUSES:
            return UNKNOWN
        answer = json.loads(self.body)
        if answer["error"] is None:
            return answer["result"], None
        code = answer["error"]["code"]
        return UNKNOWN if code in OUTCOME_UNKNOWN else (None, code)


class Load:
    """Clients in a thread of their own, at most `rate` operations a second in all.

    A second load on the same data takes another seed, so that its business ids and sources are its own, and the `clock`
    of the first.
    """

    def __init__(self, settings, seed, clients, rate, clock=0):
        self.settings, self.rate = settings, rate
        self.operations = []
        self.in_flight = set()
        self.clock = clock     # of sends and answers
        self.served = 0        # the latest `sent_at` of a write that was executed
        self.trading = 0       # clients whose users have their first deposits
        self.stopping = False
        self.failure = None    # what ended it before its time
        self.seed, self.clients = seed, clients
        self._thread = threading.Thread(target=self._main, name="load", daemon=True)
        self._pace_ends = self._left = 0

    def start(self):
        self._thread.start()

    def stop(self):
        """Let every client ask what its users have in the end. Returns the operations that are never answered."""
        self.stopping = True
        self._thread.join(STOP_SECONDS)
        self.check()
        return list(self.in_flight)

    def check(self):
        """Raises the error that ended the load before its time."""
        if self.failure is not None:
            raise self.failure

    def _main(self):
        try:
            asyncio.run(self._run())
        except Exception as problem:  # raised in the main thread
            self.failure = problem

    async def _run(self):
        await asyncio.gather(*(
            Client(self, number, random.Random(f"{self.seed} {number}")).run() for number in range(self.clients)))

    async def turn(self):
        """Wait while this moment's share of operations is used up."""
        while self._left <= 0 and not self.stopping:
            now = time.monotonic()
            if now >= self._pace_ends:
                self._pace_ends, self._left = now + PACE_SECONDS, self.rate * PACE_SECONDS
            else:
                await asyncio.sleep(self._pace_ends - now)
        self._left -= 1

    def begin(self, operation):
        self.clock += 1
        operation.sent_at = self.clock
        self.operations.append(operation)
        self.in_flight.add(operation)

    def end(self, operation, status, body):
        self.clock += 1
        operation.answered_at = self.clock
        operation.status, operation.body = status, body
        self.in_flight.discard(operation)
        if operation.is_write and body.startswith(SUCCESS):
            self.served = max(self.served, operation.sent_at)


class Client:
    def __init__(self, load, number, rng):
        self._load, self._rng = load, rng
        self._name = f"{load.seed}-{number}"
        self._first_business_id = load.seed % SEEDS << 48 | number << 32  # below 2^63, whatever the seed
        self._users = [1 + number * USERS_OF_A_CLIENT + index for index in range(USERS_OF_A_CLIENT)]
        self._assets = [asset.name for asset in load.settings.assets]
        self._markets = [market.name for market in load.settings.markets]
        self._count = 0
        self._orders = {}      # order id: (user, market), as far as known
        self._http = HttpConnection(load.settings.http)
        self._binary = BinaryConnection(load.settings) if load.settings.binary.gateways and number % 2 else None

    async def run(self):
        for user in self._users:
            for asset in self._assets:
                await self._deposit(user, asset, "1000000")
        self._load.trading += 1
        while not self._load.stopping:
            await self._load.turn()
            await self._act()
        for user in self._users:
            await self._call("balance.query", user)
            for market in self._markets:
                await self._call("order.pending", user, market, 0, 101)
        self._http.hang_up()
        if self._binary is not None:
            self._binary.hang_up()

    async def _act(self):
        rng, user = self._rng, self._rng.choice(self._users)
        chance = rng.random()
        if chance < 0.10:
            await self._deposit(user, rng.choice(self._assets), f"{rng.randrange(1, 10**9)}.{rng.randrange(10**8):08}")
        elif chance < 0.15:
            await self._deposit(user, rng.choice(self._assets), f"-{rng.randrange(100)}.{rng.randrange(1, 10**8)}")
        elif chance < 0.55:
            await self._put_limit(user)
        elif chance < 0.65:
            await self._put_market(user)
        elif chance < 0.75 or len(self._orders) > OPEN_ORDERS_KEPT:
            await self._cancel()
        elif chance < 0.88:
            await self._call("balance.query", user, *rng.sample(self._assets, rng.randrange(3)))
        elif chance < 0.95:
            await self._learn_orders(user)
        else:
            await self._call("order.depth", rng.choice(self._markets), rng.choice((1, 20, 101)),
                             rng.choice(("0", "1")))

    async def _deposit(self, user, asset, change):
        """One balance update, again and again until somebody says what became of it."""
        self._count += 1
        business_id = self._first_business_id | self._count
        detail = {"note": "x" * self._rng.choice((0, 0, 0, 0, 0, 200, 1000, 8000))}
        while not self._load.stopping:
            operation = await self._call("balance.update", user, asset, "kill-test", business_id, change, detail)
            if operation.reading() != UNKNOWN:
                return

    async def _put_limit(self, user):
        rng, market, side = self._rng, self._rng.choice(self._markets), self._rng.choice((1, 2))
        price = f"{100 + rng.randrange(-8, 9) + (1 if side == 1 else -1) * rng.choice((0, 0, 4))}"
        operation = await self._call(
            "order.put_limit", user, market, side, self._amount(), price, rng.choice(("0", "0.002")),
            rng.choice(("0", "0.001")), self._source())
        result, _code = operation.reading()
        if result is not None and float(result["left"]) > 0:
            self._orders[result["id"]] = (user, market)

    async def _put_market(self, user):
        side = self._rng.choice((1, 2))
        amount = self._amount() if side == 1 else f"{self._rng.randrange(200, 3000)}"
        await self._call("order.put_market", user, self._rng.choice(self._markets), side, amount, "0.002",
                         self._source())

    async def _cancel(self):
        if self._orders:
            order_id = self._rng.choice(list(self._orders))
            user, market = self._orders[order_id]
            operation = await self._call("order.cancel", user, market, order_id)
            if operation.reading() != UNKNOWN:
                self._orders.pop(order_id, None)

    async def _learn_orders(self, user):
        market = self._rng.choice(self._markets)
        operation = await self._call("order.pending", user, market, 0, self._rng.choice((5, 20, 101)))
        result, _code = operation.reading()
        if result is not None:
            self._orders.update({record["id"]: (user, market) for record in result["records"]})

    def _amount(self):
        return f"{self._rng.randrange(1, 30)}.{self._rng.randrange(1000):03}"

    def _source(self):
        self._count += 1
        return f"{self._name}-{self._count}"

    async def _call(self, method, *params):
        """The Operation, with its answer; not sent (`status` None) while nobody listens."""
        operation = Operation(method, params)
        connection = self._binary if self._binary is not None and method in BinaryConnection.METHODS else self._http
        try:
            await connection.open()
        except (OSError, EOFError):
            await asyncio.sleep(RECONNECT_SECONDS)
            return operation
        self._load.begin(operation)
        status, answer = 0, b""
        try:
            status, answer = await connection.ask(method, params)
        except (OSError, EOFError):
            connection.hang_up()
        self._load.end(operation, status, answer)
        if operation.reading()[1] == Code.SERVICE_UNAVAILABLE:
            await asyncio.sleep(NO_ROOM_SECONDS)
        return operation


class Connection:
    """A kept connection, made again where it has ended. Raises OSError or EOFError where it ends."""

    def __init__(self, address):
        self._address = address
        self._reader = self._writer = None

    async def open(self):
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._address.host, self._address.port)

    def hang_up(self):
        if self._writer is not None:
            self._writer.close()
            self._reader = self._writer = None


class HttpConnection(Connection):
    async def ask(self, method, params):
        """(HTTP status, body) of the answer."""
        body = json.dumps({"id": 1, "method": method, "params": params}).encode()
        self._writer.write(b"POST / HTTP/1.1\r\nHost: exchange\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
        answer = await self._reader.readexactly(length)
        if b"Connection: close" in head:
            self.hang_up()
        return int(head[9:12]), answer


class BinaryConnection(Connection):
    """Orders as records, their replies as HTTP would tell them."""
    METHODS = ("order.put_limit", "order.put_market")

    def __init__(self, settings):
        super().__init__(settings.binary)
        self._markets = settings.markets
        self._ids = {market.name: index for index, market in enumerate(settings.markets)}

    async def open(self):
        if self._writer is None:
            await super().open()
            self._writer.write(np.array([(MAGIC, VERSION, 0)], HELLO).tobytes())
            if np.frombuffer(await self._reader.readexactly(WELCOME.itemsize), WELCOME)["code"][0] != OK:
                self.hang_up()
                raise ConnectionRefusedError

    async def ask(self, method, params):
        """(HTTP status, body) of the same answer over HTTP, as far as the record tells it."""
        user, name, side, amount, *rest, label = params
        market_id = self._ids[name]
        market = self._markets[market_id]
        request = np.zeros(1, REQUEST)
        is_limit = method == "order.put_limit"
        request["kind"] = RequestKind.PUT_LIMIT if is_limit else RequestKind.PUT_MARKET
        if is_limit:
            request["price"], request["maker_fee"] = parse(rest[0], market.money_prec), parse(rest[2], market.fee_prec)
        request["user_id"], request["market_id"], request["side"] = user, market_id, side
        request["amount"] = parse(amount, market.stock_prec)
        request["taker_fee"] = parse(rest[1] if is_limit else rest[0], market.fee_prec)
        request["label_bytes"], request["label"][0, :len(label)] = len(label), np.frombuffer(label.encode(), np.uint8)
        self._writer.write(request.tobytes())
        reply = np.frombuffer(await self._reader.readexactly(ORDER_REPLY.itemsize), ORDER_REPLY)[0]
        code = int(reply["code"])
        if code != OK:
            body = {"error": {"code": code, "message": "", "data": None}, "result": None, "id": 1}
            return (504 if code == Code.SERVICE_TIMEOUT else 200), json.dumps(body).encode()

        def money(name):
            return fmt(int(reply[f"{name}_high"]) << 64 | int(reply[f"{name}_low"]), MONEY_DECIMALS)
        return 200, json.dumps({"error": None, "result": {
            "id": int(reply["order_id"]), "user": user, "source": label,
            "left": fmt(int(reply["left_low"]), market.stock_prec),
            "deal_stock": fmt(int(reply["deal_stock"]), market.stock_prec), "deal_money": money("deal_money"),
            "deal_fee": money("deal_fee")}, "id": 1}).encode()
