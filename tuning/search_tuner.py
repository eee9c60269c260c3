"""keras-tuner's tuner for this package: runs the trials that an oracle chooses."""

import contextlib
import gc
import math
import shutil
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import keras_tuner
from keras_tuner.engine.base_tuner import BaseTuner
from keras_tuner.engine.trial import Trial, TrialStatus
from keras_tuner.errors import FailedTrialError, FatalError
from keras_tuner.oracles import HyperbandOracle

from keras_qrnn._files import atomic_write
from keras_qrnn.training.run_directory import DOING, RunDirectory, refuse_if_held
from search_directory import check_zip, tidy, trial_directory, write_error
from search_oracles import hyperparameters_of
from search_space import shown
from search_task import Task, trial_options

# Seconds between two looks whether a trial's old worker has ended.
WAIT = 1.0
# Minutes that it may write nothing.
MAX_WAIT = 60
# A function that trains with the options in the directory, or goes on there. It returns
# the logs of each epoch.
Train = Callable[[Any, Path, Sequence[keras.callbacks.Callback]], list[dict]]


class TrialTuner(BaseTuner):
    """Runs each trial as the example's script trains a model.

    An interrupted trial goes on from its last checkpoint. A trial that Hyperband trains
    further goes on from the last checkpoint of the trial before.

    Args:
        oracle: see `make_oracle`.
        directory: the directory of the search.
        task: what is searched.
        train: the function that trains a model.
        options: options of the training, without the hyperparameters.
        executions: how often each trial is run, with another seed each time. The
            mean of the runs counts.
        verbose: 2 prints a line for each epoch.
        max_wait: minutes that a trial waits for an old worker that writes nothing.
    """

    def __init__(
        self,
        oracle: keras_tuner.Oracle,
        directory: Path,
        task: Task,
        train: Train,
        options: Any,
        executions: int,
        verbose: int = 2,
        max_wait: int = MAX_WAIT,
    ) -> None:
        super().__init__(
            oracle, directory=str(directory.parent), project_name=directory.name
        )
        self._path = directory
        self._task = task
        self._objective = task.objective
        self._train = train
        self._options = options
        self._executions = executions
        self._verbose = verbose
        self._max_wait = max_wait
        self._keep_checkpoints = isinstance(oracle, HyperbandOracle)
        self._idle = False
        if not self._is_worker():
            oracle.resume()

    def save(self) -> None:
        """Does nothing: the oracle saves itself, and the tuner has no state."""

    def reload(self) -> None:
        """Does nothing: see `save`."""

    def pre_create_trial(self) -> None:
        if self._idle:  # the oracle was just asked, and waits for other workers
            time.sleep(1)
        self._idle = True

    def on_trial_begin(self, trial: Trial) -> None:
        self._idle = False

    def on_trial_end(self, trial: Trial) -> None:
        directory = trial_directory(self._path, trial.trial_id)
        if trial.message:
            write_error(directory, trial.message)
        self.oracle.end_trial(trial)
        if not self._keep_checkpoints:
            tidy(directory, self._objective)

    def _try_run_and_update_trial(self, trial: Trial) -> None:
        # keras-tuner's own prints a traceback for each divergence.
        try:
            self._run_and_update_trial(trial)
            trial.status = TrialStatus.COMPLETED
        except (FatalError, BrokenPipeError):  # the latter: nobody reads the output
            raise
        except (OSError, ImportError) as error:
            # Not the trial's fault: it would also end all later trials.
            raise FatalError(f"{type(error).__name__}: {error}") from error
        except FailedTrialError as error:
            trial.status, trial.message = TrialStatus.FAILED, str(error)
        except Exception:  # noqa: BLE001 - kept in error.txt, and the oracle counts
            trial.status, trial.message = TrialStatus.INVALID, traceback.format_exc()

    def run_trial(self, trial: Trial) -> dict[str, float]:
        """Trains the trial's model.

        Returns:
            Means over the executions: the objective of the best epoch, `best_epoch`,
            `epochs` trained and the `seconds` they took.
        """
        directory = trial_directory(self._path, trial.trial_id)
        # A worker that was killed may have left one that its chief never saw.
        (directory / "error.txt").unlink(missing_ok=True)
        values = trial.hyperparameters.values
        first = values.get("tuner/initial_epoch", 0)
        runs = []
        for n in range(self._executions):
            history = self._execute(trial, n)
            best = history[self._objective.best(history)]
            seconds = round(sum(row["seconds"] for row in history[first:]), 1)
            name = self._objective.name
            run = {name: best[name], "best_epoch": best["epoch"]}
            runs.append(run | {"epochs": len(history), "seconds": seconds})
        means = {name: sum(run[name] for run in runs) / len(runs) for name in runs[0]}
        write_session(
            directory / "hparams", hyperparameters_of(trial), name, means[name]
        )
        return means

    def _execute(self, trial: Trial, execution: int) -> list[dict]:
        values = trial.hyperparameters.values
        name = f"execution_{execution}"
        directory = trial_directory(self._path, trial.trial_id) / name
        options = trial_options(self._options, values)
        options = options.changed(seed=options.seed + execution)
        run = RunDirectory(directory)
        self._wait_for(directory, trial.trial_id)
        if not run.checkpoint.exists():
            # Without a checkpoint the training begins anew.
            run.model.unlink(missing_ok=True)
            if "tuner/trial_id" in values:
                before = trial_directory(self._path, values["tuner/trial_id"]) / name
                _copy_run(RunDirectory(before), run)
        if run.checkpoint.exists():
            try:
                check_zip(run.checkpoint, "Delete it to train anew")
            except ValueError as error:  # not the trial's fault
                raise FatalError(str(error)) from error
        # Reference cycles keep the models of the trials before alive.
        keras.utils.clear_session()
        gc.collect()
        callbacks = []
        if self._verbose > 1:
            progress = Progress(trial.trial_id, options.epochs, self._task.shown)
            callbacks.append(progress)
        history = self._train(options, directory, callbacks)
        last = history[-1]
        value = last[self._objective.name]
        if not math.isfinite(value):
            raise FailedTrialError(
                f"Diverged: {self._objective.name} {value} in epoch {last['epoch']}"
            )
        return history

    def _wait_for(self, directory: Path, trial_id: str) -> None:
        """Returns when no other process trains in `directory`.

        After a chief was started again, a trial's old worker, on another machine, may
        still train it. Each checkpoint and each epoch that it writes starts the time
        limit anew.

        Raises:
            FatalError: if it holds the directory and has written nothing for
                `max_wait` minutes.
        """
        seen, since = None, 0.0
        while True:
            try:
                refuse_if_held(directory, DOING)
                return
            except BlockingIOError as error:
                if seen is None and self._verbose:
                    print(f"Trial {trial_id} waits: its old worker trains", flush=True)
                written = _written(directory)
                if written != seen:
                    seen, since = written, time.monotonic()
                elif time.monotonic() - since > 60 * self._max_wait:
                    raise FatalError(
                        f"Trial {trial_id} waits for its old worker. {error}, which "
                        f"has written nothing for {self._max_wait} minutes "
                        "(--max_wait). End that process"
                    ) from error
                time.sleep(WAIT)


def _written(directory: Path) -> dict[str, int]:
    """The files of a directory, and when each was written.

    The times are those of the file system. They are only compared with each other:
    another machine's clock may be wrong.
    """
    found = {}
    for file in directory.iterdir():
        with contextlib.suppress(FileNotFoundError):  # a temporary file
            found[file.name] = file.stat().st_mtime_ns
    return found


def _copy_run(source: RunDirectory, run: RunDirectory) -> None:
    """Copies a run to go on with, if its checkpoint is there.

    Without one the trial trains the epochs before, too: the result is the same.
    """
    if source.checkpoint.exists():
        for file, copy in (
            (source.model, run.model),
            (source.checkpoint, run.checkpoint),
        ):
            if file.exists():
                with atomic_write(copy) as temporary:
                    shutil.copyfile(file, temporary)


class Progress(keras.callbacks.Callback):
    """Prints a line for each epoch of a trial, with the metrics of these names."""

    def __init__(self, trial_id: str, epochs: int, names: Sequence[str]) -> None:
        super().__init__()
        self._trial_id = trial_id
        self._epochs = epochs
        self._names = names

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        found = ", ".join(f"{name} {shown(float(logs[name]))}" for name in self._names)
        print(
            f"  Trial {self._trial_id}, epoch {epoch + 1}/{self._epochs}: {found}",
            flush=True,
        )


def write_session(directory: Path, values: dict, name: str, objective: float) -> None:
    """Writes the event file from which TensorBoard's HParams view has the trial.

    Args:
        directory: where to write it.
        values: the hyperparameters.
        name: the objective's name.
        objective: its value.
    """
    from tensorboardX import SummaryWriter, summary

    metric = f"hparam/{name}"
    shutil.rmtree(directory, ignore_errors=True)  # of a run that was killed
    with SummaryWriter(str(directory)) as writer:
        for part in summary.hparams(values, {metric: objective}):
            writer.file_writer.add_summary(part)
        writer.add_scalar(metric, objective)
