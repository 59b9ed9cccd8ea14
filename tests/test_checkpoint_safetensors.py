"""Headers of safetensors files: what the real package refuses is refused, what it reads is read alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save

from gemma_tpu.checkpoint import CheckpointError
from gemma_tpu.checkpoint.hf import read_file


def entry(shape: Any = (2,), offsets: Any = (0, 8), dtype: Any = "F32", **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def file_of(header: dict[str, Any] | bytes, data: int = 8) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(range(data))


def theirs(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays that the package reads; None if it refuses the file."""
    try:
        with safe_open(path, "np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except Exception:
        return None


def ours(path: Path) -> dict[str, np.ndarray] | None:
    try:
        return {name: array.read_all() for name, array in read_file(str(path)).items()}
    except CheckpointError as error:
        said = str(error)
    assert said.startswith(f"{path}: ")
    assert "\n" not in said
    return None


REFUSED = {
    "float shape": file_of({"a": entry([2.0])}),
    "negative shape": file_of({"a": entry([-2])}),
    "boolean shape": file_of({"a": entry([True, 2])}),
    "shape of text": file_of({"a": entry(["2"])}),
    "shape that is a number": file_of({"a": entry(2)}),
    "shape that is null": file_of({"a": entry(None)}),
    "shape beyond all numbers": file_of({"a": entry([10**30])}),
    "product beyond all numbers": file_of({"a": entry([2**40, 2**40, 0], [0, 0])}, 0),
    "minus zero": file_of(json.dumps({"a": entry()}).replace("[0,", "[-0,").encode()),
    "another size than the shape's": file_of({"a": entry([3])}),
    "negative range": file_of({"a": entry([2], [-8, 0])}),
    "range that ends before it begins": file_of({"a": entry([0], [8, 0])}),
    "range of one number": file_of({"a": entry([2], [8])}),
    "range of three": file_of({"a": entry([2], [0, 8, 8])}),
    "range of floats": file_of({"a": entry([2], [0.0, 8.0])}),
    "range beyond all numbers": file_of({"a": entry([2], [2**64, 2**64 + 8])}),
    "overlap": file_of({"a": entry(), "b": entry([1], [4, 8])}),
    "the same range twice": file_of({"a": entry(), "b": entry()}),
    "gap": file_of({"a": entry([1], [0, 4]), "b": entry([1], [8, 12])}, 12),
    "gap at the beginning": file_of({"a": entry([1], [4, 8])}),
    "bytes behind the last": file_of({"a": entry()}, 9),
    "too few bytes": file_of({"a": entry()}, 7),
    "bytes without arrays": file_of({}, 1),
    "unknown dtype": file_of({"a": entry(dtype="F31")}),
    "dtype that is a list": file_of({"a": entry(dtype=["F32"])}),
    "dtype that is a number": file_of({"a": entry(dtype=3)}),
    "no dtype": file_of({"a": {"shape": [2], "data_offsets": [0, 8]}}),
    "no range": file_of({"a": {"shape": [2], "dtype": "F32"}}),
    "no entry": file_of({"a": 5}),
    "notes of numbers": file_of({"__metadata__": {"a": 1}, "a": entry()}),
    "notes that are a list": file_of({"__metadata__": [], "a": entry()}),
    "no UTF-8": file_of(json.dumps({"xx": entry()}).encode().replace(b"xx", b"\xff\xfe")),
    "half a surrogate pair": file_of({"\ud800": entry()}),
    "UTF-16": file_of(json.dumps({"a": entry()}).encode("utf-16")),
    "a list": file_of(b"[]", 0),
    "nested too deeply": file_of(json.dumps({"a": entry()}).replace('"F32"', "[" * 10_000 + "]" * 10_000).encode()),
    "nested too deeply where nothing reads": file_of(
        json.dumps({"a": entry(x=0)}).replace('"x": 0', '"x":' + "[" * 300 + "]" * 300).encode()
    ),
    "no number": file_of({"a": entry(x=float("nan"))}),
    "more text behind": file_of(json.dumps({"a": entry()}).encode() + b"{}"),
    "header longer than the file": (1000).to_bytes(8, "little") + b"{}",
    "header beyond all files": (2**63).to_bytes(8, "little") + b"{}",
    "header of one byte": (1).to_bytes(8, "little") + b"{}",
    "seven bytes": b"\2\0\0\0\0\0\0",
    "nothing": b"",
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_package_refuses_is_refused(case: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(REFUSED[case])
    assert theirs(path) is None
    assert ours(path) is None


def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    """The package takes one of the two."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(file_of(json.dumps({"a": entry(), "b": entry()}).replace('"b"', '"a"').encode()))
    with pytest.raises(CheckpointError, match="it has the key 'a' twice"):
        read_file(str(path))


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry()},
        {"a": entry(x=1)},
        {"b": entry([1], [4, 8]), "a": entry([1], [0, 4])},
        {"a": entry([1], [0, 4]), "none": entry([0], [4, 4]), "b": entry([1, 1, 1], [4, 8])},
        {"__metadata__": {"format": "pt"}, "scalar": entry([], [0, 4]), "b": entry([2], [4, 8], "F16")},
        {"__metadata__": None, "a": entry()},
        json.dumps({"é": entry()}).encode() + b"   ",
        b" " + json.dumps({"a": entry()}).encode(),
    ],
)
def test_what_the_package_reads_is_read_alike(header: dict[str, Any] | bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(file_of(header))
    expected, found = theirs(path), ours(path)
    assert expected is not None
    assert found is not None
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


VALUE = st.sampled_from([0, 1, 4, 8, 12, -1, 2.0, True, None, "F32", "F16", [], [2], [0, 8], [8, 12], {}, 2**64])


@settings(max_examples=200, derandomize=True, database=None, deadline=None)
@given(
    changes=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(list(entry())), VALUE), min_size=1, max_size=2)
)
def test_changed_headers_are_never_read_where_the_package_does_not(
    changes: list[tuple[str, str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = save(
        {"a": np.arange(2, dtype=np.float32), "b": np.arange(3, dtype=np.float32), "c": np.zeros(0, np.float32)}
    )
    length = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:length])
    for name, key, value in changes:
        header[name][key] = value
    text = json.dumps(header).encode()
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[length:])
    expected, found = theirs(path), ours(path)
    if expected is None:
        assert found is None
    elif found is not None:
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array)
