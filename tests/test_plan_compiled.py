"""The compiler's own numbers against ours: bytes from shapes and shardings, times from peaks."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

pytest.importorskip("libtpu", reason="the TPU compiler, which exists for Linux on x86-64 alone")

from plan_samples import CONTEXT, SMALL, compile_once, compiled

from gemma_tpu.cache.layer import Pages
from gemma_tpu.engine import programs
from gemma_tpu.memory import shard_bytes
from gemma_tpu.ops.flash_attention import flash
from gemma_tpu.ops.paged_attention import SHORTEST
from gemma_tpu.ops.patch_attention import patch_attention
from gemma_tpu.plan import compiled as plan_compiled
from gemma_tpu.plan import planner
from gemma_tpu.plan.chips import parse_slice
from gemma_tpu.plan.compiled import PROGRAMS, Program, Target, compile_one, compile_programs, deploy, total_memory
from gemma_tpu.plan.inspection import decode_problems
from gemma_tpu.plan.roofline import decode_roofline, encode_roofline, prefill_roofline
from gemma_tpu.plan.search import Estimate
from gemma_tpu.sharding import partition

WHOLE = ("v5e:2x2", (1, 4), 4)  # all three programs
DECODE = {
    "4 chips": WHOLE,
    "1 chip": ("v5e:1x1", (1, 1), 8, ("decode",), 16_384),
    "2×2 chips": ("v5e:2x2", (2, 2), 8, ("decode",)),
    "a model a chip": ("v5e:2x2", (4, 1), 4, ("decode",)),
    "more chips than kv heads": ("v5e:2x4", (1, 8), 1, ("decode",)),
    "long, 1 chip": ("v5e:1x1", (1, 1), 1, ("decode",), 65_536),
    "long, more chips than kv heads": ("v5e:2x4", (1, 8), 2, ("decode",), 65_536),
}
LONG = [name for name in DECODE if name.startswith("long")]
decoders = pytest.mark.parametrize("sample", DECODE.values(), ids=DECODE)


@decoders
def test_arguments_are_what_shapes_and_shardings_say(sample) -> None:
    target, found = compiled(*sample)
    memory = target.deployment.memory
    expected = memory.weights + memory.state
    assert found["decode"].arguments == pytest.approx(
        expected + found["decode"].inputs, rel=0.012
    )  # small ones are padded
    if "encode" in found:
        exact = memory.vision + found["encode"].inputs
        assert exact <= found["encode"].arguments < 1.15 * exact  # the patches' kernel, of 3 colours, is padded to 8
        # Prefill makes no logits: it does not take the last layer's mlp, nor what follows it.
        assert found["prefill"].arguments <= expected + found["prefill"].inputs * 1.01


@decoders
def test_the_state_is_written_in_place(sample) -> None:
    target, found = compiled(*sample)
    assert shard_bytes(jax.tree.leaves(target.deployment.abstract_state)) == target.deployment.memory.state
    for name in found.keys() - {"encode"}:
        assert found[name].aliased >= shard_bytes(jax.tree.leaves(target.deployment.abstract_state))
        assert found[name].outputs < 100_000  # tokens and their log-probabilities


@decoders
def test_a_step_moves_nothing_for_nothing(sample) -> None:
    target, found = compiled(*sample)
    assert decode_problems(target, found["decode"]) == []


@pytest.mark.parametrize("quantize", ["int8", "int4"])
@pytest.mark.parametrize(
    "where", [("v5e:1x1", (1, 1), 1), ("v5e:2x2", (1, 4), 8), ("v5p:2x2x1", (1, 4), 8), ("v6e:1x1", (1, 1), 8)]
)
def test_a_step_reads_quantised_weights_as_they_are(where, quantize: str) -> None:
    sample = *where, ("decode",)
    target, found = compiled(*sample, quantize=quantize)
    memory, decode = target.deployment.memory, found["decode"]
    assert decode_problems(target, decode) == []
    assert decode.arguments == pytest.approx(memory.weights + memory.state + decode.inputs, rel=0.02)
    if where[0] == "v5e:1x1":
        _, plain = compiled(*sample)
        assert decode.cycles < plain["decode"].cycles


@pytest.mark.parametrize(
    ("where", "context"),
    [
        (("v5e:1x1", (1, 1), 1), 65_536),
        (("v5e:1x1", (1, 1), 8), 16_384),
        (("v5e:2x4", (1, 8), 3), 24_576),
    ],
)
def test_a_step_reads_an_int8_cache_as_it_is(where, context: int) -> None:
    """In the layout in which it is written; where much is read, in less time than a cache of bfloat16."""
    target, found = compiled(*where, ("decode",), context, kv_cache_dtype="int8")
    memory, decode = target.deployment.memory, found["decode"]
    assert decode_problems(target, decode) == []
    assert decode.arguments == pytest.approx(memory.weights + memory.state + decode.inputs, rel=0.02)
    assert memory.global_cache < 0.52 * compiled(*where, (), context)[0].deployment.memory.global_cache
    if where[1] == (1, 1):
        _, plain = compiled(*where, ("decode",), context)
        assert decode.cycles < plain["decode"].cycles


def test_prefill_brings_the_pages_of_one_layer_together_at_a_time() -> None:
    """Those of all layers at once would be as large as the cache of a long context itself."""
    target, _ = compiled("v5e:1x1", (1, 1), 1, (), 65_536)
    needed = []
    for layers in (2, 4):
        config = dataclasses.replace(SMALL, vision=None, layers=SMALL.layers[1:] * layers)
        needed.append(compile_once(target.replace(config=config), "prefill").temporaries)
    page_bytes = target.deployment.memory.global_cache  # SMALL has one such layer
    assert needed[1] - needed[0] < page_bytes < needed[0]


@pytest.mark.parametrize("sample", list(DECODE.values())[:4], ids=list(DECODE)[:4])  # the last is too short to tell
def test_a_step_takes_between_the_roofline_and_a_few_times_it(sample) -> None:
    target, found = compiled(*sample)
    roofline = decode_roofline(target)
    seconds = found["decode"].cycles / target.chip.clock
    assert 0.8 * roofline.memory < seconds < 5 * roofline.memory
    assert found["decode"].cycles < found["decode"].sampled_cycles < 4 * found["decode"].cycles


@pytest.mark.parametrize("name", LONG)
def test_a_step_reads_no_more_of_a_long_cache_than_it_must(name: str) -> None:
    target, found = compiled(*DECODE[name])
    tokens = SHORTEST * target.deployment.mesh.shape["slots"]
    least = target.replace(context=min(tokens, target.deployment.context), cache_tokens=tokens)
    saved = (found["decode"].cycles - found["decode"].short_cycles) / target.chip.clock
    unread = decode_roofline(target).memory - decode_roofline(least).memory
    assert 0.8 * unread < saved < 4 * unread
    whole, *special = planner._speeds(target, [found["decode"]])
    (short,) = (speed for speed in special if speed.what.endswith(f"≤ {tokens:,} tokens in all"))
    assert whole.compiler - short.compiler == pytest.approx(saved)
    assert whole.roofline.memory - short.roofline.memory == pytest.approx(unread)


def test_a_step_with_guesses_is_the_draft_models_steps_and_one_of_many_tokens() -> None:
    """Its calls write in place, and take no more than what they say."""
    target, found = compiled("v5e:1x1", (1, 1), 4, ("decode", "prefill"), draft_tokens=4)
    memory, state = target.deployment.memory, shard_bytes(jax.tree.leaves(target.deployment.abstract_state))
    taken = memory.weights + memory.state + memory.draft
    assert found["decode"].arguments == pytest.approx(taken + found["decode"].inputs, rel=0.012)
    for program in found.values():
        assert program.aliased >= state
    assert target.draft
    plain, guessed = (target.replace(draft_tokens=tokens, draft=None) for tokens in (0, 4))
    alone = [compile_once(one, "decode").cycles for one in (plain, guessed, target.draft)]
    step = found["decode"]
    # A step of the draft model has no loop of its own around it, and the last draws nothing.
    assert step.cycles == pytest.approx(alone[1] + 5 * alone[2], rel=0.25)
    assert step.cycles > 1.5 * alone[0]
    assert step.short_cycles < step.cycles < step.sampled_cycles
    lower = decode_roofline(target)
    parts = [decode_roofline(one) for one in (guessed, target.draft)]
    assert parts[0].memory + 4 * parts[1].memory < lower.memory < parts[0].memory + 5 * parts[1].memory
    assert parts[0].memory == decode_roofline(plain).memory
    assert parts[0].matrix == pytest.approx(decode_roofline(plain).matrix * 20 / 8, rel=0.1)  # 4 rows are as 8
    assert 0.8 * lower.memory < step.cycles / target.chip.clock < 5 * lower.memory
    read = prefill_roofline(target)
    assert read.matrix == prefill_roofline(plain).matrix + prefill_roofline(target.draft).matrix


def test_a_row_that_decodes_apart_pays_for_none_of_those_that_rest() -> None:
    target = deploy(SMALL, parse_slice("v5e:2x2"), (1, 4), 64, CONTEXT)
    text = target.deployment.text
    assert text.calls().few == (1, 8)
    each = NamedSharding(text.mesh, PartitionSpec())
    rows = jax.ShapeDtypeStruct((1,), jnp.int32, sharding=each)
    pages = jax.ShapeDtypeStruct((text.pages,), jnp.int32, sharding=each)
    arguments = text.abstract_params, text.abstract_state, rows, rows, Pages(pages, pages)
    apart = compile_one("decode", programs.decode.lower(*arguments, deployment=text, max_steps=8))
    together = compile_once(target, "decode")
    state = shard_bytes(jax.tree.leaves(text.abstract_state))
    assert apart.aliased >= state
    assert apart.outputs < 100_000
    assert apart.temporaries < text.memory.local_cache / 2
    # At each call its part of the state is taken out and put back.
    assert apart.hlo
    call = apart.hlo.cycles(apart.hlo.entry, cheapest="/(more|sample)/")
    assert call - apart.cycles < apart.short_cycles  # less than one more of its eight steps
    assert apart.short_cycles < 0.85 * together.short_cycles


def test_prefill_and_images_take_between_the_roofline_and_a_few_times_it() -> None:
    target, found = compiled(*WHOLE)
    for name, roofline in (("prefill", prefill_roofline(target)), ("encode", encode_roofline(target))):
        seconds = found[name].cycles / target.chip.clock
        assert 0.8 * roofline.matrix < seconds < 20 * roofline.matrix, name


def test_tensor_parallelism_costs_two_sums_a_layer() -> None:
    _, found = compiled(*WHOLE)
    hlo = found["decode"].hlo
    assert hlo
    activation = 8 * SMALL.embed_dim * 2
    sent = [one for one in hlo.collectives(hlo.step, branches=False) if one.nbytes >= activation]
    assert {one.op for one in sent} == {"all-reduce"}
    assert len(sent) == 2 * SMALL.num_layers + 1  # and one for the embedding
    alone = compiled(*DECODE["1 chip"])[1]["decode"].hlo
    assert alone
    assert alone.collectives() == []


def test_a_copy_of_the_cache_is_named() -> None:
    """The planner's own decode, spoilt: its state is not donated, so the caches are copied."""
    target, _ = compiled(*WHOLE)
    text = target.deployment.text
    params, state = text.abstract_params, text.abstract_state
    static = {"deployment": text, "max_steps": 8}
    undonated = jax.jit(
        lambda params, state, steps, pages: programs.decode.__wrapped__(params, state, None, steps, pages, **static),
    )
    steps, page = (jax.ShapeDtypeStruct((count,), jnp.int32) for count in (text.rows, text.pages))
    spoilt = compile_one("decode", undonated.lower(params, state, steps, Pages(page, page)))
    problems = decode_problems(target, spoilt)
    assert any("copy" in problem and "bf16[4,1,512,128]" in problem for problem in problems), problems
    assert any("not written in place" in problem for problem in problems), problems


@pytest.mark.parametrize(
    "other",
    [("v5e:2x2", (1, 4), 4, PROGRAMS, 65_536), ("v5e:2x2", (1, 4), 64), ("v5e:1x1", (1, 1), 4)],
    ids=["a longer context", "more rows", "fewer chips"],
)
def test_an_estimate_is_no_less_than_the_compiler_says(other) -> None:
    """Nor much more: its margins are a few hundred MB."""
    estimate = Estimate(*_all_of(WHOLE))
    target, found = _all_of(other)
    needed = total_memory(target, found).total
    assert needed <= estimate.total(target) < needed + 500e6


def _all_of(sample) -> tuple[Target, list[Program]]:
    target, found = compiled(*sample)
    return target, list(found.values())


def test_what_the_compiler_refuses_says_how_much_it_needs() -> None:
    config = dataclasses.replace(SMALL, vision=None)
    target = deploy(config, parse_slice("v5e-1"), (1, 1), rows=256, context=131_072)
    prefill = compile_once(target, "prefill")
    memory = total_memory(target, [prefill])
    assert prefill.needs
    assert prefill.peak == prefill.needs > target.chip.hbm
    assert memory.total >= prefill.needs


def test_without_libtpu_one_line_says_how_to_get_it(monkeypatch) -> None:
    monkeypatch.setattr(plan_compiled.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    plan_compiled.topology_devices.cache_clear()
    with pytest.raises(RuntimeError, match="pip install libtpu"):
        plan_compiled.topology_devices(parse_slice("v5e-1"))


@pytest.mark.parametrize("where", ["v4:2x2x1", "v5p:2x2x1", "v6e:2x2"])
def test_other_chips_have_estimates_too(where: str) -> None:
    """Of prefill, whose HLO jaxlib alone cannot read for v5p and v6e."""
    target, found = compiled(where, (1, 4), 4, ("prefill",))
    seconds = found["prefill"].cycles / target.chip.clock
    assert prefill_roofline(target).matrix < seconds < 12 * prefill_roofline(target).matrix  # of one small row


@pytest.mark.parametrize("where", ["v4:2x2x1", "v5e:1x1", "v5p:2x2x1", "v6e:1x1"])
@pytest.mark.parametrize("shape", [(2, 1, 2048, 1024, 128), (1, 4, 640, 8192, 256)], ids=["of 27B", "of 4B"])
def test_the_attention_kernel_compiles_for_every_chip(where: str, shape: tuple[int, ...]) -> None:
    B, K, Q, S, H = shape
    sharding = jax.sharding.SingleDeviceSharding(plan_compiled.topology_devices(parse_slice(where))[0])

    def array(dtype: str, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    keys = [array("bfloat16", B, K, S, H)] * 2
    ids = [array("int32", B, Q), array("int32", B, S)] * 2
    lowered = jax.jit(functools.partial(flash, window=512)).lower(array("bfloat16", B, K, Q, H), *keys, *ids)
    assert "tpu_custom_call" in lowered.as_text()
    lowered.compile()


@pytest.mark.parametrize("where", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_kernel_of_the_vision_tower_compiles_for_every_chip(where: str, dtype: str) -> None:
    """And on the device nothing has the size of patches × patches."""
    mesh = plan_compiled.mesh_for(SMALL, parse_slice(where), (2, 2))
    patches = jax.ShapeDtypeStruct((2, 4096, 16, 72), dtype, sharding=partition("IPnh", (2, 4096, 16, 72), mesh))
    compiled = jax.jit(functools.partial(patch_attention, mesh=mesh)).lower(*[patches] * 3).compile()
    # Query, key and value by head, their 72 numbers padded to 128, and little beside them.
    assert compiled.memory_analysis().temp_size_in_bytes < 5 * 8 * 4096 * 128 * jnp.dtype(dtype).itemsize


def test_what_is_compiled_is_said(monkeypatch) -> None:
    said, begun = [], []
    monkeypatch.setattr(plan_compiled, "_compile", lambda _, name: begun.append((name, len(said))))
    target = deploy(SMALL, parse_slice("v5e:2x2"), (1, 4), 4, 4096)
    compile_programs(target, ("prefill", "decode"), said.append)
    expected = [f"compiling {name}, 4,096 tokens × 4 rows on v5e:2x2, mesh 1 × 4" for name in ("prefill", "decode")]
    assert said == expected
    assert begun == [("prefill", 1), ("decode", 2)]  # before it is compiled
