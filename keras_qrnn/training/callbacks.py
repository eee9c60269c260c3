import math
import time
from pathlib import Path

import keras

from keras_qrnn._files import atomic_write, write_csv
from keras_qrnn.data import BPTTBatches
from keras_qrnn.training.checkpoint import save_checkpoint
from keras_qrnn.training.evaluation import Evaluator, weight_averages
from keras_qrnn.training.plots import plot_history, pyplot


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
    """Tells `BPTTBatches` with random lengths which epoch begins."""

    def __init__(self, batches: BPTTBatches) -> None:
        super().__init__()
        self._batches = batches

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._batches.epoch = epoch


class CarriedState(keras.callbacks.Callback):
    """Starts each epoch from a zero state, but a resumed one where it stopped."""

    def __init__(self, resumed_metrics: list | None = None) -> None:
        super().__init__()
        self._resumed_metrics = resumed_metrics

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        if self._resumed_metrics is None:
            self.model.reset_state()
            return
        # `fit` has just reset them; the epoch's means go on from the checkpoint's.
        metrics = self.model.metrics_variables
        for variable, value in zip(metrics, self._resumed_metrics, strict=True):
            variable.assign(value)
        self._resumed_metrics = None


class ValidationPerplexity(keras.callbacks.Callback):
    """Adds `val_perplexity` and `val_loss`, nats per token, to an epoch's logs."""

    def __init__(self, evaluator: Evaluator) -> None:
        super().__init__()
        self._evaluator = evaluator

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        sync(self.model)
        perplexity = self._evaluator()
        logs["val_perplexity"] = perplexity
        logs["val_loss"] = math.log(perplexity)


def is_over(history: list[dict], patience: int) -> bool:
    """Whether to train no further after the epochs of `history`.

    So it is where validation has diverged, of which nothing comes any more, and
    where it has not improved for `patience` epochs, if that is not 0. It is a
    function of the history alone, so that a resumed run stops where one that
    was never interrupted does.
    """
    perplexities = [row["val_perplexity"] for row in history]
    if not perplexities:
        return False
    if not math.isfinite(perplexities[-1]):
        return True
    best = perplexities.index(min(perplexities))
    return 0 < patience <= len(perplexities) - 1 - best


class Stopping(keras.callbacks.Callback):
    """Ends `fit` when `is_over`."""

    def __init__(self, history: list[dict], patience: int) -> None:
        super().__init__()
        self._history = history
        self._patience = patience

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if is_over(self._history, self._patience):
            self.model.stop_training = True


class RunFiles(keras.callbacks.Callback):
    """Writes what a run leaves in its directory.

    After each epoch: `model.keras` where validation is the best so far,
    `log.csv`, `training.png`, event files for TensorBoard in `logs/`; and, then
    and every `save_every` steps, `checkpoint.npz`.

    Args:
        directory: where to write.
        options: the run's options, kept in the checkpoint.
        history: the logs of the epochs before, extended in place.
        save_every: steps between two checkpoints.
        first_step: the step at which the first epoch begins.
        elapsed: seconds that the first epoch has taken before.
    """

    def __init__(
        self,
        directory: Path,
        options: dict,
        history: list[dict],
        save_every: int,
        first_step: int = 0,
        elapsed: float = 0.0,
    ) -> None:
        super().__init__()
        self._elapsed = elapsed
        self._directory = directory
        self._options = options
        self._history = history
        self._save_every = save_every
        self._first_step = first_step
        self._epoch = len(history)
        self._writer = None

    def on_train_begin(self, logs: dict | None = None) -> None:
        pyplot()  # what is missing is said now, not after an epoch
        try:
            # Keras's own callback needs TensorFlow.
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "Event files are written with tensorboardX, which is not installed: "
                "pip install '.[lm]' in a checkout of keras-qrnn"
            ) from error
        # What an interrupted run wrote beyond its checkpoint is not shown.
        self._writer = SummaryWriter(
            str(self._directory / "logs"), purge_step=len(self._history)
        )

    def on_train_end(self, logs: dict | None = None) -> None:
        self._writer.close()

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._started = time.monotonic()

    # At the start of the next batch: for a callback that acts at the end of one, Keras
    # reads the loss of every step, so that a GPU waits for Python and Python for it.
    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        step = self._first_step + batch
        if batch and step % self._save_every == 0:
            self._save(self._epoch, step)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        row = {"epoch": epoch + 1, **{name: float(logs[name]) for name in sorted(logs)}}
        row["seconds"] = round(self._seconds(), 1)  # validation included
        best = min((r["val_perplexity"] for r in self._history), default=math.inf)
        self._history.append(row)
        if row["val_perplexity"] < best:
            kept, averages = self.model, weight_averages(self.model)
            if averages is not None:
                kept = self.model.with_batch_size(self.model.batch_size)
                kept.copy_weights(averages)
            with atomic_write(self._directory / "model.keras") as temporary:
                kept.save(temporary)
        for name, value in row.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()
        write_csv(self._directory / "log.csv", self._history)
        self._epoch, self._first_step, self._elapsed = epoch + 1, 0, 0.0
        self._save(epoch + 1, 0)
        plot_history(self._directory / "training.png", self._history)

    def _seconds(self) -> float:
        return self._elapsed + time.monotonic() - self._started

    def _save(self, epoch: int, step: int) -> None:
        sync(self.model)
        meta = {"epoch": epoch, "step": step, "history": self._history}
        meta |= {"options": self._options, "seconds": self._seconds() if step else 0.0}
        save_checkpoint(self._directory / "checkpoint.npz", self.model, meta)
