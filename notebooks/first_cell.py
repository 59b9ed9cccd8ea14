CHECKPOINT = "gemma3-demo"  # comes with the package; a real one is "gemma3-4b-it", or a path to weights

import glob
import importlib.util
import os
import subprocess
import sys


def extras():
    """What the package needs besides, for this machine's accelerator."""
    if "TPU_ACCELERATOR_TYPE" in os.environ or glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"):
        return "hub,tpu"
    if glob.glob("/dev/nvidia[0-9]*"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True).stdout
        return "hub,cuda" if driver >= "580" else "hub,cuda12"  # CUDA 13 needs driver 580
    return "hub"


if importlib.util.find_spec("gemma_tpu") is None:
    found = glob.glob("gemma_tpu-*.whl") + glob.glob("/kaggle/input/**/gemma_tpu-*.whl", recursive=True)
    found += [".."] if os.path.exists("../gemma_tpu") else []  # a clone of the repository
    if not found:
        raise FileNotFoundError("upload gemma_tpu-…-py3-none-any.whl first: notebooks/README.md says how")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", f"{found[0]}[{extras()}]"], check=True)
