"""Requests that wait for a batch row, in the order in which they are given one."""

from __future__ import annotations

import collections
from collections.abc import Hashable, Iterable, Iterator

from gemma_tpu.engine.request import Request

_REMEMBERED = 1024  # clients


class Queue:
    """First come, first served for each client. Clients take turns: next is the one with the fewest batch rows, of
    these the one that was given a row least lately.

    A request that has lost its row to others is resumed before any other is begun.
    """

    def __init__(self) -> None:
        self._requests: dict[Request, None] = {}  # in the order of their numbers
        self._resumed: list[Request] = []
        self._arrived = self._taken = 0
        self._last: collections.OrderedDict[Hashable, int] = collections.OrderedDict()  # when a client was given a row

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

    def take(self, request: Request) -> None:
        """Removes one that is given a row."""
        self.remove(request)
        self._taken += 1
        self._last[request.client] = self._taken
        self._last.move_to_end(request.client)
        if len(self._last) > _REMEMBERED:
            self._last.popitem(last=False)

    def clear(self) -> None:
        self._requests.clear()
        self._resumed.clear()

    def order(self, running: Iterable[Request]) -> Iterator[Request]:
        """All of them, the next one first, while `running` have rows and none is done."""
        yield from self._resumed
        rows, last = collections.Counter(request.client for request in running), dict(self._last)
        waiting: dict[Hashable, collections.deque[Request]] = {}
        for request in self._requests:
            waiting.setdefault(request.client, collections.deque()).append(request)
        turn = self._taken
        while waiting:
            client = min(waiting, key=lambda client: (rows[client], last.get(client, 0), waiting[client][0].number))
            yield waiting[client].popleft()
            if not waiting[client]:
                del waiting[client]
            turn += 1
            rows[client] += 1
            last[client] = turn

    def next(self, running: Iterable[Request]) -> Request:
        """The first of `order`."""
        return next(self.order(running))
