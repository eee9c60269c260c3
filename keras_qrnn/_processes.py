"""Several processes that train one model on JAX: which one this is, what they agree on.

Where there is one process, or another backend, these functions do nothing special.
"""

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_qrnn._types import Tensor


def _is_on_jax() -> bool:
    return keras.config.backend() == "jax"


def join_processes(seed: int) -> None:
    """Joins the processes that Keras's variables name. Without them, does nothing.

    These are `KERAS_DISTRIBUTION_JOB_ADDRESSES`, `KERAS_DISTRIBUTION_NUM_PROCESSES` and
    `KERAS_DISTRIBUTION_PROCESS_ID`: see `keras.distribution.initialize`. Call it before
    anything is computed.

    Args:
        seed: of all processes. Without one they would draw one together.

    Raises:
        ValueError: if JAX is older than 0.8. Its processes make arrays of Keras on a
            device of the first process, and then wait for each other for ever.
    """
    names = (
        f"KERAS_DISTRIBUTION_{each}" for each in ("JOB_ADDRESSES", "NUM_PROCESSES")
    )
    if not (_is_on_jax() and any(name in os.environ for name in names)):
        return
    import jax

    if jax.__version_info__ < (0, 8):
        raise ValueError(
            "The variables `KERAS_DISTRIBUTION_*`: several processes need JAX 0.8 or "
            f"newer. Received: JAX {jax.__version__}."
        )
    if not jax.distributed.is_initialized():
        keras.utils.set_random_seed(seed)
        keras.distribution.initialize()


def process_count() -> int:
    """Number of processes that train together."""
    if not _is_on_jax():
        return 1
    import jax

    return jax.process_count()


def process_index() -> int:
    """Index of this process, from 0."""
    if not _is_on_jax():
        return 0
    import jax

    return jax.process_index()


def is_first() -> bool:
    """Whether this process is the one that writes files and prints."""
    return process_index() == 0


def local_devices() -> list[str]:
    """The names of this process's devices, as Keras names them."""
    import jax

    return [f"{device.platform}:{device.id}" for device in jax.local_devices()]


def decided_by_first(decide: Callable[[], bool]) -> bool:
    """The result of `decide` in process 0, in all processes. Only that one calls it.

    Raises:
        ValueError: in the other processes, if process 0 raises an error.
    """
    if process_count() == 1:
        return decide()
    from jax.experimental import multihost_utils

    if not is_first():
        decision = int(multihost_utils.broadcast_one_to_all(np.int32(0)))
        if decision < 0:
            raise ValueError("Process 0 ended with an error. It says which one")
        return bool(decision)
    decision = -1
    try:
        decision = int(decide())
    finally:
        multihost_utils.broadcast_one_to_all(np.int32(decision))
    return bool(decision)


def wait_for_all(what: str) -> None:
    """Waits until all processes have come here.

    Args:
        what: the name of this place in the program.
    """
    if process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(what)


def end_if_joined(code: int, message: str = "") -> None:
    """Ends this process at once if it has joined others. Otherwise it does nothing.

    At a usual exit JAX waits for the others for 5 minutes, and they wait for this one.
    At this exit they lose the connection, and end with an error.

    Args:
        code: the exit code.
        message: what to print on stderr before.
    """
    if not _is_on_jax():
        return
    import jax

    if jax.distributed.is_initialized() and process_count() > 1:
        with contextlib.suppress(OSError):  # whoever reads the output may have ended
            sys.stdout.flush()
        with contextlib.suppress(OSError):
            print(message, end="", file=sys.stderr, flush=True)
        os._exit(code)


def whole_array(variable: keras.Variable) -> Tensor:
    """The whole value of a variable, gathered where this process lacks parts of it.

    With one process it is the variable itself. All processes must call this.
    """
    if process_count() == 1:
        return variable
    value = variable.value
    if value.is_fully_addressable or value.is_fully_replicated:
        return value
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(value, tiled=True)


def axis_sizes(distribution: Any) -> dict[str, int]:
    """The number of devices along each axis of a distribution's mesh."""
    mesh = distribution.device_mesh
    return dict(zip(mesh.axis_names, mesh.shape, strict=True))


def parts_of_a_batch() -> int:
    """Number of parts that the distribution which is set divides the rows in, or 1."""
    distribution: Any = keras.distribution.distribution()
    if distribution is None:
        return 1
    return axis_sizes(distribution)[distribution.batch_dim_name]


def part_of_this_process() -> tuple[int, int]:
    """The part of the rows of each batch that this process reads: `(index, parts)`.

    Under the distribution that is set. Processes that share rows read the same part.
    """
    parts = min(parts_of_a_batch(), process_count())
    return process_index() * parts // process_count(), parts
