"""Reading and writing many connections in compiled code: one call for all that are ready, no Python for each.

The sockets are non-blocking, and watched by an epoll instance of their own. A connection's number is its file
descriptor. What does not go smoothly - an end, an error, a client that does not take its answers - is left to Python,
socket by socket.
"""
import platform
from typing import NamedTuple

import numpy as np
from numba import int64, types

from shm.kernel import inlined

READ_BYTES = 65_536            # at once from one connection
EVENTS_MAX = 1024              # connections read in one turn
MSG_DONTWAIT, MSG_NOSIGNAL = 0x40, 0x4000
SEND_FLAGS = MSG_DONTWAIT | MSG_NOSIGNAL
# Linux packs the structure on x86-64 alone.
EPOLL_EVENT = np.dtype([("events", "<u4"), ("file", "<i4"), ("unused", "<u4")]) if platform.machine() == "x86_64" \
    else np.dtype([("events", "<u4"), ("padding", "<u4"), ("file", "<i4"), ("unused", "<u4")])

# What compiled code must know of a connection: bits of `marks`.
BLOCKED = 1                    # Python writes to it: something stands before, or it is gone
TELL = 2                       # Python wants to know when it has been answered
HELD = 4                       # it is not read
CONNECTED = 8                  # the file is a connection of the front
RECORDS = 16                   # which speaks the binary port's records
GREETED = 32                   # and has been welcomed

_epoll_wait = types.ExternalFunction("epoll_wait", types.int32(types.int32, types.intp, types.int32, types.int32))
_recv = types.ExternalFunction("recv", types.intp(types.int32, types.intp, types.intp, types.int32))
_send = types.ExternalFunction("send", types.intp(types.int32, types.intp, types.intp, types.int32))


class Sockets(NamedTuple):
    marks: np.ndarray          # int32 of each connection
    kept_bytes: np.ndarray     # int32: of its unfinished message, which stand before what is read next
    in_flight: np.ndarray      # int32: its calls
    heard_ns: np.ndarray       # int64: when it was read last, CLOCK_MONOTONIC
    events: np.ndarray         # EPOLL_EVENT
    own: np.ndarray            # int64


# Of `own`.
EPOLL, EVENTS_ADDRESS = 0, 1
FIRST_EVENT = 2                # reading begins with it: the last time there was no room for its bytes


def make_sockets(files_max, epoll):
    """`files_max`: above every file descriptor; `epoll`: the instance's."""
    events = np.zeros(EVENTS_MAX, EPOLL_EVENT)
    return Sockets(np.zeros(files_max, np.int32), np.zeros(files_max, np.int32), np.zeros(files_max, np.int32),
                   np.zeros(files_max, np.int64), events, np.array([epoll, events.ctypes.data, 0]))


@inlined
def wait_for_events(sockets, events_max, timeout_ms):
    """How many files are ready, at most `events_max`; 0 when the time is over or a signal came."""
    return max(int64(_epoll_wait(sockets.own[EPOLL], sockets.own[EVENTS_ADDRESS], events_max, timeout_ms)), int64(0))


@inlined
def read_socket(file, address, size):
    """Bytes read to this address; 0: the client has ended; negative: none."""
    return int64(_recv(file, address, size, MSG_DONTWAIT))


@inlined
def write_socket(file, address, size):
    """Bytes written from this address; negative: none."""
    return int64(_send(file, address, size, SEND_FLAGS))
