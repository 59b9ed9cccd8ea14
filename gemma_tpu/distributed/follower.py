"""What every process but number 0 does: what process 0 says, until it ends."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
import time
from typing import Any, NoReturn

import jax

from gemma_tpu.distributed.channel import Peer, pack_answer, unpack
from gemma_tpu.distributed.fingerprint import common_digests
from gemma_tpu.distributed.group import VERDICT
from gemma_tpu.distributed.shared_runner import SharedRunner
from gemma_tpu.engine.runner import Runner


class Follower:
    """Hears what process 0 says from the start, so that its loss ends this process while JAX waits for it too."""

    def __init__(self, leader: Peer, process: int) -> None:
        self._leader, self._process = leader, process
        self._messages: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._held: dict[int, Any] = {}  # parameters, then the runner made of them, by key
        self._ended = False
        # A thread of its own: the main thread may be waiting for programs of processes that are gone.
        threading.Thread(target=self._listen, name="gemma-leader", daemon=True).start()

    def run(self) -> NoReturn:
        """Until process 0 ends. A process that cannot go on exits at once: programs may be stuck."""
        for name in (signal.SIGINT, signal.SIGTERM):  # process 0's to handle: it may need its followers a while longer
            with contextlib.suppress(ValueError):  # not the main thread
                signal.signal(name, signal.SIG_IGN)
        while True:
            kind, *rest = self._messages.get()
            if kind == "end":
                for one in self._held.values():
                    if isinstance(one, Runner):
                        one.wait()  # process 0 may need this process to finish a program
                self._ended = True
                self._answer()
                sys.exit(0)
            try:
                self._obey(kind, *rest)
            except BaseException as error:
                if isinstance(error, jax.errors.JaxRuntimeError):
                    time.sleep(VERDICT)  # if another process is lost, process 0 says so meanwhile
                self.give_up(error)

    def give_up(self, error: BaseException) -> NoReturn:
        """Ends all processes."""
        with contextlib.suppress(ConnectionError):
            self._answer(failed=_one_line(error))
        self._exit(_one_line(error))

    def _obey(self, kind: str, key: int, *args: Any) -> None:
        if kind in ("make", "compare"):
            function, arguments = args
            try:
                digests = made = function(*arguments)
                if kind == "make":
                    self._held[key], digests = made, common_digests(made)
                self._answer(digests=digests)
            except Exception as error:  # process 0 may want something else then
                self._answer(error=_one_line(error))
        elif kind == "open":
            deployment, options = args
            self._held[key] = SharedRunner(deployment, self._held[key], **options)
        elif kind == "call":
            method, arguments = args
            getattr(self._held[key], method)(*arguments)
        else:
            self._held.pop(key, None)

    def _answer(self, **answer: Any) -> None:
        self._leader.send(pack_answer(**answer))

    def _listen(self) -> None:
        while True:
            try:
                kind, *rest = unpack(self._leader.receive())
            except ConnectionError as error:
                if not self._ended:
                    self._exit(f"{self._leader.name} is lost ({error})")
                return
            if kind == "lost":
                self._exit(rest[0])
            self._messages.put((kind, *rest))

    def _exit(self, why: str) -> NoReturn:
        print(f"gemma_tpu: process {self._process} gives up: {why}", file=sys.stderr, flush=True)
        os._exit(1)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
