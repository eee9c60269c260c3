"""JAX: forward and reverse mode, and the arrays that a program keeps."""

from functools import partial

import keras
import numpy as np
import pytest

if keras.config.backend() != "jax":
    pytest.skip("functions of JAX", allow_module_level=True)

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from keras_qrnn import QRNN, linear_scan
from keras_qrnn.ops import jax as active
from keras_qrnn.ops.equations import GATES
from tests.assertions import assert_close

BATCH, TIME, UNITS, FEATURES = 2, 5, 3, 2
SCALES = {
    "none": lambda rng: None,
    "number": lambda rng: 0.75,
    "steps": lambda rng: jnp.asarray(rng.random((BATCH, TIME, 1)) < 0.7),
    "units": lambda rng: jnp.asarray(rng.random((BATCH, TIME, UNITS)) < 0.7),
    "factors": lambda rng: jnp.asarray(rng.random((BATCH, TIME, 1)), "float32"),
}


def draw(rng, *shape):
    return jnp.asarray(rng.normal(size=shape), "float32")


def functions():
    """Functions that take a dictionary of arrays."""
    rng = np.random.default_rng(0)
    state = draw(rng, BATCH, UNITS)
    for reverse in (False, True):
        arrays = {"decay": jnp.tanh(draw(rng, BATCH, TIME, UNITS))}
        arrays |= {"inputs": draw(rng, BATCH, TIME, UNITS), "state": state}
        yield pytest.param(
            lambda a, reverse=reverse: linear_scan(
                a["decay"], a["inputs"], a["state"], reverse
            ),
            arrays,
            id=f"scan-{reverse}",
        )
    for pooling, scale, activate in (
        ("f", "none", True),
        ("f", "factors", False),
        ("fo", "number", True),
        ("fo", "units", False),
        ("ifo", "steps", True),
        ("ifo", "units", True),
    ):
        gates = draw(rng, BATCH, TIME, len(GATES[pooling]) * UNITS)
        gates = gates if activate else jax.nn.sigmoid(gates)
        arguments = SCALES[scale](rng), pooling, activate
        yield pytest.param(
            lambda a, arguments=arguments: active.pool(
                a["gates"], a["state"], *arguments
            ),
            {"gates": gates, "state": state},
            id=f"pool-{pooling}-{scale}-{activate}",
        )
    for pooling, scale in (("fo", "none"), ("ifo", "steps")):
        channels = len(GATES[pooling]) * UNITS
        # Under fo-pooling each sequence has a bias of its own.
        shape = (BATCH, channels) if pooling == "fo" else (channels,)
        arrays = {"inputs": draw(rng, BATCH, TIME + 1, FEATURES)}
        arrays |= {"kernel": draw(rng, 2, FEATURES, channels)}
        arrays |= {"bias": draw(rng, *shape), "state": state}
        arguments = SCALES[scale](rng), pooling
        yield pytest.param(
            lambda a, arguments=arguments: active.conv_pool(
                a["inputs"], a["kernel"], a["bias"], a["state"], *arguments
            ),
            arrays,
            id=f"conv_pool-{pooling}-{scale}",
        )


def total(function):
    """The sum of the sines of all results of a function."""
    return lambda arrays: sum(
        jnp.sum(jnp.sin(result)) for result in jax.tree.leaves(function(arrays))
    )


def assert_same(got, expected, tolerance=1e-5):
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(got),
        jax.tree_util.tree_leaves_with_path(expected),
        strict=True,
    )
    for (path, g), (_, e) in pairs:
        assert_close(jax.tree_util.keystr(path), g, e, tolerance)


@pytest.mark.parametrize(("function", "arrays"), [*functions()])
def test_forward_mode_equals_reverse_mode(function, arrays):
    """First and second derivatives. Forward mode has code of its own."""
    loss = total(function)

    @jax.jit
    def derivatives(arrays):
        value, tangent = jax.jvp(loss, (arrays,), (arrays,))
        _, pushed = jax.linearize(loss, arrays)
        return {
            "value": (value, loss(arrays)),
            "tangent": (tangent, dot(jax.grad(loss)(arrays), arrays)),
            "linearize": (pushed(arrays), tangent),
            "jacobian": (jax.jacfwd(loss)(arrays), jax.jacrev(loss)(arrays)),
            "forward over reverse": (
                jax.jvp(jax.grad(loss), (arrays,), (arrays,))[1],
                jax.grad(lambda a: dot(jax.grad(loss)(a), arrays))(arrays),
            ),
        }

    def dot(a, b):
        return sum(map(jnp.vdot, jax.tree.leaves(a), jax.tree.leaves(b)))

    for name, (got, expected) in derivatives(arrays).items():
        assert_same({name: got}, {name: expected})


@pytest.mark.parametrize("pooling", GATES)
def test_hessian(pooling):
    """Forward over reverse mode, reverse over reverse mode, and a vmap of each."""
    rng = np.random.default_rng(1)
    gates = draw(rng, 1, 3, len(GATES[pooling]) * 2)
    loss = total(lambda g: active.pool(g, g[:, 0, :2], 0.75, pooling, True))
    got = jax.jit(jax.hessian(loss))(gates)
    assert_close("hessian", got, jax.jit(jax.jacrev(jax.jacrev(loss)))(gates))


def test_tangent_against_a_difference():
    """In float64: the test takes differences."""
    rng = np.random.default_rng(2)
    gates, moved = (jnp.asarray(rng.normal(size=(2, 4, 9))) for _ in range(2))

    def outputs(gates):
        return active.pool(gates, jnp.ones((2, 3)), 0.75, "fo", True)[0]

    _, got = jax.jvp(outputs, (gates,), (moved,))
    expected = (outputs(gates + 1e-6 * moved) - outputs(gates - 1e-6 * moved)) / 2e-6
    assert_close("tangent", got, expected, 1e-8)


@pytest.mark.parametrize("axes", [(0, 0), (1, None), (None, 2)])
def test_gradient_of_a_batch_of_batches(axes):
    """`vmap` outside and inside of `grad`. Each argument has the new axis or not."""
    rng = np.random.default_rng(3)
    arrays = [draw(rng, BATCH, TIME, 2 * UNITS), draw(rng, BATCH, UNITS)]
    stacked = [
        x if axis is None else jnp.stack([x, 2 * x, x / 3], axis)
        for x, axis in zip(arrays, axes, strict=True)
    ]
    loss = total(lambda a: active.pool(*a, None, "f", True))
    gradient = jax.grad(lambda *a: loss(a), (0, 1))
    got = jax.jit(jax.vmap(gradient, axes))(*stacked)
    for n in range(3):
        each = [
            x if axis is None else jnp.take(x, n, axis)
            for x, axis in zip(stacked, axes, strict=True)
        ]
        assert_same([g[n] for g in got], gradient(*each))


@pytest.mark.parametrize("pooling", GATES)
def test_reverse_mode_keeps_gates_and_cells(pooling):
    """The gradient computes the activations again: they take a third of the memory."""
    rng = np.random.default_rng(4)
    gates = draw(rng, BATCH, 7, len(GATES[pooling]) * 11)
    scale = jnp.asarray(rng.random((BATCH, 7, 11)) < 0.5)
    run = partial(active.pool, update_scale=scale, pooling=pooling, activate=True)
    _, pullback = jax.vjp(lambda g, s: run(g, s), gates, draw(rng, BATCH, 11))
    kept = [x.shape for x in jax.tree.leaves(pullback) if x.ndim == 3]
    assert sorted(kept) == sorted([gates.shape, (BATCH, 7, 11), (BATCH, 7, 11)])


@pytest.mark.parametrize("replicated", [False, True])
@pytest.mark.parametrize("name", ["linear_scan", "f_pool", "QRNN"])
def test_shard_map(name, replicated):
    """The states are the same on all devices: zeros, or given ones."""
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    x = draw(np.random.default_rng(5), 2, 4, 3)
    state = jnp.ones((2, 3))
    layer = QRNN(3, return_sequences=True)
    layer.build(x.shape)

    def run(x, state):
        given = state if replicated else None
        if name == "linear_scan":
            return linear_scan(jax.nn.sigmoid(x), x, given)
        if name == "f_pool":
            return keras.ops.add(*map(jnp.sum, active_f_pool(x, given))) + x
        return layer(x, initial_state=given)

    def active_f_pool(x, given):
        from keras_qrnn import f_pool

        return f_pool(x, jax.nn.sigmoid(x), given)

    def step(x, state):
        value, gradients = jax.value_and_grad(total(lambda a: run(*a)))((x, state))
        return value[None], gradients

    specs = PartitionSpec("data"), PartitionSpec()
    out_specs = PartitionSpec("data"), (PartitionSpec("data"), PartitionSpec())
    sharded = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=out_specs)
    assert_same(jax.jit(sharded)(x, state), step(x, state))


def test_associative_scan_equals_the_scan_in_place():
    """JAX runs the first on accelerators and the second on a CPU."""
    rng = np.random.default_rng(7)
    arrays = jax.nn.sigmoid(draw(rng, 2, 37, 3)), draw(rng, 2, 37, 3), draw(rng, 2, 3)
    for reverse in (False, True):
        expected = active._in_place(*arrays, reverse)
        assert_close("states", active._associative(*arrays, reverse), expected)


def test_eager_scans_compile_once():
    x = draw(np.random.default_rng(8), 2, 11, 3)
    linear_scan(x, x)
    compiled = active._scan._cache_size()
    for _ in range(3):
        linear_scan(x, x)
    assert active._scan._cache_size() == compiled
