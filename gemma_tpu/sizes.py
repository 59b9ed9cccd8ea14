"""The sizes that a model is loaded with, and their limits. No jax: a command checks them before anything is slow."""

from __future__ import annotations

from typing import Any

from gemma_tpu.checks import as_tuple, brief, check_integer

MAX_DRAFT_TOKENS = 15  # of a decode step, which also has the token before them: gemma_tpu.ops.attention.FEW together
KV_CACHE_DTYPES = ("auto", "int8")  # auto: that of the weights
_DRAFT_TOKENS = 4
_MOST_ROWS = 1 << 16  # no device has room for them


def guesses(draft_tokens: Any, draft: bool) -> int:
    """The number of tokens that is meant, `draft`: with a draft model. ValueError if there can be no such."""
    if draft_tokens is None:
        return _DRAFT_TOKENS if draft else 0
    check_integer("draft_tokens", draft_tokens, 1 if draft else 0, MAX_DRAFT_TOKENS)
    return draft_tokens


def check_sizes(
    max_context: Any = None,
    max_rows: Any = 1,
    cache_tokens: Any = None,
    stored_prefixes: Any = 0,
    draft_tokens: Any = 0,
    kv_cache_dtype: Any = "auto",
) -> None:
    """ValueError for a size, or a dtype of the cache, that no model can have."""
    if max_context is not None:
        check_integer("max_context", max_context, 2)
    check_integer("max_rows", max_rows, 1, _MOST_ROWS)
    if cache_tokens is not None:
        check_integer("cache_tokens", cache_tokens, 2, 2**31 - 1)
        check_cache_tokens(cache_tokens, max_context or 2)
    check_integer("stored_prefixes", stored_prefixes, 0, _MOST_ROWS)
    check_integer("draft_tokens", draft_tokens, 0, MAX_DRAFT_TOKENS)
    check_kv_cache_dtype(kv_cache_dtype)


def check_kv_cache_dtype(kv_cache_dtype: Any) -> None:
    """ValueError unless it is one of KV_CACHE_DTYPES."""
    if not isinstance(kv_cache_dtype, str) or kv_cache_dtype not in KV_CACHE_DTYPES:
        raise ValueError(f'kv_cache_dtype must be "auto" or "int8", got {brief(kv_cache_dtype)}')


def check_cache_tokens(cache_tokens: int, max_context: int) -> None:
    """ValueError unless one request has room in the cache."""
    if cache_tokens < max_context:
        raise ValueError(
            f"cache_tokens must be at least max_context, {max_context}, got {cache_tokens}: one request may need as "
            "many. Give more, or a smaller max_context"
        )


def as_mesh_shape(mesh: Any) -> tuple[int, int]:
    """(data, model). ValueError for anything else."""
    sides = as_tuple("mesh", mesh)
    if len(sides) != 2:
        raise ValueError(f"mesh must be a shape (data, model), or a jax.sharding.Mesh, got {brief(mesh)}")
    for side, name in zip(sides, ("data", "model"), strict=True):
        check_integer(f"mesh: {name}", side, 1, 2**31 - 1)
    return int(sides[0]), int(sides[1])
