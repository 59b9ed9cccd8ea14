"""Programs that an earlier process compiled: what is found is the same program, and only that."""

from __future__ import annotations

import dataclasses
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import PIL.Image
import pytest
from small_models import TEXT, VISION, mesh_of
from test_engine import NO_STOP, prompt, run

from gemma_tpu import fingerprint
from gemma_tpu.bench import random_params
from gemma_tpu.config import SOFT_TOKEN
from gemma_tpu.deployment import Deployment
from gemma_tpu.engine import executables, programs
from gemma_tpu.engine.ahead import Ahead
from gemma_tpu.engine.ahead import _Compiler as Compiler
from gemma_tpu.engine.engine import Engine
from gemma_tpu.engine.executables import Executables
from gemma_tpu.engine.request import ImageInput
from gemma_tpu.picture import PlacedImage
from gemma_tpu.quantization import as_quantization

MULTIMODAL = dataclasses.replace(TEXT, vision=VISION)
OPTIONS = {"steps_per_call": 4}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(executables, "of_deployment", lambda one: Executables(tmp_path / "kept", one))
    jax.clear_caches()  # what is in memory is not kept
    return tmp_path / "kept"


@pytest.fixture
def lowered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the programs that were lowered."""
    names, lower = [], Compiler._lower

    def told(self: Compiler, program: Any, *rest: Any) -> Any:
        names.append(program.__name__)
        return lower(self, program, *rest)

    monkeypatch.setattr(Compiler, "_lower", told)
    return names


def deployment_on(sides: tuple[int, int], **more: Any) -> Deployment:
    return Deployment(MULTIMODAL, mesh_of(*sides), 4, 76, "float32", (8, 16), stored_prefixes=2, **more)


def answers(deployment: Deployment, ahead: Ahead | None) -> list[list[int]]:
    engine = Engine(deployment, random_params(deployment), ahead=ahead, **OPTIONS)
    try:
        engine.warmup()
        picture = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8))
        image = PlacedImage(1, ImageInput(picture, VISION.image_size))
        sampled = dataclasses.replace(NO_STOP, temperature=1.0, seed=3, presence_penalty=0.5)
        return [
            run(engine.submit(prompt(30), (), NO_STOP)),
            run(engine.submit([2, *[SOFT_TOKEN] * VISION.num_soft_tokens, *prompt(9)], [image], NO_STOP)),
            run(engine.submit(prompt(7), (), sampled)),
        ]
    finally:
        engine.close()


def finished(deployment: Deployment) -> Ahead:
    ahead = Ahead(deployment, deployment.abstract_params, **OPTIONS)
    ahead._thread.join()
    return ahead


@pytest.mark.parametrize(
    ("sides", "more"),
    [((1, 1), {}), ((2, 4), {"draft_tokens": 2}), ((1, 1), {"kv_cache_dtype": "int8", "quantization": "int8"})],
)
def test_what_was_kept_answers_as_what_was_compiled(
    folder: Path, lowered: list[str], sides: tuple[int, int], more: dict[str, Any]
) -> None:
    more |= {"quantization": as_quantization(more.get("quantization"))}
    deployment = deployment_on(sides, **more)
    compiled = finished(deployment)
    count = len(lowered)
    assert count > 15
    expected = answers(deployment, compiled)
    lowered.clear()
    assert answers(deployment, finished(deployment)) == expected
    assert lowered == ["init_state"]  # what it makes is known by tracing it alone
    assert len(list(folder.iterdir())) == count - 1


def test_the_state_is_given_up(folder: Path) -> None:
    """As by a program that jax compiled: else two caches would have to have room."""
    deployment = deployment_on((1, 1))
    finished(deployment)
    engine = Engine(deployment, random_params(deployment), ahead=finished(deployment), **OPTIONS)
    try:
        before = jax.tree.leaves(engine._runner._state)
        engine.warmup()
        assert all(x.is_deleted() for x in before)
        assert engine._runner.intact
    finally:
        engine.close()


@pytest.mark.parametrize("content", [b"", b"damaged", pickle.dumps((1, 2, 3)), pickle.dumps(("state", b"no program"))])
def test_what_is_damaged_is_compiled_again(folder: Path, lowered: list[str], content: bytes) -> None:
    deployment = deployment_on((1, 1))
    expected = answers(deployment, finished(deployment))
    files = {path: path.read_bytes() for path in folder.iterdir()}
    for path in files:
        path.write_bytes(content)
    lowered.clear()
    jax.clear_caches()
    assert answers(deployment, finished(deployment)) == expected
    assert len(lowered) == len(files) + 1
    assert all(len(path.read_bytes()) > 1000 for path in files)


def test_what_fails_ahead_keeps_no_request_waiting(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is compiled where it is called."""
    deployment = deployment_on((1, 1))
    expected = answers(deployment, finished(deployment))

    def fail(*_: Any) -> None:
        raise RuntimeError("not for this machine")

    lower = Compiler._lower
    monkeypatch.setattr(Executables, "load", fail)
    monkeypatch.setattr(
        Compiler, "_lower", lambda self, *call: (lower if call[0] is programs.init_state else fail)(self, *call)
    )
    assert answers(deployment, finished(deployment)) == expected


def test_a_folder_that_cannot_be_written_is_none(folder: Path) -> None:
    folder.write_text("a file")
    deployment = deployment_on((1, 1))
    assert len(answers(deployment, finished(deployment))) == 3
    assert folder.read_text() == "a file"


def test_of_another_deployment_other_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = deployment_on((1, 1))

    def path(deployment: Deployment = usual, *, width: int = 4, program: Any = programs.release, **static: Any) -> Path:
        args = (np.zeros((width, 2), np.int32),)
        return Executables(Path("kept"), deployment).path(program, args, {"deployment": deployment, **static})

    first = path()
    assert path() == first
    changed = {
        "config": dataclasses.replace(MULTIMODAL, query_scale=0.4),
        "mesh": mesh_of(2, 4),
        "rows": 8,
        "context": 77,
        "dtype": "bfloat16",
        "chunks": (16,),
        "cache_tokens": 1024,
        "stored_prefixes": 1,
        "draft_tokens": 2,
        "draft": dataclasses.replace(TEXT, query_scale=0.2),
        "quantization": as_quantization("int8"),
        "kv_cache_dtype": "int8",
        "cache": object,
    }
    assert set(changed) == {field.name for field in dataclasses.fields(usual)}
    others = [path(dataclasses.replace(usual, **{name: value})) for name, value in changed.items()]
    others += [path(width=5), path(program=programs.clear), path(fresh=True), path(fresh=False)]
    moved = jax.sharding.Mesh(np.array(jax.devices()[1:2]).reshape(1, 1, 1), usual.mesh.axis_names)
    others.append(path(dataclasses.replace(usual, mesh=moved)))
    for name, said in (("sources", "edited"), ("versions", {"jax": "9.9"}), ("flags", ["--another"])):
        with monkeypatch.context() as now:
            now.setattr(fingerprint, name, lambda said=said: said)
            others.append(path())
    with monkeypatch.context() as now:
        now.setattr(executables, "_CPU", Path(os.devnull))  # another processor
        others.append(path())
    assert len({first, *others}) == 1 + len(others)


def test_jax_settings_and_flags_are_part_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = fingerprint.flags()
    for name, value in (("jax_default_matmul_precision", "float32"), ("jax_threefry_partitionable", False)):
        kept = jax.config.values[name]
        jax.config.update(name, value)
        try:
            assert fingerprint.flags() != before
        finally:
            jax.config.update(name, kept)
    monkeypatch.setenv("XLA_FLAGS", "--xla_a_flag=true")
    assert fingerprint.flags() != before
    (tmp_path / "flags").write_text("--xla_a_flag=true")
    monkeypatch.setenv("XLA_FLAGS", str(tmp_path / "flags"))
    in_file = fingerprint.flags()
    (tmp_path / "flags").write_text("--xla_a_flag=false")
    assert fingerprint.flags() not in (before, in_file)
    monkeypatch.undo()
    for name, value in (("jax_compilation_cache_dir", "elsewhere"), ("jax_persistent_cache_min_entry_size_bytes", 5)):
        kept = jax.config.values[name]
        jax.config.update(name, value)
        try:
            assert fingerprint.flags() == before
        finally:
            jax.config.update(name, kept)


def test_those_that_were_not_used_for_longest_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for age, name in enumerate(("new", "old", "oldest")):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    monkeypatch.setattr(executables, "_MOST", 200)
    Executables(tmp_path, deployment_on((1, 1))).prune()
    assert {path.name for path in tmp_path.iterdir()} == {"new", "old"}


def test_what_cannot_be_deleted_keeps_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder and a link to nothing stay; what a process left half-written goes."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nothing")
    for age, name in enumerate(("new", "old", "oldest")):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    for name, age in (("now.part", 0), ("long ago.part", 2 * executables._ABANDONED)):
        (tmp_path / name).write_bytes(bytes(10))
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    monkeypatch.setattr(executables, "_MOST", 220)
    Executables(tmp_path, deployment_on((1, 1))).prune()
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "link", "new", "old", "now.part"}


def test_a_file_under_the_name_of_another_is_damaged(folder: Path, lowered: list[str]) -> None:
    deployment = deployment_on((1, 1))
    expected = answers(deployment, finished(deployment))
    files = sorted(folder.iterdir())
    contents = [path.read_bytes() for path in files]
    for path, content in zip(files, [*contents[1:], contents[0]], strict=True):
        path.write_bytes(content)
    lowered.clear()
    assert answers(deployment, finished(deployment)) == expected
    assert len(lowered) == len(files) + 1


def test_what_fails_when_it_is_called_is_deleted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And with it the next process is right again."""
    deployment = deployment_on((1, 1))
    finished(deployment)
    store = Executables(folder, deployment)
    (path, *_) = sorted(folder.iterdir())

    def broken(*_: Any, **__: Any) -> Any:
        def call(*_: Any) -> None:
            raise jax.errors.JaxRuntimeError("NOT_FOUND: Function wrapped_broadcast not found")

        return call

    monkeypatch.setattr(executables.serialize_executable, "deserialize_and_load", broken)
    call = store.load(executables.Kept(path, None, b"", (None, None)))
    assert path.exists()
    with pytest.raises(jax.errors.JaxRuntimeError, match="wrapped_broadcast"):
        call()
    assert not path.exists()


def test_a_folder_that_is_only_read_is_used(folder: Path, lowered: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = deployment_on((1, 1))
    expected = answers(deployment, finished(deployment))
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o666 & ~os.umask(os.umask(0o22) or 0o22)}

    def refuse(*_: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "utime", refuse)
    lowered.clear()
    assert answers(deployment, finished(deployment)) == expected
    assert lowered == ["init_state"]


def test_settings_that_change_while_programs_are_lowered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was begun with the old ones is not kept, neither under theirs nor under the new ones'."""
    deployment = deployment_on((1, 1))
    compile_it = Compiler._compile

    def changing(self: Compiler, lowered: Any) -> Any:
        now = [*fingerprint.flags(), "another"]
        monkeypatch.setattr(fingerprint, "flags", lambda: now)
        return compile_it(self, lowered)

    monkeypatch.setattr(Compiler, "_compile", changing)
    finished(deployment)
    assert not folder.exists()


_TWICE = """
import sys, gemma_tpu
from gemma_tpu.engine import ahead

lowered, lower = [], ahead._Compiler._lower
def told(self, program, *rest):
    lowered.append(program.__name__)
    return lower(self, program, *rest)
ahead._Compiler._lower = told
with gemma_tpu.load(sys.argv[1], max_context=1024, max_rows=1, compile_ahead=True, progress=False) as model:
    model.warmup()
    print(len(lowered), model.generate("What is this?", max_new_tokens=8, temperature=0.0).text)
"""


def test_the_next_process_finds_them(tmp_path: Path) -> None:
    """In JAX's folder, if JAX has one. XLA for CPUs writes what JAX had from there without its parts."""
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "XLA_FLAGS": ""}
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

    def run_it(**more: str) -> tuple[int, str]:
        command = [sys.executable, "-c", _TWICE, "checkpoints/gemma3-demo"]
        done = subprocess.run(command, env=env | more, check=True, capture_output=True, text=True, timeout=300)
        lowered, _, text = done.stdout.partition(" ")
        return int(lowered), text

    whole, text = run_it()
    assert whole > 15
    kept = set((tmp_path / "gemma_tpu").iterdir())
    assert len(kept) == whole - 1
    assert run_it() == (1, text)
    assert run_it(JAX_ENABLE_COMPILATION_CACHE="false") == (whole, text)
    for path in kept:
        path.unlink()
    assert run_it() == (whole, text)
    assert not list((tmp_path / "gemma_tpu").iterdir())
    assert run_it() == (whole, text)


_LOADS = (
    _TWICE.replace("with gemma_tpu", "for _ in range(int(sys.argv[2])):\n  with gemma_tpu")
    .replace("    model", "      model")
    .replace("    print", "      print")
)


def test_what_jax_brought_into_memory_is_not_kept(tmp_path: Path) -> None:
    """By a jitted call or an earlier load: a program from JAX's cache is never written again."""
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "XLA_FLAGS": ""}
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

    def run_it(loads: int, ahead: bool = True) -> list[str]:
        code = (
            _LOADS
            if ahead
            else _LOADS.replace("compile_ahead=True", "compile_ahead=False").replace("model.warmup()", "pass")
        )
        command = [sys.executable, "-c", code, "checkpoints/gemma3-demo", str(loads)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return [line.partition(" ")[2] for line in done.stdout.splitlines()]

    (text,) = run_it(1, ahead=False)  # JAX's cache has all, this one nothing
    assert not (tmp_path / "gemma_tpu").exists()
    assert run_it(3) == [text] * 3
    assert run_it(2) == [text] * 2
    assert run_it(1) == [text]
