"""GGUF files and directories that are refused: what cannot be told, is damaged, or does not fit."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import checkpoint_samples as samples
import gguf_files as files
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf_written import (
    CONFIG,
    SAMPLE,
    TEXT_CONFIG,
    VOCABULARY,
    check_values,
    write_both,
    write_ollama,
    write_text,
    write_tower,
)

import gemma_tpu
from gemma_tpu.checkpoint import (
    CheckpointError,
    CheckpointWarning,
    open_checkpoint,
    read_text_assets,
)

pytestmark = pytest.mark.filterwarnings("error::gemma_tpu.checkpoint.CheckpointWarning")


@pytest.fixture
def both(tmp_path: Path) -> Path:
    return write_both(tmp_path)


# Directories that cannot be told.


def test_several_models(both: Path) -> None:
    shutil.copy(both / "model.gguf", both / "other.gguf")
    with pytest.raises(CheckpointError, match=rf"^{both}: holds several models, say which: model.gguf, other.gguf$"):
        open_checkpoint(both)
    with pytest.warns(CheckpointWarning, match=r"mmproj-model.gguf may belong to other.gguf, so the model takes text"):
        check_values(open_checkpoint(both / "model.gguf"), TEXT_CONFIG)
    check_values(open_checkpoint(both / "model.gguf", text_only=True), TEXT_CONFIG)


def test_files_of_several_sizes(both: Path) -> None:
    """A file's tower is the one of its width, where no other model has that."""
    config = dataclasses.replace(CONFIG, embed_dim=64)
    other = samples.sample(config)
    metadata = files.text_metadata(config) | VOCABULARY
    files.write(both / "other.gguf", files.tensors(other.hf, vision=False), metadata)
    check_values(open_checkpoint(both / "model.gguf"))
    assert open_checkpoint(both / "other.gguf").config == dataclasses.replace(config, vision=None)
    tower = files.tensors(other.hf, vision=True)
    files.write(both / "mmproj-other.gguf", tower, files.vision_metadata(config), architecture="clip")
    check_values(open_checkpoint(both / "model.gguf"))
    assert open_checkpoint(both / "other.gguf").config == config


def test_several_towers(both: Path) -> None:
    shutil.copy(both / "mmproj-model.gguf", both / "mmproj-2.gguf")
    for path in (both, both / "model.gguf"):
        with pytest.raises(CheckpointError, match=r"several mmproj files, leave one: mmproj-2.gguf, mmproj-model.gguf"):
            open_checkpoint(path)
    check_values(open_checkpoint(both, text_only=True), TEXT_CONFIG)


def test_a_tower_alone(both: Path) -> None:
    (both / "model.gguf").unlink()
    with pytest.raises(CheckpointError, match=rf"^{both}: holds a vision tower alone, mmproj-model.gguf: the text"):
        open_checkpoint(both)
    with pytest.raises(CheckpointError, match=r"mmproj-model.gguf: a vision tower alone \(mmproj\): give the text"):
        open_checkpoint(both / "mmproj-model.gguf")


def test_a_tower_of_another_size(both: Path) -> None:
    projection = np.zeros((CONFIG.vision.width, 48), np.float32)
    write_tower(both / "mmproj-model.gguf", tensors={"mm.input_projection.weight": projection})
    message = r"mmproj-model.gguf: mm.input_projection.weight has a width of 48, .*model.gguf of 32: the mmproj of"
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(both)


def test_a_tower_of_another_model(both: Path) -> None:
    write_tower(both / "mmproj-model.gguf", **{"clip.projector_type": "gemma3nv"})
    with pytest.raises(CheckpointError, match=r"mmproj-model.gguf: a vision tower for 'gemma3nv', not for Gemma 3"):
        open_checkpoint(both)
    write_tower(both / "mmproj-model.gguf", **{"clip.projector_type": None, "clip.vision.projector_type": "gemma3"})
    check_values(open_checkpoint(both))


def test_two_towers_for_one_text(both: Path) -> None:
    write_ollama(both / "model.gguf")
    with pytest.raises(CheckpointError, match=r"model.gguf: holds a vision tower, and so does .*mmproj-model.gguf"):
        open_checkpoint(both)


def test_other_weights_beside_it(both: Path) -> None:
    samples.save_hf(both / "hf", SAMPLE.hf, samples.hf_config(CONFIG))
    for file in (both / "hf").iterdir():
        file.rename(both / file.name)
    with pytest.warns(CheckpointWarning, match=r": read without mmproj-model.gguf, model.gguf there: give the path"):
        assert open_checkpoint(both).kind == "safetensors"
    check_values(open_checkpoint(both / "model.gguf"))


@pytest.mark.parametrize("kind", ["adapter", "imatrix"])
def test_files_that_are_no_models(kind: str, both: Path) -> None:
    files.write(both / "x.gguf", {"a": np.zeros((1, 32), np.float32)}, {"general.type": kind})
    with pytest.warns(CheckpointWarning, match=rf"x.gguf: is of type '{kind}', and is left out"):
        check_values(open_checkpoint(both))
    with pytest.raises(CheckpointError, match=rf"x.gguf: is of type '{kind}', no model"):
        open_checkpoint(both / "x.gguf")


def test_a_damaged_file_beside_the_one_that_is_meant(both: Path) -> None:
    (both / "broken.gguf").write_bytes(b"GGUF")
    check_values(open_checkpoint(both / "model.gguf"))
    with pytest.raises(CheckpointError, match=rf"{both}/broken.gguf: truncated"):
        open_checkpoint(both)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("gemma", "seems to be a Gemma 1 model"),
        ("gemma2", "seems to be a Gemma 2 model"),
        ("gemma3n", "seems to be a Gemma 3n model"),
        ("gemma4", "seems to be a Gemma 4 model"),
        ("gemma-embedding", "seems to be EmbeddingGemma, not Gemma 3"),
        ("llama", "seems to be a model of type 'llama', not Gemma 3"),
    ],
)
def test_other_architectures(architecture: str, message: str, tmp_path: Path) -> None:
    path = files.write(tmp_path / "a.gguf", {"a": np.zeros((1, 32), np.float32)}, {}, architecture=architecture)
    for given in (path, tmp_path):
        with pytest.raises(CheckpointError, match=rf"^{path}: this {message}"):
            open_checkpoint(given)


@pytest.mark.parametrize("path", ["gs://127.0.0.1.invalid/a.gguf"])
def test_remote_files(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from gemma_tpu.checkpoint import storage

    monkeypatch.setattr(storage, "_read", lambda path, byte_range: b"GGUF"[byte_range])
    with pytest.raises(CheckpointError, match=rf"^{path}: a GGUF file is read on local disks only: copy it to one"):
        open_checkpoint(path)


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").symlink_to("blobs/0")
    for path in (tmp_path, tmp_path / "a.gguf"):
        with pytest.raises(CheckpointError, match=r"a.gguf: a link to blobs/0, which is not there"):
            open_checkpoint(path)


# Tensors and metadata that do not fit.

TENSORS = {
    "missing": ({"blk.2.attn_q.weight": None}, r"model.gguf and .*: missing blk.2.attn_q.weight$"),
    "missing norm": ({"output_norm.weight": None}, r"missing output_norm.weight$"),
    "another shape": ({"blk.1.ffn_up.weight": np.zeros((65, 32))}, r"ffn_up.weight is \[65, 32\], not \[64, 32\]"),
    "another table": ({"token_embd.weight": np.zeros((90, 32))}, r"tokenizer has 800 pieces, the model 90"),
    "unknown": ({"rope_freqs.weight": np.zeros(16)}, "unexpected rope_freqs.weight"),
    "one more layer": ({"blk.7.attn_q.weight": np.zeros((64, 32))}, "unexpected blk.7.attn_q.weight"),
}  # fmt: skip


@pytest.mark.parametrize("what", TENSORS)
def test_tensors_of_the_text(what: str, both: Path) -> None:
    changed, message = TENSORS[what]
    write_text(both / "model.gguf", tensors=changed)
    with pytest.raises(CheckpointError, match=message) as error:
        read_text_assets(open_checkpoint(both)).open_tokenizer()
    assert str(both / "model.gguf") in str(error.value)


def test_tensors_of_the_tower(both: Path) -> None:
    write_tower(both / "mmproj-model.gguf", tensors={"v.blk.0.ln1.bias": None, "mm.soft_emb_norm.weight": None})
    message = r"mmproj-model.gguf: missing mm.soft_emb_norm.weight, v.blk.0.ln1.bias: it can be loaded for text alone"
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(both)
    check_values(open_checkpoint(both, text_only=True), TEXT_CONFIG)


@pytest.mark.parametrize("kind", [Type.F32, Type.Q4_0])
def test_weights_that_are_no_numbers(kind: Type, both: Path) -> None:
    wrong = np.zeros((64, 32), np.float32)
    wrong[3, 5] = np.nan
    with np.errstate(invalid="ignore"):
        write_text(both / "model.gguf", files.all_of(kind), tensors={"blk.2.attn_q.weight": wrong})
    with pytest.raises(CheckpointError, match=rf"^{both}/model.gguf: blk.2.attn_q.weight holds NaN"):
        gemma_tpu.load(both, max_context=64, max_rows=1, progress=False)


def test_a_vocabulary_alone(tmp_path: Path) -> None:
    path = files.write(tmp_path / "vocab.gguf", {}, files.text_metadata(CONFIG) | VOCABULARY)
    with pytest.raises(CheckpointError, match=rf"^{path}: holds a vocabulary alone, and no tensors"):
        open_checkpoint(path)


METADATA = {
    "no width": ({"embedding_length": None}, "its metadata lacks gemma3.embedding_length"),
    "text for a number": ({"embedding_length": "32"}, "gemma3.embedding_length is '32', not a positive number"),
    "a fraction": ({"block_count": 7.5}, "gemma3.block_count is 7.5, not a whole number"),
    "too many layers": ({"block_count": 2**31}, "gemma3.block_count is 2147483648; 4096 is the most"),
    "heads by layer": ({"attention.head_count_kv": [1, 2] * 3}, "gemma3.attention.head_count_kv is .*, not a positive"),
    "another value width": ({"attention.value_length": 16}, "gemma3.attention.value_length is 16; .* have 32"),
    "another epsilon": ({"attention.layer_norm_rms_epsilon": 1e-5}, "layer_norm_rms_epsilon is .*; .* have 1e-06"),
    "a soft cap": ({"final_logit_softcapping": 30.0}, "gemma3.final_logit_softcapping is 30.0; .* have none"),
    "yarn": ({"rope.scaling.type": "yarn"}, "gemma3.rope.scaling.type is 'yarn'; .* have linear or none"),
    "an encoder": ({"attention.causal": False}, "gemma3.attention.causal is False: it turns texts into vectors"),
    "a short pattern": ({"attention.sliding_window_pattern": [True] * 3}, "not one value for each of 7 layers"),
    "heads that do not divide": ({"attention.head_count_kv": 3}, "num_heads 2 is no multiple of num_kv_heads 3"),
}  # fmt: skip


TOWER_METADATA = {
    "another mean": ({"clip.vision.image_mean": [0.4, 0.5, 0.5]}, r"clip.vision.image_mean is \[0.4"),
    "another epsilon": ({"clip.vision.attention.layer_norm_epsilon": 1e-5}, "layer_norm_epsilon is .*; .* have 1e-06"),
    "no sides": ({"clip.vision.image_size": None}, "its metadata lacks clip.vision.image_size"),
    "uneven soft tokens": ({"clip.vision.projector.scale_factor": 3}, "scale_factor 3 does not divide a grid of 8"),
}  # fmt: skip


FAULTS = [("model.gguf", write_text, *fault) for fault in METADATA.values()]
FAULTS += [("mmproj-model.gguf", write_tower, *fault) for fault in TOWER_METADATA.values()]


@pytest.mark.parametrize(("name", "write", "changes", "message"), FAULTS, ids=[*METADATA, *TOWER_METADATA])
def test_metadata_that_does_not_fit(name: str, write, changes: dict[str, Any], message: str, both: Path) -> None:
    path = write(both / name, **changes)
    with pytest.raises(CheckpointError, match=rf"^{path}: .*{message}"):
        open_checkpoint(both)
