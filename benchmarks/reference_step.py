"""Compiles the loop in which Google's `gm.text.Sampler` decodes one row, for one TPU chip. Needs gemma 3.3 and libtpu.

    GEMMA_ENVIRONMENT/bin/python benchmarks/reference_step.py gemma3-1b v5e:1x1 4096 FILE

Writes the optimised HLO to FILE and prints the packages' versions. The loop, its state after prefill and its tokens to
forbid and to end at are what the sampler makes of its own defaults, greedy and bfloat16; only shapes are computed.
benchmarks/tpu_bars.py runs this in an environment of its own (tests/reference/requirements-gemma.txt).
"""

# pyright: reportMissingImports=false

import contextlib
import importlib.metadata
import sys
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
from gemma import gm
from gemma.gm.text import _sampler_loop
from jax.experimental import topologies


class Tokenizer(gm.text.Gemma3Tokenizer):
    """Its special and forbidden tokens are constants; the vocabulary, which it would download, is not needed."""

    def encode(self, text, *, add_bos=False, add_eos=False):
        return [self.special_tokens.BOS]


class Reached(Exception):
    """Sampling has come to its loop."""


def decoding(model, cache_length):
    """The loop that `Sampler.sample` runs after prefill, and the shapes of what it passes to its `_sample_loop`."""
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    reached = []

    def keep(loop, **arguments):
        reached.append((loop, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)))
        raise Reached

    def sample(params):
        gm.text.Sampler(model=model, params=params, tokenizer=Tokenizer(), cache_length=cache_length).sample("", rng=0)

    loop_class = _sampler_loop.SamplerLoop
    with mock.patch.object(loop_class, "_sample_loop", keep), contextlib.suppress(Reached):
        jax.eval_shape(sample, params)
    return reached[0]


def main(model, topology, cache_length, file):
    jax.config.update("jax_enable_compilation_cache", False)
    size = model.removeprefix("gemma3-").upper()
    loop, arguments = decoding(getattr(gm.nn, f"Gemma3_{size}")(), int(cache_length))
    options = {"topology_name": topology, "platform": "tpu", "chips_per_host_bounds": (1, 1, 1)}
    (chip,) = topologies.get_topology_desc(**options).devices
    where = jax.sharding.SingleDeviceSharding(chip)
    arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), arguments)
    Path(file).write_text(type(loop)._sample_loop.lower(loop, **arguments).compile().as_text())
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("gemma", "jax")))


if __name__ == "__main__":
    main(*sys.argv[1:])
