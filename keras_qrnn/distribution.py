"""Several devices on JAX: how weights, states and batches are divided among them.

Keras divides arrays with JAX only. A distribution of this module is used as any of
Keras's: pass it to `keras.distribution.set_distribution`, or use its `scope()`, before
the model is made.
"""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from keras_qrnn._processes import axis_sizes, local_devices, process_count
from keras_qrnn._types import Shape
from keras_qrnn.layers._states import KEPT_NAMES

BATCH, MODEL = "batch", "model"  # the axes of a mesh of devices

# What the other frameworks can do instead.
_ELSEWHERE = {
    "tensorflow": "On TensorFlow, make and fit a model in the scope of "
    "`tf.distribute.MirroredStrategy`",
    "torch": "On PyTorch, use `keras_qrnn.training.ddp` with torchrun",
}


def data_parallel() -> keras.distribution.DataParallel:
    """A distribution that divides the rows of a batch among all devices.

    Each device has all weights. The kept states of stateful layers are divided as the
    rows are. With several processes these are the devices of all processes.

    Returns:
        A `keras.distribution.DataParallel`. The rows of a batch, those of all
        processes together, must be a multiple of the number of devices.

    Raises:
        ValueError: on another backend than JAX. The error says what to use there.
    """
    refuse_elsewhere("data")
    return _DataParallel(auto_shard_dataset=False)


def model_parallel(
    devices: Sequence[str] | None = None,
) -> keras.distribution.ModelParallel:
    """A distribution that divides the weights among the devices of a process.

    `layout_map` says how. Several processes divide the rows of a batch among them; the
    devices of a process share its rows.

    Args:
        devices: names of devices, as of `keras.distribution.list_devices()`, that all
            belong to this process. Defaults to all devices of all processes.

    Returns:
        A `keras.distribution.ModelParallel`. The rows of a batch must be a multiple of
        the number of processes.

    Raises:
        ValueError: if `devices` are not different names, or none; on another backend
            than JAX. The error says what to use there.
    """
    refuse_elsewhere("model")
    processes = process_count() if devices is None else 1
    if devices is None:
        devices = keras.distribution.list_devices()
    if isinstance(devices, str) or not 0 < len(set(devices)) == len(devices):
        raise ValueError(
            "Argument `devices` must be a list of different names of devices. "
            f"Received: devices={devices!r}"
        )
    shape = (processes, len(devices) // processes)
    mesh = keras.distribution.DeviceMesh(shape, (BATCH, MODEL), list(devices))
    return _ModelParallel(layout_map=layout_map(mesh), auto_shard_dataset=False)


def layout_map(mesh: Any) -> Any:
    """The layouts of the weights of this package's models on a mesh of devices.

    The last axis of each kernel, bias and embedding is divided: the units of a layer,
    the words of a softmax. So are the units of kept states, and their rows with the
    batch.

    Args:
        mesh: a `keras.distribution.DeviceMesh` with two axes: that along which the
            rows of a batch are divided, and that along which the weights are.

    Returns:
        A `keras.distribution.LayoutMap`.

    Raises:
        ValueError: if `mesh` has not two axes.
    """
    if len(mesh.axis_names) != 2:
        raise ValueError(
            "Argument `mesh` must have two axes, of the rows and of the weights. "
            f"Received: axes {', '.join(mesh.axis_names)}"
        )
    batch, model = mesh.axis_names
    layouts = keras.distribution.LayoutMap(mesh)
    layer = r".*(qrnn|encoder|decoder)(_\d+)?"
    layouts[layer + "/kernel"] = (None, None, model)
    layouts[layer + "/bias"] = (model,)
    layouts[r".*(lstm_cell|attended_kernel|state_kernel|logits)/kernel"] = (None, model)
    layouts[r".*/(recurrent|context|output)_kernel"] = (None, model)
    layouts[r".*/lstm_cell/bias"] = (model,)
    layouts[r".*/embeddings"] = (None, model)
    layouts[r".*/logits_bias"] = (model,)
    layouts[r".*/(cell_state|last_output|rnn_state)"] = (batch, model)
    layouts[r".*/window_state"] = (batch, None, model)
    return layouts


def distribution_of(kind: str | None) -> Any:
    """The distribution that an option names: None, `"data"` or `"model"`."""
    if kind is None:
        return None
    return data_parallel() if kind == "data" else model_parallel()


def evaluation_distribution(kind: str | None) -> Any:
    """The distribution of an evaluation, in which no process needs another one.

    Weights that are divided among devices stay divided among those of this process. In
    the other cases one device computes alone, and the result is None.
    """
    return model_parallel(local_devices()) if kind == "model" else None


def scope_of(distribution: Any) -> contextlib.AbstractContextManager:
    """The scope of a distribution. None leaves what is set as it is."""
    return contextlib.nullcontext() if distribution is None else distribution.scope()


@contextlib.contextmanager
def whole_batches() -> Iterator[None]:
    """Lets every device compute whole batches, such as batches of one row.

    It changes the distribution that is set, while the context lasts.
    """
    distribution = keras.distribution.distribution()
    if distribution is None:
        yield
        return

    def whole(shape: Shape) -> Any:
        return keras.distribution.TensorLayout([None] * len(shape), mesh)

    mesh = distribution.device_mesh
    changed = copy.copy(distribution)
    changed.get_data_layout = whole
    with changed.scope():
        yield


@contextlib.contextmanager
def undistributed() -> Iterator[None]:
    """Lets variables be made as without a distribution, while the context lasts."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        yield
        return
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(distribution)


def refuse_elsewhere(kind: str) -> None:
    """Raises a ValueError on another backend than JAX."""
    backend = keras.config.backend()
    if backend != "jax":
        advice = _ELSEWHERE.get(backend, "NumPy has one device")
        raise ValueError(
            "Option `distribution` goes with JAX: set KERAS_BACKEND=jax. "
            f"{advice}. Received: distribution={kind!r} with backend {backend}"
        )


class _DividesStates:
    """A mixin of distributions: kept states are divided as the rows of a batch.

    An axis that the devices cannot divide evenly stays whole.
    """

    def get_variable_layout(self, variable: keras.Variable) -> Any:
        axes = list(super().get_variable_layout(variable).axes)
        if variable.name in KEPT_NAMES:
            axes[0] = self.batch_dim_name
        parts = axis_sizes(self)
        for n, size in enumerate(variable.shape):
            if size % parts.get(axes[n], 1):
                axes[n] = None
        return keras.distribution.TensorLayout(axes, self.device_mesh)


class _DataParallel(_DividesStates, keras.distribution.DataParallel):
    """See `data_parallel`."""


class _ModelParallel(_DividesStates, keras.distribution.ModelParallel):
    """See `model_parallel`."""
