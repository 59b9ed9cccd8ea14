"""Which mesh, and what would fit: by an estimate fitted to one compilation, and compiled again to be sure.

Searches compile nothing themselves: they yield what they want compiled, and are sent the programs.
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
    """Memory of other deployments of the same model on the same chips, from one that was compiled."""

    def __init__(self, base: Target, compiled: Sequence[Program]) -> None:
        self._base, self._code = base, sum(program.code for program in compiled)
        self._extra = {program.name: total_memory(base, [program]).activations for program in compiled}
        self._factor = 1.0

    def total(self, other: Target) -> int:
        base = self._base
        tokens = other.deployment.rows / other.mesh_shape[0] / (base.deployment.rows / base.mesh_shape[0])
        keys = (other.deployment.context + other.chunk) / (base.deployment.context + base.chunk)
        shards = base.mesh_shape[1] / other.mesh_shape[1]
        # Scores grow with rows, context and heads on a chip; the rest of a chunk only with rows.
        grown = max(tokens * keys * shards, tokens / 8) * self._factor
        extra = {name: size * (shards if name == "encode" else grown) for name, size in self._extra.items()}
        return other.deployment.memory.resident + self._code + int(max(extra.values()))

    def learn(self, other: Target, memory: Memory) -> None:
        """Corrects itself by another compilation."""
        guessed = self.total(other) - other.deployment.memory.resident - self._code
        self._factor *= max(memory.activations, 1) / max(guessed, 1)


def fits(target: Target, memory: Memory) -> bool:
    return memory.total <= target.chip.hbm


def largest(
    base: Target,
    compiled: Sequence[Program],
    values: set[int],
    known: int,
    make: Callable[[int], Target],
) -> Search:
    """The largest of `values` whose deployment fits, by compiling at most three; that of `known` is `base`."""
    estimate, ascending = Estimate(base, compiled), sorted(values | {known})
    fit, unfit = -1, len(ascending)  # indices: known to fit, known not to
    if fits(base, total_memory(base, compiled)):
        fit = ascending.index(known)
    else:
        unfit = ascending.index(known)
    for _ in range(3):
        low, high = fit, unfit
        while high - low > 1:
            middle = (low + high) // 2
            other = make(ascending[middle])
            likely = estimate.total(other) <= other.chip.hbm
            low, high = (middle, high) if likely else (low, middle)
        if low < 0 or (fit >= 0 and ascending[low] < 1.03 * ascending[fit]):
            break
        other = make(ascending[low])
        memory = total_memory(other, (yield other, ("decode", "prefill")))
        estimate.learn(other, memory)
        if fits(other, memory):
            fit = low
        else:
            unfit = low
    if fit < 0:
        return Answer(None, False)
    return Answer(ascending[fit], True, fit == len(ascending) - 1)


def largest_context(base: Target, compiled: Sequence[Program]) -> Search:
    """At the rows of `base`."""
    longest = base.deployment.config.max_context
    values = {*range(CONTEXT_STEP, longest, CONTEXT_STEP), longest}
    known = base.deployment.context
    return largest(base, compiled, values, known, lambda context: base.replace(context=context))


def most_rows(base: Target, compiled: Sequence[Program]) -> Search:
    """At the context of `base`, on its mesh."""
    data = base.mesh_shape[0]
    values = set(range(data, MOST_ROWS + 1, data))
    return largest(base, compiled, values, base.deployment.rows, lambda rows: base.replace(rows=rows))


def smallest_slice(base: Target, compiled: Sequence[Program]) -> Search:
    """Of the chips of `base`, for its rows and context: the first that fits when compiled, of those that may."""
    estimate, tries, wanted = Estimate(base, compiled), 0, base.deployment
    names = "rows", "context", "dtype", "cache_tokens", "stored_prefixes", "draft_tokens", "draft"
    names += "quantization", "kv_cache_dtype"
    sizes = {name: getattr(wanted, name) for name in names}
    for where in slices(base.chip):
        choice = choose_mesh(wanted.config, where, **sizes).candidates[-1]
        if choice == base and fits(base, total_memory(base, compiled)):
            return Answer(where.name, True)
        if choice == base or estimate.total(choice) > where.chip.hbm or tries == 3:
            continue
        tries += 1
        memory = total_memory(choice, (yield choice, ("prefill", "encode", "decode")))
        if fits(choice, memory):
            return Answer(where.name, True)
        estimate.learn(choice, memory)
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
