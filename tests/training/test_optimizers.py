"""The optimizers: late averages, scheduled momenta, files."""

import math

import keras
import numpy as np
import pytest

from keras_qrnn.training.callbacks import AverageAfterStall
from keras_qrnn.training.objective import Objective
from keras_qrnn.training.optimizers import SGD, AdamW, build_optimizer
from keras_qrnn.training.options import OPTIMIZERS, RunOptions
from keras_qrnn.training.schedules import OneCycle

pytestmark = pytest.mark.skipif(
    keras.config.backend() == "numpy", reason="the NumPy backend does not train"
)
X = np.random.default_rng(0).normal(size=(12, 3)).astype("float32")


def to_numpy(tensor):
    return keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32"))


class Weights(keras.callbacks.Callback):
    """It records weights and averages after each step, and starts the average."""

    def __init__(self, start_after):
        super().__init__()
        self.start_after = start_after
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        if keras.config.backend() == "jax":
            self.model.jax_state_sync()
        optimizer = self.model.optimizer
        average = optimizer._model_variables_moving_average[0]
        self.seen.append((to_numpy(self.model.layers[0].kernel), to_numpy(average)))
        if batch + 1 == self.start_after:
            assert not optimizer.has_average_started
            optimizer.start_average()
            assert optimizer.has_average_started


def trained(optimizer, callbacks=()):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(optimizer, "mse")
    model.fit(X, X[:, :2], batch_size=2, verbose=0, callbacks=callbacks, shuffle=False)
    return model


@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_average_of_the_weights_since_a_step(kind):
    weights = Weights(start_after=2)
    model = trained(kind(0.1, triggered_average=True), [weights])
    steps = [step for step, _ in weights.seen]
    assert len(steps) == 6
    for n, (step, average) in enumerate(weights.seen):
        if n < 2:
            assert np.array_equal(average, step)
        else:
            assert np.allclose(average, np.mean(steps[2 : n + 1], axis=0), atol=1e-6)
    # As with Keras's own averages, `fit` ends with them as the weights.
    assert np.array_equal(to_numpy(model.layers[0].kernel), weights.seen[-1][1])


class Validated(keras.callbacks.Callback):
    """It adds a metric to the logs of each epoch."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def on_epoch_end(self, epoch, logs=None):
        logs["val_accuracy"] = self.values[epoch]


def test_a_stall_starts_the_average_in_any_model():
    """The callback remembers the epochs of a `fit` by itself."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(SGD(0.1, triggered_average=True), "mse")
    # After epoch 3 of 4 the value is below that of epoch 1.
    callbacks = [
        Validated([0.6, 0.7, 0.5, 0.8]),
        AverageAfterStall(Objective("val_accuracy", "max"), epochs=1),
    ]
    data = {"x": X, "y": X[:, :2], "batch_size": 6, "verbose": 0}
    model.fit(**data, epochs=2, callbacks=callbacks)
    assert int(model.optimizer.average_start) == -1
    model.fit(**data, epochs=4, callbacks=callbacks)
    assert int(model.optimizer.average_start) == 2 * (2 + 3)


def test_average_with_accumulated_gradients():
    """The mean is over the updates since the start, each after three gradients."""
    optimizer = SGD(0.1, triggered_average=True, gradient_accumulation_steps=3)
    variable = keras.Variable(np.ones(2, "float32"))
    optimizer.build([variable])
    updates = []
    for n in range(12):
        if n == 4:
            optimizer.start_average()
            updates.clear()
        optimizer.apply([keras.ops.convert_to_tensor(X[n, :2])])
        if n % 3 == 2:
            updates.append(to_numpy(variable))
        expected = np.mean(updates, axis=0) if updates else to_numpy(variable)
        average = to_numpy(optimizer._model_variables_moving_average[0])
        assert np.allclose(average, expected, atol=1e-6), n


def test_fit_after_fit_with_averages_of_rmsprop():
    """On JAX the weights and the averages of Keras's own would share memory."""
    options = RunOptions(optimizer="rmsprop", weight_average=0.9)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(build_optimizer(options), "mse")
    for _ in range(2):
        model.fit(X, X[:, :2], batch_size=12, verbose=0)
    assert int(model.optimizer.iterations) == 2


# A first step of each optimizer, of gradients g, with a rate of 0.1: its size in each
# element, where AdamW's is 0.1 * g / abs(g) and RMSprop's 0.1 * g / sqrt(0.1 * g ** 2).
FIRST_STEPS = {"adamw": 0.1, "rmsprop": 0.1 / math.sqrt(0.1)}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_word_that_occurs_twice_has_one_gradient(optimizer):
    """On TensorFlow the gradient of an embedding is a list of rows, two for that word.

    SGD's step is as long as the clip, where the gradient is longer. The other two have
    no clip.
    """
    clip = 0.01 if optimizer == "sgd" else None
    options = RunOptions(
        optimizer=optimizer, learning_rate=0.1, grad_clip=clip, epsilon=1e-15
    )
    embedding = keras.layers.Embedding(5, 3)
    pooling = keras.layers.GlobalAveragePooling1D()
    model = keras.Sequential([keras.Input((6,)), embedding, pooling])
    model.compile(build_optimizer(options), "mse")
    before = to_numpy(embedding.embeddings)
    tokens = np.array([[0, 0, 0, 1, 1, 2], [2, 0, 0, 3, 3, 3]])
    model.fit(tokens, np.float32([[1, 2, 3], [-1, 2, 4]]), verbose=0)
    step = to_numpy(embedding.embeddings) - before
    assert not step[4].any()
    if optimizer == "sgd":
        assert math.isclose(np.linalg.norm(step), 0.1 * 0.01, rel_tol=1e-3)
    else:
        assert np.allclose(np.abs(step[:4]), FIRST_STEPS[optimizer], rtol=1e-3)


@pytest.mark.one_backend("torch")
def test_rates_of_variables_refuse_a_weight_decay():
    with pytest.raises(ValueError, match=r"`weight_decay` must be .*=0\.004"):
        AdamW(rates=[1.0, 0.5])
    with pytest.raises(ValueError, match="`weight_decay` must be"):
        SGD(first_steps=[0, 1], weight_decay=0.1)
    AdamW(rates=[1.0, 0.5], weight_decay=0.0)


@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_without_more_they_are_those_of_keras(kind):
    common = {"weight_decay": 0.1, "global_clipnorm": 0.5, "use_ema": True}
    theirs = getattr(keras.optimizers, kind.__name__)
    found, expected = (
        to_numpy(trained(each(0.1, **common)).layers[0].kernel)
        for each in (kind, theirs)
    )
    assert np.allclose(found, expected, atol=1e-6)


def test_a_scheduled_momentum():
    """With gradients of 1, the moment follows from the momenta of the steps."""
    schedule = OneCycle(0.5, 6, start=0.9, end=0.9, rise=0.5, anneal=0.0)
    optimizer = AdamW(0.0, beta_1=schedule, weight_decay=0.0)
    variable = keras.Variable(np.zeros(2, "float32"))
    optimizer.build([variable])
    expected = 0.0
    for n in range(6):
        beta = float(schedule(n))
        assert float(optimizer.beta_1) == pytest.approx(beta)
        expected = beta * expected + (1 - beta)
        optimizer.apply([keras.ops.ones(2)])
        assert np.allclose(to_numpy(optimizer._momentums[0]), expected, atol=1e-6)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "bfloat16"])
def test_saved_with_a_model(tmp_path, policy):
    keras.config.set_dtype_policy(policy)
    try:
        momentum = OneCycle(0.7, 20, 0.8, 0.8)
        rate = OneCycle(0.1, 20)
        optimizer = AdamW(rate, beta_1=momentum, triggered_average=True)
        model = trained(optimizer)
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
    finally:
        keras.config.set_dtype_policy("float32")
    optimizers = [model.optimizer, loaded.optimizer]
    inner = [getattr(each, "inner_optimizer", each) for each in optimizers]
    assert inner[0].get_config() == inner[1].get_config()
    assert inner[1].triggered_average and int(inner[1].average_start) == -1
    assert float(inner[0].learning_rate) == float(inner[1].learning_rate)
    steps = int(inner[1].iterations)  # in float16 the first ones may overflow
    assert steps > 0
    assert float(inner[1].learning_rate) == pytest.approx(float(rate(steps)))


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_the_epsilon_of_rmsprop_is_added_to_the_root(policy):
    """To within sqrt(2), for gradients far above and far below it."""
    options = RunOptions(
        optimizer="rmsprop", epsilon=1e-6, learning_rate=1e-3, dtype_policy=policy
    )
    gradients = np.array([0.0, 1e-8, 1e-6, 1e-5, 1e-2], "float32")
    variable = keras.Variable(np.zeros(5, "float32"))
    optimizer = build_optimizer(options)
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    optimizer.apply([keras.ops.convert_to_tensor(gradients)], [variable])
    steps = -to_numpy(variable)
    expected = 1e-3 * gradients / (np.sqrt(0.1 * gradients**2) + 1e-6)
    assert steps[0] == 0
    ratios = steps[1:] / expected[1:]
    assert (ratios > 0.99).all() and (ratios < 1.42).all()


@pytest.mark.one_backend("torch")
@pytest.mark.parametrize(("policy", "epsilon"), [("float16", 2e-4), ("float32", 1e-19)])
def test_the_square_of_the_epsilon_of_rmsprop_is_above_0(policy, epsilon):
    def build(epsilon):
        return build_optimizer(
            RunOptions(optimizer="rmsprop", epsilon=epsilon, dtype_policy=policy)
        )

    with pytest.raises(ValueError, match=f"`epsilon` must be .* in {policy}"):
        build(epsilon)
    assert np.dtype(policy).type(build(10 * epsilon).epsilon) > 0
