"""Corpora, vocabulary, and the sample with its entropy."""

import hashlib
import itertools
import math
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_qrnn.data import (
    BPTTBatches,
    CharacterVocabulary,
    Corpus,
    Vocabulary,
    encode_reviews,
    load_corpus,
    text_sample,
)
from keras_qrnn.data.batches import stream_batches
from keras_qrnn.data.review_batches import ReviewBatches

pytestmark = pytest.mark.one_backend
ROOT = Path(__file__).parents[2]
PTB = Path(os.environ.get("KERAS_QRNN_PTB", ROOT.parent / "shared" / "ptb"))
needs_ptb = pytest.mark.skipif(
    not PTB.is_dir(),
    reason="needs Penn Treebank: set KERAS_QRNN_PTB to a directory with its splits",
)
SAMPLE_DIGEST = "7f4d5d40788b2f33"
SPLITS = {"train": ["a b <unk>", "b N"], "valid": ["a c"], "test": ["b b", "c"]}


def write_splits(directory, splits=SPLITS):
    directory.mkdir(exist_ok=True)
    for split, lines in splits.items():
        # Mikolov's files begin and end each line with a blank.
        text = "".join(f" {line} \n" for line in lines)
        (directory / f"{split}.txt").write_text(text, "utf-8")
    return directory


# Corpora


def test_directory(tmp_path):
    corpus = load_corpus(data_dir=write_splits(tmp_path / "ptb"))
    for split, lines in SPLITS.items():
        assert [line.split() for line in getattr(corpus, split)] == [
            line.split() for line in lines
        ]
    assert corpus.floor_perplexity is None
    assert sorted(p.name for p in (tmp_path / "ptb").iterdir()) == [
        "test.txt", "train.txt", "valid.txt",
    ]  # fmt: skip


@pytest.mark.parametrize("marked", ["train", "valid", "test"])
def test_byte_order_mark(tmp_path, marked):
    """A byte order mark, which some editors write, is no part of the first word."""
    directory = write_splits(tmp_path / "ptb")
    path = directory / f"{marked}.txt"
    path.write_text(path.read_text("utf-8"), "utf-8-sig")
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    corpus = load_corpus(data_dir=directory)
    for split, lines in SPLITS.items():
        assert [line.split() for line in getattr(corpus, split)] == [
            line.split() for line in lines
        ]


@needs_ptb
def test_penn_treebank():
    corpus = load_corpus(data_dir=PTB)
    vocabulary = Vocabulary.build(corpus.train)
    assert len(vocabulary) == 10000
    assert "<eos>" in vocabulary and "<unk>" in vocabulary
    for split, tokens in (("train", 929589), ("valid", 73760), ("test", 82430)):
        ids = vocabulary.encode(getattr(corpus, split))
        assert len(ids) == tokens
        batches = BPTTBatches(ids, 20, 105)
        assert sum(batches[n][2].sum() for n in range(len(batches))) == tokens - 1


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (
            lambda d: [p.unlink() for p in d.iterdir()],
            FileNotFoundError,
            "no train.txt",
        ),
        (lambda d: (d / "valid.txt").unlink(), FileNotFoundError, "no valid.txt"),
        (lambda d: (d / "test.txt").write_text(""), ValueError, "test.txt is empty"),
        (lambda d: (d / "test.txt").write_text(" \n"), ValueError, "test.txt is empty"),
        (
            lambda d: (d / "train.txt").write_bytes(b"caf\xe9\n"),
            ValueError,
            "train.txt is not UTF-8",
        ),
    ],
)
def test_bad_directories(tmp_path, spoil, error, message):
    directory = write_splits(tmp_path / "ptb")
    spoil(directory)
    with pytest.raises(error, match=message):
        load_corpus(data_dir=directory)


def test_missing_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`data_dir` .* does not exist"):
        load_corpus(data_dir=tmp_path / "nowhere")


def test_unknown_dataset(tmp_path):
    with pytest.raises(
        ValueError, match=r"'ptb' or 'sample'. Received: dataset='wiki'"
    ):
        load_corpus("wiki")
    with pytest.raises(ValueError, match="`data_dir` goes with dataset='ptb'"):
        load_corpus("sample", data_dir=tmp_path)


# The sample corpus


def test_sample_is_deterministic():
    corpus = load_corpus("sample")
    text = "\n".join([*corpus.train, *corpus.valid, *corpus.test])
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert digest.startswith(SAMPLE_DIGEST)
    assert len(corpus.train) == 12000
    assert "<unk>" in text and " N " in text and "<eos>" not in text


def test_sample_probabilities_sum_to_one():
    rules = text_sample.grammar()
    for arrows in rules.values():
        assert math.isclose(sum(p for p, _, _ in arrows), 1)
    words = {word for arrows in rules.values() for _, word, _ in arrows}
    for line in text_sample.generate({"train": 20})[0]["train"]:
        beliefs = {text_sample.START: 1.0}
        for word in [*line.split(), "<eos>"]:
            total = 0
            for candidate in words:
                try:
                    total += text_sample.step(rules, beliefs, candidate)[0]
                except ValueError:
                    continue  # a word that cannot follow has probability zero
            assert math.isclose(total, 1)
            _, beliefs = text_sample.step(rules, beliefs, word)


def test_sample_floor_agrees_with_enumeration():
    """Both are computed again from all sentences and their probabilities."""
    rules = text_sample.grammar()
    sentences = Counter()
    walks = [((), text_sample.START, 1.0)]
    while walks:
        words, state, mass = walks.pop()
        if state == text_sample.END:
            sentences[words] += mass
            continue
        for probability, word, following in rules[state]:
            walks.append(((*words, word), following, mass * probability))
    assert math.isclose(sum(sentences.values()), 1)
    entropy = -sum(p * math.log(p) for p in sentences.values())
    length = sum(p * len(words) for words, p in sentences.items())
    assert math.isclose(text_sample.entropy_rate(rules), entropy / length)
    for words, p in itertools.islice(sentences.items(), 0, None, 997):
        floor = text_sample.floor_perplexity(rules, [" ".join(words[:-1])])
        assert math.isclose(floor ** -len(words), p)


def test_sample_entropy_is_what_the_text_shows():
    rules = text_sample.grammar()
    _, floor = text_sample.generate({"train": 40000}, seed=5)
    assert abs(math.log(floor["train"]) - text_sample.entropy_rate(rules)) < 0.005


def test_sample_depends_on_more_than_a_window():
    """The object depends on the subject's topic, at least three words back."""
    for line in load_corpus("sample").train[:500]:
        words = [w for w in line.split() if w != "again"]
        subject = next(w for w in words[1:] if w not in text_sample.ADJECTIVES)
        topic = next(
            t for t, pairs in text_sample.NOUNS.items() if subject in sum(pairs, ())
        )
        assert words[-1] in text_sample.OBJECTS[topic]
        assert len(words) - words.index(subject) > 3


# Vocabulary


def test_vocabulary_round_trip(tmp_path):
    vocabulary = Vocabulary.build(SPLITS["train"])
    assert vocabulary.words == ["<eos>", "b", "<unk>", "N", "a"]
    ids = vocabulary.encode(["a b", "c"])
    assert ids.dtype == "int32"
    assert vocabulary.decode(ids) == ["a", "b", "<eos>", "<unk>", "<eos>"]
    vocabulary.save(tmp_path / "sub" / "vocabulary.json")
    loaded = Vocabulary.load(tmp_path / "sub" / "vocabulary.json")
    assert loaded.words == vocabulary.words
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["vocabulary.json"]


def test_vocabulary_keeps_the_most_frequent():
    lines = ["a a a b b c d"] * 2
    assert Vocabulary.build(lines, 4).words == ["a", "<unk>", "b", "<eos>"]
    # `<unk>` stands where the number of words that it replaces puts it.
    rare = ["a a a a c d e g h", "b b b f"]
    assert Vocabulary.build(rare, 5).words == ["<unk>", "a", "b", "<eos>", "c"]
    assert set(Vocabulary.build(lines, 5).words) == {"a", "b", "c", "d", "<eos>"}


def test_unknown_word_without_unk():
    with pytest.raises(ValueError, match=r"'z' is not in the vocabulary, .* '<unk>'"):
        Vocabulary.build(["a b"]).encode(["a z"])


def test_unknown_word_names_its_split():
    with pytest.raises(ValueError, match=r"^In the test split: The word 'z' is not in"):
        Vocabulary.build(["a b"]).encode(["a z"], "test")


def test_fingerprint_knows_the_order():
    words = [Vocabulary(order) for order in (["<eos>", "a"], ["a", "<eos>"])]
    assert words[0].fingerprint != words[1].fingerprint
    assert words[0].fingerprint == Vocabulary(["<eos>", "a"]).fingerprint


@pytest.mark.parametrize("size", [1, 0, -5, 2.0, True])
def test_bad_vocabulary_size(size):
    with pytest.raises(ValueError, match=r"`max_size` must be an integer .* Received"):
        Vocabulary.build(["a"], size)


@pytest.mark.parametrize(
    "content",
    [
        '{"words": ["<eos>", "a"',
        "[1, 2]",
        '{"words": [1]}',
        '{"words": ["a"]}',
        "\xff",
        '{"words": ["<eos>", "a", "a"]}',
        '{"ids": []}',
        '{"words": "<eos>"}',
        "5",
        "null",
        "[" * 100_000,
    ],
)
def test_truncated_or_foreign_vocabulary(tmp_path, content):
    path = tmp_path / "vocabulary.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"vocabulary.json is not a vocabulary"):
        Vocabulary.load(path)


# Batches


@given(st.integers(1, 5), st.integers(1, 7), st.integers(0, 60), st.integers(0, 3))
def test_batches_count_every_target_once(batch_size, seq_len, extra, start):
    ids = np.arange(batch_size + 1 + extra, dtype="int32")
    batches = BPTTBatches(ids, batch_size, seq_len)
    parts = [batches[n] for n in range(len(batches))]
    assert {part.shape for item in parts for part in item} == {(batch_size, seq_len)}
    inputs, targets, weights = (np.concatenate(p, 1) for p in zip(*parts, strict=True))
    counted = targets[weights == 1]
    assert sorted(counted) == list(ids[1:]) and weights.sum() == batches.num_targets
    assert np.array_equal(inputs[weights == 1] + 1, counted)
    for row, weight in zip(targets, weights, strict=True):
        contiguous = row[weight == 1]
        assert np.array_equal(np.diff(contiguous), np.ones(max(0, len(contiguous) - 1)))
        assert not np.any(np.diff(weight) > 0)  # all padding is at the end
    start = min(start, len(batches))
    later = BPTTBatches(ids, batch_size, seq_len, start)
    assert len(later) == len(batches) - start
    for n in range(len(later)):
        assert np.array_equal(later[n][0], parts[start + n][0])


def test_bad_batches():
    ids = np.arange(5)
    with pytest.raises(ValueError, match="at least batch_size \\+ 1 = 6 tokens"):
        BPTTBatches(ids, 5, 2)
    for bad in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="`batch_size` must be a positive integer"):
            BPTTBatches(ids, bad, 2)
        with pytest.raises(ValueError, match="`seq_len` must be a positive integer"):
            BPTTBatches(ids, 2, bad)
    for bad in (np.ones((4, 4), "int32"), np.ones(5), "abcdef"):
        with pytest.raises(ValueError, match="`ids` must be an int array of shape"):
            BPTTBatches(bad, 2, 2)
    with pytest.raises(IndexError):
        BPTTBatches(ids, 2, 2)[9]
    for few in ([], [1]):
        with pytest.raises(ValueError, match=f"at least .* Received: {len(few)} tok"):
            stream_batches(few, 9)
    with pytest.raises(ValueError, match="`steps` must be a positive integer"):
        stream_batches(ids, 0)
    with pytest.raises(ValueError, match=r"`labels` and `tokens` must .*: 3 and 2"):
        ReviewBatches([0, 1, 1], [ids, ids], 2)


def test_bad_arguments_of_vocabularies():
    words = Vocabulary.build(["a b", "a <unk>"], np.int64(9))
    characters = CharacterVocabulary.build(["ab"], 1)
    for take_lines in (
        Vocabulary.build, words.encode,
        CharacterVocabulary.build, characters.encode, characters.encode_each,
    ):  # fmt: skip
        with pytest.raises(ValueError, match="`lines` must be a list of texts"):
            take_lines("a b")
    for n in (-1, 9):
        for take_ids in (words.decode, characters.text_of):
            with pytest.raises(ValueError, match=f"`ids` must be .* Received: {n}$"):
                take_ids([n])
    with pytest.raises(ValueError, match="`min_count` must be 0 or a positive"):
        CharacterVocabulary.build(["ab"], -1)
    for max_len in (0, -1, 1.5):
        with pytest.raises(ValueError, match="`max_len` must be a positive integer"):
            encode_reviews(["a b"], words, max_len)


def test_corpus_is_a_plain_record():
    assert Corpus("x", [], [], []).floor_perplexity is None
