"""`Model.attention`: the weights of every layer and head, against transformers' and against a layer in plain numpy."""

from __future__ import annotations

import dataclasses
import functools
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
from small_models import config_of, make_deployment, make_engine, mesh_of, quantized, random_params, whole
from test_api import CONFIG, OTHER, PICTURE, TOKENIZER
from test_logits import compiled_by

import gemma_tpu
from checkpoints.demo_model import CHECKPOINT
from gemma_tpu import teacher_forcing
from gemma_tpu.config import GemmaConfig, gemma3_layers
from gemma_tpu.engine import validate
from gemma_tpu.engine.errors import NotFiniteError
from gemma_tpu.engine.forward import encode_images, forward
from gemma_tpu.engine.request import ImageInput
from gemma_tpu.image import to_pixels
from gemma_tpu.model import Params
from gemma_tpu.sharding import param_sharding

sys.path.insert(0, str(Path(__file__).parent / "reference"))
import models

GOLDEN = Path(__file__).parent / "goldens" / "attention.npz"
FROM_THE_END = np.array([1, 2, 8])  # the queries of tests/reference/make_attention_golden.py
SOI = TOKENIZER.start_of_image
# An image of 2 × 2 soft tokens is longer than this window.
NARROW = dataclasses.replace(CONFIG, layers=gemma3_layers(7, window=3)[4:6])
TOKENS = [
    [2, 70, 75, SOI, 80, 81, 90, 71, SOI],
    [2, 71, 72, 73, 95, 96, 97, 98, 99],
    [2, 61, SOI, 63, 64, 65, 66, 67, 68],
]
IMAGES = [[PICTURE, OTHER], [], [OTHER]]


def make_model(config: GemmaConfig = CONFIG, data: int = 1, model: int = 1, params: Params | None = None, **options):
    mesh, params = mesh_of(data, model, config), params or random_params(config)

    def put(name: str, weight):
        return jax.tree.map(lambda part: jax.device_put(part, param_sharding(name, part.shape, mesh)), weight)

    deployment = make_deployment(config, mesh, **{"max_rows": 4} | options)
    return gemma_tpu.Model(deployment, {name: put(name, weight) for name, weight in params.items()}, TOKENIZER)


@pytest.fixture(scope="module")
def model():
    with make_model() as model:
        yield model


@functools.cache
def maps_of(config: GemmaConfig) -> gemma_tpu.AttentionMaps:
    with make_model(config) as model:
        return model.attention(TOKENS, IMAGES)


@pytest.mark.parametrize("mesh", [(1, 1), (2, 4), (1, 8)], ids=str)
@pytest.mark.parametrize("name", ["grouped_ragged", "two_images"])
def test_weights_are_those_of_transformers(name: str, mesh: tuple[int, int]) -> None:
    """Ragged rows past a window of 8; rows of two images, one and none past a window of 24."""
    case = models.by_name(name)
    config, inputs = config_of(case.config), models.inputs(case)
    rows = [row[:n].tolist() for row, n in zip(inputs.expanded, inputs.expanded_lengths, strict=True)]
    images = [ImageInput(PIL.Image.fromarray(image), config.vision.image_size) for image in inputs.images]
    params = {name: jnp.asarray(value) for name, value in models.weights(case).items()}
    engine = make_engine(config, mesh_of(*mesh, config), params)
    at = inputs.expanded_lengths[:, None] - FROM_THE_END
    try:
        weights = engine.attention(rows, at, images)
    finally:
        engine.close()
    with np.load(GOLDEN) as golden:
        expected = golden[name]
    assert weights.shape == expected.shape
    np.testing.assert_allclose(weights, expected, atol=1e-5)


@functools.cache
def weights_of_all(config: GemmaConfig) -> np.ndarray:
    """Of every token of `maps_of`, soft tokens too, [B, S, L, N, S]; a shorter row's last token stands again."""
    maps = maps_of(config)
    at = np.array([np.minimum(np.arange(maps.weights.shape[-1]), len(row) - 1) for row in maps.tokens], np.int32)
    shown = [ImageInput(picture, config.vision.image_size) for row in IMAGES for picture in row]
    with make_model(config) as model:
        return model.engine.attention(maps.tokens, at, shown)


class PlainLayer:
    """A decoder layer for one row in numpy, in float64, token by token and head by head."""

    def __init__(self, config: GemmaConfig, i: int) -> None:
        self.config, self.layer = config, config.layers[i]
        prefix = f"layers.{i}."
        params = random_params(config)
        self.params = {
            name.removeprefix(prefix): np.asarray(value, np.float64)
            for name, value in params.items()
            if name.startswith(prefix)
        }

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * (1 + self.params[f"{name}.scale"])

    def turned(self, x: np.ndarray, position: int) -> np.ndarray:
        half = len(x) // 2
        angles = position / self.layer.rope_scale * self.layer.rope_base ** -(np.arange(half) / half)
        first, second = x[:half], x[half:]
        return np.concatenate(
            [first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)]
        )

    def sees(self, query: int, key: int, image: list[int]) -> bool:
        if self.layer.window is not None and abs(query - key) >= self.layer.window:
            return False
        return key <= query or (image[query] == image[key] > 0)

    def weights_and_values(self, x: np.ndarray, image: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """[T, N, S] and [S, N, H]."""
        N, K, T = self.config.num_heads, self.config.num_kv_heads, len(x)
        qkv = np.einsum("td,kghd->tkgh", self.norm("pre_attention_norm", x), self.params["attention.qkv"])
        weights, values = np.zeros((T, N, T)), np.zeros((T, N, qkv.shape[-1]))
        for n in range(N):
            k, g = divmod(n, N // K)
            values[:, n] = qkv[:, k, -1]
            keys = [self.turned(self.norm("attention.key_norm", qkv[t, k, -2]), t) for t in range(T)]
            for t in range(T):
                query = self.turned(self.norm("attention.query_norm", qkv[t, k, g]), t) * self.config.query_scale
                seen = [s for s in range(T) if self.sees(t, s, image)]
                scores = np.exp([query @ keys[s] for s in seen])
                weights[t, n, seen] = scores / scores.sum()
        return weights, values

    def output(self, x: np.ndarray, weights: np.ndarray, values: np.ndarray) -> np.ndarray:
        """[T, D], from the attention by these weights."""
        out = self.params["attention.out"]
        encoded = np.einsum("tns,snh->tnh", weights, values)
        x = x + self.norm("post_attention_norm", np.einsum("tnh,nhd->td", encoded, out.reshape(-1, *out.shape[2:])))
        gate, up = np.einsum("td,afd->atf", self.norm("pre_ffw_norm", x), self.params["mlp.gate_up"])
        gelu = gate / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
        return x + self.norm("post_ffw_norm", (gelu * up) @ self.params["mlp.down"].T)


@pytest.mark.parametrize("config", [CONFIG, NARROW], ids=["window 8", "window 3"])
@pytest.mark.parametrize("row", range(len(TOKENS)))
def test_weights_times_values_give_each_layers_output(config: GemmaConfig, row: int) -> None:
    """Each layer of the model, by numpy from its input: the weights, and what comes of them."""
    maps, params = maps_of(config), random_params(config)
    tokens, size = maps.tokens[row], config.vision.num_soft_tokens
    image = [0] * len(tokens)
    for i, start in enumerate(maps.image_starts[row]):
        image[start : start + size] = [i + 1] * size
    pixels = [to_pixels(picture, config.vision.image_size) for picture in IMAGES[row]]
    soft = encode_images(config, params, np.stack(pixels)) if pixels else None
    states: dict[str, np.ndarray] = {}
    forward(
        config,
        params,
        np.array([tokens]),
        soft_tokens=soft,
        capture=lambda name, value: states.update({name: np.asarray(value[0], np.float64)}),
    )
    for i in range(config.num_layers):
        before, after = states[f"layers.{i - 1}" if i else "embed"], states[f"layers.{i}"]
        plain = PlainLayer(config, i)
        expected, values = plain.weights_and_values(before, image)
        T = len(tokens)
        given = weights_of_all(config)[row, :T, i, :, :T]
        np.testing.assert_allclose(given, expected, atol=1e-5)
        np.testing.assert_allclose(plain.output(before, given, values), after, atol=1e-4)
    np.testing.assert_allclose(maps.weights[row], weights_of_all(config)[row, maps.queries[row]], atol=1e-6)


def test_the_weights_of_a_query_sum_to_one_over_what_it_sees() -> None:
    for config in (CONFIG, NARROW):
        maps = maps_of(config)
        np.testing.assert_allclose(maps.weights.sum(-1), 1, atol=1e-6)
        assert (maps.weights >= 0).all()
        window = config.layers[0].window
        for row, queries in enumerate(maps.queries):
            for k, at in enumerate(queries):  # none of them is a soft token: their keys are all before
                assert not maps.weights[row, k, :, :, at + 1 :].any()
                assert not maps.weights[row, k, 0, :, : max(0, at + 1 - window)].any()
        assert maps.weights[0, -1, 1, :, : maps.queries[0, -1] + 1 - window].any()  # the global layer looks further


def test_what_the_result_is_about(model: gemma_tpu.Model) -> None:
    maps = model.attention(TOKENS, IMAGES, positions=[-1, 2])
    soft, newline = CONFIG.vision.num_soft_tokens, len(TOKENIZER.double_newline)
    longest = len(TOKENS[0]) + 2 * (1 + soft + 2 * newline)
    assert [len(row) for row in maps.tokens] == [longest, 9, 9 + 1 + soft + 2 * newline]
    assert maps.weights.shape == (3, 2, CONFIG.num_layers, CONFIG.num_heads, longest)
    assert maps.weights.dtype == np.float32
    assert maps.tokens[1] == TOKENS[1]
    assert maps.queries[1].tolist() == [8, 2]
    assert maps.queries[2].tolist() == [len(maps.tokens[2]) - 1, 2]  # of <start_of_image>: its block's first token
    assert maps.tokens[2][2] == TOKENIZER.double_newline[0]
    for row, starts in enumerate(maps.image_starts):
        assert len(starts) == len(IMAGES[row])
        for image, start in enumerate(starts):
            assert maps.tokens[row][start - 1 : start + soft + 1] == [SOI, *[-1] * soft, TOKENIZER.end_of_image]
            square = maps.on_image(image, row)
            assert square.shape == (2, CONFIG.num_layers, CONFIG.num_heads, 2, 2)
            for token in range(soft):
                np.testing.assert_array_equal(square[..., token // 2, token % 2], maps.weights[row, ..., start + token])
    every = model.attention(TOKENS, IMAGES)
    np.testing.assert_allclose(maps.weights, every.weights[:, [8, 2]], atol=1e-6)
    np.testing.assert_array_equal(maps.queries, every.queries[:, [8, 2]])


def test_the_square_lies_as_the_picture_does() -> None:
    """The trained checkpoint looks at the only shape that there is, in a corner away from the diagonal."""
    turns = "<bos><start_of_turn>user\n<start_of_image>What is in the picture?<end_of_turn>\n<start_of_turn>model\n"
    with gemma_tpu.load(CHECKPOINT, max_context=512, progress=False) as model:
        tokens = [model.tokenizer.encode(turns + "A red", control=True)]
        for left, top in ((0.75, 0.1), (0.1, 0.75)):
            picture = PIL.Image.new("RGB", (400, 300), "white")
            box = left * 400, top * 300, (left + 0.2) * 400, (top + 0.2) * 300
            PIL.ImageDraw.Draw(picture).ellipse(box, fill="red")
            square = model.attention(tokens, [[picture]], positions=[-1]).on_image().mean(axis=(0, 1, 2))
            quarters = square.reshape(2, 8, 2, 8).sum(axis=(1, 3))  # [below?, right?]
            *others, most = np.sort(quarters.ravel())
            assert most == quarters[int(top > 0.5), int(left > 0.5)] > 2 * max(others)


def test_a_row_alone_is_as_in_a_batch(model: gemma_tpu.Model) -> None:
    batch = maps_of(CONFIG)
    for row, tokens in enumerate(TOKENS):
        alone = model.attention([tokens], [IMAGES[row]])
        assert alone.tokens == [batch.tokens[row]]
        np.testing.assert_allclose(alone.weights[0], batch.weights[row, ..., : len(alone.tokens[0])], atol=1e-5)


@pytest.mark.parametrize("mesh", [(2, 4), (8, 1), (1, 8)], ids=str)
def test_a_mesh_gives_the_weights_of_one_device(mesh: tuple[int, int]) -> None:
    with make_model(NARROW, *mesh) as model:
        np.testing.assert_allclose(model.attention(TOKENS, IMAGES).weights, maps_of(NARROW).weights, atol=1e-5)


def test_quantised_weights_attend_as_those_they_stand_for() -> None:
    integers = quantized({name: value for name, value in random_params(CONFIG).items()})
    stands_for = {name: whole(weight) for name, weight in integers.items()}
    found = []
    for params in (integers, stands_for):
        with make_model(params=params) as model:
            found.append(model.attention(TOKENS, IMAGES).weights)
    np.testing.assert_allclose(*found, atol=1e-4)
    assert np.abs(found[0] - maps_of(CONFIG).weights).max() > 1e-3


def test_bfloat16_attends_nearly_as_float32() -> None:
    narrow = {name: value.astype(jnp.bfloat16) for name, value in random_params(CONFIG).items()}
    with make_model(params=narrow) as model:
        maps = model.attention(TOKENS, IMAGES)
    exact = {name: value.astype(jnp.float32) for name, value in narrow.items()}
    with make_model(params=exact) as model:
        expected = model.attention(TOKENS, IMAGES).weights
    assert maps.weights.dtype == np.float32
    np.testing.assert_allclose(maps.weights.sum(-1), 1, atol=1e-6)  # they are not rounded themselves
    np.testing.assert_allclose(maps.weights, expected, atol=0.1)


def test_numbers_of_positions_are_few_programs_and_none_is_compiled_on_the_engines_thread(
    model: gemma_tpu.Model,
) -> None:
    model.encode_images([PICTURE, OTHER])
    with compiled_by(model.engine._thread) as there, compiled_by(threading.current_thread()) as here:
        model.attention(TOKENS, IMAGES, positions=[0, 1, 2, 3, 4])
        assert here
        here.clear()
        for positions in ([5, 6, 7, 8, 0, 1, 2, 3], range(6)):
            model.attention(TOKENS, IMAGES, positions=positions)
    assert here == there == []


def test_another_stream_goes_on_as_without_it(model: gemma_tpu.Model) -> None:
    options = {"max_new_tokens": 100, "stop_tokens": ()}
    expected = model.generate("Hello", **options).tokens
    stream = model.stream("Hello", **options)
    next(stream)
    np.testing.assert_allclose(model.attention(TOKENS, IMAGES).weights, maps_of(CONFIG).weights, atol=1e-6)
    assert stream.finish().tokens == expected


def test_what_is_too_much_is_named_before_any_work(model: gemma_tpu.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.engine, "_call", lambda *_: pytest.fail("worked"))
    with monkeypatch.context() as patch:
        patch.setattr(teacher_forcing, "expand_images", lambda *_: pytest.fail("expanded"))
        with pytest.raises(ValueError, match=r"a row has 193 tokens with its images, and the context holds 192"):
            model.attention(np.ones((1, 193), int))
    with pytest.raises(ValueError, match=r"a row has 197 tokens with its images"):
        model.attention([[SOI, *[5] * 189]], PICTURE, positions=[0])
    # Eight positions of each of two rows, over 128 tokens: padded from 5 and 70.
    fits = 2 * 8 * CONFIG.num_layers * CONFIG.num_heads * 128 * 4
    monkeypatch.setattr(validate, "MAX_BYTES", fits - 1)
    with pytest.raises(
        ValueError,
        match=r"attention weights of 10 tokens in 2 layers of 8 heads, onto up to 128 tokens, are 0\.0 GB, .*"
        "give fewer positions, fewer rows, or shorter ones",
    ):
        model.attention(np.ones((2, 70), int), positions=range(5))
    monkeypatch.undo()
    monkeypatch.setattr(validate, "MAX_BYTES", fits)
    assert model.attention(np.ones((2, 70), int), positions=range(5)).weights.shape == (2, 5, 2, 8, 70)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.attention([[1, 2], [3]]), "these rows differ in length"),
        (lambda m: m.attention([[1, 2]], positions=[2]), r"positions must be a list of integers in \[-2, 2\), got \[2"),
        (lambda m: m.attention([[2, SOI]]), "1 <start_of_image> in 1 rows, 0 images"),
        (lambda m: m.attention([[2, SOI]], "https://example.org/a.png"), "only where that is allowed"),
        (lambda m: m.attention(TOKENS, IMAGES).on_image(2), "image must be at least 0 and at most 1, got 2"),
        (lambda m: m.attention(TOKENS, IMAGES).on_image(-1), "image must be at least 0 and at most 1, got -1"),
        (lambda m: m.attention(TOKENS, IMAGES).on_image(0, 3), "row must be at least 0 and at most 2, got 3"),
        (lambda m: m.attention(TOKENS, IMAGES).on_image(0, 1), "row 1 has no images"),
    ],
)
def test_mistakes_are_named(model: gemma_tpu.Model, call: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(model)


def test_damaged_weights_are_an_error() -> None:
    params = dict(random_params(CONFIG))
    params["embedder.table"] = params["embedder.table"].at[97].set(jnp.nan)  # a token of the second row alone
    with make_model(params=params) as model, pytest.raises(NotFiniteError, match="in row 1"):
        model.attention(TOKENS, IMAGES)


def test_a_conversation_is_written_as_for_an_answer(model: gemma_tpu.Model) -> None:
    """What it gives for the text so far is what the ids give that `generate` reads."""
    question = [{"type": "image", "image": PICTURE}, {"type": "text", "text": "Hello"}]
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": "a b"}]
    given = model.attention(messages, positions=[-1, 3], continue_final=True)
    (tokens,) = given.tokens
    soft = model.config.vision.num_soft_tokens
    (start,) = given.image_starts[0]
    assert tokens[start : start + soft] == [-1] * soft
    usage = model.generate(messages, continue_final=True, max_new_tokens=1).usage
    assert len(tokens) == usage.prompt_tokens
    assert given.queries.tolist() == [[len(tokens) - 1, 3]]
    inputs = model.engine.image_inputs([gemma_tpu.picture.Picture.of(PICTURE)])
    np.testing.assert_allclose(given.weights, model.engine.attention([tokens], given.queries, inputs), rtol=1e-6)
    with pytest.raises(ValueError, match="go with messages"):
        model.attention(TOKENS, IMAGES, continue_final=True)
    with pytest.raises(ValueError, match="positions"):
        model.attention(messages, positions=[len(tokens) + 1], continue_final=True)
