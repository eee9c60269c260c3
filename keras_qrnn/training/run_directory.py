"""The directory of a run: who may write to it, and which run it holds.

A search has such a directory, too, and uses `held` and `difference_between`.
"""

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from keras_qrnn._files import remove_leftovers
from keras_qrnn.training.checkpoint import read_meta

LOCK = ".lock"
DOING = "trained in"  # what a training does with its directory
MOST_SHOWN = 8  # values in a message about two records that differ


@contextlib.contextmanager
def held(directory: Path, doing: str, option: str = "save_path") -> Iterator[None]:
    """Keeps other processes out of `directory` while the context lasts.

    It makes the directory, and removes half-written files that killed processes left
    there. The lock ends with the process in any case. The lock's file stays.

    Args:
        directory: the directory of a run or a search.
        doing: the use of the directory, for the message: "trained in", "searched".
        option: name of the option that names the directory.

    Raises:
        BlockingIOError: if another process holds the directory.
        OSError: if the directory cannot be made or written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / LOCK).open("a") as file:
        _lock(file, directory, doing, option)
        remove_leftovers(directory)
        yield


def refuse_if_held(directory: Path, doing: str, option: str = "save_path") -> None:
    """Raises the error of `held` if another process holds `directory`.

    Writes nothing.
    """
    path = directory / LOCK
    if path.exists():
        with path.open() as file:
            _lock(file, directory, doing, option)


def _lock(file: Any, directory: Path, doing: str, option: str) -> None:
    import fcntl  # Windows has no fcntl: models can be read there, not trained

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BlockingIOError(
            f"Option `{option}`: {directory} is being {doing} by another process"
        ) from error


def check_directory(option: str, directory: Path) -> None:
    """Raises a NotADirectoryError if `directory` cannot be one.

    It cannot if it is a file or a broken link, or lies in one.

    Args:
        option: name of the option that names the directory.
        directory: a path that need not exist.
    """
    for each in (directory, *directory.parents):
        if each.is_dir():
            return
        if each.exists() or each.is_symlink():
            what = "a file" if each.exists() else "a broken link"
            raise NotADirectoryError(
                f"Option `{option}` must be a directory. Received: {directory}, where "
                f"{each} is {what}"
            )


def refuse_to_replace(option: str, directory: Path, names: Iterable[str]) -> None:
    """Raises an error if a program would replace a file in `directory`.

    Args:
        option: name of the option that names the directory.
        directory: a path that need not exist.
        names: the files that the program writes there.

    Raises:
        FileExistsError: if one of them is there.
        NotADirectoryError: if `directory` cannot be one.
    """
    check_directory(option, directory)
    found = [name for name in names if (directory / name).exists()]
    if found:
        raise FileExistsError(
            f"Option `{option}`: {directory} holds {', '.join(found)} already. "
            f"Use another --{option}"
        )


def difference_between(
    found: Mapping[str, Any],
    expected: Mapping[str, Any],
    free: Collection[str] = (),
) -> str | None:
    """How two records differ, for a message, or None: `a=1, b=2. Received: a=3, b=4`.

    Args:
        found: the record in a checkpoint.
        expected: the record of the run to start. It gives the order.
        free: names that may differ.
    """
    names = [*expected, *(name for name in found if name not in expected)]
    names = [n for n in names if n not in free and found.get(n) != expected.get(n)]
    if not names:
        return None
    shown, others = names[:MOST_SHOWN], len(names[MOST_SHOWN:])

    def listed(record: Mapping[str, Any]) -> str:
        return ", ".join(f"{name}={record.get(name)!r}" for name in shown)

    more = f" ({others} more differ)" if others else ""
    return f"{listed(found)}{more}. Received: {listed(expected)}"


class RunDirectory:
    """The files of a run.

    Attributes:
        path: the directory.
        lock: the file that a process holds while it trains here.
        checkpoint: the file that a resumed run needs, `checkpoint.npz`.
        model: the best model by validation of the checkpoint's epochs, `model.keras`.
        log: a line for each epoch, `log.csv`.
        plot: the curves of the epochs, `training.png`.
        events: directory of event files for TensorBoard, `logs`.
        vocabulary: the words or characters of the model, `vocabulary.json`.
        record: options, results, versions and hardware, `run.json`.
        states: the states over the words of a review, `states.png`.
        translations: directory of the sentences that were translated, `translations`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = path / LOCK
        self.checkpoint = path / "checkpoint.npz"
        self.model = path / "model.keras"
        self.log = path / "log.csv"
        self.plot = path / "training.png"
        self.events = path / "logs"
        self.vocabulary = path / "vocabulary.json"
        self.record = path / "run.json"
        self.states = path / "states.png"
        self.translations = path / "translations"

    @property
    def files(self) -> list[Path]:
        """The files and directories that a run writes here, without the lock.

        A model with an epoch in its name (`newer_model`) is listed only if it exists.
        """
        models = [self.model, *self._newer_models().values()]
        curves = [self.log, self.plot, self.events]
        found = [self.record, self.states, self.translations]
        return [self.checkpoint, *models, *curves, self.vocabulary, *found]

    def newer_model(self, epoch: int) -> Path:
        """The best model so far, of an epoch that the checkpoint does not have yet.

        Args:
            epoch: number of the epoch, counted from 1.
        """
        return self.path / f"model.epoch{epoch}.keras"

    def _newer_models(self) -> dict[int, Path]:
        found = self.path.glob("model.epoch*.keras")
        numbers = {
            file.name.split(".")[1].removeprefix("epoch"): file for file in found
        }
        return {int(n): file for n, file in numbers.items() if n.isdecimal()}

    def best_model(self) -> Path:
        """The best model of all epochs that were trained, those after the checkpoint
        too: a run that was killed has them, and trains them again when it is resumed.
        """
        newer = self._newer_models()
        return newer[max(newer)] if newer else self.model

    def settle(self, epochs: int) -> None:
        """Brings `model` to the epochs of the checkpoint, after it was written or read.

        The newest of the models of these epochs becomes `model`. Those of later epochs
        are deleted: these epochs are trained again, maybe with other learning rates.

        Args:
            epochs: number of epochs that the checkpoint has.
        """
        newer = self._newer_models()
        ready = [n for n in newer if n <= epochs]
        if ready:
            newer.pop(max(ready)).replace(self.model)
        for file in newer.values():
            file.unlink()

    def check(self, difference: Callable[[dict], str | None], resume: bool) -> bool:
        """Raises an error if a run here would destroy another run. Writes nothing.

        Args:
            difference: takes the `meta` of the directory's checkpoint. Returns None if
                it belongs to the run to start, or else how the two differ:
                `"units=8. Received: units=9"`.
            resume: whether the run shall resume from the checkpoint.

        Returns:
            Whether there is a checkpoint to resume from.

        Raises:
            FileExistsError: if the directory holds a run and `resume` is False, or
                a model and no checkpoint to resume from, or files that a run would
                replace and that no run wrote.
            NotADirectoryError: if the path is a file or lies in one.
            ValueError: if the checkpoint is damaged or of another run.
        """
        check_directory("save_path", self.path)
        if not self.checkpoint.exists():
            if self.model.exists():
                raise FileExistsError(
                    f"Option `save_path`: {self.path} holds a model and no checkpoint "
                    "to go on from. Use another --save_path"
                )
            found = [each.name for each in self.files if each.exists()]
            if found and not self.lock.exists():
                raise FileExistsError(
                    f"Option `save_path`: {self.path} holds {', '.join(found)}, which "
                    "no training wrote there. Use another --save_path"
                )
            return False
        meta = read_meta(self.checkpoint)
        models = self.model.exists() or self._newer_models()
        if not (meta["epoch"] or meta["step"] or models):
            return False  # the run ended before its first checkpoint
        other = difference(meta)
        if resume and other:
            raise ValueError(f"Option `resume`: the run in {self.path} has {other}")
        if not resume:
            advice = "Use --resume to go on with it, or another --save_path"
            if other:
                advice = (
                    f"It has {other}. Use another --save_path, or --resume with what "
                    "it was started with"
                )
            raise FileExistsError(
                f"Option `save_path`: {self.path} holds a run already. {advice}"
            )
        return True
