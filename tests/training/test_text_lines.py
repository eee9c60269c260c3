"""Lines of a text that are answered as they come."""

import pytest

from keras_qrnn.training import text_lines
from keras_qrnn.training.text_lines import batches_of

pytestmark = pytest.mark.one_backend


def test_lines_are_taken_as_they_come():
    """A line that has come is answered before the next one has."""
    seen = []

    def typed():
        for n in range(3):
            yield f"{n}"
            while len(seen) <= n:  # the next line comes after the answer
                pass

    for batch in batches_of(typed(), 4):
        seen += batch
    assert seen == ["0", "1", "2"]
    assert [*batches_of([], 4)] == []

    def broken():
        yield "a"
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    with pytest.raises(ValueError, match="The input is not UTF-8 text: "):
        list(batches_of(broken(), 4))


def test_lines_are_numbered_and_answered_in_order(monkeypatch):
    """All lines of a batch are warned of, then answered, then yielded."""
    done = []

    def batches(lines, most):
        return (lines[n : n + most] for n in range(0, len(lines), most))

    def note(kind):
        return lambda *given, **flush: done.append((kind, *given))

    monkeypatch.setattr(text_lines, "batches_of", batches)
    monkeypatch.setattr(text_lines, "print", note("print"), raising=False)
    lines = [" a\n", "b\n", "\n", "d\n", "e"]
    pairs = text_lines.answered(
        lines, 2, lambda texts: map(str.upper, texts), note("warn")
    )
    for number, line in pairs:
        note("yield")(number, line)
    assert done == [
        ("warn", 1, "a"), ("warn", 2, "b"), ("print", "A"), ("print", "B"),
        ("yield", 1, "a"), ("yield", 2, "b"),
        ("warn", 3, ""), ("warn", 4, "d"), ("print", ""), ("print", "D"),
        ("yield", 3, ""), ("yield", 4, "d"),
        ("warn", 5, "e"), ("print", "E"), ("yield", 5, "e"),
    ]  # fmt: skip
