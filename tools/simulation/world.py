"""The simulated host: shared memory, a data directory on a simulated disk, a clock, the processes, and what was
promised to whom; with a look at every promise after every crash.
"""
import mmap
import os
import random
import shutil
import tempfile
import uuid
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from pipeline import recovery, retention, snapshot
from pipeline.chain import SLOT_BYTES
from pipeline.digest import state_digest
from pipeline.follower import OffTheJournal
from pipeline.journal import START, JournalDamaged, JournalRefused
from pipeline.replay import ReplayDiverged, replay
from pipeline.seeding import limits_of
from pipeline.segment_content import as_records
from pipeline.segment_file import HEADER_BYTES
from pipeline.state import SEQUENCE
from shm import configuration, role_lock
from shm.records import RecordKind
from shm.segments import CommandWord, EventWord, JournalWord, ReplyWord, RingSizes, Segment, SharedMemory, shapes
from tools.simulation import agents, seam
from tools.simulation.disk import Disk, Faults, flipped
from tools.simulation.history import History, Violation
from tools.simulation.tasks import Task

CONFIGURATION = {
    "limits": {"orders_max": 64, "levels_max": 64, "balances_max": 64, "assets_max": 2, "markets_max": 1},
    "assets": [{"name": "BTC", "prec_save": 16, "prec_show": 8}, {"name": "USD", "prec_save": 16, "prec_show": 2}],
    "markets": [{"name": "BTCUSD", "stock": "BTC", "money": "USD", "stock_prec": 2, "money_prec": 2}],
}
BEGAN_NS = 4 * 10**18          # in the host's future: see seam.py
MAKER = "maker"                # the journaler's thread that makes the next segment
ROUNDS_MAX = 400               # until all is answered, once nothing goes wrong any more
STEPS_OF_ROUND = 200
ROUND_NS = 30_000_000
MEMORY_DISK = Path("/dev/shm")
_JOURNAL_WORDS = [int(word) for word in (
    JournalWord.CURSOR, JournalWord.HEAD, JournalWord.OPENED, JournalWord.SYNCED, JournalWord.FOLLOWABLE)]
_COMMAND_WORDS = [int(word) for word in (CommandWord.TAIL, CommandWord.HEAD, CommandWord.RELEASED)]
_REPLY_WORDS = [int(word) for word in (ReplyWord.TAIL, ReplyWord.HEAD)]
_EVENT_WORDS = [int(EventWord.VISIBLE)]


class Settings(SimpleNamespace):
    """What one simulation is about: `sync`, `gateways`, `segment_slots`, `batch_max`, `every_operations`, `keep`."""


class HostClock:
    def __init__(self):
        self.monotonic_ns, self.time_ns = 10**12, BEGAN_NS

    def advance(self, nanoseconds):
        self.monotonic_ns += nanoseconds
        self.time_ns += nanoseconds


class World:
    """`story` gets a line for whatever happens."""

    def __init__(self, data, settings, seed):
        self.data, self.sync, self.chance = data, settings.sync, random.Random(f"disk {seed}")
        self.instance = uuid.UUID(int=1)
        self.settings = _configuration(settings)
        self.clock, self.faults, self.injected = HostClock(), Faults(), Counter()
        self.story, self.said = [], []
        self.clients = [agents.Clients() for _ in range(settings.gateways)]
        self.names = (*agents.GATEWAYS[:settings.gateways], *agents.RUN)
        self.operations = {}
        self.history = History(limits_of(self.settings))
        self.sink, self._is_checked = agents.Rows(self.step), False
        self.bell = os.open("/dev/null", os.O_RDWR)
        self._tasks, self._descriptors, self._holding = {}, {}, set()
        self._current = None   # (task, process name) that runs now
        self._acknowledged = self._called_synced = 0  # sequences
        self._damaged = set()  # names of snapshots that need not serve
        self._generation = self._opened_at = 0
        data.mkdir(parents=True)
        (data / "instance").write_text(f"{self.instance}\n")
        retention.note_place(data, "history", START)
        self.disk = Disk(data, self.chance)
        self._renew_memory()

    def close(self):
        for name in self._tasks:
            self.kill(name)
        os.close(self.bell)

    def tell(self, text):
        self.story.append(text)

    # --- what the seam asks for

    def step(self, what):
        if self._current:
            self._current[0].step(what)

    def idle(self):
        self._current[0].idle()

    def due_error(self, kind):
        """The errno that an operation of this kind fails with now, or 0."""
        return self.faults.due(kind) if self._current else 0

    def say(self, text):
        self.said.append(text)
        process = self._current[1] if self._current else "the check"
        self.tell(f"    {process} says: {text}".replace(f"{self.data}/", ""))

    def spawn(self, name, work):
        task = self._tasks[name] = Task(name, work)
        return task

    def opened(self, descriptor):
        self._descriptors[descriptor] = self._current[1] if self._current else None
        return descriptor

    def closed(self, descriptor):
        self._descriptors.pop(descriptor, None)
        os.close(descriptor)

    def is_watched(self, path):
        """Whether what happens to this file is a step."""
        return self._current is not None and path.is_relative_to(self.data) and path.parent.name not in ("run", "log")

    @contextmanager
    def role(self, name):
        """The role's lock, until the process ends."""
        descriptor = role_lock.take(self.data, name)
        process = self._current[1]
        self._holding.add(process)
        try:
            yield
        finally:
            self._holding.discard(process)
            os.close(descriptor)

    def answered(self, operation, message):
        """A client sees the reply."""
        operation.answers.append(message)
        self._acknowledged = max(self._acknowledged, int.from_bytes(message[8:16], "little"))

    # --- processes

    def is_alive(self, name):
        return name in self._tasks and self._tasks[name].is_alive

    def start(self, name):
        """Start the process, where it does not run."""
        if not self.is_alive(name):
            (self.data / "run").mkdir(exist_ok=True)
            self._tasks[name] = Task(name, agents.work_of(self, name))

    def run(self, name, steps):
        """Let the process take so many steps, where it runs."""
        if not self.is_alive(name):
            return
        task, injected = self._tasks[name], self.faults.injected
        self._current = task, "journaler" if name == MAKER else name
        task.run(steps)
        self._current = None
        task.is_hit |= self.faults.injected > injected
        self._see_words()
        self._capture()
        if not task.is_alive:
            self._ended(name, task.failure)

    def at(self, name):
        return self._tasks[name].at if self.is_alive(name) else None

    def _ended(self, name, failure):
        """A process has ended by itself."""
        self._bury(name)
        if failure is None and name == MAKER:
            return
        self.tell(f"    {name} ends: {type(failure).__name__} {failure}".replace(f"{self.data}/", ""))
        if isinstance(failure, Violation):
            raise failure
        if isinstance(failure, OSError) and self._tasks[name].is_hit:
            return
        is_lost = isinstance(failure, OffTheJournal) and self.sync == "none" and not self._has_sinks_place()
        if is_lost or (name == "history" and isinstance(failure, JournalRefused) and self._is_base_damaged()):
            self.injected["database rebuilt"] += 1
            self._rebuild_sink()
            return
        raise Violation(f"{name.partition(' ')[0]} ended by {type(failure).__name__}", str(failure)) from failure

    def kill(self, name):
        """Returns where it stood; None where it did not run."""
        at = self.at(name)
        if at is None:
            return None
        if name == "journaler":
            self.kill(MAKER)
        self._current = self._tasks[name], name
        self._tasks[name].kill()
        self._current = None
        self._bury(name)
        return at

    def _bury(self, name):
        if name == "matcher":
            self._is_checked = False
        if name in agents.GATEWAYS:
            self.clients[agents.GATEWAYS.index(name)].disconnected()
        if name == "journaler" and self.is_alive(MAKER):
            self.kill(MAKER)
        for descriptor in [descriptor for descriptor, owner in self._descriptors.items() if owner == name]:
            self.closed(descriptor)

    def second_copy(self, name):
        """Start a process that runs once more: it must be refused."""
        if name in self._holding and self.is_alive(name):
            role = name.replace(" ", "-")
            if not agents.second_copy(self, role):
                raise Violation("a second copy runs", name)
            return True
        return False

    # --- crashes

    def crash(self, name):
        """kill -9 of one process."""
        at = self.kill(name)
        if at is not None:
            self.check(self._left_ring())
        return at

    def reboot(self, is_power_cut):
        """All processes and the shared memory are gone; with a power cut also what the disk did not have."""
        self._called_synced = max(self._called_synced, self._word(JournalWord.SYNCED))
        for name in list(self._tasks):
            self.kill(name)
        if is_power_cut:
            before = self._snapshot_names()
            self.disk.cut_power(self.chance)
            self._damaged |= self._snapshot_names() - before  # removed ones that are back: their journal is not
        is_cut = is_power_cut or self.faults.has_lost  # then a journaler lets go of what the rings still have
        promised = self._called_synced if is_cut and self.sync != "always" else max(
            self._called_synced, self._acknowledged)
        end = self.check(promised)
        self.history.forget_after(end)
        self._opened_at = end  # where the journal ended when the rings were made
        for operation in self.operations.values():
            operation.answers = [message for message in operation.answers
                                 if int.from_bytes(message[8:16], "little") <= end]
        self._acknowledged = min(self._acknowledged, end)
        if self.sync != "none" and not self._has_sinks_place():
            raise Violation("a database is ahead",
                            f"it has sequence {self.sink.place.sequence}, the journal ends at {end}")
        self._renew_memory()
        return end

    def _renew_memory(self):
        self._generation += 1
        self._seen, self._ends = 0, []  # position of the journal ring; of each entry, where it ends, and the sequence
        self.memory = self._make_memory()
        self._words = 0        # those that never move back, as they were last seen

    def _make_memory(self):
        return make_memory(self.settings.rings, self._generation)

    def _snapshot_names(self):
        return {found.path.name for found in snapshot.snapshots_of(self.data / recovery.SNAPSHOTS)}

    def flip_snapshot(self, seed):
        """A bit of a snapshot changes, where another one is whole; returns its name."""
        found = [one.path for one in snapshot.snapshots_of(self.data / recovery.SNAPSHOTS)
                 if one.path.name not in self._damaged]
        if len(found) < 2:
            return None
        path = random.Random(seed).choice(found)
        path.write_bytes(flipped(path.read_bytes(), random.Random(seed)))
        self._damaged.add(path.name)
        return path.name

    def rot(self, seed):
        """A bit of a record flips that a later one knows to be synced: a start must not go on as if there were none.
        Returns the sequence, with the file as it was; None where there is no such record."""
        chance = random.Random(seed)
        found, _saved, place = recovery.read_journal(self.data, self.instance, self.said.append)
        known = max((self.history.known_synced(sequence)
                     for sequence in range(place.sequence + 1, found.end_sequence + 1)), default=0)
        if known <= place.sequence:
            return None
        sequence = chance.randint(place.sequence + 1, known)
        span = found.spans_from(sequence)[0]
        content = span.path.read_bytes()
        offset = HEADER_BYTES + span.start_slot * SLOT_BYTES
        span.path.write_bytes(content[:offset] + flipped(content[offset:offset + SLOT_BYTES], chance)
                              + content[offset + SLOT_BYTES:])
        try:
            end = recovery.read_journal(self.data, self.instance, self.said.append)[0].end_sequence
            if end < known:
                raise Violation("damage is not noticed", f"at sequence {sequence}: the journal ends at {end}, and"
                                f" {known} was known to be synced")
        except JournalDamaged:
            pass
        finally:
            span.path.write_bytes(content)
        return sequence

    def _has_sinks_place(self):
        place = self.sink.place or START
        return place.sequence <= self.history.end.sequence and self.history.place(place.sequence) == place

    def _is_base_damaged(self):
        """Whether a bit flipped in the snapshot that the database would begin at."""
        found = [one.path.name for one in snapshot.snapshots_of(self.data / recovery.SNAPSHOTS)
                 if one.sequence <= (self.sink.place or START).sequence]
        return bool(found) and self._damaged.issuperset(found)

    def _rebuild_sink(self):
        """From where the journal begins: what was before comes from an archive."""
        _found, _saved, place = recovery.read_journal(self.data, self.instance, self.say)
        self.sink.rows, self.sink.place = self.history.rows(place.sequence), place
        retention.note_place(self.data, "history", place)

    # --- what must hold

    def _word(self, word):
        return int(self.memory.journal.words[0, word])

    def _capture(self):
        """Copy what the matcher has published since the last look."""
        ring, cursor = self.memory.journal.slots[0], self._word(JournalWord.CURSOR)
        while self._seen < cursor:
            entry = as_records(ring[self._seen % len(ring)])[0]
            slots = int(entry["record_slots"])
            if entry["record_kind"] == RecordKind.RECORD:
                words = ring[np.arange(self._seen, self._seen + slots) % len(ring)].reshape(-1)
                self.history.add(words, self.operations)
            self._seen += slots
            self._ends.append((self._seen, self.history.end.sequence))
        self._called_synced = max(self._called_synced, self._word(JournalWord.SYNCED))

    def _see_words(self):
        memory, before = self.memory, self._words
        self._words = np.concatenate([segment.words[:, words].ravel() for segment, words in (
            (memory.journal, _JOURNAL_WORDS), (memory.commands, _COMMAND_WORDS), (memory.replies, _REPLY_WORDS),
            (memory.events, _EVENT_WORDS))])
        if (self._words < before).any():
            raise Violation("a word moves back", f"{before.tolist()}, then {self._words.tolist()}")

    def _left_ring(self):
        """The sequence up to which all is in the files, as it is not in the ring any more."""
        head = self._word(JournalWord.HEAD)
        return max((sequence for position, sequence in self._ends if position <= head), default=self._opened_at)

    def serves(self, state):
        """The matcher is about to take a batch: after a start its state is the one that all of the history leads to."""
        if self._is_checked:
            return
        self._capture()
        self._is_checked, sequence = True, int(state.counters[SEQUENCE])
        if sequence != self.history.end.sequence:
            raise Violation("the matcher forgot something", f"it stands at {sequence} of {self.history.end.sequence}")
        self._compare(state, sequence, "the restarted matcher")

    def _compare(self, state, sequence, whose):
        if int(np.uint64(state_digest(state))) != self.history.digest(sequence):
            raise Violation("another state", f"{whose} at sequence {sequence}")

    def check(self, promised, sequence_max=2**62):
        """The files lead to the state that they should, up to what was promised; returns how far they go."""
        positions, said = np.zeros(len(self.clients), np.int64), len(self.said)
        try:
            begun = recovery.base(self.data, self.instance, limits_of(self.settings), self.said.append,
                                  sequence_max=sequence_max)
            replay(begun.replica, begun.found, positions, 0)
        except (JournalRefused, ReplayDiverged) as problem:
            raise Violation("a start would be refused", f"{problem}; {self.said[said:]}") from problem
        end, chain = begun.found.end_sequence, begun.found.end_chain
        if end < promised:
            raise Violation("lost", f"the journal ends at sequence {end}, {promised} was promised")
        if end > self.history.end.sequence or self.history.place(end).chain != chain:
            raise Violation("another history", f"in the files up to sequence {end}; {self.history.end.sequence} were"
                            " made")
        self._compare(begun.replica.state, end, "the recovered one")
        return end

    def is_settled(self):
        """Whether everything is answered and everybody has caught up."""
        words = self.memory.commands.words
        return (all(clients.are_served for clients in self.clients)
                and (words[:, CommandWord.TAIL] == words[:, CommandWord.RELEASED]).all()
                and self._word(JournalWord.HEAD) == self._word(JournalWord.CURSOR) and self._is_checked
                and (self.sink.place or START) == self.history.end)

    def settle(self):
        """Nothing goes wrong any more: everything must be answered, and everybody catch up."""
        self.faults.disarm()
        for _ in range(ROUNDS_MAX):
            for name in self.names:
                self.start(name)
                self.run(name, STEPS_OF_ROUND)
                self.run(MAKER, STEPS_OF_ROUND)
            self.clock.advance(ROUND_NS)
            if self.is_settled():
                break
        else:
            where = ", ".join(f"{name} stands before {self.at(name)}" for name in self.names)
            raise Violation("something is never answered", where)
        end = self.history.end
        self.check(end.sequence)
        self.history.check(self.operations.values(), self.sink.rows)
        for found in snapshot.snapshots_of(self.data / recovery.SNAPSHOTS):
            if found.path.name not in self._damaged:
                self.check(end.sequence, found.sequence)


def make_memory(sizes, generation):
    """All rings, empty, without names."""
    found = {}
    for name, shape in shapes(sizes).items():
        found[name] = Segment(name, mmap.mmap(-1, shape.bytes), shape)
        found[name].header["generation"] = generation
    return SharedMemory(generation=generation, **found)


def _configuration(settings):
    whole = configuration.parse(CONFIGURATION)
    return replace(
        whole, http=replace(whole.http, gateways=settings.gateways),
        rings=RingSizes(command_slots=16, reply_slots=32, journal_slots=64, event_slots=256),
        matcher=replace(whole.matcher, batch_max=settings.batch_max),
        journal=SimpleNamespace(sync=settings.sync, sync_interval_ms=100, keep_bytes=2**33, archive="",
                                segment_bytes=HEADER_BYTES + settings.segment_slots * SLOT_BYTES),
        snapshots=SimpleNamespace(every_operations=settings.every_operations, every_s=3600, keep=settings.keep))


@contextmanager
def made(settings, seed):
    """A World in a directory of its own, with the seam open."""
    place = tempfile.mkdtemp(prefix="simulation-", dir=MEMORY_DISK if MEMORY_DISK.is_dir() else None)
    try:
        world = World(Path(place) / "data", settings, seed)
        with seam.opened(world):
            try:
                yield world
            finally:
                world.close()
    finally:
        with suppress(OSError):
            shutil.rmtree(place)
