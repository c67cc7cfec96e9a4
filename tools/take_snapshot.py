"""`exchange snapshot`: asks a running exchange for a snapshot now, and waits until it is there."""
import os
import time

from tools import local_exchange, report
from tools.report import Failed
from tools.rerun import add_data_option

LOOK_SECONDS = 0.05
SECONDS = 60.0


def add_parser(subparsers):
    parser = subparsers.add_parser(
        "snapshot", help="asks a running exchange for a snapshot",
        description="Asks a running exchange for a snapshot of its state now, and waits until it is written and read"
        " back. Nothing is stopped meanwhile.")
    add_data_option(parser)
    parser.add_argument("--seconds", type=float, default=SECONDS, metavar="S", help=f"to wait (default: {SECONDS:g})")
    report.add_json_option(parser)
    parser.set_defaults(run=run)


def run(options):
    local_exchange.prepare_kernels()
    newest = take(options.data, options.seconds)
    report.write_json(options.json, {"sequence": newest.sequence, "path": str(newest.path)})
    report.say(f"{newest.path}, {newest.path.stat().st_size:,} bytes, sequence {newest.sequence:,}")
    return 0


def take(data, seconds=SECONDS):
    """A Snapshot of the exchange that runs on `data`, as it is now. Raises Failed where there is none in time."""
    from pipeline import recovery, snapshot  # late: the cache of their kernels is chosen by now
    from pipeline.snapshotting import REQUEST
    from shm import doorbell, role_lock

    if "snapshotter" not in role_lock.holders(data):
        raise Failed(f"no snapshotter runs on {data}: start the exchange, or name another with --data DIR")
    request = data / "run" / REQUEST
    request.touch()
    bell = doorbell.open_bell(data / "run", "snapshotter")
    doorbell.ring(bell)
    os.close(bell)
    end = time.monotonic() + seconds
    while request.exists():
        if time.monotonic() > end:
            raise Failed(f"no snapshot within {seconds:g} s: see {data / 'log' / 'snapshotter.log'}")
        time.sleep(LOOK_SECONDS)
    return snapshot.snapshots_of(data / recovery.SNAPSHOTS)[0]
