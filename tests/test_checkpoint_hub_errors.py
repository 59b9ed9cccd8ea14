"""Hubs that are busy, refuse, or cannot be reached: what is tried again, and what is said."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import huggingface_hub  # gradio depends on it
import pytest
from hub_fixtures import FILES, NEEDED, Answer, contents, error, hub, refuse
from huggingface_hub import errors

from gemma_tpu.checkpoint import CheckpointError, download, resolve


def test_a_busy_hub_is_asked_again(hugging_face, waits, caplog):
    hugging_face.answers = [(429, {"Retry-After": "7"}), (503, {}), (429, {"RateLimit": '"api";r=0;t=30'})]
    assert set(contents(Path(resolve("unsloth/gemma-3-4b-it")))) == NEEDED
    assert waits == [7, 4, 30]
    assert "Hugging Face is busy (HTTP 429): asking again in 7 s" in caplog.text


@pytest.mark.parametrize(
    ("answer", "message", "waited"),
    [
        ((429, {"Retry-After": "300"}), r"HTTP 429\): it asks to wait 300 s; then run it again; .* HF_TOKEN", []),
        ((429, {}), r"limits how often it is asked \(HTTP 429\): run it again in a few minutes", [1, 4, 16]),
        ((500, {}), r"is busy or in trouble \(HTTP 500\): run it again", [1, 4, 16]),
        ((504, {"Retry-After": "Fri, 31 Dec 2100 23:59:59 GMT"}), r"HTTP 504\): it asks to wait \d+ s", []),
    ],
)
def test_a_hub_that_stays_busy_is_not_a_missing_network(answer, message, waited, hugging_face, waits):
    hugging_face.answers = [answer] * 20
    with pytest.raises(CheckpointError, match=message) as raised:
        resolve("unsloth/gemma-3-4b-it")
    assert "network" not in str(raised.value)
    assert waits == waited


def test_the_client_gives_up_on_a_hub_that_becomes_busy(hugging_face, waits, monkeypatch):
    """The client's own error is then LocalEntryNotFoundError, as for a missing network."""
    real = huggingface_hub.snapshot_download

    def busy(*args, **kwargs):
        hugging_face.answers = [(503, {})] * 30
        return real(*args, **kwargs)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", busy)
    with pytest.raises(CheckpointError, match=r"Hugging Face is busy or in trouble \(HTTP 503\)"):
        resolve("unsloth/gemma-3-4b-it")


def test_a_busy_bucket_is_asked_again(model_cache, bucket, waits):
    bucket.answers = [(503, {"Retry-After": "2"}), (429, {})]
    assert contents(download("gemma3-4b-it", progress=False)) == FILES | {"tokenizer.model": b"pieces"}
    assert waits == [2, 4]
    bucket.status = 503
    with pytest.raises(CheckpointError, match=r"gs://gemma-data: is busy or in trouble \(HTTP 503\): run it again"):
        resolve("gemma3-12b-it")
    assert waits == [2, 4, 1, 4, 16]


def test_a_busy_kaggle(model_cache, monkeypatch, waits):
    calls = hub(monkeypatch, "kagglehub", "model_download", error("KaggleApiHTTPError", "429 Client Error", 429))
    with pytest.raises(CheckpointError, match=r"Kaggle: limits how often it is asked \(HTTP 429\): .*KAGGLE_KEY"):
        resolve("gemma3-12b-it")
    assert waits == [1, 4, 16]
    assert len(calls) == 4


@pytest.mark.parametrize(
    ("name", "handle"),
    [
        ("google/gemma-3/Flax/gemma3-4b-it/2", "google/gemma-3/flax/gemma3-4b-it/2"),
        ("https://www.kaggle.com/models/google/medgemma/transformers/medgemma-4b-it", None),
        ("https://www.kaggle.com/models/google/gemma-3/flax/gemma3-4b/versions/1", "google/gemma-3/flax/gemma3-4b/1"),
    ],
)
def test_models_of_kaggle(name, handle, model_cache, tmp_path, monkeypatch):
    (tmp_path / "kaggle").mkdir()
    seen = []
    calls = hub(monkeypatch, "kagglehub", "model_download", tmp_path / "kaggle")
    monkeypatch.setattr(
        sys.modules["kagglehub"],
        "model_download",
        lambda handle: [seen.append(os.environ.get("KAGGLEHUB_CACHE")), calls.append(handle), tmp_path / "kaggle"][-1],
    )
    assert resolve(name) == str(tmp_path / "kaggle")
    assert calls == [handle or name.partition("/models/")[2]]
    assert seen == [str(model_cache / "kaggle")]
    assert "KAGGLEHUB_CACHE" not in os.environ


def test_a_link_to_a_hub_that_was_cleaned_is_made_again(model_cache, hugging_face):
    path = Path(resolve("unsloth/gemma-3-4b-it"))
    shutil.rmtree(model_cache / "huggingface")
    assert contents(Path(resolve("unsloth/gemma-3-4b-it"))) == contents(path)


@pytest.mark.parametrize(
    ("kaggle", "hugging_face", "messages"),
    [
        (None, None, ["gs://gemma-data: cannot be reached", "Kaggle: needs pip install 'gemma_tpu[hub]'"]),
        (
            error("KaggleApiHTTPError", "403 Client Error.\nYou must consent", 403),
            error("GatedRepoError", "403", 403),
            [
                "Kaggle: accept the licence at https://www.kaggle.com/models/google/gemma-3",
                "KAGGLE_USERNAME and KAGGLE_KEY",
                "Hugging Face: accept the licence at https://huggingface.co/google/gemma-3-12b-it",
                "HF_TOKEN",
            ],
        ),
        (
            error("ConnectionError", "Max retries", base=OSError),
            error("LocalEntryNotFoundError", "cannot find", base=FileNotFoundError),
            ["Kaggle: cannot be reached: is there a network?", "Hugging Face: cannot be reached"],
        ),
        (
            error("UnauthenticatedError", "User is not authenticated"),
            error("RepositoryNotFoundError", "404", 404),
            ["Kaggle: accept the licence", "Hugging Face: does not have it, or does not show it to you"],
        ),
        (error("BackendError", "odd\nthing"), OSError(28, "No space left"), ["BackendError: odd", "no space left on"]),
    ],
)
def test_what_to_do_when_no_source_has_it(kaggle, hugging_face, messages, model_cache, monkeypatch):
    if kaggle is None:
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    else:
        hub(monkeypatch, "kagglehub", "model_download", kaggle)
        refuse(monkeypatch, hugging_face)
    with pytest.raises(CheckpointError) as raised:
        resolve("gemma3-12b-it")
    text = str(raised.value)
    assert text.startswith(f"gemma3-12b-it is not in {model_cache} and cannot be downloaded. gs://gemma-data: ")
    assert "\n" not in text
    for message in messages:
        assert message in text


def test_the_bucket_says_no(model_cache, bucket):
    bucket.status = 403
    with pytest.raises(CheckpointError, match=r"gs://gemma-data: answered 403"):
        resolve("gemma3-12b-it")


def test_the_real_clients_exceptions_are_understood(model_cache, monkeypatch):
    gated = errors.GatedRepoError.__new__(errors.GatedRepoError)
    gated.response = Answer(403)
    for raised, message in (
        (gated, "accept the licence at https://huggingface.co/google/gemma-3-1b-it"),
        (errors.LocalEntryNotFoundError("cannot find"), "is there a network?"),
        (errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set"),
    ):
        refuse(monkeypatch, raised)
        with pytest.raises(CheckpointError) as error:
            resolve("gemma3-1b-it")
        assert message in str(error.value).split("Hugging Face: ")[1]
