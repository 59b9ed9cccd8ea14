"""`gemma-tpu plan` as a user meets it, and the refusal of `load`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("libtpu", reason="the TPU compiler, which exists for Linux on x86-64 alone")

from plan_samples import CONTEXT, DRAFT, SMALL, compile_once, compiled
from small_models import TEXT, mesh_of, random_params

import gemma_tpu
from gemma_tpu.checkpoint import save_params
from gemma_tpu.cli.main import main
from gemma_tpu.config import CONFIGS
from gemma_tpu.deployment import Deployment
from gemma_tpu.plan import compiled as plan_compiled
from gemma_tpu.plan import planner
from gemma_tpu.plan.compiled import PROGRAMS, no_progress

ARGUMENTS = ["--topology", "v5e:2x2", "--context", str(CONTEXT), "--rows", "4"]


@pytest.fixture(autouse=True)
def small(monkeypatch) -> None:
    """gemma3-4b is the small model of the other tests, compiled once."""
    monkeypatch.setitem(CONFIGS, "gemma3-4b", SMALL)
    monkeypatch.setitem(CONFIGS, "gemma3-270m", DRAFT)

    def compile_cached(target, names=PROGRAMS, progress=no_progress):
        sizes = target.where.topology, target.mesh_shape, target.deployment.rows
        assert compiled(*sizes, (), draft_tokens=target.deployment.draft_tokens)[0] == target
        progress("compiling decode")
        return [compile_once(target, name) for name in names]

    monkeypatch.setattr(planner, "compile_cached", compile_cached)


def test_a_plan_as_json(capsys) -> None:
    assert main(["plan", "gemma3-4b", *ARGUMENTS, "--quick", "--json"]) == 0
    said = capsys.readouterr()
    assert said.err == "compiling decode …\n"  # though it is no terminal: it takes minutes
    plan = json.loads(said.out)
    assert plan["fits"] is True
    assert (plan["mesh"]["data"], plan["mesh"]["model"]) == (1, 4)
    memory = plan["memory"]
    parts = sum(size for name, size in memory.items() if name not in ("total", "capacity"))
    assert parts == memory["total"] < memory["capacity"]
    assert {program["name"] for program in plan["programs"]} == {"decode", "prefill", "encode"}
    for prediction in plan["predictions"]:
        assert prediction["bound"] in ("memory", "matrix unit", "vector unit", "interconnect")
        assert 0 < prediction["roofline_seconds"] < 1
        assert 0 < prediction["compiler_seconds"] < 1
    assert set(plan["versions"]) == {"jax", "libtpu"}


def test_a_plan_as_a_table(capsys) -> None:
    assert main(["plan", "gemma3-4b", *ARGUMENTS, "--quick", "--images", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    text = "\n".join(lines)
    for wanted in ("v5e-4", "data 1 × model 4", "fits", "weights, text", "headroom", "predicted time", "a prompt's 2"):
        assert wanted in text
    sizes = {line[:26].strip(): float(line.split()[-2]) for line in lines if line.endswith(" GiB")}
    parts = [size for name, size in sizes.items() if name != "capacity"]
    assert sum(parts) == pytest.approx(sizes["capacity"], abs=0.06)  # each rounded to 0.01
    at = next(i for i, line in enumerate(lines) if line.startswith("predicted time"))
    times = [line for line in lines[at:] if " ms " in line]
    assert any(len(line.split("  ")[1]) > 36 for line in times), "no long name"
    assert {line.rindex(" ms") + 3 for line in times} == {lines[at].index("compiler") + len("compiler")}


def test_what_would_fit_is_estimated_unless_it_is_to_be_compiled(capsys, monkeypatch) -> None:
    _, found = compiled("v5e:2x2", (1, 4), 4)
    asked = []

    def compile_all(wanted, progress):
        asked.extend(target for target, _ in wanted)
        return [[found[name] for name in names] for _, names in wanted]

    monkeypatch.setattr(planner, "compile_all", compile_all)
    answers = {}
    for more in ([], ["--exact"]):
        assert main(["plan", "gemma3-4b", *ARGUMENTS, "--json", *more]) == 0
        would_fit = json.loads(capsys.readouterr().out)["would_fit"]
        assert set(would_fit) == {"largest context, 4 rows", "most rows, 4,096 tokens", "smallest slice of v5e"}
        assert {answer["compiled"] for answer in would_fit.values()} == {bool(more)}
        assert bool(asked) == bool(more)
        answers[bool(more)] = [answer["value"] for answer in would_fit.values()]
    assert answers[False] == answers[True] == [131_072, 256, "v5e-1"]
    for more in ([], ["--exact"]):
        assert main(["plan", "gemma3-4b", *ARGUMENTS, *more]) == 0
        said = capsys.readouterr()
        assert ("131,072 (estimated)" in said.out, "--exact" in said.out) == (not more, not more)
        assert ("looking for what would fit" in said.err) == bool(more)


def test_nothing_is_looked_for_where_that_is_not_asked(capsys) -> None:
    for more in ([*ARGUMENTS, "--quick"], ["--chips", "v5e-4", *ARGUMENTS[2:]]):
        assert main(["plan", "gemma3-4b", "--json", *more]) == 0
        plan = json.loads(capsys.readouterr().out)
        assert (plan[0] if "--chips" in more else plan)["would_fit"] == {}


def test_an_int8_cache_is_counted(capsys, monkeypatch) -> None:
    _, found = compiled("v5e:2x2", (1, 4), 4)
    monkeypatch.setattr(planner, "compile_cached", lambda *_, **__: list(found.values()))
    memory = []
    for more in ([], ["--kv-cache-dtype", "int8"]):
        assert main(["plan", "gemma3-4b", *ARGUMENTS, "--quick", "--json", *more]) == 0
        plan = json.loads(capsys.readouterr().out)
        memory.append(plan["memory"])
        assert plan["kv_cache_dtype"] == ("int8" if more else "auto")
    head_dim = CONFIGS["gemma3-4b"].head_dim
    for name in ("global_cache", "local_cache"):
        assert memory[1][name] / memory[0][name] == (head_dim + 4) / (2 * head_dim)
    assert memory[1]["weights"] == memory[0]["weights"]


def test_stored_prefixes_are_counted(capsys, monkeypatch) -> None:
    programs = list(compiled("v5e:2x2", (1, 4), 4)[1].values())
    monkeypatch.setattr(planner, "compile_cached", lambda target, progress: programs)
    plans = []
    for count in (0, 3):
        assert main(["plan", "gemma3-4b", *ARGUMENTS, "--quick", "--json", "--stored-prefixes", str(count)]) == 0
        plans.append(json.loads(capsys.readouterr().out))
    keys_and_values = 2 * SMALL.num_kv_heads * 512 * SMALL.head_dim * 2  # of the one layer with a window, in bytes
    assert plans[1]["memory"]["local_cache"] - plans[0]["memory"]["local_cache"] == 3 * keys_and_values / 4
    assert [plan["stored_prefixes"] for plan in plans] == [0, 3]


def test_a_draft_model_is_counted_and_its_step_compared_with_one_of_one_token(capsys) -> None:
    arguments = ["--topology", "v5e:1x1", *ARGUMENTS[2:]]
    guesses = ["--draft", "gemma3-270m", "--draft-tokens", "4"]
    assert main(["plan", "gemma3-4b", *arguments, "--quick", "--json", *guesses]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["draft"], plan["draft_tokens"]) == ("gemma3-270m", 4)
    draft = compiled("v5e:1x1", (1, 1), 4, ())[0].replace(config=DRAFT).deployment.memory
    ring = draft.local_cache * (512 + 128) // 512  # a register more, for guesses that are wrong
    assert plan["memory"]["draft"] == draft.weights + draft.global_cache + ring
    step, *_, plain = [*plan["predictions"], plan["plain_step"]]
    assert (step["what"], plain["what"]) == ("decode step of 5 tokens, 4 rows", "decode step of 1 token, 4 rows")
    assert plan["step_ratio"] == step["compiler_seconds"] / plain["compiler_seconds"] > 1
    assert main(["plan", "gemma3-4b", *arguments, "--quick", *guesses]) == 0
    text = capsys.readouterr().out
    ratio = (
        f"{step['roofline_seconds'] / plain['roofline_seconds']:.2f} (roofline), {plan['step_ratio']:.2f} (compiler)"
    )
    for wanted in ("draft model", "4 tokens guessed by gemma3-270m", f"5 tokens / one of 1 token: {ratio}"):
        assert wanted in text
    assert main(["plan", "gemma3-4b", *arguments, "--quick", "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert (alone["draft"], alone["draft_tokens"], alone["plain_step"], alone["step_ratio"]) == (None, 0, None, None)
    assert alone["memory"]["draft"] == 0
    assert alone["predictions"][0] == plain | {"what": "decode step, 4 rows"}


def test_guesses_without_a_draft_model_are_those_of_prompt_lookup(capsys, monkeypatch) -> None:
    found, asked = compiled("v5e:2x2", (1, 4), 4)[1], []

    def compile_cached(target, names=PROGRAMS, progress=no_progress):
        asked.append(target.deployment)
        return [found[name] for name in names if target.deployment.config.vision or name != "encode"]

    monkeypatch.setattr(planner, "compile_cached", compile_cached)
    assert main(["plan", "gemma3-4b", *ARGUMENTS, "--quick", "--draft-tokens", "3"]) == 0
    text = capsys.readouterr().out
    assert "3 tokens guessed by prompt lookup" in text
    assert "a step of 4 tokens / one of 1 token" in text
    assert [(one.draft_tokens, one.looks_up) for one in asked] == [(3, True), (0, False)]
    sizes = ["--context", str(CONTEXT), "--rows", "4"]
    assert main(["plan", "gemma3-4b", "--chips", "v5e-4,v5e-4", *sizes, "--draft", "gemma3-270m"]) == 0
    title, head, first, *_ = capsys.readouterr().out.splitlines()
    assert "4 tokens guessed by gemma3-270m" in title
    assert head.endswith("5 tokens / 1 (compiler)")
    assert len(first) == len(head)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gemma3-4b", "--topology", "v9:2x2"], "v9:2x2"),
        (["gemma3-4b", "--topology", "v5e:3x7x9"], "v5e:3x7x9"),
        (["gemma3-1b", *ARGUMENTS, "--images", "2"], "vision tower"),
        (["gemma3-1b", "--topology", "v5e-1", "--context", "40000"], "32768"),
        (["gemma3-1b", "--topology", "v5e-1", "--rows", "0"], "--rows"),
        (["gemma3-1b", "--topology", "v5e-1", "--stored-prefixes", "-1"], "--stored-prefixes must be at least 0"),
        (["gemma3-1b", "--topology", "v5e-1", "--draft", "gemma9-1b"], "gemma9-1b is neither a checkpoint nor one of"),
        (
            ["gemma3-1b", "--topology", "v5e-1", "--draft-tokens", "16"],
            "--draft-tokens must be at least 0 and at most 15, got 16",
        ),
        (
            ["gemma3-4b", *ARGUMENTS, "--draft", "gemma3-270m", "--draft-tokens", "0"],
            "--draft-tokens must be at least 1 and at most 15, got 0",
        ),
        (
            ["gemma3-1b", *ARGUMENTS, "--draft", "gemma3-270m"],
            "draft: its vocabulary has 32,768 tokens, and the model's",
        ),
        (["gemma3-1b", "--chips", "v5e", "--draft", "gemma3-270m"], "draft: its vocabulary has 32,768 tokens"),
        (["gemma9-1b", "--topology", "v5e-1"], "gemma9-1b"),
        (["gemma3-1b", "--topology", ""], "'': the chips known are"),
        (["gemma3-1b", "--chips", ""], "'': the chips known are"),
        (["gemma3-1b", "--chips", "v5e-1,"], "'': the chips known are"),
        (["gemma3-1b", "--chips", "v5e-1,v5e:3x7"], "no topology v5e:3x7"),
        (["gemma3-4b", "--chips", "v5e-1", "--images", "4"], "--images goes with --topology"),
        (["gemma3-4b", "--chips", "v5e-1", "--quick"], "--quick goes with --topology"),
        (["gemma3-4b", "--chips", "v5e-1", "--exact"], "--exact goes with --topology"),
    ],
)
def test_errors_are_one_line_before_anything_is_compiled(
    arguments: list[str], message: str, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(planner, "compile_cached", lambda *_, **__: pytest.fail("compiled"))
    assert main(["plan", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("gemma-tpu: ")
    assert error.count("\n") == 1
    assert message in error


def test_without_libtpu_one_line_says_how_to_get_it(monkeypatch, capsys) -> None:
    monkeypatch.setattr(plan_compiled.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    plan_compiled.topology_devices.cache_clear()
    plan_compiled.mesh_for.cache_clear()
    assert main(["plan", "gemma3-4b", "--topology", "v5e:4x4"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "pip install libtpu" in error


def test_load_refuses_what_does_not_fit_before_it_reads_a_weight(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "checkpoint"
    save_params(random_params(TEXT), TEXT, path)
    memory = Deployment(TEXT, mesh_of(1, 8), rows=8, context=512, dtype="float32").memory
    monkeypatch.setattr("gemma_tpu.loading.device_capacity", lambda mesh: memory.resident - 1)
    monkeypatch.setattr("gemma_tpu.loading.load_params", lambda *_, **__: pytest.fail("a weight was read"))
    with pytest.raises(ValueError, match=r"(?s)512 tokens × 8 rows.*cache, global layers.*MISSING.*max_context"):
        gemma_tpu.load(path, dtype="float32", max_context=512, max_rows=8)


def test_what_fits_exactly_is_not_refused() -> None:
    deployment = Deployment(TEXT, mesh_of(1, 8), rows=8, context=512, dtype="float32")
    deployment.require_room(deployment.memory.resident)
    deployment.require_room(None)


def test_a_checkpoint_in_a_process_of_its_own(tmp_path: Path) -> None:
    """Nothing but the answer and what is compiled is printed: libtpu itself would log a dozen lines."""
    path = tmp_path / "checkpoint"
    save_params(random_params(TEXT), TEXT, path)
    command = [sys.executable, "-m", "gemma_tpu", "plan", str(path), "--topology", "v5e-1", "--quick"]
    done = subprocess.run([*command, "--rows", "1", "--context", "64"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    said = sorted(line.split(",")[0] for line in done.stderr.splitlines())  # the two are compiled at once
    assert said == ["compiling decode", "compiling prefill"]
    assert "fits" in done.stdout
