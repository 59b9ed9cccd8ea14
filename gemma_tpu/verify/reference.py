"""Runs a reference implementation in another interpreter and reads its outputs."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gemma_tpu.checkpoint import convert, open_checkpoint, resolve, save_params
from gemma_tpu.config import CONFIGS
from gemma_tpu.model.linear import dequantized
from gemma_tpu.verify.inputs import Question, spread

if TYPE_CHECKING:
    from gemma_tpu.api import Model

NOT_INSTALLED = 3  # exit status of the scripts

REFERENCES = {
    "gemma": (
        "on Python 3.12 or newer pip install 'gemma_tpu[gemma]'; on Python 3.11 make an environment for gemma 3.3 "
        "alone, whose jax is older (the repository's tests/reference/requirements-gemma.txt), and name it by --python"
    ),
    "transformers": "pip install torch 'transformers>=5', or name an environment that has them by --python",
}
# The layouts that each reads itself (gemma_tpu.checkpoint.Checkpoint.kind).
_READS = {
    "gemma": ("orbax-nested", "orbax-flat", "orbax-stacked"),
    "transformers": ("safetensors",),
}
_CONVERT_TO = {"gemma": "orbax-flat", "transformers": "safetensors"}


def check_installed(against: str, python: str) -> None:
    """ValueError if `python` cannot import the reference."""
    _run(against, python, "--check")


def reference_checkpoint(
    checkpoint: str | os.PathLike[str],
    against: str,
    config: Any,
    adapter: str | os.PathLike[str] | None,
    folder: Path,
    log: Callable[[str], None],
) -> tuple[str, bool]:
    """A path that the reference's loader can read, and whether it is a conversion made here."""
    source = resolve(checkpoint)
    opened = open_checkpoint(source, config=config)
    if against == "gemma" and not opened.config.tied_head:
        raise ValueError(
            "gemma has no output head besides the embedding table, and this model has one: use transformers"
        )
    usable = opened.kind in _READS[against] and opened.quantization is None  # for that they need other packages
    if against == "transformers":  # it needs a local directory with a config.json
        usable = usable and (Path(opened.path) / "config.json").is_file()
        usable = usable and (config is not None or opened.config_json is not None)  # that matches the weights
    if usable and adapter is None:
        return opened.path, False
    why = f"which {against} does not read" if adapter is None else f"with {adapter} merged"
    log(f"converting {checkpoint} ({opened.kind}), {why}")
    target = folder / "converted"
    convert(source, target, to=_CONVERT_TO[against], config=config, adapter=adapter, progress=False)
    return str(target), True


def dequantized_checkpoint(model: Model, against: str, folder: Path) -> str:
    """A path with what the weights of a quantised model stand for, that the reference's loader can read."""
    params = {name: dequantized(weight) for name, weight in model.params.items()}
    return str(save_params(params, model.config, folder / "dequantized", layout=_CONVERT_TO[against], dtype="float32"))


def run_reference(
    against: str,
    python: str,
    checkpoint: str,
    model: Model,
    questions: Sequence[Question],
    image: np.ndarray,
    folder: Path,
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The reference's outputs, named like ours, and the versions of its packages.

    Raises ValueError if it cannot express the model, RuntimeError if it fails.
    """
    config, tokenizer = model.config, model._tokenizer
    newline = () if tokenizer is None else tokenizer.double_newline
    if against == "gemma" and any(question.images for question in questions) and len(newline) != 1:
        raise ValueError(
            'gemma puts one token for "\\n\\n" around an image, which this vocabulary lacks: use --no-image'
        )
    request = {
        "checkpoint": checkpoint,
        "config": dataclasses.asdict(config),
        "size": next((name for name, known in CONFIGS.items() if known == config), None),
        "double_newline": list(newline),
        "start_of_image": None if tokenizer is None else tokenizer.start_of_image,
        "end_of_image": None if tokenizer is None else tokenizer.end_of_image,
        "tower_rows": {str(n): spread(n) for n in _tower_lengths(config)},
        "questions": [dataclasses.asdict(question) | {"images": len(question.images)} for question in questions],
    }
    (folder / "request.json").write_text(json.dumps(request))
    np.save(folder / "image.npy", image)
    _run(against, python, str(folder))
    with np.load(folder / "result.npz") as file:
        outputs = {name: file[name] for name in file.files}
    return outputs, json.loads(str(outputs.pop("versions")))


def _tower_lengths(config: Any) -> tuple[int, ...]:
    return (config.vision.num_patches, config.vision.num_soft_tokens) if config.vision else ()


def _run(against: str, python: str, argument: str) -> None:
    script = Path(__file__).with_name(f"reference_{against}.py")
    try:
        done = subprocess.run(
            [python, str(script), argument],
            env=_environment(os.environ, other=python != sys.executable),
            stderr=subprocess.PIPE,
            text=True,
        )
    except OSError as error:
        raise ValueError(f"--python {python} cannot be run: {error}") from error
    if done.returncode == NOT_INSTALLED:
        reason = done.stderr.strip().splitlines()[-1]
        raise ValueError(f"{against} cannot be imported by {python} ({reason}): {REFERENCES[against]}")
    if done.returncode:
        raise RuntimeError(f"{against} failed: {' / '.join(done.stderr.strip().splitlines()[-5:])}")


def _environment(ours: Mapping[str, str], *, other: bool) -> dict[str, str]:
    """Runs the reference on the CPU, because this process holds the accelerator and CPU float32 is exact."""
    excluded = ["XLA_FLAGS", "LIBTPU_INIT_ARGS", *(["PYTHONPATH", "PYTHONHOME"] if other else [])]
    return {name: value for name, value in ours.items() if name not in excluded} | {
        "PYTHONSAFEPATH": "1",  # no imports from the script's folder
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_OFFLINE": "1",
    }
