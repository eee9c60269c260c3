"""Translates lines with a model that train_translation.py has trained.

    echo 'Ein Hund rennt.' | python examples/translate.py --load_path RUN
    python examples/translate.py --load_path RUN --input text.de --beam 1
    python examples/translate.py --load_path RUN --input text.de --plot_attention a.png

Each line is translated as it comes, and printed in order.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

try:
    from keras_qrnn.models.translator import Translator
    from keras_qrnn.training import text_lines
    from keras_qrnn.training.command_line import Parser, load_path_of, run_command
    from keras_qrnn.training.options import count, not_negative
    from keras_qrnn.training.plots import figure_path, plot_attention
    from keras_qrnn.training.translation import load_translation
except KeyboardInterrupt:  # the imports take seconds
    sys.exit(130)

PROGRAM = "train_translation.py"  # writes the runs


def parser() -> argparse.ArgumentParser:
    parser = Parser(
        "translate.py",
        description="Translates lines with a model that train_translation.py trained.",
    )
    text_lines.add_arguments(parser, PROGRAM, "sentences", batch_size=16)
    parser.add_argument(
        "--beam", type=int, default=8, help="width of the beam; 1: greedy (default 8)"
    )
    parser.add_argument(
        "--alpha", type=float, default=0.6, help="length normalization (default 0.6)"
    )
    parser.add_argument(
        "--plot_attention", metavar="FILE",
        help="draw the attention of the first line that is not empty",
    )  # fmt: skip
    return parser


def warn(translator: Translator, number: int, line: str) -> None:
    """Says on stderr what the model was not trained for."""
    longest = translator.model.longest
    if longest is not None and len(line) > longest:
        print(
            f"translate.py: line {number} has {len(line)} characters. The longest "
            f"sentence trained on has {longest}: the translation may be bad",
            file=sys.stderr,
        )
    if unknown := translator.vocabulary.unknown_in([line]):
        print(
            f"translate.py: line {number} has characters that the model does not "
            f"know. They are read as <unk>: {' '.join(unknown)}",
            file=sys.stderr,
        )


def translate(translator: Translator, lines: Iterable[str], plot: Path | None) -> None:
    """Prints the translation of each line, and draws the attention of one."""
    for _, line in text_lines.answered(
        lines,
        translator.batch_size,
        translator.translate,
        lambda number, line: warn(translator, number, line),
    ):
        if plot is not None and line:
            attention = translator.attention(line)
            plot_attention(plot, attention.weights, attention.source, attention.target)
            plot = None
    if plot is not None:
        raise ValueError(
            "Option `plot_attention` needs a line that is not empty. Received: none"
        )


def run(arguments: argparse.Namespace) -> None:
    count("beam", arguments.beam)
    text_lines.check_arguments(arguments)
    not_negative("alpha", arguments.alpha)
    load_path = load_path_of(arguments, PROGRAM)
    plot = None
    if arguments.plot_attention is not None:
        plot = figure_path("plot_attention", arguments.plot_attention)
    with text_lines.open_lines(arguments.input) as lines:
        model, vocabulary = load_translation(load_path, "load_path")
        translator = Translator(
            model, vocabulary, arguments.beam, arguments.alpha, arguments.batch_size
        )
        translate(translator, lines, plot)


def main(argv: list[str] | None = None) -> int:
    return run_command("translate.py", lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
