"""Converting and saving: the bits come back, other libraries read them, a killed run leaves nothing to load."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import checkpoint_samples as samples
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors
import safetensors.numpy
from checkpoint_samples import CONFIGS

from gemma_tpu.checkpoint import CheckpointError, CheckpointWarning, convert, load_params, open_checkpoint, save_params

KINDS = {"orbax": "orbax-nested", "orbax-flat": "orbax-flat", "safetensors": "safetensors"}
TREES = {"orbax": samples.nested_tree, "orbax-flat": samples.flat_tree}


def restored(path: Path) -> dict[str, np.ndarray]:
    """The leaves of an Orbax checkpoint, restored as Google's package does it."""
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.metadata(path).item_metadata.tree
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), tree)
        tree = checkpointer.restore(path, target)
    return {
        jax.tree_util.keystr(path, simple=True, separator="|"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def assert_equal_arrays(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(found) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name, strict=True)


def flat_leaves(tree: dict) -> dict[str, np.ndarray]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="|"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def hf_arrays(path: Path) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for file in path.glob("*.safetensors"):
        arrays |= safetensors.numpy.load_file(file)
    return arrays


def written(sample: samples.Sample) -> dict[str, np.ndarray]:
    """The Hugging Face arrays as they are written: what is behind the vocabulary is zero."""
    arrays = dict(sample.hf)
    for name in arrays:
        if name.endswith("embed_tokens.weight"):
            arrays[name] = arrays[name].copy()
            arrays[name][sample.config.vocab_size :] = 0
    return arrays


@pytest.mark.parametrize("to", ["orbax", "orbax-flat"])
@pytest.mark.parametrize("config", CONFIGS)
def test_hugging_face_to_orbax_and_back(config, to, tmp_path):
    sample = samples.sample(CONFIGS[config])
    src = samples.save_hf(tmp_path / "hf", sample.hf, samples.hf_config(sample.config), shards=2)
    orbax = convert(src, tmp_path / "orbax", to=to, progress=False)
    assert_equal_arrays(restored(orbax), flat_leaves(TREES[to](sample.canonical)))
    assert open_checkpoint(orbax).kind == KINDS[to]
    assert open_checkpoint(orbax).config == sample.config

    back = convert(orbax, tmp_path / "back", to="safetensors", progress=False)
    assert_equal_arrays(hf_arrays(back), written(sample))
    assert open_checkpoint(back).config == sample.config


def test_orbax_to_safetensors_in_shards_and_back(tmp_path):
    sample = samples.sample(CONFIGS["ungrouped-7"])
    src = samples.save_orbax(tmp_path / "src", samples.stacked_tree(sample.canonical))
    hf = convert(src, tmp_path / "hf", to="safetensors", config=sample.config, progress=False, max_shard_bytes=20_000)
    files = sorted(file.name for file in hf.glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((hf / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == files
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in written(sample).values())
    for file in files:
        with safetensors.safe_open(hf / file, "np") as opened:
            assert opened.metadata() == {"format": "pt"}
            names = opened.keys()
        assert all(index["weight_map"][name] == file for name in names)
        assert (hf / file).stat().st_size <= 20_000 + 16_000  # a shard's arrays, and its header
    assert_equal_arrays(hf_arrays(hf), written(sample))

    back = convert(hf, tmp_path / "back", to="orbax", progress=False)
    assert_equal_arrays(restored(back), flat_leaves(samples.nested_tree(sample.canonical)))


@pytest.mark.parametrize("to", ["orbax", "orbax-flat", "safetensors"])
def test_what_a_progress_callback_raises_comes_back_as_it_is(to, tmp_path):
    sample = samples.sample(CONFIGS["grouped-8"])
    src = samples.save_hf(tmp_path / "hf", sample.hf, samples.hf_config(sample.config))
    error = LookupError("no window to draw in")

    def draw(done: int, total: int) -> None:
        raise error

    with pytest.raises(LookupError) as raised:
        convert(src, tmp_path / "out", to=to, progress=draw)
    assert raised.value is error
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_dtypes_are_kept_apart_and_changed_when_asked(tmp_path):
    sample = samples.sample(CONFIGS["grouped-8"])
    mixed = {name: array.astype(np.float32) if "vision" in name else array for name, array in sample.canonical.items()}
    src = samples.save_orbax(tmp_path / "src", samples.flat_tree(mixed))
    hf = convert(src, tmp_path / "hf", to="safetensors", config=sample.config, progress=False)
    back = convert(hf, tmp_path / "back", to="orbax-flat", progress=False)
    assert_equal_arrays(restored(back), flat_leaves(samples.flat_tree(mixed)))

    wide = convert(hf, tmp_path / "wide", to="orbax", dtype="float32", progress=False)
    expected = {name: array.astype(np.float32) for name, array in mixed.items()}
    assert_equal_arrays(restored(wide), flat_leaves(samples.nested_tree(expected)))
    assert json.loads((wide / "config.json").read_text())["dtype"] == "float32"
    narrow = convert(wide, tmp_path / "narrow", to="safetensors", dtype="bf16", progress=False)
    assert_equal_arrays(hf_arrays(narrow), written(sample))
    for dtype in ("float16", "int8", "nonsense"):
        with pytest.raises(CheckpointError, match="choose bfloat16 or float32"):
            convert(hf, tmp_path / "no", to="orbax", dtype=dtype, progress=False)


def test_save_params_calls_a_tokenizer_what_it_is(tmp_path):
    sample = samples.sample(samples.CONFIGS["one-kv-14"])
    content = b'{"model": {"type": "BPE", "vocab": {"<unk>": 0}, "merges": []}}'
    path = save_params(sample.ours, sample.config, tmp_path / "c", tokenizer=content)
    assert (path / "tokenizer.json").read_bytes() == content
    assert not (path / "tokenizer.model").exists()
    with pytest.raises(CheckpointError, match=r"none: no such file"):
        save_params(sample.ours, sample.config, tmp_path / "d", tokenizer=tmp_path / "none")


def test_save_params_writes_the_released_layout(tmp_path):
    sample = samples.sample(CONFIGS["grouped-8"])
    params = {name: jax.numpy.asarray(array) for name, array in sample.ours.items()}
    path = save_params(params, sample.config, tmp_path / "deep" / "demo")
    assert_equal_arrays(restored(path), flat_leaves(samples.flat_tree(sample.canonical)))
    checkpoint = open_checkpoint(path)
    assert (checkpoint.kind, checkpoint.config) == ("orbax-flat", sample.config)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    loaded = load_params(checkpoint, checkpoint.config, dtype=samples.BF16, sharding=lambda *_: device, progress=False)
    assert_equal_arrays({name: np.asarray(array) for name, array in loaded.items()}, sample.ours)

    del params["layers.3.attention.qkv"]
    params["layers.2.mlp.down"] = params["layers.2.mlp.down"].T
    with pytest.raises(CheckpointError, match=r"missing layers.3.attention.qkv; .*layers.2.mlp.down is \[24, 16\]"):
        save_params(params, sample.config, tmp_path / "bad")


def test_tokenizer_and_other_files_go_along(tmp_path):
    import sentencepiece

    tokens = tmp_path / "tokens"
    (tmp_path / "text").write_text("one two three four five six seven\n" * 50)
    sentencepiece.SentencePieceTrainer.Train(
        input=str(tmp_path / "text"), model_prefix=str(tokens), vocab_size=40, minloglevel=2,
        user_defined_symbols=["<start_of_image>", "<end_of_image>"], pad_id=0, eos_id=1, bos_id=2, unk_id=3,
        hard_vocab_limit=False,
    )  # fmt: skip
    sample = samples.sample(CONFIGS["grouped-8"])
    params = dict(sample.ours)
    src = save_params(params, sample.config, tmp_path / "src", tokenizer=tokens.with_suffix(".model"))
    raw = json.loads((src / "config.json").read_text())
    assert (raw["boi_token_index"], raw["eoi_token_index"]) == (4, 5)
    (src / "generation_config.json").write_text('{"top_k": 64}')
    (src / "README.md").write_text("not part of the model")

    with pytest.warns(CheckpointWarning, match=r"no settings and chat template .* lacks .*<start_of_turn>"):
        hf = convert(src, tmp_path / "hf", to="safetensors", progress=False)
    assert (hf / "tokenizer.model").read_bytes() == tokens.with_suffix(".model").read_bytes()
    assert (hf / "generation_config.json").read_text() == '{"top_k": 64}'
    assert (hf / "config.json").read_text() == (src / "config.json").read_text()
    assert not (hf / "README.md").exists()
    assert open_checkpoint(hf).tokenizer_path == str(hf / "tokenizer.model")


def test_shieldgemma_keeps_its_type_and_its_names(tmp_path):
    """A whole Gemma 3 below "model.": as released, and, in other words, as transformers 5 saves it."""
    sample = samples.sample(CONFIGS["grouped-8"])
    config = samples.hf_config(sample.config) | {"model_type": "shieldgemma2", "yes_token_index": 7}
    released = {f"model.{name}": array for name, array in sample.hf.items()}
    saved = {f"model.model.{name.replace('.vision_model.', '.')}": array for name, array in sample.hf.items()}
    for i, arrays in enumerate((released, saved)):
        src = samples.save_hf(tmp_path / f"src{i}", arrays, config)
        orbax = convert(src, tmp_path / f"orbax{i}", to="orbax", progress=False)
        assert_equal_arrays(restored(orbax), flat_leaves(samples.nested_tree(sample.canonical)))
        back = convert(orbax, tmp_path / f"back{i}", to="safetensors", progress=False)
        assert_equal_arrays(hf_arrays(back), {f"model.{name}": array for name, array in written(sample).items()})
        raw = json.loads((back / "config.json").read_text())
        assert (raw["model_type"], raw["yes_token_index"]) == ("shieldgemma2", 7)


def test_errors_leave_nothing_behind(tmp_path):
    sample = samples.sample(CONFIGS["one-kv-14"])
    src = samples.save_hf(tmp_path / "src", sample.hf, samples.hf_config(sample.config))
    (tmp_path / "there").mkdir()
    with pytest.raises(CheckpointError, match="there: exists already"):
        convert(src, tmp_path / "there", to="orbax", progress=False)
    with pytest.raises(CheckpointError, match="'zarr' is no layout"):
        convert(src, tmp_path / "dst", to="zarr", progress=False)
    for size, message in ((0, "at least 1"), (-1, "at least 1"), (True, "an integer")):
        with pytest.raises(ValueError, match=f"max_shard_bytes must be {message}"):
            convert(src, tmp_path / "dst", to="safetensors", progress=False, max_shard_bytes=size)
    (tmp_path / "link").symlink_to(src)
    for inner in (src / "inner", tmp_path / "link" / "x" / "inner"):
        with pytest.raises(CheckpointError, match=f"{inner}: is in {src}, which is read"):
            convert(src, inner, to="orbax", progress=False)
    (tmp_path / "link").unlink()
    assert {path.name for path in src.iterdir()} == {"config.json", "model.safetensors"}
    with pytest.raises(CheckpointError, match="write to a local path first"):
        convert(src, "gs://bucket/dst", to="orbax", progress=False)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    for to in KINDS:
        with pytest.raises(KeyboardInterrupt):
            convert(src, tmp_path / "dst", to=to, progress=interrupt)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["src", "there"]


KILLED = """
import sys, time
from pathlib import Path
from gemma_tpu.checkpoint import convert
src, dst, to, where = sys.argv[1:]

def wait(*_):
    print("reached", flush=True)
    time.sleep(600)

def progress(done, total):
    if where == "amid the arrays" and done > total / 2:
        wait()

if where == "before config.json":
    Path.write_text = wait
convert(src, dst, to=to, progress=progress)
"""


@pytest.mark.parametrize("to", ["orbax-flat", "safetensors"])
@pytest.mark.parametrize("where", ["amid the arrays", "before config.json"])
def test_a_killed_conversion_leaves_nothing_that_loads(to, where, tmp_path):
    sample = samples.sample(CONFIGS["one-kv-14"])
    src = samples.save_hf(tmp_path / "src", sample.hf, samples.hf_config(sample.config))
    out = tmp_path / "out"
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(src), str(out / "dst"), to, where]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "reached\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()

    assert not (out / "dst").exists()
    left = [out, *(path for path in out.rglob("*") if path.is_dir())]
    assert len(left) > 1, "the test has to kill it while something is there"
    for path in left:
        with pytest.raises(CheckpointError):
            open_checkpoint(path, config=sample.config)
        assert not (path / "config.json").exists()
    again = convert(src, out / "dst", to=to, progress=False)
    assert open_checkpoint(again).config == sample.config
