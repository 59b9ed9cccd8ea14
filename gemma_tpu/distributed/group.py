"""Process 0's side of several: it tells the others what to do, and knows when one of them is lost."""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from gemma_tpu.distributed.channel import Peer, pack, unpack_answer
from gemma_tpu.engine.errors import ProcessesLostError

VERDICT = 2  # seconds to learn that a program failed because another process is lost, where that is why
_LAST_CALL = 5  # seconds that process 0, when it ends, waits for a call that is being sent
_LAST_PROGRAMS = 60  # seconds for all processes to finish what they were told, when process 0 ends


class Group:
    """All processes but this one, number 0."""

    def __init__(self, peers: list[Peer]) -> None:
        self._peers = peers
        self._order = threading.RLock()  # held while a call is sent and then made here: all make it in the same order
        self._lock = threading.Lock()
        self._watchers: dict[int, Callable[[BaseException], None]] = {}
        self._answers: queue.SimpleQueue[tuple[Peer, dict[str, Any]] | None] = queue.SimpleQueue()
        self._failure: str | None = None
        self._failed = threading.Event()
        self._told = False  # whether anybody has been given the failure
        self._ended = False
        self._threads = [
            threading.Thread(target=self._listen, args=(peer,), name="gemma-peer", daemon=True) for peer in peers
        ]
        for thread in self._threads:
            thread.start()

    @contextlib.contextmanager
    def together(self, *message: Any) -> Iterator[None]:
        """Sends a message to all; what it stands for is then done here, before any other message is sent.

        What cannot be sent is an error of the message alone, and nobody hears of it.
        """
        with self._order:
            self._check()
            packed = pack(*message)
            for peer in self._peers:
                try:
                    peer.send(packed)
                except ConnectionError as error:
                    self._lose(peer, error)
                    self._check()
            try:
                yield
            except BaseException as error:
                if isinstance(error, jax.errors.JaxRuntimeError):
                    self.loss()
                why = f"{message[0]} failed in process 0, and the others may wait for it for ever: {error}"
                self.fail(why, raised=True)
                raise

    def answers(self) -> dict[str, dict[str, Any]]:
        """Waits for everybody's, by the name of the process. Within `together`."""
        found = {}
        for _ in self._peers:
            answer = self._answers.get()
            if answer is None:
                self._check()
            else:
                found[answer[0].name] = answer[1]
        return found

    def watch(self, key: int, on_failure: Callable[[BaseException], None]) -> None:
        """Has `on_failure` called, from another thread, when a process is lost."""
        with self._lock:
            self._watchers[key] = on_failure
        if self._failure:
            on_failure(ProcessesLostError(self._failure))

    def forget(self, key: int) -> None:
        with self._lock:
            self._watchers.pop(key, None)

    def fail(self, why: str, *, raised: bool = False) -> None:
        """Ends all: requests here with an error, the other processes because they are told or cut off.

        `raised`: the caller raises it too, so that it need not be said when this process ends.
        """
        with self._lock:
            if self._failure or self._ended:
                return
            self._failure = why
            self._failed.set()
            watchers = list(self._watchers.values())
        for peer in self._peers:
            peer.close(pack("lost", why))
            self._answers.put(None)
        self._told |= raised or bool(watchers)
        for on_failure in watchers:
            on_failure(ProcessesLostError(why))

    def loss(self) -> ProcessesLostError | None:
        """Why all has ended, if it has or is about to: a program fails before the loss of another process is known."""
        self._failed.wait(VERDICT)
        return ProcessesLostError(self._failure) if self._failure else None

    def end(self) -> None:
        """At the end of process 0: the others finish what they were told, and end too."""
        why, told = self._failure or "a call is stuck", self._told
        if not self._failure and self._order.acquire(timeout=_LAST_CALL):
            try:
                # Until all have answered, the loss of one is still noticed.
                with self.together("end"):
                    self._wait_for_the_last()
                self._ended = True
                return
            except RuntimeError as error:
                why = str(error)
            finally:
                self._order.release()
        # JAX would wait for processes that are gone, and for programs that will never end.
        self.fail(why)
        if not told:
            print(f"gemma_tpu: {why}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        until = time.monotonic() + VERDICT
        for thread in self._threads:  # the others say why they end, unless JAX's service goes away before
            thread.join(max(until - time.monotonic(), 0))
        os._exit(1)

    def _wait_for_the_last(self) -> None:
        stuck = threading.Timer(_LAST_PROGRAMS, self.fail, [f"programs did not end within {_LAST_PROGRAMS} s"])
        stuck.daemon = True
        stuck.start()
        self.answers()
        stuck.cancel()

    def _check(self) -> None:
        if self._failure:
            self._told = True
            raise ProcessesLostError(self._failure)
        if self._ended:
            raise RuntimeError("this process is about to end")

    def _lose(self, peer: Peer, error: ConnectionError) -> None:
        self.fail(f"{peer.name} is lost ({error}): restart all processes")

    def _listen(self, peer: Peer) -> None:
        try:
            while True:
                answer = unpack_answer(peer.receive())
                if answer.get("failed"):
                    self.fail(f"{peer.name} failed: {answer['failed']}")
                self._answers.put((peer, answer))
        except ConnectionError as error:
            self._lose(peer, error)
