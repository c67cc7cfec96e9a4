"""Waking a sleeping process: a flag in shared memory and a named FIFO.

Sleeper: store ASLEEP = 1, seq-cst fence, look at every ring once more, block on the FIFO; on waking empty the FIFO
*before* looking; store 0. Waker: publish, seq-cst fence, load ASLEEP, write one byte if it is set. Only the sleeper
stores the flag: a waker that took it could be killed before it rings. A starting process rings every bell it may owe,
whatever the flags say. The FIFO is opened O_RDWR, so it outlives both ends, and O_NONBLOCK: a full one is rung enough.
"""
import os
import stat

from numba import types

from shm.atomics import address_of, fence_seq_cst, load_acquire, store_release
from shm.kernel import kernel
from shm.segments import SleeperWord

_libc_write = types.ExternalFunction("write", types.intp(types.int32, types.intp, types.intp))
ASLEEP = int(SleeperWord.ASLEEP)


def open_bell(directory, name):
    """The file descriptor of the bell of the process `name`, such as matcher, in `directory`; not of a gateway."""
    path = os.path.join(directory, f"{name}.bell")
    try:
        os.mkfifo(path, 0o600)
    except FileExistsError:
        if not stat.S_ISFIFO(os.stat(path).st_mode):
            raise RuntimeError(f"{path} stands where a FIFO belongs: remove it") from None
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


def open_gateway_bell(directory, row):
    """The same of the gateway that has this row in the rings, whatever its clients speak."""
    return open_bell(directory, f"gateway-{row}")


def ring(bell):
    """Ring whatever the flag says."""
    try:
        os.write(bell, b"\0")
    except BlockingIOError:
        pass  # full: it will wake


def empty(bell):
    """Take all bytes: on waking, before looking at the rings."""
    try:
        while len(os.read(bell, 4096)) == 4096:
            pass
    except BlockingIOError:
        pass


@kernel
def ring_if_asleep(sleepers, role, bell):
    """Ring the sleeper of this role if it sleeps or is about to; the store that it waits for comes before this."""
    fence_seq_cst()
    if load_acquire(sleepers, role, ASLEEP) != 0:
        _libc_write(bell, address_of(sleepers, role, ASLEEP), 1)  # any byte will do; full is rung enough


@kernel
def announce_sleep(sleepers, role):
    """Say that this role may sleep: after this it looks at every ring once more, then blocks on its bell."""
    store_release(sleepers, role, ASLEEP, 1)
    fence_seq_cst()


@kernel
def announce_waking(sleepers, role):
    store_release(sleepers, role, ASLEEP, 0)
