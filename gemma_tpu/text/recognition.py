"""Detects whether a chat template writes Gemma 3's format, by comparing what it renders with `render_messages`."""

from __future__ import annotations

import datetime
import json
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
from PIL import Image

from gemma_tpu.text.template import render_messages
from gemma_tpu.text.tokenizer import Tokenizer

Conversation = list[dict[str, Any]]

_IMAGE = {"type": "image", "image": Image.new("RGB", (1, 1))}


def writes_gemma3(template: str, tokenizer: Tokenizer, *, images: bool) -> bool:
    """Whether a Jinja chat template writes Gemma 3's format.

    Compares rendered text, because fine-tunes often rewrite Gemma's template. `images`: the model reads images, so
    message content may be a list of parts.
    """
    try:
        compiled = compile_template(template)
    except jinja2.TemplateError:
        return False
    variables: dict[str, Any] = {f"{role}_token": f"<{role}>" for role in ("bos", "eos", "pad", "unk")}
    variables |= {"add_generation_prompt": True, "tools": None, "documents": None}
    images = images and None not in (tokenizer.start_of_image, tokenizer.end_of_image)
    agrees = False
    for messages in [*_TEXT_PROBES, *(_IMAGE_PROBES if images else [])]:
        try:
            rendered = compiled.render(messages=messages, **variables)
        except Exception:  # a template may reject a conversation; that says nothing about its format
            continue
        tokens = render_messages(messages, tokenizer, 1).tokens
        ours = tokenizer.decode(tokens, skip_special=False)
        # Hugging Face's processor expands the marker that the template writes.
        block = "\n\n<start_of_image><image_soft_token><end_of_image>\n\n"
        if rendered.replace("<start_of_image>", block) != ours:
            return False
        agrees = True
    return agrees


def compile_template(template: str) -> jinja2.Template:
    """Compiles a template in a sandbox, with the extensions of transformers 5.23 (utils/chat_template_utils.py)."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"]
    )

    def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(template)


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks the text that a model is trained on; it renders its content."""

    tags = {"generation"}  # noqa: RUF012  # as jinja2 declares it

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


_TEXT_PROBES: list[Conversation] = [
    [_user("Hello")],
    [_user(" a \n"), {"role": "assistant", "content": " b\n"}, _user("c")],
    [{"role": "system", "content": "Be brief."}, _user("Hello")],
]
_IMAGE_PROBES: list[Conversation] = [
    [_user([_text(" one\n"), _text("two")])],
    [_user([_IMAGE, _text("What is it?")])],
]
