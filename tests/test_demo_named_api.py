"""Gradio's own API of the page, by Gradio's own client."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from chat_site import EXAMPLES, demo_model
from demo_site import serve
from gradio_client import Client, handle_file
from test_readme import ROOT, blocks

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
        for wrong in ({"temperature": -1.0}, {"max_new_tokens": 0}):
            with pytest.raises(Exception, match=r"temperature|max_new_tokens"):
                client.predict("x", **wrong, api_name="/ask")


def test_the_documented_program(model: gemma_tpu.Model, capsys: pytest.CaptureFixture[str]) -> None:
    """That of docs/chat.md, word for word but for the address."""
    ((language, code),) = blocks((ROOT / "docs" / "chat.md").read_text())
    with serve(model) as url, contextlib.chdir(ROOT):
        exec(code.replace("http://127.0.0.1:7860", url), {})
    assert capsys.readouterr().out.splitlines()[-1] == model.generate("What is in the picture?", images=[SHAPES]).text
    assert language == "python"


def test_only_uploaded_files_are_read(model: gemma_tpu.Model, tmp_path: Path) -> None:
    """The client would upload a file that is named so: this asks as any program could."""
    private = tmp_path / "private.png"
    private.write_bytes(SHAPES.read_bytes())
    with serve(model) as url:
        for path, meta in ((str(private), {"_type": "gradio.FileData"}), (str(private), {}), (private.name, {})):
            given = ["What is it?", {"path": path, "meta": meta}, 8, 0.0, 64, 0.95, 0.0, None]
            asked = httpx.post(f"{url}/gradio_api/call/ask", json={"data": given})
            answer = httpx.get(f"{url}/gradio_api/call/ask/{asked.json()['event_id']}").text
            assert "event: error" in answer
            assert "red circle" not in answer


@pytest.mark.parametrize("variable", ["COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"])
def test_hosted_notebooks_get_a_public_address(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"):
        monkeypatch.delenv(name, raising=False)
    assert not _parse([]).share
    assert _parse(["--share"]).share
    monkeypatch.setenv(variable, "x")
    assert _parse([]).share
    assert not _parse(["--no-share"]).share
