"""Sentences from the phrase files: how things are asked and answered, and which sentences training never sees.

phrases.en.txt describes the format. A held-out phrasing is never trained on, whichever template or frame it could come
from, and neither is a sentence of the test set written by hand.
"""

from __future__ import annotations

import functools
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
FOLDER = Path(__file__).parent
_MARK = re.compile(r"(!|=|noun:|clause:|claim:) (.*)")  # what the templates from here on are
_LIKE = re.compile(r"as ([\w ]+): (.*) -> (.*)")
_CHOICE = re.compile(r"\[([^\[\]]*)\]")  # one that holds no other
_VALUE = re.compile(r"\w+ = .*")
_UNFRAMED = ("follow", "chat", "running", "sort_again", "system", "scope", "in_other")  # do not stand alone
_FRAMED = re.compile("吗|呢|告诉|知道|请问|看出")  # a Chinese frame stands around it already
_KEEP_CAPITAL = re.compile(r"Gemma|JSON|I\b|\{|\[|A to Z")


def choose(rng: np.random.Generator, options: Sequence[T]) -> T:
    """A uniform choice; faster than `rng.choice` for short lists, and it returns the option itself."""
    return options[int(rng.random() * len(options))]


@functools.cache
def repeated(table: str) -> list[str]:
    """The names of a table such as "this 20, that 5", each so many times, to choose from."""
    return [name for name, times in (entry.split() for entry in table.split(",")) for _ in range(int(times))]


def is_held_out(*key: object) -> bool:
    """Whether the example with this key (a word, two numbers, a scene) is one of the tenth kept out of training."""
    return zlib.crc32(repr(key).encode()) % 10 == 0


def expand(grammar: str, rng: np.random.Generator) -> str:
    """One sentence of `grammar`, in which [this|that] is a choice."""
    while match := _CHOICE.search(grammar):
        grammar = grammar[: match.start()] + choose(rng, match[1].split("|")) + grammar[match.end() :]
    return grammar


def expansions(grammar: str) -> list[str]:
    """All sentences of `grammar`."""
    if not (match := _CHOICE.search(grammar)):
        return [grammar]
    before, after = grammar[: match.start()], grammar[match.end() :]
    return [sentence for option in match[1].split("|") for sentence in expansions(before + option + after)]


def bare(sentence: str) -> str:
    """The sentence without case, marks and spaces, to tell whether two are the same."""
    return re.sub(r"[^\w{}]", "", sentence).lower()


def sections(path: Path) -> dict[str, str]:
    """The text below each "== name:" of a file, on one line."""
    text = re.sub(r"(?m)^#.*\n", "", path.read_text(encoding="utf-8"))
    parts = (part.partition(":") for part in re.split(r"(?m)^== ", text)[1:])
    return {" ".join(name.split()): " ".join(body.split()) for name, _, body in parts}


def _values(entries: Iterable[str]) -> dict[str, str]:
    return {name: text for name, _, text in (entry.partition(" = ") for entry in entries)}


def _marked(texts: dict[str, list[str]], name: str) -> Iterator[tuple[str, str]]:
    """The templates of a section, each with its mark; those of another where it says "as other: this -> that"."""
    mark = ""
    for text in texts[name]:
        if match := _MARK.fullmatch(text):
            mark, text = match.groups()
        if like := _LIKE.fullmatch(text):
            other, old, new = like.groups()
            yield from (
                (m, t.replace(old, new)) for m, t in _marked(texts, other) if m in ("", "noun:", "clause:", "claim:")
            )
        else:
            yield "value" if _VALUE.fullmatch(text) else mark, text


class Phrases:
    """The phrasings of one language. `files`: a later one adds sections to those of the first."""

    def __init__(self, *files: Path, chinese: bool = False) -> None:
        self.chinese = chinese
        texts = {name: text.split(" // ") for file in files for name, text in sections(file).items()}
        self._parts, self.answers, words = (_values(texts.pop(name)) for name in ("parts", "answers", "words"))
        self._verbs = tuple(self._parts.pop("verbs").split())
        self.words = {name: text.split("; ") if ";" in text else text.split() for name, text in words.items()}
        self._held_out, self._said = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
        self._train: dict[str, list[tuple[str, str]]] = defaultdict(list)  # frames and what stands in them
        self.values: dict[str, dict[str, str]] = defaultdict(dict)
        for name in texts:
            for mark, text in _marked(texts, name):
                if mark == "value":
                    self.values[name] |= _values([text])
                elif mark in ("!", "="):
                    (self._held_out if mark == "!" else self._said)[name].append(self._filled(text))
                else:
                    self._train[name].append((mark.rstrip(":"), self._filled(text)))

    def _filled(self, text: str) -> str:
        """The text with its <parts>."""
        if text.count("[") != text.count("]"):
            raise ValueError(f"phrasing {text!r}: unbalanced brackets")
        return re.sub(r"<(\w+)>", lambda part: self._filled(self._parts[part[1]]), text)

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

    def _template(self, task: str, rng: np.random.Generator, look: bool) -> str:
        own, text = choose(rng, self._train[task])
        frame, text = own, expand(text, rng).strip()
        if not own and rng.random() < 0.3 and not task.startswith(_UNFRAMED) and not _FRAMED.search(text):
            if text.endswith(("?", "？")):
                frame = "look" if look and rng.random() < 0.3 else "question"
            elif text.removeprefix("请").lower().startswith(self._verbs) and ": " not in text:
                frame, text = "request", text.removeprefix("请")
        if not frame:
            return text if rng.random() < 0.3 else capital(text)
        before, _, after = expand(choose(rng, self._train[frame])[1], rng).partition("...")
        text = text.rstrip("?.。？") if after else text
        framed = before + (uncapital(text) if before else text) + after
        return capital(framed) if own else framed

    def say(self, answer: str, **slots: Any) -> str:
        """The answer template `answer`, filled, with a capital letter at its start."""
        return capital(self.answers[answer].format(**slots))

    def said(self, task: str, rng: np.random.Generator, **slots: Any) -> str:
        """One of the answers that a section gives itself, filled."""
        return expand(choose(rng, self._said[task]), rng).format(**slots)


def capital(text: str) -> str:
    """For the beginning of a sentence."""
    return text[:1].upper() + text[1:]


def uncapital(text: str) -> str:
    """For the middle of a sentence."""
    return text if _KEEP_CAPITAL.match(text) else text[:1].lower() + text[1:]


def as_typed(rng: np.random.Generator, question: str) -> str:
    """The question as people type: at times in lower case, with no or another mark at its end."""
    case, mark = rng.random(), rng.random()
    if case < 0.35:
        question = question.lower() if case < 0.23 else uncapital(question)
    if mark < 0.2 and (words := question.rstrip("?.。？!！")):
        question = words + ("" if mark < 0.16 else choose(rng, ("??", " ?", "!", "...")))
    return question


ENGLISH = Phrases(FOLDER / "phrases.en.txt", FOLDER / "facts.txt")
CHINESE = Phrases(FOLDER / "phrases.zh.txt", chinese=True)
BOTH = (ENGLISH, ENGLISH, ENGLISH, CHINESE, CHINESE)  # in the proportion of the training data
WORDS = {name: text.split() for name, text in sections(FOLDER / "words.txt").items()}
