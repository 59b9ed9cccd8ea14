"""A cache as simple as can be, behind the methods of gemma_tpu.cache.kv_cache.KVCache: the whole context everywhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gemma_tpu.cache.kv_cache import CacheShape
from gemma_tpu.ops.masks import attend, attention_mask


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PlainCache:
    """Position p of a row is stored at p in every layer. Arrays [R, L, context, K, H], whole on every device."""

    keys: Any
    values: Any
    windows: tuple[int | None, ...] = dataclasses.field(metadata={"static": True})
    mesh: Mesh = dataclasses.field(metadata={"static": True})

    @classmethod
    def init(cls, windows: Sequence[int | None], shape: CacheShape, dtype: Any, mesh: Mesh) -> PlainCache:
        layers = shape.rows, len(windows), shape.context
        empty = jnp.zeros((*layers, shape.num_kv_heads, shape.head_dim), dtype)
        return cls(empty, empty, tuple(windows), mesh)

    def shardings(self):
        return jax.tree.map(lambda _: NamedSharding(self.mesh, PartitionSpec()), self)

    def write(self, layer, rows, key, value, start, count, pages):
        token = jnp.arange(key.shape[1])
        position = jnp.where(token < count[:, None], start[:, None] + token, self.keys.shape[2])
        return self._set((rows[:, None], layer, position), key, value)

    def append_and_attend(self, layer, query, key, value, *, length, held, pages):
        cache = self._set((jnp.arange(len(length)), layer, length), key[:, 0], value[:, 0])
        return cache, cache.attend(layer, query, length[:, None], length=held, pages=pages)

    def _set(self, where, key, value):
        keys, values = (x.at[where].set(y, mode="drop") for x, y in ((self.keys, key), (self.values, value)))
        return dataclasses.replace(self, keys=keys, values=values)

    def attend(self, layer, query, position, *, length, pages, rows=None, own=None):
        cached = self if rows is None else self.take(rows)
        keys, values = (jnp.moveaxis(x[:, layer], 1, 2) for x in (cached.keys, cached.values))
        held = jnp.zeros_like(position[:, 0]) if length is None else length
        slot = jnp.arange(keys.shape[2])
        key_pos = jnp.where(slot < held[:, None], slot, -1)
        image, key_image = jnp.zeros_like(position), jnp.zeros_like(key_pos)
        if own is not None:
            keys, values = jnp.concatenate([keys, own.key], axis=2), jnp.concatenate([values, own.value], axis=2)
            key_pos = jnp.concatenate([key_pos, own.position], axis=1)
            image, key_image = own.image, jnp.concatenate([key_image, own.image], axis=1)
        mask = attention_mask(position, key_pos, query_image=image, key_image=key_image, window=self.windows[layer])
        return attend(query, keys, values, mask)

    def take(self, rows):
        return jax.tree.map(lambda x: x[rows], self)

    def put(self, rows, taken):
        return jax.tree.map(lambda x, some: x.at[rows].set(some), self, taken)
