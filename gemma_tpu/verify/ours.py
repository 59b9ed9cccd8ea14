"""This toolkit's side: module outputs, logits, and greedy tokens from the engine."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from PIL import Image

from gemma_tpu.api import Model
from gemma_tpu.config import GemmaConfig
from gemma_tpu.engine.forward import encode_images, forward
from gemma_tpu.engine.request import ImageInput
from gemma_tpu.image import to_pixels
from gemma_tpu.loading import load
from gemma_tpu.model import Params
from gemma_tpu.options import SamplingParams
from gemma_tpu.picture import PlacedImage
from gemma_tpu.verify.inputs import Question, spread

Outputs = dict[str, np.ndarray]  # "0/layers.3" → rows of that module's output for question 0


class Ours:
    """A loaded model that answers questions and captures intermediate outputs."""

    def __init__(self, checkpoint: Any, **options: Any) -> None:
        self.model: Model = load(checkpoint, max_rows=1, progress=False, **options)
        self._image = np.zeros((0, 0, 3), np.uint8)

    def __enter__(self) -> Ours:
        return self

    def __exit__(self, *_: object) -> None:
        self.model.close()

    def run(self, questions: Sequence[Question], image: np.ndarray, log: Callable[[str], None]) -> Outputs:
        """Outputs for every question. `image` uint8[S, S, 3] is used for each image of a question."""
        self._image = image
        outputs: Outputs = {}
        for i, question in enumerate(questions):
            log(f"gemma_tpu: {question.name!r}, {len(question.expanded)} tokens")
            captured = _capture(self.model.config, question, self.model.params, self._pixels(question))
            outputs |= {f"{i}/{name}": np.asarray(value) for name, value in captured.items()}
            outputs[f"{i}/greedy"] = np.array(self._greedy(question), np.int32)
        return outputs

    def margin(self, question: Question, answer: Sequence[int], ours: int, theirs: int) -> float:
        """The logit of token `ours` minus that of `theirs`, after the question and the first tokens of an answer."""
        config, params, pixels = self.model.config, self.model.params, self._pixels(question)
        soft = None if pixels is None else encode_images(config, params, pixels)
        logits = forward(config, params, np.array([[*question.expanded, *answer]]), soft_tokens=soft)[0, -1]
        return float(logits[ours] - logits[theirs])

    def _pixels(self, question: Question) -> jax.Array | None:
        vision = self.model.config.vision
        if not question.images or vision is None:
            return None
        return jnp.asarray(
            np.stack([to_pixels(Image.fromarray(self._image), vision.image_size)] * len(question.images))
        )

    def _greedy(self, question: Question) -> list[int]:
        """Greedy decoding by the engine, with its caches, without image markers and without stop tokens."""
        tokenizer, vision = self.model._tokenizer, self.model.config.vision
        markers = () if tokenizer is None else (tokenizer.start_of_image, tokenizer.end_of_image)
        forbidden = [marker for marker in markers if marker is not None]
        options = SamplingParams(max_new_tokens=question.new_tokens, stop_tokens=(), forbidden_tokens=forbidden)
        images = []
        if question.images and vision:
            image = ImageInput(Image.fromarray(self._image), vision.image_size)
            images = [PlacedImage(start, image) for start in question.images]
        return [token for piece in self.model.engine.submit(question.expanded, images, options) for token in piece]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _capture(
    config: GemmaConfig, question: Question, params: Params, pixels: Float[Array, "I side side 3"] | None
) -> dict[str, jax.Array]:
    """The selected rows of every module's output and of the logits, in float32."""
    captured: dict[str, jax.Array] = {}

    def keep(name: str, value: jax.Array) -> None:
        rows = spread(value.shape[-2]) if name.startswith("vision.") else question.hidden_positions
        value = value if name.startswith("vision.") else value[0]
        if name != "logits":
            captured[name] = value[..., jnp.asarray(rows), :].astype(jnp.float32)

    soft = None if pixels is None else encode_images(config, params, pixels, capture=keep)
    logits = forward(config, params, np.array([question.expanded]), soft_tokens=soft, capture=keep)
    return captured | {"logits": logits[0, jnp.asarray(question.logit_positions)]}
