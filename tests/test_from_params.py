"""gemma_tpu.from_params: trees of gemma, tunix and MaxText in memory, against what they are made from."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import checkpoint_samples as samples
import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_checkpoint_maxtext as maxtext
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gemma_tpu
from gemma_tpu.checkpoint import CheckpointError, open_tree
from gemma_tpu.checkpoint.lazy import InMemory

CONFIG = samples.CONFIGS["grouped-8"]
SAMPLE = samples.sample(CONFIG)
TOKENIZER = Path(__file__).parent / "goldens" / "text" / "tokenizer.model"


@functools.cache
def jax_arrays() -> dict[str, jax.Array]:
    return {name: jnp.asarray(array) for name, array in SAMPLE.canonical.items()}


class Parameters(nnx.Module):
    """An NNX module with tunix's variables: names of its attributes and list items lead to them."""

    def __init__(self, tree: dict):
        for name, value in tree.items():
            if not isinstance(value, dict):
                setattr(self, name, nnx.Param(jnp.asarray(value)))
            elif all(key.isdigit() for key in value):
                setattr(self, name, nnx.List([Parameters(value[str(i)]) for i in range(len(value))]))
            else:
                setattr(self, name, Parameters(value))


def tunix_module() -> Parameters:
    return Parameters(samples.nested_tree(samples.tunix_tree(SAMPLE)))


def with_dropout() -> nnx.State:
    module = tunix_module()
    module.dropout = nnx.Dropout(0.1, rngs=nnx.Rngs(0))
    return nnx.state(module)


TREES = {
    "gemma's load_params": lambda: samples.nested_tree(jax_arrays()),
    "frozen": lambda: flax.core.freeze(samples.nested_tree(jax_arrays())),
    "a training's state": lambda: samples.trainer_tree(SAMPLE.canonical) | {"epoch": 3},
    "flat, NumPy": lambda: samples.flat_tree(SAMPLE.canonical),
    "joined keys": lambda: jax_arrays(),
    "tunix's module": tunix_module,
    "tunix's state": with_dropout,
    "tunix's pure dict": lambda: nnx.to_pure_dict(nnx.state(tunix_module())),
}


@pytest.mark.parametrize("form", TREES)
def test_every_form_of_a_tree(form):
    checkpoint = open_tree(TREES[form](), config=CONFIG)
    assert checkpoint.kind == "memory"
    assert checkpoint.arrays.keys() == SAMPLE.canonical.keys()
    for name, array in checkpoint.arrays.items():
        np.testing.assert_array_equal(array.read_all(), SAMPLE.canonical[name], err_msg=name)


def test_the_parameters_on_a_mesh_are_this_packages():
    tree = samples.nested_tree(jax_arrays())
    with gemma_tpu.from_params(tree, config=CONFIG, mesh=(2, 4), dtype="bfloat16", max_rows=2, max_context=64) as model:
        assert model.config == CONFIG
        assert model.mesh.size == 8
        for name, array in model.params.items():
            np.testing.assert_array_equal(np.asarray(array), SAMPLE.ours[name], err_msg=name)
        with pytest.raises(ValueError, match="tokenizer"):
            _ = model.tokenizer
    assert not any(array.is_deleted() for array in jax_arrays().values())  # the caller's tree stays


def test_it_computes_what_a_loaded_checkpoint_does(tmp_path):
    config = dataclasses.replace(samples.small(layers=2, vision=None), vocab_size=800)
    sample = samples.sample(config, np.dtype(np.float32))
    path = samples.save_orbax(tmp_path / "model", samples.nested_tree(sample.canonical))
    settings = {"config": config, "max_rows": 1, "max_context": 64, "tokenizer": TOKENIZER, "progress": False}
    with gemma_tpu.load(path, **settings) as model:
        expected = np.asarray(model.logits([[2, 5, 7]]))
    with gemma_tpu.from_params(samples.nested_tree(samples.tunix_tree(sample)), **settings) as model:
        np.testing.assert_array_equal(np.asarray(model.logits([[2, 5, 7]])), expected)
        assert model.tokenizer.vocab_size == 800


def test_adapters_in_a_tree_are_added():
    tree = samples.tunix_tree(SAMPLE)
    name = "layers/1/attn/q_einsum/w"
    a, b = np.ones((16, 2), np.float32), np.full((2, 4, 6), 0.25, np.float32)
    tree |= {f"{name}_lora_a": a, f"{name}_lora_b": b}
    with pytest.raises(
        CheckpointError, match="is scaled by an alpha that is not stored: pass lora_alpha= to from_params"
    ):
        open_tree(samples.nested_tree(tree), config=CONFIG)
    checkpoint = open_tree(samples.nested_tree(tree), config=CONFIG, lora_alpha=8.0)
    before = SAMPLE.canonical["layer_1/attn/q_einsum/w"]
    expected = (before.astype(np.float32) + 2.0).astype(before.dtype)  # alpha / rank · 2 · 0.25
    np.testing.assert_array_equal(checkpoint.arrays["layer_1/attn/q_einsum/w"].read_all(), expected)


def test_maxtexts_tree():
    config = samples.MAXTEXT["scanned"]
    checkpoint = open_tree(samples.nested_tree(maxtext.golden("scanned")), config=config)
    expected = samples.sample(config, np.dtype(np.float32)).canonical
    for name, array in checkpoint.arrays.items():
        np.testing.assert_allclose(array.read_all(), expected[name], rtol=1e-6, atol=1e-6, err_msg=name)


def test_the_size_is_inferred_from_shapes():
    from gemma_tpu.checkpoint import names

    config = gemma_tpu.CONFIGS["gemma3-270m"]
    shapes = names.canonical_shapes(config)
    tree = {
        name: np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), shape, [0] * len(shape))
        for name, shape in shapes.items()
    }
    assert open_tree(samples.nested_tree(tree)).config == config


def test_text_only():
    checkpoint = open_tree(samples.nested_tree(jax_arrays()), config=CONFIG, text_only=True)
    assert checkpoint.config.vision is None
    assert not any(name.startswith("vision") for name in checkpoint.arrays)


def test_a_size_of_ones_own_needs_a_config():
    """And the way out is one that a caller with a tree has."""
    with pytest.raises(
        CheckpointError, match=r"no config is given, and its shapes .*: give its GemmaConfig as config$"
    ):
        open_tree(samples.nested_tree(jax_arrays()))


def test_errors_are_those_of_checkpoints():
    arrays = dict(SAMPLE.canonical)
    del arrays["layer_3/attn/kv_einsum/w"]
    arrays["layer_2/mlp/linear"] = arrays["layer_2/mlp/linear"].T
    with pytest.raises(CheckpointError) as failure:
        gemma_tpu.from_params(samples.nested_tree(arrays), config=CONFIG)
    assert str(failure.value) == (
        "parameters: missing layer_3/attn/kv_einsum/w; wrongly shaped: layer_2/mlp/linear is [16, 24], not [24, 16]"
    )
    with pytest.raises(
        CheckpointError,
        match=r"not named as in an Orbax checkpoint of Gemma 3; the tree holds a/b … \(load reads files",
    ):
        gemma_tpu.from_params({"a": {"b": np.zeros(3)}})
    abstract = jax.eval_shape(lambda: samples.nested_tree(jax_arrays()))
    with pytest.raises(CheckpointError, match="embedder/input_embedding is a ShapeDtypeStruct, which holds no values"):
        gemma_tpu.from_params(abstract, config=CONFIG)
    quantised = samples.nested_tree(arrays | {"layer_3/attn/kv_einsum/w": np.zeros((2, 2, 16, 6), np.int8)})
    quantised["layer_2"]["mlp"]["linear"] = SAMPLE.canonical["layer_2/mlp/linear"]
    with pytest.raises(CheckpointError, match="layer_3/attn/kv_einsum/w is int8: a quantised checkpoint"):
        gemma_tpu.from_params(quantised, config=CONFIG)


@pytest.mark.parametrize("spec", [PartitionSpec("data", "model"), PartitionSpec(None, "data"), PartitionSpec()])
def test_a_box_of_a_sharded_array_is_read_from_the_shards_that_hold_it(spec):
    values = np.arange(16 * 24, dtype=np.float32).reshape(16, 24)
    mesh = jax.make_mesh((2, 2), ("data", "model"), devices=jax.devices()[:4], axis_types=(AxisType.Auto,) * 2)
    array = jax.device_put(values, NamedSharding(mesh, spec))
    memory = InMemory(array, "w")
    for box in ((slice(0, 16), slice(0, 24)), (slice(3, 12), slice(5, 20)), (slice(9, 10), slice(23, 24))):
        np.testing.assert_array_equal(memory.read(box), values[box])
    if spec != PartitionSpec():
        assert array._npy_value is None  # JAX keeps no host copy of it  # pyright: ignore[reportAttributeAccessIssue]
