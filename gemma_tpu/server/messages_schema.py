"""What clients of Anthropic's Messages API send, see `gemma_tpu.server.schema`."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Discriminator, Field, StringConstraints, Tag
from pydantic_core import PydanticCustomError

from gemma_tpu.grammar import Grammar
from gemma_tpu.server.fields import Strict, either, only
from gemma_tpu.server.grammar_fields import TextFormat
from gemma_tpu.server.schema import Message, StopString
from gemma_tpu.server.tool_fields import MAX_TOOLS, tool_use
from gemma_tpu.server.tools import ToolUse


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


class TextBlock(Strict):
    """`cache_control` asks for what happens anyway."""

    type: Literal["text"]
    text: str
    cache_control: dict[str, Any] | None = None
    citations: only([])


class ImageBlock(Strict):
    type: Literal["image"]
    source: Source
    cache_control: dict[str, Any] | None = None


class ToolUseBlock(Strict):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    cache_control: dict[str, Any] | None = None
    caller: only({"type": "direct"})


def _result_kind(value: Any) -> str:
    return "<image>" if isinstance(value, dict) and value.get("type") == "image" else "<text>"


ResultBlock = Annotated[
    Annotated[TextBlock, Tag("<text>")] | Annotated[ImageBlock, Tag("<image>")], Discriminator(_result_kind)
]


class ToolResultBlock(Strict):
    """An error is told to the model as its text is. Images follow the results of their turn, before what is asked."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: either(str, list[ResultBlock]) | None = None
    is_error: bool | None = None
    cache_control: dict[str, Any] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return _text([block for block in self.content if isinstance(block, TextBlock)])
        return self.content or ""

    @property
    def images(self) -> list[tuple[int, ImageBlock]]:
        """With their places in the content."""
        blocks = self.content if isinstance(self.content, list) else []
        return [(i, block) for i, block in enumerate(blocks) if isinstance(block, ImageBlock)]


class ThinkingBlock(Strict):
    """Of an earlier answer, perhaps another model's. Not shown to the model, as in Anthropic's API."""

    type: Literal["thinking", "redacted_thinking"]
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None


_TAGS = {"image": "<image>", "tool_use": "<tool_use>", "tool_result": "<tool_result>"}
_TAGS |= {"thinking": "<thinking>", "redacted_thinking": "<thinking>"}


def _block_kind(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    return _TAGS.get(kind, "<text>") if isinstance(kind, str) else "<text>"


Block = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[ImageBlock, Tag("<image>")]
    | Annotated[ToolUseBlock, Tag("<tool_use>")]
    | Annotated[ToolResultBlock, Tag("<tool_result>")]
    | Annotated[ThinkingBlock, Tag("<thinking>")],
    Discriminator(_block_kind),
]


class Turn(Strict):
    role: Literal["user", "assistant"]
    content: either(str, list[Block])

    @pydantic.model_validator(mode="after")
    def _blocks_of_the_role(self) -> Turn:
        wrong = ToolResultBlock if self.role == "assistant" else ToolUseBlock | ThinkingBlock
        blocks = self.content
        if isinstance(blocks, list):
            if any(isinstance(block, wrong) for block in blocks):
                raise PydanticCustomError("block", f"a block of another role than {self.role}")
            results = [isinstance(block, ToolResultBlock) for block in blocks]
            if results != sorted(results, reverse=True):
                raise PydanticCustomError("block", "tool_result blocks come before others")
        return self


def _text(content: str | list[TextBlock] | None) -> str:
    return "".join(block.text for block in content) if isinstance(content, list) else content or ""


class Tool(Strict):
    """A function of the client's own."""

    type: Literal["custom"] | None = None
    name: Annotated[str, StringConstraints(pattern=r"^[\w.-]{1,64}$")]
    description: str | None = None
    input_schema: dict[str, Any]
    cache_control: dict[str, Any] | None = None
    strict: bool | None = None
    input_examples: only([])
    defer_loading: only(False)
    allowed_callers: only(["direct"])
    eager_input_streaming: only(False)


class ToolChoice(Strict):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None

    @pydantic.model_validator(mode="after")
    def _named(self) -> ToolChoice:
        if (self.name is None) == (self.type == "tool"):
            raise PydanticCustomError("tool_choice", 'type "tool" goes with a name, and no other')
        return self


class OutputConfig(Strict):
    format: TextFormat | None = None
    effort: only()


class CountRequest(Strict):
    """POST /v1/messages/count_tokens."""

    _use: ToolUse = pydantic.PrivateAttr(default_factory=ToolUse)

    model: str | None = None
    messages: list[Turn] = Field(min_length=1)
    system: either(str, list[TextBlock]) | None = None
    cache_control: dict[str, Any] | None = None
    thinking: only({"type": "disabled"})
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    output_config: OutputConfig | None = None
    speed: only("standard")
    user_profile_id: only()
    workspace_id: only()

    @property
    def system_text(self) -> str:
        return _text(self.system)

    @property
    def continues(self) -> bool:
        """Whether the last message is the beginning of the answer."""
        return self.messages[-1].role == "assistant"

    @pydantic.model_validator(mode="after")
    def _tools_fit(self) -> CountRequest:
        tools = [
            {"name": tool.name, "description": tool.description or "", "parameters": tool.input_schema}
            for tool in self.tools or ()
        ]
        choice = self.tool_choice or ToolChoice(type="auto")
        forced, parallel = choice.type in ("any", "tool"), not choice.disable_parallel_tool_use
        held_by = "output_config" if self.grammar else None
        none = choice.type == "none"
        strict = [tool.name for tool in self.tools or () if tool.strict]
        held = {"strict": strict, "held_by": held_by, "answer": self.grammar}
        self._use = tool_use(tools, forced=forced, only=choice.name, none=none, parallel=parallel, **held)
        return self

    @property
    def grammar(self) -> Grammar | None:
        """That the answer is held to."""
        return self.output_config.format.grammar if self.output_config and self.output_config.format else None

    @property
    def tool_use(self) -> ToolUse:
        return self._use

    def as_openai(self) -> tuple[list[Message], list[int], list[list[str]]]:
        """The messages as `gemma_tpu.server.images` takes them, the turn that each is from, and where in it the parts
        of its content are."""
        made = [(i, *found) for i, turn in enumerate(self.messages) for found in _as_openai(turn)]
        messages = [Message.model_validate(message) for _, message, _ in made]
        return messages, [i for i, _, _ in made], [places for _, _, places in made]


def _as_openai(turn: Turn) -> list[tuple[dict[str, Any], list[str]]]:
    """A turn of a user may be the results of several calls, and a question: a message each."""
    if isinstance(turn.content, str):
        return [({"role": turn.role, "content": turn.content}, [])]
    parts: list[dict[str, Any]] = []
    places: list[str] = []
    calls: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for i, block in enumerate(turn.content):
        if isinstance(block, TextBlock):
            parts.append({"type": "text", "text": block.text})
            places.append(f"content[{i}]")
        elif isinstance(block, ImageBlock):
            parts.append(_image(block))
            places.append(f"content[{i}]")
        elif isinstance(block, ToolUseBlock):
            function = {"name": block.name, "arguments": json.dumps(block.input)}
            calls.append({"id": block.id, "type": "function", "function": function})
        elif isinstance(block, ToolResultBlock):
            results.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": block.text})
            parts += [_image(image) for _, image in block.images]
            places += [f"content[{i}].content[{j}]" for j, _ in block.images]
    told: list[tuple[dict[str, Any], list[str]]] = [(result, []) for result in results]
    said = {"role": turn.role, "content": parts, **({"tool_calls": calls} if calls else {})}
    return [*told, (said, places)] if parts or calls or not results else told


def _image(block: ImageBlock) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": block.source.address}}


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
        given["grammar"] = self.grammar
        return {name: value for name, value in given.items() if value is not None}
