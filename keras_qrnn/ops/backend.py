"""The contract of the backends, and the one backend module that is imported.

The layer and the public functions call the five functions of `Backend`. Each of
`ops/jax.py`, `ops/tensorflow.py`, `ops/torch` and `ops/numpy.py` is one implementation.
`Kernels` is a contract inside PyTorch's: its loops in Triton and in Numba.

For all of them:

- The caller checks the shapes. An implementation does not check them again.
- The accumulator is float32, or float64 if the arguments are float64. Sums over time
  are computed in it.
- A batch may have no rows. Time has at least one step.
- A tensor may lie in memory in any order, unless a memory order is named.
"""

import importlib
from typing import Protocol, cast

import keras

from keras_qrnn._types import Tensor

BACKENDS = ("tensorflow", "jax", "torch", "numpy")


class Backend(Protocol):
    """What a backend module offers. Time is axis 1 of every sequence.

    Gradients, where the backend has them, are by `decay`, `inputs`, `initial_state`,
    `gates`, `kernel`, `bias` and `logits`, and can be differentiated again. There is
    none by `update_scale`.
    """

    def linear_scan(
        self, decay: Tensor, inputs: Tensor, initial_state: Tensor, reverse: bool
    ) -> Tensor:
        """`h[t] = decay[t] * h[t - 1] + inputs[t]`, or from the last step to the first.

        Args:
            decay: `(batch, time, units)`, any float dtype.
            inputs: of the shape and dtype of `decay`.
            initial_state: `(batch, units)`, any float dtype; cast here to the
                accumulator's.
            reverse: whether the scan runs from the last step to the first.

        Returns:
            The states, of the shape and dtype of `inputs`. PyTorch keeps the memory
            order of `inputs`.
        """
        ...

    def pool(
        self,
        gates: Tensor,
        initial_state: Tensor,
        update_scale: Tensor | float | None,
        pooling: str,
        activate: bool,
    ) -> tuple[Tensor, Tensor]:
        """A pooling: activations, scan and output gate.

        Args:
            gates: `(batch, time, len(GATES[pooling]) * units)`, any float dtype, the
                gates side by side in the order of `GATES[pooling]`. PyTorch may
                compute in their memory where it records no gradient: the caller must
                not use them afterwards. PyTorch is fastest with time-major memory.
            initial_state: `(batch, units)`, any float dtype; cast here to the
                accumulator's.
            update_scale: the factor on the update `1 - f`, and on i under
                ifo-pooling. A number, None for 1, or a tensor `(batch, time, 1)` or
                `(batch, time, units)` of bool or a float dtype. A tensor is cast here
                to the accumulator's dtype.
            pooling: a key of `GATES`.
            activate: whether tanh and sigmoid are applied to `gates` first. If not,
                `gates` are activated already.

        Returns:
            The outputs `(batch, time, units)` in the dtype of `gates`, and the last
            cell state `(batch, units)` in the accumulator's dtype. PyTorch's outputs
            have time-major memory, and the two share none.
        """
        ...

    def causal_conv(
        self, inputs: Tensor, kernel: Tensor, bias: Tensor | None
    ) -> Tensor:
        """`outputs[t] = bias + sum over j of inputs[t + j] @ kernel[j]`.

        Args:
            inputs: `(batch, window - 1 + time, features)`, any float dtype; the
                caller puts the `window - 1` steps before the first in front.
            kernel: `(window, features, channels)`, of the dtype of `inputs`.
            bias: `(channels,)`, or `(batch, channels)` with one bias for each sequence,
                of the dtype of `inputs`. None for none. It is added in place or in a
                fused pass: no tensor of the size of the result is made of it.

        Returns:
            `(batch, time, channels)` in the dtype of `inputs`. PyTorch's has
            time-major memory.
        """
        ...

    def conv_pool(
        self,
        inputs: Tensor,
        kernel: Tensor,
        bias: Tensor | None,
        initial_state: Tensor,
        update_scale: Tensor | float | None,
        pooling: str,
    ) -> tuple[Tensor, Tensor]:
        """`causal_conv`, then `pool` with activations: a layer with its defaults.

        Arguments and results are those of the two functions. Without a gradient, the
        gates of all steps need not exist at once.
        """
        ...

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The cross-entropy of a softmax over the last axis, in nats.

        Args:
            logits: `(..., classes)`, float32.
            targets: `(...)`, integers of any dtype.

        Returns:
            The losses `(...)`, float32. A target that is no class gives NaN (JAX,
            TensorFlow) or an IndexError or RuntimeError (NumPy, PyTorch).
        """
        ...


class Kernels(Protocol):
    """A set of PyTorch's kernels: loops over time in `ops/torch`.

    `triton.py` runs on a GPU, `numba.py` on a CPU where Numba is installed, `loops.py`
    everywhere else. In code that `torch.compile` compiles, `custom_ops.py` calls them.

    Sequences are time-major: `(time, batch, units)`. No gradient is recorded through a
    kernel. Its arguments do not change, except the gates that `loops.py` gets for
    inference. Results are new time-major memory; those of a scan may have the memory
    order of their arguments. Numba takes no bfloat16 and no float16.
    """

    def linear_scan(
        self, decay: Tensor, inputs: Tensor, initial_state: Tensor, reverse: bool
    ) -> Tensor:
        """The states `(time, batch, units)`.

        Args:
            decay: `(time, batch, units)`, of the accumulator's dtype.
            inputs: of the shape and dtype of `decay`.
            initial_state: `(batch, units)`, of the dtype of `decay`.
            reverse: whether the scan runs from the last step to the first.
        """
        ...

    def scan_gradients(
        self,
        decay: Tensor,
        initial_state: Tensor,
        states: Tensor,
        gradient: Tensor,
        reverse: bool,
    ) -> tuple[Tensor, Tensor]:
        """The gradients by `decay` and by `inputs`, each `(time, batch, units)`.

        Args:
            decay, initial_state, reverse: as given to `linear_scan`.
            states: what `linear_scan` returned.
            gradient: the gradient by `states`, of their shape and dtype.
        """
        ...

    def pool(
        self,
        gates: Tensor,
        initial_state: Tensor,
        update_scale: Tensor | float | None,
        pooling: str,
        activate: bool,
    ) -> tuple[Tensor, Tensor]:
        """The outputs and the cell states of all steps, each `(time, batch, units)`.

        Args:
            gates: `(time, batch, len(GATES[pooling]) * units)`.
            initial_state: `(batch, units)`, of the accumulator's dtype.
            update_scale: a number, a tensor `(time, batch, 1)` or
                `(time, batch, units)` of bool or of the accumulator's dtype, or None
                for 1.
            pooling, activate: as in `Backend.pool`.

        Returns:
            The outputs in the dtype of `gates`, the cell states in the accumulator's.
            Under f-pooling the two may be one tensor.
        """
        ...

    def pool_for_inference(
        self,
        gates: Tensor,
        initial_state: Tensor,
        update_scale: Tensor | float | None,
        pooling: str,
        activate: bool,
    ) -> tuple[Tensor, Tensor]:
        """The outputs `(time, batch, units)` and the last cell state `(batch, units)`.

        The arguments are those of `pool`, but `initial_state` may have any float
        dtype. The other cell states are not stored.
        """
        ...

    def pool_gradients(
        self,
        gates: Tensor,
        initial_state: Tensor,
        update_scale: Tensor | float | None,
        pooling: str,
        activate: bool,
        cells: Tensor,
        d_outputs: Tensor,
        d_last: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The gradients by `gates` and by `initial_state`, of their shapes and dtypes.

        Args:
            gates, initial_state, update_scale, pooling, activate: as in `pool`.
            cells: the cell states that `pool` returned.
            d_outputs: the gradient by the outputs, `(time, batch, units)`, in the
                dtype of `gates`.
            d_last: the gradient by the last cell state, `(batch, units)`, in the
                accumulator's dtype.
        """
        ...


def _active_backend() -> Backend:
    name = keras.config.backend()
    if name not in BACKENDS:
        raise ImportError(
            "keras_qrnn runs on the Keras backends "
            f"{', '.join(BACKENDS)}. Received: KERAS_BACKEND={name!r}"
        )
    return cast(Backend, importlib.import_module(f"keras_qrnn.ops.{name}"))


backend = _active_backend()
