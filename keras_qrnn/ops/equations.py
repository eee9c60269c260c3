"""The poolings of arXiv 1611.01576, equations 3 to 5, and their gradients, by step.

Everything here is plain arithmetic, so that it holds for the tensors of any framework.
Sequences have shape `(batch, time, units)`, or any other that is one for all of them,
and the accumulator's dtype: float32, or float64 for a float64 layer.
"""

from typing import Any, NamedTuple

# The gates of each pooling, in the order in which kernels, biases and packed gates
# hold them.
GATES = {"f": ("z", "f"), "fo": ("z", "f", "o"), "ifo": ("z", "f", "o", "i")}

Sequence = Any  # a tensor of any framework


class Gates(NamedTuple):
    """The activated gates.

    The forget gate f is held as u = 1 - f. A long memory has f near 1, where float32
    resolves 1 - f in steps of 6e-8; u itself, the sigmoid of the negated logit, keeps
    all its digits there.
    """

    z: Sequence
    u: Sequence
    o: Sequence | None = None  # None under f-pooling
    i: Sequence | None = None  # None under f- and fo-pooling


def scaled(update_scale: Sequence | float | None, sequence: Sequence) -> Sequence:
    """`update_scale * sequence`, where None is a scale of 1."""
    return sequence if update_scale is None else update_scale * sequence


def decay_and_inputs(
    gates: Gates, update_scale: Sequence | float | None
) -> tuple[Sequence, Sequence]:
    """The arguments of the scan `c[t] = decay[t] * c[t - 1] + inputs[t]`.

    `update_scale` is s in

        f- and fo-pooling    c[t] = (1 - s u) c[t - 1] + s u z
        ifo-pooling          c[t] = (1 - s u) c[t - 1] + s i z

    so that a unit with s = 0 keeps its state.
    """
    update = scaled(update_scale, gates.u)
    if gates.i is None:
        return 1 - update, update * gates.z
    return 1 - update, scaled(update_scale, gates.i * gates.z)


def outputs_of(gates: Gates, cells: Sequence) -> Sequence:
    """`h[t] = o[t] * c[t]`, or the cell states themselves under f-pooling."""
    return cells if gates.o is None else gates.o * cells


def gate_gradients(
    gates: Gates,
    update_scale: Sequence | float | None,
    cells: Sequence,
    previous: Sequence,
    d_outputs: Sequence,
    adjoint: Sequence,
) -> list[Sequence]:
    """Gradients by the activated gates z, f and, as the pooling has them, o and i.

    Args:
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
    """Gradients by what tanh and sigmoid were applied to, from those by the gates."""
    z, *sigmoids = (gate for gate in gates if gate is not None)
    d_z, *d_sigmoids = d_gates
    pairs = zip(sigmoids, d_sigmoids, strict=True)
    # Of f = 1 - u and u the derivatives of the sigmoid are the same, u (1 - u).
    return [d_z * (1 - z * z), *(d * (g * (1 - g)) for g, d in pairs)]
