"""The Chat page by the rules of axe-core (WCAG 2.2 A and AA, and its best practices), in each of its states."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from chat_site import SHAPES, Visitor, said, stored_chat
from demo_site import CHROMIUM
from playwright.sync_api import Browser, expect

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install Debian's `chromium`, or set CHROMIUM"),
    pytest.mark.skipif(shutil.which("npm") is None, reason="no npm, which has axe-core"),
]
AXE = "axe-core@4.14.1"


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its script."""
    folder = tmp_path_factory.mktemp("axe")
    done = subprocess.run(["npm", "pack", AXE, "--silent"], cwd=folder, check=True, capture_output=True, text=True)
    with tarfile.open(folder / done.stdout.split()[-1]) as archive:
        script = archive.extractfile("package/axe.min.js")
        assert script is not None
        return script.read().decode()


MARKDOWN = """# Title

| a | b |
|---|---|
| 1 | 2 |

```python
@cached  # a comment
class Model(Base):
    def run(self, value=1.5) -> str:
        return f"{value}" if isinstance(value, int) else None
```

```diff
- gone
+ come
```

```json
{"name": [1, true]}
```

A [link](https://example.com), `code` and $x^2$.
"""


class Audit:
    def __init__(self, visitor: Visitor, axe: str) -> None:
        self.page, self.state = visitor.page, ""
        self.page.evaluate(axe)
        self.found: list[str] = []

    def look(self, state: str) -> None:
        """Notes what is wrong with what is shown now."""
        violations = self.page.evaluate(
            """async () => (await axe.run(document, { resultTypes: ["violations"] })).violations
            .flatMap(({ id, nodes }) => nodes.map((node) => [id, node.target.join(" "), node.failureSummary]))"""
        )
        self.found += [f"{state}: {rule}: {target}: {' '.join(why.split())}" for rule, target, why in violations]


@pytest.mark.parametrize(
    ("scheme", "lang", "width"), [("light", "en-GB", 1280), ("dark", "zh-CN", 1280), ("light", "zh-CN", 390)]
)
def test_every_state(browser: Browser, chat: str, axe: str, scheme: str, lang: str, width: int, tmp_path: Path) -> None:
    phone = {"has_touch": True, "is_mobile": True} if width < 500 else {}
    visitor = Visitor(browser, chat, width=width, color_scheme=scheme, locale=lang, **phone)
    page, code = visitor.page, lang[:2]
    audit = Audit(visitor, axe)
    audit.look("empty")
    visitor.ask("What is in the picture?", SHAPES)
    page.set_input_files(".composer input[multiple]", SHAPES)
    page.get_by_role("button", name=said("compare", code), exact=True).click()
    audit.look("an answer")
    page.get_by_role("button", name=said("tokens", code), exact=True).click()
    page.locator(".token").first.click()
    audit.look("tokens")
    for drawer in ("settings", "inside", "raw"):
        page.click(f"[data-drawer={drawer}]")
        if drawer == "inside":
            expect(page.locator("[data-section=pictures] img")).to_be_visible()
        audit.look(drawer)
        page.locator(".panel > header button").click()
    for opener, dialog in (
        (".chip-state", "model"),
        (said("look", code), "attention"),
        (said("reproduce", code), "programs"),
    ):
        (
            page.locator(opener) if opener.startswith(".") else page.get_by_role("button", name=opener, exact=True)
        ).click()
        expect(page.locator(f"dialog.{dialog}")).to_be_visible()
        audit.look(dialog)
        page.keyboard.press("Escape")
    if width < 500:
        page.locator(".bar .icon-button").first.click()
        audit.look("conversations")
    (tmp_path / "chat.json").write_text(json.dumps(stored_chat(MARKDOWN)))
    page.set_input_files(".sidebar input[type=file]", tmp_path / "chat.json")
    expect(page.locator(".hljs-keyword").first).to_be_attached()
    expect(page.locator("math").first).to_be_attached()
    audit.look("Markdown")
    visitor.close()
    assert not audit.found, "\n".join(audit.found)
