"""Scores a checkpoint through the public API: `python -m checkpoints.demo_model.evaluate --set generated|by_hand`.

generated: phrasings, words, numbers and scenes that training never held; each last turn is asked after the right
answers before it, and is right if it is right to the letter (JSON: the same value; out of scope: in any words).
by_hand: by_hand.txt, in pictures of other styles, follow-ups after the model's own answers. Greedy. Prints counts and
what was answered wrongly; `--save` keeps the counts in results.json.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import gemma_tpu
from checkpoints.demo_model import CHECKPOINT, by_hand, data
from checkpoints.demo_model.dialog import Conversation, Turn, plain
from checkpoints.demo_model.phrases import choose

RESULTS = Path(__file__).with_name("results.json")
_SETS = ("image", "text", "by hand")  # each has a bar in README.md
_IMAGE_GROUPS = [data.scene_group] * 9 + [data.read_group] * 3 + [data.pair_group] * 3 + [data.texture_group]
_MAX_TOKENS = 200


class Judged(NamedTuple):
    task: str
    question: str
    wanted: str
    got: str
    right: bool


def generated(count: int = 1200, seed: int = 987_654_321) -> list[Conversation]:
    """Held-out conversations, half about images; the last turn of each is judged."""
    rng = np.random.default_rng(seed)
    picked, images = list[Conversation](), 0
    while len(picked) < count:
        group = (data.text_group if images * 2 > len(picked) else choose(rng, _IMAGE_GROUPS))(rng, True)
        for i in rng.permutation(len(group))[:3]:  # more would ask about the same picture
            conversation = group[int(i)]
            end = 1 + int(rng.integers(len(conversation.turns)))  # any turn of it, with those before as history
            while end > 1 and conversation.images and not conversation.turns[end - 1].task.startswith("image"):
                end -= 1
            picked.append(dataclasses.replace(conversation, turns=conversation.turns[:end]))
            images += bool(conversation.images)
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
            yield Judged(turn.task, turn.question, plain(turn.answer), answer.text, correct(turn, answer.text))


def judge_by_hand(model: gemma_tpu.Model, asked: list[by_hand.Question], batch: int) -> Iterable[Judged]:
    """All first questions, then those that follow on the model's own answers to them."""
    told, depth = dict[int, list[dict[str, Any]]](), list[int]()
    for question in asked:
        depth.append(depth[-1] + 1 if question.follows else 0)
    for layer in range(max(depth) + 1):
        turns = [i for i, at in enumerate(depth) if at == layer]
        for part in (turns[at : at + batch] for at in range(0, len(turns), batch)):
            for i in part:
                shown = [by_hand.draw(asked[i].picture)] if asked[i].picture and not layer else []
                content = [{"type": "image", "image": image} for image in shown]
                content.append({"type": "text", "text": asked[i].text})
                told[i] = [*(told[i - 1] if layer else []), {"role": "user", "content": content}]
            answers = model.generate([told[i] for i in part], max_new_tokens=_MAX_TOKENS, temperature=0.0)
            for i, text in zip(part, (answer.text for answer in answers), strict=True):
                told[i].append({"role": "assistant", "content": text})
                yield Judged(asked[i].task, asked[i].text, asked[i].expected, text, asked[i].right(text))


def summary(judged: Iterable[Judged]) -> dict[str, Any]:
    """Right answers and questions of each set and of each task, and what was answered wrongly."""
    counts: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    wrong = []
    for one in judged:
        for name in (next(name for name in _SETS if one.task.startswith(name)), one.task):
            counts[name][0] += one.right
            counts[name][1] += 1
        wrong += [] if one.right else [list(one[:4])]
    return {"counts": dict(sorted(counts.items())), "wrong": wrong}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sets = {"generated": (judge_generated, generated), "by_hand": (judge_by_hand, by_hand.questions)}
    parser.add_argument("checkpoint", type=Path, nargs="?", default=CHECKPOINT)
    parser.add_argument("--set", choices=sets, default="generated")
    parser.add_argument("--quantize", choices=("int8", "int4"), help="keep the weights as such integers")
    parser.add_argument("--kv-cache-dtype", choices=("auto", "int8"), default="auto", help="of keys and values")
    parser.add_argument("--batch", type=int, default=8, help="questions at once (default: %(default)s)")
    parser.add_argument("--save", action="store_true", help=f"keep the counts in {RESULTS.name}, beside this file")
    options = parser.parse_args(argv)
    how = {"max_context": 2048, "max_rows": options.batch, "quantize": options.quantize, "progress": False}
    how["kv_cache_dtype"] = options.kv_cache_dtype
    with gemma_tpu.load(str(options.checkpoint), **how) as model:
        judge, asked = sets[options.set]
        results = summary(judge(model, asked(), options.batch))
    print(*(f"{name}: {a} of {b}, {a / b:.1%}" for name, (a, b) in results["counts"].items()), sep="\n")
    print(*(" | ".join(wrong) for wrong in results["wrong"]), sep="\n")
    if options.save:
        saved = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        saved[options.set] = results["counts"]
        lines = [f"{json.dumps(name)}: {json.dumps(counts)}" for name, counts in sorted(saved.items())]
        RESULTS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
