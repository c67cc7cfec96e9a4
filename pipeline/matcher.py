"""The matcher process: `python -m pipeline.matcher --config FILE --data DIR`."""
import argparse
import sys

from shm import configuration, kernel_cache
from shm.configuration import ConfigurationError
from shm.fatal_log import fatal
from shm.kernel_cache import CompilationFailed
from shm.process import Process, die_with_parent, hurry
from shm.segments import Role


def main(argv=None):
    die_with_parent()
    hurry()
    parser = argparse.ArgumentParser(prog="pipeline.matcher", description="Applies all commands, one after the other.")
    parser.add_argument("--config", required=True, help="the configuration, a TOML file")
    parser.add_argument("--data", required=True, help="the data directory")
    options = parser.parse_args(argv)
    try:
        settings = configuration.load(options.config)
        kernel_cache.ensure_compiled(settings.cache_root(options.data))
    except (ConfigurationError, CompilationFailed) as problem:
        sys.exit(f"matcher: {problem}")
    from pipeline.matcher_agent import Broken, Matcher  # late: the cache of its kernels is chosen by now
    from pipeline.replay import ReplayDiverged
    from pipeline.seeding import Contradiction
    from pipeline.segment_file import JournalRefused

    process = Process("matcher", Role.MATCHER, options.data, settings.rings)
    try:
        Matcher(process, settings).run()
    except (JournalRefused, ReplayDiverged, Contradiction) as refusal:
        fatal(process.data, process.name, str(refusal))
        sys.exit(1)
    except (Broken, AssertionError) as defect:
        process.defect(f"{type(defect).__name__}: {defect}")


if __name__ == "__main__":
    main()
