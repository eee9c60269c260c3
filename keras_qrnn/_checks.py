"""Checks of arguments and options that several parts of the package share."""

import math
from collections.abc import Iterable
from numbers import Real
from typing import Any

import numpy as np


def integer(
    name: str,
    value: int,
    least: int,
    most: int | None = None,
    kind: str = "Argument",
) -> int:
    """`value` as an int.

    Raises:
        ValueError: if it is not an integer, is below `least` or above `most`.
    """
    fits = not isinstance(value, bool) and hasattr(value, "__index__")
    if not fits or value < least or (most is not None and value > most):
        expected = f"an integer of at least {least}"
        if least in (0, 1):
            expected = ("0 or a positive integer", "a positive integer")[least]
        if most is not None and fits and value > most:
            expected = f"at most {most}"
        raise ValueError(
            f"{kind} `{name}` must be {expected}. Received: {name}={value!r}"
        )
    return value.__index__()


def positive_integer(
    name: str, value: int, kind: str = "Argument", most: int | None = None
) -> int:
    """`value` as an int.

    Raises:
        ValueError: if it is not a positive integer, or above `most`.
    """
    return integer(name, value, 1, most, kind)


def boolean(name: str, value: bool, kind: str = "Argument") -> bool:
    """`value` as a bool.

    Raises:
        ValueError: if it is neither True nor False, nor 1 or 0.
    """
    if not isinstance(value, (int, np.integer, np.bool_)) or value not in (0, 1):
        raise ValueError(
            f"{kind} `{name}` must be True or False. Received: {name}={value!r}"
        )
    return bool(value)


def no_single_text(name: str, value: Iterable[str]) -> None:
    """Raises a ValueError if `value` is one text, which is a sequence of characters."""
    if isinstance(value, (str, bytes)):
        raise ValueError(
            f"Argument `{name}` must be a list of texts. Received: a string"
        )


def rate(name: str, value: float, kind: str = "Argument") -> float:
    """`value` as a float.

    Raises:
        ValueError: if it is not a number in [0, 1).
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(
            f"{kind} `{name}` must be a number in [0, 1). Received: {name}={value!r}"
        )
    if not 0 <= value < 1:
        raise ValueError(
            f"{kind} `{name}` must be in [0, 1). Received: {name}={value!r}"
        )
    return float(value)


def positive_number(name: str, value: float, kind: str = "Argument") -> float:
    """`value` as a float.

    Raises:
        ValueError: if it is not a finite number above 0.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not value > 0:
        raise ValueError(
            f"{kind} `{name}` must be positive. Received: {name}={value!r}"
        )
    if not value < math.inf:
        raise ValueError(f"{kind} `{name}` must be finite. Received: {name}={value!r}")
    return float(value)


def number_from_zero(name: str, value: float, kind: str = "Argument") -> float:
    """`value` as a float.

    Raises:
        ValueError: if it is not a finite number of at least 0.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not value >= 0:
        raise ValueError(
            f"{kind} `{name}` must not be negative. Received: {name}={value!r}"
        )
    if not value < math.inf:
        raise ValueError(f"{kind} `{name}` must be finite. Received: {name}={value!r}")
    return float(value)


def one_of(name: str, value: str, choices: tuple, kind: str = "Argument") -> str:
    """`value` itself.

    Raises:
        ValueError: if it is not among `choices`.
    """
    if value not in choices:
        # As it stands on the command line, or in a program.
        shown = choices if kind == "Option" else map(repr, choices)
        raise ValueError(
            f"{kind} `{name}` must be one of {', '.join(shown)}. "
            f"Received: {name}={value!r}"
        )
    return value


def for_each_layer(
    name: str, value: int | Iterable[int], layers: int, kind: str = "Argument"
) -> list[int]:
    """Positive integers, one for each layer: `value` for all, or its own.

    Raises:
        ValueError: if `value` is neither a positive integer nor a sequence of
            `layers` positive integers.
    """
    is_sequence = isinstance(value, Iterable) and not isinstance(value, str)
    values: list[Any] = list(value) if is_sequence else [value] * layers  # type: ignore[arg-type]
    if len(values) != layers:
        raise ValueError(
            f"{kind} `{name}` must be an integer or a list with one for each of the "
            f"{layers} layers. Received: {name}={value!r}"
        )
    return [positive_integer(name, each, kind) for each in values]
