"""Reading the events ring, a broadcast: its writer waits for nobody, so a slow reader is lapped, and told so.

Writer: INTENT passes the position that a slot will hold (release), then a release fence, then the slot is overwritten.
Reader: copies slots, then an acquire fence, then looks whether INTENT has come too near. Any number of readers; each
keeps its own position, of which the ring knows nothing. Positions count events from 0 and never wrap.
"""
from shm.atomics import fence_acquire, load_acquire
from shm.kernel import kernel
from shm.segments import EventWord

INTENT = int(EventWord.INTENT)
VISIBLE = int(EventWord.VISIBLE)
LAPPED = -1


@kernel
def visible_end(words):
    """Events before it are on disk; they are in the ring as long as their slots are not used again."""
    return load_acquire(words, 0, VISIBLE)


@kernel
def copy_events(words, slots, position, end, events):
    """Copy the events [position, end) to `events` (uint64, rows like `slots`), as many as it has rows; return how many.

    `end` is what `visible_end` has given. LAPPED: a slot was used again, or may have been; nothing in `events` counts.
        Whoever is lapped says that there is a gap and goes on at a newer position.
    Order: INTENT is acquired after the copies, behind a fence: an overwritten slot whose new content was copied was
        announced before, so the look finds it.
    Cost: one shared load a call beside the copies.
    """
    count = min(end - position, len(events))
    mask = slots.shape[0] - 1
    for index in range(count):
        slot = (position + index) & mask
        for word in range(slots.shape[1]):
            events[index, word] = slots[slot, word]
    fence_acquire()
    if load_acquire(words, 0, INTENT) - slots.shape[0] > position:
        return LAPPED
    return count
