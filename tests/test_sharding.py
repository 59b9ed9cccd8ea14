from __future__ import annotations

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from small_models import TEXT

from gemma_tpu.config import CONFIGS
from gemma_tpu.deployment import Deployment
from gemma_tpu.model import param_shapes
from gemma_tpu.model.linear import lookup
from gemma_tpu.plan.hlo import Hlo
from gemma_tpu.sharding import make_mesh, param_sharding, partition


def test_letters_become_mesh_axes() -> None:
    mesh = make_mesh(dataclasses.replace(TEXT, num_kv_heads=2), (2, 4))
    assert mesh.shape == {"data": 2, "heads": 2, "slots": 2}
    assert partition("RKSH", (2, 4, 8, 8), mesh).spec == P("data", "heads", "slots", None)
    assert partition("RKSH", (3, 1, 9, 8), mesh).spec == P(None, None, None, None)  # not divisible: whole
    assert param_sharding("layers.3.mlp.down", (32, 64), mesh).spec == P(None, ("heads", "slots"))
    assert param_sharding("layers.3.attention.out", (2, 4, 8, 32), mesh).spec == P("heads", "slots", None, None)
    assert param_sharding("layers.3.attention.out", (2, 3, 8, 32), mesh).spec == P("heads", None, None, "slots")
    assert param_sharding("layers.3.pre_ffw_norm.scale", (32,), mesh).spec == P(None)
    qkv = param_sharding("vision.blocks.1.attention.qkv", (3, 4, 8, 32), mesh)
    assert qkv.spec == P(None, ("heads", "slots"), None, None)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_no_chip_keeps_what_another_has(name: str) -> None:
    """On any number of chips the cache and the text decoder's large weights are split as many ways as there are."""
    config = CONFIGS[name]
    for model in (1, 2, 4, 8):
        mesh = make_mesh(config, (1, model), jax.devices()[:model])
        cache = (1, config.num_kv_heads, config.layers[0].window, config.head_dim)
        shapes = {path: struct.shape for path, struct in param_shapes(dataclasses.replace(config, vision=None)).items()}
        shards = {path: (shape, param_sharding(path, shape, mesh)) for path, shape in shapes.items() if len(shape) > 1}
        for path, (shape, sharding) in {**shards, "cache": (cache, partition("RKSH", cache, mesh))}.items():
            assert math.prod(sharding.shard_shape(shape)) * model == math.prod(shape), (path, model)


def test_a_context_that_the_devices_do_not_divide_is_split_all_the_same() -> None:
    config = CONFIGS["gemma3-1b"]  # one kv head: eight devices share the length of its cache
    state = Deployment(config, make_mesh(config, (1, 8)), 1, 1001, "bfloat16").abstract_state
    shards = {keys.sharding.shard_shape(keys.shape)[::2] for keys, _ in state.cache.layers}
    assert shards == {(1, 512 // 8), (1024 // 64, 64 // 8)}


@pytest.mark.parametrize("name", ["gemma3-12b", "gemma3-27b"])
def test_a_large_model_is_split_eight_ways(name: str) -> None:
    """What is left whole on every device is small: norms, biases, positions, patches, the projection."""
    mesh, whole, total = make_mesh(CONFIGS[name], (1, 8)), 0, 0
    for path, struct in param_shapes(CONFIGS[name]).items():
        shard = param_sharding(path, struct.shape, mesh).shard_shape(struct.shape)
        total += struct.size
        whole += struct.size if shard == struct.shape else 0
    assert whole < total / 500


@pytest.mark.parametrize(
    ("vocabulary", "split"), [(24, P(("heads", "slots"), None)), (22, P("heads", "slots")), (23, P(None, "slots"))]
)
def test_a_split_table_is_looked_up_where_it_lies(vocabulary: int, split: P) -> None:
    mesh = make_mesh(dataclasses.replace(TEXT, num_kv_heads=2), (2, 4))
    table = jax.random.normal(jax.random.key(0), (vocabulary, 16), "bfloat16")
    where = partition("VD", table.shape, mesh)
    assert where.spec == split
    ids = np.arange(2 * vocabulary, dtype=np.int32).reshape(2, -1) % vocabulary  # each id, in each half of the rows
    look_up = jax.jit(functools.partial(lookup, mesh=mesh))
    args = jax.device_put(table, where), ids
    assert np.array_equal(look_up(*args), table[ids])
    sent = Hlo(look_up.lower(*args).compile().as_text()).collectives()
    assert {one.op for one in sent} <= {"all-reduce"}


def test_meshes_that_do_not_fit_are_errors() -> None:
    assert make_mesh(TEXT).shape == {"data": 1, "heads": 4, "slots": 2}
    for shape in ((3, 2), (0, 8), (8,), (2, 2, 2)):
        with pytest.raises(ValueError, match="does not fit 8 devices"):
            make_mesh(TEXT, shape, jax.devices())


def test_an_output_head_of_its_own_is_split_as_the_table() -> None:
    config = dataclasses.replace(CONFIGS["gemma3-4b"], tied_head=False)
    mesh = make_mesh(config, (1, 8))
    shapes = param_shapes(config)
    assert shapes["embedder.head"].shape == shapes["embedder.table"].shape
    head, table = (param_sharding(name, shapes[name].shape, mesh) for name in ("embedder.head", "embedder.table"))
    assert head == table
    assert math.prod(head.shard_shape(shapes["embedder.head"].shape)) * 8 == math.prod(shapes["embedder.head"].shape)
