"""Held-out questions put to the demo page: the requests that a browser makes, to `python -m demo` itself."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
from PIL import Image

from checkpoints.demo_model.dialog import Conversation

_MAX_PICTURES = 2  # as many as the page has places for
_TIMEOUT = 600  # seconds, on a machine that may be busy
_LOOK_EVERY = 0.5  # seconds between two looks at how far loading is


@contextlib.contextmanager
def serve(*arguments: str) -> Iterator[str]:
    """Runs `python -m demo` with `arguments` at a free port; its address once the model is loaded.

    RuntimeError if it does not come up.
    """
    command = [sys.executable, "-m", "demo", "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            found = re.search(r"http://\S+", process.stdout.readline() if process.stdout else "")
            if found is None:
                raise RuntimeError(f"{' '.join(command)}: ended without an address")
            _wait_for_model(found[0])
            yield found[0]
        finally:
            process.terminate()


def _wait_for_model(url: str) -> None:
    with httpx.Client(base_url=url, timeout=_TIMEOUT) as client:
        session = Session(client, _config(client))
        while True:
            session.trigger("load", "click")  # loading is under way, so this only says how far
            phase = re.search(r'data-phase="(\w+)"', session["head"])
            if phase is None or phase[1] == "failed":
                raise RuntimeError(f"the demo could not load its model: {session['head']}")
            if phase[1] == "ready":
                return
            time.sleep(_LOOK_EVERY)


def can_be_asked(conversation: Conversation) -> bool:
    """The page has no place for a system text, nor for more than two pictures."""
    return conversation.system is None and len(conversation.images) <= _MAX_PICTURES


def ask(
    url: str, conversations: Iterable[Conversation], max_tokens: int, parallel: int
) -> Iterator[tuple[Conversation, str]]:
    """Each conversation with the page's answer to its last turn, in order; the answers before it are the page's too.

    Each has a session of its own; `parallel` are held at once. RuntimeError if the page refuses a question.
    """
    with httpx.Client(base_url=url, timeout=_TIMEOUT) as client, ThreadPoolExecutor(parallel) as pool:
        config = _config(client)
        answers = pool.map(lambda one: Session(client, config).converse(one, max_tokens), conversations)
        yield from zip(conversations, answers, strict=True)


def _config(client: httpx.Client) -> dict[str, Any]:
    return client.get("/config").raise_for_status().json()


class Session:
    """The page as open in one browser: what each component holds, sent and changed as Gradio's own script does.

    `gradio_client` cannot do it: the handlers of a page, as opposed to an API, are closed to it.
    """

    def __init__(self, client: httpx.Client, config: dict[str, Any]) -> None:
        self._client = client
        self._hash = uuid.uuid4().hex
        self._values = {block["id"]: copy.deepcopy(block["props"].get("value")) for block in config["components"]}
        self._ids = {block["props"].get("elem_id"): block["id"] for block in config["components"]}
        self._handlers = {tuple(target): handler for handler in config["dependencies"] for target in handler["targets"]}

    def __getitem__(self, element: str) -> Any:
        return self._values[self._ids[element]]

    def __setitem__(self, element: str, value: Any) -> None:
        self._values[self._ids[element]] = value

    def converse(self, conversation: Conversation, max_tokens: int) -> str:
        """Asks turn after turn, on the tab that fits, with the page's settings otherwise; the last answer."""
        tab = "image" if conversation.images else "text"
        self[f"{tab}-max_new_tokens"] = max_tokens
        for turn in conversation.turns:
            for index in turn.images:
                self.upload(conversation.images[index], f"picture-{index + 1}")
            self[f"{tab}-prompt"] = turn.question
            self.trigger(f"{tab}-send", "click")
            if self[f"{tab}-notice"]:
                raise RuntimeError(f"{turn.question!r} was refused: {self[f'{tab}-notice']}")
        return "".join(part["text"] for part in self[f"{tab}-chat"][-1]["content"])

    def upload(self, image: Image.Image, element: str) -> None:
        """Lays a picture, as a PNG file, into the place `element`."""
        file, name = io.BytesIO(), f"{element}.png"
        image.save(file, "PNG")
        sent = self._client.post("/gradio_api/upload", files={"files": (name, file.getvalue(), "image/png")})
        path = sent.raise_for_status().json()[0]
        self[element] = {
            "path": path,
            "orig_name": name,
            "mime_type": "image/png",
            "meta": {"_type": "gradio.FileData"},
        }
        self.trigger(element, "upload")

    def trigger(self, element: str, event: str) -> None:
        """Runs the page's handler of `event` at `element` to its end."""
        handler = self._handlers[self._ids[element], event]
        data = [self._values[block] for block in handler["inputs"]]
        body = {"data": data, "fn_index": handler["id"], "session_hash": self._hash}
        self._client.post("/gradio_api/queue/join", json=body).raise_for_status()
        for block, value in zip(handler["outputs"], self._result(), strict=True):
            if not (isinstance(value, dict) and value.get("__type__") == "update"):
                self._values[block] = value
            elif "value" in value:
                self._values[block] = value["value"]

    def _result(self) -> list[Any]:
        """What the handler under way says in the end, by output."""
        with self._client.stream("GET", "/gradio_api/queue/data", params={"session_hash": self._hash}) as stream:
            for line in stream.raise_for_status().iter_lines():
                message = json.loads(line.removeprefix("data:")) if line else {}
                if message.get("msg") == "process_completed":
                    if not message["success"]:
                        raise RuntimeError(f"a handler of the page failed: {message['output']}")
                    return message["output"]["data"]
        raise RuntimeError("the page broke off an answer")
