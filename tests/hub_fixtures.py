"""Stand-ins for the hubs that models come from, as fixtures. Nothing here needs a network."""

from __future__ import annotations

import sys
import time
import types
from pathlib import Path

import checkpoint_bucket
import checkpoint_hub
import huggingface_hub  # gradio depends on it
import pytest

from gemma_tpu.checkpoint import checksums

REPOSITORY = {
    "model.safetensors": b"weights",
    "config.json": b"{}",
    "tokenizer.model": b"pieces",
    "chat_template.jinja": b"template",
    "README.md": b"text",
    "pytorch_model.bin": b"weights again",
    "model-q4.gguf": b"weights again",
    "onnx/config.json": b"{}",
}
NEEDED = {"model.safetensors", "config.json", "tokenizer.model", "chat_template.jinja"}
FILES = {"_METADATA": b"{}", "d/0123": bytes(range(256)) * 4000, "manifest.ocdbt": b"manifest", "d/empty": b""}


@pytest.fixture
def model_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("GEMMA_TPU_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", "http://127.0.0.1:9")  # nothing listens there: no network
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "kagglehub", None)  # importing it is an ImportError
    return tmp_path / "cache"


@pytest.fixture
def hugging_face(model_cache, monkeypatch):
    repos = ("unsloth/gemma-3-4b-it", "google/gemma-3-270m")
    several = {"somebody/quantised": {"q4.gguf": b"", "q8.gguf": b""}}
    with checkpoint_hub.serve({repo: REPOSITORY for repo in repos} | several) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def bucket(tmp_path, model_cache, monkeypatch):
    root = tmp_path / "bucket"
    for name, content in FILES.items():
        path = root / "checkpoints" / "gemma3-4b-it" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (root / "checkpoints" / "gemma3-4b-it-other").mkdir()
    (root / "checkpoints" / "gemma3-4b-it-other" / "_METADATA").write_bytes(b"another model")
    (root / "tokenizers").mkdir()
    (root / "tokenizers" / "tokenizer_gemma3.model").write_bytes(b"pieces")
    with checkpoint_bucket.serve(root) as server:
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", server.url)
        yield server


def hub(monkeypatch, name: str, function: str, result) -> list:
    """A stand-in for a hub's client; `result` is a path, or an exception. Returns the calls made."""
    calls = []

    def fetch(*args, **kwargs):
        calls.append((args, kwargs))
        if isinstance(result, Exception):
            raise result
        return str(result)

    module = types.ModuleType(name)
    setattr(module, function, fetch)
    monkeypatch.setitem(sys.modules, name, module)
    return calls


def refuse(monkeypatch, raised: Exception) -> None:
    """Makes the real client of Hugging Face fail with `raised`."""

    def fail(*args, **kwargs):
        raise raised

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)


class Answer:
    def __init__(self, status_code: int):
        self.status_code, self.headers = status_code, {}


def error(name: str, message: str = "", status: int | None = None, base: type[Exception] = Exception) -> Exception:
    """An exception like those of the hubs' clients, of which a test environment may have neither."""
    raised = type(name, (base,), {})(message)
    if status is not None:
        raised.response = Answer(status)
    return raised


def contents(path: Path) -> dict[str, bytes]:
    """All that was fetched: without the checksums, which `test_checkpoint_checksums` has."""
    files = [file for file in path.rglob("*") if file.is_file() and file.name != checksums.NAME]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    waits: list[float] = []
    real = time.sleep
    # Only waits of the code under test: servers in other threads sleep for less.
    monkeypatch.setattr(time, "sleep", lambda seconds: waits.append(seconds) if seconds >= 0.5 else real(seconds))
    return waits
