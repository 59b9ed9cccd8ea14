"""`gemma-tpu bench serve`: the load that it makes, and what it says of it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
import xla_flags
from server_site import Site, make_model, serve
from small_models import random_params
from test_api import CONFIG

import gemma_tpu
from gemma_tpu.bench_plot import load_svg
from gemma_tpu.bench_serve import Answer, Load, figures
from gemma_tpu.checkpoint import save_params
from gemma_tpu.cli.main import main
from gemma_tpu.server import Settings

SMALL = ["--prompt-tokens", "6", "40", "--max-tokens", "5", "--json"]


@pytest.fixture(scope="module")
def model() -> Iterator[gemma_tpu.Model]:
    with make_model() as model:
        yield model


@pytest.fixture(scope="module")
def site(model: gemma_tpu.Model) -> Iterator[Site]:
    with serve(model) as site:
        yield site


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "tiny"
    tokenizer = (Path(__file__).parent / "goldens" / "text" / "tokenizer.model").read_bytes()
    save_params(random_params(CONFIG), CONFIG, path, tokenizer=tokenizer)
    return path


def counted(site: Site, name: str) -> float:
    (line,) = [line for line in site.http.get("/metrics").text.splitlines() if line.startswith(f"gemma_tpu:{name}")]
    return float(line.split()[-1])


@pytest.mark.parametrize("way", ["stream", "whole"])
def test_a_server_has_seen_what_is_reported(site: Site, way: str, tmp_path: Path, capsys) -> None:
    names = "prompt_tokens_total", "generation_tokens_total", "prefix_cache_hits_total"
    before = [counted(site, name) for name in names]
    asked = [*SMALL, "--in-flight", "1", "6", "--plot", str(tmp_path / "curves.svg"), "--seed", str(len(way))]
    asked += ["--whole"] if way == "whole" else []
    assert main(["bench", "serve", f"{site.url}/v1", *asked]) == 0
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert (report["way"], report["prompt_tokens"]) == (way, [6, 40])
    levels = report["levels"]
    assert [(level["in_flight"], level["requests"], level["errors"]) for level in levels] == [(1, 4, {}), (6, 24, {})]
    assert all(level["completion_tokens"] == 5 * level["requests"] for level in levels)
    found = [sum(level[name] for level in levels) for name in ("prompt_tokens", "completion_tokens", "cached_tokens")]
    assert found == [counted(site, name) - was for name, was in zip(names, before, strict=True)]
    for level in levels:
        assert level["tokens_per_second"] == pytest.approx(level["completion_tokens"] / level["seconds"])
        assert (level["first_token"] is None) == (way == "whole")
    assert len(said.err.splitlines()) == 2  # while it measures
    assert ElementTree.parse(tmp_path / "curves.svg").getroot().tag.endswith("svg")


def test_the_share_of_http_can_be_told(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    for name, value in xla_flags.PROCESS.items():
        monkeypatch.setenv(name, value)
    for way, options in (("stream", ["--mesh", "1,1"]), ("engine", ["--mesh", "1,8", "--in-process"])):
        asked = [*SMALL, "--in-flight", "2", "--requests", "3", "--max-rows", "2", *options]
        assert main(["bench", "serve", str(checkpoint), *asked]) == 0
        report = json.loads(capsys.readouterr().out)
        (level,) = report["levels"]
        assert (report["way"], level["requests"], level["completion_tokens"], level["errors"]) == (way, 3, 15, {})
        assert level["token"][0] > 0


def test_refused_answers_are_errors(model: gemma_tpu.Model, capsys) -> None:
    with serve(model, Settings(max_queue=0)) as site:  # four rows
        assert main(["bench", "serve", site.url, *SMALL, "--in-flight", "9", "--requests", "9"]) == 0
    (level,) = json.loads(capsys.readouterr().out)["levels"]
    assert level["errors"]["queue_full"] >= 1
    assert level["completion_tokens"] == 5 * (9 - sum(level["errors"].values()))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["http://127.0.0.1:9"], "http://127.0.0.1:9: "),
        (["URL", "--prompt-tokens", "6", "510"], "prompt and answer have up to 515 tokens, more than the context"),
        (["URL", "--in-flight", "0"], "--in-flight must be at least 1"),
        (["URL", "--shared-prefix", "6"], "--prompt-tokens must be at least 8"),
        (["URL", "--in-process"], "--in-process takes a checkpoint"),
        (["/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_what_cannot_be_measured(site: Site, arguments: list[str], said: str, capsys) -> None:
    given = [site.url if word == "URL" else word for word in arguments]
    assert main(["bench", "serve", given[0], *SMALL, *given[1:]]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gemma-tpu: ")
    assert said in line


def test_a_server_that_wants_a_key(model: gemma_tpu.Model, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.delenv("GEMMA_TPU_API_KEY", raising=False)
    with serve(model, Settings(api_keys=("secret-1",))) as site:
        asked = ["bench", "serve", site.url, *SMALL, "--in-flight", "1", "--requests", "1"]
        for key, said in ((None, "wants a key"), ("secret-2", "refuses this key")):
            if key:
                monkeypatch.setenv("GEMMA_TPU_API_KEY", key)
            assert main(asked) == 1
            expected = f"gemma-tpu: {site.url}: the server {said}: set $GEMMA_TPU_API_KEY to one of its keys\n"
            assert capsys.readouterr().err == expected
        monkeypatch.setenv("GEMMA_TPU_API_KEY", "secret-1")
        assert main(asked) == 0
    assert json.loads(capsys.readouterr().out)["levels"][0]["errors"] == {}


def test_bench_needs_something_to_measure(capsys) -> None:
    assert main(["bench"]) == 1
    assert "--checkpoint" in capsys.readouterr().err


def test_prompts() -> None:
    load, tokens = Load(prompt_tokens=(8, 512), shared_prefix=4, seed=3), [2, *range(10, 90)]
    prompts = load.prompts(50, tokens)
    assert len(prompts) == 200
    assert prompts == load.prompts(50, tokens) != Load(prompt_tokens=(8, 512), shared_prefix=4).prompts(50, tokens)
    assert {tuple(prompt[:5]) for prompt in prompts} == {tuple(load.prompts(7, tokens)[0][:5])}
    assert all(prompt[0] == 2 and set(prompt[1:]) <= set(tokens[1:]) for prompt in prompts)
    assert len({tuple(prompt[5:8]) for prompt in prompts}) > 190  # by chance one or two more
    lengths = sorted(map(len, prompts))
    assert 8 <= lengths[0] <= lengths[-1] <= 512
    assert math.log2(lengths[100]) == pytest.approx(6, abs=0.1)  # half of them below the geometric mean
    assert sorted(map(len, Load(prompt_tokens=(512, 8), requests=200).prompts(1, tokens))) == lengths


def test_figures() -> None:
    """Worked out by hand: 101 answers of five tokens, the i-th begun after i ms; then a token takes 2 ms."""
    answers = [Answer(10, 5, 3, [i / 1e3, i / 1e3 + 0.006, i / 1e3 + 0.008]) for i in range(101)]
    found = figures([*answers, Answer(10, error="queue_full"), Answer(10, 5, 0, [9.0])], 2.0)
    assert (found["requests"], found["errors"]) == (103, {"queue_full": 1})
    assert (found["requests_per_second"], found["tokens_per_second"]) == (51, 255)
    assert (found["prompt_tokens"], found["cached_tokens"]) == (1020, 303)
    assert found["first_token"] == pytest.approx([0.05, 0.095, 0.099])
    assert found["token"] == pytest.approx([0.002] * 3)
    assert found["pause"] == pytest.approx([0.004, 0.006, 0.006])


def test_the_curves_go_through_the_figures() -> None:
    levels = [{"in_flight": 2**i, "tokens_per_second": 100.0 * i, "first_token": [0.1 * i] * 3} for i in (0, 2, 4)]
    lines = ElementTree.fromstring(load_svg([level | {"token": None} for level in levels], "a < b")).iter()
    curves = [line.get("points") for line in lines if line.tag.endswith("polyline")]
    assert len(curves) == 1 + 3
    points = [tuple(map(float, point.split(","))) for point in curves[0].split()]
    assert len(points) == 3
    (x0, y0), (x1, y1), (x2, y2) = points
    assert (x1 - x0, y1 - y0) == pytest.approx((x2 - x1, y2 - y1), abs=0.1)
    assert x0 < x1
    assert y0 > y1
