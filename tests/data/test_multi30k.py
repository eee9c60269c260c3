"""Parallel text: files, the sample, characters and batches."""

import gzip
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_qrnn.data import translation_sample
from keras_qrnn.data.characters import CharacterVocabulary
from keras_qrnn.data.multi30k import (
    Pairs,
    load_parallel_text,
)
from keras_qrnn.data.pair_batches import PairBatches, source_batch, without_long

pytestmark = pytest.mark.one_backend
ROOT = Path(__file__).parents[2]
MULTI30K = Path(
    os.environ.get("KERAS_QRNN_MULTI30K", ROOT.parent / "shared" / "multi30k")
)
SPLITS = {
    "train": (["ein Hund", "zwei Bäume", "x"], ["a dog", "two trees", "x"]),
    "val": (["ein Baum"], ["a tree"]),
    "test_a": (["zwei"], ["two"]),
    "test_b": (["ja", "nein"], ["yes", "no"]),
}


def write(directory, splits=SPLITS, languages=("de", "en"), compressed=False):
    directory.mkdir(exist_ok=True)
    for split, sides in splits.items():
        for language, lines in zip(languages, sides, strict=True):
            data = "".join(f"{line} \n" for line in lines).encode()
            path = directory / f"{split}.{language}"
            if compressed:
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(data))
            else:
                path.write_bytes(data)
    return directory


# Files


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("valid", ["val", "valid"])
def test_directory(tmp_path, compressed, valid):
    splits = {valid if n == "val" else n: sides for n, sides in SPLITS.items()}
    directory = write(tmp_path / "m", splits, compressed=compressed)
    text = load_parallel_text(data_dir=directory)
    assert text.train == Pairs(*SPLITS["train"]) and len(text.train) == 3
    assert text.valid == Pairs(*SPLITS["val"])
    assert text.tests == {n: Pairs(*SPLITS[n]) for n in ("test_a", "test_b")}
    assert text.languages == ("de", "en") and not text.has_one_answer


def test_other_languages(tmp_path):
    directory = write(tmp_path / "m", languages=("fr", "cs"))
    text = load_parallel_text(data_dir=directory, languages=("cs", "fr"))
    assert text.train == Pairs(*SPLITS["train"][::-1])
    with pytest.raises(FileNotFoundError, match=r"which has no train\.de"):
        load_parallel_text(data_dir=directory)


def test_ends_of_lines(tmp_path):
    """Line ends of Windows, a byte order mark, and U+2028 within a sentence."""
    directory = write(tmp_path / "m")
    (directory / "train.de").write_bytes("\ufeffa\r\nb\u2028c\r\nd".encode())
    text = load_parallel_text(data_dir=directory)
    assert text.train.source == ["a", "b\u2028c", "d"]


def remove(pattern):
    return lambda directory: [path.unlink() for path in directory.glob(pattern)]


def put(name, data):
    return lambda directory: (directory / name).write_bytes(data)


SPOILED = {
    "no train": (remove("train.en"), FileNotFoundError, r"no train\.en"),
    "no valid": (remove("val.*"), FileNotFoundError, r"no val\.de"),
    "half of a test set": (remove("test_b.de"), FileNotFoundError, r"no test_b\.de"),
    "unequal": (
        put("test_a.en", b"a\nb\n"),
        ValueError,
        r"test_a\.de and .*test_a\.en must .*Received: 1 and 2 lines",
    ),
    "empty": (put("val.en", b" \n"), ValueError, r"val\.en is empty"),
    "not UTF-8": (put("train.de", b"\xff"), ValueError, r"train\.de is not UTF-8"),
    "not gzip": (
        lambda directory: (directory / "val.de").rename(directory / "val.de.gz"),
        ValueError,
        r"val\.de\.gz is not a whole gzip file",
    ),
}


@pytest.mark.parametrize(("spoil", "error", "message"), SPOILED.values(), ids=SPOILED)
def test_bad_directories(tmp_path, spoil, error, message):
    directory = write(tmp_path / "m")
    spoil(directory)
    with pytest.raises(error, match=message):
        load_parallel_text(data_dir=directory)


def test_bad_arguments(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere, no directory"):
        load_parallel_text(data_dir=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="Received: dataset='iwslt'"):
        load_parallel_text("iwslt")
    with pytest.raises(ValueError, match="the sample is generated"):
        load_parallel_text("sample", tmp_path)
    with pytest.raises(ValueError, match="two different languages"):
        load_parallel_text(languages=("de", "de"))
    with pytest.raises(ValueError, match="names such as 'de'"):
        load_parallel_text(data_dir=tmp_path, languages=("../de", "en"))


@pytest.mark.skipif(
    not MULTI30K.is_dir(),
    reason="needs Multi30k: set KERAS_QRNN_MULTI30K to a directory with its splits",
)
def test_multi30k():
    text = load_parallel_text(data_dir=MULTI30K)
    assert len(text.train) == 29000 and len(text.valid) == 1014
    assert {n: len(p) for n, p in text.tests.items()} == {
        "test_2016_flickr": 1000,
        "test_2017_flickr": 1000,
    }
    assert without_long(text.train, 300) == (text.train, 0, 0)
    vocabulary = CharacterVocabulary.build([*text.train.source, *text.train.target])
    for pairs in (text.valid, *text.tests.values()):
        assert not vocabulary.unknown_in([*pairs.source, *pairs.target])


# The sample


def test_sample():
    text = load_parallel_text("sample")
    pairs = dict(translation_sample.all_pairs())
    assert len(pairs) == len(translation_sample.all_pairs())  # one answer each
    splits = [text.train, text.valid, text.tests["test"]]
    assert [len(split) for split in splits] == [4000, 200, 200]
    drawn = [pair for s in splits for pair in zip(s.source, s.target, strict=True)]
    assert len(set(drawn)) == len(drawn)
    assert all(pairs[source] == target for source, target in drawn)
    assert text == load_parallel_text("sample") and text.has_one_answer
    with pytest.raises(ValueError, match=r"at most 4608 sentences\. Received: 5000"):
        translation_sample.generate({"train": 5000})


def test_sample_rules():
    pairs = dict(translation_sample.all_pairs())
    for german, english in {
        "der alte hund sieht den roten wolf": "the old dog sees the red wolf",
        "die alten frauen werden das kind malen": "the old women will paint the child",
        "heute sehen die roten kinder die hunde": "today the red children see the dogs",
    }.items():  # fmt: skip
        assert pairs[german] == english


# Characters


def test_characters(tmp_path):
    vocabulary = CharacterVocabulary.build(["ab", "ba c"])
    assert vocabulary.words == ["<pad>", "<eos>", "<unk>", "a", "b"]
    assert vocabulary.encode(["a c", "b"]).tolist() == [3, 2, 2, 1, 4, 1]
    each = vocabulary.encode_each(["", "ab"])
    assert [ids.tolist() for ids in each] == [[1], [3, 4, 1]]
    assert vocabulary.unknown_in(["a c", "d"]) == [" ", "c", "d"]
    assert vocabulary.text_of([0, 3, 2, 4, 1, 3]) == "a\ufffdb"
    assert " " in CharacterVocabulary.build(["a b"], min_count=1)
    vocabulary.save(tmp_path / "v.json")
    assert CharacterVocabulary.load(tmp_path / "v.json").words == vocabulary.words
    for words in (["<eos>", "<unk>", "a"], [*vocabulary.words, "ab"]):
        with pytest.raises(ValueError, match="and then single characters"):
            CharacterVocabulary(words)


def test_without_long():
    pairs = Pairs(["a" * 5, "b", "", "c"], ["a", "b" * 6, "x", "c"])
    assert without_long(pairs, 5) == (Pairs(["a" * 5, "c"], ["a", "c"]), 1, 1)


# Batches


def sentences(rng, count):
    return [
        np.append(rng.integers(3, 9, length), 1).astype("int32")
        for length in rng.integers(0, 20, count)
    ]


def pairs_of(batches):
    """Each pair that has a weight, read back from the arrays."""
    found = []
    for n in range(len(batches)):
        (source, inputs), targets, weights = batches[n]
        for array in (source, targets):
            assert array.shape[1] % batches._multiple == 0
        assert len(source) == len(targets) == batches.batch_size
        assert (inputs[:, 0] == 1).all() and (inputs[:, 1:] == targets[:, :-1]).all()
        for s, t, w in zip(source, targets, weights, strict=True):
            length = int(w.sum())
            assert (w[:length] == 1).all() and s[0] == 1
            if length:
                assert (t[length:] == 0).all()
                read = s[: np.count_nonzero(s)][::-1]
                found.append((tuple(map(int, read)), tuple(map(int, t[:length]))))
    return Counter(found)


@given(
    st.integers(1, 40),
    st.integers(1, 9),
    st.sampled_from([1, 4, 16]),
    st.sampled_from([None, 0, 5]),
)
def test_each_pair_is_in_one_batch(count, batch_size, multiple, seed):
    rng = np.random.default_rng(count)
    source, target = sentences(rng, count), sentences(rng, count)
    batches = PairBatches(source, target, batch_size, seed, multiple)
    expected = Counter(
        (tuple(map(int, s)), tuple(map(int, t)))
        for s, t in zip(source, target, strict=True)
    )
    assert batches.num_targets == sum(map(len, target))
    first = [batches[n] for n in range(len(batches))]
    assert pairs_of(batches) == expected
    batches.epoch = 1
    assert pairs_of(batches) == expected and len(batches) == len(first)
    batches.epoch, batches.start = 0, len(first) // 2
    for n in range(len(batches)):  # a resumed epoch
        for got, known in zip(batches[n][0], first[batches.start + n][0], strict=True):
            np.testing.assert_array_equal(got, known)


def test_batches_by_length():
    """There is little padding. Each epoch has another order."""
    rng = np.random.default_rng(0)
    source, target = sentences(rng, 400), sentences(rng, 400)
    batches = PairBatches(source, target, 8, seed=1, multiple=2)
    steps = sum(batches[n][1].size for n in range(len(batches)))
    assert steps < 1.2 * batches.num_targets
    order = [batches[n][1].tolist() for n in range(len(batches))]
    batches.epoch = 1
    assert order != [batches[n][1].tolist() for n in range(len(batches))]
    shapes = [batches[n][1].shape[1] for n in range(len(batches))]
    assert shapes != sorted(shapes)


def test_bad_batches():
    with pytest.raises(ValueError, match=r"equal numbers .* Received: 1 and 2"):
        PairBatches([np.array([1])], [np.array([1])] * 2, 4)
    with pytest.raises(ValueError, match="`multiple` must be a positive integer"):
        PairBatches([np.array([1])], [np.array([1])], 4, multiple=0)


def test_source_batch():
    rows = [np.array([5, 6, 1], "int32"), np.array([1], "int32")]
    assert source_batch(rows, 4).tolist() == [[1, 6, 5, 0], [1, 0, 0, 0]]
