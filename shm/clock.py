"""Clocks and waiting for compiled loops: system calls without a way through Python."""
import numpy as np
from numba import int64, types

from shm.atomics import address_of
from shm.kernel import inlined

CLOCK_REALTIME = 0
CLOCK_MONOTONIC = 1
POLLIN = 1

_libc_clock_gettime = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.intp))
_libc_poll = types.ExternalFunction("poll", types.int32(types.intp, types.intp, types.int32))
_libc_read = types.ExternalFunction("read", types.intp(types.int32, types.intp, types.intp))


def make_scratch():
    """Memory for these calls: int64 (1, 64)."""
    return np.zeros((1, 64), np.int64)


@inlined
def now_ns(clock, scratch):
    """A clock's time in ns."""
    _libc_clock_gettime(clock, address_of(scratch, 0, 0))
    return scratch[0, 0] * 1_000_000_000 + scratch[0, 1]


@inlined
def empty_bell(bell, scratch):
    """Take all its bytes: on waking, before looking at the rings."""
    while _libc_read(bell, address_of(scratch, 0, 8), 256) == 256:
        pass


@inlined
def wait_for_bell(bell, timeout_ms, scratch):
    """Block until the bell has rung or the time is over, and empty it. Returns whether a signal ended the wait."""
    scratch[0, 0] = int64(bell) | POLLIN << 32  # struct pollfd: fd, events, revents
    ready = _libc_poll(address_of(scratch, 0, 0), 1, timeout_ms)
    if ready > 0:
        empty_bell(bell, scratch)
    return ready < 0
