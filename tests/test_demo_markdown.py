"""Answers as Markdown for Gradio: what a Markdown parser that renders HTML and images makes of them.

That the page shows the same is seen in the browser (test_demo_app.py).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from demo.markdown import FORMULAS, answer, literal

# As Gradio's: tags and images are rendered.
RENDERS_ALL = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
DISPLAY, INLINE = FORMULAS
ANSWERS = (
    "<div>",
    "a<b and c>d",
    "List<int>",
    "<thinking>\nhm\n</thinking>",
    "</s>",
    "<img src=x onerror=alert(1)>",
    "<!-- comment --> <?php ?> <!DOCTYPE html>",
    "&lt;b&gt; &amp; &#60;",
    "# <b>heading</b>\n\n- <i>item</i>\n\n    <b>in the item</b>\n\n> <q>",
    "| <a> | b |\n|---|---|\n| x<y | <b> |",
)


def walk(tokens: list[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from walk(token.children or [])


def shown(markdown: str) -> str:
    """The text of it, without its blocks' marks."""
    return "".join(
        token.content for token in walk(RENDERS_ALL.parse(markdown)) if token.type in ("text", "text_special")
    )


def kinds(markdown: str) -> set[str]:
    return {token.type for token in walk(RENDERS_ALL.parse(markdown))}


def code(markdown: str) -> list[str]:
    kinds = ("code_inline", "fence", "code_block")
    return [token.content for token in walk(RENDERS_ALL.parse(markdown)) if token.type in kinds]


def formulas(markdown: str) -> list[tuple[str, bool]]:
    """(formula, whether it stands by itself), as Gradio looks for them."""
    found = []
    for kind in FORMULAS:
        pattern = re.escape(kind["left"]) + r"([\s\S]+?)" + re.escape(kind["right"])
        found += [(formula, kind["display"]) for formula in re.findall(pattern, markdown)]
        markdown = re.sub(pattern, "", markdown)
    return found


@pytest.mark.parametrize("said", ANSWERS)
def test_what_looks_like_tags_is_shown(said: str) -> None:
    assert not kinds(answer(said)) & {"html_inline", "html_block"}
    letters = re.sub(r"[\s#|>-]|---", "", said)  # the marks of blocks
    assert re.sub(r"[\s#|>-]|---", "", shown(answer(said))) == letters


@pytest.mark.parametrize(
    "said",
    [
        "`List<int>` ``a`<b>``",
        "```html\n<div>$x$\n```",
        "~~~\n<b>\n~~~",
        "- a\n  ```\n  <b>\n  ```",
        "    <b>\n\n    $y$",
    ],
)
def test_code_is_left_as_it_is(said: str) -> None:
    assert answer(said) == said


def test_a_diagram_is_shown_as_code() -> None:
    """Gradio would draw it, with the HTML that is in it."""
    assert answer("```mermaid\nA--><b>\n```") == "```text\nA--><b>\n```"


def test_images_are_shown_as_text_and_links_are_links() -> None:
    said = "![a](https://x.org/a.png) ![b][c] [d](https://x.org) <https://x.org/e>\n\n[c]: https://x.org/c.png"
    assert "image" not in kinds(answer(said))
    links = [token.attrs["href"] for token in walk(RENDERS_ALL.parse(answer(said))) if token.type == "link_open"]
    assert links[-2:] == ["https://x.org", "https://x.org/e"]
    assert answer(r"\![a](b) 5! [a](b)") == r"\![a](b) 5! [a](b)"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("$x^2$, $y$.", [("x^2", False), ("y", False)]),
        (r"\(a<b\) and \[c\]", [("c", True), ("a<b", False)]),
        ("$$\nx = \\{1\\}\n$$", [("\nx = \\{1\\}\n", True)]),
        (r"\[a \\[2pt] b \left[0\right]\]", [(r"a \\[2pt] b \left[0\right]", True)]),
        ("($2x + 3 = 7$)", [("2x + 3 = 7", False)]),
        ("**$E$**|$\\frac{1}{2}$|", [("E", False), ("\\frac{1}{2}", False)]),
    ],
)
def test_formulas(said: str, expected: list[tuple[str, bool]]) -> None:
    assert formulas(answer(said)) == expected


@pytest.mark.parametrize(
    "said",
    [
        "$5 and $10",
        "$5-$10",
        "from $5 to 10$ or US$5, A$7",
        "costs $5 million (US$)",
        "$HOME and $PATH:$HOME/bin",
        r"\$5\$",
        "`$x$`",
        "a $ sign, $ x $",
        "$$",
        "$a\n\nb$ $$c\n\nd$$",
        "$x{$ $$x{$$",
    ],
)
def test_no_formulas(said: str) -> None:
    assert formulas(answer(said)) == []
    assert answer(said) == said


def test_what_began_like_a_formula_is_shown_with_what_is_in_it() -> None:
    assert shown(answer(r"\(x <b>")) == r"\(x <b>"
    assert shown(answer("$x{<b>$")) == "$x{<b>$"


def test_nothing_is_rendered_of_whatever_is_said() -> None:
    pieces = [
        "<b>",
        "</div>",
        "<img src=x>",
        "![a](http://b/c)",
        "[l](u)",
        "`",
        "``",
        "```",
        "~~~",
        "\n",
        "\n\n",
        "    ",
    ]
    pieces += [
        "- ",
        "1. ",
        "> ",
        "x",
        "a<b",
        "$",
        "$$",
        r"\(",
        r"\)",
        r"\[",
        r"\]",
        "{",
        "}",
        "&lt;",
        " ",
        "*",
        "_",
        "|",
    ]
    pieces += ["<!-- c -->", "<?x?>", "\t", "# ", "\\"]
    rng = random.Random(7)
    for _ in range(3000):
        said = "".join(rng.choices(pieces, k=rng.randint(1, 25)))
        markdown = answer(said)
        for kind in FORMULAS:  # which Gradio takes out before it renders the rest
            markdown = re.sub(re.escape(kind["left"]) + r"[\s\S]+?" + re.escape(kind["right"]), "formula", markdown)
        rendered = kinds(markdown) & {"html_inline", "html_block", "image"}
        assert not rendered, said


def test_markup_that_was_typed_is_escaped() -> None:
    assert literal("2*3 <b> a_b [x] `c` a\\*b") == r"2\*3 \<b\> a\_b \[x\] \`c\` a\\\*b"
    assert literal("- x\n1. y") == "&#8203;- x\n&#8203;1. y"
    assert literal("你好, it's 3 - 1 = 2.") == "你好, it's 3 - 1 = 2."
    assert formulas(literal(r"$x$ $$y$$ \(z\)")) == []


def test_indents_and_empty_lines_are_kept() -> None:
    assert literal("if x:\n    y\n\nz") == "if x:\n&nbsp;&nbsp;&nbsp;&nbsp;y\n\nz"
