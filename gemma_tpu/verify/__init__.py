"""This toolkit and a reference implementation on the same checkpoint, prompts and image.

The reference runs in a process of its own, in any interpreter: on Python 3.11 Google's package needs versions of jax
that this toolkit cannot use. Both sides are given the same token ids and pixels, and show every module's output.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from gemma_tpu.checks import brief, check_integer, check_number
from gemma_tpu.quantization import Quantization, as_quantization
from gemma_tpu.verify.inputs import Question, make_questions
from gemma_tpu.verify.ours import Ours
from gemma_tpu.verify.reference import (
    REFERENCES,
    check_installed,
    dequantized_checkpoint,
    reference_checkpoint,
    run_reference,
)
from gemma_tpu.verify.report import Report, compare

__all__ = ["Question", "Report", "verify"]

# Largest |Δlogit| that rounding explains, the reference computing in float32. Measured on tiny random models: 2e-5 to
# 1e-4 in float32; real ones are deeper and have larger activations. A wrong weight moves logits by whole units.
TOLERANCE = {"float32": 0.01, "bfloat16": 1.0}


def verify(
    checkpoint: str | os.PathLike[str],
    against: str,
    *,
    tolerance: float | None = None,
    prompts: Sequence[str | Sequence[int]] | None = None,
    image: Any = None,
    python: str | os.PathLike[str] | None = None,
    dtype: str = "float32",
    quantize: Quantization | str | None = None,
    new_tokens: int = 32,
    mesh: Mesh | tuple[int, int] | None = None,
    tokenizer: Any = None,
    config: Any = None,
    adapter: Any = None,
    progress: bool = False,
) -> Report:
    """Compares a checkpoint's answers with those of a reference implementation.

    Args:
      checkpoint: what `gemma_tpu.load` takes. The reference reads it by its own loader; only if it cannot read that
        format, or there is an adapter, is it given a conversion (the report says so), which takes as much room in the
        temporary directory.
      against: "gemma" (Google's, 3.3 or 4.0) or "transformers" (Hugging Face's, 5). It computes in float32 on the CPU.
      tolerance: largest |Δlogit| that passes; by default 0.01 for float32, 1.0 for bfloat16.
      prompts: texts taken as they are (<start_of_image> marks the place of the image), or token ids; by default a
        short one, a question, one longer than the sliding window, and one with an image if the model takes images.
      image: anything `gemma_tpu.image.load_image` reads; by default a drawing. False leaves images out.
      python: interpreter that has the reference; by default the one that runs this.
      dtype: of this toolkit's side.
      quantize: as in `gemma_tpu.load`. The reference is given the numbers that the integers stand for, in float32.
      mesh, tokenizer, config, adapter: as in `gemma_tpu.load`.
      new_tokens: how long both go on greedily after each prompt.

    Raises ValueError if the reference is not installed or cannot express the model, RuntimeError if it fails.
    """
    for name, value, known in (("against", against, REFERENCES), ("dtype", dtype, TOLERANCE)):
        if not isinstance(value, str) or value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {brief(value)}")
    check_integer("new_tokens", new_tokens, 1)
    quantization = as_quantization(quantize)
    tolerance = TOLERANCE[dtype] if tolerance is None else tolerance
    check_number("tolerance", tolerance, 0)
    python = str(python or sys.executable)

    def say(text: str) -> None:
        if progress:
            print(text, file=sys.stderr, flush=True)

    check_installed(against, python)  # before minutes of work on our side
    with tempfile.TemporaryDirectory(prefix="gemma-tpu-verify-") as folder:
        path, converted = "", True
        if quantization is None:
            path, converted = reference_checkpoint(checkpoint, against, config, adapter, Path(folder), say)
        say(f"gemma_tpu: loading {checkpoint} as {quantization or dtype}")
        how = {"mesh": mesh, "tokenizer": tokenizer, "config": config, "adapter": adapter, "quantize": quantize}
        with Ours(checkpoint, dtype=dtype, **how) as ours:
            if quantization is not None:
                path = dequantized_checkpoint(ours.model, against, Path(folder))
            questions, images = make_questions(ours.model, prompts, image, new_tokens)
            outputs = ours.run(questions, images, say)
            say(f"{against}: running on the CPU")
            theirs, versions = run_reference(against, python, path, ours.model, questions, images, Path(folder))
            return compare(
                questions,
                outputs,
                theirs,
                tolerance=tolerance,
                margin=ours.margin,
                about={
                    "against": against,
                    "versions": versions,
                    "dtype": dtype,
                    "quantize": quantization and str(quantization),
                    "converted": converted,
                },
            )
