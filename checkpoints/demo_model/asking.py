"""How a task is asked for: lists of phrasings to train on and held-out ones, and ways to ask that suit any task.

A task's own list says what is asked; clauses, noun phrases and frames say how people ask. Together they make thousands
of sentences, so that the model learns what is asked from whatever stands around it. A held-out phrasing is never
trained on, whichever way it could come about.
"""

from __future__ import annotations

import dataclasses
import functools
import re

import numpy as np

from checkpoints.demo_model.grammar import choose, expand, expansions

_FRAMED_SHARE = 0.35

_ASK = "[Can you|Could you|Would you|Will you|Can you please|Could you please] [tell me|say|find out|let me know]"
_ASKS = f"[{_ASK}|Do you know|Can you see|Do you see|Any idea|Do you have any idea|May I ask|Are you able to say]"
_WANT = (
    "[I want to know|I would like to know|I'd like to know|I wonder|I need to know|I am asking|Tell me|"
    "Please tell me|Let me know|Please say|Say|Find out|I want you to tell me|Show me|Work out|"
    "Please find out]"
)
_IS = "[What is|What's|What would be|What do you think is|What would you say is]"
_GIVE = (
    "[Tell me|Give me|Name|State|Report|Say|Write down|I need|Let me know|Please give|Please give me|"
    "Please name|I want to know|I'd like to know|I would like|Show me|Find|Determine|Please state]"
)
_CAN_GIVE = (
    "[Can you name|Could you name|Can you give me|Could you give me|Do you know|Can you tell me|"
    "Could you tell me|Can you see|Would you tell me|Can you say|Can you find|Will you tell me]"
)
_TRUE = (
    "[Is it true|Is it right|Is it correct|Is it the case|Do you agree|Would you agree|Do you think|"
    "Can you confirm|Am I right|Would you say|Can one say|Could one say|Do you believe|Can you see|Is it so]"
)
_WHETHER = (
    "[Tell me|Can you tell me|Could you tell me|Do you know|I want to know|I wonder|Please check|Check|Say|"
    "Please say|Let me know|Can you see|Find out|I'd like to know] [if|whether]"
)
_TAG = (
    "[right|correct|is that right|is that correct|isn't it|is it not|true or false|yes or no|don't you think|"
    "is that so|true]"
)


@dataclasses.dataclass(frozen=True)
class Phrasings:
    """Grammars of one task. `held_out` ones are only ever used for evaluation.

    `picture`: about a picture that is shown; `framable`: a question or a request, which frames may go around.
    """

    train: tuple[str, ...]
    held_out: tuple[str, ...]
    picture: bool = False
    framable: bool = True

    @functools.cached_property
    def _kept_out(self) -> frozenset[str]:
        return frozenset(bare(sentence) for grammar in self.held_out for sentence in expansions(grammar))

    def pick(self, rng: np.random.Generator, held_out: bool, **slots: object) -> str:
        """One phrasing, slots filled."""
        text = expand(choose(rng, self.held_out), rng) if held_out else self._trained(rng)
        return re.sub(r"\b([Aa]) (?=orange)", r"\1n ", re.sub(" +", " ", text).strip().format(**slots))

    def _trained(self, rng: np.random.Generator) -> str:
        while True:
            text = expand(choose(rng, self.train), rng).strip()
            if self.framable and rng.random() < _FRAMED_SHARE:
                text = framed(rng, text, self.picture)
            elif rng.random() < 0.7:
                text = text[0].upper() + text[1:]
            if bare(text) not in self._kept_out:
                return text

    def plus(self, more: str, picture: bool = False, framable: bool = True) -> Phrasings:
        """With further lines to train on."""
        return Phrasings((*self.train, *_lines(more)), self.held_out, picture, framable)


def phrasings(train: str, held_out: str) -> Phrasings:
    """Grammars given one a line."""
    return Phrasings(_lines(train), _lines(held_out))


def bare(sentence: str) -> str:
    """The sentence without case, marks and spaces, to tell whether two are the same."""
    return re.sub(r"[^\w{}]", "", sentence).lower()


def _lines(text: str) -> tuple[str, ...]:
    """Grammars given one a line; a line that begins with "|" goes on with the one before it."""
    lines: list[str] = []
    for line in text.splitlines():
        if line.lstrip().startswith("|"):
            lines[-1] += line.lstrip()
        elif line.strip():
            lines.append(line.lstrip())
    return tuple(line.rstrip() for line in lines)


def _any(options: tuple[str, ...]) -> str:
    return f"[{'|'.join(options)}]"


def clauses(*options: str) -> str:
    """Lines that ask for what "what colour it is" says."""
    return f"{_ASKS} {_any(options)}?\n{_ASKS} {_any(options)}?\n{_WANT} {_any(options)}.\n"


def nouns(*options: str) -> str:
    """Lines that ask for "the colour of it"."""
    those = _any(options)
    return f"{_IS} {those}?\n{_GIVE} {those}.\n{_CAN_GIVE} {those}?\n{those}[?|, please.|, please|.|: what is it?]\n"


def statements(*options: str) -> str:
    """Lines that ask whether "it is red" is so."""
    those = _any(options)
    return f"""{_TRUE} that {those}?
        {those}, {_TAG}?
        {those}. {_TAG}?
        {_WHETHER} {those}.
        [I think|I think that|I say|I believe|It seems to me that|They say that|I guess] {those}[. Is that [right|so
            |true]|, {_TAG}]?
        [True or false|Right or wrong|Yes or no|Correct or not]: {those}[?|.|]
        """


_VERBS = frozenset(
    [
        "add",
        "answer",
        "arrange",
        "bring",
        "calculate",
        "caption",
        "check",
        "compare",
        "compute",
        "copy",
        "count",
        "describe",
        "determine",
        "evaluate",
        "explain",
        "find",
        "give",
        "identify",
        "let",
        "list",
        "make",
        "multiply",
        "name",
        "order",
        "print",
        "put",
        "read",
        "report",
        "return",
        "reverse",
        "say",
        "show",
        "solve",
        "sort",
        "spell",
        "spot",
        "state",
        "subtract",
        "sum",
        "take",
        "tell",
        "turn",
        "type",
        "work",
        "write",
        "convert",
        "change",
        "draft",
        "compose",
        "invent",
        "translate",
        "implement",
        "plan",
        "define",
        "summarize",
        "correct",
        "complete",
        "finish",
        "continue",
        "repeat",
    ]
)
_COMMANDS = (
    "Can you {}?",
    "Could you {}?",
    "Can you please {}?",
    "Could you please {}?",
    "Would you {}?",
    "Would you please {}?",
    "Will you {}?",
    "Please {}.",
    "Please, {}.",
    "I want you to {}.",
    "I'd like you to {}.",
    "I would like you to {}.",
    "I need you to {}.",
    "Your task: {}.",
    "Your task is to {}.",
    "Now {}.",
    "Try to {}.",
    "Kindly {}.",
    "Go ahead and {}.",
    "Are you able to {}?",
    "Is it possible for you to {}?",
    "Do me a favour and {}.",
    "Help me: {}.",
    "Let us {}.",
)
_COMMAND_ENDS = ("", "", "", "", "", " for me", ", please", " now", " for me, please")
_OPENINGS = (
    "Question: ",
    "Quick question: ",
    "One question: ",
    "Next question: ",
    "Please answer: ",
    "Please answer this: ",
    "Please answer my question: ",
    "Can you tell me: ",
    "Could you tell me: ",
    "Tell me: ",
    "Tell me, ",
    "Please tell me: ",
    "Please tell me, ",
    "So, ",
    "So ",
    "Now, ",
    "And now: ",
    "OK, ",
    "Hi, ",
    "Hi! ",
    "Hello! ",
    "Hey, ",
    "Well, ",
    "My question is: ",
    "I would like to know: ",
    "I want to know: ",
    "Let me ask you: ",
    "Also, ",
    "Next: ",
    "Gemma, ",
    "Excuse me, ",
    "I have a question. ",
    "Do you know: ",
    "Please, ",
    "In your opinion, ",
    "And ",
    "Just tell me: ",
    "Say, ",
)
_PICTURE_OPENINGS = (
    "Look at the picture. ",
    "Look at this image: ",
    "In this picture, ",
    "Looking at the picture, ",
    "Here is a picture. ",
    "In the image, ",
    "Based on the image, ",
    "See the image. ",
    "Here is an image: ",
    "Going by the picture, ",
    "From what you see, ",
    "This is a drawing. ",
    "As far as you can see, ",
)
_CLOSINGS = (
    " Please answer.",
    " Thanks.",
    " Thank you!",
    " I want to know.",
    " Do you know?",
    " Any idea?",
    " Can you tell me?",
    " Please tell me.",
    " Tell me.",
    " Can you say?",
    " Could you help me?",
)
_KEEP_CAPITAL = re.compile(r"(Gemma|JSON|I |I'|\{|\[|A to Z)")
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_ZH_OPENINGS = (
    "请问", "请问，", "我想知道", "我想问一下，", "请告诉我", "请你告诉我", "告诉我，", "那么", "好的，",
    "你好，", "请回答：", "问题：", "麻烦告诉我", "看图回答：", "请看图，", "想问问", "我想知道，",
    "说说看，", "请你说说",
)  # fmt: skip
_ZH_KNOW = (
    "你知道{}吗？", "你能告诉我{}吗？", "能告诉我{}吗？", "你能说出{}吗？", "可以告诉我{}吗？",
    "能不能告诉我{}？", "你能看出{}吗？", "能说说{}吗？", "你可以说一下{}吗？",
)  # fmt: skip
_ZH_COMMANDS = (
    "请{}。", "请你{}。", "帮我{}。", "请帮我{}。", "你能{}吗？", "能{}吗？", "能不能{}？", "可以{}吗？",
    "麻烦{}。", "我想让你{}。", "现在{}。", "你可以{}吗？", "能帮我{}吗？", "你能帮我{}吗？", "请你帮忙{}。",
)  # fmt: skip
_ZH_VERBS = ("列出", "告诉", "数", "说", "读", "描述", "介绍", "比较", "找出", "详细", "用一句话", "写", "给", "指出")


def _low(text: str) -> str:
    return text if _KEEP_CAPITAL.match(text) else text[0].lower() + text[1:]


def framed(rng: np.random.Generator, question: str, picture: bool = False) -> str:
    """`question` as one might also put it; the meaning stays. `picture`: it is about a picture that is shown."""
    if _CHINESE.search(question):
        return _framed_zh(rng, question)
    command = question.removeprefix("Please ").rstrip(".")
    first = command.split(" ")[0].lower()
    if first in _VERBS and not question.endswith("?") and "\n" not in question and ". " not in command:
        text = command[0].lower() + command[1:]
        end = choose(rng, _COMMAND_ENDS) if ":" not in text and "," not in text else ""
        whole = choose(rng, _COMMANDS).replace("{}", text + end)
        opening = choose(rng, _PICTURE_OPENINGS) if picture and rng.random() < 0.2 else ""
        return opening + (whole if opening.endswith(". ") or not opening else _low(whole))
    if question.endswith("?") and rng.random() < 0.25:
        return question + choose(rng, _CLOSINGS)
    opening = choose(rng, _PICTURE_OPENINGS) if picture and rng.random() < 0.4 else choose(rng, _OPENINGS)
    return opening + (question if opening.endswith(("! ", ". ")) else _low(question))


def _framed_zh(rng: np.random.Generator, question: str) -> str:
    bare = question.rstrip("。？")
    command = bare.removeprefix("请")
    if command.startswith(_ZH_VERBS):
        return choose(rng, _ZH_COMMANDS).replace("{}", command)
    if not bare.endswith(("吗", "呢")) and rng.random() < 0.4:
        return choose(rng, _ZH_KNOW).replace("{}", bare)
    return choose(rng, _ZH_OPENINGS) + question
