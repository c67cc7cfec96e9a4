"""The core in one process: a state with its inbox and output, for tools, tests and whatever re-runs the journal."""
import numpy as np

from pipeline import seeding
from pipeline.core import apply_one
from pipeline.inbox import make_inbox
from pipeline.output import private_output
from pipeline.state import DEFECT, EVENT_POSITION, SEQUENCE, allocate
from shm.records import BALANCE_EVENT, COMMAND, DEAL_EVENT, EVENT_HEADER, ORDER_EVENT, EventKind, Result

EVENT_SLOTS = 1 << 14
_EVENT_DTYPES = {EventKind.BALANCE: BALANCE_EVENT, EventKind.DEAL: DEAL_EVENT, EventKind.ORDER: ORDER_EVENT}


class Replica:
    def __init__(self, limits, event_slots=EVENT_SLOTS):
        """An empty core with room for `limits`. One command's events must fit `event_slots`, or they are lost here."""
        self.state = allocate(limits)
        self.inbox = make_inbox()
        self.out = private_output(int(limits["assets_max"]), int(limits["markets_max"]), event_slots)
        self._drained = 0

    @classmethod
    def configured(cls, configuration, time_ns=0, **options):
        """A core that has applied all that the configuration defines."""
        replica = cls(seeding.limits_of(configuration), **options)
        for command, payload in seeding.commands(configuration, replica.state):
            reply = replica.apply(command, payload, time_ns)
            assert reply["result"] == Result.OK, (command, reply)
        return replica

    @property
    def sequence(self):
        return int(self.state.counters[SEQUENCE])

    def apply(self, command, payload=b"", time_ns=0):
        """Apply one COMMAND with its payload; returns the reply's header (its payload: `reply_payload`)."""
        buffer = self.inbox.words.view(np.uint8)
        self.inbox.command[0] = command
        buffer[COMMAND.itemsize:COMMAND.itemsize + len(payload)] = np.frombuffer(payload, np.uint8)
        apply_one(self.state, self.inbox, self.out, time_ns)
        assert self.state.counters[DEFECT] == 0, f"defect {self.state.counters[DEFECT]} at sequence {self.sequence}"
        return self.out.header[0]

    def reply_message(self):
        """The whole last reply, as it would stand in a reply ring."""
        header = self.out.header[0]
        return self.out.words.view(np.uint8)[:64 + int(header["payload_bytes"])].tobytes()

    def drain_events(self):
        """The events since the last call, in order: ORDER_EVENT, DEAL_EVENT and BALANCE_EVENT records."""
        end = int(self.state.counters[EVENT_POSITION])
        assert end - self._drained <= len(self.out.event_words), "more events than slots"
        events = [self._event(position) for position in range(self._drained, end)]
        self._drained = end
        return events

    def last_events(self):
        """The events of the last command that made some, in order."""
        end = int(self.state.counters[EVENT_POSITION])
        events = []
        for position in range(end - 1, max(end - len(self.out.event_words), 0) - 1, -1):
            event = self._event(position)
            if events and event["sequence"] != events[-1]["sequence"]:
                break
            events.append(event)
        return events[::-1]

    def _event(self, position):
        raw = self.out.event_words[position % len(self.out.event_words)].tobytes()
        kind = EventKind(np.frombuffer(raw, EVENT_HEADER, 1)[0]["kind"])
        return np.frombuffer(raw, _EVENT_DTYPES[kind], 1)[0]
