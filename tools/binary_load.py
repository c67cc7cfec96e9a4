"""The load of the binary benchmarks, a process of its own: `python -m tools.binary_load HOST PORT SECONDS USERS SEED`.

Limit orders of which nearly all trade, as the load `cross` of http_bench.lua draws them, over CONNECTIONS connections
with IN_FLIGHT requests on their way each: as many new ones are sent as replies have come. It prints one JSON object.
"""
import json
import select
import sys
import time
from collections import deque

import numpy as np

from gateways.binary_protocol import ORDER_REPLY, REPLY_BYTES, REQUEST, REQUEST_BYTES, RequestKind
from shm.records import Side
from tools.binary_client import BinaryClient, HungUp
from tools.load import PERCENTILES

CONNECTIONS, IN_FLIGHT = 4, 500
DRAWN = 2**16                  # requests of a connection, which are sent again and again
MARKET_ID = 0
PRICES = {Side.ASK: (799_500, 800_000), Side.BID: (800_000, 800_500)}  # ticks of 0.01
AMOUNTS = (10, 10_000)         # in LOTS
LOTS = 10**4                   # of 10^-8, make 0.0001
TAKER_FEE, MAKER_FEE = 20, 10  # of 10^-4
LABEL = b"load"
SILENCE_MS = 10_000            # of the exchange
CODE_AT = ORDER_REPLY.fields["code"][1]


def draw(rng, users):
    made = np.zeros(DRAWN, REQUEST)
    made["kind"], made["market_id"] = RequestKind.PUT_LIMIT, MARKET_ID
    made["request_id"] = np.arange(DRAWN)
    made["user_id"] = rng.integers(1, users, DRAWN, endpoint=True)
    made["side"] = rng.integers(Side.ASK, Side.BID, DRAWN, endpoint=True)
    made["amount"] = rng.integers(*AMOUNTS, DRAWN, endpoint=True) * LOTS
    for side, (low, high) in PRICES.items():
        made["price"][made["side"] == side] = rng.integers(low, high, DRAWN, endpoint=True)[made["side"] == side]
    made["taker_fee"], made["maker_fee"] = TAKER_FEE, MAKER_FEE
    made["label_bytes"], made["label"][:, :len(LABEL)] = len(LABEL), np.frombuffer(LABEL, np.uint8)
    return made


class Flow:
    """One connection: what is on its way, and since when."""

    def __init__(self, client, requests):
        self.file, self._client = client.file, client
        self._out = memoryview(requests.view(np.uint8))
        self._next = 0         # request
        self._sent = deque()   # [when, how many of them have no reply]
        self._in = bytearray(IN_FLIGHT * REPLY_BYTES)
        self._room = memoryview(self._in)
        self._codes = np.frombuffer(self._in, np.uint8)[CODE_AT::REPLY_BYTES]
        self._used = 0         # bytes of replies that are not looked at
        self.answered = self.refused = 0
        self.latencies = []    # (seconds, of how many replies)

    def send(self, count):
        """The next `count` requests."""
        self._sent.append([time.monotonic(), count])
        while count:
            part = min(count, DRAWN - self._next)
            self._client.send(self._out[self._next * REQUEST_BYTES:(self._next + part) * REQUEST_BYTES])
            self._next = (self._next + part) % DRAWN
            count -= part

    def receive(self):
        """How many replies have come."""
        self._used += self._client.receive_some(self._room[self._used:])
        count, rest = divmod(self._used, REPLY_BYTES)
        self.refused += int(np.count_nonzero(self._codes[:count]))
        self.answered += count
        self._room[:rest] = bytes(self._room[self._used - rest:self._used])
        self._used = rest
        now, left = time.monotonic(), count
        while left:
            sent = self._sent[0]
            part = min(left, sent[1])
            self.latencies.append((now - sent[0], part))
            left -= part
            sent[1] -= part
            if not sent[1]:
                self._sent.popleft()
        return count


def percentiles(latencies):
    seconds, counts = map(np.array, zip(*sorted(latencies)))
    upto = np.cumsum(counts)
    return {name: round(float(seconds[np.searchsorted(upto, share * upto[-1])]) * 1000, 3)
            for name, share in PERCENTILES.items()}


def run(host, port, seconds, users, seed):
    """The figures of one run."""
    rng = np.random.default_rng(seed)
    flows = [Flow(BinaryClient(host, port), draw(rng, users)) for _ in range(CONNECTIONS)]
    by_file = {flow.file: flow for flow in flows}
    poll = select.epoll()
    for flow in flows:
        poll.register(flow.file, select.EPOLLIN)
    began = time.monotonic()
    for flow in flows:
        flow.send(IN_FLIGHT)
    while time.monotonic() - began < seconds:
        ready = poll.poll(SILENCE_MS / 1000)
        if not ready:
            raise HungUp("the exchange says nothing")
        for file, _events in ready:
            flow = by_file[file]
            flow.send(flow.receive())
    duration = time.monotonic() - began
    answered, refused = sum(flow.answered for flow in flows), sum(flow.refused for flow in flows)
    return {
        "rate": round((answered - refused) / duration), "requests": answered, "refused": refused,
        "seconds": round(duration, 3), **percentiles([part for flow in flows for part in flow.latencies])}


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], *map(int, sys.argv[2:]))))
