"""The journaler process: `python -m pipeline.journaler --config FILE --data DIR`."""
import argparse
import sys
import time

from shm import configuration, kernel_cache
from shm.configuration import ConfigurationError
from shm.fatal_log import fatal
from shm.kernel_cache import CompilationFailed
from shm.process import Process, die_with_parent, hurry
from shm.segments import Role

BROKEN_DISK_PAUSE_SECONDS = 1.0  # before the next journaler tries


def main(argv=None):
    die_with_parent()
    hurry()
    parser = argparse.ArgumentParser(prog="pipeline.journaler", description="Writes the journal, and lets out what is"
                                     " on disk.")
    parser.add_argument("--config", required=True, help="the configuration, a TOML file")
    parser.add_argument("--data", required=True, help="the data directory")
    options = parser.parse_args(argv)
    try:
        settings = configuration.load(options.config)
        kernel_cache.ensure_compiled(settings.cache_root(options.data))
    except (ConfigurationError, CompilationFailed) as problem:
        sys.exit(f"journaler: {problem}")
    from pipeline.journaling import Defect, Journaler  # late: the cache of its kernels is chosen by now
    from pipeline.segment_file import JournalRefused, JournalUnwritable

    process = Process("journaler", Role.JOURNALER, options.data, settings.rings)
    try:
        journaler = Journaler(process, settings.journal)
        try:
            journaler.run()
        except JournalUnwritable:
            journaler.abandon()
            raise
    except JournalRefused as refusal:
        fatal(process.data, process.name, str(refusal))
        sys.exit(1)
    except JournalUnwritable as problem:
        fatal(process.data, process.name, f"the journal cannot be written: {problem}; what was not synced stays in the"
              " journal ring and is written again by the next journaler: look after the disk")
        time.sleep(BROKEN_DISK_PAUSE_SECONDS)
        sys.exit(1)
    except (Defect, AssertionError) as defect:
        process.defect(f"{type(defect).__name__}: {defect}")


if __name__ == "__main__":
    main()
