"""What each process of tests/training/test_ddp.py does.

torchrun --nproc_per_node 2 -m tests.training.ddp_processes DIRECTORY
"""

import functools
import json
import sys
from pathlib import Path

import keras
import numpy as np
from torch import distributed

from keras_qrnn.training import ddp
from tests.training.tasks import TASKS

# With all 5 words sampled the loss of the language model is exact. It uses weights that
# the model's call does not use.
CASES = TASKS | {
    "sampled_words": functools.partial(TASKS["language_model"], sampled_words=5)
}
STILL = {"dropout": 0.0, "zoneout": 0.0}  # random numbers differ between processes


def experiment_and_model(task, rows):
    """The experiment of whole batches of 4 rows, and a model for batches of `rows`."""
    keras.utils.set_random_seed(0)
    experiment = CASES[task](**STILL)
    return experiment, CASES[task](**STILL, batch_size=rows).model()


def seeds_of(model):
    """The seed of the model's first random layer in each process."""
    states = [v for v in model.variables if v.name == "seed_generator_state"]
    found = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, int(states[0][0]))
    return found


def main(directory):
    distributed.init_process_group("gloo")
    for task in CASES:
        experiment, model = experiment_and_model(task, rows=2)
        # Process 0 has the weights to begin with.
        for weight in model.trainable_weights:
            weight.assign(weight + distributed.get_rank())
        history = ddp.fit(model, experiment.batches(), experiment.options.epochs)
        if distributed.get_rank() == 0:
            weights = {w.path: keras.ops.convert_to_numpy(w) for w in model.weights}
            np.savez(directory / f"{task}.npz", **weights)
            (directory / f"{task}.json").write_text(json.dumps(history))
    experiment = TASKS["sentiment"](dropout=0.5)
    model = experiment.model()
    ddp.fit(model, experiment.batches(), epochs=1)
    assert len(set(seeds_of(model))) == distributed.get_world_size()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
