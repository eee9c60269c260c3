"""The tables of README.md and docs/ agree with the result files."""

import csv
import json
import re
import statistics
from pathlib import Path

import pytest

from search_task import TASKS
from tests.export.cells import CELLS

pytestmark = pytest.mark.one_backend
ROOT = Path(__file__).parents[2]


def text_of(page):
    """A page of docs/ in one line."""
    return " ".join((ROOT / "docs" / f"{page}.md").read_text("utf-8").split())


def rows_of(place, name):
    """The rows of a result file of the benchmarks."""
    path = ROOT / "benchmarks" / "results" / place / f"{name}.csv"
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def times_as_fast(place):
    """How many times as fast as the fastest LSTM, by mode, batch and time."""
    cells = {}
    for row in rows_of(place, "layer"):
        if row["dtype"] == "float32":
            key = row["mode"], int(row["batch"]), int(row["time"])
            cells.setdefault(key, {})[row["name"]] = float(row["median"])
    return {
        key: min(s for name, s in cell.items() if "LSTM" in name) / cell["QRNN"]
        for key, cell in cells.items()
    }


def test_the_summary_of_the_gpu_table():
    def ratios(place, mode):
        return [n for key, n in times_as_fast(place).items() if key[0] == mode]

    found = ratios("jax_cuda", "training") + ratios("jax_cuda", "inference")
    text, mean = text_of("speed"), statistics.geometric_mean
    least, most = min(found), max(found)
    assert f"{least:.0f} to {most:.0f} times as fast ({mean(found):.0f} in" in text
    modes = ("training", "inference")
    means = [mean(ratios("torch_cuda", mode)) for mode in modes]
    expected = "{:.1f} times as fast in training and {:.1f} in inference"
    assert expected.format(*means) in text
    short = [n for key, n in times_as_fast("torch_cuda").items() if key[2] == 32]
    assert f"({min(short):.1f} to " in text
    compiled = {mode: ratios("torch_cuda_compiled", mode) for mode in modes}
    means = [mean(compiled[mode]) for mode in modes]
    expected = (
        "{:.1f} times as fast in training and {:.1f} in inference, in the {} cells"
    )
    assert expected.format(*means, len(compiled["training"])) in text


def test_the_scans_on_the_gpu():
    times = {}
    for row in rows_of("torch_cuda_gpu_time", "scan"):
        key = row["direction"], row["name"]
        times.setdefault(key, {})[int(row["time"])] = float(row["median"])

    def span(direction, slower, faster, least=0):
        pair = times[direction, slower], times[direction, faster]
        ratios = [pair[0][t] / pair[1][t] for t in pair[0] if t >= least]
        return f"{min(ratios):.1f} to {max(ratios):.1f} times"

    text = text_of("speed")
    chunks, fused = "fla chunk_hgrn", "fla fused_recurrent_hgrn"
    for name, slower, faster, least in (
        ("chunk_hgrn", "linear_scan", chunks, 2048),
        ("fused_recurrent_hgrn", fused, "linear_scan", 0),
    ):
        line = text[text.index(f"- `{name}`") + 2 :].split(" - ")[0]
        for direction in ("forward", "forward+backward"):
            assert span(direction, slower, faster, least) in line


def test_cells_of_jax_that_were_measured_twice():
    earlier, again = times_as_fast("jax_cuda"), times_as_fast("jax_cuda_again")
    ratios = [again[key] / earlier[key] for key in again]
    text = f"The ratios were {min(ratios):.2f} to {max(ratios):.2f} times the earlier"
    page = (ROOT / "benchmarks" / "README.md").read_text("utf-8")
    assert len(ratios) == 10 and text in " ".join(page.split())


def test_the_order_of_the_models():
    best, epochs = {}, {}
    for run in ("qrnn_zoneout", "qrnn", "lstm"):
        with (ROOT / "results" / run / "log.csv").open() as file:
            found = [float(row["val_perplexity"]) for row in csv.DictReader(file)]
        best[run], epochs[run] = min(found), len(found) - found.index(min(found)) - 1
        record = json.loads((ROOT / "results" / run / "run.json").read_text())
        assert abs(record["valid"] - best[run]) < 0.1
    text = text_of("penn-treebank")
    expected = "({qrnn_zoneout:.1f} and {qrnn:.1f} against {lstm:.1f} in validation"
    assert expected.format(**best) in text
    assert best["qrnn"] < best["qrnn_zoneout"] < best["lstm"]
    assert f"{epochs['lstm']} after its best" in text and "63 of 72 epochs" in text


def test_the_seeds():
    found = {}
    for run in ("qrnn", "qrnn_seed1", "qrnn_zoneout", "qrnn_zoneout_seed1"):
        record = json.loads((ROOT / "results" / run / "run.json").read_text("utf-8"))
        found[run] = record["valid"], record["test"]

    def apart(one, other):
        return [a - b for a, b in zip(found[one], found[other], strict=True)]

    first = apart("qrnn_zoneout", "qrnn")
    second = apart("qrnn_zoneout_seed1", "qrnn_seed1")
    text = text_of("penn-treebank")
    valid = f"validation is {first[0]:.1f} better with seed 0 and {second[0]:.1f} with"
    assert valid in text and f"and test {first[1]:.1f} and {second[1]:.1f}." in text
    runs = [
        [abs(n) for n in apart(run, f"{run}_seed1")] for run in ("qrnn", "qrnn_zoneout")
    ]
    (most, test), (least, other) = runs
    spread = f"{least:.2f} to {most:.1f} in validation and by {other:.1f} to {test:.1f}"
    assert spread in text


def test_the_awd_run():
    record = json.loads((ROOT / "results" / "awd" / "run.json").read_text("utf-8"))
    text = text_of("penn-treebank")
    expected = "reaches {valid:.1f} in validation and {test:.1f} in test"
    assert expected.format(**record) in text
    expected = (
        "reaches {valid_with_cache:.1f} in validation and {test_with_cache:.1f} in"
    )
    assert expected.format(**record) in text
    with (ROOT / "results" / "awd" / "log.csv").open() as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    assert len(seconds) == record["options"]["epochs"] == 100
    assert f"An epoch took {statistics.median(seconds):.1f} seconds" in text


def test_the_sentiment_runs():
    text = text_of("sentiment")
    page = " ".join((ROOT / "results" / "README.md").read_text("utf-8").split())
    readme = " ".join((ROOT / "README.md").read_text("utf-8").split())
    for name, title, window, paper in (
        ("imdb_qrnn", "QRNN", None, 91.4),
        ("imdb_qrnn_k4", "QRNN, window 4 in the first layer", 4, 91.1),
        ("imdb_qrnn_plain", "QRNN, without word vectors", None, None),
    ):
        path = ROOT / "results" / name
        record = json.loads((path / "run.json").read_text("utf-8"))
        assert record["options"]["first_window"] == window
        valid, test = (f"{100 * record[split]:.2f} %" for split in ("valid", "test"))
        published = "" if paper is None else f"{paper} % "
        assert f"| {title} | {valid} | {test} | {published}|" in text
        assert valid in page and test in page
        right = sum(row[n] for n, row in enumerate(record["test_confusion"]))
        assert right == round(25000 * record["test"])
        assert sum(map(sum, record["valid_confusion"])) == 2500
        if name != "imdb_qrnn":
            continue
        assert f"{100 * record['test']:.1f}% of the test reviews" in readme
        with (path / "log.csv").open() as file:
            seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
        minutes = f"{statistics.median(seconds) / 60:.0f} minutes"
        assert f"Most epochs of the first run took {minutes}" in text


def test_the_language_model_of_the_reviews():
    path = ROOT / "results" / "imdb_lm" / "run.json"
    record = json.loads(path.read_text("utf-8"))
    text = text_of("sentiment")
    assert f"not read is {record['valid']:.1f}." in text
    page = " ".join((ROOT / "results" / "README.md").read_text("utf-8").split())
    assert "is {valid:.1f} (valid) and {test:.1f} (test)".format(**record) in page
    command = text.split("train_lm.py --data_dir reviews ")[1].split(" --save_path")[0]
    words = command.replace("\\ ", "").split()
    for word, value in zip(words, [*words[1:], "--"], strict=True):
        if word.startswith("--"):
            used = record["options"][word[2:]]
            assert used is True or used == type(used)(value), word


def test_the_translation_runs():
    records, logs = {}, {}
    for cell in ("qrnn", "lstm"):
        path = ROOT / "results" / f"multi30k_{cell}"
        records[cell] = json.loads((path / "run.json").read_text("utf-8"))
        with (path / "log.csv").open() as file:
            logs[cell] = list(csv.DictReader(file))
    qrnn, lstm = records["qrnn"], records["lstm"]
    differ = {k for k, v in qrnn["options"].items() if lstm["options"][k] != v}
    assert differ == {"cell", "dtype_policy"} and qrnn["signature"] == lstm["signature"]

    text = text_of("translation")
    readme = " ".join((ROOT / "README.md").read_text("utf-8").split())
    page = " ".join((ROOT / "results" / "README.md").read_text("utf-8").split())
    speeds = []
    for name in ("validation", "`test_2016_flickr`", "`test_2017_flickr`"):
        split = "valid" if name == "validation" else name.strip("`")
        found, other = qrnn[split], lstm[split]
        bleu = f"{found['bleu']:.1f} | {other['bleu']:.1f}"
        assert f"| {name} | {found['sentences']:,} | {bleu} |" in text
        assert f"{found['bleu']:.1f} of" in page and f"{other['bleu']:.1f}" in page
        speeds.append(found["characters_per_second"])
    weights = " | ".join(f"{r['weights'] / 1e6:.2f}" for r in (qrnn, lstm))
    assert f"| weights, million | | {weights} |" in text
    assert f"wrote {min(speeds):.0f} to {max(speeds):.0f} characters a second" in text
    assert f"`{qrnn['signature']}`" in text
    seconds = statistics.median(float(row["seconds"]) for row in logs["qrnn"])
    assert f"took {seconds:.0f} seconds (the median of {len(logs['qrnn'])})" in text
    assert f"{seconds:.0f} seconds for an epoch (the median)" in page
    losses = {c: [float(row["val_loss"]) for row in log] for c, log in logs.items()}
    for each in losses.values():
        assert each == sorted(each, reverse=True) and len(each) == 10
    last = f"{losses['qrnn'][-1]:.3f} (QRNN) and {losses['lstm'][-1]:.3f} (LSTM)"
    pairs = zip(losses["lstm"], losses["qrnn"], strict=True)
    lower = [n for n, (a, b) in enumerate(pairs, 1) if a < b]
    assert f"{last}; from epoch {lower[0]} to {lower[-1]} that of the LSTM" in text
    assert lower == list(range(lower[0], lower[-1] + 1))
    bleu = [record["test_2016_flickr"]["bleu"] for record in (qrnn, lstm)]
    assert "BLEU {:.1f} on Multi30k's 2016 test set (LSTM: {:.1f})".format(*bleu) in (
        readme
    )


def test_the_cases_of_the_exports():
    text = text_of("other-tools")
    assert f"They make {len(CELLS)} cases for each program" in text


def test_what_the_searches_do_by_default():
    size = {
        (task.name, name): (recipe.max_trials, recipe.epochs)
        for task in TASKS.values()
        for name, recipe in task.recipes.items()
    }
    lm, sentiment, ptb = (
        size["lm", "sample"],
        size["sentiment", "sample"],
        size["lm", "ptb"],
    )
    corpus, pretrained = size["sentiment", "imdb"], size["sentiment", "pretrained"]
    assert size["translation", "sample"] == sentiment
    assert size["translation", "multi30k"] == corpus
    expected = (
        f"For the sample of the language model the defaults are {lm[0]} trials of "
        f"{lm[1]} epochs. For the other samples they are {sentiment[0]} of "
        f"{sentiment[1]}. For Penn Treebank they are {ptb[0]} of {ptb[1]}, for the "
        f"other corpora {corpus[0]} of {corpus[1]}. With `--pretrained` they are "
        f"{pretrained[0]} of {pretrained[1]}."
    )
    assert expected in text_of("search")


def test_epochs_are_those_of_the_logs():
    names = {"TensorFlow": "tensorflow", "JAX": "jax", "PyTorch": "torch"}
    text = (ROOT / "results" / "README.md").read_text("utf-8")
    lines = re.findall(r"^\| (\w+) [\d.]+ \| `\w+` \| (.*) \|$", text, re.MULTILINE)
    assert [name for name, _ in lines] == list(names)
    for name, figures in lines:
        path = ROOT / "results" / "one_epoch" / f"{names[name]}.csv"
        with path.open(encoding="utf-8") as file:
            (row,) = csv.DictReader(file)
        perplexity, seconds = float(row["val_perplexity"]), float(row["seconds"])
        assert figures == f"{perplexity:.1f} | {seconds:.0f} s"


def test_what_the_search_found():
    """The figures on the page agree with the search's trials."""
    with (ROOT / "results" / "ptb_search" / "trials.csv").open() as file:
        names = ("val_perplexity", "window", "zoneout", "seconds")
        rows = [
            {name: float(row[name]) for name in names} for row in csv.DictReader(file)
        ]
    rows.sort(key=lambda row: row["val_perplexity"])
    found = [row["val_perplexity"] for row in rows]
    text = text_of("search")
    assert len(rows) == 20 and f"The best reaches {found[0]:.1f}" in text
    assert sum(row["zoneout"] < 1e-3 for row in rows[:10]) == 9
    assert "of the best ten trials nine have next to none" in text

    def range_of(**wanted):
        of = [
            row["val_perplexity"]
            for row in rows
            if all(abs(row[name] - value) < 0.02 for name, value in wanted.items())
        ]
        return f"{min(of):.0f} to {max(of):.0f}" if len(of) > 2 else f"{min(of):.0f}"

    minutes = sum(row["seconds"] for row in rows) / 60
    assert f"The trials, one training each, took {minutes:.0f} minutes" in text
    assert f"with 0.4 the perplexity is {range_of(zoneout=0.4)}" in text
    by_window = [range_of(window=n, zoneout=0) for n in (1, 2, 3, 4)]
    expected = "a window of 1 comes to {}, of 2 to {} and 295, of 3 to {}, of 4 to {}."
    assert expected.format(*by_window) in text


def test_the_summary_of_the_speed_tables():
    """The summaries agree with the result files."""
    spans = {}
    numba = "torch_numba", "torch_epyc"
    for place in ("jax", "tensorflow", "torch", "torch_epyc_plain", *numba):
        ahead = times_as_fast(place).values()
        assert len(ahead) == 60 and min(ahead) > 1
        least, most = (100 * (ratio - 1) for ratio in (min(ahead), max(ahead)))
        spans[place] = f"by {least:.0f} to {most:.0f}%"
    text = text_of("speed")
    expected = "the QRNN is ahead of it {torch} (with Numba {torch_numba})"
    assert expected.format(**spans) in text
    most = spans["torch_epyc_plain"].split()[-1]
    with_numba = spans["torch_epyc"].removeprefix("by ")
    expected = f"(Zen 4) the QRNN is up to {most} faster than `torch.nn.LSTM` "
    expected += f"(with Numba {with_numba}). It is slower in no cell."
    assert expected in text


def test_the_long_memories():
    """The table of docs/choosing.md is made of the runs in results/long_memory."""
    found = {}
    for path in sorted((ROOT / "results" / "long_memory").glob("*.json")):
        record = json.loads(path.read_text("utf-8"))
        options = record["options"]
        for name, run in record["runs"].items():
            key = options["task"], options["length"], name
            found.setdefault(key, []).append(run["result"])
    text = text_of("choosing")
    titles = {
        ("copy", 30): "copy memory, 30 blanks: accuracy, more is better",
        ("adding", 200): "adding, 200 numbers: mean squared error, less is better",
        ("copy", 601): "copy memory, 601 blanks: accuracy",
        ("adding", 600): "adding, 600 numbers: mean squared error",
    }
    assert {key[:2] for key in found} == titles.keys()
    for task, title in titles.items():
        cells = []
        for name in ("qrnn", "chrono", "lstm"):
            results = found[*task, name]
            cell = f"{statistics.mean(results):.3g}"
            if len(results) > 1:
                cell += f" ({min(results):.3g} to {max(results):.3g})"
            cells.append(cell)
        assert f"| {title} | {' | '.join(cells)} |" in text
        assert len(found[*task, "chrono"]) == len(found[*task, "qrnn"])


def test_one_step_in_each_call():
    """QRNN beside LSTM where a call reads one step, and where a search does."""
    ratios, written = {}, {}
    for place in ("jax_epyc", "tensorflow_epyc", "torch_epyc"):
        for row in rows_of(place, "streaming"):
            key = place, row["mode"], row["units"]
            ratios.setdefault(key, {})[row["name"]] = float(row["median"])
        for row in rows_of(place, "translation"):
            if row["part"] in ("greedy", "beam 8"):
                cell = written.setdefault((place, row["dtype"], row["part"]), {})
                cell[row["cell"]] = float(row["characters_per_second"])
    ratios = {key: cell["keras LSTM"] / cell["QRNN"] for key, cell in ratios.items()}
    slow = "tensorflow_epyc", "eager"
    eager = [n for key, n in ratios.items() if key[:2] == slow]
    others = [n for n in ratios.values() if n not in eager]
    text = f"{min(others):.1f} to {max(others):.1f} times as fast as an LSTM "
    text += f"({min(eager):.1f} to {max(eager):.1f} times where TensorFlow"
    assert text in text_of("streaming")
    fewer = [100 * (1 - cell["qrnn"] / cell["lstm"]) for cell in written.values()]
    text = f"the QRNN wrote {min(fewer):.0f} to {max(fewer):.0f} % fewer characters"
    assert text in text_of("translation")
