"""Random small checkpoints, made with plain NumPy from the tables of Google's and Hugging Face's layouts.

Nothing here uses the package's own tables: each parameter is drawn once and written down three times.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import safetensors.numpy

from gemma_tpu.config import GemmaConfig, VisionConfig, gemma3_layers

BF16 = np.dtype(ml_dtypes.bfloat16)
VISION = VisionConfig(width=8, depth=2, mlp_dim=12, num_heads=2, image_size=28, patch_size=7, num_soft_tokens=4)


def small(layers: int = 8, heads: int = 4, kv_heads: int = 2, vision: VisionConfig | None = VISION) -> GemmaConfig:
    return GemmaConfig(
        vocab_size=96,
        embed_dim=16,
        hidden_dim=24,
        layers=gemma3_layers(layers, window=8, rope_scale=8.0 if vision else 1.0),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=6,
        query_scale=10**-0.5,
        max_context=1024,
        vision=vision,
    )


CONFIGS = {
    "grouped-8": small(),
    "one-kv-14": small(layers=14, kv_heads=1, vision=None),
    "ungrouped-7": small(layers=7, kv_heads=4),
}

# The models of goldens/maxtext.npz: 13 layers are two blocks of six and one over.
_TINY = VisionConfig(width=4, depth=1, mlp_dim=6, num_heads=2, image_size=28, patch_size=7, num_soft_tokens=4)
MAXTEXT = {
    case: dataclasses.replace(
        small(layers=layers, heads=2, kv_heads=kv_heads, vision=_TINY), vocab_size=8, embed_dim=6, hidden_dim=10
    )
    for case, layers, kv_heads in (("scanned", 13, 1), ("unscanned", 3, 2))
}


@dataclasses.dataclass
class Sample:
    """One model three times: Google's nested names, the released Hugging Face names, and this package's."""

    config: GemmaConfig
    canonical: dict[str, np.ndarray]
    hf: dict[str, np.ndarray]
    ours: dict[str, np.ndarray]


def sample(config: GemmaConfig, dtype: np.dtype = BF16, seed: int = 0, std: float = 1.0) -> Sample:
    c, rng = config, np.random.default_rng(seed)
    d, f, h, n, k = c.embed_dim, c.hidden_dim, c.head_dim, c.num_heads, c.num_kv_heads
    g = n // k
    canonical: dict[str, np.ndarray] = {}
    hf: dict[str, np.ndarray] = {}
    ours: dict[str, np.ndarray] = {}

    # A pool of prime length, read from a random place on: no row of a table as large as a real one equals another, and
    # billions of values take no longer than to copy them.
    pool = (rng.standard_normal(1_000_003) * std).astype(dtype)

    def draw(*shape: int) -> np.ndarray:
        return np.resize(np.roll(pool, rng.integers(pool.size)), shape)

    def same(gm_name: str, hf_name: str, our_name: str, *shape: int) -> None:
        canonical[gm_name] = hf[hf_name] = ours[our_name] = draw(*shape)

    text = "language_model.model." if c.vision else "model."
    table = draw(c.vocab_size, d)
    canonical["embedder/input_embedding"] = ours["embedder.table"] = table
    extra = np.full((64, d), 7, dtype) if c.vision else np.zeros((0, d), dtype)
    hf[f"{text}embed_tokens.weight"] = np.concatenate([table, extra])
    same("final_norm/scale", f"{text}norm.weight", "final_norm.scale", d)
    for i in range(c.num_layers):
        gm, hugging, we = f"layer_{i}/", f"{text}layers.{i}.", f"layers.{i}."
        same(f"{gm}pre_attention_norm/scale", f"{hugging}input_layernorm.weight", f"{we}pre_attention_norm.scale", d)
        post = "post_attention_norm"
        same(f"{gm}{post}/scale", f"{hugging}post_attention_layernorm.weight", f"{we}{post}.scale", d)
        same(f"{gm}pre_ffw_norm/scale", f"{hugging}pre_feedforward_layernorm.weight", f"{we}pre_ffw_norm.scale", d)
        same(f"{gm}post_ffw_norm/scale", f"{hugging}post_feedforward_layernorm.weight", f"{we}post_ffw_norm.scale", d)
        for part, letter in (("query", "q"), ("key", "k")):
            norm = f"{we}attention.{part}_norm.scale"
            same(f"{gm}attn/_{part}_norm/scale", f"{hugging}self_attn.{letter}_norm.weight", norm, h)
        q, key, value, out = draw(n, d, h), draw(k, d, h), draw(k, d, h), draw(n, h, d)
        if k == n:
            canonical[f"{gm}attn/qkv_einsum/w"] = np.stack([q, key, value])
        else:
            canonical[f"{gm}attn/q_einsum/w"] = q
            canonical[f"{gm}attn/kv_einsum/w"] = np.stack([key, value])
        canonical[f"{gm}attn/attn_vec_einsum/w"] = out
        for letter, w in (("q", q), ("k", key), ("v", value)):
            hf[f"{hugging}self_attn.{letter}_proj.weight"] = np.concatenate([head.T for head in w])
        hf[f"{hugging}self_attn.o_proj.weight"] = np.concatenate(list(out)).T.copy()
        qkv = np.zeros((k, g + 2, h, d), dtype)
        fused_out = np.zeros((k, g, h, d), dtype)
        for head in range(n):
            qkv[head // g, head % g] = q[head].T
            fused_out[head // g, head % g] = out[head]
        for head in range(k):
            qkv[head, g], qkv[head, g + 1] = key[head].T, value[head].T
        ours[f"{we}attention.qkv"], ours[f"{we}attention.out"] = qkv, fused_out
        gate, up, down = draw(f, d), draw(f, d), draw(f, d)
        canonical[f"{gm}mlp/gating_einsum"] = ours[f"{we}mlp.gate_up"] = np.stack([gate, up])
        canonical[f"{gm}mlp/linear"] = down
        hf[f"{hugging}mlp.gate_proj.weight"], hf[f"{hugging}mlp.up_proj.weight"] = gate, up
        hf[f"{hugging}mlp.down_proj.weight"] = ours[f"{we}mlp.down"] = down.T.copy()
    if c.vision:
        _draw_vision(c.vision, d, draw, same, canonical, hf, ours)
    return Sample(config, canonical, hf, ours)


def _draw_vision(v: VisionConfig, d: int, draw, same, canonical, hf, ours) -> None:
    e, m, n, h, p = v.width, v.mlp_dim, v.num_heads, v.width // v.num_heads, v.patch_size
    gm, hugging = "vision_encoder/siglip_encoder/", "vision_tower.vision_model."
    kernel, positions = draw(p, p, 3, e), draw(v.num_patches, e)
    canonical[f"{gm}embedding/kernel"] = ours["vision.patch.kernel"] = kernel
    hf[f"{hugging}embeddings.patch_embedding.weight"] = kernel.transpose(3, 2, 0, 1).copy()
    same(f"{gm}embedding/bias", f"{hugging}embeddings.patch_embedding.bias", "vision.patch.bias", e)
    canonical[f"{gm}pos_embedding"] = positions[None]
    hf[f"{hugging}embeddings.position_embedding.weight"] = ours["vision.positions"] = positions
    for i in range(v.depth):
        block, layer = f"{gm}Transformer/encoderblock_{i}/", f"{hugging}encoder.layers.{i}."
        we = f"vision.blocks.{i}."
        for number, norm in ((0, "attention_norm"), (1, "mlp_norm")):
            for part, theirs in (("scale", "weight"), ("bias", "bias")):
                theirs = f"{layer}layer_norm{number + 1}.{theirs}"
                same(f"{block}LayerNorm_{number}/{part}", theirs, f"{we}{norm}.{part}", e)
        attn = f"{block}MultiHeadDotProductAttention_0/"
        weights, biases = [], []
        for part in ("query", "key", "value"):
            w, b = draw(e, n, h), draw(n, h)
            canonical[f"{attn}{part}/kernel"], canonical[f"{attn}{part}/bias"] = w, b
            hf[f"{layer}self_attn.{part[0]}_proj.weight"] = w.reshape(e, e).T.copy()
            hf[f"{layer}self_attn.{part[0]}_proj.bias"] = b.reshape(e)
            weights.append(np.stack([np.stack([w[:, head, j] for j in range(h)]) for head in range(n)]))
            biases.append(b)
        ours[f"{we}attention.qkv"], ours[f"{we}attention.qkv_bias"] = np.stack(weights), np.stack(biases)
        out = draw(n, h, e)
        canonical[f"{attn}out/kernel"] = ours[f"{we}attention.out"] = out
        hf[f"{layer}self_attn.out_proj.weight"] = out.reshape(e, e).T.copy()
        same(f"{attn}out/bias", f"{layer}self_attn.out_proj.bias", f"{we}attention.out_bias", e)
        for number, name, shape in ((0, "up", (e, m)), (1, "down", (m, e))):
            w = draw(*shape)
            canonical[f"{block}MlpBlock_0/Dense_{number}/kernel"] = ours[f"{we}mlp.{name}"] = w
            hf[f"{layer}mlp.fc{number + 1}.weight"] = w.T.copy()
            theirs = f"{layer}mlp.fc{number + 1}.bias"
            same(f"{block}MlpBlock_0/Dense_{number}/bias", theirs, f"{we}mlp.{name}_bias", shape[1])
    for part, theirs in (("scale", "weight"), ("bias", "bias")):
        same(f"{gm}Transformer/encoder_norm/{part}", f"{hugging}post_layernorm.{theirs}", f"vision.norm.{part}", e)
    norm = "multi_modal_projector.mm_soft_emb_norm.weight"
    same("embedder/mm_soft_embedding_norm/scale", norm, "vision.soft_token_norm.scale", e)
    projection = "multi_modal_projector.mm_input_projection_weight"
    same("embedder/mm_input_projection/w", projection, "vision.projection", e, d)


def nested_tree(canonical: dict[str, np.ndarray]) -> dict:
    tree: dict = {}
    for name, array in canonical.items():
        *path, leaf = name.split("/")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[leaf] = array
    return tree


def flat_tree(canonical: dict[str, np.ndarray]) -> dict:
    """Google's released layout: one level of joined keys, then the leaf; an extra "w" in the mlp."""
    tree: dict = {}
    for name, array in canonical.items():
        if name.endswith(("/mlp/gating_einsum", "/mlp/linear")):
            module, leaf = name, "w"
        else:
            module, leaf = name.rsplit("/", 1)
        if module.startswith("vision_encoder"):
            module = "SigLiPFromPatches_0" + module[len("vision_encoder") :]
        else:
            module = "transformer/" + module
        tree.setdefault(module, {})[leaf] = array
    return tree


def stacked_tree(canonical: dict[str, np.ndarray]) -> dict:
    """The flat layout with layers 6s + t stacked over s, for each t."""
    tree = flat_tree(canonical)
    layers = 1 + max(int(key.split("/")[1][6:]) for key in tree if key.startswith("transformer/layer_"))
    stacked = {key: leaves for key, leaves in tree.items() if not key.startswith("transformer/layer_")}
    for key, leaves in tree.items():
        for t in range(6):
            prefix = f"transformer/layer_{t}/"
            if key.startswith(prefix):
                rest = key[len(prefix) :]
                of_type = [tree[f"transformer/layer_{i}/{rest}"] for i in range(t, layers, 6)]
                stacked[f"transformer/stacked_layers/attention_type_{t}/{rest}"] = {
                    leaf: np.stack([layer[leaf] for layer in of_type]) for leaf in leaves
                }
    return stacked


def trainer_tree(canonical: dict[str, np.ndarray]) -> dict:
    params = nested_tree(canonical)
    wrong = nested_tree({name: array + np.ones((), array.dtype) for name, array in canonical.items()})
    return {"params": params, "opt_state": [{"mu": wrong, "nu": wrong}], "step": np.int32(3), "collections": {}}


def tunix_name(canonical: str) -> str:
    """Tunix's name of a parameter; of `mlp/gating_einsum`, that of neither half."""
    name = re.sub(r"^layer_(\d+)/", r"layers/\1/", canonical)
    name = re.sub(r"/mlp/linear$", "/mlp/down_proj/kernel", name)
    name = name.replace("/Transformer/encoderblock_", "/transformer/blocks/").replace("/Transformer/", "/transformer/")
    for theirs, ours in (("LayerNorm_0", "ln1"), ("LayerNorm_1", "ln2")):
        name = name.replace(theirs, ours)
    name = name.replace("MlpBlock_0/Dense_0", "mlp/fc1").replace("MlpBlock_0/Dense_1", "mlp/fc2")
    return re.sub(r"MultiHeadDotProductAttention_0/(\w+)/", r"attn/\1_proj/", name)


def tunix_tree(sample: Sample) -> dict[str, np.ndarray]:
    """The state of tunix's model, by names joined by "/"."""
    arrays = {}
    for name, array in sample.canonical.items():
        theirs = tunix_name(name)
        if name.endswith("gating_einsum"):
            for index, part in enumerate(("gate", "up")):
                arrays[theirs.replace("gating_einsum", f"{part}_proj/kernel")] = array[index].T
        elif re.search(r"attn/(query|key|value)_proj/kernel$", theirs):
            arrays[theirs] = array.reshape(array.shape[0], -1)
        elif theirs.endswith("attn/out_proj/kernel"):
            arrays[theirs] = array.reshape(-1, array.shape[-1])
        elif re.search(r"attn/(query|key|value)_proj/bias$", theirs):
            arrays[theirs] = array.reshape(-1)
        else:
            arrays[theirs] = array
    return arrays


def save_orbax(path: Path, tree: dict, **options) -> Path:
    ocp.PyTreeCheckpointer(**options).save(path, tree)
    return path


def save_hf(path: Path, arrays: dict[str, np.ndarray], config: dict | None = None, shards: int = 1) -> Path:
    path.mkdir(parents=True)
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}  # the library writes raw buffers
    names = list(arrays)
    if shards == 1:
        safetensors.numpy.save_file(arrays, path / "model.safetensors", metadata={"format": "pt"})
    else:
        weight_map = {}
        for index in range(shards):
            file = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
            part = names[index::shards]
            safetensors.numpy.save_file({name: arrays[name] for name in part}, path / file)
            weight_map |= dict.fromkeys(part, file)
        (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    return path


def hf_config(config: GemmaConfig) -> dict:
    """A config.json in the old style, what equals a default left out."""
    text = {
        "model_type": "gemma3_text",
        "hidden_size": config.embed_dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "query_pre_attn_scalar": round(config.query_scale**-2),
        "sliding_window": config.layers[0].window,
        "max_position_embeddings": config.max_context,
        "vocab_size": config.vocab_size + (64 if config.vision else 0),
    }
    if config.vision is None:
        return text
    text["rope_scaling"] = {"factor": 8.0, "rope_type": "linear"}
    v = config.vision
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": v.width,
        "intermediate_size": v.mlp_dim,
        "num_hidden_layers": v.depth,
        "num_attention_heads": v.num_heads,
        "image_size": v.image_size,
        "patch_size": v.patch_size,
        "vision_use_head": False,
    }
    return {
        "model_type": "gemma3",
        "text_config": text,
        "vision_config": vision,
        "mm_tokens_per_image": v.num_soft_tokens,
        "image_token_index": config.vocab_size,
    }
