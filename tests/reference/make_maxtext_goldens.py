"""Makes tests/goldens/maxtext.npz: a small model as MaxText's own conversion from Hugging Face writes it.

    pip download --no-deps --only-binary=:all: --python-version 3.12 maxtext==0.2.5 && unzip maxtext-*.whl -d WHEEL
    PYTHONPATH=. python tests/reference/make_maxtext_goldens.py WHEEL

The names and transforms are those of checkpoint_conversion/utils/param_mapping.py, which needs NumPy and JAX alone and
is run as it is. What it takes from a model of MaxText's, the shapes, is `shape` below (models/gemma3.py,
layers/attentions.py, layers/linears.py); scanned layers are stacked along axis 1, as to_maxtext.py does with the
default `param_scan_axis`. The Hugging Face side is tests/checkpoint_samples.py's, which the test draws anew.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import checkpoint_samples as samples

GOLDENS = Path(__file__).parents[1] / "goldens" / "maxtext.npz"


def shape(name: str, c: samples.GemmaConfig) -> tuple[int, ...]:
    """The shape of a parameter of one layer, or outside the layers, in MaxText's model."""
    d, f, h, n, k = c.embed_dim, c.hidden_dim, c.head_dim, c.num_heads, c.num_kv_heads
    v = c.vision
    assert v is not None
    heads = (v.num_heads, v.head_dim)
    vision = {
        "query-kernel": (v.width, *heads),
        "key-kernel": (v.width, *heads),
        "value-kernel": (v.width, *heads),
        "query-bias": heads,
        "key-bias": heads,
        "value-bias": heads,
        "out-kernel": (*heads, v.width),
        "out-bias": (v.width,),
        "Dense_0-kernel": (v.width, v.mlp_dim),
        "Dense_1-kernel": (v.mlp_dim, v.width),
        "norm-scale": (v.width,),
    }
    text = {
        "token_embedder-embedding": (c.vocab_size, d),
        "query-kernel": (d, n, h),
        "key-kernel": (d, k, h),
        "value-kernel": (d, k, h),
        "out-kernel": (n, h, d),
        "wi_0-kernel": (d, f),
        "wi_1-kernel": (d, f),
        "wo-kernel": (f, d),
        "query_norm-scale": (h,),
        "key_norm-scale": (h,),
        "norm-scale": (d,),
    }
    table = vision if "vision_encoder" in name else text
    return next((size for ending, size in table.items() if name.endswith(ending)), ())


def main(wheel: str) -> None:
    path = Path(wheel) / "maxtext" / "checkpoint_conversion" / "utils" / "param_mapping.py"
    spec = importlib.util.spec_from_file_location("param_mapping", path)
    assert spec is not None
    assert spec.loader is not None
    mapping = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mapping)
    stored = {}
    for case, config in samples.MAXTEXT.items():
        c = config
        assert c.vision is not None
        sample = samples.sample(config, np.dtype(np.float32))
        hf = {f"model.{name.replace('language_model.model.', 'language_model.')}": a for name, a in sample.hf.items()}
        described = {
            "text_config": {"num_hidden_layers": c.num_layers, "hidden_size": c.embed_dim},
            "vision_config": {"num_hidden_layers": c.vision.depth},
        }
        scan = case == "scanned"
        hooks = mapping.GEMMA3_MAXTEXT_TO_HF_PARAM_HOOK_FN(described, None, scan_layers=scan)
        names = mapping.GEMMA3_MAXTEXT_TO_HF_PARAM_MAPPING(described, None, scan_layers=scan)
        for name, source in names.items():
            hook = hooks.get(name, lambda x, _: x)
            target = shape(name, c)
            if isinstance(source, list):
                array = np.stack([hook(hf[one], target) for one in source], axis=1)
            else:
                array = hook(hf[source], target)
            stored[f"{case}/{name.replace('-', '/')}"] = np.asarray(array, np.float32)
    np.savez_compressed(GOLDENS, **stored)


if __name__ == "__main__":
    main(sys.argv[1])
