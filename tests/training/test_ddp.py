"""PyTorch: two processes with `DistributedDataParallel` train as one process does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from keras_qrnn.data import BPTTBatches
from keras_qrnn.models import LanguageModel
from keras_qrnn.training.callbacks import BatchesOfTheEpoch, CarriedState
from tests.assertions import assert_close

ROOT = Path(__file__).parents[2]
PLACES = os.pathsep.join(map(str, [ROOT, ROOT / "tests" / "hidden_numba"]))


@pytest.mark.one_backend("torch")
def test_a_model_that_is_not_ready():
    from keras_qrnn.training import ddp

    model = LanguageModel(5, 4, 3, 1, batch_size=2)
    for step in (model.build, lambda: None):
        with pytest.raises(ValueError, match="`model` must be built and compiled"):
            ddp.fit(model, BPTTBatches(np.arange(20) % 5, 2, 3), 1)
        step()


@pytest.mark.one_backend("torch")
def test_two_processes_are_one(tmp_path):
    from tests.training import ddp_processes

    subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            "--nproc_per_node", "2", "-m", "tests.training.ddp_processes", tmp_path,
        ],
        env=os.environ | {"PYTHONPATH": PLACES, "OMP_NUM_THREADS": "1"},
        cwd=ROOT, check=True, timeout=240,
    )  # fmt: skip
    for task in ddp_processes.CASES:
        experiment, model = ddp_processes.experiment_and_model(task, rows=4)
        batches = experiment.batches()
        history = model.fit(
            batches, epochs=experiment.options.epochs, shuffle=False, verbose=0,
            callbacks=[BatchesOfTheEpoch(batches), CarriedState()],
        ).history  # fmt: skip
        rows = json.loads((tmp_path / f"{task}.json").read_text())
        for name, values in history.items():
            assert_close(name, [row[name] for row in rows], values, 1e-4)
        found = dict(np.load(tmp_path / f"{task}.npz"))
        for weight in model.weights:
            assert_close(weight.path, found[weight.path], weight)
