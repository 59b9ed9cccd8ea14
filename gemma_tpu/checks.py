"""Argument checks: ValueError, naming the argument, for a value of the wrong type or out of range."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

_MAX_LENGTH = 80  # characters of a value in an error message


def check_integer(name: str, value: Any, low: int, high: float = math.inf) -> None:
    """ValueError unless `value` is an integer (Python's or NumPy's) in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ValueError(f"{name} must be an integer, got {brief(value)}")
    _check_range(name, value, low, high)


def check_number(name: str, value: Any, low: float, high: float = math.inf, *, low_open: bool = False) -> None:
    """ValueError unless `value` is a number (Python's or NumPy's) in [low, high], or above low if `low_open`."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise ValueError(f"{name} must be a number, got {brief(value)}")
    _check_range(name, value, low, high, low_open=low_open)


def _check_range(name: str, value: Any, low: float, high: float, *, low_open: bool = False) -> None:
    if not (low < value if low_open else low <= value) or not value <= high:
        upper = f" and at most {high}" if math.isfinite(high) else ""
        raise ValueError(f"{name} must be {'above' if low_open else 'at least'} {low}{upper}, got {brief(value)}")


def check_flag(name: str, value: Any) -> None:
    """ValueError unless `value` is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {brief(value)}")


def check_progress(value: Any, *, bar: bool = True) -> None:
    """ValueError unless `value` is None, a callback or, if `bar`, True or False."""
    if value is not None and not callable(value) and not (bar and isinstance(value, bool)):
        raise ValueError(f"progress must be {'True, False' if bar else 'None'} or a function, got {brief(value)}")


def as_tuple(name: str, value: Any) -> tuple[Any, ...]:
    """The elements of a list, array or other collection. ValueError for anything else, strings included."""
    if isinstance(value, str | bytes | bytearray | Mapping) or not isinstance(value, Iterable):
        raise ValueError(f"{name} must be a list, got {brief(value)}")
    try:
        return tuple(value)
    except Exception as error:  # a zero-dimensional array, an iterator that fails
        raise ValueError(f"{name} must be a list, got {brief(value)} ({one_line(error)})") from error


def as_ids(name: str, value: Any) -> tuple[int, ...]:
    """The token ids in a list, array or other collection, as Python integers."""
    ids = as_tuple(name, value)
    for token in ids:
        check_integer(f"a token id in {name}", token, 0, 2**31 - 1)
    return tuple(map(int, ids))


def brief(value: Any) -> str:
    """`value` for an error message: on one line, truncated if long."""
    if isinstance(value, int) and value.bit_length() > 256:  # Python refuses to format more than 4,300 digits
        return f"an integer of {value.bit_length()} bits"
    try:
        text = one_line(repr(value))
    except Exception:  # its repr fails: name the type
        text = f"a {type(value).__name__}"
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]}… ({type(value).__name__})"


def one_line(text: object) -> str:
    """`text` on one line; for an error its message, or its class name if the message is empty."""
    line = " ".join(str(text).split())
    return line if line or isinstance(text, str) else type(text).__name__


def as_path(name: str, value: Any) -> str:
    """A path or name as a string. ValueError unless it is a string or a path, without newlines and NUL."""
    try:
        text = os.fspath(value)
    except Exception:  # a foreign __fspath__ may raise anything
        text = None
    if not isinstance(text, str) or any(char in text for char in "\0\n\r"):
        raise ValueError(f"{name} must be a string or a path, got {brief(value)}")
    return text
