"""Generates text from a model that train_lm.py has trained.

python examples/sample_lm.py --load_path lm-qrnn_model --num_words 100
python examples/sample_lm.py --first_word the --temperature 0.7 --plot_gates
"""

import argparse
import sys
from pathlib import Path

import keras
import numpy as np

from keras_qrnn._checks import positive_integer
from keras_qrnn._files import atomic_write
from keras_qrnn.layers import QRNN
from keras_qrnn.models import LanguageModel
from keras_qrnn.ops.equations import GATES
from keras_qrnn.training import load_trained
from keras_qrnn.training.plots import plot_gates


def generate(
    model: LanguageModel,
    first_id: int,
    num_words: int,
    temperature: float,
    rng: np.random.Generator,
) -> list[int]:
    """Draws `num_words` ids, one step at a time with the carried state.

    Args:
        model: with a batch size of one; its state is reset first.
        first_id: id of the word that the text begins with.
        temperature: divides the logits; below 1 the likelier words gain.
    """
    model.reset_state()
    ids = [first_id]
    for _ in range(num_words - 1):
        logits = model.predict_on_batch(np.array([ids[-1:]], "int32"))[0, -1]
        scaled = logits.astype("float64") / temperature
        # The largest of Gumbel-perturbed logits is a draw from their softmax.
        ids.append(int(np.argmax(scaled + rng.gumbel(size=scaled.shape))))
    return ids


def layer_gates(model: LanguageModel, ids: list[int]) -> dict[str, dict]:
    """The activations of each QRNN layer's gates while the model reads `ids`."""
    model.reset_state()
    gates = {}
    x = model.embedding(np.array([ids], "int32"))
    for layer in model.recurrent:
        if isinstance(layer, QRNN):
            values = [
                np.float32(keras.ops.convert_to_numpy(keras.ops.cast(g, "float32")))[0]
                for g in layer.compute_gates(x)
            ]
            gates[layer.name] = dict(zip(GATES[layer.pooling], values, strict=True))
        x = layer(x)
    return gates


def text_of(words: list[str]) -> str:
    """Words as text, a sentence a line."""
    return " ".join(words).replace(" <eos>", "\n").replace("\n ", "\n").rstrip() + "\n"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--load_path", default="lm-qrnn_model",
        help="directory that train_lm.py wrote (default lm-qrnn_model)",
    )  # fmt: skip
    parser.add_argument("--save_path", help="where to write (default: load_path)")
    parser.add_argument("--out_filename", default="sample.txt", help="in save_path")
    parser.add_argument(
        "--num_words", type=int, default=100, help="length (default 100)"
    )
    parser.add_argument("--first_word", default="<eos>", help="default: a new sentence")
    parser.add_argument(
        "--temperature", type=float, default=1.0,
        help="divides the logits: below 1 likelier words, above 1 others (default 1)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default 0)")
    parser.add_argument(
        "--plot_gates", action="store_true", help="draw gates.png beside the text"
    )
    return parser


def run(arguments: argparse.Namespace) -> None:
    load_path = Path(arguments.load_path)
    save_path = Path(arguments.save_path or load_path)
    positive_integer("num_words", arguments.num_words, "Option")
    if not 0 < arguments.temperature < float("inf"):
        raise ValueError(
            "Option `temperature` must be positive. "
            f"Received: temperature={arguments.temperature}"
        )
    model, vocabulary = load_trained(load_path, "load_path")
    model = model.with_batch_size(1)
    if arguments.first_word not in vocabulary:
        raise ValueError(
            "Option `first_word` must be a word of the vocabulary. "
            f"Received: first_word={arguments.first_word!r}"
        )
    first_id = vocabulary.id_of(arguments.first_word)
    rng = np.random.default_rng(arguments.seed)
    ids = generate(model, first_id, arguments.num_words, arguments.temperature, rng)
    words = vocabulary.decode(ids)
    text = text_of(words[1:] if words[0] == "<eos>" else words)
    with atomic_write(save_path / arguments.out_filename) as temporary:
        temporary.write_text(text, "utf-8")
    print(text, end="")
    if arguments.plot_gates:
        gates = layer_gates(model, ids)
        if not gates:
            raise ValueError(
                "Option `plot_gates` needs a QRNN. Received: a model of "
                f"{model.cell!r} layers"
            )
        plot_gates(save_path / "gates.png", gates, words)


def main(argv: list[str] | None = None) -> int:
    try:
        run(parser().parse_args(argv))
    except (ValueError, OSError, ImportError) as error:
        print(f"sample_lm.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
