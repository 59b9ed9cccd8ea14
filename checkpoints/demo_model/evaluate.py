"""Scores a checkpoint through the public API: `python -m checkpoints.demo_model.evaluate --set generated|by_hand`.

generated: phrasings, words, numbers and scenes that training never held; each last turn is asked after the right
answers before it, and is right if it is right to the letter (JSON: the same value; out of scope: in any words).
by_hand: by_hand.txt, in pictures of other styles, follow-ups after the model's own answers. Greedy. Prints a table;
`--save` keeps counts and wrong answers in results.json.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

import gemma_tpu
from checkpoints.demo_model import by_hand, data
from checkpoints.demo_model.dialog import Conversation, Turn, plain
from checkpoints.demo_model.export import CHECKPOINT

RESULTS = Path(__file__).with_name("results.json")
BARS = {"image": 0.95, "text": 0.97, "by hand": 0.85}
_SEED = 987_654_321
_IMAGE_GROUPS = (data.scene_group, data.scene_group, data.scene_group, data.read_group, data.pair_group)
_PER_GROUP = 3  # conversations judged of a group: the rest would ask about the same picture
_MAX_TOKENS = 200


@dataclasses.dataclass(frozen=True)
class Judged:
    task: str
    question: str
    wanted: str
    got: str
    right: bool


def generated(count: int, seed: int = _SEED) -> list[Conversation]:
    """Held-out conversations, half about images; the last turn of each is judged."""
    rng = np.random.default_rng(seed)
    picked: list[Conversation] = []
    images = 0
    while len(picked) < count:
        if images * 2 <= len(picked):
            make = data.texture_group if rng.random() < 0.06 else _IMAGE_GROUPS[int(rng.random() * len(_IMAGE_GROUPS))]
        else:
            make = data.text_group
        group = make(rng, True)
        for i in rng.permutation(len(group.conversations))[:_PER_GROUP]:
            conversation = group.conversations[int(i)]
            end = 1 + int(rng.integers(len(conversation.turns)))  # any turn of it, with those before as history
            while end > 1 and group.images and not conversation.turns[end - 1].task.startswith("image"):
                end -= 1
            turns = conversation.turns[:end]
            shown = 1 + max((i for turn in turns for i in turn.images), default=-1)
            picked.append(dataclasses.replace(conversation, turns=turns, images=conversation.images[:shown]))
            images += bool(group.images)
    return picked[:count]


def correct(turn: Turn, answer: str) -> bool:
    """Whether `answer` is right for `turn`, judged on its meaning where more than one wording is right."""
    if turn.check == "scope":
        low = answer.lower()
        return ("demo" in low and "real" in low and "checkpoint" in low) or ("演示" in low and "检查点" in low)
    if turn.check == "json":
        try:
            return json.loads(answer) == json.loads(plain(turn.answer))
        except json.JSONDecodeError:
            return False
    return re.sub(r"\s+", " ", answer).strip() == re.sub(r"\s+", " ", plain(turn.answer))


def judge_generated(model: gemma_tpu.Model, conversations: list[Conversation], batch: int) -> Iterable[Judged]:
    for at in range(0, len(conversations), batch):
        part = conversations[at : at + batch]
        answers = model.generate([c.messages() for c in part], max_new_tokens=_MAX_TOKENS, temperature=0.0)
        for conversation, answer in zip(part, answers, strict=True):
            turn = conversation.turns[-1]
            right = correct(turn, answer.text)
            yield Judged(turn.task, turn.question, plain(turn.answer), answer.text, right)


def judge_by_hand(model: gemma_tpu.Model, asked: list[by_hand.Question], batch: int) -> Iterable[Judged]:
    """First questions in batches, then those that follow, after the model's own answers."""
    starts = [i for i, question in enumerate(asked) if not question.follows]
    said: dict[int, list[dict[str, Any]]] = {}
    for depth in range(3):
        layer = [
            i + depth for i in starts if all(i + d < len(asked) and asked[i + d].follows for d in range(1, depth + 1))
        ]
        for at in range(0, len(layer), batch):
            part = layer[at : at + batch]
            for i in part:
                text: Any = asked[i].text
                if asked[i].picture and not depth:
                    text = [{"type": "image", "image": by_hand.draw(asked[i].picture)}, {"type": "text", "text": text}]
                said[i] = [*(said[i - 1] if depth else []), {"role": "user", "content": text}]
            answers = model.generate([said[i] for i in part], max_new_tokens=_MAX_TOKENS, temperature=0.0)
            for i, answer in zip(part, answers, strict=True):
                said[i] = [*said[i], {"role": "assistant", "content": answer.text}]
                style = asked[i].picture.split(" |")[0] or "text"
                task = f"by hand {style}{' zh' if asked[i].chinese else ''}"
                yield Judged(task, asked[i].text, asked[i].expected, answer.text, asked[i].right(answer.text))


def summary(judged: Iterable[Judged]) -> dict[str, Any]:
    """Right answers and questions of each bar and of each task, and what was answered wrongly."""
    counts: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    wrong = []
    for one in judged:
        for name in (next(bar for bar in BARS if one.task.startswith(bar)), one.task):
            counts[name][0] += one.right
            counts[name][1] += 1
        if not one.right:
            wrong.append([one.task, one.question, one.wanted, one.got])
    return {"counts": dict(sorted(counts.items())), "wrong": wrong}


def table(counts: dict[str, list[int]]) -> str:
    """The counts as Markdown."""
    lines = ["| task | right | of | accuracy |", "|---|---|---|---|"]
    for name, (right, total) in counts.items():
        bold = f"**all {name}**" if name in BARS else name
        lines.append(f"| {bold} | {right} | {total} | {100 * right / total:.1f}% |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=CHECKPOINT)
    parser.add_argument("--set", choices=("generated", "by_hand"), default="generated")
    parser.add_argument("--questions", type=int, default=1200, help="of the generated set")
    parser.add_argument("--batch", type=int, default=8, help="questions at once (default: %(default)s)")
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}, beside this file")
    options = parser.parse_args(argv)
    with gemma_tpu.load(str(options.checkpoint), max_context=2048, max_rows=options.batch, progress=False) as model:
        if options.set == "by_hand":
            results = summary(judge_by_hand(model, by_hand.questions(), options.batch))
        else:
            results = summary(judge_generated(model, generated(options.questions), options.batch))
    print(table(results["counts"]))
    for wrong in results["wrong"]:
        print(*wrong, sep=" | ")
    if options.save:
        saved = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        saved[options.set] = results
        lines = [f"{json.dumps(name)}: {_lines(part)}" for name, part in saved.items()]
        RESULTS.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return results


def _lines(results: dict[str, Any]) -> str:
    """JSON with one wrong answer a line."""
    wrong = ",\n  ".join(json.dumps(one, ensure_ascii=False) for one in results["wrong"])
    return f'{{"counts": {json.dumps(results["counts"])},\n "wrong": [\n  {wrong}]}}'


if __name__ == "__main__":
    main()
