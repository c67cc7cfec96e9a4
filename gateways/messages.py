"""Commands and replies as the rings carry them, made and read in plain Python: one at a time, no numpy."""
import struct
from collections import namedtuple
from typing import NamedTuple

from shm.int128 import MASK64
from shm.records import COMMAND, FIRST_READ, ORDER, REPLY_HEADER, REPLY_SLOT_BYTES, struct_format

_COMMAND = struct.Struct(struct_format(COMMAND))
_COMMAND_DEFAULTS = {name: b"" if COMMAND.fields[name][0].shape else 0 for name in COMMAND.names}
_Header = namedtuple("_Header", REPLY_HEADER.names)
_HEADER = struct.Struct(struct_format(REPLY_HEADER))


class Command(NamedTuple):
    """A command for the matcher. Its request id is still zero: the ring's owner gives it."""
    kind: int
    slots: bytes           # whole slots of the command ring
    reply_slots_max: int   # of the largest reply that it can have

    @property
    def is_write(self):
        return self.kind < FIRST_READ


def make_command(kind, rows_max=1, row_bytes=ORDER.itemsize, payload=b"", **fields):
    """A command of this kind with these fields of COMMAND, answered by at most `rows_max` rows of `row_bytes`."""
    slots = 1 + -(-len(payload) // COMMAND.itemsize)
    values = {**_COMMAND_DEFAULTS, **fields, "kind": kind, "slots": slots, "payload_bytes": len(payload)}
    padding = (slots - 1) * COMMAND.itemsize - len(payload)
    reply_bytes_max = REPLY_HEADER.itemsize + rows_max * row_bytes
    return Command(kind, _COMMAND.pack(*values.values()) + payload + bytes(padding),
                   -(-reply_bytes_max // REPLY_SLOT_BYTES))


def unsigned(value):
    """A 64-bit integer of the wire in an unsigned word: negative ones wrap."""
    return value & MASK64


class Reply:
    """A reply message: `header` (fields of REPLY_HEADER) and rows behind it."""

    def __init__(self, message):
        self.message = message
        self.header = _Header._make(_HEADER.unpack_from(message))

    def rows(self, row, count, skip=0):
        """`count` rows of the struct `row`, after `skip`, as tuples."""
        begin = _HEADER.size + skip * row.size
        return list(row.iter_unpack(memoryview(self.message)[begin:begin + count * row.size]))
