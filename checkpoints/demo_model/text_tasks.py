"""Tasks without a picture: sums, lists, words, JSON, facts, small talk, and what the model says it cannot do."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from checkpoints.demo_model.dialog import Turn, spell
from checkpoints.demo_model.phrases import (
    CHINESE,
    ENGLISH,
    FOLDER,
    Phrases,
    as_typed,
    capital,
    choose,
    expand,
    is_held_out,
    sections,
)

WORDS = {name: " ".join(lines).split() for name, lines in sections(FOLDER / "words.txt").items()}
_SIZES = ("270M", "1B", "4B", "12B", "27B")
_NO_PICTURE = ("what", "count", "describe", "read", "differ")
_ZH_OPERATORS = {"+": ("+", "加", "加"), "-": ("-", "减", "减去"), "*": ("乘", "乘以", "×")}
_OPERATORS = {"+": (" + ", "+", " plus "), "-": (" - ", "-", " minus "), "*": (" x ", " * ", "*", " times ")}


def _ask(task: str, rng: np.random.Generator, held_out: bool, phrases: Phrases = ENGLISH, **slots: Any) -> str:
    return as_typed(rng, phrases.pick(task, rng, held_out, **slots))


def any_word(rng: np.random.Generator, longest: int, held_out: bool) -> str:
    """A real, made-up or random word of two to `longest` letters."""
    while True:
        kind = rng.random()
        if kind < 0.5:
            word = choose(rng, WORDS["common"])
        elif kind < 0.75:
            syllables = 1 + int(rng.random() * 2)
            parts = [choose(rng, WORDS[part]) for _ in range(syllables) for part in ("onsets", "vowels", "codas")]
            word = "".join(parts).replace("-", "")
        else:
            word = "".join(choose(rng, "abcdefghijklmnopqrstuvwxyz") for _ in range(int(rng.integers(2, longest + 1))))
        if len(word) <= longest and is_held_out("word", word) == held_out:
            return word


def _number(rng: np.random.Generator) -> int:
    """One to three digits, each length as likely."""
    return int(rng.integers(0, 10 ** (1 + int(rng.random() * 3))))


def arithmetic(rng: np.random.Generator, held_out: bool) -> list[Turn]:
    """A sum, difference or small product, bare or in a story; at times more is added to the result."""
    while True:
        op, a, b = choose(rng, "++++---**"), _number(rng), _number(rng)
        if op == "-" and rng.random() < 0.9:
            a, b = max(a, b), min(a, b)
        if op == "*":
            a, b = int(rng.integers(0, 100 if rng.random() < 0.5 else 13)), int(rng.integers(0, 13))
            a, b = (a, b) if b < 10 or a < 13 else (b, a % 10)
        # The small tables are too few to keep any back.
        if (not held_out or rng.random() < 0.05) if max(a, b) < 13 else is_held_out("sum", op, a, b) == held_out:
            break
    result = {"+": a + b, "-": a - b, "*": a * b}[op]
    answer, kind = f"{a} {op.replace('*', 'x')} {b} = {result}", rng.random()
    if op != "*" and kind < 0.15 and result >= 0:
        name, other = (WORDS["names"][int(i)] for i in rng.permutation(len(WORDS["names"]))[:2])
        slots = dict(a=a, b=b, name=name, other=other, thing=choose(rng, WORDS["things"]))
        question = ENGLISH.pick("story_add" if op == "+" else "story_take", rng, held_out, **slots)
    elif kind < 0.3:
        question = ENGLISH.pick({"+": "add", "-": "take", "*": "times"}[op], rng, held_out, a=a, b=b)
    elif kind < 0.42:
        question = CHINESE.pick("sum", rng, held_out, a=a, b=b, op=choose(rng, _ZH_OPERATORS[op]))
    else:
        question = ENGLISH.pick("sum", rng, held_out, a=a, b=b, op=choose(rng, _OPERATORS[op]))
    turns = [Turn("text sums", as_typed(rng, question), answer)]
    while 0 < result < 150 and len(turns) < 4 and rng.random() < 0.3:
        number = int(rng.integers(1, 60))
        question = ENGLISH.pick("running", rng, held_out, n=number)
        minus = "minus" in question.lower() or "subtract" in question.lower()
        before, result = result, result - number if minus else result + number
        turns.append(Turn("text follow-up", question, f"{before} {'-' if minus else '+'} {number} = {result}"))
    return turns


def _numbers(rng: np.random.Generator) -> list[int]:
    top, count = choose(rng, (10, 30, 100, 100, 1000)), int(rng.integers(3, 8))
    return [int(n) for n in rng.choice(top, min(count, top), replace=False)]


def _some_words(rng: np.random.Generator, low: int, high: int) -> list[str]:
    common = WORDS["common"]
    return [common[int(i)] for i in rng.permutation(len(common))[: int(rng.integers(low, high + 1))]]


def _joined(rng: np.random.Generator, items: list) -> str:
    kind = rng.random()
    if kind < 0.7:
        return ", ".join(map(str, items))
    return " ".join(map(str, items)) if kind < 0.85 else ", ".join(map(str, items[:-1])) + f" and {items[-1]}"


def sorting(rng: np.random.Generator, held_out: bool) -> list[Turn]:
    """Numbers or words to sort, at times with "now the other way round" after it; or the largest of some numbers."""
    words = rng.random() < 0.4
    while is_held_out("sort", sorted(items := _some_words(rng, 3, 6) if words else _numbers(rng))) != held_out:
        pass
    text, kind = _joined(rng, items), rng.random()
    if not words and kind < 0.2:
        big = rng.random() < 0.5
        most = choose(rng, ("largest", "biggest", "highest") if big else ("smallest", "lowest"))
        question = _ask("most_of", rng, held_out, most=most, items=text)
        return [Turn("text sorting", question, f"The {most} is {max(items) if big else min(items)}.")]
    down, phrases = not words and kind < 0.4, CHINESE if not words and 0.35 < kind < 0.5 else ENGLISH
    orders = ("alphabetically", "from A to Z") if words else ("in ascending order", "from smallest to largest")
    slots = dict(items=text, order=choose(rng, orders), things="words" if words else "numbers")
    noun = "alphabetical order" if words else "ascending order"
    if phrases.chinese:
        slots["items"] = choose(rng, (text, "、".join(map(str, items)), "，".join(map(str, items))))
    question = _ask("sort_down" if down else "sort", rng, held_out, phrases, noun=noun, **slots)
    ordered = [str(item) for item in sorted(items, reverse=down)]
    turns = [Turn("text sorting", question, ", ".join(ordered))]
    if rng.random() < 0.15:
        turns.append(Turn("text follow-up", _ask("sort_again", rng, held_out), ", ".join(ordered[::-1])))
    return turns


def reversing(rng: np.random.Generator, held_out: bool) -> list[Turn]:
    """A word backwards or spelt, or a list backwards."""
    kind = rng.random()
    if kind < 0.2:
        while is_held_out("list", items := choose(rng, (_numbers, lambda r: _some_words(r, 3, 5)))(rng)) != held_out:
            pass
        question = _ask("list_reverse", rng, held_out, items=", ".join(map(str, items)))
        return [Turn("text reversing", question, ", ".join(map(str, items[::-1])))]
    word, phrases = any_word(rng, 8, held_out), CHINESE if rng.random() < 0.12 else ENGLISH
    if rng.random() < 0.15:
        word = choose(rng, (word.upper(), word.capitalize()))
    question = phrases.pick("spell" if kind < 0.45 else "reverse", rng, held_out, word=word)
    question = question.lower() if word.islower() and rng.random() < 0.35 else question
    return [Turn("text reversing", question, ", ".join(word) if kind < 0.45 else spell(word[::-1]))]


def json_task(rng: np.random.Generator, held_out: bool) -> list[Turn]:
    """Facts or words given in the question, wanted as JSON."""
    if rng.random() < 0.35:
        while is_held_out("json", items := _some_words(rng, 2, 5)) != held_out:
            pass
        question = _ask("json_list", rng, held_out, items=_joined(rng, items))
        return [Turn("text json", question, json.dumps(items), "json")]
    while True:
        name, age, city = choose(rng, WORDS["names"]), int(rng.integers(3, 100)), choose(rng, WORDS["cities"])
        if is_held_out("json", name, age, city) == held_out:
            break
    values = dict(name=name, age=age, city=city)
    keys = [("name", "age", "city")[int(i)] for i in rng.permutation(3)[: int(rng.integers(2, 4))]]
    facts = (f"{name} is {age} years old and lives in {city}.", f"{name}, {age}, lives in {city}.")
    quoted = [f'"{key}"' for key in keys] if rng.random() < 0.4 else keys
    text = ", ".join(quoted[:-1]) + f" and {quoted[-1]}"
    question = ENGLISH.pick("json_facts", rng, held_out, facts=choose(rng, facts), keys=text)
    return [Turn("text json", question, json.dumps({key: values[key] for key in keys}), "json")]


def fact(rng: np.random.Generator, held_out: bool) -> list[Turn]:
    """A question about Gemma 3 or the toolkit that the table of facts answers, or one that it does not."""
    kind = rng.random()
    if kind < 0.12:
        return [Turn("text scope", _ask("unknown fact", rng, held_out), ENGLISH.said("unknown fact", rng), "scope")]
    if kind < 0.6:
        task = choose(rng, ENGLISH.tasks("fact "))
        return [Turn("text facts", _ask(task, rng, held_out), ENGLISH.said(task, rng))]
    task, index = choose(rng, ENGLISH.tasks("size ")), int(rng.random() * len(_SIZES))
    size, values = _SIZES[index], ENGLISH.values[task]["values"].split()
    value = values[min(index, len(values) - 1)]
    question = _ask(task, rng, held_out, size=size, low=size.lower())
    if task == "size images":
        answer = f"Yes, Gemma 3 {size} sees images." if index > 1 else f"No, Gemma 3 {size} is for text only."
        return [Turn("text facts", question, answer)]
    answer = ENGLISH.said(task, rng).format(size=size, value=value)
    return [Turn("text facts", question, answer.replace("heads.", "head.") if value == "1" else answer)]


def chat(rng: np.random.Generator, held_out: bool) -> list[Turn]:
    """Greetings, thanks, and who and what the model is, answered in the language of the question."""
    phrases = CHINESE if rng.random() < 0.4 else ENGLISH
    task = choose(rng, phrases.tasks("chat "))
    name = "text chat zh" if phrases.chinese else "text chat"
    return [Turn(name, _ask(task, rng, held_out, phrases), phrases.said(task, rng))]


def no_picture(rng: np.random.Generator, held_out: bool) -> list[Turn]:
    """A question about a picture where there is none."""
    phrases = choose(rng, (ENGLISH, ENGLISH, CHINESE))
    question = _ask(choose(rng, _NO_PICTURE), rng, held_out, phrases)
    return [Turn("text no picture", question, phrases.say("no_picture"))]


def refusal(rng: np.random.Generator, what: str, topic: str = "") -> str:
    """The model's words for what it cannot do, put together anew each time."""
    said = ENGLISH.values["scope"]
    about = choose(rng, ("I know nothing about", "I can say nothing about", "I have not learnt about"))
    cannot = f"{about} {topic}" if topic and rng.random() < 0.6 else choose(rng, ("I cannot ", "I can't ")) + what
    parts = {name: expand(said[name], rng) for name in ("said", "can", "real")}
    return capital(ENGLISH.said("scope", rng).format(cannot=cannot, **parts))


def _slots(rng: np.random.Generator, held_out: bool, phrases: Phrases) -> dict[str, Any]:
    """Topics and numbers that are beyond the model."""
    topics = phrases.values["scope"]["topics"].split(" " if phrases.chinese else "; ")
    while is_held_out("topic", topic := choose(rng, topics)) != held_out and not phrases.chinese:
        pass
    large = [int(rng.integers(1001, 10 ** int(rng.integers(4, 8)))) for _ in range(2)]
    small = [int(n) for n in rng.integers(1, 100, 3)]
    return dict(zip("tunmpqr", (topic, choose(rng, topics), *large, *small), strict=True))


def scope(rng: np.random.Generator, held_out: bool) -> list[Turn]:
    """A request that is out of scope: general knowledge, texts, code, hard sums, other languages, nonsense."""
    kind = rng.random()
    if kind < 0.05:
        question = " ".join(any_word(rng, 9, held_out) for _ in range(int(rng.integers(1, 6))))
        return [Turn("text scope", question, refusal(rng, "make sense of that"), "scope")]
    if kind < 0.13:
        foreign = ENGLISH.values["scope"]["foreign_held_out" if held_out else "foreign"].split("; ")
        return [Turn("text scope", choose(rng, foreign), refusal(rng, "speak that language"), "scope")]
    if kind < 0.35:
        question = _ask("scope", rng, held_out, CHINESE, **_slots(rng, held_out, CHINESE))
        return [Turn("text scope zh", question, CHINESE.said("scope", rng), "scope")]
    general, *others = [task for task in ENGLISH.tasks("scope ") if task != "scope picture"]
    task, slots = general if kind < 0.6 else choose(rng, others), _slots(rng, held_out, ENGLISH)
    question = ENGLISH.pick(task, rng, held_out, **slots)
    topic = str(slots["t"]) if str(slots["t"]) in question and task == general else ""
    return [Turn("text scope", as_typed(rng, question), refusal(rng, task.removeprefix("scope "), topic), "scope")]


def picture_scope(rng: np.random.Generator, held_out: bool, phrases: Phrases, question: str | None = None) -> Turn:
    """A question about a picture that goes beyond drawn scenes, or (given) any question about one that is no scene."""
    what = "understand this picture" if question else "answer that about a picture"
    question = question or _ask("scope picture", rng, held_out, phrases, **_slots(rng, held_out, phrases))
    if phrases.chinese:
        return Turn("image scope zh", question, phrases.said("scope", rng), "scope")
    return Turn("image scope", question, refusal(rng, what), "scope")


_TASKS = ((arithmetic, 0.24), (sorting, 0.18), (reversing, 0.15), (json_task, 0.07), (fact, 0.12), (chat, 0.07))
_TASKS = (*_TASKS, (no_picture, 0.02), (scope, 0.15))


def text_turns(rng: np.random.Generator, held_out: bool) -> list[Turn]:
    """One text task, of one or several turns."""
    weights = np.cumsum([weight for _, weight in _TASKS])
    return _TASKS[int(np.searchsorted(weights, rng.random() * weights[-1], side="right"))][0](rng, held_out)
