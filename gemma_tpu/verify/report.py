"""Compares two sets of outputs: differences, verdict, and table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gemma_tpu.verify.inputs import Question

Outputs = Mapping[str, np.ndarray]
# (question, answer prefix, our token, their token) → the difference of their logits on this side.
Margin = Callable[[Question, Sequence[int], int, int], float]

# Largest |Δ| / RMS of a module that counts as rounding.
_ROUNDING = {"float32": 1e-3, "bfloat16": 0.3}


@dataclasses.dataclass(frozen=True)
class PromptResult:
    """Logits of one prompt. `kl` is KL(reference ‖ gemma_tpu) in nats, averaged over tokens.

    `greedy_equal` of `greedy_tokens` agree before the first difference; `greedy_tie`: the logits of the two differing
    tokens are within twice the tolerance, so that rounding may select either.
    """

    name: str
    tokens: int
    max_abs: float
    mean_abs: float
    top1: float
    kl: float
    greedy_equal: int
    greedy_tokens: int
    greedy_tie: bool


@dataclasses.dataclass(frozen=True)
class ModuleResult:
    """A module's output over all prompts: largest and mean |Δ|, and the RMS of the reference's output."""

    name: str
    max_abs: float
    mean_abs: float
    rms: float


@dataclasses.dataclass(frozen=True)
class Report:
    """The comparison's result; `failures` describes what exceeds the tolerance."""

    against: str
    versions: dict[str, str]
    dtype: str
    converted: bool
    tolerance: float
    prompts: list[PromptResult]
    modules: list[ModuleResult]
    failures: list[str]
    quantize: str | None = None

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def first_difference(self) -> str | None:
        """The first module, from pixels and tokens to logits, that differs by more than rounding."""
        return next((m.name for m in self.modules if not m.max_abs <= _ROUNDING[self.dtype] * m.rms), None)

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"passed": self.passed, "first_difference": self.first_difference}

    def table(self) -> str:
        """The report as text for a terminal."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        ours = f"{self.quantize} in {self.dtype}" if self.quantize else self.dtype
        lines = [f"gemma_tpu ({ours}) against {versions} (float32)"]
        if self.converted:
            lines.append("The reference read a conversion made by gemma_tpu.")
        lines += ["", f"{'prompt':28} {'tokens':>6} {'max |Δlogit|':>13} {'mean':>9} {'top-1':>7} {'KL':>9}  greedy"]
        for p in self.prompts:
            tie = " (tie)" if p.greedy_tie else ""
            lines.append(
                f"{_short(p.name):28} {p.tokens:6} {p.max_abs:13.2e} {p.mean_abs:9.2e} {p.top1:7.1%} {p.kl:9.2e}"
                f"  {p.greedy_equal}/{p.greedy_tokens}{tie}"
            )
        lines += ["", f"{'module':28} {'max |Δ|':>10} {'mean |Δ|':>10} {'RMS':>10} {'max |Δ| / RMS':>14}"]
        for m in self.modules:
            share = m.max_abs / m.rms if m.rms else float("nan")
            lines.append(f"{m.name:28} {m.max_abs:10.2e} {m.mean_abs:10.2e} {m.rms:10.2e} {share:14.1e}")
        lines += ["", *(f"FAILED: {failure}" for failure in self.failures)]
        if self.failures and self.first_difference:
            lines.append(f"The first module that is off by more than rounding is {self.first_difference}.")
        if self.passed:
            lines.append(f"PASSED: every logit within {self.tolerance:g}")
        return "\n".join(lines)


def compare(
    questions: Sequence[Question],
    ours: Outputs,
    theirs: Outputs,
    *,
    tolerance: float,
    margin: Margin,
    about: dict[str, Any],
) -> Report:
    """Compares "i/logits" [rows, V], "i/greedy" [n] and "i/<module>" of each question i."""
    failures = []
    if unmatched := sorted(ours.keys() ^ theirs.keys()):
        failures.append(f"only one side shows {', '.join(unmatched)}")
    mismatched = [n for n in sorted(ours.keys() & theirs.keys()) if ours[n].shape != theirs[n].shape]
    if mismatched:
        failures.append(f"shapes differ: {', '.join(f'{n} {ours[n].shape} {theirs[n].shape}' for n in mismatched)}")
    shared = (ours.keys() & theirs.keys()) - set(mismatched)
    for side, outputs in (("gemma_tpu", ours), (about["against"], theirs)):
        bad = sorted(name for name in shared if not np.isfinite(outputs[name]).all())
        if bad:
            failures.append(f"{side} gives NaN or infinity in {', '.join(bad[:5])}")
            shared -= {name for name in bad if name.endswith("/logits")}  # their statistics are undefined
    prompts = []
    for i, question in enumerate(questions):
        if not {f"{i}/logits", f"{i}/greedy"} <= shared:
            continue  # reported above
        result = _prompt(question, *(side[f"{i}/{key}"] for key in ("logits", "greedy") for side in (ours, theirs)))
        # "not <=", so that NaN fails
        if not result.max_abs <= tolerance:
            failures.append(f"{question.name!r}: max |Δlogit| {result.max_abs:.3g} is over the tolerance {tolerance:g}")
        if result.greedy_equal < result.greedy_tokens:
            k = result.greedy_equal
            a, b = (int(side[f"{i}/greedy"][k]) for side in (ours, theirs))
            lead = margin(question, theirs[f"{i}/greedy"][:k].tolist(), a, b)
            if abs(lead) <= 2 * tolerance:
                result = dataclasses.replace(result, greedy_tie=True)
            else:
                failures.append(f"{question.name!r}: greedy token {k} is {a}, not {b}, by a margin of {lead:.3g}")
        prompts.append(result)
    modules = [_module(name, ours, theirs, shared) for name in _module_names(shared)]
    return Report(tolerance=tolerance, prompts=prompts, modules=modules, failures=failures, **about)


def _prompt(
    question: Question, logits: np.ndarray, reference: np.ndarray, greedy: np.ndarray, expected: np.ndarray
) -> PromptResult:
    difference = np.abs(logits.astype(np.float64) - reference)
    log_p, log_q = _log_softmax(reference), _log_softmax(logits)
    same = greedy == expected
    return PromptResult(
        name=question.name,
        tokens=len(question.expanded),
        max_abs=float(difference.max()),
        mean_abs=float(difference.mean()),
        top1=float((logits.argmax(-1) == reference.argmax(-1)).mean()),
        kl=float((np.exp(log_p) * (log_p - log_q)).sum(-1).mean()),
        greedy_equal=len(same) if same.all() else int(same.argmin()),
        greedy_tokens=len(same),
        greedy_tie=False,
    )


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def _module_names(shared: set[str]) -> list[str]:
    """In execution order: vision tower, embedding, layers, final norm, logits."""
    order = ("vision.patch", "vision.blocks", "vision.norm", "vision.soft_tokens", "embed", "layers", "final_norm")

    def position(name: str) -> tuple[int, int]:
        if name == "logits":
            return len(order), 0
        module, _, number = name.rpartition(".")
        return (order.index(module), int(number)) if number.isdigit() else (order.index(name), 0)

    return sorted({name.split("/", 1)[1] for name in shared} - {"greedy"}, key=position)


def _module(name: str, ours: Outputs, theirs: Outputs, shared: set[str]) -> ModuleResult:
    keys = [key for key in shared if key.split("/", 1)[1] == name]
    difference = np.concatenate([np.abs(ours[key].astype(np.float64) - theirs[key]).ravel() for key in keys])
    reference = np.concatenate([theirs[key].astype(np.float64).ravel() for key in keys])
    size = float(np.sqrt(np.mean(np.square(reference))))
    return ModuleResult(name, float(difference.max()), float(difference.mean()), size)


def _short(text: str, width: int = 28) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else f"{text[: width - 1]}…"
