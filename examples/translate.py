"""Translates lines with a model that train_translation.py has trained.

    echo 'Ein Hund rennt.' | python examples/translate.py --load_path RUN
    python examples/translate.py --load_path RUN --input text.de --beam 1
    python examples/translate.py --load_path RUN --input text.de --plot_attention a.png

Each line is translated as it comes, and printed in order.
"""

import argparse
import queue
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

try:
    from keras_qrnn.models.translator import Translator
    from keras_qrnn.training.command_line import Parser, run_command
    from keras_qrnn.training.options import count, not_negative
    from keras_qrnn.training.options import path as path_option
    from keras_qrnn.training.plots import figure_path, plot_attention
    from keras_qrnn.training.translation import load_translation
except KeyboardInterrupt:  # the imports take seconds
    sys.exit(130)


def parser() -> argparse.ArgumentParser:
    parser = Parser(
        "translate.py",
        description="Translates lines with a model that train_translation.py trained.",
    )
    parser.add_argument(
        "--load_path", help="directory that train_translation.py wrote (required)"
    )
    parser.add_argument("--input", help="file of sentences (default: standard input)")
    parser.add_argument(
        "--beam", type=int, default=8, help="width of the beam; 1: greedy (default 8)"
    )
    parser.add_argument(
        "--alpha", type=float, default=0.6, help="length normalization (default 0.6)"
    )
    parser.add_argument(
        "--batch_size", type=int, default=16,
        help="largest number of lines translated at the same time (default 16)",
    )  # fmt: skip
    parser.add_argument(
        "--plot_attention", metavar="FILE",
        help="draw the attention of the first line that is not empty",
    )  # fmt: skip
    return parser


def batches_of(lines: Iterable[str], most: int) -> Iterator[list[str]]:
    """The lines in lists of at most `most`. A list holds the lines that have arrived.

    So lines that a user types are translated one by one, and a file in batches.
    """
    come: queue.Queue = queue.Queue(maxsize=most)
    end = object()

    def read() -> None:
        last: object = end
        try:
            for line in lines:
                come.put(line)
        except UnicodeDecodeError as error:
            name = getattr(lines, "name", "The input")
            last = ValueError(f"{name} is not UTF-8 text: {error}")
        except (OSError, ValueError) as error:  # such as a closed file
            last = error
        come.put(last)

    threading.Thread(target=read, daemon=True).start()
    while True:
        batch = [come.get()]
        while len(batch) < most and not come.empty() and isinstance(batch[-1], str):
            batch.append(come.get())
        texts = [line for line in batch if isinstance(line, str)]
        if texts:
            yield texts
        if isinstance(batch[-1], Exception):
            raise batch[-1]
        if batch[-1] is end:
            return


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
    number = 0
    for batch in batches_of(lines, translator.batch_size):
        sentences = [line.strip() for line in batch]
        for sentence in sentences:
            number += 1
            warn(translator, number, sentence)
        for translation in translator.translate(sentences):
            print(translation, flush=True)
        chosen = next(filter(None, sentences), None)
        if plot is not None and chosen is not None:
            attention = translator.attention(chosen)
            plot_attention(plot, attention.weights, attention.source, attention.target)
            plot = None
    if plot is not None:
        raise ValueError(
            "Option `plot_attention` needs a line that is not empty. "
            f"Received: {number} empty lines"
        )


def run(arguments: argparse.Namespace) -> None:
    count("beam", arguments.beam)
    count("batch_size", arguments.batch_size)
    not_negative("alpha", arguments.alpha)
    if arguments.load_path is None:
        raise ValueError(
            "Option `load_path` must be given: a directory that train_translation.py "
            "wrote"
        )
    load_path = path_option("load_path", arguments.load_path)
    plot = None
    if arguments.plot_attention is not None:
        plot = figure_path("plot_attention", arguments.plot_attention)
    if arguments.input is not None:
        path_option("input", arguments.input)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8")
    model, vocabulary = load_translation(load_path, "load_path")
    translator = Translator(
        model, vocabulary, arguments.beam, arguments.alpha, arguments.batch_size
    )
    if arguments.input is None:
        if hasattr(sys.stdin, "reconfigure"):
            sys.stdin.reconfigure(encoding="utf-8-sig")
        translate(translator, sys.stdin, plot)
        return
    with Path(arguments.input).open(encoding="utf-8-sig") as lines:
        translate(translator, lines, plot)


def main(argv: list[str] | None = None) -> int:
    return run_command("translate.py", lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
