"""Searches for a good QRNN language model with Keras Tuner.

    python tuning/search.py --dataset sample
    python tuning/search.py --data_dir ptb --tuner bayesian --workers 2
    python tuning/search.py --units 256,640 --window 1-4 --zoneout 0.0-0.5 --layers 2

A hyperparameter is given as a value, as values separated by commas, or as a range
with both its ends. A search can be killed at any moment and goes on when it is
started again. For several machines and what a search leaves see tuning/README.md.
"""

import argparse
import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from keras_qrnn._checks import positive_integer
from keras_qrnn._files import remove_leftovers
from keras_qrnn.data import (
    BPTTBatches,
    Corpus,
    Vocabulary,
    fingerprint,
    load_corpus,
)
from keras_qrnn.training import TrainingOptions
from keras_qrnn.training.options import with_current_names

try:
    import keras_tuner  # noqa: F401 - imports six, which it does not depend on
except ImportError as error:
    sys.exit(
        f"search.py: error: the search needs Keras Tuner, and {error}: "
        "pip install '.[tuning]' in a checkout of keras-qrnn"
    )

from keras_tuner.errors import FatalError

from search_results import best_table, completed, tidy_trials, write_results
from search_space import DEFAULTS, HYPERPARAMETERS, canonical, parse
from search_tuner import TUNERS, LanguageModelTuner, make_oracle, write_json
from search_workers import Chief, end_with_parent, role, run_workers

# What a search is where nothing else is said; the sample's takes minutes.
EPOCHS = {"sample": 4, "ptb": 6}
MAX_TRIALS = {"sample": 10, "ptb": 20}
# Of `TrainingOptions`, the same for all trials.
FIXED = {
    "early_stopping": "end a trial after so many epochs without improvement; 0: never",
    "batch_size": "rows of a batch",
    "seq_len": "steps of backpropagation through time",
    "vocab_size": "words kept at most, the most frequent",
    "save_every": "steps between two checkpoints",
    "learning_rate_decay": "factor on the rate in each epoch after the sixth",
    "grad_clip": "largest norm of the gradient",
    "weight_decay": "L2 regularization",
    "embedding_scale": "the embedding starts uniform in plus and minus this",
    "dtype_policy": "Keras dtype policy, such as mixed_bfloat16",
    "seed": "seed of the choices and of each training",
}
RECORD = "search.json"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    space = parser.add_argument_group("the space")
    for name, hyperparameter in HYPERPARAMETERS.items():
        default = ", ".join(f"{v[name]} for {k}" for k, v in DEFAULTS.items())
        space.add_argument(
            f"--{name}", help=f"{hyperparameter.help} (default {default})"
        )

    def default(values: dict[str, int]) -> str:
        return ", ".join(f"{value} for {name}" for name, value in values.items())

    search = parser.add_argument_group("the search")
    search.add_argument("--tuner", choices=TUNERS, default="random")
    search.add_argument(
        "--max_trials",
        type=int,
        help=f"trials at most (default {default(MAX_TRIALS)}; with hyperband and grid "
        "as many as there are)",
    )
    search.add_argument(
        "--epochs",
        type=int,
        help=f"epochs of a trial, of the longest with hyperband (default "
        f"{default(EPOCHS)})",
    )
    search.add_argument(
        "--executions_per_trial", type=int, default=1, help="runs of which a trial is "
        "the mean, with different seeds (default 1)",
    )  # fmt: skip
    search.add_argument(
        "--workers", type=int, default=0, help="processes on this machine that run "
        "trials at the same time (default 0: this one)",
    )  # fmt: skip
    search.add_argument(
        "--save_path", default="lm-qrnn_search", help="directory of the search"
    )
    search.add_argument(
        "--overwrite", action="store_true", help="start anew, deleting what is there"
    )
    search.add_argument("--launched", action="store_true", help=argparse.SUPPRESS)

    data = parser.add_argument_group("the data")
    data.add_argument("--dataset", choices=tuple(DEFAULTS), default="ptb")
    data.add_argument("--data_dir", help="directory with {train,valid,test}.txt")
    data.add_argument(
        "--max_tokens", type=int, help="train on the first so many tokens, up to the "
        "end of their last sentence (default all)",
    )  # fmt: skip

    training = parser.add_argument_group("the training, as in examples/train_lm.py")
    defaults = TrainingOptions()
    for name, help in FIXED.items():
        value = getattr(defaults, name)
        training.add_argument(
            f"--{name}",
            type=type(value),
            default=value,
            help=f"{help} (default {value})",
        )
    return parser


def check(arguments: argparse.Namespace) -> None:
    """Raises a ValueError for a number that is out of its range."""
    for name in ("max_trials", "epochs", "executions_per_trial", "max_tokens"):
        value = getattr(arguments, name)
        if value is not None:
            positive_integer(name, value, "Option")
    for name in ("workers", "seed"):
        value = getattr(arguments, name)
        if value < 0:
            raise ValueError(
                f"Option `{name}` must not be negative. Received: {name}={value}"
            )


def first_tokens(corpus: Corpus, count: int) -> Corpus:
    """The corpus with a training split of `count` tokens, and what ends a sentence."""
    lines, tokens = [], 0
    for line in corpus.train:
        if tokens >= count:
            break
        lines.append(line)
        tokens += len(line.split()) + 1  # <eos>
    return dataclasses.replace(corpus, train=lines)


def load_data(arguments: argparse.Namespace) -> tuple[Corpus, Vocabulary]:
    """What is trained on, and the words of the whole training split.

    They are the whole split's with `--max_tokens`, too: so the models have the
    size, and the perplexities the meaning, that they have in a training in full.
    """
    corpus = load_corpus(arguments.dataset, arguments.data_dir)
    vocabulary = Vocabulary.build(corpus.train, arguments.vocab_size)
    if arguments.max_tokens is not None:
        corpus = first_tokens(corpus, arguments.max_tokens)
    ids = vocabulary.encode(corpus.train)
    BPTTBatches(ids, arguments.batch_size, arguments.seq_len)  # or it says why not
    print(
        f"{len(ids)} tokens to train on, {len(vocabulary)} words, from {corpus.name}",
        flush=True,
    )
    return corpus, vocabulary


def record(
    arguments: argparse.Namespace,
    space: dict[str, list | tuple],
    options: TrainingOptions,
    corpus: Corpus,
) -> dict:
    """All that makes the trials of one search comparable."""
    # Where a trial keeps its checkpoints, and the rest that is searched.
    free = {"save_every", *(each.option for each in HYPERPARAMETERS.values())}
    fixed = {k: v for k, v in vars(options).items() if k not in free}
    return {
        **canonical(space),
        "tuner": arguments.tuner,
        "executions_per_trial": arguments.executions_per_trial,
        **fixed,
        "data": fingerprint(corpus.train, corpus.valid),
    }


def check_record(path: Path, expected: dict) -> None:
    """Raises a ValueError if the search at `path` is another than `expected`."""
    try:
        found = json.loads(path.read_text("utf-8"))
        if not isinstance(found, dict):
            raise ValueError("not an object")
        found = with_current_names(found)
    except ValueError as error:
        raise ValueError(f"{path} is not a search's record: {error}") from error
    # An option that was added since the search began was then unused.
    added = {k: v for k, v in vars(TrainingOptions()).items() if k in expected}
    found = added | found
    names = [*expected, *(name for name in found if name not in expected)]
    for name in names:
        if found.get(name) != expected.get(name):
            raise ValueError(
                f"Option `save_path`: the search in {path.parent} is another one, with "
                f"{name}={found.get(name)!r}. Received: {name}={expected.get(name)!r}. "
                "Use --overwrite to start anew, or another --save_path"
            )


@contextlib.contextmanager
def held(directory: Path) -> Iterator[None]:
    """Keeps other searches out of `directory`; ends with this process."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                f"Option `save_path`: {directory} is being searched by another process"
            ) from error
        yield


def prepare(directory: Path, expected: dict, overwrite: bool) -> None:
    """Makes `directory` one of this search: a new one, or one to go on with."""
    path = directory / RECORD
    remove_leftovers(directory)
    files = [file for file in directory.iterdir() if file.name != ".lock"]
    if files and not path.exists():
        raise FileExistsError(
            f"Option `save_path`: {directory} holds other files than a search's. "
            "Use an empty directory"
        )
    if overwrite:
        # The record last: without it, the rest would be foreign files.
        for file in sorted(files, key=lambda file: file == path):
            if file.is_dir():
                shutil.rmtree(file)
            else:
                file.unlink()
    if path.exists():
        check_record(path, expected)
        print(f"Goes on with the search in {directory}", flush=True)
    else:
        write_json(path, expected)


def finish(
    tuner: LanguageModelTuner,
    directory: Path,
    options: TrainingOptions,
    arguments: argparse.Namespace,
) -> None:
    """Writes and prints what was found."""
    if tuner.oracle.failure:
        raise RuntimeError(str(tuner.oracle.failure))
    tidy_trials(tuner.oracle, directory)
    rows = write_results(tuner.oracle, directory, options)
    count = len(completed(rows))
    if not count:
        raise RuntimeError(
            f"None of {len(rows)} trials came to an end; see {directory / 'trials.csv'}"
        )
    print(f"\n{count} of {len(rows)} trials completed. The best:\n")
    print(best_table(rows))
    data = f"--dataset {arguments.dataset}"
    if arguments.data_dir is not None:
        data = f"--data_dir {arguments.data_dir}"
    print(
        f"\nIn {directory}: trials.csv, best.json, best_model.keras, objective.png, "
        "hyperparameters.png, parallel.png\n"
        f"Train the best in full: python examples/train_lm.py {data} "
        f"--config {directory / 'best.json'}\n"
        f"TensorBoard: tensorboard --logdir {directory}",
        flush=True,
    )


def run(arguments: argparse.Namespace, argv: list[str]) -> None:
    """The search, in the role that this process has in it."""
    check(arguments)
    part, directory = role(), Path(arguments.save_path).absolute()
    if part != "single" and arguments.workers:
        raise ValueError(
            "Option `workers` starts a chief of its own: it does not go with the "
            "environment variables of Keras Tuner's chief and workers"
        )
    if part == "worker" and arguments.overwrite and not arguments.launched:
        raise ValueError("Option `overwrite` is for the chief, not for a worker")
    space = {}
    for name in HYPERPARAMETERS:
        text = getattr(arguments, name)
        default = DEFAULTS[arguments.dataset][name]
        space[name] = parse(name, default if text is None else text)
    options = TrainingOptions(
        epochs=arguments.epochs or EPOCHS[arguments.dataset],
        **{name: getattr(arguments, name) for name in FIXED},
    )
    max_trials = arguments.max_trials
    if max_trials is None and arguments.tuner not in ("hyperband", "grid"):
        max_trials = MAX_TRIALS[arguments.dataset]
    corpus, vocabulary = load_data(arguments)
    expected = record(arguments, space, options, corpus)

    def make_tuner() -> LanguageModelTuner:
        oracle = make_oracle(
            arguments.tuner, space, max_trials, options.epochs, options.seed
        )
        return LanguageModelTuner(
            oracle, directory, corpus, vocabulary, options,
            arguments.executions_per_trial,
        )  # fmt: skip

    if part == "worker":
        tuner = make_tuner()
        tuner.oracle.get_space()  # waits for the chief
        if not (directory / RECORD).exists():
            raise FileNotFoundError(
                f"Option `save_path`: the chief's search is not in {directory}. All "
                "machines must share that directory"
            )
        check_record(directory / RECORD, expected)
        tuner.search()
        return
    with held(directory):
        prepare(directory, expected, arguments.overwrite)
        tuner = make_tuner()
        try:
            if part == "chief":
                address = os.environ["KERASTUNER_ORACLE_IP"]
                port = os.environ["KERASTUNER_ORACLE_PORT"]
                with Chief(tuner.oracle, address, port) as chief:
                    print(
                        f"The chief waits for workers at {address}:{port}", flush=True
                    )
                    chief.wait()
            elif arguments.workers:
                command = [sys.executable, str(Path(__file__).absolute()), *argv]
                command += ["--workers", "0", "--launched"]
                run_workers(tuner.oracle, arguments.workers, command, directory)
            else:
                tuner.search()
        except KeyboardInterrupt:
            rows = write_results(tuner.oracle, directory, options)
            print(
                f"\nInterrupted; trials that have ended: {len(rows)}. "
                "Start it again and it goes on.",
                flush=True,
            )
            raise
        finish(tuner, directory, options, arguments)


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    arguments = parser().parse_args(argv)
    if arguments.launched:
        end_with_parent()
    try:
        run(arguments, argv)
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, ImportError, RuntimeError, FatalError) as error:
        print(f"search.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
