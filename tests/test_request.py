"""Options of a request, of any type that callers give."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemma_tpu.runtime.request as checked


@pytest.fixture(scope="module")
def request_module():
    """The module as users have it: under pytest, annotations are checked before its own errors could be raised."""
    name = "request_as_users_have_it"
    spec = importlib.util.spec_from_file_location(name, Path(checked.__file__))
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"max_new_tokens": 5.0}, "max_new_tokens must be an integer, got 5.0"),
        ({"max_new_tokens": "5"}, "max_new_tokens must be an integer, got '5'"),
        ({"max_new_tokens": None}, "max_new_tokens must be an integer, got None"),
        ({"temperature": "hot"}, "temperature must be a number, got 'hot'"),
        ({"temperature": float("nan")}, "temperature must be at least 0"),
        ({"top_p": [0.9]}, "top_p must be a number"),
        ({"top_k": True}, "top_k must be an integer, got True"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"stop": 5}, "stop must be a list, got 5"),
        ({"stop": None}, "stop must be a list, got None"),
        ({"stop": b"x"}, "stop must be a list, got b'x'"),
        ({"stop": ["a", ""]}, "stop must be non-empty strings"),
        ({"stop": [3]}, "stop must be non-empty strings"),
        ({"stop_tokens": 7}, "stop_tokens must be a list, got 7"),
        ({"stop_tokens": range(17)}, "17 stop_tokens given, at most 16"),
        ({"forbidden_tokens": None}, "forbidden_tokens must be a list, got None"),
        ({"forbidden_tokens": "ab"}, "forbidden_tokens must be a list, got 'ab'"),
    ],
)
def test_wrong_ones_are_one_clear_error(request_module, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        request_module.Options(**options)


def test_numbers_and_lists_of_numpy_are_those_of_python(request_module) -> None:
    plain = {"max_new_tokens": 3, "temperature": 0.5, "top_k": 5, "top_p": 0.75, "min_p": 0.0, "seed": 7}
    kinds = (np.int64, np.float32, np.int8, np.float16, np.float64, np.uint32)
    theirs = {name: kind(value) for (name, value), kind in zip(plain.items(), kinds, strict=True)}
    lists = {"stop": ("a", "b"), "stop_tokens": (1, 2), "forbidden_tokens": (3,)}
    arrays = {name: np.array(values) for name, values in lists.items()}
    options = request_module.Options(**theirs, **arrays)
    assert options == request_module.Options(**plain, **lists)
    assert request_module.Options(stop=[]) == request_module.Options()
    assert request_module.Options(stop="ab").stop == ("ab",)
    controls, expected = (
        request_module.row_controls(one, one.stop_tokens, 9)
        for one in (options, request_module.Options(**plain, **lists))
    )
    np.testing.assert_array_equal(controls.forbidden, expected.forbidden)
    np.testing.assert_array_equal(controls.stop, expected.stop)
    assert controls.sampling == expected.sampling
