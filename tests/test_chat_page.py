"""The Chat page in a browser, on the demo checkpoint: its answers are what the library gives."""

from __future__ import annotations

import json
import re
from urllib.request import urlopen

import pytest
from chat_site import SHAPES, Visitor, about, said
from demo_site import CHROMIUM
from playwright.sync_api import Browser, expect
from small_models import gated
from starlette.datastructures import Headers
from starlette.testclient import TestClient

import gemma_tpu
from demo.chat_page.app import _refusal

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install Debian's `chromium`, or set CHROMIUM")


def test_a_conversation_about_a_picture(visitor: Visitor, chat_model: gemma_tpu.Model) -> None:
    first = visitor.ask("What is in the picture?", SHAPES)
    asked = about("What is in the picture?", SHAPES)
    assert first == chat_model.generate(asked).text
    second = visitor.ask("What colour is the star?")
    turns = [*asked, {"role": "assistant", "content": first}, {"role": "user", "content": "What colour is the star?"}]
    assert second == chat_model.generate(turns).text
    assert re.search(r"\d+ of \d+ prompt tokens from the cache", visitor.answers.last.locator(".state").inner_text())
    expect(visitor.page.locator(".sidebar .open")).to_have_text("What is in the picture?")
    visitor.page.reload()
    expect(visitor.answers).to_have_count(2)
    assert visitor.answer == second
    expect(visitor.page.locator("article.user img.thumbnail")).to_have_js_property("naturalWidth", 384)


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


def test_stopping_and_going_on(visitor: Visitor, chat_model: gemma_tpu.Model) -> None:
    question = "How many layers does Gemma 3 27B have?"
    whole = chat_model.generate(question)
    with gated(chat_model.engine, 4, pause=0.5):
        visitor.begin(question)
        expect(visitor.answers.locator(".body")).to_contain_text(re.compile(r"\w"))
        visitor.page.keyboard.press("Escape")
        expect(visitor.page.locator(".composer .stop")).to_be_hidden()
    assert len(visitor.answer) < len(whole.text)
    expect(visitor.answers.locator(".state")).to_contain_text(said("ended_cancelled"))
    visitor.press("go_on")
    assert visitor.ended() == whole.text


def test_two_answers_side_by_side(visitor: Visitor, chat_model: gemma_tpu.Model) -> None:
    button = visitor.page.get_by_role("button", name=said("compare"))
    button.click()
    visitor.page.locator(".second input").nth(0).press("Escape")
    expect(visitor.page.locator(".second")).to_be_hidden()
    expect(button).to_be_focused()
    button.click()
    visitor.page.locator(".second input").nth(0).fill("1.5")
    visitor.page.locator(".second input").nth(3).fill("5")
    visitor.page.locator(".second input").nth(3).press("Tab")
    visitor.begin("Tell me about yourself.")
    expect(visitor.answers).to_have_count(2)
    visitor.ended()
    texts = visitor.page.locator(".pair .body").all_inner_texts()
    assert texts[0] == chat_model.generate("Tell me about yourself.").text
    sampled = chat_model.generate("Tell me about yourself.", temperature=1.5, seed=5)
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


def test_a_new_conversation_has_no_instructions_of_the_last_one(visitor: Visitor) -> None:
    """How answers are drawn stays."""
    visitor.set(temperature=0.5, system="Answer in French.")
    with visitor.settings() as panel:
        panel.locator("summary").click()
        panel.locator("[data-setting=schema]").fill('{"type": "integer"}')
    visitor.ask("What is 12 + 30?")
    visitor.page.get_by_role("button", name=said("new"), exact=True).click()
    with visitor.settings() as panel:
        expect(panel.locator("[data-setting=temperature] input").first).to_have_value("0.5")
        for name in ("system", "schema"):
            expect(panel.locator(f"[data-setting={name}]")).to_have_value("")


def test_a_prompt_that_is_refused_says_so_where_the_visitor_looks(visitor: Visitor) -> None:
    visitor.set(drop_oldest=False)
    visitor.ask("What is in the picture?", SHAPES)
    visitor.page.set_viewport_size({"width": 390, "height": 844})
    visitor.begin("word " * 10_000, SHAPES, SHAPES)
    expect(visitor.answers.locator(".notice")).to_contain_text("context")
    expect(visitor.answers.locator(".notice")).to_be_in_viewport()


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


def test_a_call_gets_its_result(visitor: Visitor, chat_model: gemma_tpu.Model) -> None:
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
    visitor.press("reproduce")
    programs = visitor.page.locator("dialog.programs")
    expect(programs.locator("pre")).to_have_count(1)  # only the server holds an answer to a call
    expect(programs.locator("pre")).to_contain_text('"tool_choice": "required"')
    programs.locator(".close").click()
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


def test_a_raw_prompt(visitor: Visitor, chat_model: gemma_tpu.Model) -> None:
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
    expected = chat_model.generate("Who are you?", max_new_tokens=200)
    assert field.input_value().startswith(prompt)
    assert field.input_value().removeprefix(prompt[:-1]) == expected.text
    written = field.input_value()
    visitor.page.reload()
    visitor.page.click("[data-drawer=raw]")
    expect(field).to_have_value(written)
    panel.get_by_role("button", name=said("raw_take")).click()
    expect(field).to_have_value(re.compile("12"))
    panel.get_by_role("button", name=said("raw_back")).click()
    expect(field).to_have_value(written)
    expect(panel.get_by_role("button", name=said("raw_back"))).to_be_hidden()
    for _ in range(2):  # the second takes the same once more
        panel.get_by_role("button", name=said("raw_take")).click()
        expect(field).to_have_value(re.compile("12"))
    visitor.page.reload()
    visitor.page.click("[data-drawer=raw]")
    panel.get_by_role("button", name=said("raw_back")).click()
    expect(field).to_have_value(written)
    field.fill(prompt)
    with gated(chat_model.engine, 4, pause=0.3):
        panel.get_by_role("button", name=said("raw_go")).click()
        expect(field).not_to_be_editable()
        expect(panel.get_by_role("button", name=said("raw_take"))).to_be_disabled()
        visitor.page.locator("header [lang=zh]").click()
        expect(panel.get_by_role("button", name=said("stop_answer", "zh"))).to_be_visible()
        expect(panel.locator("textarea")).not_to_be_editable()
        visitor.page.locator("header [lang=en]").click()
    expect(field).to_be_editable()


def test_twenty_visitors_at_once(browser: Browser, chat: str, chat_model: gemma_tpu.Model) -> None:
    visitors = [Visitor(browser, chat, width=500, height=600) for _ in range(20)]
    sums = [(3 + i, 40 - i) for i in range(20)]
    for visitor, (a, b) in zip(visitors, sums, strict=True):
        visitor.begin(f"What is {a} + {b}?")
    for visitor, (a, b) in zip(visitors, sums, strict=True):
        expect(visitor.answers).to_have_count(1)
        assert visitor.ended() == chat_model.generate(f"What is {a} + {b}?").text
        visitor.close()


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
        .filter((e) => e.checkVisibility() && !e.matches(".token, .insert"))
        .map((e) => [e.getAttribute("aria-label") ?? e.textContent, e.getBoundingClientRect()])
        .filter(([, r]) => r.height < 44 || r.width < 44).map(([name]) => name)"""
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
    for length, status, what in (("", 411, "content-length"), (str(97 << 20), 413, "97 of at most 96 MiB")):
        headers = Headers({"x-gemma-chat": "1", "content-length": length})
        refusal = TestClient(_refusal("POST", headers)).post("/")
        assert (refusal.status_code, what in refusal.text) == (status, True)
    with urlopen(chat) as answer:
        assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_presets_and_what_has_no_effect(visitor: Visitor) -> None:
    """What is greyed is not sent."""
    sent: list[dict[str, Any]] = []
    visitor.page.on("request", lambda request: "completions" in request.url and sent.append(request.post_data_json))
    draws = {"top_k", "top_p", "min_p", "seed"}
    for preset, values in (
        ("exact", {"temperature": 0}),
        ("recommended", {"temperature": 1, "top_k": 64, "top_p": 0.95, "min_p": 0}),
        ("creative", {"temperature": 1.3, "top_k": 0, "top_p": 1, "min_p": 0.05}),
    ):
        with visitor.settings() as panel:
            panel.locator(f"[data-preset={preset}]").click()
            pressed = panel.locator("[data-preset][aria-pressed=true]")
            expect(pressed).to_have_text(said(f"preset_{preset}"))
            off = [name for name in draws if panel.locator(f"[data-setting={name}] input").first.is_disabled()]
            assert set(off) == (draws if preset == "exact" else set())
        visitor.ask("What is 12 + 30?")
        body = sent[-1]
        assert values.items() <= body.items()
        assert draws & body.keys() == (set() if preset == "exact" else draws)
    visitor.set(top_k=40)
    with visitor.settings() as panel:
        expect(panel.locator("[data-preset][aria-pressed=true]")).to_have_count(0)


def test_keyboard_shortcuts(visitor: Visitor) -> None:
    page, prompt = visitor.page, visitor.page.locator(".composer textarea")
    visitor.ask("What is 12 + 30?")
    prompt.press("ArrowUp")
    field = visitor.page.locator("article.user textarea")
    field.fill("What is 4 + 4?")
    field.press("Enter")
    expect(visitor.answers.locator(".state")).to_contain_text("token")
    assert "8" in visitor.answer
    page.keyboard.press("Control+Shift+Enter")
    expect(page.locator(".assistant .versions")).to_contain_text("2/2")
    visitor.ended()
    page.keyboard.press("Control+KeyK")
    expect(page.locator(".sidebar input[type=search]")).to_be_focused()
    page.keyboard.type("/")  # a letter, where something is typed
    expect(page.locator(".sidebar input[type=search]")).to_have_value("/")
    page.locator(".log").focus()
    page.keyboard.press("/")
    expect(prompt).to_be_focused()
    expect(prompt).to_have_value("")
    page.keyboard.press("Control+Slash")
    listed = page.locator("dialog.keys")
    expect(listed).to_contain_text(said("keys_find"))
    page.keyboard.press("Control+Shift+KeyO")  # not behind a dialog
    expect(visitor.answers).to_have_count(1)
    page.keyboard.press("Escape")
    expect(listed).to_be_hidden()
    page.keyboard.press("Control+Shift+KeyO")
    expect(visitor.answers).to_have_count(0)
    prompt.press("ArrowUp")  # there is no question
    expect(prompt).to_be_focused()


def test_keys_keep_their_place(visitor: Visitor) -> None:
    page, focused = visitor.page, visitor.page.locator(":focus")
    visitor.ask("What is 12 + 30?")
    page.locator("[data-drawer=settings]").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".panel > header button")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("[data-drawer=settings]")).to_be_focused()
    visitor.press("edit", page.locator("article.user"))
    page.keyboard.press("Escape")
    expect(focused).to_have_attribute("aria-label", said("edit"))
    for key in ("Escape", "Enter"):
        page.get_by_role("button", name=f"{said('rename')}: ").first.focus()
        page.keyboard.press("Enter")
        page.keyboard.type("Sums")
        page.keyboard.press(key)
        expect(page.locator(".sidebar .open")).to_be_focused()
    expect(page.locator(".sidebar .open")).to_have_text("Sums")
    page.wait_for_timeout(300)
    expect(page.locator(".sidebar .open")).to_be_focused()
    page.set_input_files(".composer input[multiple]", SHAPES)
    page.get_by_role("button", name=said("remove")).focus()
    page.keyboard.press("Enter")
    expect(page.locator(".composer textarea")).to_be_focused()
