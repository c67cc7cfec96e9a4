"""wrk, which makes the load of the HTTP benchmarks: its command line, and what it says."""
import json
import shutil
import subprocess
from pathlib import Path

from tools.load import PERCENTILES, percentile
from tools.report import Failed

THREADS, CONNECTIONS = 2, 32
SCRIPT = Path(__file__).with_name("http_bench.lua")
RESULT = "RESULT "             # before the script's line, behind what wrk says itself


def require():
    """Raises Failed where wrk is missing."""
    if shutil.which("wrk") is None:
        raise Failed("the http benchmarks need wrk, which is not on the PATH: install the package of that name"
                     " (sudo apt-get install wrk)")


def run(url, load, seconds, users=1, pipelined=1, seed=1):
    """The figures of one run of a load of http_bench.lua; raises Failed where requests had no answer."""
    command = ["wrk", f"-t{THREADS}", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency", "-s", str(SCRIPT), url, "--",
               load, str(users), str(pipelined), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise Failed(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
    return figures_of(done.stdout, url)


def figures_of(said, url):
    """{rate, requests, refused, seconds, percentiles} of what wrk said. `rate`: accepted requests a second."""
    if RESULT not in said:
        raise Failed(f"wrk gave no result of {url}: {said.strip()}")
    figures = json.loads(said.rpartition(RESULT)[2])
    if lost := figures.pop("errors"):
        raise Failed(f"{lost} requests to {url} had no answer: the figures of such a run mean nothing; see the logs of"
                     " the server, or try again on a machine that is less busy")
    duration_us, latencies = figures.pop("duration_us"), figures.pop("latencies_us")
    if latencies:
        figures.update(_percentiles(as_measured(latencies, figures["requests"], duration_us)))
    accepted = figures["requests"] - figures["refused"]
    return {"rate": round(accepted * 1e6 / duration_us), **figures, "seconds": round(duration_us / 1e6, 3)}


def as_measured(latencies, requests, duration_us):
    """{latency: count} without what wrk adds before it shows them.

    For each latency L above twice the mean M of a request it adds one of L - M, L - 2 M and so on, for the requests
    that a pause kept from being sent. With several requests a write it takes M for that of one, and adds many.
    """
    rounds = requests // CONNECTIONS
    mean = duration_us // rounds if rounds else duration_us
    shown = dict(latencies)
    return {latency: left for latency, count in latencies
            if (left := count - (shown.get(latency + mean, 0) if latency > mean else 0))}


def _percentiles(counts):
    """Of a dictionary {latency in us: count}."""
    ordered = [latency for latency, count in sorted(counts.items()) for _ in range(count)]
    return {name: percentile(ordered, share) / 1000 for name, share in PERCENTILES.items()}
