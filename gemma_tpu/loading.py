"""From a checkpoint to a model on a mesh."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gemma_tpu.api import Model
from gemma_tpu.checkpoint import Checkpoint, load_params, open_checkpoint, read_file, resolve
from gemma_tpu.config import GemmaConfig
from gemma_tpu.devices import choose_dtype
from gemma_tpu.model import Params
from gemma_tpu.plan.memory import check_resident, device_capacity, resident_memory
from gemma_tpu.runtime.distributed import everywhere
from gemma_tpu.sharding import AXES, make_mesh, param_sharding
from gemma_tpu.text import Tokenizer


def load(
    source: str | Path,
    *,
    config: GemmaConfig | None = None,
    mesh: Mesh | tuple[int, int] | None = None,
    dtype: jax.typing.DTypeLike = "auto",
    max_context: int | None = None,
    max_rows: int = 8,
    tokenizer: Tokenizer | str | Path | bytes | None = None,
    text_only: bool = False,
    progress: bool | Any = True,
) -> Model:
    """Loads a checkpoint onto a mesh.

    Args:
      source: a directory (Orbax in any layout, or Hugging Face), a gs:// path, or a name such as "gemma3-4b-it".
      config: inferred from the checkpoint unless given.
      mesh: a (data, model) shape or a mesh with those axes; by default all devices share the model.
      dtype: "bfloat16" or "float32"; "auto" is bfloat16, but float32 on devices without bfloat16 units (a CPU, a T4)
        unless the model fits a GPU only in bfloat16; `Model.dtype_reason` says which and why. float16 is refused: Gemma
        3's activations overflow it.
      max_context: tokens of prompt and answer together; by default 8,192, at most what the model was trained for.
      max_rows: requests that run at once, a multiple of the mesh's data axis.
      tokenizer: a SentencePiece model; by default the one beside the weights.
      text_only: leaves out the vision tower.
      progress: a progress bar, or a function of (bytes done, bytes in all).

    Raises ValueError (CheckpointError for what is wrong with the files) naming what is wrong and what to do; also,
    before a weight is read, if weights and state would not fit on the devices.
    """
    checkpoint = open_checkpoint(resolve(source, progress=progress), config=config, text_only=text_only)
    config = checkpoint.config
    if max_context is None:
        max_context = min(8192, config.max_context)
    if not 2 <= max_context <= config.max_context:
        raise ValueError(f"max_context must be in [2, {config.max_context}] for this model, got {max_context}")
    if max_rows < 1:
        raise ValueError(f"max_rows must be at least 1, got {max_rows}")
    if not isinstance(mesh, Mesh):
        mesh = make_mesh(config, mesh)
    elif mesh.axis_names != AXES:
        mesh = make_mesh(config, mesh.devices.shape, list(mesh.devices.flat))
    if max_rows % (copies := mesh.shape["data"]):
        raise ValueError(f"max_rows {max_rows} must be a multiple of the {copies} copies of the model in this mesh")
    capacity = device_capacity(mesh)

    def fits(dtype: jnp.dtype) -> bool:
        memory = resident_memory(config, mesh=mesh, rows=max_rows, context=max_context, dtype=dtype)
        return capacity is None or memory.resident <= capacity

    dtype, dtype_reason = resolve_dtype(dtype, mesh, fits)
    if not isinstance(tokenizer, Tokenizer | None):
        tokenizer = Tokenizer(tokenizer)
    if tokenizer is None and checkpoint.tokenizer_path is not None:
        tokenizer = Tokenizer(read_file(checkpoint.tokenizer_path))
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise ValueError(f"the tokenizer has {tokenizer.vocab_size} pieces, the model {config.vocab_size}: not a pair")
    size = {"rows": max_rows, "context": max_context, "dtype": dtype}
    check_resident(config, mesh=mesh, **size, capacity=capacity)
    params = everywhere(
        lambda: _read(checkpoint, dtype, mesh, text_only, progress), mesh, _open_and_read, source, config, dtype, mesh
    )
    shape = {"mesh": mesh, "max_context": max_context, "max_rows": max_rows}
    return Model(config, params, tokenizer, dtype=dtype, dtype_reason=dtype_reason, **shape)


def _read(checkpoint: Checkpoint, dtype: jnp.dtype, mesh: Mesh, text_only: bool, progress: bool | Any) -> Params:
    return load_params(
        checkpoint,
        checkpoint.config,
        dtype=dtype,
        sharding=lambda name, shape: param_sharding(name, shape, mesh),
        text_only=text_only,
        progress=progress,
    )


def _open_and_read(source: str | Path, config: GemmaConfig, dtype: jnp.dtype, mesh: Mesh) -> Params:
    """What another process does when process 0 loads a model. The config says whether with a vision tower."""
    text_only = config.vision is None
    checkpoint = open_checkpoint(resolve(source, progress=False), config=config, text_only=text_only)
    return _read(checkpoint, dtype, mesh, text_only, False)


def resolve_dtype(
    dtype: jax.typing.DTypeLike, mesh: Mesh, fits: Callable[[jnp.dtype], bool] = lambda _: True
) -> tuple[jnp.dtype, str]:
    """The dtype that is meant, and if it was "auto" why it was chosen. `fits`: whether the model would, in a dtype."""
    if isinstance(dtype, str) and dtype == "auto":
        return choose_dtype(mesh, fits)
    try:
        known = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float32)
    except TypeError:
        known = False
    if not known:
        raise ValueError(f'dtype must be "bfloat16" or "float32" (float16 overflows in Gemma 3), got {dtype}')
    return jnp.dtype(dtype), ""
