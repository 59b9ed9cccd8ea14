"""Markdown for gr.Chatbot that shows what was said and nothing else: no HTML, no images, no accidental formulas.

Gradio's chat renders whatever HTML and images its Markdown contains. Only what it would misread is escaped, because
this text is also what its button copies.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

from markdown_it import MarkdownIt

_MARK = "\u2060"  # WORD JOINER, which is not seen: what is a formula and what a price is decided here, not by Gradio
FORMULAS = [
    {"left": f"$${_MARK}", "right": f"{_MARK}$$", "display": True},
    {"left": f"${_MARK}", "right": f"{_MARK}$", "display": False},
]

# What Markdown takes for more than itself: anywhere, and at the beginning of a line.
_MARKUP = re.compile(r"[\\`*_\[\]<>#~|$&]|(?P<begins>^(?:[-+=]|\d+(?=[.)])))")

# Finds the blocks of code, and the headings. Their lines are enough, so nothing inside of paragraphs is parsed.
_BLOCKS = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["inline", "text_join"])

_SPECIAL = re.compile(
    r"""
    # Code, up to as many backticks, in the same paragraph.
    (?P<code>(?<!(?<!\\)`)(?P<ticks>`+)(?!`)(?:(?!\n[ \t]*(?:\n|[-*+<>#|]|\d+[.)]))[\s\S])+?(?<!`)(?P=ticks)(?!`))
    | \$\$(?P<dollars>(?:(?!\n[ \t]*\n)[\s\S])+?)\$\$
    | \\\[(?P<bracketed>(?:[^\\\n]|\\[^\[\]]|\n(?![ \t]*\n))+?)\\\]
    | \\\((?P<parenthesized>(?:[^\\\n]|\\[^()]|\n(?![ \t]*\n))+?)\\\)
    # As Pandoc has it: no space inside the dollars, no word or digit right outside. "$5 and $10" is no formula.
    | (?<![\w$])\$(?P<dollar>(?![\s$])(?:\\.|[^$\\\n])*?(?<!\s))\$(?![\w$])
    | (?P<autolink><https?://[^\s<>]*>)
    | (?P<escaped>\\[!-'*-/:-@\\^-`{-~])
    | (?P<image>!(?=\[))
    | (?P<markup><(?=[A-Za-z/!?])|&(?=\#?\w+;)|\\(?=[()\[\]]))
    """,
    re.VERBOSE,
)
_WORD = re.compile(r"(?<=[\s(])[A-Za-z]{2,}")


@functools.lru_cache(maxsize=256)  # a conversation is shown anew for each piece of its last answer
def answer(content: str) -> str:
    """An answer, which is Markdown: code, lists, tables, links, and formulas in dollars, \\(…\\) or \\[…\\]."""
    return "".join(part if is_code else _SPECIAL.sub(_escape, part) for part, is_code in _parts(content))


def literal(content: str) -> str:
    """Text as Markdown that shows it as it was typed: 2*3*4 is no emphasis, and <b> is not bold."""
    lines = []
    for line in content.split("\n"):
        bare = line.lstrip(" ")
        lines.append("&nbsp;" * (len(line) - len(bare)) + _MARKUP.sub(_escape_typed, bare))
    return "\n".join(lines)


def _escape_typed(found: re.Match[str]) -> str:
    return f"&#8203;{found[0]}" if found["begins"] else f"\\{found[0]}"


def _parts(content: str) -> Iterator[tuple[str, bool]]:
    """`content` in pieces: (lines, whether they are a block of code)."""
    lines, begin = re.sub(r"\r\n?", "\n", content).split("\n"), 0
    lines = [f"{line}\n" for line in lines[:-1]] + lines[-1:]
    for block in _BLOCKS.parse("".join(lines)):
        if block.type not in ("fence", "code_block", "heading_open"):
            continue
        first, end = block.map or (begin, begin)
        yield "".join(lines[begin:first]), False
        found, begin = "".join(lines[first:end]), end
        if block.info.split()[:1] == ["mermaid"]:  # Gradio draws these diagrams, with the HTML that is in them
            found = found.replace("mermaid", "text", 1)
        yield found, block.type != "heading_open"
    yield "".join(lines[begin:]), False


def _escape(found: re.Match[str]) -> str:
    kind, said = found.lastgroup, found[0]
    if kind in ("ticks", "code", "autolink", "escaped"):
        return said
    if kind in ("dollar", "parenthesized", "dollars", "bracketed"):
        formula, inline = found[kind], kind in ("dollar", "parenthesized")
        if _is_balanced(formula) and not (kind == "dollar" and _is_price(formula)):
            dollars = "$" if inline else "$$"
            return f"{dollars}{_MARK}{formula}{_MARK}{dollars}"
        return ("$" if said[0] == "$" else r"\\") + _SPECIAL.sub(_escape, said[1:])
    return "!\\" if kind == "image" else f"\\{said}"


def _is_balanced(formula: str) -> bool:
    """Whether all braces in it are closed; else Gradio would look further for its end."""
    bare = re.sub(r"\\.", "", formula)
    return bare.count("{") <= bare.count("}")


def _is_price(between: str) -> bool:
    """Whether it is words after a number, as in "costs $5 million (US$)"."""
    return between[0].isdigit() and "\\" not in between and _WORD.search(between) is not None
