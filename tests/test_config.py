"""The architecture as data: layers, what is refused, and how a config is shown."""

from __future__ import annotations

import dataclasses
import json

import pytest

from gemma_tpu.config import CONFIGS, LayerSpec, as_config, gemma3_layers

LOCAL, WHOLE = LayerSpec(8, 10_000.0), LayerSpec(None, 1_000_000.0, 4.0)


def test_gemma_3_has_five_local_layers_to_a_global_one() -> None:
    layers = gemma3_layers(14, window=8, rope_scale=4.0)
    assert layers == (*[LOCAL] * 5, WHOLE, *[LOCAL] * 5, WHOLE, LOCAL, LOCAL)


@pytest.mark.parametrize(
    ("layers", "pattern"),
    [
        (gemma3_layers(14, window=8, rope_scale=4.0), [(5, LOCAL), (1, WHOLE)]),
        (gemma3_layers(7, window=8, rope_scale=4.0), [(5, LOCAL), (1, WHOLE)]),
        (gemma3_layers(5, window=8), [(1, LOCAL)]),
        ((WHOLE,) * 32, [(1, WHOLE)]),
        ((LOCAL, LOCAL, WHOLE, WHOLE, WHOLE), [(2, LOCAL), (3, WHOLE)]),
    ],
)
def test_a_summary_says_every_layer_shortly(layers: tuple, pattern: list) -> None:
    config = dataclasses.replace(CONFIGS["gemma3-4b"], layers=layers)
    summary = json.loads(json.dumps(config.summary()))
    assert summary["num_layers"] == config.num_layers == len(layers)
    assert summary["layer_pattern"] == [{"count": count, **dataclasses.asdict(layer)} for count, layer in pattern]
    runs = [LayerSpec(**run) for run in summary["layer_pattern"] for _ in range(run.pop("count"))]
    assert tuple((runs * len(layers))[: len(layers)]) == layers
    assert summary["vision"]["width"] == config.vision.width
    assert len(repr(config)) < 900


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"layers": ()}, "GemmaConfig: layers must be a tuple of 1 to 4096 LayerSpecs, got"),
        (
            {"layers": gemma3_layers(2, window=8) * 2049},
            "GemmaConfig: layers must be a tuple of 1 to 4096 LayerSpecs, got",
        ),
        ({"vocab_size": -1}, "GemmaConfig: vocab_size must be at least 1"),
        ({"query_scale": float("nan")}, "GemmaConfig: query_scale must be above 0"),
    ],
)
def test_configs_are_checked(values, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIGS["gemma3-1b"], **values)
    assert as_config("gemma3-1b") is CONFIGS["gemma3-1b"]
    for wrong in ("gemma3-2b", 5, {"num_layers": 3}):
        with pytest.raises(ValueError, match=r"config must be a GemmaConfig or one of gemma3-270m, .*got "):
            as_config(wrong)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 1e4), "LayerSpec: window must be at least 1"),
        ((8, 0), "LayerSpec: rope_base must be above 0"),
        ((None, 1e4, -1.0), "LayerSpec: rope_scale must be above 0"),
    ],
)
def test_layers_are_checked(values: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LayerSpec(*values)
    with pytest.raises(ValueError, match="gemma3_layers: count must be at least 1 and at most 4096"):
        gemma3_layers(10**30, window=8)
