"""The demo model's data: answers against an independent reading, held-out examples, packing against the served path."""

from __future__ import annotations

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from checkpoints.demo_model import (
    asking,
    facts,
    grammar,
    learning,
    mixture,
    render,
    rows,
    scenes,
    scope,
    size_facts,
    tasks_text,
    tokenizer,
)
from checkpoints.demo_model.dialog import SPELL_END, SPELL_START, Conversation, Turn, correct, plain
from checkpoints.demo_model.tasks_compare import compare_turns, scene_pair
from checkpoints.demo_model.tasks_image import Asker, scene_turns
from checkpoints.demo_model.wording import CHINESE, ENGLISH
from gemma_tpu.config import GemmaConfig, VisionConfig, gemma3_layers
from gemma_tpu.engine.forward import encode_images, forward
from gemma_tpu.image import to_pixels
from gemma_tpu.model import param_shapes
from gemma_tpu.text.template import render_messages
from gemma_tpu.text.tokenizer import SOFT_TOKEN, Tokenizer


@pytest.fixture(scope="module")
def encoder() -> rows.Encoder:
    return rows.Encoder(tokenizer.MODEL)


def _plain_scene(seed: int, held_out: bool = False) -> tuple[scenes.Scene, np.ndarray]:
    """A scene and its pixels, large and clean."""
    rng = np.random.default_rng(seed)
    scene = scenes.random_scene(rng, held_out)
    return scene, np.asarray(render.render(scene, rng)).astype(int)


@pytest.mark.parametrize("seed", range(12))
def test_pixels_show_what_the_scene_says(seed: int) -> None:
    scene, pixels = _plain_scene(seed)
    height, width, _ = pixels.shape
    assert (width, height) == scene.size
    palette = np.array(list(scenes.COLOURS.values()))
    for shape in scene.shapes:
        # The centre shows the colour; a ring shows it half way between its hole and its rim.
        away = 0.78 * shape.size * min(scene.size) if shape.kind == "ring" else 0
        y, x = int(shape.y * height), int(shape.x * width + away)
        seen = pixels[y - 2 : y + 3, x - 1 : x + 2].reshape(-1, 3).mean(0)
        nearest = list(scenes.COLOURS)[int(np.abs(palette - seen).sum(1).argmin())]
        assert nearest == shape.colour, (shape, seen)
        assert shape.cell == (scenes.ROWS[3 * y // height], scenes.COLUMNS[int(3 * shape.x)])


@pytest.mark.parametrize("seed", range(12))
def test_shape_kinds_differ_in_the_area_they_fill(seed: int) -> None:
    """A drawn shape covers the area that its kind has, computed here by formula."""
    scene, pixels = _plain_scene(seed)
    areas = dict(circle=np.pi, square=4 * 0.82**2, hexagon=1.5 * 3**0.5, triangle=0.95 * 1.75, diamond=2 * 0.72)
    areas |= dict(ring=np.pi * (1 - 0.55**2), cross=4 * 2 * 0.34 - 4 * 0.34**2, star=5 * 0.42 * np.sin(np.pi / 5))
    for shape in scene.shapes:
        if shape.kind not in areas:
            continue
        radius = shape.size * min(scene.size)
        left, top = int(shape.x * scene.size[0] - 1.15 * radius), int(shape.y * scene.size[1] - 1.15 * radius)
        box = pixels[max(0, top) : top + int(2.3 * radius), max(0, left) : left + int(2.3 * radius)]
        fill = np.array(scenes.COLOURS[shape.colour])
        ground = np.array(scenes.BACKGROUNDS[scene.background])
        covered = (np.abs(box - fill).sum(-1) < np.abs(box - ground).sum(-1)).sum()
        assert covered == pytest.approx(areas[shape.kind] * radius**2, rel=0.2), shape


def _facts_of(scene: scenes.Scene) -> list[tuple[str, str, str]]:
    """Kind, colour, place of each shape, read from the scene by other means than the generator's."""
    rows_, columns = ("top", "", "bottom"), ("left", "", "right")
    return [
        (s.kind, s.colour, f"{rows_[int(s.y * 3)]} {columns[int(s.x * 3)]}".strip() or "middle") for s in scene.shapes
    ]


@pytest.mark.parametrize("held_out", [False, True])
def test_scene_answers_agree_with_the_scene(held_out: bool) -> None:
    rng = np.random.default_rng(5)
    numbers = dict(no=0, one=1, two=2, three=3, four=4, five=5)
    checked = set()
    for _ in range(60):
        scene = scenes.random_scene(rng, held_out)
        found = _facts_of(scene)
        for turn in scene_turns(Asker(scene, ENGLISH, rng, held_out), 12):
            answer, question = plain(turn.answer), turn.question.lower()
            if match := re.fullmatch(r"There (?:is|are) (\w+) (shape|shapes|\w+ shapes?|\w+|\w+ \w+)\.", answer):
                if match[1] not in numbers:
                    continue
                named = [
                    w if w == "cross" else w.removesuffix("es" if w == "crosses" else "s") for w in match[2].split()
                ]
                count = sum(all(w == "shape" or w in fact[:2] for w in named) for fact in found)
                assert count == numbers[match[1]], (found, turn)
                checked.add("count")
            elif match := re.fullmatch(r"The (?:(\w+) )?(\w+) is (?:at|on|in) the ([\w ]+)\.", answer):
                places = [p for kind, colour, p in found if kind == match[2] and match[1] in (None, colour)]
                assert places == [match[3]], (found, turn)
                checked.add("where")
            elif match := re.fullmatch(r"(?:The|Yes, the|No, the) (\w+) is (\w+)\.", answer):
                if match[1] == "background":
                    assert match[2] == scene.background
                    continue
                assert (match[1], match[2]) in [fact[:2] for fact in found], (found, turn)
                if answer.startswith(("Yes", "No")):
                    assert (match[2] in question) == answer.startswith("Yes"), turn
                checked.add("colour")
            elif turn.check == "json":
                value = json.loads(answer)
                if isinstance(value, list):
                    assert [sorted(row.values()) for row in value] == [sorted(fact[:2]) for fact in found]
                else:
                    assert list(value.values()) == [len(found)]
                checked.add("json")
    assert checked == {"count", "where", "colour", "json"}


def test_differences_between_two_pictures_are_real() -> None:
    rng = np.random.default_rng(2)
    seen = set()
    for _ in range(80):
        pair = scene_pair(rng, False)
        found = [set(_facts_of(scene)) for scene in pair]
        for turn in compare_turns(pair, ENGLISH, rng, False, 4):
            if match := re.search(r"only the (first|second) picture has an? (\w+) (\w+)\.", turn.answer, re.I):
                index = match[1].lower() == "second"
                assert [f[:2] for f in found[index] - found[not index]] == [(match[3], match[2])]
                seen.add("only")
            elif "show the same" in turn.answer:
                assert found[0] == found[1]
                seen.add("same")
            elif match := re.match(r"The (first|second) picture has more shapes: (\w+) instead of (\w+)", turn.answer):
                more = len(pair[match[1] == "second"].shapes)
                assert more > len(pair[match[1] == "first"].shapes)
                seen.add("more")
    assert seen == {"only", "same", "more"}


@pytest.mark.parametrize("held_out", [False, True])
def test_text_answers(held_out: bool) -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        turn = tasks_text.arithmetic(rng, held_out)
        left, right = turn.answer.split(" = ")
        assert eval(left.replace("x", "*")) == int(right)
        assert set(re.findall(r"\d+", left)) <= set(re.findall(r"\d+", turn.question))
        for turn in tasks_text.sorting(rng, held_out)[:1]:
            items = turn.answer.split(", ")
            keys = [int(i) if i.isdigit() else i for i in items]
            assert keys in (sorted(keys), sorted(keys, reverse=True))
            assert all(item in turn.question for item in items)
        turn = tasks_text.reversing(rng, held_out)
        if SPELL_START in turn.answer:
            assert plain(turn.answer)[::-1] in turn.question
            assert turn.answer[-1] == SPELL_END
        json.loads(tasks_text.json_task(rng, held_out).answer)


def test_scope_answers_say_what_is_needed() -> None:
    rng = np.random.default_rng(0)
    turns = [scope.scope_turn(rng, bool(i % 2)) for i in range(400)]
    assert all(correct(turn, turn.answer) for turn in turns)
    assert len({turn.answer for turn in turns}) > 300  # generated, not one sentence
    assert not correct(turns[0], "A circle.")
    assert all("{" not in t.question + t.answer for t in [facts.fact_turn(rng, bool(i % 2)) for i in range(400)])


def test_held_out_phrasings_are_never_trained_on() -> None:
    """Nor one that a frame makes: "Could you" around "count the shapes" may be a held-out phrasing."""
    rng = np.random.default_rng(0)
    tables = [
        *ENGLISH.phrasings.values(),
        *CHINESE.phrasings.values(),
        *vars(tasks_text).values(),
        *vars(scope).values(),
    ]
    tables += [table for table, _ in facts._FACT_TABLE]
    tables += [table for table, *_ in size_facts._NUMBERS] + [table for _, table in scope._REQUESTS]
    tables = [table for table in tables if isinstance(table, asking.Phrasings)]
    assert len(tables) > 80
    plain_makers = 0
    for table in tables:
        kept = {asking.bare(sentence) for line in table.held_out for sentence in grammar.expansions(line)}
        assert kept
        plain_makers += bool(kept & {asking.bare(grammar.expand(g, rng)) for g in table.train for _ in range(60)})
        for _ in range(150):
            assert asking.bare(table.pick(rng, False, **_names(table))) not in kept
            assert asking.bare(table.pick(rng, True, **_names(table))) in kept
    assert plain_makers > 5  # lists that could make one: `pick` is what keeps it back


def _names(table: asking.Phrasings) -> dict[str, str]:
    """Slots filled with themselves."""
    return {name: "{" + name + "}" for line in (*table.train, *table.held_out) for name in re.findall(r"{(\w+)}", line)}


def test_held_out_words_and_scenes_are_never_trained_on() -> None:
    rng = np.random.default_rng(3)
    sides = [{scenes.random_scene(rng, side, 1).signature for _ in range(400)} for side in (False, True)]
    assert sides[0]
    assert sides[1]
    assert not sides[0] & sides[1]
    words = []
    for side in (False, True):
        turns = [tasks_text.reversing(rng, side) for _ in range(500)]
        words.append({plain(t.answer)[::-1].lower() for t in turns if SPELL_START in t.answer})
    assert not words[0] & words[1]


def test_tokenizer_is_gemmas_kind_and_round_trips() -> None:
    gemma = Tokenizer(tokenizer.MODEL)
    assert (gemma.pad_id, gemma.eos_id, gemma.bos_id, gemma.unk_id, gemma.id("<mask>")) == (0, 1, 2, 3, 4)
    assert len(gemma.double_newline) == 1
    assert len(gemma.encode("\n\n\n")) == 1
    assert gemma.encode("472") == [gemma.id(d) for d in "472"]
    rng = np.random.default_rng(0)
    for i in range(60):
        group = mixture.text_group(rng, bool(i % 2)) if i % 3 else mixture.pair_group(rng, False, 4)
        for conversation in group.conversations:
            for turn in conversation.turns:
                for text in (turn.question, plain(turn.answer)):
                    assert gemma.decode(gemma.encode(text)) == text
    for text in ("日本語 naïve 😀", "a  b\n\n\tc"):
        assert gemma.decode(gemma.encode(text)) == text


def test_training_sequences_are_what_the_template_renders(encoder: rows.Encoder) -> None:
    gemma = Tokenizer(tokenizer.MODEL)
    rng = np.random.default_rng(4)
    makers = (mixture.scene_group, mixture.pair_group, mixture.read_group, mixture.texture_group, mixture.text_group)
    for make in makers * 3:
        for conversation in make(rng, False).conversations:
            ids, owner = encoder.encode(conversation)
            answer = len(conversation.turns) - 1
            prompt = ids[: owner.index(answer)]
            # In history, an answer that was written letter by letter is tokenized as any text.
            if not any(SPELL_START in turn.answer for turn in conversation.turns[:-1]):
                assert prompt == render_messages(conversation.messages(), gemma, rows.SOFT).tokens
            text = gemma.decode([i for i, o in zip(ids, owner, strict=True) if o == answer])
            assert text == plain(conversation.turns[-1].answer)


_TINY = GemmaConfig(
    vocab_size=tokenizer.VOCAB_SIZE,
    embed_dim=16,
    hidden_dim=32,
    layers=gemma3_layers(6, window=64),
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    query_scale=8**-0.5,
    vision=VisionConfig(width=16, depth=1, mlp_dim=16, num_heads=2, image_size=128, patch_size=8),
)


def test_a_packed_row_gives_the_hits_of_each_conversation_alone(encoder: rows.Encoder) -> None:
    """Prefix sharing, masks, positions, image order and stored images equal the served path."""
    rng = np.random.default_rng(8)
    params = {
        name: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32) for name, leaf in param_shapes(_TINY).items()
    }
    groups = [mixture.text_group(rng, False), mixture.pair_group(rng, False, 3), mixture.text_group(rng, False)]
    while len(groups[1].conversations) < 2 or max(max(i.size) for i in groups[1].images) > rows.STORE:
        groups[1] = mixture.pair_group(rng, False, 3)
    unit, used, count, tasks = rows.Unit(), [0] * rows.ROWS, [0] * rows.ROWS, [[] for _ in range(rows.ROWS)]
    images = groups[1].images
    for i, image in enumerate(images):
        pixels = rows.fit(image)
        unit.images[i, : pixels.shape[0], : pixels.shape[1]] = pixels
        unit.sizes[i] = pixels.shape[:2]
    for group in groups:
        rows.Packer._put(unit, 0, used, count, tasks, rows.encode_group(encoder, group, np.random.default_rng(1)), 0)
    served = jnp.stack([to_pixels(image, _TINY.vision.image_size) for image in images])
    batch = {
        name: jnp.asarray(getattr(unit, name)[:1]) for name in rows.FIELDS if name not in ("images", "sizes", "labels")
    }
    with jax.default_matmul_precision("highest"):
        logits, _ = jax.jit(learning._logits, static_argnums=(0, 4, 5))(
            _TINY, params, batch, served, "xla", jnp.float32
        )
    logits = np.asarray(logits)[0]
    soft = encode_images(_TINY, params, served)
    encoded = [encoder.encode(conversation) for group in groups for conversation in group.conversations]
    tokens = np.zeros((len(encoded), 640), np.int32)
    for row, (ids, _) in zip(tokens, encoded, strict=True):
        row[: len(ids)] = [SOFT_TOKEN if token < 0 else token for token in ids]
    shown = jnp.concatenate([soft] * len(groups[1].conversations))
    lengths = np.array([len(ids) for ids, _ in encoded])
    alone = np.asarray(forward(_TINY, params, tokens, lengths, soft_tokens=shown))
    at = conversation = 0
    for group in groups:
        shared = 0
        for i in range(len(group.conversations)):
            ids, owner = encoded[conversation]
            if i == 0 and len(group.conversations) > 1:
                shared = max(p for p, t in enumerate(ids) if t == encoder.image[-1]) + 1
                at += shared
            expected = alone[conversation, shared : len(ids)]
            np.testing.assert_allclose(logits[at : at + len(ids) - shared], expected, atol=2e-4)
            answers = [t for t, o in zip(ids, owner, strict=True) if o >= 0]
            target = unit.target[0, at : at + len(ids) - shared]
            assert target[target >= 0].tolist() == answers
            at += len(ids) - shared
            conversation += 1


def test_stored_images_are_enlarged_as_the_served_path_does() -> None:
    _, pixels = _plain_scene(3)
    stored = np.zeros((1, rows.STORE, rows.STORE, 3), np.uint8)
    stored[0, : pixels.shape[0], : pixels.shape[1]] = pixels
    enlarged = learning.to_pixels(stored, np.array([pixels.shape[:2]]), 896)
    expected = to_pixels(Image.fromarray(pixels.astype(np.uint8)), 896)
    np.testing.assert_allclose(np.asarray(enlarged, np.float32)[0], expected, atol=0.01)  # bf16


def test_messages_carry_images_where_the_turn_shows_them() -> None:
    image = Image.new("RGB", (4, 4))
    turns = (Turn("t", "first", "1", images=(0,), image_last=True), Turn("t", "second", "2"))
    messages = Conversation(turns, (image,), "be brief").messages()
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user"]
    assert [part["type"] for part in messages[1]["content"]] == ["text", "image"]
