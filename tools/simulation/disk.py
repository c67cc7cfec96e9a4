"""A simulated disk: the page cache is a real directory; beside it stands what a power cut would leave of it.

What a sync has put on disk stays. Of the rest a power cut keeps any part: each name or not, each block whole, torn at
any byte, or not at all, now and then with a flipped bit. A sync that fails puts any part on disk, and what it left out
counts as clean from then on: a later sync does not write it.
"""
import errno
import os
import shutil
from pathlib import Path

import numpy as np

BLOCK_BYTES = 256
KEPT = {"nothing": 0.0, "half": 0.5, "all": 1.0}  # of the blocks of one file that were not synced
_EMPTY = np.zeros(0, np.uint8)


class Disk:
    """What is durable of the files under `root`. `chance`: of what a failed sync leaves."""

    def __init__(self, root, chance):
        self.root, self._chance = root, chance
        self._content = {}     # inode: bytes on disk, as uint8
        self._clean = {}       # inode: (content when its sync failed, which of its bytes count as clean and are lost)
        self._names = {}       # directory: {name: inode}
        self._forget_cache()

    def _forget_cache(self):
        """What is in the directory now is on disk."""
        self._content, self._clean, self._names = {}, {}, {}
        for directory, _folders, files in os.walk(self.root):
            self._names[directory] = _listing(directory)
            for name in files:
                path = os.path.join(directory, name)
                self._content[os.stat(path).st_ino] = _read(path)

    def sync(self, descriptor):
        """An fsync or fdatasync that succeeds."""
        path, inode = _file_of(descriptor)
        if os.path.isdir(path):
            self._names[path] = _listing(path)
            return
        now = _content_of(descriptor)
        if inode in self._clean:
            before, is_lost = self._clean[inode]
            kept = now.copy()
            lost = np.flatnonzero(is_lost[:len(now)] & (now[:len(is_lost)] == before[:len(now)]))
            kept[lost] = _resized(self._content[inode], len(now))[lost]
            now = kept
        self._content[inode] = now

    def fail_sync(self, descriptor):
        """An fsync or fdatasync that fails."""
        path, inode = _file_of(descriptor)
        if not os.path.isdir(path):
            now = _content_of(descriptor)
            kept = self._mixed(self._content.get(inode, _EMPTY), now, self._chance, 0.0)
            self._content[inode] = kept
            self._clean[inode] = now, _resized(kept, len(now)) != now

    def forget_failure(self, descriptor):
        """The file has been cut to nothing: what is written now is new."""
        self._clean.pop(_file_of(descriptor)[1], None)

    def cut_power(self, chance):
        """Only what was on disk is left, and any part of the rest."""
        tree = self._survivors(str(self.root), chance)
        for entry in list(self.root.iterdir()):
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        _restore(self.root, tree)
        self._forget_cache()

    def _survivors(self, directory, chance):
        """{name: content, or the same of a directory}."""
        old, new = self._names.get(directory, {}), _listing(directory)
        kept = {}
        for name in sorted({*old, *new}):
            inode = new.get(name) if old.get(name) == new.get(name) or chance.random() < 0.5 else old.get(name)
            path = os.path.join(directory, name)
            if inode is None:
                continue
            if new.get(name) == inode and os.path.isdir(path):
                kept[name] = self._survivors(path, chance)
            else:
                now = _read(path) if new.get(name) == inode else None
                kept[name] = self._content_after_cut(inode, now, chance)
        return kept

    def _content_after_cut(self, inode, now, chance):
        """`now`: what the page cache has; None: it is gone with the name."""
        old = self._content.get(inode, _EMPTY)
        if now is None:
            return old
        if inode in self._clean:
            before, is_lost = self._clean[inode]
            lost = np.flatnonzero(is_lost[:len(now)] & (now[:len(is_lost)] == before[:len(now)]))
            now = now.copy()
            now[lost] = _resized(old, len(now))[lost]
        return self._mixed(old, now, chance, 0.1)

    def _mixed(self, old, new, chance, flip):
        """`old` with any part of what `new` has otherwise; `flip`: how likely a bit of that is wrong."""
        share = KEPT[chance.choice(sorted(KEPT))]
        size = len(new)
        if len(old) != size and chance.random() >= 0.7:
            size = chance.randint(*sorted((len(old), size)))
        old, new = _resized(old, size), _resized(new, size)
        kept = old.copy()
        changed = np.flatnonzero(old != new)
        for block in np.unique(changed // BLOCK_BYTES).tolist():
            begin, end = block * BLOCK_BYTES, min(size, (block + 1) * BLOCK_BYTES)
            if chance.random() < share:
                kept[begin:end] = new[begin:end]
            elif chance.random() < 0.3:
                torn = chance.randrange(begin, end)
                kept[begin:torn] = new[begin:torn]
            else:
                continue
            if chance.random() < flip:
                kept[chance.randrange(begin, end)] ^= 1 << chance.randrange(8)
        return kept


class Faults:
    """Which of the next operations fail: `arm` says so, each ends after some of them."""

    def __init__(self):
        self.injected, self.has_lost = 0, False  # whether a write or a sync was among them
        self._armed = []

    def arm(self, kinds, number, after, count):
        """The operations of these `kinds` fail with the errno `number`: `count` of them, after `after` more."""
        self._armed.append([kinds, number, after, count])

    def disarm(self):
        self._armed.clear()

    def due(self, kind):
        """The errno that this operation fails with, or 0."""
        for armed in self._armed:
            kinds, number, after, _count = armed
            if kind in kinds:
                if after > 0:
                    armed[2] -= 1
                    continue
                armed[3] -= 1
                if armed[3] <= 0:
                    self._armed.remove(armed)
                self.injected += 1
                self.has_lost |= kind in ("write", "sync")
                return number
        return 0


def flipped(content, chance):
    """The bytes with one bit changed."""
    changed = bytearray(content)
    changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _file_of(descriptor):
    return os.readlink(f"/proc/self/fd/{descriptor}"), os.fstat(descriptor).st_ino


def _listing(directory):
    with os.scandir(directory) as entries:
        return {entry.name: entry.inode() for entry in entries}


def _content_of(descriptor):
    return _read(f"/proc/self/fd/{descriptor}")  # it may be open for writing only


def _read(path):
    return np.frombuffer(Path(path).read_bytes(), np.uint8)


def _resized(content, size):
    if len(content) == size:
        return content
    resized = np.zeros(size, np.uint8)
    resized[:min(size, len(content))] = content[:size]
    return resized


def _restore(directory, tree):
    for name, content in tree.items():
        if isinstance(content, dict):
            (directory / name).mkdir(0o700)
            _restore(directory / name, content)
        else:
            (directory / name).write_bytes(content.tobytes())


NO_SPACE, BROKEN = errno.ENOSPC, errno.EIO
