"""The directory that holds the arrays is found from one above it."""

from __future__ import annotations

import shutil
from pathlib import Path

import checkpoint_samples as samples
import pytest

from gemma_tpu.checkpoint import CheckpointError, open_checkpoint

SAMPLE = samples.sample(samples.CONFIGS["one-kv-14"])


def save(path: Path) -> Path:
    return samples.save_hf(path, SAMPLE.hf, samples.hf_config(SAMPLE.config))


def hub(root: Path, *revisions: str, main: str | None = None) -> Path:
    """A repository's folder in Hugging Face's cache, files linked to blobs."""
    repo = root / "models--google--gemma-3-1b-it"
    for revision in revisions:
        snapshot = save(repo / "snapshots" / revision)
        (repo / "blobs").mkdir(exist_ok=True)
        for file in list(snapshot.iterdir()):
            blob = file.rename(repo / "blobs" / f"{revision}-{file.name}")
            file.symlink_to(f"../../blobs/{blob.name}")
    if main:
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text(main)
    return repo


def test_a_folder_of_hugging_faces_cache(tmp_path):
    repo = hub(tmp_path, "3aa1", "b02f", main="b02f")
    for asked in (repo, repo / "snapshots" / "b02f"):
        opened = open_checkpoint(asked)
        assert opened.path == str(repo / "snapshots" / "b02f")
        assert opened.config == SAMPLE.config
    assert open_checkpoint(repo.parent).path == opened.path  # the only model in the cache
    shutil.copytree(repo, repo.with_name("models--google--other"))
    with pytest.raises(CheckpointError, match=rf"^{tmp_path}: a cache of several models, say which: models--google--"):
        open_checkpoint(tmp_path)


def test_revisions_without_a_main(tmp_path):
    repo = hub(tmp_path, "3aa1")
    assert open_checkpoint(repo).path.endswith("snapshots/3aa1")
    save(repo / "snapshots" / "b02f")
    with pytest.raises(CheckpointError, match="holds several revisions, say which: snapshots/3aa1, snapshots/b02f"):
        open_checkpoint(repo)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("c0ff")
    with pytest.raises(CheckpointError, match=rf"^{repo}: a Hugging Face download that never finished"):
        open_checkpoint(repo)


def test_kaggles_folders(tmp_path):
    """kagglehub: models/OWNER/MODEL/FRAMEWORK/VARIATION/VERSION, and a marker beside each version."""
    flax = tmp_path / "google" / "gemma-3" / "flax" / "gemma3-1b-it"
    checkpoint = samples.save_orbax(flax / "1" / "gemma3-1b-it", samples.flat_tree(SAMPLE.canonical))
    (flax / "1" / "tokenizer.model").write_bytes(b"a tokenizer")
    (flax / "1.complete").write_bytes(b"")
    for asked in (flax, flax / "1", checkpoint):
        opened = open_checkpoint(asked, config=SAMPLE.config)
        assert (opened.path, opened.tokenizer_path) == (str(checkpoint), str(flax / "1" / "tokenizer.model"))

    variation = tmp_path / "google" / "gemma-3" / "transformers" / "gemma-3-1b-it"
    for version in ("1", "2", "10"):
        save(variation / version)
        (variation / f"{version}.complete").write_bytes(b"")
    assert open_checkpoint(variation).path == str(variation / "10")


def test_a_training_run_and_one_of_its_steps(tmp_path):
    """What transformers' Trainer leaves: the newest step, unless a final model lies beside the steps."""
    for step in (500, 1000):
        folder = save(tmp_path / f"checkpoint-{step}")
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "training_args.bin"):
            (folder / name).write_bytes(b"state")
    (tmp_path / "runs").mkdir()
    (tmp_path / "tokenizer.model").write_bytes(b"a tokenizer")
    opened = open_checkpoint(tmp_path)
    assert (opened.path, opened.tokenizer_path) == (f"{tmp_path}/checkpoint-1000", f"{tmp_path}/tokenizer.model")
    assert open_checkpoint(tmp_path / "checkpoint-500").config == SAMPLE.config
    for file in save(tmp_path / "final").iterdir():
        file.rename(tmp_path / file.name)
    assert open_checkpoint(tmp_path).path == str(tmp_path)


def test_a_directory_named_like_a_file(tmp_path):
    assert open_checkpoint(save(tmp_path / "gemma.safetensors")).config == SAMPLE.config


def test_a_file_without_its_suffix(tmp_path):
    """A blob of a cache."""
    path = save(tmp_path / "c")
    blob = (path / "model.safetensors").rename(path / "4d7a")
    assert open_checkpoint(blob).config == SAMPLE.config
