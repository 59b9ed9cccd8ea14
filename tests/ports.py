"""TCP ports that a test must know before anything listens on them, or between two servers."""

from __future__ import annotations

import contextlib
import random
import socket


def free_port() -> int:
    """Below the ephemeral range, from which the kernel would give it to another test's socket in the meantime."""
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise OSError("no free port on 127.0.0.1")
