"""A cache of 8-bit integers against a plain path that rounds keys and values in the same way, and itself."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import DRAFT, TEXT, VISION, make_deployment, make_engine, mesh_of, placed, random_params
from test_engine_cache import images, prompt, run
from test_programs import IMAGES, LENGTHS, _Cached, _expected, _record, _tokens

from gemma_tpu.cache.kv_cache import KVCache
from gemma_tpu.engine import draw as drawing
from gemma_tpu.engine.engine import Engine
from gemma_tpu.engine.forward import image_ids, number_soft_tokens
from gemma_tpu.engine.rows import chunk_end
from gemma_tpu.model import text_model
from gemma_tpu.ops.attention import Part, _blocks, finish, look_at_all
from gemma_tpu.ops.flash_attention import flash
from gemma_tpu.ops.int8 import Int8, to_int8
from gemma_tpu.ops.masks import attend, attention_mask, by_head
from gemma_tpu.ops.slots import store_one
from gemma_tpu.options import SamplingParams

MULTIMODAL = dataclasses.replace(TEXT, vision=VISION)
GREEDY = SamplingParams(max_new_tokens=24, stop_tokens=())


def _rounded(x: Any) -> np.ndarray:
    """What int8 keeps of vectors, in float64."""
    x = np.asarray(x, np.float64)
    scale = np.abs(x).max(axis=-1, keepdims=True) / 127
    return np.where(scale, np.rint(x / np.where(scale, scale, 1)) * scale, 0)


def test_numbers_are_within_half_a_step() -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((3, 5, 16)) * 10.0 ** rng.integers(-6, 6, (3, 5, 1))).astype(np.float32)
    x[0, 0], x[1, 1, 1:] = 0, 1e-42
    kept = to_int8(jnp.asarray(x))
    found = np.asarray(kept.values, np.float64) * np.asarray(kept.scales, np.float64)[..., None]
    assert np.all(np.abs(found - x) <= np.abs(x).max(axis=-1, keepdims=True) / 254 * 1.0001 + 1e-37)
    assert np.abs(np.asarray(kept.values)).max() == 127
    for bad in (np.nan, np.inf):
        assert not np.isfinite(to_int8(jnp.asarray([1.0, bad])).scales)


@pytest.mark.parametrize("size", [24, 96])  # of slots: 32 share a register of a TPU, and are written together
@pytest.mark.parametrize("rows", [1, 3])
def test_one_token_changes_one_slot(rows: int, size: int) -> None:
    rng = np.random.default_rng(2)
    first, K, H = 4, 2, 16

    def numbers(*shape: int) -> Int8:
        values = rng.integers(-127, 128, (*shape, H))
        return Int8(jnp.asarray(values, jnp.int8), jnp.asarray(rng.random(shape), jnp.float32))

    old, new = [(numbers(first, K, size), numbers(first, K, size)), (numbers(rows, 1, K), numbers(rows, 1, K))]
    for slot in (0, 15, size - 9, size - 1):
        where = [2, 0, first + 1][:rows], [(slot + 7 * row) % size for row in range(rows)]  # the last is dropped
        indices = [jnp.asarray(index, jnp.int32) for index in where]
        found = jax.jit(functools.partial(store_one, split=False, inside=False))(old, *indices, *new)
        expected = jax.tree.map(np.array, old)
        for row in range(min(rows, 2)):
            for kept, one in zip(jax.tree.leaves(expected), jax.tree.leaves(new), strict=True):
                kept[where[0][row], :, where[1][row]] = one[row, 0]
        jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("way", ["all", "blocks", "kernel"])
def test_attention_reads_integers_as_the_numbers_they_stand_for(way: str, window: int | None) -> None:
    """In float64, under a mask, over several blocks of keys."""
    rng = np.random.default_rng(1)
    B, T, K, G, H, S = 2, 64, 2, 2, 16, 2048
    query = jnp.asarray(rng.standard_normal((B, T, K, G, H)), jnp.float32)
    key, value = (jnp.asarray(rng.standard_normal((B, K, S, H)) * (0.1 + rng.random((B, K, S, 1)))) for _ in "kv")
    query_pos = jnp.array([[1500], [40]]) + jnp.arange(T)
    key_pos = jnp.where(jnp.arange(S) <= query_pos[:, -1:], jnp.arange(S), -1)
    none = jnp.zeros_like(query_pos), jnp.zeros_like(key_pos)
    kept = to_int8(key), to_int8(value)
    if way == "kernel":
        position = jnp.tile(query_pos, (1, G))
        ids = position, key_pos, jnp.zeros_like(position), none[1]
        part = Part(*flash(by_head(query), *kept, *ids, window=window, interpret=True))
    else:
        look = look_at_all if way == "all" else _blocks
        part = look(by_head(query), *kept, query_pos, key_pos, *none, window=window)
    found = np.asarray(finish(part, query))
    numbers = [np.asarray(x.values, np.float64) * np.asarray(x.scales, np.float64)[..., None] for x in kept]
    scores = np.einsum("btkgh,bksh->bktgs", np.asarray(query, np.float64), numbers[0])
    mask = np.asarray(attention_mask(query_pos, key_pos, query_image=none[0], key_image=none[1], window=window))
    scores = np.where(mask[:, None, :, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(found, np.einsum("bktgs,bksh->btkgh", weights, numbers[1]), atol=2e-5)


@functools.cache
def _rounding_logits(config: Any) -> np.ndarray:
    """Teacher-forced logits of all rows by the plain path, in which keys and values are rounded."""
    tokens, soft = _tokens(), _expected(config)[0]
    index = jnp.asarray(number_soft_tokens(tokens))
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    key_pos = jnp.where(positions < np.array(LENGTHS)[:, None], positions, -1)
    soft = soft.reshape(-1, VISION.num_soft_tokens, config.embed_dim)
    image = image_ids(index, soft.shape[1])

    def attend_layer(layer: int, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        key, value = (jnp.moveaxis(jnp.asarray(_rounded(x), jnp.float32), 1, 2) for x in (key, value))
        window = config.layers[layer].window
        mask = attention_mask(positions, key_pos, query_image=image, key_image=image, window=window)
        return attend(query, key, value, mask)

    params = {name: x for name, x in random_params(config).items() if not name.startswith("vision.")}
    model = text_model(config, params)
    return np.asarray(
        model.embedder.decode(model(model.embed(jnp.asarray(tokens), soft, index), positions, attend_layer))
    )


class _Int8(KVCache):
    """For `_Cached`, which names a class."""

    @classmethod
    def init(cls, windows: Any, shape: Any, dtype: Any, mesh: Any) -> KVCache:
        return KVCache.init(windows, shape, jnp.dtype("int8"), mesh)


@pytest.mark.usefixtures("fresh_traces")
@pytest.mark.parametrize(("shape", "kv_heads", "size"), [((1, 1), 4, 5), ((2, 4), 2, 16)])
def test_prefill_then_decode_equals_the_path_that_rounds(
    shape: tuple[int, int], kv_heads: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past the window, over chunk borders, ragged, with images; and what is lost against float32 is little."""
    seen: list[np.ndarray] = []
    monkeypatch.setattr(drawing, "sample", lambda logits, *_: _record(seen, logits))
    config = dataclasses.replace(MULTIMODAL, num_kv_heads=kv_heads)
    cached, tokens, expected = _Cached(mesh_of(*shape, config), config, _Int8), _tokens(), _rounding_logits(config)
    assert all(isinstance(x, Int8) for layer in cached.state.cache.layers for x in layer)
    divergence = []
    for row, length in enumerate(LENGTHS):
        starts, prefilled = IMAGES.get(row, ()), 0
        target = max([length - 6, *(start + VISION.num_soft_tokens for start in starts)])
        while prefilled < target:
            end = chunk_end(prefilled, target, size, starts, VISION.num_soft_tokens)
            cached.prefill(row, prefilled, end, size, whole=row % 2 == 0)
            prefilled = end
        for position in range(target, length):
            cached.decode(row, position, int(tokens[row, position]), single=False)
            jax.effects_barrier()
            np.testing.assert_allclose(seen[-1][row], expected[row, position], atol=5e-3, err_msg=f"{row} {position}")
            exact, found = (jax.nn.log_softmax(x) for x in (_expected(config)[1][row, position], seen[-1][row]))
            divergence.append(float(jnp.sum(jnp.exp(exact) * (exact - found))))
    assert 0 < np.mean(divergence) < 1e-4


MESHES = [((1, 1), {}), ((1, 1), {"draft_tokens": 3, "draft": DRAFT}), ((2, 4), {"draft_tokens": 2})]


@pytest.mark.parametrize(("sides", "more"), MESHES)
def test_reused_and_resumed_answers_are_those_of_a_fresh_run(sides: tuple[int, int], more: dict[str, Any]) -> None:
    """Of pages and rings that a stored prefix with a picture in it shares, and of rewound rows."""
    make = functools.partial(make_engine, MULTIMODAL, mesh_of(*sides), kv_cache_dtype="int8", max_context=96)
    system, (picture,) = prompt(45, 20), images(1)
    asked = [[*system, 1 + i, 2, 3] for i in range(3)]
    asked += [[*system, 3, 2, 3], asked[0][:40]]  # the same again; a row goes back

    def ask(engine: Engine, tokens: list[int]) -> tuple[list[int], int]:
        request = engine.submit(tokens, placed(tokens, [picture]), GREEDY)
        return run(request), request.cached_tokens

    fresh = []
    for tokens in asked:
        with contextlib.closing(make(max_rows=4)) as engine:
            fresh.append(ask(engine, tokens))
    with contextlib.closing(make(max_rows=4, stored_prefixes=4)) as engine:
        reused = [ask(engine, tokens) for tokens in asked]
    assert [answer for answer, _ in reused] == [answer for answer, _ in fresh]
    assert max(cached for _, cached in fresh) == 0 < len(system) <= max(cached for _, cached in reused)


def test_a_request_that_had_no_room_goes_on_as_a_fresh_run() -> None:
    asked = [prompt(30 + i, seed=i) for i in range(4)]
    long = dataclasses.replace(GREEDY, max_new_tokens=60)

    def answers(together: bool, **more: Any) -> list[list[int]]:
        engine = make_engine(TEXT, kv_cache_dtype="int8", max_context=96, **more)
        try:
            if not together:
                return [run(engine.submit(tokens, (), long)) for tokens in asked]
            given = [engine.submit(tokens, (), long) for tokens in asked]
            found = [run(one) for one in given]
            assert engine.occupancy().resumed > 0
            return found
        finally:
            engine.close()

    assert answers(True, cache_tokens=96) == answers(False)


def test_scales_are_counted() -> None:
    """A byte for each number and four for each vector, beside four for each number in float32."""
    H = TEXT.head_dim
    exact, kept = (make_deployment(TEXT, kv_cache_dtype=dtype).memory for dtype in ("auto", "int8"))
    for name in ("global_cache", "local_cache"):
        assert getattr(kept, name) * 4 * H == getattr(exact, name) * (H + 4)
    assert make_deployment(TEXT, kv_cache_dtype="int8").abstract_state.cache.key_bytes() == H + 4
