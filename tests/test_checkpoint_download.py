"""Models by name: cache, bucket, Kaggle, Hugging Face, in that order, and what is said when none has it."""

from __future__ import annotations

import os
import shutil
import sys
import time
import types
from pathlib import Path

import checkpoint_bucket
import checkpoint_hub
import checkpoint_samples as samples
import huggingface_hub  # gradio depends on it
import pytest
from huggingface_hub import errors

from gemma_tpu.checkpoint import CheckpointError, availability, checksums, download, hubs, open_checkpoint, resolve

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
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("GEMMA_TPU_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", "http://127.0.0.1:9")  # nothing listens there: no network
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "kagglehub", None)  # importing it is an ImportError
    return tmp_path / "cache"


@pytest.fixture
def hugging_face(cache, monkeypatch):
    repos = ("unsloth/gemma-3-4b-it", "google/gemma-3-270m")
    with checkpoint_hub.serve({repo: REPOSITORY for repo in repos} | {"somebody/quantised": {"q4.gguf": b""}}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


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


def test_paths_are_taken_as_they_are(cache, tmp_path, monkeypatch):
    (tmp_path / "gemma3-4b-it").mkdir()
    assert resolve(tmp_path / "gemma3-4b-it") == str(tmp_path / "gemma3-4b-it")
    assert resolve("gs://bucket/dir/") == "gs://bucket/dir"
    monkeypatch.chdir(tmp_path)
    assert resolve("gemma3-4b-it") == str(tmp_path / "gemma3-4b-it")


def test_what_is_here_need_not_be_downloaded(cache, tmp_path):
    """`download` is given names alone, and says of a path that is there no less than that it is."""
    assert download("gemma3-demo") == Path(resolve("gemma3-demo"))
    with pytest.raises(CheckpointError, match=rf"^{tmp_path}: is here already, and no name"):
        download(str(tmp_path))


def test_unknown_names(cache):
    with pytest.raises(CheckpointError, match=r"gemma3-5b-it: no such file or directory, and no name .*gemma3-270m-pt"):
        resolve("gemma3-5b-it")
    with pytest.raises(CheckpointError, match=r"^gemma4: .*gemma3-27b-it; any other .* OWNER/NAME$"):
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


def test_what_changed_in_the_cache_is_fetched_again(cache, bucket):
    path = download("gemma3-4b-it", progress=False)
    before = contents(path)
    (path / "d" / "0123").write_bytes(bytes(1_024_000))
    (path / "manifest.ocdbt").unlink()
    bucket.requests.clear()
    assert download("gemma3-4b-it", progress=False) == path
    assert contents(path) == before
    fetched = [request.split("/o/")[1].split("?")[0] for request, _ in bucket.requests if "/o/" in request]
    assert sorted(name.rsplit("%2F")[-1] for name in fetched) == ["0123", "manifest.ocdbt"]
    bucket.requests.clear()
    assert download("gemma3-4b-it", progress=False) == path
    assert bucket.requests == []


def test_kaggle_after_the_bucket(cache, tmp_path, monkeypatch):
    found = tmp_path / "kaggle" / "gemma3-1b"
    sample = samples.sample(samples.CONFIGS["one-kv-14"])
    samples.save_orbax(found / "gemma3-1b-it", samples.flat_tree(sample.canonical))
    (found / "tokenizer.model").write_bytes(b"pieces")
    calls = hub(monkeypatch, "kagglehub", "model_download", found)
    path = resolve("gemma3-1b-it")
    assert len(checksums.listed(path)) == len(contents(found))
    assert calls == [(("google/gemma-3/flax/gemma3-1b-it",), {})]
    assert resolve("gemma3-1b-it") == path == str(found)
    assert len(calls) == 1
    checkpoint = open_checkpoint(path, config=sample.config, verify=True)
    assert checkpoint.path == str(found / "gemma3-1b-it")
    assert checkpoint.tokenizer_path == str(found / "tokenizer.model")
    (found / "tokenizer.model").write_bytes(b"changed")
    download("gemma3-1b-it")
    assert calls.pop() == (("google/gemma-3/flax/gemma3-1b-it",), {})
    assert not found.exists(), "which makes Kaggle's client fetch it again"
    found.mkdir()
    download("gemma3-27b-pt")
    download("gemma3-270m-it")
    assert calls[1:] == [(("google/gemma-3/flax/gemma3-27b",), {}), (("google/gemma-3/flax/gemma-3-270m-it",), {})]


def test_hugging_face_last(hugging_face, cache, monkeypatch):
    hub(monkeypatch, "kagglehub", "model_download", error("KaggleApiHTTPError", "403 Client Error.", 403))
    path = Path(resolve("gemma3-270m-pt"))
    assert contents(path) == {name: REPOSITORY[name] for name in NEEDED}
    assert hugging_face.downloaded() == NEEDED
    assert (cache / "gemma3-270m-pt").resolve() == path


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("unsloth/gemma-3-4b-it", "unsloth--gemma-3-4b-it"),
        ("unsloth/gemma-3-4b-it@v2", "unsloth--gemma-3-4b-it@v2"),
        ("https://huggingface.co/unsloth/gemma-3-4b-it/", "unsloth--gemma-3-4b-it"),
        ("hf://unsloth/gemma-3-4b-it", "unsloth--gemma-3-4b-it"),
        ("huggingface.co/unsloth/gemma-3-4b-it/blob/v2/config.json", "unsloth--gemma-3-4b-it@v2"),
        ("https://huggingface.co/google/gemma-3-270m/tree/main", "google--gemma-3-270m@main"),
    ],
)
def test_any_repository_of_hugging_face(name, key, hugging_face, cache):
    path = Path(resolve(name))
    assert set(contents(path)) == NEEDED
    assert (cache / key).resolve() == path
    assert path.is_relative_to(cache), "$GEMMA_TPU_CACHE is where the client keeps its files too"
    hugging_face.requests.clear()
    assert resolve(name) == str(path)
    assert hugging_face.requests == []


def test_a_download_asks_again_for_what_has_changed(hugging_face, cache):
    first = download("unsloth/gemma-3-4b-it")
    hugging_face.repos["unsloth/gemma-3-4b-it"] = REPOSITORY | {"config.json": b'{"newer": 1}'}
    assert resolve("unsloth/gemma-3-4b-it") == str(first)
    assert (download("unsloth/gemma-3-4b-it") / "config.json").read_bytes() == b'{"newer": 1}'
    assert resolve("unsloth/gemma-3-4b-it") != str(first)


def test_hugging_faces_links_name_checksums(hugging_face, cache):
    """SHA-256 of large files, Git's SHA-1 of small ones; `download` fetches again what is not that any more."""
    path = download("unsloth/gemma-3-4b-it")
    files = checksums.listed(str(path))
    assert {os.path.basename(file.path): len(file.digest) for file in files} == {
        "model.safetensors": 64, "config.json": 40, "tokenizer.model": 40, "chat_template.jinja": 40
    }  # fmt: skip
    checksums.compare(files)
    for name in ("model.safetensors", "config.json"):
        (path / name).write_bytes(b"changed")
        with pytest.raises(
            CheckpointError, match=rf"/{name}: changed or .* `gemma-tpu download unsloth/gemma-3-4b-it`"
        ):
            checksums.compare(files)
        assert contents(download("unsloth/gemma-3-4b-it")) == {name: REPOSITORY[name] for name in NEEDED}
        checksums.compare(files)


def test_what_another_program_has_downloaded_needs_no_network(hugging_face, cache, monkeypatch):
    path = resolve("unsloth/gemma-3-4b-it")
    (cache / "unsloth--gemma-3-4b-it").unlink()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert resolve("unsloth/gemma-3-4b-it") == path


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["a/model.safetensors", "x.bin", "y.gguf"], r"has weights as \.bin, \.gguf only: .*safetensors or an Orbax"),
        (["README.md"], r"holds README.md: what can be read"),
        (["model.safetensors", "consolidated.safetensors", "original/params.json", "config.json"], [0, 3]),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json",
          "pytorch_model.bin", "onnx/config.json", "tokenizer.json", "chat_template.jinja"], [0, 1, 2, 5, 6]),
        (["_METADATA", "d/0123", "manifest.ocdbt", "config.json"], [0, 1, 2, 3]),
        (["ckpt/_METADATA", "ckpt/d/0123", "other/x.npz", "tokenizer.model"], [0, 1, 3]),
    ],
)  # fmt: skip
def test_which_files_of_a_repository_are_needed(files, expected):
    if isinstance(expected, str):
        with pytest.raises(availability.Unavailable, match=expected):
            hubs.needed(files)
    else:
        assert hubs.needed(files) == sorted(files[i] for i in expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unsloth/gemma-3-5b-it", r"no such file or directory here, and Hugging Face does not have it, or does not"),
        ("google/medgema-4b-it", r"; did you mean google/medgemma-4b-it or"),
        ("unsloth/gemma-3-4b-it@v3", r"has it, but not in this revision: see https://huggingface.co/unsloth/gemma-3"),
        ("somebody/quantised", r"has weights as \.gguf only"),
        ("checkpoints/mine", r"in checkpoints/; if a repository .* https://huggingface.co/checkpoints/mine$"),
        ("./mine", r"no such file or directory, and no name"),
        ("a/b/c", r"no such file or directory, and no name"),
        ("gemma3-4b-itt", r"did you mean gemma3-4b-it or gemma3-4b-pt\? The released"),
        ("medgemma-4b-it", r"did you mean google/medgemma-4b-it"),
        ("https://huggingface.co/datasets/a/b", "no address of a model"),
        ("https://example.com/model.safetensors", "no address of a model"),
        ("s3://bucket/path", "only local paths, gs:// and the pages of hubs"),
        ("google/gemma-3/keras/gemma3_4b", "Kaggle's keras files are not read here: .* google/gemma-3/flax"),
    ],
)
def test_names_that_lead_nowhere(name, message, hugging_face, tmp_path, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=message) as raised:
        resolve(name)
    assert "\n" not in str(raised.value)
    assert "is there a network" not in str(raised.value)
    if name.startswith("checkpoints"):
        assert hugging_face.requests == [], "a name of one's own directories is nobody else's to read"


def test_without_a_network(cache, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        CheckpointError, match=r"no such file or directory here, and Hugging Face cannot be reached: is"
    ):
        resolve("runs/latest")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"and Hugging Face .*HF_HUB_OFFLINE is set"):
        resolve("runs/latest")


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    waits: list[float] = []
    real = time.sleep
    # Only waits of the code under test: servers in other threads sleep for less.
    monkeypatch.setattr(time, "sleep", lambda seconds: waits.append(seconds) if seconds >= 0.5 else real(seconds))
    return waits


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


def test_a_busy_bucket_is_asked_again(cache, bucket, waits):
    bucket.answers = [(503, {"Retry-After": "2"}), (429, {})]
    assert contents(download("gemma3-4b-it", progress=False)) == FILES | {"tokenizer.model": b"pieces"}
    assert waits == [2, 4]
    bucket.status = 503
    with pytest.raises(CheckpointError, match=r"gs://gemma-data: is busy or in trouble \(HTTP 503\): run it again"):
        resolve("gemma3-12b-it")
    assert waits == [2, 4, 1, 4, 16]


def test_a_busy_kaggle(cache, monkeypatch, waits):
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
def test_models_of_kaggle(name, handle, cache, tmp_path, monkeypatch):
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
    assert seen == [str(cache / "kaggle")]
    assert "KAGGLEHUB_CACHE" not in os.environ


def test_a_link_to_a_hub_that_was_cleaned_is_made_again(cache, hugging_face):
    path = Path(resolve("unsloth/gemma-3-4b-it"))
    shutil.rmtree(cache / "huggingface")
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
def test_what_to_do_when_no_source_has_it(kaggle, hugging_face, messages, cache, monkeypatch):
    if kaggle is None:
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    else:
        hub(monkeypatch, "kagglehub", "model_download", kaggle)
        refuse(monkeypatch, hugging_face)
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
        (errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set"),
    ):
        refuse(monkeypatch, raised)
        with pytest.raises(CheckpointError) as error:
            resolve("gemma3-1b-it")
        assert message in str(error.value).split("Hugging Face: ")[1]
