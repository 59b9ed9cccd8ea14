"""The Chat page in a browser, on the demo checkpoint: what it shows is what the library gives."""

from __future__ import annotations

import base64
import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from chat_site import EXAMPLES, Visitor, chat_app, demo_model, said, serve_chat
from demo_site import CHROMIUM, proxy, wait_for
from playwright.sync_api import Browser, expect
from small_models import gated

import gemma_tpu
from gemma_tpu import Loader
from gemma_tpu.cli.main import main

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install Debian's `chromium`, or set CHROMIUM")
SHAPES = EXAMPLES / "shapes.png"


@pytest.fixture(scope="module")
def model() -> Iterator[gemma_tpu.Model]:
    with demo_model(max_context=1024, max_rows=4) as model:
        yield model


@pytest.fixture(scope="module")
def chat(model: gemma_tpu.Model) -> Iterator[str]:
    loader = Loader("gemma3-demo", lambda progress: model)
    loader.start()
    assert loader.wait(600).phase == "ready"
    with serve_chat(chat_app(loader)) as url:
        yield url


@pytest.fixture
def visitor(browser: Browser, chat: str) -> Iterator[Visitor]:
    visitor = Visitor(browser, chat)
    yield visitor
    visitor.close()


def about(question: str, *pictures: Path) -> list[dict]:
    parts = [{"type": "image", "image": picture} for picture in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def test_a_conversation_about_a_picture(visitor: Visitor, model: gemma_tpu.Model) -> None:
    first = visitor.ask("What is in the picture?", SHAPES)
    asked = about("What is in the picture?", SHAPES)
    assert first == model.generate(asked).text
    second = visitor.ask("What colour is the star?")
    turns = [*asked, {"role": "assistant", "content": first}, {"role": "user", "content": "What colour is the star?"}]
    assert second == model.generate(turns).text
    assert re.search(r"\d+ of \d+ prompt tokens from the cache", visitor.answers.last.locator(".state").inner_text())
    expect(visitor.page.locator(".sidebar .open")).to_have_text("What is in the picture?")
    visitor.page.reload()
    expect(visitor.answers).to_have_count(2)
    assert visitor.answer == second
    expect(visitor.page.locator("article.user img.thumbnail")).to_have_js_property("naturalWidth", 384)


def test_pictures_stand_where_the_text_says(visitor: Visitor, model: gemma_tpu.Model) -> None:
    other = EXAMPLES / "word.png"
    page = visitor.page
    page.set_input_files(".composer input[multiple]", [SHAPES, other])
    expect(page.locator(".composer .attached")).to_have_count(2)
    page.fill(".composer textarea", "First: ")
    page.locator(".composer .insert").nth(1).click()
    page.locator(".composer textarea").press("End")
    page.keyboard.type(" What is it?")
    page.keyboard.press("Enter")
    shown = [
        {"type": "image", "image": SHAPES},
        {"type": "text", "text": "First: "},
        {"type": "image", "image": other},
        {"type": "text", "text": " What is it?"},
    ]
    expect(visitor.answers).to_have_count(1)
    assert visitor.ended() == model.generate([{"role": "user", "content": shown}]).text


def test_asking_again_and_editing_make_versions(visitor: Visitor) -> None:
    visitor.set(temperature=1.5, top_k=0)
    first = visitor.ask("Tell me about yourself.")
    visitor.press("again")
    expect(visitor.answers.last.locator(".versions")).to_contain_text("2/2")
    second = visitor.ended()
    visitor.press("version_before")
    expect(visitor.answers.last.locator(".versions")).to_contain_text("1/2")
    assert visitor.answer == first
    question = visitor.page.locator("article.user")
    visitor.press("edit", question)
    question.locator("textarea").fill("What is 12 + 30?")
    question.locator("textarea").press("Enter")
    expect(question.locator(".versions")).to_contain_text("2/2")
    visitor.ended()
    visitor.press("version_before", question)
    expect(visitor.answers.last.locator(".versions")).to_contain_text("2/2")
    assert visitor.answer == second


def test_an_answer_goes_on_over_a_reload_and_a_lost_server(browser: Browser, chat: str, model: gemma_tpu.Model) -> None:
    """With its seed: what is drawn depends on the place in the answer alone."""
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 11, "max_new_tokens": 120}
    base, _, _ = chat.rpartition("/chat/")
    with proxy(base, "/x") as address:
        port = int(address.rsplit(":", 1)[1].partition("/")[0])
        visitor = Visitor(browser, f"{address}/chat/")
        visitor.loses = True
        visitor.set(temperature=1, top_k=0, top_p=1, seed=11, max_tokens=120)
        with gated(model.engine, 12, pause=0.3):
            visitor.begin("Write a long story about a red circle and a blue star.")
            expect(visitor.answers.locator(".body")).to_contain_text(re.compile(r"\w{3}"))
            visitor.page.reload()
            expect(visitor.answers.locator(".body")).to_contain_text(re.compile(r"\w{3}"))
    expect(visitor.page.locator(".chip-state")).to_have_attribute("data-phase", "lost")
    with proxy(base, "/x", port):
        text = visitor.ended()
        whole = model.generate("Write a long story about a red circle and a blue star.", **settings)
        assert text == whole.text
        visitor.close()


def test_stopping_and_going_on(visitor: Visitor, model: gemma_tpu.Model) -> None:
    question = "How many layers does Gemma 3 27B have?"
    whole = model.generate(question)
    with gated(model.engine, 4, pause=0.5):
        visitor.begin(question)
        expect(visitor.answers.locator(".body")).to_contain_text(re.compile(r"\w"))
        visitor.page.keyboard.press("Escape")
        expect(visitor.page.locator(".composer .stop")).to_be_hidden()
    assert len(visitor.answer) < len(whole.text)
    expect(visitor.answers.locator(".state")).to_contain_text(said("ended_cancelled"))
    visitor.press("go_on")
    assert visitor.ended() == whole.text


def test_tokens_and_going_on_from_another(visitor: Visitor, model: gemma_tpu.Model) -> None:
    question = "What is in the picture?"
    asked = about(question, SHAPES)
    answer = visitor.ask(question, SHAPES)
    visitor.press("tokens")
    tokens = visitor.answers.locator(".token")
    assert "".join(tokens.all_inner_texts()).strip() == answer
    expected = model.generate(asked, logprobs=5)
    tokens.nth(2).click()
    rows = visitor.answers.locator(".alternatives li")
    top = expected.logprobs[2].top
    assert rows.count() == len(top)
    assert f"{100 * 2.718281828459045 ** top[0][1]:.0f} %" in rows.first.inner_text()
    other = next(i for i in range(rows.count()) if rows.nth(i).get_by_role("button").count())
    before = "".join(tokens.all_inner_texts()[:2])
    chosen = rows.nth(other).locator("code").inner_text().replace("·", " ")
    rows.nth(other).get_by_role("button").click()
    expect(visitor.answers.locator(".versions")).to_contain_text("2/2")
    begun = before + chosen
    rest = model.generate([*asked, {"role": "assistant", "content": begun}], continue_final=True).text
    assert visitor.ended() == (begun + rest).strip()
    assert re.search(r"from the cache", visitor.answers.locator(".state").inner_text())


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

שלום עולם
"""


def stored_chat(text: str) -> dict:
    messages = [
        {"id": "q", "parent": None, "role": "user", "created": 1, "parts": [{"text": "Show."}]},
        {"id": "a", "parent": "q", "role": "assistant", "created": 2, "text": text, "state": "done", "tokens": []},
    ]
    conversation = {"id": "c", "title": "Shown", "created": 1, "changed": 1, "leaf": "a", "messages": messages}
    return {"format": "gemma_tpu chat", "version": 1, "conversations": [conversation], "pictures": {}}


def test_markdown_is_shown_and_nothing_in_it_runs(visitor: Visitor, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    path.write_text(json.dumps(stored_chat(MARKDOWN)))
    visitor.page.set_input_files(".sidebar input[type=file]", path)
    body = visitor.answers.locator(".body")
    expect(body.locator("math")).to_have_count(2)
    expect(body.locator("td").last).to_have_text("2")
    expect(body.locator("pre")).to_contain_text('print("<b>")')
    expect(body).to_contain_text("costs $5 and $10")
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


def damaged(change: Callable[[dict, dict], object]) -> dict:
    data = stored_chat("An answer.")
    change(data, data["conversations"][0])
    return data


DAMAGES = {
    "cycle": lambda data, chat: chat["messages"][0].update(parent="a"),
    "unknown parent": lambda data, chat: chat["messages"][1].update(parent="x"),
    "calls": lambda data, chat: chat["messages"][1].update(calls=5),
    "call": lambda data, chat: chat["messages"][1].update(calls=[{}]),
    "tokens": lambda data, chat: chat["messages"][1].update(tokens=[["a"]]),
    "parts": lambda data, chat: chat["messages"][0].update(parts=[None]),
    "picture": lambda data, chat: data.update(pictures={"p": {"url": PNG, "name": "a"}, "q": None}),
    "markup": lambda data, chat: data.update(pictures={"p": {"url": "data:image/$(touch x);base64,AA==", "name": "a"}}),
    "second": lambda data, chat: data["conversations"].append({"id": "d"}),
    "nothing": lambda data, chat: data.update(conversations=[None]),
    "role": lambda data, chat: chat["messages"][0].update(role="system"),
    "twice": lambda data, chat: chat["messages"].append(dict(chat["messages"][0])),
}
PNG = "data:image/png;base64," + base64.b64encode(SHAPES.read_bytes()).decode()


@pytest.mark.parametrize("damage", DAMAGES)
def test_of_a_damaged_file_nothing_is_stored(visitor: Visitor, tmp_path: Path, damage: str) -> None:
    (tmp_path / "chat.json").write_text(json.dumps(damaged(DAMAGES[damage])))
    visitor.page.set_input_files(".sidebar input[type=file]", tmp_path / "chat.json")
    expect(visitor.page.locator(".note .notice")).to_contain_text(said("not_an_export"))
    assert [visitor.stored(name) for name in ("conversations", "messages", "pictures")] == [[], [], []]


def test_what_is_missing_in_a_file_is_as_by_default(visitor: Visitor, tmp_path: Path) -> None:
    def change(data: dict, chat: dict) -> None:
        del chat["leaf"]
        chat["settings"] = {"system": 5, "stop": "abc", "temperature": "hot", "seed": []}
        chat["messages"][1] |= {"speed": "fast", "usage": 3, "pair": "p", "state": "writing"}

    (tmp_path / "chat.json").write_text(json.dumps(damaged(change)))
    visitor.page.set_input_files(".sidebar input[type=file]", tmp_path / "chat.json")
    expect(visitor.answers.locator(".body")).to_have_text("An answer.")
    assert visitor.ask("What is 12 + 30?")


def test_a_conversation_that_was_left_goes_on_and_is_found_as_it_is(visitor: Visitor, model: gemma_tpu.Model) -> None:
    with gated(model.engine, 4, pause=0.3):
        visitor.begin("Tell me about yourself.")
        expect(visitor.answers.locator(".body")).to_contain_text(re.compile(r"\w"))
        visitor.page.get_by_role("button", name=said("new"), exact=True).click()
        visitor.page.fill(".composer textarea", "half a")
        visitor.page.locator(".sidebar .open").first.click()  # at once: the draft is kept all the same
    assert visitor.ended() == model.generate("Tell me about yourself.").text
    drafts = [one["draft"]["text"] for one in visitor.stored("conversations") if one.get("draft")]
    assert "half a" in drafts


def test_a_conversation_deleted_amid_an_answer_is_gone(visitor: Visitor, model: gemma_tpu.Model) -> None:
    visitor.page.on("dialog", lambda dialog: dialog.accept())
    with gated(model.engine, 4, pause=0.3):
        visitor.begin("Tell me about yourself.", SHAPES)
        expect(visitor.answers.locator(".body")).to_contain_text(re.compile(r"\w"))
        visitor.page.locator(".sidebar li").hover()
        visitor.page.locator(".sidebar .tools button").last.click()
        expect(visitor.page.locator(".empty")).to_be_visible()
    wait_for(lambda: not any(model.engine.occupancy()[:2]))
    visitor.page.wait_for_timeout(1000)
    assert [visitor.stored(name) for name in ("conversations", "messages", "pictures")] == [[], [], []]


def test_an_answer_of_a_tab_that_was_closed_can_go_on(visitor: Visitor, model: gemma_tpu.Model) -> None:
    first, second = visitor.page, visitor.open()
    with gated(model.engine, 4, pause=0.3):
        visitor.begin("Tell me about yourself.")
        expect(visitor.answers.locator(".body")).to_contain_text(re.compile(r"\w"))
        first.wait_for_timeout(500)
        first.close()
    visitor.page = second
    second.locator(".sidebar .open").click()
    assert visitor.ended() == model.generate("Tell me about yourself.").text


def test_full_storage_is_said_and_the_answer_is_there(visitor: Visitor, model: gemma_tpu.Model) -> None:
    error = 'new DOMException("no room", "QuotaExceededError")'
    visitor.page.evaluate(f"() => {{ IDBObjectStore.prototype.put = () => {{ throw {error}; }} }}")
    expected = model.generate(about("What is in the picture?", SHAPES))
    assert visitor.ask("What is in the picture?", SHAPES) == expected.text
    expect(visitor.page.locator(".sidebar .hint")).to_have_text(said("not_kept"))
    assert visitor.ask("What colour is the star?")


def test_typed_text_stays_where_it_is(visitor: Visitor, model: gemma_tpu.Model) -> None:
    visitor.ask("What is 12 + 30?")
    page, question = visitor.page, visitor.page.locator("article.user").first
    page.fill(".composer textarea", "my next question")
    visitor.press("edit", question)
    question.locator("textarea").fill("What is 4 + 4?")
    question.locator("textarea").press("Enter")
    expect(question.locator(".versions")).to_contain_text("2/2")
    visitor.ended()
    expect(page.locator(".composer textarea")).to_have_value("my next question")
    page.fill(".composer textarea", "")
    with gated(model.engine, 4, pause=0.3):
        visitor.begin("Tell me about yourself.")
        expect(visitor.answers.last.locator(".body")).to_contain_text(re.compile(r"\w"))
        visitor.press("edit", question)
        question.locator("textarea").fill("What is 5 + 5?")
        question.locator("textarea").press("Enter")
        expect(page.locator(".note .notice")).to_contain_text(said("busy"))
        expect(question.locator("textarea")).to_have_value("What is 5 + 5?")
        page.get_by_role("button", name="中文").click()
        expect(question.locator("textarea")).to_have_value("What is 5 + 5?")
        question.locator("textarea").press("Escape")  # leaves the field, and stops no answer
    expect(page.locator(".composer .stop")).to_be_hidden()
    assert (
        visitor.answer
        == model.generate(
            [
                *about("What is 4 + 4?"),
                {"role": "assistant", "content": model.generate("What is 4 + 4?").text},
                *about("Tell me about yourself."),
            ]
        ).text
    )


def test_settings_of_a_new_conversation_are_kept(visitor: Visitor) -> None:
    visitor.set(system="Answer in one word.", temperature=0.7)
    visitor.page.get_by_role("button", name=said("new"), exact=True).click()
    visitor.ask("What is 12 + 30?")
    visitor.page.reload()
    expect(visitor.answers).to_have_count(1)
    visitor.page.click("[data-drawer=settings]")
    expect(visitor.page.locator("textarea[data-setting=system]")).to_have_value("Answer in one word.")


def test_an_export_and_a_link_give_the_conversation_back(browser: Browser, visitor: Visitor, tmp_path: Path) -> None:
    answer = visitor.ask("What is in the picture?", SHAPES)
    with visitor.page.expect_download() as download:
        visitor.page.get_by_role("button", name=said("export_all")).click()
    path = tmp_path / "export.json"
    download.value.save_as(path)
    other = Visitor(browser, visitor.url)
    other.page.set_input_files(".sidebar input[type=file]", path)
    expect(other.answers).to_have_count(1)
    assert other.answer == answer
    expect(other.page.locator("article.user img.thumbnail")).to_have_js_property("naturalWidth", 384)
    other.close()
    visitor.context.grant_permissions(["clipboard-read", "clipboard-write"])
    visitor.press("reproduce")
    visitor.page.get_by_role("button", name=said("copy_link")).click()
    visitor.page.wait_for_timeout(300)
    link = visitor.page.evaluate("navigator.clipboard.readText()")
    assert link.startswith(f"{visitor.url}#open=")
    other = Visitor(browser, link)
    expect(other.answers).to_have_count(1)
    assert other.answer == answer
    other.close()
    broken = Visitor(browser, link[:-20])
    expect(broken.page.locator(".note .notice")).to_contain_text(said("bad_link"))
    broken.close()


def test_two_answers_side_by_side(visitor: Visitor, model: gemma_tpu.Model) -> None:
    visitor.page.get_by_role("button", name=said("compare")).click()
    visitor.page.locator(".second input").nth(0).fill("1.5")
    visitor.page.locator(".second input").nth(3).fill("5")
    visitor.page.locator(".second input").nth(3).press("Tab")
    visitor.begin("Tell me about yourself.")
    expect(visitor.answers).to_have_count(2)
    visitor.ended()
    texts = visitor.page.locator(".pair .body").all_inner_texts()
    assert texts[0] == model.generate("Tell me about yourself.").text
    sampled = model.generate("Tell me about yourself.", temperature=1.5, seed=5)
    assert texts[1] == sampled.text
    visitor.press("keep", visitor.answers.last)
    expect(visitor.answers).to_have_count(1)
    assert visitor.answer == texts[1]


def test_an_answer_follows_a_schema(visitor: Visitor) -> None:
    schema = {
        "type": "object",
        "properties": {"sum": {"type": "integer"}},
        "required": ["sum"],
        "additionalProperties": False,
    }
    visitor.page.click("[data-drawer=settings]")
    visitor.page.locator(".panel summary").click()
    area = visitor.page.locator("textarea[data-setting=schema]")
    area.fill("{")
    expect(visitor.page.locator(".panel .problem").first).not_to_be_empty()
    area.fill(json.dumps(schema))
    visitor.page.locator(".panel > header button").click()
    visitor.begin("What is 12 + 30?")
    expect(visitor.answers).to_have_count(1)
    visitor.ended()
    assert isinstance(
        json.loads(next(m for m in visitor.stored("messages") if m["role"] == "assistant")["text"])["sum"], int
    )


def test_old_turns_are_left_out_when_the_context_is_full(visitor: Visitor) -> None:
    visitor.set(max_tokens=8)
    long = "Sort these numbers: " + ", ".join(str(i) for i in range(120))
    visitor.ask(long)
    visitor.ask(long)
    visitor.ask(long)
    expect(visitor.answers.last.locator(".state")).to_contain_text("oldest turns forgotten")
    rows = visitor.page.locator(".column > *")
    order = rows.evaluate_all("rows => rows.map((row) => row.className.split(' ').at(-1))")
    assert order.index("divider") in (2, 4)  # before a question


def test_pages_of_a_pdf_and_what_is_no_picture(visitor: Visitor, tmp_path: Path) -> None:
    from PIL import Image

    pages = [Image.open(EXAMPLES / name).convert("RGB").resize((384, 288)) for name in ("shapes.png", "word.png")]
    pdf = tmp_path / "two.pdf"
    pages[0].save(pdf, save_all=True, append_images=pages[1:])
    page = visitor.page
    page.set_input_files(".composer input[multiple]", pdf)
    expect(page.locator(".composer .attached")).to_have_count(2)
    expect(page.locator(".composer img.thumbnail").first).to_have_js_property("naturalWidth", 1792)
    assert "red circle" in visitor.ask("What is in the first picture?")
    (tmp_path / "notes.txt").write_text("words")
    page.set_input_files(".composer input[multiple]", tmp_path / "notes.txt")
    expect(page.locator(".note .notice")).to_contain_text("notes.txt")
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.4 nothing")
    page.set_input_files(".composer input[multiple]", tmp_path / "bad.pdf")
    expect(page.locator(".note .notice")).to_contain_text("bad.pdf")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    drawing = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="64" height="32"><rect width="64" height="32" fill="red"/></svg>'
    )
    (tmp_path / "drawing.svg").write_text(drawing)
    (tmp_path / "picture.txt").write_bytes(SHAPES.read_bytes())
    page.set_input_files(".composer input[multiple]", [tmp_path / n for n in ("bad.png", "drawing.svg", "picture.txt")])
    expect(page.locator(".note .notice")).to_contain_text("bad.png")
    expect(page.locator(".composer .attached")).to_have_count(2)  # those that are pictures
    expect(page.locator(".composer img.thumbnail").first).to_have_js_property("naturalWidth", 896)
    assert visitor.ask("What is it?")


RECORD = """async () => {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 64;
  const context = canvas.getContext("2d");
  const recorder = new MediaRecorder(canvas.captureStream(20), { mimeType: "video/webm" });
  const chunks = [];
  recorder.ondataavailable = ({ data }) => chunks.push(data);
  const done = new Promise((resolve) => (recorder.onstop = resolve));
  recorder.start();
  for (let i = 0; i < 20; i++) {
    context.fillStyle = i < 10 ? "red" : "blue";
    context.fillRect(0, 0, 64, 64);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  recorder.stop();
  await done;
  const transfer = new DataTransfer();
  transfer.items.add(new File(chunks, "clip.webm", { type: "video/webm" }));
  document.dispatchEvent(new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: transfer }));
}"""


def test_frames_of_a_video_that_was_dropped(visitor: Visitor) -> None:
    visitor.page.evaluate(RECORD)
    dialog = visitor.page.locator("dialog.choose")
    dialog.locator("input").fill("4")
    dialog.get_by_role("button", name=said("take")).click()
    expect(visitor.page.locator(".composer .attached")).to_have_count(4)


def test_the_same_answer_from_elsewhere(
    visitor: Visitor, model: gemma_tpu.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """What the page gives for Python, the command line and curl is run, and gives the page's answer."""
    visitor.set(temperature=1.2, top_k=40, seed=3, max_tokens=30, system='- say "it" in $1 `word`.')
    answer = visitor.ask('What\'s in the picture? 100% "sure" $HOME `x` \\n', SHAPES)
    visitor.press("reproduce")
    dialog = visitor.page.locator("dialog.programs")
    with visitor.page.expect_download() as download:
        dialog.get_by_role("button", name="picture-1.png").click()
    download.value.save_as(tmp_path / "picture-1.png")
    python, command, curl = dialog.locator("pre").all_inner_texts()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gemma_tpu, "load", lambda checkpoint: {"gemma3-demo": model}[checkpoint])
    exec(python, {})
    assert capsys.readouterr().out.strip() == answer
    done = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    address = f"{visitor.url.removesuffix('chat/')}v1"
    assert address in curl
    assert json.loads(done.stdout)["choices"][0]["message"]["content"].strip() == answer
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert main([*shlex.split(command.replace(" -- ", " --max-context 1024 -- "))[1:]]) == 0
    assert capsys.readouterr().out.strip() == answer


def test_a_call_gets_its_result(visitor: Visitor, model: gemma_tpu.Model) -> None:
    tool = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
    tool["function"]["parameters"]["additionalProperties"] = False
    visitor.page.click("[data-drawer=settings]")
    visitor.page.locator(".panel summary").click()
    visitor.page.fill("textarea[data-setting=tools]", json.dumps([tool]))
    visitor.page.locator("[data-setting=must_call] input").check()
    visitor.page.locator(".panel > header button").click()
    visitor.begin("What time is it?")
    call = visitor.page.locator(".call").first
    expect(call.locator("code")).to_have_text("now({})")
    visitor.ended()
    visitor.page.click("[data-drawer=settings]")
    visitor.page.locator("[data-setting=must_call] input").uncheck()
    visitor.page.locator(".panel > header button").click()
    for i in range(visitor.page.locator(".call").count()):
        visitor.page.locator(".call textarea").nth(i).fill("noon")
        visitor.page.locator(".call").nth(i).get_by_role("button").click()
    expect(visitor.answers).to_have_count(2)
    visitor.ended()
    calls = sum(len(message.get("calls", [])) for message in visitor.stored("messages"))
    given = [message["text"] for message in visitor.stored("messages") if message["role"] == "tool"]
    assert given == ["noon"] * calls
    expect(visitor.page.locator(".call pre")).to_have_text(given)  # each call shows its own, none asks again
    expect(visitor.page.locator(".call textarea")).to_have_count(0)


def test_a_turn_taken_back(visitor: Visitor) -> None:
    visitor.ask("What is 12 + 30?")
    visitor.ask("What is in the picture?", SHAPES)
    visitor.press("undo")
    expect(visitor.answers).to_have_count(1)
    expect(visitor.page.locator(".composer textarea")).to_have_value("What is in the picture?")
    expect(visitor.page.locator(".composer .attached")).to_have_count(1)
    visitor.ask("What is 4 + 4?")
    expect(visitor.page.locator("article.user").last.locator(".versions")).to_contain_text("2/2")


def test_a_raw_prompt(visitor: Visitor, model: gemma_tpu.Model) -> None:
    visitor.ask("What is 12 + 30?")
    visitor.page.click("[data-drawer=raw]")
    panel = visitor.page.locator(".panel")
    panel.get_by_role("button", name=said("raw_take")).click()
    field = panel.locator("textarea")
    expect(field).to_have_value(re.compile(r"^<start_of_turn>user\nWhat is 12 \+ 30\?<end_of_turn>"))
    prompt = "<start_of_turn>user\nWho are you?<end_of_turn>\n<start_of_turn>model\nI"
    field.fill(prompt)
    panel.get_by_role("button", name=said("raw_go")).click()
    expect(panel.locator("[role=status]")).to_contain_text("token")
    expected = model.generate("Who are you?", max_new_tokens=200)
    assert field.input_value().startswith(prompt)
    assert field.input_value().removeprefix(prompt[:-1]) == expected.text


def test_twenty_visitors_at_once(browser: Browser, chat: str, model: gemma_tpu.Model) -> None:
    visitors = [Visitor(browser, chat, width=500, height=600) for _ in range(20)]
    sums = [(3 + i, 40 - i) for i in range(20)]
    for visitor, (a, b) in zip(visitors, sums, strict=True):
        visitor.begin(f"What is {a} + {b}?")
    for visitor, (a, b) in zip(visitors, sums, strict=True):
        expect(visitor.answers).to_have_count(1)
        assert visitor.ended() == model.generate(f"What is {a} + {b}?").text
        visitor.close()


def test_what_is_inside(visitor: Visitor, model: gemma_tpu.Model) -> None:
    visitor.ask("What is in the picture?", SHAPES)
    visitor.page.click("[data-drawer=inside]")
    panel = visitor.page.locator(".panel")
    expect(panel.locator("[data-section=pictures] img")).to_have_js_property("naturalWidth", 896)
    expect(panel.locator("[data-section=sequence] .chip").first).to_have_text("<bos>")
    expect(panel.locator("[data-section=sequence] .soft")).to_contain_text("256")
    context = panel.locator("[data-section=context] dd").all_inner_texts()
    assert context[1] == "256"
    used = model.generate(about("What is in the picture?", SHAPES)).usage
    assert int(context[0]) == used.prompt_tokens + used.completion_tokens - 256
    expect(panel.locator("[data-section=machine]")).to_contain_text("CPU", ignore_case=True)


def test_where_the_model_looked(visitor: Visitor, model: gemma_tpu.Model) -> None:
    answer = visitor.ask("What is in the picture?", SHAPES)
    assert answer.startswith("A red circle, a blue star")
    visitor.press("tokens")
    tokens = visitor.answers.locator(".token")
    star = next(i for i, text in enumerate(tokens.all_inner_texts()) if text.strip() == "star")
    before = "".join(tokens.all_inner_texts()[:star])
    tokens.nth(star).click()
    visitor.page.get_by_role("button", name=said("look")).click()
    dialog = visitor.page.locator("dialog.attention")
    expect(dialog.locator("h2")).to_have_text(said("looked", token="star"))
    messages = [*about("What is in the picture?", SHAPES), {"role": "assistant", "content": before}]
    heads = model.attention(messages, positions=[-1], continue_final=True).on_image()[0]  # [L, N, 16, 16]
    layer, head = np.unravel_index(heads.max(axis=(2, 3)).argmax(), heads.shape[:2])
    expect(dialog.locator("option:checked")).to_have_text(said("sharpest", layer=layer + 1, head=head + 1))
    pixels = "c => [...c.getContext('2d').getImageData(0, 0, 16, 16).data].filter((_, i) => i % 4 === 3)"
    for choice, square in (
        (None, heads[layer, head]),
        ("1", heads[1].mean(axis=0)),
        ("mean", heads.mean(axis=(0, 1))),
    ):
        if choice:
            dialog.locator("select").select_option(choice)
        drawn = np.reshape(dialog.locator("canvas").evaluate(pixels), (16, 16))
        np.testing.assert_allclose(drawn, 205 * (1 - np.sqrt(square / square.max())), atol=5)
        shown = float(dialog.locator("[role=status]").inner_text().split(" %")[0])
        assert shown == pytest.approx(100 * square.sum(), abs=0.6)
    visitor.page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()


def test_two_tabs_lose_nothing_of_each_other(visitor: Visitor) -> None:
    visitor.ask("What is 12 + 30?")
    first, second = visitor.page, visitor.open()
    second.locator(".sidebar .open").click()
    visitor.page = second
    expect(visitor.answers).to_have_count(1)
    visitor.ask("What is 4 + 4?")
    visitor.page = first
    expect(visitor.answers).to_have_count(1)
    visitor.ask("Reverse the word lemon.")
    texts = [message["parts"][0]["text"] for message in visitor.stored("messages") if message["role"] == "user"]
    assert sorted(texts) == ["Reverse the word lemon.", "What is 12 + 30?", "What is 4 + 4?"]
    second.close()


def test_search_rename_and_delete(visitor: Visitor) -> None:
    page = visitor.page
    visitor.ask("What is 12 + 30?")
    page.get_by_role("button", name=said("new"), exact=True).click()
    visitor.ask("What is in the picture?", SHAPES)
    page.fill(".sidebar input[type=search]", "42")  # of the first one's answer
    expect(page.locator(".sidebar .open")).to_have_text(["What is 12 + 30?"])
    page.locator(".sidebar .open").click()
    page.get_by_role("button", name=f"{said('rename')}: What is 12 + 30?").click()
    page.keyboard.type("Sums")
    page.keyboard.press("Enter")
    expect(page.locator(".bar h1")).to_have_text("Sums")
    page.fill(".sidebar input[type=search]", "")
    page.on("dialog", lambda dialog: dialog.accept())
    page.locator(".sidebar li", has_text="picture").hover()
    page.get_by_role("button", name=f"{said('delete')}: What is in the picture?").click()
    expect(page.locator(".sidebar .open")).to_have_text(["Sums"])
    assert not visitor.stored("pictures")


def test_a_draft_survives_a_reload(visitor: Visitor) -> None:
    visitor.page.set_input_files(".composer input[multiple]", SHAPES)
    visitor.page.fill(".composer textarea", "half a quest")
    visitor.page.wait_for_timeout(800)
    visitor.page.reload()
    expect(visitor.page.locator(".composer textarea")).to_have_value("half a quest")
    expect(visitor.page.locator(".composer .attached")).to_have_count(1)


def test_a_phone_in_chinese(browser: Browser, chat: str) -> None:
    visitor = Visitor(browser, chat, width=390, height=844, locale="zh-CN", has_touch=True, is_mobile=True)
    page = visitor.page
    expect(page.locator(".empty h2")).to_have_text(said("ask_model", "zh", name="gemma3-demo"))
    visitor.ask("图里有什么？", SHAPES)
    page.get_by_role("button", name=said("tokens", "zh")).click()
    page.locator(".token").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    small = page.evaluate(
        """() => [...document.querySelectorAll("button, a")]
        .filter((e) => e.checkVisibility() && !e.matches(".token, .chip-state, .attached *"))
        .map((e) => [e.getAttribute("aria-label") ?? e.textContent, e.getBoundingClientRect()])
        .filter(([, r]) => r.height < 38 || r.width < 38).map(([name]) => name)"""
    )
    assert not small
    page.click("[data-drawer=inside]")
    expect(page.locator(".panel")).to_be_in_viewport()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("button, input, textarea")]
        .filter((e) => !e.closest("[hidden]"))
        .filter((e) => !(e.getAttribute("aria-label") || e.textContent.trim() || e.labels?.length))
        .map((e) => e.outerHTML)"""
    )
    assert not unnamed
    visitor.close()


def test_other_sites_change_nothing(chat: str) -> None:
    import urllib.error
    import urllib.request

    request = urllib.request.Request(f"{chat}load", method="POST", data=b"")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urlopen(request)
    with urlopen(chat) as answer:
        assert "default-src 'none'" in answer.headers["content-security-policy"]
