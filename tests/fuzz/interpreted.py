"""Kernels as Python: import this before any module that has some, with NUMBA_DISABLE_JIT=1.

What is an LLVM instruction in a kernel is a function here; as much as requests need.
"""
import os

import numpy as np

from shm import atomics, byte_copy

assert os.environ.get("NUMBA_DISABLE_JIT") == "1"
np.seterr(over="ignore")       # hashes wrap


def _copy_bytes(target, target_at, source, source_at, count):
    assert 0 <= target_at <= target_at + count <= len(target) and 0 <= source_at <= source_at + count <= len(source)
    target[target_at:target_at + count] = bytearray(source[source_at:source_at + count])


def _load_acquire(words, row, word):
    return words[row, word]


byte_copy.copy_bytes = _copy_bytes
atomics.load_acquire = _load_acquire
