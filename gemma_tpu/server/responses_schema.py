"""What clients of OpenAI's Responses API send, see `gemma_tpu.server.schema`."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from gemma_tpu.options import MAX_LOGPROBS
from gemma_tpu.server.fields import Strict, either, only
from gemma_tpu.server.grammar_fields import TextFormat
from gemma_tpu.server.schema import Message
from gemma_tpu.server.tool_fields import MAX_TOOLS, Function, tool_use
from gemma_tpu.server.tools import ToolUse


class ItemPart(Strict):
    type: Literal["input_text", "output_text", "input_image"]
    text: str | None = None
    image_url: str | None = None
    detail: Literal["auto", "low", "high"] | None = None
    file_id: only()
    annotations: only([])
    logprobs: list[Any] | None = None  # of an earlier answer
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


class MessageItem(Strict):
    """Those of earlier answers are as they came, with `id` and `status`."""

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: either(str, list[ItemPart])
    id: str | None = None
    status: str | None = None
    phase: only()


def _json_object(text: str) -> str:
    try:
        if isinstance(json.loads(text), dict):
            return text
    except (ValueError, RecursionError):
        pass
    raise PydanticCustomError("arguments", "is no JSON object")


class CallItem(Strict):
    """A call in an earlier answer."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: Annotated[str, AfterValidator(_json_object)]
    id: str | None = None
    status: str | None = None
    caller: only({"type": "direct"})
    namespace: only()

    def as_call(self) -> dict[str, Any]:
        function = {"name": self.name, "arguments": self.arguments}
        return {"type": "function", "id": self.call_id, "function": function}


class OutputItem(Strict):
    """What came of a call."""

    type: Literal["function_call_output"]
    call_id: str
    output: either(str, list[ItemPart])
    id: str | None = None
    status: str | None = None
    name: str | None = None
    caller: only({"type": "direct"})
    namespace: only()


class ReasoningItem(Strict):
    """Of an earlier answer, perhaps another model's. Not shown to the model."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: list[dict[str, Any]] | None = None
    content: list[dict[str, Any]] | None = None
    encrypted_content: str | None = None
    status: str | None = None


def _item_kind(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    return f"<{kind}>" if kind in ("function_call", "function_call_output", "reasoning") else "<message>"


Item = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[CallItem, Tag("<function_call>")]
    | Annotated[OutputItem, Tag("<function_call_output>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")],
    Discriminator(_item_kind),
]


class _Typed(Strict):
    type: Literal["function"]


class Tool(Function, _Typed):  # in this order, `type` is the first field, and the first error of another kind of tool
    """A function of the client's own."""

    allowed_callers: only(["direct"])
    defer_loading: only(False)
    output_schema: only()


class ToolChoice(Strict):
    type: Literal["function"]
    name: str


class StreamOptions(Strict):
    include_obfuscation: only(False)


class TextOptions(Strict):
    format: TextFormat | None = None
    verbosity: only("medium")


class ResponsesRequest(Strict):
    """POST /v1/responses. Nothing is stored."""

    _use: ToolUse = pydantic.PrivateAttr(default_factory=ToolUse)

    model: str | None = None
    input: either(str, list[Item])
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
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
    include: list[Literal["message.output_text.logprobs"]] | None = None
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
    tool_choice: either(Literal["none", "auto", "required"], ToolChoice) | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    # Of other servers.
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    chat_template_kwargs: only({}, {"enable_thinking": False})

    @pydantic.model_validator(mode="after")
    def _tools_fit(self) -> ResponsesRequest:
        choice, tools, grammar = self.tool_choice, self.tools or (), self.format.grammar
        only = choice.name if isinstance(choice, ToolChoice) else None
        self._use = tool_use(
            [tool.told for tool in tools],
            forced=choice == "required" or only is not None,
            only=only,
            none=choice == "none",
            parallel=self.parallel_tool_calls,
            strict=[tool.name for tool in tools if tool.strict],
            held_by="text" if grammar else None,
            answer=grammar,
        )
        return self

    @property
    def tool_use(self) -> ToolUse:
        return self._use

    @property
    def logprobs(self) -> int | None:
        """How many likeliest tokens are told with the log-probability of each; None if that is not asked for."""
        return self.top_logprobs or 0 if self.include or self.top_logprobs else None

    @property
    def format(self) -> TextFormat:
        return (self.text and self.text.format) or TextFormat.model_validate({"type": "text"})

    def options(self) -> dict[str, Any]:
        """Keyword arguments of `Model.stream`, but for `max_new_tokens` and `seed`."""
        given = {name: getattr(self, name) for name in ("temperature", "top_p", "min_p", "repetition_penalty")}
        given["top_k"] = None if self.top_k is None else max(self.top_k, 0)
        given |= {"grammar": self.format.grammar, "logprobs": self.logprobs}
        options = {name: value for name, value in given.items() if value is not None}
        return options | {"drop_oldest": self.truncation == "auto"}

    def as_messages(self) -> tuple[list[Message], list[int], list[list[str]]]:
        """The input as `gemma_tpu.server.images` takes it, the place of the item that each message is from, and where
        the parts of its content are.

        Calls belong to the message of the assistant before them. Images of results follow the last of these, in the
        user's message.
        """
        if isinstance(self.input, str):
            return [Message.model_validate({"role": "user", "content": self.input})], [0], [[]]
        made: list[tuple[int, dict[str, Any], list[str]]] = []
        shown: list[tuple[str, dict[str, Any]]] = []  # images of results, by their places
        for i, item in enumerate(self.input):
            if isinstance(item, OutputItem):
                parts = _parts(item.output, f"input[{i}].output")
                texts = "".join(part["text"] for _, part in parts if part["type"] == "text")
                made.append((i, {"role": "tool", "tool_call_id": item.call_id, "content": texts}, []))
                shown += [(place, part) for place, part in parts if part["type"] != "text"]
            elif isinstance(item, CallItem | MessageItem):
                if shown and getattr(item, "role", None) != "user":
                    made.append(_message(i - 1, "user", shown))
                    shown = []
                if isinstance(item, MessageItem):
                    made.append(_message(i, item.role, [*shown, *_parts(item.content, f"input[{i}].content")]))
                    shown = []
                    continue
                if not made or made[-1][1]["role"] != "assistant":
                    made.append((i, {"role": "assistant", "content": None}, []))
                made[-1][1].setdefault("tool_calls", []).append(item.as_call())
        if shown:
            made.append(_message(len(self.input) - 1, "user", shown))
        messages = [Message.model_validate(message) for _, message, _ in made]
        return messages, [i for i, _, _ in made], [places for _, _, places in made]


def _parts(content: str | list[ItemPart], where: str) -> list[tuple[str, dict[str, Any]]]:
    """With their places."""
    if isinstance(content, str):
        return [(where, {"type": "text", "text": content})]
    return [(f"{where}[{j}]", part.as_part()) for j, part in enumerate(content)]


def _message(i: int, role: str, parts: list[tuple[str, dict[str, Any]]]) -> tuple[int, dict[str, Any], list[str]]:
    return i, {"role": role, "content": [part for _, part in parts]}, [place for place, _ in parts]
