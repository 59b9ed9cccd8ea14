"""What the TPU compiler said of programs, kept in the cache directory: the next plan compiles only what is new."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gemma_tpu import fingerprint
from gemma_tpu.environment import cache_dir, write_whole
from gemma_tpu.plan.compiled import PROGRAMS, Program, Progress, Target, compile_programs, no_progress, versions
from gemma_tpu.plan.hlo import Collective

# Two at a time: the compiler keeps little more than a core busy with one, and takes a GB or two for it.
_COMPILERS = ThreadPoolExecutor(max_workers=2, thread_name_prefix="compile")
_ENCODE = ("config", "mesh", "dtype", "quantization")  # of a deployment, all that the vision tower's program looks at


def compile_cached(target: Target, names: Sequence[str] = PROGRAMS, progress: Progress = no_progress) -> list[Program]:
    """As `compile_programs`, but without HLO, and from the cache if the same was compiled before.

    The same is: this package's sources, the versions of jax and libtpu and their flags, the slice, the mesh, the model
    and its sizes.
    """
    (programs,) = compile_all([(target, names)], progress)
    return programs


def compile_all(
    wanted: Sequence[tuple[Target, Sequence[str]]], progress: Progress = no_progress
) -> list[list[Program]]:
    """`compile_cached` of each, some at the same time."""
    jobs = [
        [
            _COMPILERS.submit(_compile, target, name, progress)
            for name in names
            if name != "encode" or target.deployment.config.vision
        ]
        for target, names in wanted
    ]
    try:
        return [[job.result() for job in of_target] for of_target in jobs]
    finally:
        for job in itertools.chain(*jobs):
            job.cancel()  # if another failed, or Ctrl-C was pressed


def _compile(target: Target, name: str, progress: Progress) -> Program:
    key = _key(target, name)
    if key and (kept := _read(key)) is not None:
        return kept
    (program,) = compile_programs(target, [name], progress)
    program = dataclasses.replace(program, hlo=None)
    try:
        if key and key == _key(target, name):  # what it follows from may have changed meanwhile
            _write(key, program)
    except OSError as error:
        warnings.warn(f"not kept for the next plan: {error}", RuntimeWarning, stacklevel=2)
    return program


def _key(target: Target, name: str) -> str | None:
    """None if nothing says what this process would compile."""
    sources = fingerprint.sources()
    if sources is None:
        return None
    deployment = target.deployment
    fields = _ENCODE if name == "encode" else [field.name for field in dataclasses.fields(deployment)]
    sizes = {field: getattr(deployment, field) for field in fields}
    sizes["mesh"] = target.mesh_shape
    made_by = fingerprint.flags(), versions(), sources
    return hashlib.sha256(repr((name, target.where, sizes, made_by)).encode()).hexdigest()


def _path(key: str) -> Path:
    return cache_dir() / "plans" / f"{key}.json"


def _read(key: str) -> Program | None:
    try:
        said = json.loads(_path(key).read_text())
        sent = said.pop("collectives")
        return Program(**said, collectives=None if sent is None else tuple(Collective(*one) for one in sent), kept=True)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # there is none, or it is damaged
        return None


def _write(key: str, program: Program) -> None:
    said = {field.name: getattr(program, field.name) for field in dataclasses.fields(program)}
    del said["hlo"], said["kept"]
    if program.collectives is not None:
        said["collectives"] = [dataclasses.astuple(one) for one in program.collectives]
    write_whole(_path(key), json.dumps(said).encode())
