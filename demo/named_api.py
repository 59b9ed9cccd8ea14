"""Endpoints of Gradio's own API, for gradio_client and `gr.load`, documented on the page under "Use via API".

Programs of other kinds use the server's OpenAI endpoints.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypedDict

import gradio as gr
from gradio.data_classes import FileData
from gradio.events import api
from gradio.utils import get_upload_folder

from demo.chat import ActiveAnswers, Answer, submit
from demo.facts import Facts, not_ready_text, unsupported_text
from demo.settings import DEFAULTS, sampling_params
from demo.texts import explain
from gemma_tpu import Loader

_POLL_INTERVAL = 0.05  # seconds between reads of an unfinished answer


class Answered(TypedDict):
    """`finish_reason`: "stop", "length" or "cancelled"; None while the text still grows."""

    text: str
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int
    seed: int


def named_api(loader: Loader, active: ActiveAnswers) -> None:
    """Adds them to the Blocks that are being built: `/ask` streams an answer, `/model` says what is loaded."""

    async def ask(
        question: str,
        picture: FileData | None = None,
        max_new_tokens: int = int(DEFAULTS["max_new_tokens"]),
        temperature: float = DEFAULTS["temperature"],
        top_k: int = int(DEFAULTS["top_k"]),
        top_p: float = DEFAULTS["top_p"],
        min_p: float = DEFAULTS["min_p"],
        seed: int | None = None,
        request: gr.Request = None,  # type: ignore[assignment]  # Gradio fills it in by its type
    ) -> AsyncIterator[Answered]:
        """Answers a question, about a picture if there is one, and yields the text as it grows."""
        if (model := loader.model) is None:
            raise gr.Error(not_ready_text(loader.status, "en"), print_exception=False)
        if problem := unsupported_text(model, "en"):
            raise gr.Error(problem, print_exception=False)
        numbers = max_new_tokens, temperature, top_k, top_p, min_p
        params = sampling_params(*numbers, seed is None, seed, drop_oldest=False, pan_and_scan=False)
        session = request.session_hash or ""
        try:
            arguments = model, [], question, [picture and _uploaded(picture)], {**params, "client": session}
            stream, _, _ = await asyncio.to_thread(submit, *arguments)
        except (ValueError, RuntimeError) as error:
            raise gr.Error(explain(error), print_exception=False) from error
        answer = Answer(stream, params, model.waiting_before)
        with active.track(session) as asked:
            asked.started(answer)
            while not answer.done:
                yield _answered(answer, params["seed"])
                await asyncio.sleep(_POLL_INTERVAL)
        if answer.error:
            raise gr.Error(explain(answer.error), print_exception=False)
        yield _answered(answer, params["seed"])

    async def model() -> dict[str, Any]:
        """What is loaded: checkpoint, phase, devices, mesh, precision, whether it reads pictures."""
        facts = Facts.of(loader.model) if loader.model else None
        known = {name: getattr(facts, name) for name in ("devices", "dtype", "parameters", "vision")} if facts else {}
        mesh = {"mesh": [facts.data, facts.model]} if facts else {}
        return {"checkpoint": loader.name, "phase": loader.status.phase, **known, **mesh}

    api(ask, api_name="ask", concurrency_limit=None)
    api(model, api_name="model", queue=False)


def _uploaded(picture: Any) -> str:
    """The path of what a client has uploaded. ValueError for any other file of this machine.

    Gradio hands over the dict that was sent, whatever the parameter's type.
    """
    path = Path(str(picture.get("path") if isinstance(picture, dict) else picture.path)).resolve()
    if not path.is_relative_to(Path(get_upload_folder()).resolve()):
        raise ValueError("picture: not an uploaded file; see handle_file of gradio_client")
    return str(path)


def _answered(answer: Answer, seed: int) -> Answered:
    done, completion = answer.done, answer.completion
    return {
        "text": answer.text,
        "finish_reason": completion.finish_reason if done else None,
        "prompt_tokens": completion.usage.prompt_tokens,
        "completion_tokens": completion.usage.completion_tokens,
        "seed": seed,
    }
