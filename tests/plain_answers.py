"""The slow way to an answer: the whole context at every token, and NumPy for what a request changes of its logits."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gemma_tpu.config import GemmaConfig
from gemma_tpu.engine.forward import forward
from gemma_tpu.engine.request import Constraint
from gemma_tpu.model import Params
from gemma_tpu.ops.sampling import Sampling, sample
from gemma_tpu.options import SamplingParams


def adjusted(
    logits: np.ndarray, prompt: Sequence[int], answer: Sequence[int], asked: SamplingParams, stop: Sequence[int]
) -> np.ndarray:
    """float32[V] of the next token."""
    logits = logits.astype(np.float32).copy()
    for token in {*prompt, *answer} - {-1}:
        logits[token] *= 1 / asked.repetition_penalty if logits[token] > 0 else asked.repetition_penalty
    for token in set(answer):
        logits[token] -= asked.frequency_penalty * list(answer).count(token) + asked.presence_penalty
    for token, bias in asked.logit_bias:
        logits[token] += bias
    allowed = range(len(logits)) if asked.allowed_token_ids is None else asked.allowed_token_ids
    never = {*asked.forbidden_tokens, *(word[0] for word in asked.bad_words if len(word) == 1)}
    logits[[token for token in range(len(logits)) if token not in allowed or token in never]] = -np.inf
    ends = [word[-1] for word in asked.bad_words if len(word) > 1 and tuple(answer[1 - len(word) :]) == word[:-1]]
    banned = [*ends, *(stop if len(answer) < asked.min_tokens else ())]
    left = logits.copy()
    left[banned] = -np.inf
    return left if left.max() > -np.inf else logits


_sample = jax.jit(sample)


def plain_answer(
    config: GemmaConfig,
    params: Params,
    prompt: Sequence[int],
    asked: SamplingParams,
    context: int,
    eos: Sequence[int] = (),
    constraint: Constraint | None = None,
) -> list[int]:
    """Of a request that stops at its stop tokens, when its constraint is complete, or at its longest."""
    stop = (() if asked.ignore_eos else eos) if asked.stop_tokens is None else asked.stop_tokens
    one = [np.array([x], t) for x, t in ((asked.temperature, "f4"), (asked.top_k, "i4"), (asked.top_p, "f4"))]
    settings = Sampling(*one, np.array([asked.min_p], "f4"), np.array([asked.seed or 0], "u4"))
    answer: list[int] = []
    while len(answer) < min(asked.max_new_tokens, context - len(prompt)):
        tokens = np.zeros((1, context), np.int32)
        length = len(prompt) + len(answer)
        tokens[0, :length] = [*prompt, *answer]
        logits = np.asarray(forward(config, params, tokens, np.array([length])))[0, length - 1]
        logits = adjusted(logits, prompt, answer, asked, stop)
        if constraint:
            mask = np.unpackbits(constraint.mask(), bitorder="little")[: len(logits)]
            logits = np.where(mask, logits, -np.inf).astype(np.float32)
        token = int(_sample(jnp.asarray(logits[None]), jnp.array([length]), settings)[0])
        if token in stop:
            break
        answer.append(token)
        if constraint and constraint.push([token]):
            break
    return answer
