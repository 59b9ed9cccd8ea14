"""Answers as Markdown on the Chat page: what is shown, what must not run, and what comes late."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chat_site import Visitor, stored_chat
from demo_site import CHROMIUM
from playwright.sync_api import expect

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install Debian's `chromium`, or set CHROMIUM")

MARKDOWN = """# Title
| a | b |
|---|---|
| 1 | 2 |

```python
print("<b>")
```

Inline $x^2 + \\alpha$ costs $5 and $10, <script>window.bad = 1</script> <img src=x onerror="window.bad = 2">
![picture](https://example.com/x.png) [link](javascript:window.bad=3)

$$
\\frac{1}{2}
$$

- [ ] open
- [x] done

שלום עולם
"""


def test_markdown_is_shown_and_nothing_in_it_runs(visitor: Visitor, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    path.write_text(json.dumps(stored_chat(MARKDOWN)))
    visitor.page.set_input_files(".sidebar input[type=file]", path)
    body = visitor.answers.locator(".body")
    expect(body.locator("math")).to_have_count(2)
    expect(body.locator("td").last).to_have_text("2")
    expect(body.locator("pre")).to_contain_text('print("<b>")')
    expect(body.locator("pre .hljs-string")).to_have_text('"<b>"')
    expect(body).to_contain_text("costs $5 and $10")
    expect(body.locator("li")).to_have_text(["☐ open", "☑ done"])
    expect(body.locator("script, img")).to_have_count(0)
    assert visitor.page.evaluate("window.bad") is None
    assert body.get_by_text("link", exact=True).get_attribute("href") is None
    assert body.get_by_text("שלום").evaluate("e => getComputedStyle(e).direction") == "rtl"
    for wrong in ("{", '{"format": "other"}', json.dumps({**stored_chat("x"), "version": 2})):
        path.write_text(wrong)
        visitor.page.set_input_files(".sidebar input[type=file]", path)
        expect(visitor.page.locator(".note .notice")).to_be_visible()
        visitor.page.locator(".note .notice button").click()
    assert len(visitor.stored("conversations")) == 1


DEEP = [">" * 20_000, "$" + "{" * 6_000 + "}" * 6_000 + "$"]


@pytest.mark.parametrize("text", DEEP, ids=["quotes", "braces"])
def test_what_is_nested_too_deep_is_shown_as_text(visitor: Visitor, tmp_path: Path, text: str) -> None:
    (tmp_path / "chat.json").write_text(json.dumps(stored_chat(text)))
    visitor.page.set_input_files(".sidebar input[type=file]", tmp_path / "chat.json")
    expect(visitor.answers.locator(".body")).to_contain_text(text[:50])
    visitor.page.reload()
    expect(visitor.answers.locator(".body")).to_contain_text(text[:50])


def test_what_took_the_place_of_an_answer_stays(visitor: Visitor) -> None:
    """A long text is parsed some time after it came: not if the whole of it, or its tokens, stand there by then."""
    shown = visitor.page.evaluate(
        """async () => {
            const { leaveMarkdown, renderMarkdown } = await import("./static/markdown.js");
            const shown = [];
            for (const end of [() => {}, (e) => renderMarkdown(e, "whole"), leaveMarkdown]) {
                const element = document.body.appendChild(document.createElement("div"));
                renderMarkdown(element, "first", true);
                element.next = performance.now() + 50;
                renderMarkdown(element, "second", true);
                end(element);
                element.replaceChildren("tokens");
                await new Promise((done) => setTimeout(done, 200));
                shown.push(element.textContent.trim());
                element.remove();
            }
            return shown;
        }"""
    )
    assert shown == ["second", "tokens", "tokens"]
