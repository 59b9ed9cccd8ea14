"""gemma_tpu's parameters under the names and in the layouts of the two references.

Written with numpy from the table in GEMMA3.md, and apart from `gemma_tpu.checkpoint`, so that the two check each other.
"""

from __future__ import annotations

import numpy as np

Params = dict[str, np.ndarray]


def to_gemma(config: dict, params: Params) -> dict:
    """The nested dict that `gemma.gm`'s Transformer takes as params."""
    N, K, D, H = config["num_heads"], config["num_kv_heads"], config["embed_dim"], config["head_dim"]

    def norm(name: str) -> dict:
        return {"scale": params[f"{name}.scale"]}

    embedder = {"input_embedding": params["embedder.table"]}
    out = {"embedder": embedder, "final_norm": norm("final_norm")}
    for i in range(config["num_layers"]):
        layer = f"layers.{i}."
        qkv = params[f"{layer}attention.qkv"]  # [K, G+2, H, D]
        query = qkv[:, :-2].reshape(N, H, D).transpose(0, 2, 1)  # [N, D, H]
        key, value = (qkv[:, j].transpose(0, 2, 1) for j in (-2, -1))  # [K, D, H]
        attention = {
            "_query_norm": norm(f"{layer}attention.query_norm"),
            "_key_norm": norm(f"{layer}attention.key_norm"),
            "attn_vec_einsum": {"w": params[f"{layer}attention.out"].reshape(N, H, D)},
        }
        if K == N:
            attention["qkv_einsum"] = {"w": np.stack([query, key, value])}
        else:
            attention["q_einsum"] = {"w": query}
            attention["kv_einsum"] = {"w": np.stack([key, value])}
        out[f"layer_{i}"] = {
            "attn": attention,
            "mlp": {"gating_einsum": params[f"{layer}mlp.gate_up"], "linear": params[f"{layer}mlp.down"].T},
            **{
                n: norm(layer + n)
                for n in ("pre_attention_norm", "post_attention_norm", "pre_ffw_norm", "post_ffw_norm")
            },
        }
    if config["vision"]:
        embedder["mm_soft_embedding_norm"] = norm("vision.soft_token_norm")
        embedder["mm_input_projection"] = {"w": params["vision.projection"]}
        out["vision_encoder"] = {"siglip_encoder": _gemma_tower(config["vision"], params)}
    return out


def _gemma_tower(vision: dict, params: Params) -> dict:
    def norm(name: str) -> dict:
        return {leaf: params[f"{name}.{leaf}"] for leaf in ("scale", "bias")}

    blocks = {"encoder_norm": norm("vision.norm")}
    for i in range(vision["depth"]):
        block = f"vision.blocks.{i}."
        qkv, bias = params[f"{block}attention.qkv"], params[f"{block}attention.qkv_bias"]  # [3, n, h, E], [3, n, h]
        attention = {
            name: {"kernel": qkv[j].transpose(2, 0, 1), "bias": bias[j]}
            for j, name in enumerate(("query", "key", "value"))
        }
        attention["out"] = {"kernel": params[f"{block}attention.out"], "bias": params[f"{block}attention.out_bias"]}
        blocks[f"encoderblock_{i}"] = {
            "LayerNorm_0": norm(f"{block}attention_norm"),
            "LayerNorm_1": norm(f"{block}mlp_norm"),
            "MultiHeadDotProductAttention_0": attention,
            "MlpBlock_0": {
                "Dense_0": {"kernel": params[f"{block}mlp.up"], "bias": params[f"{block}mlp.up_bias"]},
                "Dense_1": {"kernel": params[f"{block}mlp.down"], "bias": params[f"{block}mlp.down_bias"]},
            },
        }
    return {
        "embedding": {"kernel": params["vision.patch.kernel"], "bias": params["vision.patch.bias"]},
        "pos_embedding": params["vision.positions"][None],
        "Transformer": blocks,
    }


def to_transformers(config: dict, params: Params) -> Params:
    """The state dict of Gemma3ForConditionalGeneration, or of Gemma3ForCausalLM for a text-only config, in memory."""
    N, K, D, H = config["num_heads"], config["num_kv_heads"], config["embed_dim"], config["head_dim"]
    prefix = "model.language_model." if config["vision"] else "model."
    out = {
        f"{prefix}embed_tokens.weight": params["embedder.table"],
        "lm_head.weight": params["embedder.table"],
        f"{prefix}norm.weight": params["final_norm.scale"],
    }
    for i in range(config["num_layers"]):
        ours, theirs = f"layers.{i}.", f"{prefix}layers.{i}."
        qkv = params[f"{ours}attention.qkv"]
        gate, up = params[f"{ours}mlp.gate_up"]
        out |= {
            f"{theirs}self_attn.q_proj.weight": qkv[:, :-2].reshape(N * H, D),
            f"{theirs}self_attn.k_proj.weight": qkv[:, -2].reshape(K * H, D),
            f"{theirs}self_attn.v_proj.weight": qkv[:, -1].reshape(K * H, D),
            f"{theirs}self_attn.o_proj.weight": params[f"{ours}attention.out"].reshape(N * H, D).T,
            f"{theirs}self_attn.q_norm.weight": params[f"{ours}attention.query_norm.scale"],
            f"{theirs}self_attn.k_norm.weight": params[f"{ours}attention.key_norm.scale"],
            f"{theirs}mlp.gate_proj.weight": gate,
            f"{theirs}mlp.up_proj.weight": up,
            f"{theirs}mlp.down_proj.weight": params[f"{ours}mlp.down"],
            f"{theirs}input_layernorm.weight": params[f"{ours}pre_attention_norm.scale"],
            f"{theirs}post_attention_layernorm.weight": params[f"{ours}post_attention_norm.scale"],
            f"{theirs}pre_feedforward_layernorm.weight": params[f"{ours}pre_ffw_norm.scale"],
            f"{theirs}post_feedforward_layernorm.weight": params[f"{ours}post_ffw_norm.scale"],
        }
    if config["vision"]:
        out |= _transformers_tower(config["vision"], params)
    return out


def _transformers_tower(vision: dict, params: Params) -> Params:
    E = vision["width"]
    tower, projector = "model.vision_tower.", "model.multi_modal_projector."
    out = {
        f"{tower}embeddings.patch_embedding.weight": params["vision.patch.kernel"].transpose(3, 2, 0, 1),
        f"{tower}embeddings.patch_embedding.bias": params["vision.patch.bias"],
        f"{tower}embeddings.position_embedding.weight": params["vision.positions"],
        f"{tower}post_layernorm.weight": params["vision.norm.scale"],
        f"{tower}post_layernorm.bias": params["vision.norm.bias"],
        f"{projector}mm_soft_emb_norm.weight": params["vision.soft_token_norm.scale"],
        f"{projector}mm_input_projection_weight": params["vision.projection"],
    }
    for i in range(vision["depth"]):
        ours, theirs = f"vision.blocks.{i}.", f"{tower}encoder.layers.{i}."
        for j, letter in enumerate("qkv"):
            out[f"{theirs}self_attn.{letter}_proj.weight"] = params[f"{ours}attention.qkv"][j].reshape(E, E)
            out[f"{theirs}self_attn.{letter}_proj.bias"] = params[f"{ours}attention.qkv_bias"][j].reshape(E)
        for j, name in enumerate(("attention_norm", "mlp_norm"), 1):
            out[f"{theirs}layer_norm{j}.weight"] = params[f"{ours}{name}.scale"]
            out[f"{theirs}layer_norm{j}.bias"] = params[f"{ours}{name}.bias"]
        out |= {
            f"{theirs}self_attn.out_proj.weight": params[f"{ours}attention.out"].reshape(E, E).T,
            f"{theirs}self_attn.out_proj.bias": params[f"{ours}attention.out_bias"],
            f"{theirs}mlp.fc1.weight": params[f"{ours}mlp.up"].T,
            f"{theirs}mlp.fc1.bias": params[f"{ours}mlp.up_bias"],
            f"{theirs}mlp.fc2.weight": params[f"{ours}mlp.down"].T,
            f"{theirs}mlp.fc2.bias": params[f"{ours}mlp.down_bias"],
        }
    return out
