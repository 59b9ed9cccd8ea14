"""Load on a server, or on a model without one: many requests at once, and how long each piece of an answer takes."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np

from gemma_tpu.checks import check_integer, one_line
from gemma_tpu.server.settings import KEYS_VARIABLE

if TYPE_CHECKING:  # importing jax takes seconds
    from gemma_tpu.api import Model

PERCENTILES = (50, 95, 99)
_ROUNDS = 4  # requests for each in flight
_TEXT = "The quick brown fox jumps over the lazy dog: 0123456789. What is in the picture? Sphinx of black quartz!"
_WAIT = 0.2  # seconds between two looks at a server that starts


@dataclasses.dataclass(frozen=True)
class Load:
    """What is asked. ValueError for what cannot be.

    Prompts have lengths between `prompt_tokens`, uniform in log and of one distribution at each level of `in_flight`.
    Their tokens are drawn: beyond `shared_prefix`, they have the first one in common, and by chance one or two more.
    `requests`: of each level, by default four for each in flight.
    """

    in_flight: Sequence[int] = (1, 8, 32, 64)
    prompt_tokens: Sequence[int] = (128, 7936)  # with an answer, the context that a server has by default
    max_tokens: int = 256
    requests: int | None = None
    shared_prefix: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_integer("in_flight", min(self.in_flight), 1)
        check_integer("shared_prefix", self.shared_prefix, 0)
        check_integer("prompt_tokens", min(self.prompt_tokens), self.shared_prefix + 2)
        check_integer("max_tokens", self.max_tokens, 2)
        check_integer("requests", 1 if self.requests is None else self.requests, 1)

    @property
    def context(self) -> int:
        """Tokens of the longest prompt and its answer."""
        return max(self.prompt_tokens) + self.max_tokens

    def prompts(self, in_flight: int, tokens: Sequence[int]) -> list[list[int]]:
        """Those of a level, drawn from `tokens` but for the first, with which each begins."""
        rng, common = np.random.default_rng([self.seed, in_flight]), np.random.default_rng(self.seed)
        count = self.requests or _ROUNDS * in_flight
        shares = (np.arange(count) + 0.5) / count
        lengths = np.exp(np.interp(shares, (0, 1), np.log(sorted(self.prompt_tokens))))
        prefix = [tokens[0], *common.choice(tokens[1:], self.shared_prefix).tolist()]
        return [prefix + rng.choice(tokens[1:], round(n) - len(prefix)).tolist() for n in rng.permutation(lengths)]


@dataclasses.dataclass
class Answer:
    """What came of a request. `times`: of its pieces, in seconds from when it was asked."""

    prompt: int
    tokens: int = 0
    cached: int = 0
    times: list[float] = dataclasses.field(default_factory=list)
    error: str = ""


class Engine:
    """A model in this process. `tokens`: that prompts may have, first the one that begins each."""

    def __init__(self, model: Model) -> None:
        self._model, self.context = model, model.deployment.context
        self.tokens = list(dict.fromkeys(model.tokenizer.encode(_TEXT, bos=True)))

    async def ask(self, prompt: list[int], max_tokens: int) -> Answer:
        answer, begin = Answer(len(prompt)), time.perf_counter()
        stream = self._model.astream(prompt, max_new_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        answer.times = [time.perf_counter() - begin async for _ in stream]
        usage = stream.completion.usage
        answer.tokens, answer.cached = usage.completion_tokens, usage.cached_tokens
        return answer

    async def close(self) -> None:
        """The model stays its owner's."""


class KeyRefused(ValueError):
    """A server wants a key, or another one."""


class Server:
    """One with OpenAI's API and vLLM's /tokenize. ValueError if there is none, KeyRefused if it wants another `key`."""

    def __init__(self, url: str, key: str = "", *, stream: bool = True) -> None:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        options: Any = {"base_url": url.rstrip("/").removesuffix("/v1"), "headers": headers, "timeout": None}
        try:
            with httpx.Client(**options) as http:
                first = http.get("/v1/models").raise_for_status().json()["data"][0]
                body = {"model": first["id"], "prompt": _TEXT}
                self.tokens = list(dict.fromkeys(http.post("/tokenize", json=body).raise_for_status().json()["tokens"]))
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.UNAUTHORIZED:
                raise KeyRefused(f"{url}: the server {'refuses this key' if key else 'wants a key'}") from error
            raise ValueError(f"{url}: {one_line(error)}") from error
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, IndexError) as error:
            raise ValueError(f"{url}: {one_line(error)}") from error
        self.context = first.get("max_model_len")
        self._body = {"model": first["id"], "temperature": 0, "ignore_eos": True, "stream": stream}
        self._body |= {"stream_options": {"include_usage": True}} if stream else {}
        self._http = httpx.AsyncClient(**options, limits=httpx.Limits(max_connections=None))

    async def ask(self, prompt: list[int], max_tokens: int) -> Answer:
        answer, begin = Answer(len(prompt), error="cut off"), time.perf_counter()
        body = {**self._body, "prompt": prompt, "max_tokens": max_tokens}
        try:
            async with self._http.stream("POST", "/v1/completions", json=body) as response:
                async for line in response.aiter_lines():
                    if line not in ("", "data: [DONE]"):
                        _read(json.loads(line.removeprefix("data: ")), answer, time.perf_counter() - begin)
        except (httpx.HTTPError, ValueError) as error:
            answer.error = type(error).__name__
        return answer

    async def close(self) -> None:
        await self._http.aclose()


def _read(event: dict[str, Any], answer: Answer, seconds: float) -> None:
    if "error" in event:
        answer.error = str(event["error"].get("code"))
    elif any(choice["text"] for choice in event["choices"]):
        answer.times.append(seconds)
    if usage := event.get("usage"):
        answer.tokens, answer.error = usage["completion_tokens"], ""
        answer.cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)


async def run(load: Load, target: Engine | Server) -> AsyncIterator[dict[str, Any]]:
    """The figures of each level in flight, as they come. ValueError if prompt and answer are more than the context."""
    if target.context is not None and load.context > target.context:
        raise ValueError(f"prompt and answer have up to {load.context} tokens, more than the context, {target.context}")
    for in_flight in load.in_flight:
        left, answers = iter(load.prompts(in_flight, target.tokens)), []

        async def ask(left: Iterator[list[int]] = left, answers: list[Answer] = answers) -> None:
            for prompt in left:
                answers.append(await target.ask(prompt, load.max_tokens))

        begin = time.perf_counter()
        await asyncio.gather(*(ask() for _ in range(in_flight)))
        yield {"in_flight": in_flight} | figures(answers, time.perf_counter() - begin)
    await target.close()


def figures(answers: Sequence[Answer], seconds: float) -> dict[str, Any]:
    """Of answers that took `seconds` together. Their times are in seconds, by percentile.

    `first_token`; `token`: the mean between two tokens of an answer; `pause`: between two of its pieces, which may have
    several tokens. Answers with an error count as that, and those that came whole have no such times.
    """
    good = [answer for answer in answers if not answer.error]
    streamed = [answer for answer in good if len(answer.times) > 1]
    totals = {f"{name}_tokens": 0 for name in ("prompt", "cached", "completion")}
    for answer in good:
        totals["prompt_tokens"] += answer.prompt
        totals["cached_tokens"] += answer.cached
        totals["completion_tokens"] += answer.tokens
    times = {
        "first_token": [answer.times[0] for answer in streamed],
        "token": [(answer.times[-1] - answer.times[0]) / (answer.tokens - 1) for answer in streamed],
        "pause": [pause for answer in streamed for pause in np.diff(answer.times)],
    }
    errors = dict(collections.Counter(answer.error for answer in answers if answer.error))
    rates = {"requests_per_second": len(good) / seconds, "tokens_per_second": totals["completion_tokens"] / seconds}
    percentiles = {name: np.percentile(all_, PERCENTILES).tolist() if all_ else None for name, all_ in times.items()}
    return {"requests": len(answers), "errors": errors, "seconds": seconds, **rates, **totals, **percentiles}


@contextlib.contextmanager
def started(checkpoint: str, arguments: Sequence[str]) -> Iterator[str]:
    """The address of a `gemma-tpu serve` that is ready. ValueError with what it says if it does not come that far."""
    command = [sys.executable, "-m", "gemma_tpu", "serve", checkpoint, "--port", "0", "--no-demo", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != KEYS_VARIABLE}
    options: Any = {"stdout": subprocess.PIPE, "text": True, "env": environment}
    with tempfile.TemporaryFile("w+") as said, subprocess.Popen(command, stderr=said, **options) as server:
        try:
            assert server.stdout is not None
            address = re.search(r"http://[\d.:]+", server.stdout.readline())
            try:
                while address and not httpx.get(f"{address[0]}/ready").is_success:
                    time.sleep(_WAIT)
            except httpx.TransportError:  # it is about to end
                address = None
            if not address:
                server.wait()
                said.seek(0)
                raise ValueError(said.read().strip().rpartition("\n")[2].removeprefix("gemma-tpu: "))
            yield address[0]
        finally:
            server.terminate()
