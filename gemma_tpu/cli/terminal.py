"""`gemma-tpu chat`: a conversation in a terminal, or with the lines of a pipe, which gets answers alone."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shlex
import sys
import urllib.parse
from collections.abc import Callable
from typing import Any

from gemma_tpu.cli.standard_streams import is_terminal
from gemma_tpu.image import load_image

HELP = """\
/image FILE …  shows pictures with the next message; a file can be dropped here after it
/continue      goes on with an answer that was cut
/reset         starts over
/help          shows this
/exit, /quit   end, as exit, quit and Ctrl-D do; Ctrl-C stops an answer"""
_ENDS = ("/exit", "/quit", "exit", "quit")
_FILE_URL = re.compile(r"file:(?://(?P<host>[^/]*))?(?P<path>/.*)", re.IGNORECASE | re.DOTALL)


def converse(model: Any, new_chat: Callable[[], Any], *, allow_urls: bool = False) -> int:
    """Talks until the input ends; returns an exit code: 1 if a line of a pipe was refused, else 0.

    `new_chat`: makes a conversation with `model`. `allow_urls`: `/image` takes http(s) addresses.
    """
    return _Conversation(model, new_chat, allow_urls).run()


def read_paths(text: str) -> list[str]:
    """The files that `text` names, in quotes, with `\\ ` for spaces, `~` or file://, as terminals write dropped files.

    A name with spaces in it may stand as it is, if it is there. ValueError for a quote that is not closed.
    """
    if os.path.exists(plain := os.path.expanduser(text)):
        return [plain]
    try:
        words = shlex.split(text)
    except ValueError:
        raise ValueError(f"{text}: a quote is not closed, or a \\ is the last letter") from None
    return [_path(word) for word in words]


def _path(word: str) -> str:
    if (url := _FILE_URL.fullmatch(word)) is None:
        return os.path.expanduser(word)
    if url["host"] not in (None, "", "localhost"):
        raise ValueError(f"{word}: a file of another machine, {url['host']}")
    return os.fsdecode(urllib.parse.unquote_to_bytes(url["path"]))


class _Lines:
    """Standard input by lines, asked for only where somebody is there to answer."""

    def __init__(self) -> None:
        self.interactive = is_terminal(sys.stdin)
        self._edited = self.interactive and is_terminal(sys.stdout)
        if self._edited:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  # gives `input` arrow keys and a history

    def read(self, prompt: str) -> str:
        """The next line, without its end; EOFError after the last. ValueError for one that is no text."""
        if self._edited:
            return input(prompt)
        if self.interactive:  # what is piped onwards is the answers
            print(prompt, end="", file=sys.stderr, flush=True)
        try:
            line = sys.stdin.readline() if sys.stdin is not None else ""
        except UnicodeDecodeError as error:
            raise ValueError(f"standard input is no text in {error.encoding}: {error.reason}") from error
        if not line:
            raise EOFError
        return line.rstrip("\n")


class _Conversation:
    def __init__(self, model: Any, new_chat: Callable[[], Any], allow_urls: bool) -> None:
        self._model, self._new_chat, self._allow_urls = model, new_chat, allow_urls
        self._lines, self._chat = _Lines(), new_chat()
        self._images: list[tuple[str, Any]] = []  # name and picture, for the next message
        self._refused = False

    def run(self) -> int:
        self._hint("/image FILE shows a picture with the next message, /help lists the commands, Ctrl-D ends.")
        while True:
            try:
                line = self._lines.read("> ").strip()
            except EOFError:
                self._hint("")
                break
            except KeyboardInterrupt:
                if not self._lines.interactive:
                    raise
                self._hint("")
                continue
            if line.lower() in _ENDS:
                break
            try:
                self._take(line)
            except KeyboardInterrupt:  # while a picture is read; what was chosen and said before is kept
                if not self._lines.interactive:
                    raise
                self._hint("")
            except ValueError as error:
                self._refused = True
                print(f"gemma-tpu: {error}", file=sys.stderr)
        return 1 if self._refused and not self._lines.interactive else 0

    def _hint(self, text: str) -> None:
        """Says something to a person; a pipe needs no telling."""
        if self._lines.interactive:
            print(text, file=sys.stderr)

    def _take(self, line: str) -> None:
        """Does what a line says. ValueError for what cannot be done, which changes nothing."""
        command, rest = (*line.split(maxsplit=1), "", "")[:2]
        if command == "/image":
            self._choose(rest)
        elif line == "/continue":
            self._answer(functools.partial(self._chat.stream, continue_final=True))
            self._respond()
        elif line == "/reset":
            self._chat, self._images = self._new_chat(), []
        elif line == "/help":
            print(HELP, file=sys.stderr)
        elif _is_file(line):
            raise ValueError(f"a file: to show it with the next message, /image {line}")
        elif re.fullmatch(r"/\w*", command):  # and not a text that begins with a path
            raise ValueError(f"{command} is no command, or takes nothing after it: /help lists them")
        elif line:
            pictures = [picture for _, picture in self._images]
            self._answer(functools.partial(self._chat.stream, line, images=pictures))
            self._images = []
            self._respond()

    def _choose(self, files: str) -> None:
        if self._model.config.vision is None:
            raise ValueError("this model has no vision tower: it takes text only")
        if not files and not self._images:
            raise ValueError("/image takes the name of a file, or several")
        found = [
            (
                os.path.basename(path) if os.path.exists(path) else path[:60],
                load_image(path, allow_urls=self._allow_urls),
            )
            for path in read_paths(files)
        ]
        self._images += found
        shown = "; ".join(f"{name}, {picture.width} × {picture.height}" for name, picture in self._images)
        self._hint(f"(with the next message: {shown})")

    def _respond(self) -> None:
        """Asks for the responses to the functions that the model calls, and prints what it makes of them."""
        try:
            while calls := self._chat.calls:
                typed = [self._lines.read(f"response of {call['function']['name']}> ") for call in calls]
                self._answer(functools.partial(self._chat.respond, [_from_json(text) for text in typed]))
        except (EOFError, KeyboardInterrupt):
            if not self._lines.interactive:
                raise ValueError("the input ended where the responses to the functions called belong") from None
            print("\n(no response: /reset starts over)", file=sys.stderr)

    def _answer(self, ask: Callable[[], Any]) -> None:
        """Prints an answer as it comes. Ctrl-C ends the answer, and not the chat of a person."""
        stream, printed = None, 0
        try:
            stream = ask()
            if stream.dropped_turns:
                dropped = f"the oldest turns were forgotten, {stream.dropped_turns} of them"
                print(f"(the context is full: {dropped})", file=sys.stderr)
            for piece in stream:
                print(piece, end="", flush=True)
                printed += len(piece)
        except KeyboardInterrupt:
            if stream is not None:
                stream.close()
                print(stream.completion.text[printed:], end="")  # what was written by then is in the history too
            if not self._lines.interactive:
                raise
            print(" …", end="")
        print(flush=True)
        if stream is not None and stream.completion.finish_reason == "length":
            way = "/continue goes on" if stream.completion.text else "no answer yet, which takes more --max-new-tokens"
            print(f"(cut at the length limit: {way})", file=sys.stderr)


def _is_file(line: str) -> bool:
    """Whether a line is nothing but the paths of files, as of one dropped without a command."""
    if not re.match(r"""['"]?(/|~/|file:)""", line, re.IGNORECASE):
        return False
    try:
        return all(os.path.isfile(path) for path in read_paths(line))
    except ValueError:
        return False


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
