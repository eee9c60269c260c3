"""keras-tuner for language models: oracles that can be killed, and the tuner."""

import contextlib
import csv
import gc
import itertools
import json
import math
import shutil
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import keras
import keras_tuner
from keras_tuner.engine.base_tuner import BaseTuner
from keras_tuner.engine.trial import Trial, TrialStatus
from keras_tuner.errors import FailedTrialError, FatalError
from keras_tuner.oracles import (
    BayesianOptimizationOracle,
    HyperbandOracle,
    RandomSearchOracle,
)

from keras_qrnn._files import atomic_write
from keras_qrnn.data import Corpus, Vocabulary
from keras_qrnn.training import TrainingOptions, train_language_model
from search_space import HYPERPARAMETERS, grid, hyperparameters

OBJECTIVE = "val_perplexity"
TUNERS = ("random", "bayesian", "hyperband", "grid")
# A trial that diverges says something about its hyperparameters; several that
# break one after the other say that something is wrong with the search.
MAX_ERRORS_IN_A_ROW = 3
ENDED = (TrialStatus.COMPLETED, TrialStatus.FAILED)


def write_json(path: Path, value: object) -> None:
    """`path` is never half-written."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", "utf-8")


def describe(trial: Trial) -> str:
    """The hyperparameters of a trial in a line."""
    values = trial.hyperparameters.values
    words = [f"{name}={shown(values[name])}" for name in HYPERPARAMETERS]
    if "tuner/epochs" in values:
        words.append(f"epochs={values['tuner/epochs']}")
    return " ".join(words)


def shown(value: object) -> str:
    """A value as it is printed: of numbers the digits that say something."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Resumable:
    """What keras-tuner's oracles lack to be killed at any moment and go on.

    - They write their files in place, and a kill leaves half of one. Here each
      is replaced as a whole.
    - A trial is kept in two files, `trial.json` and the oracle's list in
      `oracle.json`, and a kill can fall between the two: `reload` knows which
      of them counts.
    - Three failed trials in a row end their search. Here only errors do,
      divergence does not: `failure` says why, and no more trials are given out.

    It also prints the progress, in place of keras-tuner's tables.
    """

    failure: Exception | None = None
    _errors_in_a_row = 0

    def save(self) -> None:
        write_json(Path(self._get_oracle_fname()), self.get_state())

    def _save_trial(self, trial: Trial) -> None:
        directory = Path(self._get_trial_dir(trial.trial_id))
        write_json(directory / "trial.json", trial.get_state())

    def reload(self) -> None:
        path = Path(self._get_oracle_fname())
        try:
            super().reload()
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(
                f"{path.parent} is not a whole search: {type(error).__name__}: "
                f"{error}. Use --overwrite to start anew"
            ) from error
        # A trial is written before the oracle's list: one that is not in the list
        # was never given out, and its number will be given to another one.
        for trial_id in self.trials.keys() - set(self.start_order):
            del self.trials[trial_id]
            shutil.rmtree(self._get_trial_dir(trial_id))
        self.trials = {trial_id: self.trials[trial_id] for trial_id in self.start_order}
        # And its end is written in its own file first: it is not run again.
        self._retry_queue = []
        for trial_id, trial in self.trials.items():
            if trial.status in ENDED:
                if trial_id not in self.end_order:
                    self.end_order.append(trial_id)
            else:
                self._retry_queue.insert(0, trial_id)  # it gives out the last first

    @keras_tuner.synchronized
    def create_trial(self, tuner_id: str) -> Trial:
        if self.failure:
            self.tuner_ids.discard(tuner_id)
            return Trial(self.get_space(), trial_id="", status=TrialStatus.STOPPED)
        before = set(self.trials)
        with self._noting_failure():
            trial = super().create_trial(tuner_id)
        if trial.status == TrialStatus.RUNNING:
            # What a run that was killed may have reported; this one begins afresh.
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
            # A worker outlived its chief, and the next one had the trial run again.
            return
        if trial_id in self._retry_queue:
            self._retry_queue.remove(trial_id)
        # keras-tuner's name for a trial that broke; it makes FAILED of it, too.
        error = trial.status == TrialStatus.INVALID
        with self._noting_failure():
            super().end_trial(trial)
        self._errors_in_a_row = self._errors_in_a_row + 1 if error else 0
        trial = self.trials[trial_id]
        if trial.status == TrialStatus.COMPLETED:
            best = self.get_best_trials()[0]
            print(
                f"Trial {trial_id} ends: {OBJECTIVE} {shown(trial.score)}, "
                f"best {shown(best.score)} in trial {best.trial_id}",
                flush=True,
            )
            return
        reason = read_error(Path(self._get_trial_dir(trial_id)))
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
            write_error(Path(self._get_trial_dir(trial.trial_id)), message)
            trial.status = TrialStatus.INVALID
            self.end_trial(trial)

    @contextlib.contextmanager
    def _noting_failure(self) -> Iterator[None]:
        # In a chief an exception ends no more than the request of a worker.
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
            # A length scale at the end of its range: nothing a user could change.
            warnings.simplefilter("ignore", ConvergenceWarning)
            found = super().populate_space(trial_id)
        if found["values"] and self._duplicate(found["values"]):
            return self._random_populate_space()
        return found


class GridOracle(Resumable, keras_tuner.Oracle):
    """The grid, in the order of its hyperparameters, the last one first.

    keras-tuner's own keeps where it is in memory alone: a search that was
    killed would end where it had stopped.
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
    space: dict[str, list | tuple],
    max_trials: int | None,
    epochs: int,
    seed: int,
) -> keras_tuner.Oracle:
    """The oracle that chooses the hyperparameters of each trial.

    Args:
        tuner: one of `TUNERS`.
        space: see `search_space.parse`.
        max_trials: trials to give out at most; None for all of a grid or of
            Hyperband's brackets.
        epochs: epochs of a trial, with Hyperband of those that get furthest.
        seed: of the choices.
    """
    common = {
        "objective": keras_tuner.Objective(OBJECTIVE, "min"),
        "hyperparameters": hyperparameters(grid(space) if tuner == "grid" else space),
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
        # keras-tuner's own number of random trials, three for each
        # hyperparameter, fixed ones too, can leave nothing to the model.
        free = sum(len(values) > 1 for values in space.values())
        initial = max(3, min(2 * free, max_trials // 2))
        oracle = BayesianOracle(
            max_trials=max_trials, num_initial_points=initial, **common
        )
    oracle.verbose = 0
    return oracle


class LanguageModelTuner(BaseTuner):
    """Runs each trial as `examples/train_lm.py` trains a model.

    A trial that was interrupted goes on from its last checkpoint; one that
    Hyperband chose to train further goes on from that of the trial before.

    Args:
        oracle: see `make_oracle`.
        directory: of the search.
        corpus: text to train on and to validate with.
        vocabulary: of the model.
        options: of the training, without what is searched.
        executions: how often each trial is run, with another seed each time;
            the mean counts.
    """

    def __init__(
        self,
        oracle: keras_tuner.Oracle,
        directory: Path,
        corpus: Corpus,
        vocabulary: Vocabulary,
        options: TrainingOptions,
        executions: int,
    ) -> None:
        super().__init__(
            oracle, directory=str(directory.parent), project_name=directory.name
        )
        self._corpus = corpus
        self._vocabulary = vocabulary
        self._options = options
        self._executions = executions
        self._keep_checkpoints = isinstance(oracle, HyperbandOracle)
        self._idle = False
        # Not as keras-tuner does it, if the file of the tuner, which says
        # nothing, is there: a kill in the first trial comes before it is.
        if not self._is_worker() and Path(oracle._get_oracle_fname()).exists():
            oracle.reload()

    def save(self) -> None:
        """Nothing: the oracle saves itself, and a tuner has no state."""

    def pre_create_trial(self) -> None:
        if self._idle:  # the oracle waits for other workers, and was just asked
            time.sleep(1)
        self._idle = True

    def on_trial_begin(self, trial: Trial) -> None:
        self._idle = False

    def on_trial_end(self, trial: Trial) -> None:
        directory = Path(self.get_trial_dir(trial.trial_id))
        if trial.message:
            write_error(directory, trial.message)
        self.oracle.end_trial(trial)
        if not self._keep_checkpoints:
            tidy(directory)

    def _try_run_and_update_trial(self, trial: Trial) -> None:
        # As keras-tuner does it, which prints a traceback for each divergence.
        try:
            self._run_and_update_trial(trial)
            trial.status = TrialStatus.COMPLETED
        except FatalError:
            raise
        except FailedTrialError as error:
            trial.status, trial.message = TrialStatus.FAILED, str(error)
        except Exception:  # noqa: BLE001 - kept in error.txt, and the oracle counts
            trial.status, trial.message = TrialStatus.INVALID, traceback.format_exc()

    def run_trial(self, trial: Trial) -> dict[str, float]:
        """Trains the trial's model.

        Returns:
            Means over the executions: `val_perplexity` of the best epoch,
            `best_epoch`, `epochs` trained and the `seconds` they took.
        """
        # That of a worker that was killed before it could tell the chief.
        (Path(self.get_trial_dir(trial.trial_id)) / "error.txt").unlink(missing_ok=True)
        values = trial.hyperparameters.values
        first = values.get("tuner/initial_epoch", 0)
        runs = []
        for n in range(self._executions):
            history = self._train(trial, n)
            best = min(history, key=lambda row: row[OBJECTIVE])
            seconds = round(sum(row["seconds"] for row in history[first:]), 1)
            run = {OBJECTIVE: best[OBJECTIVE], "best_epoch": best["epoch"]}
            runs.append(run | {"epochs": len(history), "seconds": seconds})
        means = {name: sum(run[name] for run in runs) / len(runs) for name in runs[0]}
        write_session(
            Path(self.get_trial_dir(trial.trial_id)) / "hparams",
            {name: values[name] for name in HYPERPARAMETERS},
            means[OBJECTIVE],
        )
        return means

    def _train(self, trial: Trial, execution: int) -> list[dict]:
        values = trial.hyperparameters.values
        name = f"execution_{execution}"
        directory = Path(self.get_trial_dir(trial.trial_id)) / name
        options = training_options(self._options, values)
        options = replace(options, seed=options.seed + execution)
        if "tuner/trial_id" in values and not (directory / "checkpoint.npz").exists():
            # Where its checkpoint is gone, this one trains its epochs, too: the
            # result is the same.
            before = Path(self.get_trial_dir(values["tuner/trial_id"])) / name
            for file in ("model.keras", "checkpoint.npz"):
                if (before / "checkpoint.npz").exists():
                    with atomic_write(directory / file) as temporary:
                        shutil.copyfile(before / file, temporary)
        # The models of the trials before, which reference cycles keep alive.
        keras.utils.clear_session()
        gc.collect()
        try:
            history = train_language_model(
                self._corpus,
                self._vocabulary,
                options,
                directory,
                resume=True,
                callbacks=[Progress(f"Trial {trial.trial_id}", options.epochs)],
                verbose=0,
            )
        except (OSError, ImportError) as error:
            # Not the trial's fault: it would befall all that follow.
            raise FatalError(f"{type(error).__name__}: {error}") from error
        if not math.isfinite(history[-1][OBJECTIVE]):
            last = history[-1]
            raise FailedTrialError(
                f"Diverged: {OBJECTIVE} {last[OBJECTIVE]} in epoch {last['epoch']}"
            )
        return history


def training_options(options: TrainingOptions, values: dict) -> TrainingOptions:
    """`options` with a trial's hyperparameters."""
    searched = {each.option: values[each.name] for each in HYPERPARAMETERS.values()}
    return replace(
        options, epochs=values.get("tuner/epochs", options.epochs), **searched
    )


class Progress(keras.callbacks.Callback):
    """Prints a line for each epoch."""

    def __init__(self, name: str, epochs: int) -> None:
        super().__init__()
        self._name = name
        self._epochs = epochs

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        print(
            f"  {self._name}, epoch {epoch + 1}/{self._epochs}: "
            f"perplexity {shown(float(logs['perplexity']))}, "
            f"{OBJECTIVE} {shown(float(logs[OBJECTIVE]))}",
            flush=True,
        )


def write_session(directory: Path, values: dict, objective: float) -> None:
    """The event file from which TensorBoard's HParams view has the trial."""
    from tensorboardX import SummaryWriter, summary

    metric = f"hparam/{OBJECTIVE}"
    shutil.rmtree(directory, ignore_errors=True)  # of a run that was killed
    with SummaryWriter(str(directory)) as writer:
        for part in summary.hparams(values, {metric: objective}):
            writer.file_writer.add_summary(part)
        writer.add_scalar(metric, objective)


def write_error(directory: Path, message: str) -> None:
    """Keeps why a trial failed; keras-tuner's workers do not tell their chief."""
    with atomic_write(directory / "error.txt") as temporary:
        temporary.write_text(message, "utf-8")


def read_error(directory: Path) -> str:
    """The last line of why a trial failed, empty if it did not."""
    path = directory / "error.txt"
    lines = path.read_text("utf-8").strip().splitlines() if path.exists() else []
    return lines[-1] if lines else ""


def tidy(directory: Path) -> None:
    """Keeps of an ended trial one model, that of the best execution, and the logs."""
    best, model = math.inf, None
    failed = (directory / "error.txt").exists()
    for execution in sorted(directory.glob("execution_*")):
        (execution / "checkpoint.npz").unlink(missing_ok=True)
        log, found = execution / "log.csv", execution / "model.keras"
        if found.exists() and not failed:
            with log.open(encoding="utf-8") as file:
                reached = min(float(row[OBJECTIVE]) for row in csv.DictReader(file))
            if reached < best:
                best, model = reached, found
    for found in directory.glob("execution_*/model.keras"):
        if found != model:
            found.unlink()
    if model is not None:
        model.replace(directory / "model.keras")
