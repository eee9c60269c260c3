"""Trains the QRNN language model of arXiv 1611.01576 on Penn Treebank.

    python examples/train_lm.py --data_dir ptb
    python examples/train_lm.py --dataset sample --qrnn_size 64 --epoch 4

The defaults are the paper's recipe. A run can be killed at any moment and goes
on with --resume.
"""

import argparse
import json
import math
import shlex
import sys
import typing
from dataclasses import asdict, fields, replace
from pathlib import Path

from keras_qrnn._checks import positive_integer
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
from keras_qrnn.training.environment import environment


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    defaults = TrainingOptions()

    def flag(name: str, default: bool | str, help: str) -> None:
        parser.add_argument(
            f"--{name}", action="store_true", default=default, help=help
        )
        parser.add_argument(
            f"--no{name}", dest=name, action="store_false", default=default,
            help=f"not --{name}",
        )  # fmt: skip

    def option(name: str, help: str) -> None:
        default = getattr(defaults, name)
        if default is not None:
            help = f"{help} (default {default})"
        if isinstance(default, bool):
            flag(name, argparse.SUPPRESS, help)
            return
        parser.add_argument(
            f"--{name}", type=type_of(name), default=argparse.SUPPRESS, help=help
        )

    flag("unrolled_lstm", False, "an unrolled Keras LSTM in place of the QRNN")
    parser.add_argument("--lstm", action="store_true", help="a Keras LSTM likewise")
    parser.add_argument(
        "--preset", choices=PRESETS, default="paper",
        help="recipe whose options are the defaults: the paper's, which are those "
        "shown here, or one that is regularized as in arXiv 1708.02182",
    )  # fmt: skip
    option("epoch", "epochs to train")
    option("batch_size", "rows of a batch")
    option("seq_len", "steps of backpropagation through time")
    option("save_every", "steps between two checkpoints")
    option("early_stopping", "stop after so many epochs without improvement; 0: never")
    option("qrnn_size", "units of each layer")
    option("qrnn_layers", "number of layers")
    option("qrnn_k", "window of the convolution")
    option("emb_dim", "size of the embedding")
    option("vocab_size", "words kept at most, the most frequent")
    option("pooling", "f, fo or ifo")
    option("zoneout", "zoneout rate")
    option("dropout", "dropout rate")
    option("optimizer", "sgd, or adamw with a smaller learning_rate, such as 0.002")
    option("learning_rate", "rate of the first epochs")
    option("constant_epochs", "number of these first epochs")
    option("learning_rate_decay", "factor on the rate in each further epoch")
    option("grad_clip", "largest norm of the gradient")
    option("weight_decay", "L2 regularization")
    option("embedding_scale", "the embedding starts uniform in plus and minus this")
    option("first_qrnn_k", "window of the first layer, if another one")
    option("tied", "one matrix for embedding and softmax")
    option("locked_dropout", "dropout of the same features at all steps of a batch")
    option("embedding_dropout", "rate at which words are dropped")
    option("hidden_dropout", "dropout rate between layers, if another one")
    option("weight_average", "momentum of the weights' moving averages; 0: none")
    option("finetune", "save_path of another run whose weights this one starts from")
    option("seed", "seed of all randomness")
    option("dtype_policy", "Keras dtype policy, such as mixed_bfloat16")
    parser.add_argument("--config", help="JSON with values of the options above")
    parser.add_argument("--save_path", default="lm-qrnn_model", help="output directory")
    parser.add_argument("--dataset", choices=("ptb", "sample"), default="ptb")
    parser.add_argument("--data_dir", help="directory with {train,valid,test}.txt")
    flag("train", True, "train, or only evaluate what is in save_path")
    flag("test", True, "evaluate on the test split at the end")
    parser.add_argument(
        "--cache", type=int, nargs="?", const=2000, default=0, metavar="SIZE",
        help="evaluate also with a continuous cache of SIZE words (2000), its theta "
        "and weight chosen on the validation split",
    )  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="go on with a killed run")
    return parser


def type_of(name: str) -> type:
    """The type of an option, that of `int | None` being int."""
    hint = typing.get_type_hints(TrainingOptions)[name]
    return (typing.get_args(hint) or (hint,))[0]


def options_from(arguments: argparse.Namespace) -> TrainingOptions:
    """The recipe: the preset, then --config, then what was given explicitly."""
    defaults, values = TrainingOptions(), {}
    names = {field.name for field in fields(defaults)}
    if arguments.config:
        try:
            values = json.loads(Path(arguments.config).read_text("utf-8"))
        except OSError as error:
            raise ValueError(f"Option `config` cannot be read: {error}") from error
        except ValueError as error:
            raise ValueError(
                f"Option `config`: {arguments.config} is not JSON: {error}"
            ) from error
        if not isinstance(values, dict) or not names >= values.keys():
            unknown = (
                sorted(set(values) - names) if isinstance(values, dict) else values
            )
            raise ValueError(
                f"Option `config`: expected a JSON object with values of "
                f"{', '.join(sorted(names))}. Received: {unknown}"
            )
        for name, value in values.items():
            expected = type_of(name)
            fitting = (int, float) if expected is float else (expected,)
            is_default = value is None and getattr(defaults, name) is None
            if type(value) not in fitting and not is_default:
                raise ValueError(
                    f"Option `config`: {name} must be of type {expected.__name__}. "
                    f"Received: {name}={value!r}"
                )
    if arguments.lstm and arguments.unrolled_lstm:
        raise ValueError("Options `lstm` and `unrolled_lstm` exclude each other")
    if arguments.lstm or arguments.unrolled_lstm:
        values["cell"] = "lstm" if arguments.lstm else "unrolled_lstm"
    given = vars(arguments)
    values = PRESETS[arguments.preset] | values
    return TrainingOptions(**values | {n: given[n] for n in names if n in given})


def evaluate(
    path: Path,
    corpus: Corpus,
    options: TrainingOptions,
    splits: list[str],
    cache_size: int,
) -> dict:
    """Prints the perplexity of the model in `path` over every token of `splits`.

    With a `cache_size` also that with a cache, whose two numbers are chosen on the
    validation split, the first of `splits`. Returns what it prints.
    """
    model, vocabulary = load_trained(path, "save_path")
    steps = replace(options, cell=model.cell).eval_steps
    weights = sum(math.prod(variable.shape) for variable in model.weights)
    cache, found = None, {"weights": weights}
    for split in splits:
        ids = vocabulary.encode(getattr(corpus, split))
        if cache_size:
            stream = read_stream(model, ids, steps)
            perplexity = stream.perplexity
        else:
            perplexity = evaluate_perplexity(model, ids, steps)
        line = f"{split} perplexity: {perplexity:.2f} over {len(ids) - 1} tokens"
        if corpus.floor_perplexity:
            line += f" (best reachable: {corpus.floor_perplexity[split]:.2f})"
        print(line, flush=True)
        found[split] = perplexity
        if cache_size:
            cache = cache or tune_cache(stream, cache_size)
            cached = cache.perplexity(stream)
            print(
                f"{split} perplexity with the cache: {cached:.2f} "
                f"(size {cache.size}, theta {cache.theta}, weight {cache.weight})",
                flush=True,
            )
            found |= {f"{split}_with_cache": cached, "cache": asdict(cache)}
    return found


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    path = Path(arguments.save_path)
    try:
        options = options_from(arguments)
        if arguments.cache:
            positive_integer("cache", arguments.cache, "Option")
        corpus = load_corpus(arguments.dataset, arguments.data_dir)
        if arguments.train:
            vocabulary = Vocabulary.build(corpus.train, options.vocab_size)
            history = train_language_model(
                corpus, vocabulary, options, path, resume=arguments.resume
            )
            if not any(math.isfinite(row["val_perplexity"]) for row in history):
                raise ValueError(
                    "Training diverged in its first epoch. Expected a smaller "
                    f"--learning_rate. Received: {options.learning_rate}"
                )
        splits = ["valid", "test"] if arguments.test else ["valid"]
        found = evaluate(path, corpus, options, splits, arguments.cache)
        if arguments.train:
            given = sys.argv[1:] if argv is None else argv
            record = {"command": shlex.join(["examples/train_lm.py", *given])}
            record |= {"options": asdict(options), **found, **environment()}
            with atomic_write(path / "run.json") as temporary:
                temporary.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    except (ValueError, OSError, ImportError) as error:
        print(f"train_lm.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
