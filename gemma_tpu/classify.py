"""ShieldGemma 2 as a classifier: the probability that an image violates a policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from gemma_tpu.checks import as_tuple, brief
from gemma_tpu.prompts import Reading
from gemma_tpu.text import POLICIES, SHIELD_GEMMA

if TYPE_CHECKING:
    from gemma_tpu.api import Model


class Verdict(NamedTuple):
    """The probabilities that an image does and does not violate a policy; they sum to 1."""

    yes: float
    no: float


def classify(
    model: Model, images: Any, policies: Sequence[str] | Mapping[str, str] | None = None
) -> list[dict[str, Verdict]]:
    """A verdict on each policy for each image: the softmax over the next-token logits of "Yes" and "No".

    `policies`: names in `gemma_tpu.text.POLICIES` (default: all), or a mapping from names to policy texts. The answers'
    token ids come from config.json (`yes_token_index`, `no_token_index`), else from the pieces "Yes" and "No", as in
    transformers 5.23, modeling_shieldgemma2.py, whose first column is "Yes".

    ValueError if the checkpoint is not ShieldGemma 2, if there is no image, and for an unknown policy name.
    """
    if model.format.name != SHIELD_GEMMA.name:
        raise ValueError(f"classify is for ShieldGemma 2; this checkpoint has the prompt format of {model.format.name}")
    if not (images := Reading().images(images)):
        raise ValueError("no images given")
    if policies is None or isinstance(policies, str):
        policies = POLICIES if policies is None else [policies]
    if not isinstance(policies, Mapping):
        policies = as_tuple("policies", policies)
        if unknown := [name for name in policies if not isinstance(name, str) or name not in POLICIES]:
            raise ValueError(f"no policy is called {', '.join(map(brief, unknown))}; known are {', '.join(POLICIES)}")
        policies = {name: POLICIES[name] for name in policies}
    answers = model.format.answers or (model.tokenizer.id("Yes"), model.tokenizer.id("No"))
    return [{name: _verdict(model, image, text, answers) for name, text in policies.items()} for image in images]


def _verdict(model: Model, image: Any, policy: str, answers: tuple[int, int]) -> Verdict:
    parts = [{"type": "image", "image": image}, {"type": "text", "text": policy}]
    logits = np.asarray(model.last_logits([{"role": "user", "content": parts}]))
    yes, no = np.asarray(jax.nn.softmax(logits[list(answers)])).tolist()
    return Verdict(yes, no)
