"""A single role's lock: an flock in the data directory, held for life, so that no second matcher ever runs."""
import fcntl
import os
import time
from pathlib import Path

LOOKERS_SECONDS = 0.2          # `holders` takes a lock for an instant: only who holds it for longer is a holder


class RoleTaken(Exception):
    """Another process holds the role; the text names it."""


def take(data, name):
    """Take the role; returns the open descriptor that holds it until the process ends.

    Raises RoleTaken naming the holder. The lock dies with the process, however it dies; a stopped one still holds it.
    """
    path = Path(data) / "run" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not _lock(descriptor):
        holder = os.pread(descriptor, 32, 0).decode().strip() or "unknown"
        os.close(descriptor)
        raise RoleTaken(f"{name} already runs on {data} as process {holder}")
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def _lock(descriptor):
    """Whether the lock could be had within LOOKERS_SECONDS."""
    until = time.monotonic() + LOOKERS_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(LOOKERS_SECONDS / 20)


def holders(data):
    """{role name: process id} of the roles held now."""
    held = {}
    for path in sorted((Path(data) / "run").glob("*.lock")):
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held[path.stem] = int(os.pread(descriptor, 32, 0).decode().strip() or 0)
        finally:
            os.close(descriptor)
    return held
