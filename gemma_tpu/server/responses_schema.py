"""What clients of OpenAI's Responses API send, see `gemma_tpu.server.schema`."""

from __future__ import annotations

from typing import Any, Literal

import pydantic
from pydantic import Field
from pydantic_core import PydanticCustomError

from gemma_tpu.server.fields import Strict, either, only
from gemma_tpu.server.grammar_fields import TextFormat
from gemma_tpu.server.schema import Message


class ItemPart(Strict):
    type: Literal["input_text", "output_text", "input_image"]
    text: str | None = None
    image_url: str | None = None
    detail: Literal["auto", "low", "high"] | None = None
    file_id: only()
    annotations: only([])
    logprobs: only([])
    prompt_cache_breakpoint: only()

    @pydantic.model_validator(mode="after")
    def _has_content(self) -> ItemPart:
        given, other = (self.image_url, self.text) if self.type == "input_image" else (self.text, self.image_url)
        if given is None or other is not None:
            raise PydanticCustomError("part", "a part has text or, if it is an input_image, an image_url")
        return self

    def as_part(self) -> dict[str, Any]:
        if self.image_url is None:
            return {"type": "text", "text": self.text}
        return {"type": "image_url", "image_url": {"url": self.image_url, "detail": self.detail}}


class Item(Strict):
    """A message; those of earlier answers as they came, with `id` and `status`."""

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: either(str, list[ItemPart])
    id: str | None = None
    status: str | None = None
    phase: only()


class StreamOptions(Strict):
    include_obfuscation: only(False)


class TextOptions(Strict):
    format: TextFormat | None = None
    verbosity: only("medium")


class ResponsesRequest(Strict):
    """POST /v1/responses. `seed`, `top_k` and `min_p` are other servers' fields. Nothing is stored."""

    model: str | None = None
    input: either(str, list[Item])
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, lt=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    truncation: Literal["auto", "disabled"] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    parallel_tool_calls: bool | None = None
    access_programs: only()
    background: only(False)
    background_options: only()
    context_management: only()
    conversation: only()
    image: only()
    include: only([])
    max_tool_calls: only()
    moderation: only()
    previous_response_id: only()
    prompt: only()
    prompt_cache_options: only()
    prompt_cache_retention: only("in_memory")
    reasoning: only({}, {"effort": "none"})
    service_tier: only("auto", "default")
    store: only(False)
    text: TextOptions | None = None
    tool_choice: only("none", "auto")
    tools: only([])
    top_logprobs: only(0)

    @property
    def format(self) -> TextFormat:
        return (self.text and self.text.format) or TextFormat.model_validate({"type": "text"})

    def options(self) -> dict[str, Any]:
        """Keyword arguments of `Model.stream`, but for `max_new_tokens` and `seed`."""
        given = {name: getattr(self, name) for name in ("temperature", "top_p", "top_k", "min_p")}
        given["grammar"] = self.format.grammar
        options = {name: value for name, value in given.items() if value is not None}
        return options | {"drop_oldest": self.truncation == "auto"}

    def as_messages(self) -> list[Message]:
        """The input as `gemma_tpu.server.images` takes it."""
        if isinstance(self.input, str):
            return [Message.model_validate({"role": "user", "content": self.input})]

        def content(item: Item) -> str | list[dict[str, Any]]:
            return item.content if isinstance(item.content, str) else [part.as_part() for part in item.content]

        return [Message.model_validate({"role": item.role, "content": content(item)}) for item in self.input]
