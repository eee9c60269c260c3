"""The public poolings, on activated gates (arXiv 1611.01576, equations 3 to 5).

They check their arguments and call the active backend.
"""

from keras import ops

from keras_qrnn._types import Tensor
from keras_qrnn.ops.backend import backend
from keras_qrnn.ops.scan import as_tensor, check_same, check_sequence, state_or_zeros

Pooled = tuple[Tensor, Tensor]


def f_pool(
    z: Tensor,
    f: Tensor,
    initial_state: Tensor | None = None,
) -> Pooled:
    """f-pooling: `h[t] = f[t] * h[t - 1] + (1 - f[t]) * z[t]`.

    Equation 3 of arXiv 1611.01576.

    Args:
        z: float tensor of shape `(batch, time, units)`, the candidates.
        f: tensor of the shape and dtype of `z`, the forget gate, in [0, 1].
        initial_state: float tensor of shape `(batch, units)`, the state before the
            first step. Defaults to zeros.

    Returns:
        The outputs `h`, of the shape and dtype of `z`, and the last state, of shape
        `(batch, units)`. The state is float32 if `z` has half precision.

    Raises:
        ValueError: if a rank, shape or dtype is not as above, or if there is no step.
    """
    return _pool("f", {"z": z, "f": f}, initial_state)


def fo_pool(
    z: Tensor,
    f: Tensor,
    o: Tensor,
    initial_state: Tensor | None = None,
) -> Pooled:
    """fo-pooling: `c[t] = f[t] * c[t - 1] + (1 - f[t]) * z[t]`, `h[t] = o[t] * c[t]`.

    Equation 4 of arXiv 1611.01576.

    Args:
        z: float tensor of shape `(batch, time, units)`, the candidates.
        f: tensor of the shape and dtype of `z`, the forget gate, in [0, 1].
        o: tensor of the shape and dtype of `z`, the output gate, in [0, 1].
        initial_state: float tensor of shape `(batch, units)`, the cell state before
            the first step. Defaults to zeros.

    Returns:
        The outputs `h`, of the shape and dtype of `z`, and the last cell state, of
        shape `(batch, units)`. The state is float32 if `z` has half precision.

    Raises:
        ValueError: if a rank, shape or dtype is not as above, or if there is no step.
    """
    return _pool("fo", {"z": z, "f": f, "o": o}, initial_state)


def ifo_pool(
    z: Tensor,
    f: Tensor,
    o: Tensor,
    i: Tensor,
    initial_state: Tensor | None = None,
) -> Pooled:
    """ifo-pooling: `c[t] = f[t] * c[t - 1] + i[t] * z[t]`, `h[t] = o[t] * c[t]`.

    Equation 5 of arXiv 1611.01576.

    Args:
        z: float tensor of shape `(batch, time, units)`, the candidates.
        f: tensor of the shape and dtype of `z`, the forget gate, in [0, 1].
        o: tensor of the shape and dtype of `z`, the output gate, in [0, 1].
        i: tensor of the shape and dtype of `z`, the input gate, in [0, 1].
        initial_state: float tensor of shape `(batch, units)`, the cell state before
            the first step. Defaults to zeros.

    Returns:
        The outputs `h`, of the shape and dtype of `z`, and the last cell state, of
        shape `(batch, units)`. The state is float32 if `z` has half precision.

    Raises:
        ValueError: if a rank, shape or dtype is not as above, or if there is no step.
    """
    return _pool("ifo", {"z": z, "f": f, "o": o, "i": i}, initial_state)


def _pool(
    pooling: str,
    gates: dict[str, Tensor],
    initial_state: Tensor | None,
) -> Pooled:
    gates = {name: as_tensor(gate) for name, gate in gates.items()}
    check_sequence("z", gates["z"])
    for name, gate in gates.items():
        check_same(name, gate, "z", gates["z"])
    initial_state = state_or_zeros(initial_state, gates["z"], gates["z"].shape[-1])
    packed = ops.concatenate(list(gates.values()), axis=-1)
    return backend.pool(packed, initial_state, None, pooling, activate=False)
