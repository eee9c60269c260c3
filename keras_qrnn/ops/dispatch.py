"""Picks the one backend module that is imported.

A backend module has five functions, with time on axis 1 throughout:

    linear_scan(decay, inputs, initial_state, reverse) -> states
    pool(gates, initial_state, keep, pooling, activate) -> (outputs, last cell)
    causal_conv(inputs, kernel, bias) -> pre-activations
    conv_pool(inputs, kernel, bias, initial_state, keep, pooling)
        -> (outputs, last cell): `causal_conv`, then `pool` with activations
    cross_entropy(logits, targets) -> losses: of a softmax over the last axis of the
        float32 logits, for each integer target, in nats; a target that is no class
        gives NaN (TensorFlow, JAX) or an error (PyTorch, NumPy)
"""

import importlib
from types import ModuleType

import keras

BACKENDS = ("tensorflow", "jax", "torch", "numpy")


def _active_module() -> ModuleType:
    name = keras.config.backend()
    if name not in BACKENDS:
        raise ImportError(
            "keras_qrnn runs on the Keras backends "
            f"{', '.join(BACKENDS)}. Received: KERAS_BACKEND={name!r}"
        )
    return importlib.import_module(f"keras_qrnn.ops.{name}")


backend = _active_module()
