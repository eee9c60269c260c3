"""The benchmark scripts run, and the report turns their files into tables."""

import csv
import importlib
import itertools
import json
import shutil
import sys
import types
from pathlib import Path

import keras
import numpy as np
import pytest

differentiable = pytest.mark.skipif(
    keras.config.backend() == "numpy", reason="the NumPy backend has no gradients"
)
BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")
BACKEND = keras.config.backend()


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:  # `layer`, `scan`: too common to stay
        if str(getattr(sys.modules[name], "__file__", "")).startswith(BENCHMARKS):
            del sys.modules[name]


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@differentiable
@pytest.mark.parametrize(
    ("name", "column", "values"),
    [
        ("scan", "name", {"linear_scan", "single pass", "keras.ops.associative_scan"}),
        ("layer", "name", {"QRNN", "keras LSTM", "keras GRU", "floor"}),
        ("lm", "part", {"training", "evaluation", "softmax", "softmax of Keras"}),
        (
            "translation",
            "part",
            {"training", "encoder layers", "attention layer", "greedy", "beam 8"},
        ),
        ("sentiment", "part", {"training", "evaluation", "embedding", "layers"}),
        ("memory", "what", {"kept", "training peak"}),
        ("length", "mode", {"training", "inference"}),
        ("streaming", "name", {"QRNN", "keras LSTM"}),
    ],
)
def test_quick_run_writes_its_rows(script, tmp_path, name, column, values):
    if name == "memory" and not sys.platform.startswith("linux"):
        pytest.skip("memory is read from Linux's /proc")
    run = script(name).main
    options = ["--quick", "--results", str(tmp_path)]
    if name in ("sentiment", "translation") and BACKEND != "torch":
        options += ["--cells", "qrnn"]  # each part of each cell is compiled
    run(options)
    rows = rows_of(tmp_path / f"{name}.csv")
    assert values <= {row[column] for row in rows}
    for row in rows:
        assert row["hardware"] and BACKEND in row["versions"] and row["date"]
        if name in ("lm", "translation", "sentiment") and row["part"] == "training":
            assert row["runs"] == "2"  # of so many steps
        if name != "memory":
            assert 0 < float(row["min"]) <= float(row["median"]) <= float(row["max"])
    if name in {"layer", "length"}:
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.one_backend("torch")
def test_layer_in_half_precision(script, tmp_path):
    options = ["--quick", "--results", str(tmp_path), "--dtype", "bfloat16"]
    script("layer").main([*options, "--names", "QRNN,keras LSTM"])
    rows = rows_of(tmp_path / "layer.csv")
    assert {row["dtype"] for row in rows} == {"bfloat16"}
    assert (tmp_path / "layer_bfloat16.png").exists()


@pytest.mark.one_backend("torch")
def test_layer_with_a_mask(script, tmp_path):
    names = ["QRNN", "masked QRNN"]
    options = ["--quick", "--mask", "--names", ",".join(names)]
    script("layer").main([*options, "--results", str(tmp_path)])
    assert [row["name"] for row in rows_of(tmp_path / "mask.csv")] == 2 * names
    assert not (tmp_path / "layer.csv").exists()
    mask = keras.ops.convert_to_numpy(script("layer").right_padded(6, 5))
    assert set(mask.sum(axis=1)) <= {3, 4, 5} and mask[:, :3].all()
    assert (mask == np.sort(mask, axis=1)[:, ::-1]).all()


@differentiable
def test_a_stack_against_its_layers(script, tmp_path):
    script("layer").main(["--quick", "--layers", "2", "--results", str(tmp_path)])
    names = ["QRNNStack of 2", "2 QRNNs"]
    names += [f"masked {name}" for name in names]
    assert [row["name"] for row in rows_of(tmp_path / "stack.csv")] == 2 * names


@pytest.mark.one_backend("torch")
@pytest.mark.parametrize("name", ["layer", "scan", "memory"])
def test_a_name_that_is_not_known(script, tmp_path, name):
    options = ["--quick", "--names", "QRN", "--results", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"`names` must be .*Received: QRN$"):
        script(name).main(options)
    assert not list(tmp_path.iterdir())


@differentiable
def test_compile_is_for_pytorch(script, tmp_path, monkeypatch, capsys):
    options = ["--quick", "--compile", "--names", "QRNN", "--results", str(tmp_path)]
    if BACKEND != "torch":
        with pytest.raises(SystemExit):
            script("layer").main(options)
        assert "--compile is for PyTorch" in capsys.readouterr().err
        return
    import torch

    compiled = []

    def compile_eagerly(function, **options):
        compiled.append(options)
        return function

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    script("layer").main(options)
    assert compiled == [{"mode": None, "dynamic": False, "fullgraph": True}]
    names = {row["name"] for row in rows_of(tmp_path / "layer.csv")}
    assert names == {"QRNN"}


@pytest.mark.skipif(BACKEND != "torch", reason="their kernels are for PyTorch")
def test_scans_of_other_packages(script, tmp_path, monkeypatch):
    """Each is called with its own arguments. `linear_scan` stands for its kernel."""
    import torch

    from keras_qrnn import linear_scan

    def hgrn(inputs, log_decay):
        return linear_scan(log_decay.exp(), inputs), None

    def scan(decay, inputs):
        assert decay.is_contiguous() and inputs.is_contiguous()
        return linear_scan(decay.mT, inputs.mT).mT

    kernels = {"chunk_hgrn": hgrn, "fused_recurrent_hgrn": hgrn}
    for name, functions in {
        "fla": {}, "fla.ops": {}, "fla.ops.hgrn": kernels,
        "accelerated_scan": {}, "accelerated_scan.scalar": {"scan": scan},
    }.items():  # fmt: skip
        module = types.SimpleNamespace(**functions, __path__=[])
        monkeypatch.setitem(sys.modules, name, module)
    module = script("scan")
    assert module.others() == []  # they need a GPU
    monkeypatch.setattr(module, "ON_GPU", True)
    monkeypatch.setattr(module, "installed", lambda package: True)
    assert module.others() == list(module.OTHERS)
    calls = module.scan_calls((2, 4, 3), ["linear_scan", *module.OTHERS])
    assert len(calls) == 1 + 2 * (1 + len(module.OTHERS))
    expected = calls["forward+backward", "linear_scan"]()[1][1]
    for name, (_, _, restore) in module.OTHERS.items():
        gradients = calls["forward+backward", name]()[1]
        got = restore(gradients[1].detach().numpy())
        torch.testing.assert_close(torch.asarray(got), expected)


@pytest.mark.one_backend
def test_noise_repeats_itself(script):
    noise = script("_timing").noise
    assert noise((3, 2**20)).dtype == np.float32
    first, second, third = noise((3, 2**20))
    assert (first == second).all() and (first == third).all()
    assert abs(first.std() - 1) < 0.01 and (noise((4,), 1) != noise((4,), 2)).all()


@pytest.mark.one_backend("torch")
def test_quick_run_leaves_the_results_as_they_are(script, monkeypatch, tmp_path):
    timing = script("_timing")
    monkeypatch.setattr(timing, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(timing.tempfile, "tempdir", str(tmp_path))
    script("scan").main(["--quick"])
    assert not (tmp_path / "results").exists()
    assert len(list(tmp_path.glob("benchmarks-*/scan.csv"))) == 1


@pytest.mark.one_backend
def test_rows_of_the_same_key_are_replaced(script, tmp_path):
    path = tmp_path / "x.csv"
    merge = script("_timing").merge_rows
    merge(path, [{"n": 1, "s": 0.123456}, {"n": 2, "s": 2.0}], ("n",))
    merge(path, [{"n": 2, "s": 3.0}, {"n": 3, "s": 4.0}], ("n",))
    assert [(r["n"], r["s"]) for r in rows_of(path)] == [
        ("1", "0.1235"), ("2", "3"), ("3", "4")
    ]  # fmt: skip


@pytest.mark.one_backend("torch")
def test_measure_runs_in_turns(script):
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    spreads = script("_timing").measure(calls, seconds=0, max_rounds=9)
    assert "".join(order) == "abababab"  # one run to compile, three that count
    assert spreads["a"]["runs"] == 3


@pytest.mark.one_backend("torch")
def test_measure_on_a_gpu(script, monkeypatch):
    timing, seen, clock = script("_timing"), [], itertools.count(step=0.005)
    # A reading of the clock takes 5 ms, and a call reads it once.
    fake = types.SimpleNamespace(perf_counter=lambda: next(clock))
    monkeypatch.setattr(timing, "time", fake)
    monkeypatch.setattr(timing, "ON_GPU", True)
    monkeypatch.setattr(timing, "BURST", 0.03)

    def gpu_seconds(call, burst, busy):
        seen.append((burst, busy))
        return 0.001

    monkeypatch.setattr(timing, "gpu_seconds", gpu_seconds)
    calls = {"a": fake.perf_counter}
    assert timing.measure(calls, 0, gpu_time=True)["a"]["median"] == 0.001
    # A call alone takes 10 ms, and the GPU is kept busy while they are queued.
    assert seen == [(3, pytest.approx(1.5 * 3 * 0.01))] * 3
    # Of three in a burst each takes a third of four readings.
    assert timing.measure(calls, 0)["a"]["median"] == pytest.approx(0.02 / 3)


def layer_rows(mode, medians):
    columns = {
        "batch": 8,
        "time": 512,
        "dtype": "float32",
        "mode": mode,
        "hardware": "cpu",
        "versions": "v",
        "date": "today",
    }
    return [columns | {"name": n, "median": m} for n, m in medians.items()]


@pytest.mark.one_backend
def test_report(script, tmp_path):
    report = script("report")
    medians = {"floor": 1.0, "QRNN": 1.5, "keras LSTM": 6.0, "torch LSTM": 3.0}
    rows = layer_rows("training", medians) + layer_rows("inference", medians)
    for place in ("torch", "jax_cuda"):
        path = tmp_path / place / "layer.csv"
        script("_timing").merge_rows(path, rows, ("mode", "name"))
    sections_of = {
        "README.md": ("speed", "results"),
        "docs/speed.md": ("speed", "gpu"),
        "docs/penn-treebank.md": ("results",),
    }
    pages = {name: tmp_path / name for name in sections_of}
    (tmp_path / "docs").mkdir()
    for name, sections in sections_of.items():
        marked = [f"<!-- {n}:begin -->\nold\n<!-- {n}:end -->" for n in sections]
        pages[name].write_text("\n".join(["before", *marked, "after\n"]))
    run = tmp_path / "runs" / "lstm"
    script("_timing").write_csv(
        run / "log.csv",
        [{"epoch": n, "val_perplexity": p} for n, p in ((1, 9), (2, 8))],
    )
    record = {"valid": 8.04, "test": 7.0, "weights": 2_500_000}
    record |= {"versions": "v", "hardware": "cpu"}
    record["options"] = {"dtype_policy": "float32"}
    (run / "run.json").write_text(json.dumps(record))
    arguments = ["--root", str(tmp_path), "--results", str(tmp_path)]
    arguments += ["--runs", str(run.parent)]
    report.main(arguments)
    once = {name: page.read_text() for name, page in pages.items()}
    line = "| PyTorch | 4.0 (1 cells) |  | 2.00 to 2.0 | 1 of 1 | 1.50 (at most 1.50) |"
    assert line in once["docs/speed.md"]
    line = "| `lstm` | 8.0 (85.7) | 7.0 (82.0) |  | 2.5 | 2 of 2 | float32 |"
    assert line in once["docs/penn-treebank.md"]
    assert "Measured on: cpu; v; today." in once["docs/speed.md"]
    line = "| JAX, compiled, float32, inference | 1 of 30 | 2.0 to 2.0 | 2.0 | 1 of 1 |"
    assert f"{line} 0 of 1 |" in once["docs/speed.md"]
    assert "| 8 |  |  |  |  | 2.0 (16.9) |" in once["docs/speed.md"]
    line = "| PyTorch, CPU | 2.0 (2.0 to 2.0) | 2.0 (2.0 to 2.0) |"
    assert line in once["README.md"]
    assert "| LSTM of as many units | 8.0 | 7.0 |  | 82.0 |" in once["README.md"]
    for text in once.values():
        assert "old" not in text
        assert text.startswith("before\n") and text.endswith("after\n")
    report.main(arguments)
    assert {name: page.read_text() for name, page in pages.items()} == once


def lines_of(table, medians, **columns):
    """The table's lines of a file with these medians, by the row's values."""
    rows = [columns | fields | {"median": m} for fields, m in medians]
    return table({"jax_epyc": rows}).splitlines()


@pytest.mark.one_backend
def test_tables_of_qrnn_beside_lstm(script):
    report = script("report")
    times = {("qrnn", "training"): 0.2, ("qrnn", "evaluation"): 0.1}
    lstm = {("lstm", "training"): 0.5, ("lstm", "evaluation"): 0.12}

    def lines(times, **columns):
        medians = [({"cell": c, "part": p}, t) for (c, p), t in times.items()]
        columns = {"dtype": "float32"} | columns
        return lines_of(report.task_table, medians, **columns)

    assert (
        lines(times | lstm)[2] == "| JAX, float32 | 200 | 500 | 2.5 | 100 | 120 | 1.2 |"
    )
    assert lines(times)[2] == "| JAX, float32 | 200 |  |  | 100 |  |  |"
    written = {(c, p): 1 for c in ("qrnn", "lstm") for p in ("greedy", "beam 8")}
    found = lines(times | lstm | written, characters_per_second="1234.5")
    assert found[2].endswith("| 1.2 | 1,234 | 1,234 | 1,234 | 1,234 |")
    (line,) = lines_of(
        report.streaming_table,
        [({"name": "QRNN"}, 40), ({"name": "keras LSTM"}, 50)],
        mode="eager",
        units=64,
    )[2:]
    assert line == "| JAX, eager, 64 units | 40 | 50 | 1.25 |"
    times = {"QRNN": 2, "masked QRNN": 3, "keras LSTM": 2, "masked keras LSTM": 2.5}
    (line,) = lines_of(
        report.mask_table,
        [({"name": n, "mode": m}, t) for n, t in times.items() for m in report.MODES],
        batch=64,
        time=64,
        dtype="float32",
    )[2:]
    assert line == "| JAX | 1.50 | 1.25 | 1.50 | 1.25 |"
    (line,) = lines_of(
        report.softmax_table,
        [({"part": "softmax"}, 0.04), ({"part": "softmax of Keras"}, 0.1)],
    )[2:]
    assert line == "| JAX | 40 | 100 | 2.5 |"


@pytest.mark.one_backend
def test_the_tables_in_the_repository_are_those_of_its_files(script, tmp_path):
    root = Path(script("report").__file__).parents[1]
    pages = [
        page.relative_to(root)
        for page in (root / "README.md", *(root / "docs").glob("*.md"))
        if ":begin -->" in page.read_text("utf-8")
    ]
    assert len(pages) == 6
    for page in pages:
        (tmp_path / page).parent.mkdir(exist_ok=True)
        shutil.copy(root / page, tmp_path / page)
    script("report").main(["--root", str(tmp_path)])
    for page in pages:
        assert (tmp_path / page).read_text("utf-8") == (root / page).read_text("utf-8")


@pytest.mark.one_backend
def test_report_refuses(script, tmp_path):
    report = script("report")
    with pytest.raises(FileNotFoundError, match=r"layer\.csv"):
        report.section(tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text("<!-- speed:begin -->")
    with pytest.raises(ValueError, match="Expected one"):
        report.write_section(readme, "speed", "")


@pytest.mark.one_backend
def test_the_linear_model_is_below_the_best_reachable(script, monkeypatch):
    from keras_qrnn.data import sentiment_sample

    monkeypatch.setattr(sentiment_sample, "REVIEWS", {"train": 1500, "test": 500})
    accuracy = script("bigrams").main(["--dataset", "sample", "--strengths", "1,10"])
    assert 0.55 < accuracy < 0.85


# Options, each with values that are refused.
@pytest.mark.one_backend("jax")
def test_float64_is_not_measured_as_float32(script, tmp_path, capsys):
    import jax

    options = ["--quick", "--dtype", "float64", "--results", str(tmp_path)]
    jax.config.update("jax_enable_x64", False)
    try:
        with pytest.raises(SystemExit):
            script("layer").main(options)
    finally:
        jax.config.update("jax_enable_x64", True)
    assert "--dtype float64 needs JAX_ENABLE_X64=1" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


BAD_OPTIONS = {
    "layer": {
        "layers": ["0", "-1", "x"], "batches": ["0", "", "8,,16", "8,8", "-8", "1.5"],
        "times": ["32,0"], "names": ["QRNN,QRNN"], "seconds": ["-1", "nan", "inf"],
        "dtype": ["int8"], "results": ["", __file__],
    },
    "scan": {"shapes": ["8x512", "8x512x0", "", "8x8x8,8x8x8"], "names": ["a,a"]},
    "lm": {"steps": ["0"], "seconds": ["x"], "cell": ["gru"]},
    "sentiment": {"cells": ["", "gru", "qrnn,qrnn"], "steps": ["-1"]},
    "translation": {"cells": ["lstm,"], "steps": ["1.0"]},
    "memory": {"times": ["100", "0"], "shapes": ["8"], "names": ["QRNN,QRNN"]},
    "streaming": {"units": ["0"], "batches": ["1,1"]},
    "length": {"times": ["64,64", "-64"]},
    "report": {"root": ["nowhere"], "results": [__file__], "runs": ["nowhere"]},
    "bigrams": {"strengths": ["0", "1,1", "nan", ""], "data_dir": ["nowhere"]},
}  # fmt: skip


@pytest.mark.one_backend("torch")
@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options(script, capsys, name):
    main = script(name).main
    for option, values in BAD_OPTIONS[name].items():
        for value in values:
            with pytest.raises(SystemExit) as exit:
                main([f"--{option}={value}"])
            error = capsys.readouterr().err
            assert exit.value.code == 2 and error.count("\n") == 1, (option, value)
            assert f"argument --{option}: " in error or f"`{option}`" in error
