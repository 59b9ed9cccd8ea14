"""What follows from a deployment, and that programs are compiled for what differs in them alone."""

from __future__ import annotations

import dataclasses

import jax
import pytest
from small_models import TEXT, VISION, mesh_of, quantized, random_params

from gemma_tpu.deployment import Deployment
from gemma_tpu.distributed.channel import pack, unpack
from gemma_tpu.engine import programs
from gemma_tpu.engine.rows import images_of_chunk
from gemma_tpu.memory import shard_bytes
from gemma_tpu.sharding import param_sharding

MULTIMODAL = dataclasses.replace(TEXT, vision=VISION)


def _deployment(**changes) -> Deployment:
    return dataclasses.replace(Deployment(MULTIMODAL, mesh_of(2, 4), 4, 128, "float32"), **changes)


def test_a_vision_tower_makes_no_other_text_program() -> None:
    assert _deployment().text == _deployment(config=TEXT).text == _deployment(chunks=(8, 16)).text
    assert _deployment().text != _deployment(rows=2).text
    before = programs.init_state._cache_size()
    for deployment in (_deployment(context=136), _deployment(context=136, config=TEXT)):
        programs.init_state(deployment.text)
    assert programs.init_state._cache_size() == before + 1


def test_the_state_is_as_announced() -> None:
    deployment = _deployment()
    state = programs.init_state(deployment)
    for array, abstract in zip(jax.tree.leaves(state), jax.tree.leaves(deployment.abstract_state), strict=True):
        assert (array.shape, array.dtype) == (abstract.shape, abstract.dtype)
        assert array.sharding.is_equivalent_to(abstract.sharding, array.ndim)


def test_another_process_gets_the_fields_and_works_out_the_rest() -> None:
    deployment = _deployment(chunks=(8, 16))
    assert deployment.memory.resident
    (copy,) = unpack(pack(deployment))
    assert copy == deployment
    assert hash(copy) == hash(deployment)
    assert "memory" not in vars(copy)


def test_bytes_of_quantised_weights_are_those_of_their_parts_on_a_device() -> None:
    """Values and scales are split by the same letters: a dimension of size 1 is whole everywhere."""
    mesh, device = mesh_of(2, 4), jax.devices()[0]
    placed = {
        name: jax.tree.map(lambda x, name=name: jax.device_put(x, param_sharding(name, x.shape, mesh)), weight)
        for name, weight in quantized(random_params(TEXT)).items()
    }
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), placed)
    shards = [shard for x in jax.tree.leaves(placed) for shard in x.addressable_shards if shard.device == device]
    assert shard_bytes(abstract) == sum(shard.data.nbytes for shard in shards)


@pytest.mark.parametrize(
    ("context", "chunks", "soft", "sizes"),
    [
        (8192, None, 4, (64, 320, 512)),  # of a CPU
        (100, None, 4, (64, 100)),
        (8192, (8, 16), 4, (8, 16)),
        (8192, (2, 3), 4, (2, 3, 4)),  # the longest holds an image
    ],
)
def test_prefill_sizes_hold_an_image_and_no_more_than_the_context(context, chunks, soft, sizes) -> None:
    config = dataclasses.replace(MULTIMODAL, vision=dataclasses.replace(VISION, num_soft_tokens=soft))
    assert _deployment(config=config, context=context, chunks=chunks).prefill_sizes == sizes


def test_a_few_rows_decode_apart_where_those_that_rest_cost_much(monkeypatch: pytest.MonkeyPatch) -> None:
    few, some, many = (_deployment(rows=rows, mesh=mesh_of(1, 8)) for rows in (4, 32, 256))
    assert few.memory.local_cache < few.memory.weights // 4 < some.memory.local_cache
    for platform, expected in (
        ("cpu", [(1, 2), (1, 2, 4), (1, 2, 4)]),
        ("gpu", [(), (1,), (1, 8)]),
        ("tpu", [(), (1,), (1, 8)]),
    ):
        monkeypatch.setattr(Deployment, "platform", platform)
        assert [one.calls().few for one in (few, some, many)] == expected
        assert few.calls().together == (platform != "cpu")
        assert few.calls(batch_always=False) == (False, (1,))
        assert dataclasses.replace(few, rows=1).calls(batch_always=False).few == ()
    split = [_deployment(rows=256, mesh=mesh_of(data, 8 // data)) for data in (2, 4, 8)]  # over several devices
    assert [one.calls().few for one in split] == [(), (), ()]
    monkeypatch.setattr(Deployment, "platform", "cpu")
    assert [one.calls().few for one in split] == [(1,), (1, 2), (1, 2, 4)]  # not where the mesh would split these


def test_images_that_a_chunk_has_room_for() -> None:
    assert images_of_chunk(3, 10, _deployment().num_soft_tokens) == 3 * (10 // VISION.num_soft_tokens)
    assert images_of_chunk(3, 10, _deployment(config=TEXT).num_soft_tokens) == 0
