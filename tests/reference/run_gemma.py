"""Runs the cases of models.py in Google's `gemma` package: `python run_gemma.py OUT.npz [CASE …]`."""

from __future__ import annotations

import contextlib
import enum
import importlib.metadata
import json
import os
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
import mapping
import models
import numpy as np
from gemma import gm
from gemma.gm.math import _positional_embeddings
from gemma.gm.nn import _config, _gemma, _modules, _transformer
from gemma.gm.text import _tokenizer
from gemma.gm.vision import _token_utils

try:
    from gemma.gm.nn.vision import _vision as gemma_vision
    from gemma.gm.nn.vision import _vision_utils as vision_utils
except ModuleNotFoundError:  # where gemma 3 has them
    from gemma.multimodal import vision as gemma_vision
    from gemma.multimodal import vision_utils

jax.config.update("jax_default_matmul_precision", "highest")


class TinySpecialTokens(_tokenizer.SpecialTokens, enum.IntEnum):
    """Ids of the tiny vocabularies. End ids are ones that a case never produces (`greedy` checks it)."""

    PAD, EOS, BOS, UNK = 0, 1, models.BOS, 3
    START_OF_IMAGE, END_OF_IMAGE, END_OF_TURN = models.START_OF_IMAGE, models.END_OF_IMAGE, 8
    IMAGE_PLACEHOLDER, BEGIN_OF_TOOL_RESPONSE = START_OF_IMAGE, END_OF_TURN  # asked for by gemma 4


# The only constants in the package that a small vocabulary cannot do with.
_tokenizer.Gemma3Tokenizer.special_tokens = TinySpecialTokens
_token_utils._DOUBLE_NEW_LINE_TOKEN = models.DOUBLE_NEWLINE


class IdTokenizer(gm.text.Tokenizer):
    """Reads "2 17 5" as the ids 2, 17, 5, so that the sampler gets exactly a case's tokens."""

    special_tokens = TinySpecialTokens
    VERSION = 0

    def encode(self, text, *, add_bos=False, add_eos=False):
        return [int(word) for word in text.split()]

    def decode(self, ids):
        return " ".join(str(int(i)) for i in np.atleast_1d(ids))


def build(config: dict) -> _transformer.Transformer:
    vision = config["vision"]
    D, N, H = config["embed_dim"], config["num_heads"], config["head_dim"]
    norms = _config.QueryPreAttentionNormalisation
    scales = {
        H**-0.5: norms.BY_ONE_OVER_SQRT_HEAD_DIM,
        (D // N) ** -0.5: norms.BY_ONE_OVER_SQRT_EMBED_DIM_DIV_NUM_HEADS,
    }
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
            attention_types=_config.make_attention_layers_types(
                _gemma.GEMMA3_ATTENTION_PATTERN, num_layers=config["num_layers"]
            ),
            query_pre_attn_norm=scales[config["query_scale"]],
            sliding_window_size=config["sliding_window"],
            transpose_gating_einsum=True,
            local_base_frequency=config["local_rope_base"],
            global_base_frequency=config["global_rope_base"],
            global_scale_factor=config["global_rope_scale"],
            vision_encoder=vision and _tower(vision),
        ),
    )


def _tower(vision: dict) -> gemma_vision.SigLiPFromPatches:
    side = vision["image_size"]
    return gemma_vision.SigLiPFromPatches(
        siglip_encoder=vision_utils.ViTModel(
            patch_size=(vision["patch_size"],) * 2,
            width=vision["width"],
            depth=vision["depth"],
            mlp_dim=vision["mlp_dim"],
            num_heads=vision["num_heads"],
        ),
        siglip_exit=gemma_vision.VisionExit(output_length=vision["num_soft_tokens"]),
        num_mm_tokens_per_image_prepool=(side // vision["patch_size"]) ** 2,
        num_mm_tokens_per_image=vision["num_soft_tokens"],
        image_height=side,
        image_width=side,
    )


@contextlib.contextmanager
def float64_rope(wanted: bool):
    """Replaces the angles of `apply_rope`, and nothing else of it, by float64 ones from a table made on the host."""
    original = _positional_embeddings.apply_rope

    def apply_rope(inputs, positions, *, base_frequency, scale_factor=1.0, rope_proportion=1.0):
        angles = models.rope_angles(131_072, inputs.shape[-1], base_frequency, scale_factor)
        cos, sin = (jnp.asarray(f(angles).astype(np.float32))[positions][:, :, None] for f in (np.cos, np.sin))
        first, second = jnp.split(inputs, 2, axis=-1)
        return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    if wanted:
        _positional_embeddings.apply_rope = apply_rope
    yield
    _positional_embeddings.apply_rope = original


def batch_images(inputs: models.Inputs) -> np.ndarray | None:
    """uint8[B, N, S, S, 3]: rows with fewer images are filled up with black ones, which have no place in the tokens."""
    if not any(inputs.images_per_row):
        return None
    rows = np.split(inputs.images, np.cumsum(inputs.images_per_row)[:-1])
    most = max(inputs.images_per_row)
    return np.stack([np.concatenate([row, np.zeros((most - len(row), *row.shape[1:]), np.uint8)]) for row in rows])


def run(case: models.Case) -> dict[str, np.ndarray]:
    inputs, params = models.inputs(case), mapping.to_gemma(case.config, models.weights(case))
    model, out = build(case.config), {}
    variables = {"params": jax.tree.map(jnp.asarray, params)}
    if case.vision:
        soft = model.apply(variables, jnp.asarray(inputs.images)[None], method=model._encode_vision)
        out["soft_tokens"] = np.asarray(soft[0])
    if not case.prompts:
        return out
    if case.new_tokens:
        return out | {"greedy": greedy(case, model, variables["params"], inputs)}
    images = batch_images(inputs)
    most_images = max(inputs.images_per_row)
    num_soft = case.vision["num_soft_tokens"] if case.vision else 0
    length = inputs.tokens.shape[1] + most_images * (num_soft + 3)
    positions = inputs.start[:, None] + np.arange(length)[None]
    with float64_rope(case.far):
        output, intermediates = model.apply(
            variables,
            inputs.tokens,
            images=images,
            positions=jnp.asarray(positions),
            capture_intermediates=lambda module, _: isinstance(module, _modules.Block),
            mutable=["intermediates"],
        )
    logits = np.asarray(output.logits)
    kept = np.concatenate([row[:n] for row, n in zip(logits, inputs.lengths, strict=True)])
    out |= models.summary(case, kept)
    if case.layers:
        for i in range(case.config["num_layers"]):
            hidden = np.asarray(intermediates["intermediates"][f"layer_{i}"]["__call__"][0][1])
            rows = [row[:n] for row, n in zip(hidden, inputs.expanded_lengths, strict=True)]
            out[f"layers.{i}"] = np.concatenate(rows)[:, models.CHANNELS]
    return out


def greedy(case: models.Case, model, params, inputs: models.Inputs) -> np.ndarray:
    """What gemma's own sampler says, with its cache and its decoding loop."""
    sampler = gm.text.Sampler(
        model=model,
        params=params,
        tokenizer=IdTokenizer(path="none"),
        cache_length=256,
        max_out_length=case.new_tokens,
        pad_length=None,
    )
    (row,) = inputs.tokens
    images = batch_images(inputs)
    images = None if images is None else images[0]
    prompt = " ".join(map(str, row))
    state = sampler.sample(prompt, images=images, max_new_tokens=case.new_tokens, rng=0, return_state=True).state
    tokens = np.asarray(state.predicted_tokens[0])
    if np.isin(tokens, [0, TinySpecialTokens.EOS, TinySpecialTokens.END_OF_TURN]).any():
        raise ValueError(f"{case.name}: the sampler stopped early; choose another seed: {tokens}")
    return tokens


def main(path: str, *names: str) -> None:
    packages = ("gemma", "kauldron", "jax", "jaxlib", "flax", "numpy")
    cases = [case for case in models.CASES if not names or case.name in names]
    arrays = {f"{case.name}/{key}": value for case in cases for key, value in run(case).items()}
    versions = {name: importlib.metadata.version(name) for name in packages}
    np.savez(path, versions=json.dumps(versions), **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
