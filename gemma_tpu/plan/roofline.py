"""The least time a program can take on a chip, by each of the things that can hold it up. Predictions, not timings."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from gemma_tpu.engine import programs, shapes
from gemma_tpu.plan.compiled import Deployment
from gemma_tpu.plan.hlo import Collective
from gemma_tpu.plan.memory import shard_size

_HOP = 1e-6  # seconds a message takes from a chip to its neighbour (jax-ml.github.io/scaling-book, "TPUs")
_SOFTMAX_OPS = 10  # vector operations per score: mask, maximum, difference, exponential (4), sum, scale, rounding
_FLOAT32_PASSES = 6  # of bf16 products that make a float32 one


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds that each part of a chip is busy at its peak, for one call (decode: one step)."""

    memory: float
    matrix: float
    vector: float
    interconnect: float

    @property
    def bound(self) -> str:
        """The part that is busy longest."""
        names = {"memory": "memory", "matrix": "matrix unit", "vector": "vector unit", "interconnect": "interconnect"}
        return names[max(names, key=lambda name: getattr(self, name))]

    @property
    def seconds(self) -> float:
        """Loads, products and vector work overlap; collectives stand between them."""
        return max(self.memory, self.matrix, self.vector) + self.interconnect


def decode_roofline(deployment: Deployment, collectives: Sequence[Collective] | None = None) -> Roofline:
    """One step of every row, its whole cache read. `collectives`: those compiled, by default those expected."""
    rows = max(deployment.rows // deployment.mesh_shape[0], shapes.min_rows("tpu"))
    return _text_roofline(deployment, tokens=rows, queries=1, logits=True, collectives=collectives)


def prefill_roofline(deployment: Deployment, collectives: Sequence[Collective] | None = None) -> Roofline:
    """One chunk of every row at the end of a full context."""
    rows = math.ceil(deployment.rows / deployment.mesh_shape[0])
    return _text_roofline(
        deployment, tokens=rows * deployment.chunk, queries=deployment.chunk, logits=False, collectives=collectives
    )


def encode_roofline(deployment: Deployment, collectives: Sequence[Collective] | None = None) -> Roofline:
    """One call of the vision tower."""
    config, memory, chip = deployment.config.vision, deployment.resident, deployment.where.chip
    assert config
    itemsize, (images, scores) = jnp.dtype(deployment.dtype).itemsize, _patch_attention(deployment)
    flops = 2 * memory.vision / itemsize * images * config.num_patches + 4 * scores * config.head_dim
    if collectives is None:
        size = images * config.num_patches * config.width * itemsize
        collectives = _all_reduces(2 * config.depth, size, deployment)
    return Roofline(
        memory=memory.vision / chip.bandwidth,
        matrix=flops * _passes(deployment) / chip.flops,
        vector=scores * _SOFTMAX_OPS / chip.vector_ops,
        interconnect=sum(collective_seconds(one, deployment) for one in collectives),
    )


def _text_roofline(
    deployment: Deployment, *, tokens: int, queries: int, logits: bool, collectives: Sequence[Collective] | None
) -> Roofline:
    """`tokens` of a data group go through the weights, `queries` of each row look at its cache."""
    config, memory, chip = deployment.config, deployment.resident, deployment.where.chip
    itemsize = jnp.dtype(deployment.dtype).itemsize
    weights = memory.weights / itemsize
    # An untied table is looked up only; the head, which the tied table is, waits for the tokens whose logits are asked.
    unread = (not config.tied_head) + (not logits)
    weights -= unread * config.vocab_size * config.embed_dim / deployment.mesh_shape[1]
    cached, scores = _attention(deployment, queries)
    flops = 2 * weights * tokens + 4 * scores * config.head_dim
    if collectives is None:
        collectives = _all_reduces(2 * config.num_layers + 1, tokens * config.embed_dim * itemsize, deployment)
    return Roofline(
        memory=(weights + cached) * itemsize / chip.bandwidth,
        matrix=flops * _passes(deployment) / chip.flops,
        vector=scores * _SOFTMAX_OPS / chip.vector_ops,
        interconnect=sum(collective_seconds(one, deployment) for one in collectives),
    )


def kernel_seconds(deployment: Deployment, program: str) -> float:
    """Of the attention in a program's roofline where a kernel does it: the compiler has no estimate of its cycles."""
    config, chip = deployment.config, deployment.where.chip
    if program == "decode":
        return 0.0
    if program == "prefill":
        (_, scores), head_dim = _attention(deployment, deployment.chunk), config.head_dim
    else:
        assert config.vision
        (_, scores), head_dim = _patch_attention(deployment), config.vision.head_dim
    matrix = 4 * scores * head_dim * _passes(deployment) / chip.flops
    return max(matrix, scores * _SOFTMAX_OPS / chip.vector_ops)


def _patch_attention(deployment: Deployment) -> tuple[int, float]:
    """Images on a device in a full call of the vision tower, and scores of their patches in its heads."""
    config, (data, model) = deployment.config.vision, deployment.mesh_shape
    assert config
    batch = shapes.IMAGE_BATCHES[0]
    images = batch // data if batch % data == 0 else batch
    heads = config.num_heads / (model if config.num_heads % model == 0 else 1)
    return images, images * config.depth * heads * config.num_patches**2


def _attention(deployment: Deployment, queries: int) -> tuple[float, float]:
    """Elements of the cache on a device, and scores of `queries` of each row with all of it."""
    config = deployment.config
    args = config, deployment.rows, deployment.context, deployment.dtype, deployment.mesh
    cached = sum(shard_size(one) for one in jax.tree.leaves(programs.abstract_state(*args).cache))
    # Half of what is cached are keys, H elements each, seen by G heads.
    return cached, cached / 2 / config.head_dim * config.group_size * queries


def _passes(deployment: Deployment) -> int:
    return _FLOAT32_PASSES if jnp.dtype(deployment.dtype) == jnp.float32 else 1


def _all_reduces(count: int, nbytes: int, deployment: Deployment) -> list[Collective]:
    return [Collective("all-reduce", nbytes, "expected")] * (count if deployment.mesh_shape[1] > 1 else 0)


def collective_seconds(collective: Collective, deployment: Deployment) -> float:
    """Over the chips that share the model, by rings in both directions: bytes over links, and the hops between."""
    chip, group = deployment.where.chip, deployment.mesh_shape[1]
    if group == 1:
        return 0.0
    bounds = chip.sizes.get(group, f"{group}").split("x")
    hops = sum(int(side) - 1 for side in bounds)
    passes = 2 if collective.op == "all-reduce" else 1  # to reduce and scatter, then to gather
    return passes * (group - 1) / group * collective.nbytes / (2 * chip.link) + hops * _HOP
