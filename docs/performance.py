"""Makes docs/performance.md of what benchmarks printed.

    python -m docs.performance > docs/performance.md                     # of the recordings in docs/performance
    python -m docs.performance --measure PYTHON > docs/performance.md    # on a GPU, recording all but `BEFORE` anew

Recordings are a benchmark's output as it is. That takes a quarter of an hour. PYTHON is an interpreter that has gemma.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import subprocess
import sys
from pathlib import Path

from gemma_tpu.config import CONFIGS
from gemma_tpu.model import param_shapes

ROOT = Path(__file__).parents[1]
RECORDINGS = Path(__file__).with_suffix("")
# What earlier versions did, with today's benchmarks: the first is of commit a64b6e6.
BEFORE = ("profile-before", "decode-4b", "decode-27b")

_DECODE, _PROFILE = "python benchmarks/decode.py --models", "python benchmarks/profile_decode.py --model"
COMMANDS = {
    "gemma-4b": f"{_DECODE} gemma3-4b --rows 1 8 32 --quantize none --gemma PYTHON",
    "gemma-27b": f"{_DECODE} gemma3-27b --rows 1 --quantize none int8 int4 --gemma PYTHON",
    "int4-4b": f"{_DECODE} gemma3-4b --rows 1 8 32 --quantize none int8 int4",
    "int4-27b": f"{_DECODE} gemma3-27b --rows 1 --quantize none int8 int4",
    "decode-4b": f"{_DECODE} gemma3-4b --rows 1 8 32 --quantize none int8 int4",
    "decode-27b": f"{_DECODE} gemma3-27b --rows 1 --quantize none int8 int4",
    "decode-long": f"{_DECODE} gemma3-4b --rows 8 --quantize none --context 65536 --length 60000",
    "profile": f"{_PROFILE} gemma3-4b",
    "profile-before": f"{_PROFILE} gemma3-4b",
}

_PAGE = """# Performance

Made by `python -m docs.performance`; each table of steps is what the command above it printed, on a GPU. What the TPU
compiler says of the time of a step on TPUs stands in [tpu.md](tpu.md), the load of many requests in [gpu.md](gpu.md).
Figures vary by some 5% from one card to the next.

The floor is the time in which a copy would move as many bytes as a step has to read: the weights, and the keys and
values of the tokens in the cache. The rate of a copy was measured in the same run.

## Decode steps, and those of Google's sampler

The last two columns are of the loop of `gm.text.Sampler` (gemma 3.3.0, also on jax 0.11.2) in the same run, with the
same rows and cache.

{gemma-4b}

Of the version before attention had half as many programs, and before int4 had a kernel of its own:

{gemma-27b}

## int8 and int4

{int4-4b}

{int4-27b}

With a long cache the keys and values are most of what is read:

{decode-long}

An H200 reads its memory faster than an H100 and starts kernels no faster, so that a small model and integers are
further from the floor. An H100, before the two norms between products were one kernel:

{decode-4b}

{decode-27b}

## Where the time of a step goes

The first rows of a table sum up those behind them. Products of weights read them at {share} of the rate of the copy
above. What is left beside them is a fixed number of short kernels, of which each takes longer to start than to run:
that is why one row is further from the floor than many keys are, a small model further than a large one, and integers
further than bfloat16.

{profile}

A time without a kernel below 0 says that kernels take longer while they are traced. Before the two norms between
products were one kernel:

{profile-before}

A GPU gets faster in its first minutes: in one run, a step took 3.21 ms before that, 3.09 after, 3.02 before and 2.90
after.

## Prompts and pictures

One H200, jax 0.11.2, random weights in bfloat16, compiled and warm, beside the rate of products of two matrices in the
same run, before the two norms between products were one kernel; on another H200, 1,024 tokens took 20.6 and 21.1 ms
before that and 21.4 after:

    $ python benchmarks/prefill.py --model gemma3-4b --tokens 1024
    NVIDIA H200, jax 0.11.2, gemma3-4b: 1024 tokens to the first token in 18.7 ms, 360 of 767 TFLOP/s, 47%
    $ python benchmarks/prefill.py --model gemma3-27b --tokens 8192
    NVIDIA H200, jax 0.11.2, gemma3-27b: 8192 tokens to the first token in 859.2 ms, 502 of 772 TFLOP/s, 65%

One H100 took 20.4 and 871 ms. From a picture of 1024×768 pixels and 20 tokens to the first token, as `gemma-tpu bench`
measures it, 4B takes 44 ms on the H200 and 16 cores: 3 for the picture's digest and 8 to resize it on the host, 15 for
the vision tower, the rest for the prompt and the first step. A prompt of 20 tokens takes 15 ms, most of which the host
needs to launch the kernels.

## A picture on a CPU

`python benchmarks/picture_on_cpu.py DIRECTORY --transformers PYTHON`: 4B with its vision tower and random weights, a
picture and 20 words, on two cores of a Xeon with AMX:

| | seconds to the first token | tokens/s after it | peak memory, GiB |
|---|---|---|---|
| bfloat16 | 19.9 | 1.43 | 9.9 |
| int8 | 22.5 | 2.48 | 6.4 |
| transformers 5.24 with torch 2.13, bfloat16 | 17.0 | 1.01 | 8.7 |
"""


def recording(name: str) -> str:
    return (RECORDINGS / f"{name}.txt").read_text().strip()


def section(name: str) -> str:
    """A command, and what it printed."""
    device, *table = recording(name).splitlines()
    return "\n".join([f"`{COMMANDS[name]}`", "", f"{device}:", "", *table])


def page() -> str:
    return _PAGE.format(share=f"{_share_of_products():.0%}", **{name: section(name) for name in COMMANDS})


def _share_of_products() -> float:
    """Of the rate of a copy: that at which the products of a row read bfloat16 weights."""
    shapes = param_shapes(dataclasses.replace(CONFIGS["gemma3-4b"], vision=None)).values()
    nbytes = 2 * sum(math.prod(x.shape) for x in shapes)
    (us,) = re.findall(r"^\| products \| ([\d,]+)", recording("profile"), re.MULTILINE)
    (rate,) = re.findall(r"a copy at ([\d,]+) GB/s", recording("gemma-4b"))
    return nbytes / _number(us) / 1e3 / _number(rate)


def _number(text: str) -> int:
    return int(text.replace(",", ""))


def measure(gemma: str) -> None:
    """`gemma`: an interpreter that has gemma."""
    for name, command in COMMANDS.items():
        if name not in BEFORE:
            print(command, file=sys.stderr)
            words = [sys.executable, *(gemma if word == "PYTHON" else word for word in command.split()[1:])]
            done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
            (RECORDINGS / f"{name}.txt").write_text(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", metavar="PYTHON", help="record anew; an interpreter that has gemma 3.3.0")
    if gemma := parser.parse_args().measure:
        measure(gemma)
    print(page(), end="")


if __name__ == "__main__":
    main()
