"""Times the paper's sentiment classifier and its parts, QRNN beside LSTM.

    KERAS_BACKEND=jax python benchmarks/sentiment.py --dtype float32

A training step is that of a batch of 24 reviews of 240 words, with RMSprop. The words
are random: the speed does not depend on them.
"""

from collections.abc import Callable

import keras
import numpy as np
from _models import POLICIES, model_parser, whole_steps, write_parts
from _timing import layer_calls, measure, names_of, parse, tensor
from keras import ops

from keras_qrnn._types import Shape, Tensor
from keras_qrnn.data.review_batches import ReviewBatches
from keras_qrnn.models.sentiment import CELLS, SentimentModel
from keras_qrnn.training.optimizers import build_optimizer
from keras_qrnn.training.sentiment import SentimentOptions

KEY = ("cell", "dtype", "part", "batch", "time")


class Embedding(keras.layers.Layer):
    """The embedding of a model, in the form of a layer with `training`."""

    def __init__(self, model: SentimentModel) -> None:
        super().__init__(dtype=model.dtype_policy)
        self.embedding = model.embedding

    def build(self, shape: Shape) -> None:
        """The embedding is built already."""

    def call(self, tokens: Tensor, training: bool = False) -> Tensor:
        return self.embedding(tokens)


class Layers(keras.layers.Layer):
    """The recurrent layers of a model, of embedded words."""

    def __init__(self, model: SentimentModel, mask: Tensor) -> None:
        super().__init__(dtype=model.dtype_policy)
        self.recurrent = list(model.recurrent)  # their weights get a gradient
        self.encode = model.encode
        self.mask = mask

    def build(self, shape: Shape) -> None:
        """The layers are built already."""

    def call(self, x: Tensor, training: bool = False) -> Tensor:
        return self.encode(x, self.mask, training=training)


def main(arguments: list[str] | None = None) -> None:
    parser = model_parser(__doc__.splitlines()[0])
    parser.add_argument("--cells", type=names_of(*CELLS), default=",".join(CELLS))
    options = parse(parser, arguments, quick="a tiny model")
    policy = POLICIES[options.dtype]
    time, vocab, sizes = 240, 30000, {}
    if options.quick:
        sizes = {"units": 4, "layers": 2, "batch_size": 2}
        time, vocab, options.steps, options.seconds = 8, 9, 2, 0.01
    recipe = SentimentOptions(dtype_policy=policy, **sizes)
    batch, emb_dim = recipe.batch_size, 4 if options.quick else 300
    rng = np.random.default_rng(0)
    count = batch * (options.steps + 3)
    # All of one length: JAX compiles one shape, before the steps that are timed.
    words = list(rng.integers(1, vocab, (count, time)).astype("int32"))
    batches = ReviewBatches(rng.integers(0, 2, count), words, batch, seed=0)
    spreads, calls = {}, {}
    for cell in options.cells:
        model = SentimentModel(
            vocab, emb_dim, recipe.units, recipe.layers, cell=cell, dtype=policy
        )
        model.build()
        model.compile(build_optimizer(recipe))
        steps = whole_steps(model, batches.for_fit())
        spreads |= {(cell, part): spread for part, spread in steps.items()}
        tokens = ops.convert_to_tensor(batches[0][0])
        embedded = tensor(rng.normal(size=(batch, time, emb_dim)).astype("float32"))
        gradient = tensor(rng.normal(size=(batch, recipe.units)).astype("float32"))
        found: dict[str, Callable] = {
            "embedding": layer_calls(Embedding(model), tokens, embedded, False)[
                "training"
            ],
            "layers": layer_calls(
                Layers(model, ops.not_equal(tokens, 0)), embedded, gradient
            )["training"],
        }
        calls |= {(cell, part): call for part, call in found.items()}
    spreads |= measure(calls, options.seconds)
    size = {"batch": batch, "time": time}
    write_parts(options.results / "sentiment.csv", spreads, options.dtype, KEY, size)


if __name__ == "__main__":
    main()
