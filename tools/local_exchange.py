"""A private exchange: its own data directory and port, started by the launcher like any other, killed in part, stopped.

For tools and tests that need one of their own. All of them share one cache of compiled kernels.
"""
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from shm import configuration, kernel_cache, segments
from shm.process import die_with_parent, memory_id
from shm.segments import CounterWord, SegmentError
from tools.client import Client
from tools.report import Failed

PROJECT = Path(__file__).resolve().parents[1]
KERNELS = PROJECT / "build" / "kernels"
LAUNCHER = (sys.executable, "-m", "tools.launcher")
PORTS = range(12_000, 32_000)  # below those that the system gives to outgoing connections
START_SECONDS = 180.0          # the launcher gives up earlier, with its reason
STOP_SECONDS = 120.0           # and so it does here
BACK_SECONDS = 30.0            # for a killed process to serve again
LOOK_SECONDS = 0.02
_QUESTION = json.dumps({"id": 1, "method": "asset.list", "params": []})


def free_port():
    """A port that nobody listens on now."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


def private(settings):
    """The configuration with free ports on this host, and the kernels that all private exchanges share."""
    return replace(settings, http=replace(settings.http, host="127.0.0.1", port=free_port()),
                   binary=replace(settings.binary, host="127.0.0.1", port=free_port()),
                   cache=replace(settings.cache, directory=str(KERNELS)))


def prepare_kernels():
    """Compile the kernels, or wait while another does: once, before exchanges start side by side.

    From now on this process compiles into the same cache. Call it before any kernel is imported.
    """
    KERNELS.mkdir(parents=True, exist_ok=True)
    kernel_cache.ensure_compiled(KERNELS, lambda done, total, name: print(
        f"compiling kernel {done + 1} of {total}: {name}", file=sys.stderr, flush=True))


class LocalExchange:
    """An exchange on `data`, not started yet. Its data stay when it stops; its shared memory does not."""

    def __init__(self, data, settings):
        self.data, self.settings = Path(data), settings
        self.url = f"http://{settings.http.host}:{settings.http.port}/"
        self._launcher = None

    @property
    def output(self):
        """The file that the launcher's words are in."""
        return self.data / "launcher.out"

    def start(self):
        """Start it and return it once it serves; raises Failed with the launcher's words where it does not."""
        self.data.mkdir(parents=True, exist_ok=True)
        config = self.data / "exchange.toml"
        configuration.write(self.settings, config)
        with open(self.output, "wb") as output:
            self._launcher = subprocess.Popen(
                [*LAUNCHER, "--config", str(config), "--data", str(self.data)], cwd=PROJECT,
                preexec_fn=partial(die_with_parent, signal.SIGTERM),
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        try:
            _wait(lambda: self._check_launcher() or "Serving at" in self.said(), START_SECONDS,
                  lambda: f"the exchange on {self.data} does not serve: {self.said()}")
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self):
        """Stop it in order; returns the launcher's exit code."""
        if self._launcher.poll() is None:
            self._launcher.terminate()
        try:
            return self._launcher.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._launcher.kill()  # and its children with it
            raise Failed(f"the exchange on {self.data} does not stop in {STOP_SECONDS:g} s: {self.said()}") from None
        finally:
            segments.unlink(memory_id(self.data))

    def said(self):
        return self.output.read_text(encoding="utf-8", errors="replace").strip()

    def _check_launcher(self):
        """Raises Failed where the exchange has gone down."""
        if self._launcher.poll() is not None:
            raise Failed(f"the exchange on {self.data} ended: {self.said()}")

    def page(self, name):
        """The counters (CounterWord) of a process, by its name under supervisord; None before there are any."""
        try:
            memory = segments.attach(memory_id(self.data), self.settings.rings, write=False)
        except SegmentError:
            return None
        return memory.counters.words[self.settings.role_of(name)]

    def pid(self, name):
        return int(self.page(name)[CounterWord.PID])

    def kill(self, name, number=signal.SIGKILL):
        """Send a process a signal; returns its process id."""
        pid = self.pid(name)
        os.kill(pid, number)
        return pid

    def wait_until_back(self, name, pid):
        """Wait until another life of the process than `pid` serves."""
        def is_back():
            self._check_launcher()
            page = self.page(name)
            return page is not None and page[CounterWord.PID] not in (0, pid) and page[CounterWord.READY] == 1
        _wait(is_back, BACK_SECONDS, lambda: f"{name} of {self.data} was killed and is not back")

    def wait_until_answering(self):
        """Wait until the HTTP interface answers with what the matcher says."""
        with Client(self.url) as client:
            def is_answering():
                self._check_launcher()
                return client.send(_QUESTION)[0] == 200
            _wait(is_answering, BACK_SECONDS, lambda: f"{self.url} does not answer")

    def take_snapshot(self):
        """Ask for a snapshot, and wait until it is there."""
        from tools import take_snapshot  # late: it imports this module

        take_snapshot.take(self.data)

    def restart(self, name):
        """Kill a process (SIGKILL) and wait until all is well again."""
        self.wait_until_back(name, self.kill(name))
        self.wait_until_answering()


@contextmanager
def running(data, settings):
    """A started LocalExchange, stopped in the end."""
    exchange = LocalExchange(data, settings).start()
    try:
        yield exchange
    finally:
        exchange.stop()


def _wait(holds, seconds, failure):
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise Failed(f"{failure()} (after {seconds:g} s)")
        time.sleep(LOOK_SECONDS)
