"""The command at hand, private to the core."""
from typing import NamedTuple

import numpy as np
from numba import int64, uint64

from shm.kernel import inlined
from shm.records import ASSET, COMMAND, COMMAND_SLOTS_MAX, LIMITS, MARKET

LABEL_WORD = COMMAND.fields["label"][1] // 8
assert COMMAND.fields["label"][1] % 8 == 0


class Inbox(NamedTuple):
    """One command, copied out of its ring or its journal record: private, so nobody changes it under our eyes."""
    words: np.ndarray      # uint64: all its slots
    command: np.ndarray    # COMMAND (1)
    limits: np.ndarray     # LIMITS (1): the payload of SET_LIMITS
    asset: np.ndarray      # ASSET (1): ... of ADD_ASSET
    market: np.ndarray     # MARKET (1): ... of ADD_MARKET


def make_inbox():
    buffer = np.zeros(COMMAND_SLOTS_MAX * COMMAND.itemsize, np.uint8)
    payload = buffer[COMMAND.itemsize:]
    return Inbox(
        words=buffer.view(np.uint64), command=buffer[:COMMAND.itemsize].view(COMMAND),
        limits=payload[:LIMITS.itemsize].view(LIMITS), asset=payload[:ASSET.itemsize].view(ASSET),
        market=payload[:MARKET.itemsize].view(MARKET))


@inlined
def label_word(words, index, label_bytes):
    """Eight bytes of the command's label, zero beyond its end."""
    bytes_here = int64(label_bytes) - 8 * index
    if bytes_here >= 8:
        return words[LABEL_WORD + index]
    if bytes_here <= 0:
        return uint64(0)
    return words[LABEL_WORD + index] & ((uint64(1) << uint64(8 * bytes_here)) - uint64(1))
