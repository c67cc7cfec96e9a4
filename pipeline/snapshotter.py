"""The snapshotter process: `python -m pipeline.snapshotter --config FILE --data DIR`."""
import argparse
import os
import sys

from shm import configuration, kernel_cache
from shm.configuration import ConfigurationError
from shm.fatal_log import fatal
from shm.kernel_cache import CompilationFailed
from shm.process import Process, die_with_parent, hurry
from shm.segments import Role

NICENESS = 10                  # the order path comes first


def main(argv=None):
    die_with_parent()
    hurry()
    parser = argparse.ArgumentParser(prog="pipeline.snapshotter", description="Makes snapshots of what the journal"
                                     " says, and lets the journal before them go.")
    parser.add_argument("--config", required=True, help="the configuration, a TOML file")
    parser.add_argument("--data", required=True, help="the data directory")
    options = parser.parse_args(argv)
    try:
        settings = configuration.load(options.config)
        kernel_cache.ensure_compiled(settings.cache_root(options.data))
    except (ConfigurationError, CompilationFailed) as problem:
        sys.exit(f"snapshotter: {problem}")
    from pipeline.replay import ReplayDiverged  # late: the cache of its kernels is chosen by now
    from pipeline.segment_file import JournalRefused
    from pipeline.snapshotting import Snapshotter

    os.nice(NICENESS)
    process = Process("snapshotter", Role.SNAPSHOTTER, options.data, settings.rings)
    try:
        Snapshotter(process, settings).run()
    except (JournalRefused, ReplayDiverged) as refusal:
        fatal(process.data, process.name, str(refusal))
        sys.exit(1)
    except AssertionError as defect:
        process.defect(f"{type(defect).__name__}: {defect}")


if __name__ == "__main__":
    main()
