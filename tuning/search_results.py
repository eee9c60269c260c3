"""The results of a search: the table of its trials, and the best model."""

import csv
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras_tuner
from keras_tuner.engine.trial import TrialStatus

from keras_qrnn._files import atomic_write, write_csv
from keras_qrnn.training.objective import Objective
from keras_qrnn.training.options import defaults_of
from search_directory import check_zip, read_error, tidy, trial_directory, write_json
from search_oracles import ENDED, hyperparameters_of
from search_plots import plot_hyperparameters, plot_objective, plot_parallel
from search_space import Space, shown
from search_task import DURATION, Recipe

MEASURED = ("best_epoch", "epochs", "seconds")


def trial_rows(oracle: keras_tuner.Oracle, directory: Path) -> list[dict]:
    """A row for each trial that has ended, in the order of their beginning."""
    objective = oracle.objective.name
    rows = []
    for trial in map(oracle.get_trial, oracle.start_order):
        if trial.status not in ENDED:
            continue
        completed = trial.status == TrialStatus.COMPLETED
        row = {"trial": trial.trial_id, "status": trial.status}
        row[objective] = trial.score if completed else ""
        for name in MEASURED:
            value = trial.metrics.get_last_value(name) if completed else ""
            row[name] = int(value) if completed and value == int(value) else value
        row |= hyperparameters_of(trial)
        row["error"] = read_error(trial_directory(directory, trial.trial_id))
        rows.append(row)
    return rows


def completed(rows: list[dict]) -> list[dict]:
    """The rows of the trials that came to an end."""
    return [row for row in rows if row["status"] == TrialStatus.COMPLETED]


def ranked(rows: list[dict], objective: Objective) -> list[dict]:
    """The rows of the trials that came to an end, the best first."""
    return sorted(
        completed(rows),
        key=lambda row: float(row[objective.name]),
        reverse=objective.direction == "max",
    )


def write_results(
    oracle: keras_tuner.Oracle,
    directory: Path,
    space: Space,
    objective: Objective,
    options: Any,
    recipe: Recipe,
    vocabulary: Any,
) -> list[dict]:
    """Writes `trials.csv`, the best trial's options and model, and the pictures.

    Args:
        oracle: the oracle of the search. Some or all of its trials have ended.
        directory: the directory of the search.
        space: what is searched.
        objective: the metric that ranks the trials.
        options: options of the training, without the hyperparameters.
        recipe: that of the search.
        vocabulary: that of all trials.

    Returns:
        The rows of `trials.csv`.

    Raises:
        ValueError: if the best model's file is damaged. The rest is written.
    """
    rows = trial_rows(oracle, directory)
    if not rows:
        return rows
    # This file says whose model `best_model.keras` is. Another trial's goes first.
    best = next(iter(ranked(rows, objective)), None)
    if best is not None and _best_before(directory, objective) != best["trial"]:
        (directory / "best_model.keras").unlink(missing_ok=True)
    write_csv(directory / "trials.csv", rows)
    if best is None:
        return rows
    values = {name: best[name] for name in space}
    write_json(directory / "best.json", best_options(values, options, recipe))
    vocabulary.save(directory / "vocabulary.json")
    ended = completed(rows)
    plot_objective(directory / "objective.png", rows, objective)
    plot_hyperparameters(directory / "hyperparameters.png", ended, space, objective)
    plot_parallel(directory / "parallel.png", ended, space, objective)
    _copy_best(directory, best["trial"])
    return rows


def best_options(values: Mapping[str, Any], options: Any, recipe: Recipe) -> dict:
    """What the training program's `--config` needs to train a trial's model in full.

    These are the trial's hyperparameters and the other options that were set for the
    search, except the length of the training: that is the program's own. The program
    may have the recipe's options as defaults, or the dataclass's.
    """
    defaults = defaults_of(type(options))
    set_here = {
        name: value
        for name, value in asdict(options).items()
        if (value != defaults[name] or value != recipe.options.get(name, value))
        and name not in DURATION
    }
    return set_here | dict(values)


def _best_before(directory: Path, objective: Objective) -> str | None:
    """The id of the trial whose model is `best_model.keras`, or None if unknown."""
    try:
        with (directory / "trials.csv").open(encoding="utf-8", newline="") as file:
            return ranked(list(csv.DictReader(file)), objective)[0]["trial"]
    except (OSError, ValueError, KeyError, TypeError, IndexError, csv.Error):
        return None


def _copy_best(directory: Path, trial_id: str) -> None:
    """Copies the model of a trial to `best_model.keras`.

    If the trial's model was deleted, an existing copy of it stays.

    Args:
        directory: the directory of the search.
        trial_id: the best trial.

    Raises:
        ValueError: if the trial's model is damaged.
    """
    trial, copy = trial_directory(directory, trial_id), directory / "best_model.keras"
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


def tidy_trials(
    oracle: keras_tuner.Oracle, directory: Path, objective: Objective
) -> None:
    """Calls `tidy` for ended trials: a kill or Hyperband may have left files."""
    for trial in oracle.trials.values():
        if trial.status in ENDED:
            tidy(trial_directory(directory, trial.trial_id), objective)


def best_table(
    rows: list[dict], space: Space, objective: Objective, count: int = 10
) -> str:
    """The best trials, the best first, as text."""
    columns = ("trial", objective.name, "best_epoch", "seconds", *space)
    best = ranked(rows, objective)[:count]
    cells = [columns] + [[shown(row[name]) for name in columns] for row in best]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    )
