"""Threads that share a kernel's work: PyTorch's own where they can be had.

After an operation of PyTorch its OpenMP threads wait for the next one in a loop that
keeps the cores busy for milliseconds. Threads of any other kind would have to share the
cores with that loop.
"""

import ctypes
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait

import torch

# What a thread of OpenMP calls: a C function of one pointer.
TASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
# The process that started PyTorch's threads. A fork of it has none of them.
PROCESS = os.getpid()


def share(work: Callable[..., None], parts: Iterable[tuple]) -> None:
    """Calls `work(*part)` once for each part, in this thread and in others.

    Returns when all parts are done.

    Raises:
        BaseException: the first error of any part. KeyboardInterrupt where an interrupt
            kept this thread from taking part.
    """
    parts = list(parts)
    remaining, ran_in, errors = iter(parts), set(), []

    def take_parts(*_) -> None:
        try:
            ran_in.add(threading.get_ident())
            for part in remaining:
                work(*part)
        except BaseException as error:  # noqa: BLE001 (C, the caller, passes none on)
            errors.append(error)

    _in_threads(take_parts, len(parts))
    if threading.get_ident() not in ran_in:
        # A signal's handler raised while C entered the function. Python prints that
        # error and drops it.
        errors.append(KeyboardInterrupt())
    if errors:
        raise errors[0]


def _in_threads(run: Callable[..., None], count: int) -> None:
    """Calls `run` in this thread and in others.

    The others are all of PyTorch's threads, or `count - 1` threads of our own.
    """
    # PyTorch's threads do not exist in a fork and may be gone when Python ends.
    available = os.getpid() == PROCESS and not sys.is_finalizing()
    parallel = _openmp() if available else None
    if parallel:
        # All threads, as PyTorch does. OpenMP would end those that are left out, and
        # PyTorch would have to start them again.
        parallel(TASK(run), None, torch.get_num_threads(), 0)
        return
    others = []
    for _ in range(count - 1):
        try:
            others.append(_own_threads().submit(run))
        except RuntimeError:  # Python is ending and starts no more threads
            break
    run()
    wait(others)


@functools.cache
def _openmp() -> Callable | None:
    """The function that compiled C calls to run a parallel region.

    It is that of the OpenMP library which PyTorch has loaded. None where no loaded
    library has a function of that name.
    """
    if os.name == "nt":
        return None
    parallel = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    if parallel is not None:
        parallel.argtypes = TASK, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
        parallel.restype = None
    return parallel


@functools.cache
def _own_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="keras_qrnn")


if hasattr(os, "register_at_fork"):  # a fork has none of these threads either
    os.register_at_fork(after_in_child=_own_threads.cache_clear)
