"""Compiled kernels on disk: one folder a digest of all that they depend on, filled once by one process.

Numba looks at the source file of each function alone, so a kernel would keep what it once imported from another; and
processes that compile into one cache at once are a known crash. Therefore a process's entry point calls `use` or
`ensure_compiled` before it imports any kernel, and the folder's name covers every source, version and the CPU.
Nothing here imports numba.
"""
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from shm.process import die_with_parent

PROJECT = Path(__file__).resolve().parents[1]
SOURCE_FOLDERS = ("shm", "pipeline", "gateways")
ROOMS = ("pipeline.kernels", "gateways.kernels")       # modules that list kernels
COMPILER = (sys.executable, "-m", "shm.kernel_compiler", *ROOMS)  # compiles all, printing `progress_line`s
COMPLETE = "COMPLETE"
FOLDER_PREFIX = "kernels-"


class CompilationFailed(Exception):
    """The kernels cannot be compiled; the text ends with what the compiler said."""


def digest(project=PROJECT):
    """Changes with anything that a compiled kernel depends on."""
    import llvmlite.binding  # late: the digest alone needs it, and it loads LLVM

    parts = [str(project), platform.machine(), platform.python_version(), sys.implementation.cache_tag]
    for package in ("numba", "llvmlite", "numpy"):
        installed = Path(find_spec(package).origin).parents[1]  # importlib.metadata is slow to import
        parts += sorted(path.name for path in installed.glob(f"{package}-*.dist-info"))
    parts += [llvmlite.binding.get_host_cpu_name(), str(sorted(llvmlite.binding.get_host_cpu_features().items()))]
    parts.append(f"boundscheck {os.environ.get('NUMBA_BOUNDSCHECK', '')}")
    for folder in SOURCE_FOLDERS:
        for path in sorted((project / folder).rglob("*.py")):
            parts += [str(path.relative_to(project)), hashlib.sha256(path.read_bytes()).hexdigest()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def cache_directory(root):
    """The folder under `root` that the kernels of these sources on this machine belong in."""
    return Path(root) / f"{FOLDER_PREFIX}{digest()}"


def is_complete(directory):
    """Whether every kernel is in it, none of them cut short since. Files may have grown: numba adds signatures."""
    try:
        sizes = json.loads((directory / COMPLETE).read_text(encoding="utf-8"))
        return all((directory / name).stat().st_size >= size for name, size in sizes.items())
    except (FileNotFoundError, ValueError):
        return False


_held = {}  # directory: descriptor of its lock, for life


def use(root):
    """Make numba keep its kernels under `root` from now on, and keep others from removing them while this process
    lives. Returns the folder.

    Raises RuntimeError where numba is imported already: it read its setting then.
    """
    directory = cache_directory(root).absolute()
    if "numba" in sys.modules and os.environ.get("NUMBA_CACHE_DIR") != str(directory):
        raise RuntimeError("the kernel cache must be chosen before numba is imported")
    if directory not in _held:
        _held[directory] = _hold(directory)
    os.environ["NUMBA_CACHE_DIR"] = str(directory)
    return directory


def ensure_compiled(root, report=None):
    """`use(root)`, with every kernel compiled when this returns: by this process's child, or by another while this one
    waits. `report(done, total, name)` is called before each kernel that is compiled.

    Raises CompilationFailed.
    """
    try:
        directory = use(root)
        if not is_complete(directory):
            with _compiling(root):
                if not is_complete(directory):
                    _empty(directory)
                    _compile(report)
                    _mark_complete(directory)
                    _remove_others(directory)
    except OSError as error:
        raise CompilationFailed(f"the kernel cache {root} cannot be used: {error.filename}: {error.strerror}; see"
                                " [cache] directory") from None
    return directory


def progress_line(done, total, name):
    """What the compiler prints before each kernel, as `report` of its loop: in one write, as several print at once."""
    sys.stdout.write(json.dumps([done, total, name]) + "\n")
    sys.stdout.flush()


def _compile(report):
    with subprocess.Popen(
            COMPILER, cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", preexec_fn=die_with_parent) as child:
        said = []
        for line in child.stdout:
            try:
                done, total, name = json.loads(line)
            except (TypeError, ValueError):  # not a line of progress
                said.append(line.rstrip())
            else:
                if report:
                    report(done, total, name)
    if child.returncode != 0:
        raise CompilationFailed("\n".join(
            [f"compiling the kernels failed, {' '.join(COMPILER[1:])} ended with {child.returncode}:", *said]))


def _empty(directory):
    """Remove what an earlier compilation has left: it may be damaged."""
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _mark_complete(directory):
    """Say that all is there, once all of it is on disk."""
    sizes = {}
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        sizes[str(path.relative_to(directory))] = path.stat().st_size
    (directory / COMPLETE).write_text(json.dumps(sizes), encoding="utf-8")


@contextmanager
def _compiling(root):
    with open(Path(root) / "compiling.lock", "w", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _hold(directory):
    """Take a share of the folder, making it where it is missing; the descriptor holds it."""
    while True:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        try:
            if os.path.samestat(os.fstat(descriptor), os.stat(directory)):
                return descriptor
        except FileNotFoundError:
            pass  # removed between opening and locking
        os.close(descriptor)


def _remove_others(directory):
    """Remove the folders of other digests that no process holds a share of."""
    for other in directory.parent.glob(f"{FOLDER_PREFIX}*"):
        if other == directory:
            continue
        descriptor = os.open(other, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(other, ignore_errors=True)  # what stays of another user's folder harms nothing
        except BlockingIOError:
            pass  # in use
        finally:
            os.close(descriptor)
