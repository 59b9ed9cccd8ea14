"""The decoder with layers of any kinds, against NumPy written from the equations, cached and not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from small_models import make_engine, random_params

from gemma_tpu.config import GemmaConfig, LayerSpec
from gemma_tpu.engine.forward import forward
from gemma_tpu.options import SamplingParams

LAYERS = {
    "all global": (LayerSpec(None, 50_000.0, 4.0),) * 12,
    "a window on every layer": (LayerSpec(8, 2_000.0, 2.0),) * 6,
    "three kinds": (LayerSpec(4, 1_000.0), LayerSpec(None, 1_000_000.0, 8.0), LayerSpec(12, 100.0, 0.5)),
}
PROMPT, NEW = 27, 14  # tokens; past every window, in chunks that do not divide it


def _config(layers: tuple[LayerSpec, ...]) -> GemmaConfig:
    return GemmaConfig(
        vocab_size=64,
        embed_dim=16,
        hidden_dim=24,
        layers=layers,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        query_scale=0.6,
        tied_head=False,  # one that is tied says its last token again
        max_context=512,
    )


def numpy_logits(config: GemmaConfig, params: dict, tokens: np.ndarray) -> np.ndarray:
    """float64 logits [T, V] of one sequence of text, by the equations of Gemma 3's report and its layers' numbers."""
    p = {name: np.asarray(value, np.float64) for name, value in params.items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * (1 + p[f"{name}.scale"])

    def rotate(x: np.ndarray, layer: LayerSpec) -> np.ndarray:
        pair = np.arange(config.head_dim // 2)
        position = np.arange(len(tokens)).reshape(-1, *[1] * (x.ndim - 1)) / layer.rope_scale
        turned = (x[..., : len(pair)] + 1j * x[..., len(pair) :]) * np.exp(
            1j * position * layer.rope_base ** (-2 * pair / config.head_dim)
        )
        return np.concatenate([turned.real, turned.imag], axis=-1)

    def gelu(x: np.ndarray) -> np.ndarray:
        return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    ages = np.arange(len(tokens))[:, None] - np.arange(len(tokens))  # of a key, as a query sees it
    x = p["embedder.table"][tokens] * math.sqrt(config.embed_dim)
    for i, layer in enumerate(config.layers):
        name = f"layers.{i}"
        qkv = np.einsum("td,kghd->tkgh", norm(x, f"{name}.pre_attention_norm"), p[f"{name}.attention.qkv"])
        query = rotate(norm(qkv[:, :, :-2], f"{name}.attention.query_norm"), layer) * config.query_scale
        key = rotate(norm(qkv[:, :, -2], f"{name}.attention.key_norm"), layer)
        seen = (ages >= 0) & (ages < (layer.window or math.inf))
        weights = np.exp(np.where(seen, np.einsum("tkgh,skh->kgts", query, key), -np.inf))
        weights /= weights.sum(axis=-1, keepdims=True)
        read = np.einsum("kgts,skh->tkgh", weights, qkv[:, :, -1])
        out = np.einsum("tkgh,kghd->td", read, p[f"{name}.attention.out"])
        x = x + norm(out, f"{name}.post_attention_norm")
        gate, up = np.einsum("td,cfd->ctf", norm(x, f"{name}.pre_ffw_norm"), p[f"{name}.mlp.gate_up"])
        x = x + norm(gelu(gate) * up @ p[f"{name}.mlp.down"].T, f"{name}.post_ffw_norm")
    return norm(x, "final_norm") @ p["embedder.head"].T


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_of_any_kind_run_cached_and_not(kind: str) -> None:
    config = _config(LAYERS[kind])
    params = random_params(config, seed=1)
    prompt = np.random.default_rng(3).integers(0, config.vocab_size, PROMPT)
    engine = make_engine(config, params=params, max_context=48, max_rows=1, chunks=(16,))
    try:
        request = engine.submit(prompt.tolist(), (), SamplingParams(max_new_tokens=NEW, stop_tokens=()))
        answer = [token for piece in request for token in piece]
    finally:
        engine.close()
    whole = np.concatenate([prompt, answer])
    expected = numpy_logits(config, params, whole)
    plain = forward(config, params, whole[None], capture=lambda *_: None)  # eagerly: many layers take long to compile
    np.testing.assert_allclose(np.asarray(plain)[0], expected, atol=2e-3)
    assert answer == expected[PROMPT - 1 : -1].argmax(axis=-1).tolist()
    assert len(set(answer)) > 5, "an answer that repeats itself shows little"
