"""Every layout in which a checkpoint exists is detected and gives the same parameters, bit for bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import checkpoint_samples as samples
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from checkpoint_samples import CONFIGS, Sample

from gemma_tpu.checkpoint import CheckpointError, load_params, names, open_checkpoint
from gemma_tpu.model import param_shapes

ONE_DEVICE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def load(path: Path, expected_kind: str, sample: Sample, **options) -> dict[str, jax.Array]:
    checkpoint = open_checkpoint(path, config=sample.config, **options)
    assert checkpoint.kind == expected_kind
    return load_params(
        checkpoint, checkpoint.config, dtype=samples.BF16, sharding=lambda *_: ONE_DEVICE, progress=False
    )


def assert_same(params: dict[str, jax.Array], expected: dict[str, np.ndarray]) -> None:
    assert set(params) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(np.asarray(params[name]), array, err_msg=name, strict=True)


def _standard(path: Path, tree: dict) -> Path:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
    return path


def _manager(path: Path, tree: dict) -> Path:
    wrong = jax.tree.map(lambda x: x + np.ones((), x.dtype), tree)
    with ocp.CheckpointManager(path) as manager:
        manager.save(9, args=ocp.args.StandardSave(wrong))
        manager.save(10, args=ocp.args.StandardSave(tree))
    return path


def _items(path: Path, tree: dict) -> Path:
    with ocp.CheckpointManager(path) as manager:
        state = {"count": np.zeros(3)}
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(state), params=ocp.args.PyTreeSave(tree))
        manager.save(2, args=items)
    return path


def _of_2022(path: Path, tree: dict) -> Path:
    """Before _METADATA: a directory per array, and a file with the tree that is named `checkpoint`."""
    samples.save_orbax(path, tree, use_ocdbt=False)
    for file in path.iterdir():
        if file.is_file():
            file.unlink()
    (path / "checkpoint").write_bytes(b"msgpack")
    return path


ORBAX: dict[str, tuple[str, Callable[[Path, Sample], Path]]] = {
    "nested": ("orbax-nested", lambda p, s: samples.save_orbax(p, samples.nested_tree(s.canonical))),
    "nested, StandardCheckpointer": ("orbax-nested", lambda p, s: _standard(p, samples.nested_tree(s.canonical))),
    "flat": ("orbax-flat", lambda p, s: samples.save_orbax(p, samples.flat_tree(s.canonical))),
    "flat, StandardCheckpointer": ("orbax-flat", lambda p, s: _standard(p, samples.flat_tree(s.canonical))),
    "flat, no ocdbt": (
        "orbax-flat",
        lambda p, s: samples.save_orbax(p, samples.flat_tree(s.canonical), use_ocdbt=False),
    ),
    "nested, no ocdbt, zarr3": (
        "orbax-nested",
        lambda p, s: samples.save_orbax(p, samples.nested_tree(s.canonical), use_ocdbt=False, use_zarr3=True),
    ),
    "flat, of 2022": ("orbax-flat", lambda p, s: _of_2022(p, samples.flat_tree(s.canonical))),
    "stacked": ("orbax-stacked", lambda p, s: samples.save_orbax(p, samples.stacked_tree(s.canonical))),
    "stacked, zarr3": (
        "orbax-stacked",
        lambda p, s: samples.save_orbax(p, samples.stacked_tree(s.canonical), use_zarr3=True),
    ),
    "trainer": ("orbax-trainer", lambda p, s: samples.save_orbax(p, samples.trainer_tree(s.canonical))),
    "trainer, default item": (
        "orbax-trainer",
        lambda p, s: samples.save_orbax(p / "default", samples.trainer_tree(s.canonical)).parent,
    ),
    "manager, newest step": ("orbax-nested", lambda p, s: _manager(p, samples.nested_tree(s.canonical))),
    "manager, params item": ("orbax-flat", lambda p, s: _items(p, samples.flat_tree(s.canonical))),
}


@pytest.mark.parametrize("layout", ORBAX)
def test_orbax_layouts(layout, tmp_path):
    sample = samples.sample(CONFIGS["grouped-8"])
    kind, save = ORBAX[layout]
    assert_same(load(save(tmp_path / "c", sample), kind, sample), sample.ours)


@pytest.mark.parametrize("config", ["one-kv-14", "ungrouped-7"])
@pytest.mark.parametrize("layout", ["nested", "flat", "stacked", "trainer"])
def test_orbax_layouts_of_other_shapes(layout, config, tmp_path):
    sample = samples.sample(CONFIGS[config])
    kind, save = ORBAX[layout]
    assert_same(load(save(tmp_path / "c", sample), kind, sample), sample.ours)


@pytest.mark.parametrize(
    ("roots", "expected"),
    [
        ([""], ""),
        (["transformer/"], ""),
        (["opt_state/0/mu/", "opt_state/0/nu/", "params/"], "params/"),
        (["params/transformer/", "ema_params/transformer/"], "params/"),
        (["state/model/", "opt_state/0/mu/params/"], "state/model/"),
        (["params/params/", "opt_state/1/nu/params/"], "params/params/"),
        (["opt_state/0/mu/"], None),
        ([], None),
    ],
)
def test_the_parameters_are_found_among_an_optimizers_copies(roots, expected):
    arrays = [f"{root}embedder/input_embedding" for root in roots]
    assert names.find_model_root([*arrays, "step"]) == expected


def _renamed(hf: dict[str, np.ndarray], *replacements: tuple[str, str]) -> dict[str, np.ndarray]:
    def rename(name: str) -> str:
        for old, new in replacements:
            if name.startswith(old):
                return new + name[len(old) :]
        return name

    return {rename(name): array for name, array in hf.items()}


HF: dict[str, tuple[tuple[str, str], ...]] = {
    "released": (),
    "written by transformers 5": (("vision_tower.vision_model.", "vision_tower."),),
    "in memory": (
        ("language_model.model.", "model.language_model."),
        ("vision_tower.vision_model.", "model.vision_tower."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
    ),
}


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("naming", HF)
def test_hugging_face_names(naming, shards, tmp_path):
    sample = samples.sample(CONFIGS["grouped-8"])
    path = samples.save_hf(tmp_path / "c", _renamed(sample.hf, *HF[naming]), shards=shards)
    assert_same(load(path, "safetensors", sample), sample.ours)


@pytest.mark.parametrize("config", ["one-kv-14", "ungrouped-7"])
def test_hugging_face_of_other_shapes(config, tmp_path):
    sample = samples.sample(CONFIGS[config])
    path = samples.save_hf(tmp_path / "c", sample.hf)
    assert_same(load(path, "safetensors", sample), sample.ours)


def test_a_single_safetensors_file_and_a_stored_output_head(tmp_path):
    sample = samples.sample(CONFIGS["one-kv-14"])
    arrays = sample.hf | {"lm_head.weight": sample.hf["model.embed_tokens.weight"]}
    path = samples.save_hf(tmp_path / "c", arrays) / "model.safetensors"
    assert_same(load(path, "safetensors", sample), sample.ours)


@pytest.mark.parametrize("layout", ["flat", "stacked", "hf"])
def test_text_of_a_multimodal_checkpoint(layout, tmp_path):
    sample = samples.sample(CONFIGS["grouped-8"])
    if layout == "hf":
        kind, path = "safetensors", samples.save_hf(tmp_path / "c", sample.hf)
    else:
        kind, save = ORBAX[layout]
        path = save(tmp_path / "c", sample)
    text = {name: array for name, array in sample.ours.items() if not name.startswith("vision.")}
    assert_same(load(path, kind, sample, text_only=True), text)

    checkpoint = open_checkpoint(path, config=sample.config)
    for config, options in (
        (sample.config, {"text_only": True}),
        (dataclasses.replace(sample.config, vision=None), {}),
    ):
        params = load_params(
            checkpoint, config, dtype=samples.BF16, sharding=lambda *_: ONE_DEVICE, progress=False, **options
        )
        assert_same(params, text)


def test_a_text_only_checkpoint_has_no_vision_to_load(tmp_path):
    sample = samples.sample(CONFIGS["one-kv-14"])
    checkpoint = open_checkpoint(samples.save_hf(tmp_path / "c", sample.hf), config=sample.config)
    multimodal = dataclasses.replace(sample.config, vision=samples.VISION)
    with pytest.raises(CheckpointError, match="is text-only"):
        load_params(checkpoint, multimodal, dtype=samples.BF16, sharding=lambda *_: ONE_DEVICE, progress=False)


@pytest.mark.parametrize("tied_head", [True, False])
@pytest.mark.parametrize("config", CONFIGS)
def test_names_and_shapes_are_those_of_the_model(config, tied_head):
    changed = dataclasses.replace(CONFIGS[config], tied_head=tied_head)
    expected = {name: leaf.shape for name, leaf in param_shapes(changed).items()}
    assert names.param_shapes(changed) == expected


def test_parameter_counts_are_those_of_the_released_models():
    """GEMMA3.md: counted in the reference implementations."""
    from gemma_tpu.config import CONFIGS as SIZES

    counts = {
        "gemma3-270m": 268_098_176,
        "gemma3-1b": 999_885_952,
        "gemma3-4b": 4_299_915_632,
        "gemma3-12b": 12_187_079_280,
        "gemma3-27b": 27_432_062_576,
    }
    for size, count in counts.items():
        for shapes in (names.param_shapes(SIZES[size]), names.canonical_shapes(SIZES[size])):
            assert sum(int(np.prod(shape)) for shape in shapes.values()) == count
