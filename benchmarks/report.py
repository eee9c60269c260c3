"""Writes the tables of README.md and docs/ from the result files.

    python benchmarks/report.py [--root .]

Each table stands between two markers, `<!-- NAME:begin -->` and `<!-- NAME:end -->`:

    README.md                 speed, results: the two short tables
    docs/speed.md             speed (on a CPU), gpu
    docs/penn-treebank.md     results
    docs/sentiment.md, docs/translation.md, docs/streaming.md
                              speed: QRNN beside Keras's LSTM on an AMD processor

Speed is read from benchmarks/results, perplexities are read from results.
"""

import argparse
import json
import math
from pathlib import Path

from _timing import existing_directory, read_rows

from keras_qrnn._files import atomic_write
from keras_qrnn.training.command_line import Parser

# Runs in results/: title, and the published perplexities of validation and test.
RUNS = {
    "qrnn_zoneout": ("QRNN with zoneout, the paper's recipe", "82.1", "78.3"),
    "qrnn_zoneout_seed1": ("the same, seed 1", "82.1", "78.3"),
    "qrnn": ("QRNN without zoneout", "82.9", "79.9"),
    "qrnn_seed1": ("the same, seed 1", "82.9", "79.9"),
    "lstm": ("LSTM of as many units", "85.7", "82.0"),
    "awd": ("`--preset awd`, 4 layers of 1550", "60.6", "58.3"),
    "awd_small": ("an earlier recipe, 3 layers of 1150", "", ""),
}
BACKENDS = {"jax": "JAX", "tensorflow": "TensorFlow", "torch": "PyTorch"}
BACKENDS["torch_numba"] = "PyTorch with Numba"
ON_AMD = {
    "jax_epyc": "JAX",
    "tensorflow_epyc": "TensorFlow",
    "torch_epyc": "PyTorch with Numba",
    "torch_epyc_plain": "PyTorch",
}
NUMBAS_DTYPES = ("float32", "float64")  # Other dtypes run without it.
ON_GPU = {
    "jax_cuda": "JAX, compiled",
    "torch_cuda": "PyTorch, called from Python",
    "torch_cuda_compiled": "PyTorch, torch.compile with CUDA graphs",
    "torch_cuda_gpu_time": "PyTorch, the GPU's part",
}
# Figure 4 of arXiv 1611.01576: how many times as fast as cuDNN's LSTM a QRNN of 320
# units is in inference. For each batch, the figures of these times.
PAPER_TIMES = (32, 64, 128, 256, 512)
PAPER_SPEEDUP = {
    8: (5.5, 8.8, 11.0, 12.4, 16.9),
    16: (5.5, 6.7, 7.8, 8.3, 10.8),
    32: (4.2, 4.5, 4.9, 4.9, 6.4),
    64: (3.0, 3.0, 3.0, 3.0, 3.7),
    128: (2.1, 1.9, 2.0, 2.0, 2.4),
    256: (1.4, 1.4, 1.3, 1.3, 1.3),
}
MODES = ("training", "inference")
Cells = dict[tuple[int, ...], dict[str, float]]


def medians(rows: list[dict], key: tuple[str, ...], **chosen: str) -> Cells:
    """Median seconds, by the values of the columns `key` and by name."""
    cells = {}
    for row in rows:
        if all(row[column] == value for column, value in chosen.items()):
            cell = cells.setdefault(tuple(int(row[column]) for column in key), {})
            cell[row["name"]] = float(row["median"])
    return dict(sorted(cells.items()))


def markdown(header: list[str], body: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def speedups(rows: list[dict], **chosen: str) -> dict[tuple[int, int], float]:
    """How many times as fast as the fastest LSTM, by batch and time."""
    cells = medians(rows, ("batch", "time"), **chosen)
    return {
        key: min(s for name, s in cell.items() if "LSTM" in name) / cell["QRNN"]
        for key, cell in cells.items()
    }


def layer_summary(results: dict[str, list[dict]], mode: str, dtype: str) -> str:
    body = []
    for backend, rows in results.items():
        cells = medians(rows, ("batch", "time"), mode=mode, dtype=dtype)
        if not cells:
            continue
        large = {k: c for k, c in cells.items() if k[0] * k[1] >= 4096} or cells
        # On PyTorch a step of Keras's LSTM takes up to a minute in the largest cells:
        # these cells may be missing.
        than_keras = []
        for name in ("keras LSTM", "keras GRU"):
            ratios = [c[name] / c["QRNN"] for c in cells.values() if name in c]
            than_keras.append(
                f"{geometric_mean(ratios):.1f} ({len(ratios)} cells)" if ratios else ""
            )
        fastest = speedups(rows, mode=mode, dtype=dtype).values()
        over_product = [c["QRNN"] / c["floor"] for c in large.values()]
        body.append(
            [
                (BACKENDS | ON_AMD)[backend],
                *than_keras,
                f"{min(fastest):.2f} to {max(fastest):.1f}",
                f"{sum(ratio >= 1 for ratio in fastest)} of {len(fastest)}",
                f"{geometric_mean(over_product):.2f} (at most {max(over_product):.2f})",
            ]
        )
    header = ["times as fast as", "Keras's LSTM", "Keras's GRU", "the fastest LSTM"]
    header += [
        "cells in which at least as fast",
        "time over that of the matrix products",
    ]
    return markdown(header, body)


def scan_table(results: dict[str, list[dict]]) -> str:
    """The time of each backend's scan, as a multiple of one pass over its memory."""
    body, key = [], ("batch", "time", "units")
    measured = [medians(rows, key) for rows in results.values()]
    shapes = sorted({shape for cells in measured for shape in cells})
    for backend, rows in results.items():
        for direction, passes in (("forward", 1), ("forward+backward", 3)):
            cells = medians(rows, key, direction=direction)
            floors = medians(rows, key, direction="forward")
            ratios = [
                f"{cells[s]['linear_scan'] / floors[s]['single pass'] / passes:.1f}"
                if s in cells
                else ""
                for s in shapes
            ]
            body.append([f"{BACKENDS[backend]}, {direction}", *ratios])
    return markdown(["", *(" x ".join(map(str, shape)) for shape in shapes)], body)


PARTS = ("embedding", "recurrent layers", "logits", "softmax", "optimizer")


def model_table(results: dict[str, list[dict]]) -> str:
    """Tokens per second, milliseconds of the training step's parts, and memory."""
    body = []
    for backend, rows in results.items():
        runs = {}
        for row in rows:
            run = runs.setdefault((row["cell"], row["dtype"]), {})
            run[row["part"]] = row
        for (cell, dtype), run in runs.items():
            cells = [f"{BACKENDS[backend]}, {cell.upper()}, {dtype}"]
            for part in ("training", "evaluation"):
                cells.append(f"{float(run[part]['tokens_per_second']):,.0f}")
            for part in PARTS:
                known = part in run
                cells.append(
                    f"{1e3 * float(run[part]['median']):,.0f}" if known else ""
                )
            peak = int(run["training"]["peak_bytes"]) / 2**20
            body.append([*cells, f"{peak:,.0f}"])
    header = ["", "training, tokens/s", "evaluation, tokens/s"]
    return markdown([*header, *(f"{part}, ms" for part in PARTS), "peak MiB"], body)


def softmax_table(results: dict[str, list[dict]]) -> str:
    """Milliseconds of the training loss: the package's cross-entropy and Keras's."""
    body = []
    for place, rows in results.items():
        times = {row["part"]: 1e3 * float(row["median"]) for row in rows}
        ours, theirs = times["softmax"], times["softmax of Keras"]
        cells = [f"{ours:.0f}", f"{theirs:.0f}", f"{theirs / ours:.1f}"]
        body.append([ON_AMD[place], *cells])
    return markdown(["", "`keras_qrnn`, ms", "Keras, ms", "times as fast"], body)


def task_table(results: dict[str, list[dict]]) -> str:
    """Milliseconds of a batch in a task's model, QRNN beside LSTM.

    Of a model that writes, also the characters that it writes in a second.
    """
    body, written = [], {}
    for place, rows in results.items():
        times, dtypes = {}, dict.fromkeys(row["dtype"] for row in rows)
        for row in rows:
            key = row["dtype"], row["part"], row["cell"]
            times[key] = 1e3 * float(row["median"])
            if row["part"] in ("greedy", "beam 8"):
                written[place, *key] = float(row["characters_per_second"])
        for dtype in dtypes:
            name = ON_AMD[place]
            if dtype not in NUMBAS_DTYPES:
                name = name.removesuffix(" with Numba")
            cells = [f"{name}, {dtype}"]
            for part in ("training", "evaluation"):
                qrnn = times[dtype, part, "qrnn"]
                lstm = times.get((dtype, part, "lstm"))
                cells.append(f"{qrnn:,.0f}")
                cells += [f"{lstm:,.0f}", f"{lstm / qrnn:.1f}"] if lstm else ["", ""]
            for part in ("greedy", "beam 8") if written else ():
                for cell in ("qrnn", "lstm"):
                    found = written.get((place, dtype, part, cell))
                    cells.append(f"{found:,.0f}" if found else "")
            body.append(cells)
    header = [""]
    for part in ("training", "evaluation"):
        header += [f"{part}: QRNN, ms", "LSTM, ms", "times as fast"]
    if written:
        header += ["greedy: QRNN, characters/s", "LSTM", "beam of 8: QRNN", "LSTM"]
    return markdown(header, body)


def streaming_table(results: dict[str, list[dict]]) -> str:
    """Microseconds of a step where each call reads one step, QRNN beside LSTM."""
    body = []
    for place, rows in results.items():
        times = {}
        for row in rows:
            key = row["mode"], int(row["units"])
            cell = times.setdefault(key, {})
            cell[row["name"]] = float(row["median"])
        for (mode, units), cell in times.items():
            ratio = cell["keras LSTM"] / cell["QRNN"]
            name = f"{ON_AMD[place]}, {mode}, {units} units"
            cells = [f"{cell[layer]:,.0f}" for layer in ("QRNN", "keras LSTM")]
            body.append([name, *cells, f"{ratio:.2f}"])
    header = ["microseconds a step", "QRNN", "Keras's LSTM", "times as fast"]
    return markdown(header, body)


def mask_table(results: dict[str, list[dict]]) -> str:
    """The time of a layer with a mask as a multiple of its time without one."""
    body, header = [], [""]
    names = {"QRNN": "QRNN", "keras LSTM": "Keras's LSTM"}
    header += [f"{mode}, {title}" for mode in MODES for title in names.values()]
    for place, rows in results.items():
        cells = [ON_AMD[place]]
        for mode in MODES:
            cell = medians(rows, ("batch", "time"), mode=mode, dtype="float32")
            times = cell[64, 64]
            cells += [f"{times[f'masked {name}'] / times[name]:.2f}" for name in names]
        body.append(cells)
    return markdown(header, body)


def memory_table(results: dict[str, list[dict]]) -> str:
    """MiB of a training step's peak, of the arrays kept for it, and of inference."""
    columns = [
        ("training peak", "QRNN"),
        ("training peak", "keras LSTM"),
        ("kept", "QRNN"),
        ("kept", "keras LSTM"),
    ]
    body, times = [], []
    for backend, rows in results.items():
        sizes, pieces = {}, {}
        for row in rows:
            size = f"{int(row['bytes']) / 2**20:,.0f}"
            sizes[row["what"], row["name"]] = size
            if row["what"].startswith("inference"):
                pieces[int(row["time"])] = size
        times = sorted(pieces)
        cells = [sizes.get(column, "") for column in columns]
        body.append([BACKENDS[backend], *cells, *(pieces[time] for time in times)])
    header = ["", *(f"{what}, {name}" for what, name in columns)]
    return markdown([*header, *(f"inference, {time:,} steps" for time in times)], body)


def runs_table(directory: Path) -> str:
    """The perplexities of each run under `directory`, and the published ones."""
    body = []
    for name, (title, *published) in RUNS.items():
        path = directory / name / "run.json"
        if not path.parent.is_dir():
            continue
        run = json.loads(path.read_text("utf-8"))
        log = read_rows(path.with_name("log.csv"))
        best = min(log, key=lambda row: float(row["val_perplexity"]))["epoch"]
        reached = [
            f"{run[k]:.1f}" if k in run else "not measured" for k in ("valid", "test")
        ]
        cached = f"{run['test_with_cache']:.1f}" if "test_with_cache" in run else ""
        both = [
            f"{r} ({p})" if p else r for r, p in zip(reached, published, strict=True)
        ]
        cells = [title, f"`{name}`", *both, cached]
        cells += [f"{run['weights'] / 1e6:.1f}", f"{best} of {len(log)}"]
        cells.append(run["options"]["dtype_policy"])
        body.append(cells)
    header = ["perplexity (published)", "directory", "valid", "test"]
    header += ["test with cache", "million weights", "best epoch", "dtype policy"]
    return markdown(header, body)


def short_runs_table(directory: Path) -> str:
    """The perplexities alone, those of all seeds in one cell, for the README."""
    body = []
    for name, (title, _, published) in RUNS.items():
        paths = [directory / f"{name}{end}" / "run.json" for end in ("", "_seed1")]
        runs = [json.loads(p.read_text("utf-8")) for p in paths if p.is_file()]
        if runs and not name.endswith("_seed1"):
            reached = [
                ", ".join(
                    f"{run[key]:.1f}" if key in run else "not measured" for run in runs
                )
                for key in ("valid", "test")
            ]
            cached = [
                f"{run['test_with_cache']:.1f}"
                for run in runs
                if "test_with_cache" in run
            ]
            body.append([title, *reached, ", ".join(cached), published])
    header = ["perplexity", "validation", "test", "with cache", "published, test"]
    return markdown(header, body)


def files_of(directory: Path, name: str, places: dict) -> dict[str, list[dict]]:
    """The rows of the file `name`, for each of `places` that has this file."""
    found = {place: read_rows(directory / place / name) for place in places}
    return {place: rows for place, rows in found.items() if rows}


def measured_on(results: dict[str, list[dict]]) -> str:
    """The machines, each with its versions and dates."""
    machines = {}
    for rows in results.values():
        for row in rows:
            versions, dates = machines.setdefault(row["hardware"], ({}, set()))
            versions |= dict.fromkeys(row["versions"].split(", "))
            dates.add(row["date"])
    return "\n".join(
        f"Measured on: {hardware}; {', '.join(versions)}; "
        f"{' to '.join(sorted({min(dates), max(dates)}))}."
        for hardware, (versions, dates) in machines.items()
    )


def paper_speedup(batch: int, time: int) -> float:
    return PAPER_SPEEDUP[batch][PAPER_TIMES.index(time)]


def spread_of(ratios: dict[tuple[int, int], float]) -> list[str]:
    values = list(ratios.values())
    return [
        f"{len(values)} of {len(PAPER_SPEEDUP) * len(PAPER_TIMES)}",
        f"{min(values):.1f} to {max(values):.1f}",
        f"{geometric_mean(values):.1f}",
        f"{sum(value >= 1 for value in values)} of {len(values)}",
    ]


def gpu_scan_table(rows: list[dict]) -> str:
    """Each scan's milliseconds, and the time as a multiple of passes over memory."""
    cells = medians(rows, ("batch", "time", "units"), direction="forward")
    floors = {shape: cell["single pass"] for shape, cell in cells.items()}
    body = [["one pass", *(f"{1e3 * second:.3f}" for second in floors.values())]]
    for direction, passes in (("forward", 1), ("forward+backward", 3)):
        cells = medians(rows, ("batch", "time", "units"), direction=direction)
        names = [name for name in next(iter(cells.values())) if name != "single pass"]
        for name in names:
            line = [
                f"{1e3 * cells[s][name]:.3f} ({cells[s][name] / floor / passes:.1f})"
                for s, floor in floors.items()
            ]
            body.append([f"{name}, {direction}", *line])
    return markdown(["ms", *(" x ".join(map(str, shape)) for shape in floors)], body)


def gpu_section(directory: Path) -> str | None:
    """The text on the speed on a GPU. None if it was never measured."""
    layer = files_of(directory, "layer.csv", ON_GPU)
    if not layer:
        return None
    body, tables = [], []
    for place, rows in layer.items():
        for dtype in sorted({row["dtype"] for row in rows}, reverse=True):
            name = f"{ON_GPU[place]}, {dtype}"
            training = speedups(rows, mode="training", dtype=dtype)
            body.append([f"{name}, training", *spread_of(training), ""])
            inference = speedups(rows, mode="inference", dtype=dtype)
            ahead = sum(r > paper_speedup(*key) for key, r in inference.items())
            body.append(
                [
                    f"{name}, inference",
                    *spread_of(inference),
                    f"{ahead} of {len(inference)}",
                ]
            )
            lines = [
                [
                    f"{batch}",
                    *(
                        f"{inference[batch, time]:.1f} ({paper_speedup(batch, time)})"
                        if (batch, time) in inference
                        else ""
                        for time in PAPER_TIMES
                    ),
                ]
                for batch in sorted({batch for batch, _ in inference})
            ]
            header = ["batch \\ time", *map(str, PAPER_TIMES)]
            tables.append(f"**{name}, inference**\n\n{markdown(header, lines)}")
    header = ["", "cells measured", "times as fast as the fastest LSTM"]
    header += ["geometric mean", "cells at least as fast", "cells ahead of the paper's"]
    parts = [measured_on(layer), markdown(header, body)]
    parts.append(
        "<details>\n<summary>By batch and time, and in brackets the paper's</summary>"
    )
    parts += [*tables, "</details>"]
    scans = files_of(directory, "scan.csv", ON_GPU)
    for place in ("torch_cuda_gpu_time", "jax_cuda"):
        if place in scans:
            parts.append(
                f"**A scan, batch x time x units, {ON_GPU[place]}, float32: ms, and in "
                "brackets as a multiple of the time of passes over the same memory "
                "(one forward, three with the gradient)**"
            )
            parts.append(gpu_scan_table(scans[place]))
    for place in layer:
        if (directory / place / "layer.png").exists():
            path = f"../benchmarks/results/{place}/layer.png"
            alt = f"{ON_GPU[place]}, times as fast by batch and time"
            parts.append(f"![{alt}]({path})")
    return "\n\n".join(parts)


def section(directory: Path) -> str:
    """The text on the speed on a CPU, from the result files that exist."""

    def all_of(name: str) -> dict[str, list[dict]]:
        return files_of(directory, name, BACKENDS)

    layer, parts = all_of("layer.csv"), []
    if not layer:
        raise FileNotFoundError(
            f"Expected result files such as {directory / 'jax' / 'layer.csv'}: "
            "run benchmarks/layer.py first"
        )
    parts.append(measured_on(layer))
    dtypes = {row["dtype"] for rows in layer.values() for row in rows}
    for dtype in sorted(dtypes, key=lambda dtype: (dtype != "float32", dtype)):
        for mode in MODES:
            title = f"**A layer of 320 units, {mode}, {dtype}**"
            parts.append(f"{title}\n\n{layer_summary(layer, mode, dtype)}")
    parts.append("How many times as fast as the fastest LSTM, by batch and time:")
    for backend in layer:
        if (directory / backend / "layer.png").exists():
            path = f"../benchmarks/results/{backend}/layer.png"
            alt = f"{BACKENDS[backend]}, times as fast by batch and time"
            parts.append(f"![{alt}]({path})")
    tables = (
        (
            "scan.csv",
            "`linear_scan`, batch x time x units, as a multiple of the time of passes "
            "over the same memory (`a * b + c`; one forward, three with the gradient)",
            scan_table,
        ),
        (
            "lm.csv",
            "The Penn Treebank model of the paper, 18 million weights, 20 x 105 tokens",
            model_table,
        ),
        (
            "memory.csv",
            "Memory in MiB: training at 64 x 512 x 320 (the peak, and what is kept "
            "from the forward to the backward pass), inference in pieces of 512 steps "
            "at 8 x time x 320",
            memory_table,
        ),
    )
    parts.append("<details>\n<summary>The scan, the language model, memory</summary>")
    for name, title, table in tables:
        if results := all_of(name):
            parts += [f"**{title}**", measured_on(results), table(results)]
    if results := files_of(directory, "lm.csv", ON_AMD):
        title = "The cross-entropy of that model, 2,100 tokens by 10,000 words"
        parts += [f"**{title}**", measured_on(results), softmax_table(results)]
    parts.append("</details>")
    if lengths := all_of("length.csv"):
        parts.append("The time of a layer grows linearly with the number of steps:")
        for backend in lengths:
            path = f"../benchmarks/results/{backend}/length.png"
            parts.append(f"![{BACKENDS[backend]}, seconds by steps]({path})")
    if results := files_of(directory, "layer.csv", ON_AMD):
        parts.append(measured_on(results))
        for mode in MODES:
            title = f"**A layer of 320 units on an AMD EPYC, {mode}, float32**"
            parts.append(f"{title}\n\n{layer_summary(results, mode, 'float32')}")
    if results := files_of(directory, "mask.csv", ON_AMD):
        title = (
            "The time with a right-padded mask over the time without one: 64 sequences "
            "of up to 64 steps, a layer of 320 units"
        )
        parts += [f"**{title}**", measured_on(results), mask_table(results)]
    return "\n\n".join(parts)


def short_section(directory: Path) -> str:
    """How many times as fast as LSTMs: one line for each backend, for the README."""
    body = []
    places = {place: f"{name}, CPU" for place, name in BACKENDS.items()}
    places |= {"jax_cuda": "JAX, GPU", "torch_cuda": "PyTorch, GPU"}
    for place, rows in files_of(directory, "layer.csv", places).items():
        cells = []
        for mode in MODES:
            values = list(speedups(rows, mode=mode, dtype="float32").values())
            cells.append(
                f"{geometric_mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"
                if values
                else ""
            )
        body.append([places[place], *cells])
    return markdown(["times as fast as the fastest LSTM", *MODES], body)


def write_section(page: Path, name: str, text: str) -> None:
    """Replaces the text between the markers `name` in `page`.

    Raises:
        ValueError: if `page` has not one pair of these markers.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    whole = page.read_text(encoding="utf-8")
    if whole.count(begin) != 1 or whole.count(end) != 1:
        raise ValueError(f"Expected one {begin} and one {end}. Received: {page}")
    head, rest = whole.split(begin)
    _, tail = rest.split(end)
    with atomic_write(page) as temporary:
        new = f"{head}{begin}\n\n{text}\n\n{end}{tail}"
        temporary.write_text(new, encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    here = Path(__file__).parent
    for name, default in (
        ("root", here.parent),
        ("results", here / "results"),
        ("runs", here.parent / "results"),
    ):
        parser.add_argument(f"--{name}", type=existing_directory, default=default)
    options = parser.parse_args(arguments)
    try:
        write_sections(options)
    except (ValueError, OSError) as error:
        parser.error(str(error))


def write_sections(options: argparse.Namespace) -> None:
    """Writes all tables. `options` are those of the command line."""
    readme, docs = options.root / "README.md", options.root / "docs"
    write_section(docs / "speed.md", "speed", section(options.results))
    write_section(readme, "speed", short_section(options.results))
    if gpu := gpu_section(options.results):
        write_section(docs / "speed.md", "gpu", gpu)
    for page, table in (
        ("sentiment", task_table),
        ("translation", task_table),
        ("streaming", streaming_table),
    ):
        if results := files_of(options.results, f"{page}.csv", ON_AMD):
            text = f"{table(results)}\n\n{measured_on(results)}"
            write_section(docs / f"{page}.md", "speed", text)
    if any((options.runs / name).is_dir() for name in RUNS):
        write_section(docs / "penn-treebank.md", "results", runs_table(options.runs))
        write_section(readme, "results", short_runs_table(options.runs))


if __name__ == "__main__":
    main()
