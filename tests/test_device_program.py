"""Programs compiled with a platform's options."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import TEXT, mesh_of

from gemma_tpu.config import gemma3_layers
from gemma_tpu.deployment import Deployment
from gemma_tpu.engine.device_program import device_program as program
from gemma_tpu.plan.compiled import _lower_prefill
from gemma_tpu.quantization import as_quantization


@program(static=("deployment", "turns"), donated=("total",))
def add_up(total: jax.Array, x: jax.Array, *, deployment: SimpleNamespace, turns: int) -> jax.Array:
    """The sum of several turns."""
    return jax.lax.while_loop(lambda c: c[0] < turns, lambda c: (c[0] + 1, c[1] + x), (0, total))[1]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list:
    """The compiler options of what is jitted anew."""
    seen, real = [], jax.jit

    def jit(*args, compiler_options=None, **more):
        seen.append(compiler_options)
        return real(*args, compiler_options=compiler_options, **more)

    monkeypatch.setattr(jax, "jit", jit)
    return seen


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_each_platform_computes_the_same(platform: str) -> None:
    """XLA refuses an option that it does not know, or a value, on every platform."""
    where, total, x = Hashable(platform), jnp.zeros(3), jnp.arange(3.0)
    assert np.array_equal(add_up.lower(total, x, deployment=where, turns=4).compile()(total, x), [0, 4, 8])
    total = jnp.zeros(3)
    assert np.array_equal(add_up(total, x, deployment=where, turns=4), [0, 4, 8])
    assert total.is_deleted()
    assert add_up.__doc__ == "The sum of several turns."


def test_loops_and_branches_are_in_graphs_on_a_gpu_alone(asked: list) -> None:
    made = program(static=("deployment",), donated=())(lambda deployment: deployment)
    plain, in_order, graphs, none = asked
    assert plain is None
    assert {"WHILE", "CONDITIONAL"} <= set(graphs["xla_gpu_enable_command_buffer"].split(","))
    assert none["xla_gpu_graph_min_graph_size"] > 10_000
    for platform, expected in (("cpu", made._usual), ("tpu", made._usual), ("gpu", made._in_graphs)):
        assert made._for(Hashable(platform)) is expected
    assert made._for(Hashable("cpu", jnp.bfloat16)) is made._in_order
    assert not in_order.keys() & graphs.keys()


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_on_a_cpu_weights_wait_for_the_layer_that_converts_them(quantize: str | None) -> None:
    """A prompt takes no more memory beside a model of 24 layers than beside one of twelve."""
    temporaries = []
    for depth in (12, 24):
        config = dataclasses.replace(TEXT, embed_dim=256, hidden_dim=2048, layers=gemma3_layers(depth, window=8))
        deployment = Deployment(
            config, mesh_of(1, 1), rows=1, context=512, dtype=jnp.bfloat16, quantization=as_quantization(quantize)
        )
        compiled = _lower_prefill(deployment)[0].compile()
        temporaries.append(compiled.memory_analysis().temp_size_in_bytes)
    assert temporaries[1] < 1.1 * temporaries[0]


class Hashable(SimpleNamespace):
    def __init__(self, platform: str, dtype: jax.typing.DTypeLike = jnp.float32) -> None:
        super().__init__(platform=platform, dtype=jnp.dtype(dtype), quantization=None)

    def __hash__(self) -> int:
        return hash(self.platform)
