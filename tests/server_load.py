"""Many requests of every kind at once, on a real server: each answer is the one it has alone, and nothing is left over.

    python -m tests.server_load [--requests 2000] [--in-flight 32] [--checkpoint gemma3-demo] [--seed 0]
                               [--draft-tokens 3] [--draft CHECKPOINT] [--cache-tokens N] [--stored-prefixes N]

First the server is asked each request of a pool one at a time. Then as many at once as are in flight are drawn from the
pool, some as streams, some of which their clients leave. Exits with 1 if an answer differs from its solo answer, is not
valid by its schema, a program was compiled, or rows, threads, arrays, files, memory or metrics are not as they were.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import json
import random
import re
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import jsonschema

import gemma_tpu
from benchmarks.soak import Held
from gemma_tpu.server import Server, Settings, build_app, listen
from tests.server_requests import ADD, POINT, Item, make_pool, next_turn

_LEAVE, _STREAM = 0.1, 0.5  # shares of requests
_SETTLE = 30  # seconds
_POOL = re.compile(r"thread (gemma-server-images|asyncio|uvloop)_\d+$")  # begun when first needed, and never many


@dataclasses.dataclass
class Said:
    """An answer, whole or as far as it was read."""

    text: str = ""
    calls: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    reason: str | None = None
    logprobs: list[tuple[str, float]] = dataclasses.field(default_factory=list)

    def equals(self, other: Said) -> bool:
        """Log-probabilities may differ by the order of sums."""
        mine, others = ([value for _, value in said.logprobs] for said in (self, other))
        tokens = [[token for token, _ in said.logprobs] for said in (self, other)]
        same = (self.text, self.calls, self.reason, tokens[0]) == (other.text, other.calls, other.reason, tokens[1])
        return same and all(abs(one - two) < 1e-3 for one, two in zip(mine, others, strict=True))


def read(event: dict[str, Any], answers: list[Said]) -> None:
    """Adds what an event of a stream says, or a whole response."""
    kind = event.get("type", event.get("object"))
    if event.get("error"):
        raise AssertionError(event["error"])
    for choice in event.get("choices", ()):
        said, part = answers[choice["index"]], choice.get("message") or choice.get("delta") or choice
        said.text += part.get("content") or part.get("text") or ""
        called = [call["function"] for call in part.get("tool_calls", ())]
        said.calls += [(function["name"], function["arguments"]) for function in called]
        said.reason = said.reason or choice["finish_reason"]
        if choice.get("logprobs"):
            said.logprobs += [(entry["token"], entry["logprob"]) for entry in choice["logprobs"]["content"]]
    (said, *_) = answers
    if kind == "response.output_text.delta":
        said.text += event["delta"]
    elif kind in ("response", "response.completed", "response.incomplete"):
        response = event.get("response", event)
        text, said.reason = response["output"][0]["content"][0]["text"], response["status"]
        assert said.text in (text, "")  # "": of a response that is no stream
        said.text = text
    elif kind == "content_block_delta":
        said.text += event["delta"]["text"]
    elif kind in ("message", "message_delta"):
        said.text += "".join(block["text"] for block in event.get("content", ()))
        said.reason = event.get("delta", event)["stop_reason"]


class Client:
    """Asks a server, and notes what is wrong with its answers."""

    def __init__(self, url: str, items: list[Item]) -> None:
        self._url, self._items = url, items
        self.solo: list[list[Said]] = []
        self._next: dict[int, int] = {}  # the item that is the next turn of another
        self.counts: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self.asked = 0  # answers

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        options: Any = {"base_url": self._url, "timeout": None, "trust_env": False}
        async with httpx.AsyncClient(limits=httpx.Limits(max_connections=None), **options) as self._http:
            yield

    async def ask_alone(self) -> None:
        """Each choice of several in a request of its own; next turns when no row remembers what they go on from."""
        for item in self._items:
            self.solo.append(await self._ask_each(item))
        for i, (item, (said, *_)) in enumerate(zip(list(self._items), list(self.solo), strict=True)):
            if item.kind == "completion" or (item.kind == "text" and said.text):
                self._next[i] = len(self._items)
                self._items.append(next_turn(item, said.text))
                self.solo.append(await self._ask_each(self._items[-1]))

    async def _ask_each(self, item: Item) -> list[Said]:
        answers = []
        for i in range(item.n):
            body = item.body if item.n == 1 else item.body | {"n": 1, "seed": (item.body["seed"] + i) % 2**32}
            answers += await self._ask(Item(item.kind, item.path, body), stream=False)
        return answers

    async def ask_at_once(self, requests: int, in_flight: int, seed: int) -> None:
        left, r = iter(range(requests)), random.Random(seed)

        async def visit() -> None:
            for _ in left:
                index = r.randrange(len(self._items))
                await self._compare(index, r.random(), r.randrange(6))
                if index in self._next:  # its row may remember it
                    await self._compare(self._next[index], 1, 0)

        await asyncio.gather(*(visit() for _ in range(in_flight)))

    async def _compare(self, index: int, dice: float, events: int) -> None:
        item, wanted = self._items[index], self.solo[index]
        self.counts[item.kind] += 1
        leaves = dice < _LEAVE
        self.counts["left"] += leaves
        answers = await self._ask(item, stream=dice < _STREAM, events=events if leaves else None)
        for said, alone in zip(answers, wanted, strict=True):
            if not (alone.text.startswith(said.text) if leaves else said.equals(alone)):
                self.wrong.append(f"{item.kind}: {said} is not as alone: {alone}; asked: {str(item.body)[:300]}")
            if item.kind == "schema" and said.reason == "stop":
                self._check(said.text, POINT)
            for _, arguments in said.calls if item.body.get("tool_choice") == "required" else ():
                self._check(arguments, ADD)

    def _check(self, text: str, schema: dict[str, Any]) -> None:
        self.counts["checked by a schema"] += 1
        try:
            jsonschema.validate(json.loads(text), schema)
        except (ValueError, jsonschema.ValidationError) as error:
            self.wrong.append(f"{text!r} is not valid: {error}")

    async def _ask(self, item: Item, *, stream: bool, events: int | None = None) -> list[Said]:
        """Leaves after so many events."""
        answers = [Said() for _ in range(item.n)]
        self.asked += item.n
        async with self._http.stream("POST", item.path, json=item.body | {"stream": stream}) as response:
            if not stream:
                await response.aread()
                read(response.raise_for_status().json(), answers)
                return answers
            async for line in response.raise_for_status().aiter_lines():
                if line.startswith("data: {"):
                    if events == 0:
                        break
                    events = None if events is None else events - 1
                    read(json.loads(line.removeprefix("data: ")), answers)
        return answers


def metrics(app: Any) -> dict[str, float]:
    lines = app.state.service.metrics.text().decode().splitlines()
    found: collections.Counter[str] = collections.Counter()
    for line in lines:
        if not line.startswith("#"):
            found[re.split("[{ ]", line.removeprefix("gemma_tpu:"))[0]] += float(line.rpartition(" ")[2])
    return found


@contextlib.contextmanager
def served(model: gemma_tpu.Model) -> Iterator[tuple[Any, str]]:
    app = build_app(model, Settings(model_names=("m",), max_queue=1000))
    with listen("127.0.0.1", 0) as listener:
        server = Server(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield app, f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def settle(model: gemma_tpu.Model, app: Any) -> list[str]:
    """What has not ended by itself."""
    end = time.monotonic() + _SETTLE
    while time.monotonic() < end:
        held = {"rows": model.engine.occupancy()[:2], "requests": app.state.service.requests}
        held |= {"answers": app.state.service._answers}
        if held == {"rows": (0, 0), "requests": 0, "answers": 0}:
            return []
        time.sleep(0.05)
    return [f"still busy: {held}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", default="gemma3-demo")
    for flag, default in (
        ("--requests", 2000),
        ("--in-flight", 32),
        ("--pool", 220),
        ("--max-rows", 8),
        ("--seed", 0),
        ("--stored-prefixes", 0),
        ("--draft-tokens", None),
    ):
        parser.add_argument(flag, type=int, default=default)
    parser.add_argument("--cache-tokens", type=int)
    parser.add_argument("--draft")
    args = parser.parse_args()
    begin, items = time.perf_counter(), make_pool(args.pool, args.seed)
    options = {"dtype": "float32", "max_context": 1024, "max_rows": args.max_rows, "progress": False}
    options |= {"cache_tokens": args.cache_tokens, "stored_prefixes": args.stored_prefixes}
    options |= {"draft": args.draft, "draft_tokens": args.draft_tokens}
    with (
        tempfile.TemporaryDirectory() as tempfile.tempdir,  # of its own, so that nobody else's files are counted
        gemma_tpu.load(args.checkpoint, **options) as model,
        served(model) as (app, url),
    ):
        model.warmup()

        asking = Client(url, items)

        async def prepare() -> None:
            async with asking.connected():
                await asking.ask_alone()
                print(f"{asking.asked} answers one at a time, {time.perf_counter() - begin:.0f} s", flush=True)
                await asking.ask_at_once(args.requests // 10, args.in_flight, args.seed + 1)  # allocators have enough
                asking.counts.clear()

        async def at_once() -> None:
            async with asking.connected():
                await asking.ask_at_once(args.requests, args.in_flight, args.seed)

        compiled = metrics(app)["compilations_total"]
        asyncio.run(prepare())
        asking.wrong += settle(model, app)
        before, start, hits = Held.now(), time.perf_counter(), metrics(app)["prefix_cache_hits_total"]
        asyncio.run(at_once())
        seconds = time.perf_counter() - start
        wrong, found = asking.wrong + settle(model, app), metrics(app)
        after = Held.now()
        wrong += [left for left in after.left_over(before) if not _POOL.match(left)]
    if found["compilations_total"] != compiled:
        wrong.append(f"{found['compilations_total'] - compiled:.0f} programs were compiled")
    names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    wrong += [f"metric {name}: {found[name]}" for name in names if found[name]]
    if found["request_success_total"] != asking.asked:
        wrong.append(f"metrics have {found['request_success_total']:.0f} answers of {asking.asked}")
    print(", ".join(f"{count} {what}" for what, count in sorted(asking.counts.items())))
    print(
        f"{args.requests} requests, {args.in_flight} in flight, {seconds:.0f} s; threads {before.threads.total()} → ",
        end="",
    )
    print(
        f"{after.threads.total()}, arrays {before.arrays} → {after.arrays}, files {before.files} → {after.files}, ",
        end="",
    )
    print(f"memory {before.resident >> 20} → {after.resident >> 20} MiB, ", end="")
    print(f"{found['compilations_total'] - compiled:.0f} compilations since warm-up, ", end="")
    print(f"{found['prefix_cache_hits_total'] - hits:.0f} tokens from the cache")
    for what, count in collections.Counter(wrong).most_common(20):
        print(f"WRONG ({count}×): {what}")
    print(f"{len(wrong)} wrong" if wrong else "every answer as alone, nothing left over")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
