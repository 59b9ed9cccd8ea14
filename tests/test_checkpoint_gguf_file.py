"""Headers and tensors of GGUF files: what gguf's writer writes is read back, what is damaged is named."""

from __future__ import annotations

import builtins
import struct
from pathlib import Path

import gguf
import gguf_files as files
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_tpu.checkpoint import CheckpointError
from gemma_tpu.checkpoint.gguf_file import read_file
from gemma_tpu.checkpoint.weight_checks import CheckedArray

TYPES = [Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1]
# Bytes of the float16 scales in a block of a type that gguf cannot make, by their position.
K_TYPES = {Type.Q4_K: (0, 2), Type.Q5_K: (0, 2), Type.Q6_K: (208,), Type.Q3_K: (108,), Type.Q2_K: (80, 82)}


def write(path: Path, array: np.ndarray, kind: Type) -> Path:
    return files.write(path, {"a.weight": array}, {"general.name": "x"}, lambda name, array: kind)


def blocks(rows: int, count: int, kind: Type) -> np.ndarray:
    """Random blocks with scales of a weight's size, [rows, bytes]."""
    rng = np.random.default_rng(0)
    packed = rng.integers(0, 256, (rows, count, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
    for position in K_TYPES[kind]:
        scales = (rng.standard_normal((rows, count, 1)) * 0.01).astype(np.float16)
        packed[..., position : position + 2] = scales.view(np.uint8)
    return packed.reshape(rows, -1)


def check_boxes(path: Path, expected: np.ndarray) -> None:
    array = read_file(str(path)).arrays["a.weight"]
    assert (array.shape, array.dtype, array.read_all().dtype) == (expected.shape, np.float32, np.float32)
    np.testing.assert_array_equal(array.read_all(), expected)
    rng = np.random.default_rng(1)
    for _ in range(50):
        box = []
        for size in expected.shape:
            start = int(rng.integers(size))
            box.append(slice(start, int(rng.integers(start, size)) + 1))
        np.testing.assert_array_equal(array.read(tuple(box)), expected[tuple(box)])


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("shape", [(37, 96), (64,), (3, 5, 2, 32)])
def test_any_box_of_a_tensor_is_what_gguf_makes_of_it(kind: Type, shape: tuple[int, ...], tmp_path: Path) -> None:
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    packed = gguf.quants.quantize(array, kind)
    expected = gguf.quants.dequantize(packed, kind).reshape(shape)
    check_boxes(write(tmp_path / "a.gguf", array, kind), expected)
    assert np.abs(expected - array).max() < 0.4


@pytest.mark.parametrize("kind", K_TYPES)
def test_any_box_of_a_tensor_in_k_quants(kind: Type, tmp_path: Path) -> None:
    packed = blocks(19, 3, kind)
    path = tmp_path / "a.gguf"
    files.write(path, {"a.weight": np.zeros((19, 768), np.float32)}, {}, packed={"a.weight": (packed, kind)})
    expected = gguf.quants.dequantize(packed, kind)
    assert np.isfinite(expected).all()
    check_boxes(path, expected)


def test_blocks_of_q4_0_as_they_are_described(tmp_path: Path) -> None:
    """The first sixteen elements of a block are in the low halves of its bytes (ggml-quants.c)."""
    array = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    found = read_file(str(write(tmp_path / "a.gguf", array, Type.Q4_0))).arrays["a.weight"]
    packed = found.packed.read_all().reshape(4, 2, found.block_bytes)
    assert (found.type, found.block_size, found.block_bytes) == ("Q4_0", 32, 18)
    scales = packed[..., :2].copy().view(np.float16).astype(np.float32)
    values = np.concatenate([packed[..., 2:] & 15, packed[..., 2:] >> 4], -1).astype(np.float32) - 8
    np.testing.assert_array_equal(found.read_all(), (scales * values).reshape(4, 64))


def test_a_box_reads_the_rows_that_it_needs(tmp_path: Path) -> None:
    array = read_file(str(write(tmp_path / "a.gguf", np.ones((100, 64), np.float32), Type.Q8_0))).arrays["a.weight"]
    assert array.cost((slice(0, 100), slice(0, 64))) == 100 * 2 * 34
    assert array.cost((slice(7, 9), slice(0, 64))) == 2 * 2 * 34
    assert array.cost((slice(7, 8), slice(40, 41))) == 34


def test_metadata_of_every_type(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(path := tmp_path / "a.gguf", "gemma3")
    expected = {"i8": -1, "u8": 255, "i16": -300, "u16": 65535, "i32": -70000, "u32": 2**32 - 1}
    for name, value in expected.items():
        kind = {"i": "int", "u": "uint"}[name[0]] + name[1:]
        getattr(writer, f"add_{kind}")(name, value)
    writer.add_int64("i64", -(2**40))
    writer.add_uint64("u64", 2**40)
    writer.add_float32("f32", 0.25)
    writer.add_float64("f64", 0.1)
    writer.add_bool("yes", True)
    writer.add_string("text", "né\n")
    writer.add_array("texts", ["a", "", "é"])
    writer.add_array("numbers", [1, -2])
    writer.add_array("floats", [0.5, -0.0])
    writer.add_array("flags", [True, False])
    writer.add_tensor("a", np.zeros((1, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in read_file(str(path)).metadata.items()}
    more = {"i64": -(2**40), "u64": 2**40, "f32": 0.25, "f64": 0.1, "yes": True, "text": "né\n"}
    lists = {"texts": ["a", "", "é"], "numbers": [1, -2], "floats": [0.5, -0.0], "flags": [True, False]}
    assert found == {"general.architecture": "gemma3", **expected, **more, **lists}


def test_an_alignment_of_ones_own(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(path := tmp_path / "a.gguf", "gemma3")
    writer.add_custom_alignment(256)
    for name in "ab":
        writer.add_tensor(name, np.full((1, 3), ord(name), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    arrays = read_file(str(path)).arrays
    assert arrays["b"].packed.offset % 256 == 0
    assert [array.read_all().ravel()[0] for array in arrays.values()] == [ord("a"), ord("b")]


def read_all(path: Path) -> None:
    for array in read_file(str(path)).arrays.values():
        CheckedArray(array).read_all()


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        read_all(path)
    said = str(error.value)
    assert said.startswith(f"{path}: ")
    assert "\n" not in said
    return said


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    metadata = {"general.name": "x", "tokens": ["a", "b"], "numbers": [1, 2, 3], "flag": True}
    arrays = {"a.weight": np.ones((2, 32), np.float32), "b": np.ones(32, np.float32)}
    return files.write(tmp_path / "whole.gguf", arrays, metadata, files.all_of(Type.Q4_0))


def test_a_file_cut_anywhere(whole: Path, tmp_path: Path) -> None:
    content, cut = whole.read_bytes(), tmp_path / "cut.gguf"
    for length in range(len(content)):
        cut.write_bytes(content[:length])
        said = refused(cut)
        assert length < 4 or "truncated" in said
    assert "truncated: the file ends inside b" in said


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_file_with_other_bytes(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """It is read, or refused with its name; not more than its size is believed."""
    folder = tmp_path_factory.mktemp("bytes")
    whole = files.write(folder / "a.gguf", {"a.weight": np.ones((2, 32), np.float32)}, {"tokens": ["a"], "n": [1]})
    content = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    whole.write_bytes(content)
    try:
        read_all(whole)
    except CheckpointError:
        refused(whole)


def header(entries: int = 0, tensors: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


DAMAGED = {
    "wrong magic": (b"GGML" + header()[4:], r"is no GGUF file \(it does not begin with GGUF\)"),
    "nothing": (b"", "is empty: fetch it again"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    "version 1": (header(version=1), "GGUF version 1; known are 2 and 3"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "a big-endian GGUF file; `gguf-convert-endian"),
    "entries beyond the file": (header(entries=2**60), "the metadata has .* entries, the file ends before"),
    "tensors beyond the file": (header(tensors=2**60), "the list of tensors has .* entries, the file ends before"),
    "texts beyond the file": (header(1) + text("k") + struct.pack("<IIQ", 9, 8, 2**60), "'k' has .* entries"),
    "numbers beyond the file": (header(1) + text("k") + struct.pack("<IIQ", 9, 4, 2**60), "ends inside its header"),
    "no UTF-8": (header(1) + text("k") + struct.pack("<IQ", 8, 1) + b"\xff", "'k' is no text"),
    "no UTF-8 in a list": (header(1) + text("k") + struct.pack("<IIQQ", 9, 8, 1, 1) + b"\xff", "no list of texts"),
    "unknown type of an entry": (header(1) + text("k") + struct.pack("<I", 99), "'k' is of type 99"),
    "a list of lists": (header(1) + text("k") + struct.pack("<IIQ", 9, 9, 0), "'k' is an array of type 9"),
    "a key twice": (header(2) + 2 * (text("k") + struct.pack("<IB", 0, 1)), "'k' is there twice"),
    "no axes": (header(0, 1) + tensor("a", (), 0) + bytes(32), "'a' has 0 axes"),
    "too many axes": (header(0, 1) + tensor("a", (1,) * 9, 0) + bytes(32), "'a' has 9 axes"),
    "an axis of nothing": (header(0, 1) + tensor("a", (0, 3), 0) + bytes(32), r"'a' has the shape \[3, 0\]"),
    "a tensor twice": (header(0, 2) + 2 * tensor("a", (4,), 0) + bytes(64), "'a' is there twice"),
    "an unknown type": (header(0, 1) + tensor("a", (32,), 200) + bytes(99), "'a' is of type 200, which gguf cannot"),
    "a type of integers": (header(0, 1) + tensor("a", (32,), 26) + bytes(256), "'a' is of type I32, which gguf cannot"),
    "half a block": (header(0, 1) + tensor("a", (33,), 2) + bytes(99), "'a' has rows of 33, no multiple of the 32"),
    "beyond the end": (header(0, 1) + tensor("a", (4,), 0, 2**40) + bytes(99), "truncated: the file ends inside a"),
    "as large as nothing is": (header(0, 1) + tensor("a", (2**62, 2**62), 0) + bytes(99), "truncated: the file ends"),
    "an alignment that is none": (
        header(1) + text("general.alignment") + struct.pack("<II", 4, 3),
        "general.alignment is 3, no power of two",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file(kind: str, tmp_path: Path) -> None:
    content, message = DAMAGED[kind]
    (path := tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        raise CheckpointError(refused(path))


@pytest.mark.parametrize("kind", [Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0])
@pytest.mark.parametrize(("value", "message"), [(np.nan, "a.weight holds NaN"), (np.inf, "a.weight holds ")])
def test_numbers_that_are_none(kind: Type, value: float, message: str, tmp_path: Path) -> None:
    array = np.ones((2, 64), np.float32)
    packed = gguf.quants.quantize(array, kind).copy()
    packed.view({Type.F32: np.float32, Type.BF16: np.uint16}.get(kind, np.float16)).reshape(-1)[0] = (
        value if kind != Type.BF16 else np.array([value], np.float32).view(np.uint32)[0] >> 16
    )
    path = files.write(tmp_path / "a.gguf", {"a.weight": array}, {}, packed={"a.weight": (packed, kind)})
    assert message in refused(path)


def test_without_the_gguf_package(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: object) -> object:
        if name == "gguf":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", missing)
    assert refused(whole) == f"{whole}: reading a GGUF file needs pip install 'gemma_tpu[gguf]'"
