"""Writes a trained language model for a release: half precision, and a model card.

    python examples/release_weights.py --load_path lm-paper --data_dir ptb

The directory that it makes holds `model.keras`, `vocabulary.json` and `README.md`.
`load_trained`, `sample_lm.py` and `train_lm.py --finetune` take it as they take a run.
"""

import argparse
import json
import math
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

try:
    import keras
    import numpy as np

    import keras_qrnn
    from keras_qrnn._files import reading
    from keras_qrnn.data import Corpus
    from keras_qrnn.models import LanguageModel
    from keras_qrnn.training import TrainingOptions, evaluate_perplexity, load_trained
    from keras_qrnn.training.command_line import (
        Parser,
        add_options,
        data_from,
        run_command,
    )
    from keras_qrnn.training.data_options import CorpusOptions
    from keras_qrnn.training.environment import environment
    from keras_qrnn.training.options import named_fields, path, with_current_names
    from keras_qrnn.training.run_directory import RunDirectory, check_directory
except KeyboardInterrupt:  # the imports take seconds
    sys.exit(130)

WEIGHTS = "model.weights.h5"  # in a .keras file
SPLITS = ("valid", "test")
# What a cell is called in a title.
CELLS = {"qrnn": "QRNN", "lstm": "LSTM", "unrolled_lstm": "LSTM"}
# Options that do not make another recipe than the paper's. It has runs with and
# without zoneout.
SAME_RECIPE = {"zoneout", "seed", "save_every", "distribution", "dtype_policy"}
# Half precision and another backend change a perplexity by less than this factor.
CLOSE = 0.01
LOAD = """\
import numpy as np

from keras_qrnn.models.generation import generate, text_of
from keras_qrnn.training import load_trained

model, vocabulary = load_trained(".")  # this directory
first, random = vocabulary.id_of("<eos>"), np.random.default_rng(0)
ids = generate(model.with_batch_size(1), first, 20, 0.8, random)
print(text_of(vocabulary.decode(ids)))
"""


def parser() -> argparse.ArgumentParser:
    parser = Parser(
        "release_weights.py",
        description="Writes a trained language model for a release.",
    )
    parser.add_argument(
        "--load_path", help="directory that train_lm.py wrote (required)"
    )
    parser.add_argument(
        "--save_path", default="weights", help="directory to make (default weights)"
    )
    add_options(parser, CorpusOptions)
    return parser


def save_in_half_precision(model: LanguageModel, file: Path) -> None:
    """Writes a `.keras` file whose weights are float16. It loads as a float32 model.

    Raises:
        ValueError: if a weight is too large for float16.
    """

    def copy(dtype: str) -> LanguageModel:
        twin = LanguageModel.from_config(model.get_config() | {"dtype": dtype})
        twin.build()
        twin.copy_weights(model.weights)
        return twin

    half = copy("float16")
    for weight in half.weights:
        if not np.isfinite(keras.ops.convert_to_numpy(weight)).all():
            raise ValueError(
                f"The weights must be finite in half precision. Received: {weight.path}"
            )
    with tempfile.TemporaryDirectory() as name:
        places = {"float32": Path(name, "a.keras"), "float16": Path(name, "b.keras")}
        copy("float32").save(places["float32"])
        half.save(places["float16"])
        with (
            zipfile.ZipFile(places["float32"]) as whole,
            zipfile.ZipFile(places["float16"]) as halved,
            zipfile.ZipFile(file, "w") as archive,
        ):
            for entry in whole.namelist():
                source = halved if entry == WEIGHTS else whole
                archive.writestr(entry, source.read(entry))


def read_record(run: Path) -> dict[str, Any]:
    """What `run.json` says of the run, its options by their present names.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged.
    """
    file = RunDirectory(run).record
    if not file.is_file():
        raise FileNotFoundError(
            "Option `load_path` must be a run that has ended. "
            f"Received: {run}, which holds no run.json"
        )
    with reading(file, "the record of a run of train_lm.py"):
        record = json.loads(file.read_text("utf-8"))
        options = with_current_names(record["options"])
        needed = {"layers", "units", "zoneout"} - options.keys()
        needed |= {"command", "date", "hardware", "versions", "weights"} - record.keys()
        if needed:
            raise ValueError(f"no {', '.join(sorted(needed))}")
        return record | {"options": options}


def measured(
    directory: Path, corpus: Corpus, record: dict[str, Any]
) -> dict[str, tuple[int, float]]:
    """Tokens and perplexity of each split that the run was evaluated on.

    Raises:
        ValueError: if a perplexity is not that of the run: the corpus is another one.
    """
    model, vocabulary = load_trained(directory, "save_path")
    found = {}
    for split in SPLITS:
        ids = vocabulary.encode(getattr(corpus, split), split)
        perplexity = evaluate_perplexity(model, ids)
        before = record.get(split)
        if before is not None and not abs(math.log(perplexity / before)) < CLOSE:
            raise ValueError(
                "Options `dataset` and `data_dir` must give the corpus of the run, "
                f"with a {split} perplexity of {before:.2f}. Received: {corpus.name}, "
                f"with {perplexity:.2f}"
            )
        found[split] = len(ids) - 1, perplexity
    return found


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """A table in Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def model_card(
    record: dict[str, Any], perplexities: dict[str, tuple[int, float]], data: str
) -> str:
    """The model card, in Markdown.

    Args:
        record: of the run.
        perplexities: tokens and perplexity of each split.
        data: name of the corpus.
    """
    options = record["options"]
    rows = []
    for split, (tokens, perplexity) in perplexities.items():
        before = f"{record[split]:.2f}" if split in record else "not read"
        rows.append((split, tokens, f"{perplexity:.2f}", before))
    fields = named_fields(TrainingOptions)
    changed = {n for n in fields if n in options and options[n] != fields[n].default}
    settings = [
        (f"`{name}`", each.metadata["help"], options[name])
        for name, each in fields.items()
        if name in changed and options[name] is not None
    ]
    here = environment()
    cell = options.get("cell", "qrnn")
    sizes = f"{options['layers']} layers of {options['units']}"
    what = f"A word-level language model of {CELLS[cell]} layers"
    if cell == "qrnn":
        sizes += f", zoneout {options['zoneout'] or 'none'}"
        what += " ([arXiv 1611.01576](https://arxiv.org/abs/1611.01576))"
        if changed <= SAME_RECIPE:
            what += ", with the recipe of the paper's section 3.2"
    return f"""\
---
library_name: keras
license: apache-2.0
tags: [{CELLS[cell].lower()}, language-model]
---

# {CELLS[cell]} language model: {sizes}

{what}. It was trained with keras_qrnn on {data}. It has {record["weights"]:,} weights.
The file has them in half precision (float16); the loaded model computes in float32.

## Perplexity

{table(("split", "tokens", "these weights", "the run itself"), rows)}

Every token of a split but the first counts, `<eos>` too. The state is carried over.
Validation chose the epoch. These weights were evaluated on {here["hardware"]}, with
{here["versions"]}, on {here["date"]}.

## Training

- Data: {data}.
- Command: `{record["command"]}`
- Hardware: {record["hardware"]}
- Versions: {record["versions"]}
- Date: {record["date"]}

Options that differ from the defaults of keras_qrnn {keras_qrnn.__version__}:

{table(("option", "what it is", "value"), settings)}

## Load

With keras_qrnn and a backend installed, in this directory:

```python
{LOAD}```

## Files

- `model.keras`: the model. It is a zip archive of JSON and HDF5, without pickle.
- `vocabulary.json`: the words, in the order of their ids.

## Licence

Apache-2.0, as keras_qrnn. The corpus has a licence of its own; no text of it is here.
"""


def run(arguments: argparse.Namespace) -> None:
    if arguments.load_path is None:
        raise ValueError(
            "Option `load_path` must be given: a directory that train_lm.py wrote"
        )
    source = Path(path("load_path", arguments.load_path))
    # Nothing can be renamed to ".".
    target = Path(path("save_path", arguments.save_path)).absolute()
    check_directory("save_path", target)
    if target.exists() and any(target.iterdir()):
        raise FileExistsError(
            f"Option `save_path` must be a new directory. Received: {target}, which "
            "holds files"
        )
    model, vocabulary = load_trained(source, "load_path")
    record = read_record(source)
    data = data_from(arguments, CorpusOptions)
    corpus = data.load()
    target.parent.mkdir(parents=True, exist_ok=True)
    # The directory comes into being as a whole or not at all.
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        made = Path(name, "made")
        made.mkdir()
        save_in_half_precision(model, made / "model.keras")
        vocabulary.save(made / "vocabulary.json")
        perplexities = measured(made, corpus, record)
        name_of_data = data.short_name or corpus.name
        if corpus.revision is not None:
            name_of_data += f" ({corpus.revision})"
        card = model_card(record, perplexities, name_of_data)
        (made / "README.md").write_text(card, "utf-8")
        made.rename(target)
    size = (target / "model.keras").stat().st_size / 1e6
    print(f"{target}: model.keras ({size:.1f} MB), vocabulary.json, README.md")


def main(argv: list[str] | None = None) -> int:
    return run_command("release_weights.py", lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
