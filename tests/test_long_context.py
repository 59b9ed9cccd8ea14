"""131,072 tokens: the cached path against a slower plain one, and a needle that only attention at that range finds."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from small_models import VISION, mesh_of, random_params
from test_programs import _record

from gemma_tpu.config import CONFIGS, SOFT_TOKEN, GemmaConfig, gemma3_layers
from gemma_tpu.deployment import Deployment
from gemma_tpu.engine import draw as drawing
from gemma_tpu.engine.engine import Engine
from gemma_tpu.engine.forward import encode_images, image_ids, number_soft_tokens
from gemma_tpu.engine.request import ImageInput
from gemma_tpu.image import to_pixels
from gemma_tpu.model import param_shapes
from gemma_tpu.model.params import text_model
from gemma_tpu.ops.masks import attend, attention_mask
from gemma_tpu.options import SamplingParams
from gemma_tpu.picture import PlacedImage

CONTEXT = 131_072
# As 27B: W 1,024, global positions divided by 8, ending on a local layer.
CONFIG = GemmaConfig(
    vocab_size=64,
    embed_dim=16,
    hidden_dim=16,
    layers=gemma3_layers(7, window=1024, rope_scale=8.0)[4:],
    num_heads=1,
    num_kv_heads=1,
    head_dim=8,
    query_scale=0.4,
    vision=dataclasses.replace(VISION, width=16, mlp_dim=16, num_heads=2),
)
CHUNK = 1024
NEW = 6


@functools.partial(jax.jit, static_argnames="block")
def _plain_logits(params, tokens, soft_tokens, block: int = 512) -> jax.Array:
    """Logits of the last NEW positions: plain attention over the whole sequence, the queries of a block at a time."""
    length = tokens.shape[1]
    positions = jnp.arange(length)[None]
    soft_index = jnp.where(tokens == SOFT_TOKEN, jnp.cumsum(tokens == SOFT_TOKEN, axis=1) - 1, -1)
    image = image_ids(soft_index, soft_tokens.shape[1])

    def attend_layer(layer: int, query, key, value) -> jax.Array:
        window = None if layer == 1 else 1024
        span = length if window is None else min(length, 2 * window + block)  # a local layer need not look at all keys
        keys, values = jnp.moveaxis(key, 1, 2), jnp.moveaxis(value, 1, 2)

        def look(start: jax.Array) -> jax.Array:
            first = jnp.clip(start - window if window else 0, 0, length - span)
            seen = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=first, slice_size=span)
            own = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=block, axis=1)
            mask = attention_mask(
                own(positions),
                seen(positions, axis=1),
                query_image=own(image),
                key_image=seen(image, axis=1),
                window=window,
            )
            return attend(own(query), seen(keys, axis=2), seen(values, axis=2), mask)

        # After the global layer comes a local one, so that only these queries of it reach the last logits.
        begin = 0 if window else length - block * -(-(1024 + NEW) // block)
        encoded = jnp.moveaxis(jax.lax.map(look, jnp.arange(begin, length, block)), 0, 1)
        return jnp.pad(encoded.reshape(1, -1, *query.shape[2:]), ((0, 0), (begin, 0), *((0, 0),) * 3))

    model = text_model(CONFIG, params)
    x = model(model.embed(tokens, soft_tokens, soft_index), positions, attend_layer)
    return model.embedder.decode(x[:, -NEW - 1 : -1])[0]


@pytest.mark.usefixtures("fresh_traces")
def test_the_whole_context_equals_the_plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks through 127 wraps of the rings, images at both sides of chunk borders, positions beyond 100,000."""
    params, rng = random_params(CONFIG), np.random.default_rng(0)
    tokens = rng.integers(0, CONFIG.vocab_size, CONTEXT - NEW)
    starts = (0, CHUNK - VISION.num_soft_tokens, 5 * CHUNK - 1, 100_000, CONTEXT - NEW - 40)
    for start in starts:
        tokens[start : start + VISION.num_soft_tokens] = SOFT_TOKEN
    pictures = [PIL.Image.fromarray(rng.integers(0, 256, (56, 56, 3), dtype=np.uint8)) for _ in starts]
    images = [
        PlacedImage(start, ImageInput(picture, VISION.image_size))
        for start, picture in zip(starts, pictures, strict=True)
    ]
    pixels = np.stack([to_pixels(picture, VISION.image_size) for picture in pictures])
    seen: list[np.ndarray] = []
    monkeypatch.setattr(drawing, "sample", lambda logits, *_: _record(seen, logits))
    engine = _engine(params, chunks=(64, CHUNK))
    try:
        answer = list(_tokens(engine, tokens.tolist(), images))
    finally:
        engine.close()
    jax.effects_barrier()
    whole = np.concatenate([tokens, answer])[None]
    soft = encode_images(CONFIG, params, pixels)
    assert number_soft_tokens(whole).max() + 1 == soft.shape[0] * soft.shape[1]
    expected = np.asarray(_plain_logits(params, whole, soft))
    np.testing.assert_allclose(np.stack(seen[:NEW])[:, 0], expected, atol=2e-4)
    assert answer == expected.argmax(axis=-1).tolist()


def _engine(params: dict[str, jax.Array], config: GemmaConfig = CONFIG, **options) -> Engine:
    return Engine(Deployment(config, mesh_of(1, 1, config), 1, CONTEXT, "float32", **options), params)


def _tokens(engine: Engine, tokens: list[int], images: list[PlacedImage[ImageInput]], new: int = NEW) -> list[int]:
    request = engine.submit(tokens, images, SamplingParams(max_new_tokens=new, stop_tokens=()))
    return [token for event in request for token in event]


def _needle_params(config: GemmaConfig, answers: dict[int, int], asking: int) -> dict[str, jax.Array]:
    """Weights under which `asking` is followed by what belongs to whichever of the `answers` stands in the context.

    Only the global layer does anything. The score is in the last pair of rotary dimensions, which turns by less than
    0.02 over the whole context, so it does not depend on the distance.
    """
    params = {name: jnp.zeros(struct.shape) for name, struct in param_shapes(config).items()}
    V, D, H = config.vocab_size, config.embed_dim, config.head_dim
    table = np.zeros((V, D), np.float32)
    table[:, 0] = 1  # hay
    for i, needle in enumerate(answers):
        table[needle] = np.eye(D)[2] + np.eye(D)[4 + i]
    for i, answer in enumerate(answers.values()):
        table[answer] = np.eye(D)[0] * 0.1 + np.eye(D)[4 + len(answers) + i]
    table[asking] = np.eye(D)[1] * 0.5
    qkv = np.zeros((1, 3, H, D), np.float32)
    qkv[0, 0, H // 2 - 1, 1] = qkv[0, 1, H // 2 - 1, 2] = 1  # the asking query meets the needle's key
    qkv[0, 1, 0, 0] = 1  # hay's keys point elsewhere, where no query looks
    out = np.zeros((1, 1, H, D), np.float32)
    for i in range(len(answers)):
        qkv[0, 2, i, 4 + i] = out[0, 0, i, 4 + len(answers) + i] = 1
    params["embedder.table"] = jnp.asarray(table)
    params["layers.1.attention.qkv"], params["layers.1.attention.out"] = jnp.asarray(qkv), jnp.asarray(out)
    return params


def test_a_needle_is_found_at_any_depth() -> None:
    config = dataclasses.replace(CONFIG, num_heads=1, layers=CONFIG.layers[:2], query_scale=8.0, vision=None)
    needles, asking, hay = {10: 20, 11: 21}, 30, 5
    engine = _engine(_needle_params(config, needles, asking), config)
    try:
        for i, depth in enumerate((0, 1, 50_000, 100_001, 129_000)):
            needle = (10, 11)[i % 2]
            tokens = [hay] * 130_000
            tokens[depth], tokens[-1] = needle, asking
            assert _tokens(engine, tokens, [], new=1) == [needles[needle]], depth
    finally:
        engine.close()


@pytest.mark.parametrize(("name", "less"), [("gemma3-27b", 6.2), ("gemma3-12b", 6.0), ("gemma3-4b", 6.8)])
def test_memory_grows_with_the_global_layers_alone(name: str, less: float) -> None:
    config = CONFIGS[name]
    long, less_long = (Deployment(config, mesh_of(1, 1, config), 1, n, "bfloat16") for n in (CONTEXT, CONTEXT - 128))
    assert long.page == 128
    growth = (long.memory.state - less_long.memory.state) / 128
    per_layer = 2 * config.num_kv_heads * config.head_dim * 2
    assert growth == per_layer * sum(layer.window is None for layer in config.layers)
    assert per_layer * config.num_layers / growth == pytest.approx(less, abs=0.05)
