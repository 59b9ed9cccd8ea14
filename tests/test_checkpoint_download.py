"""Models by name: model_cache, bucket, Kaggle, Hugging Face, in that order, and what is said when none has it."""

from __future__ import annotations

import os
from pathlib import Path

import checkpoint_samples as samples
import gguf_written
import huggingface_hub  # gradio depends on it
import pytest
from hub_fixtures import FILES, NEEDED, REPOSITORY, contents, error, hub

from gemma_tpu.checkpoint import CheckpointError, checksums, download, hub_errors, hubs, open_checkpoint, resolve


def test_paths_are_taken_as_they_are(model_cache, tmp_path, monkeypatch):
    (tmp_path / "gemma3-4b-it").mkdir()
    assert resolve(tmp_path / "gemma3-4b-it") == str(tmp_path / "gemma3-4b-it")
    assert resolve("gs://bucket/dir/") == "gs://bucket/dir"
    monkeypatch.chdir(tmp_path)
    assert resolve("gemma3-4b-it") == str(tmp_path / "gemma3-4b-it")


def test_what_is_here_need_not_be_downloaded(model_cache, tmp_path):
    """`download` is given names alone, and says of a path that is there no less than that it is."""
    assert download("gemma3-demo") == Path(resolve("gemma3-demo"))
    with pytest.raises(CheckpointError, match=rf"^{tmp_path}: is here already, and no name"):
        download(str(tmp_path))


def test_unknown_names(model_cache):
    with pytest.raises(CheckpointError, match=r"gemma3-5b-it: no such file or directory, and no name .*gemma3-270m-pt"):
        resolve("gemma3-5b-it")
    with pytest.raises(CheckpointError, match=r"^gemma4: .*gemma3-27b-it; any other .* OWNER/NAME$"):
        download("gemma4")


def test_from_the_bucket(model_cache, bucket):
    path = download("gemma3-4b-it", progress=False)
    assert path == model_cache / "gemma3-4b-it"
    assert contents(path) == FILES | {"tokenizer.model": b"pieces"}
    assert sorted(entry.name for entry in model_cache.iterdir()) == ["gemma3-4b-it"]
    bucket.requests.clear()
    assert resolve("google/gemma-3-4b-it") == resolve("gemma3-4b-it") == str(path)
    assert bucket.requests == []


def test_a_broken_download_goes_on_where_it_stopped(model_cache, bucket):
    bucket.break_after = 300_000
    with pytest.raises(CheckpointError, match=r"gs://gemma-data: .*run it again"):
        download("gemma3-4b-it", progress=False)
    assert not (model_cache / "gemma3-4b-it").exists()
    part = model_cache / "gemma3-4b-it.part" / "d" / "0123.part"
    have = part.stat().st_size
    assert 0 < have <= 300_000
    with pytest.raises(CheckpointError, match=r"cache: no checkpoint"):
        open_checkpoint(model_cache)
    with pytest.raises(CheckpointError, match=r"part: left behind by a conversion or a download"):
        open_checkpoint(model_cache / "gemma3-4b-it.part")

    bucket.break_after = None
    bucket.requests.clear()
    seen: list[tuple[int, int]] = []
    path = download("gemma3-4b-it", progress=lambda done, total: seen.append((done, total)))
    assert contents(path) == FILES | {"tokenizer.model": b"pieces"}
    ranges = [asked for request, asked in bucket.requests if "0123" in request]
    assert ranges == [f"bytes={have}-"]
    total = sum(map(len, FILES.values())) + len(b"pieces")
    assert seen[-1] == (total, total)


def test_damaged_files_are_not_kept(model_cache, bucket):
    bucket.damage = True
    with pytest.raises(CheckpointError, match=r"arrived damaged: run it again"):
        download("gemma3-4b-it", progress=False)
    bucket.damage = False
    assert contents(download("gemma3-4b-it", progress=False)) == FILES | {"tokenizer.model": b"pieces"}


def test_what_changed_in_the_cache_is_fetched_again(model_cache, bucket):
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


def test_kaggle_after_the_bucket(model_cache, tmp_path, monkeypatch):
    found = tmp_path / "kaggle" / "gemma3-1b"
    sample = samples.sample(samples.CONFIGS["one-kv-14"])
    samples.save_orbax(found / "gemma3-1b-it", samples.flat_tree(sample.canonical))
    (found / "tokenizer.model").write_bytes(b"pieces")
    calls = hub(monkeypatch, "kagglehub", "model_download", found)
    path = resolve("gemma3-1b-it")
    assert len(checksums.known_files(path)) == len(contents(found))
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


def test_hugging_face_last(hugging_face, model_cache, monkeypatch):
    hub(monkeypatch, "kagglehub", "model_download", error("KaggleApiHTTPError", "403 Client Error.", 403))
    path = Path(resolve("gemma3-270m-pt"))
    assert contents(path) == {name: REPOSITORY[name] for name in NEEDED}
    assert hugging_face.downloaded() == NEEDED
    assert (model_cache / "gemma3-270m-pt").resolve() == path


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
def test_any_repository_of_hugging_face(name, key, hugging_face, model_cache):
    path = Path(resolve(name))
    assert set(contents(path)) == NEEDED
    assert (model_cache / key).resolve() == path
    assert path.is_relative_to(model_cache), "$GEMMA_TPU_CACHE is where the client keeps its files too"
    hugging_face.requests.clear()
    assert resolve(name) == str(path)
    assert hugging_face.requests == []


def test_a_repository_of_a_gguf_model(tmp_path, hugging_face, monkeypatch):
    """As google/gemma-3-4b-it-qat-q4_0-gguf has them: a model and its vision tower, and no file beside."""
    made = gguf_written.write_both(tmp_path)
    files = {"gemma-3-4b-it-q4_0.gguf": "model.gguf", "mmproj-model-f16-4B.gguf": "mmproj-model.gguf"}
    there = {name: (made / file).read_bytes() for name, file in files.items()}
    hugging_face.repos["google/gemma-3-4b-it-qat-q4_0-gguf"] = there | {"README.md": b"text"}
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(CheckpointError, match=r"needs pip install 'gemma_tpu\[gguf\]'"):
            resolve("google/gemma-3-4b-it-qat-q4_0-gguf")
    assert not hugging_face.downloaded()
    gguf_written.check_values(open_checkpoint(resolve("google/gemma-3-4b-it-qat-q4_0-gguf")))
    assert hugging_face.downloaded() == files.keys()


def test_a_download_asks_again_for_what_has_changed(hugging_face, model_cache):
    first = download("unsloth/gemma-3-4b-it")
    hugging_face.repos["unsloth/gemma-3-4b-it"] = REPOSITORY | {"config.json": b'{"newer": 1}'}
    assert resolve("unsloth/gemma-3-4b-it") == str(first)
    assert (download("unsloth/gemma-3-4b-it") / "config.json").read_bytes() == b'{"newer": 1}'
    assert resolve("unsloth/gemma-3-4b-it") != str(first)


def test_hugging_faces_links_name_checksums(hugging_face, model_cache):
    """SHA-256 of large files, Git's SHA-1 of small ones; `download` fetches again what is not that any more."""
    path = download("unsloth/gemma-3-4b-it")
    files = checksums.known_files(str(path))
    assert {os.path.basename(file.path): len(file.digest) for file in files} == {
        "model.safetensors": 64, "config.json": 40, "tokenizer.model": 40, "chat_template.jinja": 40
    }  # fmt: skip
    checksums.verify(files)
    for name in ("model.safetensors", "config.json"):
        (path / name).write_bytes(b"changed")
        with pytest.raises(
            CheckpointError, match=rf"/{name}: changed or .* `gemma-tpu download unsloth/gemma-3-4b-it`"
        ):
            checksums.verify(files)
        assert contents(download("unsloth/gemma-3-4b-it")) == {name: REPOSITORY[name] for name in NEEDED}
        checksums.verify(files)


def test_what_another_program_has_downloaded_needs_no_network(hugging_face, model_cache, monkeypatch):
    path = resolve("unsloth/gemma-3-4b-it")
    (model_cache / "unsloth--gemma-3-4b-it").unlink()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert resolve("unsloth/gemma-3-4b-it") == path


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["a/model.safetensors", "x.bin", "a/y.gguf"], r"as \.bin, \.gguf only: .* an Orbax.* in no folder"),
        (["mmproj-model-f16.gguf", "x.task"], r"as \.gguf, \.task only"),
        (["a-Q4_0.gguf", "a-Q8_0.gguf", "mmproj.gguf"], r"holds 2 GGUF models \(a-Q4_0.gguf, a-Q8_0.gguf, …\): fetch"),
        (["README.md"], r"holds README.md: what can be fetched"),
        (["model.safetensors", "consolidated.safetensors", "original/params.json", "config.json"], [0, 3]),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json",
          "pytorch_model.bin", "onnx/config.json", "tokenizer.json", "chat_template.jinja"], [0, 1, 2, 5, 6]),
        (["_METADATA", "d/0123", "manifest.ocdbt", "config.json"], [0, 1, 2, 3]),
        (["ckpt/_METADATA", "ckpt/d/0123", "other/x.npz", "tokenizer.model"], [0, 1, 3]),
        (["gemma-3-12b-it-q4_0.gguf", "mmproj-model-f16-12B.gguf", "README.md", "config.json"], [0, 1]),
        (["a-00001-of-00002.gguf", "a-00002-of-00002.gguf", "mmproj-F32.gguf", "mmproj-F16.gguf", "mmproj-BF16.gguf"],
         [0, 1, 4]),
        (["model.safetensors", "model.gguf"], [0]),
    ],
)  # fmt: skip
def test_which_files_of_a_repository_are_needed(files, expected):
    if isinstance(expected, str):
        with pytest.raises(hub_errors.Unavailable, match=expected):
            hubs.select_files(files)
    else:
        assert hubs.select_files(files) == sorted(files[i] for i in expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unsloth/gemma-3-5b-it", r"no such file or directory here, and Hugging Face does not have it, or does not"),
        ("google/medgema-4b-it", r"; did you mean google/medgemma-4b-it or"),
        ("unsloth/gemma-3-4b-it@v3", r"has it, but not in this revision: see https://huggingface.co/unsloth/gemma-3"),
        ("somebody/quantised", r"holds 2 GGUF models \(q4.gguf, q8.gguf, …\)"),
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


def test_without_a_network(model_cache, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        CheckpointError, match=r"no such file or directory here, and Hugging Face cannot be reached: is"
    ):
        resolve("runs/latest")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"and Hugging Face .*HF_HUB_OFFLINE is set"):
        resolve("runs/latest")
