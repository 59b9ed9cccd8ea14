"""The cached path against the plain one: every logit that prefill and decode would see, row by row."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from plain_cache import PlainCache
from small_models import TEXT, VISION, mesh_of, random_params

from gemma_tpu.cache.kv_cache import KVCache
from gemma_tpu.cache.layer import Pages
from gemma_tpu.config import CONFIGS, SOFT_TOKEN, GemmaConfig
from gemma_tpu.deployment import Deployment
from gemma_tpu.engine import draw as drawing
from gemma_tpu.engine import programs
from gemma_tpu.engine.forward import encode_images, forward, number_soft_tokens
from gemma_tpu.engine.row_params import recent_tokens, row_params
from gemma_tpu.engine.rows import chunk_end
from gemma_tpu.engine.step import activate
from gemma_tpu.ops import attention as attention_ops
from gemma_tpu.ops import paged_attention as paged_ops
from gemma_tpu.ops import rows as row_ops
from gemma_tpu.ops.sampling import LOOKED_AT
from gemma_tpu.options import SamplingParams
from gemma_tpu.plan.hlo import Hlo
from gemma_tpu.sharding import make_mesh, param_sharding

MULTIMODAL = dataclasses.replace(TEXT, vision=VISION)
ROWS, CONTEXT = 4, 48
LENGTHS = (45, 30, 9, 17)  # past the window of 8, past several wraps of the rings, ragged
IMAGES = {0: (3, 20, 33), 1: (7,), 3: (0, 6)}  # row → where its images' soft tokens begin


def _tokens() -> np.ndarray:
    tokens = np.random.default_rng(1).integers(0, TEXT.vocab_size, (ROWS, CONTEXT))
    for row, starts in IMAGES.items():
        for start in starts:
            tokens[row, start : start + VISION.num_soft_tokens] = SOFT_TOKEN
    for row, length in enumerate(LENGTHS):
        tokens[row, length:] = 0
    return tokens


@functools.cache
def _expected(config: GemmaConfig) -> tuple[np.ndarray, np.ndarray]:
    """Soft tokens of all images, and teacher-forced logits of all rows by the plain path."""
    params = random_params(config)
    count = sum(map(len, IMAGES.values()))
    pixels = np.random.default_rng(2).uniform(-1, 1, (count, 56, 56, 3)).astype(np.float32)
    soft = encode_images(config, params, pixels)
    return soft, np.asarray(forward(config, params, _tokens(), np.array(LENGTHS), soft_tokens=soft))


class _Cached:
    """Drives the programs by hand."""

    def __init__(self, mesh, config: GemmaConfig = MULTIMODAL, cache: type = KVCache) -> None:
        self.deployment = Deployment(config, mesh, ROWS, CONTEXT, "float32", cache=cache).text
        self.soft_tokens = _expected(config)[0]
        self.params = {
            name: jax.device_put(value, param_sharding(name, value.shape, mesh))
            for name, value in random_params(config).items()
            if not name.startswith("vision.")
        }
        self.state = programs.init_state(self.deployment)
        # A page of each row in turn, so that none has two in succession.
        longest = -(-CONTEXT // self.deployment.page)
        groups = self.deployment.page_groups
        self.owner = np.full(self.deployment.pages, -1)
        self.first = np.zeros(self.deployment.pages, np.int32)
        each, own = self.deployment.pages // groups, ROWS // groups
        for group in range(groups):
            for i in range(own * longest):
                self.owner[group * each + i] = group * own + i % own
                self.first[group * each + i] = i // own * self.deployment.page

    def pages(self, rows: Sequence[int]) -> Pages:
        """Those of some rows, as a call with these alone sees them; -1 among them is a row that is not looked at."""
        local = np.full(ROWS + 1, -1, np.int32)  # the last for pages that are nobody's
        for i, row in enumerate(rows):
            local[row] = i
        local[-1] = -1
        return Pages(local[self.owner], self.first)

    def prefill(self, row: int, begin: int, end: int, size: int, *, whole: bool) -> None:
        tokens, soft_index = _tokens(), number_soft_tokens(_tokens())
        whole = whole and begin == 0  # where a chunk looks at what is cached, it is of one row
        B, at = (ROWS, row) if whole else (1, 0)
        chunk, index = np.zeros((B, size), np.int32), np.full((B, size), -1, np.int32)
        chunk[at, : end - begin], index[at, : end - begin] = tokens[row, begin:end], soft_index[row, begin:end]
        start, count = np.zeros(B, np.int32), np.zeros(B, np.int32)
        start[at], count[at] = begin, end - begin
        rows = None if whole else np.array([row], np.int32)
        pages = self.pages(range(ROWS) if whole else [row])
        arguments = (rows, chunk, start, count, self.soft_tokens, index, pages)
        static = {"deployment": self.deployment, "fresh": begin == 0}
        self.state, _ = programs.prefill(self.params, self.state, *arguments, **static)

    def activate(self, row: int, length: int, token: int, remaining: int) -> None:
        asked = activate(row, length, token, remaining, SamplingParams(), ())
        numbers = (np.int32(x) for x in (row, length, token, remaining))
        arrays = row_params(asked, TEXT.vocab_size), recent_tokens(asked)
        self.state = programs.activate(self.state, *numbers, *arrays, deployment=self.deployment)

    def decode(self, row: int, length: int, token: int, *, single: bool) -> int:
        """One greedy step after `length` cached tokens."""
        self.activate(row, length, token, 1)
        picked = np.array([row], np.int32) if single else None
        static = {"deployment": self.deployment, "max_steps": 4}
        steps = np.ones(1 if single else ROWS, np.int32)
        pages = self.pages([row] if single else [row if i == row else -1 for i in range(ROWS)])
        self.state, drawn = programs.decode(self.params, self.state, picked, steps, pages, **static)
        return int(drawn.tokens[0, 0 if single else row])


@pytest.mark.usefixtures("fresh_traces")
@pytest.mark.parametrize(
    ("shape", "kv_heads", "size", "block", "cache"),
    [
        ((1, 1), 4, 5, 3, KVCache),
        ((1, 8), 1, 5, 2, KVCache),
        ((2, 4), 4, 5, 8, KVCache),
        ((2, 4), 2, 16, 5, KVCache),
        ((8, 1), 4, 16, 48, KVCache),
        ((1, 1), 2, 5, 8, PlainCache),  # the programs know no cache by name
    ],
)
def test_prefill_then_decode_equals_the_plain_path(
    shape: tuple[int, int], kv_heads: int, size: int, block: int, cache: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks of any size, images anywhere, then token by token to the end of the context, row after row.

    With fewer kv heads than devices the cache is split along its length; its blocks need not divide it. A decode step
    reads some prefix of it.
    """
    monkeypatch.setattr(attention_ops, "BLOCK", block)
    monkeypatch.setattr(paged_ops, "SHORTEST", block)
    config = dataclasses.replace(MULTIMODAL, num_kv_heads=kv_heads)
    read_and_decode(mesh_of(*shape, config), config, monkeypatch, size, cache)


def read_and_decode(
    mesh: Mesh, config: GemmaConfig, monkeypatch: pytest.MonkeyPatch, size: int, cache: type = KVCache
) -> _Cached:
    """All of it in chunks of up to `size`, then token by token, with the logits of the plain path."""
    seen: list[np.ndarray] = []
    monkeypatch.setattr(drawing, "sample", lambda logits, *_: _record(seen, logits))
    cached = _Cached(mesh, config, cache)
    tokens, (_, expected) = _tokens(), _expected(config)
    targets = []
    for row, length in enumerate(LENGTHS):
        starts = IMAGES.get(row, ())
        prefilled, target = 0, max([length - 6, *(start + VISION.num_soft_tokens for start in starts)])
        while prefilled < target:
            end = chunk_end(prefilled, target, size, starts, VISION.num_soft_tokens)
            cached.prefill(row, prefilled, end, size, whole=row % 2 == 0)
            prefilled = end
        targets.append(target)
    for row, length in enumerate(LENGTHS):  # while one decodes, those before and after it rest
        if row == 1:
            monkeypatch.setitem(row_ops._MIN_ROWS, "cpu", 8)
            jax.clear_caches()
        for position in range(targets[row], length):
            single = position % 2 == 0 and mesh.size == 1
            cached.decode(row, position, int(tokens[row, position]), single=single)
            jax.effects_barrier()
            logits = seen[-1][0 if single else row]
            assert np.abs(logits - expected[row, position]).max() < 1e-4, (row, position)
    assert len(seen) == sum(LENGTHS) - sum(targets)
    return cached


def _record(seen: list[np.ndarray], logits: jax.Array) -> jax.Array:
    jax.debug.callback(lambda x: seen.append(np.asarray(x)), logits, ordered=False)
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


@pytest.mark.usefixtures("fresh_traces")
@pytest.mark.parametrize("mesh", [(1, 1), (2, 4)])
def test_pages_of_rows_that_rest_are_not_looked_at(mesh: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor free ones: NaN there spoils nothing."""
    seen: list[np.ndarray] = []
    monkeypatch.setattr(drawing, "sample", lambda logits, *_: _record(seen, logits))
    monkeypatch.setattr(paged_ops, "SHORTEST", 8)
    cached = _Cached(mesh_of(*mesh))
    row, resting, length = 2, 3, 6  # of one group where there are two
    cached.prefill(row, 0, length, 16, whole=True)
    cached.activate(resting, 45, 1, remaining=0)
    others = cached.owner != row
    spoil = jax.jit(lambda x: jnp.where(others[:, None, None, None], jnp.nan, x), donate_argnums=0)
    cached.state = dataclasses.replace(cached.state, cache=cached.state.cache._map(pools=spoil))
    cached.decode(row, length, int(_tokens()[row, length]), single=False)
    jax.effects_barrier()
    assert np.abs(seen[-1][row] - _expected(MULTIMODAL)[1][row, length]).max() < 1e-4


def test_a_prefill_leaves_other_rows_alone() -> None:
    cached = _Cached(mesh_of(1, 1))
    cached.prefill(0, 0, 3, 16, whole=True)
    before = jax.tree.map(lambda x: np.asarray(x[0]).copy(), cached.state.cache)
    cached.prefill(1, 0, 7, 16, whole=True)
    cached.prefill(2, 0, 9, 16, whole=False)
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(lambda x: np.asarray(x[0]), cached.state.cache))
    assert np.asarray(cached.state.length).tolist() == [3, 7, 9, 0]


@pytest.mark.parametrize(
    ("name", "sides"),
    [("gemma3-1b", (1, 4)), ("gemma3-1b", (1, 8)), ("gemma3-4b", (1, 2)), ("gemma3-4b", (1, 8)), ("gemma3-4b", (2, 4))],
)
def test_devices_send_each_other_activations_and_no_weights(name: str, sides: tuple[int, int]) -> None:
    """At the real widths, with a model axis within the kv heads and beyond them; a local layer and a global one."""
    config = dataclasses.replace(CONFIGS[name], vision=None, layers=CONFIGS[name].layers[4:6])
    mesh = make_mesh(config, sides, jax.devices()[: math.prod(sides)])
    deployment, rows, T = Deployment(config, mesh, sides[0], 4096, "bfloat16"), sides[0], 128
    params, state = deployment.abstract_params, deployment.abstract_state
    shape = functools.partial(jax.ShapeDtypeStruct, dtype="int32")
    static = {"deployment": deployment}
    pages, picked = Pages(*[shape((deployment.pages,))] * 2), None if rows == 1 else shape((1,))
    decode = programs.decode.lower(params, state, None, shape((rows,)), pages, max_steps=8, **static)
    chunk = shape((1, T)), shape((1,)), shape((1,)), None, shape((1, T)), pages
    prefill = programs.prefill.lower(params, state, picked, *chunk, fresh=False, **static)
    for program, tokens in ((decode, 1), (prefill, T)):
        sent = Hlo(program.compile().as_text()).collectives()
        assert sent
        # The CPU's are float32. A row that samples has a part of its logits brought together.
        widest = 4 * rows * max(tokens * config.hidden_dim, LOOKED_AT)
        assert [one for one in sent if one.nbytes > widest] == []


def test_the_state_is_donated() -> None:
    cached = _Cached(mesh_of(1, 1))
    old = cached.state.cache.layers[0][0]
    cached.prefill(0, 0, 3, 16, whole=True)
    assert old.is_deleted()


@pytest.mark.parametrize("shape", [(1, 1), (2, 4)])
def test_clearing_a_row_leaves_nothing_of_it_and_all_of_the_others(shape: tuple[int, int]) -> None:
    deployment = Deployment(TEXT, mesh_of(*shape), ROWS, CONTEXT, "float32")
    abstract = deployment.abstract_state
    shardings = jax.tree.map(lambda x: x.sharding, abstract)

    def fill(x: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.full(x.shape, jnp.nan if x.dtype == jnp.float32 else 3, x.dtype)

    state = jax.jit(lambda: jax.tree.map(fill, abstract), out_shardings=shardings)()
    gone = np.arange(deployment.pages) % 3 == 1
    state = programs.clear(state, np.int32(2), gone, deployment=deployment)
    for array, sharding in zip(jax.tree.leaves(state.cache), jax.tree.leaves(shardings.cache), strict=True):
        assert array.sharding.is_equivalent_to(sharding, array.ndim)
    cache, emptied = state.cache, np.arange(ROWS) == 2
    for layer, window in zip(cache.layers, cache.windows, strict=True):
        for array in layer:
            for values, empty in zip(np.asarray(array), gone if window is None else emptied, strict=True):
                assert not values.any() if empty else np.isnan(values).all()
    for numbers in (state.length, state.last, state.remaining):
        assert np.asarray(numbers).tolist() == [3, 3, 0, 3]
    lowered = programs.clear.lower(abstract, np.int32(2), gone, deployment=deployment)
    assert not Hlo(lowered.compile().as_text()).collectives()


@pytest.mark.parametrize(
    ("logits", "good"),
    [
        ([1.0, -2.0], True),
        ([1.0, -np.inf], True),  # what a request forbids
        ([-np.inf, -np.inf], False),
        ([1.0, np.inf], False),
        ([np.nan, 1.0], False),
        ([1.0, -np.nan], False),
    ],
)
def test_the_largest_logit_tells_whether_they_are_finite(logits: list[float], good: bool) -> None:
    assert bool(programs.finite(jnp.array([logits], jnp.float32))[0]) is good
