"""Bytes that weights and state take on each device, from their shapes and shardings alone: nothing is compiled."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from gemma_tpu.config import GemmaConfig
from gemma_tpu.engine import programs
from gemma_tpu.engine.shapes import REMEMBERED_IMAGES
from gemma_tpu.model import param_shapes
from gemma_tpu.sharding import param_sharding

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device. What stays is known exactly; the rest is the compiler's to say, and 0 before it did.

    `rows` are the settings of the rows; `images` the soft tokens that are remembered; `activations` what the program
    that needs most has beside weights and state; `code` the programs themselves.
    """

    weights: int
    vision: int
    global_cache: int
    local_cache: int
    rows: int
    images: int
    activations: int = 0
    code: int = 0

    @property
    def state(self) -> int:
        return self.global_cache + self.local_cache + self.rows

    @property
    def resident(self) -> int:
        """What stays whatever runs."""
        return self.weights + self.vision + self.state + self.images

    @property
    def total(self) -> int:
        return self.resident + self.activations + self.code

    def parts(self) -> list[tuple[str, int]]:
        named = [
            ("weights, text", self.weights),
            ("weights, vision", self.vision),
            ("cache, global layers", self.global_cache),
            ("cache, local rings", self.local_cache),
            ("settings of the rows", self.rows),
            ("soft tokens remembered", self.images),
            ("activations", self.activations),
            ("programs", self.code),
        ]
        return [(name, size) for name, size in named if size]


def abstract_params(config: GemmaConfig, dtype: jax.typing.DTypeLike, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtype and shardings of every parameter, as `gemma_tpu.load` makes them."""
    return {
        name: jax.ShapeDtypeStruct(one.shape, jnp.dtype(dtype), sharding=param_sharding(name, one.shape, mesh))
        for name, one in param_shapes(config).items()
    }


def shard_bytes(arrays: Iterable[jax.ShapeDtypeStruct]) -> int:
    """Bytes of the arrays' shards on one device."""
    return sum(shard_size(one) * one.dtype.itemsize for one in arrays)


def shard_size(array: jax.ShapeDtypeStruct) -> int:
    """Elements of an array on one device."""
    assert isinstance(array.sharding, NamedSharding)
    return math.prod(array.sharding.shard_shape(array.shape))


def resident_memory(config: GemmaConfig, *, mesh: Mesh, rows: int, context: int, dtype: jax.typing.DTypeLike) -> Memory:
    """What a loaded model keeps on each device."""
    params = abstract_params(config, dtype, mesh)
    state = programs.abstract_state(config, rows, context, dtype, mesh)
    by_layer = [shard_bytes(layer) for layer in state.cache]
    caches = {
        kind: sum(size for layer, size in zip(config.layers, by_layer, strict=True) if (layer.window is None) is kind)
        for kind in (True, False)
    }
    soft = config.vision.num_soft_tokens if config.vision else 0
    return Memory(
        weights=shard_bytes(one for name, one in params.items() if not name.startswith("vision.")),
        vision=shard_bytes(one for name, one in params.items() if name.startswith("vision.")),
        global_cache=caches[True],
        local_cache=caches[False],
        rows=shard_bytes(jax.tree.leaves(state)) - sum(by_layer),
        images=(REMEMBERED_IMAGES + 1) * soft * config.embed_dim * jnp.dtype(dtype).itemsize,  # and a blank one
    )


def device_capacity(mesh: Mesh) -> int | None:
    """Bytes a program may have on each device of this host; None where the platform does not say."""
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in mesh.local_devices]
    return min((limit for limit in limits if limit), default=None)


def check_resident(
    config: GemmaConfig, *, mesh: Mesh, rows: int, context: int, dtype: jax.typing.DTypeLike, capacity: int | None
) -> None:
    """ValueError, with the table, if weights and state alone exceed a device; `capacity` None is unknown."""
    memory = resident_memory(config, mesh=mesh, rows=rows, context=context, dtype=dtype)
    if capacity is not None and memory.resident > capacity:
        raise ValueError(
            f"{context:,} tokens × {rows} rows in {jnp.dtype(dtype)} do not fit on {mesh.devices.size} devices; each "
            f"would hold\n{memory_table(memory, capacity)}\nLoad with a smaller max_context or max_rows, text_only, or "
            "on more devices (`gemma-tpu plan` says what fits)"
        )


def memory_table(memory: Memory, capacity: int) -> str:
    """The parts in GiB against a device's capacity."""
    free = capacity - memory.total
    lines = [*memory.parts(), ("headroom" if free >= 0 else "MISSING", abs(free)), ("capacity", capacity)]
    return "\n".join(f"  {name:24} {size / GIB:8.2f} GiB" for name, size in lines)
