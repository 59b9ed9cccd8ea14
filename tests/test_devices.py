"""What is decided by the kind of a chip, on stand-ins for chips that are not here."""

from __future__ import annotations

import dataclasses
import re
import threading
import types
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from small_models import TEXT

from gemma_tpu.config import CONFIGS
from gemma_tpu.devices import attention_kernel, available_devices, choose_dtype, device_capacity, wake
from gemma_tpu.loading import deploy, resolve_dtype
from gemma_tpu.quantization import Quantization
from gemma_tpu.sharding import AXES, make_mesh


@dataclasses.dataclass(frozen=True)
class Client:
    platform_version: str


@dataclasses.dataclass(frozen=True)
class Device:
    """What of a jax.Device says what kind it is."""

    platform: str
    device_kind: str
    compute_capability: str = ""
    client: Client = Client("")


def gpu(kind: str, capability: str, version: str = "PJRT C API\ncuda 13000") -> Device:
    return Device("gpu", kind, capability, Client(version))


T4, V100, A100 = gpu("Tesla T4", "7.5"), gpu("Tesla V100", "7.0"), gpu("NVIDIA A100", "8.0")
H100, B200 = gpu("NVIDIA H100", "9.0"), gpu("NVIDIA B200", "10.0")
MI300 = gpu("AMD Instinct MI300X", "gfx942", "PJRT C API\nrocm 60300")
V4, V6E, CPU = Device("tpu", "TPU v4"), Device("tpu", "TPU v6 lite"), Device("cpu", "cpu")


def mesh(*devices: Device) -> Mesh:
    return Mesh(np.array([[devices]], dtype=object), AXES)


@pytest.mark.parametrize(
    ("devices", "dtype", "head_dim", "kernel"),
    [
        ([H100], "bfloat16", 72, "cudnn"),
        ([A100, A100], "bfloat16", 72, "cudnn"),
        ([B200], "bfloat16", 256, "cudnn"),
        ([A100], "bfloat16", 256, "plain"),  # 128 at most before Hopper
        ([H100], "bfloat16", 36, "plain"),  # no multiple of 8
        ([H100], "float32", 72, "plain"),
        ([T4], "bfloat16", 72, "plain"),
        ([V100], "bfloat16", 72, "plain"),
        ([A100, T4], "bfloat16", 72, "plain"),  # each device runs the same program
        ([MI300], "bfloat16", 72, "plain"),
        ([CPU], "bfloat16", 72, "plain"),
        ([V4], "bfloat16", 72, "tpu"),
        ([V6E] * 4, "float32", 72, "tpu"),
    ],
)
def test_attention_between_patches_runs_on_what_the_devices_have(devices, dtype, head_dim: int, kernel: str) -> None:
    assert attention_kernel(mesh(*devices), dtype, head_dim) == kernel
    assert CONFIGS["gemma3-4b"].vision.head_dim == 72  # that of every released model


@pytest.mark.parametrize(
    ("devices", "largest", "dtype", "reason"),
    [
        ([CPU] * 8, "float32", "float32", "this CPU computes in float32"),
        ([CPU], "bfloat16", "bfloat16", "this CPU computes in float32, but that would not fit"),
        ([CPU], None, "float32", "this CPU computes in float32"),
        ([T4], "float32", "float32", "on this Tesla T4 XLA computes bfloat16 in float32"),
        (
            [T4, T4],
            "bfloat16",
            "bfloat16",
            "on this Tesla T4 XLA computes bfloat16 in float32, .* but float32 would not fit",
        ),
        (
            [T4],
            None,
            "float32",
            "on this Tesla T4 XLA computes bfloat16 in float32",
        ),  # which is refused then, with the table
        ([A100, T4], "float32", "float32", "on this Tesla T4 XLA computes bfloat16 in float32"),
        ([A100], "float32", "bfloat16", "this NVIDIA A100 has bfloat16 units"),
        ([MI300], "float32", "bfloat16", "this AMD Instinct MI300X has bfloat16 units"),
        ([V4], "float32", "bfloat16", "this TPU v4 has bfloat16 units"),
        ([V6E], "bfloat16", "bfloat16", "this TPU v6 lite has bfloat16 units"),
    ],
)
def test_auto_is_what_the_devices_compute_in(devices, largest: str | None, dtype: str, reason: str) -> None:
    """`largest` is what the model would fit in."""
    sizes = {None: [], "bfloat16": ["bfloat16"], "float32": ["bfloat16", "float32"]}[largest]

    def fits(dtype: jnp.dtype) -> bool:
        return str(dtype) in sizes

    for chosen, why in (choose_dtype(mesh(*devices), fits), resolve_dtype("auto", mesh(*devices), fits)):
        assert str(chosen) == dtype
        assert re.fullmatch(reason, why)


@pytest.mark.parametrize(
    ("free", "limit", "found"),
    [
        (4096, "max", 4 << 20),
        (4096, "-1", 4 << 20),
        (4096, str(1 << 20), 1 << 20),
        (1024, str(1 << 40), 1 << 20),
        (None, str(1 << 20), 1 << 20),
        (None, None, None),
    ],
)
def test_devices_of_a_cpu_share_what_the_host_or_a_container_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int | None, limit: str | None, found: int | None
) -> None:
    if free is not None:
        (tmp_path / "meminfo").write_text(f"MemTotal:       9999 kB\nMemFree: 7 kB\nMemAvailable:   {free} kB\n")
    if limit is not None:
        (tmp_path / "limit").write_text(f"{limit}\n")
    monkeypatch.setattr("gemma_tpu.devices._MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr("gemma_tpu.devices._CONTAINER_LIMITS", (tmp_path / "none", tmp_path / "limit"))
    for count in (1, 8):
        devices = make_mesh(TEXT, devices=jax.devices()[:count])
        assert device_capacity(devices) == (found and found // count)


def test_a_model_that_a_host_has_no_room_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemma_tpu.devices.free_memory", lambda: 13 << 30)
    config = CONFIGS["gemma3-4b"]
    one = make_mesh(config, devices=jax.devices()[:1])
    assert deploy(config, one, "auto", 1024, 1)[0].dtype == jnp.bfloat16
    with pytest.raises(ValueError, match=r"1,024 tokens × 1 rows in float32 do not fit on 1 devices"):
        deploy(config, one, "float32", 1024, 1)
    with pytest.raises(ValueError, match=r"in float32 do not fit"):
        deploy(CONFIGS["gemma3-12b"], one, "auto", 1024, 1)
    assert deploy(CONFIGS["gemma3-12b"], one, "bfloat16", 1024, 1, quantization=Quantization("int4"))[0].rows == 1


def test_a_dtype_that_is_asked_for_is_taken() -> None:
    for dtype in ("bfloat16", jnp.bfloat16, np.dtype(jnp.bfloat16)):
        assert resolve_dtype(dtype, mesh(T4)) == (jnp.dtype("bfloat16"), "")
    for dtype in ("float16", "int8", "banana"):
        with pytest.raises(ValueError, match=r'dtype must be "bfloat16" or "float32"'):
            resolve_dtype(dtype, mesh(H100))


def test_platforms_that_are_not_here_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As JAX fails (seen with jax 0.10.2): with an assertion without words for "cuda", with a RuntimeError else."""
    assert available_devices() == jax.devices()
    for error, reason in ((AssertionError(), ""), (RuntimeError("no backend 'cpu'\nmore"), r" \(no backend 'cpu'\)")):

        def devices(error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(jax, "devices", devices)
        with pytest.raises(ValueError, match=rf"JAX_PLATFORMS=cpu: JAX finds no such device{reason}. Unset"):
            available_devices()


def test_gpus_begin_to_reserve_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    put: list[tuple[int, object]] = []
    monkeypatch.setattr(jax, "device_put", lambda x, device: put.append((x.nbytes, device)))
    one, another = A100, H100
    for devices in ((one, another), (CPU,), (V4,)):
        wake(cast(Mesh, types.SimpleNamespace(local_devices=devices)))
    for thread in threading.enumerate():
        if thread.name == "gemma-wake":
            thread.join()
    assert sorted(put, key=lambda one: one[1] is another) == [(1, one), (1, another)]
