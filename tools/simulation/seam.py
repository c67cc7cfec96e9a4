"""The one place where the simulation stands between the pipeline's modules and the system: while it is open, their
files, clocks, threads, bells and log lines are the simulated ones.

Reading goes past it: what a process reads is the page cache, which is a real directory.
"""
import os
import pathlib
import select
import signal
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np

from pipeline import journaling, matcher_agent, release, retention, segment_file, snapshot, snapshotting
from pipeline.release import MOVED, RELEASED_POSITIONS, REPLY_TAILS
from pipeline.sequencer import LOOK_NS, STAMPED_NS
from shm import doorbell, role_lock
from shm.segments import CommandWord, CounterWord, JournalWord, Role

STEP_NAMES = ("synced word", "followable word", "reply tails", "released positions", "ring head")
_DIGEST_WORDS = [int(CounterWord.SEQUENCE), int(CounterWord.OUTPUT_DIGEST), int(CounterWord.DIGEST_SEQUENCE)]
_PATH_CALLS = {"unlink": "name", "mkdir": "name", "touch": "name", "write_text": "write"}  # to the kind of operation


@contextmanager
def opened(world):
    """`world` gives `step(what)`, `idle()`, `disk`, `due_error(kind)`, `chance`, `clock`, `spawn(name, work)`,
    `say(text)`, `serves(state)` and `bell`."""
    system, clock = System(world), Clock(world)
    waiting = _standing_in(select, poll=lambda: Poll(world))
    signals = _standing_in(signal, set_wakeup_fd=lambda *_arguments, **_options: None)
    threads = _standing_in(threading, Thread=lambda target, args, **_options: Thread(world, target, args))

    def say(_process, text):
        world.say(text)

    def fatal(_data, _process, text):
        world.say(text)

    def open_bell(_directory, _name):
        return world.bell
    replaced = [
        (segment_file, "os", system), (segment_file, "threading", threads), (segment_file, "time", clock),
        (snapshot, "os", system), (snapshot, "open", system.open_file), (retention, "os", system),
        (retention, "open", system.open_file),
        (doorbell, "open_bell", open_bell), (doorbell, "open_gateway_bell", open_bell),
        (release, "publish", _in_steps(world, release.publish)), (role_lock, "time", clock),
        (matcher_agent, "serve", _withheld(world, matcher_agent.serve)),
        (matcher_agent, "stamp_time", _stamped(world, matcher_agent.stamp_time)),
        *[(module, name, value) for module in (journaling, matcher_agent, snapshotting)
          for name, value in (("time", clock), ("select", waiting), ("signal", signals), ("say", say),
                              ("fatal", fatal))],
        *[(pathlib.Path, name, _watched(world, getattr(pathlib.Path, name), name, kind))
          for name, kind in _PATH_CALLS.items()]]
    kept = [(owner, name, owner.__dict__.get(name)) for owner, name, _value in replaced]
    for owner, name, value in replaced:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in kept:
            if value is None:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


def _standing_in(module, **replaced):
    return SimpleNamespace(**{**vars(module), **replaced})


# --- files

class System:
    """The module `os` as the pipeline sees it: each call that changes something is a step, and may fail."""

    def __init__(self, world):
        self._world = world

    def __getattr__(self, name):
        return getattr(os, name)

    def _before(self, kind, what):
        _step(self._world, kind, what)

    def open(self, path, flags, *mode):
        if flags & os.O_CREAT:
            self._before("name", f"making {_name(path)}")
        return self._world.opened(os.open(path, flags, *mode))

    def close(self, descriptor):
        self._world.closed(descriptor)

    def open_file(self, file, mode="r", **options):
        """The builtin `open`."""
        if isinstance(file, int) and "w" in mode:
            return Writer(self, file)
        opened = open(file, mode, **options)  # noqa: SIM115 (the caller closes it)
        if "w" in mode:
            self._world.disk.forget_failure(opened.fileno())
        return opened

    def pwrite(self, descriptor, content, offset):
        self._world.step(f"writing {len(content)} bytes at {offset} of {_name_of(descriptor)}")
        number = self._world.due_error("write")
        if number:
            os.pwrite(descriptor, content[:self._world.chance.randrange(len(content))], offset)
            raise OSError(number, os.strerror(number))
        return os.pwrite(descriptor, content, offset)

    def posix_fallocate(self, descriptor, offset, size):
        self._before("room", f"reserving room for {_name_of(descriptor)}")
        os.posix_fallocate(descriptor, offset, size)

    def _sync(self, descriptor):
        self._world.step(f"the sync of {_name_of(descriptor)}")
        number = self._world.due_error("sync")
        if number:
            self._world.disk.fail_sync(descriptor)
            raise OSError(number, os.strerror(number))
        self._world.disk.sync(descriptor)

    fsync = fdatasync = _sync

    def rename(self, source, target):
        self._before("name", f"renaming {_name(source)} to {_name(target)}")
        os.rename(source, target)

    def replace(self, source, target):
        self._before("name", f"replacing {_name(target)} by {_name(source)}")
        os.replace(source, target)


class Writer:
    """A file that is written from its beginning, without a buffer."""

    def __init__(self, system, descriptor):
        self._system, self._descriptor, self._end = system, descriptor, 0

    def __enter__(self):
        return self

    def __exit__(self, *_problem):
        self._system.close(self._descriptor)

    def fileno(self):
        return self._descriptor

    def flush(self):
        """Nothing is held back."""

    def write(self, content):
        if len(content):
            self._system.pwrite(self._descriptor, content, self._end)
            self._end += len(content)


def _step(world, kind, what):
    """Raises OSError where the operation is to fail."""
    world.step(what)
    number = world.due_error(kind)
    if number:
        raise OSError(number, os.strerror(number))


def _name(path):
    return os.path.basename(path)


def _name_of(descriptor):
    return _name(os.readlink(f"/proc/self/fd/{descriptor}"))


def _watched(world, real, name, kind):
    """A method of Path that changes something."""
    def call(path, *arguments, **options):
        if world.is_watched(path):
            _step(world, kind, f"{name} of {path.name}")
        return real(path, *arguments, **options)
    return call


# --- clocks, waiting, threads

class Clock:
    """The module `time`: `sleep` takes no time, but others may do something meanwhile."""

    def __init__(self, world):
        self._world = world

    def __getattr__(self, name):
        return getattr(time, name)

    def monotonic_ns(self):
        return self._world.clock.monotonic_ns

    def monotonic(self):
        return self._world.clock.monotonic_ns / 1e9

    def time_ns(self):
        return self._world.clock.time_ns

    def time(self):
        return self._world.clock.time_ns / 1e9

    def sleep(self, seconds):
        self._world.clock.advance(int(seconds * 1e9))


class Poll:
    """Who waits for something gives way to the others; all look again when they are run again."""

    def __init__(self, world):
        self._world = world

    def register(self, *_arguments):
        """Every bell counts as rung."""

    def poll(self, *_timeout):
        self._world.idle()
        return []


class Thread:
    """A thread of a simulated process."""

    def __init__(self, world, target, arguments):
        self._world, self._task = world, None
        self._work = lambda: target(*arguments)

    def start(self):
        self._task = self._world.spawn("maker", self._work)

    def join(self):
        while self._task.is_alive:
            self._world.idle()


# --- publication, one word at a time

def _in_steps(world, publish):
    """The journaler's: each step by itself, and gateway by gateway."""
    def publish_in_steps(steps, journal_words, reply_words, event_words, command_words, span, moved):
        for step in steps.tolist():
            for part in _parts(moved) if step in (REPLY_TAILS, RELEASED_POSITIONS) else [moved]:
                world.step(STEP_NAMES[step])
                publish(np.array([step]), journal_words, reply_words, event_words, command_words, span, part)
    return publish_in_steps


def _parts(moved):
    for gateway in np.flatnonzero(moved["here"]).tolist():
        part = np.zeros(len(moved), MOVED)
        part[gateway] = moved[gateway]
        yield part


def _stamped(world, stamp_time):
    """The matcher's clock, which lies in the host's future: so the stamp is always the simulated one."""
    def stamp(rings):
        rings.own[STAMPED_NS] = max(rings.own[STAMPED_NS], world.clock.time_ns)
        return stamp_time(rings)
    return stamp


def in_order_of_publication(shown):
    """The words of a batch as the matcher shows them: the journal's cursor, then the command heads."""
    return shown


def _withheld(world, serve):
    """The matcher's: one batch at a time, whose words are taken back and shown one by one."""
    def serve_in_steps(state, inbox, out, rings):
        rings.own[LOOK_NS] = 0
        rings.own[STAMPED_NS] = max(rings.own[STAMPED_NS], world.clock.time_ns)
        world.serves(state)
        world.step("a batch")
        page, cursor = rings.counters[Role.MATCHER], int(JournalWord.CURSOR)
        heads = rings.command_words[:, CommandWord.HEAD]
        before = int(rings.journal_words[0, cursor]), heads.copy(), page[_DIGEST_WORDS]
        why = serve(state, inbox, out, rings)
        after = int(rings.journal_words[0, cursor]), heads.copy(), page[_DIGEST_WORDS]
        if before[0] == after[0]:
            if (before[1] == after[1]).all():
                world.idle()
            return why
        rings.journal_words[0, cursor], heads[:], page[_DIGEST_WORDS] = before
        shown = [("journal cursor", rings.journal_words[0], cursor, after[0])]
        shown += [("command head", heads, row, after[1][row]) for row in np.flatnonzero(before[1] != after[1]).tolist()]
        for name, words, place, value in in_order_of_publication(shown):
            world.step(name)
            words[place] = value
        page[_DIGEST_WORDS] = after[2]
        return why
    return serve_in_steps
