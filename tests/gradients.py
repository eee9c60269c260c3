"""`value_and_gradients` of a scalar function on the active backend."""

import keras
import numpy as np


def value_and_gradients(function, arrays, jit=True):
    """`function(*tensors)` and the gradients of its sum by each of `arrays`.

    `function` returns a scalar tensor; all come back as NumPy arrays. JAX compiles it
    as one program, unless it has so many operations that each is better run alone.
    """
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        tensors = [jax.numpy.asarray(a) for a in arrays]
        gradient = jax.value_and_grad(function, tuple(range(len(arrays))))
        gradient = jax.jit(gradient) if jit else gradient
        value, gradients = gradient(*tensors)
    elif backend == "torch":
        import torch

        tensors = [keras.ops.convert_to_tensor(a).requires_grad_() for a in arrays]
        value = function(*tensors)
        gradients = torch.autograd.grad(value, tensors, allow_unused=True)
        value = value.detach()
    else:
        import tensorflow as tf

        def step(*tensors):
            with tf.GradientTape() as tape:
                tape.watch(tensors)
                value = function(*tensors)
            gradients = tape.gradient(
                value, tensors, unconnected_gradients=tf.UnconnectedGradients.ZERO
            )
            # That by an embedding has rows alone.
            return value, *map(tf.convert_to_tensor, gradients)

        value, *gradients = eagerly_and_in_a_graph(step, arrays)
    gradients = [
        np.zeros_like(a) if g is None else keras.ops.convert_to_numpy(g)
        for a, g in zip(arrays, gradients, strict=True)
    ]
    return keras.ops.convert_to_numpy(value), gradients


def eagerly_and_in_a_graph(step, arrays):
    """`step(*tensors)` of TensorFlow, run as it is and in a graph, where XLA compiles:
    the first, of which the second must differ by rounding only."""
    import tensorflow as tf

    tensors = [tf.constant(a) for a in arrays]
    eager, graph = step(*tensors), tf.function(step, autograph=False)(*tensors)
    for e, g in zip(eager, graph, strict=True):
        scale = max(1, np.abs(e).max(initial=0))
        np.testing.assert_allclose(g / scale, e / scale, rtol=0, atol=1e-5)
    return eager


def second_gradients(function, arrays):
    """Gradients of `sum(sin(first gradients))`, as the backend computes them."""
    backend = keras.config.backend()
    if backend == "jax":
        import jax
        import jax.numpy as jnp

        argnums = tuple(range(len(arrays)))

        def outer(*tensors):
            return sum(
                jnp.sum(jnp.sin(g)) for g in jax.grad(function, argnums)(*tensors)
            )

        gradient = jax.jit(jax.grad(outer, argnums))
        gradients = gradient(*[jnp.asarray(a) for a in arrays])
    elif backend == "torch":
        import torch

        tensors = [keras.ops.convert_to_tensor(a).requires_grad_() for a in arrays]
        first = torch.autograd.grad(function(*tensors), tensors, create_graph=True)
        gradients = torch.autograd.grad(sum(g.sin().sum() for g in first), tensors)
    else:
        import tensorflow as tf

        def step(*tensors):
            with tf.GradientTape() as outer_tape:
                outer_tape.watch(tensors)
                with tf.GradientTape() as tape:
                    tape.watch(tensors)
                    value = function(*tensors)
                first = tape.gradient(value, tensors)
                total = tf.add_n([tf.reduce_sum(tf.sin(g)) for g in first])
            return outer_tape.gradient(total, tensors)

        gradients = eagerly_and_in_a_graph(step, arrays)
    return [keras.ops.convert_to_numpy(g) for g in gradients]
