"""Which mesh, and what would fit, against a memory law that is known exactly."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import pytest

pytest.importorskip("libtpu", reason="the TPU compiler, which exists for Linux on x86-64 alone")

from plan_samples import DRAFT, SMALL

from gemma_tpu.config import CONFIGS
from gemma_tpu.deployment import Deployment
from gemma_tpu.plan import search
from gemma_tpu.plan.chips import parse_slice
from gemma_tpu.plan.compiled import Program, Target, deploy, mesh_for, total_memory
from gemma_tpu.plan.roofline import decode_roofline

SIZE = {"rows": 8, "context": 8192, "dtype": "bfloat16"}
TEXT = dataclasses.replace(SMALL, vision=None)


def _needs(target: Target) -> int:
    """Bytes of what is not resident: 300 MB, and arrays of this model that grow with rows and context."""
    rows, context, (data, model) = target.deployment.rows, target.deployment.context, target.mesh_shape
    keys_and_values = 2 * TEXT.num_kv_heads * TEXT.head_dim * 2 * context  # of a row in a layer, in bfloat16
    scores = 4 * rows / data * TEXT.num_heads * context
    return int(300e6 + 1.5 * (keys_and_values + scores) / model)


def _compiled(target: Target, names: Sequence[str] = ("decode", "prefill")) -> list[Program]:
    return [Program(name, 1.0, 0, temporaries=_needs(target)) for name in names]


def _ask(*searches: search.Search) -> tuple[list[search.Answer], list[Target]]:
    """The answers, and what was compiled for them, by the law."""
    seen: list[Target] = []

    def compile_all(wanted: list[tuple[Target, tuple[str, ...]]]) -> list[list[Program]]:
        seen.extend(target for target, _ in wanted)
        return [_compiled(*one) for one in wanted]

    return list(search.answer({str(i): one for i, one in enumerate(searches)}, compile_all).values()), seen


def _fits(target: Target) -> bool:
    return target.deployment.memory.resident + _needs(target) <= target.chip.hbm


SIZES = pytest.mark.parametrize(("rows", "context"), [(64, 8192), (128, 131_072)], ids=["fits", "does not fit"])


def _truth(base: Target, field: str) -> int:
    step, last = {"context": (search.CONTEXT_STEP, 131_072), "rows": (1, search.MOST_ROWS)}[field]
    return max(value for value in range(step, last + 1, step) if _fits(base.replace(**{field: value})))


@SIZES
def test_answers_were_compiled_and_are_near_the_true_ones(rows: int, context: int) -> None:
    base = deploy(TEXT, parse_slice("v5e-1"), (1, 1), rows, context)
    compiled = _compiled(base)
    searches = search.largest_context, search.most_rows
    answers, seen = _ask(*[one(base, compiled, search.TRIES) for one in searches])
    for answer, field in zip(answers, ("context", "rows"), strict=True):
        assert answer.compiled
        truth = _truth(base, field)
        assert 0.9 * truth <= answer.value <= truth, field
        assert answer.value in {getattr(one.deployment, field) for one in [base, *seen]}
    assert len(seen) <= 6
    assert _fits(base) == search.fits(base, total_memory(base, compiled)) == (rows == 64)


@SIZES
def test_estimates_compile_nothing_and_are_never_too_large(rows: int, context: int) -> None:
    base = deploy(TEXT, parse_slice("v5e-1"), (1, 1), rows, context)
    answers, seen = _ask(search.largest_context(base, _compiled(base)), search.most_rows(base, _compiled(base)))
    assert seen == []
    for answer, field in zip(answers, ("context", "rows"), strict=True):
        assert not answer.compiled
        assert "estimated" in str(answer)
        truth = _truth(base, field)
        assert 0.9 * truth <= answer.value <= truth, field


@pytest.mark.parametrize("tries", [0, search.TRIES], ids=["estimated", "compiled"])
def test_the_vision_tower_has_its_room_in_every_answer(tries: int) -> None:
    base = deploy(SMALL, parse_slice("v5e-1"), (1, 1), 64, 65_536)
    encode = Program("encode", 1.0, 0, temporaries=4 * 2**30)
    (answer,), seen = _ask(search.most_rows(base, [*_compiled(base), encode], tries))
    assert bool(seen) == (tries > 0)
    memory = base.replace(rows=answer.value).deployment.memory
    assert 0.9 * base.chip.hbm < memory.resident + 4 * 2**30 < base.chip.hbm


def test_temporaries_are_never_taken_to_shrink() -> None:
    base = deploy(TEXT, parse_slice("v5e-1"), (1, 1), 128, 131_072)
    (answer,), _ = _ask(search.largest_context(base, [Program("prefill", 1.0, 0, temporaries=4 * 2**30)]))
    memory = base.replace(context=answer.value).deployment.memory
    assert 0.9 * base.chip.hbm < memory.resident + 4 * 2**30 < base.chip.hbm


def test_with_no_tries_left_the_answer_is_what_was_compiled_though_more_is_likely() -> None:
    base = deploy(TEXT, parse_slice("v5e-1"), (1, 1), 64, 65_536)
    much = [Program(name, 1.0, 0, temporaries=4 * 2**30) for name in ("decode", "prefill")]  # others need far less
    ((once,), (first,)), ((more,), _) = (_ask(search.most_rows(base, much, tries)) for tries in (1, search.TRIES))
    assert (once.value, once.compiled) == (first.deployment.rows, True)
    assert more.value > 1.1 * once.value


def test_what_was_compiled_is_the_answer_where_nothing_much_larger_is_likely() -> None:
    base = deploy(TEXT, parse_slice("v5e-1"), (1, 1), 64, 8192)
    (rows,), _ = _ask(search.most_rows(base.replace(context=131_072), _compiled(base.replace(context=131_072))))
    best = base.replace(context=131_072, rows=rows.value)
    (answer,), _ = _ask(search.most_rows(best, _compiled(best)))
    assert (answer.value, answer.compiled) == (rows.value, True)


@pytest.mark.parametrize("tries", [0, search.TRIES], ids=["estimated", "compiled"])
def test_the_smallest_slice_fits_and_the_next_smaller_does_not(tries: int) -> None:
    base = deploy(TEXT, parse_slice("v5e-16"), (1, 16), 256, 131_072)
    (answer,), seen = _ask(search.smallest_slice(base, _compiled(base), tries))
    fitting = [
        where.name
        for where in search.slices(base.chip)
        if _fits(search.choose_mesh(TEXT, where, 256, 131_072, "bfloat16").candidates[-1])
    ]
    assert answer.value == fitting[0] != "v5e-1"
    assert (answer.compiled, bool(seen)) == (tries > 0, tries > 0)


def test_a_slice_that_was_compiled_for_and_fits_is_not_estimated() -> None:
    """Whichever its mesh: another may need less memory."""
    large = dataclasses.replace(TEXT, hidden_dim=1_400_000)
    base = deploy(large, parse_slice("v5e-4"), (2, 2), 32, 8192)
    (answer,), _ = _ask(search.smallest_slice(base, _compiled(base)))
    assert (answer.value, answer.compiled) == ("v5e-4", True)
    assert search.choose_mesh(large, base.where, 32, 8192, "bfloat16").candidates[-1] != base


def test_on_fewer_chips_temporaries_are_taken_to_grow_and_on_more_not_to_shrink() -> None:
    spread = deploy(SMALL, parse_slice("v5e-4"), (4, 1), 8, 8192)
    shared, alone = (
        deploy(SMALL, parse_slice(where), shape, 8, 8192) for where, shape in (("v5e-4", (1, 4)), ("v5e-1", (1, 1)))
    )

    def factor(base: Target, name: str, other: Target) -> float:
        sizes = [search.Estimate(base, [Program(name, 1.0, 0, temporaries=size)]) for size in (0, 10**9)]
        without, with_them = (one.total(other) for one in sizes)
        return (with_them - without) / 10**9

    assert factor(alone, "encode", alone) == factor(alone, "prefill", alone) == 1
    assert factor(spread, "encode", alone) == 4  # four images in place of one
    assert factor(shared, "encode", alone) == factor(shared, "prefill", alone) == 4  # every head in place of a quarter
    assert [factor(alone, name, other) for name in ("encode", "prefill") for other in (spread, shared)] == [1] * 4


def test_a_program_that_the_compiler_refused_is_taken_to_have_code() -> None:
    base = deploy(TEXT, parse_slice("v5e-1"), (1, 1), 4, 8192)
    refused = Program("prefill", 1.0, 0, needs=2**34)
    estimates = [search.Estimate(base, [one]) for one in (refused, dataclasses.replace(refused, code=2**27))]
    assert [one.total(base) - estimates[0].total(base) for one in estimates] == [0, 2**26]  # 64 MiB stand for it


def test_a_longer_chunk_is_taken_to_need_more() -> None:
    """That of a context of 64 tokens is 64 long, and others 1,024."""
    base = deploy(TEXT, parse_slice("v5e-1"), (1, 1), 4, 64)
    sizes = [search.Estimate(base, [Program("prefill", 1.0, 0, temporaries=size)]) for size in (0, 10**6)]
    small, large = (one.total(base.replace(context=8192)) for one in sizes)
    assert large - small == 16 * 10**6


def test_other_deployments_have_the_guesses_too() -> None:
    guesses = {"draft_tokens": 3, "draft": DRAFT}
    base = deploy(TEXT, parse_slice("v5e-4"), (1, 4), 8, 8192, **guesses)
    searches = search.largest_context, search.most_rows, search.smallest_slice
    answers, seen = _ask(*[one(base, _compiled(base), search.TRIES) for one in searches])
    assert all(answer.compiled for answer in answers)
    assert len({one.deployment for one in [base, *seen]}) >= 3
    assert {(one.deployment.draft_tokens, one.deployment.draft) for one in seen} == {(3, DRAFT)}
    for choice in search.choose_mesh(TEXT, base.where, 8, 8192, "bfloat16", **guesses).candidates:
        assert choice.deployment.draft == DRAFT


@pytest.mark.parametrize("tries", [0, search.TRIES])
def test_nothing_fits_is_an_answer_too(tries: int) -> None:
    base = deploy(CONFIGS["gemma3-27b"], parse_slice("v5e-1"), (1, 1), 1, 8192)
    (answer,), _ = _ask(search.largest_context(base, _compiled(base), tries))
    assert (answer.value, str(answer)) == (None, "none")


def test_every_mesh_uses_every_chip_and_splits_rows_evenly() -> None:
    assert search.mesh_shapes(8, 12) == [(1, 8), (2, 4), (4, 2)]
    assert search.mesh_shapes(4, 1) == [(1, 4)]


def test_the_mesh_is_the_fastest_that_fits_and_says_why() -> None:
    where = parse_slice("v5e-8")
    choice = search.choose_mesh(CONFIGS["gemma3-27b"], where, 8, 8192, "bfloat16")
    assert choice.candidates[0].mesh_shape == (1, 8)
    assert "8×1 holds" in choice.reason
    # Weights that fit on every chip, caches that outweigh them: nothing is gained by sharing the model.
    small = search.choose_mesh(TEXT, where, 64, 65_536, "bfloat16")
    times = {
        shape: decode_roofline(deploy(TEXT, where, shape, 64, 65_536)).seconds for shape in search.mesh_shapes(8, 64)
    }
    assert small.candidates[0].mesh_shape == min(times, key=lambda shape: times[shape])


def test_a_cache_on_a_tpu_is_whole_registers_on_every_chip() -> None:
    one = deploy(CONFIGS["gemma3-1b"], parse_slice("v5e-8"), (1, 8), 1, 1)
    caches = [one.replace(context=context).deployment.abstract_state.cache for context in (1, 8192, 10_001)]
    assert [cache.layers[5][0].shape[::2] for cache in caches] == [(1, 1024), (8, 1024), (10, 1024)]


def test_more_chips_than_heads_of_the_vision_tower_still_split_it() -> None:
    config = CONFIGS["gemma3-27b"]
    vision = [
        Deployment(config, mesh_for(config, where, (1, where.num_chips)), **SIZE).memory.vision
        for where in (parse_slice("v5e-16"), parse_slice("v5e-32"))
    ]
    assert vision[1] <= vision[0]  # 16 heads, 16 × 269 numbers between the products of the mlp


def test_bytes_on_a_device_are_those_of_real_arrays() -> None:
    """On the simulated devices: weights and state as `load` and the engine place them."""
    from small_models import TEXT as TINY
    from small_models import make_engine, mesh_of

    mesh = mesh_of(2, 4)
    memory = Deployment(TINY, mesh, rows=4, context=128, dtype="float32").memory
    engine = make_engine(TINY, mesh)
    device = mesh.devices.flat[0]

    def held(tree) -> int:
        shards = [s for x in jax.tree.leaves(tree) for s in x.addressable_shards if s.device == device]
        return sum(shard.data.nbytes for shard in shards)

    assert held(engine._runner._text_params) == memory.weights
    assert held(engine._runner._state) == memory.state
    engine.close()
