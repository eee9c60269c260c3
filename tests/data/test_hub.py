"""The hub: three data sets from one on loopback; what it lacks; no hub at all."""

import http.client
import io
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from keras_qrnn.data import hub, load_corpus
from keras_qrnn.data.imdb import load_reviews
from keras_qrnn.data.multi30k import load_parallel_text
from tests.data.hub import COMMIT, Hub, parquet

pytestmark = pytest.mark.one_backend
ROOT = Path(__file__).parents[2]
LINES = {
    "train": ["a b <unk>", "b N"],
    "validation": ["a c"],
    "test": ["b b", "c"],
}
REVIEWS = {
    "train": (["A bad film", "A good one", "Not bad"], [0, 1, 1]),
    "test": (["Good.", "Bad."], [1, 0]),
    "unsupervised": (["Long"], [-1]),
}
PAIRS = {
    "train": (["ein Hund", "zwei Bäume", "x"], ["a dog", "two trees", "x"]),
    "val": (["ein Baum"], ["a tree"]),
    "test": (["ja", "nein"], ["yes", "no"]),
}
LOADERS = [load_corpus, load_reviews, load_parallel_text]
PROGRAM = """
import json
from dataclasses import asdict
from keras_qrnn.data import load_corpus
from keras_qrnn.data.imdb import load_reviews
from keras_qrnn.data.multi30k import load_parallel_text
corpus = load_corpus()
reviews = load_reviews(valid_size=1, unlabelled=True)
try:
    load_parallel_text(languages=("de", "fr"))
except ValueError as refused:
    error = str(refused)
print(json.dumps({
    "corpus": asdict(corpus),
    "reviews": [
        reviews.name, reviews.revision,
        sorted(reviews.train.texts + reviews.valid.texts),
        reviews.test.texts, reviews.test.labels.tolist(), reviews.unlabelled,
    ],
    "pairs": asdict(load_parallel_text()),
    "error": error,
}))
"""


def files_of_reviews():
    files = {
        f"plain_text/{split}-00000-of-00001.parquet": parquet(text=texts, label=labels)
        for split, (texts, labels) in REVIEWS.items()
    }
    # As in the real one: `datasets` would not find a split of that name by itself.
    listed = "".join(
        f"  - split: {split}\n    path: plain_text/{split}-*\n" for split in REVIEWS
    )
    config = f"configs:\n- config_name: plain_text\n  data_files:\n{listed}"
    return files | {"README.md": f"---\n{config}---\n".encode()}


def lines_of_pairs(split):
    """JSON lines with a column for each language."""
    pairs = zip(*PAIRS[split], strict=True)
    return "".join(json.dumps({"en": en, "de": de}) + "\n" for de, en in pairs)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """What one process loads from the hub, and the paths that it asked for."""
    datasets = {
        "ptb-text-only/ptb_text_only": (
            "refs/convert/parquet",
            {
                f"penn_treebank/{split}/0000.parquet": parquet(sentence=lines)
                for split, lines in LINES.items()
            },
        ),
        "stanfordnlp/imdb": ("main", files_of_reviews()),
        "bentrevett/multi30k": (
            "main",
            {f"{split}.jsonl": lines_of_pairs(split).encode() for split in PAIRS},
        ),
    }
    with Hub(datasets) as server:
        home = str(tmp_path_factory.mktemp("hub"))
        environment = os.environ | {"HF_ENDPOINT": server.endpoint, "HF_HOME": home}
        environment.pop("HF_HUB_OFFLINE", None)
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]) | {"asked": server.requests}


def test_penn_treebank(loaded):
    corpus = loaded["corpus"]
    assert corpus["name"] == "ptb-text-only/ptb_text_only"
    assert corpus["revision"] == COMMIT
    assert [corpus[split] for split in ("train", "valid", "test")] == [*LINES.values()]
    assert any("refs/convert/parquet" in path for path in loaded["asked"])


def test_imdb(loaded):
    assert loaded["reviews"] == [
        "stanfordnlp/imdb", COMMIT, ["a bad film", "a good one", "not bad"],
        ["good .", "bad ."], [1, 0], ["long"],
    ]  # fmt: skip


def test_multi30k(loaded):
    pairs = loaded["pairs"]
    assert pairs["revision"] == COMMIT
    for found, split in (
        (pairs["train"], "train"),
        (pairs["valid"], "val"),
        (pairs["tests"]["test"], "test"),
    ):
        assert (found["source"], found["target"]) == PAIRS[split]
    assert "It has no fr" in loaded["error"]


@pytest.mark.parametrize("load", LOADERS)
def test_a_split_that_the_hub_lacks(load, monkeypatch):
    datasets = pytest.importorskip("datasets")
    names = ("sentence", "text", "label", "de", "en")
    train = datasets.Dataset.from_dict({name: ["a"] for name in names})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: {"train": train})
    answer = b'{"sha": "c0ffee"}'
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: io.BytesIO(answer))
    with pytest.raises(ValueError, match=r"must have the splits train, .*has no test"):
        load()


class Cut(io.BytesIO):
    """An answer of the hub whose connection ends too early."""

    def read(self, *_):
        raise http.client.IncompleteRead(b"{")


@pytest.mark.parametrize("load", LOADERS)
def test_revisions_of_the_hub(load, monkeypatch):
    datasets = pytest.importorskip("datasets")
    names = ("sentence", "text", "label", "de", "en")
    split = datasets.Dataset.from_dict({name: ["a"] * 2 for name in names})
    splits = {name: split for name in ("train", "test", "validation")}
    asked, answers = [], []

    def load_dataset(name, revision):
        asked.append(revision)
        return splits

    def urlopen(url, timeout):
        asked.append(url.rpartition("/")[2])
        return io.BytesIO(answers.pop())

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    answers.append(b'{"sha": "c0ffee"}')
    assert load(revision="a/b").revision == "c0ffee"
    assert asked == ["a%2Fb", "c0ffee"]  # the commit is loaded, not what is there later
    answers += [b"<html>", b"{}", b"[]"]
    while answers:
        with pytest.raises(ConnectionError, match="its answer names no commit"):
            load()
    with monkeypatch.context() as patch:
        patch.setattr("urllib.request.urlopen", lambda *_, **__: Cut())
        with pytest.raises(ConnectionError, match=r"Could not load .*IncompleteRead"):
            load()
    asked.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert load(revision="a/b").revision == "a/b" and asked == ["a/b"]
    for place in ({"dataset": "sample"}, {"data_dir": "x"}):
        with pytest.raises(ValueError, match="`revision` goes with a data set of the"):
            load(**place, revision="main")


@pytest.mark.parametrize("listening", [False, True])
def test_no_hub(listening, monkeypatch):
    """One server is not there. Another never answers."""
    pytest.importorskip("datasets")  # before the time is taken: it takes seconds
    monkeypatch.setattr(hub, "TIMEOUT", 0.5)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listening:
            server.listen()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        start = time.monotonic()
        with pytest.raises(ConnectionError, match=r"--data_dir.*--dataset sample"):
            load_corpus()
    assert time.monotonic() - start < 10
