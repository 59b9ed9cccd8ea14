"""The demo model's data: answers against an independent reading, held-out examples, packing against the served path."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from checkpoints.demo_model import by_hand, data, scenes, text_tasks
from checkpoints.demo_model.dialog import SPELL, Speaker, plain
from checkpoints.demo_model.evaluate import Judged, correct, generated, summary
from checkpoints.demo_model.phrases import CHINESE, ENGLISH, Phrases, bare
from checkpoints.demo_model.picture_tasks import Asker, compare_turns, scene_pair, scene_turns, twin_turns


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
    if match := re.fullmatch(r"(?:Yes, t|No, t|T)he ([\w ]+) is (left of|right of|above|below) the ([\w ]+)\.", answer):
        a, b = shapes[match[1]], shapes[match[3]]
        assert {"left of": a.x < b.x, "right of": a.x > b.x, "above": a.y < b.y, "below": a.y > b.y}[match[2]]
        assert not answer.startswith("Yes") or match[2] in question
        return "relation"
    if match := re.fullmatch(r"The (\w+) shape is the ([\w ]+)\.", answer):
        order = dict(largest=lambda s: -s.size, biggest=lambda s: -s.size, smallest=lambda s: s.size)
        order |= dict(leftmost=lambda s: s.x, rightmost=lambda s: -s.x, topmost=lambda s: s.y, lowest=lambda s: -s.y)
        best = min(scene.shapes, key=order[match[1]])
        assert match[2] == f"{best.colour} {best.kind}"
        return "extreme"
    if match := re.fullmatch(r"Yes, there is an? (\w+) (\w+) (?:at|on|in) the ([\w ]+)\.", answer):
        assert (match[2], match[1], match[3]) in found
        return "exists"
    if match := re.fullmatch(r"No, there is no ([\w ]+)\.", answer):
        assert not [f for f in found if all(word == "shape" or word in f[:2] for word in match[1].split())]
        return "exists not"
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
            assert bool(re.search(rf"\b{match[2]}\b", question)) == answer.startswith("Yes")
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
                    rows = [sorted(v for k, v in row.items()) for row in value]
                    assert rows == [sorted(fact[:2]) for fact in _facts_of(scene)]
                else:
                    assert list(value.values()) == [len(scene.shapes)]
                checked.add("json")
            elif turn.task == "image two facts" and ". " in turn.answer:
                answers = [f"{part.rstrip('.')}." for part in turn.answer.split(". ")]
                asked = re.split(r", and |\? and | and |\. also, ", turn.question.lower())
                if len(asked) != len(answers):  # an "and" within one of the questions
                    continue
                parts = [_check(answer, part, scene) for answer, part in zip(answers, asked, strict=True)]
                checked.add("two facts" if all(parts) else "")
            elif "\n" in turn.answer:
                assert turn.answer.split("\n") == [f"{i}. {s.colour} {s.kind}" for i, s in enumerate(scene.shapes, 1)]
                checked.add("listed")
            else:
                checked.add(_check(turn.answer, turn.question.lower(), scene))
    said = {"count", "where", "beside", "size", "colours", "colour", "background", "json", "two facts", "listed"}
    said |= {"relation", "extreme", "exists", "exists not"}
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
        turns = twin_turns(scene, (ENGLISH, CHINESE), rng, False)
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
        if SPELL in turn.answer:
            assert plain(turn.answer)[::-1] in turn.question
            assert turn.answer[-1] == SPELL
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
    for language in (ENGLISH, CHINESE):
        for task in language.tasks():
            kept = language.kept_out(task)
            slots = {
                name: "{" + name + "}"
                for name in re.findall(r"{(\w+)}", " ".join([*(text for _, text in language._train[task]), *kept]))
            }
            assert kept
            plain_makers += bool(kept & {bare(language._template(task, rng, False)) for _ in range(150)})
            for _ in range(60):
                assert bare(language.pick(task, rng, False, **slots)) not in kept
                assert bare(language.pick(task, rng, True, **slots)) in kept
            seen += 1
    assert seen > 120
    assert plain_makers > 2  # lists that could make one: `pick` is what keeps it back


def test_a_task_takes_the_training_phrasings_of_another(tmp_path: Path) -> None:
    file = tmp_path / "phrases.txt"
    common = "== parts: verbs = say // a = [x|y]\n== answers: a = b\n== words: a = b\n== question: So, ...\n"
    file.write_text(
        common + "== one: Is <a> {n}? // ! Held {n}? // = No\n== two: as one: {n} -> it // Really? // ! Kept?\n"
    )
    made, rng = Phrases(file), np.random.default_rng(0)
    asked = {made._template("two", rng, False).capitalize() for _ in range(80)}
    assert asked == {"Is x it?", "Is y it?", "Really?", "So, is x it?", "So, is y it?", "So, really?"}
    assert made.kept_out("two") == {"kept"}
    file.write_text(common + "== one: Is [a|b it?\n")
    with pytest.raises(ValueError, match="unbalanced brackets"):
        Phrases(file)


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
        seen |= {bare(turn.question) for talk in group for turn in talk.turns}
    assert len(seen) > 600
    assert not seen & by_hand.SENTENCES


def test_the_generated_set_is_half_about_pictures_and_counted_by_task() -> None:
    talks = generated(120, seed=3)
    assert len(talks) == 120
    assert 55 <= sum(bool(talk.images) for talk in talks) <= 65
    assert all(i < len(talk.images) for talk in talks for turn in talk.turns for i in turn.images)
    judged = [Judged("image count", "q", "1", "2", False), Judged("image count zh", "q", "1", "1", True)]
    results = summary([*judged, Judged("by hand plain", "q", "x", "x", True)])
    assert results["counts"]["image"] == [1, 2]
    assert results["wrong"] == [["image count", "q", "1", "2"]]
    assert results["counts"]["by hand"] == [1, 1]


def test_the_hand_written_set_is_judged_strictly() -> None:
    questions = by_hand.questions()
    assert len(questions) == 200
    assert 60 <= sum(q.task.endswith("zh") for q in questions) <= 80
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
