"""What tests/test_distributed.py starts in every process: a script as a user would write it, on a checkpoint."""

import json
import os
import signal
import sys
import threading
import time
from typing import Any

import numpy as np

import gemma_tpu

ANSWER: dict[str, Any] = {"max_new_tokens": 12, "stop_tokens": ()}


def answers(model: gemma_tpu.Model) -> dict[str, Any]:
    """One of everything: text, a batch with images, a sampled answer, a conversation, logits, soft tokens."""
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 256, (40, 60, 3), dtype=np.uint8) for _ in range(2))
    look = [{"role": "user", "content": [{"type": "image", "image": first}, {"type": "text", "text": "What is it?"}]}]
    chat = model.chat("Be brief.", **ANSWER)
    chat.send("What is it?", images=[first])
    again = chat.send("And now?", images=[second])
    image = model.tokenizer.start_of_image
    return {
        "text": model.generate("Hello", **ANSWER).tokens,
        "batch": [one.tokens for one in model.generate(["a", look, "some more words", look], **ANSWER)],
        "sampled": model.generate("Hello", temperature=1.5, top_k=0, top_p=1.0, seed=3, **ANSWER).tokens,
        "chat": [again.tokens, again.usage.cached_tokens > 0],
        "logits": np.asarray(model.logits([[2, 70, image, 80], [2, 71, 72, 73]], [[first], []])).tolist(),
        "soft tokens": np.asarray(model.encode_images([second])).tolist(),
    }


def compare(checkpoint: str) -> None:
    """Prints the answers of a mesh of all processes, and of this process alone."""
    import jax

    shape = (2, jax.device_count() // 2)
    found = {}
    for name, options in (
        ("all", {}),
        ("two groups", {"mesh": shape}),
        ("alone", {"mesh": jax.sharding.Mesh([[jax.local_devices()[0]]], ("data", "model"))}),
    ):
        settings = {"max_context": 128, "max_rows": 4, "progress": False} | options
        with gemma_tpu.load(checkpoint, **settings) as model:
            found[name] = answers(model)
    try:
        gemma_tpu.load("no/such/checkpoint")
    except ValueError as error:
        found["error"] = str(error)
    print(json.dumps(found), flush=True)


def lose(checkpoint: str, victim: int) -> None:
    """Kills a process in the middle of a long answer; prints what requests then raise, and after how long."""
    model = gemma_tpu.load(checkpoint, max_context=512, max_rows=2, progress=False)
    stream = model.stream("Hello", max_new_tokens=500, stop_tokens=())
    next(stream)
    waiting = model.stream("Hello", max_new_tokens=500, stop_tokens=())
    killed = time.monotonic()
    os.kill(victim or os.getpid(), signal.SIGKILL)
    errors = []
    for request in (lambda: [*stream], lambda: [*waiting], lambda: model.generate("x"), lambda: model.logits([[2]])):
        try:
            request()
        except RuntimeError as error:
            errors.append([str(error), time.monotonic() - killed])
    model.close()
    print(json.dumps({"errors": errors, "closed": time.monotonic() - killed}), flush=True)
    threading.Event().wait(0.1)


if __name__ == "__main__":
    task, coordinator, processes, process, *arguments = sys.argv[1:]
    gemma_tpu.initialize(coordinator, int(processes), int(process))
    if task == "compare":
        compare(*arguments)
    else:
        lose(arguments[0], int(arguments[1]))
