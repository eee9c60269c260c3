"""Lines of a text that are answered as they come."""

import pytest

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
