"""Process 0 tells the others what to do; each notices when another is lost.

Messages of process 0: ("tell", function, *arguments) is done by the others too; ("ask", function, *arguments) is
answered with digests or an error; ("end",) and ("lost", reason). A function's first argument is what the other process
holds, by key.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax

from gemma_tpu.checks import one_line
from gemma_tpu.distributed.channel import Peer, pack, unpack
from gemma_tpu.engine.errors import ProcessesLostError

_VERDICT = 2  # seconds to learn that a program failed because another process is lost, where that is why
_LAST_CALL = 5  # seconds that process 0, when it ends, waits for a call that is being sent
_LAST_PROGRAMS = 60  # seconds for all processes to finish what they were told, when process 0 ends

OnFailure = Callable[[BaseException], None]
Held = dict[int, Any]  # parameters, then the runner made of them, by key


class Group:
    """All processes but this one, number 0."""

    def __init__(self, peers: list[Peer]) -> None:
        self._peers = peers
        self._order = threading.RLock()  # held while a call is sent and then made here: all make it in the same order
        self._lock = threading.Lock()
        self._watchers: list[OnFailure] = []
        self._answers: queue.SimpleQueue[tuple[Peer, dict[str, Any]] | None] = queue.SimpleQueue()
        self._failure: str | None = None
        self._failed = threading.Event()
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
                self.fail(f"a call failed in process 0, and the others may wait for it: {error}")
                raise

    def answers(self, timeout: float | None = None) -> dict[str, dict[str, Any]]:
        """Waits for everybody's, by the name of the process. Within `together`.

        `timeout`: seconds without any answer after which it is a RuntimeError.
        """
        found = {}
        for _ in self._peers:
            try:
                answer = self._answers.get(timeout=timeout)
            except queue.Empty:
                raise RuntimeError(f"programs did not end within {timeout} s") from None
            if answer is None:
                self._check()
            else:
                found[answer[0].name] = answer[1]
        return found

    def watch(self, on_failure: OnFailure) -> None:
        """Has `on_failure` called, from another thread, when a process is lost."""
        with self._lock:
            self._watchers.append(on_failure)
        if self._failure:
            on_failure(ProcessesLostError(self._failure))

    def forget(self, on_failure: OnFailure) -> None:
        with self._lock, contextlib.suppress(ValueError):  # closed twice
            self._watchers.remove(on_failure)

    def fail(self, why: str) -> None:
        """Ends all: requests here with an error, the other processes because they are told or cut off."""
        with self._lock:
            if self._failure or self._ended:
                return
            self._failure = why
            self._failed.set()
            watchers = list(self._watchers)
        for peer in self._peers:
            peer.close(pack("lost", why))
            self._answers.put(None)
        for on_failure in watchers:
            on_failure(ProcessesLostError(why))

    def loss(self) -> ProcessesLostError | None:
        """Why all has ended, if it has or is about to: a program fails before the loss of another process is known."""
        self._failed.wait(_VERDICT)
        return ProcessesLostError(self._failure) if self._failure else None

    def end(self) -> None:
        """At the end of process 0: the others finish what they were told, and end too."""
        if not self._failure and self._order.acquire(timeout=_LAST_CALL):
            try:
                with self.together("end"):
                    self.answers(_LAST_PROGRAMS)  # until all have answered, the loss of one is still noticed
                self._ended = True
                return
            except RuntimeError:
                pass  # `together` has failed, and why is said below
            finally:
                self._order.release()
        self.fail("a call is stuck")
        print(f"gemma_tpu: {self._failure}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        until = time.monotonic() + _VERDICT
        for thread in self._threads:  # the others say why they end, unless JAX's service goes away before
            thread.join(max(until - time.monotonic(), 0))
        # JAX would wait for processes that are gone, and for programs that will never end.
        os._exit(1)

    def _check(self) -> None:
        if self._failure:
            raise ProcessesLostError(self._failure)
        if self._ended:
            raise RuntimeError("this process is about to end")

    def _lose(self, peer: Peer, error: ConnectionError) -> None:
        self.fail(f"{peer.name} is lost ({error}): restart all processes")

    def _listen(self, peer: Peer) -> None:
        try:
            while True:
                answer = json.loads(peer.receive())
                if answer.get("failed"):
                    self.fail(f"{peer.name} failed: {answer['failed']}")
                self._answers.put((peer, answer))
        except ConnectionError as error:
            self._lose(peer, error)


class Follower:
    """Any other process: hears process 0 from the start, so that its loss ends this one while JAX waits for it too."""

    def __init__(self, leader: Peer, process: int) -> None:
        self._leader, self._process = leader, process
        self._messages: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._held: Held = {}
        self._ended = False
        # A thread of its own: the main thread may be waiting for programs of processes that are gone.
        threading.Thread(target=self._listen, name="gemma-leader", daemon=True).start()

    def run(self) -> NoReturn:
        """Until process 0 ends. A process that cannot go on exits at once: programs may be stuck."""
        for name in (signal.SIGINT, signal.SIGTERM):  # process 0's to handle: it may need its followers a while longer
            with contextlib.suppress(ValueError):  # not the main thread
                signal.signal(name, signal.SIG_IGN)
        while (message := self._messages.get())[0] != "end":
            try:
                self._obey(*message)
            except BaseException as error:
                if isinstance(error, jax.errors.JaxRuntimeError):
                    time.sleep(_VERDICT)  # if another process is lost, process 0 says so meanwhile
                self.give_up(error)
        jax.block_until_ready(jax.live_arrays())  # process 0 may need this process to finish a program
        self._ended = True
        self._answer()
        sys.exit(0)

    def give_up(self, error: BaseException) -> NoReturn:
        """Ends all processes."""
        with contextlib.suppress(ConnectionError):
            self._answer(failed=one_line(error))
        give_up(self._process, one_line(error))

    def _obey(self, kind: str, function: Callable[..., Any], *args: Any) -> None:
        if kind == "tell":
            function(self._held, *args)
            return
        try:
            answer = {"digests": function(self._held, *args)}
        except Exception as error:  # process 0 may want something else then
            answer = {"error": one_line(error)}
        self._answer(**answer)

    def _answer(self, **answer: Any) -> None:
        self._leader.send(json.dumps(answer).encode())

    def _listen(self) -> None:
        while True:
            try:
                kind, *rest = unpack(self._leader.receive())
            except ConnectionError as error:
                if not self._ended:
                    give_up(self._process, f"{self._leader.name} is lost ({error})")
                return
            if kind == "lost":
                give_up(self._process, rest[0])
            self._messages.put((kind, *rest))


def give_up(process: int, why: object) -> NoReturn:
    """Ends this process at once: its other threads may be stuck."""
    print(f"gemma_tpu: process {process} gives up: {why}", file=sys.stderr, flush=True)
    os._exit(1)
