"""What several parts of the package ask of their arguments."""

from numbers import Real


def positive_integer(name: str, value: int, kind: str = "Argument") -> int:
    """`value` as an int.

    Raises:
        ValueError: if it is not a positive integer.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
        raise ValueError(
            f"{kind} `{name}` must be a positive integer. Received: {name}={value!r}"
        )
    return value.__index__()


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
