"""Shows that `gemma` and `transformers` load what `convert` writes, and that what they write is read back bit for bit.

    python tests/reference/check_checkpoints.py [--transformers PYTHON] [--gemma PYTHON]

Each reference has an environment of its own (requirements-*.txt), whose Python is given; this script runs in the
package's.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import checkpoint_samples as samples  # noqa: E402 - found by the path above

from gemma_tpu.checkpoint import convert, open_checkpoint  # noqa: E402 - as above

_TRANSFORMERS = """
import sys
import torch, transformers

source, destination, multimodal = sys.argv[1:]
cls = transformers.Gemma3ForConditionalGeneration if multimodal == "True" else transformers.Gemma3ForCausalLM
model, info = cls.from_pretrained(source, dtype=torch.bfloat16, output_loading_info=True)
problems = {key: value for key, value in info.items() if value}
assert not problems, problems
output = model(input_ids=torch.arange(12)[None])
assert torch.isfinite(output.logits.float()).all()
model.save_pretrained(destination, max_shard_size="40KB")
print("transformers", transformers.__version__, type(model).__name__, tuple(output.logits.shape))
"""

_GEMMA = """
import importlib.metadata, sys
import jax
from gemma import gm

source, destination, multimodal = sys.argv[1:]
params = gm.ckpts.load_params(source)
assert ("vision_encoder" in params) == (multimodal == "True")
gm.ckpts.save_params(params, destination, wait_until_finished=True)
print("gemma", importlib.metadata.version("gemma"), len(jax.tree.leaves(params)), "arrays")
"""


def check(config: str, script: str, python: str, to: str, work: Path) -> None:
    sample = samples.sample(samples.CONFIGS[config])
    source = samples.save_hf(work / "hf", sample.hf, samples.hf_config(sample.config))
    if to == "safetensors":  # make it from the other layout, so that nothing is just copied
        source = convert(source, work / "orbax", to="orbax-flat", progress=False)
    written = convert(source, work / "written", to=to, progress=False)
    command = [python, "-c", script, str(written), str(work / "saved"), str(sample.config.vision is not None)]
    subprocess.run(command, check=True)

    saved = open_checkpoint(work / "saved", config=None if to == "safetensors" else sample.config)
    assert saved.config == sample.config, saved.config
    for name, array in sample.canonical.items():
        # gemma turns what joins text and vision into float32, which changes no value.
        np.testing.assert_array_equal(saved.arrays[name].read_all().astype(array.dtype), array, err_msg=name)
    print(f"{config}, {to}: {len(saved.arrays)} parameters, the same bits after loading and saving")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transformers", metavar="PYTHON", help="a Python that has transformers and torch")
    parser.add_argument("--gemma", metavar="PYTHON", help="a Python that has gemma")
    arguments = parser.parse_args()
    for config in samples.CONFIGS:
        for python, script, layouts in (
            (arguments.transformers, _TRANSFORMERS, ["safetensors"]),
            (arguments.gemma, _GEMMA, ["orbax", "orbax-flat"]),
        ):
            for layout in layouts if python else []:
                with tempfile.TemporaryDirectory() as work:
                    check(config, script, python, layout, Path(work))
