"""What tests/test_distributed.py starts in every process: a script as a user would write it, on a checkpoint."""

import functools
import json
import os
import signal
import sys
import threading
import time
from typing import Any

import jax
import numpy as np
import PIL.Image

import gemma_tpu
from gemma_tpu.config import SOFT_TOKEN
from gemma_tpu.engine.request import ImageInput
from gemma_tpu.engine.step import Step
from gemma_tpu.picture import PlacedImage

SETTINGS: dict[str, Any] = {"max_context": 128, "max_rows": 2, "progress": False}
ANSWER: dict[str, Any] = {"max_new_tokens": 12, "stop_tokens": ()}


def answers(model: gemma_tpu.Model) -> dict[str, Any]:
    """One of everything: text, a batch with images, a sampled answer, a conversation, logits, attention, images."""
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 256, (40, 60, 3), dtype=np.uint8) for _ in range(2))
    look = [{"role": "user", "content": [{"type": "image", "image": first}, {"type": "text", "text": "It?"}]}]
    # Digits are tokens of their own: an answer of one of them is the same tokens again in the next prompt.
    (digit,) = set(model.tokenizer.encode("1111")) - set(model.tokenizer.encode("a"))
    chat = model.chat(**ANSWER)
    others = [token for token in range(model.tokenizer.vocab_size) if token != digit]
    chat.send("It?", images=[first], forbidden_tokens=others)
    again = chat.send("And?", images=[second])
    image = model.tokenizer.start_of_image
    wishes = {"repetition_penalty": 1.5, "logit_bias": {71: 2}, "bad_words": [[70, 71]], "logprobs": 2}
    grammar = gemma_tpu.Grammar.regex("[a-z]{1,6}( [a-z]{2})?")
    asked = model.generate("Hello", temperature=1.0, seed=3, prompt_logprobs=1, grammar=grammar, **wishes, **ANSWER)
    attention = model.attention([[2, 70, image, 80], [2, 71, 72, 73]], [[first], []], positions=[1, 3, 0])
    return {
        "text": model.generate("Hello", **ANSWER).tokens,
        "batch": [one.tokens for one in model.generate(["a", look, "some more words"], **ANSWER)],
        "sampled": model.generate("Hello", temperature=1.5, top_k=0, top_p=1.0, seed=3, **ANSWER).tokens,
        "asked": [[one.token for one in asked.logprobs], len(asked.prompt_logprobs)],
        "chat": [again.tokens, again.usage.cached_tokens > 0],
        "logits": np.asarray(model.logits([[2, 70, image, 80], [2, 71, 72, 73]], [[first], []])).tolist(),
        "attention": attention.weights.tolist(),
        "soft tokens": np.asarray(model.encode_images([second])).tolist(),
    }


class Unprepared(ImageInput):
    """A picture whose pixels cannot be made."""

    @property
    def pixels(self) -> np.ndarray:
        raise MemoryError("no room for the pixels")


def mistakes(model: gemma_tpu.Model) -> list[str]:
    """What is wrong with one request, before the devices know of it, is that request's error and ends nothing."""
    vision = model.config.vision
    image = Unprepared(PIL.Image.new("RGB", (9, 9)), vision.image_size)
    prompt = [2, *[SOFT_TOKEN] * vision.num_soft_tokens, 70]

    def ask() -> None:
        for _ in model.engine.submit(prompt, [PlacedImage(1, image)], gemma_tpu.SamplingParams(max_new_tokens=3)):
            pass

    def ask_with(part: str) -> None:
        """As if a step that has this part could not be pickled."""
        run = model.engine._runner.run

        def send(step: Step) -> jax.Array | None:
            if getattr(step, part):
                raise TypeError("cannot be sent")
            return run(step)

        model.engine._runner.run = send
        try:
            model.generate("Hello", **ANSWER)
        finally:
            del model.engine._runner.run

    said = []
    for call in (
        ask,
        lambda: model.engine.encode_images([image]),
        *(functools.partial(ask_with, name) for name in ("prefill", "activate", "decode")),
    ):
        try:
            call()
        except Exception as error:
            said.append(str(error))
    return said


def compare(checkpoint: str, mesh: str) -> None:
    """Writes the answers of a DATA,MODEL mesh, of the checkpoint with an adapter that every process has to merge.

    DATA,MODEL,N: with N tokens guessed by the checkpoint as it is, which every process has to read too.
    """
    data, width, *guesses = map(int, mesh.split(","))
    options = {"adapter": f"{checkpoint}-adapter", **SETTINGS}
    if guesses:
        options |= {"draft": checkpoint, "draft_tokens": guesses[0]}
    with gemma_tpu.load(checkpoint, mesh=(data, width), **options) as model:
        found = answers(model)
        found["mistakes"] = mistakes(model)
        after = model.generate("Hello", **ANSWER)
        found |= {"after them": after.tokens, "guesses": after.usage.draft_tokens}
    integers = {"adapter": f"{checkpoint}-adapter", "quantize": "int8", "kv_cache_dtype": "int8"}
    with gemma_tpu.load(checkpoint, mesh=(data, width), **integers, **SETTINGS) as model:
        found["answer of integers"] = len(model.generate("Hello", **ANSWER).tokens)
        found["logits of integers"] = np.asarray(model.logits([[2, 71, 72, 73]])).tolist()
    try:
        gemma_tpu.load("no/such/checkpoint")
    except ValueError as error:
        found["error"] = str(error)
    # After a mistake all go on; and a mesh of this process alone is nobody else's business.
    here = jax.sharding.Mesh(np.array([[jax.local_devices()[0]]]), ("data", "model"))
    with gemma_tpu.load(checkpoint, mesh=here, **SETTINGS) as model:
        found["here"] = model.generate("Hello", **ANSWER).tokens
    report(found)


def report(found: dict[str, Any]) -> None:
    """As the last line: XLA's collectives on CPUs write to standard output too."""
    print("\n" + json.dumps(found), flush=True)


def lose(checkpoint: str, victim: str) -> None:
    """Sends a signal amid a long answer ("PID,SIGNAL", PID 0 is this process); prints what requests then raise."""
    pid, name = victim.split(",")
    model = gemma_tpu.load(checkpoint, **SETTINGS | {"max_context": 512})
    gone, run = threading.Event(), model.engine._runner.run

    def wait_and_run(step: Step) -> jax.Array | None:  # so that no answer ends before
        if any(row.request and row.request.generated for row in model.engine._scheduler.rows):
            gone.wait()
        return run(step)

    model.engine._runner.run = wait_and_run
    stream = model.stream("Hello", max_new_tokens=500, stop_tokens=())
    next(stream)
    waiting = model.stream("Hello", max_new_tokens=500, stop_tokens=())
    sent = time.monotonic()
    os.kill(int(pid) or os.getpid(), signal.Signals[name])
    gone.set()
    errors = []
    for request in (lambda: [*stream], lambda: [*waiting], lambda: model.generate("x"), lambda: model.logits([[2]])):
        try:
            request()
        except RuntimeError as error:
            errors.append([str(error), time.monotonic() - sent])
    model.close()
    report({"errors": errors, "closed": time.monotonic() - sent})


def load(checkpoint: str, mesh: str) -> None:
    """Loads on a DATA,MODEL mesh; as "stopped" after having been stopped, by whoever lets it go on."""
    if mesh == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
        mesh = "1,2"
    data, width = map(int, mesh.split(","))
    gemma_tpu.load(checkpoint, mesh=(data, width), **SETTINGS).close()


if __name__ == "__main__":
    task, coordinator, processes, process, checkpoint, argument = sys.argv[1:]
    if int(processes) > 1:
        gemma_tpu.initialize(coordinator, int(processes), int(process))
    {"compare": compare, "lose": lose, "load": load}[task](checkpoint, argument)
