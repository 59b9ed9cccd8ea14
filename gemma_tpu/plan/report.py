"""A plan as a table for people and as plain data for programs."""

from __future__ import annotations

import dataclasses
from typing import Any

from gemma_tpu.memory import Memory
from gemma_tpu.plan.chips import GIB, Slice
from gemma_tpu.plan.compiled import Program, Target, versions
from gemma_tpu.plan.roofline import Roofline
from gemma_tpu.plan.search import Answer, fits

_PREDICTIONS = (
    "Times are predictions: the roofline's from peak rates, the compiler's from its estimate of cycles and, for\n"
    "collectives and the attention kernels, which have none, the roofline's. Loads beside the work have none either,\n"
    "so the compiler's time can be below the roofline; no run can be."
)

_PAYS = "guesses pay if more tokens than that stand at each step"


@dataclasses.dataclass(frozen=True)
class Speed:
    """A program's predicted time: what it does in one call, seconds by the compiler's estimate, and the roofline."""

    what: str
    compiler: float
    roofline: Roofline


@dataclasses.dataclass(frozen=True)
class Plan:
    """A model on a slice. `would_fit` maps a question to its answer; it is empty if nobody asked.

    `draft` is the name of a draft model. `plain_step`: a decode step without guesses, where tokens are guessed and the
    compiler does not refuse the step that looks at them.
    """

    model: str
    target: Target
    reason: str
    programs: list[Program]
    memory: Memory
    speeds: list[Speed]
    would_fit: dict[str, Answer] = dataclasses.field(default_factory=dict)
    draft: str | None = None
    plain_step: Speed | None = None

    @property
    def step_ratio(self) -> float | None:
        """How many steps of one token a step with guesses takes as long as, by the compiler; None if nobody knows."""
        plain = self.plain_step
        return self.speeds[0].compiler / plain.compiler if plain and plain.compiler else None

    @property
    def fits(self) -> bool:
        return fits(self.target, self.memory)

    @property
    def seconds(self) -> float:
        return sum(program.seconds for program in self.programs)


def text(plan: Plan) -> str:
    where = plan.target.where
    data, model = plan.target.mesh_shape
    speeds = [*plan.speeds, *([plan.plain_step] if plan.plain_step else [])]
    width = max(len(what) for what in (*(speed.what for speed in speeds), *plan.would_fit))
    lines = [
        f"{plan.model} on {describe_slice(where)}, {load(plan)}",
        f"mesh: data {data} × model {model}{f' (load it with mesh=({data}, {model}))' * (data > 1)}; {plan.reason}",
        f"memory of each chip: {verdict(plan)}",
        plan.memory.table(where.chip.hbm),
        f"{'predicted time':{width + 2}} {'roofline':>10} {'compiler':>10}  bound by",
    ]
    for speed in speeds:
        times = f"{duration(speed.roofline.seconds):>10} {duration(speed.compiler):>10}"
        lines.append(f"  {speed.what:{width}} {times}  {speed.roofline.bound}")
    if plan.plain_step and plan.step_ratio:
        tokens = 1 + plan.target.deployment.draft_tokens
        least = plan.speeds[0].roofline.seconds / plan.plain_step.roofline.seconds
        ratios = f"{least:.2f} (roofline), {plan.step_ratio:.2f} (compiler)"
        lines.append(f"a step of {tokens} tokens / one of 1 token: {ratios}; {_PAYS}")
    if plan.would_fit:
        estimated = any(answer.value is not None and not answer.compiled for answer in plan.would_fit.values())
        lines.append(f"what would fit{' (estimates err on the side of too little; --exact compiles)' * estimated}")
        lines += [f"  {question:{width}} {answer}" for question, answer in plan.would_fit.items()]
    compiled = ", ".join(
        f"{program.name} {program.seconds:.0f} s{' (kept)' * program.kept}" for program in plan.programs
    )
    lines += [f"compiled: {compiled}; {', '.join(f'{name} {value}' for name, value in versions().items())}"]
    return "\n".join([*lines, _PREDICTIONS])


def load(plan: Plan) -> str:
    """What is asked of a slice."""
    one = plan.target.deployment
    images, stored = "with" if one.config.vision else "no", one.stored_prefixes
    prefixes = f", {stored} stored prefix{'es' * (stored > 1)}" if stored else ""
    guesses = f", {one.draft_tokens} tokens guessed by {plan.draft or 'prompt lookup'}" if one.draft_tokens else ""
    kept = f"{one.quantization} weights, " if one.quantization else ""
    kept += f"{one.kv_cache_dtype} cache, " if one.kv_cache_dtype != "auto" else ""
    return f"{kept}{one.dtype}, {one.context:,} tokens × {rows_text(one.rows)}, {images} images{prefixes}{guesses}"


def rows_text(rows: int) -> str:
    return f"{rows} row{'s' * (rows > 1)}"


def describe_slice(where: Slice) -> str:
    chips = f"{where.num_chips} chip{'s' * (where.num_chips > 1)}"
    return f"{where.name} ({where.topology}, {chips} of {where.chip.hbm / GIB:.2f} GiB)"


def verdict(plan: Plan) -> str:
    refused = [program.name for program in plan.programs if program.needs is not None]
    if refused:
        return f"does NOT fit: the compiler refuses {' and '.join(refused)}"
    return "fits" if plan.fits else "does NOT fit"


def duration(seconds: float) -> str:
    if not seconds:
        return "–"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.{1 if seconds >= 0.01 else 2}f} ms"


def comparison(plans: list[Plan]) -> str:
    """One line a slice."""
    columns = f"{'slice':8} {'mesh':>6} {'needs':>9} {'of':>9}      "
    tokens = 1 + plans[0].target.deployment.draft_tokens
    ratio = f"  {tokens} tokens / 1 (compiler)" if tokens > 1 else ""
    lines = [
        f"{plans[0].model}, {load(plans[0])}",
        f"{columns} {'step':>9} {'compiler':>9}  {'bound by':13} {'prefill':>9}{ratio}",
    ]
    for plan in plans:
        data, model = plan.target.mesh_shape
        decode, prefill = plan.speeds[0], plan.speeds[1]
        prefill_time = duration(prefill.compiler) if prefill.compiler else f"≥ {duration(prefill.roofline.seconds)}"
        lines.append(
            f"{plan.target.where.name:8} {f'{data}×{model}':>6} {plan.memory.total / GIB:5.1f} GiB"
            f" {plan.target.where.chip.hbm / GIB:5.1f} GiB  {'fits' if plan.fits else 'NO':4}"
            f" {duration(decode.roofline.seconds):>9} {duration(decode.compiler):>9}  {decode.roofline.bound:13}"
            f" {prefill_time:>9}" + (f"  {plan.step_ratio:{len(ratio) - 2}.2f}" if plan.step_ratio else "")
        )
    return "\n".join([*lines, _PREDICTIONS])


def _prediction(speed: Speed) -> dict[str, Any]:
    return {
        "what": speed.what,
        "compiler_seconds": speed.compiler or None,
        "roofline_seconds": speed.roofline.seconds,
        "bound": speed.roofline.bound,
        "busy_seconds": dataclasses.asdict(speed.roofline),
    }


def as_json(plan: Plan) -> dict[str, Any]:
    target, one = plan.target, plan.target.deployment
    return {
        "model": plan.model,
        "slice": target.where.name,
        "topology": target.where.topology,
        "chips": target.where.num_chips,
        "mesh": {"data": target.mesh_shape[0], "model": target.mesh_shape[1], "reason": plan.reason},
        "context": one.context,
        "rows": one.rows,
        "stored_prefixes": one.stored_prefixes,
        "draft_tokens": one.draft_tokens,
        "draft": plan.draft,
        "dtype": str(one.dtype),
        "quantization": one.quantization and dataclasses.asdict(one.quantization),
        "kv_cache_dtype": one.kv_cache_dtype,
        "images": bool(one.config.vision),
        "fits": plan.fits,
        "memory": dataclasses.asdict(plan.memory) | {"total": plan.memory.total, "capacity": target.where.chip.hbm},
        "predictions": [_prediction(speed) for speed in plan.speeds],
        "plain_step": plan.plain_step and _prediction(plan.plain_step),
        "step_ratio": plan.step_ratio,
        "programs": [
            {name: value for name, value in vars(program).items() if name not in ("hlo", "collectives")}
            | {"peak": program.peak}
            for program in plan.programs
        ],
        "would_fit": {question: dataclasses.asdict(answer) for question, answer in plan.would_fit.items()},
        "versions": versions(),
    }
