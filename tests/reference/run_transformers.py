"""Runs the cases of models.py in Hugging Face's transformers: `python run_transformers.py OUT.npz [CASE …]`."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import sys

import mapping
import models
import numpy as np
import torch
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    SiglipVisionConfig,
)
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding

torch.set_num_threads(1)
torch.set_grad_enabled(False)


def build(config: dict, params: models.Params) -> torch.nn.Module:
    """The model in float32 with the given weights, every one of them and no other."""
    vision = config["vision"]
    scale = config["global_rope_scale"]
    full = {"rope_type": "default", "rope_theta": config["global_rope_base"]}
    text = Gemma3TextConfig(
        vocab_size=config["vocab_size"],
        hidden_size=config["embed_dim"],
        intermediate_size=config["hidden_dim"],
        num_hidden_layers=config["num_layers"],
        num_attention_heads=config["num_heads"],
        num_key_value_heads=config["num_kv_heads"],
        head_dim=config["head_dim"],
        query_pre_attn_scalar=round(config["query_scale"] ** -2),
        sliding_window=config["sliding_window"],
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": config["local_rope_base"]},
            "full_attention": full if scale == 1 else full | {"rope_type": "linear", "factor": scale},
        },
        attn_implementation="eager",
        pad_token_id=0,
        eos_token_id=None,
        bos_token_id=models.BOS,
    )
    if vision:
        tower = SiglipVisionConfig(
            hidden_size=vision["width"],
            intermediate_size=vision["mlp_dim"],
            num_hidden_layers=vision["depth"],
            num_attention_heads=vision["num_heads"],
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            vision_use_head=False,
            attn_implementation="eager",
        )
        model = Gemma3ForConditionalGeneration(
            Gemma3Config(
                text_config=text,
                vision_config=tower,
                mm_tokens_per_image=vision["num_soft_tokens"],
                boi_token_index=models.START_OF_IMAGE,
                eoi_token_index=models.END_OF_IMAGE,
                image_token_index=config["vocab_size"],
                attn_implementation="eager",
            )
        )
    else:
        model = Gemma3ForCausalLM(text)
    state = {name: torch.tensor(value) for name, value in mapping.to_transformers(config, params).items()}
    if shapes := {
        name: (v.shape, state[name].shape) for name, v in model.state_dict().items() if v.shape != state[name].shape
    }:
        raise ValueError(f"shapes differ: {shapes}")
    model.load_state_dict(state, strict=True)
    return model.eval()


@contextlib.contextmanager
def float64_rope(wanted: bool):
    """Replaces the angles of the rotary embedding by float64 ones; the rotation itself stays the package's own."""
    original = Gemma3RotaryEmbedding.forward

    def forward(self, x, position_ids, layer_type):
        rope, head_dim = self.config.rope_parameters[layer_type], self.config.head_dim
        angles = models.rope_angles(131_072, head_dim, rope["rope_theta"], rope.get("factor", 1.0))
        angles = torch.tensor(np.concatenate([angles, angles], axis=-1))[position_ids]
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)

    if wanted:
        Gemma3RotaryEmbedding.forward = forward
    yield
    Gemma3RotaryEmbedding.forward = original


def run(case: models.Case) -> dict[str, np.ndarray]:
    inputs, model, out = models.inputs(case), build(case.config, models.weights(case)), {}
    pixels = torch.tensor(inputs.pixels.transpose(0, 3, 1, 2))
    if case.vision:
        out["soft_tokens"] = model.get_image_features(pixels).pooler_output.numpy()
    if not case.prompts:
        return out
    expanded = torch.tensor(inputs.expanded, dtype=torch.long)
    is_soft = expanded == models.SOFT_TOKEN
    length = expanded.shape[1]
    call = {
        "input_ids": expanded.masked_fill(is_soft, case.config["vocab_size"]),
        "attention_mask": (torch.arange(length) < torch.tensor(inputs.expanded_lengths)[:, None]).long(),
    }
    if case.vision:
        call |= {"pixel_values": pixels, "token_type_ids": is_soft.long()}
    if case.new_tokens:
        tokens = model.generate(**call, max_new_tokens=case.new_tokens, do_sample=False)
        return out | {"greedy": tokens[0, length:].numpy().astype(np.int32)}
    hidden = {}
    language_model = model.model.language_model if case.vision else model.model
    for i, layer in enumerate(language_model.layers):
        layer.register_forward_hook(lambda _, __, output, i=i: hidden.update({f"layers.{i}": output.numpy()}))
    positions = torch.tensor(inputs.start, dtype=torch.long)[:, None] + torch.arange(length)
    with float64_rope(case.far):
        logits = model(**call, position_ids=positions).logits.numpy()
    out |= models.summary(case, np.concatenate([row[at] for row, at in zip(logits, inputs.kept, strict=True)]))
    if case.layers:
        for name, value in hidden.items():
            rows = [row[:n] for row, n in zip(value, inputs.expanded_lengths, strict=True)]
            out[name] = np.concatenate(rows)[:, models.CHANNELS]
    return out


def main(path: str, *names: str) -> None:
    packages = ("transformers", "torch", "numpy")
    cases = [case for case in models.CASES if not names or case.name in names]
    arrays = {f"{case.name}/{key}": value for case in cases for key, value in run(case).items()}
    versions = {name: importlib.metadata.version(name) for name in packages}
    np.savez(path, versions=json.dumps(versions), **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
