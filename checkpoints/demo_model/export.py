"""A training run's parameters → the checkpoint: `python -m checkpoints.demo_model.export RUN [DIRECTORY]`.

Writes the released (flat) Orbax layout in bf16, with config.json and tokenizer.model beside it.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import jax
import numpy as np

from gemma_tpu.config import GemmaConfig, VisionConfig, gemma3_layers
from gemma_tpu.model import param_shapes

CONFIG = GemmaConfig(
    vocab_size=2048,
    embed_dim=256,
    hidden_dim=768,
    layers=gemma3_layers(8, window=512),
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    query_scale=64**-0.5,
    max_context=8192,
    vision=VisionConfig(width=128, depth=4, mlp_dim=512, num_heads=4, patch_size=28),
)
CHECKPOINT = Path(__file__).parents[1] / "gemma3-demo"
TOKENIZER = Path(__file__).with_name("tokenizer.model")
_MAX_BYTES = 19_000_000
_PART_BYTES = 15 * 2**20


def save_parts(folder: Path, params: dict[str, np.ndarray]) -> None:
    """Writes `params` as params-0.npz, params-1.npz, …"""
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[dict[str, np.ndarray]] = [{}]
    for name, value in params.items():
        if parts[-1] and sum(v.nbytes for v in parts[-1].values()) + value.nbytes > _PART_BYTES:
            parts.append({})
        parts[-1][name] = value
    for i, part in enumerate(parts):
        np.savez_compressed(folder / f"params-{i}.npz", **part)


def load_parts(folder: Path) -> dict[str, np.ndarray]:
    """float32 parameters of a run's folder, or of a checkpoint."""
    params: dict[str, np.ndarray] = {}
    for file in sorted(folder.glob("params-*.npz")):
        with np.load(file) as part:
            params |= {name: part[name] for name in part.files}
    if not params:
        # Imported here, so that a run from parts does without TensorStore.
        from gemma_tpu.checkpoint import load_params, open_checkpoint

        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        found = open_checkpoint(folder)
        loaded = load_params(found, CONFIG, dtype="float32", sharding=lambda *_: place, progress=False)
        params = {name: np.asarray(value) for name, value in loaded.items()}
    return {name: params[name] for name in param_shapes(CONFIG)}


def export(run: Path, directory: Path) -> int:
    """Makes (or replaces) `directory` from a training run's folder; its size in bytes."""
    from gemma_tpu.checkpoint import save_params

    params = load_parts(run)
    if directory.exists():
        shutil.rmtree(directory)
    save_params(params, CONFIG, directory, dtype="bfloat16", tokenizer=TOKENIZER)
    size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    if size > _MAX_BYTES:
        raise ValueError(f"{directory}: {size:,} bytes, more than the {_MAX_BYTES:,} that the repository can carry")
    return size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the --out folder of train.py, or a checkpoint")
    parser.add_argument("directory", type=Path, nargs="?", default=CHECKPOINT)
    parser.add_argument("--parts", action="store_true", help="write a run's parts instead, to train on without Orbax")
    options = parser.parse_args()
    if options.parts:
        save_parts(options.directory, load_parts(options.run))
    else:
        print(f"{options.directory}: {export(options.run, options.directory):,} bytes")


if __name__ == "__main__":
    main()
