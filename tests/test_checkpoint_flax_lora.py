"""LoRA of gemma and of qwix, in Orbax, against their einsums."""

from __future__ import annotations

import checkpoint_samples as samples
import numpy as np
import pytest
from test_checkpoint_adapters import failure

from gemma_tpu.checkpoint import (
    CheckpointError,
    merge_adapter,
    open_checkpoint,
    parameters,
)

CONFIG = samples.CONFIGS["grouped-8"]
# What each adapts here: the canonical weight, and the einsum of a and b that gives its delta.
EINSUMS = {
    "layer_1/attn/q_einsum/w": "dr,rnh->ndh",
    "layer_1/attn/kv_einsum/w": "dr,rckh->ckdh",
    "layer_2/attn/attn_vec_einsum/w": "nhr,rd->nhd",
    "layer_5/mlp/gating_einsum": "dr,rcf->cfd",
    "layer_5/mlp/linear": "fr,rd->fd",
    "embedder/mm_input_projection/w": "er,rd->ed",
    f"{parameters.SIGLIP}/Transformer/encoderblock_1/MultiHeadDotProductAttention_0/query/kernel": "er,rnh->enh",
    f"{parameters.SIGLIP}/Transformer/encoderblock_1/MultiHeadDotProductAttention_0/out/kernel": "nhr,re->nhe",
    f"{parameters.SIGLIP}/Transformer/encoderblock_0/MlpBlock_0/Dense_1/kernel": "mr,re->me",
}
RANK = 2


def draw_pairs(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(1)
    pairs = {}
    for name, equation in EINSUMS.items():
        inputs, weight = equation.split("->")
        size = dict(zip(weight, shapes[name], strict=True)) | {"r": RANK}
        a, b = (rng.standard_normal([size[letter] for letter in part]).astype(np.float32) for part in inputs.split(","))
        pairs[name] = a, b
    return pairs


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    sample = samples.sample(CONFIG, np.dtype(np.float32))
    path = samples.save_orbax(tmp_path_factory.mktemp("base") / "base", samples.flat_tree(sample.canonical))
    return sample, path


def in_gemma(name: str) -> str:
    """Where gm.nn.LoRA keeps what adapts a weight (as `init` of gemma 3.3.0 and 4.0.1 names it)."""
    module, leaf = name.rsplit("/", 1)
    if leaf == "kernel":
        return f"{module}/lora"
    return f"{module}/_LoRAEinsum_0/lora" if leaf == "w" else f"{module}/_LoRAEinsum_{leaf}/lora"


def gemma_names(pairs) -> dict[str, np.ndarray]:
    return {
        f"{in_gemma(name)}/{part}": value
        for name, pair in pairs.items()
        for part, value in zip("ab", pair, strict=True)
    }


def assert_merged(arrays, sample, pairs, scale: float) -> None:
    for name, array in arrays.items():
        expected = sample.canonical[name].astype(np.float64)
        if name in pairs:
            delta = np.einsum(EINSUMS[name], *(part.astype(np.float64) for part in pairs[name]))
            assert np.abs(delta).max() > 0.1
            expected = expected + scale * delta
        np.testing.assert_allclose(array.read_all(), expected, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("root", ["", "params/"])
def test_gemmas_lora_alone(root, base, tmp_path):
    sample, path = base
    pairs = draw_pairs({name: array.shape for name, array in sample.canonical.items()})
    tree = samples.nested_tree({root + name: value for name, value in gemma_names(pairs).items()})
    adapter = samples.save_orbax(tmp_path / "adapter", tree)
    merged = merge_adapter(open_checkpoint(path, config=CONFIG), str(adapter))
    assert_merged(merged.arrays, sample, pairs, 1.0)
    with pytest.raises(
        CheckpointError, match="a LoRA adapter, without the model: load a model of 6 layers and width 16"
    ):
        open_checkpoint(adapter)
    text = merge_adapter(open_checkpoint(path, config=CONFIG, text_only=True), str(adapter), text_only=True)
    assert_merged(text.arrays, sample, pairs, 1.0)
    with pytest.raises(CheckpointError, match="adapts what this model does not have: embedder/mm_input_projection/w"):
        merge_adapter(open_checkpoint(path, config=CONFIG, text_only=True), str(adapter))


def test_gemmas_lora_beside_the_weights(base, tmp_path):
    sample, _ = base
    pairs = draw_pairs({name: array.shape for name, array in sample.canonical.items()})
    tree = samples.nested_tree(sample.canonical | gemma_names(pairs))
    checkpoint = open_checkpoint(samples.save_orbax(tmp_path / "both", tree), config=CONFIG)
    assert checkpoint.kind == "orbax-nested"
    assert_merged(checkpoint.arrays, sample, pairs, 1.0)


def tunix_pairs(pairs) -> dict[str, np.ndarray]:
    """As qwix names them in tunix's model: gate and up apart, the vision tower's heads merged."""
    tree = {}
    for name, (a, b) in pairs.items():
        if name.endswith("gating_einsum"):
            layer = name.split("/")[0].removeprefix("layer_")
            for index, part in enumerate(("gate", "up")):
                kernel = f"layers/{layer}/mlp/{part}_proj/kernel"
                tree |= {f"{kernel}_lora_a": a, f"{kernel}_lora_b": b[:, index]}
        else:
            theirs = samples.tunix_name(name)
            merge = theirs.endswith("kernel")
            tree[f"{theirs}_lora_a"] = a.reshape(-1, RANK) if merge else a
            tree[f"{theirs}_lora_b"] = b.reshape(RANK, -1) if merge else b
    return tree


@pytest.mark.parametrize("leaf", ["value", "raw_value"])
def test_qwixs_lora_alone_and_beside_tunixs_weights(leaf, base, tmp_path):
    sample, path = base
    pairs = draw_pairs({name: array.shape for name, array in sample.canonical.items()})
    lora = {f"{name}/{leaf}": value for name, value in tunix_pairs(pairs).items()}
    weights = {f"{name}/{leaf}": value for name, value in samples.tunix_tree(sample).items()}
    alone = tmp_path / "alone"
    samples.save_orbax(alone / "20" / "model_params", samples.nested_tree(lora))
    both = tmp_path / "both"
    samples.save_orbax(both / "30" / "model_params", samples.nested_tree(weights | lora))

    with pytest.raises(
        CheckpointError, match=r'is scaled by an alpha that is not stored: .* with {"lora_alpha": …} beside'
    ):
        merge_adapter(open_checkpoint(path, config=CONFIG), str(alone))
    (alone / "adapter_config.json").write_text('{"lora_alpha": 3}')
    (both / "30" / "adapter_config.json").write_text('{"lora_alpha": 3}')
    merged = merge_adapter(open_checkpoint(path, config=CONFIG), str(alone))
    assert_merged(merged.arrays, sample, pairs, 3 / RANK)
    checkpoint = open_checkpoint(both, config=CONFIG)
    assert checkpoint.kind == "tunix"
    assert_merged(checkpoint.arrays, sample, pairs, 3 / RANK)


def test_half_of_a_fused_weight_may_be_adapted(base, tmp_path):
    sample, path = base
    a, b = np.ones((16, RANK), np.float32), np.full((RANK, 24), 0.5, np.float32)
    tree = samples.nested_tree({"layers/3/mlp/up_proj/kernel_lora_a": a, "layers/3/mlp/up_proj/kernel_lora_b": b})
    samples.save_orbax(tmp_path / "adapter" / "0", tree)
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"lora_alpha": 4}')
    merged = merge_adapter(open_checkpoint(path, config=CONFIG), str(tmp_path / "adapter"))
    before = sample.canonical["layer_3/mlp/gating_einsum"]
    after = merged.arrays["layer_3/mlp/gating_einsum"].read_all()
    np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_allclose(after[1], before[1] + 2, rtol=1e-6)


def test_a_tree_of_lora_has_to_fit(base, tmp_path):
    _, path = base
    zeros = np.zeros((16, RANK), np.float32)
    half = samples.save_orbax(tmp_path / "half", samples.nested_tree({"layer_0/attn/q_einsum/lora/a": zeros}))
    assert failure(half, path, CONFIG) == f"{half}: layer_0/attn/q_einsum/lora/a has no counterpart"
    linear = "layer_0/mlp/_LoRAEinsum_linear/lora"
    more = {f"{linear}/a": zeros, f"{linear}/b": zeros.T, "final_norm/scale": zeros}
    more = samples.save_orbax(tmp_path / "more", samples.nested_tree(more))
    assert failure(more, path, CONFIG) == f"{more}: has weights beside those of an adapter: final_norm/scale"
    model = samples.save_orbax(tmp_path / "model", samples.nested_tree(samples.sample(CONFIG).canonical))
    assert failure(model, path, CONFIG) == f"{model}: no adapter; it holds a whole model: load that by itself"
