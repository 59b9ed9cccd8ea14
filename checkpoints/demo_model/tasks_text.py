"""Text tasks: sums, sorting, reversing, JSON, small talk, and conversations of several turns."""

from __future__ import annotations

import json

import numpy as np

from checkpoints.demo_model.asking import phrasings
from checkpoints.demo_model.dialog import Turn, lower_effort, spell
from checkpoints.demo_model.grammar import choose, is_held_out
from checkpoints.demo_model.more_text import MORE_TEXT
from checkpoints.demo_model.words import COMMON, NAMES, THINGS, any_word

_SUM = phrasings(
    """
    [What is|What's|Calculate|Compute|Work out|Tell me|How much is] {a}{op}{b}[?|?|]
    {a}{op}{b}[| =| = ?|?]
    [Please calculate|Please compute|Solve|Evaluate] {a}{op}{b}.
    [What do you get for|What is the result of|What does this give:] {a}{op}{b}[?|]
    [I need|Give me] the result of {a}{op}{b}.
    """,
    """
    Can you work out {a}{op}{b}?
    How much would {a}{op}{b} be?
    Please tell me what {a}{op}{b} makes.
    """,
).plus(MORE_TEXT["sum"])
_ADD = phrasings(
    """
    [What is|Calculate|Compute] the sum of {a} and {b}[?|.]
    Add {a} [and|to] {b}.
    [What is|How much is|What's] {a} plus {b}?
    What do {a} and {b} [add up to|make together|sum to]?
    """,
    """
    What do I get if I add {a} and {b}?
    Please sum {a} and {b}.
    """,
).plus(MORE_TEXT["add"])
_TAKE = phrasings(
    """
    [What is|Calculate|Compute] the difference of {a} and {b}[?|.]
    Subtract {b} from {a}.
    [What is|How much is|What's] {a} minus {b}?
    Take {b} away from {a}.
    """,
    """
    What do I get if I subtract {b} from {a}?
    Please take {b} from {a}.
    """,
).plus(MORE_TEXT["take"])
_TIMES = phrasings(
    """
    [What is|Calculate|Compute] the product of {a} and {b}[?|.]
    Multiply {a} [by|and|with] {b}.
    [What is|How much is|What's] {a} times {b}?
    """,
    """
    What do I get if I multiply {a} by {b}?
    Please multiply {a} and {b}.
    """,
).plus(MORE_TEXT["times"])
_STORY_ADD = phrasings(
    """
    {name} has {a} {thing} and [gets|buys|finds] {b} more. How many {thing} does {name} have[| now]?
    {name} had {a} {thing}. Then {name} [got|bought|found] {b} more. How many are there now?
    There are {a} {thing} [in a box|on a table|in a bag] and {b} more are added. How many {thing} are there[| now]?
    {name} has {a} {thing} and {other} has {b}. How many do they have together?
    """,
    """
    {name} owns {a} {thing} and receives {b} more. How many {thing} does {name} own now?
    """,
).plus(MORE_TEXT["story_add"])
_STORY_TAKE = phrasings(
    """
    {name} has {a} {thing} and [gives away|loses|sells] {b}. How many {thing} [does {name} have|are left|remain]?
    {name} had {a} {thing}. Then {name} [gave away|lost|sold] {b}. How many are left?
    There are {a} {thing} [in a box|on a table|in a bag] and {b} are taken out. How many {thing} are left?
    """,
    """
    {name} owns {a} {thing} and gives {b} of them to {other}. How many {thing} does {name} keep?
    """,
).plus(MORE_TEXT["story_take"])
_SORT = phrasings(
    """
    Sort [these|the|the following] {things}[| {order}]: {items}[.|]
    [Put|Bring] [these|the] {things} in {order_noun}: {items}[.|]
    [Please sort|Order|Arrange] [these|the following|the] {things}[| {order}]: {items}[.|]
    Sort {items}[| {order}][.|]
    [Can you sort|Could you sort] [these|the] {things}[| {order}]: {items}?
    """,
    """
    Please put the {things} {items} in {order_noun}.
    What is the right order of these {things}, {order}: {items}?
    """,
).plus(MORE_TEXT["sort"])
_SORT_DOWN = phrasings(
    """
    Sort [these|the|the following] numbers [in descending order|from largest to smallest|descending]: {items}[.|]
    [Put|Bring] [these|the] numbers in descending order: {items}[.|]
    [Order|Arrange] [these|the] numbers from [largest to smallest|high to low|the largest to the smallest]: {items}[.|]
    """,
    """
    Please put the numbers {items} in descending order.
    """,
).plus(MORE_TEXT["sort_down"])
_REVERSE = phrasings(
    """
    [Reverse|Please reverse] [the word|the string|the letters of] [{word}|"{word}"][.|]
    Reverse [{word}|"{word}"][.|]
    [Spell|Write] [{word}|"{word}"] backwards[.|]
    [What is|What's] [{word}|"{word}"] [backwards|in reverse|reversed|spelled backwards]?
    [Write|Give me|Say] the word [{word}|"{word}"] [in reverse|reversed|backwards][.|]
    """,
    """
    How is "{word}" written backwards?
    Please turn the word {word} around.
    """,
).plus(MORE_TEXT["reverse"])
_SPELL = phrasings(
    """
    [Spell|Please spell] [the word|] [{word}|"{word}"][.|]
    How [do you|does one] spell [{word}|"{word}"]?
    [List|Give me|What are] the letters of [{word}|"{word}"][.|]
    """,
    """
    Can you spell "{word}" for me?
    Which letters does {word} have?
    """,
).plus(MORE_TEXT["spell"])
_LIST_REVERSE = phrasings(
    """
    [Reverse|Please reverse] [this list|the list|the order of]: {items}[.|]
    Reverse the order of {items}[.|]
    [Write|Give me|Say] [this list|these] [backwards|in reverse order]: {items}[.|]
    """,
    """
    Turn the order of this list around: {items}
    """,
).plus(MORE_TEXT["list_reverse"])
_EXTREME = phrasings(
    """
    [What is|Which is|Find|Tell me] the {most} of [|these numbers: |the numbers ]{items}[?|.]
    Which [of these numbers|number] is the {most}: {items}?
    Which is {most}: {items}?
    """,
    """
    Of the numbers {items}, which is the {most}?
    """,
).plus(MORE_TEXT["extreme"])
_JSON = phrasings(
    """
    {facts} [Answer|Reply|Write this] as JSON with [the keys|keys] {keys}.
    [Write|Put|Turn] this [as|into] JSON with [the keys|keys] {keys}: {facts}
    [Give|Return] [a JSON object|JSON] with [the keys|keys] {keys} for: {facts}
    [As JSON|JSON, please], with keys {keys}: {facts}
    """,
    """
    {facts} Please give me that in JSON using keys {keys}.
    """,
).plus(MORE_TEXT["json"])
_JSON_LIST = phrasings(
    """
    [Write|Give|Return] [the words|these words] {items} as a JSON list.
    [Turn|Make|Put] {items} into a JSON [list|array].
    JSON [list|array] of {items}[, please|].
    """,
    """
    Please make a JSON array from {items}.
    """,
).plus(MORE_TEXT["json_list"])
_CITIES = [
    "Paris",
    "London",
    "Berlin",
    "Rome",
    "Madrid",
    "Tokyo",
    "Oslo",
    "Vienna",
    "Lisbon",
    "Dublin",
    "Prague",
    "Cairo",
    "Lima",
    "Athens",
    "Boston",
    "Zurich",
]


def _number(rng: np.random.Generator) -> int:
    """One to three digits, each length as likely."""
    return int(rng.integers(0, 10 ** (1 + int(rng.random() * 3))))


def arithmetic(rng: np.random.Generator, held_out: bool) -> Turn:
    """A sum, difference or small product, bare or in a story."""
    while True:
        kind = rng.random()
        a, b = _number(rng), _number(rng)
        if kind < 0.45:
            op, result = "+", a + b
        elif kind < 0.8:
            a, b = (max(a, b), min(a, b)) if rng.random() < 0.9 else (a, b)
            op, result = "-", a - b
        else:
            a, b = int(rng.integers(0, 100 if rng.random() < 0.5 else 13)), int(rng.integers(0, 13))
            a, b = (a, b) if b < 10 or a < 13 else (b, a % 10)
            op, result = "*", a * b
        # The small tables are too few to keep any back; they make up a tenth of the evaluation.
        if (not held_out or rng.random() < 0.05) if max(a, b) < 13 else is_held_out("sum", op, a, b) == held_out:
            break
    answer = f"{a} {op if op != '*' else 'x'} {b} = {result}"
    if op != "*" and rng.random() < 0.15 and result >= 0:
        table = _STORY_ADD if op == "+" else _STORY_TAKE
        name, other = (NAMES[int(i)] for i in rng.permutation(len(NAMES))[:2])
        return Turn(
            "text sums", table.pick(rng, held_out, a=a, b=b, name=name, other=other, thing=choose(rng, THINGS)), answer
        )
    if rng.random() < 0.35:
        table = {"+": _ADD, "-": _TAKE, "*": _TIMES}[op]
        return Turn("text sums", lower_effort(rng, table.pick(rng, held_out, a=a, b=b)), answer)
    sign = choose(
        rng, {"+": (" + ", "+", " plus "), "-": (" - ", "-", " minus "), "*": (" x ", " * ", "*", " times ")}[op]
    )
    return Turn("text sums", lower_effort(rng, _SUM.pick(rng, held_out, a=a, b=b, op=sign)), answer)


def _numbers(rng: np.random.Generator) -> list[int]:
    top = choose(rng, (10, 30, 100, 100, 1000))
    count = int(rng.integers(3, 8))
    while len(picked := {int(n) for n in rng.integers(0, top, count * 3)}) < count:
        pass
    return [int(n) for n in rng.permutation(sorted(picked))[:count]]


def _joined(rng: np.random.Generator, items: list) -> str:
    kind = rng.random()
    if kind < 0.7:
        return ", ".join(map(str, items))
    return " ".join(map(str, items)) if kind < 0.85 else ", ".join(map(str, items[:-1])) + f" and {items[-1]}"


def sorting(rng: np.random.Generator, held_out: bool) -> list[Turn]:
    """Numbers or words to sort, at times with "now the other way round" after it."""
    while True:
        words = rng.random() < 0.45
        if words:
            items: list = [COMMON[int(i)] for i in rng.permutation(len(COMMON))[: int(rng.integers(3, 7))]]
        else:
            items = _numbers(rng)
        if is_held_out("sort", sorted(items)) == held_out:
            break
    text = _joined(rng, items)
    down = not words and rng.random() < 0.25
    if down:
        question = _SORT_DOWN.pick(rng, held_out, items=text)
    elif words:
        order, noun = choose(rng, ("alphabetically", "from A to Z", "by the alphabet")), "alphabetical order"
        question = _SORT.pick(rng, held_out, things="words", order=order, order_noun=noun, items=text)
    else:
        order = choose(rng, ("in ascending order", "from smallest to largest", "from low to high"))
        question = _SORT.pick(rng, held_out, things="numbers", order=order, order_noun="ascending order", items=text)
    ordered = sorted(items, reverse=down)
    turns = [Turn("text sorting", lower_effort(rng, question), ", ".join(map(str, ordered)))]
    if rng.random() < 0.15:
        question = choose(
            rng, ("And the other way round?", "Now reverse it.", "Now in reverse order.", "And backwards?")
        )
        if held_out:
            question = "And now the other way?"
        turns.append(Turn("text follow-up", question, ", ".join(map(str, ordered[::-1]))))
    return turns


def extreme(rng: np.random.Generator, held_out: bool) -> Turn:
    items = _numbers(rng)
    while is_held_out("sort", sorted(items)) != held_out:
        items = _numbers(rng)
    big = rng.random() < 0.5
    most = choose(rng, ("largest", "biggest", "highest") if big else ("smallest", "lowest"))
    question = _EXTREME.pick(rng, held_out, most=most, items=_joined(rng, items))
    return Turn("text sorting", lower_effort(rng, question), f"The {most} is {max(items) if big else min(items)}.")


def reversing(rng: np.random.Generator, held_out: bool) -> Turn:
    """A word backwards or spelt, or a list backwards."""
    kind = rng.random()
    if kind < 0.25:
        items = _numbers(rng) if rng.random() < 0.6 else [COMMON[int(i)] for i in rng.permutation(len(COMMON))[:4]]
        while is_held_out("list", items) != held_out:
            items = items[1:] + items[:1] if rng.random() < 0.5 else _numbers(rng)
        question = _LIST_REVERSE.pick(rng, held_out, items=", ".join(map(str, items)))
        return Turn("text reversing", question, ", ".join(map(str, items[::-1])))
    word = any_word(rng, 8)
    while is_held_out("word", word.lower()) != held_out:
        word = any_word(rng, 8)
    if rng.random() < 0.1:
        word = word.upper()
    elif rng.random() < 0.1:
        word = word.capitalize()
    if kind < 0.4:
        return Turn("text reversing", _SPELL.pick(rng, held_out, word=word), ", ".join(word))
    return Turn("text reversing", _REVERSE.pick(rng, held_out, word=word), spell(word[::-1]))


def json_task(rng: np.random.Generator, held_out: bool) -> Turn:
    """Facts or words given in the question, wanted as JSON."""
    if rng.random() < 0.35:
        items = [COMMON[int(i)] for i in rng.permutation(len(COMMON))[: int(rng.integers(2, 6))]]
        while is_held_out("json", items) != held_out:
            items = [COMMON[int(i)] for i in rng.permutation(len(COMMON))[: int(rng.integers(2, 6))]]
        text = ", ".join(items[:-1]) + f" and {items[-1]}" if rng.random() < 0.6 else ", ".join(items)
        return Turn("text json", _JSON_LIST.pick(rng, held_out, items=text), json.dumps(items), "json")
    while True:
        name, age, city = choose(rng, NAMES), int(rng.integers(3, 100)), choose(rng, _CITIES)
        if is_held_out("json", name, age, city) == held_out:
            break
    values = dict(name=name, age=age, city=city)
    keys = [("name", "age", "city")[int(i)] for i in rng.permutation(3)[: int(rng.integers(2, 4))]]
    facts = choose(
        rng,
        (
            f"{name} is {age} years old and lives in {city}.",
            f"{name} lives in {city} and is {age} years old.",
            f"{name}, {age}, lives in {city}.",
            f"My name is {name}, I am {age} and I live in {city}.",
        ),
    )
    quoted = [f'"{key}"' for key in keys] if rng.random() < 0.4 else keys
    text = ", ".join(quoted[:-1]) + f" and {quoted[-1]}"
    question = _JSON.pick(rng, held_out, facts=facts, keys=text)
    return Turn("text json", question, json.dumps({key: values[key] for key in keys}), "json")


def running_sum(rng: np.random.Generator, held_out: bool) -> list[Turn]:
    """A sum, and then "and plus 7?" on its result."""
    total, number = int(rng.integers(1, 100)), int(rng.integers(1, 100))
    while is_held_out("sum", "+", total, number) != held_out:
        total, number = int(rng.integers(1, 100)), int(rng.integers(1, 100))
    question = _SUM.pick(rng, held_out, a=total, b=number, op=" + ")
    turns = [Turn("text sums", question, f"{total} + {number} = {total + number}")]
    total += number
    for _ in range(int(rng.integers(1, 4))):
        number = int(rng.integers(1, 60))
        plus = rng.random() < 0.6 or number > total
        training = (
            ("And plus {n}?", "Now add {n}.", "Add {n}.", "Plus {n}?")
            if plus
            else ("And minus {n}?", "Now subtract {n}.", "Minus {n}?")
        )
        new = ("And now add {n}?",) if plus else ("And now subtract {n}?",)
        result = total + number if plus else total - number
        question = choose(rng, new if held_out else training).format(n=number)
        turns.append(Turn("text follow-up", question, f"{total} {'+' if plus else '-'} {number} = {result}"))
        total = result
    return turns
