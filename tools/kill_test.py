"""`exchange kill-test`: kill processes of a private exchange under load, then audit that nothing was lost or doubled.

Every kill is a SIGKILL to one process or to several at once, with at least IN_FLIGHT_MIN requests in flight. A quarter
of them comes while the exchange is still recovering from the one before; at half of them another process is frozen
for a while (SIGSTOP), so that it is far behind or late when the killed ones come back.
"""
import argparse
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from shm import configuration, segments
from shm.process import memory_id
from shm.segments import CounterWord
from tools import local_exchange, report
from tools.kill_load import Load
from tools.report import Failed

SNAPSHOT_EVERY = 1000          # operations
KINDS = ("gateway", "matcher", "journaler", "snapshotter", "watcher")  # gateway: of either kind
SYNC_MODES = ("always", "interval", "none")
IN_FLIGHT_MIN = 8
CLIENTS = 96                   # more than the tiny command ring has slots
OPERATIONS_PER_SECOND = 1500   # so that the audit of many kills stays short
RECOVERING_SHARE = 0.25        # of the kills: these come before all that was killed is back
RECOVERING_SECONDS_MAX = 1.2
FROZEN_SHARE = 0.5             # of the kills: another process is stopped for a while
FROZEN_BEFORE_SECONDS_MAX = 0.05
FROZEN_AFTER_SECONDS_MAX = 1.5
LOAD_SECONDS_MAX = 0.3         # of undisturbed load before a kill, where no --seconds asks for more
BACK_SECONDS = 60.0            # for the exchange to serve again, on a loaded machine
LOOK_SECONDS = 0.005
SWITCH_SECONDS = 0.0002        # between this program's threads, so that kills do not wait for a pause of the load
SHAPES = {                     # reply rings are larger than command rings, so that credit hides no early refill
    False: {"command_slots": 256, "reply_slots": 1024, "journal_slots": 1024, "event_slots": 1024},
    True: {"command_slots": 64, "reply_slots": 128, "journal_slots": 128, "event_slots": 256},
}


def add_parser(subparsers):
    parser = subparsers.add_parser(
        "kill-test", help="kill processes under load and audit the journal",
        description="Starts a private exchange, kills its processes (SIGKILL) under a load of writes and reads, singly"
        " and together, and compares every answer with the journal. Exit code 0: nothing was lost or doubled, the"
        " matcher's state is the one that the journal leads to, and the money adds up to the last digit.")
    parser.add_argument("--kills", type=_at_least(0), default=100, metavar="N", help="how many (default: 100)")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="of the load and the kills (default: 1)")
    parser.add_argument("--seconds", type=_at_least(0), default=0, metavar="T",
                        help="spread the kills over this time (default: one after the other)")
    parser.add_argument("--sync", choices=SYNC_MODES, default="always", help="of the journal (default: always)")
    parser.add_argument("--only", type=_kinds, default=KINDS, metavar="PROCESS,...",
                        help=f"which to kill, of {', '.join(KINDS)} (default: all)")
    parser.add_argument("--tiny-rings", action="store_true",
                        help="rings so small that they are full again and again")
    parser.add_argument("--gateways", type=_at_least(1), default=1, metavar="N", help="HTTP gateways (default: 1)")
    parser.add_argument("--data", type=Path, metavar="DIR",
                        help="a new data directory, kept (default: a temporary one, kept where the audit fails)")
    parser.add_argument("--binary-gateways", type=_at_least(0), default=0, metavar="N",
                        help="binary gateways, to which half of the load sends its orders (default: 0)")
    report.add_json_option(parser)
    parser.set_defaults(run=run)


def _at_least(least):
    def number(text):
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} must be a whole number from {least} on")
        return int(text)
    return number


def _kinds(text):
    kinds = tuple(text.split(","))
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)} cannot be killed; known are {', '.join(KINDS)}")
    return kinds


def run(options):
    local_exchange.prepare_kernels()
    started = time.monotonic()
    with _data_directory(options.data) as data, report.progress("kills", options.kills) as advance:
        result = kill_test(data, kills=options.kills, seed=options.seed, seconds=options.seconds, sync=options.sync,
                           only=options.only, tiny_rings=options.tiny_rings, gateways=options.gateways,
                           binary_gateways=options.binary_gateways, advance=advance)
        result["seconds"] = round(time.monotonic() - started, 1)
        report.write_json(options.json, result)
        for line in lines_of(result):
            report.say(line)
        if not result["is_well"]:
            raise Failed(f"the audit failed; the journal and the logs are in {data}")
    return 0


@contextmanager
def _data_directory(path):
    """The directory that was asked for, or a temporary one, which stays where something goes wrong."""
    if path is not None:
        if path.exists() and any(path.iterdir()):
            raise Failed(f"{path} has files: --data must name a new directory")
        yield path
        return
    path = Path(tempfile.mkdtemp(prefix="kill-test-"))
    yield path
    shutil.rmtree(path)


def lines_of(result):
    """The result in words, and the story of what is not well."""
    killed = Counter(name for kill in result["per_kill"] for name in kill["processes"])
    back = sorted(kill["seconds"] for kill in result["per_kill"])
    yield (f"{result['kills']} kills ({', '.join(f'{name} {count}' for name, count in sorted(killed.items()))}),"
           f" sync {result['sync']}, seed {result['seed']}: {result['operations']} operations,"
           f" {result['answered']} answered, {result['unanswered']} not")
    if back:
        yield f"served again after {back[len(back) // 2]:.2f} s (median), {back[-1]:.2f} s at most"
    yield (f"lost {result['lost']}, doubled {result['doubled']}, digest"
           f" {'equal' if result['digest_equal'] else 'DIFFERENT'}, money"
           f" {'exact' if result['money_exact'] else 'NOT EXACT'}, {result['problems']} problems")
    for tale in result["story"]:
        yield "\n    ".join(f"{key}: {value}" for key, value in tale.items())


@dataclass
class Kill:
    number: int
    names: tuple
    recovering: bool           # whether what was killed before was not back
    frozen: str                # which other process was stopped, or None
    operations: tuple          # in flight
    clock: int                 # of the load
    at: float
    served_after: float = None


def settings_of(sync, tiny_rings, gateways, binary_gateways=0):
    """A configuration with small segments, so that many are begun, and room for the load alone."""
    settings = configuration.load(local_exchange.PROJECT / "exchange.toml")
    settings = replace(
        settings, http=replace(settings.http, gateways=gateways),
        binary=replace(settings.binary, gateways=binary_gateways))
    rings = replace(settings.rings, **SHAPES[tiny_rings])
    limits = replace(settings.limits, orders_max=20_000, levels_max=20_000, balances_max=10_000, assets_max=16,
                     markets_max=16)
    journal = replace(settings.journal, sync=sync, sync_interval_ms=20,
                      segment_bytes=configuration.segment_bytes_needed(rings))
    snapshots = replace(settings.snapshots, every_operations=2**40)  # the audit reads the journal from its beginning
    return local_exchange.private(replace(settings, rings=rings, limits=limits, journal=journal, snapshots=snapshots))


@dataclass
class Evidence:
    """What an audit looks at."""
    exchange: local_exchange.LocalExchange   # stopped; its data directory has the journal
    operations: list           # all that clients asked
    kills: list
    unfinished: list           # operations that nobody answered, though all processes ran
    live: tuple                # (sequence, output digest, state digest) of the matcher when it was stopped


def keep_the_whole_journal(data):
    """For the audit, whatever snapshots are made: as a follower does that has not begun."""
    local_exchange.prepare_kernels()
    from pipeline import journal, retention  # late: the cache of their kernels is chosen by now

    data.mkdir(parents=True, exist_ok=True)
    retention.note_place(data, "audit", journal.START)


def kill_test(data, *, kills, seed, seconds=0, sync="always", only=KINDS, tiny_rings=False, gateways=1,
              binary_gateways=0, advance=lambda: None):
    """Run the test on a new data directory; the result as `--json` writes it, with `is_well`. Raises Failed where the
    exchange does not serve again."""
    settings = settings_of(sync, tiny_rings, gateways, binary_gateways)
    settings = replace(settings, snapshots=replace(settings.snapshots, every_operations=SNAPSHOT_EVERY))
    keep_the_whole_journal(data)
    with local_exchange.running(data, settings) as exchange:
        evidence = kill_under_load(exchange, kills, seed, seconds, only, advance)
    from tools.kill_audit import Audit  # late: the cache of its kernels is chosen by now
    audit = Audit(evidence)
    return {"kills": len(evidence.kills), "sync": sync, "seed": seed, "tiny_rings": tiny_rings, "gateways": gateways,
            "binary_gateways": binary_gateways, **audit.summary(), "per_kill": [{
                "processes": kill.names, "recovering": kill.recovering, "frozen": kill.frozen,
                "in_flight": len(kill.operations),
                **audit.of_kill(kill), "seconds": round(kill.served_after, 3)} for kill in evidence.kills],
            "is_well": audit.is_well}


def kill_under_load(exchange, kills, seed, seconds=0, kinds=KINDS, advance=lambda: None):
    """Kill processes of a started exchange under load, stop it, and hand back the Evidence."""
    switch_seconds = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        load = Load(exchange.settings, seed, CLIENTS, OPERATIONS_PER_SECOND)
        load.start()
        killer = Killer(exchange, load, random.Random(seed), kinds)
        killer.kill_all(kills, seconds, advance)
        unfinished = load.stop()
    finally:
        sys.setswitchinterval(switch_seconds)
    return Evidence(exchange, load.operations, killer.kills, unfinished, stop(exchange))


def stop(exchange):
    """Stop the exchange in order; returns the matcher's (sequence, output digest, state digest)."""
    page = exchange.page("matcher")
    exchange.stop()
    return tuple(int(page[word]) for word in (
        CounterWord.SEQUENCE, CounterWord.OUTPUT_DIGEST, CounterWord.STATE_DIGEST))


class Killer:
    def __init__(self, exchange, load, rng, kinds):
        self.exchange, self.load, self.rng = exchange, load, rng
        self.kills = []
        gateways = exchange.settings.gateways
        self._names = [name for kind in kinds for name in (gateways if kind == "gateway" else [kind])]
        self._served = [*gateways, "matcher", "journaler"]
        self._supervisord = int((exchange.data / "run" / "supervisord.pid").read_text())
        self._pages = segments.attach(memory_id(exchange.data), exchange.settings.rings, write=False).counters.words
        self._deck = []

    def page(self, name):
        return self._pages[self.exchange.settings.role_of(name)]

    def kill_all(self, count, seconds, advance):
        """Kill `count` times within `seconds`, or as long as it takes, and wait until all is well in the end."""
        self._wait(lambda: self.load.trading == self.load.clients, "the first deposits")
        began = time.monotonic()
        for number in range(count):
            due = began + seconds * (number + self.rng.random()) / count
            recovering = bool(self.kills) and self.rng.random() < RECOVERING_SHARE
            if recovering:
                due = time.monotonic() + self.rng.random() * RECOVERING_SECONDS_MAX
            else:
                self._wait_until_served()
                due = max(due, time.monotonic() + self.rng.random() * LOAD_SECONDS_MAX)
            while time.monotonic() < due:
                time.sleep(min(LOOK_SECONDS, max(0.0, due - time.monotonic())))
                self._note_service()
            self._kill(number, self._draw(), recovering)
            advance()
        self._wait_until_served()
        while time.monotonic() < began + seconds:
            time.sleep(LOOK_SECONDS)

    def _draw(self):
        """The next process or processes: all singly twice, all pairs, threes and so on once, then again."""
        if not self._deck:
            self._deck = [(name,) for name in self._names]
            for size in range(1, len(self._names) + 1):
                self._deck += combinations(self._names, size)
            self.rng.shuffle(self._deck)
        return self._deck.pop()

    def _kill(self, number, names, recovering):
        frozen = self._freeze(names)
        pidfds, in_flight = {}, ()

        def are_killable():
            nonlocal in_flight
            for name in names:
                if not _is_alive(pidfds.get(name)):
                    _close(pidfds.get(name))
                    pidfds[name] = self._open(name)
            in_flight = tuple(self.load.in_flight)
            return None not in pidfds.values() and len(in_flight) >= IN_FLIGHT_MIN
        self._wait(are_killable, f"{', '.join(names)} with {IN_FLIGHT_MIN} requests in flight")
        for pidfd in pidfds.values():
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
        self.kills.append(Kill(number, names, recovering, frozen, in_flight, self.load.clock, time.monotonic()))

    def _freeze(self, killed):
        """Stop a process that will not be killed, or none, for a random while; returns its name."""
        others = [name for name in self._served if name not in killed]
        if not others or self.rng.random() > FROZEN_SHARE:
            return None
        name = self.rng.choice(others)
        before, after = self.rng.random() * FROZEN_BEFORE_SECONDS_MAX, self.rng.random() * FROZEN_AFTER_SECONDS_MAX
        pidfd = self._open(name)
        if pidfd is None:
            return None
        signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
        threading.Timer(before + after, _thaw, (pidfd,)).start()
        time.sleep(before)
        return name

    def _open(self, name):
        """A pidfd of the process, None while it has no life that its page of counters tells."""
        pid = int(self.page(name)[CounterWord.PID])
        try:
            pidfd = os.pidfd_open(pid) if pid else None
        except ProcessLookupError:
            return None
        if pidfd is not None and (_parent_of(pid) != self._supervisord or not _is_alive(pidfd)):
            os.close(pidfd)  # dead, and another may have its id
            return None
        return pidfd

    def _note_service(self):
        """Note for each kill when a write that was sent after it was answered, with all that was killed back."""
        open_kills = [kill for kill in self.kills if kill.served_after is None]
        if open_kills and all(self.page(name)[CounterWord.READY] == 1 and self._runs(name) for name in self._served):
            for kill in open_kills:
                if self.load.served > kill.clock:
                    kill.served_after = time.monotonic() - kill.at
        return all(kill.served_after is not None for kill in self.kills)

    def _runs(self, name):
        pidfd = self._open(name)
        _close(pidfd)
        return pidfd is not None

    def _wait_until_served(self):
        self._wait(self._note_service, "the exchange serves again")

    def _wait(self, holds, what):
        deadline = time.monotonic() + BACK_SECONDS
        while not holds():
            self.load.check()
            if time.monotonic() > deadline:
                last = f"after the kill of {', '.join(self.kills[-1].names)}" if self.kills else "before any kill"
                raise Failed(f"{what}: not within {BACK_SECONDS:g} s, {last}; the data are in {self.exchange.data}."
                             f" The last fatal line: {self._last_fatal_line()}")
            time.sleep(LOOK_SECONDS)


    def _last_fatal_line(self):
        path = self.exchange.data / "log" / "fatal.log"
        return path.read_text(encoding="utf-8").splitlines()[-1] if path.exists() else "none"


def _is_alive(pidfd):
    """Whether the process runs: its pidfd is readable once it has ended."""
    if pidfd is None:
        return False
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return not poll.poll(0)


def _close(pidfd):
    if pidfd is not None:
        os.close(pidfd)


def _thaw(pidfd):
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGCONT)
    os.close(pidfd)


def _parent_of(pid):
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None
