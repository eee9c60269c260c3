"""PyTorch: training in several processes, with `DistributedDataParallel`.

Keras distributes nothing on PyTorch. So this is a training loop of its own, for a
program that torchrun starts once for each device.
"""

from typing import Any

import keras
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from keras_qrnn._checks import integer
from keras_qrnn.data.batches import EpochBatches, part_of_rows
from keras_qrnn.losses import processes_share_batches


def fit(model: keras.Model, batches: EpochBatches, epochs: int) -> list[dict]:
    """Trains `model` in all processes. Each reads its rows of every batch.

    Without dropout, zoneout and `sampled_words` the weights are those that one process
    would have with whole batches. Each process draws other random numbers.

    Call it in every process after `torch.distributed.init_process_group`. All begin
    with the weights of process 0 and end with the same weights. Let process 0 alone
    write files.

    Args:
        model: a built and compiled model of `keras_qrnn.models`. A `LanguageModel` has
            as its `batch_size` the rows of one process.
        batches: of all processes together. Their rows are a multiple of the number of
            processes.
        epochs: number of epochs.

    Returns:
        For each epoch the mean loss and the metrics by name, over all processes.

    Raises:
        ValueError: if `epochs` is no integer of at least 0; if the model is not built
            and compiled; if the rows of a batch are no multiple of the number of
            processes.
    """
    epochs = integer("epochs", epochs, 0)
    if not (model.built and model.compiled):
        raise ValueError(
            "Argument `model` must be built and compiled. Received: "
            f"model.built={model.built}, model.compiled={model.compiled}"
        )
    rank, world = distributed.get_rank(), distributed.get_world_size()
    parallel = DistributedDataParallel(model)  # copies all variables of process 0
    for variable in model.variables:
        if variable.name == "seed_generator_state":  # the seed, and a counter
            seed, counter = keras.ops.convert_to_numpy(variable)
            variable.assign([seed + 7919 * rank, counter])
    history = []
    with processes_share_batches():
        for epoch in range(epochs):
            batches.epoch = epoch
            model.reset_metrics()
            if hasattr(model, "reset_state"):
                model.reset_state()
            losses = [
                _step(model, parallel, part_of_rows(batches[n], rank, world))
                for n in range(len(batches))
            ]
            for variable in model.metrics_variables:
                distributed.all_reduce(variable.value.detach())
            loss = torch.stack(losses).mean()
            distributed.all_reduce(loss)
            metrics = model.get_metrics_result()
            logs = {name: float(value) for name, value in metrics.items()}
            history.append(logs | {"loss": float(loss) / world})
    # As Keras's `fit`: averages of the weights, where there are any, take their place.
    model.optimizer.finalize_variable_values(model.trainable_variables)
    return history


def _step(model: Any, parallel: DistributedDataParallel, rows: tuple) -> torch.Tensor:
    """A step of the optimizer. Returns the loss of this process's rows."""
    x, y, weights = keras.tree.map_structure(keras.ops.convert_to_tensor, rows)
    outputs = parallel(x, training=True)
    model.zero_grad()
    loss = model.compute_loss(x, y, outputs, weights, training=True)
    model.optimizer.scale_loss(loss).backward()
    model.compute_metrics(x, y, outputs, weights)
    variables = model.trainable_variables
    with torch.no_grad():
        gradients = [variable.value.grad for variable in variables]
        model.optimizer.apply(gradients, variables)
    return loss.detach()
