"""Trains the QRNN encoder-decoder of arXiv 1611.01576 to translate, by characters.

    python examples/train_translation.py --data_dir multi30k
    python examples/train_translation.py --dataset sample
    python examples/train_translation.py --data_dir multi30k --lstm

The defaults are the paper's recipe. A run can be killed at any moment; --resume
continues it.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

try:
    from keras_qrnn._files import atomic_write
    from keras_qrnn._processes import is_first
    from keras_qrnn.data.multi30k import Pairs, ParallelText
    from keras_qrnn.models.translator import Translator
    from keras_qrnn.training import command_line as shared
    from keras_qrnn.training.data_options import TextOptions
    from keras_qrnn.training.options import count, named_fields, not_negative
    from keras_qrnn.training.run_directory import RunDirectory
    from keras_qrnn.training.translation import (
        PRESETS,
        Translation,
        TranslationOptions,
        accuracy,
        bleu,
        load_translation,
        need_sacrebleu,
    )
except KeyboardInterrupt:  # the imports take seconds
    sys.exit(130)


def parser() -> argparse.ArgumentParser:
    parser = shared.Parser(
        "train_translation.py",
        description="Trains the QRNN encoder-decoder of arXiv 1611.01576.",
    )
    parser.add_argument(
        "--lstm", action="store_true", help="the equal encoder-decoder of Keras LSTMs"
    )
    names = [name for name in named_fields(TranslationOptions) if name != "cell"]
    shared.add_options(parser, TranslationOptions, names)
    shared.add_options(parser, TextOptions)
    parser.add_argument(
        "--beam", type=int, default=8,
        help="width of the beam that translates at the end; 1: greedy (default 8)",
    )  # fmt: skip
    parser.add_argument(
        "--alpha", type=float, default=0.6, help="length normalization (default 0.6)"
    )
    shared.add_run_arguments(
        parser,
        "translation-qrnn_model for Multi30k from the hub; other cells and data have "
        "names of their own",
        "the test sets",
    )
    return parser


def options_from(arguments: argparse.Namespace) -> TranslationOptions:
    """The recipe. Options on the command line override --config and the dataset's."""
    cell = {"cell": "lstm"} if arguments.lstm else {}
    preset = PRESETS[shared.data_from(arguments, TextOptions).dataset]
    return shared.chosen_options(arguments, TranslationOptions, preset, **cell)


def save_path_of(arguments: argparse.Namespace, options: TranslationOptions) -> Path:
    """`--save_path`, or a directory named after cell, recipe and data."""
    data = shared.data_from(arguments, TextOptions)
    parts = (
        Path(arguments.config).stem if arguments.config is not None else None,
        data.short_name,
        data.languages,
    )
    return shared.save_path_of(arguments, f"translation-{options.cell}", parts)


def evaluate(
    path: Path,
    text: ParallelText,
    splits: dict[str, Pairs],
    beam: int,
    alpha: float,
    say: Callable[[str], None],
) -> dict:
    """Translates `splits` with the model in `path` and prints how good that is.

    The translations are written to `path/translations`, a sentence a line. A file in
    `path` itself could be one of the corpus: its files have such names.

    Returns:
        The numbers that it prints, by name.
    """
    model, vocabulary = load_translation(path, "save_path")
    translator = Translator(model, vocabulary, beam, alpha, batch_size=32)
    weights = sum(math.prod(variable.shape) for variable in model.weights)
    search = f"beam {beam}" if beam > 1 else "greedy"
    found = {"weights": weights, "beam": beam, "alpha": alpha}
    for name, pairs in splits.items():
        if unknown := vocabulary.unknown_in(pairs.source):
            say(f"{name}: not in the vocabulary, read as <unk>: {' '.join(unknown)}")
        start = time.perf_counter()
        translations = translator.translate(pairs.source)
        seconds = time.perf_counter() - start
        if is_first():
            file = RunDirectory(path).translations / f"{name}.{text.languages[1]}"
            with atomic_write(file) as temporary:
                lines = "".join(f"{t}\n" for t in translations)
                temporary.write_text(lines, "utf-8")
        if text.has_one_answer:
            share = accuracy(translations, pairs.target)
            found[name] = {"accuracy": share}
            result = f"accuracy: {100 * share:.1f} %"
            best = " (best reachable: 100 %)"
        else:
            score, found["signature"] = bleu(translations, pairs.target)
            found[name] = {"bleu": score}
            result, best = f"BLEU: {score:.2f}", ""
        characters = sum(map(len, translations)) / seconds
        found[name] |= {"sentences": len(pairs), "characters_per_second": characters}
        say(
            f"{name} {result} of {len(pairs)} sentences, {search}{best}, "
            f"{characters:.0f} characters a second"
        )
    if "signature" in found:
        say(f"sacrebleu: {found['signature']}")
    return found


def run(arguments: argparse.Namespace, argv: list[str]) -> None:
    options = options_from(arguments)
    path = save_path_of(arguments, options)
    count("beam", arguments.beam)
    not_negative("alpha", arguments.alpha)
    text = shared.data_from(arguments, TextOptions).load()
    if not text.has_one_answer:
        need_sacrebleu()  # before the training, not after it
    experiment = Translation(text, options)
    splits = {"valid": text.valid} | (dict(text.tests) if arguments.test else {})
    if arguments.verbose and is_first():
        print(experiment.summary, flush=True)
    shared.train_and_evaluate(
        "examples/train_translation.py",
        arguments,
        argv,
        experiment,
        path,
        lambda say: evaluate(path, text, splits, arguments.beam, arguments.alpha, say),
    )


def main(argv: list[str] | None = None) -> int:
    return shared.run_training_command("train_translation.py", parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
