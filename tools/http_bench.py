"""Benchmarks through the socket and all processes, beside a stock Tornado hello-world POST in the same run.

The load comes from wrk, 32 keep-alive connections; it shares the machine's cores with what it measures.
"""
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from shm import configuration
from shm.process import die_with_parent
from tools import local_exchange
from tools.http_client import Client
from tools.report import Failed

CONNECTIONS = 32
USERS = 100
LOAD = Path(__file__).with_name("http_bench.lua")
RUNS = {  # name: (sync mode, kind of load)
    "http.put_limit.always": ("always", "orders"),
    "http.put_limit.interval": ("interval", "orders"),
    "http.put_limit.none": ("none", "orders"),
    "http.depth_20": ("always", "reads"),
}
PEER = "a stock Tornado hello-world POST"
NAMES = tuple(RUNS)


def run(wanted, seconds):
    """Yield the results of the benchmarks that `wanted(name)` asks for. Raises Failed where wrk is missing."""
    names = [name for name in NAMES if wanted(name)]
    if not names:
        return
    if shutil.which("wrk") is None:
        raise Failed("the http benchmarks need wrk, which is not on the PATH: install the package of that name")
    hello = _hello(seconds)
    yield {"name": "http.hello_world", "rate": hello["rate"], "unit": "requests/s", "ratio": 1.0, "peer": PEER, **hello}
    for name in names:
        mode, kind = RUNS[name]
        with tempfile.TemporaryDirectory(prefix="exchange-bench-") as folder:
            result = _exchange(Path(folder), mode, kind, seconds)
        yield {"name": name, "sync": mode, "unit": "requests/s", "ratio": round(result["rate"] / hello["rate"], 2),
               "peer": PEER, **result}


def _hello(seconds):
    port = local_exchange.free_port()
    server = subprocess.Popen([sys.executable, "-m", "tools.hello_server", str(port)],
                              cwd=local_exchange.PROJECT, preexec_fn=die_with_parent)
    try:
        client = Client(f"http://127.0.0.1:{port}/")
        deadline = time.monotonic() + 10
        while client.send(b"{}")[0] != 200:
            if time.monotonic() > deadline:
                raise Failed("the hello-world server does not answer")
            time.sleep(0.05)
        return _wrk(f"http://127.0.0.1:{port}/", "reads", seconds)
    finally:
        server.terminate()
        server.wait()


def _exchange(data, mode, kind, seconds):
    settings = configuration.load(local_exchange.PROJECT / "exchange.toml")
    settings = local_exchange.private(replace(settings, journal=replace(settings.journal, sync=mode)))
    with local_exchange.running(data, settings) as exchange:
        client = Client(exchange.url)
        for number in range(2 * USERS):
            body = {"id": 1, "method": "balance.update",
                    "params": [number // 2 + 1, ("BTC", "USDT")[number % 2], "bench", number, "1000000000", {}]}
            client.send(json.dumps(body).encode())
        _wrk(exchange.url, "orders", 1)  # warm, and a book for the reads
        return _wrk(exchange.url, kind, seconds)


def _wrk(url, kind, seconds):
    """Accepted requests a second and percentiles. Raises Failed where an answer was no answer."""
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency", "-s", str(LOAD), url, "--", kind,
               str(USERS)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0 or "RESULT" not in done.stdout:
        raise Failed(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
    result = json.loads(done.stdout.rsplit("RESULT", 1)[1])
    if result["errors"]:
        raise Failed(f"{result['errors']} requests to {url} had no answer")
    result["rate"] = round((result["requests"] - result["refused"]) / result["seconds"])
    return result
