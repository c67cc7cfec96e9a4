"""A data directory's journal through the core again, for whoever asks what happened. Nothing is written, and the
exchange may run meanwhile.
"""
from pathlib import Path

import numpy as np

from shm.decimals import fmt
from shm.process import instance_of
from shm.records import INT64_MAX, LIMITS, MONEY_DECIMALS
from tools.local_exchange import PROJECT
from tools.report import Failed


def add_data_option(parser):
    parser.add_argument("--data", type=Path, default=PROJECT / "data", metavar="DIR",
                        help="the data directory (default: data beside run_exchange.py)")


class Rerun:
    """The core at a sequence, from the newest snapshot before `start`; `replica`, `found` (the journal behind it)."""

    def __init__(self, data, start=0, tell=print):
        """Raises Failed where the data cannot be read."""
        from pipeline import recovery  # late: the cache of its kernels is chosen by now
        from pipeline.journal_tail import JournalTail
        from pipeline.segment_file import JournalRefused

        if not (data / recovery.JOURNAL).is_dir():
            raise Failed(f"{data} holds no journal: name a data directory with --data DIR")
        self._refused = JournalRefused
        try:
            instance = instance_of(data)
            begun = recovery.base(data, instance, np.zeros((), LIMITS), tell, sequence_max=start)
        except JournalRefused as refusal:
            raise Failed(str(refusal)) from refusal
        self.replica, self.found, self.place = begun.replica, begun.found, begun.place
        self._tail = JournalTail(data / recovery.JOURNAL, instance, begun.place)

    @property
    def end(self):
        """The journal's last sequence when this began."""
        return self.found.end_sequence

    def read(self, until=INT64_MAX):
        """Yield (path, slots, slot, end) of what comes next, up to the sequence `until`; who takes it applies it."""
        try:
            yield from self._tail.read(min(until, self.end))
        except self._refused as refusal:
            raise Failed(str(refusal)) from refusal

    def run(self, until=INT64_MAX):
        """Apply all up to the sequence `until`."""
        from pipeline.follower import NO_GENERATION, NO_POSITIONS
        from pipeline.replay import ReplayDiverged, apply_span

        for path, slots, slot, end in self.read(until):
            try:
                apply_span(self.replica, path, slots, slot, end, NO_POSITIONS, NO_GENERATION)
            except ReplayDiverged as problem:
                raise Failed(str(problem)) from problem

    def assets(self):
        from pipeline.seeding import asset_names

        return asset_names(self.replica.state)

    def markets(self):
        from pipeline.seeding import market_names

        return market_names(self.replica.state)


def money(record, name):
    """The 128-bit amount in a record's fields NAME_low and NAME_high, in 10^-20."""
    from shm.int128 import join  # late: with it comes numba

    return join(int(record[f"{name}_low"]), int(record[f"{name}_high"]))


def shown(units):
    """Money as a decimal number, exactly."""
    return fmt(units, MONEY_DECIMALS if units else 0)
