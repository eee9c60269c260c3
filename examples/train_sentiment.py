"""Trains the QRNN sentiment classifier of arXiv 1611.01576 on IMDb.

    python examples/train_sentiment.py --data_dir aclImdb --embeddings glove.6B.50d.txt
    python examples/train_sentiment.py --dataset sample \
        --config examples/sample_sentiment.json

The defaults are the paper's recipe. A run can be killed at any moment; --resume
continues it.
"""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

try:
    import numpy as np

    from keras_qrnn._processes import is_first
    from keras_qrnn.data.imdb import CLASSES, Reviews, write_text
    from keras_qrnn.data.penn_treebank import SPLITS
    from keras_qrnn.data.review_batches import encode_reviews
    from keras_qrnn.models.sentiment_classifier import logits_of
    from keras_qrnn.training import command_line as shared
    from keras_qrnn.training.data_options import ReviewsOptions
    from keras_qrnn.training.options import count_or_zero, named_fields
    from keras_qrnn.training.options import path as path_option
    from keras_qrnn.training.run_directory import RunDirectory, refuse_to_replace
    from keras_qrnn.training.sentiment import (
        SentimentAnalysis,
        SentimentOptions,
        confusion_matrix,
        draw_states,
        load_sentiment,
        refuse_other_data,
    )
except KeyboardInterrupt:  # the imports take seconds
    sys.exit(130)


def parser() -> argparse.ArgumentParser:
    parser = shared.Parser(
        "train_sentiment.py",
        description="Trains the QRNN sentiment classifier of arXiv 1611.01576.",
    )
    parser.add_argument("--lstm", action="store_true", help="Keras LSTMs, not QRNNs")
    names = [name for name in named_fields(SentimentOptions) if name != "cell"]
    shared.add_options(parser, SentimentOptions, names)
    shared.add_options(parser, ReviewsOptions)
    parser.add_argument(
        "--draw", type=int, default=0, metavar="N",
        help="draw the states of the last layer over test review N (default 0)",
    )  # fmt: skip
    parser.add_argument(
        "--write_text", metavar="DIR",
        help="train nothing; write the reviews, and those without a label, as a corpus "
        "for train_lm.py",
    )  # fmt: skip
    shared.add_run_arguments(
        parser,
        "sentiment-qrnn_model for the paper's recipe on IMDb from the hub; other "
        "cells, recipes and data have names of their own",
        "the test split",
    )
    return parser


def options_from(arguments: argparse.Namespace) -> SentimentOptions:
    """The recipe. Options on the command line override --config."""
    cell = {"cell": "lstm"} if arguments.lstm else {}
    return shared.chosen_options(arguments, SentimentOptions, {}, **cell)


def save_path_of(arguments: argparse.Namespace, options: SentimentOptions) -> Path:
    """`--save_path`, or a directory named after cell, recipe and data."""
    parts = (
        Path(arguments.config).stem if arguments.config is not None else None,
        shared.data_from(arguments, ReviewsOptions).short_name,
        "pretrained" if options.pretrained is not None else None,
    )
    return shared.save_path_of(arguments, f"sentiment-{options.cell}", parts)


def reviews_from(arguments: argparse.Namespace) -> Reviews:
    """The reviews that the command line names."""
    if arguments.write_text is not None:
        place = Path(path_option("write_text", arguments.write_text))
        refuse_to_replace("write_text", place, [f"{split}.txt" for split in SPLITS])
    count_or_zero("draw", arguments.draw)
    data = shared.data_from(arguments, ReviewsOptions)
    return data.load(unlabelled=arguments.write_text is not None)


def evaluate(
    path: Path,
    reviews: Reviews,
    options: SentimentOptions,
    splits: list[str],
    drawn: int,
    say: Callable[[str], None],
) -> dict:
    """Prints accuracy and confusion matrix of the model in `path`, and draws states.

    Returns:
        What it prints, by name.
    """
    model, vocabulary = load_sentiment(path, "save_path")
    refuse_other_data(path, reviews, vocabulary, options.max_len)
    weights = sum(math.prod(variable.shape) for variable in model.weights)
    found: dict = {"weights": weights}
    for split in splits:
        labelled = getattr(reviews, split)
        tokens = encode_reviews(labelled.texts, vocabulary, options.max_len)
        logits = logits_of(model, tokens, options.batch_size)
        accuracy = float(np.mean((logits > 0) == labelled.labels))
        line = f"{split} accuracy: {accuracy:.2%} of {len(labelled)} reviews"
        found[split] = accuracy
        if reviews.best_accuracy is not None:
            best = reviews.best_accuracy[split]
            line += f" (best reachable: {best:.2%})"
            found[f"{split}_best_reachable"] = best
        say(line)
        matrix = found[f"{split}_confusion"] = confusion_matrix(labelled.labels, logits)
        for name, row in zip(CLASSES, matrix, strict=True):
            pairs = zip(CLASSES, row, strict=True)
            counts = ", ".join(f"{n} as {label}" for label, n in pairs)
            say(f"  {split} {name}: {counts}")
        if split == "test" and is_first():
            label, logit = CLASSES[labelled.labels[drawn]], logits[drawn]
            title = f"test review {drawn}: {label}, logit {logit:.1f}"
            picture = RunDirectory(path).states
            draw_states(picture, model, vocabulary, tokens[drawn], title)
            say(f"States of the last layer: {picture}")
    return found


def run(arguments: argparse.Namespace, argv: list[str]) -> None:
    options = options_from(arguments)
    path = save_path_of(arguments, options)
    reviews = reviews_from(arguments)
    if arguments.write_text is not None:
        write_text(reviews, Path(arguments.write_text))
        return
    splits = ["valid", "test"] if arguments.test else ["valid"]
    if arguments.test and arguments.draw >= len(reviews.test):
        raise ValueError(
            f"Option `draw` must be below {len(reviews.test)}, the number of test "
            f"reviews. Received: draw={arguments.draw}"
        )

    def evaluation(say: Callable[[str], None]) -> dict:
        return evaluate(path, reviews, options, splits, arguments.draw, say)

    if not arguments.train:  # what the run started from is not needed
        shared.evaluate_by_all(options, evaluation)
        return
    resumed = path if arguments.resume else None
    experiment = SentimentAnalysis(reviews, options, resumed)
    if arguments.verbose and is_first():
        print(experiment.summary, flush=True)
    shared.train_and_evaluate(
        "examples/train_sentiment.py",
        arguments,
        argv,
        experiment,
        path,
        evaluation,
    )


def main(argv: list[str] | None = None) -> int:
    return shared.run_training_command("train_sentiment.py", parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
