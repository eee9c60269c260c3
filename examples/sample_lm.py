"""Generates text from a model that train_lm.py has trained.

python examples/sample_lm.py --load_path lm-paper --num_words 100
python examples/sample_lm.py --load_path lm-paper --first_word the --plot_gates
"""

import argparse
import sys
from pathlib import Path

try:
    import numpy as np

    from keras_qrnn._files import atomic_write
    from keras_qrnn.models.generation import generate, layer_gates, text_of
    from keras_qrnn.training import load_trained
    from keras_qrnn.training.command_line import Parser, load_path_of, run_command
    from keras_qrnn.training.options import count, count_or_zero, path, positive
    from keras_qrnn.training.plots import plot_gates
    from keras_qrnn.training.run_directory import RunDirectory, check_directory
except KeyboardInterrupt:  # the imports take seconds
    sys.exit(130)


def parser() -> argparse.ArgumentParser:
    parser = Parser(
        "sample_lm.py",
        description="Generates text from a model that train_lm.py trained.",
    )
    parser.add_argument(
        "--load_path", help="directory that train_lm.py wrote (required)"
    )
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
    count("num_words", arguments.num_words)
    positive("temperature", arguments.temperature)
    count_or_zero("seed", arguments.seed)
    load_path = load_path_of(arguments, "train_lm.py")
    save_path = load_path
    if arguments.save_path is not None:
        save_path = Path(path("save_path", arguments.save_path))
    out_path = save_path / path("out_filename", arguments.out_filename)
    check_directory("save_path", save_path)
    if out_path.is_dir() or Path(arguments.out_filename).name in ("", ".."):
        raise ValueError(
            "Option `out_filename` must name a file. "
            f"Received: out_filename={arguments.out_filename!r}, a directory"
        )
    run = RunDirectory(save_path)
    gates = save_path / "gates.png"
    own = {file.resolve() for file in (*run.files, run.lock, gates)}
    if not own.isdisjoint([out_path.resolve(), *out_path.resolve().parents]):
        raise ValueError(
            "Option `out_filename` must name another file than those of the run. "
            f"Received: out_filename={arguments.out_filename!r}"
        )
    model, vocabulary = load_trained(load_path, "load_path")
    if arguments.first_word not in vocabulary:
        raise ValueError(
            "Option `first_word` must be a word of the vocabulary. "
            f"Received: first_word={arguments.first_word!r}"
        )
    if arguments.plot_gates and model.cell != "qrnn":
        raise ValueError(
            "Option `plot_gates` needs a QRNN. Received: a model of "
            f"{model.cell!r} layers"
        )
    model = model.with_batch_size(1)
    first_id = vocabulary.id_of(arguments.first_word)
    rng = np.random.default_rng(arguments.seed)
    ids = generate(model, first_id, arguments.num_words, arguments.temperature, rng)
    words = vocabulary.decode(ids)
    text = text_of(words[1:] if words[0] == "<eos>" else words)
    with atomic_write(out_path) as temporary:
        temporary.write_text(text, "utf-8")
    print(text, end="")
    if arguments.plot_gates:
        plot_gates(gates, layer_gates(model, ids), words)


def main(argv: list[str] | None = None) -> int:
    return run_command("sample_lm.py", lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
