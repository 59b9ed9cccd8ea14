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
    """Per layer the mean over its heads: `images`, [images][layers][side × side], and the share of `text`, [layers].

    `global_layers` see the whole context. ValueError for a conversation that the model cannot take.
    """
    messages = [message.given for message in request.messages]
    maps = model.attention(
        messages,
        positions=[-1],
        continue_final=messages[-1]["role"] == "assistant",
        pan_and_scan=request.pan_and_scan,
    )
    squares = [maps.on_image(i)[0].mean(axis=1) for i in range(len(maps.image_starts[0]))]
    on_pictures = sum((square.sum(axis=(1, 2)) for square in squares), np.zeros(len(model.config.layers)))
    return {
        "images": [np.round(square.reshape(len(square), -1), 5).tolist() for square in squares],
        "text": np.round(1 - on_pictures, 5).tolist(),
        "global_layers": [i for i, layer in enumerate(model.config.layers) if layer.window is None],
    }
