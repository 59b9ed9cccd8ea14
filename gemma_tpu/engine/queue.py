"""Requests that wait for a batch row, in the order in which they are given one."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Mapping

from gemma_tpu.engine.request import Request


class Queue:
    """First come, first served for each client; clients take turns, the one with the fewest batch rows first.

    A request that has lost its row to others is resumed before any other is begun.
    """

    def __init__(self) -> None:
        self._requests: dict[Request, None] = {}  # in the order of their numbers
        self._resumed: list[Request] = []
        self._arrived = 0

    def __len__(self) -> int:
        return len(self._requests) + len(self._resumed)

    def __iter__(self) -> Iterator[Request]:
        yield from self._resumed
        yield from self._requests

    def append(self, request: Request) -> None:
        request.number = self._arrived
        self._arrived += 1
        self._requests[request] = None

    def resume(self, request: Request) -> None:
        """Takes back one that was begun."""
        self._resumed.append(request)
        self._resumed.sort(key=lambda request: request.number)

    def remove(self, request: Request) -> None:
        if request in self._requests:
            del self._requests[request]
        else:
            self._resumed.remove(request)

    def clear(self) -> None:
        self._requests.clear()
        self._resumed.clear()

    def order(self, running: Iterable[Request]) -> list[Request]:
        """All of them, the next one first, while `running` have rows."""
        turns: Mapping = collections.Counter(request.client for request in running)
        turn = dict(turns)
        keyed = []
        for request in self._requests:
            keyed.append(((turn.setdefault(request.client, 0), request.number), request))
            turn[request.client] += 1
        return [*self._resumed, *(request for _, request in sorted(keyed, key=lambda pair: pair[0]))]

    def next(self, running: Iterable[Request]) -> Request:
        """The first of `order`."""
        if self._resumed:
            return self._resumed[0]
        turns = collections.Counter(request.client for request in running)
        first: dict[object, Request] = {}
        for request in self._requests:
            first.setdefault(request.client, request)
        return min(first.values(), key=lambda request: (turns[request.client], request.number))
