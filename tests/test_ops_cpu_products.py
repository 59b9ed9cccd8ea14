"""Products on a CPU against float64: each form that the model asks for, and others, of few rows and of many."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from gemma_tpu.ops.cpu_products import cpu_product

FORMS = [
    ("btd,cfd->cfbt", (70,), (2, 33, 70)),
    ("bto,od->btd", (70,), (70, 33)),
    ("btf,df->btd", (300,), (257, 300)),
    ("ipe,cnhe->cipnh", (70,), (3, 2, 8, 70)),
    ("ipnh,nhe->ipe", (2, 8), (2, 8, 70)),
    ("btnh,dnh->btd", (2, 8), (64, 2, 8)),
]


@pytest.mark.parametrize("rows", [1, 2, 32, 33, 96, 97])
@pytest.mark.parametrize(("spec", "features", "weight"), FORMS, ids=[spec for spec, *_ in FORMS])
def test_products_are_those_of_float64(
    spec: str, features: tuple[int, ...], weight: tuple[int, ...], rows: int
) -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((1, rows, *features)), jnp.float32)
    integers = jnp.asarray(rng.integers(-127, 128, weight), jnp.int8)
    pairs = [(x, integers), (x.astype(jnp.bfloat16), integers), (x.astype(jnp.bfloat16), integers.astype(jnp.bfloat16))]
    for one, other in pairs:
        expected = np.einsum(spec, np.asarray(one, np.float64), np.asarray(other, np.float64))
        # Of few rows, those of bfloat16 are split into two int8: 16 bits beside the largest of a row.
        np.testing.assert_allclose(cpu_product(spec, one, other), expected, atol=2e-4 * np.abs(expected).max())
