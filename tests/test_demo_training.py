"""How the demo model is trained: tokens, packed rows, shards, a step."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from test_demo_model import _plain_scene

from checkpoints.demo_model import data, train
from checkpoints.demo_model.dialog import SPELL, Conversation, Turn, plain
from gemma_tpu.config import GemmaConfig, VisionConfig, gemma3_layers
from gemma_tpu.engine.forward import encode_images, forward
from gemma_tpu.image import to_pixels
from gemma_tpu.model import param_shapes
from gemma_tpu.text.template import render_messages
from gemma_tpu.text.tokenizer import SOFT_TOKEN, Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(data.TOKENIZER)


def test_tokenizer_is_gemmas_kind_and_round_trips() -> None:
    gemma = Tokenizer(data.TOKENIZER)
    assert (gemma.pad_id, gemma.eos_id, gemma.bos_id, gemma.unk_id, gemma.id("<mask>")) == (0, 1, 2, 3, 4)
    assert len(gemma.double_newline) == 1
    assert len(gemma.encode("\n\n\n")) == 1
    assert gemma.encode("472") == [gemma.id(d) for d in "472"]
    rng = np.random.default_rng(0)
    for i in range(60):
        group = data.text_group(rng, bool(i % 2)) if i % 3 else data.pair_group(rng, False)
        for conversation in group:
            for turn in conversation.turns:
                for text in (turn.question, plain(turn.answer)):
                    assert gemma.decode(gemma.encode(text)) == text
    for text in ("日本語 naïve 😀", "a  b\n\n\tc"):
        assert gemma.decode(gemma.encode(text)) == text


def test_training_sequences_are_what_the_template_renders(tokenizer: Tokenizer) -> None:
    gemma = Tokenizer(data.TOKENIZER)
    rng = np.random.default_rng(4)
    makers = (data.scene_group, data.pair_group, data.read_group, data.texture_group, data.text_group)
    for make in makers * 3:
        for conversation in make(rng, False):
            ids, owner = data.encode(conversation, tokenizer)
            answer = len(conversation.turns) - 1
            prompt = ids[: owner.index(answer)]
            # In history, an answer that was written letter by letter is tokenized as any text.
            if not any(SPELL in turn.answer for turn in conversation.turns[:-1]):
                assert prompt == render_messages(conversation.messages(), gemma, data.SOFT).tokens
            text = gemma.decode([i for i, o in zip(ids, owner, strict=True) if o == answer])
            assert text == plain(conversation.turns[-1].answer)


_TINY = GemmaConfig(
    vocab_size=2048,
    embed_dim=16,
    hidden_dim=32,
    layers=gemma3_layers(6, window=64),
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    query_scale=8**-0.5,
    vision=VisionConfig(width=16, depth=1, mlp_dim=16, num_heads=2, image_size=128, patch_size=8),
)


def _tiny_params(_TINY) -> dict[str, jax.Array]:
    rng = np.random.default_rng(8)
    return {
        name: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32) for name, leaf in param_shapes(_TINY).items()
    }


def test_a_packed_row_gives_the_logits_of_each_conversation_alone(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefix sharing, masks, positions, image order and targets equal the served path."""
    monkeypatch.setattr(data, "ROWS", 1)
    rng, params = np.random.default_rng(8), _tiny_params(_TINY)
    groups = [data.text_group(rng, False), data.pair_group(rng, False), data.text_group(rng, False)]
    while len(groups[1]) < 2 or max(max(i.size) for i in groups[1][0].images) > data.STORE:
        groups[1] = data.pair_group(rng, False)
    unit = data.Unit()
    assert all(unit.add(group, tokenizer) for group in groups)
    served = jnp.stack([to_pixels(image, _TINY.vision.image_size) for image in groups[1][0].images])
    batch = {name: jnp.asarray(array) for name, array in unit.arrays.items()}
    with jax.default_matmul_precision("highest"):
        scores = jax.jit(train.logits, static_argnums=0)(_TINY, params, batch, served)
    scores = np.asarray(scores)[0]
    soft = encode_images(_TINY, params, served)
    encoded = [(*data.encode(talk, tokenizer), talk) for group in groups for talk in group]
    tokens = np.zeros((len(encoded), 640), np.int32)
    for row, (ids, _, _) in zip(tokens, encoded, strict=True):
        row[: len(ids)] = [SOFT_TOKEN if token < 0 else token for token in ids]
    shown = jnp.concatenate([soft] * len(groups[1]))
    lengths = np.array([len(ids) for ids, _, _ in encoded])
    alone = np.asarray(forward(_TINY, params, tokens, lengths, soft_tokens=shown))
    at = number = 0
    for group in groups:
        shared = 0
        for i in range(len(group)):
            ids, owner, talk = encoded[number]
            if i == 0 and len(group) > 1:
                shared = max(p for p, t in enumerate(ids) if t < 0) + 2
                at += shared
            here = slice(at, at + len(ids) - shared)
            np.testing.assert_allclose(scores[here], alone[number, shared : len(ids)], atol=2e-4)
            target = unit.arrays["target"][0, here]
            assert target[target >= 0].tolist() == [t for t, o in zip(ids, owner, strict=True) if o >= 0]
            assert {unit.tasks[t] for t in unit.arrays["task"][0, here][target >= 0]} == {
                turn.task for turn in talk.turns
            }
            at, number = here.stop, number + 1


def test_a_shard_holds_what_was_packed_and_emphasis_weighs_it(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    units = [data.make_unit(rng, tokenizer) for _ in range(2)]
    data.write_shard(tmp_path / "rows-0.pickle", units)
    for unit, read in zip(units, data.read_shard(tmp_path / "rows-0.pickle"), strict=True):
        assert all((unit.arrays[name] == read[name]).all() for name in data.FIELDS)
        assert all((a == b).all() for a, b in zip(unit.images, read["images"], strict=True))
    batches = []
    for emphasis in ({}, {"text sums": 4.0}):
        batches.append(train.Shards(tmp_path, emphasis, seed=1).batch(2))
    answers = batches[0]["weight"] > 0
    ratio = batches[1]["weight"][answers] / batches[0]["weight"][answers]
    assert set(ratio.round(4).tolist()) == {1.0, 4.0}
    soft = batches[0]["soft"]
    assert soft.max() >= data.IMAGES * data.SOFT  # the second unit's images come after the first's
    assert (np.diff(np.unique(soft // data.SOFT)) >= 1).all()


def test_a_step_learns_and_leaves_what_is_frozen(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "ROWS", 1)
    monkeypatch.setattr(data, "ROW", 384)
    config, unit, rng = dataclasses.replace(_TINY, layers=_TINY.layers[:1]), data.Unit(), np.random.default_rng(0)
    assert unit.add(data.read_group(rng, False)[:2], tokenizer)
    batch = {name: jnp.asarray(array) for name, array in unit.arrays.items()}
    pixels = jnp.zeros((1, 128, 128, 3))
    before = {name: 0.3 * np.asarray(value) for name, value in _tiny_params(config).items()}
    params = {name: jnp.asarray(value) for name, value in before.items()}
    state = (params, train.ADAM.init(params))
    losses = []
    for _ in range(3):
        rate = jnp.float32(3e-3)
        state, seen = train.step(config, state, batch, pixels, rate, ("vision",))
        losses.append(float(seen["loss"]))
    assert losses[-1] < losses[0] - 0.02
    moved = {name for name, value in state[0].items() if (np.asarray(value) != before[name]).any()}
    assert moved
    assert all(name.startswith("vision") or name in moved for name in before)
    assert not any(name.startswith("vision") for name in moved)


def test_stored_images_are_enlarged_as_the_served_path_does() -> None:
    _, pixels = _plain_scene(3)
    stored = np.zeros((1, data.STORE, data.STORE, 3), np.uint8)
    stored[0, : pixels.shape[0], : pixels.shape[1]] = pixels
    enlarged = train.to_pixels(stored, np.array([pixels.shape[:2]]), 896)
    expected = to_pixels(Image.fromarray(pixels.astype(np.uint8)), 896)
    np.testing.assert_allclose(np.asarray(enlarged, np.float32)[0], expected, atol=0.01)  # bf16


def test_messages_carry_images_where_the_turn_shows_them() -> None:
    image = Image.new("RGB", (4, 4))
    turns = (Turn("t", "first", "1", images=(0,), image_last=True), Turn("t", "second", "2"))
    messages = Conversation(turns, (image,), "be brief").messages()
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user"]
    assert [part["type"] for part in messages[1]["content"]] == ["text", "image"]
