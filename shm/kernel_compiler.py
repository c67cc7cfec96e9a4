"""Compiles every kernel of all rooms into the kernel cache: `python -m shm.kernel_compiler ROOM...`, where a room is a
module with `kernels()`: groups of (function, arguments of the types it is called with). `kernel_cache` runs it.

Processes on all cores take groups from one list. Kernels made of the same parts stand in one group, as each process
makes the parts that it needs. Each kernel has a lock, held from the look into the cache until what was compiled is in
it: whoever needs the same one waits, and finds it there. So no kernel is compiled twice, and numba's index of a
function, which is read, changed and written as a file, has one writer at a time. Callers are locked before what they
call and nothing calls itself, so nobody waits in a circle.
"""
import fcntl
import gc
import importlib
import multiprocessing
import os
import sys
import tempfile
import traceback
from itertools import accumulate, chain, zip_longest
from multiprocessing.connection import wait
from pathlib import Path

from numba import typeof
from numba.core import dispatcher
from numba.core.caching import FunctionCache

from shm.kernel_cache import progress_line
from shm.process import die_with_parent

WORKERS_MAX = 4                # each takes some 350 MB; the largest group takes longer than all the others together


class SharedCache(FunctionCache):
    """numba's cache of one function, for processes that compile into one folder at once.

    Numba asks `load_overload` before it compiles and calls `save_overload` after it (0.68, see setup.cfg).
    """

    locks = None               # the folder of the lock files
    _lock = None

    def load_overload(self, sig, target_context):
        assert self._lock is None, f"{self._name} calls itself"
        path = self.locks / self._impl.filename_base
        self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        found = super().load_overload(sig, target_context)
        if found is not None:
            self._unlock()
        return found

    def save_overload(self, sig, data):
        super().save_overload(sig, data)
        self._unlock()

    def _unlock(self):
        os.close(self._lock)
        self._lock = None


def groups_of(rooms):
    """The rooms' groups, one of each room in turn."""
    lists = [importlib.import_module(room).kernels() for room in rooms]
    return [group for group in chain.from_iterable(zip_longest(*lists)) if group is not None]


def compile_all(rooms):
    """Compile what is not in the cache, printing a progress line before each; returns the exit code.

    Where a kernel cannot be compiled, the others are given up and stderr says why.
    """
    dispatcher.FunctionCache = SharedCache  # what numba gives each function that is made from now on
    groups = groups_of(rooms)
    assert all(isinstance(function._cache, SharedCache) for group in groups for function, _arguments in group)
    gc.freeze()
    gc.set_threshold(200_000, 20, 20)  # the collector took an eighth of the time, walking what is never freed
    with tempfile.TemporaryDirectory(prefix="kernel-locks-") as locks:
        SharedCache.locks = Path(locks)
        context = multiprocessing.get_context("fork")
        waiting = context.SimpleQueue()
        count = min(len(os.sched_getaffinity(0)), WORKERS_MAX)
        for entry in [*range(len(groups)), *[None] * count]:
            waiting.put(entry)
        outputs = {}           # worker: what it says on stderr, whole
        for _ in range(count):
            output = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (read when the worker has ended)
            worker = context.Process(target=_work, args=(groups, waiting, output), daemon=True)
            worker.start()
            outputs[worker] = output
        failed = _first_failure(outputs)
        for worker in outputs if failed is None else [failed]:
            outputs[worker].seek(0)
            sys.stderr.write(outputs[worker].read())
        if failed is not None and failed.exitcode < 0:
            print(f"a compiling process was ended by signal {-failed.exitcode}", file=sys.stderr)
    return 0 if failed is None else 1


def _work(groups, waiting, output):
    die_with_parent()
    os.dup2(output.fileno(), 2)
    firsts = list(accumulate(map(len, groups), initial=0))
    while (index := waiting.get()) is not None:
        for done, (function, arguments) in enumerate(groups[index], start=firsts[index]):
            progress_line(done, firsts[-1], function.py_func.__qualname__)
            try:
                function.compile(tuple(map(typeof, arguments)))
            except Exception:
                traceback.print_exc()
                sys.exit(1)


def _first_failure(workers):
    """The first worker that ends and has failed, with the others ended; None once all have done their work."""
    running = list(workers)
    while running:
        ready = wait([worker.sentinel for worker in running])
        for worker in [worker for worker in running if worker.sentinel in ready]:
            worker.join()
            running.remove(worker)
            if worker.exitcode != 0:
                for other in running:
                    other.kill()
                    other.join()
                return worker
    return None


if __name__ == "__main__":
    die_with_parent()
    sys.exit(compile_all(sys.argv[1:]))
