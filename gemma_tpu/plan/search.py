"""Which mesh, and what would fit: by an estimate from what was compiled, or compiled again to be sure.

Searches compile nothing themselves: they yield what they want compiled, `tries` times at most, and are sent the
programs. With no tries they answer by the estimate alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from jax.typing import DTypeLike

from gemma_tpu.config import GemmaConfig
from gemma_tpu.memory import Memory
from gemma_tpu.plan.chips import GIB, Slice, slices
from gemma_tpu.plan.compiled import Program, Target, deploy, total_memory
from gemma_tpu.plan.roofline import decode_roofline

CONTEXT_STEP = 1024  # tokens
MOST_ROWS = 256
TRIES = 3  # deployments that a search compiles where its answers are not to be estimates
_NEAR = 1.03  # of a size that is known to fit: what is less than that beyond it is not looked at
_GROWTH = 2.25  # bytes of temporaries for each of the arrays that grow with rows and context
_LEAST_CODE = 64 * 2**20  # bytes of a program, which the compiler does not say of one that it refuses
_MARGIN = 192 * 2**20  # bytes by which an estimate may be wrong: the compiler's choices differ from size to size


def mesh_shapes(chips: int, rows: int) -> list[tuple[int, int]]:
    """(data, model) with every chip used and every data group given as many rows."""
    return [(data, chips // data) for data in range(1, chips + 1) if chips % data == 0 and rows % data == 0]


@dataclasses.dataclass(frozen=True)
class MeshChoice:
    """The mesh to use first, then those to fall back on; and a sentence that says why."""

    candidates: list[Target]
    reason: str


def choose_mesh(
    config: GemmaConfig,
    where: Slice,
    rows: int,
    context: int,
    dtype: DTypeLike,
    **more: Any,
) -> MeshChoice:
    """The mesh whose decode step is shortest by its roofline, of those where weights and state fit.

    `more`: see `deploy`.
    """
    every = [deploy(config, where, shape, rows, context, dtype, **more) for shape in mesh_shapes(where.num_chips, rows)]
    timed = sorted(every, key=lambda one: decode_roofline(one).seconds)
    fitting = [one for one in timed if one.deployment.memory.resident <= where.chip.hbm]
    smallest = min(every, key=lambda one: one.deployment.memory.resident)
    notes = [
        f"{_shape(one)} {decode_roofline(one).seconds * 1e3:.1f} ms"
        if one in fitting
        else f"{_shape(one)} holds {one.deployment.memory.resident / GIB:.1f} GiB a chip, too much"
        for one in timed
    ]
    if len(every) == 1:
        return MeshChoice(every, "the only one" if where.num_chips == 1 else f"the only one for {rows} rows")
    if not fitting:
        return MeshChoice([smallest], "needs least memory, and still too much: weights and state alone do not fit")
    reason = "shortest step by roofline of those that fit: " + ", ".join(notes[:5])
    candidates = fitting[:1] if fitting[0] == smallest else [fitting[0], smallest]
    return MeshChoice(candidates, reason)


def _shape(target: Target) -> str:
    data, model = target.mesh_shape
    return f"{data}×{model}"


@dataclasses.dataclass(frozen=True)
class Answer:
    """`value` is the largest context, most rows or smallest slice; None if nothing fits. `compiled`: seen to fit."""

    value: int | str | None
    compiled: bool
    limit: bool = False  # nothing larger (slice: smaller) was to be looked for

    def __str__(self) -> str:
        if self.value is None:
            return "none"
        shown = f"{self.value:,}" if isinstance(self.value, int) else self.value
        return f"{shown} ({'compiled' if self.compiled else 'estimated'})"


Search = Generator[tuple[Target, tuple[str, ...]], list[Program], Answer]


class Estimate:
    """Memory of other deployments of the same model on the same kind of chip, from one that was compiled.

    It is meant to err upwards alone. What stays is known exactly. Temporaries are never taken to be less than in the
    base, and to grow by a little over twice the arrays in them that do; what a layer needs on one chip in place of
    several grows as the part of the model on each does.
    """

    def __init__(self, base: Target, compiled: Sequence[Program]) -> None:
        self._base = base
        self._code = sum(max(program.code, _LEAST_CODE) for program in compiled)
        self._extra = {program.name: total_memory(base, [program]).activations for program in compiled}

    def total(self, other: Target) -> int:
        base = self._base
        shards = max(1.0, base.mesh_shape[1] / other.mesh_shape[1])
        images, chunk = max(1.0, other.images / base.images), max(1.0, other.chunk / base.chunk)
        grown = _GROWTH * max(0.0, _growing(other) - _growing(base))
        extra = [
            size * shards * (images if name == "encode" else chunk) + grown * (name != "encode")
            for name, size in self._extra.items()
        ]
        return other.deployment.memory.resident + self._code + int(max(extra)) + _MARGIN


def _growing(target: Target) -> float:
    """Bytes on a device of the arrays in prefill and decode that grow with rows and context.

    Prefill brings the pages of its row together, those of one layer at a time, and its keys and values are laid out
    anew for the kernel; it may copy the rings of a layer. A decode step has float32 logits of every row, and scores
    with every key.
    """
    deployment, (data, model) = target.deployment, target.mesh_shape
    config, T = deployment.config, 1 + deployment.draft_tokens
    layers = sum(layer.window is None for layer in config.layers)
    rings = deployment.memory.local_cache / max(1, config.num_layers - layers)
    share = deployment.context / deployment.page / (deployment.pages / deployment.page_groups)
    gathered = deployment.memory.global_cache * share / max(1, layers)
    numbers = config.vocab_size + config.num_heads * deployment.context
    return gathered + rings + 4 * deployment.rows / data * T * numbers / model


def fits(target: Target, memory: Memory) -> bool:
    return memory.total <= target.chip.hbm


def largest(
    base: Target,
    compiled: Sequence[Program],
    values: set[int],
    known: int,
    make: Callable[[int], Target],
    tries: int,
) -> Search:
    """The largest of `values` whose deployment fits, by compiling at most `tries`; that of `known` is `base`."""
    estimate, ascending = Estimate(base, compiled), sorted(values | {known})
    encode = [program for program in compiled if program.name == "encode"]  # it is the same for all of them
    fit, unfit = -1, len(ascending)  # indices: known to fit, known not to
    if fits(base, total_memory(base, compiled)):
        fit = ascending.index(known)
    else:
        unfit = ascending.index(known)
    low = _last_likely(estimate, fit, unfit, lambda index: make(ascending[index]))
    for _ in range(tries):
        if low < 0 or (fit >= 0 and ascending[low] < _NEAR * ascending[fit]):
            break
        other = make(ascending[low])
        programs = [*(yield other, ("decode", "prefill")), *encode]
        if fits(other, total_memory(other, programs)):
            fit = low
        else:
            unfit = low
        estimate = Estimate(other, programs)
        low = _last_likely(estimate, fit, unfit, lambda index: make(ascending[index]))
    found = fit if tries or (fit >= 0 and ascending[low] < _NEAR * ascending[fit]) else low
    if found < 0:
        return Answer(None, False)
    return Answer(ascending[found], found == fit, found == len(ascending) - 1)


def _last_likely(estimate: Estimate, fit: int, unfit: int, make: Callable[[int], Target]) -> int:
    """The last index below `unfit` whose target fits by the estimate, by bisection; `fit` if none beyond it does."""
    while unfit - fit > 1:
        middle = (fit + unfit) // 2
        other = make(middle)
        fit, unfit = (middle, unfit) if estimate.total(other) <= other.chip.hbm else (fit, middle)
    return fit


def largest_context(base: Target, compiled: Sequence[Program], tries: int = 0) -> Search:
    """At the rows of `base`."""
    longest = base.deployment.config.max_context
    values = {*range(CONTEXT_STEP, longest, CONTEXT_STEP), longest}
    known = base.deployment.context
    return largest(base, compiled, values, known, lambda context: base.replace(context=context), tries)


def most_rows(base: Target, compiled: Sequence[Program], tries: int = 0) -> Search:
    """At the context of `base`, on its mesh."""
    data = base.mesh_shape[0]
    values = set(range(data, MOST_ROWS + 1, data))
    return largest(base, compiled, values, base.deployment.rows, lambda rows: base.replace(rows=rows), tries)


def smallest_slice(base: Target, compiled: Sequence[Program], tries: int = 0) -> Search:
    """Of the chips of `base`, for its rows and context: the first that fits when compiled, of those that may."""
    estimate, left, wanted = Estimate(base, compiled), tries, base.deployment
    base_fits = fits(base, total_memory(base, compiled))
    names = "rows", "context", "dtype", "cache_tokens", "stored_prefixes", "draft_tokens", "draft"
    names += "quantization", "kv_cache_dtype"
    sizes = {name: getattr(wanted, name) for name in names}
    for where in slices(base.chip):
        if where == base.where and base_fits:
            return Answer(where.name, True)
        choice = choose_mesh(wanted.config, where, **sizes).candidates[-1]
        if choice == base or estimate.total(choice) > where.chip.hbm:
            continue
        if not tries:
            return Answer(where.name, False)
        if not left:
            continue
        left -= 1
        programs = yield choice, ("prefill", "encode", "decode")
        if fits(choice, total_memory(choice, programs)):
            return Answer(where.name, True)
        estimate = Estimate(choice, programs)
    return Answer(None, False)


def answer(
    searches: Mapping[str, Search], compile_all: Callable[[list[tuple[Target, tuple[str, ...]]]], list[list[Program]]]
) -> dict[str, Answer]:
    """The searches' answers, by their names: in each round what they all want is compiled together."""
    answers: dict[str, Answer] = {}
    ready: dict[str, Any] = dict.fromkeys(searches)  # a search begins with None
    while ready:
        wanted = {}
        for name, programs in ready.items():
            try:
                wanted[name] = searches[name].send(programs)
            except StopIteration as end:
                answers[name] = end.value
        ready = dict(zip(wanted, compile_all(list(wanted.values())) if wanted else [], strict=True))
    return {name: answers[name] for name in searches}
