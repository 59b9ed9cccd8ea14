"""The checkpoint that ships, through the public API: small, right on held-out questions, honest about the rest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image, ImageDraw
from small_models import mesh_of

import gemma_tpu
from checkpoints.demo_model import CHECKPOINT, by_hand
from checkpoints.demo_model.evaluate import generated, judge_by_hand, judge_generated, summary
from demo.settings import sampling_params
from demo.tab import EXAMPLES
from demo.webui.build import RECORDING


@pytest.fixture(scope="module")
def model() -> Iterator[gemma_tpu.Model]:
    with gemma_tpu.load(CHECKPOINT, mesh=mesh_of(1, 1), max_context=2048, max_rows=8, progress=False) as model:
        yield model


def test_it_is_a_small_gemma_3_with_vision(model: gemma_tpu.Model) -> None:
    assert sum(file.stat().st_size for file in CHECKPOINT.rglob("*") if file.is_file()) <= 20_000_000
    assert model.config.vision is not None
    assert (model.config.vision.image_size, model.config.vision.num_soft_tokens) == (896, 256)


def test_held_out_questions(model: gemma_tpu.Model) -> None:
    """A few of the questions that the model card's table is made of."""
    results = summary(judge_generated(model, generated(40, seed=7), 8))
    for kind in ("image", "text"):
        right, asked = results["counts"][kind]
        assert asked >= 16
        assert right >= 0.9 * asked, results["wrong"]


def test_questions_written_by_hand(model: gemma_tpu.Model) -> None:
    """A third of the set whose score the model card gives."""
    right, asked = summary(judge_by_hand(model, by_hand.questions()[:66], 8))["counts"]["by hand"]
    assert asked == 66
    assert right >= 0.75 * asked


def test_a_picture_drawn_here_and_a_follow_up(model: gemma_tpu.Model) -> None:
    """Pixels that no code of the demo model drew, larger than any it was trained on."""
    image = Image.new("RGB", (1400, 1000), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((120, 90, 420, 390), fill=(225, 25, 30))
    draw.rectangle((950, 600, 1230, 880), fill=(30, 80, 215))
    ask = [{"type": "image", "image": image}, {"type": "text", "text": "What shapes do you see?"}]
    messages = [{"role": "user", "content": ask}]
    answers = [model.generate(messages, max_new_tokens=40, temperature=0.0).text]
    messages += [{"role": "assistant", "content": answers[0]}, {"role": "user", "content": "Where is the blue square?"}]
    answers.append(model.generate(messages, max_new_tokens=40, temperature=0.0).text)
    assert answers == ["A red circle and a blue square.", "The blue square is at the bottom right."]


def test_the_recording_is_what_it_says_today(model: gemma_tpu.Model) -> None:
    """That of static/webui_demo.html: asked anew, in the words and with the pictures and settings that it has."""
    recording = json.loads(RECORDING.read_text())
    chosen = sampling_params(**recording["settings"])
    streams = []

    def ask(run: dict[str, Any], told: list[dict[str, Any]]) -> None:
        pictures = [{"type": "image", "image": str(EXAMPLES / file)} for file in run["pictures"]]
        messages = [*told, {"role": "user", "content": [*pictures, {"type": "text", "text": run["question"]}]}]
        streams.append((run, model.stream(messages, **chosen)))
        answer = "".join(text for *_, text in run["pieces"])
        for follow_up in run["next"]:
            ask(follow_up, [*messages, {"role": "assistant", "content": answer}])

    for run in [run for runs in recording["runs"].values() for run in runs]:
        ask(run, [])
    assert len(streams) > 30
    for run, stream in streams:
        said = stream.finish()
        assert (said.tokens, said.finish_reason) == (run["tokens"], run["finish_reason"]), run["question"]
        assert said.text == "".join(text for *_, text in run["pieces"])
        assert said.usage.prompt_tokens == run["usage"]["prompt_tokens"]


def test_it_says_in_words_of_its_own_that_it_is_a_demo(model: gemma_tpu.Model) -> None:
    prompt = [{"role": "user", "content": "What is the capital of Norway?"}]
    streams = [model.stream(prompt, max_new_tokens=80, temperature=1.0, seed=seed) for seed in range(8)]
    answers = {"".join(stream) for stream in streams}
    assert len(answers) > 4
    assert all("demo model" in text and "checkpoint" in text for text in answers), answers
