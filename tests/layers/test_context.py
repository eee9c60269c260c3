"""The context: one vector for each sequence, which goes into every gate at every step.

Its values and gradients are held to the reference in `test_qrnn.py`.
"""

from functools import partial

import keras
import numpy as np
import pytest
from keras import ops

from keras_qrnn import QRNN, Bidirectional, QRNNStack
from tests.assertions import assert_close

BACKEND = keras.config.backend()
trains = pytest.mark.skipif(BACKEND == "numpy", reason="NumPy does not train")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 6, 3)).astype("float32")
CONTEXT = RNG.normal(size=(4, 2)).astype("float32")
MASK = np.arange(6) < np.array([[6], [4], [0], [1]])


def difference(a, b):
    return np.abs(ops.convert_to_numpy(a) - ops.convert_to_numpy(b)).max()


def functional(layer):
    inputs = keras.Input((6, 3)), keras.Input((2,))
    return keras.Model(inputs, layer(inputs[0], context=inputs[1]))


@keras.saving.register_keras_serializable("tests")
class Decoder(keras.Model):
    def __init__(self, layer, **kwargs):
        super().__init__(**kwargs)
        self.layer = layer

    def call(self, inputs):
        return self.layer(inputs[0], context=inputs[1])

    def get_config(self):
        return {"layer": keras.saving.serialize_keras_object(self.layer)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["layer"]))


def subclassed(layer):
    model = Decoder(layer)
    model([X, CONTEXT])
    return model


@pytest.mark.parametrize("layer_class", [QRNN, partial(QRNNStack, layers=1)])
@pytest.mark.parametrize(
    "as_context", [np.array, ops.convert_to_tensor, keras.Variable]
)
def test_a_constant_context_of_a_functional_model(layer_class, as_context):
    inputs = keras.Input((6, 3))
    layer = layer_class(5)
    model = keras.Model(inputs, layer(inputs, context=as_context(CONTEXT)))
    assert_close("outputs", model(X), layer(X, context=CONTEXT))


def plain(**arguments):
    return QRNN(5, 3, bias_initializer="uniform", **arguments)


def bidirectional(**arguments):
    return Bidirectional(plain(**arguments))


@pytest.mark.parametrize("model_of", [functional, subclassed])
@pytest.mark.parametrize("layer_of", [plain, bidirectional])
def test_models_are_saved_loaded_and_cloned(layer_of, model_of, tmp_path):
    layer = layer_of(return_sequences=True)
    model = model_of(layer)
    expected = layer(X, context=CONTEXT)
    assert difference(expected, layer(X, context=0 * CONTEXT)) > 0.01
    assert_close("outputs", model.predict([X, CONTEXT], verbose=0), expected)
    count = (3 * 3 + 1 + 2) * 15 * (1 if layer_of is plain else 2)
    assert model.count_params() == layer.count_params() == count
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    others = [keras.saving.load_model(tmp_path / "model.keras")]
    if model_of is functional:
        others.append(keras.models.clone_model(model))
        others[-1].load_weights(tmp_path / "model.weights.h5")
    for other in others:
        assert_close("outputs", other([X, CONTEXT]), expected)


@pytest.mark.parametrize("in_file", [True, False])
def test_a_context_that_only_one_of_the_two_was_built_with(in_file, tmp_path):
    path = tmp_path / "model.weights.h5"
    layers = [QRNN(5, name="q") for _ in range(2)]
    layers[0](X, context=CONTEXT if in_file else None)
    layers[1](X, context=None if in_file else CONTEXT)
    models = [keras.Sequential([layer]) for layer in layers]
    for model in models:
        model.built = True
    models[0].save_weights(path)
    with pytest.raises(
        ValueError, match=r"One of the two\s+was built with a `context`"
    ):
        models[1].load_weights(path)


def test_a_layer_has_a_context_from_the_first_call_on():
    layer = QRNN(5)
    layer(X)
    for context in (CONTEXT, CONTEXT.tolist(), keras.Input((2,))):
        with pytest.raises(ValueError, match=r"was built without a context.*`context`"):
            layer(X, context=context)
    layer = QRNN(5)
    layer(X, context=CONTEXT)
    for x in (X, keras.Input((6, 3))):
        with pytest.raises(ValueError, match=r"was built with a context\. .*`context`"):
            layer(x)


@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize("layer_of", [plain, bidirectional])
@pytest.mark.parametrize("shape", [(4,), (3, 2), (4, 1, 2), (4, 3), (4, None)])
def test_refuses_bad_contexts(shape, layer_of, built):
    layer = layer_of()
    if built:
        layer(X, context=CONTEXT)
    elif shape == (4, 3):
        return  # a shape to be built with
    message = r"`context` must be .*shape \(batch, features\) = \((4|None), (2|None)\)"
    with pytest.raises(ValueError, match=message):
        layer(keras.Input(batch_shape=X.shape), context=keras.Input(batch_shape=shape))
    if None not in shape:
        with pytest.raises(ValueError, match=message):
            layer(X, context=np.ones(shape, "float32"))


def test_a_kernel_of_its_own():
    """It has the kernel's initializer, regularizer and constraint."""
    layer = QRNN(5, 1, kernel_regularizer="l2", kernel_constraint="non_neg")
    layer(X, context=X[:, 0])
    kernel, own = layer.kernel, layer.context_kernel
    assert [w.name for w in layer.weights] == ["kernel", "bias", "context_kernel"]
    assert tuple(own.shape) == tuple(kernel.shape)[1:]
    assert difference(own, kernel[0]) > 0.01
    assert own.regularizer is kernel.regularizer
    assert own.constraint is kernel.constraint


def test_kernel_dropout_leaves_the_context_alone():
    layer = QRNN(40, kernel_dropout=0.5, pooling="f", seed=1)
    zeros = np.zeros_like(X)
    expected = layer(zeros, context=CONTEXT)
    assert_close("outputs", layer(zeros, context=CONTEXT, training=True), expected, 0)
    got, want = (layer(X, context=CONTEXT, training=t) for t in (True, False))
    assert difference(got, want) > 0.01


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_gates_of_a_context(activation):
    """The gates equal those of a layer whose bias holds the context's projection."""
    layer, alone = (QRNN(5, 3, activation=activation) for _ in range(2))
    gates = layer.compute_gates(X, context=CONTEXT, mask=MASK)
    alone.build(X.shape)
    kernel, bias, own = layer.get_weights()
    for n, context in enumerate(CONTEXT):
        alone.set_weights([kernel, bias + context @ own])
        want = alone.compute_gates(X[n : n + 1], mask=MASK[n : n + 1])
        for name, g, w in zip("zfo", gates, want, strict=True):
            assert_close(name, g[n], w[0])


def test_gates_refuse_a_context_without_a_shape():
    """Whether the layer is built or not. A refused call does not build it."""
    layer = QRNN(5)
    for _ in range(2):
        with pytest.raises(ValueError, match="`context` must be a tensor or an array"):
            layer.compute_gates(X, context=CONTEXT.tolist())
        assert layer.kernel is None or layer.context_kernel is not None
        layer.compute_gates(X, context=CONTEXT)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_a_context_is_cast(policy):
    layer = QRNN(5, return_sequences=True, dtype=policy)
    outputs = layer(X, context=CONTEXT.astype("float64"))
    exact = QRNN(5, return_sequences=True, dtype="float64")
    exact.build(X.shape, context_shape=CONTEXT.shape)
    exact.set_weights(layer.get_weights())
    assert keras.backend.standardize_dtype(outputs.dtype) == layer.compute_dtype
    tolerance = {"float64": 1e-12, "mixed_float16": 5e-3}.get(policy, 4e-2)
    assert_close("outputs", outputs, exact(X, context=CONTEXT), tolerance)


@trains
@pytest.mark.parametrize("layer_of", [plain, bidirectional])
def test_training_moves_the_kernel_of_the_context(layer_of):
    model = functional(layer_of(kernel_dropout=0.1))
    before = [ops.convert_to_numpy(w) for w in model.weights]
    model.compile(keras.optimizers.SGD(1.0), "mse")
    model.fit([X, CONTEXT], np.ones((4, *model.output_shape[1:])), verbose=0)
    for weight, start in zip(model.weights, before, strict=True):
        assert difference(weight, start) > 0, weight.path


@pytest.mark.parametrize(
    ("merge_mode", "return_state", "masked"),
    [
        ("concat", True, True),
        ("sum", False, False),
        ("ave", False, True),
        ("mul", True, False),
        (None, True, True),
        (None, False, False),
    ],
)
def test_bidirectional_gives_it_to_both(merge_mode, return_state, masked):
    """One context for all sequences equals Keras's wrapper with two other biases."""
    arguments = {"return_sequences": True, "return_state": return_state}
    layer = Bidirectional(plain(**arguments), merge_mode)
    context = np.broadcast_to(CONTEXT[:1], CONTEXT.shape)
    mask = MASK if masked else None
    got = layer(X, context=context, mask=mask)
    theirs = keras.layers.Bidirectional(plain(**arguments), merge_mode)
    theirs.build(X.shape)
    forward, backward = layer.get_weights()[:3], layer.get_weights()[3:]
    weights = [[k, b + CONTEXT[0] @ v] for k, b, v in (forward, backward)]
    theirs.set_weights([*weights[0], *weights[1]])
    want = theirs(X, mask=mask)
    states = []
    if return_state:
        (got, *states), (want, *other) = got, want
        if merge_mode is None:
            got, want = [got, states.pop(0)], [want, other.pop(0)]
        for n, (g, w) in enumerate(zip(states, other, strict=True)):
            assert_close(f"state {n}", g, w)
    assert_close("outputs", ops.stack(got), ops.stack(want))
    inputs = keras.Input((6, 3)), keras.Input((2,))
    symbolic = keras.tree.flatten(layer(inputs[0], context=inputs[1]))
    results = keras.tree.flatten(keras.Model(inputs, symbolic)([X, context]))
    eager = keras.tree.flatten(layer(X, context=context))
    for n, (s, e) in enumerate(zip(symbolic, eager, strict=True)):
        assert s.shape[1:] == tuple(e.shape[1:])
        assert_close(f"result {n}", results[n], e)


def test_states_of_bidirectional_stay_exact():
    """Keras's own wrapper would cast the states to half precision."""
    inner = plain(return_state=True, dtype="mixed_float16")
    layer = Bidirectional(inner, dtype="mixed_float16")

    results = layer(X, context=CONTEXT)
    inputs = keras.Input((6, 3)), keras.Input((2,))
    symbolic = layer(inputs[0], context=inputs[1])
    for tensors in (results, symbolic):
        dtypes = [keras.backend.standardize_dtype(t.dtype) for t in tensors]
        assert dtypes == ["float16"] + ["float32"] * 4
    states = [3.003 + state for state in results[1:]]
    step = X[:, :1]
    got = layer(step, context=CONTEXT, initial_state=states)[1]
    want = layer.forward_layer(step, context=CONTEXT, initial_state=states[:2])[1]
    assert_close("cell", got, want, 5e-5)
    for wrong in (states[:3], states[0], []):
        with pytest.raises(ValueError, match="`initial_state` of a Bidirectional must"):
            layer(X, context=CONTEXT, initial_state=wrong)


@pytest.mark.parametrize(
    ("merge_mode", "stateful", "return_state"),
    [("concat", False, False), ("concat", True, True), (None, False, True)],
)
def test_masks_pass_through_bidirectional(merge_mode, stateful, return_state):
    layer = Bidirectional(
        plain(return_sequences=True, return_state=return_state, stateful=stateful),
        merge_mode,
    )
    tokens = np.where(MASK, 1, 0)
    embedding = keras.layers.Embedding(2, 3, mask_zero=True)
    x = embedding(tokens)
    results = layer(x, context=CONTEXT)
    expected = layer.forward_layer(x, context=CONTEXT, mask=MASK)
    masks = keras.tree.flatten(layer.compute_mask(x, MASK))
    count = len(results) if isinstance(results, (tuple, list)) else 1
    assert len(masks) == count
    outputs = 1 if merge_mode else 2
    assert all(mask is MASK for mask in masks[:outputs])
    assert all(mask is None for mask in masks[outputs:])
    if not stateful:
        first = results[0] if count > 1 else results
        want = expected[0] if return_state else expected
        assert_close("forward outputs", first[..., :5], want)
