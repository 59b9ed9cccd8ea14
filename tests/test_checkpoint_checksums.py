"""Files that are not what was written: any bit of any of them, and the way out."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import checkpoint_samples as samples
import jax
import numpy as np
import pytest
from checkpoint_samples import CONFIGS

import gemma_tpu
from gemma_tpu.checkpoint import (
    CheckpointError,
    CheckpointWarning,
    checksums,
    convert,
    load_params,
    merge_adapter,
    open_checkpoint,
    save_params,
    shipped,
)
from gemma_tpu.cli.main import main

LAYOUTS = ["orbax-flat", "safetensors"]
SAMPLE = samples.sample(CONFIGS["grouped-8"])


def write(path: Path, layout: str) -> Path:
    tokenizer = (Path(__file__).parent / "goldens" / "text" / "tokenizer.model").read_bytes()
    return save_params(
        SAMPLE.ours, SAMPLE.config, path, layout=layout, tokenizer=None if layout == "safetensors" else tokenizer
    )


def read(path: Path | str, verify: bool = True) -> dict[str, np.ndarray]:
    checkpoint = open_checkpoint(path, verify=verify)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    how = {"dtype": samples.BF16, "sharding": lambda *_: device, "progress": False}
    return {name: np.asarray(array) for name, array in load_params(checkpoint, checkpoint.config, **how).items()}


def files_of(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file() and file.name != checksums.NAME)


def flip(file: Path, at: int, bit: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1 << bit
    file.write_bytes(data)


def sha256sum(path: Path) -> int:
    """What another program says, which also finds a list of other files wanting."""
    listed = (path / checksums.NAME).read_text().splitlines()
    assert {line.split("  ")[1] for line in listed} == {file.relative_to(path).as_posix() for file in files_of(path)}
    return subprocess.run(["sha256sum", "--check", "--strict", "--quiet", checksums.NAME], cwd=path).returncode


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_bit_of_any_file(layout, tmp_path):
    path = write(tmp_path / "checkpoint", layout)
    assert sha256sum(path) == 0
    expected = read(path)
    files, rng = files_of(path), np.random.default_rng(0)
    # Each file in turn, and most of the rest in those that hold the weights.
    chosen = [
        *files,
        *rng.choice(files, 60 - len(files), p=(sizes := np.array([f.stat().st_size for f in files])) / sizes.sum()),
    ]
    for file in chosen:
        at, bit = int(rng.integers(file.stat().st_size)), int(rng.integers(8))
        flip(file, at, bit)
        with pytest.raises(
            CheckpointError, match=rf"{file}: changed or damaged: does not match the checksum in {path}/SHA256SUMS"
        ):
            checksums.verify(open_checkpoint(path, verify=True).unverified)
        flip(file, at, bit)
    for name, array in read(path).items():
        np.testing.assert_array_equal(array, expected[name])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_compared_while_they_are_read(layout, tmp_path):
    """The changed file is named, and nothing of it stays; what is asked for without comparing is what is there."""
    path = write(tmp_path / "checkpoint", layout)
    file = max(files_of(path), key=lambda file: file.stat().st_size)
    at = file.stat().st_size - 20
    flip(file, at, 0)
    alive = len(jax.live_arrays())
    with pytest.raises(
        CheckpointError, match=f"^{file}: changed or damaged: .*; download or convert it again; if you changed"
    ):
        read(path)
    with pytest.raises(CheckpointError, match=f"^{file}: changed or damaged"):
        convert(path, tmp_path / "other", to="safetensors", progress=False)
    assert len(jax.live_arrays()) == alive
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint"]
    if layout == "safetensors":  # Orbax's chunks are compressed, and may not be readable
        read(path, verify=False)
        other = convert(path, tmp_path / "other", to="safetensors", progress=False, verify=False)
        assert sha256sum(other) == 0


def test_through_the_front_doors(tmp_path, capsys):
    path = write(tmp_path / "checkpoint", "safetensors")
    flip(path / "model.safetensors", -20, 3)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: changed or damaged"):
        gemma_tpu.load(path, mesh=(1, 8), progress=False)
    gemma_tpu.load(path, mesh=(1, 8), progress=False, verify=False).close()
    command = ["convert", str(path), str(tmp_path / "other"), "--to", "orbax"]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"gemma-tpu: {path}/model.safetensors: changed or damaged: ")
    assert said.endswith("verify=False (--no-verify) loads what is there\n")
    assert main([*command, "--no-verify"]) == 0


def test_one_file_of_a_directory(tmp_path):
    path = write(tmp_path / "checkpoint", "safetensors")
    read(path / "model.safetensors")
    (path / "config.json").write_text((path / "config.json").read_text() + " ")
    with pytest.raises(CheckpointError, match=r"config\.json: changed"):
        open_checkpoint(path / "model.safetensors", verify=True)


def test_missing_and_more(tmp_path):
    path = write(tmp_path / "checkpoint", "orbax-flat")
    (path / "tokenizer.model").unlink()
    with pytest.raises(
        CheckpointError, match=r"tokenizer\.model: missing: only the checksum in .*SHA256SUMS is left; "
    ):
        open_checkpoint(path, verify=True)
    assert open_checkpoint(path).tokenizer_path is None
    path = write(tmp_path / "other", "safetensors")
    (path / "chat_template.jinja").write_text("one's own")
    (path / "README.md").touch()
    read(path)
    (path / "more.safetensors").write_bytes((path / "model.safetensors").read_bytes())
    with (
        pytest.warns(CheckpointWarning, match="not in SHA256SUMS, and so not compared: more.safetensors"),
        pytest.warns(CheckpointWarning, match="read by model.safetensors, without more.safetensors"),
    ):
        open_checkpoint(path, verify=True)


def test_an_error_that_a_changed_file_explains(tmp_path):
    """Of a header that cannot be read, and of weights that are not finite: what is said is that the file changed."""
    path = write(tmp_path / "checkpoint", "safetensors")
    file, data = path / "model.safetensors", (path / "model.safetensors").read_bytes()
    file.write_bytes(data[:1000])
    with pytest.raises(CheckpointError, match="changed or damaged") as raised:
        open_checkpoint(path, verify=True)
    assert "truncated" in str(raised.value.__context__)
    file.write_bytes(data[:-200] + b"\xff" * 200)
    with pytest.raises(CheckpointError, match="changed or damaged") as raised:
        read(path)
    assert "holds NaN" in str(raised.value.__context__)


@pytest.mark.filterwarnings("ignore:.*and so not compared")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense\n", "line 1 is no checksum and name: download or convert it again"),
        ("", "line 1 is no checksum and name"),
        (f"{'0' * 64}  ../outside\n", r"line 1 names a file outside its folder: \.\./outside"),
        (f"{'0' * 64}  /etc/hostname\n", "hostname: missing"),
        (f"{'0' * 64} *config.json\n", "config.json: changed or damaged"),
    ],
)
def test_a_list_that_is_damaged(text, message, tmp_path):
    path = write(tmp_path / "checkpoint", "orbax-flat")
    (path / checksums.NAME).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        checksums.verify(checksums.known_files(str(path)))


def test_an_adapter(tmp_path):
    base = write(tmp_path / "base", "safetensors")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    checksums.write(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: changed or damaged"):
        merge_adapter(open_checkpoint(base), str(tmp_path / "adapter"), verify=True)


def test_many_files_are_not_all_named(tmp_path):
    for i in range(9):
        (tmp_path / f"{i}.json").touch()
    checksums.write(tmp_path)
    for i in range(9):
        (tmp_path / f"{i}.json").write_text("x")
    with pytest.raises(CheckpointError, match=r"0\.json, .*4\.json and 4 more: changed"):
        checksums.verify(checksums.known_files(str(tmp_path)))


def test_interrupted_at_once(tmp_path):
    """What is left of the comparison is not waited for: this file takes a minute to read."""
    with open(tmp_path / "large", "wb") as file:
        os.truncate(file.fileno(), 100 << 30)
    files = [checksums.KnownFile(str(tmp_path / "large"), "0" * 64, "x")] * 9
    with pytest.raises(KeyboardInterrupt), checksums.verifying(files):
        raise KeyboardInterrupt


def test_the_one_that_comes_with_the_package():
    assert sha256sum(shipped.shipped()) == 0
    assert len(checksums.known_files(str(shipped.shipped()))) > 10
