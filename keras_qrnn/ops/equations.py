"""The poolings of arXiv 1611.01576, equations 3 to 5, and their gradients.

The functions use plain arithmetic, so they take tensors of any framework. All sequences
of a call have the same shape, such as `(batch, time, units)`. Their dtype is the
accumulator's: float32, or float64 for a float64 layer.
"""

from typing import Any, NamedTuple

# The gates of each pooling, in the order in which kernels, biases and packed gates
# hold them.
GATES = {"f": ("z", "f"), "fo": ("z", "f", "o"), "ifo": ("z", "f", "o", "i")}

Sequence = Any  # a tensor of any framework


class Gates(NamedTuple):
    """The activated gates.

    The forget gate f is held as u = 1 - f, the sigmoid of the negated logit. A long
    memory needs f near 1. There 1 - f has only steps of 6e-8 in float32. u is near 0,
    where float32 has all its digits.
    """

    z: Sequence
    u: Sequence
    o: Sequence | None = None  # None under f-pooling
    i: Sequence | None = None  # None under f- and fo-pooling


def scaled(update_scale: Sequence | float | None, sequence: Sequence) -> Sequence:
    """`update_scale * sequence`. An `update_scale` of None means 1."""
    return sequence if update_scale is None else update_scale * sequence


def decay_and_inputs(
    gates: Gates, update_scale: Sequence | float | None
) -> tuple[Sequence, Sequence]:
    """The arguments of the scan `c[t] = decay[t] * c[t - 1] + inputs[t]`.

    With s for `update_scale`, the poolings are

        f- and fo-pooling    c[t] = (1 - s u) c[t - 1] + s u z
        ifo-pooling          c[t] = (1 - s u) c[t - 1] + s i z

    A unit with s = 0 keeps its state.
    """
    update = scaled(update_scale, gates.u)
    if gates.i is None:
        return 1 - update, update * gates.z
    return 1 - update, scaled(update_scale, gates.i * gates.z)


def outputs_of(gates: Gates, cells: Sequence) -> Sequence:
    """The outputs `h[t] = o[t] * c[t]`. Under f-pooling, `h[t] = c[t]`."""
    return cells if gates.o is None else gates.o * cells


def one_step(
    gates: Gates, state: Sequence, update_scale: Sequence | float | None
) -> tuple[Sequence, Sequence]:
    """The output and the cell state of one step, each `(batch, units)`.

    Args:
        gates: the activated gates, each `(batch, units)`.
        state: the cell state before the step.
        update_scale: as in `decay_and_inputs`, for one step.
    """
    decay, inputs = decay_and_inputs(gates, update_scale)
    cell = decay * state + inputs
    return outputs_of(gates, cell), cell


def gate_gradients(
    gates: Gates,
    update_scale: Sequence | float | None,
    cells: Sequence,
    previous: Sequence,
    d_outputs: Sequence,
    adjoint: Sequence,
) -> list[Sequence]:
    """Gradients by the activated gates, in the order of `GATES`.

    Args:
        gates: the activated gates.
        update_scale: as in `decay_and_inputs`.
        cells: the cell states c[t].
        previous: the cell states c[t - 1].
        d_outputs: the gradient by the outputs.
        adjoint: the gradient by the `inputs` of the scan.
    """
    d_update = scaled(update_scale, adjoint)
    if gates.i is None:
        d_gates = [d_update * gates.u, d_update * (previous - gates.z)]
    else:
        d_gates = [d_update * gates.i, d_update * previous]
    if gates.o is not None:
        d_gates.append(d_outputs * cells)
    if gates.i is not None:
        d_gates.append(d_update * gates.z)
    return d_gates


def logit_gradients(gates: Gates, d_gates: list[Sequence]) -> list[Sequence]:
    """Gradients by the logits, the arguments of tanh and sigmoid.

    Args:
        gates: the activated gates.
        d_gates: the gradients by the gates, as `gate_gradients` returns them.
    """
    z, *sigmoids = (gate for gate in gates if gate is not None)
    d_z, *d_sigmoids = d_gates
    pairs = zip(sigmoids, d_sigmoids, strict=True)
    # The sigmoid's derivative is f (1 - f). With f = 1 - u it is also u (1 - u).
    return [d_z * (1 - z * z), *(d * (g * (1 - g)) for g, d in pairs)]
