"""Whatever is wrong with a checkpoint is one error that names the file or the parameters."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import checkpoint_samples as samples
import jax
import numpy as np
import pytest
from checkpoint_samples import CONFIGS

from gemma_tpu.checkpoint import CheckpointError, load_params, open_checkpoint

CONFIG = CONFIGS["grouped-8"]
ONE_DEVICE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


@pytest.fixture(scope="module")
def sample() -> samples.Sample:
    return samples.sample(CONFIG)


def load(path: Path) -> dict[str, jax.Array]:
    checkpoint = open_checkpoint(path, config=CONFIG)
    return load_params(checkpoint, CONFIG, dtype=samples.BF16, sharding=lambda *_: ONE_DEVICE, progress=False)


def failure(path: Path) -> str:
    """The message of the one error; no array is alive after it that was not before."""
    before = {id(array) for array in jax.live_arrays()}
    with pytest.raises(CheckpointError) as error:
        load(path)
    assert [array.shape for array in jax.live_arrays() if id(array) not in before] == []
    message = str(error.value)
    assert "\n" not in message
    return message


def test_no_checkpoint(tmp_path):
    assert failure(tmp_path / "nowhere") == f"{tmp_path}/nowhere: no such file or directory"
    assert "no checkpoint: neither Orbax files nor *.gguf nor *.safetensors; it has nothing" in failure(tmp_path)
    (tmp_path / "notes.txt").write_text("")
    assert "it has notes.txt" in failure(tmp_path)
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  model.safetensors\n{'0' * 64}  notes.txt\n")
    assert "*.safetensors; SHA256SUMS there lists model.safetensors, missing: download or conv" in failure(tmp_path)
    with pytest.raises(CheckpointError, match=r"s3://bucket/c: only local paths and gs:// can be read"):
        open_checkpoint("s3://bucket/c")


def test_missing_unexpected_and_wrongly_shaped_parameters(sample, tmp_path):
    hf = dict(sample.hf)
    del hf["language_model.model.layers.3.mlp.up_proj.weight"], hf["vision_tower.vision_model.post_layernorm.bias"]
    hf["language_model.model.layers.8.mlp.up_proj.weight"] = np.zeros(3, np.float32)
    hf["score.weight"] = np.zeros(3, np.float32)
    name = "language_model.model.layers.1.self_attn.o_proj.weight"
    hf[name] = hf[name].T
    path = samples.save_hf(tmp_path / "hf", hf)
    assert failure(path) == (
        f"{path}: missing language_model.model.layers.3.mlp.up_proj.weight, "
        "vision_tower.vision_model.post_layernorm.bias; "
        "unexpected language_model.model.layers.8.mlp.up_proj.weight, score.weight; "
        f"wrongly shaped: {name} is [24, 16], not [16, 24]"
    )

    canonical = dict(sample.canonical)
    del canonical["layer_3/attn/kv_einsum/w"]
    canonical["layer_2/mlp/linear"] = canonical["layer_2/mlp/linear"].T.copy()
    canonical["layer_2/extra/a"] = np.zeros(3, np.float32)
    path = samples.save_orbax(tmp_path / "orbax", samples.flat_tree(canonical))
    assert failure(path) == (
        f"{path}: missing layer_3/attn/kv_einsum/w; unexpected layer_2/extra/a; "
        "wrongly shaped: layer_2/mlp/linear is [16, 24], not [24, 16]"
    )


def test_many_missing_parameters_are_counted(sample, tmp_path):
    hf = {name: array for name, array in sample.hf.items() if "mlp" not in name}
    listed = 12
    missing = 8 * 3 + 2 * 4 - listed  # three in each of 8 layers, four in each of two vision blocks
    assert f"and {missing} more" in failure(samples.save_hf(tmp_path / "hf", hf))


@pytest.mark.parametrize("layout", ["flat", "hf"])
def test_older_gemmas(sample, layout, tmp_path):
    """Gemma 2 has the norms after attention and mlp, but none on queries and keys."""
    if layout == "hf":
        hf = {name: a for name, a in sample.hf.items() if "q_norm" not in name and "k_norm" not in name}
        path = samples.save_hf(tmp_path / "c", hf)
        first = {name: array for name, array in hf.items() if "post_feedforward" not in name}
        older = samples.save_hf(tmp_path / "older", first)
    else:
        gm = {name: a for name, a in sample.canonical.items() if "_query_norm" not in name and "_key_norm" not in name}
        path = samples.save_orbax(tmp_path / "c", samples.flat_tree(gm))
        first = {name: array for name, array in gm.items() if "post_ffw_norm" not in name}
        older = samples.save_orbax(tmp_path / "older", samples.flat_tree(first))
    for config in (CONFIG, None):
        with pytest.raises(CheckpointError, match=r"c: this seems to be a Gemma 2 model"):
            open_checkpoint(path, config=config)
    if layout == "flat":
        with pytest.raises(CheckpointError, match=r"older: this seems to be a Gemma 1 model"):
            open_checkpoint(older)


def test_another_model(tmp_path):
    tree = {"encoder": {"w": np.zeros(3, np.float32)}}
    path = samples.save_orbax(tmp_path / "orbax", tree)
    assert failure(path) == f"{path}: no Gemma 3 parameters by names that are known here; it holds encoder/w …"
    path = samples.save_hf(tmp_path / "hf", {"encoder.w": tree["encoder"]["w"]}, {"model_type": "bert"})
    with pytest.raises(CheckpointError, match=r"hf/config\.json: this seems to be a model of type 'bert', not Gemma 3"):
        open_checkpoint(path)


def test_an_unknown_size_without_a_config(sample, tmp_path):
    path = samples.save_hf(tmp_path / "hf", sample.hf)
    with pytest.raises(CheckpointError, match=r"hf: has no config.json, .* put the config.json of its architecture"):
        open_checkpoint(path)


def test_damaged_safetensors(sample, tmp_path):
    path = samples.save_hf(tmp_path / "hf", sample.hf, shards=3)
    shard = path / "model-00002-of-00003.safetensors"
    good = shard.read_bytes()

    shard.write_bytes(good[:-1])
    assert failure(path) == f"{shard}: truncated: its header describes {len(good)} bytes, the file has fewer"
    shard.write_bytes(good[:100])
    assert "truncated: the file ends inside its header" in failure(path)
    shard.write_bytes(b"")
    assert failure(path) == f"{shard}: is empty: fetch it again"
    shard.write_bytes(b"<html>not the file you want</html>")
    assert failure(path).startswith(f"{shard}: is an HTML page")
    shard.write_bytes(b"not the file you want")
    assert failure(path).startswith(f"{shard}: is no safetensors file")
    shard.write_bytes(good[:8] + b"x" + good[9:])
    assert failure(path).startswith(f"{shard}: its safetensors header is corrupt")
    header = json.loads(good[8 : 8 + int.from_bytes(good[:8], "little")])
    name = next(name for name in header if name != "__metadata__")
    header[name]["dtype"] = "F8_E5M2"
    encoded = json.dumps(header).encode()
    shard.write_bytes(len(encoded).to_bytes(8, "little") + encoded)
    assert "holds F8_E5M2 arrays: a quantised checkpoint?" in failure(path)

    shard.unlink()
    index = "model.safetensors.index.json"
    assert failure(path) == f"{path}: {index} lists files that are missing: model-00002-of-00003.safetensors"
    shard.write_bytes(good)
    weight_map = json.loads((path / index).read_text())["weight_map"]
    (path / index).write_text(json.dumps({"weight_map": weight_map | {"ghost": shard.name}}))
    assert failure(path) == f"{path}: {index} lists parameters that no file holds: ghost"
    (path / index).write_text("{}")
    assert failure(path).startswith(f"{path / index}: is no index of safetensors files")


def test_a_file_that_shrinks_while_it_is_read(sample, tmp_path):
    path = samples.save_hf(tmp_path / "hf", sample.hf)
    checkpoint = open_checkpoint(path, config=CONFIG)
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4000])
    before = len(jax.live_arrays())
    with pytest.raises(CheckpointError, match=rf"{file}: the file ends early \(while reading \S+weight\)"):
        load_params(checkpoint, CONFIG, dtype=samples.BF16, sharding=lambda *_: ONE_DEVICE, progress=False)
    assert len(jax.live_arrays()) == before


@pytest.mark.parametrize("damage", ["truncated", "corrupt", "missing"])
def test_damaged_ocdbt(sample, damage, tmp_path):
    path = samples.save_orbax(tmp_path / "orbax", samples.flat_tree(sample.canonical))
    # The arrays are here, the list of them is in d/. Behind the arrays these files have indices that nothing uses.
    for file in path.glob("ocdbt.process_0/d/*"):
        data = file.read_bytes()
        if damage == "missing":
            file.unlink()
        else:
            file.write_bytes(data[: len(data) // 8] if damage == "truncated" else bytes(len(data)))
    assert failure(path).startswith(f"{path}: cannot read ")


def test_a_damaged_array_in_ocdbt(sample, tmp_path):
    canonical = dict(sample.canonical)
    config = dataclasses.replace(CONFIG, vocab_size=4096)
    canonical["embedder/input_embedding"] = np.random.default_rng(0).standard_normal((4096, 16)).astype(samples.BF16)
    path = samples.save_orbax(tmp_path / "orbax", samples.flat_tree(canonical))
    stored = max(path.glob("ocdbt.process_0/d/*"), key=lambda file: file.stat().st_size)
    assert stored.stat().st_size > 80_000  # it holds the embedding table's one chunk
    stored.write_bytes(stored.read_bytes()[:60_000])
    checkpoint = open_checkpoint(path, config=config)
    before = len(jax.live_arrays())
    with pytest.raises(CheckpointError, match=f"{path}: cannot read transformer/embedder/input_embedding: "):
        load_params(
            checkpoint, config, dtype=samples.BF16, sharding=lambda *_: ONE_DEVICE, progress=False, concurrency=1
        )
    assert len(jax.live_arrays()) == before


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_damaged_chunk_of_a_directory_per_array(sample, damage, tmp_path):
    path = samples.save_orbax(tmp_path / "orbax", samples.flat_tree(sample.canonical), use_ocdbt=False)
    chunk = path / "transformer" / "layer_4" / "attn" / "q_einsum.w" / "0.0.0"
    if damage == "truncated":
        chunk.write_bytes(chunk.read_bytes()[:-5])
    else:
        chunk.unlink()
    assert f"{path}: cannot read transformer/layer_4/attn/q_einsum/w: " in failure(path)


def test_orbax_that_was_never_finished(sample, tmp_path):
    path = samples.save_orbax(tmp_path / "c", samples.flat_tree(sample.canonical))
    unfinished = tmp_path / "c.orbax-checkpoint-tmp"
    shutil.move(path, unfinished)
    assert failure(unfinished) == f"{unfinished}: an Orbax checkpoint whose writing never finished"
    assert "no checkpoint" in failure(tmp_path)


def test_several_checkpoints_in_a_directory(sample, tmp_path):
    for name in ("one", "two"):
        samples.save_orbax(tmp_path / name, {"transformer/embedder": {"input_embedding": np.zeros(3, np.float32)}})
    assert failure(tmp_path) == (f"{tmp_path}: holds several checkpoints, say which: {tmp_path}/one, {tmp_path}/two")


def test_integers_are_taken_for_a_quantised_checkpoint(sample, tmp_path):
    canonical = dict(sample.canonical)
    canonical["layer_0/mlp/linear"] = canonical["layer_0/mlp/linear"].astype(np.int8)
    path = samples.save_orbax(tmp_path / "c", samples.nested_tree(canonical))
    assert failure(path) == f"{path}: layer_0/mlp/linear is int8: a quantised checkpoint? Take the bfloat16 one"
