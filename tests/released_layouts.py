"""Random weights laid out as Google, Kaggle and Hugging Face release Gemma 3: names, dtypes, files beside them.

Nothing here uses the package's own tables. Where the layouts come from: gemma 4.0.1 `gm/ckpts/_paths.py` and
docs/checkpoints.md (Google, Kaggle), what orbax-checkpoint 0.11.8 of those days writes, kagglehub 1.0 `cache.py`, what
transformers 4.50.3 saves, and lists of the released repositories' files in projects that pin them.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import checkpoint_samples as samples
import numpy as np
import sentencepiece

from gemma_tpu.config import GemmaConfig, VisionConfig, gemma3_layers

SMALL = GemmaConfig(
    vocab_size=2048,  # the demo checkpoint's tokenizer
    embed_dim=64,
    hidden_dim=96,
    layers=gemma3_layers(7, window=32, rope_scale=8.0),  # ends on a local layer, as 4B and 27B do
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    query_scale=16**-0.5,
    max_context=1024,
    vision=VisionConfig(width=32, depth=2, mlp_dim=48, num_heads=2, image_size=56, num_soft_tokens=4),
)
LAYOUTS = ("google", "google-directories", "kaggle", "huggingface")
Arrays = Iterator[tuple[str, np.ndarray]]

# transformers 4.50 leaves out of a config.json what equals these.
_DEFAULTS = {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "max_position_embeddings": 131_072,
}
_SHARD = 5_000_000_000  # bytes
_ROPE_TEXT = {"rope_local_base_freq": 10_000, "rope_scaling": None, "rope_theta": 1_000_000}


def place(layout: str, root: Path, name: str) -> Path:
    """What a user would call the release `name` ("gemma3-4b-it") that `write` has put below `root`."""
    if layout == "huggingface":
        return root / "huggingface" / "google" / name.replace("gemma3", "gemma-3")
    if layout == "kaggle":
        # kagglehub's cache: the version's folder is what `kagglehub.model_download` returns.
        return root / "kagglehub" / "models" / "google" / "gemma-3" / "flax" / name / "1"
    return root / layout / "gemma-data" / "checkpoints" / name


def write(
    layout: str, config: GemmaConfig, root: Path, name: str, tokenizer: bytes, files: Mapping[str, bytes] | None = None
) -> Path:
    """Writes a release, with the same values in every layout; returns its `place`.

    `tokenizer`: a SentencePiece model. `files`: more files for Hugging Face's folder.
    """
    path = place(layout, root, name)
    if layout == "huggingface":
        _write_hugging_face(config, path, tokenizer, files or {})
    elif layout == "kaggle":
        _save_orbax(config, path / name, use_ocdbt=True)
        (path / "tokenizer.model").write_bytes(tokenizer)
        path.with_name("1.complete").touch()
    else:
        _save_orbax(config, path, use_ocdbt=layout == "google")
        tokenizers = path.parents[1] / "tokenizers"
        tokenizers.mkdir()
        (tokenizers / "tokenizer_gemma3.model").write_bytes(tokenizer)
    return path


def _save_orbax(config: GemmaConfig, path: Path, *, use_ocdbt: bool) -> None:
    """The flat tree: text in bfloat16, the tower and what joins it to the text in float32."""
    import jax  # not needed by the process that only starts commands
    import orbax.checkpoint as ocp

    multimodal = ("vision_encoder/", "embedder/mm_")
    canonical = {
        name: jax.numpy.asarray(array.astype(np.float32) if name.startswith(multimodal) else array)
        for name, array in _arrays(config, "canonical")
    }
    path.parent.mkdir(parents=True)
    handler = ocp.StandardCheckpointHandler() if use_ocdbt else ocp.PyTreeCheckpointHandler(use_ocdbt=False)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(path, samples.flat_tree(canonical))


_LAYER = re.compile(r"layer_0/|model\.layers\.0\.")  # of the text


def _arrays(config: GemmaConfig, names: str) -> Arrays:
    """Parameters one layer at a time, under the "canonical" or the "hf" names of `checkpoint_samples.Sample`.

    Of a size at which an answer is neither flat nor all one token.
    """
    std = config.embed_dim**-0.5
    around = getattr(samples.sample(dataclasses.replace(config, layers=config.layers[:1]), std=std), names)
    yield from ((name, array) for name, array in around.items() if not _LAYER.search(name))
    text = "language_model.model." if config.vision else "model."
    alone = dataclasses.replace(config, layers=config.layers[:1], vocab_size=1, vision=None)
    for i in range(config.num_layers):
        for name, array in getattr(samples.sample(alone, seed=1 + i, std=std), names).items():
            if _LAYER.search(name):
                name = name.replace("layer_0/", f"layer_{i}/").replace("model.layers.0.", f"{text}layers.{i}.")
                yield name, array


# Hugging Face.


def _write_hugging_face(config: GemmaConfig, path: Path, tokenizer: bytes, files: Mapping[str, bytes]) -> None:
    path.mkdir(parents=True)
    _write_shards(path, _arrays(config, "hf"))
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
    for name, value in _companions(config, processor).items():
        (path / name).write_text(json.dumps(value, indent=2) + "\n")
    for name, content in {**files, "tokenizer.model": tokenizer}.items():
        (path / name).write_bytes(content)
    if config.vision and "tokenizer_config.json" in files:
        template = json.loads(files["tokenizer_config.json"])["chat_template"]
        (path / "chat_template.json").write_text(json.dumps({"chat_template": template}, indent=2) + "\n")


def _write_shards(path: Path, arrays: Arrays) -> None:
    """safetensors files of at most 5 GB and their index, holding one file's arrays in memory."""
    parts: list[dict[str, np.ndarray]] = [{}]
    names: list[list[str]] = []
    total = 0

    def flush() -> None:
        header, offset = {"__metadata__": {"format": "pt"}}, 0
        for name, array in parts[0].items():
            offsets = [offset, offset := offset + array.nbytes]
            header[name] = {"dtype": "BF16", "shape": list(array.shape), "data_offsets": offsets}
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % 8)
        with open(path / f"{len(names)}.part", "wb") as file:
            file.write(len(encoded).to_bytes(8, "little") + encoded)
            for array in parts[0].values():
                file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        names.append(list(parts[0]))
        parts[0] = {}

    for name, array in arrays:
        if parts[0] and sum(other.nbytes for other in parts[0].values()) + array.nbytes > _SHARD:
            flush()
        parts[0][name] = array
        total += array.nbytes
    flush()
    if len(names) == 1:
        (path / "0.part").rename(path / "model.safetensors")
        return
    weight_map = {}
    for i, held in enumerate(names):
        file = f"model-{i + 1:05d}-of-{len(names):05d}.safetensors"
        (path / f"{i}.part").rename(path / file)
        weight_map |= dict.fromkeys(held, file)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _companions(config: GemmaConfig, processor: sentencepiece.SentencePieceProcessor) -> dict[str, Any]:
    """The JSON files beside the weights, as transformers 4.50 wrote them."""
    version = {"torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0"}
    ends = [processor.eos_id(), processor.PieceToId("<end_of_turn>")]
    ids = {"bos_token_id": processor.bos_id(), "eos_token_id": ends, "pad_token_id": processor.pad_id()}
    hybrid = {"cache_implementation": "hybrid"}
    written = samples.hf_config(config)
    if config.vision is None:
        written |= {"architectures": ["Gemma3ForCausalLM"], **ids, **hybrid, **_ROPE_TEXT, "sliding_window_pattern": 6}
        written |= {"hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "use_cache": True}
        written |= {"attention_bias": False, "attn_logit_softcapping": None, "final_logit_softcapping": None}
    else:
        text = written["text_config"]
        written["text_config"] = {key: value for key, value in text.items() if _DEFAULTS.get(key) != value}
        written |= {"architectures": ["Gemma3ForConditionalGeneration"], "eos_token_id": ends}
        written |= {
            "boi_token_index": processor.PieceToId("<start_of_image>"),
            "eoi_token_index": processor.PieceToId("<end_of_image>"),
        }
    specials = {name: f"<{name.removesuffix('_token')}>" for name in ("bos_token", "pad_token", "unk_token")}
    specials |= {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    files = {
        "config.json": written | version | {"initializer_range": 0.02},
        "generation_config.json": ids
        | hybrid
        | {"do_sample": True, "top_k": 64, "top_p": 0.95, "transformers_version": "4.50.0.dev0"},
        "added_tokens.json": {"<image_soft_token>": config.vocab_size},
        "special_tokens_map.json": {
            name: piece if "image" in piece else _added_token(piece)
            for name, piece in {**specials, "eos_token": "<eos>"}.items()
        },
    }
    if config.vision:
        side = config.vision.image_size
        files["preprocessor_config.json"] = {
            "do_convert_rgb": None,
            "do_normalize": True,
            "do_pan_and_scan": None,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.5] * 3,
            "image_processor_type": "Gemma3ImageProcessor",
            "image_seq_length": config.vision.num_soft_tokens,
            "image_std": [0.5] * 3,
            "pan_and_scan_max_num_crops": None,
            "pan_and_scan_min_crop_size": None,
            "pan_and_scan_min_ratio_to_activate": None,
            "processor_class": "Gemma3Processor",
            "resample": 2,
            "rescale_factor": 1 / 255,
            "size": {"height": side, "width": side},
        }
        files["processor_config.json"] = {
            "image_seq_length": config.vision.num_soft_tokens,
            "processor_class": "Gemma3Processor",
        }
    return files


def _added_token(piece: str) -> dict[str, Any]:
    return {"content": piece, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
