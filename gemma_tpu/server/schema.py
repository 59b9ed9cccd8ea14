"""What clients send, with every field that OpenAI's API has: `only` marks those that are known and not supported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, LiteralString

import pydantic
from pydantic import BeforeValidator, Discriminator, Field, StringConstraints, Tag
from pydantic_core import PydanticCustomError

from gemma_tpu.api import Model
from gemma_tpu.grammar import Grammar
from gemma_tpu.options import MAX_BAD_WORDS, MAX_LOGIT_BIAS, MAX_LOGPROBS, MAX_STOP_TOKENS
from gemma_tpu.server.fields import UNSUPPORTED, Strict, either, only
from gemma_tpu.server.grammar_fields import SCHEMA, ResponseFormat, StructuredOutputs, held_to
from gemma_tpu.server.tool_fields import MAX_TOOLS, NamedTool, Tool, tool_use
from gemma_tpu.server.tools import ToolUse

_MAX_CHOICES = 128


class ImageURL(Strict):
    """With detail "high", crops of an image far from square are shown too (pan and scan)."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class Part(Strict):
    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageURL | None = None
    prompt_cache_breakpoint: only()

    @pydantic.model_validator(mode="after")
    def _has_content(self) -> Part:
        other = "text" if self.type == "image_url" else "image_url"
        if getattr(self, self.type) is None or getattr(self, other) is not None:
            raise PydanticCustomError("part", f'a part of type "{self.type}" has the field {self.type}, and no other')
        return self


class CalledFunction(Strict):
    name: str
    arguments: str


class Call(Strict):
    type: Literal["function"]
    id: str
    function: CalledFunction
    index: int | None = None  # which a delta has, and clients that collect deltas send


def _of(role: str, kind: Any) -> Any:
    """The type of a field that messages of `role` alone may have."""

    def check(value: Any, info: Any) -> Any:  # pydantic.ValidationInfo, which the tests cannot check
        if value not in (None, []) and info.data.get("role", role) != role:
            raise PydanticCustomError(UNSUPPORTED, "is not supported in a message of this role: leave it out")
        return value

    return Annotated[kind | None, BeforeValidator(check), Field(default=None)]


class Message(Strict):
    """The fields of an answer are accepted as clients send them back; `reasoning_content` is not shown to the model."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: either(str, list[Part]) | None = None
    reasoning_content: str | None = None
    name: _of("tool", str)
    refusal: only()
    audio: only()
    annotations: only([])
    tool_calls: _of("assistant", list[Call])
    tool_call_id: _of("tool", str)
    function_call: only()

    @property
    def tool_fields(self) -> dict[str, Any]:
        """As `Model.stream` takes them."""
        calls = [call.model_dump() for call in self.tool_calls or ()]
        fields = {"name": self.name, "tool_call_id": self.tool_call_id, "tool_calls": calls}
        return {name: value for name, value in fields.items() if value}


class StreamOptions(Strict):
    """`continuous_usage_stats` is vLLM's: with `include_usage`, each chunk says how many tokens there are so far."""

    include_usage: bool | None = None
    include_obfuscation: only(False)
    continuous_usage_stats: bool | None = None


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


StopString = Annotated[str, StringConstraints(min_length=1)]
_TokenKey = Annotated[str, StringConstraints(pattern="^(0|[1-9][0-9]{0,8})$")]
_Bias = Annotated[float, Field(ge=-100, le=100)]
# Named as in SamplingParams.
_SAMPLING = ("temperature", "top_p", "min_p", "stop", "frequency_penalty", "presence_penalty", "repetition_penalty")
_SAMPLING += ("min_tokens", "ignore_eos", "allowed_token_ids", "bad_words", "prompt_logprobs")
_GUIDED: tuple[LiteralString, ...] = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")


class Sampling(Strict):
    """What both ways to ask for an answer have. A field left out or null is as in the checkpoint's settings.

    `top_k` and `min_p` are other servers' fields. -1 and 0 are no `top_k`. `stop_token_ids` end an answer, and the
    model's own end tokens do.
    """

    model: str | None = None
    n: int | None = Field(None, ge=1, le=_MAX_CHOICES)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Annotated[Annotated[list[StopString], Field(max_length=16)] | None, BeforeValidator(_as_list)] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Annotated[dict[_TokenKey, _Bias], Field(max_length=MAX_LOGIT_BIAS)] | None = None
    response_format: ResponseFormat | None = None
    # Of other servers.
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    min_tokens: int | None = Field(None, ge=0)
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[list[int], Field(max_length=MAX_STOP_TOKENS // 2)] | None = None
    allowed_token_ids: Annotated[list[int], Field(min_length=1)] | None = None
    bad_words: Annotated[list[StopString], Field(max_length=MAX_BAD_WORDS)] | None = None
    prompt_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    return_token_ids: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: held_to(SCHEMA, Grammar.json_schema)
    guided_regex: held_to(str, Grammar.regex)
    guided_choice: held_to(list[str], Grammar.choice)
    guided_grammar: held_to(str, Grammar.lark)
    priority: only(0)

    @pydantic.model_validator(mode="after")
    def _streams(self) -> Sampling:
        if self.stream_options and not self.stream:
            raise PydanticCustomError("stream_options", "stream_options goes with stream: true")
        if self.prompt_logprobs is not None and self.stream:
            raise PydanticCustomError("prompt_logprobs", "prompt_logprobs does not go with stream: true")
        return self

    @property
    def max_new_tokens(self) -> int | None:
        return self.max_tokens

    @pydantic.model_validator(mode="after")
    def _one_grammar(self) -> Sampling:
        if len(asked := list(self._grammars)) > 1:
            raise PydanticCustomError(asked[1], "does not go with {field}: leave one out", {"field": asked[0]})
        return self

    @property
    def _grammars(self) -> dict[LiteralString, Grammar]:
        """By the fields that ask for them."""
        asked: dict[LiteralString, Grammar | None] = {name: getattr(self, name) for name in _GUIDED}
        asked["structured_outputs"] = self.structured_outputs and self.structured_outputs.grammar
        asked["response_format"] = self.response_format and self.response_format.grammar
        return {name: grammar for name, grammar in asked.items() if grammar}

    @property
    def held_by(self) -> str | None:
        """The field that holds the answer to a grammar."""
        return next(iter(self._grammars), None)

    def options(self, model: Model) -> dict[str, Any]:
        """Keyword arguments of `Model.stream`, but for `max_new_tokens`."""
        given = {name: getattr(self, name) for name in _SAMPLING}
        given["top_k"] = None if self.top_k is None else max(self.top_k, 0)
        given["logit_bias"] = self.logit_bias and {int(token): bias for token, bias in self.logit_bias.items()}
        given["stop_tokens"] = [*model.end_tokens, *self.stop_token_ids] if self.stop_token_ids else None
        given["grammar"] = next(iter(self._grammars.values()), None)
        return {name: value for name, value in given.items() if value is not None}

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def usage_in_chunks(self) -> bool:
        return self.include_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)


def _check_prompt_end(messages: Sequence[Message], add_generation_prompt: bool | None, continued: bool | None) -> None:
    """A prompt ends where an answer begins or, if it is `continued`, within the assistant's last message."""
    if continued and (not messages or messages[-1].role != "assistant" or messages[-1].tool_calls):
        message = "goes with messages of which the last is a text of the assistant's"
        raise PydanticCustomError("continue_final_message", message)
    if add_generation_prompt is not None and add_generation_prompt == bool(continued):
        message = "is true unless continue_final_message is: leave it out"
        raise PydanticCustomError("add_generation_prompt", message)


class ChatRequest(Sampling):
    """POST /v1/chat/completions."""

    _use: ToolUse = pydantic.PrivateAttr(default_factory=ToolUse)

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    store: only(False)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: either(Literal["none", "auto", "required"], NamedTool) | None = None
    parallel_tool_calls: bool | None = None
    functions: only([])
    function_call: only("none", "auto")
    modalities: only(["text"])
    audio: only()
    moderation: only()
    prediction: only()
    prompt_cache_options: only()
    prompt_cache_retention: only("in_memory")
    reasoning_effort: only("none")
    service_tier: only("auto", "default")
    verbosity: only("medium")
    web_search_options: only()
    # Of other servers.
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: only()
    chat_template_kwargs: only({}, {"enable_thinking": False})
    documents: only([])
    mm_processor_kwargs: only()

    @pydantic.model_validator(mode="after")
    def _one_limit(self) -> ChatRequest:
        both = self.max_tokens is not None and self.max_completion_tokens is not None
        if both and self.max_tokens != self.max_completion_tokens:
            raise PydanticCustomError("max_tokens", "max_tokens and max_completion_tokens differ: give one of them")
        return self

    @pydantic.model_validator(mode="after")
    def _logprobs_fit(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise PydanticCustomError("top_logprobs", "top_logprobs goes with logprobs: true")
        return self

    @pydantic.model_validator(mode="after")
    def _tools_fit(self) -> ChatRequest:
        choice, functions = self.tool_choice, [tool.function for tool in self.tools or ()]
        only = choice.function.name if isinstance(choice, NamedTool) else None
        forced, none = choice == "required" or only is not None, choice == "none"
        self._use = tool_use(
            [function.told for function in functions],
            forced=forced,
            only=only,
            none=none,
            parallel=self.parallel_tool_calls,
            strict=[function.name for function in functions if function.strict],
            held_by=self.held_by,
            answer=self.response_format and self.response_format.grammar,
        )
        return self

    @property
    def tool_use(self) -> ToolUse:
        return self._use

    @property
    def max_new_tokens(self) -> int | None:
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens

    @pydantic.model_validator(mode="after")
    def _prompt_fits(self) -> ChatRequest:
        _check_prompt_end(self.messages, self.add_generation_prompt, self.continue_final_message)
        return self

    def options(self, model: Model) -> dict[str, Any]:
        logprobs = {"logprobs": self.top_logprobs or 0} if self.logprobs else {}
        return super().options(model) | logprobs | {"continue_final": bool(self.continue_final_message)}


def _prompt_kind(value: Any) -> str:
    first = value[0] if isinstance(value, list) and value else value
    if isinstance(first, list):
        return "<id lists>"
    return ("<texts>" if isinstance(first, str) else "<ids>") if isinstance(value, list) else "<text>"


class CompletionRequest(Sampling):
    """POST /v1/completions."""

    prompt: Annotated[
        Annotated[str, Tag("<text>")]
        | Annotated[list[str], Tag("<texts>"), Field(min_length=1)]
        | Annotated[list[int], Tag("<ids>"), Field(min_length=1)]
        | Annotated[list[list[int]], Tag("<id lists>"), Field(min_length=1)],
        Discriminator(_prompt_kind),
    ]
    best_of: only(1)
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    suffix: only("")

    def options(self, model: Model) -> dict[str, Any]:
        options = super().options(model) | ({} if self.logprobs is None else {"logprobs": self.logprobs})
        if self.echo and self.logprobs is not None:
            options["prompt_logprobs"] = max(self.logprobs, self.prompt_logprobs or 0)
        return options

    @property
    def prompts(self) -> list[str | list[int]]:
        single = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [self.prompt] if single else list(self.prompt)  # pyright: ignore[reportReturnType]


class TokenizeRequest(Strict):
    """POST /tokenize: a `prompt` taken as it is, or `messages`."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1)
    add_special_tokens: bool = True
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    return_token_strs: bool | None = None

    @pydantic.model_validator(mode="after")
    def _one_of_both(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise PydanticCustomError("prompt", "give either prompt or messages")
        if self.prompt is not None and self.tools:
            raise PydanticCustomError("tools", "goes with messages")
        _check_prompt_end(self.messages or (), self.add_generation_prompt, self.continue_final_message)
        return self


class DetokenizeRequest(Strict):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[int]
