"""What has come from connections and is to become commands: bytes in an arena, pieces of it, and what is made of them.
"""
from typing import NamedTuple

import numpy as np

from gateways.binary_protocol import ORDER_REPLY, REQUEST, REQUEST_BYTES, WELCOME
from shm.records import COMMAND

# What became of a piece.
TAKEN = 0                      # every message in it is a command now, or nothing came
UNFINISHED = 1                 # the message at `at` goes on in a later piece
PLAIN = 2                      # the message with this body is for the plain way; the next one begins at `at`
ODD = 3                        # from `at` on it is for the plain server
BUSY = 4                       # the message at `at` must wait until its connection's calls are answered
NO_ROOM = 5                    # the message at `at` finds no room in the rings
ENDED = 6                      # the client says nothing more
FAILED = 7                     # nothing could be read
ANSWERED = 8                   # as TAKEN, but some answers are still to be sent: records' own, see binary_request.py
REFUSED = 9                    # the connection is to end, once its answers are sent

PIECE = np.dtype([
    ("connection", "<i4"),
    ("outcome", "<i4"),
    ("begin", "<i8"),          # of its bytes in the arena
    ("end", "<i8"),
    ("at", "<i8"),
    ("body_begin", "<i8"),     # PLAIN: of the body in the arena; of a binary connection: of its answers in `said`
    ("body_end", "<i8"),
    ("plain_only", "<i8"),     # 1: the first message has waited long enough for room
])

NO_WELCOME = np.zeros(1, WELCOME)
PARAMS_MAX = 1 + COMMAND.fields["label"][0].itemsize // 2  # a user id and asset names


class Intake(NamedTuple):
    arena: np.ndarray          # uint8: bytes as they came
    pieces: np.ndarray         # PIECE
    tokens: np.ndarray         # int64 (token, 3): kind; value, or begin and end; the params first
    marks: np.ndarray          # int64: what was found in a message
    command: np.ndarray        # COMMAND (1): the one being made
    command_bytes: np.ndarray  # uint8: the same
    command_words: np.ndarray  # uint64: the same
    request: np.ndarray        # REQUEST (1): the record at hand
    request_words: np.ndarray  # uint64: the same
    welcome: np.ndarray        # WELCOME (1): what a binary connection is greeted with
    said: np.ndarray           # ORDER_REPLY: what is answered to binary connections without the matcher


# Of `marks`. SAID: how many of `said` there are.
BODY_LENGTH, METHOD_BEGIN, METHOD_END, REQUEST_ID, PARAMS, OFFSET, LIMIT, SHAPE, ARENA_ADDRESS, SAID = range(10)


def make_intake(arena_bytes, pieces_max, welcome=NO_WELCOME):
    """`welcome`: of binary connections; without it there are none."""
    arena, command, marks = np.zeros(arena_bytes, np.uint8), np.zeros(1, COMMAND), np.zeros(10, np.int64)
    marks[ARENA_ADDRESS] = arena.ctypes.data
    request = np.zeros(1, REQUEST)
    answers_max = 0 if welcome is NO_WELCOME else arena_bytes // REQUEST_BYTES + pieces_max  # and a greeting each
    return Intake(arena, np.zeros(pieces_max, PIECE), np.zeros((PARAMS_MAX + 1, 3), np.int64), marks, command,
                  command.view(np.uint8), command.view(np.uint64), request, request.view(np.uint64), welcome,
                  np.zeros(answers_max, ORDER_REPLY))
