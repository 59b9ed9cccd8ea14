"""What lies at a path and is no checkpoint is named for what it is, by its content, as a file and in a directory."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
import zipfile

import checkpoint_samples as samples
import numpy as np
import pytest

from gemma_tpu.checkpoint import CheckpointError, open_checkpoint


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("gemma-3-4b-it/config.json"))
    return file.getvalue()


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, weights=np.zeros(3))
    return file.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:1299c11d\nsize 4689074\n"
# Headers as the formats' own programs write them; gemma_tpu/checkpoint/unsupported_formats.py names the sources.
FILES: dict[str, tuple[str, bytes, str]] = {
    "Git LFS": ("model.safetensors", LFS, "a Git LFS pointer, not the file it stands for: run `git lfs pull`"),
    "a page": ("model.safetensors", b"<!doctype HTML>\n<html>Log in</html>", "an HTML page"),
    "a bucket's answer": ("model.safetensors", b"<?xml version='1.0'?><Error><Code>Denied</Code>", "answer in XML"),
    "nothing": ("model.safetensors", b"", "is empty: fetch it again"),
    "Keras weights": ("model.weights.h5", b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file"),
    "Keras": ("gemma.keras", zipped("metadata.json", "config.json", "model.weights.h5"), "a Keras model"),
    "PyTorch": ("pytorch_model.bin", zipped("pytorch_model/data.pkl", "pytorch_model/data/0"), "PyTorch's pickle"),
    "PyTorch before 1.6": ("consolidated.00.pth", pickle.dumps({"a": 1}, protocol=2), "PyTorch's pickle"),
    "LiteRT": ("gemma.tflite", struct.pack("<I", 28) + b"TFL3" + bytes(64), "a LiteRT model"),
    "MediaPipe": ("gemma3-1b-it-int4.task", zipped("TF_LITE_PREFILL_DECODE", "TOKENIZER_MODEL"), "a MediaPipe bundle"),
    "LiteRT-LM": ("gemma3-1b.litertlm", b"LITERTLM" + struct.pack("<3I", 1, 3, 0), "a LiteRT-LM file"),
    "gemma.cpp": ("gemma3-4b-it-sfp.sbs", struct.pack("<IIQ", 0x0A534253, 0, 65536), r"a gemma.cpp file \(.sbs\)"),
    "NumPy": ("gemma.npz", npz(), r"a NumPy archive \(.npz\)"),
    "zip": ("gemma.zip", zipped("gemma-3-4b-it/config.json"), "a zip archive: unpack it"),
    "tar": ("gemma.tar", tarred(), "a tar archive: unpack it"),
    "gzip": ("archive.tar.gz", gzip.compress(tarred()), "a gzip archive: unpack it"),
    "Flax": ("flax_model.msgpack", b"\x81\xa6params", "Flax's msgpack"),
    "ONNX": ("model_q4.onnx", b"\x08\x07\x12\x07pytorch", "an ONNX model"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("whole", ["the file", "its directory"])
def test_a_file_of_another_kind(kind, whole, tmp_path):
    name, content, message = FILES[kind]
    (tmp_path / name).write_bytes(content)
    (tmp_path / "README.md").write_text("")
    with pytest.raises(CheckpointError, match=message) as error:
        open_checkpoint(tmp_path / name if whole == "the file" else tmp_path)
    said = str(error.value)
    assert name in said
    assert said.startswith(str(tmp_path))
    assert "\n" not in said


@pytest.mark.parametrize("kind", ["PyTorch", "ONNX", "Flax"])
def test_weights_of_another_kind_among_the_other_files_of_a_model(kind, tmp_path):
    """As in a repository of Hugging Face: what is named is the weights."""
    name, content, message = FILES[kind]
    (tmp_path / name).write_bytes(content)
    for other in ("config.json", "generation_config.json", "tokenizer_config.json"):
        (tmp_path / other).write_text("{}")
    with pytest.raises(CheckpointError, match=rf"; {name} is {message}"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_a_file_of_a_checkpoint_instead_of_its_directory(name, tmp_path):
    path = samples.save_hf(tmp_path / "c", {"a": np.zeros(3, np.float32)}, {"model_type": "gemma3"}, shards=2)
    with pytest.raises(CheckpointError, match=rf"{path / name}: is a file of a checkpoint: give the directory"):
        open_checkpoint(path / name)


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("hf", "config.json"),
        ("hf", "tokenizer.model"),
        ("hf", "model.safetensors.index.json"),
        ("hf", "model-00001-of-00002.safetensors"),
        ("orbax", "config.json"),
        ("orbax", "_METADATA"),
        ("orbax", "manifest.ocdbt"),
    ],
)
def test_pointers_of_a_repository_that_was_cloned_without_lfs(layout, name, tmp_path):
    """Any of a checkpoint's files may be one, small ones too."""
    sample = samples.sample(samples.CONFIGS["one-kv-14"])
    path = tmp_path / "c"
    if layout == "hf":
        samples.save_hf(path, sample.hf, samples.hf_config(sample.config), shards=2)
    else:
        samples.save_orbax(path, samples.flat_tree(sample.canonical))
    (path / name).write_bytes(LFS)
    config = None if name == "config.json" else sample.config
    with pytest.raises(CheckpointError, match=rf"^{path / name}: is a Git LFS pointer"):
        open_checkpoint(path, config=config)


def test_links_whose_targets_are_gone(tmp_path):
    """As in a snapshot of Hugging Face's cache when its blobs were deleted."""
    sample = samples.sample(samples.CONFIGS["one-kv-14"])
    path = samples.save_hf(tmp_path / "c", sample.hf, samples.hf_config(sample.config))
    for name in ("config.json", "model.safetensors"):
        good = (path / name).rename(tmp_path / name)
        (path / name).symlink_to("../blobs/1299c11d")
        for asked in (path, path / name):
            with pytest.raises(CheckpointError, match=rf"^{path / name}: a link to ../blobs/1299c11d, which is not"):
                open_checkpoint(asked)
        (path / name).unlink()
        (path / name).symlink_to(good)
    assert open_checkpoint(path).config == sample.config


@pytest.mark.parametrize("name", ["model.safetensors", "sha256-1299c11d"])
def test_a_gguf_file_by_another_name_in_a_directory(name, tmp_path):
    """Given itself, such a file is read (test_checkpoint_gguf)."""
    (tmp_path / name).write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 444, 40))
    with pytest.raises(CheckpointError, match=rf"{name}.* is a GGUF file by another name: give the path of that file"):
        open_checkpoint(tmp_path)
