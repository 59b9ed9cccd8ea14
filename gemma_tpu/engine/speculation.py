"""Decoding with guessed tokens: the model looks at several of them in one step, and keeps those that are right.

A guess is right if it is what the model draws at its position. A draw depends on the seed and the position alone, so an
answer is the one of decoding token by token, sampled or not, whatever was guessed; and a draft model that draws with
the same noise guesses right about as often as by rejection sampling (Leviathan et al. 2022, arXiv 2211.17192; Daliri et
al. 2024, arXiv 2408.07978). Letters: see gemma_tpu.config; C: tokens of the context, T: 1 + guesses of a step.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from gemma_tpu.cache.layer import Pages
from gemma_tpu.cache.state import State
from gemma_tpu.deployment import Deployment
from gemma_tpu.engine.device_program import device_program
from gemma_tpu.engine.draw import draw, nothing_drawn, sampled
from gemma_tpu.engine.programs import finite, model_in_loop, on_all, pin
from gemma_tpu.engine.step import NOT_FINITE, Drawn
from gemma_tpu.model import Params, draft_params
from gemma_tpu.ops.attention import own_keys
from gemma_tpu.ops.logits import last_tokens
from gemma_tpu.ops.rows import row_padding
from gemma_tpu.options import NO_TOKEN

_LONGEST_MATCH = 4  # tokens before a guess that are compared with those before its like


def look_up(text: Int[Array, "B C"], end: Int[Array, "B"], count: int) -> Int[Array, "B count"]:
    """What followed where the text up to and with position `end` was like its end, NO_TOKEN where it never was.

    Of several places the one that is like it for longest, and the last of those (prompt lookup decoding: Saxena 2023).
    What would follow the end itself goes on as from that place: as a repetition.
    """
    C = text.shape[1]
    position = jnp.arange(C)
    alike, length = jnp.ones(text.shape, bool), jnp.zeros(text.shape, jnp.int32)
    for back in range(_LONGEST_MATCH):
        wanted = jnp.take_along_axis(text, (end - back)[:, None], axis=1, mode="clip")
        alike &= (jnp.roll(text, back, axis=1) == wanted) & (position >= back)
        length += alike
    score = jnp.where(position < end[:, None], length * C + position, 0)
    place = jnp.argmax(score, axis=1)
    after = jnp.arange(count) % jnp.maximum(end - place, 1)[:, None]
    found = jnp.take_along_axis(text, place[:, None] + 1 + after, axis=1, mode="clip")
    return jnp.where((jnp.max(score, axis=1) >= C)[:, None], found, NO_TOKEN)


def _drafted(
    params: Params,
    row: State,
    active: Bool[Array, "B"],
    most: Int[Array, "B"],
    pages: Pages,
    deployment: Deployment,
) -> tuple[Int[Array, "B guesses"], State]:
    """Up to `most` tokens by the draft model, one after another; its cache then holds them too."""
    config, V, mesh = deployment.draft, deployment.config.vocab_size, deployment.mesh
    assert config is not None
    model = model_in_loop(config, draft_params(params), deployment.platform)
    B = len(most)
    pad, unpad = row_padding(B, mesh)

    def feed(i: jax.Array, carry: tuple[Any, jax.Array, jax.Array]) -> tuple[Any, jax.Array, jax.Array]:
        cache, token, guesses = carry
        at = row.length + jnp.minimum(i, most)  # beyond its last guess, a row writes the same once more
        held = jnp.where(active, at + 1, 1)

        def attend_layer(layer: int, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
            nonlocal cache
            own = (unpad(x) for x in (query, key, value))
            cache, encoded = cache.append_and_attend(layer, *own, length=at, held=held, pages=pages)
            return pad(encoded)

        known = jnp.where(token < config.vocab_size, token, NO_TOKEN)
        model_now = model(i)
        x = model_now(model_now.embed(pad(known[:, None]), mesh=mesh), pad(at[:, None]), attend_layer, mesh=mesh)

        def next_token() -> jax.Array:
            logits = unpad(model_now.embedder.decode(x))[..., :V]
            missing = ((0, 0), (0, 0), (0, V - logits.shape[2]))
            logits = jnp.pad(logits, missing, constant_values=-jnp.inf)
            return sampled(logits, at[:, None] + 1, active, row.row_params)[:, 0]

        more = i < most
        drawn = jax.lax.cond(jnp.any(more), next_token, lambda: token)
        guesses = guesses.at[:, i].set(jnp.where(more, drawn, NO_TOKEN), mode="drop")
        return cache, jnp.where(more, drawn, token), guesses

    nothing = row.draft, row.last, jnp.full((B, deployment.draft_tokens), NO_TOKEN)
    cache, _, guesses = jax.lax.fori_loop(0, jnp.max(most) + 1, feed, nothing)
    return guesses, dataclasses.replace(row, draft=cache)


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
    """`gemma_tpu.engine.programs.decode` whose steps have up to T tokens for each row; the tokens are max_steps × T.

    Rows with settings that hold for the next token alone take that one.
    """
    picked = state if rows is None else state.take(rows)
    B, T, mesh = picked.length.shape[0], 1 + deployment.draft_tokens, deployment.mesh
    pad, unpad = row_padding(B, mesh, T)
    model, row_params = model_in_loop(deployment.config, params, deployment.platform), picked.row_params
    row_ids, size, nth = jnp.arange(B), max_steps * T, jnp.arange(T)

    def guess(row: State, active: jax.Array) -> tuple[jax.Array, State]:
        most = jnp.where(active & row_params.ahead, jnp.minimum(T - 1, row.remaining - 1), 0)
        if deployment.draft:
            with jax.named_scope("draft"):  # gemma_tpu.plan.compiled finds it by that
                return _drafted(params, row, active, most, pages, deployment)
        assert row.text is not None
        found = look_up(row.text, row.length, T - 1)
        return jnp.where(nth[:-1] < most[:, None], found, NO_TOKEN), row

    Carry = tuple[jax.Array, State, Drawn, jax.Array]

    def step(carry: Carry) -> Carry:
        i, row, drawn, made = carry
        model_now = model(i)
        active = (i < steps) & (row.remaining > 0)
        guesses, row = guess(row, active)
        fed = jnp.concatenate([row.last[:, None], guesses], axis=1)
        position = row.length[:, None] + nth
        count = jnp.where(active, jnp.minimum(T, row.remaining), 0)
        own_position = jnp.where(nth < count[:, None], position, -1)
        held, new_keys = jnp.where(active, row.length, 0), []

        def attend_layer(layer: int, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
            key, value = unpad(key), unpad(value)
            new_keys.append((key, value))
            own = own_keys(key, value, own_position)
            return pad(row.cache.attend(layer, unpad(query), position, length=held, pages=pages, own=own))

        x = model_now(model_now.embed(pad(fed), mesh=mesh), pad(position), attend_layer, mesh=mesh)
        logits = unpad(model_now.embedder.decode(x))
        new = draw(logits, active, row, drawn.tokens)
        tokens = jnp.where(finite(logits), new.tokens, NOT_FINITE)
        last = jnp.any(tokens[:, :, None] == row_params.stop[:, None], axis=-1) | (tokens == NOT_FINITE)
        right = (tokens[:, :-1] == guesses) & ~last[:, :-1]
        n = jnp.where(active, 1 + jnp.sum(jnp.cumprod(right, axis=1), axis=1), 0)

        def at_end(x: jax.Array) -> jax.Array:
            return jnp.take_along_axis(x, jnp.maximum(n - 1, 0)[:, None], axis=1)[:, 0]

        taken, cache = nth < n[:, None], row.cache
        for layer, (key, value) in enumerate(new_keys):  # now that it is known which of them are right
            cache = cache.write(layer, row_ids, key, value, row.length, n, pages)
        text = row.text
        if text is not None:
            behind = jnp.where(taken, position + 1, deployment.context)
            text = text.at[row_ids[:, None], behind].set(new.tokens, mode="drop")
        row = dataclasses.replace(
            row,
            cache=cache,
            length=row.length + n,
            last=jnp.where(active, at_end(new.tokens), row.last),
            remaining=jnp.where(active, jnp.where(at_end(last), 0, row.remaining - n), row.remaining),
            text=text,
        )
        written = jnp.where(taken, made[:, None] + nth, size)
        guessed = jnp.stack([jnp.sum(guesses >= 0, axis=1), jnp.maximum(n - 1, 0)])
        first = jnp.where(active, made, size)
        drawn = Drawn(
            drawn.tokens.at[written, row_ids[:, None]].set(tokens, mode="drop"),
            *(x.at[first, row_ids].set(one, mode="drop") for x, one in zip(drawn[1:4], new[1:4], strict=True)),
            guesses=drawn.guesses + guessed,
        )
        return i + 1, row, drawn, made + n

    def unfinished(carry: Carry) -> jax.Array:
        i, row, *_ = carry
        return jnp.any((i < steps) & (row.remaining > 0))

    empty = nothing_drawn(size, B, deployment.config.vocab_size)._replace(guesses=jnp.zeros((2, B), jnp.int32))
    begin = jnp.int32(0), picked, empty, jnp.zeros(B, jnp.int32)
    _, picked, drawn, _ = jax.lax.while_loop(unfinished, step, begin)
    history = dataclasses.replace(picked.history, recent=last_tokens(picked.history, drawn.tokens))
    picked = dataclasses.replace(picked, history=history)
    if rows is not None:
        picked = state.put(rows, picked)
    return pin(picked, deployment), jax.tree.map(lambda x: on_all(x, deployment), drawn)
