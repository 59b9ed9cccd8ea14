"""What `gemma-tpu plan` predicts for the checkpoint on a slice, from a process of its own: the compiler for TPUs would
not leave this one's devices alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Annotated, Any

import pydantic

SLICES = ("v5e:1x1", "v5e:2x2", "v5e:2x4", "v6e:1x1", "v6e:2x2", "v6e:2x4", "v5p:2x2x1", "v4:2x2x1")
_LIMIT = 900  # seconds
_one_at_a_time = asyncio.Lock()  # each takes a core or two for a minute


class PlanRequest(pydantic.BaseModel):
    topology: Annotated[str, pydantic.StringConstraints(pattern=r"^(" + "|".join(SLICES) + ")$")]


async def predict(checkpoint: str, topology: str, context: int) -> dict[str, Any]:
    """A decode step of one row, as predicted in seconds; whether all fits, and the bytes of a device.

    ValueError with what the command said if it could not tell.
    """
    command = [sys.executable, "-m", "gemma_tpu", "plan", checkpoint, "--topology", topology, "--quick", "--json"]
    command += ["--rows", "1", "--context", str(context)]
    async with _one_at_a_time:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")},
        )
        try:
            out, said = await asyncio.wait_for(process.communicate(), _LIMIT)
        except BaseException:  # the visitor has left, too
            process.kill()
            await process.wait()
            raise
    try:
        plan = json.loads(out)
    except ValueError:
        lines = said.decode(errors="replace").strip().splitlines()
        raise ValueError(lines[-1] if lines else f"gemma-tpu plan ended with code {process.returncode}") from None
    steps = [one for one in plan["predictions"] if one["what"].startswith("decode step")]
    return {
        "slice": plan["slice"],
        "fits": plan["fits"],
        "total": plan["memory"]["total"],
        "capacity": plan["memory"]["capacity"],
        "seconds": steps[0]["compiler_seconds"] if steps else None,
        "roofline": steps[0]["roofline_seconds"] if steps else None,
    }
