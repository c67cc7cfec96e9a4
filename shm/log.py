"""A process's log: lines on stderr, which supervisord keeps in `log/` of the data directory."""
import os
import sys
import time
from contextlib import suppress


def say(process, text):
    """One line: time (UTC), process, pid, text. Raises no OSError: the service is worth more than a line that finds no
    reader or no room."""
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    with suppress(OSError):
        print(f"{stamp}.{int(now % 1 * 1000):03}Z {process}[{os.getpid()}]: {text}", file=sys.stderr, flush=True)
