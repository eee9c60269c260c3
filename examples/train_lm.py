"""Trains the QRNN language model of arXiv 1611.01576 on Penn Treebank.

    python examples/train_lm.py --data_dir ptb
    python examples/train_lm.py --dataset sample --units 64 --epochs 4

The defaults are the paper's recipe. A run can be killed at any moment; --resume
continues it.
"""

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

try:
    from keras_qrnn.data import Corpus, Vocabulary
    from keras_qrnn.training import (
        PRESETS,
        TrainingOptions,
        evaluate_perplexity,
        load_trained,
        read_stream,
        tune_cache,
    )
    from keras_qrnn.training import command_line as shared
    from keras_qrnn.training.data_options import CorpusOptions
    from keras_qrnn.training.language_model import LanguageModelling
    from keras_qrnn.training.options import count, named_fields
except KeyboardInterrupt:  # the imports take seconds
    sys.exit(130)


def parser() -> argparse.ArgumentParser:
    parser = shared.Parser(
        "train_lm.py",
        description="Trains the QRNN language model of arXiv 1611.01576.",
    )
    shared.add_flag(
        parser, "unrolled_lstm", False, "an unrolled Keras LSTM, not the QRNN"
    )
    parser.add_argument(
        "--lstm", action="store_true", help="a Keras LSTM, not the QRNN"
    )
    parser.add_argument(
        "--preset", choices=PRESETS, default="paper",
        help="recipe: paper has the defaults that are shown here, awd is the QRNN of "
        "arXiv 1708.02182 (default paper)",
    )  # fmt: skip
    names = [name for name in named_fields(TrainingOptions) if name != "cell"]
    shared.add_options(parser, TrainingOptions, names)
    shared.add_options(parser, CorpusOptions)
    parser.add_argument(
        "--cache", type=int, nargs="?", const=2000, default=0, metavar="SIZE",
        help="evaluate also with a continuous cache of SIZE words (2000), its theta "
        "and weight chosen on the validation split",
    )  # fmt: skip
    shared.add_run_arguments(
        parser,
        "lm-qrnn_model for the paper's recipe on Penn Treebank from the hub; other "
        "cells, recipes and data have names of their own",
        "the test split",
    )
    return parser


def options_from(arguments: argparse.Namespace) -> TrainingOptions:
    """The recipe. Options on the command line override --config and the preset."""
    if arguments.lstm and arguments.unrolled_lstm:
        raise ValueError("Options `lstm` and `unrolled_lstm` exclude each other")
    cell = {}
    if arguments.lstm or arguments.unrolled_lstm:
        cell["cell"] = "lstm" if arguments.lstm else "unrolled_lstm"
    preset = PRESETS[arguments.preset]
    return shared.chosen_options(arguments, TrainingOptions, preset, **cell)


def save_path_of(arguments: argparse.Namespace, options: TrainingOptions) -> Path:
    """`--save_path`, or a directory named after cell, recipe and data."""
    parts = (
        arguments.preset if arguments.preset != "paper" else None,
        Path(arguments.config).stem if arguments.config is not None else None,
        shared.data_from(arguments, CorpusOptions).short_name,
        "finetuned" if options.finetune is not None else None,
    )
    return shared.save_path_of(arguments, f"lm-{options.cell}", parts)


def evaluate(
    path: Path,
    corpus: Corpus,
    options: TrainingOptions,
    splits: list[str],
    cache_size: int,
    say: Callable[[str], None],
) -> dict:
    """Prints the perplexity of the model in `path` over every token of `splits`.

    With a `cache_size` it also prints the perplexity with a cache of that size. The
    cache's theta and weight are chosen on the validation split, the first of `splits`.

    Returns:
        The perplexities that it prints, by name.
    """
    model, vocabulary = load_trained(path, "save_path")
    steps = replace(options, cell=model.cell).eval_steps
    weights = sum(math.prod(variable.shape) for variable in model.weights)
    streams = {
        split: vocabulary.encode(getattr(corpus, split), split) for split in splits
    }
    cache, found = None, {"weights": weights}
    for split, ids in streams.items():
        if cache_size:
            stream = read_stream(model, ids, steps)
            perplexity = stream.perplexity
        else:
            perplexity = evaluate_perplexity(model, ids, steps)
        line = f"{split} perplexity: {perplexity:.2f} over {len(ids) - 1} tokens"
        if corpus.floor_perplexity:
            line += f" (best reachable: {corpus.floor_perplexity[split]:.2f})"
        say(line)
        found[split] = perplexity
        if cache_size:
            cache = cache or tune_cache(stream, cache_size)
            cached = cache.perplexity(stream)
            say(
                f"{split} perplexity with the cache: {cached:.2f} "
                f"(size {cache.size}, theta {cache.theta}, weight {cache.weight})"
            )
            found |= {f"{split}_with_cache": cached, "cache": asdict(cache)}
    return found


def run(arguments: argparse.Namespace, argv: list[str]) -> None:
    options = options_from(arguments)
    path = save_path_of(arguments, options)
    if arguments.cache:  # 0 means no cache
        count("cache", arguments.cache)
    corpus = shared.data_from(arguments, CorpusOptions).load()
    splits = ["valid", "test"] if arguments.test else ["valid"]
    vocabulary = Vocabulary.build(corpus.train, options.vocab_size)
    if arguments.train:
        for split in splits:  # finds unknown words before the training
            vocabulary.encode(getattr(corpus, split), split)
    shared.train_and_evaluate(
        "examples/train_lm.py",
        arguments,
        argv,
        LanguageModelling(corpus, vocabulary, options),
        path,
        lambda say: evaluate(path, corpus, options, splits, arguments.cache, say),
    )


def main(argv: list[str] | None = None) -> int:
    return shared.run_training_command("train_lm.py", parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
