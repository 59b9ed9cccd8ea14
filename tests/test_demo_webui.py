"""static/webui_demo.html as a file: that it is what its sources make, asks for nothing, and speaks both languages."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import gradio as gr
import pytest

from demo.settings import sampling_params
from demo.tab import examples
from demo.texts import LANGUAGES, TEXTS
from demo.webui import build
from demo.webui.chat import CHAT_RECORDING
from demo.webui.record import questions
from demo.webui.settings import TABS, controls, defaults


@pytest.fixture(scope="module")
def recording() -> dict[str, Any]:
    return json.loads(build.RECORDING.read_text())


@pytest.fixture(scope="module")
def chat_recording() -> dict[str, Any]:
    return json.loads(CHAT_RECORDING.read_text())


@pytest.fixture(scope="module")
def page() -> str:
    return build.PAGE.read_text()


def runs_of(recording: dict[str, Any]) -> Iterator[dict[str, Any]]:
    waiting = [run for runs in recording["runs"].values() for run in runs]
    while waiting:
        run = waiting.pop()
        yield run
        waiting += run["next"]


def test_it_is_what_its_sources_make(recording: dict[str, Any], chat_recording: dict[str, Any], page: str) -> None:
    assert build.build_page(recording, chat_recording) == page, "stale: run python -m demo.webui.build"


def test_it_asks_for_nothing(page: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1]
    assert policy.startswith("default-src 'none';")
    assert "img-src data: blob:;" in policy
    page, data = without_data(page)
    for attribute in re.findall(r'\b(?:src|href|action)="([^"]*)"', page):
        assert attribute.startswith("data:"), attribute[:60]
    assert not re.search(r"@import|url\(|<link (?!rel=\"icon\")|import\(", page)
    # The scripts that may run are those that are there, of the page and of the Chat page in its frame.
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 1
    scripts += re.findall(r'<script(?: type="(?:importmap|module)")?>(.*?)</script>', data["chat"], re.DOTALL)
    assert len(scripts) == 4
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert "script-src " + " ".join(f"'sha256-{digest}'" for digest in digests) + " data:;" in policy


def without_data(page: str) -> tuple[str, dict[str, Any]]:
    before, data, after = re.split(r'(?<=id="data">)(.*?)(?=</script>)', page, maxsplit=1, flags=re.DOTALL)
    return before + after, json.loads(data)


def test_the_recorded_chat_page_is_the_real_one(page: str) -> None:
    """But for pdf.js and Temml, and the names by which its modules find each other."""
    chat = without_data(page)[1]["chat"]
    imports = json.loads(re.search(r'<script type="importmap">(.*?)</script>', chat, re.DOTALL)[1])["imports"]
    folder = build.HERE.parent / "chat_page" / "static"
    assert {f"chat-page/{path.name}" for path in folder.glob("*.js")} < imports.keys()
    for name, url in imports.items():
        text = unquote(url.removeprefix("data:text/javascript;charset=utf-8,"))
        real = (folder / name.removeprefix("chat-page/")).read_text()
        assert re.sub(r'"chat-page/([\w./]+)"', r'"./\1"', text) == real
        for imported in re.findall(r'(?:\bfrom|^import)\s*"([^"]+)"', text, re.MULTILINE):
            assert imported in imports, f"{name} imports {imported}"
    assert (folder / "chat.css").read_text() in chat


def test_the_chat_recording_has_the_answers_of_the_other(
    recording: dict[str, Any], chat_recording: dict[str, Any]
) -> None:
    """In both languages, with the probabilities of every token; those were written by the same checkpoint."""
    expected = {
        (tuple(run["pictures"]), run["question"]): "".join(piece for *_, piece in run["pieces"])
        for runs in recording["runs"].values()
        for run in runs
    }
    found = {}
    for exchange in chat_recording["exchanges"]:
        path, body = json.loads(exchange["key"])
        if path != "api/v1/chat/completions":
            continue
        (message,) = body["messages"]
        content = message["content"] if isinstance(message["content"], list) else [{"text": message["content"]}]
        pictures = tuple(part["image_url"]["url"].removeprefix("picture:") for part in content if "image_url" in part)
        lines = "".join(text for _, text in exchange["chunks"]).split("\n\n")
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
        text = "".join(choice["delta"].get("content", "") for choice in choices)
        tokens = [token for choice in choices if choice["logprobs"] for token in choice["logprobs"]["content"]]
        assert bytes(byte for token in tokens for byte in token["bytes"]).decode() == text
        assert len(tokens) == chunks[-1]["usage"]["completion_tokens"]
        assert all(len(token["top_logprobs"]) == 5 for token in tokens)
        times = [seconds for seconds, _ in exchange["chunks"]]
        assert times == sorted(times)
        found[pictures, content[-1]["text"]] = text
    assert found == expected


def test_data_cannot_end_its_element(recording: dict[str, Any], chat_recording: dict[str, Any]) -> None:
    recording = json.loads(json.dumps(recording))
    recording["runs"]["text"][0]["pieces"][0][2] = hostile = "</script><script>alert(1)</script><!--"
    data = re.search(r'id="data">(.*?)</script>', build.build_page(recording, chat_recording), re.DOTALL)[1]
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
