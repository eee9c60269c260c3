"""Several devices on JAX: the results are those of one device."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_qrnn._processes import join_processes
from keras_qrnn.distribution import data_parallel, layout_map, model_parallel
from keras_qrnn.models import LanguageModel, TranslationModel
from keras_qrnn.training import evaluate_perplexity, load_trained, read_stream
from keras_qrnn.training.experiment import train_experiment
from keras_qrnn.training.options import DISTRIBUTIONS
from tests.assertions import assert_close
from tests.training.tasks import TASKS
from tests.training.test_recipe import Interrupt, _compiled_once, final_state  # noqa: F401

ROOT = Path(__file__).parents[2]
BACKEND = keras.config.backend()
CELLS = ("qrnn", "lstm")
on_jax = pytest.mark.skipif(BACKEND != "jax", reason="Keras distributes on JAX")


def same_run(found, expected, tolerance=1e-4):
    """Asserts that two run directories hold the same weights, states and logs."""
    a, b = final_state(found), final_state(expected)
    assert a.keys() == b.keys()
    for name, value in b.items():
        assert_close(name, a[name], value, tolerance)


def train(task, path, *callbacks, **more):
    """Trains, or goes on. Returns the logs of the epochs without their seconds."""
    history = train_experiment(
        TASKS[task](**more), path, resume=True, callbacks=callbacks, verbose=0
    )
    return [{**row, "seconds": 0} for row in history]


@pytest.fixture(scope="module")
def language_models(tmp_path_factory):
    """A directory with a run on one device and one of each distribution; their logs."""
    path = tmp_path_factory.mktemp("language_models")
    kinds = {"alone": None} | {kind: kind for kind in DISTRIBUTIONS}
    logs = {n: train("language_model", path / n, distribution=kinds[n]) for n in kinds}
    return path, logs


@on_jax
@pytest.mark.usefixtures("_compiled_once")
def test_language_models_are_those_of_one_device(language_models, tmp_path):
    path, logs = language_models
    for kind in DISTRIBUTIONS:
        for row, expected in zip(logs[kind], logs["alone"], strict=True):
            assert row == pytest.approx(expected, 1e-3)
        same_run(path / kind, path / "alone")
    assert keras.distribution.distribution() is None
    # A run that is killed in its second epoch ends with the same bits.
    with pytest.raises(KeyboardInterrupt):
        train("language_model", tmp_path, Interrupt(1, 2), distribution="data")
    assert train("language_model", tmp_path, distribution="data") == logs["data"]
    same_run(tmp_path, path / "data", tolerance=0)


@on_jax
@pytest.mark.usefixtures("_compiled_once")
@pytest.mark.parametrize(
    "task, kind", [("sentiment", "data"), ("translation", "model")]
)
def test_other_models_are_those_of_one_device(task, kind, tmp_path):
    alone = train(task, tmp_path / "alone", epochs=1)
    found = train(task, tmp_path / "shared", epochs=1, distribution=kind)
    assert found[0] == pytest.approx(alone[0], 1e-3)
    same_run(tmp_path / "shared", tmp_path / "alone")


def collectives_in_loops(step):
    """The collective operations in what the `while` loops of a compiled step run."""
    bodies, name = {}, ""
    for line in step.splitlines():
        if line.endswith("{") and (begin := re.match(r"(?:ENTRY )?%?([\w.-]+) ", line)):
            name = begin.group(1)
            bodies[name] = []
        elif name:
            bodies[name].append(line)
    reached, found = set(), []
    loops = [n for n in bodies if re.search(rf"\b(body|condition)=%?{n}\b", step)]
    assert loops
    while loops:
        name = loops.pop()
        reached.add(name)
        text = "\n".join(bodies[name])
        found += re.findall(
            r" (all-[\w-]+?|collective-[\w-]+?|reduce-scatter)(?:-start)?\(", text
        )
        called = re.findall(r"%([\w.-]+)", text)
        loops += [n for n in called if n in bodies and n not in reached]
    return found


@on_jax
def test_no_collective_in_the_loop_over_time():
    import jax

    with data_parallel().scope():
        model = LanguageModel(11, 4, 8, 1, batch_size=4, dropout=0.2, seed=0)
        model.build()
        model.compile(keras.optimizers.SGD(0.1))
        model.optimizer.build(model.trainable_variables)
        groups = (
            model.trainable_variables, model.non_trainable_variables,
            model.optimizer.variables, model.metrics_variables,
        )  # fmt: skip
        state = [[variable.value for variable in group] for group in groups]
        rows = keras.distribution.distribution().get_data_layout((4, 12))
        rows = rows.backend_layout
    tokens = jax.ShapeDtypeStruct((4, 12), "int32", sharding=rows)
    step = jax.jit(model.train_step).lower(state, (tokens, tokens)).compile().as_text()
    assert "all-reduce" in step
    assert collectives_in_loops(step) == []

    # The gradient of a recurrence with a matrix, an LSTM's, adds up parts in each step.
    def loss(matrix, inputs):
        def step(state, x):
            return jax.numpy.tanh(state @ matrix + x), None

        first = jax.numpy.zeros_like(inputs[:, 0])
        return jax.lax.scan(step, first, inputs.swapaxes(0, 1))[0].sum()

    inputs = jax.ShapeDtypeStruct((4, 12, 8), "float32", sharding=rows)
    matrix = jax.ShapeDtypeStruct((8, 8), "float32")
    compiled = jax.jit(jax.grad(loss)).lower(matrix, inputs).compile()
    assert "all-reduce" in collectives_in_loops(compiled.as_text())


@on_jax
def test_layouts_of_the_weights():
    """All weights whose last axis four devices can divide are divided along it."""
    with model_parallel().scope():
        models = [LanguageModel(12, 4, 8, 1, batch_size=4, cell=c) for c in CELLS]
        models.append(TranslationModel(12, 4, 4, 2))
        for model in models:
            model.build()
        models[0].compile(keras.optimizers.SGD(0.1, momentum=0.9))
        models[0].optimizer.build(models[0].trainable_variables)
    variables = [v for model in models for v in model.trainable_variables]
    for variable in [*variables, *models[0].optimizer.variables]:
        if variable.shape:
            is_divided = variable.value.sharding.spec[-1] == "model"
            assert is_divided == (variable.shape[-1] % 4 == 0), variable.path
    expected = {
        "cell_state": ("batch", "model"), "window_state": ("batch", None, "model"),
        "last_output": ("batch", "model"), "rnn_state": ("batch", "model"),
    }  # fmt: skip
    states = [v for m in models[:2] for each in m.recurrent for v in each.kept]
    found = {v.name: tuple(v.value.sharding.spec) for v in states}
    assert found == expected
    # The axes of the mesh may have other names.
    devices = keras.distribution.list_devices()
    mesh = keras.distribution.DeviceMesh((2, 2), ("rows", "parts"), devices)
    layout = layout_map(mesh)["language_model/qrnn_0/window_state"]
    assert layout.axes == ("rows", None, "parts")


@on_jax
@pytest.mark.parametrize("devices", ["cpu:0", [], ["cpu:0", "cpu:0"]])
def test_devices_that_are_refused(devices):
    with pytest.raises(ValueError, match="`devices` must be a list of different names"):
        model_parallel(devices)
    mesh = keras.distribution.DeviceMesh((1,), ("rows",), ["cpu:0"])
    with pytest.raises(ValueError, match=r"`mesh` must have two axes.*axes rows$"):
        layout_map(mesh)


@on_jax
def test_rows_of_one_under_a_distribution_of_keras():
    """A stream is one row, which cannot be divided among four devices."""
    ids = np.random.default_rng(0).integers(0, 5, 30)

    def results():
        model = LanguageModel(5, 4, 4, 1, batch_size=4, seed=0)
        model.build()
        model.set_weights([np.full(w.shape, 0.3) for w in model.weights])
        return evaluate_perplexity(model, ids, 8), read_stream(model, ids, 8).hidden

    expected = results()
    with keras.distribution.DataParallel(auto_shard_dataset=False).scope():
        for got, value in zip(results(), expected, strict=True):
            assert_close("result", got, value)


@on_jax
def test_a_batch_that_cannot_be_divided(tmp_path):
    experiment = TASKS["sentiment"](distribution="data", batch_size=6)
    with pytest.raises(ValueError, match=r"`batch_size` must be a multiple of 4.*=6"):
        train_experiment(experiment, tmp_path / "run", verbose=0)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(BACKEND == "jax", reason="JAX does not refuse")
@pytest.mark.parametrize("task", TASKS)
def test_another_backend_says_which_can(task):
    advice = {"tensorflow": "MirroredStrategy", "torch": "ddp", "numpy": "one device"}
    message = f"`distribution` goes with JAX: .*{advice[BACKEND]}.*backend {BACKEND}"
    for kind in DISTRIBUTIONS:
        with pytest.raises(ValueError, match=message):
            TASKS[task](distribution=kind)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@on_jax
def test_several_processes_need_a_newer_jax(monkeypatch):
    import jax

    monkeypatch.setenv("KERAS_DISTRIBUTION_NUM_PROCESSES", "2")
    monkeypatch.setattr(jax, "__version_info__", (0, 7, 2))
    with pytest.raises(ValueError, match=r"need JAX 0\.8 or newer\. Received: JAX"):
        join_processes(0)


@on_jax
def test_two_processes_are_one(language_models, tmp_path):
    """Each has two devices and its rows. The first alone writes and prints.

    In the end the first has an error, which ends both.
    """
    import jax

    if jax.__version_info__ < (0, 8):
        pytest.skip("several processes need JAX 0.8")
    port = free_port()
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        # Of a flag that is given twice, XLA takes the last.
        "XLA_FLAGS": os.environ["XLA_FLAGS"]
        + " --xla_force_host_platform_device_count=2",
        "KERAS_DISTRIBUTION_JOB_ADDRESSES": f"127.0.0.1:{port}",
        "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.two_processes", str(tmp_path)],
            env=environment | {"KERAS_DISTRIBUTION_PROCESS_ID": str(n)},
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for n in range(2)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=500)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert processes[0].returncode == 2, "\n".join(said)
    assert said[0].endswith("two_processes.py: error: This is the error of process 0\n")
    # It lost the connection: a traceback, an error of one line, or JAX's own end.
    assert processes[1].returncode in (1, 2, -signal.SIGABRT)
    assert ["Epoch 2/" in text for text in said] == [True, False]
    path, _ = language_models
    same_run(tmp_path, path / "alone")
    model, _ = load_trained(tmp_path, "save_path")
    assert model.recurrent[0].units == 4
