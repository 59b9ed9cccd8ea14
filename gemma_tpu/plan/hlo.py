"""What optimised TPU HLO says: the compiler's estimate of cycles, data moved for nothing, and collectives."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Collection, Iterator, Mapping

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_SHAPE = re.compile(r"\b(pred|bf16|[a-z]\d+\w*)\[([\d,]*)\](\{[^}]*\})?")
_ON_CHIP = re.compile(r"S\([13]\)")  # VMEM; CMEM, which v4 has
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|(?:branch|true|false)_computations?)=\{?((?:%[\w.\-]+(?:, )?)+)"
)
_BODY = re.compile(r"condition=%([\w.\-]+), body=%([\w.\-]+)")
_CYCLES = re.compile(r'estimated_cycles":"(\d+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
# They move data and compute nothing.
_MOVES = {
    "copy",
    "slice",
    "dynamic-slice",
    "transpose",
    "reshape",
    "concatenate",
    "pad",
    "gather",
    "convert",
    "reverse",
}
_NEUTRAL = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element", "broadcast", "iota", "reshape"}
_CARRIERS = ("parameter", "tuple", "get-tuple-element", "while", "conditional", "call")  # make no array


@dataclasses.dataclass(frozen=True)
class Array:
    dtype: str
    dims: tuple[int, ...]
    on_chip: bool  # in the memory beside the core, not in HBM

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def nbytes(self) -> int:
        bits = 8 if self.dtype == "pred" else int(re.sub(r"\D.*", "", self.dtype.lstrip("bfsuc"))[:3] or 32)
        return self.size * bits // 8

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.dims)}".replace(" ", "")


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    op: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    called: tuple[str, ...]
    cycles: int
    rest: str = dataclasses.field(repr=False)  # the line from the operands on

    @property
    def origin(self) -> str:
        """Where in the program it comes from."""
        found = _OP_NAME.search(self.rest)
        return found.group(1) if found else ""


@dataclasses.dataclass(frozen=True)
class Collective:
    op: str
    nbytes: int  # of its result on one device
    origin: str


class Hlo:
    """A compiled module. `step` is the body of its outermost loop, if it has one: what runs for each token.

    `trips`: how often loops run that do not say so themselves, by expressions that their origins match.
    """

    def __init__(self, text: str, trips: Mapping[str, int] | None = None) -> None:
        self._known_trips = trips or {}
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = ""
        lines: list[Instruction] = []
        for line in text.split("\n"):
            if line[:1] not in (" ", "}", "") and (head := _COMPUTATION.match(line)):
                lines = self.computations[head.group(2)] = []
                self.entry = head.group(2) if head.group(1) else self.entry
            elif line[:1] == " " and (found := _INSTRUCTION.match(line)):
                lines.append(_instruction(*found.groups()[1:]))

    @functools.cached_property
    def step(self) -> str:
        """Name of the body of the entry's most expensive loop; "" if it has none."""
        bodies = [_loop(one)[1] for one in self.computations[self.entry] if one.op == "while"]
        return max(bodies, key=self.cycles, default="")

    def cycles(self, computation: str, cheapest: str | None = None) -> int:
        """The compiler's estimate for a computation, loops counted as often as they run if that is known, else once.

        Of a conditional the dearest branch counts, or the cheapest if its origin matches the expression `cheapest`.
        Collectives have no estimate.
        """
        return sum(self._cycles(one, cheapest) for one in self.computations[computation])

    def _cycles(self, one: Instruction, cheapest: str | None) -> int:
        if one.op == "while":
            condition, body = _loop(one)
            return self._trips(one) * (self.cycles(body, cheapest) + self.cycles(condition, cheapest))
        if one.op == "conditional":
            choose = max if cheapest is None or not re.search(cheapest, one.origin) else min
            return choose(self.cycles(name, cheapest) for name in one.called)
        inside = sum(self.cycles(name, cheapest) for name in one.called) if one.op in ("call", "async-start") else 0
        return one.cycles + inside

    def _trips(self, loop: Instruction) -> int:
        """How often a loop runs: from `i < constant`, counted from 0; 1 where nobody says it."""
        for origin, trips in self._known_trips.items():
            if re.search(origin, loop.origin):
                return trips
        body = [one for one in self.computations[_loop(loop)[0]] if one.op not in ("parameter", "get-tuple-element")]
        inner = [one for fused in body if fused.op == "fusion" for one in self.computations[fused.called[0]]]
        bounds = [int(n.group(1)) for one in body if one.op == "constant" and (n := re.match(r"(\d+)\)", one.rest))]
        compares = [one for one in body + inner if one.op == "compare"]
        others = [one for one in body + inner if one.op in ("and", "or", "reduce", "all-reduce")]
        return bounds[0] if len(bounds) == len(compares) == 1 and not others else 1

    def executed(
        self, start: str | None = None, branches: bool = True, rare: str | None = None
    ) -> Iterator[tuple[str, Instruction]]:
        """Every instruction that runs by itself, with its computation; those inside a fusion do not.

        `branches`: those of conditionals too; but of one whose origin matches the expression `rare`, only the first.
        """
        pending, seen = [start or self.entry], set()
        while pending:
            name = pending.pop()
            if name in seen:
                continue
            seen.add(name)
            for one in self.computations[name]:
                yield name, one
                if one.op in ("while", "call", "async-start") or (branches and one.op == "conditional"):
                    pending += one.called[:1] if rare and re.search(rare, one.origin) else one.called

    def collectives(self, start: str | None = None, branches: bool = True) -> list[Collective]:
        """Each as often as it runs, where that is known. `branches`: see `executed`."""
        found = []
        for one in self.computations[start or self.entry]:
            if (op := one.op.removesuffix("-start")) in COLLECTIVES:
                found.append(Collective(op, max(array.nbytes for array in one.results), one.origin))
            elif one.op in ("while", "call", "async-start") or (branches and one.op == "conditional"):
                inside = [sent for name in one.called for sent in self.collectives(name, branches)]
                found += inside * (self._trips(one) if one.op == "while" else 1)
        return found

    def offenders(
        self, sizes: Collection[int], limit: int, collective_limit: int, rare: str | None = None
    ) -> list[str]:
        """Data moved for nothing, one line for each.

        A copy, slice, transposition, gather or fusion of nothing else, whose result has as many elements as a weight
        or a cache (`sizes`) or more elements than any activation (`limit`); a collective of more elements than
        `collective_limit`. Loads into the memory beside the core, and stores from there, are no such thing. `rare`: see
        `executed`.
        """
        found = []
        asynchronous = (one for lines in self.computations.values() for one in lines if one.op == "async-start")
        started = {name for one in asynchronous for name in one.called}
        for computation, one in self.executed(rare=rare):
            size = max((array.size for array in one.results), default=0)
            op = one.op.removesuffix("-start")
            is_collective = op in COLLECTIVES
            moved = computation not in started and self._moves(one) and (size in sizes or size > limit)
            if moved or (is_collective and size > collective_limit):
                where = "at each step" if computation != self.entry else "at each call"
                found.append(f"{where}: {one.name} = {one.results[0]} {one.op}, from {one.origin or 'no operation'}")
        return found

    def widened(self, sizes: Collection[int], what: str = "a weight") -> list[str]:
        """Weights (`what`), of so many elements, that are written out as floats of more bits: a line for each."""
        found = []
        for computation, one in self.executed():
            beside = {other.name: other.results for other in self.computations[computation]}
            read = [array for name in one.operands for array in beside.get(name, ())]
            read.sort(key=lambda array: _bits(array.dtype), reverse=True)  # the narrowest of a size counts
            narrow = {array.size: _bits(array.dtype) for array in read if array.size in sizes and _bits(array.dtype)}
            found += [
                f"{one.name} = {array}, a wider copy of {what}, from {one.origin or 'no operation'}"
                for array in one.results
                if array.dtype.startswith(("f", "bf")) and one.op not in _CARRIERS
                if narrow.get(array.size, math.inf) < _bits(array.dtype)
            ]
        return found

    def _moves(self, one: Instruction) -> bool:
        if one.op in ("copy-start", "slice-start", "async-start"):
            inside = {part.op for name in one.called for part in self.computations[name]} - {"parameter"}
            return inside <= _MOVES and len({array.on_chip for array in one.results if array.size > 1}) == 1
        if one.op == "fusion":
            inside = {part.op for part in self.computations[one.called[0]]}
            return bool(inside & _MOVES) and inside <= _MOVES | _NEUTRAL
        return one.op in _MOVES


def _bits(dtype: str) -> int:
    """Of a number; 0 for what is none."""
    found = re.fullmatch(r"(?:bf|[fsu])(\d+).*", dtype)
    return int(found[1]) if found else 0


def _instruction(name: str, type_text: str, op: str, rest: str) -> Instruction:
    results = tuple(
        Array(dtype, tuple(map(int, dims.split(","))) if dims else (), bool(_ON_CHIP.search(layout)))
        for dtype, dims, layout in _SHAPE.findall(type_text)
    )
    operands = tuple(re.findall(r"%([\w.\-]+)", rest.partition(")")[0]))
    called = tuple(name for group in _CALLED.findall(rest) for name in re.findall(r"%([\w.\-]+)", group))
    found = _CYCLES.search(rest)
    cycles = int(found.group(1)) if found else 0
    # An estimate that overflowed is a negative number written as an unsigned one.
    return Instruction(name, op, results, operands, called, cycles if cycles < 2**62 else 0, rest)


def _loop(one: Instruction) -> tuple[str, str]:
    found = _BODY.search(one.rest)
    assert found, one
    return found.group(1), found.group(2)
