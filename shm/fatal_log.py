"""The one path of fatal lines: `log/fatal.log` in the data directory, a JSON object a line, for the alert center.

A line is one write to a file opened for appending, so lines of several processes never mix. Where it cannot be written,
as on a full disk, the process's own log has it: an alert never ends the process that raises it.
"""
import json
import os
import time
from contextlib import suppress
from pathlib import Path

from shm.log import say


def fatal(data, process, text):
    """Append one line: time (s since the epoch), process, pid, text. Also said on stderr. Raises no OSError."""
    line = json.dumps({"time": time.time(), "process": process, "pid": os.getpid(), "text": text}, ensure_ascii=False)
    with suppress(OSError):
        path = Path(data) / "log" / "fatal.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, line.encode() + b"\n")
        finally:
            os.close(descriptor)
    say(process, f"fatal: {text}")
