"""Script that runs Google's gemma package for `gemma-tpu verify`. Needs only numpy and gemma (3.3 or 4.0).

`python reference_gemma.py --check` exits with 3 if it cannot be imported; `… FOLDER` reads request.json and image.npy
from it (see gemma_tpu/verify/reference.py) and writes result.npz.
"""

# pyright: reportMissingImports=false, reportArgumentType=false

import enum
import importlib.metadata
import json
import sys
from pathlib import Path

try:
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import linen as nn
    from gemma import gm
    from gemma.gm.nn import _config, _modules, _transformer
    from gemma.gm.text import _tokenizer
    from gemma.gm.vision import _token_utils

    try:
        from gemma.gm.nn.vision import _vision as gemma_vision
        from gemma.gm.nn.vision import _vision_utils as vision_utils
    except ModuleNotFoundError:  # gemma 3
        from gemma.multimodal import vision as gemma_vision
        from gemma.multimodal import vision_utils
except Exception as error:  # incompatible versions of gemma's dependencies raise various errors
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    sys.exit(3)

CLASSES = {
    "gemma3-270m": "Gemma3_270M",
    "gemma3-1b": "Gemma3_1B",
    "gemma3-4b": "Gemma3_4B",
    "gemma3-12b": "Gemma3_12B",
    "gemma3-27b": "Gemma3_27B",
}


def set_special_ids(request):
    """Replaces the package's constant ids by those of the checkpoint's vocabulary; returns a tokenizer of ids.

    End tokens become -1, which is never sampled, so that both sides generate the same number of tokens.
    """
    if request["start_of_image"] is None:
        start, end = -2, -3
    else:
        start, end = request["start_of_image"], request["end_of_image"]
    ids = {"PAD": 0, "BOS": 2, "UNK": 3, "START_OF_IMAGE": start, "IMAGE_PLACEHOLDER": start, "END_OF_IMAGE": end}
    ends = dict.fromkeys(("EOS", "END_OF_TURN", "BEGIN_OF_TOOL_RESPONSE"), -1)  # gemma 4 also stops at the last one
    special = enum.IntEnum("SpecialTokens", ids | ends)
    _tokenizer.Gemma3Tokenizer.special_tokens = special
    if len(request["double_newline"]) == 1:
        _token_utils._DOUBLE_NEW_LINE_TOKEN = request["double_newline"][0]

    class IdTokenizer(gm.text.Tokenizer):
        """Encodes "2 17 5" as the ids 2, 17, 5, to pass exact tokens to the sampler."""

        special_tokens = special
        VERSION = 0

        def encode(self, text, *, add_bos=False, add_eos=False):
            return [int(word) for word in text.split()]

        def decode(self, ids):
            return ""

    return IdTokenizer(path="none")


def build_model(request):
    """The package's class for a released size, else a Transformer with the same options."""
    if request["size"] is not None:
        return getattr(gm.nn, CLASSES[request["size"]])(dtype=jnp.float32)
    config = request["config"]
    D, N, H = config["embed_dim"], config["num_heads"], config["head_dim"]
    norms = _config.QueryPreAttentionNormalisation
    scales = [
        (H**-0.5, norms.BY_ONE_OVER_SQRT_HEAD_DIM),
        ((D // N) ** -0.5, norms.BY_ONE_OVER_SQRT_EMBED_DIM_DIV_NUM_HEADS),
    ]
    fitting = [norm for scale, norm in scales if abs(config["query_scale"] / scale - 1) < 1e-9]
    if not fitting:
        sys.exit(f"gemma cannot express query_scale {config['query_scale']}")
    return _transformer.Transformer(
        dtype=jnp.float32,
        config=_config.TransformerConfig(
            num_embed=config["vocab_size"],
            embed_dim=D,
            hidden_dim=config["hidden_dim"],
            num_heads=N,
            num_kv_heads=config["num_kv_heads"],
            head_dim=H,
            final_logit_softcap=None,
            use_post_attn_norm=True,
            use_post_ffw_norm=True,
            use_qk_norm=True,
            query_pre_attn_norm=fitting[0],
            transpose_gating_einsum=True,
            **attention(config["layers"]),
            vision_encoder=config["vision"] and build_tower(config["vision"]),
        ),
    )


def attention(layers):
    """gemma's arguments for the layers: it knows one kind with a window and one without."""
    local, whole = ([layer for layer in layers if (layer["window"] is None) is kind] for kind in (False, True))
    if any(layer != kind[0] for kind in (local, whole) for layer in kind):
        sys.exit("gemma has no way to say that layers differ in more than whether they have a window")
    local, whole = local or whole, whole or local  # what no layer is may be anything
    types = _modules.AttentionType
    return {
        "attention_types": tuple(types.GLOBAL if layer["window"] is None else types.LOCAL_SLIDING for layer in layers),
        "sliding_window_size": local[0]["window"],
        "local_base_frequency": local[0]["rope_base"],
        "local_scale_factor": local[0]["rope_scale"],
        "global_base_frequency": whole[0]["rope_base"],
        "global_scale_factor": whole[0]["rope_scale"],
    }


def build_tower(vision):
    side, p = vision["image_size"], vision["patch_size"]
    return gemma_vision.SigLiPFromPatches(
        siglip_encoder=vision_utils.ViTModel(
            patch_size=(p, p),
            width=vision["width"],
            depth=vision["depth"],
            mlp_dim=vision["mlp_dim"],
            num_heads=vision["num_heads"],
        ),
        siglip_exit=gemma_vision.VisionExit(output_length=vision["num_soft_tokens"]),
        num_mm_tokens_per_image_prepool=(side // p) ** 2,
        num_mm_tokens_per_image=vision["num_soft_tokens"],
        image_height=side,
        image_width=side,
    )


def sow_inputs(next_fun, args, kwargs, context):
    """Captures the input of the first decoder and vision block, which no module outputs."""
    module = context.module
    if context.method_name == "__call__" and module.name in ("layer_0", "encoderblock_0"):
        module.sow("intermediates", "input", args[0])
    return next_fun(*args, **kwargs)


def is_captured(module, method):
    if method == "encode_vision":
        return True
    named = module.name in ("final_norm", "encoder_norm")
    return method == "__call__" and (named or isinstance(module, (_modules.Block, vision_utils.Encoder1DBlock)))


def by_module(captured, config, images):
    """Outputs by gemma_tpu's module names: text [T, D] and vision [I, P, E]."""
    out = {"embed": captured["layer_0"]["input"][0][0], "final_norm": captured["final_norm"]["__call__"][0][0]}
    out |= {f"layers.{i}": captured[f"layer_{i}"]["__call__"][0][1][0] for i in range(len(config["layers"]))}
    if images:
        blocks = captured["vision_encoder"]["siglip_encoder"]["Transformer"]
        out["vision.patch"] = blocks["encoderblock_0"]["input"][0]
        for i in range(config["vision"]["depth"]):
            out[f"vision.blocks.{i}"] = blocks[f"encoderblock_{i}"]["__call__"][0]
        out["vision.norm"] = blocks["encoder_norm"]["__call__"][0]
        out["vision.soft_tokens"] = captured["embedder"]["encode_vision"][0][0]
    return out


def run_question(model, params, tokenizer, request, question, image):
    images = np.stack([image] * question["images"])[None] if question["images"] else None
    with nn.intercept_methods(sow_inputs):
        output, state = model.apply(
            {"params": params},
            jnp.array([question["tokens"]]),
            images=images,
            capture_intermediates=is_captured,
            mutable=["intermediates"],
        )
    out = {"logits": np.asarray(output.logits[0])[question["logit_rows"]]}
    for name, value in by_module(state["intermediates"], request["config"], question["images"]).items():
        in_tower = name.startswith("vision.")
        rows = request["tower_rows"][str(value.shape[-2])] if in_tower else question["hidden_positions"]
        out[name] = np.asarray(value)[..., rows, :]
    del output, state
    forbidden = [t for t in (request["start_of_image"], request["end_of_image"]) if t is not None]
    sampler = gm.text.Sampler(
        model=model,
        params=params,
        tokenizer=tokenizer,
        forbidden_tokens=forbidden,
        cache_length=len(question["expanded"]) + question["new_tokens"] + 8,
        max_out_length=question["new_tokens"],
        pad_length=None,
    )
    prompt = " ".join(map(str, question["tokens"]))
    images = None if images is None else images[0]
    state = sampler.sample(prompt, images=images, max_new_tokens=question["new_tokens"], rng=0, return_state=True).state
    return out | {"greedy": np.asarray(state.predicted_tokens[0]).astype(np.int32)}


def main(folder):
    jax.config.update("jax_default_matmul_precision", "highest")
    request = json.loads((folder / "request.json").read_text())
    image = np.load(folder / "image.npy")
    tokenizer, model = set_special_ids(request), build_model(request)
    params = gm.ckpts.load_params(request["checkpoint"], text_only=request["config"]["vision"] is None)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    outputs = {
        f"{i}/{name}": value
        for i, question in enumerate(request["questions"])
        for name, value in run_question(model, params, tokenizer, request, question, image).items()
    }
    versions = {name: importlib.metadata.version(name) for name in ("gemma", "jax", "flax")}
    np.savez(folder / "result.npz", versions=json.dumps(versions), **outputs)


if __name__ == "__main__" and sys.argv[1] != "--check":
    main(Path(sys.argv[1]))
