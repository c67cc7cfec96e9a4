"""Whether matcher and journal say the same: the matcher's running digest against a follower's at the same sequence."""
from numba import int64

from pipeline.state import OUTPUT_DIGEST
from shm.atomics import fence_acquire, load_acquire
from shm.kernel import kernel
from shm.segments import CounterWord, Role

MATCHER = int(Role.MATCHER)
SEQUENCE, DIGEST = int(CounterWord.SEQUENCE), int(CounterWord.OUTPUT_DIGEST)
DIGEST_SEQUENCE = int(CounterWord.DIGEST_SEQUENCE)


@kernel
def digest_of_matcher(counters):
    """(sequence, running digest of all up to it) as the matcher shows it; (-1, 0) where it is changing just now."""
    sequence = load_acquire(counters, MATCHER, SEQUENCE)
    digest = load_acquire(counters, MATCHER, DIGEST)
    fence_acquire()
    if load_acquire(counters, MATCHER, DIGEST_SEQUENCE) != sequence:
        return int64(-1), int64(0)
    return sequence, digest


class Comparison:
    """Compares, as often as there is something to compare: `stop` is where a follower has to be for the next one."""

    def __init__(self, counters):
        self._counters, self._digest = counters, 0
        self.stop = 0          # a sequence
        self.compared = 0      # how often they were the same

    def look(self, sequence):
        """Choose the next place after `sequence`, unless one is chosen already."""
        if self.stop <= sequence:
            shown, digest = digest_of_matcher(self._counters)
            if shown > sequence:
                self.stop, self._digest = int(shown), int(digest)

    def is_equal(self, replica):
        """Whether the replica has said what the matcher had said; True where it is elsewhere."""
        if replica.sequence != self.stop or self.stop == 0:
            return True
        self.compared += 1
        return int(replica.state.counters[OUTPUT_DIGEST]) == self._digest
