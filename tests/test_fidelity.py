"""Agreement with Google's `gemma` and Hugging Face's transformers, whose outputs tests/reference/ has recorded."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from small_models import config_of, placed, quantized

from checkpoints.demo_model import CHECKPOINT
from gemma_tpu.checkpoint import open_checkpoint
from gemma_tpu.config import CONFIGS, LayerSpec
from gemma_tpu.deployment import Deployment
from gemma_tpu.engine.engine import Engine
from gemma_tpu.engine.forward import encode_images, forward
from gemma_tpu.engine.request import ImageInput
from gemma_tpu.model import Params, param_shapes
from gemma_tpu.options import SamplingParams
from gemma_tpu.sharding import make_mesh

sys.path.insert(0, str(Path(__file__).parent / "reference"))
import mapping
import models

GOLDENS = Path(__file__).parent / "goldens"
SOFT_TOKENS_TOLERANCE = 1e-5
HIDDEN_TOLERANCE = 2e-4
QUANTIZED_TOLERANCE = 1.5  # of int8 weights, one scale for each output channel; these logits have a deviation of 3

LOGITS_CASES = [case.name for case in models.CASES if case.prompts and not case.new_tokens]
GREEDY_CASES = [case.name for case in models.CASES if case.new_tokens]


@pytest.fixture(scope="module")
def goldens() -> dict[str, np.ndarray]:
    with np.load(GOLDENS / "fidelity.npz") as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def about() -> dict:
    return json.loads((GOLDENS / "fidelity.json").read_text())


def params_of(case: models.Case, about: dict) -> dict[str, jax.Array]:
    params = models.weights(case)
    assert models.checksum(params) == pytest.approx(about["cases"][case.name]["weights"], rel=1e-9), (
        "numpy makes other random weights than those of the goldens"
    )
    return {name: jnp.asarray(value) for name, value in params.items()}


def assert_agrees(case: models.Case, key: str, ours: np.ndarray, goldens: dict, tolerance: float) -> None:
    """Compares with every reference the case follows, and says how far off each is."""
    stored = goldens[f"{case.name}/{key}"]
    assert ours.shape == stored.shape
    for reference in case.follow:
        expected = stored if reference == "gemma" else stored + goldens[f"{case.name}/{key}/transformers"]
        error = np.abs(ours - expected).max()
        print(f"{case.name} {key}: max |Δ| {error:.1e} from {reference}")
        assert error <= tolerance, f"{key} differ from {reference}'s by {error}"


def outputs(case: models.Case, params: Params, inputs: models.Inputs) -> dict[str, np.ndarray]:
    """Every module's output, the logits among them, of all tokens of a case."""
    config = config_of(case.config)
    pixels = jnp.asarray(inputs.pixels) if case.vision else None

    def run(params: Params) -> dict[str, jax.Array]:
        captured: dict[str, jax.Array] = {}
        soft = None if pixels is None else encode_images(config, params, pixels)
        forward(
            config,
            params,
            inputs.expanded,
            inputs.expanded_lengths,
            soft_tokens=soft,
            start=inputs.start,
            capture=lambda name, value: captured.update({name: value}),
        )
        return captured if case.layers else {"logits": captured["logits"]}

    return {name: np.asarray(value) for name, value in jax.jit(run)(params).items()}


def assert_logits_agree(
    case: models.Case, inputs: models.Inputs, logits: np.ndarray, goldens: dict, tolerance: float
) -> None:
    kept = np.concatenate([row[at] for row, at in zip(logits, inputs.kept, strict=True)])
    for key, value in models.summary(case, kept).items():
        assert_agrees(case, key, value, goldens, tolerance)


@pytest.mark.parametrize("name", LOGITS_CASES)
def test_logits(name: str, goldens: dict, about: dict) -> None:
    """Over kv heads, windows, padding, far positions, query scales, depths and images: see CASES for what is where."""
    case = models.by_name(name)
    inputs = models.inputs(case)
    captured = outputs(case, params_of(case, about), inputs)
    assert_logits_agree(case, inputs, captured["logits"], goldens, case.tolerance)
    if case.layers:
        names = [f"layers.{i}" for i in range(case.config["num_layers"])]
        assert set(names) < captured.keys()
        for key in names:
            rows = [row[:n] for row, n in zip(captured[key], inputs.expanded_lengths, strict=True)]
            assert_agrees(case, key, np.concatenate(rows)[:, models.CHANNELS], goldens, HIDDEN_TOLERANCE)


@pytest.mark.parametrize("name", ["grouped_ragged", "two_images"])
def test_logits_of_a_quantised_model(name: str, goldens: dict, about: dict) -> None:
    """That what is stored quantised goes through the same code; test_linear.py has what it must equal exactly."""
    case = models.by_name(name)
    inputs = models.inputs(case)
    logits = outputs(case, quantized(params_of(case, about)), inputs)["logits"]
    assert_logits_agree(case, inputs, logits, goldens, QUANTIZED_TOLERANCE)


@pytest.mark.parametrize("name", ["two_images", "tower_27_blocks"])
def test_soft_tokens(name: str, goldens: dict, about: dict) -> None:
    case = models.by_name(name)
    soft = encode_images(config_of(case.config), params_of(case, about), jnp.asarray(models.inputs(case).pixels))
    assert_agrees(case, "soft_tokens", np.asarray(soft), goldens, SOFT_TOKENS_TOLERANCE)


def test_soft_tokens_of_the_real_geometry(goldens: dict, about: dict) -> None:
    """896×896 pixels, 4,096 patches, 256 soft tokens."""
    case = models.by_name("tower_896")
    config, pixels = config_of(case.config), models.inputs(case).pixels
    assert (config.vision.image_size, config.vision.num_patches, config.vision.num_soft_tokens) == (896, 4096, 256)
    soft = np.asarray(encode_images(config, params_of(case, about), jnp.asarray(pixels)))
    assert_agrees(case, "soft_tokens", soft[..., models.CHANNELS], goldens, SOFT_TOKENS_TOLERANCE)


@pytest.mark.parametrize("name", GREEDY_CASES)
def test_greedy_tokens(name: str, goldens: dict, about: dict) -> None:
    """64 tokens through the engine: its own image encoding, chunked prefill, caches and decoding loop."""
    case = models.by_name(name)
    config, inputs = config_of(case.config), models.inputs(case)
    images = [ImageInput(Image.fromarray(image), config.vision.image_size) for image in inputs.images]
    expanded = inputs.expanded[0].tolist()
    mesh = make_mesh(config, (1, 1), jax.devices()[:1])
    engine = Engine(Deployment(config, mesh, rows=1, context=128, dtype=jnp.float32), params_of(case, about))
    try:
        request = engine.submit(
            expanded, placed(expanded, images), SamplingParams(temperature=0.0, max_new_tokens=case.new_tokens)
        )
        tokens = [token for piece in request for token in piece]
    finally:
        engine.close()
    expected = goldens[f"{case.name}/greedy"].tolist()
    assert len(set(expected)) > 20, "a golden that repeats itself shows little"
    assert tokens == expected


def test_goldens_cover_every_case(goldens: dict, about: dict) -> None:
    assert about["cases"].keys() == {case.name for case in models.CASES}
    assert {name.split("/")[0] for name in goldens} == about["cases"].keys()
    assert about["versions"]["gemma"]["gemma"] == "3.3.0"
    assert about["versions"]["transformers"]["transformers"].startswith("5.")


@pytest.mark.parametrize("name", ["grouped_ragged", "two_images", "kv_heads_equal_query_heads"])
def test_checkpoint_tables_agree_with_the_references(name: str) -> None:
    """The name tables of gemma_tpu.checkpoint, against those by which the references were given their weights."""
    from gemma_tpu.checkpoint import hf_names, lazy, names

    case = models.by_name(name)
    config, params = config_of(case.config), models.weights(case)
    canonical = names.canonical_from_params({n: lazy.InMemory(value, n) for n, value in params.items()}, config)
    paths = jax.tree_util.tree_flatten_with_path(mapping.to_gemma(case.config, params))[0]
    gemma = {"/".join(key.key for key in path): value for path, value in paths}
    assert canonical.keys() == gemma.keys()
    for key, value in gemma.items():
        np.testing.assert_array_equal(canonical[key].read_all(), value, err_msg=key)

    stored = hf_names.hf_from_canonical(canonical, config, config.vocab_size)
    in_memory = mapping.to_transformers(case.config, params)
    del in_memory["lm_head.weight"]  # tied, and not stored
    on_disk = {_on_disk(key): value for key, value in in_memory.items()}
    assert stored.keys() == on_disk.keys()
    for key, value in on_disk.items():
        np.testing.assert_array_equal(stored[key].read_all(), value, err_msg=key)


def _on_disk(name: str) -> str:
    """The released multimodal files' name of a parameter that transformers calls `name` in memory."""
    name = name.replace("model.language_model.", "language_model.model.")
    name = name.replace("model.vision_tower.", "vision_tower.vision_model.")
    return name.replace("model.multi_modal_projector.", "multi_modal_projector.")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gemma3-270m", 268_098_176),
        ("gemma3-1b", 999_885_952),
        ("gemma3-4b", 4_299_915_632),
        ("gemma3-12b", 12_187_079_280),
        ("gemma3-27b", 27_432_062_576),
    ],
)
def test_parameter_counts(name: str, parameters: int) -> None:
    """As counted in Google's package (GEMMA3.md)."""
    assert sum(leaf.size for leaf in param_shapes(CONFIGS[name]).values()) == parameters


@pytest.mark.parametrize(
    ("name", "layers", "query_scale", "window", "rope_scale", "last_is_global"),
    [
        ("gemma3-270m", 18, 1 / 16, 512, 1, True),
        ("gemma3-1b", 26, 1 / 16, 512, 1, False),
        ("gemma3-4b", 34, 1 / 16, 1024, 8, False),
        ("gemma3-12b", 48, 1 / 16, 1024, 8, True),
        ("gemma3-27b", 62, 168**-0.5, 1024, 8, False),
    ],
)
def test_real_configs(
    name: str, layers: int, query_scale: float, window: int, rope_scale: int, last_is_global: bool
) -> None:
    """The constants that shapes do not show."""
    config = CONFIGS[name]
    assert config.num_layers == layers
    assert config.query_scale == pytest.approx(query_scale, rel=1e-12)
    local, whole = LayerSpec(window, 10_000, 1), LayerSpec(None, 1_000_000, rope_scale)
    assert all(layer == (local if (i + 1) % 6 else whole) for i, layer in enumerate(config.layers))
    assert (config.layers[-1] == whole) == last_is_global


@pytest.mark.parametrize("name", ["gemma3-1b", "gemma3-27b"])
def test_real_sizes_trace(name: str) -> None:
    """A real size goes through the whole forward pass, with an image where it takes one, on shapes alone."""
    config = CONFIGS[name]
    params = {key: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16) for key, leaf in param_shapes(config).items()}
    num_soft = config.vision.num_soft_tokens if config.vision else 0
    tokens = np.array([[2, *[models.SOFT_TOKEN] * num_soft, 7]])

    def run(params: dict, pixels: jax.Array) -> jax.Array:
        soft = encode_images(config, params, pixels) if config.vision else None
        return forward(config, params, tokens, soft_tokens=soft)

    logits = jax.eval_shape(run, params, jax.ShapeDtypeStruct((1, 896, 896, 3), jnp.float32))
    assert logits.shape == (1, num_soft + 2, 262_144)
    assert logits.dtype == jnp.float32


def test_demo_has_the_real_image_geometry() -> None:
    vision = open_checkpoint(CHECKPOINT).config.vision
    assert vision is not None
    assert (vision.image_size, vision.num_soft_tokens) == (896, 256)
