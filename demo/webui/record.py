"""python -m demo.webui.record: records runs of the shipped checkpoint with their timing, and builds the page.

A recording is a tree of runs: each example is a root, and `next` holds its follow-ups, asked in every order. A run has
the `question`, the `pictures` in its message (files of demo/examples), its `pieces` as [seconds since the question,
tokens so far, text], its `tokens`, usage, timings and finish reason.
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
from demo.checkpoints import Checkpoints
from demo.facts import Facts
from demo.settings import sampling_params
from demo.tab import EXAMPLES, examples
from demo.texts import LANGUAGES
from demo.webui.build import RECORDING, write_page
from demo.webui.chat import CHAT_RECORDING, example_pictures
from demo.webui.record_chat import record_chat, trimmed
from demo.webui.settings import TABS, defaults
from gemma_tpu import Loader

if TYPE_CHECKING:
    from gemma_tpu import Model

CHECKPOINT = "checkpoints/gemma3-demo"
_POLL_INTERVAL = 0.2  # seconds between reads of the loading status


@dataclasses.dataclass(frozen=True)
class Question:
    """A question to record, its pictures (files in EXAMPLES), and its follow-ups."""

    text: str
    pictures: tuple[str, ...]
    follow_ups: tuple[str, ...]


def main() -> int:
    """Run it in the repository, on an idle machine, because the recording includes times."""
    if not Path(CHECKPOINT).is_dir():
        print(f"record: no {CHECKPOINT} here: run this in the repository", file=sys.stderr)
        return 1
    checkpoints = Checkpoints([CHECKPOINT], _load)
    loader = checkpoints.loader
    loading = list(_watch(loader))
    if loader.model is None:
        print(f"record: {loader.status.error}", file=sys.stderr)
        return 1
    settings = {**defaults(), "temperature": 0.0}  # deterministic
    recording = {
        "checkpoint": CHECKPOINT,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "facts": dataclasses.asdict(Facts.of(loader.model)),
        "loading": loading,
        "settings": settings,
        "runs": {tab: [record(loader.model, q, sampling_params(**settings)) for q in questions(tab)] for tab in TABS},
    }
    chat = trimmed(record_chat(checkpoints), example_pictures())
    loader.close()
    RECORDING.write_text(json.dumps(recording, ensure_ascii=False, indent=1) + "\n")
    CHAT_RECORDING.write_text(json.dumps(chat, ensure_ascii=False, indent=1) + "\n")
    print(f"{RECORDING}\n{write_page()}")
    return 0


def questions(tab: str) -> list[Question]:
    """The questions of tab "image" or "text"; those equal in both languages occur once."""
    found: dict[tuple[str, tuple[str, ...]], dict[str, None]] = {}
    for example in examples(tab):
        for lang in LANGUAGES:
            follow_ups = found.setdefault((example[lang], tuple(example.get("pictures", ()))), {})
            follow_ups.update(dict.fromkeys(example.get("then", {}).get(lang, ())))
    return [Question(text, pictures, tuple(follow_ups)) for (text, pictures), follow_ups in found.items()]


def record(
    model: Model, question: Question, params: dict[str, Any], history: Sequence[Exchange] = ()
) -> dict[str, Any]:
    """The run of `question` after `history`, with its follow-ups."""
    paths = tuple(str(EXAMPLES / file) for file in question.pictures)
    start, pieces = time.monotonic(), []
    stream, sent, _ = submit(model, history, question.text, paths, params)
    for piece in stream:
        pieces.append((round(time.monotonic() - start, 4), len(stream.completion.tokens), piece))
    completion = stream.completion
    history = [*history, Exchange(question.text, sent, completion.text)]
    rest = question.follow_ups
    return {
        "question": question.text,
        "pictures": [Path(path).name for path in sent],
        "pieces": pieces,
        "tokens": completion.tokens,
        "finish_reason": completion.finish_reason,
        "usage": dataclasses.asdict(completion.usage),
        "timings": dataclasses.asdict(completion.timings),
        "next": [
            record(model, Question(text, question.pictures, tuple(x for x in rest if x != text)), params, history)
            for text in rest
        ],
    }


def _load(checkpoint: str, progress: Callable[[int, int], None]) -> Model:
    import gemma_tpu

    return gemma_tpu.load(checkpoint, max_rows=4, progress=progress)  # as `python -m demo` does


def _watch(loader: Loader) -> Iterator[tuple[float, dict[str, Any]]]:
    """(seconds, `gemma_tpu.LoadStatus`) at each change, until loading has ended."""
    start, last = time.monotonic(), None
    loader.start()
    while last is None or last.busy:
        if loader.status != last:
            last = loader.status
            yield round(time.monotonic() - start, 4), dataclasses.asdict(last)
        time.sleep(_POLL_INTERVAL)
    loader.wait()


if __name__ == "__main__":
    sys.exit(main())
