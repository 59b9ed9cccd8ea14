"""What is read out of optimised HLO, on small programs whose every number is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

pytest.importorskip("libtpu", reason="the TPU compiler, which exists for Linux on x86-64 alone")

from gemma_tpu.plan.chips import parse_slice
from gemma_tpu.plan.compiled import topology_devices
from gemma_tpu.plan.hlo import Array, Hlo

N = 2048


def _hlo(
    function: Callable,
    *specs: tuple[tuple[int, ...], PartitionSpec],
    chips: int = 1,
    donate: tuple = (),
    trips: Any = None,
) -> Hlo:
    """Compiled for v5e chips on one axis `x`; `specs`: shape and sharding of each bf16 argument."""
    devices = topology_devices(parse_slice(f"v5e-{chips}"))
    mesh = Mesh(np.asarray(devices), ("x",))
    args = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec)) for shape, spec in specs]
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return Hlo(jax.jit(function, donate_argnums=donate).lower(*args).compile().as_text(), trips)


WHOLE, ROWS = PartitionSpec(), PartitionSpec("x", None)


def test_a_product_takes_about_what_the_matrix_unit_needs() -> None:
    chip = parse_slice("v5e-1").chip
    hlo = _hlo(lambda a, b: a @ b, ((N, N), WHOLE), ((N, N), WHOLE))
    peak = 2 * N**3 / chip.flops * chip.clock
    assert peak < hlo.cycles(hlo.entry) < 2 * peak
    assert hlo.step == ""


def test_a_loop_counts_as_often_as_it_runs() -> None:
    def repeated(times: int) -> Hlo:
        def product(_: int, x: jax.Array) -> jax.Array:
            return x @ x

        return _hlo(lambda a: jax.lax.fori_loop(0, times, product, a), ((N, N), WHOLE))

    few, many = repeated(7), repeated(70)
    assert many.cycles(many.entry) == pytest.approx(10 * few.cycles(few.entry), rel=0.05)
    assert many.cycles(many.step) == pytest.approx(few.cycles(few.step), rel=0.05)


def test_a_conditional_counts_its_dearest_or_its_cheapest_branch() -> None:
    def maybe(a: jax.Array) -> jax.Array:
        with jax.named_scope("choice"):
            return jax.lax.cond(a[0, 0] > 0, lambda: a @ a @ a, lambda: a + 1)

    hlo = _hlo(maybe, ((N, N), WHOLE))
    dearest = hlo.cycles(hlo.entry)
    assert hlo.cycles(hlo.entry, cheapest="") == hlo.cycles(hlo.entry, cheapest="/choice/") < dearest / 2
    assert hlo.cycles(hlo.entry, cheapest="/another/") == dearest


def test_a_loop_that_does_not_say_how_often_it_runs_is_told() -> None:
    def repeated(a: jax.Array) -> jax.Array:
        def product(_: int, x: jax.Array) -> jax.Array:
            return jax.lax.with_sharding_constraint(x @ x, WHOLE)

        with jax.named_scope("some"):
            return jax.lax.fori_loop(0, a[0, 0].astype(int), product, a)

    text = repeated, ((N, N), ROWS)
    once, often = _hlo(*text, chips=4), _hlo(*text, chips=4, trips={"/some/while$": 7, "/other/while$": 9})
    assert often.cycles(often.entry) == pytest.approx(7 * once.cycles(once.entry), rel=0.1)
    inside = once.collectives(once.step)
    assert inside
    assert len(often.collectives()) - len(once.collectives()) == 6 * len(inside)


@pytest.mark.parametrize(
    "branches", ["branch_computations={%sum, %same}", "true_computation=%sum, false_computation=%same"]
)
def test_branches_are_read_however_they_are_named(branches: str) -> None:
    hlo = Hlo(f"""
%sum (p.1: f32[8]) -> f32[8] {{
  %p.1 = f32[8]{{0}} parameter(0)
  ROOT %all-reduce.1 = f32[8]{{0}} all-reduce(%p.1), to_apply=%add
}}

%same (p.2: f32[8]) -> f32[8] {{
  ROOT %p.2 = f32[8]{{0}} parameter(0)
}}

ENTRY %main (p.3: pred[], p.4: f32[8]) -> f32[8] {{
  %p.3 = pred[] parameter(0)
  %p.4 = f32[8]{{0}} parameter(1)
  ROOT %conditional = f32[8]{{0}} conditional(%p.3, %p.4, %p.4), {branches}
}}""")
    assert [one.nbytes for one in hlo.collectives()] == [32]
    assert hlo.collectives(branches=False) == []


def test_of_a_rare_conditional_the_first_branch_is_judged() -> None:
    hlo = Hlo("""
%same (p.1: f32[8,8]) -> f32[8,8] {
  ROOT %p.1 = f32[8,8]{1,0} parameter(0)
}

%moved (p.2: f32[8,8]) -> f32[8,8] {
  %p.2 = f32[8,8]{1,0} parameter(0)
  ROOT %copy.1 = f32[8,8]{0,1} copy(%p.2)
}

ENTRY %main (p.3: s32[], p.4: f32[8,8]) -> f32[8,8] {
  %p.3 = s32[] parameter(0)
  %p.4 = f32[8,8]{1,0} parameter(1)
  ROOT %conditional = f32[8,8]{1,0} conditional(%p.3, %p.4, %p.4), branch_computations={%same, %moved}, \
metadata={op_name="jit(step)/more/cond"}
}""")
    assert len(hlo.offenders({64}, 64, 64)) == len(hlo.offenders({64}, 64, 64, rare="/other/cond$")) == 1
    assert hlo.offenders({64}, 64, 64, rare="/more/cond$") == []


def test_a_copy_of_a_cache_is_named_and_a_write_in_place_is_not() -> None:
    def write(cache: jax.Array, new: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(cache, new, (3, 0))

    shapes = ((N, N), WHOLE), ((1, N), WHOLE)
    in_place, copied = _hlo(write, *shapes, donate=(0,)), _hlo(write, *shapes)
    assert in_place.offenders({N * N}, 2 * N, 2 * N) == []
    (problem,) = copied.offenders({N * N}, 2 * N, 2 * N)
    assert "copy" in problem
    assert f"bf16[{N},{N}]" in problem


def test_a_transposed_weight_is_named() -> None:
    hlo = _hlo(lambda a: (a.T.reshape(2 * N, -1), a @ a), ((N, N), WHOLE))
    assert any(f"{N}" in problem for problem in hlo.offenders({N * N}, N * N, N * N))


def test_a_weight_that_is_written_out_wide_is_named() -> None:
    def scaled(x: jax.Array, w: jax.Array, written: bool) -> jax.Array:
        wide = jax.lax.optimization_barrier(w.astype(jnp.int8)).astype(jnp.float32) * 3.0
        return x.astype(jnp.float32) @ (jax.lax.optimization_barrier(wide) if written else wide)

    specs = ((8, N), WHOLE), ((N, N), WHOLE)
    (found,) = _hlo(lambda x, w: scaled(x, w, True), *specs).widened({N * N})
    assert "[2048,2048], a wider copy of a weight, from " in found
    assert _hlo(lambda x, w: scaled(x, w, False), *specs).widened({N * N}) == []


def test_a_weight_that_is_written_out_wide_beside_a_wide_array_of_its_size_is_named() -> None:
    for narrow, wide in (("s8", "f32"), ("bf16", "f32")):
        for first, second in ((narrow, wide), (wide, narrow)):
            text = f"""HloModule m
ENTRY %main (a: {first}[4,4], b: {second}[4,4]) -> f32[4,4] {{
  %a = {first}[4,4]{{1,0}} parameter(0)
  %b = {second}[4,4]{{1,0}} parameter(1)
  ROOT %sum = f32[4,4]{{1,0}} add(%a, %b)
}}
"""
            assert len(Hlo(text).widened({16})) == 1
            assert Hlo(text).widened({15}) == []


def test_a_gathered_weight_is_named_and_a_sum_of_activations_is_not() -> None:
    def gathered(x: jax.Array, w: jax.Array) -> jax.Array:
        return x @ jax.lax.with_sharding_constraint(w, WHOLE)

    def summed(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(x @ w, WHOLE)

    x = (8, N), PartitionSpec(None, "x")
    spoilt = _hlo(gathered, ((8, N), WHOLE), ((N, N), ROWS), chips=4)
    assert any("all-gather" in problem for problem in spoilt.offenders({N * N // 4}, N * N, 8 * N))
    good = _hlo(summed, x, ((N, N), ROWS), chips=4)
    assert good.offenders({N * N // 4}, N * N, 8 * N) == []
    (sent,) = good.collectives()
    assert sent.op == "all-reduce"
    assert sent.nbytes in (8 * N * 2, 8 * N * 4)  # bf16, or summed in float32


@pytest.mark.parametrize(
    ("dtype", "nbytes"), [("bf16", 12), ("f32", 24), ("pred", 6), ("s8", 6), ("u32", 24), ("s4", 3), ("f8e4m3fn", 6)]
)
def test_bytes_of_an_array(dtype: str, nbytes: int) -> None:
    assert Array(dtype, (2, 3), on_chip=False).nbytes == nbytes
