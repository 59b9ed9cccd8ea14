"""What clients of Anthropic's Messages API send, see `gemma_tpu.server.schema`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field
from pydantic_core import PydanticCustomError

from gemma_tpu.server.schema import Message, StopString, Strict, either, only


class Source(Strict):
    type: Literal["base64", "url"]
    media_type: str | None = None
    data: str | None = None
    url: str | None = None

    @pydantic.model_validator(mode="after")
    def _whole(self) -> Source:
        base64 = self.media_type is not None and self.data is not None and self.url is None
        url = self.url is not None and self.data is None
        if not (base64 if self.type == "base64" else url):
            raise PydanticCustomError("source", "a source has either media_type and data, or a url")
        return self

    @property
    def address(self) -> str:
        return self.url if self.url is not None else f"data:{self.media_type};base64,{self.data}"


class Block(Strict):
    """`cache_control` asks for what happens anyway."""

    type: Literal["text", "image"]
    text: str | None = None
    source: Source | None = None
    cache_control: dict[str, Any] | None = None
    citations: only([])

    @pydantic.model_validator(mode="after")
    def _has_content(self) -> Block:
        if (self.text is None) == (self.type == "text") or (self.source is None) == (self.type == "image"):
            raise PydanticCustomError("block", "a text block has text, an image block has a source")
        return self


class TextBlock(Strict):
    type: Literal["text"]
    text: str
    cache_control: dict[str, Any] | None = None
    citations: only([])


class Turn(Strict):
    role: Literal["user", "assistant"]
    content: either(str, list[Block])


class CountRequest(Strict):
    """POST /v1/messages/count_tokens."""

    model: str | None = None
    messages: list[Turn] = Field(min_length=1)
    system: either(str, list[TextBlock]) | None = None
    cache_control: dict[str, Any] | None = None
    thinking: only({"type": "disabled"})
    tools: only([])
    tool_choice: only({"type": "none"}, {"type": "auto"})
    output_config: only({})
    speed: only("standard")
    user_profile_id: only()
    workspace_id: only()

    @property
    def system_text(self) -> str:
        return "".join(block.text for block in self.system) if isinstance(self.system, list) else self.system or ""

    @property
    def continues(self) -> bool:
        """Whether the last message is the beginning of the answer."""
        return self.messages[-1].role == "assistant"

    def as_openai(self) -> list[Message]:
        """The messages as `gemma_tpu.server.images` takes them."""

        def part(block: Block) -> dict[str, Any]:
            if block.source is None:
                return {"type": "text", "text": block.text}
            return {"type": "image_url", "image_url": {"url": block.source.address}}

        def content(turn: Turn) -> str | list[dict[str, Any]]:
            return turn.content if isinstance(turn.content, str) else [part(block) for block in turn.content]

        return [Message.model_validate({"role": turn.role, "content": content(turn)}) for turn in self.messages]


class MessagesRequest(CountRequest):
    """POST /v1/messages. A temperature left out is as in the checkpoint's settings, as of the other endpoints."""

    max_tokens: int = Field(ge=1)
    stop_sequences: Annotated[list[StopString], Field(max_length=16)] | None = None
    stream: bool | None = None
    temperature: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0, lt=2**31)
    top_p: float | None = Field(None, gt=0, le=1)
    metadata: dict[str, Any] | None = None
    container: only()
    diagnostics: only()
    inference_geo: only()
    service_tier: only("auto", "standard_only")

    def options(self) -> dict[str, Any]:
        """Keyword arguments of `Model.stream`, but for `max_new_tokens`."""
        given = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p, "stop": self.stop_sequences}
        return {name: value for name, value in given.items() if value is not None}
