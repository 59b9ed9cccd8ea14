"""Makes docs/commands.md and docs/library.md of the commands' parsers and the docstrings of the public names.

python -m docs.reference        # in the repository's root
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gemma_tpu
from gemma_tpu.cli.parser import command_names, make_parser

DOCS = Path(__file__).parent
# What a reader looks for first; all other names follow in the order of the alphabet.
_FIRST = ("load", "Model", "SamplingParams", "Completion", "TextStream", "AsyncTextStream", "Chat")
_SECTION = re.compile(r"(Args|Returns|Raises|Yields|Attributes):$")
_ENTRY = re.compile(r"  (\*{0,2}\w+): (.*)")


def commands() -> str:
    lines = ["# Commands", "", "Made by `python -m docs.reference` of the commands themselves.", ""]
    for name in command_names():
        lines += _command(_parser(make_parser([name]), name), 2)
    return "\n".join(lines).rstrip() + "\n"


def _parser(parser: argparse.ArgumentParser, name: str) -> argparse.ArgumentParser:
    return next(_subparsers(parser)).choices[name]


def _subparsers(parser: argparse.ArgumentParser) -> Iterator[Any]:
    return (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))


def _command(parser: argparse.ArgumentParser, level: int) -> Iterator[str]:
    yield from ("#" * level + f" {parser.prog}", "", _text(parser.description or ""), "")
    formatter = parser._get_formatter()
    groups = [(group.title, group._group_actions) for group in parser._action_groups]
    for title, actions in groups:
        shown = [a for a in actions if a.help != argparse.SUPPRESS and not isinstance(a, argparse._SubParsersAction)]
        shown = [a for a in shown if not isinstance(a, argparse._HelpAction)]
        if not shown:
            continue
        yield from (f"| {title} | |", "|---|---|")
        for action in shown:
            yield f"| {_names(action, formatter)} | {_text(formatter._expand_help(action)) if action.help else ''} |"
        yield ""
    if parser.epilog:
        yield from (_text(parser.epilog), "")
    for nested in _subparsers(parser):
        for one in nested.choices.values():
            yield from _command(one, level + 1)


def _names(action: argparse.Action, formatter: argparse.HelpFormatter) -> str:
    takes = formatter._format_args(action, formatter._get_default_metavar_for_optional(action).upper())
    if not action.option_strings:
        takes = formatter._format_args(action, formatter._get_default_metavar_for_positional(action))
        return f"`{_bar(takes)}`"
    return (
        f"`{_bar(' '.join([', '.join(action.option_strings), takes] if action.nargs != 0 else action.option_strings))}`"
    )


def _bar(text: str) -> str:
    return text.replace("|", "\\|")


def _text(text: str) -> str:
    """As a cell of a table, in which <, [ and | mean themselves."""
    return _bar(" ".join(text.split())).replace("<", "&lt;").replace("[", "\\[")


def library() -> str:
    names = sorted(set(gemma_tpu.__all__) - {"__version__", *_FIRST}, key=str.lower)
    lines = ["# The library", "", "Made by `python -m docs.reference` of the docstrings. Each name is one of", ""]
    lines[-2] += " `gemma_tpu`; what else a module has may change."
    for name in (*_FIRST, *names):
        found = getattr(gemma_tpu, name)
        if not callable(found):
            lines += [f"## {name}", "", f"The released sizes: {', '.join(f'`{size}`' for size in found)}.", ""]
            continue
        lines += [f"## {name}", "", *_described(f"gemma_tpu.{name}", found)]
        for method, of in _methods(found) if inspect.isclass(found) else ():
            lines += [f"### {name}.{method}", "", *_described(method, of)]
    return "\n".join(lines).rstrip() + "\n"


def _methods(found: type) -> Iterator[tuple[str, Any]]:
    """Public ones that say what they are for, its bases' too, in the order in which they are written."""
    named = {name: of for base in reversed(found.__mro__) for name, of in vars(base).items()}
    for name, of in named.items():
        of = getattr(of, "fget", None) or getattr(of, "func", None) or getattr(of, "__func__", of)
        if not name.startswith("_") and inspect.isfunction(of) and of.__doc__ and of.__module__.startswith("gemma_tpu"):
            yield name, of


def _described(name: str, found: Any) -> Iterator[str]:
    yield from ("```text", f"{name}{_signature(found)}", "```", "", *_markdown(inspect.getdoc(found) or ""), "")


def _signature(found: Any) -> str:
    """One argument a line where they are many."""
    signature = inspect.signature(found)
    parameters = [_plain(parameter) for parameter in signature.parameters.values() if parameter.name != "self"]
    back = signature.return_annotation
    back = _Plain(back) if isinstance(back, str) and inspect.isfunction(found) else inspect.Signature.empty
    plain = str(signature.replace(parameters=parameters, return_annotation=back))
    if len(plain) < 100:
        return plain
    parts, keyword = [], False
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword:
            parts, keyword = [*parts, "*"], True
        parts.append(str(parameter))
    gives = "" if back is inspect.Signature.empty else f" -> {back}"
    return "(\n" + "".join(f"    {part},\n" for part in parts) + f"){gives}"


def _plain(parameter: inspect.Parameter) -> inspect.Parameter:
    """With its annotation as it is written, and a default only if that is short and the same every time."""
    if isinstance(parameter.annotation, str):
        parameter = parameter.replace(annotation=_Plain(parameter.annotation))
    if len(repr(parameter.default)) > 60 or " at 0x" in repr(parameter.default):
        parameter = parameter.replace(default=_Plain("…"))
    return parameter


class _Plain(str):
    """An annotation that is text, as every one here, without quotes around it."""

    __repr__ = str.__str__


def _markdown(docstring: str) -> Iterator[str]:
    """Its paragraphs, with the entries of Args and the like as a list."""
    entries = False
    for line in docstring.splitlines():
        if _SECTION.match(line):
            entries = True
            yield from (f"**{line}**", "")
        elif entries and (entry := _ENTRY.match(line)):
            yield f"- `{entry[1]}`: {_inline(entry[2])}"
        elif entries and line.startswith("  "):
            yield f"  {_inline(line.strip())}"
        else:
            entries = entries and not line
            yield _inline(line)


def _inline(text: str) -> str:
    """Outside of `code`, < means itself."""
    parts = text.split("`")
    return "`".join(part.replace("<", "&lt;") if i % 2 == 0 else part for i, part in enumerate(parts))


PAGES = {"commands.md": commands, "library.md": library}

if __name__ == "__main__":
    for file, make in PAGES.items():
        (DOCS / file).write_text(make(), encoding="utf-8")
