"""From a checkpoint to a model on a mesh."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gemma_tpu.api import Model
from gemma_tpu.checkpoint import (
    Checkpoint,
    CheckpointError,
    CheckpointWarning,
    load_params,
    merge_adapter,
    open_checkpoint,
    open_tree,
    read_text_assets,
    resolve,
    sample_digests,
    stored_quantization,
)
from gemma_tpu.checks import as_path, brief, check_flag, check_progress
from gemma_tpu.config import GemmaConfig, as_config
from gemma_tpu.deployment import Deployment, check_draft
from gemma_tpu.devices import choose_dtype, device_capacity, wake
from gemma_tpu.distributed.processes import everywhere, require_same
from gemma_tpu.engine.ahead import compiling_ahead
from gemma_tpu.model import Params, as_draft
from gemma_tpu.options import SamplingParams
from gemma_tpu.quantization import Quantization, as_quantization
from gemma_tpu.sharding import AXES, make_mesh, param_sharding
from gemma_tpu.sizes import as_mesh_shape, check_cache_tokens, check_sizes, guesses
from gemma_tpu.text import Format, Tokenizer


def load(
    source: str | Path,
    *,
    config: GemmaConfig | str | None = None,
    mesh: Mesh | tuple[int, int] | None = None,
    dtype: jax.typing.DTypeLike = "auto",
    quantize: Quantization | str | None = None,
    adapter: str | Path | None = None,
    max_context: int | None = None,
    max_rows: int = 8,
    cache_tokens: int | None = None,
    stored_prefixes: int = 0,
    draft: str | Path | None = None,
    draft_tokens: int | None = None,
    kv_cache_dtype: str = "auto",
    tokenizer: Tokenizer | str | Path | bytes | None = None,
    text_only: bool = False,
    verify: bool = True,
    compile_ahead: bool = False,
    progress: bool | Any = True,
) -> Model:
    """Loads a checkpoint onto a mesh.

    Args:
      source: a directory (Orbax in any layout, Hugging Face, GGUF), a .gguf file, a gs:// path, a name such as
        "gemma3-4b-it", or a model of a hub: "google/medgemma-4b-it", "owner/name@revision", the address of its page.
      config: inferred from the checkpoint unless given; a name such as "gemma3-4b" is that size's.
      mesh: a (data, model) shape or a mesh with those axes; by default all devices share the model.
      dtype: "bfloat16" or "float32"; "auto" is bfloat16, but float32 on a CPU and on GPUs without bfloat16 units (a
        T4), unless the model fits there only in bfloat16; `Model.dtype_reason` says which and why. float16 is refused:
        Gemma 3's activations overflow it.
      quantize: "int8" or "int4" keeps the decoder's matrices as such integers, with a scale for each output channel,
        and the embeddings as int8; a `Quantization` says it for each part. Weights are quantised while they are read,
        and products read the integers: half or a quarter of bfloat16's memory, and of what a decode step reads.
        Integers that are stored with such scales are kept as they are, unless they are wider. By default they are
        kept where a whole part is stored so, and nothing else is quantised; "none" dequantises those too. What is
        stored in any other way (groups, float8) is dequantised.
      adapter: a LoRA adapter of peft, gemma or tunix, merged into the weights while they are read (`merge_adapter`).
      max_context: tokens of prompt and answer together; by default 8,192, at most what the model was trained for.
      max_rows: requests that run at once, a multiple of the mesh's data axis.
      cache_tokens: what requests together may have in the cache of the layers that see the whole context, at least
        max_context; by default as much as all of them could need. Fewer let long and short ones share the memory: when
        there are none left, the newest request waits, and goes on where it was.
      stored_prefixes: prefixes of prompts that are kept when the sliding windows have passed them, each at the cost of
        a row's rings: for system prompts that many share, and for going back in a long conversation.
      draft: a smaller Gemma 3 that guesses tokens, as `source`; it sees no images, and is quantised as the model. The
        model looks at several in one step and keeps those that it would have written itself: the same answer, sampled
        or not, in fewer steps.
      draft_tokens: tokens to guess at each step, by default 4 if there is a draft model, else none; at most 15. Without
        a draft model they are what followed where the text so far was like its end (prompt lookup): for answers that
        repeat what was said, as in editing, summaries and code.
      kv_cache_dtype: "int8" keeps keys and values as such integers, with a scale for each token and kv head: about half
        of bfloat16's memory for the cache. What differs in its last bit, as it may between a prompt read anew and one
        found in the cache, can round to another integer, so that a close choice between two tokens goes the other way.
        "auto" keeps them in `dtype`.
      tokenizer: a SentencePiece model or a tokenizer.json; by default the one beside the weights.
      text_only: leaves out the vision tower.
      verify: compares the files with their checksums while they are read, where those are known: what `convert` and
        `download` have written, and Hugging Face's cache. Each process does so with the files on its own disks.
      compile_ahead: compiles every program on other threads meanwhile, so that `Model.warmup` has less to do; requests
        wait for what they need of that. Of several processes none does.
      progress: a progress bar, or a function of (bytes done, bytes in all).

    Raises ValueError (CheckpointError for what is wrong with the files) naming what is wrong and what to do; also,
    before a weight is read, if weights and state would not fit on the devices.
    """
    tokens = guesses(draft_tokens, draft is not None)
    sizes = max_context, max_rows, cache_tokens, stored_prefixes, tokens, kv_cache_dtype
    config, mesh = as_config(config), check_deployment(mesh, dtype, *sizes)
    quantization = as_quantization(quantize)
    _check_others(tokenizer, progress)
    check_flag("text_only", text_only)
    check_flag("verify", verify)
    check_flag("compile_ahead", compile_ahead)
    adapter = adapter if adapter is None else as_path("adapter", adapter)
    base, checkpoint = _open(as_path("source", source), config, adapter, text_only, progress, verify)
    small = None if draft is None else _open_draft(as_path("draft", draft), progress, verify)

    def read(deployment: Deployment) -> Params:
        mesh, there = deployment.mesh, (source, base, adapter)
        require_same(lambda: sample_digests(checkpoint), mesh, _open_there, sample_digests, *there, False)
        read_there = functools.partial(_read_there, deployment=deployment, draft=draft, verify=verify)
        here = functools.partial(_read, checkpoint, deployment, progress, small)
        return everywhere(here, mesh, _open_there, read_there, *there, verify)

    if quantize is None:
        quantization = stored_quantization(checkpoint)
    return _deploy(checkpoint, read, mesh, dtype, *sizes, quantization, tokenizer, small, compile_ahead)


def from_params(
    params: Any,
    *,
    config: GemmaConfig | str | None = None,
    mesh: Mesh | tuple[int, int] | None = None,
    dtype: jax.typing.DTypeLike = "auto",
    quantize: Quantization | str | None = None,
    lora_alpha: float | None = None,
    max_context: int | None = None,
    max_rows: int = 8,
    cache_tokens: int | None = None,
    stored_prefixes: int = 0,
    draft_tokens: int | None = None,
    kv_cache_dtype: str = "auto",
    tokenizer: Tokenizer | str | Path | bytes | None = None,
    text_only: bool = False,
    progress: bool | Any = False,
) -> Model:
    """A model of parameters that are in memory: what Google's `gm.ckpts.load_params` returns, or a training's result.

    Args:
      params: a pytree of NumPy's or JAX's arrays in the layout of any Orbax checkpoint: nested or flat dicts, Flax's
        FrozenDict, an NNX state or module (tunix's Gemma3), MaxText's tree. A trainer's state may be around it. LoRA
        parameters in it are merged.
      lora_alpha: of qwix's LoRA parameters, as tunix trains them: their tree does not hold it.
      config, mesh, dtype, quantize, max_context, max_rows, cache_tokens, stored_prefixes, draft_tokens,
        kv_cache_dtype, tokenizer, text_only, progress: as of `load`. There is no tokenizer unless one is given.

    The arrays are copied through host memory, a few at a time, and stay the caller's: a device that holds them needs
    room for both. For one process; several load the same checkpoint instead.

    Raises as `load`; the errors name parameters as they are called in a checkpoint.
    """
    if jax.process_count() > 1:
        raise ValueError("from_params is for one process: save the parameters with Orbax, and load() that checkpoint")
    tokens = guesses(draft_tokens, False)
    sizes = max_context, max_rows, cache_tokens, stored_prefixes, tokens, kv_cache_dtype
    config, mesh = as_config(config), check_deployment(mesh, dtype, *sizes)
    quantization = as_quantization(quantize)
    _check_others(tokenizer, progress)
    checkpoint = open_tree(params, config=config, text_only=text_only, lora_alpha=lora_alpha)
    if quantize is None:
        quantization = stored_quantization(checkpoint)
    read = functools.partial(_read, checkpoint, progress=progress)
    return _deploy(checkpoint, read, mesh, dtype, *sizes, quantization, tokenizer)


def _check_others(tokenizer: Any, progress: Any) -> None:
    check_progress(progress)
    if not isinstance(tokenizer, Tokenizer | bytes | None):
        as_path("tokenizer", tokenizer)


def check_deployment(
    mesh: Any,
    dtype: Any,
    max_context: Any,
    max_rows: Any,
    cache_tokens: Any = None,
    stored_prefixes: Any = 0,
    draft_tokens: Any = 0,
    kv_cache_dtype: Any = "auto",
) -> Mesh | tuple[int, int] | None:
    """The mesh that is meant. ValueError for an argument that no model can take, before a file is opened."""
    check_sizes(max_context, max_rows, cache_tokens, stored_prefixes, draft_tokens, kv_cache_dtype)
    if not (isinstance(dtype, str) and dtype == "auto"):
        named_dtype(dtype)
    if isinstance(mesh, Mesh):
        if mesh.axis_names != AXES and set(mesh.axis_names) != {"data", "model"}:
            raise ValueError(f"mesh: its axes must be named data and model, got {brief(mesh.axis_names)}")
        return mesh
    return mesh if mesh is None else as_mesh_shape(mesh)


def _deploy(
    checkpoint: Checkpoint,
    read: Callable[[Deployment], Params],
    mesh: Mesh | tuple[int, int] | None,
    dtype: jax.typing.DTypeLike,
    max_context: int | None,
    max_rows: int,
    cache_tokens: int | None,
    stored_prefixes: int,
    draft_tokens: int,
    kv_cache_dtype: str,
    quantization: Quantization | None,
    tokenizer: Tokenizer | str | Path | bytes | None,
    draft: Checkpoint | None = None,
    compile_ahead: bool = False,
) -> Model:
    """Checks what a caller asks for against the checkpoint and the devices, then reads the weights."""
    sizes = max_context, max_rows, cache_tokens, stored_prefixes, draft_tokens, draft and draft.config
    deployment, dtype_reason = deploy(checkpoint.config, mesh, dtype, *sizes, quantization, kv_cache_dtype)
    tokenizer, defaults, format = _text_side(checkpoint, tokenizer)
    how = {"dtype_reason": dtype_reason, "defaults": defaults, "format": format}
    with compiling_ahead(deployment, compile_ahead) as ahead:
        return Model(deployment, read(deployment), tokenizer, ahead=ahead, **how)


def deploy(
    config: GemmaConfig,
    mesh: Mesh | tuple[int, int] | None,
    dtype: jax.typing.DTypeLike,
    max_context: int | None,
    max_rows: int,
    cache_tokens: int | None = None,
    stored_prefixes: int = 0,
    draft_tokens: int = 0,
    draft: GemmaConfig | None = None,
    quantization: Quantization | None = None,
    kv_cache_dtype: str = "auto",
) -> tuple[Deployment, str]:
    """What `load` makes of arguments that `check_deployment` has seen, and if the dtype was "auto" why it was chosen.

    ValueError if the model cannot have it, or the devices have no room.
    """
    if max_context is None:
        max_context = min(8192, config.max_context)
    if not 2 <= max_context <= config.max_context:
        raise ValueError(f"max_context must be in [2, {config.max_context}] for this model, got {max_context}")
    if cache_tokens is not None:
        check_cache_tokens(cache_tokens, max_context)
    if not isinstance(mesh, Mesh):
        mesh = make_mesh(config, mesh)
    elif mesh.axis_names != AXES:
        devices = mesh.devices if mesh.axis_names[0] == "data" else mesh.devices.T
        mesh = make_mesh(config, devices.shape, list(devices.flat))
    if max_rows % (copies := mesh.shape["data"]):
        raise ValueError(f"max_rows {max_rows} must be a multiple of the {copies} copies of the model in this mesh")
    wake(mesh)
    check_draft(draft, config)
    more = {"cache_tokens": cache_tokens, "stored_prefixes": stored_prefixes}
    more |= {"draft_tokens": draft_tokens, "draft": draft, "quantization": quantization}
    more |= {"kv_cache_dtype": kv_cache_dtype}
    one = functools.partial(Deployment, config, mesh, max_rows, max_context, **more)
    capacity = device_capacity(mesh)
    chosen, dtype_reason = resolve_dtype(dtype, mesh, lambda dtype: one(dtype).fits(capacity))
    deployment = one(chosen)
    deployment.require_room(capacity)
    return deployment, dtype_reason


def _text_side(
    checkpoint: Checkpoint, given: Tokenizer | str | Path | bytes | None
) -> tuple[Tokenizer | None, SamplingParams, Format]:
    """Tokenizer, defaults and prompt format; a `CheckpointWarning` says what of the files is not followed."""
    assets = read_text_assets(checkpoint)
    tokenizer = assets.open_tokenizer(given)
    try:
        defaults = SamplingParams(**assets.sampling_defaults(tokenizer))
    except CheckpointError:  # has the path
        raise
    except ValueError as error:
        raise CheckpointError(f"{assets.generation_config.path or assets.config_path}: {error}") from error
    for note in assets.notes(tokenizer):
        warnings.warn(note, CheckpointWarning, stacklevel=3)
    return tokenizer, defaults, assets.format


def _open(
    source: str | Path,
    config: GemmaConfig | None,
    adapter: str | Path | None,
    text_only: bool,
    progress: bool | Any,
    verify: bool,
) -> tuple[GemmaConfig, Checkpoint]:
    """The base's config, and the checkpoint with the adapter merged, which may make another config of it."""
    base = open_checkpoint(resolve(source, progress=progress), config=config, text_only=text_only, verify=verify)
    if adapter is None:
        return base.config, base
    path = str(resolve(adapter, progress=progress))
    return base.config, merge_adapter(base, path, text_only=text_only, verify=verify)


def _open_draft(source: str | Path, progress: bool | Any, verify: bool) -> Checkpoint:
    try:
        return _open(source, None, None, True, progress, verify)[1]
    except ValueError as error:
        raise type(error)(f"draft: {error}") from error


def _open_there(
    use: Callable[[Checkpoint], Any], source: str | Path, base: GemmaConfig, adapter: str | Path | None, verify: bool
) -> Any:
    """What another process does with the checkpoint that process 0 loads. The config says whether with vision."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointWarning)  # process 0 has said it
        return use(_open(source, base, adapter, base.vision is None, False, verify)[1])


def _read_there(checkpoint: Checkpoint, deployment: Deployment, draft: str | Path | None, verify: bool) -> Params:
    """What another process has of a checkpoint and that of the draft model."""
    read = functools.partial(_read, checkpoint, deployment, False)
    return _open_there(read, draft, deployment.draft, None, verify) if draft and deployment.draft else read()


def _read(
    checkpoint: Checkpoint, deployment: Deployment, progress: bool | Any, draft: Checkpoint | None = None
) -> Params:
    params = load_params(
        checkpoint,
        checkpoint.config,
        dtype=deployment.dtype,
        sharding=lambda name, shape: param_sharding(name, shape, deployment.mesh),
        grid=deployment.grid,
        progress=progress,
    )
    return params if draft is None else {**params, **as_draft(_read(draft, deployment, progress))}


def resolve_dtype(
    dtype: jax.typing.DTypeLike, mesh: Mesh, fits: Callable[[jnp.dtype], bool] = lambda _: True
) -> tuple[jnp.dtype, str]:
    """The dtype that is meant, and if it was "auto" why it was chosen. `fits`: whether the model would, in a dtype."""
    if isinstance(dtype, str) and dtype == "auto":
        return choose_dtype(mesh, fits)
    return named_dtype(dtype), ""


def named_dtype(dtype: Any) -> jnp.dtype:
    """bfloat16 or float32, as it is meant. ValueError for anything else."""
    try:
        if dtype is not None and (found := jnp.dtype(dtype)) in (jnp.bfloat16, jnp.float32):
            return found
    except Exception:  # it may be anything, and NumPy asks it several questions
        pass
    raise ValueError(f'dtype must be "bfloat16" or "float32" (float16 overflows in Gemma 3), got {brief(dtype)}')
