"""The results of a search: the table of its trials, and the best model."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import keras_tuner
from keras_tuner.engine.trial import TrialStatus

from keras_qrnn._files import atomic_write, write_csv
from keras_qrnn.training import TrainingOptions
from keras_qrnn.training.options import defaults_of
from search_directory import check_zip, read_error, tidy, trial_directory, write_json
from search_oracles import ENDED
from search_plots import plot_hyperparameters, plot_objective, plot_parallel
from search_space import shown
from search_task import DURATION, HYPERPARAMETERS, OBJECTIVE

MEASURED = ("best_epoch", "epochs", "seconds")


def trial_rows(oracle: keras_tuner.Oracle, directory: Path) -> list[dict]:
    """A row for each trial that has ended, in the order of their beginning."""
    rows = []
    for trial in map(oracle.get_trial, oracle.start_order):
        if trial.status not in ENDED:
            continue
        completed = trial.status == TrialStatus.COMPLETED
        row = {"trial": trial.trial_id, "status": trial.status}
        row[OBJECTIVE.name] = trial.score if completed else ""
        for name in MEASURED:
            value = trial.metrics.get_last_value(name) if completed else ""
            row[name] = int(value) if completed and value == int(value) else value
        for name in HYPERPARAMETERS:
            row[name] = trial.hyperparameters.values[name]
        row["error"] = read_error(trial_directory(directory, trial.trial_id))
        rows.append(row)
    return rows


def completed(rows: list[dict]) -> list[dict]:
    """The rows of the trials that came to an end."""
    return [row for row in rows if row["status"] == TrialStatus.COMPLETED]


def ranked(rows: list[dict]) -> list[dict]:
    """The rows of the trials that came to an end, the best first."""
    return sorted(
        completed(rows),
        key=lambda row: float(row[OBJECTIVE.name]),
        reverse=OBJECTIVE.direction == "max",
    )


def write_results(
    oracle: keras_tuner.Oracle,
    directory: Path,
    options: TrainingOptions,
    save_data: Callable[[Path], None],
) -> list[dict]:
    """Writes `trials.csv`, the best trial's options and model, and the pictures.

    Args:
        oracle: the oracle of the search. Some or all of its trials have ended.
        directory: the directory of the search.
        options: options of the training, without the hyperparameters.
        save_data: writes the data that a model needs beside its own file.

    Returns:
        The rows of `trials.csv`.

    Raises:
        ValueError: if the best model's file is damaged. The rest is written.
    """
    rows = trial_rows(oracle, directory)
    if not rows:
        return rows
    if not completed(rows):
        write_csv(directory / "trials.csv", rows)
        return rows
    best = ranked(rows)[0]
    copied = _best_before(directory) == best["trial"]
    write_json(directory / "best.json", best_options(best, options))
    save_data(directory)
    plot_objective(directory / "objective.png", rows)
    plot_hyperparameters(directory / "hyperparameters.png", completed(rows))
    plot_parallel(directory / "parallel.png", completed(rows))
    try:
        _copy_best(directory, best["trial"], copied)
    finally:
        # Last: it says whose model `best_model.keras` is.
        write_csv(directory / "trials.csv", rows)
    return rows


def best_options(row: dict, options: TrainingOptions) -> dict:
    """What `train_lm.py --config` needs to train a trial's model in full.

    These are the trial's hyperparameters and the other options that were set for the
    search, except the length of the training: that is the recipe's.
    """
    set_here = {
        name: value
        for name, value in vars(options).items()
        if value != defaults_of()[name] and name not in DURATION
    }
    return set_here | {name: row[name] for name in HYPERPARAMETERS}


def _best_before(directory: Path) -> str | None:
    """The id of the trial whose model is `best_model.keras`, or None if unknown."""
    try:
        with (directory / "trials.csv").open(encoding="utf-8", newline="") as file:
            return ranked(list(csv.DictReader(file)))[0]["trial"]
    except (OSError, ValueError, KeyError, TypeError, IndexError, csv.Error):
        return None


def _copy_best(directory: Path, trial_id: str, copied: bool) -> None:
    """Copies the model of a trial to `best_model.keras`.

    If the trial's model was deleted, an existing copy of it stays. A copy of another
    trial's model is removed.

    Args:
        directory: the directory of the search.
        trial_id: the best trial.
        copied: whether `best_model.keras` is a copy of this trial's model.

    Raises:
        ValueError: if the trial's model is damaged.
    """
    trial, copy = trial_directory(directory, trial_id), directory / "best_model.keras"
    if not copied:
        copy.unlink(missing_ok=True)
    # In a resumed search the model may still be in the directory of its execution.
    found = [trial / "model.keras", *sorted(trial.glob("execution_*/model.keras"))]
    model = next((path for path in found if path.exists()), None)
    if model is not None:
        check_zip(model, "Delete it to do without the best model")
        with atomic_write(copy) as temporary:
            shutil.copyfile(model, temporary)
    elif not copy.exists():
        print(
            f"Trial {trial_id} is the best, and its model was deleted: there is no "
            f"{copy.name}",
            flush=True,
        )


def tidy_trials(oracle: keras_tuner.Oracle, directory: Path) -> None:
    """Calls `tidy` for ended trials: a kill or Hyperband may have left files."""
    for trial in oracle.trials.values():
        if trial.status in ENDED:
            tidy(trial_directory(directory, trial.trial_id))


def best_table(rows: list[dict], count: int = 10) -> str:
    """The best trials, the best first, as text."""
    columns = ("trial", OBJECTIVE.name, "best_epoch", "seconds", *HYPERPARAMETERS)
    cells = [columns] + [
        [shown(row[name]) for name in columns] for row in ranked(rows)[:count]
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    )
