"""Requests to an exchange over several kept connections at once, timed."""
import asyncio
import json
import math
import time
from collections import Counter
from dataclasses import dataclass, field

from tools.api import CallRefused, Code
from tools.client import parse_url, result_of
from tools.report import Failed

ANSWER_SECONDS = 10.0
SERVICE_CODES = (Code.INTERNAL_ERROR, Code.SERVICE_UNAVAILABLE, Code.SERVICE_TIMEOUT)  # not the order's fault
PERCENTILES = {"p50_ms": 0.5, "p99_ms": 0.99, "p999_ms": 0.999}


class Timings:
    """How long answers took, from now on."""

    def __init__(self):
        self.started = time.monotonic()
        self._seconds = []

    @property
    def count(self):
        return len(self._seconds)

    def add(self, seconds):
        self._seconds.append(seconds)

    def figures(self):
        elapsed = time.monotonic() - self.started
        ordered = sorted(self._seconds)
        return {
            "requests": len(ordered), "seconds": round(elapsed, 2), "rate": round(len(ordered) / elapsed, 1),
            **{name: round(percentile(ordered, share) * 1000, 3) for name, share in PERCENTILES.items()},
        }


def percentile(ordered, share):
    """The smallest of the ascending values that so large a share of them does not exceed; 0 of none."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


@dataclass
class Outcome:
    timings: Timings = field(default_factory=Timings)
    rejections: Counter = field(default_factory=Counter)  # "method: code message" of orders refused by the rules
    failures: Counter = field(default_factory=Counter)    # the same of answers that should not be


def run(url, flows, count, rate=None, advance=lambda: None):
    """Send `count` requests, each flow's over a connection of its own, one after another; the Outcome.

    `flows` have `next_call()` and `answered(method, result)`. With a `rate`, requests are due at that many a second
    over all, and the time that one waits for its connection counts as its own. Raises Failed where no connection can be
    had.
    """
    return asyncio.run(_run(url, flows, count, rate, advance))


async def _run(url, flows, count, rate, advance):
    outcome = Outcome()
    numbers = iter(range(count))
    tasks = [asyncio.ensure_future(_send_all(url, flow, numbers, rate, outcome, advance)) for flow in flows]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return outcome


async def _send_all(url, flow, numbers, rate, outcome, advance):
    """One connection's share: the next number that is free, again and again."""
    connection = Connection(url)
    try:
        await connection.open()
        for number in numbers:
            due = time.monotonic()
            if rate is not None:
                due = outcome.timings.started + number / rate
                await asyncio.sleep(due - time.monotonic())
            method, params = flow.next_call()
            try:
                answer = await connection.post(
                    json.dumps({"id": number, "method": method, "params": params}).encode())
                outcome.timings.add(time.monotonic() - due)
                flow.answered(method, result_of(url, method, *answer))
            except CallRefused as refusal:
                kind = outcome.failures if refusal.code in SERVICE_CODES else outcome.rejections
                kind[f"{method}: {refusal.code} {refusal.message}"] += 1
            except Failed as failure:
                outcome.failures[str(failure)] += 1
                connection.close()
                await connection.open()
            advance()
    finally:
        connection.close()


class Connection:
    """A kept HTTP connection, one request at a time."""

    def __init__(self, url):
        self._url = url
        self._host, self._port, self._path = parse_url(url)
        self._reader = self._writer = None

    async def open(self):
        try:
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        except OSError as error:
            raise Failed(f"{self._url} cannot be reached: {error.strerror}") from None

    async def post(self, body):
        """(status, body) of the answer; raises Failed where there is none, and the connection is of no use then."""
        self._writer.write(b"POST %s HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n%s" % (
            self._path.encode(), self._host.encode(), len(body), body))
        try:
            return await asyncio.wait_for(self._answer(), ANSWER_SECONDS)
        except (asyncio.TimeoutError, OSError, EOFError, LookupError, ValueError) as error:
            raise Failed(f"{self._url} gives no answer: {type(error).__name__}") from None

    async def _answer(self):
        head = await self._reader.readuntil(b"\r\n\r\n")
        line, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (text.partition(":") for text in lines)}
        return int(line.split()[1]), await self._reader.readexactly(int(headers["content-length"]))

    def close(self):
        if self._writer is not None:
            self._writer.close()
