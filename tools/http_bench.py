"""Benchmarks through the socket and all processes, in turn with a stock Tornado hello-world POST.

One round: hello-world while the exchange idles, then the exchange, each loaded by wrk on the same cores. Rates and
percentiles are medians over all rounds, the ratio is that of the medians.
"""
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

from shm.process import die_with_parent
from tools import bench_exchange, disk, local_exchange, wrk
from tools.report import Failed

PEER = "a stock Tornado hello-world POST"
MEDIANS = ("rate", "p50_ms", "p99_ms", "p999_ms")
HELLO_SECONDS = 10.0           # for it to listen
READS = ("balance", "depth_20", "depth_100_merged_0.1", "book_20", "pending_20")
EMPTY, RANDOM, COINBASE = "empty", "random", "coinbase"


@dataclass(frozen=True)
class Benchmark:
    name: str
    load: str                  # of http_bench.lua
    sync: str = "always"
    book: str = EMPTY          # before each round
    pipelined: int = 1         # requests a write

    @property
    def percentiles_of(self):
        return "a request" if self.pipelined == 1 else f"a write of {self.pipelined} requests"


BENCHMARKS = (
    *(Benchmark(f"http.put_limit.{load}.{sync}", load, sync)
      for load in ("cross", "random", "rest") for sync in ("always", "interval")),
    *(Benchmark(f"http.pipelined_16.{sync}", "cross", sync, pipelined=16) for sync in ("always", "interval")),
    *(Benchmark(f"http.{load}", load, book=RANDOM) for load in READS),
    *(Benchmark(f"http.coinbase.{load}", load, book=COINBASE) for load in READS),
)
NAMES = tuple(benchmark.name for benchmark in BENCHMARKS)
COINBASE_NAMES = {benchmark.name for benchmark in BENCHMARKS if benchmark.book == COINBASE}


def run(names, rounds, seconds, folder, fill_from_coinbase):
    """Yield the results of the named benchmarks, with data directories in `folder`.

    Reads change nothing, so those of one book share an exchange in each round.
    """
    asked = [benchmark for benchmark in BENCHMARKS if benchmark.name in names]
    fills = {EMPTY: bench_exchange.leave_empty, RANDOM: bench_exchange.fill_at_random, COINBASE: fill_from_coinbase}
    groups = [[benchmark] for benchmark in asked if benchmark.book == EMPTY]
    groups += [[benchmark for benchmark in asked if benchmark.book == book] for book in (RANDOM, COINBASE)]
    for group in filter(None, groups):
        found = {benchmark: [] for benchmark in group}
        for number in range(1, rounds + 1):
            with bench_exchange.running(folder, group[0].sync, fills[group[0].book]) as exchange:
                for benchmark in group:
                    hello = measure_hello(seconds)
                    found[benchmark].append({"hello": hello, "exchange": measure(
                        exchange, benchmark, seconds, number, folder)})
        for benchmark, measured in found.items():
            yield result_of(benchmark, measured)


def measure(exchange, benchmark, seconds, seed, folder):
    """The figures of one round of the exchange."""
    sync_ms = disk.fdatasync_p50_ms(folder)
    return {**wrk.run(exchange.url, benchmark.load, seconds, bench_exchange.USERS, benchmark.pipelined, seed),
            "resting_orders": bench_exchange.resting_orders(exchange), "fdatasync_p50_ms": sync_ms}


def measure_hello(seconds):
    """The figures of one round of hello-world, in a process of its own."""
    port = local_exchange.free_port()
    server = subprocess.Popen([sys.executable, "-m", "tools.hello_server", str(port)],
                              cwd=local_exchange.PROJECT, preexec_fn=die_with_parent)
    try:
        deadline = time.monotonic() + HELLO_SECONDS
        while not _listens(port):
            if time.monotonic() > deadline or server.poll() is not None:
                raise Failed(f"the hello-world server does not listen on port {port}")
            time.sleep(local_exchange.LOOK_SECONDS)
        return wrk.run(f"http://127.0.0.1:{port}/", "hello", seconds)
    finally:
        server.terminate()
        server.wait()


def _listens(port):
    try:
        socket.create_connection(("127.0.0.1", port)).close()
        return True
    except OSError:
        return False


def result_of(benchmark, rounds):
    """A benchmark's result: the medians of its rounds, and the rounds."""
    ours, hello = ({name: statistics.median(measured[side][name] for measured in rounds) for name in MEDIANS}
                   for side in ("exchange", "hello"))
    last = rounds[-1]["exchange"]
    return {
        "name": benchmark.name, "sync": benchmark.sync, "book": benchmark.book, "unit": "accepted requests/s", **ours,
        "percentiles_of": benchmark.percentiles_of,
        "refused": sum(measured["exchange"]["refused"] for measured in rounds),
        "resting_orders": last["resting_orders"],  # after the last round
        "fdatasync_p50_ms": statistics.median(measured["exchange"]["fdatasync_p50_ms"] for measured in rounds),
        "ratio": round(ours["rate"] / hello["rate"], 2), "peer": PEER, "peer_figures": hello, "rounds": rounds}
