"""The matcher as a process: it rebuilds its state from the journal, then serves; the loop itself is in sequencer.py."""
import select
import signal
import sys
import time
from functools import partial

import numpy as np

from pipeline import recovery, seeding
from pipeline.core import apply_one
from pipeline.digest import state_digest
from pipeline.output import make_output
from pipeline.release import journal_word
from pipeline.sequencer import (
    BATCH_MAX,
    BROKE,
    BROKEN,
    BROKEN_GATEWAY,
    CHAIN,
    COMMAND_MALFORMED,
    GENERATION,
    JOURNAL_END,
    LOOK_EVERY_NS,
    LOOK_NS,
    OWN_WORDS,
    REPLY_RING_OVERRUN,
    SPIN_NS,
    STAMPED_NS,
    Rings,
    free_commands,
    journal_configuration,
    make_record,
    serve,
    show_digest,
    stamp_time,
)
from pipeline.state import ASSETS, DEFECT, EVENT_POSITION, MARKETS, SEQUENCE, TIME_NS, populate
from shm import doorbell
from shm.clock import make_scratch
from shm.fatal_log import fatal
from shm.log import say
from shm.process import HEARTBEAT_SECONDS, instance_of, show_progress
from shm.records import COMMAND, RECORD_SLOTS_MAX, Result
from shm.segments import ROLES, CommandWord, CounterWord, EventWord, JournalWord, ReplyWord, Role, slot_view


class Broken(Exception):
    """An invariant does not hold: the process must end, so that restart and replay repair it."""


class Matcher:
    """`process` gives `memory`, `data`, `name`, `counters`, `stopping` and `beat`; `configuration` is the whole one."""

    def __init__(self, process, configuration):
        self.process, self.configuration, self.memory = process, configuration, process.memory
        bells = process.data / "run"
        self._bell = doorbell.open_bell(bells, process.name)
        self._journaler_bell = doorbell.open_bell(bells, "journaler")
        self._gateway_bells = [
            doorbell.open_gateway_bell(bells, index) for index in range(self.memory.commands.shape.rows)]
        self._poll = select.poll()
        self._poll.register(self._bell, select.POLLIN)
        self._clock_offset_ns = time.time_ns() - time.monotonic_ns()
        self.state = self.inbox = self.out = self.rings = None

    def run(self):
        """Until the process is told to stop.

        Raises JournalRefused, ReplayDiverged or Contradiction where it may not start, Broken for a defect.
        """
        signal.set_wakeup_fd(self._bell, warn_on_full_buffer=False)
        self.start()
        self.process.ready()
        while not self.process.stopping:
            self._check(serve(self.state, self.inbox, self.out, self.rings))
            self._watch_clock()
        self.finish()

    # --- start: rule 5 of the order of publication

    def start(self):
        for bell in (self._journaler_bell, *self._gateway_bells):
            doorbell.ring(bell)
        words = self.memory.journal.words
        self._wait(lambda: journal_word(words, int(JournalWord.OPENED)) == 1)
        self._wait_for_room(len(self.memory.journal.slots[0]))
        self._rebuild()
        populate(self.state)
        self._seed()

    def _wait(self, condition):
        """Sleep until the condition holds; each look comes after the flag is up, so no bell is missed."""
        sleepers = self.memory.sleepers.words
        while True:
            doorbell.announce_sleep(sleepers, int(Role.MATCHER))
            if condition():
                break
            self._poll.poll(HEARTBEAT_SECONDS * 1000)
            doorbell.empty(self._bell)
            self.process.beat()
            if self.process.stopping:
                sys.exit(0)
        doorbell.announce_waking(sleepers, int(Role.MATCHER))

    def _wait_for_room(self, slots):
        words = self.memory.journal.words
        capacity = len(self.memory.journal.slots[0])
        words[0, JournalWord.ROOM_WANTED] = 1
        self._wait(lambda: capacity - int(journal_word(words, int(JournalWord.CURSOR))
                                          - journal_word(words, int(JournalWord.HEAD))) >= slots)
        words[0, JournalWord.ROOM_WANTED] = 0

    def _rebuild(self):
        """The state that the journal leads to; each ring goes on where it was released."""
        began = time.monotonic()
        memory = self.memory
        gateways = memory.commands.shape.rows
        words = memory.journal.words
        journaled = np.zeros(gateways, np.int64)
        counters = self.process.counters

        def progress(replica=None):
            show_progress(self.process)
            if replica is not None:
                counters[CounterWord.SEQUENCE] = replica.sequence
        begun = recovery.recover(
            self.process.data, instance_of(self.process.data), seeding.limits_of(self.configuration),
            partial(fatal, self.process.data, self.process.name), journaled, memory.generation,
            written=max(int(journal_word(words, int(word))) for word in (JournalWord.SYNCED, JournalWord.FOLLOWABLE)),
            progress=progress)
        replica, found = begun.replica, begun.found
        self.state, self.inbox = replica.state, replica.inbox
        released = memory.commands.words[:, CommandWord.RELEASED].copy()
        assert (journaled <= released).all(), f"journaled up to {journaled}, released up to {released}"
        event_end = int(memory.events.words[0, EventWord.VISIBLE])
        self.state.counters[EVENT_POSITION] = event_end
        self.out = make_output(len(self.state.assets), len(self.state.markets), memory.events.slots[0],
                               memory.events.words)
        self.rings = self._make_rings(released, found.end_chain)
        free_commands(self.rings)
        counters[CounterWord.RECORDS] = 0
        show_digest(self.state, memory.counters.words)
        behind = f" behind {begun.snapshot.path.name}" if begun.snapshot else ""
        say(self.process.name, f"{found.end_sequence - begun.place.sequence} records replayed{behind} in"
            f" {time.monotonic() - began:.2f} s")

    def _make_rings(self, released, chain):
        memory, settings = self.memory, self.configuration.matcher
        record, record_words = make_record()
        own = np.zeros(OWN_WORDS, np.int64)
        own[JOURNAL_END] = memory.journal.words[0, JournalWord.CURSOR]
        own[CHAIN] = np.uint64(chain).view(np.int64)
        own[SPIN_NS], own[BATCH_MAX] = settings.spin_us * 1000, settings.batch_max
        own[LOOK_NS] = LOOK_EVERY_NS
        own[GENERATION], own[STAMPED_NS] = memory.generation, self.state.counters[TIME_NS]
        bells = np.full(ROLES, -1, np.int64)
        bells[Role.MATCHER], bells[Role.JOURNALER] = self._bell, self._journaler_bell
        bells[Role.GATEWAY:Role.GATEWAY + len(self._gateway_bells)] = self._gateway_bells
        return Rings(
            command_words=memory.commands.words, commands=memory.commands.slots,
            command_records=slot_view(memory.commands, COMMAND), reply_words=memory.replies.words,
            replies=memory.replies.slots, journal_words=memory.journal.words, journal=memory.journal.slots[0],
            sleepers=memory.sleepers.words, counters=memory.counters.words, bells=bells, own=own,
            positions=released, reply_ends=memory.replies.words[:, ReplyWord.TAIL].copy(), record=record,
            record_words=record_words, scratch=make_scratch())

    def _seed(self):
        """Journal what the configuration defines and the state lacks."""
        for command, payload in seeding.commands(self.configuration, self.state):
            self._wait_for_room(RECORD_SLOTS_MAX)
            buffer = self.inbox.words.view(np.uint8)
            self.inbox.command[0] = command
            buffer[COMMAND.itemsize:COMMAND.itemsize + len(payload)] = np.frombuffer(payload, np.uint8)
            time_ns = stamp_time(self.rings)
            changed = apply_one(self.state, self.inbox, self.out, time_ns)
            journal_configuration(self.state, self.inbox, self.rings, changed, time_ns)
            header = self.out.header[0]
            if header["result"] != Result.OK:
                raise seeding.Contradiction(
                    f"the configuration's {command['kind']} is refused (result {header['result']}, field"
                    f" {header['field']}, bound {header['bound']})")
        for defined, wanted, what in (
                (seeding.asset_names(self.state), self.configuration.assets, "asset"),
                (seeding.market_names(self.state), self.configuration.markets, "market")):
            for name in sorted(set(defined) - {item.name for item in wanted}):
                say(self.process.name, f"{what} {name} is in the journal and not in the configuration: it stays")

    # --- in service

    def _check(self, why):
        if why != BROKE:
            return
        own = self.rings.own
        if own[BROKEN] == COMMAND_MALFORMED:
            raise Broken(f"gateway {own[BROKEN_GATEWAY]} published a malformed command:"
                         f" position={self.rings.positions[own[BROKEN_GATEWAY]]} {self.inbox.command[0]}")
        if own[BROKEN] == REPLY_RING_OVERRUN:
            raise Broken(f"gateway {own[BROKEN_GATEWAY]} did not reserve room for a reply of"
                         f" {self.out.header[0]['slots']} slots")
        raise Broken(f"core defect {self.state.counters[DEFECT]} at sequence {self.state.counters[SEQUENCE]} with"
                     f" {self.inbox.command[0]}")

    def _watch_clock(self):
        """A jump of the host's clock is an alert; stamps never go back, whatever it does."""
        offset = time.time_ns() - time.monotonic_ns()
        jump_ms = (offset - self._clock_offset_ns) // 1_000_000
        if abs(jump_ms) > self.configuration.matcher.clock_jump_max_ms:
            fatal(self.process.data, self.process.name, f"the host's clock jumped by {jump_ms} ms")
            self._clock_offset_ns = offset

    def finish(self):
        """Store the state's digest, for whoever compares it with a replay."""
        digest = np.uint64(state_digest(self.state))
        self.process.counters[CounterWord.STATE_DIGEST] = digest.view(np.int64)
        counters = self.state.counters
        say(self.process.name, f"stopped at sequence {counters[SEQUENCE]}, {counters[ASSETS]} assets,"
            f" {counters[MARKETS]} markets, state digest {int(digest):016x}")
