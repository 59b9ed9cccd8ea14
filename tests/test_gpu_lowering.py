"""JAX accepts our kernels for a GPU as they are for the real sizes, without one at hand."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from gemma_tpu.ops import int4_products, norms
from gemma_tpu.ops.int8 import Int8
from gemma_tpu.ops.triton_attention import New, look_by_block

KNOWN = {"device_kind": "NVIDIA H100 80GB HBM3", "num_cores": None, "platform": "cuda"}
GPU = AbstractDevice(*(KNOWN[name] for name in inspect.signature(AbstractDevice).parameters))


def kernels(f: Any, *arguments: Any) -> int:
    """How many of them are in the program for a GPU."""
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=GPU)):
        lowered = jax.jit(f).trace(*arguments).lower(lowering_platforms=("cuda",))
    return lowered.as_text().count("gpu$xla.gpu.triton")


def of(dtype: str, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))


@pytest.mark.parametrize("D", [640, 1152, 2560, 3840, 5376])
def test_two_norms(D: int) -> None:
    stream, scale = of("bfloat16", 2, 1, D), of("bfloat16", D)
    assert kernels(norms._in_kernel, stream, stream, scale, scale) == 1


@pytest.mark.parametrize("rows", [1, 2, 8])
@pytest.mark.parametrize(("N", "K"), [(43008, 5376), (5376, 21504), (2560, 10240), (1536, 1152), (4096, 640)])
def test_a_product_with_int4(rows: int, N: int, K: int) -> None:
    assert kernels(int4_products._product, of("bfloat16", rows, K), of("int4", N, K)) == 2


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("pages", [False, True])
def test_a_decode_step_of_attention(rows: int, pages: bool, int8: bool) -> None:
    """Of rings and pages: what looks, and what joins the shares."""
    A, S = (64, 128) if pages else (rows, 1024)
    keys = of("int8", A, 4, S, 256) if int8 else of("bfloat16", A, 4, S, 256)
    own = None
    if int8:
        keys = Int8(keys, of("float32", A, 4, S))
        own = (Int8(of("int8", rows, 4, 256), of("float32", rows, 4)),) * 2
    new = New(own, of("int32", rows) if pages else None, of("int32", rows))
    query = of("bfloat16", rows, 4, 2 if int8 else 4, 256)
    place = of("int32", rows, 16) if pages else None
    look = functools.partial(look_by_block, window=None if pages else 1024, dtype=jnp.bfloat16)
    positions = of("int32", rows, 1), of("int32", A, S)
    assert kernels(look, query, keys, keys, *positions, of("int32", rows), place, None, new) == 2
