"""Held-out accuracy of a checkpoint through the public API: `python -m checkpoints.demo_model.evaluate`.

Greedy, in batches, each answer to a prompt with the right answers before it. Phrasings, words, numbers and scenes are
such as training never held (see grammar.py); the seed differs as well. Prints a table and writes it as JSON.
"""

from __future__ import annotations

import argparse
import collections
import json
import time
from pathlib import Path

import numpy as np

import gemma_tpu
from checkpoints.demo_model import mixture
from checkpoints.demo_model.dialog import Conversation, correct, plain
from checkpoints.demo_model.export import CHECKPOINT

RESULTS = Path(__file__).with_name("accuracy.json")
_SEED = 987_654_321
_IMAGE_GROUPS = (
    mixture.scene_group,
    mixture.scene_group,
    mixture.read_group,
    mixture.pair_group,
    mixture.texture_group,
)
_PER_GROUP = 3  # conversations judged of a group: the rest would ask about the same picture


def questions(count: int, seed: int = _SEED) -> list[Conversation]:
    """Held-out conversations, half about images; the last turn of each is judged."""
    rng = np.random.default_rng(seed)
    picked: list[Conversation] = []
    images = 0
    while len(picked) < count:
        if images * 2 <= len(picked):
            kind = 4 if rng.random() < 0.08 else int(rng.random() * 4)
            group = _IMAGE_GROUPS[kind](rng, True)
        else:
            group = mixture.text_group(rng, True)
        for i in rng.permutation(len(group.conversations))[:_PER_GROUP]:
            conversation = group.conversations[int(i)]
            end = 1 + int(rng.integers(len(conversation.turns)))  # any turn of it, with those before as history
            while not conversation.turns[end - 1].task.startswith("image") and group.images:
                end -= 1
            picked.append(Conversation(conversation.turns[:end], conversation.images, conversation.system))
            images += bool(group.images)
    return [_only_shown(conversation) for conversation in picked[:count]]


def _only_shown(conversation: Conversation) -> Conversation:
    shown = 1 + max((i for turn in conversation.turns for i in turn.images), default=-1)
    return Conversation(conversation.turns, conversation.images[:shown], conversation.system)


def evaluate(model: gemma_tpu.Model, conversations: list[Conversation], batch: int) -> dict:
    """Accuracy per task, and the wrong answers. Prints how far it is now and then."""
    right: dict[str, list[bool]] = collections.defaultdict(list)
    wrong = []
    begun = time.monotonic()
    for at in range(0, len(conversations), batch):
        part = conversations[at : at + batch]
        answers = model.generate([c.messages() for c in part], max_new_tokens=200, temperature=0.0)
        for conversation, answer in zip(part, answers, strict=True):
            turn = conversation.turns[-1]
            good = correct(turn, answer.text)
            right[turn.task].append(good)
            if not good:
                wrong.append(
                    {"task": turn.task, "question": turn.question, "wanted": plain(turn.answer), "got": answer.text}
                )
        if at // batch % 20 == 0:
            hits = [hit for values in right.values() for hit in values]
            print(
                f"{len(hits)} of {len(conversations)}: {np.mean(hits):.4f} ({time.monotonic() - begun:.0f} s)",
                flush=True,
            )

    def total(prefix: str) -> dict:
        hits = [hit for task, values in right.items() if task.startswith(prefix) for hit in values]
        return {"accuracy": float(np.mean(hits)), "questions": len(hits)}

    tasks = {task: {"accuracy": float(np.mean(v)), "questions": len(v)} for task, v in sorted(right.items())}
    return {"all image tasks": total("image"), "all text tasks": total("text"), "tasks": tasks, "wrong": wrong}


def table(results: dict) -> str:
    """The results as Markdown."""
    rows = [("**all image tasks**", results["all image tasks"])]
    rows += [(task, row) for task, row in results["tasks"].items() if task.startswith("image")]
    rows += [("**all text tasks**", results["all text tasks"])]
    rows += [(task, row) for task, row in results["tasks"].items() if task.startswith("text")]
    lines = ["| task | accuracy | questions |", "|---|---|---|"]
    return "\n".join(lines + [f"| {name} | {100 * row['accuracy']:.1f}% | {row['questions']} |" for name, row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=CHECKPOINT)
    parser.add_argument("--questions", type=int, default=800)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    size = dict(max_context=2048, max_rows=options.batch)
    with gemma_tpu.load(str(options.checkpoint), dtype=options.dtype, progress=False, **size) as model:
        results = evaluate(model, questions(options.questions), options.batch)
    print(table(results))
    for row in results["wrong"][:40]:
        print(row)
    results["wrong"] = results["wrong"][:100]
    options.json.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
