"""The demo without a browser: conversations, texts, the command line, what it imports."""

from __future__ import annotations

import ast
import re
import string
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

import demo
from demo.chat import ActiveAnswers, Conversation, Turn, statistics
from demo.settings import DEFAULTS, checkpoint_defaults, params_of_controls, sampling_params
from demo.tab import EXAMPLES, examples
from demo.texts import TEXTS
from gemma_tpu import Completion, Loader, SamplingParams, Timings, Usage
from gemma_tpu.text import GEMMA3, SHIELD_GEMMA, TRANSLATE_GEMMA

FOLDER = Path(demo.__file__).parent
SOON = 60  # seconds for what must not hang
GREEDY = {"temperature": 0.0, "seed": 1}


class FakeStream:
    """Yields `pieces`, waiting for `close` where one is None."""

    def __init__(self, pieces: list[str | None], dropped_turns: int) -> None:
        self._pieces, self.dropped_turns, self.closed = pieces, dropped_turns, threading.Event()
        never = float("nan")
        tokens = [7] * len(pieces)
        timings = Timings(never, never, never, never, 0.0)
        ended = "stop" if not pieces or str(pieces[-1]).endswith(".") else "length"
        self.completion = Completion("", tokens, ended, Usage(9, 0, 0, len(tokens)), timings)

    def __iter__(self) -> Iterator[str]:
        for piece in self._pieces:
            if piece is not None:
                yield piece
            elif not self.closed.wait(SOON):
                raise TimeoutError("nobody closed the stream")

    def cancel(self) -> None:
        self.closed.set()


class FakeModel:
    """Keeps what it was told, of which it has room for `room` messages; answers with `pieces`."""

    def __init__(self) -> None:
        self.told: list[list[dict[str, Any]]] = []
        self.pieces: list[str | None] = ["Yes", "."]
        self.room = 99
        self.before: int | None = None
        self.format = GEMMA3

    def stream(self, messages: list[dict[str, Any]], **options: Any) -> FakeStream:
        if "'too long'" in str(messages[-1]["content"]):
            raise ValueError("the prompt has 9000 tokens")
        dropped = max(0, len(messages) - self.room + 1) // 2
        self.told.append(messages[2 * dropped :])
        self.asked = options
        return FakeStream(self.pieces, dropped)

    def waiting_before(self, stream: FakeStream) -> int | None:
        return self.before


def ask(conversation: Conversation, model: FakeModel, question: str, *pictures: str | None) -> Turn:
    turn = conversation.ask(model, question, pictures, GREEDY)  # type: ignore[arg-type]  # a stand-in that has what a conversation uses
    if None not in model.pieces:
        wait_for(lambda: turn.answer.done)
    return turn


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def outline(messages: list[dict[str, Any]]) -> list[str]:
    """Messages as short strings: "user: [a.png] What?"."""
    lines = []
    for message in messages:
        content = message["content"]
        parts = content if isinstance(content, list) else [{"text": content}]
        said = " ".join(part.get("text") or f"[{part['image']}]" for part in parts)
        lines.append(f"{message['role']}: {said}")
    return lines


def test_a_picture_is_shown_once_and_a_new_one_begins_anew() -> None:
    conversation, model = Conversation(), FakeModel()
    assert not conversation.has_picture([None, None])
    ask(conversation, model, "What?", "a.png", None)
    ask(conversation, model, "Where?", "a.png", None)
    assert outline(model.told[-1]) == ["user: [a.png] What?", "assistant: Yes.", "user: Where?"]
    ask(conversation, model, "Different?", "a.png", "b.png")
    assert outline(model.told[-1])[-1] == "user: [b.png] Different?"
    assert len(model.told[-1]) == 5
    ask(conversation, model, "What?", "c.png", "b.png")
    assert outline(model.told[-1]) == ["user: [c.png] [b.png] What?"]
    # Taken away, it can still be asked about.
    assert conversation.has_picture([None, None])
    ask(conversation, model, "Sure?", None, None)
    assert outline(model.told[-1]) == ["user: [c.png] [b.png] What?", "assistant: Yes.", "user: Sure?"]
    assert len(conversation.messages("en")) == 10  # all of it is on the screen
    conversation.clear()
    assert conversation.messages("en") == []
    ask(conversation, model, "What?", "c.png", None)
    assert outline(model.told[-1]) == ["user: [c.png] What?"]


@pytest.mark.parametrize(
    ("before", "after", "fresh", "shown"),
    [
        (("a.png", "b.png"), ("a.png", None), True, ["a.png"]),  # the second one is taken away
        (("a.png", "b.png"), ("a.png", "c.png"), True, ["a.png", "c.png"]),
        (("a.png", "b.png"), ("b.png", "a.png"), True, ["b.png", "a.png"]),
        (("a.png", "b.png"), (None, "b.png"), True, ["b.png"]),
        (("a.png", None), ("c.png", "a.png"), True, ["c.png", "a.png"]),
        (("a.png", None), ("a.png", "b.png"), False, ["b.png"]),
        (("a.png", "b.png"), ("a.png", "b.png"), False, []),
        (("a.png", "b.png"), (None, None), False, []),  # a question without pictures can only be about those
    ],
)
def test_a_picture_that_is_no_longer_laid_out_is_not_answered_from(
    before: tuple[str | None, ...], after: tuple[str | None, ...], fresh: bool, shown: list[str]
) -> None:
    conversation, model = Conversation(), FakeModel()
    assert not ask(conversation, model, "What?", *before).fresh
    turn = ask(conversation, model, "Now?", *after)
    assert (turn.fresh, list(turn.pictures)) == (fresh, shown)
    assert len(model.told[-1]) == (1 if fresh else 3)
    if fresh:  # and what comes after it is about the new ones
        assert not ask(conversation, model, "So?", *after).fresh
        assert len(model.told[-1]) == 3


def test_a_question_without_answer_leaves_no_trace_in_the_prompt() -> None:
    conversation, model = Conversation(), FakeModel()
    model.pieces = []
    ask(conversation, model, "Hm?", "a.png")
    assert conversation.messages("en")[-1]["content"][0]["text"] == "(no answer)"
    model.pieces = ["Yes."]
    ask(conversation, model, "What?", "a.png")
    assert outline(model.told[-1]) == ["user: [a.png] What?"]
    with pytest.raises(ValueError, match="9000 tokens"):
        ask(conversation, model, "too long", "b.png")
    ask(conversation, model, "Where?", "a.png")
    assert outline(model.told[-1])[0] == "user: [a.png] What?"


def test_what_there_is_no_room_for_is_forgotten_but_not_the_picture() -> None:
    conversation, model = Conversation(), FakeModel()
    model.room = 5
    for question in ("1", "2", "3"):
        assert ask(conversation, model, question, "a.png", "b.png").answer.forgotten == 0
    turn = ask(conversation, model, "4", "a.png", "b.png")
    kept = ["user: 3", "assistant: Yes.", "user: [a.png] [b.png] 4"]
    assert outline(model.told[-1])[-3:] == kept
    assert turn.answer.forgotten == 1
    assert turn.pictures == ("a.png", "b.png")
    ask(conversation, model, "5", None, None)  # taken away
    assert outline(model.told[-1]) == [*kept, "assistant: Yes.", "user: 5"]
    ask(conversation, model, "6", None, None)
    assert outline(model.told[-1])[0] == "user: [a.png] [b.png] 4"
    assert ask(conversation, model, "7", None, None).pictures == ("a.png", "b.png")
    assert len(conversation.messages("en")) == 14


def test_a_cut_answer_goes_on_in_its_place() -> None:
    conversation, model = Conversation(), FakeModel()
    assert not conversation.can_continue
    ask(conversation, model, "What?", "a.png", None)
    assert not conversation.can_continue  # it came to its end
    model.pieces = ["It is ", "a "]
    ask(conversation, model, "Where?", "a.png", None)
    assert conversation.can_continue
    model.pieces = [" house", "."]
    turn = conversation.continue_answer(model, GREEDY)  # type: ignore[arg-type]
    wait_for(lambda: turn.answer.done)
    before = ["user: [a.png] What?", "assistant: Yes.", "user: Where?"]
    assert outline(model.told[-1]) == [*before, "assistant: It is a"]
    assert model.asked == GREEDY | {"continue_final": True, "drop_oldest": False}
    assert conversation.messages("en")[-1]["content"][0]["text"] == "It is a house."
    assert not conversation.can_continue
    ask(conversation, model, "So?", "a.png", None)
    assert outline(model.told[-1])[3:] == ["assistant: It is a house.", "user: So?"]


def test_those_who_wait_read_how_many_are_before_them() -> None:
    conversation, model = Conversation(), FakeModel()
    model.pieces, said = [None], {}
    turn = ask(conversation, model, "What?")
    for model.before in (2, 1, 0, None):
        said[model.before] = conversation.footer("en")
    assert said == {
        2: "Waiting: 2 answers are before yours",
        1: "Waiting: 1 answer is before yours",
        0: "Waiting: yours is the next answer",
        None: "Reading the prompt…",
    }
    conversation.stop()
    wait_for(lambda: turn.answer.done)


def test_a_full_context_is_not_the_limit_that_was_set() -> None:
    conversation, model = Conversation(), FakeModel()
    model.pieces = ["It ", "is "]  # tokens
    for most, why, cut in ((2, "cut at the longest answer", True), (3, "cut because the context is full", False)):
        turn = conversation.ask(model, "What?", [], GREEDY | {"max_new_tokens": most})  # type: ignore[arg-type]
        wait_for(lambda turn=turn: turn.answer.done)
        assert why in conversation.footer("en")
        assert conversation.can_continue == cut


def test_a_number_that_was_taken_away_is_the_default() -> None:
    given = sampling_params(*DEFAULTS.values(), False, 3, False, False)
    assert params_of_controls(*[None] * len(DEFAULTS), False, 3, False, False) == given
    assert params_of_controls(5, *[None] * (len(DEFAULTS) - 1), False, 3, False, False) == given | {"max_new_tokens": 5}


def test_stop_clear_and_leaving_close_the_stream() -> None:
    model = FakeModel()
    model.pieces = ["So", None]
    active = ActiveAnswers()

    def leave(conversation: Conversation, turn: Turn) -> None:
        with active.track("visitor") as asked:
            asked.started(turn.answer)
            active.stop("someone else")
            assert not turn.answer.done
            active.stop("visitor")
            wait_for(lambda: turn.answer.done)

    def leave_before_it_starts(conversation: Conversation, turn: Turn) -> None:
        with active.track("visitor") as asked:
            active.stop("visitor")
            asked.started(turn.answer)
            wait_for(lambda: turn.answer.done)

    for end in (lambda c, _: c.stop(), lambda c, _: c.clear(), leave, leave_before_it_starts):
        conversation = Conversation()
        turn = ask(conversation, model, "Why?")
        wait_for(lambda turn=turn: turn.answer.text == "So")
        assert conversation.writing
        end(conversation, turn)
        wait_for(lambda turn=turn: turn.answer.done)
        assert turn.answer.error is None
    assert active._asked == {}


def test_statistics_line() -> None:
    usage = Usage(prompt_tokens=1284, image_tokens=256, cached_tokens=270, completion_tokens=128)
    timings = Timings(queue=0.1, prefill=0.2, first_token=0.352, decode=3.0, tokens_per_second=42.33)
    completion = Completion("…", [0] * 128, "length", usage, timings)
    assert statistics(completion, 7, 2, "en") == (
        "128 tokens · 42.3 tokens/s · first token after 0.35 s · 270 of 1,284 prompt tokens from the cache · "
        "oldest turns forgotten: 2 · seed 7 · cut at the longest answer that is set"
    )
    nan = float("nan")
    never = Completion("", [], "cancelled", Usage(10, 0, 0, 0), Timings(nan, nan, nan, nan, 0.0))
    assert statistics(never, None, 0, "zh") == "0 个 token · 提示 10 个 token · 已停止"


def test_loader_reports_what_went_wrong_and_tries_again() -> None:
    seen = []

    class Warm:
        closed = False

        def warmup(self, progress: Callable[[str, int, int], None]) -> None:
            seen.append(loader.status)
            progress("decode", 3, 4)
            seen.append(loader.status)
            if len(seen) == 2:
                raise RuntimeError("out of\nmemory")

        def close(self) -> None:
            self.closed = True

    models = [Warm(), Warm()]

    def load(progress: Callable[[int, int], None]) -> Any:
        progress(5, 10)
        return models[0] if not seen else models[1]

    loader = Loader("x", load)
    assert loader.status.phase == "idle"
    loader.start()
    status = loader.wait(SOON)
    assert (status.phase, status.error) == ("failed", "RuntimeError: out of memory")
    assert loader.model is None
    assert models[0].closed
    loader.start()
    assert loader.wait(SOON).phase == "ready"
    assert loader.model is models[1]
    loader.start()  # there is nothing more to do
    assert loader.status.phase == "ready"
    assert [(s.phase, s.fraction, s.step) for s in seen[:2]] == [("reading", 0.5, ""), ("compiling", 0.75, "decode")]


def test_texts_exist_in_both_languages_and_all_are_used() -> None:
    for key, texts in TEXTS.items():
        assert len(texts) == 2
        assert all(texts), key
        fields = [{name for _, name, _, _ in string.Formatter().parse(one) if name} for one in texts]
        assert fields[0] == fields[1], key
    sources = [*FOLDER.rglob("*.py"), *FOLDER.rglob("*.js")]
    code = "".join(path.read_text() for path in sources if path.name != "texts.py")
    made_up = {f"tab_{n}" for n in ("image", "text")} | {f"chat_empty_{n}" for n in ("image", "text")}
    made_up |= {f"prompt_{n}" for n in ("image", "text")} | {"picture", "picture_2", "picture_drop", "picture_drop_2"}
    made_up |= {"ended_cancelled", "ended_length", "step_starting", "step_reading", "step_compiling"}
    made_up |= {f"format_{format.name}" for format in (SHIELD_GEMMA, TRANSLATE_GEMMA)}
    made_up |= {f"unrecorded_{what}" for what in ("question", "picture", "settings")}
    unused = [key for key in TEXTS if key not in made_up and f'"{key}"' not in code]
    # Phases are texts too; the first of them is only ever a value.
    assert set(unused) <= {"idle", "starting", "reading", "compiling", "ready", "failed"}
    assert made_up <= set(TEXTS)


def test_defaults_are_those_of_the_library() -> None:
    options = SamplingParams()
    assert {name: getattr(options, name) for name in DEFAULTS} == DEFAULTS


def test_sliders_that_a_visitor_has_set_keep_their_value() -> None:
    sliders = [gr.Slider(minimum=0.01, maximum=256) for _ in DEFAULTS]
    own = SamplingParams(max_new_tokens=9000, temperature=1.0, top_k=64, top_p=0.5)
    shown = {**DEFAULTS, "temperature": 0.7}
    assert checkpoint_defaults(sliders, list(shown.values()), own) == [256, gr.skip(), gr.skip(), 0.5, 0.01]


def test_examples_are_there_and_small() -> None:
    for name in ("image", "text"):
        assert len(examples(name)) >= 3
        for example in examples(name):
            assert example["en"]
            assert example["zh"]
            for picture in example.get("pictures", []):
                assert (EXAMPLES / picture).stat().st_size <= 50_000


def test_only_the_public_api_is_imported() -> None:
    public = "gemma_tpu.server"  # which has a list of names, as gemma_tpu itself has
    for path in FOLDER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not [module for module in modules if module.startswith("gemma_tpu.") and module != public], path
            assert not [module for module in modules if module.split(".")[0] == "jax"], path


def test_nothing_is_fetched_from_elsewhere() -> None:
    for path in (FOLDER / "static").iterdir():
        if path.suffix in (".css", ".svg"):
            assert not re.search(r"@import|https?://", path.read_text()), path
