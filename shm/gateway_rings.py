"""A gateway's ends of its two rings: the words that it shares with the matcher and the journaler.

The slots themselves are bytes for plain Python. `row` is the gateway's index in both segments.
"""
from shm.atomics import fence_seq_cst, load_acquire, store_release
from shm.doorbell import ring_if_asleep
from shm.kernel import kernel
from shm.segments import CommandWord, ReplyWord, Role

COMMAND_TAIL = int(CommandWord.TAIL)
COMMAND_HEAD = int(CommandWord.HEAD)
RELEASED = int(CommandWord.RELEASED)
ROOM_WANTED = int(CommandWord.ROOM_WANTED)
REPLY_TAIL = int(ReplyWord.TAIL)
REPLY_HEAD = int(ReplyWord.HEAD)
MATCHER = int(Role.MATCHER)


@kernel
def is_answered(commands, row):
    """Whether every command in the ring has a visible reply."""
    return load_acquire(commands, row, RELEASED) == load_acquire(commands, row, COMMAND_TAIL)


@kernel
def command_head(commands, row):
    """Slots before it may be refilled."""
    return load_acquire(commands, row, COMMAND_HEAD)


@kernel
def publish_commands(commands, row, tail, sleepers, matcher_bell):
    """Show the matcher everything up to `tail`, once a batch, and wake it if it sleeps."""
    store_release(commands, row, COMMAND_TAIL, tail)
    ring_if_asleep(sleepers, MATCHER, matcher_bell)


@kernel
def want_room(commands, row, wanted):
    """Ask the matcher to ring when it frees slots (1), or not to (0); returns the head as it is after that: whoever
    asked, sleeps and still sees no room will be rung. Who asks while awake looks once more after `announce_sleep`."""
    store_release(commands, row, ROOM_WANTED, wanted)
    fence_seq_cst()
    return load_acquire(commands, row, COMMAND_HEAD)


@kernel
def reply_tail(replies, row):
    """Replies before it are on disk and whole."""
    return load_acquire(replies, row, REPLY_TAIL)


@kernel
def release_replies(replies, row, head):
    """Slots before `head` have been copied out and may be refilled."""
    store_release(replies, row, REPLY_HEAD, head)
