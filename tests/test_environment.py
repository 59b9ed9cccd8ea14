"""Where files are kept, and how JAX is started: also without a home, without a TPU, with other settings of JAX's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_models import random_params
from test_api import CONFIG, FREE, PICTURE, QUESTION, make_model

from gemma_tpu import environment
from gemma_tpu.checkpoint import download, save_params
from gemma_tpu.environment import cache_dir, hub_cache, use_compilation_cache, writable

VARIABLES = ("GEMMA_TPU_CACHE", "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "HF_HOME")


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that what is set meanwhile is undone
        monkeypatch.delenv(name)
    return monkeypatch


def test_one_variable_moves_everything(unset: pytest.MonkeyPatch, tmp_path: Path) -> None:
    unset.setenv("HOME", str(tmp_path / "home"))
    assert cache_dir() == tmp_path / "home" / ".cache" / "gemma_tpu"
    assert hub_cache("huggingface", "HF_HOME") is None  # the hub's own place
    unset.setenv("GEMMA_TPU_CACHE", str(tmp_path / "here"))
    assert cache_dir() == tmp_path / "here"
    assert hub_cache("huggingface", "HF_HOME") == tmp_path / "here" / "huggingface"
    use_compilation_cache()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "here" / "compiled")
    unset.setenv("HF_HOME", "/elsewhere")
    assert hub_cache("huggingface", "HF_HOME") is None
    unset.setenv("JAX_COMPILATION_CACHE_DIR", "/elsewhere")
    use_compilation_cache()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "/elsewhere"


def test_no_home_and_a_folder_that_cannot_be_written(unset: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    way_out = "set GEMMA_TPU_CACHE to a folder that can be written"
    with pytest.raises(OSError, match=rf"file/cache cannot be written: {way_out}"):
        writable(tmp_path / "file" / "cache")
    unset.setenv("GEMMA_TPU_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(RuntimeWarning, match=f"compiled programs are not kept for the next start: .*{way_out}"):
        use_compilation_cache()
    with pytest.raises(OSError, match=way_out):
        download("gemma3-1b-it", progress=False)
    unset.delenv("GEMMA_TPU_CACHE")
    unset.setattr(os.path, "expanduser", lambda path: path)  # as it is where neither HOME nor the user is known
    with pytest.raises(OSError, match=f"no home directory is known, so there is no ~/.cache/gemma_tpu: {way_out}"):
        cache_dir()
    with pytest.warns(RuntimeWarning, match="no home directory is known"):
        use_compilation_cache()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_libtpu_is_only_told_that_it_is_alone_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in environment.LIBTPU_ALONE:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for files in (["/dev/accel0"], ["/dev/vfio/0"]):  # v2 … v4, and v5e on
        monkeypatch.setattr(environment.glob, "glob", lambda pattern, files=files: files)
        environment.quiet_libtpu()
        assert not os.environ.keys() & environment.LIBTPU_ALONE.keys()
    monkeypatch.setattr(environment.glob, "glob", lambda pattern: [])
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "mine")
    environment.quiet_libtpu()
    assert os.environ["TPU_WORKER_HOSTNAMES"] == "mine"
    assert os.environ["TPU_WORKER_ID"] == "0"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("environment") / "checkpoint"
    tokenizer = (Path(__file__).parent / "goldens" / "text" / "tokenizer.model").read_bytes()
    save_params(random_params(CONFIG), CONFIG, path, tokenizer=tokenizer)
    return path


SCRIPT = """
import sys, gemma_tpu
assert "jax" not in sys.modules
with gemma_tpu.load(sys.argv[1], max_context=64, progress=False) as model:
    print(model)
"""


def run(*command: str, **variables: str | None) -> subprocess.CompletedProcess[str]:
    """A command as a user runs it: without what pytest has set."""
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": ""} | variables
    for name in ("JAX_COMPILATION_CACHE_DIR", *(name for name, value in environment.items() if not value)):
        environment.pop(name, None)
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=300)


def test_loading_says_nothing_where_libtpu_is_and_no_tpu(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("libtpu")
    done = run("-c", SCRIPT, str(checkpoint), GEMMA_TPU_CACHE=str(tmp_path))
    assert done.stderr == ""
    assert "float32 (this CPU computes in float32), mesh 1 × 1" in done.stdout


def test_a_platform_that_is_not_here_is_one_line(checkpoint: Path, tmp_path: Path) -> None:
    command = ["-m", "gemma_tpu", "generate", str(checkpoint), "Hello"]
    done = run(*command, JAX_PLATFORMS="cuda", GEMMA_TPU_CACHE=str(tmp_path))  # JAX has an assertion without words
    assert done.returncode == 1
    assert done.stderr.startswith("gemma-tpu: JAX_PLATFORMS=cuda: JAX finds no such device")
    assert done.stderr.count("\n") == 1


def test_the_command_line_without_a_place_for_its_cache(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run("-m", "gemma_tpu", "info", str(checkpoint), HOME=str(tmp_path / "file"), GEMMA_TPU_CACHE=None)
    assert done.returncode == 0
    assert done.stderr.startswith("gemma-tpu: compiled programs are not kept for the next start: ")
    assert done.stderr.count("\n") == 1


def test_64_bits_change_no_answer() -> None:
    import jax

    def answers() -> list[list[int]]:
        with make_model(max_context=128, max_rows=1) as model:
            drawn = model.generate(QUESTION, temperature=1.0, seed=3, **FREE)
            logits = model.logits(np.arange(20)[None])
            assert (logits.dtype, model.encode_images(PICTURE).dtype) == (np.float32, np.float32)
            return [drawn.tokens, np.argmax(logits[0], -1).tolist()]

    expected = answers()
    jax.config.update("jax_enable_x64", True)
    try:
        assert answers() == expected
    finally:
        jax.config.update("jax_enable_x64", False)
