"""What every process of the exchange does alike: die with its parent (first of all), stop on a signal, hold its role's
lock, attach the shared memory (or make it anew where nobody uses it), and keep its page of counters.
"""
import ctypes
import fcntl
import gc
import os
import select
import signal
import sys
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

from shm import role_lock, segments
from shm.fatal_log import fatal
from shm.log import say
from shm.segments import CounterWord, SegmentError

PR_SET_PDEATHSIG = 1
HEARTBEAT_SECONDS = 1.0
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


class Process:
    """This process as a member of the exchange: `memory`, `counters` (its page), `stopping`."""

    def __init__(self, name, role, data, sizes):
        """Raises SystemExit with one sentence where the role is taken or the shared memory cannot be had."""
        self.name, self.role, self.data = name, int(role), Path(data)
        self.stopping = False
        for number in _STOP_SIGNALS:
            signal.signal(number, self._stop)
        (self.data / "run").mkdir(parents=True, exist_ok=True)
        try:
            with _segments_lock(self.data):
                self.memory = _attach_or_create(self.data, sizes, self.name)
                self._memory_id, self._sizes = memory_id(self.data), sizes
                self._lock = role_lock.take(self.data, name)
        except (SegmentError, role_lock.RoleTaken) as problem:
            fatal(self.data, name, str(problem))
            sys.exit(1)
        self.counters = self.memory.counters.words[self.role]
        self.counters[:] = 0
        self.counters[CounterWord.PID] = os.getpid()
        self.counters[CounterWord.STARTED_NS] = time.time_ns()
        self.beat()

    def _stop(self, _number, _frame):
        self.stopping = True

    def beat(self):
        """Show the watcher that this process is alive: at least once a second."""
        self.counters[CounterWord.HEARTBEAT_NS] = time.monotonic_ns()

    def memory_lost(self):
        """Why the segments of this name are no longer those that this process uses; None while they are."""
        try:
            generation = segments.attach(self._memory_id, self._sizes, write=False).generation
        except SegmentError as problem:
            return str(problem)
        if generation != self.memory.generation:
            return f"the segments are of generation {generation}, the processes use {self.memory.generation}"
        return None

    def ready(self):
        """Show that this process serves; its start is over."""
        self.counters[CounterWord.READY] = 1
        if not gc.isenabled():
            gc.freeze()        # what is there now stays
            gc.enable()

    def defect(self, text):
        """A broken invariant: say it on the fatal path and end at once, so that restart and replay repair it."""
        fatal(self.data, self.name, text)
        os._exit(70)


def hurry():
    """Collect no garbage until this process is ready: a start makes little, and the collector walks it all."""
    gc.disable()


def show_progress(process):
    """One more part of a long start is done: the launcher waits for a process whose counters move."""
    process.beat()
    process.counters[CounterWord.RECORDS] += 1


def die_with_parent(number=signal.SIGKILL):
    """Get the signal `number` when the parent ends: no orphan keeps a role or a share of the port.

    A parent that has ended before this call has closed its end of the pipe that is this process's output.
    """
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    poll = select.poll()
    poll.register(1, 0)
    if os.getppid() != parent or any(event & select.POLLERR for _descriptor, event in poll.poll(0)):
        sys.exit("the parent ended while this process started")


def instance_of(data):
    """The data directory's instance id; a new directory gets one, on disk before it is used.

    Raises SegmentError where the file is damaged.
    """
    path = Path(data) / "instance"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_durably(path, f"{uuid.uuid4()}\n")
    text = path.read_text(encoding="utf-8", errors="replace").strip()
    try:
        return uuid.UUID(text)
    except ValueError:
        raise SegmentError(f"{path} holds {text[:40]!r}, which is no instance id: restore it from a copy, or write into"
                           " it the id that the headers of the journal's segments have") from None


def _write_durably(path, text):
    """Replace the file at once and whole: its content and its name are on disk when this returns."""
    temporary = path.with_suffix(".new")
    with open(temporary, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def memory_id(data):
    """The id of the data directory's shared memory: of its instance and its place, so that a copy that runs beside the
    original has segments of its own."""
    instance, place = instance_of(data), os.stat(data)
    return uuid.uuid5(instance, f"{place.st_dev}:{place.st_ino}")


@contextmanager
def _segments_lock(data):
    with open(data / "run" / "segments", "w", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _attach_or_create(data, sizes, name):
    """All segments as they are, or all anew in one generation where one is missing or of another kind.

    Anew only when no process holds a role: those alive still use the old ones.
    """
    instance = memory_id(data)
    try:
        return segments.attach(instance, sizes)
    except SegmentError as problem:
        others = role_lock.holders(data)
        others.pop("exchange", None)  # the launcher uses no segment
        if others:
            raise SegmentError(
                f"{problem}, and {', '.join(f'{role} (process {pid})' for role, pid in others.items())} still"
                " run on the old ones: stop the exchange and start it again") from None
        generation = _next_generation(data)
        memory = segments.create(instance, sizes, generation)
        say(name, f"{problem}; all segments made anew, generation {generation}")
        return memory


def _next_generation(data):
    """A generation above every earlier one of this instance, on disk before it is used; the clock keeps it above even
    where the file is lost or damaged."""
    path = data / "generation"
    text = path.read_text(encoding="utf-8", errors="replace").strip() if path.exists() else ""
    last = int(text) if text.isdecimal() else 0
    generation = max(last + 1, int(time.time()))
    _write_durably(path, f"{generation}\n")
    return generation
