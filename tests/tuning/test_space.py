"""The space of a search: values on the command line, and the grid of a range."""

import pytest

import search_plots
from tests.tuning.searches import parse


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("units", "256", [256]),
        ("units", "256,640", [256, 640]),
        ("window", "1-4", (1, 4)),
        ("window", "2-2", [2]),
        ("zoneout", "0.0-0.5", (0.0, 0.5)),
        ("zoneout", "0", [0.0]),
        ("learning_rate", "1e-2-1e+1", (0.01, 10.0)),
        ("pooling", "fo, ifo", ["fo", "ifo"]),
    ],
)
def test_parse(name, text, expected):
    found = parse(name, text)
    assert found.values == expected
    assert parse(name, str(found)).values == expected


def test_grid_of_a_range_has_both_its_ends():
    for name, text, expected in (
        ("units", "4-8", [4, 5, 6, 7, 8]),
        ("units", "4,8", [4, 8]),
        ("zoneout", "0.0-0.3", [0.0, 0.075, 0.15, 0.225, 0.3]),
        ("learning_rate", "0.1-10", [0.1, 0.316228, 1.0, 3.16228, 10.0]),
    ):
        assert parse(name, text).grid().values == expected


@pytest.mark.parametrize(
    ("name", "space", "drawn", "labels"),
    [
        ("units", "16-96", [26, 53, 58], None),
        ("zoneout", "0.0-0.3", [0.1, 0.2], None),
        ("window", "1-3", [3, 1, 3], ["1", "3"]),
        ("units", "16,96", [96, 16], ["16", "96"]),
        ("pooling", "f,fo,ifo", ["ifo", "f"], ["f", "ifo"]),
    ],
)
def test_plots_draw_a_range_on_a_scale_of_numbers(name, space, drawn, labels):
    """Also if few trials have ended. Labels are for what has few values."""
    at, found = search_plots._positions(parse(name, space), drawn)
    assert found == labels
    expected = drawn if labels is None else [labels.index(str(v)) for v in drawn]
    assert at.tolist() == expected
