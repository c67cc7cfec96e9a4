"""The disk under a folder: whether it is one, and how long it takes to sync, which bounds what sync = always can do."""
import os
import re
import tempfile
import time
from pathlib import Path

from tools.load import percentile
from tools.report import Failed

IN_MEMORY = {"tmpfs", "ramfs", "devtmpfs", "hugetlbfs"}
MOUNTS = Path("/proc/self/mounts")
SYNCS = 100
BLOCK_BYTES = 4096             # written before each sync


def filesystem_of(folder, mounts):
    """The type of the file system that `folder` is on, or would be made on; `mounts`: the text of /proc/self/mounts."""
    folder, found = folder.resolve(), ("", "")
    for line in mounts.splitlines():
        _device, point, kind, *_ = line.split(" ")
        point = re.sub(r"\\([0-7]{3})", lambda escaped: chr(int(escaped[1], 8)), point)
        if folder.is_relative_to(point) and len(point) >= len(found[0]):  # of equals, the last hides the others
            found = point, kind
    return found[1]


def figures(folder):
    """File system and sync time of a folder, which is made where it is missing; raises Failed where it is no disk."""
    filesystem = filesystem_of(folder, MOUNTS.read_text(encoding="utf-8"))
    if filesystem in IN_MEMORY:
        raise Failed(f"{folder} is on {filesystem}, which is memory, and a sync there costs nothing: name a folder on a"
                     " disk with --data DIR")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return {"filesystem": filesystem, "fdatasync_p50_ms": fdatasync_p50_ms(folder)}
    except OSError as error:
        raise Failed(f"{folder} cannot hold the data of an exchange: {error.strerror}; name another folder with --data"
                     " DIR") from None


def fdatasync_p50_ms(folder):
    """Median time of a sync of one block, written over zeros that are on disk: as the journal does it."""
    seconds = []
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        file.write(bytes(SYNCS * BLOCK_BYTES))
        os.fsync(file.fileno())
        for block in range(SYNCS):
            os.pwrite(file.fileno(), b"\1" * BLOCK_BYTES, block * BLOCK_BYTES)
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            seconds.append(time.perf_counter() - began)
    return round(percentile(sorted(seconds), 0.5) * 1000, 3)
