"""Times the paper's Penn Treebank language model and its parts; its peak memory.

    KERAS_BACKEND=jax python benchmarks/lm.py --cell qrnn --dtype float32

Each process measures one configuration, because the peak memory is that of the process.
The tokens are random: the speed does not depend on them.
"""

import argparse
import math
import resource
import time
from collections.abc import Callable

import keras
import numpy as np
from _timing import (
    BACKEND,
    forward,
    forward_backward,
    layer_calls,
    measure,
    merge_rows,
    parse,
    tensor,
)
from keras import ops

from keras_qrnn._types import Tensor
from keras_qrnn.data import BPTTBatches
from keras_qrnn.models import LanguageModel
from keras_qrnn.models.language_model import CELLS
from keras_qrnn.ops.backend import backend
from keras_qrnn.training import TrainingOptions
from keras_qrnn.training.environment import environment
from keras_qrnn.training.language_model import build_language_model

KEY = ("cell", "dtype", "part")


class Stopwatch(keras.callbacks.Callback):
    """Records the time at the end of each batch, in seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.times = []

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self.times.append(time.perf_counter())

    on_test_batch_end = on_train_batch_end

    def spread(self, skip: int) -> dict:
        steps = np.diff(self.times)[skip:]
        values = {"min": steps.min(), "median": np.median(steps), "max": steps.max()}
        return {n: float(v) for n, v in values.items()} | {"runs": len(steps)}


def whole_steps(model: LanguageModel, vocab: int, length: int, steps: int) -> dict:
    """Times steps of `fit` and `evaluate`. The first two steps of each do not count."""
    rows = model.batch_size
    ids = np.random.default_rng(0).integers(0, vocab, rows * length * (steps + 3) + 1)
    batches = BPTTBatches(ids, rows, length)
    spreads = {}
    for part, run in (("training", model.fit), ("evaluation", model.evaluate)):
        watch = Stopwatch()
        options = {"shuffle": False} if part == "training" else {}
        run(batches, verbose=0, callbacks=[watch], **options)
        spreads[part] = watch.spread(skip=2)
    return spreads


def parts(
    model: LanguageModel, vocab: int, length: int, units: int
) -> dict[str, Callable]:
    """The parts of a training step: each layer with its gradient, and the update.

    Beside the softmax with its cross-entropy stands that of Keras, which
    `keras_qrnn.losses` could use instead.
    """
    rng = np.random.default_rng(0)
    shape = (model.batch_size, length)
    tokens = ops.convert_to_tensor(rng.integers(0, vocab, shape).astype("int32"))
    dtype = keras.config.dtype_policy().compute_dtype

    def values(features: int, shape: tuple[int, ...] = shape) -> keras.KerasTensor:
        array = rng.normal(size=(*shape, features)).astype("float32")
        return tensor(ops.convert_to_numpy(ops.cast(array, dtype)))

    embedded, hidden = (
        values(layer.compute_output_shape((*shape, n))[-1])
        for layer, n in ((model.embedding, 1), (model.dropouts[-1], units))
    )
    logits = values(vocab)
    rows = (values(features, (math.prod(shape),)) for features in (units, vocab))

    def loss_by(cross_entropy: Callable) -> Callable:
        def loss(logits: Tensor) -> Tensor:
            return ops.sum(cross_entropy(ops.cast(logits, "float32"), tokens))

        return forward_backward(loss, ops.ones(()))

    def of_keras(logits: Tensor, tokens: Tensor) -> Tensor:
        loss = ops.sparse_categorical_crossentropy(tokens, logits, from_logits=True)
        return ops.cast(loss, logits.dtype)  # float64 on JAX where that is enabled

    recurrent = []
    for layer, dropout in zip(model.recurrent, model.dropouts[1:], strict=True):
        recurrent += [layer, dropout]
    embedding = keras.Sequential([model.embedding, model.dropouts[0]])
    softmax, softmax_of_keras = map(loss_by, (backend.cross_entropy, of_keras))
    return {
        "embedding": layer_calls(embedding, tokens, embedded, False)["training"],
        "recurrent layers": layer_calls(keras.Sequential(recurrent), embedded, hidden)[
            "training"
        ],
        "logits": layer_calls(keras.Sequential([model.logits]), *rows)["training"],
        "softmax": lambda: softmax(logits),
        "softmax of Keras": lambda: softmax_of_keras(logits),
        "optimizer": optimizer_step(model),
    }


def optimizer_step(model: LanguageModel) -> Callable:
    optimizer, variables = model.optimizer, model.trainable_variables
    gradients = [ops.ones(v.shape, v.dtype) for v in variables]
    if BACKEND == "jax":
        state = [v.value for v in optimizer.variables]
        values = [v.value for v in variables]
        update = forward(optimizer.stateless_apply)
        return lambda: update(state, gradients, values)
    if BACKEND == "torch":
        update = forward(optimizer.apply)
        return lambda: update(gradients)
    update = forward(lambda: optimizer.apply(gradients, variables))
    return update


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cell", choices=CELLS, default="qrnn")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each part")
    options = parse(parser, arguments, quick="a tiny model")
    policy = {"float32": "float32", "bfloat16": "mixed_bfloat16"}[options.dtype]
    recipe = {"batch_size": 20, "seq_len": 105, "emb_dim": 640}
    vocab = 10000
    if options.quick:
        recipe = {"batch_size": 2, "seq_len": 6, "emb_dim": 4, "units": 4}
        vocab, options.steps, options.seconds = 12, 2, 0.01
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        recipe = TrainingOptions(cell=options.cell, dtype_policy=policy, **recipe)
        model = build_language_model(recipe, vocab)
        spreads = whole_steps(model, vocab, recipe.seq_len, options.steps)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        spreads |= measure(
            parts(model, vocab, recipe.seq_len, recipe.units), options.seconds
        )
    finally:
        keras.config.set_dtype_policy(before)
    tokens = recipe.batch_size * recipe.seq_len
    rows = []
    for part, spread in spreads.items():
        row = {"cell": options.cell, "dtype": options.dtype, "part": part, **spread}
        row["tokens_per_second"] = tokens / spread["median"]
        rows.append(row | {"peak_bytes": peak} | environment())
        print(
            f"{BACKEND} {options.cell} {options.dtype:9}{part:17}"
            f"{1e3 * spread['median']:9.1f} ms ({1e3 * spread['min']:.1f} to "
            f"{1e3 * spread['max']:.1f}), {row['tokens_per_second']:.0f} tokens/s"
        )
    print(f"peak memory of the process {peak / 2**20:.0f} MiB")
    merge_rows(options.results / "lm.csv", rows, KEY)


if __name__ == "__main__":
    main()
