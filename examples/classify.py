"""Classifies lines with a model that train_sentiment.py has trained.

    echo 'A fine film.' | python examples/classify.py --load_path RUN
    python examples/classify.py --load_path RUN --input reviews.txt
    python examples/classify.py --load_path RUN --input reviews.txt --plot_states a.png

For each line it prints a line: positive or negative, a tab, and the probability that
the line is positive. Lines are classified as they come, and printed in order.
"""

import argparse
import math
import sys
from collections.abc import Iterable
from pathlib import Path

try:
    from keras_qrnn.data.vocabulary import UNK
    from keras_qrnn.models import SentimentClassifier
    from keras_qrnn.training import text_lines
    from keras_qrnn.training.command_line import Parser, load_path_of, run_command
    from keras_qrnn.training.plots import figure_path
    from keras_qrnn.training.sentiment import draw_states, load_sentiment
except KeyboardInterrupt:  # the imports take seconds
    sys.exit(130)

PROGRAM = "train_sentiment.py"  # writes the runs
# Lines of this many batches are sorted by their lengths, so that little is padded.
BATCHES = 8


def parser() -> argparse.ArgumentParser:
    parser = Parser(
        "classify.py",
        description="Classifies lines with a model that train_sentiment.py trained. "
        "For each line it prints positive or negative, a tab, and the probability that "
        "the line is positive. For an empty line it prints an empty line.",
    )
    text_lines.add_arguments(parser, PROGRAM, "reviews", batch_size=24)
    parser.add_argument(
        "--plot_states", metavar="FILE",
        help="draw the last layer's states over the words of the first line that is "
        "not empty",
    )  # fmt: skip
    return parser


def result(probability: float, between: str = "\t") -> str:
    """The class and the probability of a positive line. Empty for an empty line."""
    if math.isnan(probability):
        return ""
    name = "positive" if probability > 0.5 else "negative"
    return f"{name}{between}{probability:.4f}"


def warn(classifier: SentimentClassifier, number: int, line: str) -> None:
    """Says on stderr that the model knows no word of a line."""
    (tokens,) = classifier.encode([line])
    words = classifier.vocabulary.decode(tokens - 1)
    known = [w for w in words if w != UNK and any(map(str.isalnum, w))]
    if words and not known:
        print(
            f"classify.py: line {number} has no word that the model knows: its "
            "probability says nothing",
            file=sys.stderr,
        )


def classify(
    classifier: SentimentClassifier, lines: Iterable[str], plot: Path | None
) -> None:
    """Prints the class of each line, and draws the states over one."""
    for number, line in text_lines.answered(
        lines,
        BATCHES * classifier.batch_size,
        lambda texts: map(result, classifier.probabilities(texts)),
        lambda number, line: warn(classifier, number, line),
    ):
        if plot is not None and len(tokens := classifier.encode([line])[0]):
            (probability,) = classifier.probabilities([line])
            title = f"line {number}: {result(probability, ', ')}"
            model, vocabulary = classifier.model, classifier.vocabulary
            draw_states(plot, model, vocabulary, tokens, title)
            plot = None
    if plot is not None:
        raise ValueError(
            "Option `plot_states` needs a line that is not empty. Received: none"
        )


def run(arguments: argparse.Namespace) -> None:
    text_lines.check_arguments(arguments)
    load_path = load_path_of(arguments, PROGRAM)
    plot = None
    if arguments.plot_states is not None:
        plot = figure_path("plot_states", arguments.plot_states)
    with text_lines.open_lines(arguments.input) as lines:
        model, vocabulary = load_sentiment(load_path, "load_path")
        classifier = SentimentClassifier(model, vocabulary, arguments.batch_size)
        classify(classifier, lines, plot)


def main(argv: list[str] | None = None) -> int:
    return run_command("classify.py", lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
