"""A linear function of JAX whose transpose is written by hand.

`jax.custom_vjp` takes a gradient by hand, but has no forward mode. `jax.custom_jvp` has
both modes, but JAX derives the gradient and decides which arrays it keeps for it.
`linear_call` adds the gradient by hand to `custom_jvp`: the tangents are computed by
`linear_call`. Reverse mode then keeps the residuals only, and runs `transpose`.

`jax.custom_derivatives.linear_call` does the same, but has no `vmap`, so no `jacfwd`.
It also has no derivative by the residuals, so no second derivatives.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

# It takes the residuals, a pytree, and the linear arguments, a tuple of arrays. It
# returns a tuple of arrays.
Linear = Callable[[Any, Sequence[jax.Array]], tuple[jax.Array, ...]]


def linear_call(
    function: Linear,
    transpose: Linear,
    residuals: Any,
    arguments: Sequence[jax.Array],
) -> tuple[jax.Array, ...]:
    """`function(residuals, arguments)`, with `transpose` as its transpose.

    JAX must be able to differentiate and hash both functions. Pass the same two objects
    at each call, or JAX compiles anew.

    Args:
        function: linear in `arguments`.
        transpose: called as `transpose(residuals, cotangents)`. Returns the cotangents
            of `arguments`, of their shapes and dtypes.
        residuals: a pytree of arrays, numbers and None.
        arguments: arrays.

    Returns:
        The results of `function`.
    """
    leaves, tree = jax.tree.flatten(residuals)
    arguments = vary_alike(arguments, like=leaves)
    return tuple(
        _linear_call.bind(
            *leaves,
            *arguments,
            function=_OfLeaves(function, tree),
            transpose=_OfLeaves(transpose, tree),
            count=len(leaves),
        )
    )


def vary_alike(arrays: Sequence[jax.Array], like: Any) -> Sequence[jax.Array]:
    """Gives all `arrays` the same varying axes: those of any array or of `like`.

    Inside `jax.shard_map`, the type of an array names the axes of the mesh along which
    its values vary. A loop must not change the types of the arrays that it carries.
    Outside of `shard_map` the arrays are returned unchanged.

    Args:
        arrays: arrays to mark.
        like: a pytree of arrays, numbers and None.
    """
    union = frozenset().union(*map(_axes, jax.tree.leaves((arrays, like))))

    def vary(array: jax.Array) -> jax.Array:
        missing = tuple(union - _axes(array))
        return _marked(array, missing) if missing else array

    return tuple(map(vary, arrays))


def _marked(array: jax.Array, axes: tuple) -> jax.Array:
    if hasattr(lax, "pcast"):
        return lax.pcast(array, axes, to="varying")
    return lax.pvary(array, axes)  # the name of `pcast` in earlier versions


def _axes(x: jax.Array | float) -> frozenset:
    """The axes of a mesh along which the values of `x` vary."""
    aval = getattr(x, "aval", None)
    if aval is not None and hasattr(aval, "mat"):  # JAX 0.10
        return aval.mat.varying
    # Earlier versions have `vma`. The earliest have neither.
    return getattr(aval, "vma", frozenset())


@dataclass(frozen=True)
class _OfLeaves:
    """A `Linear` that takes its residuals as a flat list."""

    function: Linear
    tree: Any

    def __call__(self, leaves: Sequence, arguments: Sequence) -> Sequence:
        return self.function(self.tree.unflatten(leaves), arguments)


@dataclass(frozen=True)
class _Batched:
    """A `Linear` of flat residuals whose arguments have one more axis in front."""

    function: Linear
    axes: tuple[int | None, ...]  # for each residual: 0 if it has the axis, else None

    def __call__(self, leaves: Sequence, arguments: Sequence) -> Sequence:
        in_axes = (list(self.axes), 0)
        return jax.vmap(self.function, in_axes)(list(leaves), list(arguments))


_linear_call = Primitive("qrnn_linear_call")
_linear_call.multiple_results = True


@_linear_call.def_impl
def _run(
    *arguments: jax.Array, function: Linear, transpose: Linear, count: int
) -> Sequence[jax.Array]:
    return function(arguments[:count], arguments[count:])


@_linear_call.def_abstract_eval
def _types(*types: Any, **parameters: Any) -> Sequence:
    return jax.make_jaxpr(lambda *x: _run(*x, **parameters))(*types).out_avals


mlir.register_lowering(_linear_call, mlir.lower_fun(_run, multiple_results=True))


def _tangents(
    primals: Sequence, tangents: Sequence, count: int, **functions: Linear
) -> tuple[Sequence, Sequence]:
    """The rule for forward mode: the tangents of residuals and arguments, added up."""
    residuals, arguments = primals[:count], primals[count:]
    results = _linear_call.bind(*primals, count=count, **functions)
    parts = []
    if any(type(t) is not ad.Zero for t in tangents[count:]):
        linear_tangents = map(ad.instantiate_zeros, tangents[count:])
        parts.append(
            _linear_call.bind(*residuals, *linear_tangents, count=count, **functions)
        )
    differentiated = [n for n in range(count) if type(tangents[n]) is not ad.Zero]
    if differentiated:

        def by_residuals(*values: jax.Array) -> Sequence[jax.Array]:
            leaves = list(residuals)
            for n, value in zip(differentiated, values, strict=True):
                leaves[n] = value
            return tuple(functions["function"](leaves, arguments))

        primal = [residuals[n] for n in differentiated]
        tangent = [tangents[n] for n in differentiated]
        parts.append(jax.jvp(by_residuals, primal, tangent)[1])
    return results, [sum(terms[1:], terms[0]) for terms in zip(*parts, strict=True)]


ad.primitive_jvps[_linear_call] = _tangents


def _cotangents(
    cotangents: Sequence,
    *arguments: Any,
    function: Linear,
    transpose: Linear,
    count: int,
) -> Sequence:
    """The rule for reverse mode: `transpose` takes the place of `function`."""
    found = _linear_call.bind(
        *arguments[:count],
        *map(ad.instantiate_zeros, cotangents),
        function=transpose,
        transpose=function,
        count=count,
    )
    pairs = zip(arguments[count:], found, strict=True)
    wanted = [ct if ad.is_undefined_primal(x) else None for x, ct in pairs]
    return [None] * count + wanted


ad.primitive_transposes[_linear_call] = _cotangents


def _batch(
    arguments: Sequence,
    axes: Sequence,
    function: Linear,
    transpose: Linear,
    count: int,
) -> tuple[Sequence, Sequence]:
    """The rule for `vmap`. All linear arguments and their cotangents get the axis."""
    pairs = list(zip(arguments, axes, strict=True))
    size = next(x.shape[axis] for x, axis in pairs if axis is not None)
    leaves = [
        x if axis is None else jax.numpy.moveaxis(x, axis, 0)
        for x, axis in pairs[:count]
    ]
    linear = [batching.bdim_at_front(x, axis, size) for x, axis in pairs[count:]]
    where = tuple(None if axis is None else 0 for axis in axes[:count])
    results = _linear_call.bind(
        *leaves,
        *linear,
        function=_Batched(function, where),
        transpose=_Batched(transpose, where),
        count=count,
    )
    return results, [0] * len(results)


batching.primitive_batchers[_linear_call] = _batch
