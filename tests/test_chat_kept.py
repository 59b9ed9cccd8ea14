"""What the browser keeps of the Chat page: nothing is lost, and nothing comes in that is no conversation."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from chat_site import EXAMPLES, SHAPES, Visitor, about, said, stored_chat
from demo_site import CHROMIUM, proxy, wait_for
from playwright.sync_api import Browser, expect
from small_models import gated

import gemma_tpu

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install Debian's `chromium`, or set CHROMIUM")


def test_an_answer_goes_on_over_a_reload_and_a_lost_server(
    browser: Browser, chat: str, chat_model: gemma_tpu.Model
) -> None:
    """With its seed: what is drawn depends on the place in the answer alone."""
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 11, "max_new_tokens": 120}
    base, _, _ = chat.rpartition("/chat/")
    with proxy(base, "/x") as address:
        port = int(address.rsplit(":", 1)[1].partition("/")[0])
        visitor = Visitor(browser, f"{address}/chat/")
        visitor.loses = True
        visitor.set(temperature=1, top_k=0, top_p=1, seed=11, max_tokens=120)
        with gated(chat_model.engine, 12, pause=0.3):
            visitor.begin("Write a long story about a red circle and a blue star.")
            expect(visitor.answers.locator(".body")).to_contain_text(re.compile(r"\w{3}"))
            visitor.page.reload()
            expect(visitor.answers.locator(".body")).to_contain_text(re.compile(r"\w{3}"))
    expect(visitor.page.locator(".chip-state")).to_have_attribute("data-phase", "lost")
    with proxy(base, "/x", port):
        text = visitor.ended()
        whole = chat_model.generate("Write a long story about a red circle and a blue star.", **settings)
        assert text == whole.text
        (answer,) = [message for message in visitor.stored("messages") if message["role"] == "assistant"]
        assert (answer["written"], answer["checkpoint"]) == (len(whole.tokens), "gemma3-demo")
        visitor.close()


def test_an_answer_that_is_held_to_a_schema_is_begun_anew_after_a_reload(
    visitor: Visitor, chat_model: gemma_tpu.Model
) -> None:
    """The server follows a schema from its beginning: what was there of the answer counts for nothing."""
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": 40}
    visitor.set(max_tokens=60)
    with visitor.settings() as panel:
        panel.locator("summary").click()
        panel.locator("[data-setting=schema]").fill(json.dumps(schema))
    with gated(chat_model.engine, 12, pause=0.3):
        visitor.begin("Count.")
        wait_for(lambda: any(len(one.get("text") or "") > 3 for one in visitor.stored("messages")))
        visitor.page.reload()
    visitor.ended()
    grammar = gemma_tpu.Grammar.json_schema(schema)
    whole = chat_model.generate("Count.", grammar=grammar, max_new_tokens=60)
    (answer,) = [message for message in visitor.stored("messages") if message["role"] == "assistant"]
    assert (answer["text"], answer["written"]) == (whole.text, len(whole.tokens))
    assert answer["usage"]["prompt"] == whole.usage.prompt_tokens


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


def test_a_conversation_that_was_left_goes_on_and_is_found_as_it_is(
    visitor: Visitor, chat_model: gemma_tpu.Model
) -> None:
    with gated(chat_model.engine, 4, pause=0.3):
        visitor.begin("Tell me about yourself.")
        expect(visitor.answers.locator(".body")).to_contain_text(re.compile(r"\w"))
        visitor.page.get_by_role("button", name=said("new"), exact=True).click()
        visitor.page.fill(".composer textarea", "half a")
        visitor.page.locator(".sidebar .open").first.click()  # at once: the draft is kept all the same
    assert visitor.ended() == chat_model.generate("Tell me about yourself.").text
    drafts = [one["draft"]["text"] for one in visitor.stored("conversations") if one.get("draft")]
    assert "half a" in drafts


def test_a_conversation_deleted_amid_an_answer_is_gone(visitor: Visitor, chat_model: gemma_tpu.Model) -> None:
    visitor.page.on("dialog", lambda dialog: dialog.accept())
    with gated(chat_model.engine, 4, pause=0.3):
        visitor.begin("Tell me about yourself.", SHAPES)
        expect(visitor.answers.locator(".body")).to_contain_text(re.compile(r"\w"))
        visitor.page.locator(".sidebar li").hover()
        visitor.page.locator(".sidebar .tools button").last.click()
        expect(visitor.page.locator(".empty")).to_be_visible()
    wait_for(lambda: not any(chat_model.engine.occupancy()[:2]))
    visitor.page.wait_for_timeout(1000)
    assert [visitor.stored(name) for name in ("conversations", "messages", "pictures")] == [[], [], []]


def test_an_answer_of_a_tab_that_was_closed_can_go_on(visitor: Visitor, chat_model: gemma_tpu.Model) -> None:
    first, second = visitor.page, visitor.open()
    with gated(chat_model.engine, 4, pause=0.3):
        visitor.begin("Tell me about yourself.")
        expect(visitor.answers.locator(".body")).to_contain_text(re.compile(r"\w"))
        first.wait_for_timeout(500)
        first.close()
    visitor.page = second
    second.locator(".sidebar .open").click()
    assert visitor.ended() == chat_model.generate("Tell me about yourself.").text


def test_full_storage_is_said_and_the_answer_is_there(visitor: Visitor, chat_model: gemma_tpu.Model) -> None:
    error = 'new DOMException("no room", "QuotaExceededError")'
    visitor.page.evaluate(f"() => {{ IDBObjectStore.prototype.put = () => {{ throw {error}; }} }}")
    expected = chat_model.generate(about("What is in the picture?", SHAPES))
    assert visitor.ask("What is in the picture?", SHAPES) == expected.text
    expect(visitor.page.locator(".sidebar .hint")).to_have_text(said("not_kept"))
    assert visitor.ask("What colour is the star?")


def test_typed_text_stays_where_it_is(visitor: Visitor, chat_model: gemma_tpu.Model) -> None:
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
    with gated(chat_model.engine, 4, pause=0.3):
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
        == chat_model.generate(
            [
                *about("What is 4 + 4?"),
                {"role": "assistant", "content": chat_model.generate("What is 4 + 4?").text},
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


def test_two_tabs_lose_nothing_of_each_other(visitor: Visitor) -> None:
    visitor.ask("What is 12 + 30?")
    first, second = visitor.page, visitor.open()
    second.locator(".sidebar .open").click()
    visitor.page = second
    expect(visitor.answers).to_have_count(1)
    visitor.ask("What is 4 + 4?")
    visitor.page = first
    expect(visitor.answers).to_have_count(2)
    visitor.ask("Reverse the word lemon.")
    texts = [message["parts"][0]["text"] for message in visitor.stored("messages") if message["role"] == "user"]
    assert sorted(texts) == ["Reverse the word lemon.", "What is 12 + 30?", "What is 4 + 4?"]
    second.close()


def test_what_two_tabs_type_stays(visitor: Visitor) -> None:
    """In one conversation: an answer that one asks for anew leaves the other's prompt."""
    visitor.ask("What is 12 + 30?")
    first, second = visitor.page, visitor.open()
    second.locator(".sidebar .open").click()
    visitor.page = second
    expect(visitor.answers).to_have_count(1)
    first.set_input_files(".composer input[multiple]", SHAPES)
    first.fill(".composer textarea", "my next question")
    wait_for(lambda: visitor.stored("conversations")[0]["draft"]["text"] == "my next question")
    visitor.press("again")
    expect(visitor.answers.locator(".versions")).to_contain_text("2/2")
    visitor.ended()
    first.reload()
    expect(first.locator(".composer textarea")).to_have_value("my next question")
    expect(first.locator(".composer .attached")).to_have_count(1)
    second.close()
    visitor.page = first


def test_an_answer_that_another_tab_leaves_goes_on_here(visitor: Visitor, chat_model: gemma_tpu.Model) -> None:
    visitor.set(max_tokens=40, temperature=1, top_k=0, top_p=1, seed=4)
    whole = chat_model.generate("Tell me a story.", max_new_tokens=40, temperature=1.0, top_k=0, top_p=1.0, seed=4)
    with gated(chat_model.engine, 8, pause=0.2):
        visitor.begin("Tell me a story.")
        expect(visitor.answers.locator(".body")).to_contain_text(re.compile(r"\w{3}"))
        other = visitor.open()
        other.locator(".sidebar .open").click()
        expect(other.locator("article.assistant .body")).to_contain_text(re.compile(r"\w{3}"))
        visitor.page.close()
        visitor.page = other
    assert visitor.ended().strip() == whole.text.strip()


def test_nothing_typed_is_replaced(visitor: Visitor, chat_model: gemma_tpu.Model) -> None:
    page, prompt = visitor.page, visitor.page.locator(".composer textarea")
    prompt.fill("typed before")
    page.locator(".card").first.click()
    example = "What is in the picture?"
    expect(prompt).to_have_value(f"typed before\n\n{example}")
    expect(page.locator(".composer .attached")).to_have_count(1)
    page.get_by_role("button", name=said("remove")).click()
    visitor.ask("What is 12 + 30?")
    prompt.fill("typed after")
    visitor.press("undo")
    expect(prompt).to_have_value("typed after\n\nWhat is 12 + 30?")
    visitor.ask("What is 4 + 4?")
    question = page.locator("article.user").last
    visitor.press("edit", question)
    question.locator("textarea").fill("What is 5 + 5?")
    prompt.press("ArrowUp")  # would edit the last question
    expect(question.locator("textarea")).to_have_value("What is 5 + 5?")
    page.get_by_role("button", name=said("new"), exact=True).click()
    expect(visitor.answers).to_have_count(0)
    page.locator(".sidebar .open").first.click()
    expect(question.locator("textarea")).to_have_value("What is 5 + 5?")
    question.locator("textarea").press("Escape")
    with gated(chat_model.engine, 4, pause=0.3):
        visitor.begin("Tell me about yourself.")
        expect(visitor.answers.last.locator(".body")).to_contain_text(re.compile(r"\w"))
        page.locator(".sidebar li").first.locator(".open").dblclick()
        page.locator(".sidebar li input").press("Escape")  # leaves the title, and stops no answer
        page.fill(".sidebar input[type=search]", "you")
        page.locator(".sidebar input[type=search]").press("Escape")
        expect(page.locator(".composer .stop")).to_be_visible()
    assert visitor.ended()
    assert visitor.stored("messages")[-1].get("finish") != "cancelled"


SLOW = """() => {
  const real = createImageBitmap;
  window.createImageBitmap = async (file) => {
    window.createImageBitmap = real;
    await new Promise((resolve) => (window.goOn = resolve));
    return real(file);
  };
}"""


def test_a_picture_lands_in_no_other_conversation(visitor: Visitor) -> None:
    page = visitor.page
    page.evaluate(SLOW)
    page.set_input_files(".composer input[multiple]", SHAPES)
    wait_for(lambda: page.evaluate("Boolean(window.goOn)"))
    page.get_by_role("button", name=said("new"), exact=True).click()
    page.evaluate("goOn()")
    expect(page.locator(".note .notice")).to_contain_text(said("attached_nowhere"))
    expect(page.locator(".composer .attached")).to_have_count(0)


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


def test_pictures_that_nothing_shows_are_deleted_after_a_day(visitor: Visitor) -> None:
    page = visitor.page
    visitor.ask("What is in the picture?", SHAPES)
    for picture in ("crowd.png", "word.png", "shapes-changed.png"):
        page.set_input_files(".composer input[multiple]", EXAMPLES / picture)
        expect(page.locator(".composer .attached")).to_have_count(1)
        if picture != "shapes-changed.png":
            page.get_by_role("button", name=f"{said('remove')}: {said('picture_number', number=1)}").click()

    def drafted() -> list[str]:
        ids = visitor.stored("conversations")[0]["draft"]["pictures"]
        return [one["name"] for one in visitor.stored("pictures") if one["id"] in ids]

    wait_for(lambda: drafted() == ["shapes-changed.png"])
    assert len(visitor.stored("pictures")) == 4
    page.evaluate("""async () => {
        const store = await import("./static/store.js");
        for (const one of await store.all("pictures"))
          if (one.name !== "word.png") await store.put("pictures", { ...one, created: Date.now() - 90_000_000 });
    }""")
    page.reload()
    wait_for(lambda: len(visitor.stored("pictures")) == 3)
    kept = {one["name"] for one in visitor.stored("pictures")}
    assert kept == {"shapes.png", "word.png", "shapes-changed.png"}  # shown, new, in the draft


def test_what_was_typed_and_never_sent_is_in_the_list(visitor: Visitor) -> None:
    page = visitor.page
    page.set_input_files(".composer input[multiple]", [str(SHAPES)])
    expect(page.locator(".composer .attached")).to_have_count(1)
    page.locator(".composer textarea").fill("Not sent yet")
    page.get_by_role("button", name=said("new")).first.click()
    row = page.locator("nav, .sidebar").get_by_role("button", name="Not sent yet", exact=True)
    expect(row).to_be_visible()
    expect(page.locator(".composer textarea")).to_have_value("")
    row.click()
    expect(page.locator(".composer textarea")).to_have_value("Not sent yet")
    expect(page.locator(".composer .attached")).to_have_count(1)
    page.locator(".composer textarea").fill("")
    page.locator(".composer .attached").get_by_role("button", name=said("remove")).click()
    page.get_by_role("button", name=said("new")).first.click()
    expect(row).to_have_count(0)
