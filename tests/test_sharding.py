from __future__ import annotations

import jax
import pytest
from jax.sharding import PartitionSpec as P
from small_models import mesh_of

from gemma_tpu.config import CONFIGS
from gemma_tpu.model import param_shapes
from gemma_tpu.sharding import make_mesh, param_sharding, partition


def test_letters_become_mesh_axes() -> None:
    mesh = mesh_of(2, 4)
    assert partition("RKSH", (2, 4, 9, 8), mesh).spec == P("data", "model", None, None)
    assert partition("RKSH", (3, 2, 9, 8), mesh).spec == P(None, None, None, None)  # not divisible: whole
    assert param_sharding("layers.3.mlp.down", (64, 32), mesh).spec == P("model", None)
    assert param_sharding("layers.3.pre_ffw_norm.scale", (32,), mesh).spec == P(None)
    assert param_sharding("vision.blocks.1.attention.qkv", (3, 4, 8, 32), mesh).spec == P(None, "model", None, None)


@pytest.mark.parametrize("name", ["gemma3-12b", "gemma3-27b"])
def test_a_large_model_is_split_eight_ways(name: str) -> None:
    """What is left whole on every device is small: norms, biases, positions, patches, the projection."""
    mesh, whole, total = mesh_of(1, 8), 0, 0
    for path, struct in param_shapes(CONFIGS[name]).items():
        shard = param_sharding(path, struct.shape, mesh).shard_shape(struct.shape)
        total += struct.size
        whole += struct.size if shard == struct.shape else 0
    assert whole < total / 500


def test_meshes_that_do_not_fit_are_errors() -> None:
    assert make_mesh().shape == {"data": 1, "model": 8}
    for shape in ((3, 2), (0, 8)):
        with pytest.raises(ValueError, match="does not fit 8 devices"):
            make_mesh(shape, jax.devices())
