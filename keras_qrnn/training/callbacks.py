"""What happens between the epochs of a training: rates, batches, averages, logs."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_qrnn._files import atomic_write, write_csv
from keras_qrnn._processes import is_first, wait_for_all
from keras_qrnn.data import EpochBatches
from keras_qrnn.training.checkpoint import save_checkpoint
from keras_qrnn.training.objective import Objective
from keras_qrnn.training.plots import Panel, plot_history, pyplot
from keras_qrnn.training.run_directory import RunDirectory


def sync(model: keras.Model) -> None:
    """Brings a model's variables up to date from within `fit`."""
    if keras.config.backend() == "jax":
        model.jax_state_sync()  # during an epoch they lag behind the training state


def learning_rate_at(
    epoch: int, rate: float, decay: float, constant_epochs: int
) -> float:
    """`rate` for the first epochs, then times `decay` with each further one.

    Args:
        epoch: counted from 0.
        rate: that of the first epochs.
        decay: a factor.
        constant_epochs: number of the first epochs.
    """
    return rate * decay ** max(0, epoch + 1 - constant_epochs)


def learning_rate_schedule(
    rate: float, decay: float, constant_epochs: int = 6
) -> keras.callbacks.LearningRateScheduler:
    """Sets the optimizer's rate to `learning_rate_at` each epoch."""

    def schedule(epoch: int, _: float | None = None) -> float:
        return learning_rate_at(epoch, rate, decay, constant_epochs)

    return keras.callbacks.LearningRateScheduler(schedule)


class BatchesOfTheEpoch(keras.callbacks.Callback):
    """Tells the batches which epoch begins."""

    def __init__(self, batches: EpochBatches) -> None:
        super().__init__()
        self._batches = batches

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._batches.epoch = epoch


class LoggedRate(keras.callbacks.Callback):
    """Adds the optimizer's learning rate after the last step to an epoch's logs."""

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if logs is not None:
            sync(self.model)
            logs["learning_rate"] = float(self.model.optimizer.learning_rate)


def has_stalled(values: list[float], epochs: int) -> bool:
    """The non-monotonic criterion of arXiv 1708.02182, section 3.

    Args:
        values: the validated metric of each epoch. Lower is better.
        epochs: positive integer, a number of epochs.

    Returns:
        Whether the last value is worse than the best of earlier values. The `epochs`
        values just before the last are left out.
    """
    earlier = values[:-1][:-epochs]
    return bool(earlier) and values[-1] > min(earlier)


class AverageAfterStall(keras.callbacks.Callback):
    """Lets the optimizer average the weights as soon as validation stalls.

    With `keras_qrnn.training.optimizers.SGD` this is the NT-ASGD of arXiv 1708.02182.
    The optimizer holds the start of the average in a variable. The criterion depends on
    the history alone. So a resumed run has the same average as an uninterrupted one.

    Args:
        objective: the validated metric and its direction.
        epochs: see `has_stalled`.
        history: the logs of the epochs before `fit`, read when it begins.
    """

    def __init__(
        self, objective: Objective, epochs: int, history: Sequence[dict] = ()
    ) -> None:
        super().__init__()
        self._objective = objective
        self._epochs = epochs
        self._history = history
        self._values: list[float] = []

    def on_train_begin(self, logs: dict | None = None) -> None:
        self._values = [self._value(row) for row in self._history]

    def _value(self, row: dict) -> float:
        """The validated metric of an epoch. Lower is better."""
        sign = 1 if self._objective.direction == "min" else -1
        return sign * row[self._objective.name]

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if logs is None:
            return
        values = self._values
        values.append(self._value(logs))
        sync(self.model)
        # With mixed_float16 Keras wraps the optimizer.
        optimizer = self.model.optimizer
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        if not optimizer.has_average_started and has_stalled(values, self._epochs):
            optimizer.start_average()


class CarriedState(keras.callbacks.Callback):
    """Starts each epoch from a zero state; a resumed epoch goes on where it stopped.

    Args:
        resumed_metrics: values of the model's metrics in the middle of the first
            epoch, in the order of `metrics_variables`. None if that epoch is new.
    """

    def __init__(self, resumed_metrics: list | None = None) -> None:
        super().__init__()
        self._resumed_metrics = resumed_metrics

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        if self._resumed_metrics is None:
            if hasattr(self.model, "reset_state"):
                self.model.reset_state()
            return
        # `fit` has just reset the metrics: they continue from the checkpoint's values.
        metrics = self.model.metrics_variables
        for variable, value in zip(metrics, self._resumed_metrics, strict=True):
            variable.assign(value)
        self._resumed_metrics = None


class Validation(keras.callbacks.Callback):
    """Adds what `evaluate` returns to the logs of each epoch.

    Args:
        evaluate: returns metrics by name, such as `{"val_perplexity": 80.1}`, under
            the model's present weights.
    """

    def __init__(self, evaluate: Callable[[], dict[str, float]]) -> None:
        super().__init__()
        self._evaluate = evaluate

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        sync(self.model)
        if logs is not None:
            logs.update(self._evaluate())


class Stopping(keras.callbacks.Callback):
    """Ends `fit` when the objective says that training is over.

    Args:
        objective: the metric that decides, and its direction.
        history: the logs of the epochs, which `RunFiles` extends.
        patience: epochs without improvement before training ends. 0: it never does.
    """

    def __init__(
        self, objective: Objective, history: list[dict], patience: int
    ) -> None:
        super().__init__()
        self._objective = objective
        self._history = history
        self._patience = patience

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if self._objective.is_over(self._history, self._patience):
            self.model.stop_training = True


class RunFiles(keras.callbacks.Callback):
    """Writes the files of a run.

    After each epoch it writes `log.csv`, event files for TensorBoard in `logs/`, and
    `model.keras` if the objective is the best so far. It writes `checkpoint.npz` every
    `save_every` steps and after each epoch, and `training.png` after each epoch.

    On a GPU an epoch can take less time than writing a large checkpoint. If
    `save_every` exceeds the steps of an epoch, these two files are therefore written
    after fewer epochs: when `save_every` steps have passed, and after the last epoch.
    Until then the best model has a name of its own, and `model.keras` is that of the
    checkpoint's epochs: see `RunDirectory.settle`. After a kill the best model is found
    all the same: see `RunDirectory.best_model`.

    Where several processes train together, process 0 writes. The others hand it what
    only they have.

    Args:
        run: the directory.
        objective: chooses the epoch whose model is kept.
        record: options, data and backend of the run, kept in the checkpoint.
        history: the logs of the epochs before, extended in place.
        save_every: steps between two checkpoints.
        first_step: the step at which the first epoch begins.
        elapsed: seconds that the first epoch took before it was interrupted.
        kept: takes the trained model and returns the model to save.
        panels: the pictures of `training.png`.
        patience: epochs without improvement before training ends. 0: it never does.
    """

    def __init__(
        self,
        run: RunDirectory,
        objective: Objective,
        record: dict,
        history: list[dict],
        save_every: int,
        first_step: int = 0,
        elapsed: float = 0.0,
        kept: Callable[[keras.Model], keras.Model] = lambda model: model,
        panels: Sequence[Panel] = (),
        patience: int = 0,
    ) -> None:
        super().__init__()
        self._patience = patience
        self._unsaved = 0  # epochs' steps since the last checkpoint
        self._run = run
        self._objective = objective
        self._record = record
        self._history = history
        self._save_every = save_every
        self._first_step = first_step
        self._elapsed = elapsed
        self._kept = kept
        self._panels = panels
        self._epoch = len(history)
        self._writer: Any = None
        self._writes = is_first()

    def on_train_begin(self, logs: dict | None = None) -> None:
        if not self._writes:
            return
        pyplot()  # a missing package is an error now, not after an epoch
        try:
            # Keras's own callback needs TensorFlow.
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "Event files are written with tensorboardX, which is not installed: "
                "pip install '.[lm]' in a checkout of keras-qrnn"
            ) from error
        # An interrupted run may have written more events than its checkpoint has, or
        # fewer. So its events are hidden, and the history is written anew.
        self._writer = SummaryWriter(str(self._run.events), purge_step=0)
        for row in self._history:
            self._write_scalars(row)
        self._writer.flush()

    def on_train_end(self, logs: dict | None = None) -> None:
        if self._writes:
            self._writer.close()

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._started = time.monotonic()

    # This acts at the start of the next batch. For a callback at the end of a batch,
    # Keras reads the loss of every step, and the GPU and Python wait for each other.
    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        step = self._first_step + batch
        if batch and step % self._save_every == 0:
            self._save(self._epoch, step)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        found = logs or {}
        row = {"epoch": epoch + 1, **{n: float(found[n]) for n in sorted(found)}}
        row["seconds"] = round(self._seconds(), 1)  # validation included
        self._history.append(row)
        if self._objective.best(self._history) == len(self._history) - 1:
            kept = self._kept(self.model)
            if self._writes:
                with atomic_write(self._run.newer_model(epoch + 1)) as temporary:
                    kept.save(temporary)
        if self._writes:
            write_csv(self._run.log, self._history)
        self._unsaved += self._first_step + (self.params["steps"] or 1)
        is_last = epoch + 1 == self.params["epochs"] or self._objective.is_over(
            self._history, self._patience
        )
        self._epoch, self._first_step, self._elapsed = epoch + 1, 0, 0.0
        if is_last or self._unsaved >= self._save_every:
            self.save_epoch()
        if self._writes:
            self._write_scalars(row)
            self._writer.flush()

    def save_epoch(self) -> None:
        """Writes the checkpoint and `training.png` of the epoch that has ended.

        It does nothing if they are written already.
        """
        if self._unsaved:
            self._save(self._epoch, 0)
            if self._writes:
                plot_history(self._run.plot, self._history, self._panels)
            self._unsaved = 0

    def _write_scalars(self, row: dict) -> None:
        for name, value in row.items():
            self._writer.add_scalar(name, value, row["epoch"] - 1)

    def _seconds(self) -> float:
        return self._elapsed + time.monotonic() - self._started

    def _save(self, epoch: int, step: int) -> None:
        sync(self.model)
        seconds = self._seconds() if step else 0.0
        meta = run_meta(self._record, self._history, epoch, step, seconds)
        save_checkpoint(self._run.checkpoint, self.model, meta)
        if self._writes:
            self._run.settle(epoch)
        wait_for_all("the checkpoint is written")


class OneEpoch(keras.callbacks.Callback):
    """Ends `fit` after an epoch. It is called after all that may end `fit`.

    Attributes:
        was_stopped: whether another callback has ended `fit` after that epoch.
    """

    was_stopped = False

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.was_stopped = self.model.stop_training
        self.model.stop_training = True


class SaveWhenStopped(keras.callbacks.Callback):
    """Writes the checkpoint of the epoch after which another callback ends `fit`.

    Args:
        files: the callback that writes the run's files.
    """

    def __init__(self, files: RunFiles) -> None:
        super().__init__()
        self._files = files

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if self.model.stop_training:
            self._files.save_epoch()


def run_meta(
    record: dict, history: list[dict], epoch: int = 0, step: int = 0, seconds: float = 0
) -> dict:
    """The `meta` of a run's checkpoint.

    Args:
        record: options, data and backend of the run.
        history: the logs of the epochs that have ended.
        epoch: number of these epochs.
        step: steps of the next epoch that are done.
        seconds: seconds that these steps took.
    """
    return {
        "epoch": epoch,
        "step": step,
        "history": history,
        "options": record,
        "seconds": seconds,
    }
