"""`gemma-tpu info`: what a checkpoint holds, from its metadata and the files beside the weights."""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

from gemma_tpu.cli.arguments import add_shared

HELP = "Show what a checkpoint holds, without loading it."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_shared(parser, "checkpoint", "--json")


def main(args: argparse.Namespace) -> int:
    found = _describe(args.checkpoint)
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        _print(found)
    return 0


def _describe(name: str) -> dict[str, Any]:
    from gemma_tpu.checkpoint import open_checkpoint, read_text_assets, resolve

    checkpoint = open_checkpoint(resolve(name))
    assets = read_text_assets(checkpoint)
    tokenizer = assets.open_tokenizer()
    return {
        "path": checkpoint.path,
        "layout": checkpoint.kind,
        "parameters": sum(math.prod(array.shape) for array in checkpoint.arrays.values()),
        "bytes": checkpoint.nbytes,
        "quantization": checkpoint.quantization,
        "dtypes": sorted({str(array.dtype) for array in checkpoint.arrays.values()}),
        **({"types": types} if (types := checkpoint.block_types) else {}),
        "tokenizer": tokenizer and tokenizer.name,
        "pieces": None if tokenizer is None else tokenizer.vocab_size,
        "prompt_format": assets.format.name,
        "chat_template": assets.chat_template and assets.chat_template[1],
        "defaults": assets.sampling_defaults(tokenizer),
        "notes": assets.notes(tokenizer),
        "config": checkpoint.config.summary(),
    }


def _print(found: dict[str, Any]) -> None:
    config, notes, defaults = (found.pop(name) for name in ("config", "notes", "defaults"))
    vision = config.pop("vision")
    config["layer_pattern"] = [
        " ".join(f"{name}={value}" for name, value in run.items()) for run in config["layer_pattern"]
    ]
    for title, values in (("", found), ("defaults", defaults), ("text", config), ("vision", vision or {"": "none"})):
        if title:
            print(f"{title}:")
        for name, value in values.items():
            if isinstance(value, dict):
                value = [f"{count} {key}" for key, count in value.items()]
            if isinstance(value, list | tuple):
                value = ", ".join(map(str, value))
            number = isinstance(value, int) and not isinstance(value, bool)
            print(f"{'  ' * bool(title)}{name:18} {f'{value:,}' if number else value}")
    for note in notes:
        print(f"note: {note}")
