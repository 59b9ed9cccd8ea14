"""Tasks without a picture: sums, lists, words, JSON, facts, small talk, and what the model says it cannot do."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from checkpoints.demo_model.dialog import SPELL, Turn
from checkpoints.demo_model.phrases import BOTH, CHINESE, ENGLISH, WORDS, Phrases, as_typed, choose, expand, is_held_out

_SIZES = ("270M", "1B", "4B", "12B", "27B")
_SYLLABLE = (
    "[b|c|d|f|g|h|l|m|n|p|r|s|t|w|br|ch|cl|gr|sh|st|tr][a|e|i|o|u|ai|ea|ee|oo|ou][|||d|g|l|m|n|nd|ng|nt|p|r|s|t]"
)
_GENERAL = "scope answer general questions"
_OPERATORS = {"+": (" + ", "+", " plus "), "-": (" - ", "-", " minus "), "*": (" x ", " * ", "*", " times ")}
_ZH_OPERATORS = {"+": ("+", "加", "加"), "-": ("-", "减", "减去"), "*": ("乘", "乘以", "×")}


def _ask(task: str, rng: np.random.Generator, held_out: bool, phrases: Phrases = ENGLISH, **slots: Any) -> str:
    return as_typed(rng, phrases.pick(task, rng, held_out, **slots))


def _until(held_out: bool, key: str, make: Callable[[], Any]) -> Any:
    """What `make` makes, again and again until it is of the wanted side of the split."""
    while is_held_out(key, made := make()) != held_out:
        pass
    return made


def any_word(rng: np.random.Generator, longest: int, held_out: bool) -> str:
    """A real, made-up or random word of two to `longest` letters."""

    def word() -> str:
        kind = rng.random()
        if kind < 0.75:
            return choose(rng, WORDS["common"]) if kind < 0.5 else expand(_SYLLABLE * choose(rng, (1, 2)), rng)
        return "".join(choose(rng, "abcdefghijklmnopqrstuvwxyz") for _ in range(int(rng.integers(2, longest + 1))))

    while len(found := _until(held_out, "word", word)) > longest:
        pass
    return found


def arithmetic(rng: np.random.Generator, held_out: bool) -> list[Turn]:
    """A sum, difference or small product; at times more is added to the result."""
    while True:
        op = choose(rng, "++++---**" if held_out else "+++---***")
        a, b = (int(rng.integers(0, 10 ** int(rng.integers(1, 4)))) for _ in range(2))  # each length as likely
        if op == "-" and rng.random() < 0.9:
            a, b = max(a, b), min(a, b)
        if op == "*":
            a, b = (
                int(rng.integers(0, 13 if rng.random() < (0.5 if held_out else 0.3) else 100)),
                int(rng.integers(0, 13)),
            )
            a, b = (a, b) if b < 10 or a < 13 else (b, a % 10)
        # The small tables are too few to keep any back.
        if (not held_out or rng.random() < 0.05) if max(a, b) < 13 else is_held_out("sum", op, a, b) == held_out:
            break
    result, kind = {"+": a + b, "-": a - b, "*": a * b}[op], rng.random()
    phrases = CHINESE if kind < 0.15 else ENGLISH
    task = {"+": "add", "-": "take", "*": "times"}[op] if kind > 0.8 else "sum"
    slots = dict(a=a, b=b, op=choose(rng, (_ZH_OPERATORS if phrases.chinese else _OPERATORS)[op]))
    question = _ask(task, rng, held_out, phrases, **slots)
    turns = [Turn("text sums", question, f"{a} {op.replace('*', 'x')} {b} = {result}")]
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


def _some_words(rng: np.random.Generator, low: int, high: int, alike: bool = False) -> list[str]:
    """Common words; `alike`: neighbours in the dictionary, which mostly begin with the same letter."""
    common, at = WORDS["common"], int(rng.random() * (len(WORDS["common"]) - 20))
    common = common[at : at + 20] if alike else common
    return [common[int(i)] for i in rng.permutation(len(common))[: int(rng.integers(low, high + 1))]]


def _joined(rng: np.random.Generator, items: list) -> str:
    kind, parts = rng.random(), [str(item) for item in items]
    if kind < 0.7:
        return ", ".join(parts)
    return " ".join(parts) if kind < 0.85 else ", ".join(parts[:-1]) + f" and {parts[-1]}"


def sorting(rng: np.random.Generator, held_out: bool) -> list[Turn]:
    """Numbers or words to sort, at times with "now the other way round" after it; or the largest of some numbers."""
    words, alike, kind = rng.random() < 0.4, not held_out and rng.random() < 0.4, rng.random()
    while is_held_out("sort", sorted(items := _some_words(rng, 3, 6, alike) if words else _numbers(rng))) != held_out:
        pass
    text = _joined(rng, items)
    if not words and kind < 0.2:
        most = choose(rng, ("largest", "biggest", "highest", "smallest", "lowest"))
        best = min(items) if most in ("smallest", "lowest") else max(items)
        question = _ask("most_of", rng, held_out, most=most, items=text)
        return [Turn("text sorting", question, f"The {most} is {best}.")]
    down, phrases = not words and kind < 0.4, CHINESE if not words and 0.35 < kind < 0.5 else ENGLISH
    if phrases.chinese:
        text = choose(rng, (text, "、".join(map(str, items)), "，".join(map(str, items))))
    things, noun = ("words", "alphabetical order") if words else ("numbers", "ascending order")
    order = choose(
        rng, ("alphabetically", "from A to Z") if words else ("in ascending order", "from smallest to largest")
    )
    slots = dict(items=text, order=order, things=things, noun=noun)
    question = _ask("sort_down" if down else "sort", rng, held_out, phrases, **slots)
    ordered = [str(item) for item in sorted(items, reverse=down)]
    turns = [Turn("text sorting", question, ", ".join(ordered))]
    if rng.random() < 0.15:
        turns.append(Turn("text follow-up", _ask("sort_again", rng, held_out), ", ".join(ordered[::-1])))
    return turns


def reversing(rng: np.random.Generator, held_out: bool) -> list[Turn]:
    """A word backwards or spelt, or a list backwards."""
    kind = rng.random()
    if kind < 0.2:
        items = _until(held_out, "list", lambda: _numbers(rng) if rng.random() < 0.5 else _some_words(rng, 3, 5))
        question = _ask("list_reverse", rng, held_out, items=", ".join(map(str, items)))
        return [Turn("text reversing", question, ", ".join(map(str, items[::-1])))]
    word, phrases = any_word(rng, 8, held_out), CHINESE if rng.random() < 0.12 else ENGLISH
    if rng.random() < 0.15:
        word = choose(rng, (word.upper(), word.capitalize()))
    question = phrases.pick("spell" if kind < 0.45 else "reverse", rng, held_out, word=word)
    question = question.lower() if word.islower() and rng.random() < 0.35 else question
    return [Turn("text reversing", question, ", ".join(word) if kind < 0.45 else SPELL + word[::-1] + SPELL)]


def json_task(rng: np.random.Generator, held_out: bool) -> list[Turn]:
    """Facts or words given in the question, wanted as JSON."""
    if rng.random() < (0.35 if held_out else 0.55):
        items = _until(held_out, "json", lambda: _some_words(rng, 2, 5))
        if not held_out and rng.random() < 0.3:  # made-up words must be copied, not recalled
            items = [any_word(rng, 7, False) for _ in items]
        question = _ask("json_list", rng, held_out, items=_joined(rng, items))
        return [Turn("text json", question, json.dumps(items), "json")]
    while True:
        name, age, city = choose(rng, WORDS["names"]), int(rng.integers(3, 100)), choose(rng, WORDS["cities"])
        if is_held_out("json", name, age, city) == held_out:
            break
    values = dict(name=name, age=age, city=city)
    keys = rng.permutation(list(values))[: int(rng.integers(2, 4))].tolist()
    facts = choose(rng, (f"{name} is {age} years old and lives in {city}.", f"{name}, {age}, lives in {city}."))
    question = ENGLISH.pick("json_facts", rng, held_out, facts=facts, keys=", ".join(keys[:-1]) + f" and {keys[-1]}")
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
    size, value = _SIZES[index], ENGLISH.values[task]["values"].split()[index]
    answer = ENGLISH.said(task, rng, size=size, value=value)
    if task == "size images":
        answer = f"Yes, Gemma 3 {size} sees images." if value == "Yes" else f"No, Gemma 3 {size} is for text only."
    question = _ask(task, rng, held_out, size=size, low=size.lower())
    return [Turn("text facts", question, answer.replace("heads.", "head.") if value == "1" else answer)]


def chat(rng: np.random.Generator, held_out: bool) -> list[Turn]:
    """Greetings, thanks, and who and what the model is, answered in the language of the question."""
    phrases = choose(rng, BOTH)
    task, name = choose(rng, phrases.tasks("chat ")), "text chat zh" if phrases.chinese else "text chat"
    return [Turn(name, _ask(task, rng, held_out, phrases), phrases.said(task, rng))]


def no_picture(rng: np.random.Generator, held_out: bool) -> list[Turn]:
    """A question about a picture where there is none."""
    phrases, task = (
        choose(rng, (ENGLISH, ENGLISH, CHINESE)),
        choose(rng, ("what", "count", "describe", "read", "differ")),
    )
    question = _ask(task, rng, held_out, phrases, thing=phrases.words["things"][0])
    return [Turn("text no picture", question, phrases.say("no_picture"))]


def _refusal(rng: np.random.Generator, name: str, phrases: Phrases, question: str, what: str, topic: str = "") -> Turn:
    """The model's words for what it cannot do, put together anew each time."""
    if phrases.chinese:
        return Turn(f"{name} zh", question, phrases.said("scope", rng), "scope")
    cannot = choose(rng, ("I cannot ", "I can't ")) + what
    if topic and rng.random() < 0.6:
        cannot = choose(rng, ("I know nothing about ", "I can say nothing about ")) + topic
    return Turn(name, question, ENGLISH.said("scope", rng, cannot=cannot), "scope")


def _slots(rng: np.random.Generator, held_out: bool, phrases: Phrases) -> dict[str, Any]:
    """Topics and numbers that are beyond the model."""
    topics = phrases.values["scope"]["topics"].split("; ")
    topic = choose(rng, topics) if phrases.chinese else _until(held_out, "topic", lambda: choose(rng, topics))
    large = [int(rng.integers(1001, 10 ** int(rng.integers(4, 8)))) for _ in range(2)]
    return dict(zip("tunmpqr", (topic, choose(rng, topics), *large, *rng.integers(1, 100, 3).tolist()), strict=True))


def scope(rng: np.random.Generator, held_out: bool) -> list[Turn]:
    """A request that is out of scope: general knowledge, texts, code, hard sums, other languages, nonsense."""
    kind = rng.random()
    if kind < 0.05:
        question = " ".join(any_word(rng, 9, held_out) for _ in range(int(rng.integers(1, 6))))
        return [_refusal(rng, "text scope", ENGLISH, question, "make sense of that")]
    if kind < 0.13:
        foreign = ENGLISH.values["scope"]["foreign_held_out" if held_out else "foreign"].split("; ")
        return [_refusal(rng, "text scope", ENGLISH, choose(rng, foreign), "speak that language")]
    phrases = CHINESE if kind < 0.35 else ENGLISH
    others = [task for task in ENGLISH.tasks("scope ") if task not in (_GENERAL, "scope picture")]
    task = "scope" if phrases.chinese else _GENERAL if kind < 0.6 else choose(rng, others)
    slots = _slots(rng, held_out, phrases)
    question = _ask(task, rng, held_out, phrases, **slots)
    topic = slots["t"] if slots["t"].lower() in question.lower() and task == _GENERAL else ""
    return [_refusal(rng, "text scope", phrases, question, task.removeprefix("scope "), topic)]


def picture_scope(rng: np.random.Generator, held_out: bool, phrases: Phrases, question: str = "") -> Turn:
    """A question about a picture that goes beyond drawn scenes, or (given) any question about one that is no scene."""
    what = "understand this picture" if question else "answer that about a picture"
    question = question or _ask("scope picture", rng, held_out, phrases, **_slots(rng, held_out, phrases))
    return _refusal(rng, "image scope", phrases, question, what)


_TASKS = [arithmetic] * 24 + [sorting] * 18 + [reversing] * 15 + [json_task] * 7 + [fact] * 12 + [chat] * 7
_TASKS += [no_picture] * 2 + [scope] * 15


def text_turns(rng: np.random.Generator, held_out: bool) -> list[Turn]:
    """One text task, of one or several turns."""
    return choose(rng, _TASKS)(rng, held_out)
