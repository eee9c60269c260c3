"""Reviews: tokens, files, archives, the sample; word vectors; batches."""

import hashlib
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from keras_qrnn.data import Vocabulary, load_corpus, sentiment_sample
from keras_qrnn.data.batches import round_lengths
from keras_qrnn.data.imdb import load_reviews, write_text
from keras_qrnn.data.review_batches import ReviewBatches, encode_reviews
from keras_qrnn.data.tokens import tokenize
from keras_qrnn.data.word_vectors import read_word_vectors

pytestmark = pytest.mark.one_backend
ROOT = Path(__file__).parents[2]
IMDB = os.environ.get("KERAS_QRNN_IMDB")
FILES = {
    f"{split}/{group}/{n}_{rating}.txt": f"A {word} film,<br /><br />number {n}."
    for split in ("train", "test")
    for group, rating, word in (("neg", 2, "dull"), ("pos", 9, "fine"))
    for n in range(3)
} | {"train/unsup/0_0.txt": "Who knows?", "train/labeledBow.feat": "0:9"}


def write(directory, files=FILES):
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return directory


def archive(path, *members, mode="w"):
    """A tar archive of `FILES` and of further members."""
    with tarfile.open(path, mode) as tar:
        for name, text in FILES.items():
            info = tarfile.TarInfo(f"aclImdb/{name}")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
        for member in members:
            tar.addfile(member)
    return path


# Tokens


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("It isn't <br /><br />BAD!!", ["it", "is", "n't", "bad", "!", "!"]),
        ("Can't; it's (1,000).", ["ca", "n't", ";", "it", "'s", "(", "1", ",", "000",
                                  ")", "."]),
        ("wait..... 'quoted' a_b", ["wait", "...", "'", "quoted", "'", "a", "_", "b"]),
        ("We\u2019re naïve\x85\u3000", ["we", "'re", "naïve"]),
        ("<br/>", []),
    ],
)  # fmt: skip
def test_tokens(text, tokens):
    assert tokenize(text) == tokens


def test_cased_tokens():
    assert tokenize("ISN'T It", cased=True) == ["IS", "N'T", "It"]


# Files and archives


def test_a_directory_and_its_archives_are_the_same(tmp_path):
    directory = write(tmp_path / "aclImdb")
    expected = load_reviews(data_dir=directory, valid_size=2, unlabelled=True)
    assert len(expected.train) == 4 and len(expected.valid) == 2
    assert expected.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert expected.test.texts[0] == "a dull film , number 0 ."
    assert expected.unlabelled == ["who knows ?"]
    assert expected.best_accuracy is None
    for ending in ("", ".gz", ".xz"):
        mode = f"w:{ending[1:]}" if ending else "w"
        path = archive(tmp_path / f"reviews.tar{ending}", mode=mode)
        found = load_reviews(data_dir=path, valid_size=2, unlabelled=True)
        for split in ("train", "valid", "test"):
            one, other = getattr(expected, split), getattr(found, split)
            assert one.texts == other.texts
            assert np.array_equal(one.labels, other.labels)
        assert found.unlabelled == expected.unlabelled
    assert not load_reviews(data_dir=path).unlabelled


def test_the_validation_split_is_held_out_by_its_seed(tmp_path):
    directory = write(tmp_path)
    sets = [
        load_reviews(data_dir=directory, valid_size=3, valid_seed=seed)
        for seed in (0, 0, 1)
    ]
    assert sets[0].valid.texts == sets[1].valid.texts != sets[2].valid.texts
    for reviews in sets:
        texts = sorted(reviews.train.texts + reviews.valid.texts)
        assert texts == sorted(reviews.test.texts)  # in FILES they are the same


def no_class(directory):
    for file in (directory / "train" / "neg").iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (no_class, FileNotFoundError, r"which has no review in train/neg"),
        (lambda d: (d / "train/pos/0_9.txt").write_text(""), ValueError, r"0_9\.txt"),
        (
            lambda d: (d / "train/pos/1_9.txt").write_text("<br />\n"),
            ValueError,
            r"at least one word. .*<br />.* in .*train/pos/1_9\.txt",
        ),
        (
            lambda d: (d / "test/neg/0_2.txt").write_bytes(b"caf\xe9"),
            ValueError,
            r"test/neg/0_2\.txt is not UTF-8",
        ),
    ],
)
def test_bad_directories(tmp_path, spoil, error, message):
    directory = write(tmp_path)
    spoil(directory)
    with pytest.raises(error, match=message):
        load_reviews(data_dir=directory)


def member(name, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (member("../train/pos/7_9.txt"), "names inside of itself"),
        (member("aclImdb/train/pos/../../../x.txt"), "names inside of itself"),
        (member("/train/pos/7_9.txt"), "names inside of itself"),
        (member("..\\train\\pos\\7_9.txt"), "names inside of itself"),
        (member("train/pos/7_9.txt", tarfile.SYMTYPE, "/etc/passwd"), "no links"),
        (member("a/train/pos/7_9.txt", tarfile.LNKTYPE, "../../x"), "no links"),
        (member("aclImdb/pipe", tarfile.FIFOTYPE), "no devices"),
        (member("aclImdb/device", tarfile.CHRTYPE), "no devices"),
    ],
)
def test_an_archive_that_points_outside(tmp_path, bad, message):
    path = archive(tmp_path / "bad.tar", bad)
    with pytest.raises(ValueError, match=message) as info:
        load_reviews(data_dir=path)
    assert repr(bad.name) in str(info.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.tar"]


@pytest.mark.parametrize("ending", ["gz", "xz"])
def test_a_damaged_archive(tmp_path, ending):
    path = archive(tmp_path / f"a.tar.{ending}", mode=f"w:{ending}")
    whole = path.read_bytes()
    # Cut, one bit turned round at many places, or no archive at all.
    damaged = [whole[: len(whole) // 2], whole[:-1], b"", b"no archive"]
    # Not in gzip's header, and not in the zeros at the end: there a changed distance of
    # a match gives zeros, too.
    for n in range(20, 2 * len(whole) // 3, len(whole) // 16):
        damaged.append(whole[:n] + bytes([whole[n] ^ 4]) + whole[n + 1 :])
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"tar archive|not UTF-8|names inside"):
            load_reviews(data_dir=path)


def test_a_damaged_plain_archive(tmp_path):
    path = archive(tmp_path / "a.tar")
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        start = tar.getmembers()[-2].offset
    turned = whole[: start + 8] + b"?" + whole[start + 9 :]
    for content in (whole[:start], whole[: start + 512], turned):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a whole tar archive"):
            load_reviews(data_dir=path)


def test_an_archive_has_the_reviews_of_its_directory(tmp_path):
    """Other files beside the reviews are none. A name stands there once."""
    other = archive(tmp_path / "a.tar", member("aclImdb/train/pos/urls.html"))
    assert len(load_reviews(data_dir=other).test) == 6
    twice = archive(tmp_path / "b.tar", member("aclImdb/train/pos/0_9.txt"))
    with pytest.raises(ValueError, match=r"each name once.*train/pos/0_9\.txt"):
        load_reviews(data_dir=twice)


def test_a_review_of_one_character(tmp_path):
    directory = write(tmp_path, FILES | {"test/neg/0_2.txt": " x\n"})
    assert load_reviews(data_dir=directory).test.texts[0] == "x"


def test_bad_arguments(tmp_path):
    with pytest.raises(FileNotFoundError, match="which does not exist"):
        load_reviews(data_dir=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="'imdb' or 'sample'"):
        load_reviews("yelp")
    with pytest.raises(ValueError, match="the sample is generated"):
        load_reviews("sample", data_dir=tmp_path)
    with pytest.raises(ValueError, match="`valid_size` must be below 6"):
        load_reviews(data_dir=write(tmp_path), valid_size=6)


def test_text_for_a_language_model(tmp_path):
    reviews = load_reviews(
        data_dir=write(tmp_path / "a"), valid_size=3, unlabelled=True
    )
    write_text(reviews, tmp_path / "text")
    corpus = load_corpus(data_dir=tmp_path / "text")
    assert corpus.train == [*reviews.train.texts, "who knows ?"]
    assert len(corpus.valid) == len(corpus.test) == 1
    assert corpus.valid != corpus.test
    assert {*corpus.valid, *corpus.test} < set(reviews.valid.texts)
    with pytest.raises(ValueError, match="at least 2 reviews"):
        write_text(load_reviews(data_dir=tmp_path / "a"), tmp_path / "other")


@pytest.mark.skipif(IMDB is None, reason="needs IMDb: set KERAS_QRNN_IMDB to it")
def test_imdb():
    reviews = load_reviews(data_dir=IMDB)
    assert [len(reviews.train), len(reviews.valid), len(reviews.test)] == [
        22500, 2500, 25000,
    ]  # fmt: skip
    assert reviews.test.labels.sum() == 12500


# The sample


def test_the_rules_give_the_opinions_of_the_sample():
    for texts, labels, opinions in sentiment_sample.generate().values():
        found = [sentiment_sample.opinion_of(text.split()) for text in texts]
        assert found == opinions
        wrong = np.mean(np.array(labels) != opinions)
        assert abs(wrong - sentiment_sample.NOISE) < 0.015
        assert abs(np.mean(labels) - 0.5) < 0.03


def test_the_sample_is_deterministic():
    reviews = load_reviews("sample", cased=True)
    assert not reviews.cased  # it has no capitals
    text = "\n".join(reviews.train.texts + reviews.valid.texts + reviews.test.texts)
    assert hashlib.sha256(text.encode()).hexdigest().startswith("8db24bbd3ffc7830")
    assert reviews.best_accuracy is not None
    for split, best in reviews.best_accuracy.items():
        labelled = getattr(reviews, split)
        opinions = [sentiment_sample.opinion_of(t.split()) for t in labelled.texts]
        assert best == np.mean(labelled.labels == opinions) < 1


def test_the_sample_depends_on_more_than_a_window():
    """A negation stands at least five words before the adjective."""
    adjectives = sum(sentiment_sample.ADJECTIVES, ())
    for text in load_reviews("sample").train.texts[:500]:
        words = text.split()
        for n, word in enumerate(words):
            if word in ("nobody", "anybody"):
                assert not set(words[n : n + 6]) & set(adjectives)
    # Neither the adjectives nor the last one alone tell the opinion.
    for text in ("nobody in this town says the plot is fun .",
                 "my friend in this town says the plot is fun although nobody says "
                 "the film is dull ."):  # fmt: skip
        assert sentiment_sample.opinion_of(text.split()) == int("although" in text)


# Word vectors

VECTORS = {
    "the": [0.5, -1.0],
    "Film": [1.0, 2.0],
    "film": [3.0, 4.0],
    ". .": [7.0, 8.0],
}
TEXT = "".join(f"{word} {x} {y}\n" for word, (x, y) in VECTORS.items())


def write_vectors(directory, kind, mark=False):
    encoding = "utf-8-sig" if mark else "utf-8"
    path = directory / f"vectors.{'npy' if kind == 'npy' else 'txt'}"
    if kind == "npy":
        np.save(path, np.array(list(VECTORS.values())))
        path.with_suffix(".txt").write_text("\n".join(VECTORS), encoding)
    else:
        blank = TEXT.replace("Film", "\nFilm") + "\n"  # blank lines are skipped
        text = ("4 2\n" if kind == "word2vec" else "") + blank
        path.write_text(text, encoding)
    return path


@pytest.mark.parametrize("mark", [False, True])
@pytest.mark.parametrize("kind", ["glove", "word2vec", "npy"])
def test_word_vectors(tmp_path, kind, mark):
    """With and without a byte order mark."""
    path = write_vectors(tmp_path, kind, mark)
    size, found = read_word_vectors(path, ["The", "Film", "FILM", ". .", "other"])
    assert size == 2 and found.keys() == {"The", "Film", "FILM", ". ."}
    expected = {"The": "the", "FILM": "film"}
    for word, vector in found.items():
        assert vector.dtype == "float32"
        assert vector.tolist() == VECTORS[expected.get(word, word)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("the 1 2\nfilm 1\n", r"line 2 must have a word and 2 numbers. .*'film 1'"),
        ("the 1 2\nfilm 1 x\n", r"line 2 must have a word and 2 numbers"),
        ("the 1 2\nfilm 1 nan\n", r"line 2 must have finite numbers"),
        ("the 1 2\nfilm 1 1e39\n", r"line 2 must have finite numbers"),
        ("a 1 2\nb 1 2\n", r"Received: none of the 2 words is in it"),
        ("the\n", r"line 1 must have a word and 1 numbers"),
        ("3 2\nthe 1 2\n", r"must have 3 words, as its first line says. Received: 1"),
        ("1 3\nthe 1 2\n", r"line 2 must have a word and 3 numbers"),
        ("\n", "is empty"),
        (b"caf\xe9 1 2\n", "line 1 is not UTF-8"),
    ],
)
def test_broken_word_vectors(tmp_path, content, message):
    path = tmp_path / "vectors.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        read_word_vectors(path, ["the", "film"])


def test_broken_arrays_of_word_vectors(tmp_path):
    path = write_vectors(tmp_path, "npy")
    path.with_suffix(".txt").write_text("the\nfilm\n")
    with pytest.raises(ValueError, match=r"a word for each of the 4 rows .*: 2 words"):
        read_word_vectors(path, ["the"])
    path.with_suffix(".txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"Beside .* must be vectors\.txt"):
        read_word_vectors(path, ["the"])
    for array in (np.zeros(3), np.array([["a"]]), np.zeros((2, 2), int)):
        np.save(path, array)
        with pytest.raises(ValueError, match="is not an array of numbers"):
            read_word_vectors(path, ["the"])
    with pytest.raises(FileNotFoundError):
        read_word_vectors(tmp_path / "nowhere.txt", ["the"])


# Batches


def test_lengths_are_multiples():
    tokens = [np.ones(n, "int32") for n in (1, 31, 32, 33, 300)]
    batches = ReviewBatches(np.zeros(5), tokens, 1, multiple=32)
    assert [batches[n][0].shape[1] for n in range(5)] == [32, 32, 32, 64, 320]
    for multiple in (1, 3, 5, 24, 100):
        tokens = [np.ones(n, "int32") for n in range(1, 400, 7)]
        batches = ReviewBatches(np.zeros(len(tokens)), tokens, 1, multiple=multiple)
        for n, given in enumerate(tokens):
            time = batches[n][0].shape[1]
            assert time % multiple == 0
            assert len(given) <= time <= 1.125 * len(given) + multiple
    with pytest.raises(ValueError, match="`multiple` must be a positive integer"):
        ReviewBatches(np.zeros(1), [np.ones(1, "int32")], 1, multiple=0)


def test_batches_hold_each_review_once_with_little_padding():
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 300, 203)
    tokens = [np.full(n, k + 1, "int32") for k, n in enumerate(lengths)]
    labels = rng.integers(0, 2, 203)
    batches = ReviewBatches(labels, tokens, 10, seed=3)
    orders = []
    for epoch in (0, 1, 0):
        batches.epoch = epoch
        seen, size = [], 0
        for n in range(len(batches)):
            rows, targets, weights = batches[n]
            assert rows.shape[0] == 10 and rows.dtype == "int32"
            for row, target, weight in zip(rows, targets, weights, strict=True):
                (k,) = set(row[row > 0] - 1)
                assert (row[: lengths[k]] > 0).all() and not row[lengths[k] :].any()
                assert target == [labels[k]]
                seen += [k] if weight else []
            size += rows.size
        assert sorted(seen) == list(range(203))
        assert size < 1.25 * lengths.sum()
        orders.append(seen)
    assert orders[0] == orders[2] != orders[1]
    batches.start = 20
    assert len(batches) == 1 and set(batches[0][0][:, 0] - 1) <= set(orders[0])


def test_rounded_lengths_are_few_and_near():
    lengths = np.arange(1, 3000)
    rounded = round_lengths(lengths)
    assert ((rounded >= lengths) & (rounded <= 1.125 * lengths + 1)).all()
    assert len(set(rounded[500:])) < 25


def test_encoded_reviews_keep_their_last_words():
    vocabulary = Vocabulary(["<eos>", "<unk>", "a", "b"])
    with pytest.raises(ValueError, match=r"`texts` must be a list.*: a string"):
        encode_reviews("a b c a", vocabulary)
    (tokens,) = encode_reviews(["a b c a"], vocabulary, 3)
    assert tokens.tolist() == [4, 2, 3]
