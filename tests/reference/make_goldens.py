"""Makes tests/goldens/fidelity.{npz,json}: what both reference implementations say about the models of models.py.

Each reference needs an environment of its own (Python 3.11), made from requirements-*.txt beside this file; gemma 4
(`pip install '.[gemma]'`, Python 3.12 or newer) gives the same outputs as gemma 3 to within 2e-4:

    python tests/reference/make_goldens.py --gemma GEMMA_PYTHON --transformers TRANSFORMERS_PYTHON

Any Python with numpy runs this script. It prints how far the references are from each other, case by case. Stored are
gemma's outputs, and transformers' as a float16 difference from them (its rounding is far below every tolerance).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import models
import numpy as np

HERE = Path(__file__).parent
GOLDENS = HERE.parent / "goldens"

NOTES = {
    "weights": "tests/reference/models.py makes them from the case's seed; `weights` below is the sum of their sizes",
    "ids": "gemma: the ids of special tokens, and of the newlines around an image, are replaced by those of models.py",
    "far": "cases so marked ran with rotary angles computed in float64, put into both packages by the run scripts; "
    "their own float32 angles drift at such positions. All other cases ran the packages as they are",
    "follow": "where only gemma is named, transformers masks an image block longer than the window differently, and "
    "its outputs are not stored",
}


def read(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    return json.loads(str(arrays.pop("versions"))), arrays


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gemma", required=True, metavar="PYTHON")
    parser.add_argument("--transformers", required=True, metavar="PYTHON")
    args = parser.parse_args()
    versions, outputs = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("gemma", "transformers"):
            path = Path(folder) / f"{name}.npz"
            subprocess.run([getattr(args, name), str(HERE / f"run_{name}.py"), str(path)], check=True)
            versions[name], outputs[name] = read(path)
    save(versions, outputs["gemma"], outputs["transformers"])


def save(versions: dict, gemma: dict[str, np.ndarray], transformers: dict[str, np.ndarray]) -> None:
    if gemma.keys() != transformers.keys():
        raise ValueError(f"the references gave different outputs: {sorted(gemma.keys() ^ transformers.keys())}")
    arrays, cases = {}, {}
    for case in models.CASES:
        between = {}
        for key in (key for key in gemma if key.startswith(f"{case.name}/")):
            ours, theirs = gemma[key], transformers[key]
            if case.config["vision"] and case.vision["image_size"] > 500:
                ours, theirs = ours[..., models.CHANNELS], theirs[..., models.CHANNELS]
            difference = theirs - ours
            between[key.removeprefix(f"{case.name}/")] = float(np.abs(difference).max())
            arrays[key] = ours
            if "transformers" in case.follow and not key.endswith("/greedy"):
                arrays[f"{key}/transformers"] = difference.astype(np.float16)
        if case.new_tokens and not np.array_equal(gemma[f"{case.name}/greedy"], transformers[f"{case.name}/greedy"]):
            raise ValueError(f"{case.name}: the references' greedy tokens differ; choose another seed")
        print(f"{case.name:26}", "  ".join(f"{key} {value:.1e}" for key, value in between.items()))
        cases[case.name] = {
            "weights": models.checksum(models.weights(case)),
            "far": case.far,
            "follow": case.follow,
            "between_references": between,
        }
    GOLDENS.mkdir(exist_ok=True)
    np.savez_compressed(GOLDENS / "fidelity.npz", **arrays)
    about = {"python": sys.version.split()[0], "versions": versions, "notes": NOTES, "cases": cases}
    (GOLDENS / "fidelity.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
