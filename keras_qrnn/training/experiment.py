"""The base class of a task (data, options, model), and how any task is trained."""

import abc
import contextlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import keras

from keras_qrnn._processes import (
    decided_by_first,
    is_first,
    join_processes,
    parts_of_a_batch,
    whole_array,
)
from keras_qrnn.data import EpochBatches
from keras_qrnn.distribution import (
    distribution_of,
    refuse_elsewhere,
    scope_of,
    undistributed,
)
from keras_qrnn.training.callbacks import (
    AverageAfterStall,
    BatchesOfTheEpoch,
    LoggedRate,
    Validation,
    learning_rate_at,
    learning_rate_schedule,
)
from keras_qrnn.training.evaluation import weights_to_evaluate
from keras_qrnn.training.loop import train
from keras_qrnn.training.objective import Objective
from keras_qrnn.training.options import RunOptions, defaults_of, with_current_names
from keras_qrnn.training.plots import Panel
from keras_qrnn.training.run_directory import (
    DOING,
    RunDirectory,
    difference_between,
    held,
    refuse_if_held,
)

# The options that decide each epoch's learning rate: see `learning_rate_at`.
SCHEDULE = ("learning_rate", "learning_rate_decay", "constant_epochs")
# Bytes of a weight in a training: the weight, its gradient, and the copy that goes into
# a checkpoint, each in float32. An optimizer may need more.
BYTES_OF_A_WEIGHT = 3 * 4
# The options that a resumed run may change.
FREE = ("epochs", "save_every", "early_stopping", "distribution")


class Experiment(abc.ABC):
    """What a training needs to know of a task, its data and its options.

    A task has a subclass. `train_experiment` trains it.

    Attributes:
        options: of the training and the model.
        vocabulary: that of the training data. A subclass sets it.
        objective: chooses the epoch whose model is kept.
        watched: the training metric that is no longer finite after a divergence.
        panels: the pictures of `training.png` beside the learning rate.
        paths: the options that are paths.
        scales: the options that set how large the initial weights are.
        sizes: values, by name, that come from the data or from another run.
        revision: the commit of the hub's data set. With HF_HUB_OFFLINE the revision
            that was asked for. None for other data.
        summary: the data in a line.

    Raises:
        ValueError: if the backend has no such `distribution`.
    """

    objective: ClassVar[Objective]
    watched: ClassVar[str] = "loss"
    panels: ClassVar[tuple[Panel, ...]] = ()
    paths: ClassVar[tuple[str, ...]] = ()
    scales: tuple[str, ...] = ()

    vocabulary: Any

    def __init__(self, options: Any, revision: str | None = None) -> None:
        join(options)
        self.options = options
        self.revision = revision
        self.sizes: dict[str, Any] = {}

    @property
    @abc.abstractmethod
    def summary(self) -> str: ...

    @abc.abstractmethod
    def data(self) -> dict[str, Any]:
        """Values, as JSON, by which data are compared: `data` is a fingerprint."""

    @abc.abstractmethod
    def prepare(self, goes_on: bool) -> None:
        """Checks the options against the data and the machine. Writes nothing.

        It reads what a new run starts from.

        Args:
            goes_on: whether the run resumes from a checkpoint.
        """

    @abc.abstractmethod
    def batches(self) -> EpochBatches:
        """The batches to train on."""

    @abc.abstractmethod
    def model(self, steps_per_epoch: int | None = None) -> keras.Model:
        """A model that is built and compiled, its optimizer built, with new weights."""

    def start(self, model: keras.Model) -> keras.Model:
        """`model` with the weights of another run, where the options say so."""
        return model

    @abc.abstractmethod
    def validation(self, model: keras.Model) -> Callable[[], dict[str, float]]:
        """A function that evaluates the model's present weights, or their averages.

        It returns metrics by name, the objective's among them. The objective's is not
        finite if the model has diverged.
        """

    def kept(self, model: Any) -> keras.Model:
        """The model to save: a copy, with averaged weights if there are any.

        The copy is not compiled: AdamW's moments would make its file three times as
        large. The checkpoint holds what a resumed run needs.
        """
        values = weights_to_evaluate(model)
        # Whole weights may not fit into the memory of one of several devices.
        divided = self.options.distribution is not None
        device = keras.device("cpu") if divided else contextlib.nullcontext()
        with undistributed(), device:
            kept = self.copy_of(model)
            kept.copy_weights(map(whole_array, values))
        return kept

    def copy_of(self, model: Any) -> keras.Model:
        """A copy of the model that does not depend on how it was trained."""
        return model.copy()

    def save(self, directory: Path) -> None:
        """Writes the files that the model needs beside its own: its vocabulary."""
        self.vocabulary.save(RunDirectory(directory).vocabulary)

    def callbacks(self) -> Sequence[keras.callbacks.Callback]:
        """Further callbacks, called before the run's files are written."""
        return ()

    def record(self) -> dict[str, Any]:
        """Options, data and backend. Two runs are the same if all are equal."""
        record = asdict(self.options) | self.data()
        if self.sizes:
            record["sizes"] = self.sizes
        record["backend"] = keras.config.backend()  # each draws other random numbers
        return self._absolute(record)

    def difference(self, meta: dict, expected: dict) -> str | None:
        """How a checkpoint's run differs from the run to start. None if it does not."""
        kind = type(self.options)
        found = with_current_names(meta["options"], kind)
        # What an old checkpoint lacks was added later: the default was in use.
        names = expected.keys() & {"data", "backend", "sizes"}
        added = {name: expected[name] for name in names}
        found = self._absolute(defaults_of(kind) | added | found)
        free = set(FREE)
        begun = len(meta["history"]) + bool(meta["step"])
        # The rates of one cycle depend on the number of epochs.
        if begun and expected["schedule"] == "one_cycle":
            free -= {"epochs"}
        # The learning rates of later epochs may change.
        elif all(
            _learning_rate(found, epoch) == _learning_rate(expected, epoch)
            for epoch in range(begun)
        ):
            free |= set(SCHEDULE)
        if difference := difference_between(found, expected, free):
            return difference
        if begun > expected["epochs"]:
            return (
                f"begun {begun} epochs already. Received: epochs={expected['epochs']}"
            )
        return None

    def _absolute(self, record: dict[str, Any]) -> dict[str, Any]:
        """The record with paths that are the same from any working directory."""
        given = {name: record[name] for name in self.paths if record[name] is not None}
        return record | {name: str(Path(p).resolve()) for name, p in given.items()}

    def why_diverged(self) -> str:
        """Advice after a run whose loss was not finite from the first epoch on.

        One step is tried with a learning rate near 0. If the loss is then not finite,
        the initial weights are the cause. Otherwise the learning rate is the cause, or
        the weight decay: weights grow if learning rate times weight decay is above 1.

        Returns:
            A sentence with the options to change and what was received.
        """
        options = self.options
        keras.utils.set_random_seed(options.seed)
        self.options = options.changed(
            learning_rate=1e-30, schedule="decay", weight_average=0.0
        )
        try:
            model = self.start(self.model())
        finally:
            self.options = options
        batch = self.batches()[0]
        model.train_on_batch(*batch)
        logs = model.test_on_batch(*batch, return_dict=True)
        names = ["learning_rate"]
        if options.grad_clip is not None:
            names.append("grad_clip")
        what = f"The first batch is predicted with a finite {self.watched}"
        if not math.isfinite(logs[self.watched]):
            names = list(self.scales) or names
            what = f"The first batch is predicted with no finite {self.watched}"
        elif options.learning_rate * options.weight_decay > 1:
            names = ["learning_rate", "weight_decay"]
        if options.dtype_policy in ("float16", "mixed_float16"):
            names.append("dtype_policy")
        received = ", ".join(f"{name}={getattr(options, name)!r}" for name in names)
        others = "a smaller --" + " or --".join(n for n in names if n != "dtype_policy")
        if "dtype_policy" in names:
            others += ", or a --dtype_policy of a wider range"
        return f"{what}: expected {others}. Received: {received}"


def join(options: RunOptions) -> None:
    """Joins the other processes of a run. Call it before anything is computed.

    Raises:
        ValueError: if the backend has no such `distribution`.
    """
    if options.distribution is not None:
        refuse_elsewhere(options.distribution)
        join_processes(options.seed)


def train_experiment(
    experiment: Experiment,
    save_path: str | os.PathLike,
    resume: bool = False,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    verbose: int | str = "auto",
) -> list[dict]:
    """Trains a model and keeps the best by validation in `save_path`.

    All options are checked first. A call that is refused writes nothing.

    Args:
        experiment: the task, its data and its options.
        save_path: the run directory: see `RunFiles` for its files.
        resume: whether to resume from the checkpoint in `save_path`. The run then ends
            with the same weights as a run that was never interrupted.
        callbacks: further Keras callbacks, called after the run's files are written.
        verbose: as in `keras.Model.fit`.

    Returns:
        The logs of each epoch.

    Raises:
        FileExistsError: if `save_path` holds a run and `resume` is False.
        ValueError: if the checkpoint is damaged or belongs to a run with other
            options; if the run to start from does not fit; if the options do not fit
            the data or the machine.
        OSError: if `save_path` cannot be written, or another process trains in it.
    """
    with scope_of(distribution_of(experiment.options.distribution)):
        return _train(experiment, save_path, resume, callbacks, verbose)


def _train(
    experiment: Experiment,
    save_path: str | os.PathLike,
    resume: bool,
    callbacks: Sequence[keras.callbacks.Callback],
    verbose: int | str,
) -> list[dict]:
    """`train_experiment` under the distribution that is set.

    All processes train. Process 0 writes the files.
    """
    options = experiment.options
    _check_batch_size(options.batch_size)
    run = RunDirectory(Path(save_path))
    record = experiment.record()

    def difference(meta: dict) -> str | None:
        return experiment.difference(meta, record)

    def prepared(goes_on: bool) -> tuple[EpochBatches, keras.Model]:
        experiment.prepare(goes_on)
        keras.utils.set_random_seed(options.seed)
        batches = experiment.batches()
        model = experiment.model(len(batches))
        return batches, model if goes_on else experiment.start(model)

    def check() -> bool:
        refuse_if_held(run.path, DOING)
        return run.check(difference, resume)

    goes_on = decided_by_first(check)
    batches, model = prepared(goes_on)
    history: list[dict] = []

    def batches_from(step: int) -> Any:
        batches.start = step
        return batches.for_fit()

    with contextlib.ExitStack() as stack:

        def hold_and_check() -> bool:
            stack.enter_context(held(run.path, DOING))
            # Checked again: now no other process can write there.
            return run.check(difference, resume)

        if decided_by_first(hold_and_check) != goes_on:
            goes_on = not goes_on
            batches, model = prepared(goes_on)
        validation = Validation(experiment.validation(model))
        if is_first():
            experiment.save(run.path)
            if resume and not goes_on and verbose:
                print(f"{run.path} holds no run to go on with: a new one begins")
        return train(
            model,
            batches_from,
            run,
            experiment.objective,
            record,
            goes_on=goes_on,
            epochs=options.epochs,
            save_every=options.save_every,
            patience=options.early_stopping,
            callbacks=[
                BatchesOfTheEpoch(batches),
                _rate_callback(options),
                validation,
                *_average_callbacks(options, experiment.objective, history),
                *experiment.callbacks(),
            ],
            history=history,
            last_callbacks=callbacks,
            kept=experiment.kept,
            panels=experiment.panels,
            verbose=verbose if is_first() else 0,
        )


def _check_batch_size(batch_size: int) -> None:
    parts = parts_of_a_batch()
    if batch_size % parts:
        raise ValueError(
            f"Option `batch_size` must be a multiple of {parts}, the parts in which "
            f"the devices divide a batch. Received: batch_size={batch_size}"
        )


def has_diverged(experiment: Experiment, history: list[dict]) -> bool:
    """Whether the objective was finite in no epoch of `history`."""
    return experiment.objective.best(history) is None


def check_memory(needs: Mapping[str, int]) -> None:
    """Refuses a training that cannot fit the machine's own memory. Allocates nothing.

    It counts float32. Where a GPU trains, a checkpoint still passes through the
    machine's memory.

    Args:
        needs: bytes by what needs them: "`units` and `layers`: the weights".

    Raises:
        ValueError: if one of them is more than the memory of the machine.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for what, needed in needs.items():
        if needed > memory:
            raise ValueError(
                f"Options {what} must fit in the memory of this machine, "
                f"{memory / 2**30:.1f} GiB. Received: {needed / 2**30:.3g} GiB"
            )


def _average_callbacks(
    options: RunOptions, objective: Objective, history: list[dict]
) -> list[keras.callbacks.Callback]:
    if not options.average_trigger:
        return []
    return [AverageAfterStall(objective, options.average_trigger, history)]


def _rate_callback(options: RunOptions) -> keras.callbacks.Callback:
    if options.schedule == "one_cycle":
        return LoggedRate()  # the optimizer holds the schedule
    return learning_rate_schedule(
        options.learning_rate, options.learning_rate_decay, options.constant_epochs
    )


def _learning_rate(options: dict, epoch: int) -> float:
    return learning_rate_at(epoch, *(options[name] for name in SCHEDULE))
