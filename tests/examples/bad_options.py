"""Options that the commands must refuse: some 700 cases for four commands.

    KERAS_BACKEND=torch python -m tests.examples.bad_options

Each case must end with exit code 2, print one line on stderr that begins with the
command's name, train nothing and write nothing. The program prints the cases that do
not, and how many there are of each command. A test runs a sample of them.
"""

import contextlib
import dataclasses
import io
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import keras

from keras_qrnn.data import Vocabulary
from keras_qrnn.training.language_model import build_language_model
from keras_qrnn.training.options import TrainingOptions, named_fields, type_of
from tests.examples.programs import ROOT, script

COMMANDS = ("train_lm.py", "sample_lm.py", "search.py", "long_memory.py")
# Not a number of things, whatever the thing is.
NO_INTEGER = ("", " ", "x", "1.5", "1e3", "nan", "-1", "1000000000000", "9" * 30)
NO_COUNT = (*NO_INTEGER, "0")
NO_NUMBER = ("", "x", "nan", "inf", "-inf", "-1", "1e400", "0x1")
NO_RATE = (*NO_NUMBER, "1", "1.5")
NO_POSITIVE = (*NO_NUMBER, "0", "1e39")
NO_CHOICE = ("", "x", "QRNN", "fo,ifo", "0")
NO_PATH = ("",)


@dataclasses.dataclass(frozen=True)
class Case:
    """Options that are added to a good command line.

    Attributes:
        command: name of the script.
        options: added to options that would be taken.
        config: content of the file that `--config` names, if there is one.
    """

    command: str
    options: tuple[str, ...]
    config: str | None = None


def bad_values(name: str) -> tuple[str, ...]:
    """Values that the option `name` of `TrainingOptions` refuses."""
    each = named_fields(TrainingOptions)[name]
    kind = type_of(TrainingOptions, name)
    if kind is int:
        may_be_zero = name in ("early_stopping", "average_trigger", "seed")
        return NO_INTEGER if may_be_zero else NO_COUNT
    if kind is float:
        for value in ("1", "0"):
            try:
                each.metadata["check"](name, float(value))
            except ValueError:
                return NO_RATE if value == "1" else NO_POSITIVE
        return (*NO_NUMBER, "1e39")
    return NO_PATH if name == "finetune" else NO_CHOICE


def train_cases() -> Iterator[Case]:
    """Cases of `train_lm.py`."""
    for name, each in named_fields(TrainingOptions).items():
        if type_of(TrainingOptions, name) is bool:
            yield Case("train_lm.py", (f"--{name}=1",))
            continue
        if name != "cell":
            for spelling in (name, *each.metadata["older_names"]):
                for value in bad_values(name):
                    yield Case("train_lm.py", (f"--{spelling}={value}",))
    for options in (
        ("--lstm", "--unrolled_lstm"),
        ("--preset=x",),
        ("--preset=",),
        ("--dataset=x",),
        ("--dataset=sample",),  # with --data_dir
        ("--revision=main",),  # with --data_dir
        ("--revision=",),
        ("--data_dir=",),
        ("--data_dir=nowhere",),
        ("--save_path=",),
        ("--save_path=file",),
        ("--save_path=file/run",),
        ("--config=",),
        ("--config=nowhere",),
        ("--config=.",),
        ("--finetune=nowhere",),
        ("--finetune=data",),
        ("--notrain",),  # nothing is there
        ("--verbose=3",),
        ("--verbose=x",),
        ("--colour=red",),
        ("red",),
        ("--epochs",),
        ("--batch_size=100000",),  # than the corpus has tokens
        ("--seq_len=100000",),  # than a row has
        ("--units=1000000",),  # than the memory holds
        ("--emb_dim=2000000000",),
        ("--layers=2000000000",),
        ("--window=2000000000",),
        ("--first_window=2000000000",),
        ("--units=2000000000", "--lstm"),
        ("--units=2000000000", "--unrolled_lstm"),
        ("--seed=2147483647",),  # layers have seeds that follow
        ("--seed=4294967296",),
        ("--embedding_scale=40000", "--dtype_policy=float16"),
        ("--dtype_policy=int32",),
        ("--dtype_policy=int8_from_float32",),
        ("--dtype_policy=uint8",),
        ("--dtype_policy=mixed_int8",),
        ("--qrnn_size=4", "--qrnn_size=-4"),
    ):
        yield Case("train_lm.py", options)
    for value in ("-1", "x", "1.5", "1e20", "100000000000000000000", "inf"):
        yield Case("train_lm.py", (f"--cache={value}",))
    for content in (
        "", " ", "{", "[]", "[1]", "5", "null", '"x"', "nan", "{}}", '{"colour": 1}',
        '{"units": 4, "qrnn_size": 4}', '{"": 1}', "[" * 100_000, '{"a":' * 100_000,
        "\ufeff{}", "\0",
    ):  # fmt: skip
        yield Case("train_lm.py", (), content)
    for name, each in named_fields(TrainingOptions).items():
        kind = type_of(TrainingOptions, name)
        for value in ("x", 1.5, True, [1], {}, None, -1):
            taken = (
                (value is True and kind is bool)
                or (value is None and each.default is None)
                or (value == 1.5 and kind is float and bad_values(name) != NO_RATE)
            )
            if not taken:
                yield Case("train_lm.py", (), json.dumps({name: value}))


def sample_cases() -> Iterator[Case]:
    """Cases of `sample_lm.py`."""
    for value in NO_COUNT:
        yield Case("sample_lm.py", (f"--num_words={value}",))
    for value in NO_POSITIVE[:-1]:
        yield Case("sample_lm.py", (f"--temperature={value}",))
    for value in NO_INTEGER:
        yield Case("sample_lm.py", (f"--seed={value}",))
    for options in (
        ("--load_path=",),
        ("--load_path=nowhere",),
        ("--load_path=file",),
        ("--load_path=data",),
        ("--save_path=",),
        ("--save_path=file",),
        ("--save_path=file/run",),
        ("--out_filename=",),
        ("--out_filename=.",),
        ("--out_filename=..",),
        ("--out_filename=model.keras",),
        ("--out_filename=vocabulary.json",),
        ("--first_word=zebra",),
        ("--first_word=",),
        ("--colour=red",),
        ("red",),
    ):
        yield Case("sample_lm.py", options)


def search_cases() -> Iterator[Case]:
    """Cases of `search.py`."""
    for name in (
        "max_trials", "epochs", "executions_per_trial", "max_tokens", "max_wait",
    ):  # fmt: skip
        # More trials or tokens than there are is all of them.
        for value in NO_COUNT if name == "epochs" else NO_COUNT[:7]:
            yield Case("search.py", (f"--{name}={value}",))
    for value in NO_INTEGER:
        yield Case("search.py", (f"--workers={value}",))
    for name in ("units", "window", "layers", "emb_dim"):
        for value in (*NO_COUNT, "4-1", "1-", "-", "4,", "4,4", "0-2", "1:4"):
            yield Case("search.py", (f"--{name}={value}",))
    for name in ("zoneout", "dropout"):
        for value in (*NO_RATE, "0.5-0.1", "0.0-1.0", "0.1,0.1"):
            yield Case("search.py", (f"--{name}={value}",))
    for value in (*NO_POSITIVE, "0-1", "1-0.1"):
        yield Case("search.py", (f"--learning_rate={value}",))
    for value in (*NO_CHOICE[:3], "f-ifo", "f,f"):
        yield Case("search.py", (f"--pooling={value}",))
    for name in (
        "early_stopping", "batch_size", "seq_len", "vocab_size", "save_every",
        "learning_rate_decay", "grad_clip", "weight_decay", "embedding_scale",
        "dtype_policy", "seed",
    ):  # fmt: skip
        for value in bad_values(name):
            yield Case("search.py", (f"--{name}={value}",))
    for options in (
        ("--tuner=x",),
        ("--dataset=x",),
        ("--dataset=sample",),
        ("--data_dir=",),
        ("--data_dir=nowhere",),
        ("--save_path=",),
        ("--save_path=file",),
        ("--save_path=file/run",),
        ("--batch_size=100000",),
        ("--seq_len=100000",),
        ("--units=2000000000",),
        ("--units=1000000",),  # than the memory holds
        ("--layers=2000000000",),
        ("--window=1-2000000000",),
        ("--emb_dim=4-2000000000",),
        ("--seed=2147483647",),
        ("--executions_per_trial=2147483647",),  # each has a seed of its own
        ("--embedding_scale=40000", "--dtype_policy=float16"),
        ("--max_tokens=3",),
        ("--save_path=data",),  # holds other files
        ("--tuner=",),
        ("--tuner",),
        ("--verbose=3",),
        ("--verbose=x",),
        ("--colour=red",),
        ("red",),
        ("--task=speech",),
        ("--task=",),
        ("--task=sentiment",),  # it has no option `seq_len`
        ("--task=translation",),
        ("--revision=main",),  # with --data_dir
        ("--batch_size=4,4",),
        ("--batch_size=4-0",),
        ("--weight_decay=0-1",),
        ("--tuner=hyperband", "--schedule=one_cycle"),
        ("--optimizer=sgd,x",),
    ):
        yield Case("search.py", options)


def memory_cases() -> Iterator[Case]:
    """Cases of `long_memory.py`."""
    for name in (
        "length", "units", "layers", "window", "epochs", "steps", "batch_size",
    ):  # fmt: skip
        for value in NO_COUNT:
            yield Case("long_memory.py", (f"--{name}={value}",))
    for value in (*NO_COUNT, "2"):
        yield Case("long_memory.py", (f"--max_length={value}",))
    for value in NO_POSITIVE:
        yield Case("long_memory.py", (f"--learning_rate={value}",))
    for name in ("task", "pooling", "models"):
        for value in NO_CHOICE:
            yield Case("long_memory.py", (f"--{name}={value}",))
    for options in (
        ("--models=qrnn,qrnn",),
        ("--models=qrnn,",),
        ("--length=1",),  # two steps are marked
        ("--units=1000000",),
        ("--seed=-1",),
        ("--seed=x",),
        ("--save_path=",),
        ("--save_path=file",),
        ("--save_path=file/run",),
        ("--verbose=3",),
        ("--colour=red",),
        ("red",),
    ):
        yield Case("long_memory.py", options)


def cases() -> list[Case]:
    """All cases of the four commands."""
    return [*train_cases(), *sample_cases(), *search_cases(), *memory_cases()]


def load(command: str) -> object:
    """The program as a module. `search.py` imports the files beside it."""
    with mock.patch.object(sys, "path", [*sys.path, str(ROOT / "tuning")]):
        return script(Path(command).stem)


def prepare(directory: Path) -> None:
    """Makes the files that the cases find in `directory`, their working directory."""
    (directory / "file").write_text("in the way")
    (directory / "data").mkdir()
    for split in ("train", "valid", "test"):
        text = "the cat sat on the mat\n" * 40
        (directory / "data" / f"{split}.txt").write_text(text)
    vocabulary = Vocabulary.build(["the cat sat on the mat"])
    vocabulary.save(directory / "trained" / "vocabulary.json")
    options = TrainingOptions(units=4, emb_dim=4, batch_size=2)
    model = build_language_model(options, len(vocabulary))
    model.save(directory / "trained" / "model.keras")


def complaint(case: Case, main: object, directory: Path) -> str | None:
    """What is wrong with a command's answer to a case, or None.

    Args:
        case: the case.
        main: the command's function of that name.
        directory: the working directory, as `prepare` left it.
    """
    options = {
        "train_lm.py": ["--data_dir=data", "--save_path=run"],
        "sample_lm.py": ["--load_path=trained", "--save_path=run"],
        "search.py": ["--data_dir=data", "--save_path=run", "--seq_len=10"],
        "long_memory.py": ["--save_path=run", "--length=5", "--units=4"],
    }[case.command]
    if case.command == "train_lm.py":
        options += ["--batch_size=4", "--seq_len=10", "--units=8", "--emb_dim=8"]
    if case.command == "search.py":
        options += ["--batch_size=4", "--units=8", "--emb_dim=8"]
    before = set(directory.iterdir())
    argv = [*options, *case.options]
    if case.config is not None:
        (directory / "config.json").write_text(case.config, "utf-8")
        before.add(directory / "config.json")
        argv.append("--config=config.json")
    errors = io.StringIO()
    trains = AssertionError("it trains")
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(errors),
        mock.patch.object(keras.Model, "fit", side_effect=trains),
        mock.patch.object(subprocess, "Popen", side_effect=trains),
        mock.patch.object(keras.Model, "predict_on_batch", side_effect=trains),
    ):
        try:
            code = main(argv)
        except SystemExit as error:
            code = error.code
        except BaseException as error:  # noqa: BLE001 - a report, whatever it is
            return f"{type(error).__name__}: {error}"[:200]
        finally:
            written = sorted(set(directory.iterdir()) - before)
            for each in written:
                shutil.rmtree(each) if each.is_dir() else each.unlink()
    text = errors.getvalue()
    if code != 2:
        return f"exit code {code}"
    if text.count("\n") != 1 or not text.startswith(f"{case.command}: error: "):
        return f"stderr is {text[:200]!r}"
    if written:
        return f"writes {[each.name for each in written]}"
    return None


def main() -> int:
    """Runs all cases, or those of the given command."""
    mains = {command: load(command).main for command in COMMANDS}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        prepare(directory)
        wrong, counts = 0, dict.fromkeys(COMMANDS, 0)
        with contextlib.chdir(directory):
            for case in cases():
                if case.command not in (sys.argv[1:] or COMMANDS):
                    continue
                counts[case.command] += 1
                if found := complaint(case, mains[case.command], directory):
                    wrong += 1
                    print(case.command, *case.options, (case.config or "")[:60], found)
    print(f"{wrong} of {sum(counts.values())} are not refused as they should", counts)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
