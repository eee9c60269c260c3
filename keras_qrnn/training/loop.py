"""The loop over epochs. It can be killed at any moment and resumed exactly."""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_qrnn._processes import is_first, wait_for_all
from keras_qrnn.training.callbacks import (
    CarriedState,
    OneEpoch,
    RunFiles,
    SaveWhenStopped,
    Stopping,
    run_meta,
)
from keras_qrnn.training.checkpoint import load_checkpoint, save_checkpoint
from keras_qrnn.training.objective import Objective
from keras_qrnn.training.plots import Panel
from keras_qrnn.training.run_directory import RunDirectory


def train(
    model: keras.Model,
    batches: Callable[[int], Any],
    run: RunDirectory,
    objective: Objective,
    record: dict,
    *,
    goes_on: bool,
    epochs: int,
    save_every: int,
    patience: int = 0,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    last_callbacks: Sequence[keras.callbacks.Callback] = (),
    kept: Callable[[keras.Model], keras.Model] = lambda model: model,
    panels: Sequence[Panel] = (),
    history: list[dict] | None = None,
    verbose: int | str = "auto",
) -> list[dict]:
    """Trains `model`, from its weights or from the checkpoint of `run`.

    A run that is killed and resumed ends with the same weights as a run that is not.

    Args:
        model: a compiled model whose optimizer is built. A new run starts from its
            weights.
        batches: takes a step of an epoch and returns the epoch's batches from that
            step on, in a form that `fit` takes. A callback may change the batches from
            epoch to epoch, but not their number.
        run: the run directory. This process must hold it.
        objective: chooses the epoch whose model is kept.
        record: options, data and backend, as JSON. Two runs are the same if their
            records are equal.
        goes_on: whether to resume from the checkpoint: see `RunDirectory.check`.
        epochs: number of epochs, those before the checkpoint included.
        save_every: steps between two checkpoints: see `RunFiles`.
        patience: epochs without improvement before training ends. 0: it never does.
        callbacks: called before the run's files are written. They add the objective's
            metric to the logs.
        last_callbacks: called after the run's files are written. One may end `fit`.
        kept: takes the trained model and returns the model to save.
        panels: the pictures of `training.png` beside the learning rate.
        history: a list to fill with the logs of each epoch, for callbacks that read
            the epochs before.
        verbose: as in `keras.Model.fit`.

    Returns:
        The logs of each epoch.

    Raises:
        ValueError: if the checkpoint is damaged or of another model.
        OSError: if the directory cannot be written.
    """
    history = [] if history is None else history
    epoch, step, metrics, elapsed = 0, 0, None, 0.0
    if goes_on:
        meta = load_checkpoint(run.checkpoint, model)
        epoch, step, history[:] = meta["epoch"], meta["step"], meta["history"]
        elapsed = meta["seconds"]
        if is_first():
            run.settle(epoch)
        wait_for_all("the files are those of the checkpoint")
        metrics = [keras.ops.convert_to_numpy(v) for v in model.metrics_variables]
        if verbose:
            print(f"Going on after {epoch} epochs and {step} steps", flush=True)
    else:
        # This marks the directory as a run from the start.
        save_checkpoint(run.checkpoint, model, run_meta(record, history))

    def fit(
        step: int = 0,
        metrics: list | None = None,
        elapsed: float = 0.0,
        ends: Sequence[keras.callbacks.Callback] = (),
    ) -> None:
        files = RunFiles(
            run, objective, record, history, save_every, step, elapsed, kept, panels,
            patience,
        )  # fmt: skip
        model.fit(
            batches(step),
            initial_epoch=epoch,
            epochs=epochs,
            shuffle=False,
            verbose=verbose,
            callbacks=[
                CarriedState(metrics),
                *callbacks,
                files,
                Stopping(objective, history, patience),
                *last_callbacks,
                *ends,
                SaveWhenStopped(files),
            ],
        )

    if step:  # the rest of the epoch that was interrupted
        rest = OneEpoch()
        fit(step, metrics, elapsed, [rest])
        if rest.was_stopped:
            return history
        epoch += 1
        # `fit` ends with the averages in place of the weights: restore the weights.
        load_checkpoint(run.checkpoint, model)
    if epoch < epochs and not objective.is_over(history, patience):
        fit()
    return history
