"""Slots of shared rings: copying messages in and out. Positions count slots from 0 and never wrap; the slot of a
position is `position & (capacity - 1)`. One producer, one consumer; a message may take several slots, and is whole
for its reader because the producer's cursor passes all of them at once.

`slots` is a segment's row: uint64 (capacity, words of a slot). Cursors are words of the segment: see segments.py for
each one's only writer. A producer stores its cursor with release after the batch; a consumer acquires it.
"""
from shm.kernel import kernel


@kernel
def copy_in(slots, position, message, count):
    """Copy `count` slots of `message` (uint64, contiguous) to `position` and on. Unseen until the cursor passes."""
    mask = slots.shape[0] - 1
    width = slots.shape[1]
    for index in range(count):
        slot = (position + index) & mask
        for word in range(width):
            slots[slot, word] = message[index * width + word]


@kernel
def copy_out(slots, position, count, message):
    """Copy `count` slots from `position` on to `message` (uint64, contiguous)."""
    mask = slots.shape[0] - 1
    width = slots.shape[1]
    for index in range(count):
        slot = (position + index) & mask
        for word in range(width):
            message[index * width + word] = slots[slot, word]
