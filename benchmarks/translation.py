"""Times the paper's encoder-decoder for translation and its parts, QRNN beside LSTM.

    KERAS_BACKEND=jax python benchmarks/translation.py --dtype float32

A training step is that of a batch of 16 pairs of 80 characters, with gradients clipped
and Adam. The characters are random: the speed does not depend on them.
"""

from collections.abc import Callable

import keras
import numpy as np
from _models import POLICIES, model_parser, whole_steps, write_parts
from _timing import layer_calls, measure, names_of, parse, tensor
from keras import ops

from keras_qrnn._types import Shape, Tensor
from keras_qrnn.data.pair_batches import PairBatches
from keras_qrnn.models.beam_search import BeamSearch, compiled
from keras_qrnn.models.translation import CELLS, TranslationModel
from keras_qrnn.training.optimizers import build_optimizer
from keras_qrnn.training.translation import TranslationOptions

KEY = ("cell", "dtype", "part", "batch", "time")
BEAMS = (1, 8)


class Encoder(keras.layers.Layer):
    """The encoder's layers of a model, of embedded characters."""

    def __init__(self, model: TranslationModel) -> None:
        super().__init__(dtype=model.dtype_policy)
        self.layers_of_model = model.encoder

    def build(self, shape: Shape) -> None:
        """The layers are built already."""

    def call(self, x: Tensor, training: bool = False) -> Tensor:
        for layer in self.layers_of_model:
            x = layer(x, training=training)[0]
        return x


class Decoder(keras.layers.Layer):
    """Decoder layers of a model, on contexts and encoder outputs that are given."""

    def __init__(self, model: TranslationModel, last: bool, memory: Tensor) -> None:
        super().__init__(dtype=model.dtype_policy)
        self.layers_of_model = model.decoder[-1:] if last else model.decoder[:-1]
        self.attends = last
        self.memory = memory
        self.of_lstm = None
        if last and model.cell == "lstm":
            self.of_lstm = [
                model.attention,
                model.attended_kernel,
                model.state_kernel,
            ]

    def build(self, shape: Shape) -> None:
        """The layers are built already."""

    def call(self, x: Tensor, training: bool = False) -> Tensor:
        for layer in self.layers_of_model:
            options = {"training": training}
            if not isinstance(layer, keras.layers.LSTM):
                options["context"] = self.memory[:, -1]
                if self.attends:
                    options["encoder_outputs"] = self.memory
            x = layer(x, **options)[0]
        if self.of_lstm is not None:
            attention, attended_kernel, state_kernel = self.of_lstm
            attended = attended_kernel(attention([x, self.memory]))
            x = ops.tanh(attended + state_kernel(x))
        return x


def random_batches(batch: int, time: int, vocab: int, steps: int) -> PairBatches:
    """Batches of random characters: those of `steps` timed steps, and three more."""
    size = (2, batch * (steps + 3), time)
    source, target = np.random.default_rng(0).integers(3, vocab, size).astype("int32")
    return PairBatches(source, target, batch, seed=0, multiple=1)


def parts(
    model: TranslationModel, batch: int, time: int, options: TranslationOptions
) -> dict[str, Callable]:
    """The parts of a training step, each with its gradient."""
    rng = np.random.default_rng(0)

    def values(features: int) -> Tensor:
        array = rng.normal(size=(batch, time, features)).astype("float32")
        return tensor(ops.convert_to_numpy(ops.cast(array, model.compute_dtype)))

    vocab, units, embedded = model.logits_bias.shape[0], options.units, options.emb_dim
    tokens = ops.convert_to_tensor(rng.integers(3, vocab, (batch, time)), "int32")
    memory = ops.stop_gradient(values(units))
    # JAX's calls pass `training`, which these two layers do not take themselves.
    embedding = keras.Sequential([model.source_embedding])
    logits = keras.Sequential([model.logits])
    found = {
        "one embedding": layer_calls(
            embedding,
            tokens,
            tensor(np.ones((batch, time, embedded), "float32")),
            False,
        ),
        "encoder layers": layer_calls(Encoder(model), values(embedded), values(units)),
        "attention layer": layer_calls(
            Decoder(model, True, memory),
            values(units if options.layers > 1 else embedded),
            values(units),
        ),
        "softmax's logits": layer_calls(logits, values(units), values(vocab)),
    }
    if options.layers > 1:
        found["other decoder layers"] = layer_calls(
            Decoder(model, False, memory), values(embedded), values(units)
        )
    return {part: calls["training"] for part, calls in found.items()}


def searches(
    model: TranslationModel, batch: int, time: int, vocab: int
) -> dict[str, Callable]:
    """Greedy and beam search for `time` characters of each sentence of a batch."""
    rng = np.random.default_rng(0)
    source = ops.convert_to_tensor(rng.integers(3, vocab, (batch, time)), "int32")
    memory, states = compiled(model.encode, model.variables)(source)
    lengths = np.full(batch, time)

    def search(beam: int) -> Callable:
        # `<eos>` is forbidden, so all translations have `time` characters.
        beams = BeamSearch(
            model.step, beam, start=1, end=1, forbidden=(0, 1, 2),
            variables=model.variables,
        )  # fmt: skip

        def run() -> Tensor:
            beams(states, memory, lengths, lengths)
            return source

        return run

    return {f"beam {beam}" if beam > 1 else "greedy": search(beam) for beam in BEAMS}


def main(arguments: list[str] | None = None) -> None:
    parser = model_parser(__doc__.splitlines()[0])
    parser.add_argument("--cells", type=names_of(*CELLS), default=",".join(CELLS))
    options = parse(parser, arguments, quick="a tiny model")
    policy = POLICIES[options.dtype]
    batch, time, vocab, sizes = 16, 80, 100, {}
    if options.quick:
        sizes = {"units": 4, "emb_dim": 3, "layers": 1, "first_window": 3}
        batch, time, vocab, options.steps, options.seconds = 2, 6, 9, 2, 0.01
    recipe = TranslationOptions(dtype_policy=policy, batch_size=batch, **sizes)
    batches = random_batches(batch, time, vocab, options.steps)
    spreads, calls = {}, {}
    for cell in options.cells:
        model = TranslationModel(
            vocab, recipe.emb_dim, recipe.units, recipe.layers, recipe.first_window,
            recipe.window, cell=cell, dtype=policy,
        )  # fmt: skip
        model.build()
        model.compile(build_optimizer(recipe))
        steps = whole_steps(model, batches)
        spreads |= {(cell, part): spread for part, spread in steps.items()}
        found = parts(model, batch, time, recipe) | searches(model, batch, time, vocab)
        calls |= {(cell, part): call for part, call in found.items()}
    spreads |= measure(calls, options.seconds)
    write_parts(
        options.results / "translation.csv", spreads, options.dtype, KEY,
        {"batch": batch, "time": time}, "characters", batch * time,
    )  # fmt: skip


if __name__ == "__main__":
    main()
