"""Models by name: cache, bucket, Kaggle, Hugging Face, in that order, and what is said when none has it."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import checkpoint_bucket
import checkpoint_samples as samples
import pytest
from huggingface_hub import errors  # gradio depends on it

from gemma_tpu.checkpoint import CheckpointError, download, open_checkpoint, resolve

FILES = {"_METADATA": b"{}", "d/0123": bytes(range(256)) * 4000, "manifest.ocdbt": b"manifest", "d/empty": b""}


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("GEMMA_TPU_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", "http://127.0.0.1:9")  # nothing listens there: no network
    monkeypatch.setitem(sys.modules, "kagglehub", None)  # importing it is an ImportError
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    return tmp_path / "cache"


@pytest.fixture
def bucket(tmp_path, cache, monkeypatch):
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


class Answer:
    def __init__(self, status_code: int):
        self.status_code = status_code


def error(name: str, message: str = "", status: int | None = None, base: type[Exception] = Exception) -> Exception:
    """An exception like those of the hubs' clients, of which a test environment may have neither."""
    raised = type(name, (base,), {})(message)
    if status is not None:
        raised.response = Answer(status)
    return raised


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_paths_are_taken_as_they_are(cache, tmp_path, monkeypatch):
    (tmp_path / "gemma3-4b-it").mkdir()
    assert resolve(tmp_path / "gemma3-4b-it") == str(tmp_path / "gemma3-4b-it")
    assert resolve("gs://bucket/dir/") == "gs://bucket/dir"
    monkeypatch.chdir(tmp_path)
    assert resolve("gemma3-4b-it") == str(tmp_path / "gemma3-4b-it")


def test_unknown_names(cache):
    with pytest.raises(CheckpointError, match=r"gemma3-5b-it: no such file or directory, and no name .*gemma3-270m-pt"):
        resolve("gemma3-5b-it")
    with pytest.raises(CheckpointError, match=r"gemma3-27b-it$"):
        download("gemma4")


def test_from_the_bucket(cache, bucket):
    path = download("gemma3-4b-it", progress=False)
    assert path == cache / "gemma3-4b-it"
    assert contents(path) == FILES | {"tokenizer.model": b"pieces"}
    assert sorted(entry.name for entry in cache.iterdir()) == ["gemma3-4b-it"]
    bucket.requests.clear()
    assert resolve("google/gemma-3-4b-it") == resolve("gemma3-4b-it") == str(path)
    assert bucket.requests == []


def test_a_broken_download_goes_on_where_it_stopped(cache, bucket):
    bucket.break_after = 300_000
    with pytest.raises(CheckpointError, match=r"gs://gemma-data: .*run it again"):
        download("gemma3-4b-it", progress=False)
    assert not (cache / "gemma3-4b-it").exists()
    part = cache / "gemma3-4b-it.part" / "d" / "0123.part"
    have = part.stat().st_size
    assert 0 < have <= 300_000
    with pytest.raises(CheckpointError, match=r"cache: no checkpoint"):
        open_checkpoint(cache)
    with pytest.raises(CheckpointError, match=r"part: left behind by a conversion or a download"):
        open_checkpoint(cache / "gemma3-4b-it.part")

    bucket.break_after = None
    bucket.requests.clear()
    seen: list[tuple[int, int]] = []
    path = download("gemma3-4b-it", progress=lambda done, total: seen.append((done, total)))
    assert contents(path) == FILES | {"tokenizer.model": b"pieces"}
    ranges = [asked for request, asked in bucket.requests if "0123" in request]
    assert ranges == [f"bytes={have}-"]
    total = sum(map(len, FILES.values())) + len(b"pieces")
    assert seen[-1] == (total, total)


def test_damaged_files_are_not_kept(cache, bucket):
    bucket.damage = True
    with pytest.raises(CheckpointError, match=r"arrived damaged: run it again"):
        download("gemma3-4b-it", progress=False)
    bucket.damage = False
    assert contents(download("gemma3-4b-it", progress=False)) == FILES | {"tokenizer.model": b"pieces"}


def test_kaggle_after_the_bucket(cache, tmp_path, monkeypatch):
    found = tmp_path / "kaggle" / "gemma3-1b"
    sample = samples.sample(samples.CONFIGS["one-kv-14"])
    samples.save_orbax(found / "gemma3-1b-it", samples.flat_tree(sample.canonical))
    (found / "tokenizer.model").write_bytes(b"pieces")
    calls = hub(monkeypatch, "kagglehub", "model_download", found)
    path = resolve("gemma3-1b-it")
    assert calls == [(("google/gemma-3/flax/gemma3-1b-it",), {})]
    assert resolve("gemma3-1b-it") == path == str(found)
    assert len(calls) == 1
    checkpoint = open_checkpoint(path, config=sample.config)
    assert checkpoint.path == str(found / "gemma3-1b-it")
    assert checkpoint.tokenizer_path == str(found / "tokenizer.model")
    download("gemma3-27b-pt")
    assert calls[1] == (("google/gemma-3/flax/gemma3-27b",), {})


def test_hugging_face_last(cache, tmp_path, monkeypatch):
    hub(monkeypatch, "kagglehub", "model_download", error("KaggleApiHTTPError", "403 Client Error.", 403))
    (tmp_path / "snapshot").mkdir()
    calls = hub(monkeypatch, "huggingface_hub", "snapshot_download", tmp_path / "snapshot")
    assert resolve("gemma3-270m-pt") == str(tmp_path / "snapshot")
    ((args, options),) = calls
    assert args == ("google/gemma-3-270m-pt",)
    assert "*.safetensors" in options["allow_patterns"]


def test_a_link_to_a_hub_that_was_cleaned_is_made_again(cache, tmp_path, monkeypatch):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        calls = hub(monkeypatch, "huggingface_hub", "snapshot_download", tmp_path / name)
        assert resolve("gemma3-1b-it") == str(tmp_path / name)
        assert len(calls) == 1
        (tmp_path / name).rmdir()


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
def test_what_to_do_when_no_source_has_it(kaggle, hugging_face, messages, cache, monkeypatch):
    if kaggle is not None:
        hub(monkeypatch, "kagglehub", "model_download", kaggle)
        hub(monkeypatch, "huggingface_hub", "snapshot_download", hugging_face)
    with pytest.raises(CheckpointError) as raised:
        resolve("gemma3-12b-it")
    text = str(raised.value)
    assert text.startswith(f"gemma3-12b-it is not in {cache} and cannot be downloaded. gs://gemma-data: ")
    assert "\n" not in text
    for message in messages:
        assert message in text


def test_the_bucket_says_no(cache, bucket):
    bucket.status = 403
    with pytest.raises(CheckpointError, match=r"gs://gemma-data: answered 403"):
        resolve("gemma3-12b-it")


def test_the_real_clients_exceptions_are_understood(cache, monkeypatch):
    gated = errors.GatedRepoError.__new__(errors.GatedRepoError)
    gated.response = Answer(403)
    for raised, message in (
        (gated, "accept the licence at https://huggingface.co/google/gemma-3-1b-it"),
        (errors.LocalEntryNotFoundError("cannot find"), "is there a network?"),
        (errors.OfflineModeIsEnabled("offline"), "is there a network?"),
    ):
        hub(monkeypatch, "huggingface_hub", "snapshot_download", raised)
        with pytest.raises(CheckpointError) as error:
            resolve("gemma3-1b-it")
        assert message in str(error.value).split("Hugging Face: ")[1]
