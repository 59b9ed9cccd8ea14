"""Many people at once, some of them rude, on one model: every answer is the one it has alone, and nothing is left over.

    python benchmarks/soak.py [--requests 5000] [--threads 24] [--checkpoint gemma3-demo] [--failures 40] [--seed 0]

A pool of requests (texts, pictures, conversations, batches, greedy and seeded, with stop strings, logits, encoded
images) is answered one by one first. Then the threads draw from it: they read answers whole, close streams, let go of
them, drop them by an exception, ask with bad options and pictures that cannot be read or prepared, while device
programs fail, before or after they have run. Exits with 1 if an answer differs from its solo answer, an error is not
the one it should be, or rows, threads, arrays, files or memory are not back to where they began.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import ctypes
import dataclasses
import gc
import io
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import PIL.Image
from tqdm import tqdm

import gemma_tpu

PAGE = 1 << 20
_SETTLE = 30  # seconds that the engine has to come to rest
_GROWTH = 256  # MiB of resident memory that allocators may keep, however many requests there were


class Injected(RuntimeError):
    """A device program that fails because this soak says so."""


class Interrupted(Exception):
    """What a reader's own code raises in the middle of an answer."""


@dataclasses.dataclass(frozen=True)
class Item:
    """A request of the pool. `ask` gives what is compared; a `stream` can also be left before its end."""

    name: str
    ask: Callable[[], Any]
    stream: Callable[[], gemma_tpu.TextStream] | None = None


def picture(seed: int, width: int, height: int, mode: str = "RGB") -> PIL.Image.Image:
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return PIL.Image.fromarray(blocks).resize((width, height), PIL.Image.Resampling.NEAREST).convert(mode)


def encoded(image: PIL.Image.Image, format: str) -> bytes:
    file = io.BytesIO()
    image.save(file, format)
    return file.getvalue()


def pool(model: gemma_tpu.Model) -> list[Item]:
    pictures = [
        picture(0, 300, 200),
        encoded(picture(1, 900, 100), "PNG"),
        encoded(picture(2, 64, 640), "JPEG"),
        picture(3, 40, 40, "RGBA"),
        np.asarray(picture(4, 120, 90)),
    ]
    ways: list[dict[str, Any]] = [
        {},
        {"temperature": 1.0, "seed": 7},
        {"temperature": 0.7, "top_k": 5, "top_p": 0.8, "min_p": 0.02, "seed": 11},
        {"stop": ["e", "1"]},
        {"max_new_tokens": 1},
    ]
    texts = ["What is 12 + 30?", "Sort these numbers: 42, 7, 19, 3", "Multiply 6 by 7.", "Spell cat.", "word " * 150]
    prompts: list[tuple[Any, Any]] = [(text, None) for text in texts]
    prompts += [("What is in the picture?", image) for image in pictures]
    prompts += [("What is different?", pictures[:2]), (model.tokenizer.encode("Hello there", bos=True), None)]

    def single(prompt: Any, images: Any, way: dict[str, Any]) -> Item:
        def stream() -> gemma_tpu.TextStream:
            return model.stream(prompt, images=images, **{"max_new_tokens": 24, **way})

        def ask() -> Any:
            answer = stream().finish()
            return answer.text, answer.tokens, answer.finish_reason

        return Item("images" if images is not None else "text", ask, stream)

    def batch(way: dict[str, Any]) -> Item:
        def ask() -> Any:
            answers: Any = model.generate(texts[:4], **{"max_new_tokens": 16, **way})
            return [(answer.text, answer.tokens) for answer in answers]

        return Item("batch", ask)

    def chat(way: dict[str, Any], images: Any) -> Item:
        def ask() -> Any:
            talk = model.chat("Be brief.", max_new_tokens=10, drop_oldest=True, **way)
            first = talk.send("What is in it?", images=images)
            return first.tokens, talk.send("Which colour?").tokens, talk.messages[-1]

        return Item("chat", ask)

    tokens = np.array([model.tokenizer.encode(text, bos=True)[:5] for text in texts[:3]])
    return [
        *(single(prompt, images, way) for prompt, images in prompts for way in ways),
        *(batch(way) for way in ways),
        *(chat(way, image) for way in ways[:3] for image in pictures[:3]),
        Item("logits", lambda: np.asarray(model.logits(tokens))),
        Item("encode_images", lambda: np.asarray(model.encode_images(pictures[1:3]))),
    ]


def mistakes(model: gemma_tpu.Model) -> list[Callable[[], Any]]:
    """Calls of which each is its caller's mistake."""
    whole = encoded(picture(5, 200, 200), "PNG")
    options: list[dict[str, Any]] = [
        {"forbidden_tokens": [300.0]},
        {"stop_tokens": [model.config.vocab_size]},
        {"temperature": float("nan")},
        {"max_new_tokens": 0},
        {"stop": 5},
        {"seed": -1},
        {"no_such_option": 1},
    ]
    broken = [whole[:100], b"\x89PNG", "/nowhere.png", np.zeros((0, 3)), 5, encoded(picture(6, 80, 80), "JPEG")[:300]]
    prompts: list[Any] = [
        None,
        [],
        {"role": "user"},
        "word " * 20_000,
        [1, "two"],
        [{"role": "robot", "content": "hi"}],
    ]
    mixed: Any = ["Hello", "Hello", "", None]
    return [
        *(lambda way=way: model.generate("Hello", **way) for way in options),
        *(lambda image=image: model.generate("What is it?", images=image) for image in broken),
        *(lambda prompt=prompt: model.generate(prompt) for prompt in prompts),
        lambda: model.generate(mixed),
        lambda: model.logits([[1, 2], [3]]),
    ]


class Failures:
    """Makes device programs fail now and then, before they run or after: then the state they consumed is lost."""

    def __init__(self, runner: Any, count: int, requests: int, seed: int) -> None:
        self.injected = 0
        self._left, self._chance = count, count / max(1, requests)
        self._random = random.Random(seed)
        self.active = False
        for name in ("_prefill", "_decode", "_encode"):
            setattr(runner, name, self._failing(getattr(runner, name)))

    def _failing(self, program: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            fails = self.active and self._left > 0 and self._random.random() < self._chance / 2
            if fails:
                self._left -= 1
                self.injected += 1
                if self.injected % 2:
                    raise Injected("a program failed")
            result = program(*args, **kwargs)
            if fails:
                raise Injected("a program failed after it ran")
            return result

        return run


@dataclasses.dataclass
class Held:
    """What a process holds."""

    threads: collections.Counter[str]
    arrays: int
    array_bytes: int
    files: int
    temporary: int
    resident: int

    @classmethod
    def now(cls) -> Held:
        gc.collect()  # errors that were caught may hold each other, and what their frames held
        with contextlib.suppress(AttributeError, OSError):  # glibc's: what was freed need not have been given back
            ctypes.CDLL(None).malloc_trim(0)
        arrays = jax.live_arrays()
        status = Path("/proc/self/status").read_text()
        return cls(
            threads=collections.Counter(thread.name for thread in threading.enumerate()),
            arrays=len(arrays),
            array_bytes=sum(array.nbytes for array in arrays),
            files=len(os.listdir("/proc/self/fd")),
            temporary=len(os.listdir(tempfile.gettempdir())),
            resident=int(status.split("VmRSS:")[1].split()[0]) << 10,
        )

    def left_over(self, before: Held) -> list[str]:
        found = [f"thread {name}" for name in self.threads - before.threads]
        for name in ("arrays", "array_bytes", "files", "temporary"):
            if getattr(self, name) > getattr(before, name):
                found.append(f"{name}: {getattr(before, name)} before, {getattr(self, name)} now")
        if (grown := (self.resident - before.resident) / PAGE) > _GROWTH:
            found.append(f"resident memory grew by {grown:.0f} MiB")
        return found


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):  # padded and batched as the other: only the order of sums may differ
        return one.shape == other.shape and bool(np.allclose(one, other, rtol=1e-4, atol=1e-4))
    return one == other


class Soak:
    def __init__(self, model: gemma_tpu.Model, requests: int, failures: int, seed: int) -> None:
        self._model, self._requests, self._seed = model, requests, seed
        self._items, self._mistakes = pool(model), mistakes(model)
        self._lock = threading.Lock()
        self.counts: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self._failures = Failures(model.engine._runner, failures, requests, seed)

    def run(self, threads: int) -> None:
        self._solo = [item.ask() for item in self._items]
        for mistake in self._mistakes:
            self._err(mistake)
        self._all_at_once(threads, max(threads, self._requests // 20))  # after which allocators hold what they need
        self.counts.clear()
        before = Held.now()
        self._failures.active = True
        self._all_at_once(threads, self._requests)
        self._failures.active = False
        self.counts["failures injected"] = self._failures.injected
        after = Held.now()
        self.wrong += after.left_over(before)
        self.held = before, after
        for item, answer in zip(self._items, self._solo, strict=True):
            if not equal(item.ask(), answer):
                self.wrong.append(f"{item.name}: another answer after the soak")

    def _all_at_once(self, threads: int, requests: int) -> None:
        left = iter(tqdm(range(requests), desc="requests", disable=not sys.stderr.isatty()))
        workers = [threading.Thread(target=self._visit, args=(left, n), name=f"visitor {n}") for n in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        self._rest()

    def _rest(self) -> None:
        """Waits until every row is free: by itself, without the garbage collector's help."""
        engine = self._model.engine
        end = time.monotonic() + _SETTLE
        while engine._loop.has_work and time.monotonic() < end:
            time.sleep(0.01)
        if engine._loop.has_work:
            busy = [row.index for row in engine._scheduler.rows if row.request]
            self.wrong.append(f"still busy: rows {busy}, {len(engine._scheduler.waiting)} requests that wait")

    def _visit(self, left: Any, number: int) -> None:
        draw = random.Random(f"{self._seed} {number}")
        while True:
            with self._lock:
                if next(left, None) is None:
                    return
            try:
                self._one(draw)
            except BaseException as error:  # a thread's end must not go unseen
                self._note(f"{type(error).__name__}: {error}")

    def _one(self, draw: random.Random) -> None:
        if draw.random() < 0.15:
            self._err(draw.choice(self._mistakes))
            return
        index = draw.randrange(len(self._items))
        item, expected = self._items[index], self._solo[index]
        leave = draw.choice(["close", "let go", "raise"]) if item.stream and draw.random() < 0.3 else ""
        for _ in range(100):
            try:
                if leave and item.stream:
                    self._leave(item.stream(), leave, draw.randrange(4), expected[0])
                elif not equal(item.ask(), expected):
                    self._note(f"{item.name}: another answer than alone")
                break
            except Injected:
                self._count("asked again after a failure")
        else:
            self._note(f"{item.name}: no answer in a hundred tries")
        self._count(leave or item.name)

    def _leave(self, stream: gemma_tpu.TextStream, how: str, pieces: int, whole: str) -> None:
        said = ""
        try:
            for piece in stream:
                said += piece
                pieces -= 1
                if pieces < 0:
                    if how == "close":
                        stream.close()
                    elif how == "raise":
                        raise Interrupted
                    break
        except Interrupted:
            pass
        if not whole.startswith(said):
            self._note(f"{how}: {said!r} does not begin {whole!r}")

    def _err(self, mistake: Callable[[], Any]) -> None:
        try:
            self._note(f"a mistake was answered: {mistake()!r:.100}")
        except ValueError as error:
            if "\n" in str(error) or not str(error):
                self._note(f"no error of one line: {error}")
        except Exception as error:
            self._note(f"a mistake gave {type(error).__name__}: {error}")
        self._count("mistakes refused")

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def _note(self, what: str) -> None:
        with self._lock:
            self.wrong.append(what)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", default="gemma3-demo")
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=24)
    parser.add_argument("--max-rows", type=int, default=8)
    parser.add_argument("--dtype", default="float32", help="answers in bfloat16 depend on who shares a batch")
    parser.add_argument("--failures", type=int, default=40, help="at most so many programs fail (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    start, size = time.perf_counter(), {"max_context": 1024, "progress": False}
    with (
        tempfile.TemporaryDirectory() as tempfile.tempdir,  # of its own, so that nobody else's files are counted
        gemma_tpu.load(args.checkpoint, dtype=args.dtype, max_rows=args.max_rows, **size) as model,
    ):
        soak = Soak(model, args.requests, args.failures, args.seed)
        soak.run(args.threads)
    for what, count in sorted(soak.counts.items()):
        print(f"{count:7,} {what}")
    before, after = soak.held
    print(f"arrays {before.arrays} → {after.arrays}, files {before.files} → {after.files}, ", end="")
    print(f"threads {before.threads.total()} → {after.threads.total()}, ", end="")
    print(f"memory {before.resident / PAGE:,.0f} → {after.resident / PAGE:,.0f} MiB")
    for what, count in collections.Counter(soak.wrong).most_common():
        print(f"WRONG ({count}×): {what}")
    print(f"{args.requests:,} requests, {args.threads} threads, {time.perf_counter() - start:.0f} s: ", end="")
    print(f"{len(soak.wrong)} wrong" if soak.wrong else "every answer as alone, nothing left over")
    return 1 if soak.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
