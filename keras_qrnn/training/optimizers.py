"""The optimizer of a run: Keras's, with late averages and a scheduled momentum."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import keras
from keras import ops

from keras_qrnn._types import Tensor
from keras_qrnn.training.options import RunOptions
from keras_qrnn.training.schedules import OneCycle

LearningRateSchedule: TypeAlias = keras.optimizers.schedules.LearningRateSchedule


class SummedGradients:
    """A mixin for optimizers that add up what a gradient has for one weight.

    On TensorFlow the gradient of an embedding is a `tf.IndexedSlices`: a list of rows,
    one for each token. A word that occurs twice has two. Keras's optimizers would clip
    by the norm of that list, and AdamW and RMSprop would square each row by itself.
    """

    def apply(
        self,
        grads: Sequence[Tensor],
        trainable_variables: Sequence[keras.Variable] | None = None,
    ) -> None:
        if keras.config.backend() == "tensorflow":
            import tensorflow as tf

            grads = [
                tf.convert_to_tensor(each)
                if isinstance(each, tf.IndexedSlices)
                else each
                for each in grads
            ]
        super().apply(grads, trainable_variables)


class SeparateAverage:
    """A mixin for optimizers whose averages share no memory with the weights.

    Keras lets the two share it at the end of `fit`. On JAX the next `fit` gives both to
    a compiled step, which refuses to take the same memory twice.
    """

    def _overwrite_model_variables_with_average_value(
        self, trainable_variables: list[keras.Variable]
    ) -> None:
        super()._overwrite_model_variables_with_average_value(trainable_variables)
        if keras.config.backend() == "jax":
            for variable in trainable_variables:
                variable.assign(ops.copy(variable.value))


class TriggeredAverage(SeparateAverage):
    """A mixin for optimizers that average the weights from a step on.

    Keras's optimizers keep exponential moving averages of the weights (`use_ema`). With
    `triggered_average` these are plain means instead, as in averaged SGD: means over
    all steps since `start_average` was called. Before, they equal the weights. The step
    is a variable of the optimizer, so a checkpoint holds it. With
    `gradient_accumulation_steps` a step is an update of the weights.
    """

    def __init__(
        self, *args: Any, triggered_average: bool = False, **kwargs: Any
    ) -> None:
        if triggered_average:
            kwargs["use_ema"] = True
        super().__init__(*args, **kwargs)
        self.triggered_average = triggered_average

    def build(self, variables: list[keras.Variable]) -> None:
        if self.built:
            return
        super().build(variables)
        if self.triggered_average:
            self.average_start = self.add_variable(
                shape=(),
                initializer=keras.initializers.Constant(-1),
                dtype="int32",
                name="average_start",
            )

    @property
    def has_average_started(self) -> bool:
        """Whether the weights are being averaged."""
        return int(self.average_start) >= 0

    def start_average(self) -> None:
        """Averages the weights from the next step on."""
        self.average_start.assign(int(self.iterations))

    def _update_model_variables_moving_average(
        self, trainable_variables: list[keras.Variable]
    ) -> None:
        if not self.triggered_average:
            super()._update_model_variables_moving_average(trainable_variables)
            return
        # The number of steps averaged before this one. There are none before the start.
        start = ops.convert_to_tensor(self.average_start)
        count = ops.cast(ops.cast(self.iterations, "int32") - start, "float32")
        weight = 1.0 / (count + 1.0)
        if accumulated := self.gradient_accumulation_steps:
            # Only the last of these calls has updated the weights. Keras averages in
            # each. Before the first update the average is the weights, as it began.
            is_update = (self._iterations + 1) % accumulated == 0
            weight = ops.where(ops.logical_or(is_update, count == 0), weight, 0.0)
        weight = ops.where(start < 0, 1.0, weight)
        averages = self._model_variables_moving_average
        for variable, average in zip(trainable_variables, averages, strict=True):
            if average is not None:
                old = ops.cast(ops.convert_to_tensor(average), "float32")
                new = ops.cast(ops.convert_to_tensor(variable), "float32")
                # With a weight of 1 the average equals the variable to the bit.
                mean = (1.0 - weight) * old + weight * new
                average.assign(ops.cast(mean, average.dtype))

    def get_config(self) -> dict:
        return {**super().get_config(), "triggered_average": self.triggered_average}


class LayerRates:
    """A mixin for optimizers that train some variables slower, or later, than others.

    Args:
        rates: a factor on the learning rate for each trainable variable, in their
            order. Defaults to 1.
        first_steps: the first step that changes the variable, for each trainable
            variable, in their order. Defaults to 0.

    Raises:
        ValueError: if there is a weight decay too. Keras decays all variables at one
            rate, from the first step on. `AdamW` decays unless `weight_decay=0`.
    """

    def __init__(
        self,
        *args: Any,
        rates: Sequence[float] | None = None,
        first_steps: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.weight_decay and not (rates is None and first_steps is None):
            raise ValueError(
                "Argument `weight_decay` must be 0 (of AdamW) or be left out (of SGD "
                "and RMSprop) where `rates` or `first_steps` are given. Received: "
                f"weight_decay={self.weight_decay!r}"
            )
        self.rates = None if rates is None else list(rates)
        self.first_steps = None if first_steps is None else list(first_steps)

    def update_step(
        self, gradient: Tensor, variable: keras.Variable, learning_rate: Tensor
    ) -> None:
        index = self._get_variable_index(variable)
        if self.rates is not None:
            learning_rate = learning_rate * self.rates[index]
        if self.first_steps is not None:
            step = ops.cast(self.iterations, "int32")
            is_trained = ops.cast(step >= self.first_steps[index], "float32")
            learning_rate = learning_rate * is_trained
        super().update_step(gradient, variable, learning_rate)

    def get_config(self) -> dict:
        config = {"rates": self.rates, "first_steps": self.first_steps}
        return {**super().get_config(), **config}


@keras.saving.register_keras_serializable(package="keras_qrnn")
class RMSprop(LayerRates, SeparateAverage, SummedGradients, keras.optimizers.RMSprop):
    """`keras.optimizers.RMSprop` with a rate for each variable.

    Args:
        rates, first_steps: as in `LayerRates`.
        *args, **kwargs: those of `keras.optimizers.RMSprop`.
    """


@keras.saving.register_keras_serializable(package="keras_qrnn")
class SGD(LayerRates, TriggeredAverage, SummedGradients, keras.optimizers.SGD):
    """`keras.optimizers.SGD` that can average the weights from a step on.

    With `triggered_average=True` and `AverageAfterStall` it is the NT-ASGD of arXiv
    1708.02182, section 3.

    Args:
        triggered_average: Boolean, whether the averages of the weights are means since
            `start_average` was called. `use_ema` is then set. Defaults to `False`.
        rates, first_steps: as in `LayerRates`.
        *args, **kwargs: those of `keras.optimizers.SGD`.
    """


@keras.saving.register_keras_serializable(package="keras_qrnn")
class AdamW(LayerRates, TriggeredAverage, SummedGradients, keras.optimizers.AdamW):
    """`keras.optimizers.AdamW` with a scheduled momentum and a late average.

    Args:
        beta_1: Number in [0, 1), the momentum, or a `LearningRateSchedule` that gives
            it for each step. The correction of the first steps' bias uses the present
            step's momentum for all steps.
        triggered_average: as in `SGD`.
        rates, first_steps: as in `LayerRates`.
        *args, **kwargs: those of `keras.optimizers.AdamW`.
    """

    def __init__(
        self, *args: Any, beta_1: float | LearningRateSchedule = 0.9, **kwargs: Any
    ) -> None:
        if isinstance(beta_1, dict):
            beta_1 = keras.saving.deserialize_keras_object(beta_1)
        super().__init__(*args, beta_1=beta_1, **kwargs)

    @property
    def beta_1(self) -> float | Tensor:
        """The momentum of the present step."""
        if isinstance(self._beta_1, LearningRateSchedule):
            return self._beta_1(self.iterations)
        return self._beta_1

    @beta_1.setter
    def beta_1(self, value: float | LearningRateSchedule) -> None:
        self._beta_1 = value

    def get_config(self) -> dict:
        beta_1 = self._beta_1
        if isinstance(beta_1, LearningRateSchedule):
            beta_1 = keras.saving.serialize_keras_object(beta_1)
        return {**super().get_config(), "beta_1": beta_1}


def build_optimizer(
    options: RunOptions,
    steps_per_epoch: int | None = None,
    rates: Sequence[float] | None = None,
    first_steps: Sequence[int] | None = None,
) -> keras.optimizers.Optimizer:
    """The optimizer of `options`.

    Args:
        options: of a training.
        steps_per_epoch: number of batches of an epoch. A one-cycle schedule needs it.
        rates, first_steps: of the trainable variables: see `LayerRates`.

    Raises:
        ValueError: if a one-cycle schedule gets no `steps_per_epoch`; if RMSprop's
            `epsilon` is so small that its square is 0.
    """
    one_cycle = options.schedule == "one_cycle"
    if one_cycle and steps_per_epoch is None:
        raise ValueError(
            "A one-cycle schedule needs the batches of an epoch. "
            "Received: steps_per_epoch=None"
        )

    def cycle(peak: float, ends: float | None = None) -> OneCycle:
        return OneCycle(
            peak,
            options.epochs * (steps_per_epoch or 0),
            ends,
            ends,
            rise=options.cycle_rise,
            hold=options.cycle_hold,
            anneal=options.cycle_anneal,
        )

    rate = options.learning_rate
    common: dict[str, Any] = {
        "learning_rate": cycle(rate) if one_cycle else rate,
        "global_clipnorm": options.grad_clip,
        "use_ema": bool(options.weight_average),
        "ema_momentum": options.weight_average,
    }
    if rates is not None or first_steps is not None:
        common |= {"rates": rates, "first_steps": first_steps}
    # Keras multiplies the weight decay by the learning rate and does not clip it.
    if options.optimizer == "rmsprop":
        # On PyTorch, Keras's own updates all variables in a few operations.
        is_plain = "rates" not in common and not common["use_ema"]
        on_torch = keras.config.backend() == "torch"
        kind = keras.optimizers.RMSprop if is_plain and on_torch else RMSprop
        # With a smaller epsilon its square is 0, in float16 or in float32. A step of a
        # gradient of 0 would then be 0 / 0.
        least = 2.0**-12 if options.dtype_policy == "float16" else 2.0**-63
        if options.epsilon < least:
            raise ValueError(
                f"Option `epsilon` must be at least {least:.3g} for rmsprop in "
                f"{options.dtype_policy}. Received: epsilon={options.epsilon}"
            )
        return kind(
            rho=options.rho,
            # Keras divides by sqrt(v + epsilon), where v is the mean square of the
            # gradients. The option is that of sqrt(v) + epsilon. With its square
            # the two differ by a factor of at most sqrt(2).
            epsilon=options.epsilon**2,
            weight_decay=options.weight_decay or None,
            **common,
        )
    common["triggered_average"] = bool(options.average_trigger)
    if options.optimizer == "sgd":
        return SGD(weight_decay=options.weight_decay or None, **common)
    beta_1: float | OneCycle = options.beta_1
    if one_cycle and options.cycle_beta_1 is not None:
        beta_1 = cycle(options.cycle_beta_1, ends=options.beta_1)
    return AdamW(
        weight_decay=options.weight_decay,
        beta_1=beta_1,
        beta_2=options.beta_2,
        epsilon=options.epsilon,
        **common,
    )
