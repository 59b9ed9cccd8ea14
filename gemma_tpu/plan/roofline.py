"""The least time a program can take on a chip, by each of the things that can hold it up. Predictions, not timings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp

from gemma_tpu.deployment import Deployment
from gemma_tpu.memory import shard_bytes, shard_size
from gemma_tpu.model.linear import elements
from gemma_tpu.plan.compiled import Target
from gemma_tpu.plan.hlo import Collective

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

    def __add__(self, after: Roofline) -> Roofline:
        """That of both, one after the other."""
        return Roofline(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(after), strict=True)))

    @property
    def bound(self) -> str:
        """The part that is busy longest."""
        names = {"memory": "memory", "matrix": "matrix unit", "vector": "vector unit", "interconnect": "interconnect"}
        return names[max(names, key=lambda name: getattr(self, name))]

    @property
    def seconds(self) -> float:
        """Loads, products and vector work overlap; collectives stand between them."""
        return max(self.memory, self.matrix, self.vector) + self.interconnect


def decode_roofline(target: Target, collectives: Sequence[Collective] | None = None) -> Roofline:
    """One step of every row, its whole cache read; where tokens are guessed, one that looks at as many as it may.

    `collectives`: those compiled, by default those expected.
    """
    step = _decode_roofline(target, logits=True, collectives=collectives)
    if (draft := target.draft) is None:
        return step
    others = None if collectives is None else []  # they are those of both
    for guesses in range(target.deployment.draft_tokens + 1):  # at last it reads its last guess
        step += _decode_roofline(draft, logits=guesses < target.deployment.draft_tokens, collectives=others)
    return step


def _decode_roofline(target: Target, *, logits: bool, collectives: Sequence[Collective] | None) -> Roofline:
    """Of one model."""
    deployment, T = target.deployment, 1 + target.deployment.draft_tokens
    rows = max(deployment.rows // target.mesh_shape[0], -(-deployment.min_rows // T))
    return _text_roofline(target, tokens=rows * T, queries=T, one_row=False, logits=logits, collectives=collectives)


def prefill_roofline(target: Target, collectives: Sequence[Collective] | None = None) -> Roofline:
    """One chunk of a row at the end of a full context."""
    chunk = {"tokens": target.chunk, "queries": target.chunk, "one_row": True, "logits": False}
    read = _text_roofline(target, **chunk, collectives=collectives)
    if draft := target.draft:
        read += _text_roofline(draft, **chunk, collectives=None if collectives is None else [])
    return read


def encode_roofline(target: Target, collectives: Sequence[Collective] | None = None) -> Roofline:
    """One call of the vision tower."""
    deployment, chip = target.deployment, target.chip
    config, memory = deployment.config.vision, deployment.memory
    assert config
    itemsize, (images, scores) = jnp.dtype(deployment.dtype).itemsize, _patch_attention(target)
    weights = _weights(deployment, vision=True)
    flops = 2 * weights * images * config.num_patches + 4 * scores * config.head_dim
    if collectives is None:
        size = images * config.num_patches * config.width * itemsize
        collectives = _all_reduces(2 * config.depth, size, target)
    return Roofline(
        memory=memory.vision / chip.bandwidth,
        matrix=flops * _passes(target) / chip.flops,
        vector=scores * _SOFTMAX_OPS / chip.vector_ops,
        interconnect=sum(collective_seconds(one, target) for one in collectives),
    )


def _text_roofline(
    target: Target,
    *,
    tokens: int,
    queries: int,
    one_row: bool,
    logits: bool,
    collectives: Sequence[Collective] | None,
) -> Roofline:
    """`tokens` of a data group go through the weights, `queries` of each row, or of one, look at its cache."""
    deployment, chip = target.deployment, target.chip
    config, memory = deployment.config, deployment.memory
    itemsize = jnp.dtype(deployment.dtype).itemsize
    # An untied table is looked up only; the head, which the tied table is, waits for the tokens whose logits are asked.
    unread = (not config.tied_head) + (not logits)
    table = deployment.text.abstract_params["embedder.table"]
    weights = _weights(deployment, vision=False) - unread * config.vocab_size * config.embed_dim / target.mesh_shape[1]
    cached, scores = _attention(target, queries, one_row)
    flops = 2 * weights * tokens + 4 * scores * config.head_dim
    if collectives is None:
        collectives = _all_reduces(2 * config.num_layers + 1, tokens * config.embed_dim * itemsize, target)
    return Roofline(
        memory=(memory.weights - unread * shard_bytes(table) + cached) / chip.bandwidth,
        matrix=flops * _passes(target) / chip.flops,
        vector=scores * _SOFTMAX_OPS / chip.vector_ops,
        interconnect=sum(collective_seconds(one, target) for one in collectives),
    )


def kernel_seconds(target: Target, program: str) -> float:
    """Of the attention in a program's roofline where a kernel does it: the compiler has no estimate of its cycles."""
    config, chip = target.deployment.config, target.chip
    if program == "decode":
        return 0.0
    if program == "prefill":
        (_, scores), head_dim = _attention(target, target.chunk, True), config.head_dim
    else:
        assert config.vision
        (_, scores), head_dim = _patch_attention(target), config.vision.head_dim
    matrix = 4 * scores * head_dim * _passes(target) / chip.flops
    others = kernel_seconds(target.draft, program) if program == "prefill" and target.draft else 0.0
    return max(matrix, scores * _SOFTMAX_OPS / chip.vector_ops) + others


def _patch_attention(target: Target) -> tuple[int, float]:
    """Images on a device in a full call of the vision tower, and scores of their patches in its heads."""
    config, (_, model) = target.deployment.config.vision, target.mesh_shape
    assert config
    heads = config.num_heads / (model if config.num_heads % model == 0 else 1)
    return target.images, target.images * config.depth * heads * config.num_patches**2


def _attention(target: Target, queries: int, one_row: bool) -> tuple[float, float]:
    """Bytes of the cache that a device reads, and scores of `queries` of each row, or of one row, with it."""
    deployment = target.deployment
    keys = deployment.abstract_state.cache.num_keys(one_row=one_row)
    nbytes = 2 * keys * deployment.abstract_state.cache.key_bytes()
    return nbytes, keys * deployment.config.group_size * queries


def _weights(deployment: Deployment, *, vision: bool) -> int:
    """Those of the vision tower, or of the text, on a device, without a draft model's."""
    params = dataclasses.replace(deployment, draft=None).abstract_params.items()
    return sum(shard_size(elements(one)) for name, one in params if name.startswith("vision.") is vision)


def _passes(target: Target) -> int:
    return _FLOAT32_PASSES if target.deployment.dtype == jnp.float32 else 1


def _all_reduces(count: int, nbytes: int, target: Target) -> list[Collective]:
    return [Collective("all-reduce", nbytes, "expected")] * (count if target.mesh_shape[1] > 1 else 0)


def collective_seconds(collective: Collective, target: Target) -> float:
    """Over the chips that share the model, by rings in both directions: bytes over links, and the hops between."""
    chip, group = target.chip, target.mesh_shape[1]
    if group == 1:
        return 0.0
    bounds = chip.sizes.get(group, f"{group}").split("x")
    hops = sum(int(side) - 1 for side in bounds)
    passes = 2 if collective.op == "all-reduce" else 1  # to reduce and scatter, then to gather
    return passes * (group - 1) / group * collective.nbytes / (2 * chip.link) + hops * _HOP
