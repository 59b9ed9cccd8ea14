"""static/webui_demo.html as a file: that it is what its sources make, asks for nothing, and speaks both languages."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

import gradio as gr
import pytest

from demo.settings import sampling_params
from demo.tab import examples
from demo.texts import LANGUAGES, TEXTS
from demo.webui import build
from demo.webui.record import questions
from demo.webui.settings import TABS, controls, defaults


@pytest.fixture(scope="module")
def recording() -> dict[str, Any]:
    return json.loads(build.RECORDING.read_text())


@pytest.fixture(scope="module")
def page() -> str:
    return build.PAGE.read_text()


def runs_of(recording: dict[str, Any]) -> Iterator[dict[str, Any]]:
    waiting = [run for runs in recording["runs"].values() for run in runs]
    while waiting:
        run = waiting.pop()
        yield run
        waiting += run["next"]


def test_it_is_what_its_sources_make(recording: dict[str, Any], page: str) -> None:
    assert build.build_page(recording) == page, "stale: run python -m demo.webui.build"


def test_it_asks_for_nothing(page: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1]
    assert policy.startswith("default-src 'none';")
    assert "img-src data:;" in policy
    for attribute in re.findall(r'\b(?:src|href|action)="([^"]*)"', page):
        assert attribute.startswith("data:"), attribute[:60]
    assert not re.search(r"@import|url\(|<link (?!rel=\"icon\")|import\(", page)
    # The one script that may run is the one that is there.
    script = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(script) == 1
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy


def test_data_cannot_end_its_element(recording: dict[str, Any]) -> None:
    recording = json.loads(json.dumps(recording))
    recording["runs"]["text"][0]["pieces"][0][2] = hostile = "</script><script>alert(1)</script><!--"
    data = re.search(r'id="data">(.*?)</script>', build.build_page(recording), re.DOTALL)[1]
    assert json.loads(data)["recording"]["runs"]["text"][0]["pieces"][0][2] == hostile


def test_every_text_of_the_scripts_exists_and_every_text_is_in_both_languages() -> None:
    sources = "".join(path.read_text() for path in build.HERE.glob("*.js"))
    said = set(re.findall(r'\b(?:say|makeSaying)\("(\w+)"', sources))
    assert len(said) > 20
    assert said <= set(TEXTS)
    assert all(len(texts) == len(LANGUAGES) and all(texts) for texts in TEXTS.values())


def test_every_example_is_recorded_in_both_languages_with_all_that_follows(recording: dict[str, Any]) -> None:
    def tree(run: dict[str, Any]) -> tuple[str, frozenset[Any]]:
        return run["question"], frozenset(tree(one) for one in run["next"])

    def orders(question: str, follow_ups: frozenset[str]) -> tuple[str, frozenset[Any]]:
        return question, frozenset(orders(one, follow_ups - {one}) for one in follow_ups)

    for tab in TABS:
        recorded = {(tuple(run["pictures"]), tree(run)) for run in recording["runs"][tab]}
        planned = {(one.pictures, orders(one.text, frozenset(one.follow_ups))) for one in questions(tab)}
        assert recorded == planned
        roots = {(tuple(run["pictures"]), run["question"]) for run in recording["runs"][tab]}
        for example in examples(tab):
            assert {(tuple(example.get("pictures", ())), example[lang]) for lang in LANGUAGES} <= roots


def test_times_are_plausible(recording: dict[str, Any]) -> None:
    """What was said is compared with what the checkpoint says today in test_demo_checkpoint.py."""
    for run in runs_of(recording):
        times, counts, texts = zip(*run["pieces"], strict=True)
        assert 0 < times[0] < times[-1] < 60
        assert list(times) == sorted(times)
        assert list(counts) == sorted(counts)
        assert counts[-1] == len(run["tokens"]) == run["usage"]["completion_tokens"]
        assert all(texts)
        assert 0 < run["timings"]["first_token"] <= times[0]
    seconds, statuses = zip(*recording["loading"], strict=True)
    assert list(seconds) == sorted(seconds)
    phases = list(dict.fromkeys(status["phase"] for status in statuses))
    assert phases == ["starting", "reading", "compiling", "ready"]


def test_settings_are_those_of_the_real_page(recording: dict[str, Any]) -> None:
    for tab in TABS:
        assert all(control["id"].startswith(f"{tab}-") for control in controls(tab))
        assert {key for control in controls(tab) for key in control["texts"].values()} <= set(TEXTS)
    assert {**defaults(), "temperature": 0.0} == recording["settings"], "record anew: python -m demo.webui.record"
    assert sampling_params(**defaults())["max_new_tokens"] == defaults()["max_tokens"]


def test_colours_are_the_themes(page: str) -> None:
    styles = re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]
    assert set(re.findall(r"var\(--([\w-]+)\)", styles)) <= set(re.findall(r"--([\w-]+):", styles))
    light, dark = (
        re.search(rf"^{name} {{(.*?)}}", styles, re.DOTALL | re.MULTILINE)[1] for name in (":root", r"\.dark")
    )
    assert f"--slider-color: {gr.themes.colors.teal.c700};" in light
    assert f"--slider-color: {gr.themes.colors.teal.c500};" in dark
    assert "*" not in light + dark
