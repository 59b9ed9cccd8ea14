"""`gemma-tpu verify`: what it compares, what it calls a failure, and (where they are installed) the real references."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import checkpoint_samples as samples
import jax
import numpy as np
import packed_samples
import pytest
from jax.sharding import Mesh
from small_models import config_of

from gemma_tpu import api, loading, verify
from gemma_tpu.checkpoint import open_checkpoint, save_params
from gemma_tpu.cli.commands import verify as command
from gemma_tpu.cli.main import main
from gemma_tpu.text import SOFT_TOKEN
from gemma_tpu.verify import reference
from gemma_tpu.verify.inputs import Question, make_questions, spread
from gemma_tpu.verify.ours import Ours
from gemma_tpu.verify.reference import reference_checkpoint
from gemma_tpu.verify.report import compare

sys.path.insert(0, str(Path(__file__).parent / "reference"))
import models

ONE_DEVICE = Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
TOKENIZER = Path(__file__).parent / "goldens" / "text" / "tokenizer.model"
ABOUT = {"against": "transformers", "versions": {"transformers": "5"}, "dtype": "float32", "converted": False}


def write_checkpoint(folder: Path, layout: str, layers: int) -> Path:
    case = models.Case("verify", 50, {"vocab_size": 800, "num_layers": layers, "sliding_window": 24}, models.TOWER)
    config = config_of(case.config, max_context=1024)
    return save_params(models.weights(case), config, folder / layout, layout=layout, tokenizer=TOKENIZER)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("verify"), "orbax-flat", layers=2)


@pytest.fixture
def arguments(checkpoint: Path) -> argparse.Namespace:
    return arguments_for(checkpoint, "transformers")


def arguments_for(checkpoint: Path, against: str, *more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    args = parser.parse_args([str(checkpoint), "--against", against, *more])
    args.mesh = ONE_DEVICE
    return args


# --- the whole command, with this toolkit in the reference's place --------------------------------------------------


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of a reference, the same checkpoint loaded a second time."""

    def run_reference(against, python, path, model, questions, image, folder):
        with Ours(path, dtype="float32", mesh=model.mesh) as other:
            return other.run(questions, image, lambda _: None), {"stand-in": "1"}

    monkeypatch.setattr(verify, "check_installed", lambda against, python: None)
    monkeypatch.setattr(verify, "reference_checkpoint", lambda path, *_: (path, False))
    monkeypatch.setattr(verify, "run_reference", run_reference)


def test_equal_sides_pass(arguments: argparse.Namespace, stand_in: None, capsys: pytest.CaptureFixture) -> None:
    arguments.new_tokens, arguments.json = 4, True
    arguments.prompt = ["The capital of France is", "In the picture <start_of_image> we see"]
    assert command.main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] is True
    assert report["failures"] == []
    assert [p["name"] for p in report["prompts"]] == arguments.prompt
    assert [p["greedy_equal"] for p in report["prompts"]] == [4, 4]
    blocks = [f"vision.blocks.{i}" for i in range(models.TOWER["depth"])]
    text = ["embed", "layers.0", "layers.1", "final_norm", "logits"]
    assert [m["name"] for m in report["modules"]] == [
        "vision.patch",
        *blocks,
        "vision.norm",
        "vision.soft_tokens",
        *text,
    ]
    assert all(m["max_abs"] == 0 and m["rms"] > 0.1 for m in report["modules"])


@pytest.mark.parametrize(("quantize", "against"), [("int8", "gemma"), ("int4", "transformers")])
def test_a_quantised_side_is_compared_with_what_its_integers_stand_for(
    quantize: str, against: str, checkpoint: Path, stand_in: None, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    more = ("--quantize", quantize, "--new-tokens", "4", "--prompt", "The capital of <start_of_image> is")
    assert command.main(arguments_for(checkpoint, against, *more)) == 0
    assert f"{quantize} in float32" in capsys.readouterr().out
    # Not with what was rounded to them.
    monkeypatch.setattr(verify, "dequantized_checkpoint", lambda *_: checkpoint)
    assert command.main(arguments_for(checkpoint, against, *more)) == 1


def test_a_parameter_loaded_wrong_is_found(
    arguments: argparse.Namespace, stand_in: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Our side's gate and up projections of layer 1 change places, as a wrong name table would do."""
    load_params = loading.load_params
    loads = []

    def swapped(*args, **kwargs):
        params = load_params(*args, **kwargs)
        loads.append(1)
        if len(loads) == 1:
            params["layers.1.mlp.gate_up"] = params["layers.1.mlp.gate_up"][::-1]
        return params

    monkeypatch.setattr(loading, "load_params", swapped)
    arguments.new_tokens, arguments.prompt = 4, ["The capital of France is"]
    assert command.main(arguments) == 1
    out = capsys.readouterr().out
    assert "FAILED: 'The capital of France is': max |Δlogit|" in out
    assert "The first module that is off by more than rounding is layers.1." in out
    assert "PASSED" not in out


# --- the verdict ---------------------------------------------------------------------------------------------------


def question(**changes) -> Question:
    return dataclasses.replace(Question("q", (2, 5), (2, 5), (), (0, 1), (0, 1), (0, 1), 3), **changes)


def sides() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Two rows of two logits: the reference says (1/2, 1/2) and (1/4, 3/4), we say (1/4, 3/4) twice."""
    theirs = {"0/logits": np.log([[0.5, 0.5], [0.25, 0.75]]), "0/greedy": np.array([1, 1, 0])}
    ours = {"0/logits": np.log([[0.25, 0.75], [0.25, 0.75]]), "0/greedy": np.array([1, 1, 0])}
    hidden = np.arange(8.0).reshape(2, 4)
    return ours | {"0/layers.0": hidden + 1}, theirs | {"0/layers.0": hidden}


def judge(ours: dict, theirs: dict, tolerance: float = 1.0, margin: float = 0.0) -> verify.Report:
    return compare([question()], ours, theirs, tolerance=tolerance, margin=lambda *_: margin, about=ABOUT)


def test_figures() -> None:
    report = judge(*sides())
    assert report.passed
    (prompt,) = report.prompts
    assert prompt.max_abs == pytest.approx(math.log(2))
    assert prompt.mean_abs == pytest.approx((math.log(2) + math.log(1.5)) / 4)
    assert prompt.kl == pytest.approx((0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 2)
    assert prompt.top1 == 0.5
    assert (prompt.greedy_equal, prompt.greedy_tokens) == (3, 3)
    layer = report.modules[0]
    assert (layer.name, layer.max_abs, layer.mean_abs) == ("layers.0", 1, 1)
    assert layer.rms == pytest.approx(math.sqrt(sum(i * i for i in range(8)) / 8))
    assert "PASSED" in report.table()


def test_logits_over_the_tolerance_fail() -> None:
    report = judge(*sides(), tolerance=0.69)
    assert not report.passed
    assert "0.693 is over the tolerance 0.69" in report.failures[0]


def test_other_greedy_tokens_fail_unless_a_tie() -> None:
    ours, theirs = sides()
    ours["0/greedy"] = np.array([1, 0, 0])
    seen = []

    def margin(question, answer, a, b):
        seen.append((answer, a, b))
        return 2.5

    report = compare([question()], ours, theirs, tolerance=1.0, margin=margin, about=ABOUT)
    assert seen == [([1], 0, 1)]
    assert "greedy token 1 is 0, not 1, by a margin of 2.5" in report.failures[0]
    assert report.prompts[0].greedy_equal == 1
    tie = judge(ours, theirs, margin=-1.9)
    assert tie.passed
    assert tie.prompts[0].greedy_tie
    assert "1/3 (tie)" in tie.table()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_a_number_fails(bad: float) -> None:
    ours, theirs = sides()
    ours["0/logits"][0, 0] = bad
    report = judge(ours, theirs, tolerance=math.inf)
    assert not report.passed
    assert "gemma_tpu gives NaN or infinity in 0/logits" in report.failures[0]


def test_outputs_of_one_side_only_fail() -> None:
    ours, theirs = sides()
    del theirs["0/layers.0"]
    assert "only one side shows 0/layers.0" in judge(ours, theirs).failures[0]
    ours, theirs = sides()
    theirs["0/layers.0"] = theirs["0/layers.0"][:1]
    assert "shapes differ: 0/layers.0 (2, 4) (1, 4)" in judge(ours, theirs).failures[0]


# --- what is asked -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> api.Model:
    return loading.load(checkpoint, mesh=ONE_DEVICE, max_rows=1, progress=False)


def test_questions(model: api.Model) -> None:
    questions, image = make_questions(model, None, None, 5)
    assert image.shape == (56, 56, 3)
    by_name = {q.name: q for q in questions}
    assert len(by_name["past the window"].tokens) == 24 + 64
    assert len(by_name["past the window"].logit_rows) == 64
    shown = by_name["image"]
    assert len(shown.images) == 1
    assert shown.expanded.count(SOFT_TOKEN) == 16
    marker = shown.tokens.index(model.tokenizer.start_of_image)
    around = shown.logit_positions[marker + 1] - shown.logit_positions[marker]
    assert around == 16 + 4  # soft tokens, both markers, "\n\n" on both sides
    for q in questions:
        ordinary = [row for row in q.logit_rows if q.tokens[row] != model.tokenizer.start_of_image]
        offset = q.logit_rows[0]
        assert [q.expanded[q.logit_positions[row - offset]] for row in ordinary] == [q.tokens[row] for row in ordinary]
    without, image = make_questions(model, None, False, 5)
    assert [q.name for q in without] == ["text", "question", "past the window"]
    assert image.size == 0


def test_prompts_given(model: api.Model) -> None:
    (q,), image = make_questions(model, [[2, 40, 41]], None, 5)
    assert (q.tokens, q.expanded, q.logit_positions, image.size) == ((2, 40, 41), (2, 40, 41), (0, 1, 2), 0)
    with pytest.raises(ValueError, match="0 is padding"):
        make_questions(model, [[2, 0, 41]], None, 5)
    with pytest.raises(ValueError, match="images are left out"):
        make_questions(model, ["Look: <start_of_image>"], False, 5)
    with pytest.raises(ValueError, match="no prompt shows the image"):
        make_questions(model, ["Look"], np.zeros((8, 8, 3), np.uint8), 5)


def test_an_image_and_none() -> None:
    given = ["--against", "gemma", "--image", "x.png", "--no-image"]
    with pytest.raises(SystemExit, match="2"):
        main(["verify", "gemma3-demo", *given])


def test_spread() -> None:
    assert spread(5, 10) == (0, 1, 2, 3, 4)
    assert spread(4096, 256)[0] == 0
    assert spread(4096, 256)[-1] == 4095
    assert len(spread(4096, 256)) == 256


# --- errors --------------------------------------------------------------------------------------------------------


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("against", "hint"),
    [
        ("gemma", r"Python 3\.12 or newer pip install 'gemma_tpu\[gemma\]'"),
        ("gemma", r"Python 3\.11 .*tests/reference/requirements-gemma\.txt.* --python"),
        ("transformers", "pip install torch"),
    ],
)
def test_a_reference_that_is_not_installed(against: str, hint: str, checkpoint: Path, tmp_path: Path) -> None:
    python = script(tmp_path / "python", "echo No module named it >&2; exit 3")
    with pytest.raises(ValueError, match=hint) as error:
        verify.verify(checkpoint, against, python=python)
    assert "No module named it" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_reference_whose_requirements_do_not_fit_is_as_good_as_none(tmp_path: Path) -> None:
    """As sentencepiece 0.2.3 beside protobuf 6: neither an ImportError nor a failure of the model."""
    (tmp_path / "gemma.py").write_text("raise RuntimeError('wants another protobuf')")
    script = Path(verify.__file__).with_name("reference_gemma.py")
    done = subprocess.run(
        [sys.executable, str(script), "--check"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == reference.NOT_INSTALLED
    assert done.stderr.strip().endswith("RuntimeError: wants another protobuf")


def test_interpreters_that_do_not_work(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be run"):
        verify.verify(checkpoint, "gemma", python=tmp_path / "none")
    with pytest.raises(RuntimeError, match="gemma failed: out of luck"):
        verify.verify(checkpoint, "gemma", python=script(tmp_path / "python", "echo out of luck >&2; exit 1"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"against": "keras"}, "against must be one of gemma, transformers"),
        ({"dtype": "float16"}, "dtype must be one of"),
        ({"tolerance": -1.0}, "tolerance must be at least 0"),
        ({"tolerance": math.nan}, "tolerance must be at least 0"),
        ({"new_tokens": 0}, "new_tokens must be at least 1"),
    ],
)
def test_arguments_out_of_range(changes: dict, message: str, checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=message):
        verify.verify(checkpoint, **{"against": "gemma", **changes})


# --- the real references -------------------------------------------------------------------------------------------


def interpreter(package: str) -> str:
    """$GEMMA_TPU_VERIFY_GEMMA, $GEMMA_TPU_VERIFY_TRANSFORMERS: interpreters that have them."""
    variable = f"GEMMA_TPU_VERIFY_{package.upper()}"
    if python := os.environ.get(variable):
        return python
    for needed in (package, "torch") if package == "transformers" else (package,):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed here, and ${variable} names no interpreter that has it")
    return sys.executable


@pytest.mark.parametrize("quantize", ["int8", "int4"])
@pytest.mark.parametrize("against", ["gemma", "transformers"])
def test_a_quantised_model_against_the_real_reference(against: str, quantize: str, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, "orbax-flat", layers=7)
    options = {"python": interpreter(against), "mesh": ONE_DEVICE, "new_tokens": 8}
    report = verify.verify(path, against, quantize=quantize, **options)
    assert report.passed
    assert report.converted
    assert max(p.max_abs for p in report.prompts) < 3e-4
    assert [p.greedy_equal for p in report.prompts] == [8] * 4


@pytest.mark.parametrize(
    ("against", "layout", "converted"),
    [
        ("gemma", "orbax-flat", False),
        ("gemma", "safetensors", True),
        ("transformers", "safetensors", False),
        ("transformers", "orbax-flat", True),
    ],
)
def test_against_the_real_reference(
    against: str, layout: str, converted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = interpreter(against)
    path = write_checkpoint(tmp_path, layout, layers=7)
    mesh = ONE_DEVICE
    report = verify.verify(path, against, python=python, mesh=mesh, new_tokens=8)
    print(report.table())
    assert report.passed
    assert report.converted == converted
    assert max(p.max_abs for p in report.prompts) < 3e-4
    assert [p.greedy_equal for p in report.prompts] == [8] * 4
    assert report.first_difference is None

    load_params = loading.load_params
    monkeypatch.setattr(
        loading,
        "load_params",
        lambda *args, **kw: (p := load_params(*args, **kw)) | {"vision.projection": p["vision.projection"][::-1]},
    )
    report = verify.verify(path, against, python=python, mesh=mesh, new_tokens=8)
    assert not report.passed
    assert report.first_difference == "vision.soft_tokens"


def test_what_is_quantised_is_dequantised_for_a_reference(tmp_path: Path) -> None:
    path = packed_samples.save(tmp_path / "c", "ct-int8")
    found, converted = reference_checkpoint(path, "transformers", None, None, tmp_path, lambda _: None)
    assert converted
    assert open_checkpoint(path).quantization
    assert open_checkpoint(found).quantization is None


def test_a_head_that_google_cannot_express(tmp_path: Path) -> None:
    """Hugging Face's takes it, from the files as they are."""
    sample = samples.sample(samples.small(layers=6, vision=None))
    head = {"lm_head.weight": np.ones((96, 16), np.float32)}
    config = samples.hf_config(sample.config) | {"tie_word_embeddings": False}
    path = samples.save_hf(tmp_path / "c", sample.hf | head, config)
    with pytest.raises(ValueError, match="gemma has no output head besides the embedding table"):
        reference_checkpoint(path, "gemma", None, None, tmp_path, lambda _: None)
    assert reference_checkpoint(path, "transformers", None, None, tmp_path, lambda _: None) == (str(path), False)
