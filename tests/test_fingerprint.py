"""What processes compare: it changes when something does that changes programs, and with nothing else."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from gemma_tpu.distributed.fingerprint import _digest, common_digests, differences, software


def test_software_names_versions_settings_and_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_b=1 --xla_a=2")
    before = software()
    assert before["jax"] == jax.__version__
    monkeypatch.setenv(
        "XLA_FLAGS", "--xla_a=2 --xla_dump_to=/tmp/here --xla_b=1 --xla_force_host_platform_device_count=3"
    )
    assert software() == before
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=3")
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_x=true")
    with jax.default_matmul_precision("highest"):
        after = software()
    assert {name for name in after if after[name] != before[name]} == {
        "XLA_FLAGS",
        "LIBTPU_INIT_ARGS",
        "jax_default_matmul_precision",
    }


def test_differences_name_two_processes_each() -> None:
    found = {"a": {"x": "1", "y": "1"}, "b": {"x": "1", "z": "2"}, "c": {"x": "3", "y": "4", "z": "2"}, "d": {"x": "5"}}
    assert differences(found) == [("x", ("a", "1"), ("c", "3")), ("y", ("a", "1"), ("c", "4"))]
    assert differences({"a": {"x": "1"}}) == []


def test_one_bit_changes_a_digest() -> None:
    values = np.arange(64, dtype=np.float32).reshape(8, 8)
    flipped = values.copy()
    flipped.view(np.uint32)[3, 4] ^= 1
    for dtype in (jax.numpy.float32, jax.numpy.bfloat16):
        assert _digest(jax.numpy.asarray(values, dtype)) == _digest(jax.numpy.asarray(values, dtype))
    assert _digest(jax.numpy.asarray(values)) != _digest(jax.numpy.asarray(flipped))


def test_what_one_process_holds_alone_is_not_compared() -> None:
    """tests/test_distributed.py has what several hold."""
    assert common_digests({"table": jax.numpy.ones((4, 4))}) == {}
