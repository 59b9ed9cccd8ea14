"""Makes tests/goldens/adapters: small bases, adapters that peft saved for them, and the weights that follow.

In the environment of requirements-transformers.txt: `python tests/reference/make_adapter_goldens.py`.

`merged/` holds what differs from the base: the weights of `merge_and_unload`, except where an embedding is
adapted. peft then adds to a table that it shares with the output head once for each of the two; taken there is the
adapted layer's weight plus its `get_delta_weight`, which is what the adapted model computes.
"""

from __future__ import annotations

import copy
import shutil
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import Gemma3Config, Gemma3ForCausalLM, Gemma3ForConditionalGeneration, Gemma3TextConfig

GOLDENS = Path(__file__).parents[1] / "goldens" / "adapters"
TEXT = {
    "vocab_size": 96,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": 8,
    "max_position_embeddings": 64,
    "query_pre_attn_scalar": 8,
}
VISION = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
    "vision_use_head": False,
}
PROMPT = [2, 17, 40, 5, 63, 11]


def bases() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    text = Gemma3ForCausalLM(Gemma3TextConfig(**TEXT))
    config = Gemma3Config(
        text_config=TEXT | {"vocab_size": 160},  # 64 rows behind the 96 of the vocabulary
        vision_config=VISION,
        mm_tokens_per_image=4,
        image_token_index=96,
        boi_token_index=94,
        eoi_token_index=95,
    )
    models = {"text": text, "multimodal": Gemma3ForConditionalGeneration(config)}
    for model in models.values():
        for parameter in model.parameters():
            parameter.data = torch.randn_like(parameter) * 0.2
    return models


CASES = {
    "attention": ("text", LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules=["q_proj", "v_proj"])),
    "patterns": (
        "text",
        LoraConfig(
            r=4,
            lora_alpha=6,
            use_rslora=True,
            target_modules="all-linear",
            rank_pattern={"layers.0.self_attn.q_proj": 2, "down_proj": 3},
            alpha_pattern={r"^model\.layers\.1\.mlp\..*": 5, "k_proj": 2},
            modules_to_save=["post_feedforward_layernorm"],
            fan_in_fan_out=True,
        ),
    ),
    "tied-table": ("text", LoraConfig(r=2, lora_alpha=2, target_modules=["embed_tokens"], ensure_weight_tying=True)),
    "tied-module": (
        "text",
        LoraConfig(r=2, target_modules=["o_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    ),
    "untied": ("text", LoraConfig(r=2, target_modules=["o_proj"], modules_to_save=["embed_tokens", "lm_head"])),
    "vision": (
        "multimodal",
        LoraConfig(
            r=2,
            lora_alpha=3,
            target_modules=r".*(q_proj|out_proj|fc1|gate_proj|patch_embedding|position_embedding)",
            modules_to_save=["multi_modal_projector"],
        ),
    ),
    "dora": ("text", LoraConfig(r=2, target_modules=["q_proj"], use_dora=True)),
    "pissa": ("text", LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa")),
}


def main() -> None:
    shutil.rmtree(GOLDENS, ignore_errors=True)
    (GOLDENS / "merged").mkdir(parents=True)
    models = bases()
    for name, model in models.items():
        model.save_pretrained(GOLDENS / f"base-{name}")
        (GOLDENS / f"base-{name}" / "generation_config.json").unlink(missing_ok=True)
    for number, (name, (base, config)) in enumerate(CASES.items()):
        torch.manual_seed(100 + number)
        adapted = get_peft_model(copy.deepcopy(models[base]), config).eval()
        for key, parameter in adapted.named_parameters():
            # Tied copies are trained as one.
            if parameter.requires_grad and "lm_head.lora" not in key:
                parameter.data += torch.randn_like(parameter) * 0.2
        adapted.peft_config["default"].base_model_name_or_path = f"example/base-{base}"
        adapted.save_pretrained(GOLDENS / name)
        (GOLDENS / name / "README.md").unlink()
        if name in ("dora", "pissa"):
            continue
        before = models[base].state_dict()
        logits = adapted(torch.tensor([PROMPT])).logits[0].detach()
        table = adapted.get_input_embeddings()
        tables = {}
        if name == "tied-table":
            tables["model.embed_tokens.weight"] = (table.base_layer.weight + table.get_delta_weight("default")).detach()
        after = adapted.merge_and_unload().state_dict() | tables
        changed = {
            key: value.contiguous().clone()
            for key, value in after.items()
            if (name == "untied" or not key.endswith("lm_head.weight")) and not torch.equal(value, before[key])
        }
        save_file(changed | {"logits": logits}, GOLDENS / "merged" / f"{name}.safetensors", metadata={"format": "pt"})
        print(name, len(changed), sum(value.nbytes for value in changed.values()))


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main()
