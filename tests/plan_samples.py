"""A small model compiled once for all tests that look at it."""

from __future__ import annotations

import dataclasses
import functools
import os
import pickle
from pathlib import Path

from gemma_tpu.config import GemmaConfig, VisionConfig, gemma3_layers
from gemma_tpu.plan.chips import parse_slice
from gemma_tpu.plan.compilation_cache import _key
from gemma_tpu.plan.compiled import PROGRAMS, Program, Target, compile_programs, deploy
from gemma_tpu.quantization import as_quantization

# A local layer, a global one and one of the vision tower: enough to be split four ways.
SMALL = GemmaConfig(
    vocab_size=32_768,
    embed_dim=1024,
    hidden_dim=4096,
    layers=gemma3_layers(6, window=512)[4:],
    num_heads=8,
    num_kv_heads=4,
    head_dim=128,
    query_scale=128**-0.5,
    vision=VisionConfig(width=512, depth=1, mlp_dim=1024, num_heads=4, image_size=448),
)
DRAFT = dataclasses.replace(SMALL, embed_dim=512, hidden_dim=1024, num_heads=2, num_kv_heads=1, vision=None)
CONTEXT = 4096


@functools.cache
def compiled(
    topology: str,
    mesh: tuple[int, int],
    rows: int,
    names: tuple[str, ...] = PROGRAMS,
    context: int = CONTEXT,
    draft_tokens: int = 0,
    quantize: str | None = None,
    kv_cache_dtype: str = "auto",
) -> tuple[Target, dict[str, Program]]:
    """`draft_tokens` are guessed by DRAFT."""
    more = {"draft_tokens": draft_tokens, "draft": DRAFT if draft_tokens else None}
    more |= {"quantization": as_quantization(quantize), "kv_cache_dtype": kv_cache_dtype}
    target = deploy(SMALL, parse_slice(topology), mesh, rows, context, **more)
    return target, {name: compile_once(target, name) for name in names}


def compile_once(target: Target, name: str) -> Program:
    """By one of the processes of this run of the tests: the next has it from a file, with its HLO."""
    key = _key(target, name)
    assert key, "the package's files have changed since this process began"
    path = Path(os.environ["JAX_COMPILATION_CACHE_DIR"], f"plan-{key}")
    if path.exists():
        return pickle.loads(path.read_bytes())
    (program,) = compile_programs(target, [name])
    part = path.with_suffix(f".{os.getpid()}")
    part.write_bytes(pickle.dumps(program))
    part.replace(path)
    return program
