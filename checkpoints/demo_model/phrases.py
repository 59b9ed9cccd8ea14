"""Sentences from the phrase files: how things are asked and answered, and which sentences training never sees.

phrases.en.txt describes the format. A held-out phrasing is never trained on, whichever template or frame it could come
from, and neither is a sentence of the test set written by hand.
"""

from __future__ import annotations

import functools
import itertools
import re
import zlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
FOLDER = Path(__file__).parent
HELD_OUT_SHARE = 10  # one key in ten is held out
_FRAMED_SHARE = 0.3
_FRAMES = ("noun:", "clause:", "claim:")
_MARK = re.compile(r"(!|=|noun:|clause:|claim:) ")  # what the templates from here on are
_VALUE = re.compile(r"(\w+) = (.*)")
_UNFRAMED = ("short", "follow", "chat", "running", "sort_again", "system", "scope", "in_other")  # do not stand alone
_FRAMED = re.compile("吗|呢|告诉|知道|请问|看出")  # a Chinese frame stands around it already
_KEEP_CAPITAL = re.compile(r"Gemma|JSON|I\b|\{|\[|A to Z")


def choose(rng: np.random.Generator, options: Sequence[T]) -> T:
    """A uniform choice; faster than `rng.choice` for short lists, and it returns the option itself."""
    return options[int(rng.random() * len(options))]


@functools.cache
def _table(text: str) -> tuple[list[str], np.ndarray]:
    names, weights = zip(*(entry.split() for entry in text.split(",")), strict=True)
    chances = np.cumsum([float(weight) for weight in weights])
    return list(names), chances / chances[-1]


def weighted(rng: np.random.Generator, table: str) -> str:
    """One of the names of a table such as "this 2, that 0.5", by weight."""
    names, chances = _table(table)
    return names[int(np.searchsorted(chances, rng.random(), side="right"))]


def is_held_out(*key: object) -> bool:
    """Whether the example with this key (a word, two numbers, a scene's signature) is kept out of training."""
    return zlib.crc32(repr(key).encode()) % HELD_OUT_SHARE == 0


def expand(grammar: str, rng: np.random.Generator) -> str:
    """One sentence of `grammar`, in which [this|that] is a choice."""
    return "".join(part if isinstance(part, str) else expand(choose(rng, part), rng) for part in _parse(grammar))


def expansions(grammar: str) -> list[str]:
    """All sentences of `grammar`."""
    parts = [[p] if isinstance(p, str) else [e for option in p for e in expansions(option)] for p in _parse(grammar)]
    return ["".join(parts) for parts in itertools.product(*parts)]


@functools.cache
def _parse(grammar: str) -> tuple[str | tuple[str, ...], ...]:
    """Literal text and, as tuples of grammars, choices."""
    parts: list[str | tuple[str, ...]] = []
    options, depth = [""], 0
    for char in grammar:
        depth += (char == "[") - (char == "]")
        if (char == "[" and depth == 1) or (char == "]" and depth == 0):
            parts.append(options[0] if char == "[" else tuple(options))
            options = [""]
        elif char == "|" and depth == 1:
            options.append("")
        else:
            options[-1] += char
    if depth:
        raise ValueError(f"phrasing {grammar!r}: unbalanced brackets")
    return (*parts, options[0])


def bare(sentence: str) -> str:
    """The sentence without case, marks and spaces, to tell whether two are the same."""
    return re.sub(r"[^\w{}]", "", sentence).lower()


def sections(path: Path) -> dict[str, str]:
    """The text below each "== name:" of a file, on one line."""
    text = re.sub(r"^#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    parts = (" ".join(part.split("\n")).partition(":") for part in re.split(r"^== ", text, flags=re.MULTILINE)[1:])
    return {name: re.sub(" +", " ", body).strip() for name, _, body in parts}


def _values(entries: list[str]) -> dict[str, str]:
    return {name: text for name, _, text in (entry.partition(" = ") for entry in entries)}


class Phrases:
    """The phrasings of one language. `files`: a later one adds sections to those of the first."""

    def __init__(self, *files: Path, chinese: bool = False) -> None:
        self.chinese = chinese
        texts = {name: text.split(" // ") for file in files for name, text in sections(file).items()}
        self._parts, self.answers, words = (_values(texts.pop(name)) for name in ("parts", "answers", "words"))
        self._verbs = tuple(self._parts.pop("verbs").split())
        self.words = {name: text.split("; ") if ";" in text else text.split() for name, text in words.items()}
        self._train, self._held_out, self._said = (defaultdict[str, list[str]](list) for _ in range(3))
        self.values: dict[str, dict[str, str]] = defaultdict(dict)
        for name, templates in texts.items():
            mark = ""
            for text in templates:
                if match := _MARK.match(text):
                    mark, text = match[1], text[match.end() :]
                if value := _VALUE.fullmatch(text):
                    self.values[name][value[1]] = value[2]
                    continue
                kept = {"!": self._held_out, "=": self._said}.get(mark, self._train)
                frame = mark if kept is self._train else ""
                kept[name].append(frame + re.sub(r"<(\w+)>", lambda part: self._filled(part[1]), text))

    def _filled(self, part: str) -> str:
        return re.sub(r"<(\w+)>", lambda inner: self._filled(inner[1]), self._parts[part])

    def tasks(self, prefix: str = "") -> list[str]:
        """Names of the sections that have phrasings to train and to judge by."""
        return [name for name in self._train if name.startswith(prefix) and self._held_out[name]]

    @functools.cache  # noqa: B019 - a language lives as long as the program
    def kept_out(self, task: str) -> frozenset[str]:
        """The held-out sentences of a task, bare."""
        return frozenset(bare(sentence) for grammar in self._held_out[task] for sentence in expansions(grammar))

    def pick(self, task: str, rng: np.random.Generator, held_out: bool, look: bool = False, **slots: Any) -> str:
        """One way to ask for `task`, slots filled. `look`: about a picture, so that a frame may speak of it."""
        text = expand(choose(rng, self._held_out[task]), rng) if held_out else self._template(task, rng, look)
        while not held_out and bare(text) in self.kept_out(task):
            text = self._template(task, rng, look)
        text = re.sub(r" +([?.,!]|$)", r"\1", re.sub(" +", " ", text)).strip().format(**slots)
        return text if self.chinese else re.sub(r"\b([Aa]) (?=orange)", r"\1n ", text)

    @functools.cache  # noqa: B019 - as for `kept_out`
    def _weights(self, task: str) -> np.ndarray:
        """Cumulative chances of a task's templates: one that holds more alternatives comes more often."""
        weights = np.cumsum([1 + template.count("|") ** 0.5 for template in self._train[task]])
        return weights / weights[-1]

    def _template(self, task: str, rng: np.random.Generator, look: bool) -> str:
        template = self._train[task][int(np.searchsorted(self._weights(task), rng.random(), side="right"))]
        frame = template.partition(":")[0] if template.startswith(_FRAMES) else ""
        text = expand(template.removeprefix(f"{frame}:") if frame else template, rng).strip()
        if not frame and rng.random() < _FRAMED_SHARE and not task.startswith(_UNFRAMED) and not _FRAMED.search(text):
            if text.endswith(("?", "？")):
                frame = "look" if look and rng.random() < 0.3 else "question"
            elif text.removeprefix("请").lower().startswith(self._verbs) and ": " not in text:
                frame, text = "request", text.removeprefix("请")
        if not frame:
            return text if task == "short" or rng.random() < 0.3 else capital(text)
        before, _, after = expand(choose(rng, self._train[frame]), rng).partition("...")
        if after:
            text = text.rstrip("?.。？")
        inside = before and not before.endswith(("! ", ". "))
        framed = before + (uncapital(text) if inside else text) + after
        return capital(framed) if f"{frame}:" in _FRAMES else framed

    def say(self, answer: str, **slots: Any) -> str:
        """The answer template `answer`, filled, with a capital letter at its start."""
        return capital(self.answers[answer].format(**slots))

    def said(self, task: str, rng: np.random.Generator) -> str:
        """One of the answers that a section gives itself."""
        return expand(choose(rng, self._said[task]), rng)


def capital(text: str) -> str:
    """For the beginning of a sentence."""
    return text[:1].upper() + text[1:]


def uncapital(text: str) -> str:
    """For the middle of a sentence."""
    return text if _KEEP_CAPITAL.match(text) else text[:1].lower() + text[1:]


def as_typed(rng: np.random.Generator, question: str) -> str:
    """The question as people type: at times in lower case, with no or another mark at its end, or a space too many."""
    if rng.random() < 0.5:
        return question
    case = rng.random()
    question = question.lower() if case < 0.45 else question[:1].lower() + question[1:] if case < 0.7 else question
    if (mark := rng.random()) < 0.45:
        bare_end = question.rstrip("?.。？!！")
        question = bare_end + ("" if mark < 0.35 or not bare_end else choose(rng, ("??", " ?", "!", "...")))
    return question + " " if rng.random() < 0.1 else question


ENGLISH = Phrases(FOLDER / "phrases.en.txt", FOLDER / "facts.txt")
CHINESE = Phrases(FOLDER / "phrases.zh.txt", chinese=True)
LANGUAGES = (ENGLISH, CHINESE)
WORDS = {name: text.split() for name, text in sections(FOLDER / "words.txt").items()}
