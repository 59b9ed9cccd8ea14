"""Makes tests/goldens/attention.npz: transformers' attention weights (`output_attentions`) of two models of models.py.

Run in transformers' environment (requirements-transformers.txt), from the repository's root:

    python tests/reference/make_attention_golden.py

Of each case and row the queries `QUERIES` counted from the row's end, [row, query, layer, head, key].
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import models
import numpy as np
import torch
from run_transformers import build

GOLDEN = Path(__file__).parents[1] / "goldens" / "attention.npz"
CASES = ("grouped_ragged", "two_images")  # a window of 8 that is passed; two images, one and none, a window of 24
QUERIES = (1, 2, 8)


def main() -> None:
    arrays = {}
    for case in map(models.by_name, CASES):
        inputs, model = models.inputs(case), build(case.config, models.weights(case))
        expanded = torch.tensor(inputs.expanded, dtype=torch.long)
        is_soft, length = expanded == models.SOFT_TOKEN, expanded.shape[1]
        call = {
            "input_ids": expanded.masked_fill(is_soft, case.config["vocab_size"]),
            "attention_mask": (torch.arange(length) < torch.tensor(inputs.expanded_lengths)[:, None]).long(),
        }
        if case.vision:
            pixels = torch.tensor(inputs.pixels.transpose(0, 3, 1, 2))
            call |= {"pixel_values": pixels, "token_type_ids": is_soft.long()}
        layers = torch.stack(model(**call, output_attentions=True).attentions, dim=1).numpy()  # [B, L, N, T, S]
        at = inputs.expanded_lengths[:, None] - np.array(QUERIES)
        rows = [row[:, :, of] for row, of in zip(layers, at, strict=True)]  # [L, N, query, S]
        arrays[case.name] = np.stack(rows).transpose(0, 3, 1, 2, 4)
    versions = {name: importlib.metadata.version(name) for name in ("transformers", "torch", "numpy")}
    np.savez_compressed(GOLDEN, versions=json.dumps(versions), **arrays)


if __name__ == "__main__":
    main()
