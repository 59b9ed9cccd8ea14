"""What a visitor does with the turns of the Chat page: two answers, versions, a double click, going on."""

from __future__ import annotations

import pytest
from chat_site import Visitor, said
from demo_site import CHROMIUM
from playwright.sync_api import expect
from small_models import gated

import gemma_tpu

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install Debian's `chromium`, or set CHROMIUM")


def test_only_two_answers_side_by_side_offer_to_keep_one(visitor: Visitor) -> None:
    page = visitor.page
    page.get_by_role("button", name=said("compare")).click()
    expect(page.locator(".second")).not_to_contain_text("null")
    visitor.begin("Who are you?")
    expect(page.locator(".pair article.assistant .state")).to_have_count(2)
    visitor.ended()
    visitor.begin("What is 12 + 30?")
    expect(page.locator("article.assistant")).to_have_count(3)
    visitor.ended()
    expect(page.locator(".keep")).to_have_count(2)
    expect(page.locator(".pair .keep")).to_have_count(2)


def test_the_arrows_between_versions_stay_under_the_finger(visitor: Visitor) -> None:
    """From a long branch to a short one and back."""
    page = visitor.page
    page.set_viewport_size({"width": 1280, "height": 420})
    for number in range(4):
        visitor.ask(f"What is {number} + 30? " + "Please explain it at length, with all its steps. " * 8)
    visitor.press("again", visitor.answers.nth(1))
    expect(visitor.answers).to_have_count(2)
    visitor.ended()
    arrows = visitor.answers.nth(1).locator(".versions").get_by_role("button")
    for arrow, count in ((arrows.first, 4), (arrows.last, 2), (arrows.first, 4)):
        arrow.scroll_into_view_if_needed()
        page.wait_for_timeout(100)
        before = arrow.bounding_box()["y"]
        page.mouse.click(arrow.bounding_box()["x"] + 5, before + 5)
        expect(visitor.answers).to_have_count(count)
        page.wait_for_timeout(200)
        if count == 4:  # a short branch ends above
            assert abs(arrows.first.bounding_box()["y"] - before) < 2


def test_a_double_click_sends_and_does_not_stop(visitor: Visitor, chat_model: gemma_tpu.Model) -> None:
    field = visitor.page.locator(".composer textarea")
    field.fill("What is 12 + 30?")
    visitor.page.locator(".composer .send:not(.stop)").dblclick()
    expect(visitor.answers).to_have_count(1)
    assert visitor.ended() == chat_model.generate("What is 12 + 30?").text


def test_a_continued_answer_says_its_own_prompt_and_speed(visitor: Visitor, chat_model: gemma_tpu.Model) -> None:
    question = "Write a long story about a red circle."
    visitor.set(max_tokens=8)
    visitor.ask(question)
    (first,) = [message for message in visitor.stored("messages") if message["role"] == "assistant"]
    with gated(chat_model.engine, 4, pause=0.05):
        visitor.press("go_on")
        visitor.ended()
    (whole,) = [message for message in visitor.stored("messages") if message["role"] == "assistant"]
    assert whole["written"] > first["written"]
    assert whole["usage"]["prompt"] == first["usage"]["prompt"]


def test_two_answers_that_have_to_be_the_same_are_said_to_be(visitor: Visitor) -> None:
    page = visitor.page
    visitor.set(temperature=1, seed=7, max_tokens=8)
    page.get_by_role("button", name=said("compare")).click()
    visitor.begin("Who are you?")
    expect(page.locator(".notice")).to_contain_text(said("same_settings"))
    visitor.ended()
    bodies = page.locator(".pair .body").all_inner_texts()
    assert bodies[0] == bodies[1]
    page.locator(".second input[type=number]").nth(3).fill("8")
    page.keyboard.press("Tab")
    visitor.begin("Who are you?")
    expect(visitor.answers).to_have_count(3)
    visitor.ended()
    expect(page.locator(".notice")).to_have_count(0)
