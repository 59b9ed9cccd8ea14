"""Escapes Markdown for gr.Chatbot: no HTML, no images, no accidental formulas.

Gradio renders any HTML and image in its Markdown. Only what it would misread is escaped, because the copy button copies
the escaped text.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

from markdown_it import MarkdownIt

_MARK = "\u2060"  # WORD JOINER, invisible: marks what is a formula, so that Gradio does not guess
FORMULAS = [
    {"left": f"$${_MARK}", "right": f"{_MARK}$$", "display": True},
    {"left": f"${_MARK}", "right": f"{_MARK}$", "display": False},
]

# Characters with a meaning in Markdown: anywhere, or at the beginning of a line.
_MARKUP = re.compile(r"[\\`*_\[\]<>#~|$&]|(?P<begins>^(?:[-+=]|\d+(?=[.)])))")

# Finds the lines of code blocks and headings; inline parsing is not needed.
_BLOCKS = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["inline", "text_join"])

_SPECIAL = re.compile(
    r"""
    # Inline code, up to equally many backticks in the same paragraph.
    (?P<code>(?<!(?<!\\)`)(?P<ticks>`+)(?!`)(?:(?!\n[ \t]*(?:\n|[-*+<>#|]|\d+[.)]))[\s\S])+?(?<!`)(?P=ticks)(?!`))
    | \$\$(?P<dollars>(?:(?!\n[ \t]*\n)[\s\S])+?)\$\$
    | \\\[(?P<bracketed>(?:[^\\\n]|\\[^\[\]]|\n(?![ \t]*\n))+?)\\\]
    | \\\((?P<parenthesized>(?:[^\\\n]|\\[^()]|\n(?![ \t]*\n))+?)\\\)
    # As in Pandoc: no space just inside the dollars, no word or digit just outside. "$5 and $10" is not a formula.
    | (?<![\w$])\$(?P<dollar>(?![\s$])(?:\\.|[^$\\\n])*?(?<!\s))\$(?![\w$])
    | (?P<autolink><https?://[^\s<>]*>)
    | (?P<escaped>\\[!-'*-/:-@\\^-`{-~])
    | (?P<image>!(?=\[))
    | (?P<markup><(?=[A-Za-z/!?])|&(?=\#?\w+;)|\\(?=[()\[\]]))
    """,
    re.VERBOSE,
)
_WORD = re.compile(r"(?<=[\s(])[A-Za-z]{2,}")


@functools.lru_cache(maxsize=256)  # the whole conversation is rendered for each new piece
def answer(content: str) -> str:
    """Escapes an answer, which is Markdown with formulas in dollars, \\(…\\) or \\[…\\]."""
    return "".join(part if is_code else _SPECIAL.sub(_escape, part) for part, is_code in _parts(content))


def literal(content: str) -> str:
    """Escapes plain text, so that it appears as typed: no emphasis in 2*3*4, no bold from <b>."""
    lines = []
    for line in content.split("\n"):
        unindented = line.lstrip(" ")
        lines.append("&nbsp;" * (len(line) - len(unindented)) + _MARKUP.sub(_escape_character, unindented))
    return "\n".join(lines)


def _escape_character(found: re.Match[str]) -> str:
    return f"&#8203;{found[0]}" if found["begins"] else f"\\{found[0]}"


def _parts(content: str) -> Iterator[tuple[str, bool]]:
    """Splits `content` into (lines, whether they are a code block)."""
    lines, begin = re.sub(r"\r\n?", "\n", content).split("\n"), 0
    lines = [f"{line}\n" for line in lines[:-1]] + lines[-1:]
    for block in _BLOCKS.parse("".join(lines)):
        if block.type not in ("fence", "code_block", "heading_open"):
            continue
        first, end = block.map or (begin, begin)
        yield "".join(lines[begin:first]), False
        part, begin = "".join(lines[first:end]), end
        if block.info.split()[:1] == ["mermaid"]:  # Gradio would draw it, including HTML in it
            part = part.replace("mermaid", "text", 1)
        yield part, block.type != "heading_open"
    yield "".join(lines[begin:]), False


def _escape(found: re.Match[str]) -> str:
    kind, matched = found.lastgroup, found[0]
    if kind in ("ticks", "code", "autolink", "escaped"):
        return matched
    if kind in ("dollar", "parenthesized", "dollars", "bracketed"):
        formula, inline = found[kind], kind in ("dollar", "parenthesized")
        if _is_balanced(formula) and not (kind == "dollar" and _is_price(formula)):
            dollars = "$" if inline else "$$"
            return f"{dollars}{_MARK}{formula}{_MARK}{dollars}"
        return ("$" if matched[0] == "$" else r"\\") + _SPECIAL.sub(_escape, matched[1:])
    return "!\\" if kind == "image" else f"\\{matched}"


def _is_balanced(formula: str) -> bool:
    """Whether all braces are closed; otherwise Gradio would search for the end beyond the formula."""
    bare = re.sub(r"\\.", "", formula)
    return bare.count("{") <= bare.count("}")


def _is_price(between: str) -> bool:
    """Whether it is an amount and words, as in "costs $5 million (US$)"."""
    return between[0].isdigit() and "\\" not in between and _WORD.search(between) is not None
