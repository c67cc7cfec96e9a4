"""Compiling on all cores: shm/kernel_compiler.py with rooms of its own, and what the real rooms list."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
from numba import typeof

from pipeline import core, kernels, replay, sequencer
from shm import kernel_cache
from shm.kernel_compiler import groups_of
from tools.local_exchange import prepare_kernels

ROOT = Path(__file__).resolve().parents[1]
ROOM = r'''
import os, signal
import numpy as np
from numba import types
from numba.extending import intrinsic
from shm.kernel import called, inlined, kernel

@intrinsic
def noted(typingctx, value):
    """`value`; each compilation leaves a line in the file COMPILED."""
    def codegen(context, builder, signature, args):
        with open(os.environ["COMPILED"], "a") as file:
            file.write(f"{signature.args[0]}\n")
        return args[0]
    return value(value), codegen

@intrinsic
def deadly(typingctx, value):
    os.kill(os.getpid(), signal.SIGKILL)

@kernel
def shared(array):
    return noted(array[0]) + 1

@inlined
def doubled(value):
    return value * 2

@called
def of_two(array):
    return doubled(shared(array))

@kernel
def first(array):
    return of_two(array) + shared(array)

@kernel
def second(array):
    return of_two(array) - shared(array)

@kernel
def wrong(array):
    return shared(array).no_such_attribute

@kernel
def fatal(array):
    return deadly(array[0])

def kernels():
    array, floats = np.zeros(1, np.int64), np.zeros(1)
    return [[(globals()[name], (array,))] for name in os.environ["LISTED"].split()] + [[(first, (floats,))]]
'''
COMPILE = """
import sys
from shm import kernel_cache
kernel_cache.COMPILER = (sys.executable, "-m", "shm.kernel_compiler", "room")
try:
    kernel_cache.ensure_compiled(sys.argv[1], lambda done, total, name: print(done, total, name))
except kernel_cache.CompilationFailed as failure:
    sys.exit(str(failure))
"""
USE = """
import sys
from shm import kernel_cache
kernel_cache.use(sys.argv[1])
import numpy as np
import room
print([room.first(np.ones(1, np.int64)), room.second(np.ones(1, np.int64)), room.first(np.ones(1))])
print([len(function.stats.cache_misses) for function in (room.first, room.second, room.of_two, room.shared)])
"""


@pytest.fixture
def in_room(tmp_path):
    """Runs Python code with a room of the kernels named; gives its result and what was compiled."""
    (tmp_path / "room.py").write_text(ROOM)
    noted = tmp_path / "compiled"

    def run(code, *listed):
        result = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "cache")], cwd=ROOT, capture_output=True, text=True,
            env={name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"} | {
                "PYTHONPATH": f"{ROOT}:{tmp_path}", "COMPILED": str(noted), "LISTED": " ".join(listed)})
        return result, sorted(noted.read_text().split()) if noted.exists() else []
    (tmp_path / "cache").mkdir()
    return run


def test_what_processes_compile_together_is_whole_and_compiled_once(in_room):
    made, compiled = in_room(COMPILE, "first", "second")
    assert made.returncode == 0, made.stderr
    assert sorted(made.stdout.splitlines()) == ["0 3 first", "1 3 second", "2 3 first"]
    assert compiled == ["float64", "int64"]      # `shared`, which both call, once for each type
    used, compiled_then = in_room(USE)
    assert used.stdout.splitlines() == ["[6, 2, 6.0]", "[0, 0, 0, 0]"], used.stderr
    assert compiled_then == compiled


def test_a_kernel_that_cannot_be_compiled_is_reported_whole_and_leaves_no_complete_cache(in_room, tmp_path):
    made, _ = in_room(COMPILE, "first", "wrong", "second")
    assert made.returncode == 1
    assert "compiling the kernels failed" in made.stderr and "Traceback (most recent call last)" in made.stderr
    assert "Unknown attribute 'no_such_attribute' of type int64" in made.stderr
    assert 'room.py", line' in made.stderr and made.stderr.count("Traceback") == 1
    assert not list(tmp_path.glob("cache/*/COMPLETE"))
    repaired, _ = in_room(COMPILE, "first", "second")
    assert repaired.returncode == 0, repaired.stderr


def test_a_compiling_process_that_is_killed_ends_all_of_them(in_room):
    made, _ = in_room(COMPILE, "first", "fatal", "second")
    assert made.returncode == 1 and "a compiling process was ended by signal 9" in made.stderr


def test_rooms_take_turns(monkeypatch):
    class Room:
        def __init__(self, *names):
            self.kernels = lambda: list(names)
    for name, room in (("one", Room("a", "b", "c")), ("two", Room("x"))):
        monkeypatch.setitem(sys.modules, name, room)
    assert groups_of(["one", "two"]) == ["a", "x", "b", "c"]


def test_what_is_listed_has_an_entry_for_python_and_is_in_the_cache_for_the_listed_types():
    prepare_kernels()
    listed = dict(kernels.kernels()[0])
    assert {sequencer.serve, replay.replay_span, core.apply_one} <= set(listed)
    for function, arguments in listed.items():
        assert not function.targetoptions.get("no_cpython_wrapper"), function
        signatures = {signature for signature, *_target in function._cache._cache_file._load_index()}
        assert tuple(map(typeof, arguments)) in signatures, function


def test_every_room_is_compiled():
    assert set(kernel_cache.ROOMS) == {
        f"{path.parent.name}.kernels" for path in ROOT.glob("*/kernels.py") if path.parent.name != "tests"}
