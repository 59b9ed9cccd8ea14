"""Functions in Gemma 3's prompts, and the grammars of answers that call them.

The form is one of two that Google documents (ai.google.dev/gemma/docs/capabilities/function-calling): an instruction
and JSON schemas before the first question, and calls as JSON. The model has no tokens for any of it. Responses are
written as in vLLM's template for the model (examples/tool_chat_template_gemma3_pythonic.jinja).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gemma_tpu.grammar import JSON_SPACE
from gemma_tpu.text.template import Messages, PromptBuilder, Turn, answer_text, check_turns, content_parts
from gemma_tpu.text.tools import read_calls, read_responses, read_tools, require_responses
from gemma_tpu.text.written_calls import json_call_begins

_INSTRUCTION = """\
You have access to functions. If you decide to invoke any of the function(s), you MUST put it in the format of
{"name": function name, "parameters": dictionary of argument name and its value}

You SHOULD NOT include any other text in the response if you call a function
"""
# Of llguidance: spaces as `json.dumps` writes them, since a model could go on with others without end.
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

# By which a schema says something of arguments that are not among its properties.
_OF_OTHERS = {
    "additionalProperties",
    "patternProperties",
    "unevaluatedProperties",
    "allOf",
    "anyOf",
    "oneOf",
    "if",
    "$ref",
}


def write_with_tools(builder: PromptBuilder, messages: Messages, continue_final: bool, tools: Any = None) -> None:
    """`write_messages`, with functions that the model may call, and with calls and responses among the messages.

    `tools` and the messages are as for `write_functions`. Calls are written as a line of JSON each, after the text of
    their message; responses are a turn of the user, together with a message of the user that follows them.
    """
    system, turns = check_turns(messages, continue_final, tools=True, user_after_tools=True)
    functions = read_tools(tools)
    before = f"{system}\n\n" if system and system.strip() else ""
    if functions:
        before += f"{_INSTRUCTION}{json.dumps(functions, indent=2, ensure_ascii=False, default=_plain)}\n"
    calls: list[Mapping[str, Any]] = []  # that have no response yet
    for i, (where, role, message) in enumerate(turns):
        if role == "model":
            require_responses(calls, where)
            calls = read_calls(message, where)
            builder.begin_turn(role)
            builder.text(_answer(message, calls, where))
            if not (continue_final and i == len(turns) - 1):
                builder.end_turn()
            continue
        if i and turns[i - 1][1] == "tool":
            builder.text("\n")
        else:
            builder.begin_turn("user")
        if role == "tool":
            builder.text("\n".join(_response(response) for _, response in read_responses(message, calls, where)))
        else:
            require_responses(calls, where)
            builder.text("" if i else before)
            for at, kind, value in content_parts(message["content"], where):
                builder.image(value, at) if kind == "image" else builder.text(value.strip())
        if _ends_turn(turns, i):
            builder.end_turn()
    require_responses(calls, turns[-1][0])
    if turns[-1][1] != "model":
        builder.begin_turn("model")


def _ends_turn(turns: Sequence[Turn], index: int) -> bool:
    """Whether what a user or a tool says is the last of the user's turn."""
    return index == len(turns) - 1 or turns[index + 1][1] == "model"


def _answer(message: Mapping[str, Any], calls: Sequence[Mapping[str, Any]], where: str) -> str:
    content = message.get("content")
    lines = [answer_text(content, where)] if content or not calls else []
    lines += [
        json.dumps({"name": c["name"], "parameters": c["arguments"]}, ensure_ascii=False, default=_plain) for c in calls
    ]
    return "\n".join(lines)


def _response(response: Any) -> str:
    text = response if isinstance(response, str) else json.dumps(response, ensure_ascii=False, default=_plain)
    return f"<tool_response>\n{text}\n</tool_response>"


def _plain(value: Any) -> Any:
    """A mapping, a sequence or a number of NumPy, as json knows them."""
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, Sequence) else value.item()


def call_grammar(
    tools: Sequence[Mapping[str, Any]], *, parallel: bool = True, answer: Mapping[str, Any] | None = None
) -> str:
    """A grammar in llguidance's Lark of answers that call one of `tools`, or several in a line each if `parallel`.

    The calls are as `write_with_tools` asks for them; arguments follow the schema of their function, and are those that
    it declares unless it speaks of others. With `answer`, a
    schema, JSON that follows it is an answer too.
    """
    more = r' ("\n" call)*' if parallel else ""
    rules = [f"start: calls{'' if answer is None else ' | answer'}", f"calls: call{more}"]
    rules += [f"call: {' | '.join(f'call_{i}' for i in range(len(tools)))}"]
    for i, tool in enumerate(tools):
        called = {"name": {"const": tool["name"]}, "parameters": {"$id": "urn:parameters", **_parameters(tool)}}
        rules.append(f"call_{i}: {_json(_closed(called), _SPACING)}")
    rules += [] if answer is None else [f"answer: {_json(answer, _SPACING)}"]
    return "\n".join(rules) + "\n"


def text_grammar(tools: Sequence[Mapping[str, Any]], strict: Sequence[str]) -> str:
    """A grammar of any text in which the arguments of calls of the functions named by `strict` follow their schemas.

    Such a call is one that `WrittenCalls` finds with the same `strict`.
    """
    held = [tool for tool in tools if tool["name"] in strict]
    calls = " | ".join(f"call_{i}" for i in range(len(held)))
    rules = [f"start: ({calls})* TEXT", r"TEXT: /(.|\n)*/", r"SPACE: /[ \n\t]{1,20}/", r"END: /[ \n\t]{0,20}\}/"]
    for i, tool in enumerate(held):
        rules += [
            rf"text_{i}[lazy]: /(.|\n)*{json_call_begins(tool['name'])}/",
            f"call_{i}: text_{i} SPACE? parameters_{i} END",
            f"parameters_{i}: {_json(_parameters(tool), {'whitespace_pattern': JSON_SPACE})}",
        ]
    return "\n".join(rules) + "\n"


def _parameters(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of a call's arguments: those declared and no others, unless it says what others may be."""
    schema = tool.get("parameters") or _closed({})
    closed = "properties" in schema and not _OF_OTHERS & schema.keys()
    return {**schema, "additionalProperties": False} if closed else schema


def _closed(properties: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of an object with these properties, all of them and no others."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _json(schema: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    return f"%json {json.dumps({**schema, 'x-guidance': options}, default=_plain)}"
