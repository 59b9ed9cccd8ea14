"""Conversations that come to the Chat page as files and links: nothing twice, nothing replaced, nothing unsaid."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from chat_site import SHAPES, Visitor, said, stored_chat
from demo_site import CHROMIUM
from playwright.sync_api import Browser, expect

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install Debian's `chromium`, or set CHROMIUM")


def exported(visitor: Visitor, path: Path) -> Path:
    with visitor.page.expect_download() as download:
        visitor.page.get_by_role("button", name=said("export_all")).click()
    download.value.save_as(path)
    return path


def bring(visitor: Visitor, path: Path) -> None:
    visitor.page.set_input_files(".sidebar input[type=file]", path)


def link_of(visitor: Visitor) -> str:
    visitor.context.grant_permissions(["clipboard-read", "clipboard-write"])
    visitor.press("reproduce")
    visitor.page.get_by_role("button", name=said("copy_link")).click()
    visitor.page.wait_for_timeout(300)
    visitor.page.locator("dialog.programs .close").click()
    return visitor.page.evaluate("navigator.clipboard.readText()")


def counts(visitor: Visitor) -> list[int]:
    return [len(visitor.stored(name)) for name in ("conversations", "messages", "pictures")]


def test_what_is_here_already_is_not_stored_twice(visitor: Visitor, tmp_path: Path) -> None:
    visitor.ask("What is in the picture?", SHAPES)
    path = exported(visitor, tmp_path / "export.json")
    visitor.ask("What is 12 + 30?")  # the export lacks it
    before = counts(visitor)
    for _ in range(2):
        bring(visitor, path)
        expect(visitor.page.locator(".notice")).to_contain_text(said("already_here"))
        expect(visitor.answers).to_have_count(2)
        visitor.page.locator(".notice button").click()
    assert counts(visitor) == before
    visitor.page.get_by_role("button", name=said("new")).click()
    visitor.ask("What is 4 + 4?")
    bring(visitor, exported(visitor, tmp_path / "both.json"))
    expect(visitor.page.locator(".notice")).to_contain_text(said("already_here"))
    assert counts(visitor) == [2, 6, 1]


def test_an_answer_that_has_grown_since_is_the_same(visitor: Visitor, tmp_path: Path) -> None:
    """Beside a file that is none, which is named."""
    visitor.set(max_tokens=4)
    visitor.ask("What is in the picture?", SHAPES)
    path = exported(visitor, tmp_path / "export.json")
    visitor.press("go_on")
    visitor.ended()
    grown, before = visitor.answer, counts(visitor)
    bring(visitor, path)
    expect(visitor.page.locator(".notice")).to_contain_text(said("already_here"))
    assert (visitor.answer, counts(visitor)) == (grown, before)
    state = visitor.answers.locator(".state").inner_text()
    if "cache" in state:
        cached, prompt = map(int, re.search(r"(\d+) of (\d+) prompt", state).groups())
        assert cached <= prompt
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "good.json").write_text(json.dumps(stored_chat("Brought.")))
    visitor.page.set_input_files(".sidebar input[type=file]", [tmp_path / "good.json", tmp_path / "bad.json"])
    expect(visitor.answers.locator(".body")).to_have_text("Brought.")
    expect(visitor.page.locator(".notice")).to_contain_text(f"bad.json: {said('not_an_export')}")
    expect(visitor.page.locator(".sidebar .open")).to_have_count(2)


def test_a_file_that_says_otherwise_is_a_conversation_of_its_own(visitor: Visitor, tmp_path: Path) -> None:
    """Though it has the ids of one that is here; a list of two with the same ids gives two."""
    visitor.ask("What is in the picture?", SHAPES)
    path = exported(visitor, tmp_path / "export.json")
    data = json.loads(path.read_text())
    (answer,) = (one for one in data["conversations"][0]["messages"] if one["role"] == "assistant")
    answer["text"] = "Something else."
    data["conversations"].append(json.loads(json.dumps(data["conversations"][0])))
    path.write_text(json.dumps(data))
    bring(visitor, path)
    expect(visitor.answers.locator(".body")).to_have_text("Something else.")
    expect(visitor.page.locator("article.user img.thumbnail")).to_have_js_property("naturalWidth", 384)
    assert counts(visitor) == [3, 6, 2]
    texts = [message["text"] for message in visitor.stored("messages") if message["role"] == "assistant"]
    assert sorted(text == "Something else." for text in texts) == [False, True, True]
    path.write_text(json.dumps(stored_chat("Other ids.")))
    for _ in range(2):
        bring(visitor, path)
        expect(visitor.answers.locator(".body")).to_have_text("Other ids.")
    expect(visitor.page.locator(".notice")).to_contain_text(said("already_here"))
    assert counts(visitor) == [4, 8, 2]


def test_ones_own_link_opens_the_conversation_it_is_of(visitor: Visitor) -> None:
    first = visitor.ask("What is in the picture?", SHAPES)
    link = link_of(visitor)
    visitor.ask("What is 12 + 30?")
    before = counts(visitor)
    visitor.page.evaluate("link => { location.href = link }", link)
    expect(visitor.answers).to_have_count(1)
    assert visitor.answer == first
    expect(visitor.page.locator("article.user img.thumbnail")).to_have_js_property("naturalWidth", 384)
    assert counts(visitor) == before


def test_pictures_that_a_link_lacks(browser: Browser, visitor: Visitor, tmp_path: Path) -> None:
    """A question after it says that they are not there; the file brings them."""
    visitor.ask("What is in the picture?", SHAPES)
    path, link = exported(visitor, tmp_path / "export.json"), link_of(visitor)
    other = Visitor(browser, link)
    expect(other.answers).to_have_count(1)
    other.begin("Where is the star?")
    expect(other.page.locator(".notice")).to_contain_text(said("without_pictures"))
    other.ended()
    meter = other.page.locator(".context .meter")
    expect(meter).to_have_attribute("aria-label", re.compile("pictures 0"))
    other.press("reproduce")
    programs = other.page.locator("dialog.programs")
    expect(programs).to_contain_text(said("without_pictures"))
    expect(programs).not_to_contain_text("picture-1")
    programs.locator(".close").click()
    other.page.click("[data-drawer=inside]")
    seen = other.page.locator("[data-section=pictures]")
    expect(seen.locator(".hint")).to_have_text(said("picture_gone"))
    other.page.locator(".panel > header button").click()
    looks = other.page.get_by_role("button", name=said("look"))
    for present in (False, True):
        if present:
            bring(other, path)
        other.press("tokens")
        other.answers.last.locator(".token").first.click()
        expect(looks).to_have_count(int(present))
        other.page.keyboard.press("Escape")
        expect(other.answers.last.locator(".token")).to_have_count(0)
    other.page.click("[data-drawer=inside]")
    expect(seen.locator("img").first).to_have_js_property("naturalWidth", 896)
    other.page.locator(".panel > header button").click()
    expect(other.page.locator("article.user img.thumbnail")).to_have_js_property("naturalWidth", 384)
    assert counts(other) == [1, 4, 1]
    other.begin("What else?")
    expect(other.answers).to_have_count(3)
    other.ended()
    expect(other.page.locator(".notice")).to_have_count(0)
    other.close()


def test_what_another_tab_asks_is_followed(visitor: Visitor) -> None:
    """Unless another version is shown here; what is typed here stays."""
    visitor.ask("What is 12 + 30?")
    first, second = visitor.page, visitor.open()
    second.locator(".sidebar .open").click()
    expect(second.locator("article.assistant")).to_have_count(1)
    second.fill(".composer textarea", "typed here")
    visitor.ask("What is 4 + 4?")
    expect(second.locator("article.assistant")).to_have_count(2)
    expect(second.locator("article.assistant").last.locator(".body")).to_have_text(visitor.answer)
    expect(second.locator(".composer textarea")).to_have_value("typed here")
    visitor.press("again")
    expect(visitor.answers.last.locator(".versions")).to_contain_text("2/2")
    visitor.ended()
    expect(second.locator("article.assistant").last.locator(".versions")).to_contain_text("1/2")
    visitor.page.once("dialog", lambda dialog: dialog.accept())
    visitor.page.locator(".sidebar li").first.hover()
    visitor.page.locator(".sidebar").get_by_role("button", name=said("delete")).first.click()
    expect(second.locator(".notice")).to_contain_text(said("deleted_elsewhere"))
    expect(second.locator(".composer textarea")).to_have_value("typed here")
    second.close()
    visitor.page = first


def test_one_of_two_answers_that_another_tab_keeps(visitor: Visitor) -> None:
    visitor.ask("What is 12 + 30?")
    first, second = visitor.page, visitor.open()
    second.locator(".sidebar .open").click()
    first.get_by_role("button", name=said("compare")).click()
    visitor.begin("Who are you?")
    expect(second.locator(".pair article.assistant .state")).to_have_count(2)
    visitor.ended()
    first.locator(".pair .keep").first.click()
    expect(second.locator(".pair")).to_have_count(0)
    expect(second.locator("article.assistant")).to_have_count(2)
    second.close()


def test_an_export_and_a_link_give_the_conversation_back(browser: Browser, visitor: Visitor, tmp_path: Path) -> None:
    answer = visitor.ask("What is in the picture?", SHAPES)
    path = exported(visitor, tmp_path / "export.json")
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
