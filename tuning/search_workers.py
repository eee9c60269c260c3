"""A search by several processes: keras-tuner's chief, and workers on this machine."""

import os
import signal
import subprocess
import threading
import time
from concurrent import futures
from pathlib import Path
from typing import Self

import grpc
import keras
import keras_tuner

# What keras-tuner starts where its environment variables are set, without the loop
# around it: that takes up to 20 seconds to see that a search has ended.
from keras_tuner.src import protos
from keras_tuner.src.distribute.oracle_chief import OracleServicer, exit_chief

VARIABLES = ("KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT")
NO_PROXY = "no_grpc_proxy"  # hosts that gRPC asks directly
# A trial counts as failed if its worker is killed this many times.
MAX_RUNS = 3
MAX_STARTS = 3
# The most workers of one search. A mistyped number must not start thousands.
MAX_WORKERS = 256
GRACE = 10  # seconds from SIGTERM to SIGKILL


def role() -> str:
    """The part of this process: `"single"`, `"chief"` or `"worker"`.

    keras-tuner's environment variables decide. Without them it is `"single"`.

    Raises:
        ValueError: if only some of the variables are set, or the port is not an integer
            from 1 to 65535.
    """
    missing = [name for name in VARIABLES if not os.environ.get(name)]
    if len(missing) == len(VARIABLES):
        return "single"
    if missing:
        raise ValueError(
            f"The environment variables {', '.join(VARIABLES)} go together. "
            f"Received: no {', '.join(missing)}"
        )
    port = os.environ["KERASTUNER_ORACLE_PORT"]
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        raise ValueError(
            "The environment variable KERASTUNER_ORACLE_PORT must be a port. "
            f"Received: {port!r}"
        )
    # keras-tuner takes the id for the chief's if it contains "chief".
    return "chief" if "chief" in os.environ["KERASTUNER_TUNER_ID"] else "worker"


def ask_chief_directly() -> None:
    """Keeps gRPC from asking a proxy for the chief.

    gRPC uses the proxy of `grpc_proxy`, `https_proxy` or `http_proxy`, even for an
    address of this machine. A proxy does not know the chief: the worker would wait in
    vain. `no_grpc_proxy` overrides `no_proxy` for gRPC alone. A corpus is still loaded
    through the proxy.
    """
    host = os.environ["KERASTUNER_ORACLE_IP"].strip("[]")  # of an IPv6 address
    before = os.environ.get(NO_PROXY, os.environ.get("no_proxy", ""))
    os.environ[NO_PROXY] = ",".join(filter(None, [before, host]))


class Chief:
    """Serves an oracle to keras-tuner's workers while its context lasts.

    Args:
        oracle: the oracle that chooses the trials.
        address: the address to listen at.
        port: the port to listen at. 0 for any free port.

    Attributes:
        port: the port at which the chief listens.

    Raises:
        OSError: if the address is taken or is not one of this machine.
    """

    def __init__(
        self, oracle: keras_tuner.Oracle, address: str, port: int | str = 0
    ) -> None:
        self._oracle = oracle
        self._server = grpc.server(
            futures.ThreadPoolExecutor(max_workers=1),
            # Otherwise two chiefs can have one port and share its workers.
            options=[("grpc.so_reuseport", 0)],
        )
        self._servicer = OracleServicer(oracle)
        protos.get_service_grpc().add_OracleServicer_to_server(
            self._servicer, self._server
        )
        try:
            self.port = self._server.add_insecure_port(f"{address}:{port}")
        except RuntimeError as error:
            raise OSError(f"Cannot listen at {address}:{port}: {error}") from error

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.stop(grace=None).wait()

    def wait(self) -> None:
        """Returns when the search has ended and all workers know."""
        while not self._oracle.failure:
            if self._servicer.stop_triggered and exit_chief(self._oracle):
                return
            time.sleep(0.5)


class Worker:
    """A process on this machine that runs trials, and its output.

    Each line of its output is printed here after the worker's name. Its errors go to a
    file, because backends write much there.
    """

    def __init__(
        self, tuner_id: str, command: list[str], log: Path, environment: dict[str, str]
    ) -> None:
        self.tuner_id = tuner_id
        self.log = log
        with log.open("ab") as errors:
            # A terminal sends Ctrl-C to all processes in the foreground. In a
            # session of its own a worker is ended here, once. Its `stdin` ends
            # when this process ends, however that comes about.
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | environment | {"KERASTUNER_TUNER_ID": tuner_id},
                start_new_session=True,
            )
        print(f"{tuner_id} starts, process {self.process.pid}", flush=True)
        self._printer = threading.Thread(target=self._print, daemon=True)
        self._printer.start()

    def _print(self) -> None:
        for line in self.process.stdout:
            text = line.decode(errors="replace").rstrip()
            print(f"{self.tuner_id}: {text.strip()}", flush=True)

    def close(self) -> None:
        """Ends the process if it still runs."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(GRACE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._printer.join()
        self.process.stdin.close()
        self.process.stdout.close()

    def last_words(self) -> str:
        """The last line of its errors. Before it stands what backends write."""
        lines = self.log.read_text("utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else f"see {self.log}"


def end_with_parent() -> None:
    """Ends this process when the one that started it has gone."""

    def watch() -> None:
        # `sys.stdin.read` would keep a lock that the interpreter needs to end.
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_workers(
    oracle: keras_tuner.Oracle, count: int, command: list[str], directory: Path
) -> None:
    """Runs a search to its end with a chief and `count` workers on this machine.

    A killed worker is started again under its name. The chief then gives it the same
    trial again. A trial that was begun `MAX_RUNS` times counts as failed.

    Args:
        oracle: the oracle that chooses the trials.
        count: number of workers.
        command: the command that starts a worker.
        directory: the directory of the search. The workers' logs go there.

    Raises:
        RuntimeError: if the search cannot go on; all workers have ended then.
    """
    workers, deaths, idle_deaths = {}, {}, {}
    # SIGTERM ends the search as Ctrl-C does. The workers would outlive it otherwise.
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with Chief(oracle, "127.0.0.1") as chief:
            environment = {
                "KERASTUNER_ORACLE_IP": "127.0.0.1",
                "KERASTUNER_ORACLE_PORT": str(chief.port),
                "KERAS_BACKEND": keras.config.backend(),
                "PYTHONUNBUFFERED": "1",
            }

            def start(tuner_id: str) -> None:
                log = directory / f"{tuner_id}.log"
                workers[tuner_id] = Worker(tuner_id, command, log, environment)

            try:
                for n in range(count):
                    start(f"worker{n}")
                while workers and not oracle.failure:
                    time.sleep(0.1)
                    for tuner_id, worker in list(workers.items()):
                        code = worker.process.poll()
                        if code is None:
                            continue
                        workers.pop(tuner_id).close()
                        if code == 0 or oracle.failure:
                            continue
                        if code == 2:  # an error, which it has printed
                            raise RuntimeError(f"{tuner_id}: {worker.last_words()}")
                        trial = oracle.ongoing_trials.get(tuner_id)
                        if trial is None:
                            counts, key, most = idle_deaths, tuner_id, MAX_STARTS
                        else:
                            counts, key, most = deaths, trial.trial_id, MAX_RUNS
                        counts[key] = counts.get(key, 0) + 1
                        what = f"{tuner_id} ended with {_code(code)}"
                        if trial is None and counts[key] == most:
                            raise RuntimeError(
                                f"{what} {most} times without a trial: "
                                f"{worker.last_words()}"
                            )
                        print(f"{what}; see {worker.log}", flush=True)
                        if trial is not None and counts[key] == most:
                            oracle.fail(
                                tuner_id, f"Its worker was killed {most} times, {what}"
                            )
                        start(tuner_id)
            finally:
                for worker in workers.values():
                    worker.close()
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _code(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"code {code}"
