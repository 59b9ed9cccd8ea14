"""What a decode step must not do, and whether the compiled one does it."""

from __future__ import annotations

import jax

from gemma_tpu.deployment import STEPS_PER_CALL
from gemma_tpu.memory import shard_size
from gemma_tpu.model.linear import QuantizedWeight, elements
from gemma_tpu.ops.sampling import LOOKED_AT
from gemma_tpu.options import MAX_LOGPROBS
from gemma_tpu.plan.compiled import Program, Target

_ON_REQUEST = "/more/cond$"  # of gemma_tpu.engine.draw: its second branch is for rows that ask for more than sampling


def decode_problems(target: Target, decode: Program) -> list[str]:
    """One line for each: data of weight or cache size moved for nothing, quantised weights as floating-point numbers,
    state not written in place, collectives of more than an activation."""
    deployment = target.deployment
    config, rows = deployment.config, max(deployment.rows, deployment.min_rows)
    if decode.hlo is None:
        return ["the compiler refused it"]
    # It has none of the vision tower's.
    weights = deployment.text.abstract_params.values()
    kept = jax.tree.leaves(deployment.abstract_state.cache)
    kept = [array for array in kept if len(array.shape) == 4]  # without an int8 cache's scales, a 64th of it
    kept += [array for array in map(elements, weights) if len(array.shape) > 1]
    sizes = set(map(shard_size, kept))
    # The largest activation is a mask or score of every slot, or the logits; the largest that is sent is one of D,
    # queries, keys and values, or the logits that a token is drawn from.
    widest = max(config.vocab_size, deployment.context * config.num_heads)
    shared = max(config.embed_dim, config.num_kv_heads * (config.group_size + 2) * config.head_dim, LOOKED_AT)
    problems = decode.hlo.offenders(sizes, rows * widest, rows * shared, rare=_ON_REQUEST)
    packed = {shard_size(weight.values) for weight in weights if isinstance(weight, QuantizedWeight)}
    problems += decode.hlo.widened(packed)
    cache = {shard_size(array) for array in kept if array.dtype == "int8"} - packed
    problems += decode.hlo.widened(cache, "the cache")
    if (state := deployment.memory.state) > decode.aliased:
        problems.append(f"{state - decode.aliased:,} bytes of the state are not written in place")
    data, model = target.mesh_shape
    if model == 1:
        # Copies of the model must agree on when to stop, and the host reads what all their rows draw from any.
        least = 4 * rows * STEPS_PER_CALL * MAX_LOGPROBS if data > 1 else 0
        sent = [one for one in dict.fromkeys(decode.hlo.collectives()) if one.nbytes > least]
        problems += [f"{one.op} of {one.nbytes} bytes without tensor parallelism: {one.origin}" for one in sent]
    return problems
