"""Starts one exchange in the foreground: checks everything, compiles the kernels, runs supervisord, waits until all of
it serves, says what runs where, and stops it in order on Ctrl-C or SIGTERM.

`run_exchange.py` in the project's root prepares the environment and then runs this.
"""
import argparse
import errno
import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from supervisor.states import ProcessStates

from pipeline.watcher import Supervisor, SupervisorUnreachable
from shm import configuration, kernel_cache, role_lock, segments
from shm.configuration import ConfigurationError
from shm.process import die_with_parent, instance_of, memory_id
from shm.segments import CounterWord, SegmentError
from tools import supervisord_conf

PROJECT = Path(__file__).resolve().parents[1]
READY_SECONDS = 60.0           # without a change in any counter while a process is not ready
HTTP_SECONDS = 10.0            # for the first answer once all are ready
LOOK_SECONDS = 0.05
DEATHS_MAX = 3                 # of one process before it was ready
STOP_SECONDS = 100.0           # four groups after each other, each with supervisord's stopwaitsecs, and some more
OLD_PROCESSES_SECONDS = 10.0   # for processes of a launcher that was killed to end
LOG_TAIL_LINES = 20
FIRST_REQUEST = json.dumps({"id": 1, "method": "asset.list", "params": []})
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)


class LaunchFailed(Exception):
    """The exchange cannot be started or went down; the text says why and what to do."""


@dataclass(frozen=True)
class Place:
    """Where this exchange lives and what it runs."""
    settings: configuration.Configuration
    config: Path
    data: Path

    @property
    def url(self):
        return f"http://{address_of(self.settings.http)}/"

    @property
    def binary_address(self):
        return address_of(self.settings.binary)

    def log(self, name):
        return self.data / "log" / f"{name}.log"


def address_of(settings):
    """HOST:PORT, as `--http` takes it."""
    return f"{f'[{settings.host}]' if ':' in settings.host else settings.host}:{settings.port}"


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="run_exchange.py", description="Runs an exchange in the foreground until Ctrl-C.")
    parser.add_argument("--config", type=Path, default=PROJECT / "exchange.toml", metavar="FILE",
                        help="the configuration (default: exchange.toml beside run_exchange.py)")
    parser.add_argument("--data", type=Path, default=PROJECT / "data", metavar="DIR",
                        help="the data directory, one for each exchange (default: data beside run_exchange.py)")
    parser.add_argument("--http", default="", metavar="HOST:PORT",
                        help="where clients connect, instead of the configuration's [http] host and port")
    parser.add_argument("--check", action="store_true", help="check the configuration and exit")
    parser.add_argument("--setup", action="store_true", help="prepare everything, start nothing, exit")
    options = parser.parse_args(argv)
    try:
        place = place_of(options)
        if options.check:
            say(f"{place.config} is in order: {len(place.settings.assets)} assets,"
                f" {len(place.settings.markets)} markets, HTTP at {place.url}")
            return 0
        return set_up(place) if options.setup else run(place)
    except (LaunchFailed, ConfigurationError, SegmentError, supervisord_conf.Unrenderable, role_lock.RoleTaken,
            kernel_cache.CompilationFailed) as problem:
        print(f"run_exchange: {problem}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:  # before anything was started
        return 130


def say(text):
    print(text, flush=True)


def place_of(options):
    """The checked place that the command line names."""
    settings = configuration.load(options.config)
    if options.http:
        host, port = configuration.parse_address(options.http)
        settings = replace(settings, http=replace(settings.http, host=host, port=port))
    return Place(settings, options.config.absolute(), options.data.absolute())


def set_up(place):
    make_folders(place.data)
    compile_kernels(place)
    say(f"Ready to start on {place.data}.")
    return 0


def run(place):
    make_folders(place.data)
    held = role_lock.take(place.data, "exchange")
    try:
        instance_of(place.data)
        wait_for_old_processes(place.data)
        check_address("HTTP", place.settings.http, "with --http HOST:PORT or [http] in the configuration")
        if place.settings.binary.gateways:
            check_address("the binary port", place.settings.binary, "with [binary] in the configuration")
        compile_kernels(place)
        config = place.data / "run" / "exchange.toml"  # as it was checked, for processes that start later too
        configuration.write(place.settings, config)
        with supervisord_conf.control_socket(place.data) as control:
            supervisord_conf.write(
                place.data / "run" / "supervisord.conf", control, config=config, data=place.data,
                gateways=place.settings.http.gateways, binary_gateways=place.settings.binary.gateways)
            return Exchange(place, control).run()
    finally:
        os.close(held)


def make_folders(data):
    os.umask(0o077)
    try:
        for folder in (data, data / "run", data / "log"):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LaunchFailed(f"the data directory {data} cannot be made: {error.filename}: {error.strerror}") from None


def wait_for_old_processes(data):
    """Let the processes of a launcher that was killed end; raises LaunchFailed naming those that stay."""
    deadline = time.monotonic() + OLD_PROCESSES_SECONDS
    told = False
    while others := old_processes(data):
        names = ", ".join(f"{role} (process {pid})" for role, pid in others.items())
        if time.monotonic() > deadline:
            raise LaunchFailed(f"{data} is in use by {names}: stop them, or the supervisord that runs them, first")
        if not told:
            say(f"Waiting for processes of an earlier start to end: {names}")
            told = True
        time.sleep(LOOK_SECONDS)


def old_processes(data):
    """{name: process id} of what runs on this data directory, but for a launcher."""
    found = {role: pid for role, pid in role_lock.holders(data).items() if role != "exchange"}
    try:
        pid = int((data / "run" / "supervisord.pid").read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return found
    if os.fsencode(data / "run" / "supervisord.conf") in command:  # its last act is to remove its socket: a new one's
        found["supervisord"] = pid
    return found


def check_address(what, settings, remedy):
    """Raises LaunchFailed where nobody could listen at the settings' host and port now."""
    host, port = settings.host, settings.port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise LaunchFailed(
            f"{what}: the host {host} is not known: {error.strerror}. Choose another {remedy}") from None
    for family, kind, protocol, _name, address in found:
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(address)
            except OSError as error:
                reason = {
                    errno.EADDRINUSE: "another program listens there",
                    errno.EACCES: "ports below 1024 need more rights than this user has",
                    errno.EADDRNOTAVAIL: "this host has no such address",
                }.get(error.errno, error.strerror)
                raise LaunchFailed(
                    f"{what} cannot be served at {host}:{port}: {reason}. Choose another {remedy}") from None


def compile_kernels(place):
    """Every kernel compiled and in the cache, with a display of the progress where there is work to do."""
    root = place.settings.cache_root(place.data)
    if not sys.stdout.isatty():
        kernel_cache.ensure_compiled(
            root, lambda done, total, name: say(f"compiling kernel {done + 1} of {total}: {name}"))
        return
    with Progress(TextColumn("compiling kernels"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                  TextColumn("{task.description}"), transient=True) as progress:
        task = progress.add_task("", total=None, visible=False)
        kernel_cache.ensure_compiled(root, lambda done, total, name: progress.update(
            task, completed=done, total=total, description=name, visible=True))


class Exchange:
    """One exchange under a supervisord that is this process's child."""

    def __init__(self, place, socket_path):
        self.place = place
        self.supervisor = Supervisor(f"unix://{socket_path}")
        self.stopping = False
        self._woken, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        for number in _STOP_SIGNALS:
            signal.signal(number, self._stop)

    def _stop(self, _number, _frame):
        self.stopping = True

    def run(self):
        """Start, serve until a signal, stop in order; returns the exit code. Raises LaunchFailed."""
        conf = self.place.data / "run" / "supervisord.conf"
        self.supervisord = subprocess.Popen(  # in a session of its own: Ctrl-C reaches this process alone
            [sys.executable, "-m", "supervisor.supervisord", "-n", "-s", "-c", str(conf)], cwd=PROJECT,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True,
            preexec_fn=partial(die_with_parent, signal.SIGTERM))
        try:
            processes = self.wait_until_ready()
            if processes is not None:
                self.show(processes)
                self.wait_for_signal()
        except BaseException:
            self.stop()
            raise
        self.stop()
        segments.unlink(memory_id(self.place.data))  # all of it that was answered is in the journal by now
        say("Stopped. Everything that was answered is in the journal.")
        return 0

    def wait_until_ready(self):
        """{name: process id} once all serve, None where a signal came first. Raises LaunchFailed."""
        lives = {}             # name: process ids it has had before it was ready
        seen, changed_at = None, time.monotonic()
        while not self.stopping:
            self.check_supervisord()
            found = self.look()
            waiting = {name: seen_now for name, seen_now in found.items() if not seen_now[1].ready}
            if found and not waiting:
                self.wait_for_http()
                return {name: found[name][0] for name in sorted(found, key=self.place.settings.role_of)}
            for name, (pid, _page) in waiting.items():
                lives.setdefault(name, set()).add(pid)
                if len(lives[name] - {0}) > DEATHS_MAX:
                    raise LaunchFailed(f"{name} ends again and again before it serves. {self.tail(name)}")
            if waiting != seen:
                seen, changed_at = waiting, time.monotonic()
            if time.monotonic() - changed_at > READY_SECONDS:
                raise LaunchFailed("\n".join(
                    [f"not ready after {READY_SECONDS:g} s without a change: {', '.join(waiting) or 'supervisord'}",
                     *(self.tail(name) for name in waiting or ["supervisord"])]))
            self.sleep(LOOK_SECONDS)
        return None

    def look(self):
        """{name: (process id, Page)} of every process of supervisord; a page of an earlier life counts as none.

        Raises LaunchFailed where supervisord cannot run one.
        """
        try:
            processes = self.supervisor.processes()
        except SupervisorUnreachable:
            return {}
        try:
            words = segments.attach(
                memory_id(self.place.data), self.place.settings.rings, write=False).counters.words
        except SegmentError:
            words = None       # no process has made them yet
        found = {}
        for info in processes.values():
            name, pid = info["name"], info["pid"]
            if info["state"] in (ProcessStates.BACKOFF, ProcessStates.FATAL):
                raise LaunchFailed(f"supervisord cannot run {name}: {info['spawnerr']}")
            page = None if words is None else words[self.place.settings.role_of(name)].tolist()
            found[name] = (pid, Page.of(page) if pid and page and page[CounterWord.PID] == pid else Page())
        return found

    def tail(self, name):
        """The last lines of a process's log, in words."""
        path = self.place.log(name)
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            lines = []
        return "\n".join([f"The end of {path}:", *(f"    {line}" for line in lines[-LOG_TAIL_LINES:] or ["(empty)"])])

    def wait_for_http(self):
        host, port = self.place.settings.http.host, self.place.settings.http.port
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        deadline = time.monotonic() + HTTP_SECONDS
        while not self.stopping:
            try:
                connection = http.client.HTTPConnection(host, port, timeout=HTTP_SECONDS)
                connection.request("POST", "/", FIRST_REQUEST)
                status = connection.getresponse().status
                if status == 200:
                    return
                said = f"HTTP status {status}"
            except (OSError, http.client.HTTPException) as error:
                said = str(error) or type(error).__name__
            finally:
                connection.close()
            if time.monotonic() > deadline:
                raise LaunchFailed(f"all processes are ready, but {self.place.url} does not answer: {said}."
                                   f" {self.tail('gateway-0')}")
            self.check_supervisord()
            self.sleep(LOOK_SECONDS)

    def check_supervisord(self):
        if self.supervisord.poll() is not None:
            raise LaunchFailed(f"supervisord ended {ended(self.supervisord.returncode)}, and the exchange with it."
                               f" {self.tail('supervisord')}")

    def poke(self):
        """Wake supervisord, which looks for ended children once a second, or when it is asked something."""
        try:
            self.supervisor.process("watcher")
        except SupervisorUnreachable:
            pass

    def show(self, processes):
        rows = [("supervisord", self.supervisord.pid), *processes.items()]
        if sys.stdout.isatty():
            table = Table("process", "process id", "log", box=None, pad_edge=False)
            for name, pid in rows:
                table.add_row(name, str(pid), str(self.place.log(name)))
            Console().print(table)
        else:
            for name, pid in rows:
                say(f"{name}: process {pid}, log {self.place.log(name)}")
        if self.place.settings.binary.gateways:
            say(f"Binary orders at {self.place.binary_address}.")
        say(f"Serving at {self.place.url} on {self.place.data}. Ctrl-C stops it. Try:\n"
            f"  curl -s {self.place.url} -d '{FIRST_REQUEST}'")

    def sleep(self, seconds):
        """Sleep, but not through a signal or the end of supervisord."""
        poll = select.poll()
        poll.register(self._woken, select.POLLIN)
        pidfd = os.pidfd_open(self.supervisord.pid)  # not yet waited for, so the id is its own
        try:
            poll.register(pidfd, select.POLLIN)
            poll.poll(None if seconds is None else seconds * 1000)
        finally:
            os.close(pidfd)

    def wait_for_signal(self):
        while not self.stopping:
            self.sleep(None)
            self.check_supervisord()

    def stop(self):
        """Stop every process in supervisord's order, and supervisord; raises LaunchFailed where they do not stop."""
        if self.supervisord.poll() is None:
            say("Stopping: watcher, snapshotter, gateways, matcher, journaler ...")
            self.supervisord.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + STOP_SECONDS
            while self.supervisord.poll() is None:
                if time.monotonic() > deadline:
                    self.supervisord.kill()
                self.poke()
                time.sleep(LOOK_SECONDS)
        wait_for_old_processes(self.place.data)  # of a supervisord that was killed


@dataclass(frozen=True)
class Page:
    """A page of counters without what moves while a process only waits: unchanged in two looks, it stands still."""
    ready: bool = False
    words: tuple = ()

    @classmethod
    def of(cls, words):
        words = list(words)
        words[CounterWord.HEARTBEAT_NS] = words[CounterWord.WAKEUPS] = 0
        return cls(words[CounterWord.READY] == 1, tuple(words))


def ended(returncode):
    """How a process ended, in words."""
    if returncode < 0:
        return f"by {signal.Signals(-returncode).name}"
    return f"with exit code {returncode}"


if __name__ == "__main__":
    sys.exit(main())
