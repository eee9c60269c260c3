"""Times the paper's Penn Treebank language model and its parts; its peak memory.

    KERAS_BACKEND=jax python benchmarks/lm.py --cell qrnn --dtype float32

Each process measures one configuration, because the peak memory is that of the process.
The tokens are random: the speed does not depend on them.
"""

import math
import resource
from collections.abc import Callable

import keras
import numpy as np
from _models import POLICIES, model_parser, whole_steps, write_parts
from _timing import (
    BACKEND,
    forward,
    forward_backward,
    layer_calls,
    measure,
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
from keras_qrnn.training.language_model import build_language_model

KEY = ("cell", "dtype", "part")


def random_batches(rows: int, length: int, vocab: int, steps: int) -> BPTTBatches:
    """Batches of random tokens: those of `steps` timed steps, and three more."""
    tokens = rows * length * (steps + 3) + 1
    ids = np.random.default_rng(0).integers(0, vocab, tokens)
    return BPTTBatches(ids, rows, length)


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
    parser = model_parser(__doc__.splitlines()[0])
    parser.add_argument("--cell", choices=CELLS, default="qrnn")
    options = parse(parser, arguments, quick="a tiny model")
    policy = POLICIES[options.dtype]
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
        rows, length = recipe.batch_size, recipe.seq_len
        batches = random_batches(rows, length, vocab, options.steps)
        spreads = whole_steps(model, batches)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        spreads |= measure(parts(model, vocab, length, recipe.units), options.seconds)
    finally:
        keras.config.set_dtype_policy(before)
    write_parts(
        options.results / "lm.csv",
        {(options.cell, part): spread for part, spread in spreads.items()},
        options.dtype, KEY, {"peak_bytes": peak}, "tokens", rows * length,
    )  # fmt: skip
    print(f"peak memory of the process {peak / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
