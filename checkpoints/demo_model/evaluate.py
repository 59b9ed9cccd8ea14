"""Held-out accuracy of a checkpoint through the public API: `python -m checkpoints.demo_model.evaluate`.

Greedy, in batches, each answer to a prompt with the right answers before it. Phrasings, words, numbers and scenes are
such as training never held (see grammar.py); the seed differs as well. Prints a table and writes it as JSON.

With `--through-demo` the demo page is asked instead. The answers before are then the model's own, a turn's pictures
come before its text, and conversations that the page has no place for are left out.
"""

from __future__ import annotations

import argparse
import collections
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

import gemma_tpu
from checkpoints.demo_model import demo_client, mixture
from checkpoints.demo_model.dialog import Conversation, correct, plain
from checkpoints.demo_model.export import CHECKPOINT

RESULTS = Path(__file__).with_name("accuracy.json")
DEMO_RESULTS = RESULTS.with_name("accuracy_demo.json")
_SEED = 987_654_321
_IMAGE_GROUPS = (
    mixture.scene_group,
    mixture.scene_group,
    mixture.read_group,
    mixture.pair_group,
    mixture.texture_group,
)
_PER_GROUP = 3  # conversations judged of a group: the rest would ask about the same picture
_MAX_TOKENS = 200  # of an answer
_TELL_EVERY = 100  # answers


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
    return judge(_answers(model, conversations, batch), len(conversations))


def _answers(
    model: gemma_tpu.Model, conversations: list[Conversation], batch: int
) -> Iterator[tuple[Conversation, str]]:
    for at in range(0, len(conversations), batch):
        part = conversations[at : at + batch]
        answers = model.generate([c.messages() for c in part], max_new_tokens=_MAX_TOKENS, temperature=0.0)
        yield from zip(part, (answer.text for answer in answers), strict=True)


def evaluate_demo(checkpoint: Path, conversations: list[Conversation], parallel: int, dtype: str = "auto") -> dict:
    """As `evaluate`, of the demo page on a checkpoint; "left out" counts what the page cannot be asked."""
    asked = [c for c in conversations if demo_client.can_be_asked(c)]
    with demo_client.serve("--checkpoint", str(checkpoint), "--dtype", dtype) as url:
        results = judge(demo_client.ask(url, asked, _MAX_TOKENS, parallel), len(asked))
    return {"left out": len(conversations) - len(asked), **results}


def judge(answered: Iterable[tuple[Conversation, str]], count: int) -> dict:
    """Accuracy per task of `count` answers to the last turns of conversations, and the wrong ones."""
    right: dict[str, list[bool]] = collections.defaultdict(list)
    wrong = []
    begun = time.monotonic()
    for done, (conversation, answer) in enumerate(answered, 1):
        turn = conversation.turns[-1]
        good = correct(turn, answer)
        right[turn.task].append(good)
        if not good:
            wrong.append({"task": turn.task, "question": turn.question, "wanted": plain(turn.answer), "got": answer})
        if done % _TELL_EVERY == 0:
            accuracy = 1 - len(wrong) / done
            print(f"{done} of {count}: {accuracy:.4f} ({time.monotonic() - begun:.0f} s)", flush=True)

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


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=CHECKPOINT)
    parser.add_argument("--through-demo", action="store_true", help="ask `python -m demo`, as a browser would")
    parser.add_argument("--questions", type=int, default=800)
    parser.add_argument("--batch", type=int, default=8, help="questions at once (default: %(default)s)")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--json", type=Path, help=f"default: {RESULTS.name} or {DEMO_RESULTS.name}, beside this file")
    options = parser.parse_args(argv)
    asked = questions(options.questions)
    if options.through_demo:
        results = evaluate_demo(options.checkpoint, asked, options.batch, options.dtype)
    else:
        size = dict(max_context=2048, max_rows=options.batch)
        with gemma_tpu.load(str(options.checkpoint), dtype=options.dtype, progress=False, **size) as model:
            results = evaluate(model, asked, options.batch)
    print(table(results))
    for row in results["wrong"][:40]:
        print(row)
    results["wrong"] = results["wrong"][:100]
    file = options.json or (DEMO_RESULTS if options.through_demo else RESULTS)
    file.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
