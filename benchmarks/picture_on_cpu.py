"""A picture and a few words to a model of real size on this machine's CPU, here and in transformers.

    python benchmarks/picture_on_cpu.py DIRECTORY [--size gemma3-4b] [--quantize none int8] [--transformers PYTHON]

Writes random bfloat16 weights of that size into DIRECTORY (8.6 GB for 4B), unless an earlier run left them there. Each
line is of a fresh process: seconds to the first token, tokens/s after it, and the most memory that the process had.
PYTHON is the interpreter of an environment with transformers and torch; it reads the same files, in bfloat16.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

TEXT, NEW, SIDE, TOKENS = 20, 32, 896, 256  # tokens beside the picture, tokens to decode, pixels, soft tokens


def say(what: str, first: float, rate: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{what}: first token after {first:.1f} s, then {rate:.2f} tokens/s, peak {peak:.1f} GiB", flush=True)


def ours(path: Path, quantize: str) -> None:
    import numpy as np
    import PIL.Image

    import gemma_tpu
    from gemma_tpu.config import SOFT_TOKEN
    from gemma_tpu.engine.request import ImageInput
    from gemma_tpu.picture import PlacedImage

    options = {"dtype": "bfloat16", "quantize": None if quantize == "none" else quantize, "verify": False}
    params, rng = gemma_tpu.SamplingParams(max_new_tokens=NEW + 1, ignore_eos=True), np.random.default_rng(0)
    with gemma_tpu.load(path, max_context=1024, max_rows=1, progress=False, **options) as model:

        def ask() -> tuple[float, float]:
            picture = PIL.Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
            ids = [2, *[SOFT_TOKEN] * TOKENS, *rng.integers(4, 99, TEXT).tolist()]
            request = model.engine.submit(ids, [PlacedImage(1, ImageInput(picture, SIDE))], params)
            count, clock = sum(map(len, request)), request.clock
            return clock.first - clock.submitted, (count - 1) / (clock.finished - clock.first)

        ask()  # compiles
        say(f"here, {quantize}", *ask())


def theirs(path: Path) -> None:
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    model = transformers.Gemma3ForConditionalGeneration.from_pretrained(path, dtype=torch.bfloat16).eval()
    ids = torch.randint(4, 99, (1, 1 + TOKENS + TEXT))
    ids[0, 1 : 1 + TOKENS] = model.config.image_token_id
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs["token_type_ids"] = (ids == model.config.image_token_id).long()
    inputs["pixel_values"] = torch.rand(1, 3, SIDE, SIDE, dtype=torch.bfloat16) * 2 - 1
    seconds = []
    for new in (1, NEW + 1):
        begin = time.perf_counter()
        with torch.no_grad():
            model.generate(**inputs, max_new_tokens=new, min_new_tokens=new, do_sample=False)
        seconds.append(time.perf_counter() - begin)
    say(f"transformers {transformers.__version__}", seconds[0], NEW / (seconds[1] - seconds[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--size", default="gemma3-4b")
    parser.add_argument("--quantize", nargs="+", default=["none", "int8"], choices=["none", "int8", "int4"])
    parser.add_argument("--transformers", metavar="PYTHON")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    path = arguments.directory / f"{arguments.size}-safetensors"
    if arguments.measure:
        theirs(path) if arguments.measure == "transformers" else ours(path, arguments.measure)
        return
    if not path.exists():
        import random_checkpoint

        from gemma_tpu.config import CONFIGS

        random_checkpoint.write(path, CONFIGS[arguments.size], "safetensors")
    ways = [(sys.executable, quantize) for quantize in arguments.quantize]
    ways += [(arguments.transformers, "transformers")] if arguments.transformers else []
    for python, way in ways:
        command = [python, __file__, str(arguments.directory), "--size", arguments.size, "--measure", way]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
