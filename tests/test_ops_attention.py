"""Attention in parts, and the TPU's kernel, against plain softmax attention over all keys at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma_tpu.ops import attention as attention_ops
from gemma_tpu.ops.attention import Keys
from gemma_tpu.ops.flash_attention import flash
from gemma_tpu.ops.masks import attend, attention_mask, by_head

B, T, K, G, H = 2, 64, 2, 2, 16


def _ring(lengths: jax.Array, slots: int) -> jax.Array:
    """The positions in a ring of so many slots, written one token at a time."""
    ring = np.full((len(lengths), slots), -1)
    for row, length in enumerate(lengths.tolist()):
        for position in range(length):
            ring[row, position % slots] = position
    return jnp.asarray(ring)


def _case(keys: int, lengths: tuple[int, ...], *, images: bool, dtype: str = "float32") -> tuple:
    """Queries at the positions after `lengths` cached tokens, keys of a ring (or a full cache) of that many slots."""
    rng = np.random.default_rng(keys)
    query = jnp.asarray(rng.standard_normal((B, T, K, G, H)), dtype)
    key, value = (jnp.asarray(rng.standard_normal((B, K, keys, H)), dtype) for _ in range(2))
    start = jnp.asarray(lengths)
    query_pos = start[:, None] + jnp.arange(T)
    key_pos = _ring(start + (T if images else 0), keys)
    image = np.zeros((B, T), np.int32)
    image[0, 3:20], image[0, 40:60], image[1, :9] = 1, 2, 1
    if not images:
        return query, key, value, query_pos, key_pos, jnp.zeros_like(image), jnp.zeros((B, keys), jnp.int32)
    where = np.asarray(key_pos) - np.asarray(start)[:, None]
    key_image = np.where(where >= 0, np.take_along_axis(image, np.clip(where, 0, T - 1), axis=1), 0)
    return query, key, value, query_pos, key_pos, jnp.asarray(image), jnp.asarray(key_image)


def _plain(query, key, value, query_pos, key_pos, query_image, key_image, window) -> tuple[np.ndarray, np.ndarray]:
    """What the queries read, and which of them may read anything."""
    mask = attention_mask(query_pos, key_pos, query_image=query_image, key_image=key_image, window=window)
    return np.asarray(attend(query, key, value, mask)), np.asarray(mask.any(axis=-1))


CASES = [
    (128, (100, 7), None, False),  # not yet full
    (128, (1000, 128), 128, False),  # a ring that has wrapped
    (256, (0, 300), 64, False),  # an empty row beside one past its window
    (512, (130, 400), None, True),  # images among the keys
    (512, (90, 448), 40, True),  # longer than the window
]


@pytest.mark.parametrize(("keys", "lengths", "window", "images"), CASES)
@pytest.mark.parametrize("block", [48, 128])
def test_blocks_equal_plain_attention(keys, lengths, window, images, block, monkeypatch) -> None:
    monkeypatch.setattr(attention_ops, "BLOCK", block)
    case = _case(keys, lengths, images=images)
    expected, seeing = _plain(*case, window)
    part = attention_ops._blocks(by_head(case[0]), *case[1:], window=window)
    found = np.asarray(attention_ops.finish(part, case[0]))
    np.testing.assert_allclose(found[seeing], expected[seeing], atol=1e-5)


@pytest.mark.parametrize(("keys", "lengths", "window", "images"), CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_the_kernel_equals_plain_attention(keys, lengths, window, images, dtype, tolerance) -> None:
    query, key, value, query_pos, key_pos, query_image, key_image = case = _case(
        keys, lengths, images=images, dtype=dtype
    )
    expected, seeing = _plain(*case, window)
    queries = (jnp.tile(x, (1, G)) for x in (query_pos, query_image))
    position, image = queries
    sums = flash(by_head(query), key, value, position, key_pos, image, key_image, window=window, interpret=True)
    found = np.asarray(attention_ops.finish(attention_ops.Part(*sums), query))
    np.testing.assert_allclose(found[seeing].astype("f4"), expected[seeing].astype("f4"), atol=tolerance)


def test_parts_of_the_keys_join_to_the_whole() -> None:
    """Whatever the split, also where a query sees nothing in one of the parts."""
    case = _case(256, (60, 200), images=False)
    query, key, value, query_pos, key_pos, *_ = case
    expected, seeing = _plain(*case, None)
    for cut in (1, 64, 200, 255):
        halves = [Keys(key[:, :, s], value[:, :, s], key_pos[:, s]) for s in (slice(cut), slice(cut, None))]
        mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1, 1), ("data", "heads", "slots"))
        parts = [attention_ops.attend_part(query, query_pos, keys, window=None, mesh=mesh) for keys in halves]
        found = np.asarray(attention_ops.finish(attention_ops.join(*parts), query))
        np.testing.assert_allclose(found[seeing], expected[seeing], atol=1e-5)
