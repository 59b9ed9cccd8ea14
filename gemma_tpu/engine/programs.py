"""The device programs and the one state they share. Letters: see gemma_tpu.config; R: rows of the cache.

Every program takes the state and returns it, donated, so that nothing of cache size is ever copied. What changes
between calls is an array; static are the deployment and the few choices that make another program.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Int16, UInt8

from gemma_tpu.cache.layer import Pages
from gemma_tpu.cache.state import RowParams, State
from gemma_tpu.config import GemmaConfig
from gemma_tpu.deployment import Deployment
from gemma_tpu.engine.device_program import device_program
from gemma_tpu.engine.draw import draw, nothing_drawn
from gemma_tpu.engine.forward import hidden_states, image_ids
from gemma_tpu.engine.step import NOT_FINITE, Drawn
from gemma_tpu.model import Params, Transformer, draft_params, text_model, vision_model
from gemma_tpu.ops.attention import by_kernel, own_keys
from gemma_tpu.ops.logits import last_tokens, unpack
from gemma_tpu.ops.logprobs import log_probs
from gemma_tpu.ops.patch_attention import patch_attention
from gemma_tpu.ops.rows import row_padding
from gemma_tpu.options import NO_TOKEN

_SCORED = 64  # positions whose logits `score` has at once: 67 MB over the vocabulary of the released models


@functools.partial(jax.jit, static_argnames=("deployment",))
def init_state(deployment: Deployment) -> State:
    """An empty state, made in place on the mesh."""
    return pin(deployment.empty_state(), deployment)


def pin(state: State, deployment: Deployment) -> State:
    """Keeps the shardings of what a program took, so that its buffers can be reused."""
    return jax.tree.map(jax.lax.with_sharding_constraint, state, state.shardings(deployment.mesh))


def on_all(x: jax.Array, deployment: Deployment) -> jax.Array:
    """`x` whole on every device."""
    return jax.lax.with_sharding_constraint(x, NamedSharding(deployment.mesh, PartitionSpec()))


@jax.jit
def finite(logits: Float[Array, "*batch V"]) -> Bool[Array, "*batch"]:
    """False where logits hold NaN or positive infinity, or negative infinity alone: by their largest."""
    return jnp.isfinite(jnp.max(logits, axis=-1))


def model_in_loop(config: GemmaConfig, params: Params, platform: str) -> Callable[[Int[Array, ""]], Transformer]:
    """The decoder for each turn of a loop, by the turn's number.

    Norms compute in float32. XLA for TPUs and CPUs would convert their scales at each turn, and is given them converted
    before the loop. For GPUs a conversion is part of the kernel that needs it, unless XLA moves it out of the loop,
    where it is a kernel of its own: 137 of 4B at every call. So there the scales seem to be others at each turn.
    """
    scales: dict[str, Any] = {name: x for name, x in params.items() if name.endswith("norm.scale")}
    if platform != "gpu":
        model = text_model(config, {**params, **jax.tree.map(lambda x: x.astype(jnp.float32), scales)})
        return lambda i: model
    return lambda i: text_model(config, {**params, **jax.lax.optimization_barrier((scales, i))[0]})


@functools.partial(jax.jit, static_argnames=("deployment",))
def encode(
    params: Params, pixels: Float[Array, "I side side 3"], *, deployment: Deployment
) -> tuple[Float[Array, "soft D"], ...]:
    """Soft tokens of each image, as separate arrays that are whole on every device."""
    attend = functools.partial(patch_attention, mesh=deployment.mesh)
    soft_tokens = vision_model(deployment.config, params)(pixels, attend=attend)
    return tuple(on_all(image, deployment) for image in soft_tokens)


@functools.partial(jax.jit, static_argnames=("deployment",))
def stack(images: tuple[Float[Array, "soft D"], ...], *, deployment: Deployment) -> Float[Array, "I soft D"]:
    """One array of several images' soft tokens, for `prefill`."""
    return on_all(jnp.stack(images), deployment)


@functools.partial(jax.jit, static_argnames=("deployment",))
def blank_image(deployment: Deployment) -> Float[Array, "soft D"]:
    """Soft tokens of no image, to fill `stack` up to a known size."""
    shape = deployment.num_soft_tokens, deployment.config.embed_dim
    return on_all(jnp.zeros(shape, deployment.dtype), deployment)


def _attends_in_loops(deployment: Deployment) -> bool:
    """Whether `prefill` does, in the lack of a kernel."""
    return not by_kernel(deployment.mesh, deployment.dtype, deployment.config.head_dim)


@device_program(static=("deployment", "fresh"), donated=("state",), loops=_attends_in_loops)
def prefill(
    params: Params,
    state: State,
    rows: Int[Array, "B"] | None,
    tokens: Int[Array, "B T"],
    start: Int[Array, "B"],
    count: Int[Array, "B"],
    soft_tokens: Float[Array, "I soft D"] | None,
    soft_index: Int[Array, "B T"],
    pages: Pages,
    *,
    deployment: Deployment,
    fresh: bool,
) -> tuple[State, Int[Array, "B"]]:
    """Puts the first `count` tokens of each row at positions start … start + count - 1 of its cache.

    `rows` are the rows of the state at hand, None for all of them; a row with count 0 is left as it is. `fresh` says
    that every row starts at 0, so that there is no cache to attend to; otherwise there is one row. No image may reach
    over the chunk's end. The numbers are for who wants to know when it is done.
    """
    row_ids = jnp.arange(state.length.shape[0]) if rows is None else rows
    B, T = tokens.shape
    token = jnp.arange(T)
    positions = start[:, None] + token
    key_pos = jnp.where(token < count[:, None], positions, -1)
    image = jnp.zeros((B, T), jnp.int32) if soft_tokens is None else image_ids(soft_index, soft_tokens.shape[1])

    def read(model: Transformer, x: jax.Array, before: Any) -> Any:
        """The cache `before`, with the chunk."""
        cache = before

        def attend_layer(layer: int, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
            nonlocal cache
            cache = cache.write(layer, row_ids, key, value, start, count, pages)
            own = own_keys(key, value, key_pos, image)
            cached = None if fresh else start
            return before.attend(layer, query, positions, length=cached, pages=pages, rows=rows, own=own)

        model(x, positions, attend_layer, mesh=deployment.mesh)
        return cache

    model = text_model(deployment.config, params)
    cache = read(model, model.embed(tokens, soft_tokens, soft_index, mesh=deployment.mesh), state.cache)
    draft = None
    if deployment.draft:  # which sees no images
        small = text_model(deployment.draft, draft_params(params))
        draft = read(small, small.embed(tokens, mesh=deployment.mesh), state.draft)
    length = state.length.at[row_ids].set(jnp.where(count > 0, start + count, state.length[row_ids]))
    state = dataclasses.replace(state, cache=cache, length=length, draft=draft)
    return pin(state, deployment), on_all(count, deployment)


@functools.partial(jax.jit, static_argnames=("deployment",), donate_argnames=("state",))
def activate(
    state: State,
    row: Int[Array, ""],
    length: Int[Array, ""],
    last: Int[Array, ""],
    remaining: Int[Array, ""],
    row_params: RowParams,
    recent: Int[Array, "recent"],
    text: Int[Array, "context"] | None = None,
    *,
    deployment: Deployment,
) -> State:
    """Lets a row of `length` cached tokens decode up to `remaining` more (0: rests).

    `row_params` are of one row, with bits for `allowed` (`gemma_tpu.ops.logits.unpack`). `text` is that of `State`.
    """
    allowed = unpack(row_params.adjustments.allowed, deployment.config.vocab_size)
    adjustments = dataclasses.replace(row_params.adjustments, allowed=allowed)
    row_params = dataclasses.replace(row_params, adjustments=adjustments)
    state = State(
        cache=state.cache,
        history=dataclasses.replace(state.history, recent=state.history.recent.at[row].set(recent)),
        length=state.length.at[row].set(length),
        last=state.last.at[row].set(last),
        remaining=state.remaining.at[row].set(remaining),
        row_params=jax.tree.map(lambda all_rows, one: all_rows.at[row].set(one[0]), state.row_params, row_params),
        draft=state.draft,
        text=None if state.text is None else state.text.at[row].set(text),
    )
    return pin(state, deployment)


@functools.partial(jax.jit, static_argnames=("deployment",), donate_argnames=("state",))
def release(state: State, row: Int[Array, ""], *, deployment: Deployment) -> State:
    """Puts a row to rest where it stands."""
    return pin(dataclasses.replace(state, remaining=state.remaining.at[row].set(0)), deployment)


@functools.partial(jax.jit, static_argnames=("deployment",), donate_argnames=("state",))
def clear(state: State, row: Int[Array, ""], pages: Bool[Array, "A"], *, deployment: Deployment) -> State:
    """Empties a row, and pages."""
    numbers = {name: getattr(state, name).at[row].set(0) for name in ("length", "last", "remaining")}
    state = state.map_caches(lambda cache: cache.clear(row, pages))
    return pin(dataclasses.replace(state, **numbers), deployment)


@functools.partial(jax.jit, static_argnames=("deployment",), donate_argnames=("state",))
def copy_pages(
    state: State,
    source: Int[Array, "count"],
    target: Int[Array, "count"],
    tokens: Int[Array, ""],
    *,
    deployment: Deployment,
) -> State:
    """The first `tokens` of successive pages, to others; a target past the end is none."""
    return pin(state.map_caches(lambda cache: cache.copy_pages(source, target, tokens)), deployment)


@functools.partial(jax.jit, static_argnames=("deployment", "kind"), donate_argnames=("state",))
def copy_rings(
    state: State,
    source: Int[Array, ""],
    target: Int[Array, ""],
    length: Int[Array, ""],
    *,
    deployment: Deployment,
    kind: str,
) -> State:
    """What a row needs after `length` tokens: from row to row ("copy"), to a stored prefix ("store"), or back
    ("restore").

    A row that rests is written to behind its last token: so it has to be known where that is.
    """
    state = state.map_caches(lambda cache: getattr(cache, f"{kind}_rings")(source, target, length))
    lengths = state.length if kind == "store" else state.length.at[target].set(length)
    return pin(dataclasses.replace(state, length=lengths), deployment)


@functools.partial(jax.jit, static_argnames=("deployment",), donate_argnames=("state",))
def set_counts(state: State, row: Int[Array, ""], counts: Int16[Array, "V"], *, deployment: Deployment) -> State:
    """What a row with penalties has said, see `gemma_tpu.ops.logits.History`."""
    history = dataclasses.replace(state.history, counts=state.history.counts.at[row].set(counts))
    return pin(dataclasses.replace(state, history=history), deployment)


@functools.partial(jax.jit, static_argnames=("deployment",), donate_argnames=("state",))
def allow(state: State, given: Bool[Array, "R"], bits: UInt8[Array, "R bytes"], *, deployment: Deployment) -> State:
    """Which tokens each of the `given` rows may draw from now on (`gemma_tpu.ops.logits.unpack`)."""
    asked = state.row_params.adjustments
    allowed = jnp.where(given[:, None], unpack(bits, asked.allowed.shape[1]), asked.allowed)
    params = dataclasses.replace(state.row_params, adjustments=dataclasses.replace(asked, allowed=allowed))
    return pin(dataclasses.replace(state, row_params=params), deployment)


@functools.partial(jax.jit, static_argnames=("deployment",), donate_argnames=("state",))
def count_tokens(
    state: State, rows: Int[Array, "B"] | None, tokens: Int[Array, "steps B"], *, deployment: Deployment
) -> State:
    """Adds what `decode` returned for `rows` to the counts."""
    history, picked = state.history, jnp.arange(tokens.shape[1]) if rows is None else rows
    most = jnp.iinfo(jnp.int16).max - 2 * tokens.shape[0]  # a token said more often is not counted further
    more = jnp.where(history.counts[picked, tokens] < most, 2, 0).astype(jnp.int16)
    counts = history.counts.at[picked, jnp.where(tokens < 0, history.counts.shape[1], tokens)].add(more, mode="drop")
    return pin(dataclasses.replace(state, history=dataclasses.replace(history, counts=counts)), deployment)


@device_program(static=("deployment", "max_steps"), donated=("state",))
def decode(
    params: Params,
    state: State,
    rows: Int[Array, "B"] | None,
    steps: Int[Array, "B"],
    pages: Pages,
    *,
    deployment: Deployment,
    max_steps: int,
) -> tuple[State, Drawn]:
    """Up to `steps` ≤ max_steps tokens for each row, if it has as many remaining; NO_TOKEN after its end.

    Of each token its log-probabilities too, which are none at a step where no row that decodes asks for them.

    A row whose logits are not finite ends with NOT_FINITE; it is to be cleared before it is used again.

    `rows` picks rows of the state, None takes all. `pages` are those of rows that decode, up to the last token that may
    be written. Matrix products are padded to rows that suit the platform
    (gemma_tpu.ops.rows).
    """
    picked = state if rows is None else state.take(rows)
    B = picked.length.shape[0]
    pad, unpad = row_padding(B, deployment.mesh)
    model, row_params = model_in_loop(deployment.config, params, deployment.platform), picked.row_params

    def step(carry: tuple[jax.Array, State, Drawn]) -> tuple[jax.Array, State, Drawn]:
        i, row, drawn = carry
        model_now = model(i)
        active = (i < steps) & (row.remaining > 0)
        position = row.length[:, None]
        cache = row.cache
        held = jnp.where(active, row.length + 1, 1)

        def attend_layer(layer: int, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
            nonlocal cache
            own = (unpad(x) for x in (query, key, value))
            cache, encoded = cache.append_and_attend(layer, *own, length=row.length, held=held, pages=pages)
            return pad(encoded)

        x = model_now.embed(pad(row.last[:, None]), mesh=deployment.mesh)
        x = model_now(x, pad(position), attend_layer, mesh=deployment.mesh)
        logits = unpad(model_now.embedder.decode(x))
        good = finite(logits)[:, 0]
        new = draw(logits, active, row, drawn.tokens)
        token = new.tokens[:, 0]
        stopped = jnp.any(token[:, None] == row_params.stop, axis=-1) | ~good
        row = State(
            cache=cache,
            length=row.length + active,
            last=jnp.where(active, token, row.last),
            remaining=jnp.where(active, jnp.where(stopped, 0, row.remaining - 1), row.remaining),
            row_params=row_params,
            history=row.history,
        )
        written = jnp.where(active, jnp.where(good, token, NOT_FINITE), NO_TOKEN)
        return i + 1, row, jax.tree.map(lambda x, one: x.at[i].set(one), drawn, new._replace(tokens=written))

    def unfinished(carry: tuple[jax.Array, State, Drawn]) -> jax.Array:
        i, row, _ = carry
        return jnp.any((i < steps) & (row.remaining > 0))

    empty = nothing_drawn(max_steps, B, deployment.config.vocab_size)
    _, picked, drawn = jax.lax.while_loop(unfinished, step, (jnp.int32(0), picked, empty))
    history = dataclasses.replace(picked.history, recent=last_tokens(picked.history, drawn.tokens))
    picked = dataclasses.replace(picked, history=history)
    if rows is not None:
        picked = state.put(rows, picked)
    # The host reads what was drawn, and can read only what its own devices hold.
    return pin(picked, deployment), jax.tree.map(lambda x: on_all(x, deployment), drawn)


@functools.partial(jax.jit, static_argnames=("deployment",))
def whole_sequences(
    params: Params,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, "B"],
    images: tuple[Float[Array, "soft D"], ...],
    soft_index: Int[Array, "B T"],
    *,
    deployment: Deployment,
) -> Float[Array, "B T D"]:
    """Final hidden states of whole sequences by the plain path, without a cache; whole on every device."""
    soft_tokens = jnp.stack(images) if images else None
    x = hidden_states(deployment.config, params, tokens, lengths, soft_tokens, soft_index)
    return on_all(x, deployment)


@functools.partial(jax.jit, static_argnames=("deployment", "whole"))
def head(
    params: Params, x: Float[Array, "B T D"], at: Int[Array, "B K"], *, deployment: Deployment, whole: bool
) -> tuple[Float[Array, "B K V"], Bool[Array, "B"]]:
    """float32 logits at some positions of each row alone, and which rows have finite ones.

    `whole`: the same on every device, so that each process of a mesh can read them.
    """
    model = text_model(deployment.config, params)
    logits = model.embedder.decode(jnp.take_along_axis(x, at[:, :, None], axis=1))
    good = on_all(jnp.all(finite(logits), axis=1), deployment)
    return on_all(logits, deployment) if whole else logits, good


@functools.partial(jax.jit, static_argnames=("deployment",))
def score(
    params: Params, x: Float[Array, "1 T D"], tokens: Int[Array, "1 T"], *, deployment: Deployment
) -> tuple[Float[Array, "T"], Int[Array, "T top"], Float[Array, "T top"]]:
    """Log-probabilities of `tokens`, of which each follows a hidden state (`gemma_tpu.ops.logprobs`).

    The logits of a few positions at a time, whole on every device.
    """
    model = text_model(deployment.config, params)
    at_once = math.gcd(x.shape[1], _SCORED)

    def part(x: jax.Array, tokens: jax.Array) -> tuple[jax.Array, ...]:
        return log_probs(model.embedder.decode(x[None])[0], tokens)

    parts = x.reshape(-1, at_once, x.shape[2]), tokens.reshape(-1, at_once)
    found = jax.lax.map(lambda one: part(*one), parts)
    scores, top_tokens, top = (on_all(array.reshape(-1, *array.shape[2:]), deployment) for array in found)
    return scores, top_tokens, top
