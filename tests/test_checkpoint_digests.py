"""Samples of a checkpoint: equal for copies, different for another one, at little cost."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from checkpoint_samples import save_orbax
from small_models import TEXT, random_params

from gemma_tpu.checkpoint import merge_adapter, open_checkpoint, sample_digests, save_params

CONFIG = dataclasses.replace(TEXT, vocab_size=1024)  # the table is larger than what is read whole
TABLE = "embedder.table"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sample") / "checkpoint"
    save_params(random_params(CONFIG), CONFIG, path, layout="safetensors")
    return path


def changed(path: Path, array: str, row: int, folder: Path) -> Path:
    """A copy with one bit of an array flipped, in the middle of a row."""
    shutil.copytree(path, folder)
    (file,) = folder.glob("*.safetensors")
    leaf = next(
        leaf
        for lazy in open_checkpoint(folder, config=CONFIG).arrays.values()
        for leaf in lazy.leaves()
        if leaf.name.endswith(array)
    )
    box = (slice(row, row + 1), *(slice(0, size) for size in leaf.shape[1:]))
    first = leaf._span(box)[1]
    data = bytearray(file.read_bytes())
    data[first + 8] ^= 1
    file.write_bytes(data)
    return folder


def digests(path: Path) -> dict[str, str]:
    return sample_digests(open_checkpoint(path, config=CONFIG))


def test_copies_are_equal(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "copy")
    assert digests(tmp_path / "copy") == digests(checkpoint)


@pytest.mark.parametrize(
    ("array", "row"), [("layers.1.pre_feedforward_layernorm.weight", 5), ("embed_tokens.weight", 512)]
)
def test_one_bit_of_what_is_read_is_named(array: str, row: int, checkpoint: Path, tmp_path: Path) -> None:
    before, after = digests(checkpoint), digests(changed(checkpoint, array, row, tmp_path / "changed"))
    (name,) = (name for name in before if before[name] != after[name])
    assert name.endswith(array)


def test_of_a_large_matrix_other_rows_are_not_read(checkpoint: Path, tmp_path: Path) -> None:
    """As docs/multi_host.md says."""
    assert digests(changed(checkpoint, "embed_tokens.weight", 3, tmp_path / "changed")) == digests(checkpoint)


def test_another_checkpoint_of_the_same_shapes(checkpoint: Path, tmp_path: Path) -> None:
    save_params(random_params(CONFIG, seed=1), CONFIG, tmp_path / "other", layout="safetensors")
    before, after = digests(checkpoint), digests(tmp_path / "other")
    assert {name for name in before if before[name] == after[name]} == {"the list of arrays"}


def test_an_adapter_is_looked_at_too(checkpoint: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    found = []
    for i in range(2):
        shapes = {"a": (CONFIG.hidden_dim, 2), "b": (2, CONFIG.embed_dim)}
        factors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        save_orbax(tmp_path / str(i), {"layer_0": {"mlp": {"_LoRAEinsum_linear": {"lora": factors}}}})
        merged = merge_adapter(open_checkpoint(checkpoint, config=CONFIG), str(tmp_path / str(i)))
        found.append(sample_digests(merged))
    assert {name.rsplit("/", 1)[-1] for name in found[0] if found[0][name] != found[1][name]} == {"a", "b"}


def test_what_is_read_is_bounded(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound an array is still known by its shape."""
    monkeypatch.setattr("gemma_tpu.checkpoint.digests._MAX_BYTES", 0)
    assert digests(changed(checkpoint, "embed_tokens.weight", 512, tmp_path / "changed")) == digests(checkpoint)
