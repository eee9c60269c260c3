"""A bias of each sequence, `(batch, channels)`: a context's way into the gates."""

import keras
import pytest
from keras import ops

from keras_qrnn.ops.backend import backend as active

BACKEND = keras.config.backend()
differentiable = pytest.mark.skipif(
    BACKEND == "numpy", reason="the NumPy backend has no gradients"
)
BATCH, TIME, FEATURES, UNITS = 4, 32, 3, 8
CHANNELS = 3 * UNITS
GATES = BATCH * TIME * CHANNELS * 4  # bytes


def on_jax(function, arguments):
    """The bytes that a compiled program needs beside its arguments and results."""
    import jax

    gradient = jax.grad(lambda *a: function(*a).sum(), (0, 1, 2))
    for run in (function, gradient):
        compiled = jax.jit(run).lower(*arguments).compile()
        yield compiled.memory_analysis().temp_size_in_bytes


def on_torch(function, arguments):
    """The bytes that a call allocates."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    arguments = [a.requires_grad_() for a in arguments]

    def gradient(*arguments):
        torch.autograd.grad(function(*arguments).sum(), arguments)

    for run in (torch.no_grad()(function), gradient):
        run(*arguments)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            run(*arguments)
        events = seen.profiler.kineto_results.events()
        sizes = [each.nbytes() for each in events if each.name() == "[memory]"]
        yield sum(size for size in sizes if size > 0)


def on_tensorflow(function, arguments):
    """The bytes of all tensors of the gates' size in a graph."""
    import tensorflow as tf

    def gradient(*arguments):
        with tf.GradientTape() as tape:
            tape.watch(arguments)
            outputs = function(*arguments)
        return tape.gradient(outputs, arguments)

    for run in (function, gradient):
        graph = tf.function(run, autograph=False).get_concrete_function(*arguments)
        tensors = [t for each in graph.graph.get_operations() for t in each.outputs]
        shapes = [tuple(t.shape) for t in tensors if t.shape.rank == 3]
        yield GATES * shapes.count((BATCH, TIME, CHANNELS))


@differentiable
@pytest.mark.parametrize("products", ["oneDNN", "MKL"])
def test_takes_no_tensor_of_the_size_of_the_gates(products, monkeypatch):
    """The same as with one bias for all sequences, with and without a gradient."""
    if BACKEND == "torch":
        from keras_qrnn.ops.torch import convolution

        if products == "oneDNN" and convolution.ONEDNN is None:
            pytest.skip("this PyTorch has no oneDNN")
        monkeypatch.setattr(convolution, "IS_INTEL", products == "MKL")
        monkeypatch.setattr(convolution, "SMALL", 1)
    elif products == "MKL":
        pytest.skip("a matter of PyTorch")
    measure = {"jax": on_jax, "torch": on_torch, "tensorflow": on_tensorflow}[BACKEND]
    state = ops.zeros((BATCH, UNITS))

    def function(inputs, kernel, bias):
        return active.conv_pool(inputs, kernel, bias, state, None, "fo")[0]

    needed = {}
    for shape in ((CHANNELS,), (BATCH, CHANNELS)):
        shapes = (BATCH, TIME + 1, FEATURES), (2, FEATURES, CHANNELS), shape
        needed[shape] = list(measure(function, [ops.ones(s) for s in shapes]))
    for shared, own in zip(*needed.values(), strict=True):
        assert shared > GATES / 2
        assert own - shared < GATES / 2
