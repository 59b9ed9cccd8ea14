"""What the compiler said is kept for the next plan, and only for one that would compile the same."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import pytest

pytest.importorskip("libtpu", reason="the TPU compiler, which exists for Linux on x86-64 alone")

from plan_samples import CONTEXT, DRAFT, SMALL, compile_once

from gemma_tpu import environment, fingerprint
from gemma_tpu.plan import compilation_cache, report
from gemma_tpu.plan import compiled as plan_compiled
from gemma_tpu.plan.chips import parse_slice
from gemma_tpu.plan.compilation_cache import compile_cached
from gemma_tpu.plan.compiled import Program, Target, deploy
from gemma_tpu.plan.hlo import Collective
from gemma_tpu.plan.planner import make_plan
from gemma_tpu.quantization import as_quantization

SENT = (Collective("all-reduce", 4096, "jit(decode)/while/body/add"),)
SAID = Program("decode", 2.5, 64, 100, 20, 3, 80, 7, 1000, 1200, 900, collectives=SENT, hlo=None)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GEMMA_TPU_CACHE", str(tmp_path))
    return tmp_path / "plans"


@pytest.fixture
def compiled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the programs that were compiled; the compiler says what SAID has, or refuses `prefill`."""
    seen: list[str] = []

    def compile_programs(target: Target, names: list[str], progress: object) -> list[Program]:
        seen.extend(names)
        refused = {"needs": 2**34, "collectives": None, "cycles": 0}
        return [dataclasses.replace(SAID, name=name, **refused if name == "prefill" else {}) for name in names]

    monkeypatch.setattr(compilation_cache, "compile_programs", compile_programs)
    return seen


@pytest.fixture
def target() -> Target:
    return deploy(SMALL, parse_slice("v5e:2x2"), (1, 4), 4, CONTEXT)


def test_a_plan_made_again_compiles_nothing_and_says_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"rows": 4, "context": CONTEXT, "dtype": "bfloat16", "search": False}

    def compile_programs(target: Target, names: list[str], progress: object) -> list[Program]:
        return [compile_once(target, name) for name in names]

    monkeypatch.setattr(compilation_cache, "compile_programs", compile_programs)
    first = make_plan("small", SMALL, parse_slice("v5e:2x2"), **asked)
    monkeypatch.setattr(compilation_cache, "compile_programs", lambda *_: pytest.fail("compiled again"))
    again = make_plan("small", SMALL, parse_slice("v5e:2x2"), **asked)
    assert [program.kept for program in first.programs] == [False] * 3
    assert [program.kept for program in again.programs] == [True] * 3
    assert first.programs[0].collectives
    assert again == dataclasses.replace(
        first, programs=[dataclasses.replace(program, kept=True) for program in first.programs]
    )
    assert report.text(again).replace(" (kept)", "") == report.text(first)
    json.dumps(report.as_json(again))


def test_refusals_are_kept_too(compiled: list[str], target: Target) -> None:
    first = compile_cached(target, ("decode", "prefill"))
    again = compile_cached(target, ("prefill", "decode"))
    assert sorted(compiled) == ["decode", "prefill"]
    assert again == [dataclasses.replace(program, kept=True) for program in reversed(first)]
    assert again[0].needs == 2**34


def test_whatever_the_program_depends_on_is_compiled_for_itself(
    compiled: list[str], target: Target, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of(**changes: object) -> Target:
        return dataclasses.replace(target, deployment=dataclasses.replace(target.deployment, **changes))

    quantization = as_quantization("int8")
    changed = {
        "config": dataclasses.replace(SMALL, hidden_dim=2048),
        "mesh": deploy(SMALL, target.where, (2, 2), 4, CONTEXT).deployment.mesh,
        "rows": 8,
        "context": 2 * CONTEXT,
        "dtype": "float32",
        "chunks": (64,),
        "cache_tokens": 5 * CONTEXT,
        "stored_prefixes": 1,
        "draft_tokens": 2,
        "draft": DRAFT,
        "quantization": quantization,
        "kv_cache_dtype": "int8",
        "cache": object,
    }
    assert set(changed) == {field.name for field in dataclasses.fields(target.deployment)}
    # The same slice in another shape, and another kind of chip.
    places = [deploy(SMALL, parse_slice(name), (1, 4), 4, CONTEXT) for name in ("v6e:2x2", "v5p:2x2x1")]
    every = [target, *(of(**{name: value}) for name, value in changed.items()), *places]
    assert len({compilation_cache._key(one, name) for one in every for name in ("decode", "prefill")}) == 2 * len(every)
    # The vision tower's program sees nothing of rows, context and cache.
    images = {name: compilation_cache._key(of(**{name: value}), "encode") for name, value in changed.items()}
    assert len({images[name] for name in ("config", "mesh", "dtype", "quantization", "rows")}) == 5
    assert set(images.values()) - {images[name] for name in ("config", "mesh", "dtype", "quantization")} == {
        compilation_cache._key(target, "encode")
    }
    assert len({compilation_cache._key(one, "encode") for one in (target, *places)}) == 3

    def changes_the_key() -> bool:
        before = len(compiled)
        compile_cached(target, ["decode"])
        return len(compiled) > before

    assert changes_the_key()
    assert not changes_the_key()
    monkeypatch.setattr(compilation_cache, "versions", lambda: {"jax": "9.9", "libtpu": "9.9"})
    assert changes_the_key()
    monkeypatch.setattr(fingerprint, "sources", lambda: "edited")
    assert changes_the_key()
    library = folder / "libtpu.so"  # another build in the same place
    monkeypatch.setenv("TPU_LIBRARY_PATH", str(library))
    for build in (b"one", b"another"):
        library.write_bytes(build)
        assert changes_the_key()
        assert not changes_the_key()
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_a_flag=true")
    assert changes_the_key()
    jax.config.update("jax_default_matmul_precision", "float32")
    try:
        assert changes_the_key()
    finally:
        jax.config.update("jax_default_matmul_precision", None)
    assert not changes_the_key()


def test_an_edited_source_is_another_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plan").mkdir()
    (tmp_path / "model.py").write_text("x = 1")
    monkeypatch.setattr(fingerprint, "__file__", str(tmp_path / "fingerprint.py"))
    digests = set()
    for change in (
        lambda: None,
        lambda: (tmp_path / "model.py").write_text("x = 2"),
        lambda: (tmp_path / "plan" / "new.py").write_text(""),
        lambda: (tmp_path / "model.py").rename(tmp_path / "models.py"),
    ):
        change()
        digests.add(fingerprint._digest_of_sources.__wrapped__())
    assert len(digests) == 4


def test_of_a_package_that_was_edited_under_a_process_nothing_is_known(
    compiled: list[str], target: Target, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs what it has imported, and the files say something else."""
    assert fingerprint.sources()
    monkeypatch.setattr(fingerprint, "_IMPORTED", Path(fingerprint.__file__).stat().st_ctime - 1)
    assert fingerprint.sources() is None
    for _ in range(2):
        compile_cached(target, ["decode"])
    assert compiled == ["decode", "decode"]
    assert not folder.exists() or not list(folder.iterdir())


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"name": "decode"}', '{"collectives": null, "cycle": 1}'])
def test_a_damaged_answer_is_compiled_again(compiled: list[str], target: Target, folder: Path, content: str) -> None:
    expected = compile_cached(target, ["decode"])
    (file,) = folder.iterdir()
    file.write_text(content)
    assert compile_cached(target, ["decode"]) == expected
    assert len(compiled) == 2
    compile_cached(target, ["decode"])
    assert len(compiled) == 2


def test_what_cannot_be_kept_is_said_and_leaves_nothing(
    compiled: list[str], target: Target, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(environment.os, "replace", full)
        with pytest.warns(RuntimeWarning, match="not kept for the next plan: .*No space left"):
            assert [program.name for program in compile_cached(target, ["decode"])] == ["decode"]
    assert list(folder.iterdir()) == []
    folder.rmdir()
    folder.write_text("a file in its place")
    with pytest.warns(RuntimeWarning, match="set GEMMA_TPU_CACHE to a folder that can be written"):
        compile_cached(target, ["decode"])
    assert len(compiled) == 2


def test_an_error_of_one_program_is_raised_and_the_rest_are_not_begun(
    folder: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def compile_programs(target: Target, names: list[str], progress: object) -> list[Program]:
        seen.extend(names)
        raise RuntimeError("the compiler broke")

    monkeypatch.setattr(compilation_cache, "compile_programs", compile_programs)
    with pytest.raises(RuntimeError, match="the compiler broke"):
        compile_cached(target, ["decode", "prefill", "encode"] * 20)
    assert len(seen) < 60
    assert not folder.exists()


def test_the_program_of_the_vision_tower_is_the_same_for_other_rows_and_contexts() -> None:
    """As traced, to the letter: what is kept of it stands for all of them."""
    targets = [
        deploy(SMALL, parse_slice("v5e:2x2"), (2, 2), rows, context) for rows, context in ((4, 64), (8, CONTEXT))
    ]
    first, second = (plan_compiled._lower_encode(one.deployment)[0].as_text() for one in targets)
    assert first == second
