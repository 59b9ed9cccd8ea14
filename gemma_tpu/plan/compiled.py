"""Compiles the toolkit's own programs, at the shapes the engine uses, for TPUs that are not here."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import importlib.util
import os
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from gemma_tpu.cache.layer import Pages
from gemma_tpu.config import GemmaConfig
from gemma_tpu.deployment import IMAGE_BATCHES, STEPS_PER_CALL, Deployment, check_draft
from gemma_tpu.engine import programs, speculation
from gemma_tpu.engine.rows import images_of_chunk
from gemma_tpu.environment import LIBTPU_ALONE
from gemma_tpu.memory import Memory, shard_bytes
from gemma_tpu.plan.chips import Chip, Slice
from gemma_tpu.plan.hlo import Collective, Hlo
from gemma_tpu.quantization import Quantization
from gemma_tpu.sharding import make_mesh

PROGRAMS = ("decode", "prefill", "encode")
Progress = Callable[[str], None]
NO_LIBTPU = "planning needs the TPU compiler, though no TPU: pip install libtpu"

_DRAFT_LOOP = "/draft/while$"  # of gemma_tpu.engine.speculation
_NOT_DRAFTED = "^(?!.*/draft/while/body/cond$)"  # any conditional but whether there is another token to guess

_LIBTPU = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # to compile touches no chip: others may do so, or use one, at the same time
    # It otherwise asks a cloud's metadata server, which need not be there, what it runs on.
    "TPU_SKIP_MDS_QUERY": "1",
    **LIBTPU_ALONE,
}


def no_progress(_: str) -> None:
    pass


def versions() -> dict[str, str]:
    """Of what compiles."""
    found = {"jax": jax.__version__}
    try:
        found["libtpu"] = importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:  # given by TPU_LIBRARY_PATH alone
        found["libtpu"] = "unknown"
    return found


@functools.cache
def topology_devices(where: Slice) -> tuple[Any, ...]:
    """Stand-ins for the chips of a slice. RuntimeError without libtpu, ValueError for a topology it does not know."""
    if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        raise RuntimeError(NO_LIBTPU)
    for name, value in _LIBTPU.items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {}
    if where.num_chips == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    if where.chip.name == "v4":
        options["chip_config_name"] = "megacore"  # one device a chip
    try:
        return tuple(topologies.get_topology_desc(topology_name=where.topology, platform="tpu", **options).devices)
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(f"libtpu has no topology {where.topology}: {error}") from None


@functools.cache
def mesh_for(config: GemmaConfig, where: Slice, shape: tuple[int, int]) -> Mesh:
    """The mesh `load` would make of these devices; shape is (data, model)."""
    return make_mesh(config, shape, topology_devices(where))


@dataclasses.dataclass(frozen=True)
class Target:
    """A deployment on the chips of a slice."""

    deployment: Deployment
    where: Slice

    @property
    def chip(self) -> Chip:
        return self.where.chip

    @property
    def mesh_shape(self) -> tuple[int, int]:
        """(data, model)"""
        data = self.deployment.mesh.shape["data"]
        return data, self.where.num_chips // data

    @property
    def chunk(self) -> int:
        """Tokens of the longest prefill call."""
        return self.deployment.prefill_sizes[-1]

    @property
    def images(self) -> int:
        """Images on a device in a full call of the vision tower."""
        batch, data = IMAGE_BATCHES[0], self.mesh_shape[0]
        return batch // data if batch % data == 0 else batch

    @property
    def draft(self) -> Target | None:
        """The draft model alone."""
        small = self.deployment.draft
        return self.replace(config=small, draft=None, draft_tokens=0) if small else None

    def replace(self, **changes: Any) -> Target:
        """With other fields of the deployment, such as `rows` or `context`."""
        return dataclasses.replace(self, deployment=dataclasses.replace(self.deployment, **changes))


def deploy(
    config: GemmaConfig,
    where: Slice,
    shape: tuple[int, int],
    rows: int,
    context: int,
    dtype: DTypeLike = "bfloat16",
    cache_tokens: int | None = None,
    stored_prefixes: int = 0,
    draft_tokens: int = 0,
    draft: GemmaConfig | None = None,
    quantization: Quantization | None = None,
    kv_cache_dtype: str = "auto",
) -> Target:
    """A model on the mesh (data, model) that `load` would make of a slice's chips. ValueError for a draft it cannot."""
    check_draft(draft, config)
    small = draft and dataclasses.replace(draft, vision=None)  # it sees no images
    more = {"cache_tokens": cache_tokens, "stored_prefixes": stored_prefixes}
    more |= {"draft_tokens": draft_tokens, "draft": small, "quantization": quantization}
    more |= {"kv_cache_dtype": kv_cache_dtype}
    return Target(Deployment(config, mesh_for(config, where, shape), rows, context, dtype, **more), where)


@dataclasses.dataclass(frozen=True)
class Program:
    """A program as compiled; bytes are of one device.

    `outputs` are those that are not written over an argument, `inputs` the arguments beside weights and state. If the
    compiler refused, `needs` is set instead: the bytes it asked for. `cycles` is the compiler's estimate for one call;
    in the case of decode for one step that reads whole caches and takes the likeliest token, `sampled_cycles` if a row
    samples with a small top-k and top-p, and `short_cycles` if the caches hold little; a draft model guesses as many
    tokens as it may. `collectives` are those of that call or step, outside of conditionals. `hlo` and `collectives`
    are None, and there are no cycles, if the compiler refused. `kept`: this is from an earlier plan, without `hlo`.
    """

    name: str
    seconds: float
    inputs: int
    arguments: int = 0
    temporaries: int = 0
    outputs: int = 0
    aliased: int = 0
    code: int = 0
    cycles: int = 0
    sampled_cycles: int = 0
    short_cycles: int = 0
    needs: int | None = None
    collectives: tuple[Collective, ...] | None = None
    kept: bool = False
    hlo: Hlo | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def peak(self) -> int:
        return self.arguments + self.temporaries + self.outputs if self.needs is None else self.needs


def compile_programs(
    target: Target, names: Sequence[str] = PROGRAMS, progress: Progress = no_progress
) -> list[Program]:
    """Compiles the named ones; no encode for a model without a vision tower."""
    deployment, (data, model) = target.deployment, target.mesh_shape
    sizes = f"{deployment.context:,} tokens × {deployment.rows} rows on {target.where.topology}, mesh {data} × {model}"
    compiled = []
    for name in names:
        if name != "encode" or deployment.config.vision:
            progress(f"compiling {name}, {sizes}")
            compiled.append(_compile(deployment, name))
    return compiled


def _compile(deployment: Deployment, name: str) -> Program:
    lower = {"decode": _lower_decode, "prefill": _lower_prefill, "encode": _lower_encode}[name]
    return compile_one(name, *lower(deployment), draft_steps=1 + deployment.draft_tokens)


def compile_one(name: str, lowered: Any, inputs: int = 0, draft_steps: int = 1) -> Program:
    """`inputs`: bytes of the arguments beside weights and state on a device. `draft_steps`: of a draft model, if any,
    in a decode step."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            compiled = lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return Program(name, time.perf_counter() - begin, inputs, needs=_bytes_needed(str(error)))
        seconds = time.perf_counter() - begin
        # The same as `compiled.as_text()`, by which jaxlib 0.10 cannot read some of what libtpu makes for v5p and v6e.
        dumped = next(Path(folder).glob("*.after_codegen.txt"), None)
        hlo = Hlo(dumped.read_text() if dumped else compiled.as_text(), {_DRAFT_LOOP: draft_steps})
    sizes = compiled.memory_analysis()
    part = hlo.step if name == "decode" else hlo.entry
    return Program(
        name,
        seconds,
        inputs,
        arguments=sizes.argument_size_in_bytes,
        temporaries=sizes.temp_size_in_bytes,
        outputs=sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
        aliased=sizes.alias_size_in_bytes,
        code=sizes.generated_code_size_in_bytes,
        cycles=hlo.cycles(part, cheapest="/(more|sample)/"),
        sampled_cycles=hlo.cycles(part, cheapest="/(more|all)/cond$"),
        short_cycles=hlo.cycles(part, cheapest=_NOT_DRAFTED),
        collectives=tuple(hlo.collectives(part, branches=False)),
        hlo=hlo,
    )


def _bytes_needed(message: str) -> int:
    """Of a refusal such as "Used 20.50G of 15.75G hbm" or "the total memory required … (200.00G) exceeds"."""
    units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    for pattern in (r"[Uu]sed ([\d.]+)([KMGT]?) of", r"\(([\d.]+)([KMGT]?)\) exceeds available"):
        if found := re.search(pattern, message):
            return int(float(found.group(1)) * units[found.group(2)])
    raise RuntimeError(message)


def total_memory(target: Target, compiled: Sequence[Program]) -> Memory:
    """What stays on a device, with what the programs add to it."""
    memory = target.deployment.memory
    extra = []
    for program in compiled:
        # A program takes no weights that it does not read, but they stay where they are while it runs.
        taken = memory.vision if program.name == "encode" else memory.weights + memory.state + memory.draft
        beside = program.inputs + program.temporaries + program.outputs
        extra.append(beside if program.needs is None else program.needs - taken)
    return dataclasses.replace(memory, activations=max(extra), code=sum(program.code for program in compiled))


def _on_all(deployment: Deployment, shape: tuple[int, ...], dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=NamedSharding(deployment.mesh, PartitionSpec()))


def _pages(deployment: Deployment) -> Pages:
    each = _on_all(deployment, (deployment.pages,))
    return Pages(each, each)


def _lower_decode(deployment: Deployment) -> tuple[Any, int]:
    text, steps, pages = deployment.text, _on_all(deployment, (deployment.rows,)), _pages(deployment)
    arguments = text.abstract_params, text.abstract_state, None, steps, pages
    program = speculation.decode if deployment.draft_tokens else programs.decode
    return program.lower(*arguments, deployment=text, max_steps=STEPS_PER_CALL), shard_bytes([steps, pages])


def _lower_prefill(deployment: Deployment) -> tuple[Any, int]:
    """The largest there is: the longest chunk, images wherever they may stand, after a cached prefix."""
    text, B, T = deployment.text, 1, deployment.prefill_sizes[-1]
    images, soft_tokens = images_of_chunk(B, T, deployment.num_soft_tokens), None
    if images:
        shape = images, deployment.num_soft_tokens, deployment.config.embed_dim
        soft_tokens = _on_all(deployment, shape, deployment.dtype)
    tokens, row = _on_all(deployment, (B, T)), _on_all(deployment, (B,))
    chunk = tokens, row, row, soft_tokens, tokens, _pages(deployment)
    arguments = text.abstract_params, text.abstract_state, row if deployment.rows > 1 else None, *chunk
    lowered = programs.prefill.lower(*arguments, deployment=text, fresh=False)
    return lowered, shard_bytes(chunk)


def _lower_encode(deployment: Deployment) -> tuple[Any, int]:
    assert deployment.config.vision
    vision = {name: x for name, x in deployment.abstract_params.items() if name.startswith("vision.")}
    side = deployment.config.vision.image_size
    pixels = _on_all(deployment, (IMAGE_BATCHES[0], side, side, 3), jnp.float32)
    return programs.encode.lower(vision, pixels, deployment=deployment), shard_bytes([pixels])
