"""What `bench` makes of the times of requests; that it measures: tests/test_cli.py."""

from __future__ import annotations

import math
from types import SimpleNamespace
from unittest import mock
from xml.etree import ElementTree

import pytest
from small_models import TEXT, make_deployment, mesh_of

from gemma_tpu.bench import Measurement, floor, measure, measure_lengths
from gemma_tpu.bench_plot import speed_svg
from gemma_tpu.model import param_shapes


def request(submitted: float, first: float, finished: float) -> mock.MagicMock:
    made = mock.MagicMock()
    made.clock = SimpleNamespace(submitted=submitted, first=first, finished=finished)
    made.timings.first_token = first - submitted
    return made


def test_decode_is_not_charged_for_prompts_that_are_read_beside_it() -> None:
    """Two rows, of which the second begins when the first has made 2 tokens of its 5."""
    asked = [request(0, 2, 2), request(10, 12, 17), request(10, 15, 19)]
    model = mock.Mock(config=TEXT)
    model.engine.submit.side_effect = asked
    found = {one.what: (one.value, one.unit) for one in measure(model, rows=2, prompt=7, tokens=5, repeats=1)}
    assert found == {
        "7 tokens to first token": (2000, "ms"),
        "decode, 2 rows": (2 * 4 / 4, "tokens/s"),
        "prompts and answers, 2 rows": (pytest.approx(10 / 9), "tokens/s"),
    }
    prompts = [call.args[0] for call in model.engine.submit.call_args_list]
    assert [call.args[2].max_new_tokens for call in model.engine.submit.call_args_list] == [1, 5, 5]
    assert all(len(tokens) == 7 for tokens in prompts)
    assert len(set(map(tuple, prompts))) == 3, "one is found in the cache"


def test_times_after_prompts_of_several_lengths() -> None:
    """The first of a length compiles; the longest leaves room for the answer."""
    asked = [request(0, wait, wait + 4 * each) for wait, each in ((99, 99), (1, 2), (3, 4), (99, 99), (5, 6), (7, 8))]
    model = mock.Mock(config=TEXT)
    model.engine.submit.side_effect = asked
    found = measure_lengths(model, context=70, tokens=5, repeats=2)
    assert [(one.curve, one.at, one.value, one.unit) for one in found] == [
        ("first", 64, 2000, "ms"),
        ("each", 64, 3000, "ms"),
        ("first", 65, 6000, "ms"),
        ("each", 65, 7000, "ms"),
    ]
    assert [len(call.args[0]) for call in model.engine.submit.call_args_list] == [64] * 3 + [65] * 3


@pytest.mark.parametrize("shape", [(1, 1), (1, 8), (2, 4)])
def test_the_floor_is_what_a_device_reads(shape: tuple[int, int]) -> None:
    """Weights, and the keys and values of rows of 20 tokens: 8 of them in the rings of layers with a window."""
    deployment = make_deployment(TEXT, mesh_of(*shape), max_rows=2, max_context=48)
    data, model = shape
    weights = sum(math.prod(x.shape) * 4 for x in param_shapes(TEXT).values() if len(x.shape) > 1)
    norms = sum(math.prod(x.shape) * 4 for x in param_shapes(TEXT).values() if len(x.shape) == 1)  # on each device
    tokens = sum(20 if layer.window is None else layer.window for layer in TEXT.layers)
    cache = 2 * 2 * tokens * TEXT.num_kv_heads * TEXT.head_dim * 4
    found = floor(deployment, 20, rate=1e3) * 1e3
    assert found == pytest.approx(weights / model + norms + cache / data / model)


def test_the_picture_has_each_curve_where_it_is_measured() -> None:
    results = [
        Measurement(curve, value, "", curve, at)
        for curve, value, at in (
            ("measured", 50.0, 1),
            ("floor", 100.0, 1),
            ("measured", 100.0, 8),
            ("floor", 200.0, 8),
            ("first", 10.0, 64),
            ("each", 2.0, 64),
        )
    ]
    svg = ElementTree.fromstring(speed_svg([*results, Measurement("rest", 1, "s")], "4B & more"))
    lines = [line.get("points", "") for line in svg.iter() if line.tag.endswith("polyline")]
    measured, least = ([tuple(map(float, point.split(","))) for point in line.split()] for line in lines[:2])
    assert [x for x, _ in measured] == [x for x, _ in least]
    bottom = 2 * measured[0][1] - least[0][1]  # half of the floor is half as high
    assert bottom - least[1][1] == pytest.approx(2 * (bottom - measured[1][1]), abs=0.3)
    assert len(lines) == 4
