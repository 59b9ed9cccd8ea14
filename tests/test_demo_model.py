"""The demo model's data: answers against an independent reading, held-out examples, packing against the served path."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from checkpoints.demo_model import by_hand, data, learning, scenes, text_tasks, train
from checkpoints.demo_model.dialog import SPELL_END, SPELL_START, Conversation, Turn, plain
from checkpoints.demo_model.evaluate import Judged, correct, generated, summary, table
from checkpoints.demo_model.pair_tasks import compare_turns, scene_pair
from checkpoints.demo_model.phrases import CHINESE, ENGLISH, LANGUAGES, bare
from checkpoints.demo_model.picture_tasks import Asker, scene_turns, twin_turns
from checkpoints.demo_model.speaker import Speaker
from gemma_tpu.config import GemmaConfig, VisionConfig, gemma3_layers
from gemma_tpu.engine.forward import encode_images, forward
from gemma_tpu.image import to_pixels
from gemma_tpu.model import param_shapes
from gemma_tpu.text.template import render_messages
from gemma_tpu.text.tokenizer import SOFT_TOKEN, Tokenizer


@pytest.fixture(scope="module")
def encoder() -> data.Encoder:
    return data.Encoder()


def _plain_scene(seed: int, held_out: bool = False) -> tuple[scenes.Scene, np.ndarray]:
    """A scene and its pixels, large and clean."""
    rng = np.random.default_rng(seed)
    scene = scenes.random_scene(rng, held_out)
    return scene, np.asarray(scenes.render(scene, rng, "plain")).astype(int)


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


_NUMBERS = dict(no=0, one=1, two=2, three=3, four=4, five=5)


def _check(answer: str, question: str, scene: scenes.Scene) -> str:
    """Compares a sentence of an answer with the scene; the name of what it says, or "" if it is none of those here."""
    found = _facts_of(scene)
    shapes = {f"{s.colour} {s.kind}": s for s in scene.shapes} | {s.kind: s for s in scene.shapes}

    def named(text: str) -> list[str]:
        return re.findall(r"an? (\w+ \w+)", text)

    if match := re.fullmatch(r"There (?:is|are) (no|one|two|three|four|five) (\w+|\w+ \w+)\.", answer):
        words = [w if w == "cross" else w.removesuffix("es" if w == "crosses" else "s") for w in match[2].split()]
        assert sum(all(w == "shape" or w in fact[:2] for w in words) for fact in found) == _NUMBERS[match[1]]
        return "count"
    if match := re.fullmatch(r"The (?:(\w+) )?(\w+) is (?:at|on|in) the ([\w ]+)\.", answer):
        assert [p for k, c, p in found if k == match[2] and match[1] in (None, c)] == [match[3]]
        return "where"
    if match := re.fullmatch(r"There is ((?:an? .+)|nothing) (left of|right of|above|below) the ([\w ]+)\.", answer):
        there = shapes[match[3]]
        sides = {"left of": lambda s: s.x < there.x, "right of": lambda s: s.x > there.x}
        sides |= {"above": lambda s: s.y < there.y, "below": lambda s: s.y > there.y}
        assert named(match[1]) == [f"{s.colour} {s.kind}" for s in scene.shapes if sides[match[2]](s)]
        return "beside"
    if match := re.search(r"[Tt]he ([\w ]+) is (bigger|larger|smaller) than the ([\w ]+)\.", answer):
        a, b = shapes[match[1]].size, shapes[match[3]].size
        assert (a < b / 1.3) if match[2] == "smaller" else (a > 1.3 * b)
        if answer.startswith("Yes"):
            assert match[2] in question
        return "size"
    if match := re.fullmatch(r"There (?:are (\w+) colours|is (one) colour): ([\w, ]+)\.", answer):
        assert set(re.split(", | and ", match[3])) == {fact[1] for fact in found}
        assert _NUMBERS[match[1] or match[2]] == len({fact[1] for fact in found})
        return "colours"
    if match := re.fullmatch(r"(?:The|Yes, the|No, the) (\w+) is (\w+|light \w+)\.", answer):
        if match[1] == "background":
            assert match[2] == scene.background
            return "background"
        assert (match[1], match[2]) in [fact[:2] for fact in found]
        if answer.startswith(("Yes", "No")):
            assert (match[2] in question) == answer.startswith("Yes")
        return "colour"
    return ""


@pytest.mark.parametrize("held_out", [False, True])
def test_scene_answers_agree_with_the_scene(held_out: bool) -> None:
    rng = np.random.default_rng(5)
    checked = set()
    for _ in range(60):
        scene = scenes.random_scene(rng, held_out)
        for turn in scene_turns(Asker(scene, ENGLISH, rng, held_out), 15):
            if turn.check == "json":
                value = json.loads(turn.answer)
                if isinstance(value, list):
                    rows = [sorted(v for k, v in row.items() if k != "position") for row in value]
                    assert rows == [sorted(fact[:2]) for fact in _facts_of(scene)]
                else:
                    assert list(value.values()) == [len(scene.shapes)]
                checked.add("json")
            elif turn.task == "image two facts" and ". " in turn.answer:
                parts = [
                    _check(part.rstrip(".") + ".", turn.question.lower(), scene) for part in turn.answer.split(". ")
                ]
                checked.add("two facts" if all(parts) else "")
            elif "\n" in turn.answer:
                assert turn.answer.split("\n") == [f"{i}. {s.colour} {s.kind}" for i, s in enumerate(scene.shapes, 1)]
                checked.add("listed")
            else:
                checked.add(_check(turn.answer, turn.question.lower(), scene))
    said = {"count", "where", "beside", "size", "colours", "colour", "background", "json", "two facts", "listed"}
    assert said <= checked


def test_a_crowd_and_unknown_shapes_are_admitted() -> None:
    rng = np.random.default_rng(1)
    crowd = Asker(scenes.random_scene(rng, False, 8), ENGLISH, rng, False)
    assert all("more than five" in crowd.count().answer for _ in range(5))
    assert "more than five" in Asker(crowd.scene, ENGLISH, rng, False).describe().answer
    alone = Asker(scenes.random_scene(rng, False, 1, others=1.0), ENGLISH, rng, False)
    assert alone.scene.shapes[0].kind in scenes.OTHERS
    assert alone.what().answer.startswith("I do not know this shape.")


def test_an_answer_in_the_other_language_says_the_same() -> None:
    rng = np.random.default_rng(0)
    to_chinese = dict(entry.rsplit(" ", 1) for name in ("shapes", "colours") for entry in CHINESE.words[name])
    compared = 0
    for _ in range(150):
        scene = scenes.random_scene(rng, False)
        turns = twin_turns(scene, LANGUAGES, rng, False)
        if len(turns) == 2 and (words := [w for w in re.findall(r"\w+", turns[0].answer) if w in to_chinese]):
            assert all(to_chinese[word] in turns[1].answer for word in words), turns
            compared += 1
    assert compared > 40


def test_differences_between_two_pictures_are_real() -> None:
    rng = np.random.default_rng(2)
    seen = set()
    for _ in range(80):
        pair = scene_pair(rng, False)
        found = [set(_facts_of(scene)) for scene in pair]
        for turn in compare_turns(pair, Speaker(ENGLISH, rng, False), 4):
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
        for turn in text_tasks.arithmetic(rng, held_out):
            left, right = turn.answer.split(" = ")
            assert eval(left.replace("x", "*")) == int(right)
            numbers = set(re.findall(r"\d+", left))
            assert numbers <= set(re.findall(r"\d+", turn.question)) or turn.task == "text follow-up"
        turn = text_tasks.sorting(rng, held_out)[0]
        if not turn.answer.startswith("The "):
            items = turn.answer.split(", ")
            keys = [int(i) if i.isdigit() else i for i in items]
            assert keys in (sorted(keys), sorted(keys, reverse=True))
            assert all(item in turn.question for item in items)
        (turn,) = text_tasks.reversing(rng, held_out)
        if SPELL_START in turn.answer:
            assert plain(turn.answer)[::-1] in turn.question
            assert turn.answer[-1] == SPELL_END
        json.loads(text_tasks.json_task(rng, held_out)[0].answer)


def test_scope_answers_say_what_is_needed() -> None:
    rng = np.random.default_rng(0)
    turns = [text_tasks.scope(rng, bool(i % 2))[0] for i in range(400)]
    assert all(correct(turn, turn.answer) for turn in turns)
    assert len({turn.answer for turn in turns if turn.task == "text scope"}) > 200  # generated, not one sentence
    assert not correct(turns[0], "A circle.")
    facts = [text_tasks.fact(rng, bool(i % 2))[0] for i in range(400)]
    assert all("{" not in turn.question + turn.answer for turn in facts)
    assert all(correct(turn, turn.answer) for turn in facts)


def test_chat_answers_in_the_language_of_the_question() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        (turn,) = text_tasks.chat(rng, False)
        assert bool(re.search("[\u4e00-\u9fff]", turn.question)) == bool(re.search("[\u4e00-\u9fff]", turn.answer))


def test_held_out_phrasings_are_never_trained_on() -> None:
    """Nor one that a frame makes: "Could you" around "count the shapes" may be a held-out phrasing."""
    rng = np.random.default_rng(0)
    plain_makers, seen = 0, 0
    for language in LANGUAGES:
        for task in language.tasks():
            kept = language.kept_out(task)
            slots = {
                name: "{" + name + "}" for name in re.findall(r"{(\w+)}", " ".join([*language._train[task], *kept]))
            }
            assert kept
            plain_makers += bool(kept & {bare(language._template(task, rng, False)) for _ in range(150)})
            for _ in range(60):
                assert bare(language.pick(task, rng, False, **slots)) not in kept
                assert bare(language.pick(task, rng, True, **slots)) in kept
            seen += 1
    assert seen > 120
    assert plain_makers > 2  # lists that could make one: `pick` is what keeps it back


def test_held_out_words_and_scenes_are_never_trained_on() -> None:
    rng = np.random.default_rng(3)
    sides = []
    for side in (False, True):
        made = [scenes.random_scene(rng, side, 1).shapes[0] for _ in range(400)]
        sides.append({(s.kind, s.colour, s.cell) for s in made})
    assert all(sides)
    assert not sides[0] & sides[1]
    words = [{text_tasks.any_word(rng, 8, side) for _ in range(500)} for side in (False, True)]
    assert not words[0] & words[1]


def test_the_hand_written_set_is_never_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    common = bare("How many shapes are there?")
    monkeypatch.setattr(by_hand, "SENTENCES", by_hand.SENTENCES | {common})
    seen = set()
    for i in range(300):
        group = data.scene_group(rng, False) if i % 2 else data.text_group(rng, False)
        seen |= {bare(turn.question) for talk in group.conversations for turn in talk.turns}
    assert len(seen) > 600
    assert not seen & by_hand.SENTENCES


def test_the_generated_set_is_half_about_pictures_and_counted_by_task() -> None:
    talks = generated(120, seed=3)
    assert len(talks) == 120
    assert 55 <= sum(bool(talk.images) for talk in talks) <= 65
    assert all(max((i for turn in talk.turns for i in turn.images), default=-1) < len(talk.images) for talk in talks)
    judged = [Judged("image count", "q", "1", "2", False), Judged("image count zh", "q", "1", "1", True)]
    results = summary([*judged, Judged("by hand plain", "q", "x", "x", True)])
    assert results["counts"]["image"] == [1, 2]
    assert results["wrong"] == [["image count", "q", "1", "2"]]
    assert "| **all by hand** | 1 | 1 | 100.0% |" in table(results["counts"])


def test_the_hand_written_set_is_judged_strictly() -> None:
    questions = by_hand.questions()
    assert len(questions) == 200
    assert 60 <= sum(q.chinese for q in questions) <= 80
    exact = by_hand.Question("?", "red circle & 5 / five ! square / no")
    assert exact.right("A Red circle, and five more.")
    assert not exact.right("A red circle.")
    assert not exact.right("A scarred circle and five.")
    assert not exact.right("A red circle, a square and 5 stars.")
    assert exact.right("A red circle, 5 squares, nothing else.")
    assert by_hand.Question("?", "CANNOT").right("I do not know this shape.")
    assert not by_hand.Question("?", "CANNOT").right("A green hexagon.")
    assert not by_hand.Question("?", "是 ! 不是").right("不是，圆形在正方形的左边。")
    for picture in {q.picture for q in questions if q.picture}:
        assert by_hand.draw(picture).tobytes() == by_hand.draw(picture).tobytes()


def test_tokenizer_is_gemmas_kind_and_round_trips() -> None:
    gemma = Tokenizer(data.TOKENIZER)
    assert (gemma.pad_id, gemma.eos_id, gemma.bos_id, gemma.unk_id, gemma.id("<mask>")) == (0, 1, 2, 3, 4)
    assert len(gemma.double_newline) == 1
    assert len(gemma.encode("\n\n\n")) == 1
    assert gemma.encode("472") == [gemma.id(d) for d in "472"]
    rng = np.random.default_rng(0)
    for i in range(60):
        group = data.text_group(rng, bool(i % 2)) if i % 3 else data.pair_group(rng, False, 4)
        for conversation in group.conversations:
            for turn in conversation.turns:
                for text in (turn.question, plain(turn.answer)):
                    assert gemma.decode(gemma.encode(text)) == text
    for text in ("日本語 naïve 😀", "a  b\n\n\tc"):
        assert gemma.decode(gemma.encode(text)) == text


def test_training_sequences_are_what_the_template_renders(encoder: data.Encoder) -> None:
    gemma = Tokenizer(data.TOKENIZER)
    rng = np.random.default_rng(4)
    makers = (data.scene_group, data.pair_group, data.read_group, data.texture_group, data.text_group)
    for make in makers * 3:
        for conversation in make(rng, False).conversations:
            ids, owner = encoder.encode(conversation)
            answer = len(conversation.turns) - 1
            prompt = ids[: owner.index(answer)]
            # In history, an answer that was written letter by letter is tokenized as any text.
            if not any(SPELL_START in turn.answer for turn in conversation.turns[:-1]):
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
    encoder: data.Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefix sharing, masks, positions, image order and targets equal the served path."""
    monkeypatch.setattr(data, "ROWS", 1)
    monkeypatch.setattr(data, "_JUMP_SHARE", 0.0)
    rng, params = np.random.default_rng(8), _tiny_params(_TINY)
    groups = [data.text_group(rng, False), data.pair_group(rng, False, 3), data.text_group(rng, False)]
    while len(groups[1].conversations) < 2 or max(max(i.size) for i in groups[1].images) > data.STORE:
        groups[1] = data.pair_group(rng, False, 3)
    unit, tasks = data.Unit(), list[str]()
    assert all(unit.add(group, encoder, tasks, rng) for group in groups)
    served = jnp.stack([to_pixels(image, _TINY.vision.image_size) for image in groups[1].images])
    batch = {name: jnp.asarray(array) for name, array in unit.arrays.items()}
    with jax.default_matmul_precision("highest"):
        scores = jax.jit(learning.logits, static_argnums=(0, 4, 5))(_TINY, params, batch, served, "xla", jnp.float32)
    scores = np.asarray(scores)[0]
    soft = encode_images(_TINY, params, served)
    encoded = [(*encoder.encode(talk), talk) for group in groups for talk in group.conversations]
    tokens = np.zeros((len(encoded), 640), np.int32)
    for row, (ids, _, _) in zip(tokens, encoded, strict=True):
        row[: len(ids)] = [SOFT_TOKEN if token < 0 else token for token in ids]
    shown = jnp.concatenate([soft] * len(groups[1].conversations))
    lengths = np.array([len(ids) for ids, _, _ in encoded])
    alone = np.asarray(forward(_TINY, params, tokens, lengths, soft_tokens=shown))
    at = number = 0
    for group in groups:
        shared = 0
        for i in range(len(group.conversations)):
            ids, owner, talk = encoded[number]
            if i == 0 and len(group.conversations) > 1:
                shared = max(p for p, t in enumerate(ids) if t < 0) + 2
                at += shared
            here = slice(at, at + len(ids) - shared)
            np.testing.assert_allclose(scores[here], alone[number, shared : len(ids)], atol=2e-4)
            target = unit.arrays["target"][0, here]
            assert target[target >= 0].tolist() == [t for t, o in zip(ids, owner, strict=True) if o >= 0]
            assert {tasks[t] for t in unit.arrays["task"][0, here][target >= 0]} == {turn.task for turn in talk.turns}
            at, number = here.stop, number + 1


def test_a_shard_holds_what_was_packed_and_emphasis_weighs_it(encoder: data.Encoder, tmp_path: Path) -> None:
    rng, tasks = np.random.default_rng(0), list[str]()
    units = [data.make_unit(rng, encoder, tasks) for _ in range(2)]
    data.write_shard(tmp_path / "rows-0.npz", units, tasks)
    for unit, read in zip(units, data.read_shard(tmp_path / "rows-0.npz"), strict=True):
        assert all((unit.arrays[name] == read[name]).all() for name in data.FIELDS)
        assert all((a == b).all() for a, b in zip(unit.images, read["images"], strict=True))
    batches = []
    for emphasis in ({}, {"text sums": 4.0}):
        shards = train.Shards(tmp_path, emphasis, seed=1)
        shards.start()
        batches.append(shards.batch(2))
        shards.stop()
    answers = batches[0]["weight"] > 0
    ratio = batches[1]["weight"][answers] / batches[0]["weight"][answers]
    assert set(ratio.round(4).tolist()) == {1.0, 4.0}
    soft = batches[0]["soft"]
    assert soft.max() >= data.IMAGES * data.SOFT  # the second unit's images come after the first's
    assert (np.diff(np.unique(soft // data.SOFT)) >= 1).all()


def test_a_step_learns_and_leaves_what_is_frozen(encoder: data.Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "ROWS", 1)
    monkeypatch.setattr(data, "ROW", 384)
    config, unit, rng = dataclasses.replace(_TINY, layers=_TINY.layers[:1]), data.Unit(), np.random.default_rng(0)
    assert unit.add(data.read_group(rng, False, 2), encoder, [], rng)
    batch = {name: jnp.asarray(array) for name, array in unit.arrays.items()}
    pixels = jnp.zeros((1, 128, 128, 3))
    before = {name: 0.3 * np.asarray(value) for name, value in _tiny_params(config).items()}
    state = learning.start({name: jnp.asarray(value) for name, value in before.items()})
    losses = []
    for _ in range(3):
        rate = jnp.float32(3e-3)
        state, seen = learning.step(config, state, batch, pixels, rate, "xla", jnp.float32, ("vision",))
        losses.append(float(seen["loss"]))
    assert losses[-1] < losses[0] - 0.02
    moved = {name for name, value in state.params.items() if (np.asarray(value) != before[name]).any()}
    assert moved
    assert all(name.startswith("vision") or name in moved for name in before)
    assert not any(name.startswith("vision") for name in moved)


def test_stored_images_are_enlarged_as_the_served_path_does() -> None:
    _, pixels = _plain_scene(3)
    stored = np.zeros((1, data.STORE, data.STORE, 3), np.uint8)
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
