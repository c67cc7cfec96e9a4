"""The load of the kill test: clients that write and read over HTTP, and remember what they asked and what was answered.

Each client has a connection and users of its own and waits for each answer, like a careful trader: a balance update
whose answer never came is sent again with the same business id, and open orders are learnt from order.pending.
"""
import asyncio
import json
import random
import threading
import time

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
        self._reader = self._writer = None

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
        self._hang_up()

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
        try:
            if self._writer is None:
                self._reader, self._writer = await asyncio.open_connection(
                    self._load.settings.http.host, self._load.settings.http.port)
        except OSError:
            await asyncio.sleep(RECONNECT_SECONDS)
            return operation
        body = json.dumps({"id": 1, "method": method, "params": params}).encode()
        self._load.begin(operation)
        status, answer = 0, b""
        try:
            self._writer.write(b"POST / HTTP/1.1\r\nHost: exchange\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            head = await self._reader.readuntil(b"\r\n\r\n")
            length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
            answer = await self._reader.readexactly(length)
            status = int(head[9:12])
            if b"Connection: close" in head:
                self._hang_up()
        except (OSError, EOFError):
            self._hang_up()
        self._load.end(operation, status, answer)
        if operation.reading()[1] == Code.SERVICE_UNAVAILABLE:
            await asyncio.sleep(NO_ROOM_SECONDS)
        return operation

    def _hang_up(self):
        if self._writer is not None:
            self._writer.close()
            self._reader = self._writer = None
