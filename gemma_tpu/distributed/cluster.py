"""The coordinator address, number of processes and process id of a multi-host run."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from jax._src import clusters  # jax.distributed's cluster detection has no public API

from gemma_tpu.checks import check_integer

_DETECTION_TIMEOUT = 60  # seconds for the host name of a TPU's coordinator to resolve


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Process 0 listens at the coordinator's `host`:`port`."""

    host: str
    port: int
    num_processes: int
    process_id: int

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def find_cluster(coordinator_address: Any, num_processes: Any, process_id: Any) -> Cluster:
    """Detects what is None, as `jax.distributed.initialize` does. ValueError if that fails or a value is invalid."""
    coordinator_address = coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if None in (coordinator_address, num_processes, process_id):
        coordinator_address, num_processes, process_id, _ = clusters.ClusterEnv.auto_detect_unset_distributed_params(
            coordinator_address, num_processes, process_id, None, None, _DETECTION_TIMEOUT
        )
    given = {"coordinator": coordinator_address, "number of processes": num_processes, "process id": process_id}
    if missing := [name for name, value in given.items() if value is None]:
        raise ValueError(
            "coordinator, number of processes and process id must be given where no TPU slice provides them: there is "
            f"no {', no '.join(missing)}"
        )
    host, port = parse_address("coordinator", coordinator_address)
    check_integer("number of processes", num_processes, 1)
    check_integer("process id", process_id, 0, int(num_processes) - 1)
    return Cluster(host, port, int(num_processes), int(process_id))


def parse_address(name: str, address: Any) -> tuple[str, int]:
    """Host and port of "host:port" or "[IPv6]:port"; errors begin with `name`."""
    host, colon, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    valid = colon and host and not set(host) & set("/[]@ \t\n") and (":" in host) == bracketed
    if not valid or not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise ValueError(f"{name} must be HOST:PORT, such as 10.0.0.2:8482 or [fd00::2]:8482, got {address!r}")
    try:
        host.encode("idna")
    except UnicodeError as error:
        raise ValueError(f"{name} has an invalid host name: {error}, got {address!r}") from error
    return host, int(port)
