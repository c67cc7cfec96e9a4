"""Where the tests' compiled kernels are kept, and how much the long tests do.

The folder is named after a digest of all sources, so no kernel is ever older than what it was made of, and it is the
one that the processes under test use. Whoever sets NUMBA_CACHE_DIR answers for that.
"""
import os

from hypothesis import settings

from shm import kernel_cache
from tools.local_exchange import KERNELS, prepare_kernels

if "NUMBA_CACHE_DIR" not in os.environ:
    kernel_cache.use(KERNELS)

settings.register_profile("exchange", deadline=None, print_blob=True)  # a first call compiles; a loaded machine waits
settings.load_profile("exchange")


def pytest_addoption(parser):
    parser.addoption("--oracle-commands", type=int, default=60_000, metavar="N",
                     help="random commands that core and reference are compared on (a full run: 1000000)")
    parser.addoption("--oracle-seed", type=int, default=1, metavar="SEED", help="where their randomness begins")
    parser.addoption("--ring-records", type=int, default=3_000_000, metavar="N",
                     help="records through a ring between two processes (a full run: 100000000)")
    parser.addoption("--ring-kills", type=int, default=100, metavar="N",
                     help="kills of a ring's producer in mid-batch (a full run: 3000)")
    parser.addoption("--fuzz-inputs", type=int, default=30_000, metavar="N",
                     help="bodies, and streams, that the fast and the plain path are compared on (a full run: 1000000)")
    parser.addoption("--fuzz-seed", type=int, default=1, metavar="SEED", help="where their randomness begins")
    parser.addoption("--simulation-seeds", type=int, default=25, metavar="N",
                     help="seeds of the simulator that must keep every promise (a full run: 10000)")


def pytest_configure(config):
    """Processes that compile into one cache at once are a known crash: with several workers all is compiled before."""
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        prepare_kernels()
