"""Reviews and their labels: IMDb, any corpus in its layout, or the generated sample."""

import gzip
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from keras_qrnn._checks import integer, positive_integer
from keras_qrnn._files import atomic_write
from keras_qrnn.data import hub, sentiment_sample
from keras_qrnn.data.tokens import tokenize

HUB_NAME = "stanfordnlp/imdb"
HUB_REVISION = "main"
CLASSES = ("neg", "pos")  # labels 0 and 1
UNLABELLED = "unsup"
LAYOUT = "train/pos, train/neg, test/pos and test/neg, a review a file, NAME.txt"
# The errors of reading a damaged archive.
DAMAGES = (
    tarfile.TarError, EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error,
)  # fmt: skip
ADVICE = (
    f"Use --data_dir with a directory or a .tar archive that holds {LAYOUT}, "
    "--dataset sample for the generated reviews"
)


@dataclass(frozen=True)
class Labelled:
    """Reviews and their labels.

    Attributes:
        texts: reviews, tokens separated by blanks: see `tokenize`.
        labels: int array of shape `(reviews,)`: 0 for a bad review, 1 for a good one.
    """

    texts: list[str]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)

    def chosen(self, indices: np.ndarray) -> "Labelled":
        """The reviews of these indices."""
        return Labelled([self.texts[n] for n in indices], self.labels[indices])


@dataclass(frozen=True)
class Reviews:
    """Reviews in three splits.

    Attributes:
        name: the source that they were loaded from.
        train: reviews to train on.
        valid: the validation split, held out of the training split.
        test: reviews to test with.
        unlabelled: further reviews, tokens separated by blanks.
        best_accuracy: for each split the accuracy of the rules that wrote the reviews.
            No model can expect a higher one. None if it is not known.
        revision: the commit of the hub's data set. With HF_HUB_OFFLINE the revision
            that was asked for. None if they are not from the hub.
        cased: whether they kept their capitals.
    """

    name: str
    train: Labelled
    valid: Labelled
    test: Labelled
    unlabelled: list[str] = field(default_factory=list)
    best_accuracy: Mapping[str, float] | None = None
    revision: str | None = None
    cased: bool = False


def load_reviews(
    dataset: str = "imdb",
    data_dir: str | os.PathLike | None = None,
    valid_size: int | None = None,
    valid_seed: int = 0,
    cased: bool = False,
    unlabelled: bool = False,
    revision: str | None = None,
) -> Reviews:
    """Loads IMDb, any corpus in its layout, or the generated sample.

    Args:
        dataset: `"imdb"`, from `data_dir` or else the Hugging Face hub, or `"sample"`,
            which the package generates.
        data_dir: a directory with `train/pos`, `train/neg`, `test/pos` and `test/neg`,
            a review a file, UTF-8, or a tar archive of it (`.tar`, `.tar.gz`,
            `.tar.xz`), which is read in place. Reviews without a label are in
            `train/unsup`.
        valid_size: training reviews to hold out as the validation split. Defaults to a
            tenth of them.
        valid_seed: seed of the choice of these reviews.
        cased: whether capitals stay as they are.
        unlabelled: whether to read the reviews without a label too.
        revision: revision of the hub's data set: a branch, a tag or a commit.

    Raises:
        ValueError: for an unknown dataset; for an archive that is damaged, holds a link
            or a name outside itself, or a name twice; for a review that is not UTF-8
            or has no word; if `valid_size` leaves nothing to train on; for a
            `revision` of reviews that are not from the hub.
        FileNotFoundError: if `data_dir` or a part of its layout is missing.
        ConnectionError: if the hub cannot be reached.
        ImportError: if `datasets` is needed and not installed.
    """
    if dataset not in ("imdb", "sample"):
        raise ValueError(
            "Argument `dataset` must be 'imdb' or 'sample'. "
            f"Received: dataset={dataset!r}"
        )
    if dataset == "sample" and data_dir is not None:
        raise ValueError(
            "Argument `data_dir` goes with dataset='imdb'; the sample is generated. "
            f"Received: data_dir={str(data_dir)!r}"
        )
    hub.refuse_revision(revision, dataset != "sample" and data_dir is None)
    if valid_size is not None:
        positive_integer("valid_size", valid_size)
    integer("valid_seed", valid_seed, 0)
    opinions, commit = None, None
    if dataset == "sample":
        name = "sample"
        sample = sentiment_sample.generate()
        splits = {s: Labelled(t, np.array(y)) for s, (t, y, _) in sample.items()}
        opinions = {s: np.array(opinion) for s, (_, _, opinion) in sample.items()}
        others: list[str] = []
    elif data_dir is not None:
        name = str(data_dir)
        splits, others = _from_files(Path(data_dir), cased, unlabelled)
    else:
        name = HUB_NAME
        splits, others, commit = _from_hub(revision or HUB_REVISION, cased, unlabelled)
    train = splits["train"]
    if valid_size is None:
        valid_size = max(1, len(train) // 10)
    if valid_size >= len(train):
        raise ValueError(
            f"Argument `valid_size` must be below {len(train)}, the number of training "
            f"reviews. Received: valid_size={valid_size}"
        )
    order = np.random.default_rng(valid_seed).permutation(len(train))
    held_out, kept = np.sort(order[:valid_size]), np.sort(order[valid_size:])
    best = None
    if opinions is not None:
        is_right = {s: opinions[s] == splits[s].labels for s in splits}
        best = {
            "valid": float(is_right["train"][held_out].mean()),
            "test": float(is_right["test"].mean()),
        }
    return Reviews(
        name,
        train.chosen(kept),
        train.chosen(held_out),
        splits["test"],
        others,
        best,
        commit,
        cased=cased and dataset != "sample",  # the sample has no capitals
    )


def write_text(reviews: Reviews, directory: Path, eval_size: int = 500) -> None:
    """Writes the reviews as a corpus for `train_lm.py`, a review a line.

    `train.txt` has the training reviews and those without a label. `valid.txt` and
    `test.txt` have at most `eval_size` reviews of the validation split each, drawn by
    chance and always the same. No review of the test split is written, so a model of
    the text has seen none.

    Raises:
        ValueError: if the validation split has no two reviews.
        OSError: if the files cannot be written.
    """
    if len(reviews.valid) < 2:
        raise ValueError(
            "The validation split must have at least 2 reviews. "
            f"Received: {len(reviews.valid)}"
        )
    size = min(eval_size, len(reviews.valid) // 2)
    # All bad reviews stand before the good ones.
    order = np.random.default_rng(0).permutation(len(reviews.valid))
    splits = {
        "train": [*reviews.train.texts, *reviews.unlabelled],
        "valid": reviews.valid.chosen(order[:size]).texts,
        "test": reviews.valid.chosen(order[size : 2 * size]).texts,
    }
    for split, texts in splits.items():
        with (
            atomic_write(directory / f"{split}.txt") as temporary,
            temporary.open("w", encoding="utf-8", newline="\n") as file,
        ):
            file.writelines(f"{text}\n" for text in texts)


def _clean(text: str, where: str, cased: bool) -> str:
    """The tokens of a review, separated by blanks."""
    tokens = tokenize(text, cased)
    if not tokens:
        raise ValueError(
            f"A review must have at least one word. Received: {text!r} in {where}"
        )
    return " ".join(tokens)


def _from_files(
    path: Path, cased: bool, unlabelled: bool
) -> tuple[dict[str, Labelled], list[str]]:
    if not path.exists():
        raise FileNotFoundError(
            f"Argument `data_dir` must hold {LAYOUT}. Received: {path}, which does not "
            "exist"
        )
    wanted = {(s, c) for s in ("train", "test") for c in CLASSES}
    if unlabelled:
        wanted.add(("train", UNLABELLED))
    files = _directory_files if path.is_dir() else _archive_files
    found: dict[tuple[str, str], dict[str, str]] = {}
    for split, group, name, content in files(path, wanted):
        where = f"{path}: {split}/{group}/{name}"
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{where} is not UTF-8 text: {error}") from error
        texts_of = found.setdefault((split, group), {})
        if name in texts_of:
            raise ValueError(
                f"{path} must hold each name once. Received twice: {where}"
            )
        texts_of[name] = _clean(text, where, cased)
    for split in ("train", "test"):
        for group in CLASSES:
            if (split, group) not in found:
                raise FileNotFoundError(
                    f"Argument `data_dir` must hold {LAYOUT}. Received: {path}, which "
                    f"has no review in {split}/{group}"
                )
    # By name, so that a directory and its archive give the same order.
    texts = {
        key: [text for _, text in sorted(each.items())] for key, each in found.items()
    }
    splits = {}
    for split in ("train", "test"):
        groups = [texts[split, group] for group in CLASSES]
        labels = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        splits[split] = Labelled([text for each in groups for text in each], labels)
    return splits, texts.get(("train", UNLABELLED), [])


Files = Iterator[tuple[str, str, str, bytes]]


def _directory_files(path: Path, wanted: set[tuple[str, str]]) -> Files:
    for split, group in sorted(wanted):
        for file in sorted((path / split / group).glob("*.txt")):
            yield split, group, file.name, file.read_bytes()


def _archive_files(path: Path, wanted: set[tuple[str, str]]) -> Files:
    """The reviews in a tar archive. Nothing is unpacked."""
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                place = _place(path, member)
                is_review = len(place) == 3 and place[2].endswith(".txt")
                if member.isfile() and place[:2] in wanted and is_review:
                    file = archive.extractfile(member)
                    assert file is not None  # a regular file
                    yield place[0], place[1], place[2], file.read()
            _check_end(archive)
    except DAMAGES as error:
        raise ValueError(
            f"{path} is not a whole tar archive of reviews. "
            f"Received: {type(error).__name__}: {error}"
        ) from error


def _check_end(archive: tarfile.TarFile) -> None:
    """Raises an error if the archive is damaged behind what was read of it.

    `tarfile` takes a damaged header, and the end of a file that was cut, for the end of
    the archive. That is a block of zeros. The checksum of a compressed file is compared
    when all of it is read.
    """
    file = archive.fileobj
    assert file is not None  # it is open
    file.seek(archive.offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"no header and no end at byte {archive.offset}")
    while file.read(1 << 20):
        pass


def _place(path: Path, member: tarfile.TarInfo) -> tuple[str, ...]:
    """The parts of a member's name from its `train` or `test` on."""
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or "\\" in member.name:
        raise ValueError(
            f"{path} must hold names inside of itself. Received: {member.name!r}"
        )
    if not (member.isfile() or member.isdir()):
        raise ValueError(
            f"{path} must hold files and directories only, no links and no devices. "
            f"Received: {member.name!r}"
        )
    parts = name.parts
    # One directory, such as aclImdb, may hold all others.
    return parts if parts[:1] in (("train",), ("test",)) else parts[1:]


def _from_hub(
    revision: str, cased: bool, unlabelled: bool
) -> tuple[dict[str, Labelled], list[str], str]:
    hub.need_datasets("IMDb")
    columns = ["text", "label"]
    splits = ["train", "test", *["unsupervised"] * unlabelled]
    found, commit = hub.load_columns(HUB_NAME, revision, splits, columns, ADVICE)

    def texts(split: str) -> list[str]:
        rows = found[split]["text"]
        return [
            _clean(text, f"{HUB_NAME}: {split}, row {n}", cased)
            for n, text in enumerate(rows)
        ]

    labelled = {
        split: Labelled(texts(split), np.array(found[split]["label"]))
        for split in ("train", "test")
    }
    return labelled, texts("unsupervised") if unlabelled else [], commit
