"""Plans: choose a mesh, compile, predict, and see what would fit instead."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from gemma_tpu.checks import brief, check_integer
from gemma_tpu.config import GemmaConfig
from gemma_tpu.deployment import IMAGE_BATCHES
from gemma_tpu.plan.chips import Chip, Slice, slices
from gemma_tpu.plan.compilation_cache import compile_all, compile_cached
from gemma_tpu.plan.compiled import Program, Progress, Target, no_progress, total_memory
from gemma_tpu.plan.hlo import Collective
from gemma_tpu.plan.report import Plan, Speed, rows_text
from gemma_tpu.plan.roofline import (
    Roofline,
    decode_roofline,
    encode_roofline,
    kernel_seconds,
    prefill_roofline,
)
from gemma_tpu.plan.search import TRIES, answer, choose_mesh, fits, largest_context, most_rows, smallest_slice
from gemma_tpu.quantization import Quantization, as_quantization
from gemma_tpu.sizes import check_kv_cache_dtype, guesses


def make_plan(
    model: str,
    config: GemmaConfig,
    where: Slice,
    *,
    rows: int,
    context: int,
    dtype: str,
    cache_tokens: int | None = None,
    stored_prefixes: int = 0,
    draft_tokens: int | None = None,
    draft: GemmaConfig | None = None,
    draft_name: str = "a draft model",
    quantize: Quantization | str | None = None,
    kv_cache_dtype: str = "auto",
    images: int = 0,
    search: bool = True,
    exact: bool = False,
    progress: Progress = no_progress,
) -> Plan:
    """A plan for a slice. `images`: of a prompt. `search`: also say what would fit, by an estimate from what was
    compiled for the plan or, if `exact`, by compiling a few times more.

    `draft_tokens` are guessed at each step, by a model of the config `draft` if there is one, and weights kept as
    `quantize` says: see `gemma_tpu.load`.
    """
    if not isinstance(config, GemmaConfig):
        raise ValueError(f"config must be a GemmaConfig, got {brief(config)}")
    if not isinstance(where, Slice):
        raise ValueError(f"where must be a slice (parse_slice), got {brief(where)}")
    check_integer("rows", rows, 1)
    check_integer("context", context, 2, config.max_context)
    check_integer("images", images, 0)
    if not isinstance(dtype, str) or dtype not in ("bfloat16", "float32"):
        raise ValueError(f"dtype must be bfloat16 or float32, got {brief(dtype)}")
    if cache_tokens is not None:
        check_integer("cache_tokens", cache_tokens, context)
    check_integer("stored_prefixes", stored_prefixes, 0)
    check_kv_cache_dtype(kv_cache_dtype)
    if not isinstance(draft, GemmaConfig | None):
        raise ValueError(f"draft must be a GemmaConfig, got {brief(draft)}")
    speculation = {"draft_tokens": guesses(draft_tokens, draft is not None), "draft": draft}
    more = {"cache_tokens": cache_tokens, "stored_prefixes": stored_prefixes, "quantization": as_quantization(quantize)}
    more |= {"kv_cache_dtype": kv_cache_dtype}
    choice = choose_mesh(config, where, rows, context, dtype, **more, **speculation)
    first, *others = choice.candidates
    plan = _plan(model, first, choice.reason, progress)
    for other in others if not plan.fits else []:
        progress("the fastest mesh does not fit, compiling for the one that needs least memory")
        reason = f"the one that needs least memory; the fastest does not fit ({choice.reason})"
        plan = _plan(model, other, reason, progress)
    if draft:
        plan = dataclasses.replace(plan, draft=draft_name)
    if plan.target.deployment.draft_tokens and plan.speeds[0].compiler:
        plan = dataclasses.replace(plan, plain_step=_plain_step(plan.target, progress))
    if images:
        plan = dataclasses.replace(plan, speeds=[*plan.speeds, _images_of_a_prompt(plan.speeds, images)])
    if not search:
        return plan
    if exact:
        progress("looking for what would fit")
    compiled = plan.target, plan.programs, TRIES if exact else 0
    searches = {
        f"largest context, {rows_text(rows)}": largest_context(*compiled),
        f"most rows, {context:,} tokens": most_rows(*compiled),
        f"smallest slice of {where.chip.name}": smallest_slice(*compiled),
    }
    return dataclasses.replace(plan, would_fit=answer(searches, lambda wanted: compile_all(wanted, progress)))


def _plan(model: str, target: Target, reason: str, progress: Progress) -> Plan:
    programs = compile_cached(target, progress=progress)
    memory = total_memory(target, programs)
    return Plan(model, target, reason, programs, memory, _speeds(target, programs))


def _plain_step(target: Target, progress: Progress) -> Speed:
    """A decode step of the same, without guesses."""
    plain = target.replace(draft_tokens=0, draft=None)
    step, *_ = _speeds(plain, compile_cached(plain, ["decode"], progress))
    return dataclasses.replace(step, what=f"decode step of 1 token, {rows_text(target.deployment.rows)}")


def smallest_plan(
    model: str,
    config: GemmaConfig,
    chip: Chip,
    *,
    rows: int,
    context: int,
    dtype: str,
    cache_tokens: int | None = None,
    stored_prefixes: int = 0,
    draft_tokens: int | None = None,
    draft: GemmaConfig | None = None,
    draft_name: str = "a draft model",
    quantize: Quantization | str | None = None,
    kv_cache_dtype: str = "auto",
    progress: Progress = no_progress,
) -> Plan:
    """A plan for the smallest slice of a chip's table that fits, else for the largest slice."""
    plan, sizes = None, {"rows": rows, "context": context, "dtype": dtype}
    sizes |= {"cache_tokens": cache_tokens, "stored_prefixes": stored_prefixes}
    sizes |= {"draft_tokens": guesses(draft_tokens, draft is not None), "draft": draft}
    for where in slices(chip):
        leanest = choose_mesh(
            config, where, **sizes, quantization=as_quantization(quantize), kv_cache_dtype=kv_cache_dtype
        ).candidates[-1]
        if where != slices(chip)[-1] and not _may_fit(leanest, progress):
            continue
        named = {"draft_name": draft_name, "quantize": quantize, "kv_cache_dtype": kv_cache_dtype}
        plan = make_plan(model, config, where, **sizes, **named, search=False, progress=progress)
        if plan.fits:
            break
    assert plan
    return plan


def _may_fit(target: Target, progress: Progress) -> bool:
    """Whether weights and state fit, and then prefill, which as a rule needs most."""
    if target.deployment.memory.resident > target.chip.hbm:
        return False
    return fits(target, total_memory(target, compile_cached(target, ["prefill"], progress)))


def _speeds(target: Target, compiled: Sequence[Program]) -> list[Speed]:
    found, special = [], []
    for program in compiled:
        sent = program.collectives
        what, roofline = _KINDS[program.name](target, sent)
        found.append(Speed(what, _seconds(program, program.cycles, roofline, target), roofline))
        if program.name == "decode" and program.sampled_cycles > program.cycles:
            sampled = _seconds(program, program.sampled_cycles, roofline, target)
            special.append(Speed(f"{what}, top-k and top-p", sampled, roofline))
        deployment = target.deployment
        short = deployment.abstract_state.cache.shortest_read()
        if program.name == "decode" and short < deployment.pages * deployment.page:
            held = target.replace(context=min(deployment.context, short), cache_tokens=short)
            least = decode_roofline(held, sent)
            seconds = _seconds(program, program.short_cycles, least, target)
            special.append(Speed(f"{what}, ≤ {short:,} tokens in all", seconds, least))
    return found + special  # decode and prefill first: comparisons read those two


def _images_of_a_prompt(speeds: Sequence[Speed], images: int) -> Speed:
    """In proportion to a full call of the vision tower."""
    (call,) = (speed for speed in speeds if speed.what.startswith("vision tower"))
    share = images / IMAGE_BATCHES[0]
    parts = {name: seconds * share for name, seconds in dataclasses.asdict(call.roofline).items()}
    return Speed(f"vision tower, a prompt's {images}", call.compiler * share, Roofline(**parts))


def _seconds(program: Program, cycles: int, roofline: Roofline, target: Target) -> float:
    if program.needs is not None:
        return 0.0
    kernels = kernel_seconds(target, program.name)
    return cycles / target.chip.clock + roofline.interconnect + kernels


def _decode(target: Target, sent: Sequence[Collective] | None) -> tuple[str, Roofline]:
    guesses, rows = target.deployment.draft_tokens, rows_text(target.deployment.rows)
    what = f"decode step of {guesses + 1} tokens, {rows}" if guesses else f"decode step, {rows}"
    return what, decode_roofline(target, sent)


def _prefill(target: Target, sent: Sequence[Collective] | None) -> tuple[str, Roofline]:
    return f"prefill, {target.chunk:,} tokens", prefill_roofline(target, sent)


def _encode(target: Target, sent: Sequence[Collective] | None) -> tuple[str, Roofline]:
    return f"vision tower, {IMAGE_BATCHES[0]} images", encode_roofline(target, sent)


_KINDS = {"decode": _decode, "prefill": _prefill, "encode": _encode}
