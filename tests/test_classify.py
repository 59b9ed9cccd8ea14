"""ShieldGemma 2 against transformers' on a small random model (tests/reference/make_safety_golden.py)."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from small_models import config_of, make_deployment, mesh_of

import gemma_tpu
from gemma_tpu.sharding import param_sharding
from gemma_tpu.text import GEMMA3, POLICIES, SHIELD_GEMMA

sys.path.insert(0, str(Path(__file__).parent / "reference"))
import models

GOLDENS = Path(__file__).parent / "goldens"
GOLDEN = json.loads((GOLDENS / "safety.json").read_text())
OWN = {"own": "No circle: the picture shall not show a circle."}
TOKENIZER = gemma_tpu.Tokenizer(GOLDENS / "text" / "tokenizer.model")


@pytest.fixture(scope="module")
def model():
    case = models.Case("safety", 41, {"vocab_size": TOKENIZER.vocab_size, "sliding_window": 64}, models.TOWER)
    config = config_of(case.config)
    mesh = mesh_of(1, 1)
    params = {
        name: jax.device_put(value, param_sharding(name, value.shape, mesh))
        for name, value in models.weights(case).items()
    }
    format = dataclasses.replace(SHIELD_GEMMA, answers=(40, 41))
    with gemma_tpu.Model(make_deployment(config, mesh, max_context=512), params, TOKENIZER, format=format) as model:
        yield model


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    side = models.TOWER["image_size"]
    return Image.fromarray(np.random.RandomState(5).randint(0, 256, (side, side, 3)).astype(np.uint8))


def test_probabilities_of_transformers(model, picture):
    (verdicts,) = model.classify(picture, POLICIES | OWN)
    assert list(verdicts) == list(GOLDEN["probabilities"])
    for name, expected in GOLDEN["probabilities"].items():
        np.testing.assert_allclose(verdicts[name], expected, atol=2e-5)
        assert verdicts[name].yes + verdicts[name].no == pytest.approx(1)
    again, _ = model.classify([picture, Image.new("RGB", (56, 56))], ["violence"])
    assert again["violence"].yes == pytest.approx(verdicts["violence"].yes, abs=1e-6)


def test_the_prompt_of_transformers_processor(picture):
    parts = [{"type": "image", "image": picture}, {"type": "text", "text": POLICIES["dangerous"]}]
    soft = models.TOWER["num_soft_tokens"]
    assert SHIELD_GEMMA.render([{"role": "user", "content": parts}], TOKENIZER, soft).tokens == GOLDEN["tokens"]


def test_the_answers_are_the_pieces_of_the_vocabulary_else(model, picture, monkeypatch):
    pieces = TOKENIZER.id("Yes"), TOKENIZER.id("No")
    monkeypatch.setattr(model, "format", dataclasses.replace(SHIELD_GEMMA, answers=pieces))
    expected = model.classify(picture, ["sexual"])
    monkeypatch.setattr(model, "format", SHIELD_GEMMA)
    assert model.classify(picture, ["sexual"]) == expected
    assert expected[0]["sexual"].yes != pytest.approx(GOLDEN["probabilities"]["sexual"][0])


def test_errors(model, picture, monkeypatch):
    with pytest.raises(ValueError, match="no policy is called 'gore'; known are dangerous, sexual, violence"):
        model.classify(picture, "gore")
    with pytest.raises(ValueError, match="no images given"):
        model.classify([])
    with pytest.raises(ValueError, match="takes one user message, an image and then the text of a policy"):
        model.generate("Hello")
    monkeypatch.setattr(model, "format", GEMMA3)
    with pytest.raises(ValueError, match="for ShieldGemma 2; this checkpoint has the prompt format of Gemma 3"):
        model.classify(picture)
