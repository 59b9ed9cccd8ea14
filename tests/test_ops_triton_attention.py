"""The GPUs' kernels, interpreted, against plain softmax attention over all keys at once; and the programs with them."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_engine_cache
from jax.sharding import Mesh
from small_models import TEXT, VISION, make_deployment, mesh_of
from test_ops_attention import CASES, B, G, H, K, _case, _plain
from test_programs import read_and_decode

from gemma_tpu.engine.device_program import DeviceProgram
from gemma_tpu.engine.programs import decode, prefill
from gemma_tpu.ops import norms, triton_attention
from gemma_tpu.ops.attention import Part, finish
from gemma_tpu.ops.int8 import Int8, to_int8
from gemma_tpu.ops.masks import attend, attention_mask, by_head
from gemma_tpu.ops.triton_attention import _shares, blocks_of, look_by_block

look = jax.jit(functools.partial(look_by_block, interpret=True), static_argnames="window")
share = jax.jit(_shares, static_argnums=1)


@pytest.fixture
def in_kernels(monkeypatch: pytest.MonkeyPatch, fresh_traces: None) -> None:
    """What a Hopper GPU runs, with blocks so small that a window has several."""
    monkeypatch.setattr(norms, "runs_triton", lambda mesh: True)
    monkeypatch.setattr(norms, "_in_kernel", functools.partial(norms._in_kernel, interpret=True))
    monkeypatch.setattr(triton_attention, "fits", lambda mesh, head_dim: True)
    monkeypatch.setattr(triton_attention, "look_by_block", functools.partial(look_by_block, interpret=True))
    monkeypatch.setattr(triton_attention, "BLOCK", 4)
    monkeypatch.setattr(triton_attention, "_PROGRAMS", 16)


@pytest.mark.parametrize("wanted", [1, 2, 7, 64, 500])
@pytest.mark.parametrize("blocks", [[5], [0], [1, 0, 3], [0, 0], [17, 1, 1, 1, 200, 0, 17], [1] * 64])
def test_shares_hold_every_block_of_every_row_once(blocks: list[int], wanted: int) -> None:
    row, first, last, end = map(np.asarray, share(jnp.array(blocks), wanted))
    assert len(row) <= wanted + len(blocks)
    held = [(r, block) for r, i, j in zip(row, first, last, strict=True) for block in range(i, j)]
    assert sorted(held) == [(r, block) for r, count in enumerate(blocks) for block in range(count)]
    sizes = (last - first)[last > first]
    assert wanted == 1 or not len(sizes) or sizes.max() <= -(-sum(blocks) // wanted)
    begin = [0, *end[:-1]]
    for r, count in enumerate(blocks):
        own = range(begin[r], end[r])
        assert len(own) >= 1
        assert sum(last[i] - first[i] for i in own) == count
        assert all(row[i] == r for i in own)


@pytest.mark.parametrize(("keys", "lengths", "window", "images"), CASES)
@pytest.mark.parametrize(
    ("dtype", "tolerance", "last"), [("float32", 1e-5, 1), ("float32", 1e-5, 64), ("bfloat16", 2e-2, 5)]
)
def test_the_kernel_equals_plain_attention(keys, lengths, window, images, dtype, tolerance, last) -> None:
    """Of a few queries, or of many programs of them. What sees no key reads zeros."""
    case = _case(keys, lengths, images=images, dtype=dtype)
    query, key, value, query_pos, key_pos, query_image, key_image = case
    query, query_pos, query_image = query[:, -last:], query_pos[:, -last:], query_image[:, -last:]
    expected, seeing = _plain(query, key, value, query_pos, key_pos, query_image, key_image, window)
    blocks = jnp.full(B, blocks_of(keys))
    ids = (query_image, key_image) if images else None
    sums, *_ = look(by_head(query), key, value, query_pos, key_pos, blocks, None, ids, window=window)
    found = np.asarray(finish(Part(*sums), query)).astype("f4")
    np.testing.assert_allclose(found[seeing], expected[seeing].astype("f4"), atol=tolerance)
    assert not found[~seeing].any()


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("size", [16, 100])
def test_the_kernel_reads_a_rows_own_pages_wherever_they_lie(size: int, int8: bool) -> None:
    """Few or many of them; those of others, and slots behind a row's end, hold NaN."""
    rng = np.random.default_rng(size)
    N, lengths = 40, np.array([1, 40 * size - 3, 0, 3 * size])
    key, value = rng.standard_normal((2, len(lengths), K, N * size, H)).astype(np.float32)
    query = jnp.asarray(rng.standard_normal((len(lengths), 1, K, G, H)), jnp.float32)
    place = rng.permutation(len(lengths) * N + 3)[: len(lengths) * N].reshape(len(lengths), N)
    held = np.arange(N * size) < lengths[:, None]

    def pool(x: np.ndarray) -> np.ndarray:
        x = np.where(held[:, None, :, None], x, np.nan)
        pages = np.full((len(lengths) * N + 3, K, size, H), np.nan, np.float32)
        pages[place] = np.moveaxis(x.reshape(len(lengths), K, N, size, H), 1, 2)
        return pages

    def numbers(x: np.ndarray) -> jax.Array | Int8:
        return to_int8(jnp.asarray(pool(x))) if int8 else jnp.asarray(pool(x))

    def plain(x: np.ndarray) -> jax.Array:
        kept = to_int8(jnp.asarray(x))
        return kept.values * kept.scales[..., None] if int8 else jnp.asarray(x)

    position = jnp.asarray(lengths[:, None] - 1)
    key_pos = np.full((len(place) * N + 3, size), -1)
    key_pos[place] = np.where(held, np.arange(N * size), -1).reshape(len(lengths), N, size)
    used = jnp.asarray(-(-lengths // size) * blocks_of(size))
    where = position, jnp.asarray(key_pos), used, jnp.asarray(place)
    sums, *_ = look(by_head(query), numbers(key), numbers(value), *where, window=None)
    found = np.asarray(finish(Part(*sums), query))
    mask = attention_mask(position, jnp.where(held, np.arange(N * size), -1))
    expected = np.asarray(attend(query, plain(key), plain(value), mask))
    np.testing.assert_allclose(found[lengths > 0], expected[lengths > 0], atol=1e-5)
    assert not found[lengths == 0].any()


@pytest.mark.usefixtures("in_kernels")
@pytest.mark.parametrize(("shape", "kv_heads"), [((1, 1), 4), ((2, 4), 2), ((2, 4), 4)])
def test_prefill_then_decode_equals_the_plain_path(
    shape: tuple[int, int], kv_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows rest past their window, and what they write may not be NaN either: who reads it later could spoil it all."""
    config = dataclasses.replace(TEXT, vision=VISION, num_kv_heads=kv_heads)
    cached = read_and_decode(mesh_of(*shape, config), config, monkeypatch, size=16)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(cached.state.cache))


@pytest.mark.usefixtures("in_kernels")
@pytest.mark.parametrize("more", [{}, {"draft_tokens": 3}])
def test_reused_prefixes_and_guesses(more: dict) -> None:
    test_engine_cache.test_a_prefix_is_found_again_past_the_window((1, 1), True, more)


def test_only_what_was_tried_runs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the device's own words, and the head's size."""

    def fits(platform: str, capability: str, head_dim: int = 256) -> bool:
        device = mock.Mock(platform=platform, compute_capability=capability)
        return triton_attention.fits(mock.Mock(spec=Mesh, devices=np.array([device], object)), head_dim)

    assert fits("gpu", "9.0")
    assert not fits("gpu", "9.0", 8)
    assert not fits("gpu", "9.0", 96)
    assert not any(fits("gpu", other) for other in ("7.5", "8.0", "8.9", "gfx90a"))
    assert not triton_attention.fits(mesh_of(1, 1), 256)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not fits("gpu", "9.0")  # a later jax, without Triton


def test_a_prefill_without_loops_is_in_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = make_deployment(TEXT, mesh_of(1, 1), max_rows=2, max_context=64)
    on_gpu = dataclasses.replace(deployment, dtype=jnp.dtype("bfloat16"))
    monkeypatch.setattr(type(deployment), "platform", "gpu")
    program: DeviceProgram
    for program, kernel, graphs in ((prefill, True, False), (prefill, False, True), (decode, True, True)):
        monkeypatch.setattr(triton_attention, "fits", lambda mesh, head_dim, kernel=kernel: kernel)
        assert program._for(on_gpu) is (program._in_graphs if graphs else program._no_graphs)
        assert program._for(deployment) is program._in_graphs  # float32 has no kernel for a chunk
