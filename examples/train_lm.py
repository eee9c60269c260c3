"""Trains the QRNN language model of arXiv 1611.01576 on Penn Treebank.

    python examples/train_lm.py --data_dir ptb
    python examples/train_lm.py --dataset sample --units 64 --epochs 4

The defaults are the paper's recipe. A run can be killed at any moment; --resume
continues it.
"""

import argparse
import json
import math
import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path

from keras_qrnn._files import atomic_write
from keras_qrnn.data import Corpus, Vocabulary, load_corpus
from keras_qrnn.training import (
    PRESETS,
    TrainingOptions,
    evaluate_perplexity,
    load_trained,
    read_stream,
    train_language_model,
    tune_cache,
)
from keras_qrnn.training.command_line import (
    Parser,
    add_flag,
    add_options,
    given_options,
    read_config,
    run_command,
)
from keras_qrnn.training.environment import environment
from keras_qrnn.training.language_model import why_diverged
from keras_qrnn.training.options import count, named_fields
from keras_qrnn.training.options import path as path_option


def parser() -> argparse.ArgumentParser:
    parser = Parser(
        "train_lm.py",
        description="Trains the QRNN language model of arXiv 1611.01576.",
    )
    add_flag(parser, "unrolled_lstm", False, "an unrolled Keras LSTM, not the QRNN")
    parser.add_argument("--lstm", action="store_true", help="a Keras LSTM likewise")
    parser.add_argument(
        "--preset", choices=PRESETS, default="paper",
        help="recipe whose options are the defaults: the paper's, which are those "
        "shown here, or one that is regularized as in arXiv 1708.02182",
    )  # fmt: skip
    names = [name for name in named_fields(TrainingOptions) if name != "cell"]
    add_options(parser, TrainingOptions, names)
    parser.add_argument("--config", help="JSON with values of the options above")
    parser.add_argument(
        "--save_path",
        help="output directory (default: lm-qrnn_model for the paper's recipe on Penn "
        "Treebank from the hub; other cells, recipes and data have names of their own)",
    )
    parser.add_argument("--dataset", choices=("ptb", "sample"), default="ptb")
    parser.add_argument("--data_dir", help="directory with {train,valid,test}.txt")
    add_flag(parser, "train", True, "train, or only evaluate what is in save_path")
    add_flag(parser, "test", True, "evaluate on the test split at the end")
    parser.add_argument(
        "--cache", type=int, nargs="?", const=2000, default=0, metavar="SIZE",
        help="evaluate also with a continuous cache of SIZE words (2000), its theta "
        "and weight chosen on the validation split",
    )  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="go on with a killed run")
    parser.add_argument(
        "--verbose", type=int, choices=(0, 1, 2), default=1,
        help="0: print nothing while training; 1: a progress bar; 2: a line for each "
        "epoch (default 1)",
    )  # fmt: skip
    return parser


def options_from(arguments: argparse.Namespace) -> TrainingOptions:
    """The recipe. Options on the command line override --config and the preset."""
    values = {}
    if arguments.config is not None:
        path_option("config", arguments.config)
        values = read_config(arguments.config, TrainingOptions)
    if arguments.lstm and arguments.unrolled_lstm:
        raise ValueError("Options `lstm` and `unrolled_lstm` exclude each other")
    if arguments.lstm or arguments.unrolled_lstm:
        values["cell"] = "lstm" if arguments.lstm else "unrolled_lstm"
    values = PRESETS[arguments.preset] | values
    return TrainingOptions(**values | given_options(arguments, TrainingOptions))


def save_path_of(arguments: argparse.Namespace, options: TrainingOptions) -> Path:
    """`--save_path`, or a directory named after cell, recipe and data.

    So two commands with different recipes or data use different directories.
    """
    if arguments.save_path is not None:
        return Path(path_option("save_path", arguments.save_path))
    parts = []
    if arguments.preset != "paper":
        parts.append(arguments.preset)
    if arguments.config is not None:
        parts.append(Path(arguments.config).stem)
    if arguments.data_dir is not None:
        parts.append(Path(arguments.data_dir).resolve().name)
    elif arguments.dataset != "ptb":
        parts.append(arguments.dataset)
    if options.finetune is not None:
        parts.append("finetuned")
    # Equal parts count once, as in --dataset sample --config examples/sample.json.
    return Path(f"lm-{options.cell}_{'_'.join(dict.fromkeys(parts)) or 'model'}")


def evaluate(
    path: Path,
    corpus: Corpus,
    options: TrainingOptions,
    splits: list[str],
    cache_size: int,
    quiet: bool = False,
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

    def say(text: str) -> None:
        if not quiet:
            print(text, flush=True)

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
    if arguments.data_dir is not None:
        path_option("data_dir", arguments.data_dir)
    corpus = load_corpus(arguments.dataset, arguments.data_dir)
    splits = ["valid", "test"] if arguments.test else ["valid"]
    if arguments.train:
        vocabulary = Vocabulary.build(corpus.train, options.vocab_size)
        for split in splits:  # finds unknown words before the training
            vocabulary.encode(getattr(corpus, split), split)
        history = train_language_model(
            corpus,
            vocabulary,
            options,
            path,
            resume=arguments.resume,
            verbose=arguments.verbose,
        )
        if not any(math.isfinite(row["val_perplexity"]) for row in history):
            raise ValueError(
                "Training diverged in its first epoch. "
                + why_diverged(corpus, vocabulary, options)
            )
    quiet = arguments.train and not arguments.verbose
    found = evaluate(path, corpus, options, splits, arguments.cache, quiet)
    if arguments.train:
        record = {"command": shlex.join(["examples/train_lm.py", *argv])}
        record |= {"options": asdict(options), **found, **environment()}
        with atomic_write(path / "run.json") as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    arguments = parser().parse_args(argv)
    return run_command(
        "train_lm.py",
        lambda: run(arguments, argv),
        on_interrupt="Start it again with --resume and it goes on.",
    )


if __name__ == "__main__":
    sys.exit(main())
