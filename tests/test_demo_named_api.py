"""Gradio's own API of the page, by Gradio's own client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_site import EXAMPLES, demo_model
from demo_site import serve
from gradio_client import Client, handle_file

import gemma_tpu
from demo.__main__ import _parse

SHAPES = EXAMPLES / "shapes.png"


@pytest.fixture(scope="module")
def model() -> Iterator[gemma_tpu.Model]:
    with demo_model(max_context=1024, max_rows=2) as model:
        yield model


def test_answers_are_those_of_the_library(model: gemma_tpu.Model, tmp_path: Path) -> None:
    with serve(model) as url:
        client = Client(url, verbose=False, download_files=str(tmp_path))
        named = client.view_api(return_format="dict")["named_endpoints"]
        assert set(named) == {"/ask", "/model"}
        assert [one["parameter_name"] for one in named["/ask"]["parameters"]][:3] == [
            "question",
            "picture",
            "max_new_tokens",
        ]
        text = client.predict("What is 12 + 30?", api_name="/ask")
        expected = model.generate("What is 12 + 30?")
        assert (text["text"], text["finish_reason"]) == (expected.text, "stop")
        assert text["completion_tokens"] == expected.usage.completion_tokens
        picture = handle_file(SHAPES)
        given = {"picture": picture, "temperature": 1.0, "seed": 3, "max_new_tokens": 20}
        seen = client.predict("What is in the picture?", **given, api_name="/ask")
        sampled = model.generate("What is in the picture?", images=[SHAPES], temperature=1.0, seed=3, max_new_tokens=20)
        assert (seen["text"], seen["seed"]) == (sampled.text, 3)
        job = client.submit("Tell me about yourself.", api_name="/ask")
        last = job.result()
        pieces = [one["text"] for one in job.outputs()]
        assert pieces[-1] == last["text"] == model.generate("Tell me about yourself.").text
        assert all(last["text"].startswith(piece) for piece in pieces)
        loaded = client.predict(api_name="/model")
        assert (loaded["phase"], loaded["vision"], loaded["mesh"]) == ("ready", True, [1, 1])
        private = tmp_path / "private.png"
        private.write_bytes(SHAPES.read_bytes())
        secret = {"path": str(private), "meta": {"_type": "gradio.FileData"}}
        for wrong in ({"temperature": -1.0}, {"max_new_tokens": 0}, {"picture": secret}):
            with pytest.raises(Exception, match=r"temperature|max_new_tokens|upload"):
                client.predict("x", **wrong, api_name="/ask")


@pytest.mark.parametrize("variable", ["COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"])
def test_hosted_notebooks_get_a_public_address(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"):
        monkeypatch.delenv(name, raising=False)
    assert not _parse([]).share
    assert _parse(["--share"]).share
    monkeypatch.setenv(variable, "x")
    assert _parse([]).share
    assert not _parse(["--no-share"]).share
