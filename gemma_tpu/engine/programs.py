"""The device programs and the one state they share. Letters: see gemma_tpu.config; R: rows of the cache.

Every program takes the state and gives it back, donated, so that nothing of cache size is ever copied. What changes
between calls is an array; static are only the architecture, the mesh and the choice of rows.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from gemma_tpu.cache.kv_cache import append, init_cache, slot_positions, write
from gemma_tpu.config import GemmaConfig
from gemma_tpu.engine.finite import finite
from gemma_tpu.engine.forward import hidden_states, image_ids
from gemma_tpu.engine.shapes import cache_length
from gemma_tpu.engine.step import NO_TOKEN, NOT_FINITE
from gemma_tpu.model import Params, text_model, vision_model
from gemma_tpu.model.vision import split_attention
from gemma_tpu.ops.attention import attend_part, finish, join
from gemma_tpu.ops.sampling import Leaf, Sampling, sample
from gemma_tpu.options import MAX_STOP_TOKENS
from gemma_tpu.sharding import partition


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowParams:
    """What the caller of a row asked for. `stop` is padded with NO_TOKEN."""

    sampling: Sampling
    stop: Leaf  # int32[R, MAX_STOP_TOKENS]
    forbidden: Leaf  # bool[R, V]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """Everything the device remembers between calls.

    `length`: tokens in the cache. `last`: the token to feed next, at position `length`. `remaining`: tokens a row may
    still produce; 0 means that it rests.
    """

    cache: Leaf  # Cache
    length: Leaf  # int32[R]
    last: Leaf  # int32[R]
    remaining: Leaf  # int32[R]
    row_params: RowParams


def _empty_state(config: GemmaConfig, rows: int, context: int, dtype: jax.typing.DTypeLike) -> State:
    zeros = functools.partial(jnp.zeros, rows)
    sampling = Sampling(zeros(), zeros(jnp.int32), zeros(), zeros(), zeros(jnp.uint32))
    stop = jnp.full((rows, MAX_STOP_TOKENS), NO_TOKEN)
    row_params = RowParams(sampling, stop, jnp.zeros((rows, config.vocab_size), bool))
    cache = init_cache(config, rows, context, dtype)
    return State(cache, zeros(jnp.int32), zeros(jnp.int32), zeros(jnp.int32), row_params)


def abstract_state(config: GemmaConfig, rows: int, context: int, dtype: jax.typing.DTypeLike, mesh: Mesh) -> State:
    """Shapes, dtypes and shardings of `init_state`, for a mesh that need not exist."""
    shapes = jax.eval_shape(functools.partial(_empty_state, config, rows, cache_length(context, mesh), dtype))
    return jax.tree.map(lambda x, s: x.update(sharding=s), shapes, state_shardings(shapes, mesh))


def init_state(config: GemmaConfig, rows: int, context: int, dtype: jax.typing.DTypeLike, mesh: Mesh) -> State:
    """An empty state of `rows` × `context` tokens (see `cache_length`), made in place on the mesh."""
    make = functools.partial(_empty_state, config, rows, cache_length(context, mesh), dtype)
    return jax.jit(make, out_shardings=state_shardings(jax.eval_shape(make), mesh))()


def state_shardings(state: State, mesh: Mesh) -> State:
    """The cache is split over rows and kv heads; the few numbers per row are on every device."""
    whole = NamedSharding(mesh, PartitionSpec())
    shardings = jax.tree.map(lambda _: whole, state)
    return dataclasses.replace(shardings, cache=jax.tree.map(lambda x: partition("RKSH", x.shape, mesh), state.cache))


def _pin(state: State, mesh: Mesh) -> State:
    """Keeps what a program returns where what it took was, so that the buffers can be reused."""
    return jax.tree.map(jax.lax.with_sharding_constraint, state, state_shardings(state, mesh))


@functools.partial(jax.jit, static_argnames=("config", "mesh"))
def encode(
    params: Params, pixels: Float[Array, "I side side 3"], *, config: GemmaConfig, mesh: Mesh
) -> tuple[Float[Array, "soft D"], ...]:
    """Soft tokens of each image, as separate arrays that are whole on every device."""
    soft_tokens = vision_model(config, params)(pixels, attend=functools.partial(split_attention, mesh=mesh))
    return tuple(jax.lax.with_sharding_constraint(one, NamedSharding(mesh, PartitionSpec())) for one in soft_tokens)


@functools.partial(jax.jit, static_argnames=("mesh",))
def stack(images: tuple[Float[Array, "soft D"], ...], *, mesh: Mesh) -> Float[Array, "I soft D"]:
    """One array of several images' soft tokens, for `prefill`."""
    return jax.lax.with_sharding_constraint(jnp.stack(images), NamedSharding(mesh, PartitionSpec()))


def blank_image(shape: tuple[int, int], dtype: jax.typing.DTypeLike, mesh: Mesh) -> Float[Array, "soft D"]:
    """Soft tokens [soft, D] of no image, to fill `stack` up to a known size."""
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=NamedSharding(mesh, PartitionSpec()))()


@functools.partial(jax.jit, static_argnames=("config", "mesh", "fresh"), donate_argnames=("state",))
def prefill(
    params: Params,
    state: State,
    rows: Int[Array, "B"] | None,
    tokens: Int[Array, "B T"],
    start: Int[Array, "B"],
    count: Int[Array, "B"],
    soft_tokens: Float[Array, "I soft D"] | None,
    soft_index: Int[Array, "B T"],
    *,
    config: GemmaConfig,
    mesh: Mesh,
    fresh: bool,
) -> State:
    """Puts the first `count` tokens of each row at positions start … start + count - 1 of its cache.

    `rows` are the rows of the state at hand, None for all of them; a row with count 0 is left as it is. `fresh` says
    that every row starts at 0, so that there is no cache to attend to. No image may reach over the chunk's end.
    """
    row_ids = jnp.arange(state.length.shape[0]) if rows is None else rows
    B, T = tokens.shape
    token = jnp.arange(T)
    positions = start[:, None] + token
    key_pos = jnp.where(token < count[:, None], positions, -1)
    image = jnp.zeros((B, T), jnp.int32) if soft_tokens is None else image_ids(soft_index, soft_tokens.shape[1])
    cache = list(state.cache)

    def attend_layer(layer: int, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        old = cache[layer]
        cache[layer] = write(old, row_ids, key, value, start, count)
        look = functools.partial(attend_part, query, window=config.layers[layer].window, mesh=mesh)
        keys, values = jnp.moveaxis(key, 1, 2), jnp.moveaxis(value, 1, 2)
        part = look(keys, values, positions, key_pos, query_image=image, key_image=image, length="T")
        if not fresh:
            keys, values = old if rows is None else (old[0][rows], old[1][rows])
            part = join(part, look(keys, values, positions, slot_positions(start, keys.shape[2])))
        return finish(part, query)

    model = text_model(config, params)
    x = model.embed(tokens, soft_tokens, soft_index, mesh=mesh)
    model(x, positions, attend_layer, mesh=mesh)
    length = state.length.at[row_ids].set(jnp.where(count > 0, start + count, state.length[row_ids]))
    return _pin(dataclasses.replace(state, cache=tuple(cache), length=length), mesh)


@functools.partial(jax.jit, static_argnames=("mesh",), donate_argnames=("state",))
def activate(
    state: State,
    row: Int[Array, ""],
    length: Int[Array, ""],
    last: Int[Array, ""],
    remaining: Int[Array, ""],
    row_params: RowParams,
    *,
    mesh: Mesh,
) -> State:
    """Lets a row of `length` cached tokens decode up to `remaining` more (0: rests). `row_params` are of one row."""
    state = State(
        cache=state.cache,
        length=state.length.at[row].set(length),
        last=state.last.at[row].set(last),
        remaining=state.remaining.at[row].set(remaining),
        row_params=jax.tree.map(lambda all_rows, one: all_rows.at[row].set(one[0]), state.row_params, row_params),
    )
    return _pin(state, mesh)


@functools.partial(jax.jit, static_argnames=("mesh",), donate_argnames=("state",))
def release(state: State, row: Int[Array, ""], *, mesh: Mesh) -> State:
    """Puts a row to rest where it stands."""
    return _pin(dataclasses.replace(state, remaining=state.remaining.at[row].set(0)), mesh)


@functools.partial(jax.jit, static_argnames=("mesh",), donate_argnames=("state",))
def clear(state: State, row: Int[Array, ""], *, mesh: Mesh) -> State:
    """Empties a row. Zeros take the place of its keys and values, since a weight of 0 times NaN is NaN."""

    def emptied(x: jax.Array) -> jax.Array:
        here = jnp.arange(x.shape[0]) == row  # no slice: a cache that is split over rows stays where it is
        return jnp.where(here.reshape(-1, *(1,) * (x.ndim - 1)), jnp.zeros((), x.dtype), x)

    fields = {name: jax.tree.map(emptied, getattr(state, name)) for name in ("cache", "length", "last", "remaining")}
    return _pin(dataclasses.replace(state, **fields), mesh)


def _padding(rows: int, least: int, mesh: Mesh) -> tuple[Callable[[jax.Array], jax.Array], ...]:
    """Adds rows up to `least` for each device of the data axis, and takes them away again; no row changes devices."""
    groups = mesh.shape["data"] if rows % mesh.shape["data"] == 0 else 1
    own = rows // groups
    added = max(0, least - own)

    def pad(x: jax.Array) -> jax.Array:
        grouped = x.reshape(groups, own, *x.shape[1:])
        return jnp.pad(grouped, ((0, 0), (0, added), *((0, 0),) * (x.ndim - 1))).reshape(-1, *x.shape[1:])

    def unpad(x: jax.Array) -> jax.Array:
        return x.reshape(groups, own + added, *x.shape[1:])[:, :own].reshape(rows, *x.shape[1:])

    return pad, unpad


@functools.partial(jax.jit, static_argnames=("config", "mesh", "max_steps", "min_rows"), donate_argnames=("state",))
def decode(
    params: Params,
    state: State,
    rows: Int[Array, "B"] | None,
    steps: Int[Array, ""],
    *,
    config: GemmaConfig,
    mesh: Mesh,
    max_steps: int,
    min_rows: int,
) -> tuple[State, Int[Array, "steps B"]]:
    """Up to `steps` ≤ max_steps tokens for each row that has any remaining, NO_TOKEN after its end.

    A row whose logits are not finite ends with NOT_FINITE; it is to be cleared before it is used again.

    `rows` picks rows of the state, None takes all. Matrix products run on at least `min_rows` rows of each device, see
    gemma_tpu.engine.shapes.
    """
    picked = state if rows is None else jax.tree.map(lambda x: x[rows], state)
    B = picked.length.shape[0]
    pad, unpad = _padding(B, min_rows, mesh)
    model, row_params = text_model(config, params), picked.row_params
    put = functools.partial(append, split=mesh.shape["slots"] > 1)

    def step(carry: tuple[jax.Array, State, jax.Array]) -> tuple[jax.Array, State, jax.Array]:
        i, row, tokens = carry
        active = row.remaining > 0
        position = row.length[:, None]
        cache = list(row.cache)

        held = jnp.where(active, row.length + 1, 1)  # a row that rests makes no other read as far as it reaches

        def attend_layer(layer: int, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
            cache[layer] = keys, values = put(cache[layer], unpad(key), unpad(value), row.length)
            window = config.layers[layer].window
            held_pos = slot_positions(held, keys.shape[2])
            part = attend_part(unpad(query), keys, values, position, held_pos, window=window, mesh=mesh)
            return pad(finish(part, unpad(query)))

        x = model.embed(pad(row.last[:, None]), mesh=mesh)
        x = model(x, pad(position), attend_layer, mesh=mesh)
        logits = unpad(model.embedder.decode(x))[:, 0]
        good = finite(logits)
        logits = jnp.where(row_params.forbidden, -jnp.inf, logits)
        with jax.named_scope("sample"):
            token = sample(logits, row.length + 1, row_params.sampling)
        stopped = jnp.any(token[:, None] == row_params.stop, axis=-1) | ~good
        row = State(
            cache=tuple(cache),
            length=row.length + active,
            last=jnp.where(active, token, row.last),
            remaining=jnp.where(active & ~stopped, row.remaining - 1, 0),
            row_params=row_params,
        )
        written = jnp.where(good, token, NOT_FINITE)
        return i + 1, row, tokens.at[i].set(jnp.where(active, written, NO_TOKEN))

    def unfinished(carry: tuple[jax.Array, State, jax.Array]) -> jax.Array:
        i, row, _ = carry
        return (i < steps) & jnp.any(row.remaining > 0)

    empty = jnp.full((max_steps, B), NO_TOKEN)
    _, picked, tokens = jax.lax.while_loop(unfinished, step, (jnp.int32(0), picked, empty))
    if rows is not None:
        picked = jax.tree.map(lambda all_rows, some: all_rows.at[rows].set(some), state, picked)
    # The host reads the tokens, and can read only what its own devices hold.
    return _pin(picked, mesh), jax.lax.with_sharding_constraint(tokens, NamedSharding(mesh, PartitionSpec()))


@functools.partial(jax.jit, static_argnames=("config", "mesh"))
def whole_sequences(
    params: Params,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, "B"],
    images: tuple[Float[Array, "soft D"], ...],
    soft_index: Int[Array, "B T"],
    *,
    config: GemmaConfig,
    mesh: Mesh,
) -> Float[Array, "B T D"]:
    """Final hidden states of whole sequences by the plain path, without a cache; whole on every device."""
    x = hidden_states(config, params, tokens, lengths, jnp.stack(images) if images else None, soft_index)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec()))


@functools.partial(jax.jit, static_argnames=("config", "mesh", "whole"))
def head(
    params: Params, x: Float[Array, "B T D"], at: Int[Array, "B K"], *, config: GemmaConfig, mesh: Mesh, whole: bool
) -> tuple[Float[Array, "B K V"], Bool[Array, "B"]]:
    """float32 logits at some positions of each row alone, and which rows have finite ones.

    `whole`: the same on every device, so that each process of a mesh can read them.
    """
    logits = text_model(config, params).embedder.decode(jnp.take_along_axis(x, at[:, :, None], axis=1))
    everywhere = NamedSharding(mesh, PartitionSpec())
    good = jax.lax.with_sharding_constraint(jnp.all(finite(logits), axis=1), everywhere)
    return jax.lax.with_sharding_constraint(logits, everywhere) if whole else logits, good
