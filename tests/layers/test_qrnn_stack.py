"""QRNNStack against its QRNNs one after another, and against the reference."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_qrnn import QRNN, QRNNStack
from tests import reference
from tests.assertions import ROUNDING, assert_close
from tests.conftest import COMPILED
from tests.gradients import value_and_gradients

BACKEND = keras.config.backend()
differentiable = pytest.mark.skipif(BACKEND == "numpy", reason="NumPy does not train")
BATCH, TIME, FEATURES = 3, 5, 2
RNG = np.random.default_rng(0)
X = RNG.normal(size=(BATCH, TIME, FEATURES)).astype("float32")
HOLES = np.array([[1, 0, 1, 1, 0], [0, 0, 1, 0, 1], [1, 1, 1, 1, 1]], bool)
# Few layouts: JAX and TensorFlow compile each. All have windows that differ.
LAYOUTS = [
    {"units": [3, 4], "layers": 2, "window": [3, 1]},
    {"units": 3, "layers": 3, "window": [1, 2, 4]},
]


def to_numpy(tensor):
    return ops.convert_to_numpy(ops.cast(tensor, "float64"))


@st.composite
def cases(draw):
    """A stack's configuration, inputs, mask and where the sequence is cut."""
    dtype = draw(st.sampled_from(list(ROUNDING)))
    config = draw(st.sampled_from(LAYOUTS)) | {
        "dtype": dtype,
        "dense": draw(st.booleans()),
        "pooling": draw(st.sampled_from(["f", "fo", "ifo"])),
        "go_backwards": draw(st.booleans()),
        "zero_output_for_mask": draw(st.booleans()),
        "zoneout": draw(st.sampled_from([0.0, 0.3])),
        "padding": draw(st.sampled_from(["causal", "causal", "same"])),
    }
    masks = [None, HOLES, np.arange(TIME) < np.array([[4], [0], [5]])]
    mask = masks[draw(st.integers(0, 2))]
    x = X
    if mask is not None:
        x = np.where(mask[..., None], X, draw(st.sampled_from([0, np.nan, np.inf])))
    return (
        config,
        x.astype(dtype),
        mask,
        draw(st.sampled_from([2] if COMPILED else [1, 2, TIME - 1])),
    )


def stack_of(config, **extra):
    stack = QRNNStack(
        **config, **extra, bias_initializer=keras.initializers.RandomNormal()
    )
    stack.build(X.shape)
    return stack


def drawn_states(stack):
    _, *shapes = stack_of_states(stack).compute_output_shape(X.shape)
    rng = np.random.default_rng(1)
    return [rng.normal(size=shape).astype(stack.compute_dtype) for shape in shapes]


def stack_of_states(stack):
    return QRNNStack.from_config(stack.get_config() | {"return_state": True})


def has_window(layer):
    return layer.window > 1 and layer.padding == "causal"


def expected_of(stack, x, mask, states=None, d_outputs=None):
    """The reference of each layer in turn, and all gradients.

    Returns the outputs, the states, and the gradients of `sum(outputs * d_outputs)`:
    by x, by the weights of all layers, by the states.
    """
    flip = slice(None, None, -1 if stack.go_backwards else 1)
    x = x.astype("float64")[:, flip]
    if mask is not None:
        x = np.where(mask[:, flip, None], x, 0)
    calls, inputs, rest = [], x, iter(states or [])
    for layer in stack.qrnns:
        arguments = {
            "kernel": to_numpy(layer.kernel),
            "bias": to_numpy(layer.bias),
            "pooling": layer.pooling,
            "cell": None if states is None else next(rest).astype("float64"),
            "mask": None if mask is None else mask[:, flip],
            "update_scale": 1 - layer.zoneout,
            "zero_output_for_mask": layer.zero_output_for_mask,
            "padding": layer.padding,
        }
        if states is not None and has_window(layer):
            arguments["window"] = next(rest).astype("float64")
        result = reference.qrnn(inputs, **arguments)
        calls.append((inputs, arguments))
        before, inputs = inputs, result.outputs
        if stack.dense:
            inputs = np.concatenate([before, inputs], axis=-1)
    outputs = result.outputs
    if d_outputs is None:
        last = [reference.qrnn(inputs, **arguments) for inputs, arguments in calls]
        pairs = zip(stack.qrnns, last, strict=True)
        return outputs, [
            state
            for layer, each in pairs
            for state in [each.cell, each.window][: 1 + has_window(layer)]
        ]
    weights, before, d_input = [], [], d_outputs
    for n, (inputs, arguments) in reversed(list(enumerate(calls))):
        d_passed = 0
        if n < len(calls) - 1 and stack.dense:
            d_passed, d_input = np.split(d_input, [inputs.shape[-1]], axis=-1)
        each = reference.qrnn(inputs, **arguments, d_outputs=d_input).gradients
        weights[:0] = [each["kernel"], each["bias"]]
        before[:0] = [each["cell"], each["window"]][: 1 + has_window(stack.qrnns[n])]
        d_input = each["x"] + d_passed
    return [d_input[:, flip], *before, *weights]


@settings(max_examples=3 if COMPILED else 25)
@given(cases())
def test_values_and_pieces(case):
    """The whole equals the reference. Pieces with their states equal the whole."""
    config, x, mask, cut = case
    stack = stack_of(config, return_sequences=True, return_state=True)
    whole, *states = stack(x, mask=mask)
    outputs, expected = expected_of(stack, x, mask)
    rounding = ROUNDING[config["dtype"]]
    assert_close("outputs", whole, outputs, rounding)
    for n, (got, state) in enumerate(zip(states, expected, strict=True)):
        assert_close(f"state {n}", got, state, rounding)
    if config["padding"] == "same":
        return
    pieces, parts = [slice(0, cut), slice(cut, None)], []
    state, previous = None, None
    for at in pieces[::-1] if config["go_backwards"] else pieces:
        part, *state = stack(
            x[:, at],
            initial_state=state,
            mask=None if mask is None else mask[:, at],
            previous_output=previous,
        )
        parts.append(to_numpy(part))
        previous = part[:, -1]
    assert_close(
        "outputs of the pieces", np.concatenate(parts, axis=1), whole, rounding
    )
    for n, (got, expected) in enumerate(zip(state, states, strict=True)):
        assert_close(f"state {n} of the pieces", got, expected, rounding)


@differentiable
@settings(max_examples=2 if COMPILED else 12)
@given(cases())
def test_gradients(case):
    config, x, mask, _ = case
    stack = stack_of(config, return_sequences=True)
    states = drawn_states(stack)
    d_outputs = np.random.default_rng(2).normal(
        size=(BATCH, TIME, stack.qrnns[-1].units)
    )
    seeds = [ops.convert_to_tensor(v) for v in stack.non_trainable_variables]
    weights = [ops.convert_to_numpy(w) for w in stack.weights]

    def loss(x, *rest):
        outputs, _ = stack.stateless_call(
            rest[len(states) :],
            seeds,
            x,
            initial_state=list(rest[: len(states)]),
            mask=mask,
        )
        return ops.sum(
            outputs * ops.convert_to_tensor(d_outputs.astype(config["dtype"]))
        )

    _, gradients = value_and_gradients(loss, [x, *states, *weights])
    expected = expected_of(stack, x, mask, states, d_outputs)
    names = ["x"] + [f"state {n}" for n in range(len(states))]
    names += [weight.path for weight in stack.weights]
    rounding = ROUNDING[config["dtype"]]
    for name, got, want in zip(names, gradients, expected, strict=True):
        assert_close(f"gradient by {name}", got, want, rounding)


def test_draws_of_training_are_those_of_the_qrnns_one_after_another():
    config = LAYOUTS[1] | {"dense": True, "seed": 3, "dropout": 0.5, "zoneout": 0.3}
    stack, other = (
        stack_of(config, kernel_dropout=0.3, return_sequences=True) for _ in range(2)
    )
    other.set_weights(stack.get_weights())
    x = X
    for n, layer in enumerate(other.qrnns):
        outputs = layer(x, mask=HOLES, training=True)
        if n < 2:
            x = ops.concatenate([ops.convert_to_tensor(x), outputs], axis=-1)
    got = stack(X, mask=HOLES, training=True)
    assert_close("outputs", got, outputs)
    assert np.abs(to_numpy(got) - to_numpy(stack(X, mask=HOLES))).max() > 1e-3
    assert [layer.dropout for layer in stack.qrnns] == [0, 0.5, 0.5]


@pytest.mark.one_backend("torch")
def test_attributes_that_are_set_later():
    """They are those of the layers, as in a QRNN or an LSTM."""
    stack = QRNNStack(4, 2, dropout=0.5, return_sequences=True)
    expected = QRNNStack(
        4, 2, dropout=0.2, return_sequences=True, return_state=True, go_backwards=True,
        stateful=True,
    )  # fmt: skip
    stack.return_state = stack.go_backwards = stack.stateful = True
    stack.dropout = 0.2
    config = expected.get_config()
    assert stack.get_config() == config | {"name": stack.name}
    outputs, expected_outputs = stack(X), expected(X)
    shapes = stack.compute_output_shape(X.shape)
    assert len(outputs) == len(expected_outputs) == len(shapes) == 5
    stack.set_weights(expected.get_weights())
    expected.reset_state()
    stack.reset_state()
    for got, wanted in zip(stack(X), expected(X), strict=True):
        assert_close("output", got, wanted)
    assert [layer.dropout for layer in stack.qrnns] == [0.0, 0.2]
    stack.stateful = False
    assert stack(X[:2])[0].shape == (2, TIME, 4)
    with pytest.raises(ValueError, match="before the stack is built"):
        stack.stateful = True
    with pytest.raises(ValueError, match="padding='same'"):
        QRNNStack(4, 2, padding="same").stateful = True
    with pytest.raises(ValueError, match="have no random numbers"):
        QRNNStack(4, 2).dropout = 0.1


@pytest.mark.parametrize("built", [False, True])
def test_the_dtype_policy_can_be_set(built):
    policy = "mixed_bfloat16" if built else "float64"
    stack, expected = QRNNStack(4, 2), QRNNStack(4, 2, dtype=policy)
    if built:
        stack(X)
    stack.dtype_policy = policy
    config = expected.get_config()
    assert stack.get_config() == config | {"name": stack.name}
    assert [q.dtype_policy.name for q in stack.qrnns] == [policy] * 2
    wanted = expected(X)
    stack.build(X.shape)
    stack.set_weights(expected.get_weights())
    got = stack(X)
    assert keras.backend.standardize_dtype(got.dtype) == expected.compute_dtype
    assert_close("output", ops.cast(got, "float32"), ops.cast(wanted, "float32"), 0)
    assert {w.dtype for w in stack.weights} == {expected.variable_dtype}
    # Each layer may have its own policy. One that is set later is of all of them.
    own = keras.dtype_policies.DTypePolicyMap(default_policy="float32")
    stack = QRNNStack(4, 2, dtype=own)
    stack.dtype_policy = "bfloat16"
    assert {q.compute_dtype for q in (stack, *stack.qrnns)} == {"bfloat16"}


@pytest.mark.one_backend("torch")
def test_layers_that_are_not_trained_stay_so(tmp_path):
    inputs = keras.Input((TIME, FEATURES))
    model = keras.Model(inputs, QRNNStack(4, 3)(inputs))
    model.layers[1].qrnns[0].trainable = False
    model.save(tmp_path / "model.keras")
    copies = [
        keras.saving.load_model(tmp_path / "model.keras"),
        keras.models.clone_model(model),
    ]
    for copy in copies:
        assert [q.trainable for q in copy.layers[1].qrnns] == [False, True, True]
        assert len(copy.trainable_weights) == 4
        copy.layers[1].trainable = False
        assert copy.layers[1].get_config()["trainable"] is False
    frozen = QRNNStack(4, 2, trainable=[False, False])
    assert QRNNStack.from_config(frozen.get_config()).get_config()["trainable"] == [
        False, False,
    ]  # fmt: skip
    frozen = QRNNStack(4, 2, trainable=False)
    frozen.qrnns[1].trainable = True  # the stack is still frozen
    assert frozen.get_config()["trainable"] is False
    with pytest.raises(ValueError, match="one for each of the 2 layers"):
        QRNNStack(4, 2, trainable=[True])


@pytest.mark.one_backend("torch")
def test_a_layer_of_a_stack_alone_takes_its_own_window():
    stack = QRNNStack(4, 2, return_state=True)
    stack.build((None, TIME, FEATURES))
    inputs = keras.Input((TIME, FEATURES))
    layer = stack.qrnns[0]
    _, *states = layer(inputs)
    model = keras.Model(inputs, layer(inputs, initial_state=states)[0])
    _, *states = layer(X)
    assert_close("output", model(X), layer(X, initial_state=states)[0])
    with pytest.raises(ValueError, match="another layer has other inputs"):
        QRNN(4, name="other")(inputs, initial_state=layer(inputs)[1:])


@pytest.mark.one_backend("torch")
def test_input_shape_builds_a_sequential_model():
    model = keras.Sequential([QRNNStack(4, 2, input_shape=(TIME, FEATURES))])
    # Two kernels of window 2, with three gates each, and two biases.
    assert model.count_params() == 12 * (2 * FEATURES + 2 * 4 + 2)


@pytest.mark.one_backend("torch")
def test_an_activation_with_weights(tmp_path):
    """Each layer has a copy: the file of a shared one would not load."""
    stack = QRNNStack(4, 2, activation=keras.layers.PReLU(shared_axes=[1]))
    model = keras.Sequential([keras.Input((TIME, FEATURES)), stack])
    expected = model(X)
    assert len(model.weights) == 2 * 3
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_close("output", loaded(X), expected)


def test_a_stack_of_one_layer_is_a_qrnn():
    arguments = {"pooling": "ifo", "zoneout": 0.3, "seed": 4, "return_state": True}
    qrnn, stack = QRNN(3, 3, **arguments), QRNNStack(3, 1, 3, **arguments)
    stack.build(X.shape)
    qrnn.build(X.shape)
    stack.set_weights(qrnn.get_weights())
    state = [RNG.normal(size=(BATCH, 3)), RNG.normal(size=(BATCH, 2, FEATURES))]
    for initial in (None, state, state[0], state[:1]):
        for training in (False, True):
            options = {"initial_state": initial, "mask": HOLES, "training": training}
            pairs = zip(stack(X, **options), qrnn(X, **options), strict=True)
            for n, (got, expected) in enumerate(pairs):
                assert_close(f"result {n}", got, expected, 0)


def test_a_stateful_stack():
    """Single steps give the whole; the kept states are no weights and can be reset."""
    config = LAYOUTS[0]
    stack = stack_of(config, stateful=True, return_sequences=True, pooling="f")
    stateless = stack_of(config, return_sequences=True, pooling="f")
    stateless.set_weights(stack.get_weights())
    expected = stateless(X, mask=HOLES)
    count = sum(1 + (layer.window > 1) for layer in stack.qrnns)
    assert len(stack.states) == count and len(stack.kept) == count + 1
    assert not {id(v) for v in stack.kept} & {id(w) for w in stack.weights}
    assert {id(v) for v in stack.kept} <= {id(v) for v in stack.non_trainable_variables}
    assert stateless.states is None
    for _ in range(2):
        steps = [
            to_numpy(stack(X[:, t : t + 1], mask=HOLES[:, t : t + 1]))
            for t in range(TIME)
        ]
        assert_close("outputs", np.concatenate(steps, axis=1), expected)
        stack.reset_state()
        assert not any(ops.convert_to_numpy(v).any() for v in stack.kept)
    stack(X)
    stack.build(X.shape)
    assert not any(ops.convert_to_numpy(v).any() for v in stack.kept)


def test_a_layer_of_a_stateful_stack_alone():
    """It keeps its states, as a stateful QRNN does."""
    stack = QRNNStack(4, 2, stateful=True)
    stack.build(X.shape)
    layer = stack.qrnns[0]
    expected = QRNN(4, stateful=True, return_sequences=True)
    expected.build(X.shape)
    expected.set_weights(layer.get_weights())
    for n in range(2):
        assert_close(f"outputs of piece {n}", layer(X), expected(X))


@pytest.mark.one_backend
def test_summary_of_nested_layers():
    """Keras takes an attribute `layers` for a list of layers."""
    model = keras.Sequential([keras.Input((None, FEATURES)), QRNNStack(3, 2)])
    lines = []
    model.summary(expand_nested=True, print_fn=lines.append)
    assert "qrnn_stack" in "\n".join(lines)


def operations(call):
    """How often each operation runs in `call(x, mask)`, by name."""
    names = []
    if BACKEND == "torch":
        import torch
        from torch.utils._python_dispatch import TorchDispatchMode

        class Counter(TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                names.append(function.overloadpacket.__name__)
                return function(*args, **(kwargs or {}))

        with Counter(), torch.no_grad():
            call(torch.tensor(X), torch.tensor(HOLES))
    elif BACKEND == "jax":
        import jax

        def visit(jaxpr):
            for equation in jaxpr.eqns:
                names.append(equation.primitive.name)
                jax.tree.map(
                    lambda value: visit(getattr(value, "jaxpr", value)),
                    [v for v in equation.params.values() if hasattr(v, "jaxpr")],
                )

        visit(jax.make_jaxpr(call)(X, HOLES).jaxpr)
    else:
        import tensorflow as tf

        function = tf.function(call, autograph=False)
        graph = function.get_concrete_function(tf.constant(X), tf.constant(HOLES)).graph
        names = [operation.type for operation in graph.get_operations()]
    return names


@pytest.mark.skipif(BACKEND == "numpy", reason="NumPy has no record of operations")
def test_masks_are_sorted_out_once():
    """Three layers sort, count and move steps no more often than one."""
    moves = {"sort", "gather", "cumsum", "index_select", "scatter"}
    moves |= {"TopKV2", "GatherV2", "GatherNd", "Cumsum", "ResourceGather"}
    counts = []
    for layers in (1, 3):
        stack = QRNNStack(FEATURES, layers, 2, return_sequences=True)
        stack.build(X.shape)
        names = operations(lambda x, mask, stack=stack: stack(x, mask=mask))
        counts.append({name: names.count(name) for name in moves})
    assert counts[0] == counts[1]
    assert sum(counts[0].values()) >= 2


def test_mixed_precision():
    stack = QRNNStack(3, 2, dense=True, return_state=True, dtype="mixed_float16")
    for x in (X, keras.Input((None, FEATURES))):
        output, *states = stack(x)
        dtypes = [keras.backend.standardize_dtype(t.dtype) for t in (output, *states)]
        assert dtypes == ["float16"] + ["float32"] * 4
    _, *state = stack(X[:, :2])
    _, *state = stack(X[:, 2:], initial_state=state)
    for n, (got, expected) in enumerate(zip(state, stack(X)[1:], strict=True)):
        assert_close(f"state {n}", got, expected, 2e-3)


def test_bidirectional_time_distributed_and_go_backwards():
    config = LAYOUTS[0] | {"dense": True}
    layer = keras.layers.Bidirectional(
        QRNNStack(**config, return_sequences=True, return_state=True)
    )
    x = np.where(HOLES[..., None], X, np.nan).astype("float32")
    outputs, *states = layer(x, mask=HOLES)
    forward, *first = layer.forward_layer(x, mask=HOLES)
    backward, *second = layer.backward_layer(x, mask=HOLES)
    assert layer.backward_layer.go_backwards
    assert not to_numpy(forward)[~HOLES].any()  # Bidirectional asks for zeros
    both = ops.concatenate([forward, ops.flip(backward, axis=1)], axis=-1)
    assert_close("outputs", outputs, both, 0)
    for got, expected in zip(states, [*first, *second], strict=True):
        assert_close("state", got, expected, 0)
    each = keras.layers.TimeDistributed(QRNNStack(**config))
    got = each(np.stack([X, X + 1], axis=1))
    for n in range(2):
        assert_close("outputs", got[:, n], each.layer(X + n))


def model_of(batch=None, stateful=False):
    inputs = keras.Input(batch_shape=(batch, None, FEATURES))
    x = keras.layers.Masking()(inputs)
    stack = QRNNStack(
        **LAYOUTS[0], dense=True, pooling="ifo", zoneout=0.1, dropout=0.2,
        kernel_regularizer="l2", activity_regularizer="l2", bias_constraint="max_norm",
        stateful=stateful, return_sequences=True, name="stack",
    )  # fmt: skip
    return keras.Model(inputs, keras.layers.Dense(1)(stack(x)))


def test_models_files_and_clones(tmp_path):
    """A stateful model is trained. Its weights go to other models and to files."""
    streaming, model = model_of(BATCH, stateful=True), model_of()
    stack = streaming.get_layer("stack")
    assert [w.path for w in stack.weights] == [
        f"stack/qrnn_{n}/{name}" for n in range(2) for name in ("kernel", "bias")
    ]
    if BACKEND != "numpy":
        y = np.ones((BATCH, TIME, 1))
        streaming.compile("adam", "mse")
        history = streaming.fit(X, y, batch_size=BATCH, epochs=3, verbose=0).history
        assert history["loss"][-1] < history["loss"][0]
        assert all(ops.convert_to_numpy(state).any() for state in stack.kept)
    stack.reset_state()
    model.set_weights(streaming.get_weights())
    assert model.output_shape == (None, None, 1)
    expected = model.predict(X, verbose=0)
    steps = [streaming(X[:, t : t + 1]) for t in range(TIME)]
    assert_close("outputs of steps", ops.concatenate(steps, axis=1), expected)
    stack = model.get_layer("stack")
    model(X)
    assert len(stack.losses) == 3 and stack.qrnns[1].bias.constraint is not None
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    clone = keras.models.clone_model(model)
    clone.load_weights(tmp_path / "model.weights.h5")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("stack").get_config() == stack.get_config()
    for name, got in {"a clone": clone, "a file": loaded}.items():
        assert_close(f"outputs of {name}", got(X), expected)


def test_symbolic_states_and_masks():
    """An encoder's cells start a decoder of the same sizes, in a functional model."""
    config = LAYOUTS[0]
    encoder = QRNNStack(**config, return_state=True)
    decoder = QRNNStack(**config, return_sequences=True)
    inputs = keras.Input((None, FEATURES))
    mask = keras.Input((None,), dtype="bool")
    _, first, _, second = encoder(inputs, mask=mask)
    decoded = decoder(inputs, initial_state=[first, second], mask=mask)
    model = keras.Model([inputs, mask], decoded)
    _, first, _, second = encoder(X, mask=HOLES)
    expected = decoder(X, initial_state=[first, second], mask=HOLES)
    assert_close("outputs", model([X, HOLES]), expected)
    stack = QRNNStack(**config, return_sequences=True, return_state=True)
    assert stack.compute_mask(X, HOLES)[0] is HOLES
    assert stack.compute_mask(X, HOLES)[1:] == [None] * 3
    assert stack.compute_output_shape((None, None, 2)) == (
        (None, None, 4), (None, 3), (None, 2, 2), (None, 4),
    )  # fmt: skip
    assert QRNNStack(**config).compute_mask(X, HOLES) is None


def test_layers_start_with_weights_of_their_own():
    """An initializer gives the same values at each call: each layer has a copy."""
    normal = keras.initializers.RandomNormal()
    stack = QRNNStack(FEATURES, 2, kernel_initializer=normal)
    stack.build(X.shape)
    first, second = (to_numpy(layer.kernel) for layer in stack.qrnns)
    assert np.abs(first - second).max() > 1e-3


@pytest.mark.parametrize("sizes", [[4], [4, 3]])
def test_contexts(tmp_path, sizes):
    """One argument for all layers, or one for each. Single QRNNs give the same."""
    given = [RNG.normal(size=(BATCH, n)).astype("float32") for n in sizes]
    inputs = [keras.Input((None, FEATURES)), keras.Input((None,), dtype="bool")]
    symbolic = [keras.Input((n,)) for n in sizes]
    stack = QRNNStack(3, 2, return_sequences=True, name="stack")
    outputs = stack(
        inputs[0],
        mask=inputs[1],
        context=symbolic if len(sizes) == 2 else symbolic[0],
    )
    model = keras.Model([*inputs, *symbolic], outputs)
    data, contexts = [X, HOLES, *given], (given * 2)[:2]
    expected = X
    for layer, context in zip(stack.qrnns, contexts, strict=True):
        assert layer.context_kernel.shape == (context.shape[1], 9)
        expected = layer(expected, mask=HOLES, context=context)
    assert_close("outputs", model(data), expected)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_close("outputs of the file", loaded(data), expected)
    for context, message in [
        (None, "Layer 'qrnn_0' was built with a context"),
        (contexts[:1], "one for each of the 2 layers. Received: a list of 1"),
        ([contexts[0], contexts[1][:, 1:]], r"of shape \(batch, features\) = \(3, "),
    ]:
        with pytest.raises(ValueError, match=message):
            stack(X, context=context)


CELL, WINDOW = np.ones((BATCH, 3), "float32"), np.ones((BATCH, 1, FEATURES), "float32")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            [CELL] * 3,
            r"list of the 2 cell.*qrnn_0: cell_state, window_state; qr",
        ),
        (CELL, r"of the 2 cell states, one for each layer.* states of the shapes \[\("),
        ([CELL, CELL[:, :2]], "of layer 'qrnn_1' of QRNNStack 'stack' must be"),
        ([CELL, WINDOW, CELL, WINDOW], "of layer 'qrnn_1' of QRNNStack 'stack' must"),
        ([CELL, None], "of layer 'qrnn_1' of QRNNStack 'stack' must be"),
        ([], "list of the 2 cell states"),
        ([[CELL, WINDOW]] * 3, r"states of the shapes \[None, None, None\]"),
    ],
)
def test_refuses_states_that_do_not_fit(state, message):
    stack = QRNNStack(3, 2, name="stack")
    with pytest.raises(ValueError, match=message):
        stack(X, initial_state=state)


def test_refuses_the_windows_of_another_stack():
    encoder, decoder = (QRNNStack(3, 2, return_state=True) for _ in range(2))
    for x in (X, keras.Input((None, FEATURES))):
        _, *states = encoder(x)
        encoder(x, initial_state=states)
        message = (
            f"Expected: the window of layer '{decoder.name}'. Received: the window"
        )
        with pytest.raises(ValueError, match=f"{message} of.*'{encoder.name}'"):
            decoder(x, initial_state=states)
        with pytest.raises(ValueError, match=f"Received: the.*'{encoder.name}'"):
            QRNN(3, name="qrnn_0")(x, initial_state=states[:2])


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"units": 3, "layers": 0}, "`layers` must be a positive integer"),
        ({"units": 0, "layers": 2}, "`units` must be a positive integer"),
        ({"units": [3], "layers": 2}, "`units` must be an integer or a list with one"),
        ({"units": 3, "layers": 2, "window": [1, 2, 3]}, "`window` must be an integer"),
        ({"units": 3, "layers": 2, "window": [1, 0]}, "`window` must be a positive"),
        ({"units": 3, "layers": 2, "window": "12"}, "`window` must be a positive"),
        *[
            ({"units": 3, "layers": 2, name: value}, f"`{name}` must be True or False")
            for name in ("dense", "stateful", "go_backwards", "return_sequences")
            for value in ("no", None)
        ],
        *[
            ({"units": 3, "layers": 2, name: 2}, f"`{name}` must be True or False")
            for name in ("zero_output_for_mask", "return_state")
        ],
        ({"units": 3, "layers": 2, "dropout": 1.0}, r"`dropout` must be in \[0, 1\)"),
        ({"units": 3, "layers": 2, "unroll": True}, "LSTM's argument `unroll`"),
        ({"units": 3, "layers": 2, "colour": 1}, "colour"),
    ],
)
def test_refuses_bad_arguments(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        QRNNStack(**arguments)


@pytest.mark.one_backend
def test_refuses_bad_inputs():
    with pytest.raises(ValueError, match="at least one time step"):
        QRNNStack(3, 2)(keras.Input((0, 3)))
    with pytest.raises(ValueError, match=r"last dimension .* must be known"):
        QRNNStack(3, 2)(keras.Input((4, None)))
    with pytest.raises(ValueError, match="needs a static batch size"):
        QRNNStack(3, 2, stateful=True)(keras.Input((None, 3)))
    with pytest.raises(ValueError, match=r"`mask` must have shape \(batch, time\)"):
        QRNNStack(3, 2)(X, mask=HOLES[:, 1:])
    with pytest.raises(ValueError, match="`previous_output` must have shape"):
        QRNNStack(3, 2)(X, previous_output=CELL[:, 1:])
    stack = QRNNStack(3, 2, stateful=True)
    stack(X)
    with pytest.raises(ValueError, match="batch size of a stateful layer must not"):
        stack(X[:2])
