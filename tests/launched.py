"""A launcher as a child of a test: started, asked, killed and stopped like a person would."""
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from pipeline.watcher import Supervisor, SupervisorUnreachable
from shm import configuration, role_lock, segments
from shm.process import memory_id
from shm.segments import CounterWord

ROOT = Path(__file__).resolve().parents[1]
STAND_INS = (sys.executable, str(ROOT / "tests" / "launch_stand_ins.py"))
REAL = (sys.executable, "-m", "tools.launcher")
KERNELS = ROOT / "build" / "kernels"  # compiled once for all tests
WAIT_SECONDS = 30.0            # for anything that takes far less; a loaded machine takes its time


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def settings_with(**sections):
    """The project's default configuration on free ports, with other values: settings_with(watcher={...})."""
    settings = configuration.load(ROOT / "exchange.toml")
    for section in ("http", "binary"):
        sections[section] = {"port": free_port(), **sections.get(section, {})}
    for name, values in sections.items():
        settings = replace(settings, **{name: replace(getattr(settings, name), **values)})
    return settings


def wait_for(holds, what, seconds=WAIT_SECONDS):
    """The first true value of `holds()`; fails saying `what` never came."""
    deadline = time.monotonic() + seconds
    while not (value := holds()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.01)
    return value


def is_running(pid):
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Launched:
    """An exchange started on `data`; use it with `with`, which stops whatever is left."""

    def __init__(self, data, settings=None, *arguments, program=STAND_INS):
        self.data = Path(data)
        self.settings = settings or settings_with()
        self.data.mkdir(parents=True, exist_ok=True)
        config = self.data / "exchange.toml"
        configuration.write(self.settings, config)
        self.output = self.data / "launcher.out"
        with open(self.output, "w", encoding="utf-8") as file:
            self.process = subprocess.Popen(
                [*program, "--config", str(config), "--data", str(self.data), *arguments], cwd=ROOT,
                stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)

    def __enter__(self):
        return self

    def __exit__(self, *_problem):
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(WAIT_SECONDS)
        wait_for(lambda: not role_lock.holders(self.data), "the end of every process")
        segments.unlink(memory_id(self.data))

    def said(self):
        return self.output.read_text(encoding="utf-8")

    def serving(self, seconds=WAIT_SECONDS):
        """This exchange, once its launcher says that it serves."""
        def says_so():
            assert self.process.poll() is None, self.said()
            return "Serving at" in self.said()
        wait_for(says_so, "the launcher's word", seconds)
        return self

    def ended(self):
        """The launcher's exit code."""
        return self.process.wait(WAIT_SECONDS)

    def post(self, body="{}"):
        """The HTTP status of a request."""
        connection = http.client.HTTPConnection(self.settings.http.host, self.settings.http.port, timeout=WAIT_SECONDS)
        try:
            connection.request("POST", "/", body)
            return connection.getresponse().status
        finally:
            connection.close()

    @property
    def supervisor(self):
        conf = (self.data / "run" / "supervisord.conf").read_text(encoding="utf-8")
        return Supervisor(next(line.partition(" = ")[2] for line in conf.splitlines() if line.startswith("serverurl")))

    def pid(self, name):
        """The process id of a process now, 0 while it does not run."""
        if name == "supervisord":
            return int((self.data / "run" / "supervisord.pid").read_text())
        try:
            return next(info["pid"] for info in self.supervisor.processes().values() if info["name"] == name)
        except SupervisorUnreachable:
            return 0

    def pids(self):
        return {info["name"]: info["pid"] for info in self.supervisor.processes().values()}

    def page(self, name):
        """A process's page of counters."""
        memory = segments.attach(memory_id(self.data), self.settings.rings, write=False)
        return memory.counters.words[self.settings.role_of(name)]

    def is_ready(self, name):
        page = self.page(name)
        return page[CounterWord.READY] == 1 and is_running(page[CounterWord.PID])

    def kill(self, name, number=signal.SIGKILL):
        """Send a signal to a process; returns its process id."""
        pid = int(self.page(name)[CounterWord.PID])
        os.kill(pid, number)
        return pid

    def back(self, name, old_pid, seconds=WAIT_SECONDS):
        """Wait until another life of the process is ready; its counters tell, so that supervisord is not woken."""
        wait_for(lambda: self.page(name)[CounterWord.PID] not in (0, old_pid) and self.is_ready(name),
                 f"{name} in another life", seconds)

    def log(self, name):
        return (self.data / "log" / f"{name}.log").read_text(encoding="utf-8")

    def fatal_lines(self):
        path = self.data / "log" / "fatal.log"
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
