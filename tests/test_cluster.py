"""The arguments of a multi-host run: invalid ones are refused at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gemma_tpu.distributed.cluster import Cluster, find_cluster


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [("10.0.0.2:8482", "10.0.0.2", 8482), ("host-0.pool:1", "host-0.pool", 1), ("[fd00::2]:65535", "fd00::2", 65535)],
)
def test_addresses(address: str, host: str, port: int) -> None:
    cluster = find_cluster(address, 2, 1)
    assert cluster == Cluster(host, port, 2, 1)
    assert cluster.address == address


@pytest.mark.parametrize(
    "address",
    [
        "nonsense",
        "host:",
        ":8482",
        "host:x",
        "host:0",
        "host:65536",
        "host:-1",
        "http://host:80",
        "::1:80",
        "[::1]",
        "a b:1",
        "host:8482/",
        "a..b:80",
        "[host]:80",
        "host:²",
        8482,
        b"host:80",
        ["host", 80],
    ],
)
def test_what_is_no_address(address: Any) -> None:
    with pytest.raises(ValueError, match="coordinator"):
        find_cluster(address, 2, 0)


@pytest.mark.parametrize(
    ("processes", "process", "match"),
    [
        (2, 2, "process id must be at least 0 and at most 1, got 2"),
        (2, -1, "process id must be at least 0 and at most 1, got -1"),
        (0, 0, "at least 1"),
        (2.0, 0, "number of processes must be an integer"),
        (2, "0", "process id must be an integer"),
        (2, True, "process id must be an integer"),
        (2, None, "no process id"),
    ],
)
def test_what_are_no_numbers(processes: Any, process: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        find_cluster("host:80", processes, process)


def test_numbers_of_numpy() -> None:
    assert find_cluster("host:80", np.int64(2), np.int32(1)) == Cluster("host", 80, 2, 1)
