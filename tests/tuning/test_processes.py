"""A search by several processes: workers, killed processes, and proxies."""

import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import keras_tuner
import pytest
from keras_tuner.src.distribute import oracle_client

import search
import search_workers
from keras_qrnn.training.run_directory import held
from search_workers import NO_PROXY, Chief, ask_chief_directly, role, run_workers
from tests.tuning.searches import (
    NOBODY,
    PATH,
    TINY,
    arguments,
    make_tuner,
    start,
    trials,
)

pytestmark = pytest.mark.one_backend  # no search trains here
FAKE = Path(__file__).with_name("fake_search.py")
# What a proxy is named by; gRPC reads those in small letters.
PROXIES = [
    name
    for each in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")
    for name in (each, each.upper())
]


@pytest.fixture
def free_variables(monkeypatch):
    """The test starts without variables of keras-tuner and proxies, and leaves none."""
    for name in os.environ:
        if "KERASTUNER" in name or "proxy" in name.lower():
            monkeypatch.delenv(name)
    monkeypatch.setenv("no_grpc_proxy", "")
    monkeypatch.delenv("no_grpc_proxy")
    return monkeypatch


def test_keras_tuner_variables(free_variables):
    monkeypatch = free_variables
    assert role() == "single"
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "chief")
    with pytest.raises(
        ValueError, match="no KERASTUNER_ORACLE_IP, KERASTUNER_ORACLE_P"
    ):
        role()
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    monkeypatch.setenv("KERASTUNER_ORACLE_PORT", "8000")
    assert role() == "chief"
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "worker7")
    assert role() == "worker"
    for port in ("none", "-1", "0", "65536", "8000.0"):
        monkeypatch.setenv("KERASTUNER_ORACLE_PORT", port)
        with pytest.raises(ValueError, match="must be a port"):
            role()


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("no_proxy", [None, "", "example.com"])
def test_a_worker_asks_no_proxy_for_its_chief(free_variables, address, no_proxy):
    """Without the search's setting, gRPC would wait for the proxy."""
    monkeypatch = free_variables
    monkeypatch.setattr(oracle_client, "TIMEOUT", 1)
    if no_proxy is not None:
        monkeypatch.setenv("no_proxy", no_proxy)
    oracle = keras_tuner.oracles.RandomSearchOracle(objective="loss")
    with Chief(oracle, address) as chief:
        monkeypatch.setenv("KERASTUNER_ORACLE_IP", address)
        monkeypatch.setenv("KERASTUNER_ORACLE_PORT", str(chief.port))
        monkeypatch.setenv("KERASTUNER_TUNER_ID", "worker0")
        monkeypatch.setenv("http_proxy", NOBODY)
        with pytest.raises(Exception, match="StatusCode"):
            oracle_client.OracleClient(oracle).get_space()
        monkeypatch.delenv("http_proxy")
        monkeypatch.setattr(oracle_client, "TIMEOUT", 20)
        for name in PROXIES:
            with monkeypatch.context() as patch:
                patch.setenv(name, NOBODY)
                patch.setenv("no_grpc_proxy", no_proxy or "")
                ask_chief_directly()
                oracle_client.OracleClient(oracle).get_space()
                # What goes to other hosts goes as before.
                names = os.environ[NO_PROXY].split(",")
                assert set(names) == {address, *filter(None, [no_proxy])}


def gone(pid):
    """Whether a process ends within seconds. A zombie counts as ended."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


def begun(path, trial="trial_*"):
    """Waits until a trial runs. Returns the trial and the process that runs it."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for file in path.glob(f"{trial}/execution_0/pid"):
            if text := file.read_text():
                return file.parts[-3].removeprefix("trial_"), int(text)
        time.sleep(0.05)
    pytest.fail("no trial has begun")


def when_begun(path, act):
    """Calls `act` with the running trial and its process, in another thread."""
    found = []

    def wait():
        found.extend(begun(path))
        act(*found)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread, found


@pytest.fixture
def fake_workers(monkeypatch):
    """The workers of the search train nothing."""
    monkeypatch.setattr(search, "__file__", str(FAKE))
    monkeypatch.setenv("PYTHONPATH", PATH)


def test_workers_and_one_is_killed(tmp_path, run, no_training, fake_workers):
    path = tmp_path / "s"
    thread, found = when_begun(path, lambda trial, pid: os.kill(pid, signal.SIGKILL))
    options = TINY | {"epochs": 8, "max_trials": 3, "workers": 2, "save_every": 3}
    code, printed, error = run(save_path=path, **options)
    thread.join()
    assert code == 0, error
    trial, pid = found
    assert f" starts, process {pid}" in printed
    (line,) = (li for li in printed.splitlines() if "ended with SIGKILL" in li)
    assert f"Trial {trial} of 3 runs again" in printed
    rows = trials(path)
    assert [row["status"] for row in rows] == ["COMPLETED"] * 3
    assert [row["epochs"] for row in rows] == ["8"] * 3
    assert "The best:" in printed and "worker" in line
    starts = [li for li in printed.splitlines() if " starts, process" in li]
    pids = [int(li.rpartition(" ")[2]) for li in starts]
    assert len(pids) == 3 and all(map(gone, pids))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_search(tmp_path, number):
    path = tmp_path / "s"
    options = TINY | {"save_every": 600, "workers": 1}
    process = start(FAKE, save_path=path, **options)
    _, pid = begun(path)
    process.send_signal(number)
    rest, _ = process.communicate(timeout=60)
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 130
        *_, last = rest.splitlines()
        assert last == (
            "search.py: interrupted. Trials that have ended: 0. "
            "Start it again and it goes on."
        )
        assert "Traceback" not in rest
    assert gone(pid)
    with held(path, "searched"):
        state = json.loads((path / "oracle.json").read_text())
    assert list(state["ongoing_trials"].values()) == ["00"]


def test_a_trial_that_kills_its_workers_fails(tmp_path, monkeypatch):
    """A worker that asks for a trial and dies. It trains nothing."""
    monkeypatch.setattr(search_workers, "MAX_RUNS", 2)

    code = """
import os, sys, keras_tuner
from keras_tuner.src.distribute.oracle_client import OracleClient
oracle = OracleClient(keras_tuner.oracles.RandomSearchOracle(max_trials=2))
trial = oracle.create_trial(oracle.tuner_id)
while trial.status == "RUNNING":
    if trial.trial_id == "0":
        os.kill(os.getpid(), 9)
    oracle.update_trial(trial.trial_id, {"val_perplexity": 5.0})
    trial.status = "COMPLETED"
    oracle.end_trial(trial)
    trial = oracle.create_trial(oracle.tuner_id)
"""
    (tmp_path / "s").mkdir()
    tuner = make_tuner(tmp_path / "s", "random", 2)
    run_workers(tuner.oracle, 1, [sys.executable, "-c", code], tmp_path / "s")
    assert [t.status for t in tuner.oracle.trials.values()] == ["FAILED", "COMPLETED"]
    error = (tmp_path / "s" / "trial_0" / "error.txt").read_text()
    assert "killed 2 times" in error and "SIGKILL" in error


def test_workers_that_cannot_start_stop_the_search(tmp_path):
    (tmp_path / "s").mkdir()
    for code, message in (
        (
            "import sys; sys.exit('no such luck')",
            "3 times without a trial.*no such luck",
        ),
        ("import sys; print('refused', file=sys.stderr); sys.exit(2)", "refused"),
    ):
        tuner = make_tuner(tmp_path / "s", "random", 2)
        with pytest.raises(RuntimeError, match=message):
            run_workers(tuner.oracle, 1, [sys.executable, "-c", code], tmp_path / "s")


def test_chief_and_worker_by_keras_tuner_variables(
    tmp_path, free_variables, capsys, no_training
):
    monkeypatch = free_variables
    path = tmp_path / "s"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    options = {"save_path": path, **TINY, "max_trials": 2}
    variables = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": port}
    chief = start(
        FAKE, variables=variables | {"KERASTUNER_TUNER_ID": "chief"}, **options
    )
    try:
        for name, value in (variables | {"KERASTUNER_TUNER_ID": "worker0"}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("http_proxy", NOBODY)
        assert search.main([*arguments(**options), "--overwrite"]) == 2
        assert "`overwrite` is for the chief" in capsys.readouterr().err
        assert search.main(arguments(**(options | {"workers": 2}))) == 2
        assert "`workers` starts a chief of its own" in capsys.readouterr().err
        assert search.main(arguments(**(options | {"units": 5}))) == 2
        assert "units='4-8'. Received: units='5'" in capsys.readouterr().err
        elsewhere = options | {"save_path": tmp_path / "elsewhere"}
        assert search.main(arguments(**elsewhere)) == 2
        assert "All machines must share that directory" in capsys.readouterr().err
        assert search.main(arguments(**options)) == 0
        printed, _ = chief.communicate(timeout=60)
    finally:
        chief.kill()
        chief.wait()
    assert chief.returncode == 0, printed
    assert "The best:" in printed and "Trial 1 ends: val_perplexity" in printed
    assert [row["status"] for row in trials(path)] == ["COMPLETED"] * 2
