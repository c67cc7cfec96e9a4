"""A gateway's surroundings in one process: real rings, and a matcher and journaler that a test moves step by step."""
import time
import uuid
from types import SimpleNamespace

import numpy as np

from gateways.bridge import Bridge
from gateways.catalog import Catalog
from pipeline.replica import Replica
from shm import doorbell, segments
from shm.records import COMMAND, REPLY_SLOT_BYTES
from shm.ring import copy_in, copy_out
from shm.segments import CommandWord, CounterWord, ReplyWord, RingSizes, Role

TIMEOUT_MS = 400
SMALL_RINGS = {"command_slots": 64, "reply_slots": 128, "journal_slots": 128, "event_slots": 256}


class Rings:
    """Shared memory of one gateway, who it is, and a Bridge on it."""

    def __init__(self, directory, settings, **sizes):
        self.settings = settings
        self.instance = uuid.uuid4()
        self.memory = segments.create(self.instance, RingSizes(**{**SMALL_RINGS, **sizes}), 1)
        self.data, self.defects = directory, []
        (directory / "run").mkdir()
        self.memory.counters.words[Role.MATCHER, CounterWord.HEARTBEAT_NS] = time.monotonic_ns() + 3600 * 10**9
        self.process = SimpleNamespace(
            memory=self.memory, name="gateway-0", role=int(Role.GATEWAY), data=directory, stopping=False,
            counters=self.memory.counters.words[Role.GATEWAY], beat=lambda: None, defect=self.defects.append)

    def bridge(self, catalog=None, timeout_ms=TIMEOUT_MS, files_max=0):
        return Bridge(self.process, 0, timeout_ms, catalog or Catalog(self.settings.limits), files_max)


class Pipeline:
    """Matcher and journaler of one gateway, a step at a time, with a real core between them."""

    def __init__(self, rings):
        self.replica = Replica.configured(rings.settings)
        self.commands, self.replies = rings.memory.commands, rings.memory.replies
        self.sleepers = rings.memory.sleepers.words
        self.bell = doorbell.open_gateway_bell(rings.data / "run", 0)
        self.position = self.reply_end = 0
        self.taken = []        # (COMMAND, payload)
        self.now_ns = time.time_ns
        self.is_frozen = False

    def apply(self, count=10**9):
        """The matcher applies what is published, at most `count` commands; nobody sees the replies yet."""
        tail = int(self.commands.words[0, CommandWord.TAIL])
        done = 0
        while self.position < tail and done < count:
            slots = np.zeros(44 * COMMAND.itemsize // 8, np.uint64)
            copy_out(self.commands.slots[0], self.position, 1, slots)
            number = int(slots[:24].view(COMMAND)[0]["slots"])
            copy_out(self.commands.slots[0], self.position, number, slots)
            command = slots[:24].view(COMMAND)[0]
            payload = slots[24:].tobytes()[:command["payload_bytes"]]
            self.taken.append((command.copy(), payload))
            self.replica.apply(command, payload, self.now_ns())
            self._write_reply(self.replica.reply_message())
            self.position += number
            done += 1
        assert self.position <= tail
        return done

    def _write_reply(self, message):
        number = -(-len(message) // REPLY_SLOT_BYTES)
        free = self.replies.shape.capacity - (self.reply_end - int(self.replies.words[0, ReplyWord.HEAD]))
        assert number <= free, "the matcher may never have to wait for a reply ring"
        padded = message + bytes(number * REPLY_SLOT_BYTES - len(message))
        copy_in(self.replies.slots[0], self.reply_end, np.frombuffer(padded, np.uint64), number)
        self.reply_end += number

    def free(self):
        """The matcher lets the command slots go."""
        self.commands.words[0, CommandWord.HEAD] = self.position
        if self.commands.words[0, CommandWord.ROOM_WANTED]:
            doorbell.ring_if_asleep(self.sleepers, int(Role.GATEWAY), self.bell)

    def release(self):
        """The journaler shows the replies, then says so."""
        self.replies.words[0, ReplyWord.TAIL] = self.reply_end
        self.commands.words[0, CommandWord.RELEASED] = self.position
        doorbell.ring_if_asleep(self.sleepers, int(Role.GATEWAY), self.bell)

    def answer(self):
        count = self.apply()
        self.free()
        self.release()
        return count

    def attend(self, loop, rings):
        """Answer whatever is published, from now on, whenever the matcher's bell rings."""
        bell = doorbell.open_bell(rings.data / "run", "matcher")
        doorbell.announce_sleep(self.sleepers, int(Role.MATCHER))

        def on_bell():
            doorbell.empty(bell)
            if not self.is_frozen:
                self.answer()
        loop.add_reader(bell, on_bell)
        doorbell.ring(bell)
