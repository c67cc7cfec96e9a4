"""A gateway's way into the matcher and back: its ends of the two rings, and the calls that are on it.

Replies come in the order of the commands, one each, so the calls between the rings are a queue: call `number` stands at
`number % len(calls)`, its number is the command's request id. Room for a call's largest reply is reserved before its
command is written (credit), so that the matcher never waits for a gateway.
"""
from typing import NamedTuple

import numpy as np
from numba import int64

from shm.atomics import load_acquire
from shm.kernel import called, inlined, kernel
from shm.records import COMMAND
from shm.ring import copy_in, copy_out
from shm.segments import CommandWord, JournalWord

COMMAND_HEAD = int(CommandWord.HEAD)
REFUSING = int(JournalWord.REFUSING)
COMMAND_WORDS = COMMAND.itemsize // 8

# Words of `own`: the gateway's private cursors.
ROW = 0                        # of this gateway in both segments
TAIL = 1                       # of the command ring: next slot to write
PUBLISHED = 2                  # what the matcher has been shown of it
HEAD = 3                       # of the command ring, as last seen
REPLY_HEAD = 4                 # next reply slot to read
CREDIT = 5                     # reply slots that no call has reserved
NEXT = 6                       # number of the next call
OLDEST = 7                     # number of the oldest call that has no reply
FULL = 8                       # times that a call found no room
ROOM_WANTED = 9                # 1: the last call that found no room lacks command slots, not credit
OWN_WORDS = 10

NOBODY = -1                    # `connection` of a call that Python made
WAITING, GIVEN_UP = 0, 1       # states of a call: the reply of one given up is dropped
BODY_BYTES_MAX = 512           # of a request that is kept with its call
RECORD_ANSWER = 128            # shape of the answer to a binary request: this and its RequestKind

CALL = np.dtype([
    ("asked_ns", "<i8"),       # CLOCK_MONOTONIC
    ("id", "<i8"),             # the client's
    ("offset", "<i8"),         # of a list, as the client gave it
    ("connection", "<i4"),     # its file descriptor, or NOBODY
    ("limit", "<i4"),          # of a list
    ("reply_slots_max", "<u2"),
    ("body_bytes", "<u2"),     # of the request in `bodies`
    ("market_id", "<u2"),
    ("shape", "u1"),           # of the answer: fast_answer.py; from RECORD_ANSWER on: binary_answer.py
    ("state", "u1"),
])


class Lane(NamedTuple):
    command_words: np.ndarray  # int64 (gateway, word)
    commands: np.ndarray       # uint64 (slot, word) of this gateway
    reply_words: np.ndarray    # int64 (gateway, word)
    replies: np.ndarray        # uint64 (slot, word) of this gateway
    journal_words: np.ndarray  # int64 (0, word)
    own: np.ndarray            # int64
    calls: np.ndarray          # CALL
    bodies: np.ndarray         # uint8: requests, as they came, BODY_BYTES_MAX for each call


def make_lane(memory, row):
    """The lane of gateway `row`, with nothing on it; its predecessor's commands must be answered by now."""
    capacity = memory.commands.shape.capacity
    own = np.zeros(OWN_WORDS, np.int64)
    own[ROW], own[CREDIT] = row, memory.replies.shape.capacity
    own[TAIL] = own[PUBLISHED] = memory.commands.words[row, CommandWord.TAIL]
    own[HEAD] = memory.commands.words[row, CommandWord.HEAD]
    own[NEXT] = own[OLDEST] = 1
    return Lane(memory.commands.words, memory.commands.slots[row], memory.replies.words, memory.replies.slots[row],
                memory.journal.words, own, np.zeros(capacity, CALL), np.zeros(capacity * BODY_BYTES_MAX, np.uint8))


@called
def has_room(lane, slots, reply_slots_max):
    """Whether a command of so many slots can be written now."""
    own = lane.own
    if reply_slots_max > own[CREDIT] or own[NEXT] - own[OLDEST] >= len(lane.calls):
        own[FULL] += 1
        own[ROOM_WANTED] = 0   # replies on their way bring both
        return False
    end = own[TAIL] + slots
    if end - own[HEAD] > len(lane.commands):
        own[HEAD] = load_acquire(lane.command_words, own[ROW], COMMAND_HEAD)
        if end - own[HEAD] > len(lane.commands):
            own[FULL] += 1
            own[ROOM_WANTED] = 1
            return False
    return True


@inlined
def takes_writes(lane):
    """Whether the journal does. To be asked for each write: from when it refuses, its reserve has room for what the
    command ring holds and for the one write that passed the question before."""
    return load_acquire(lane.journal_words, 0, REFUSING) == 0


@called
def append(lane, message, slots, reply_slots_max, asked_ns):
    """Write a command for which there is room, unseen until it is published, and note its call. Returns the call.

    `message`: uint64; its first word becomes the request id.
    """
    own = lane.own
    number = own[NEXT]
    call = lane.calls[number & (len(lane.calls) - 1)]
    call.asked_ns = asked_ns
    call.connection = NOBODY
    call.reply_slots_max = reply_slots_max
    call.state = WAITING
    call.body_bytes = 0
    copy_in(lane.commands, own[TAIL], message, slots)
    lane.commands[own[TAIL] & (len(lane.commands) - 1), 0] = number
    own[NEXT] = number + 1
    own[TAIL] += slots
    own[CREDIT] -= reply_slots_max
    return call


@kernel
def append_call(lane, message, reply_slots_max, asked_ns):
    """A call of Python's: its number, or 0 where there is no room."""
    slots = len(message) // COMMAND_WORDS
    if not has_room(lane, slots, reply_slots_max):
        return int64(0)
    append(lane, message, slots, reply_slots_max, asked_ns)
    return lane.own[NEXT] - 1


@called
def oldest_call(lane):
    """The call that the next reply must be of."""
    return lane.calls[lane.own[OLDEST] & (len(lane.calls) - 1)]


@called
def take_reply(lane, tail, header, message):
    """Copy the oldest unread reply before `tail` to `message`, which begins with `header`. Returns whether it is the
    oldest call's: if not, nothing has moved. The slots may be refilled once `release_replies` has said so."""
    own = lane.own
    head = own[REPLY_HEAD]
    copy_out(lane.replies, head, 1, message)
    slots = int64(header.slots)
    reserved = int64(oldest_call(lane).reply_slots_max)
    if int64(header.request_id) != own[OLDEST] or not 0 < slots <= reserved or head + slots > tail:
        return False
    copy_out(lane.replies, head, slots, message)
    own[REPLY_HEAD] = head + slots
    own[OLDEST] += 1
    own[CREDIT] += reserved
    return True
