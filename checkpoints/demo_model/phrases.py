"""Sentences from the phrase files: how things are asked and answered, and which sentences training never sees.

The files describe their own format. A held-out phrasing is never trained on, whichever line or frame it could come
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
_OR = " // "  # between the templates of a line
_UNFRAMED = (
    "short",
    "follow",
    "chat",
    "running",
    "sort_again",
    "system",
    "scope",
    "in_other",
)  # not a question that stands alone
_FRAMED = re.compile("吗|呢|告诉|知道|请问|看出")  # a Chinese frame stands around it already
_KEEP_CAPITAL = re.compile(r"Gemma|JSON|I\b|\{|\[|A to Z")


def choose(rng: np.random.Generator, options: Sequence[T]) -> T:
    """A uniform choice; faster than `rng.choice` for short lists, and it returns the option itself."""
    return options[int(rng.random() * len(options))]


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
    options: list[str] = []
    literal, depth = "", 0
    for char in grammar:
        depth += (char == "[") - (char == "]")
        if char == "[" and depth == 1:
            parts.append(literal)
            literal, options = "", []
        elif char == "]" and depth == 0:
            parts.append((*options, literal))
            literal = ""
        elif char == "|" and depth == 1:
            options.append(literal)
            literal = ""
        else:
            literal += char
    if depth:
        raise ValueError(f"phrasing {grammar!r}: unbalanced brackets")
    return (*parts, literal)


def bare(sentence: str) -> str:
    """The sentence without case, marks and spaces, to tell whether two are the same."""
    return re.sub(r"[^\w{}]", "", sentence).lower()


def sections(path: Path) -> dict[str, list[str]]:
    """The lines below each "== name" of a phrase file; an indented line continues the one before it."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("== "):
            name, _, held_out = line[3:].partition(" ! ")
            lines = found.setdefault(name, [f"! {held_out}"] if held_out else [])
        elif line.startswith(" "):
            lines[-1] += ("" if line.lstrip().startswith("|") else " ") + line.strip()
        elif line and not line.startswith("#"):
            lines.append(line)
    return found


def table(lines: list[str]) -> dict[str, str]:
    """Lines of the form "name = text"."""
    return {name.strip(): text.strip() for name, _, text in (line.partition("=") for line in lines)}


class Phrases:
    """The phrasings of one language. `files`: a later one adds sections to those of the first."""

    def __init__(self, *files: Path, chinese: bool = False) -> None:
        self.chinese = chinese
        lines = {name: lines for file in files for name, lines in sections(file).items()}
        self._parts = table(lines.pop("parts"))
        self._verbs = tuple(self._parts.pop("verbs").split())
        self.answers = table(lines.pop("answers"))
        self.words = {
            name: [word.strip() for word in (text.split(";") if ";" in text else text.split())]
            for name, text in table(lines.pop("words")).items()
        }
        self._train: dict[str, list[str]] = defaultdict(list)
        self._held_out: dict[str, list[str]] = defaultdict(list)
        self._said: dict[str, list[str]] = defaultdict(list)
        self.values: dict[str, dict[str, str]] = defaultdict(dict)
        for name, body in lines.items():
            for line in body:
                if line.startswith("= "):
                    self._said[name].append(self._filled(line[2:]))
                elif line.startswith("! "):
                    self._held_out[name] += self._filled(line[2:]).split(_OR)
                elif match := re.fullmatch(r"(\w+) = (.*)", line):
                    self.values[name][match[1]] = match[2]
                else:
                    self._train[name].append(self._filled(line))

    def _filled(self, line: str) -> str:
        while match := re.search(r"<(\w+)>", line):
            line = line.replace(match[0], self._parts[match[1]])
        return line

    def tasks(self, prefix: str = "") -> list[str]:
        """Names of the sections that have phrasings to train and to judge by."""
        return [name for name in self._train if name.startswith(prefix) and self._held_out[name]]

    @functools.cache  # noqa: B019 - a language lives as long as the program
    def kept_out(self, task: str) -> frozenset[str]:
        """The held-out sentences of a task, bare."""
        return frozenset(bare(sentence) for grammar in self._held_out[task] for sentence in expansions(grammar))

    def pick(self, task: str, rng: np.random.Generator, held_out: bool, look: bool = False, **slots: Any) -> str:
        """One way to ask for `task`, slots filled. `look`: about a picture, so that a frame may speak of it."""
        text = expand(choose(rng, self._held_out[task]), rng) if held_out else self._trained(task, rng, look)
        text = re.sub(r" +([?.,!]|$)", r"\1", re.sub(" +", " ", text)).strip().format(**slots)
        return text if self.chinese else re.sub(r"\b([Aa]) (?=orange)", r"\1n ", text)

    def _trained(self, task: str, rng: np.random.Generator, look: bool) -> str:
        while True:
            text = self._template(task, rng, look)
            if bare(text) not in self.kept_out(task):
                return text

    def _template(self, task: str, rng: np.random.Generator, look: bool) -> str:
        line = choose(rng, self._train[task])
        if match := re.match("(noun|clause|claim): ", line):
            inner = expand(choose(rng, line[match.end() :].split(_OR)), rng)
            return capital(self._framed(match[1], inner.strip(), rng))
        text = expand(choose(rng, line.split(_OR)), rng).strip()
        if rng.random() < _FRAMED_SHARE and not task.startswith(_UNFRAMED) and not _FRAMED.search(text):
            if text.endswith(("?", "？")):
                return self._framed("look" if look and rng.random() < 0.3 else "question", text, rng)
            if text.removeprefix("请").lower().startswith(self._verbs) and ": " not in text:
                return self._framed("request", text.removeprefix("请"), rng)
        return text if task == "short" or rng.random() < 0.3 else capital(text)

    def _framed(self, frame: str, text: str, rng: np.random.Generator) -> str:
        before, _, after = expand(choose(rng, self._train[frame]), rng).partition("...")
        if after:
            text = text.rstrip("?.。？")
        inside = before and not before.endswith(("! ", ". "))
        return before + (uncapital(text) if inside else text) + after

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
    """The question as people type: at times in lower case, without its mark, or with a space too many."""
    if rng.random() < 0.55:
        return question
    if rng.random() < 0.45:
        question = question.lower()
    elif rng.random() < 0.5:
        question = question[:1].lower() + question[1:]
    if rng.random() < 0.4:
        question = question.rstrip("?.。？")
    return question + " " if rng.random() < 0.1 else question


ENGLISH = Phrases(FOLDER / "phrases.en.txt", FOLDER / "facts.txt")
CHINESE = Phrases(FOLDER / "phrases.zh.txt", chinese=True)
LANGUAGES = (ENGLISH, CHINESE)
