"""The console command `exchange`. People script its names and options: they stay.

Each sub-command is a module with `add_parser(subparsers)`, whose parser sets `run`: `run(options)` returns the exit
code, 0 only when all is well. None of them imports a compiled kernel before it runs.
"""
import argparse
import signal
import sys

from shm.configuration import ConfigurationError
from shm.kernel_cache import CompilationFailed
from tools import audit, bench, conformance, explain, feed, journal_command, kill_test, replay, simulate, take_snapshot
from tools.report import Failed, write_failure

SUBCOMMANDS = (  # in the order of --help
    replay, feed, conformance, kill_test, simulate, bench, take_snapshot, journal_command, audit, explain)


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="exchange", description="Tools around the exchange; run_exchange.py starts one.")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in SUBCOMMANDS:
        module.add_parser(subparsers)
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)  # private exchanges are stopped, as on Ctrl-C
    try:
        return options.run(options)
    except (Failed, ConfigurationError, CompilationFailed) as problem:
        return _failed(options, str(problem), 1)
    except KeyboardInterrupt:
        return _failed(options, "interrupted", 130)


def _failed(options, text, code):
    write_failure(options.json, text)
    print(f"exchange: {text}", file=sys.stderr)
    return code


def _interrupt(_number, _frame):
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
