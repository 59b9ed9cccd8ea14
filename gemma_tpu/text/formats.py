"""The prompt formats of Gemma 3 and its relatives, and which one a checkpoint uses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gemma_tpu.text.function_grammar import function_call_grammar, function_text_grammar
from gemma_tpu.text.functions import STOP, FunctionCalls, write_functions
from gemma_tpu.text.safety import write_policy
from gemma_tpu.text.template import Prompt, render_messages
from gemma_tpu.text.tool_prompt import call_grammar, text_grammar, write_with_tools
from gemma_tpu.text.tools import CallReader
from gemma_tpu.text.translation import write_translation
from gemma_tpu.text.written_calls import WrittenCalls


@dataclasses.dataclass(frozen=True)
class Format:
    """How messages become a prompt.

    `write`: see `render_messages`; it takes the keywords `options` too. `stop`: a piece besides <end_of_turn> that ends
    an answer. `answers`: a classifier's token ids of "Yes" and "No", if config.json has them. `call_reader` makes what
    finds calls in an answer, for tools as `read_tools` gives them and the names of those that are strict; None where
    there are no calls. `call_grammar` and `text_grammar` are as those of `tool_prompt`; ValueError for a schema that
    they cannot hold calls to.
    """

    name: str
    write: Callable[..., None]
    options: tuple[str, ...] = ()
    stop: str | None = None
    answers: tuple[int, int] | None = None
    call_reader: Callable[..., CallReader | None] = lambda tools, strict=(): None
    call_grammar: Callable[..., str] | None = None
    text_grammar: Callable[[Sequence[Mapping[str, Any]], Sequence[str]], str] | None = None

    def render(self, *args: Any, **options: Any) -> Prompt:
        """`render_messages` in this format."""
        return render_messages(*args, write=self.write, **options)

    def check(self, given: dict[str, Any]) -> None:
        """ValueError if `given` has options of another format."""
        if unknown := sorted(given.keys() - set(self.options)):
            owners = " and ".join(other.name for other in FORMATS if set(unknown) & set(other.options))
            raise ValueError(
                f"{', '.join(unknown)}: an option for {owners}; this checkpoint has the prompt format of {self.name}"
            )


GEMMA3 = Format(
    "Gemma 3",
    write_with_tools,
    ("tools",),
    call_reader=lambda tools, strict=(): WrittenCalls(tools, strict) if tools else None,
    call_grammar=call_grammar,
    text_grammar=text_grammar,
)
TRANSLATE_GEMMA = Format("TranslateGemma", write_translation, ("source_lang", "target_lang"))
FUNCTION_GEMMA = Format(
    "FunctionGemma",
    write_functions,
    ("tools",),
    STOP,
    call_reader=lambda tools, strict=(): FunctionCalls(),
    call_grammar=function_call_grammar,
    text_grammar=function_text_grammar,
)
SHIELD_GEMMA = Format("ShieldGemma 2", write_policy)
FORMATS = (GEMMA3, TRANSLATE_GEMMA, FUNCTION_GEMMA, SHIELD_GEMMA)
OPTIONS = tuple(dict.fromkeys(option for known in FORMATS for option in known.options))


def choose_format(template: str | None, config: Mapping[str, Any]) -> Format:
    """The format of a checkpoint, from its chat template (None without one) and the content of its config.json."""
    if config.get("model_type") == "shieldgemma2":
        yes, no = config.get("yes_token_index"), config.get("no_token_index")
        return SHIELD_GEMMA if yes is None or no is None else dataclasses.replace(SHIELD_GEMMA, answers=(yes, no))
    return (template and recognise_format(template)) or GEMMA3


def recognise_format(template: str) -> Format | None:
    """The relative whose chat template (Jinja text) this is, or None. Gemma 3's own: see `recognition`."""
    if "<start_function_declaration>" in template:
        return FUNCTION_GEMMA
    if "source_lang_code" in template and "target_lang_code" in template:
        return TRANSLATE_GEMMA
    if "<BEGIN_SAFETY_POLICY>" in template:
        return SHIELD_GEMMA
    return None
