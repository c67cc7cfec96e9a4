"""How functions are compiled: a `kernel` is called by Python, a `sleeping_kernel` too; `inlined` and `called` ones are
parts of kernels.

All are cached on disk and count no references. A part has no entry for Python: building and optimizing those took half
of all compile time. So Python must not call a part: the process would end by SIGSEGV (test_tidy.py looks for it).
"""
from numba import njit


def kernel(function):
    """Python calls it, and kernels may. Each is listed in its room's kernels.py."""
    return njit(cache=True, _nrt=False, no_cfunc_wrapper=True)(function)


def sleeping_kernel(function):
    """A kernel that may sleep: other threads of Python run until it returns."""
    return njit(cache=True, _nrt=False, no_cfunc_wrapper=True, nogil=True)(function)


def inlined(function):
    """Only kernels call it, and it becomes a part of each."""
    return njit(cache=True, _nrt=False, forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)


def called(function):
    """Only kernels call it, and not often: inlining it would make them larger, not faster."""
    return njit(cache=True, _nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)
