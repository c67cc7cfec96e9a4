"""The watcher: brings a dead process back at once, and ends a stuck one so that it comes back.

supervisord looks for dead children once a second. The watcher holds a pidfd for each child that has a page of counters,
so it wakes when one dies, and asks supervisord at once. It reads every heartbeat once a second, and looks whether the
shared memory is still there for a process that starts: if not, all start anew together. Without it the exchange runs
on, and processes come back in about two seconds.
"""
import argparse
import http.client
import os
import select
import signal
import socket
import sys
import time
import xmlrpc.client
from dataclasses import dataclass

from supervisor.states import ProcessStates
from supervisor.xmlrpc import Faults, SupervisorTransport

from shm import configuration
from shm.configuration import ConfigurationError
from shm.fatal_log import fatal
from shm.log import say
from shm.process import HEARTBEAT_SECONDS, Process, die_with_parent, hurry
from shm.segments import CounterWord, Role

FIRST_TRY_SECONDS = 0.005      # supervisord learns of a death a moment after the pidfd; tries double up to the longest
LONGEST_TRY_SECONDS = 1.0
MISSING_LOOK_SECONDS = 0.1     # between looks while an expected process is not watched, as at start
BAD_LIVES_MAX = 5              # in a row, each ended before it was ready; then it is left to supervisord's own pace
BAD_LIFE_PAUSE_SECONDS = 2.0
LATE_SECONDS = 3.0             # the watcher itself was held up (a frozen host): heartbeats are old for that reason
LATE_GRACE_SECONDS = 3 * HEARTBEAT_SECONDS
RPC_TIMEOUT_SECONDS = 5.0
END_SECONDS = 5.0              # a killed process may be busy in the kernel for a moment

_ENDED_ON_REQUEST = (ProcessStates.STOPPED, ProcessStates.STOPPING)


class SupervisorUnreachable(Exception):
    """supervisord does not answer now."""


class Supervisor:
    """What is asked of supervisord, at the URL it gives its children."""

    def __init__(self, url):
        self._transport = SupervisorTransport(None, None, url)
        self._calls = xmlrpc.client.ServerProxy("http://127.0.0.1", self._transport).supervisor  # the URL is unused

    def _call(self, name, *arguments):
        try:
            return getattr(self._calls, name)(*arguments)
        except (OSError, http.client.HTTPException, xmlrpc.client.ProtocolError) as problem:
            self._transport.close()
            raise SupervisorUnreachable(str(problem)) from problem

    def processes(self):
        """{full name: information} of every process of this supervisord, which may have others than the exchange's."""
        return {f"{info['group']}:{info['name']}": info for info in self._call("getAllProcessInfo")}

    def process(self, name):
        """A process's information, or None where there is none of this name any more."""
        try:
            return self._call("getProcessInfo", name)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode in (Faults.BAD_NAME, Faults.SHUTDOWN_STATE):
                return None
            raise

    def start(self, name):
        """Start a process; nothing where it runs already or supervisord shuts down. The next `process` tells."""
        try:
            self._call("startProcess", name, False)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode not in (Faults.ALREADY_STARTED, Faults.SHUTDOWN_STATE, Faults.BAD_NAME,
                                       Faults.SPAWN_ERROR, Faults.ABNORMAL_TERMINATION):
                raise


@dataclass
class Member:
    """A process of the exchange, as supervisord names it."""
    name: str
    pid: int
    pidfd: int                 # -1 once it is dead
    started: int               # seconds since the epoch, by supervisord: with the pid, which life this is
    killed: bool = False       # in this life, for being stuck
    bad_lives: int = 0
    died_at: float = 0.0
    next_try: float = 0.0
    pause: float = 0.0
    told: bool = False         # of this death, on the fatal path

    @property
    def alive(self):
        return self.pidfd >= 0

    @property
    def title(self):
        return self.name.rpartition(":")[2]


class Watcher:
    """Watches the processes whose counters pages are in `pages` (int64 words, a row a role) and that are children of
    `supervisor`. `step()` waits for the next thing to do and does it. `expected` are the rows that an exchange at work
    has a process in.
    """

    def __init__(self, pages, supervisor, data, stuck_after_ms, expected=()):
        self.pages, self.supervisor, self.data = pages, supervisor, data
        self.stuck_after_ms, self.expected = stuck_after_ms, set(expected)
        self.members = {}          # by supervisord's name
        self.restarts = 0
        self._strangers = set()    # pages of processes that are not supervisord's children: of an earlier run
        self._poll = select.poll()
        self._next_look = 0.0
        self._last_look = time.monotonic()
        self._judge_from = 0.0
        self._woken, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(waker)  # a signal ends the wait
        self._poll.register(self._woken, select.POLLIN)

    def step(self):
        """Wait for a death, a due try or the next look, at most one heartbeat long, and do what is due."""
        due = [self._next_look, *(member.next_try for member in self.members.values() if not member.alive)]
        wait_seconds = max(min(due) - time.monotonic(), 0.0)
        for descriptor, _events in self._poll.poll(wait_seconds * 1000 + 1):
            if descriptor == self._woken:
                os.read(self._woken, 4096)
            else:
                self._died(next(member for member in self.members.values() if member.pidfd == descriptor))
        now = time.monotonic()
        for member in [member for member in self.members.values() if not member.alive and member.next_try <= now]:
            self._bring_back(member)
        if now >= self._next_look:
            watched = self._look(now)
            self._next_look = now + (HEARTBEAT_SECONDS if self.expected <= watched else MISSING_LOOK_SECONDS)

    def end_all(self):
        """Kill every process that is watched, and wait until they have ended; supervisord starts them again."""
        alive = [member for member in self.members.values() if member.alive]
        for member in alive:
            signal.pidfd_send_signal(member.pidfd, signal.SIGKILL)
        for member in alive:
            select.select([member.pidfd], [], [], END_SECONDS)

    def _rows(self):
        """{process id: row} of the pages in use; where an earlier run left the same id in another, the newest."""
        rows = [row for row in range(len(self.pages)) if self.pages[row, CounterWord.PID]]
        rows.sort(key=lambda row: self.pages[row, CounterWord.STARTED_NS])
        return {int(self.pages[row, CounterWord.PID]): row for row in rows}

    def _look(self, now):
        """Watch what is new, judge the heartbeats; returns the rows of all that is watched and alive."""
        if now - self._last_look > LATE_SECONDS:
            self._judge_from = now + LATE_GRACE_SECONDS
        self._last_look = now
        rows = self._rows()
        known = {member.pid for member in self.members.values()}
        lives = {(pid, int(self.pages[row, CounterWord.STARTED_NS])) for pid, row in rows.items() if pid not in known}
        if lives - self._strangers:
            try:
                self._adopt({pid for pid, _started in lives})
                known = {member.pid for member in self.members.values()}
                self._strangers = {life for life in lives if life[0] not in known}
            except SupervisorUnreachable:
                pass           # asked again at the next look
        watched = [member for member in self.members.values() if member.alive and member.pid in rows]
        if now >= self._judge_from:
            for member in watched:
                if not member.killed:
                    self._judge(member, int(self.pages[rows[member.pid], CounterWord.HEARTBEAT_NS]))
        return {rows[member.pid] for member in watched}

    def _adopt(self, pids):
        """Watch those of `pids` that supervisord calls its children."""
        # Opened before supervisord is asked: a child that it still lists afterwards had this id all along.
        pidfds = {pid: pidfd for pid in pids - {os.getpid()} if (pidfd := _open_pidfd(pid)) is not None}
        try:
            for name, info in self.supervisor.processes().items():
                if info["pid"] in pidfds and name not in self.members:  # a member's death is dealt with first
                    pidfd = pidfds.pop(info["pid"])
                    self._watch(Member(name, info["pid"], pidfd, info["start"]))
        finally:
            for pidfd in pidfds.values():
                os.close(pidfd)

    def _watch(self, member):
        self.members[member.name] = member
        self._poll.register(member.pidfd, select.POLLIN)

    def _judge(self, member, heartbeat_ns):
        age_ms = (time.monotonic_ns() - heartbeat_ns) // 1_000_000
        if heartbeat_ns and age_ms > self.stuck_after_ms:
            fatal(self.data, "watcher", f"{member.title} (process {member.pid}) is stuck: no heartbeat for {age_ms} ms,"
                  f" stuck_after_ms={self.stuck_after_ms}; killed to be started again")
            member.killed = True
            signal.pidfd_send_signal(member.pidfd, signal.SIGKILL)

    def _died(self, member):
        now = time.monotonic()
        self._poll.unregister(member.pidfd)
        os.close(member.pidfd)
        member.pidfd, member.died_at = -1, now
        row = self._rows().get(member.pid)
        ready = row is not None and self.pages[row, CounterWord.READY] == 1
        member.bad_lives = 0 if ready else member.bad_lives + 1
        member.pause = FIRST_TRY_SECONDS
        member.next_try = now
        if member.bad_lives >= BAD_LIVES_MAX:
            member.next_try += BAD_LIFE_PAUSE_SECONDS
        if member.bad_lives == BAD_LIVES_MAX:
            fatal(self.data, "watcher", f"{member.title} died {BAD_LIVES_MAX} times in a row before it was ready: see"
                  " its log; from now on it is started at supervisord's pace")

    def _bring_back(self, member):
        """One try for a dead member: see that it runs, or ask for it, or let go of one that was stopped on request."""
        member.next_try = time.monotonic() + member.pause
        member.pause = min(member.pause * 2, LONGEST_TRY_SECONDS)
        try:
            info = self.supervisor.process(member.name)
            if info is None or info["state"] in _ENDED_ON_REQUEST:
                del self.members[member.name]
            elif info["pid"] and (info["pid"], info["start"]) != (member.pid, member.started):
                self._back(member, info["pid"])
            else:
                self._tell(member)
                if not info["pid"]:  # else supervisord has not noticed yet; the question has woken it
                    self.supervisor.start(member.name)
                    member.next_try = time.monotonic()
        except SupervisorUnreachable:
            pass  # tried again

    def _tell(self, member):
        if not member.told:
            member.told = True
            if member.bad_lives < BAD_LIVES_MAX:
                fatal(self.data, "watcher", f"{member.title} (process {member.pid}) died"
                      f" {time.time() - member.started:.0f} s after its start; starting it again")

    def _back(self, member, pid):
        """Watch the new life of a dead member, if it is still that when its pidfd is open."""
        pidfd = _open_pidfd(pid)
        if pidfd is None:
            return
        try:
            info = self.supervisor.process(member.name)
            if info is None or info["pid"] != pid:
                return
            self._watch(Member(member.name, pid, pidfd, info["start"], bad_lives=member.bad_lives))
            pidfd = None
        finally:
            if pidfd is not None:
                os.close(pidfd)
        self.restarts += 1
        away_ms = (time.monotonic() - member.died_at) * 1000
        say("watcher", f"{member.title} runs again as process {pid}, {away_ms:.0f} ms after its death was seen")


def _open_pidfd(pid):
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def main(argv=None):
    die_with_parent()
    hurry()
    parser = argparse.ArgumentParser(prog="pipeline.watcher", description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="the configuration, a TOML file")
    parser.add_argument("--data", required=True, help="the data directory")
    options = parser.parse_args(argv)
    try:
        settings = configuration.load(options.config)
    except ConfigurationError as problem:
        sys.exit(f"watcher: {problem}")
    url = os.environ.get("SUPERVISOR_SERVER_URL")
    if not url:
        sys.exit("watcher: SUPERVISOR_SERVER_URL is not set: run it under supervisord, as supervisord.conf does")
    socket.setdefaulttimeout(RPC_TIMEOUT_SECONDS)
    process = Process("watcher", Role.WATCHER, options.data, settings.rings)
    watcher = Watcher(process.memory.counters.words, Supervisor(url), options.data, settings.watcher.stuck_after_ms,
                      expected=[int(Role.MATCHER), int(Role.JOURNALER), *map(settings.role_of, settings.gateways)])
    while not process.stopping:
        watcher.step()
        process.beat()
        process.counters[CounterWord.WAKEUPS] += 1
        process.counters[CounterWord.RECORDS] = watcher.restarts
        process.ready()
        lost = process.memory_lost()
        if lost and not process.stopping:
            fatal(options.data, "watcher", f"{lost}: somebody removed the shared memory while it was used; all"
                  " processes are ended and start again on new segments; what was answered is in the journal")
            watcher.end_all()
            sys.exit(1)


if __name__ == "__main__":
    main()
