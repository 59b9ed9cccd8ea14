"""Script that runs Hugging Face's transformers for `gemma-tpu verify`. Needs only numpy, torch and transformers.

`python reference_transformers.py --check` exits with 3 if they cannot be imported; `… FOLDER` reads request.json and
image.npy from it (see gemma_tpu/verify/reference.py) and writes result.npz.
"""

# pyright: reportMissingImports=false, reportArgumentType=false

import json
import sys
from pathlib import Path

try:
    import numpy as np
    import torch
    import transformers
    from transformers import Gemma3ForCausalLM, Gemma3ForConditionalGeneration
except ImportError as error:
    print(error, file=sys.stderr)
    sys.exit(3)


def load(request):
    """The model in float32. Missing or unexpected parameters are an error, not a warning."""
    cls = Gemma3ForConditionalGeneration if request["config"]["vision"] else Gemma3ForCausalLM
    model, info = cls.from_pretrained(
        request["checkpoint"], dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    problems = {name: sorted(map(str, found)) for name, found in info.items() if found}
    if problems:
        sys.exit(f"transformers could not load {request['checkpoint']}: {problems}")
    model.generation_config = transformers.GenerationConfig()  # plain greedy, not the checkpoint's defaults
    return model.eval()


def add_hooks(model, vision, rows_of):
    """Hooks that capture the selected rows of every module's output under gemma_tpu's names."""
    captured, hooks = {}, []

    def capture(name):
        def hook(module, args, output):
            value = output[0] if isinstance(output, tuple) else output
            captured[name] = value[..., rows_of(name, value.shape[-2]), :].float().numpy()

        return hook

    def add(module, name):
        hooks.append(module.register_forward_hook(capture(name)))

    text = model.model.language_model if vision else model.model
    hooks.append(text.layers[0].register_forward_pre_hook(lambda m, args: capture("embed")(m, None, args[0])))
    for i, layer in enumerate(text.layers):
        add(layer, f"layers.{i}")
    add(text.norm, "final_norm")
    if vision:
        tower = model.model.vision_tower
        add(tower.embeddings, "vision.patch")
        for i, block in enumerate(tower.encoder.layers):
            add(block, f"vision.blocks.{i}")
        add(tower.post_layernorm, "vision.norm")
        add(model.model.multi_modal_projector, "vision.soft_tokens")
    return captured, hooks


def run_question(model, request, question, image):
    vision = request["config"]["vision"]
    vocab = request["config"]["vocab_size"]
    tokens = torch.tensor([question["expanded"]])
    is_soft = tokens < 0
    call = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if question["images"]:
        # (x/255 − 0.5)/0.5, as the released image processor does after resizing.
        pixels = torch.tensor((image.astype(np.float32) / 255 - 0.5) / 0.5).permute(2, 0, 1)
        call["input_ids"] = tokens.masked_fill(is_soft, model.config.image_token_id)
        call["pixel_values"] = torch.stack([pixels] * question["images"])
        call["token_type_ids"] = is_soft.long()

    def rows_of(name, count):
        return request["tower_rows"][str(count)] if name.startswith("vision.") else question["hidden_positions"]

    captured, hooks = add_hooks(model, vision, rows_of)
    logits = model(**call, logits_to_keep=torch.tensor(question["logit_positions"])).logits[0, :, :vocab].numpy()
    for hook in hooks:
        hook.remove()
    out = {name: value if name.startswith("vision.") else value[0] for name, value in captured.items()}
    forbidden = [t for t in (request["start_of_image"], request["end_of_image"]) if t is not None]
    forbidden += range(vocab, model.get_input_embeddings().weight.shape[0])
    tokens = model.generate(
        **call,
        max_new_tokens=question["new_tokens"],
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        suppress_tokens=forbidden or None,
    )
    return out | {"logits": logits, "greedy": tokens[0, len(question["expanded"]) :].numpy().astype(np.int32)}


def main(folder):
    torch.set_grad_enabled(False)
    transformers.utils.logging.disable_progress_bar()
    request = json.loads((folder / "request.json").read_text())
    image = np.load(folder / "image.npy")
    model = load(request)
    outputs = {
        f"{i}/{name}": value
        for i, question in enumerate(request["questions"])
        for name, value in run_question(model, request, question, image).items()
    }
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    np.savez(folder / "result.npz", versions=json.dumps(versions), **outputs)


if __name__ == "__main__" and sys.argv[1] != "--check":
    main(Path(sys.argv[1]))
