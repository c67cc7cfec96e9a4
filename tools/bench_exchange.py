"""The exchanges that benchmarks measure: each fresh, with one gateway for HTTP, users with money, and a book."""
import json
import socket
import tempfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from shm import configuration
from tools import local_exchange, order_flow, wrk
from tools.client import Client
from tools.report import Failed

MARKET, ASSETS = "BTCUSDT", ("BTC", "USDT")
USERS = 100
FUNDS = 10**9                  # of each asset, for each user
RANDOM_SECONDS = 10            # of the load `random`, for a book to read
FILL_CONNECTIONS, CALLS_A_WRITE = 16, 64
ANSWER_SECONDS = 10.0


@contextmanager
def running(folder, sync, fill, binary_gateways=0):
    """A LocalExchange on a data directory of its own in `folder`, which goes away in the end.

    `fill(exchange)` puts orders into its book.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix="bench-") as place, \
            local_exchange.running(Path(place) / "data", settings_with(sync, binary_gateways)) as exchange:
        fund(exchange, USERS)
        fill(exchange)
        yield exchange


def settings_with(sync, binary_gateways):
    """The project's own configuration; a Coinbase book has smaller orders than its market takes."""
    settings = configuration.load(local_exchange.PROJECT / "exchange.toml")
    return local_exchange.private(replace(
        settings, http=replace(settings.http, gateways=1),
        binary=replace(settings.binary, gateways=binary_gateways), journal=replace(settings.journal, sync=sync),
        markets=tuple(replace(market, min_amount="0.00000001") if market.name == MARKET else market
                      for market in settings.markets)))


def fund(exchange, users):
    client = Client(exchange.url)
    for user in range(1, users + 1):
        for asset in ASSETS:
            client.call("balance.update", user, asset, "bench", user, str(FUNDS), {})
    client.close()


def resting_orders(exchange):
    """How many orders the book holds."""
    client = Client(exchange.url)
    summary, = client.call("market.summary", MARKET)
    client.close()
    return summary["ask_count"] + summary["bid_count"]


def leave_empty(_exchange):
    """The book of an exchange that nobody has used."""


def fill_at_random(exchange):
    """The book that RANDOM_SECONDS of the load `random` leave."""
    wrk.run(exchange.url, "random", RANDOM_SECONDS, USERS)


class FillFrom:
    """The book of a Coinbase file, its orders dealt to users 1 to USERS in turn."""

    def __init__(self, path):
        flow = order_flow.read(path)
        if not isinstance(flow, order_flow.Book):
            raise Failed(f"{path} is no Coinbase book: name one with --book FILE")
        self._puts = flow.puts

    def __call__(self, exchange):
        parts = [[] for _ in range(FILL_CONNECTIONS)]  # a price's orders go over one connection, and keep their order
        for index, put in enumerate(self._puts):
            parts[zlib.crc32(str(put.price).encode()) % FILL_CONNECTIONS].append(
                ("order.put_limit",
                 [1 + index % USERS, MARKET, put.side, str(put.amount), str(put.price), "0.002", "0.001", "load"]))
        with ThreadPoolExecutor(FILL_CONNECTIONS) as pool:
            list(pool.map(lambda calls: call_all(exchange, calls), parts))  # list: raises what one of them raised
        if (count := resting_orders(exchange)) != len(self._puts):
            raise Failed(f"{count} of the {len(self._puts)} orders of the Coinbase book rest: some cross each other")


def call_all(exchange, calls):
    """Send (method, params) over one connection in their order, many a write; raises Failed where one is refused."""
    address = exchange.settings.http.host, exchange.settings.http.port
    try:
        with socket.create_connection(address, ANSWER_SECONDS) as connection, connection.makefile("rb") as answers:
            for start in range(0, len(calls), CALLS_A_WRITE):
                part = calls[start:start + CALLS_A_WRITE]
                connection.sendall(b"".join(map(_request, part)))
                for method, params in part:
                    answer = _answer(answers)
                    if answer["error"] is not None:
                        raise Failed(f"{exchange.url} refuses {method} {params}: {answer['error']}")
    except OSError as error:
        raise Failed(f"{exchange.url} gives no answer while its book is filled: {error}") from None


def _request(call):
    body = json.dumps({"id": 1, "method": call[0], "params": call[1]}).encode()
    return b"POST / HTTP/1.1\r\nHost: bench\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def _answer(answers):
    """The next JSON body of a connection."""
    length = 0
    while (line := answers.readline()) != b"\r\n":
        if not line:
            raise ConnectionError("it hung up")
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return json.loads(answers.read(length))
