"""Shows that transformers loads what `convert` writes, and that what transformers writes is read back bit for bit.

    python tests/reference/check_hf_loads.py --python /path/to/environment/with/transformers/bin/python

transformers has an environment of its own because it needs torch; this script runs in the package's.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import checkpoint_samples as samples

from gemma_tpu.checkpoint import convert, open_checkpoint

_INSIDE = """
import sys
import torch, transformers

source, destination, kind = sys.argv[1:]
cls = getattr(transformers, kind)
model, info = cls.from_pretrained(source, dtype=torch.bfloat16, output_loading_info=True)
problems = {key: value for key, value in info.items() if value}
assert not problems, problems
output = model(input_ids=torch.arange(12)[None])
assert torch.isfinite(output.logits.float()).all()
model.save_pretrained(destination, max_shard_size="40KB")
print(transformers.__version__, type(model).__name__, tuple(output.logits.shape))
"""


def check(name: str, python: str, work: Path) -> None:
    sample = samples.sample(samples.CONFIGS[name])
    source = samples.save_orbax(work / "orbax", samples.flat_tree(sample.canonical))
    hf = convert(source, work / "hf", to="safetensors", config=sample.config, progress=False)
    kind = "Gemma3ForConditionalGeneration" if sample.config.vision else "Gemma3ForCausalLM"
    subprocess.run([python, "-c", _INSIDE, str(hf), str(work / "saved"), kind], check=True)

    saved = open_checkpoint(work / "saved")
    assert saved.config == sample.config, saved.config
    for canonical, array in sample.canonical.items():
        np.testing.assert_array_equal(saved.arrays[canonical].read_all(), array, err_msg=canonical)
    print(f"{name}: {len(saved.arrays)} parameters, all the same bits after transformers loaded and saved them")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="a Python that has transformers and torch")
    arguments = parser.parse_args()
    for name in samples.CONFIGS:
        with tempfile.TemporaryDirectory() as work:
            check(name, arguments.python, Path(work))
