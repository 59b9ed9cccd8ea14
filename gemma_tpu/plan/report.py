"""A plan as a table for people and as plain data for programs."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from typing import Any

import jax

from gemma_tpu.deployment import Deployment
from gemma_tpu.memory import Memory
from gemma_tpu.plan.chips import GIB, Slice
from gemma_tpu.plan.compiled import Program, Target
from gemma_tpu.plan.roofline import Roofline
from gemma_tpu.plan.search import Answer, fits

_PREDICTIONS = (
    "Times are predictions: the roofline's from peak rates, the compiler's from its estimate of cycles and, for\n"
    "collectives and the attention kernels, which have none, the roofline's. Loads beside the work have none either,\n"
    "so the compiler's time can be below the roofline; no run can be."
)


@dataclasses.dataclass(frozen=True)
class Speed:
    """A program's predicted time: what it does in one call, seconds by the compiler's estimate, and the roofline."""

    what: str
    compiler: float
    roofline: Roofline


@dataclasses.dataclass(frozen=True)
class Plan:
    """A model on a slice. `would_fit` maps a question to its answer; it is empty if nobody asked."""

    model: str
    target: Target
    reason: str
    programs: list[Program]
    memory: Memory
    speeds: list[Speed]
    would_fit: dict[str, Answer] = dataclasses.field(default_factory=dict)

    @property
    def fits(self) -> bool:
        return fits(self.target, self.memory)

    @property
    def seconds(self) -> float:
        return sum(program.seconds for program in self.programs)


def versions() -> dict[str, str]:
    found = {"jax": jax.__version__}
    try:
        found["libtpu"] = importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:  # given by TPU_LIBRARY_PATH alone
        found["libtpu"] = "unknown"
    return found


def text(plan: Plan) -> str:
    where = plan.target.where
    data, model = plan.target.mesh_shape
    width = max(len(what) for what in (*(speed.what for speed in plan.speeds), *plan.would_fit))
    lines = [
        f"{plan.model} on {describe_slice(where)}, {load(plan.target.deployment)}",
        f"mesh: data {data} × model {model}{f' (load it with mesh=({data}, {model}))' * (data > 1)}; {plan.reason}",
        f"memory of each chip: {verdict(plan)}",
        plan.memory.table(where.chip.hbm),
        f"{'predicted time':{width + 2}} {'roofline':>10} {'compiler':>10}  bound by",
    ]
    for speed in plan.speeds:
        times = f"{duration(speed.roofline.seconds):>10} {duration(speed.compiler):>10}"
        lines.append(f"  {speed.what:{width}} {times}  {speed.roofline.bound}")
    if plan.would_fit:
        lines.append("what would fit")
        lines += [f"  {question:{width}} {answer}" for question, answer in plan.would_fit.items()]
    compiled = ", ".join(f"{program.name} {program.seconds:.0f} s" for program in plan.programs)
    lines += [f"compiled: {compiled}; {', '.join(f'{name} {value}' for name, value in versions().items())}"]
    return "\n".join([*lines, _PREDICTIONS])


def load(one: Deployment) -> str:
    """What is asked of a slice."""
    images, stored = "with" if one.config.vision else "no", one.stored_prefixes
    prefixes = f", {stored} stored prefix{'es' * (stored > 1)}" if stored else ""
    return f"{one.dtype}, {one.context:,} tokens × {rows_text(one.rows)}, {images} images{prefixes}"


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
    columns = f"{'slice':8} {'mesh':>6} {'needs':>9} {'of':>9}       "
    lines = [
        f"{plans[0].model}, {load(plans[0].target.deployment)}",
        f"{columns} {'step':>9} {'compiler':>9}  {'bound by':13} {'prefill':>9}",
    ]
    for plan in plans:
        data, model = plan.target.mesh_shape
        decode, prefill = plan.speeds[0], plan.speeds[1]
        prefill_time = duration(prefill.compiler) if prefill.compiler else f"≥ {duration(prefill.roofline.seconds)}"
        lines.append(
            f"{plan.target.where.name:8} {f'{data}×{model}':>6} {plan.memory.total / GIB:5.1f} GiB"
            f" {plan.target.where.chip.hbm / GIB:5.1f} GiB  {'fits' if plan.fits else 'NO':4}"
            f" {duration(decode.roofline.seconds):>9} {duration(decode.compiler):>9}  {decode.roofline.bound:13}"
            f" {prefill_time:>9}"
        )
    return "\n".join([*lines, _PREDICTIONS])


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
        "dtype": str(one.dtype),
        "images": bool(one.config.vision),
        "fits": plan.fits,
        "memory": dataclasses.asdict(plan.memory) | {"total": plan.memory.total, "capacity": target.where.chip.hbm},
        "predictions": [
            {
                "what": speed.what,
                "compiler_seconds": speed.compiler or None,
                "roofline_seconds": speed.roofline.seconds,
                "bound": speed.roofline.bound,
                "busy_seconds": dataclasses.asdict(speed.roofline),
            }
            for speed in plan.speeds
        ],
        "programs": [
            {field.name: getattr(program, field.name) for field in dataclasses.fields(program) if field.name != "hlo"}
            | {"peak": program.peak}
            for program in plan.programs
        ],
        "would_fit": {question: dataclasses.asdict(answer) for question, answer in plan.would_fit.items()},
        "versions": versions(),
    }
