"""Training that can be killed at any moment and goes on as if it had not been."""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_qrnn.training.callbacks import CarriedState, RunFiles, Stopping, run_meta
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

    A run that was killed and goes on ends with the weights of one that never was.

    Args:
        model: compiled, its optimizer built, its weights those that a run starts
            from.
        batches: gives what `fit` takes, the batches of an epoch from a given step on.
            A callback may change them from epoch to epoch, but not their number.
        run: the directory, held by this process.
        objective: chooses the epoch whose model is kept.
        record: what makes two runs the same; JSON.
        goes_on: whether to go on from the checkpoint; see `RunDirectory.check`.
        epochs: epochs in all, those of the checkpoint included.
        save_every: steps between two checkpoints; see `RunFiles`.
        patience: epochs without improvement after which training ends; 0: never.
        callbacks: called before the run's files are written. They add to the logs
            what the objective names.
        last_callbacks: called after all others.
        kept: gives the model to keep, of the one that is trained.
        panels: what `training.png` shows beside the learning rate.
        history: a list that is filled with the logs of each epoch, for callbacks that
            look at those before.
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
        metrics = [keras.ops.convert_to_numpy(v) for v in model.metrics_variables]
        if verbose:
            print(f"Going on after {epoch} epochs and {step} steps", flush=True)
    else:
        # From now on the directory holds a run: `model.keras` comes before the
        # checkpoint of its epoch.
        save_checkpoint(run.checkpoint, model, run_meta(record, history))

    def fit(last_epoch: int, step: int, metrics: list | None, elapsed: float) -> None:
        files = RunFiles(
            run, objective, record, history, save_every, step, elapsed, kept, panels,
            patience,
        )  # fmt: skip
        model.fit(
            batches(step),
            initial_epoch=epoch,
            epochs=last_epoch,
            shuffle=False,
            verbose=verbose,
            callbacks=[
                CarriedState(metrics),
                *callbacks,
                files,
                Stopping(objective, history, patience),
                *last_callbacks,
            ],
        )

    if step:  # the rest of the epoch that was interrupted
        fit(epoch + 1, step, metrics, elapsed)
        epoch += 1
        # `fit` ends with the averages as weights.
        load_checkpoint(run.checkpoint, model)
    if epoch < epochs and not objective.is_over(history, patience):
        fit(epochs, 0, None, 0.0)
    return history
