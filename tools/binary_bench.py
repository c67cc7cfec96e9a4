"""Benchmarks of the binary port, in turn with a stock Tornado hello-world POST: as http_bench.py, but for the load."""
import json
import subprocess
import sys
from dataclasses import dataclass

from shm.process import die_with_parent
from tools import bench_exchange, binary_load, disk, http_bench, local_exchange
from tools.report import Failed


@dataclass(frozen=True)
class Benchmark:
    name: str
    sync: str
    book = http_bench.EMPTY
    percentiles_of = f"a request, {binary_load.CONNECTIONS} connections with {binary_load.IN_FLIGHT} in flight each"


BENCHMARKS = tuple(Benchmark(f"binary.{sync}", sync) for sync in ("always", "interval"))
NAMES = tuple(benchmark.name for benchmark in BENCHMARKS)


def run(names, rounds, seconds, folder):
    """Yield the results of the named benchmarks, with data directories in `folder`."""
    for benchmark in BENCHMARKS:
        if benchmark.name in names:
            yield http_bench.result_of(
                benchmark, [_round(benchmark, seconds, number, folder) for number in range(1, rounds + 1)])


def _round(benchmark, seconds, seed, folder):
    with bench_exchange.running(folder, benchmark.sync, bench_exchange.leave_empty, binary_gateways=1) as exchange:
        hello = http_bench.measure_hello(seconds)
        sync_ms = disk.fdatasync_p50_ms(folder)
        return {"hello": hello, "exchange": {
            **load(exchange, seconds, seed), "resting_orders": bench_exchange.resting_orders(exchange),
            "fdatasync_p50_ms": sync_ms}}


def load(exchange, seconds, seed):
    """The figures of one run of the load; raises Failed where requests had no answer."""
    address = exchange.settings.binary.host, str(exchange.settings.binary.port)
    done = subprocess.run(
        [sys.executable, "-m", "tools.binary_load", *address, str(seconds), str(bench_exchange.USERS), str(seed)],
        cwd=local_exchange.PROJECT, capture_output=True, text=True, preexec_fn=die_with_parent)
    if done.returncode != 0:
        raise Failed(f"the load on {':'.join(address)} ended with {done.returncode}: {done.stderr.strip()}")
    return json.loads(done.stdout)
