"""The directory of a search: its record, its state files, the files of its trials."""

import csv
import errno
import hashlib
import json
import math
import shutil
import zipfile
import zlib
from pathlib import Path

from keras_qrnn._files import UNFINISHED, atomic_write, remove_leftovers
from keras_qrnn.training.objective import Objective
from keras_qrnn.training.options import RunOptions, defaults_of, with_current_names
from keras_qrnn.training.run_directory import LOCK, RunDirectory, difference_between

RECORD = "search.json"
# The record while --overwrite deletes the files of the search before.
DELETING = {"deleting": True}
CHECKSUM = "checksum"


def write_json(path: Path, value: object) -> None:
    """Writes `value` to `path`, as a whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", "utf-8")


def write_state(path: Path, state: dict) -> None:
    """Writes `state` with its checksum, which `read_state` compares."""
    state = json.loads(json.dumps(state))  # tuples become lists, keys strings
    write_json(path, {**state, CHECKSUM: _checksum(state)})


def read_state(path: Path, advice: str = "Use --overwrite to start anew") -> dict:
    """What `write_state` wrote to `path`.

    A file without a checksum is taken as it is: searches from before the checksum
    can go on.

    Args:
        path: the file.
        advice: the end of the error's message.

    Raises:
        ValueError: if the file is damaged or not of a search.
        OSError: if it cannot be read.
    """
    try:
        state = json.loads(path.read_text("utf-8"))
        if not isinstance(state, dict):
            raise ValueError("expected a JSON object")
        if state.pop(CHECKSUM, _checksum(state)) != _checksum(state):
            raise ValueError("its checksum is wrong")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}. {advice}") from error
    return state


def _checksum(state: dict) -> str:
    state = {name: value for name, value in state.items() if name != CHECKSUM}
    text = json.dumps(state, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def refuse_foreign(directory: Path) -> None:
    """Refuses a directory that holds something else than a search. Writes nothing.

    Raises:
        FileExistsError: if it does.
    """
    if not directory.is_dir() or (directory / RECORD).exists():
        return
    # A search that was killed at its first write has left half of a record.
    files = [file.name for file in directory.iterdir() if UNFINISHED not in file.name]
    if set(files) - {LOCK}:
        raise FileExistsError(
            f"Option `save_path`: {directory} holds other files than a search's. "
            "Use an empty directory"
        )


def prepare(
    directory: Path, expected: dict, options: type[RunOptions], overwrite: bool
) -> bool:
    """Makes `directory` one of this search: a new one, or one to go on with.

    A deletion that was ordered by `overwrite` and then killed is finished by the
    next start, with `overwrite` or without.

    Args:
        directory: the directory of the search. This process holds it.
        expected: the record of this search.
        options: the dataclass of the task's options.
        overwrite: whether to delete a search that is there.

    Returns:
        Whether there is a search to go on with.

    Raises:
        FileExistsError: if there are files that are not of a search.
        ValueError: if the search there is another one, or its record is damaged.
    """
    record = directory / RECORD
    refuse_foreign(directory)
    if overwrite and record.exists():
        write_state(record, DELETING)
    if record.exists() and read_state(record) != DELETING:
        check_record(record, expected, options)
        return True
    for file in list(directory.iterdir()):
        if file != record and file.name != LOCK:
            remove(file)
    write_state(record, expected)
    return False


def remove(path: Path) -> None:
    """Deletes a file, or a directory with all that is in it, or a link to one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def check_record(path: Path, expected: dict, options: type[RunOptions]) -> None:
    """Raises a ValueError if the search at `path` is another than `expected`."""
    found = with_current_names(read_state(path), options)
    # An option that was added since the search began was then unused. At first all
    # searches were of the language model, and the backend was not recorded.
    unused = {k: v for k, v in defaults_of(options).items() if k in expected}
    earlier = {"task": "lm", "backend": expected.get("backend")}
    found = unused | earlier | found
    if difference := difference_between(found, expected):
        raise ValueError(
            f"Option `save_path`: the search in {path.parent} is another one, with "
            f"{difference}. "
            "Use --overwrite to start anew, or another --save_path"
        )


# The files of a trial


def trial_directory(directory: Path, trial_id: str) -> Path:
    """The directory of a trial in that of its search."""
    return directory / f"trial_{trial_id}"


def trial_directories(directory: Path) -> list[Path]:
    """The directories of all trials that a search has."""
    return sorted(
        path for path in directory.iterdir() if path.name.startswith("trial_")
    )


def write_error(directory: Path, message: str) -> None:
    """Writes why a trial failed. keras-tuner's workers do not tell their chief."""
    with atomic_write(directory / "error.txt") as temporary:
        temporary.write_text(message, "utf-8")


def read_error(directory: Path) -> str:
    """The last line of why a trial failed, empty if it did not."""
    path = directory / "error.txt"
    if not path.exists():
        return ""
    lines = path.read_text("utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def check_zip(path: Path, advice: str) -> None:
    """Reads a zip archive, such as a model or a checkpoint, to see if it is whole.

    Args:
        path: the file.
        advice: the end of the error's message.

    Raises:
        ValueError: if it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if (name := archive.testzip()) is not None:
                raise ValueError(f"wrong checksum of {name}")
    except (
        ValueError,
        RuntimeError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
        OSError,
    ) as error:
        # EINVAL: a place before the start of the file. Others are the system's.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise ValueError(f"{path} is damaged: {error}. {advice}") from error


def tidy(directory: Path, objective: Objective) -> None:
    """Deletes the files of an ended trial except its logs and its best model."""
    if not directory.exists():
        return
    remove_leftovers(directory)
    models = []
    for execution in sorted(directory.glob("execution_*")):
        run = RunDirectory(execution)
        run.settle(0)  # a killed run may have left a model newer than its checkpoint
        run.checkpoint.unlink(missing_ok=True)
        if run.model.exists():
            models.append((_rank(run.log, objective), run.model))
    failed = (directory / "error.txt").exists()
    best = None if failed or not models else min(models)[1]
    for _, model in models:
        if model != best:
            model.unlink()
    # This comes last: after a kill before it, the next call repeats the above.
    if best is not None:
        best.replace(directory / "model.keras")


def _rank(log: Path, objective: Objective) -> float:
    """A number to order trainings by. Infinity, the last, without a readable log."""
    sign = 1 if objective.direction == "min" else -1
    try:
        with log.open(encoding="utf-8", newline="") as file:
            return min(
                sign * float(row[objective.name]) for row in csv.DictReader(file)
            )
    except (FileNotFoundError, ValueError, KeyError, TypeError, csv.Error):
        return math.inf
