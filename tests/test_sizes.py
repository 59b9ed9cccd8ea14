"""Limits of sizes, where they are tied to other modules; what is refused is tested through `load` and the commands."""

from __future__ import annotations

from gemma_tpu.ops.attention import FEW
from gemma_tpu.sizes import MAX_DRAFT_TOKENS


def test_a_step_with_guesses_has_few_queries() -> None:
    """Written twice, since importing the one takes seconds."""
    assert MAX_DRAFT_TOKENS + 1 == FEW
