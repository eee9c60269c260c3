"""keras-tuner's oracles, which choose the trials. Here a killed search can go on."""

import contextlib
import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras_tuner
from keras_tuner.engine.trial import Trial, TrialStatus
from keras_tuner.oracles import (
    BayesianOptimizationOracle,
    HyperbandOracle,
    RandomSearchOracle,
)

from keras_qrnn.training.objective import Objective
from search_directory import (
    read_error,
    read_state,
    remove,
    trial_directories,
    trial_directory,
    write_error,
    write_state,
)
from search_space import Space, keras_tuner_space, shown

TUNERS = ("random", "bayesian", "hyperband", "grid")
# A trial that diverges says something about its hyperparameters. Several that break
# one after the other say that something is wrong with the search.
MAX_ERRORS_IN_A_ROW = 3
ENDED = (TrialStatus.COMPLETED, TrialStatus.FAILED)


def hyperparameters_of(trial: Trial) -> dict[str, Any]:
    """The hyperparameters of a trial, without what Hyperband adds."""
    found = trial.hyperparameters
    return {each.name: found.values[each.name] for each in found.space}


def describe(trial: Trial) -> str:
    """The hyperparameters of a trial in a line."""
    values = trial.hyperparameters.values
    words = [f"{n}={shown(value)}" for n, value in hyperparameters_of(trial).items()]
    if "tuner/epochs" in values:
        words.append(f"epochs={values['tuner/epochs']}")
    return " ".join(words)


class Resumable:
    """Lets an oracle of keras-tuner go on after a kill at any moment.

    - keras-tuner writes files in place: a kill leaves half of a file. Here a file is
      replaced as a whole, and has a checksum.
    - A trial is written to `trial.json` and to `oracle.json`. A kill can come between
      the two writes: `resume` knows which of them counts. The copy in `oracle.json`
      also replaces that of a deleted trial directory.
    - In keras-tuner three failed trials in a row end the search. Here a trial that
      diverged does not count, only one that broke. `failure` then says why, and no
      more trials are given out.

    It also prints the progress, in place of keras-tuner's tables.
    """

    failure: Exception | None = None
    _errors_in_a_row = 0

    @property
    def _path(self) -> Path:
        """The directory of the search."""
        return Path(self._project_dir)

    def get_state(self) -> dict:
        trials = {name: trial.get_state() for name, trial in self.trials.items()}
        return super().get_state() | {"trials": trials}

    def save(self) -> None:
        write_state(self._path / "oracle.json", self.get_state())

    def _save_trial(self, trial: Trial) -> None:
        directory = trial_directory(self._path, trial.trial_id)
        write_state(directory / "trial.json", trial.get_state())

    def resume(self) -> None:
        """Goes on from the files of the search, or writes those of a new one.

        Raises:
            ValueError: if a file is damaged, or one is missing that is needed.
        """
        path = self._path / "oracle.json"
        if path.exists():
            state = read_state(path)
            try:
                self._restore(state)
            except (AttributeError, IndexError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path} is damaged: {type(error).__name__}: {error}. Use "
                    "--overwrite to start anew"
                ) from error
        elif trial_directories(self._path):
            raise ValueError(
                f"{path} is missing: without it the search does not go on. Use "
                "--overwrite to start anew"
            )
        else:
            self.save()

    def _restore(self, state: dict) -> None:
        copies = state.get("trials", {})
        for trial_id in state["start_order"]:
            self.trials[trial_id] = self._load_trial(trial_id, copies.get(trial_id))
        self.set_state(state)
        # A trial is written before the oracle's list. One that is not in the list
        # was never given out, and its number will be given to another one.
        known = {trial_directory(self._path, trial_id) for trial_id in self.trials}
        for directory in trial_directories(self._path):
            if directory not in known:
                remove(directory)
        # The end of a trial is written first in the trial's own file. Such a trial is
        # not run again.
        self.ongoing_trials = {}
        self._retry_queue = []
        for trial_id, trial in self.trials.items():
            if trial.status in ENDED:
                if trial_id not in self.end_order:
                    self.end_order.append(trial_id)
            else:
                self._retry_queue.insert(0, trial_id)  # the last is given out first

    def _load_trial(self, trial_id: str, copy: dict | None) -> Trial:
        path = trial_directory(self._path, trial_id) / "trial.json"
        if not path.exists():
            if copy is None:
                raise ValueError(
                    f"{path} is missing: without it the search does not go on. Use "
                    "--overwrite to start anew"
                )
            return Trial.from_state(copy)
        advice = "Delete it to go on with what the search's oracle.json has of it"
        state = read_state(path, advice)
        try:
            trial = Trial.from_state(state)
            if trial.trial_id != trial_id:
                raise ValueError(f"it is of trial {trial.trial_id}")
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is damaged: {type(error).__name__}: {error}. {advice}"
            ) from error
        return trial

    @keras_tuner.synchronized
    def create_trial(self, tuner_id: str) -> Trial:
        if self.failure:
            self.tuner_ids.discard(tuner_id)
            return Trial(self.get_space(), trial_id="", status=TrialStatus.STOPPED)
        before = set(self.trials)
        with self._noting_failure():
            trial = super().create_trial(tuner_id)
        if trial.status == TrialStatus.RUNNING:
            # A run that was killed may have reported metrics. This one reports anew.
            trial.metrics = type(trial.metrics)()
            of = f" of {self.max_trials}" if self.max_trials else ""
            again = " again" if trial.trial_id in before else ""
            print(
                f"Trial {trial.trial_id}{of} runs{again}: {describe(trial)}", flush=True
            )
        return trial

    @keras_tuner.synchronized
    def end_trial(self, trial: Trial) -> None:
        trial_id = trial.trial_id
        if trial_id in self.end_order:
            # The trial's worker outlived its chief, and the next chief had another
            # worker run the trial again.
            return
        if trial_id in self._retry_queue:
            self._retry_queue.remove(trial_id)
        # INVALID is a trial that broke. keras-tuner makes FAILED of it, too.
        error = trial.status == TrialStatus.INVALID
        with self._noting_failure():
            super().end_trial(trial)
        self._errors_in_a_row = self._errors_in_a_row + 1 if error else 0
        trial = self.trials[trial_id]
        if trial.status == TrialStatus.COMPLETED:
            best = self.get_best_trials()[0]
            print(
                f"Trial {trial_id} ends: {self.objective.name} {shown(trial.score)}, "
                f"best {shown(best.score)} in trial {best.trial_id}",
                flush=True,
            )
            return
        reason = read_error(trial_directory(self._path, trial_id))
        print(f"Trial {trial_id} failed: {reason}", flush=True)
        if self._errors_in_a_row == MAX_ERRORS_IN_A_ROW:
            self.failure = RuntimeError(
                f"{MAX_ERRORS_IN_A_ROW} trials in a row broke, the last with: {reason}"
            )

    def _check_consecutive_failures(self) -> None:
        """Nothing: `end_trial` counts, and raises nothing with the lock held."""

    @keras_tuner.synchronized
    def fail(self, tuner_id: str, message: str) -> None:
        """Ends the trial that `tuner_id` has, if any, as one that broke."""
        trial = self.ongoing_trials.get(tuner_id)
        if trial is not None:
            write_error(trial_directory(self._path, trial.trial_id), message)
            trial.status = TrialStatus.INVALID
            self.end_trial(trial)

    @contextlib.contextmanager
    def _noting_failure(self) -> Iterator[None]:
        # In a chief an exception ends the request of a worker and nothing else.
        try:
            yield
        except Exception as error:
            self.failure = error
            raise


class RandomOracle(Resumable, RandomSearchOracle):
    """Random search."""


class HyperbandSearchOracle(Resumable, HyperbandOracle):
    """Hyperband."""


class BayesianOracle(Resumable, BayesianOptimizationOracle):
    """Bayesian optimization that tries nothing twice."""

    def populate_space(self, trial_id: str) -> dict:
        from sklearn.exceptions import ConvergenceWarning

        with warnings.catch_warnings():
            # A length scale is at the end of its range. A user cannot change that.
            warnings.simplefilter("ignore", ConvergenceWarning)
            found = super().populate_space(trial_id)
        if found["values"] and self._duplicate(found["values"]):
            return self._random_populate_space()
        return found


class GridOracle(Resumable, keras_tuner.Oracle):
    """Grid search. The last hyperparameter varies fastest.

    keras-tuner's own oracle keeps its position in memory only. A search that was killed
    could not continue.
    """

    def populate_space(self, trial_id: str) -> dict:
        space = self.hyperparameters.space
        for values in itertools.product(*(each.values for each in space)):
            values = {each.name: v for each, v in zip(space, values, strict=True)}
            if not self._duplicate(values):
                return {"status": TrialStatus.RUNNING, "values": values}
        return {"status": TrialStatus.STOPPED, "values": None}


def make_oracle(
    tuner: str,
    space: Space,
    objective: Objective,
    max_trials: int | None,
    epochs: int,
    seed: int,
) -> keras_tuner.Oracle:
    """The oracle that chooses the hyperparameters of each trial.

    Args:
        tuner: one of `TUNERS`.
        space: what to search.
        objective: the metric that ranks the trials.
        max_trials: trials to give out at most; None for all of a grid or of
            Hyperband's brackets.
        epochs: epochs of a trial. With Hyperband, of the longest trials.
        seed: the seed of the choices.
    """
    if tuner == "grid":
        space = {name: dimension.grid() for name, dimension in space.items()}
    common = {
        "objective": keras_tuner.Objective(objective.name, objective.direction),
        "hyperparameters": keras_tuner_space(space),
        # keras-tuner takes 0 for "any".
        "seed": seed + 1,
    }
    if tuner == "hyperband":
        oracle = HyperbandSearchOracle(max_epochs=epochs, **common)
        oracle.max_trials = max_trials
    elif tuner == "grid":
        oracle = GridOracle(max_trials=max_trials, **common)
    elif tuner == "random":
        oracle = RandomOracle(max_trials=max_trials, **common)
    else:
        # keras-tuner begins with three random trials for each hyperparameter, also for
        # fixed ones. These can be all trials of a search.
        free = sum(len(dimension.values) > 1 for dimension in space.values())
        initial = max(3, min(2 * free, max_trials // 2))
        oracle = BayesianOracle(
            max_trials=max_trials, num_initial_points=initial, **common
        )
    oracle.verbose = 0
    return oracle
