"""Where in the pictures of a conversation the model looked when it wrote the token that comes next."""

from __future__ import annotations

from typing import Any

import numpy as np
import pydantic

from demo.chat_page.seen import Picture
from gemma_tpu import Model


class ImageURL(pydantic.BaseModel):
    url: Picture


class Part(pydantic.BaseModel):
    type: str
    text: str | None = None
    image_url: ImageURL | None = None

    @property
    def given(self) -> dict[str, Any]:
        if self.image_url:
            return {"type": "image", "image": self.image_url.url}
        return {"type": "text", "text": self.text or ""}


class Message(pydantic.BaseModel):
    role: str
    content: str | list[Part] | None = None

    @property
    def given(self) -> dict[str, Any]:
        content = [part.given for part in self.content] if isinstance(self.content, list) else self.content or ""
        return {"role": self.role, "content": content}


class AttentionRequest(pydantic.BaseModel):
    """OpenAI's messages; if the last is the assistant's, the token is the one that follows it."""

    messages: list[Message] = pydantic.Field(min_length=1)
    pan_and_scan: bool = False


def attention(model: Model, request: AttentionRequest) -> dict[str, Any]:
    """Weights on the soft tokens: `images`, [images][layers][side × side], the mean over the heads of each layer, and
    `sharpest`, [images][side × side], of the head (`layer`, `head`) that gave a single one most.

    `global_layers` see the whole context. ValueError for a conversation that the model cannot take.
    """
    messages = [message.given for message in request.messages]
    maps = model.attention(
        messages,
        positions=[-1],
        continue_final=messages[-1]["role"] == "assistant",
        pan_and_scan=request.pan_and_scan,
    )
    images = range(len(maps.image_starts[0]))
    if not images:
        raise ValueError("there are no pictures before this token")
    heads = np.stack([maps.on_image(i)[0].reshape(*maps.weights.shape[2:4], -1) for i in images])  # [I, L, N, side²]
    layer, head = np.unravel_index(heads.max(axis=(0, 3)).argmax(), heads.shape[1:3])
    return {
        "images": _rounded(heads.mean(axis=2)),
        "sharpest": _rounded(heads[:, layer, head]),
        "layer": int(layer),
        "head": int(head),
        "global_layers": [i for i, layer in enumerate(model.config.layers) if layer.window is None],
    }


def _rounded(weights: np.ndarray) -> Any:
    """As JSON that is not longer than it has to be."""
    return np.round(weights.astype(np.float64), 6).tolist()
