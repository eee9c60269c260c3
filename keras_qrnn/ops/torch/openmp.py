"""Threads that share a kernel's work: PyTorch's own threads if they are available.

After an operation, PyTorch's OpenMP threads wait for the next operation in a loop. The
loop keeps the cores busy for milliseconds. Other threads would have to share the cores
with that loop.
"""

import ctypes
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait

import torch

# The type of the function that an OpenMP thread calls: it takes one pointer.
TASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
# The process that started PyTorch's threads. A fork of this process lacks them.
PROCESS = os.getpid()


def share(work: Callable[..., None], parts: Iterable[tuple]) -> None:
    """Calls `work(*part)` once for each part, in this thread and in others.

    It returns when all parts are done.

    Args:
        work: the function to call. Several threads call it at the same time.
        parts: the arguments of each call.

    Raises:
        BaseException: the first error of any call. KeyboardInterrupt if an interrupt
            kept this thread from taking part.
    """
    parts = list(parts)
    remaining, ran_in, errors = iter(parts), set(), []

    def take_parts(*_: object) -> None:
        try:
            ran_in.add(threading.get_ident())
            for part in remaining:
                work(*part)
        except BaseException as error:  # noqa: BLE001 (C, the caller, loses errors)
            errors.append(error)

    _in_threads(take_parts, len(parts))
    if threading.get_ident() not in ran_in:
        # A signal handler raised an error while C entered the function. Python prints
        # this error and drops it.
        errors.append(KeyboardInterrupt())
    if errors:
        raise errors[0]


def _in_threads(run: Callable[..., None], count: int) -> None:
    """Calls `run` in this thread and in others.

    The others are all of PyTorch's threads, or else `count - 1` threads of this module.
    """
    # PyTorch's threads do not exist in a fork and may be gone when Python ends.
    available = os.getpid() == PROCESS and not sys.is_finalizing()
    parallel = _openmp() if available else None
    if parallel:
        # PyTorch uses all threads, and so does this. OpenMP would end the unused ones,
        # and PyTorch would have to start them again.
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

    It belongs to the OpenMP library that PyTorch has loaded. None if no loaded library
    has a function of that name.
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


if hasattr(os, "register_at_fork"):  # a fork lacks these threads too
    os.register_at_fork(after_in_child=_own_threads.cache_clear)
