"""python -m demo.webui.record: runs the checkpoint that ships, keeps what it does and when, and builds the page of it.

A recording is a tree of runs. Each example is a root, and its follow-ups have been asked after it in every order: they
are the runs in its `next`. A run holds the `question`, the `pictures` shown with it (files of demo/examples), its
`pieces` as [seconds since the question, tokens so far, text], its `tokens`, and usage, timings and finish reason.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo.chat import Exchange, submit
from demo.facts import Facts
from demo.settings import options
from demo.state import Loader
from demo.tab import EXAMPLES, examples
from demo.texts import LANGUAGES
from demo.webui.build import RECORDING, write_page
from demo.webui.settings import TABS, defaults

if TYPE_CHECKING:
    from gemma_tpu import Model

CHECKPOINT = "checkpoints/gemma3-demo"
_LOOK_EVERY = 0.2  # seconds between two looks at how far loading is


@dataclasses.dataclass(frozen=True)
class Question:
    """What is recorded: a question about pictures (files in EXAMPLES), and those that are asked after it."""

    text: str
    pictures: tuple[str, ...]
    follow_ups: tuple[str, ...]


def main() -> int:
    """Run it in the repository, on a machine that does nothing else: the times are part of the recording."""
    if not Path(CHECKPOINT).is_dir():
        print(f"record: no {CHECKPOINT} here: run this in the repository", file=sys.stderr)
        return 1
    loader = Loader(CHECKPOINT, _load)
    loading = list(_watch(loader))
    if loader.model is None:
        print(f"record: {loader.status.error}", file=sys.stderr)
        return 1
    chosen = {**defaults(), "temperature": 0.0}  # so that it says the same every time
    recording = {
        "checkpoint": CHECKPOINT,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "facts": dataclasses.asdict(Facts.of(loader.model)),
        "loading": loading,
        "settings": chosen,
        "runs": {tab: [record(loader.model, one, options(**chosen)) for one in questions(tab)] for tab in TABS},
    }
    loader.close()
    RECORDING.write_text(json.dumps(recording, ensure_ascii=False, indent=1) + "\n")
    print(f"{RECORDING}\n{write_page()}")
    return 0


def questions(tab: str) -> list[Question]:
    """Of tab "image" or "text"; what is the same in both languages is there once."""
    found: dict[tuple[str, tuple[str, ...]], dict[str, None]] = {}
    for example in examples(tab):
        for lang in LANGUAGES:
            follow_ups = found.setdefault((example[lang], tuple(example.get("pictures", ()))), {})
            follow_ups.update(dict.fromkeys(example.get("then", {}).get(lang, ())))
    return [Question(text, pictures, tuple(follow_ups)) for (text, pictures), follow_ups in found.items()]


def record(model: Model, question: Question, chosen: dict[str, Any], told: Sequence[Exchange] = ()) -> dict[str, Any]:
    """The run of `question` with the options `chosen`, after what has been `told`."""
    paths = tuple(str(EXAMPLES / file) for file in question.pictures)
    began, pieces = time.monotonic(), []
    stream, shown, _ = submit(model, told, question.text, paths, chosen)
    for piece in stream:
        pieces.append((round(time.monotonic() - began, 4), len(stream.completion.tokens), piece))
    completion = stream.completion
    said = [*told, Exchange(question.text, shown, completion.text)]
    rest = question.follow_ups
    return {
        "question": question.text,
        "pictures": [Path(path).name for path in shown],
        "pieces": pieces,
        "tokens": completion.tokens,
        "finish_reason": completion.finish_reason,
        "usage": dataclasses.asdict(completion.usage),
        "timings": dataclasses.asdict(completion.timings),
        "next": [
            record(model, Question(one, question.pictures, tuple(x for x in rest if x != one)), chosen, said)
            for one in rest
        ],
    }


def _load(progress: Callable[[int, int], None]) -> Model:
    import gemma_tpu

    return gemma_tpu.load(CHECKPOINT, max_rows=4, progress=progress)  # as `python -m demo` does


def _watch(loader: Loader) -> Iterator[tuple[float, dict[str, Any]]]:
    """(seconds, `demo.state.Status`) whenever that has changed, to the end of loading."""
    began, last = time.monotonic(), None
    loader.start()
    while last is None or last.busy:
        if loader.status != last:
            last = loader.status
            yield round(time.monotonic() - began, 4), dataclasses.asdict(last)
        time.sleep(_LOOK_EVERY)
    loader.wait()


if __name__ == "__main__":
    sys.exit(main())
