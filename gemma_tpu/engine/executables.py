"""Compiled programs on disk: a process that needs them again neither traces, lowers nor compiles.

JAX's own cache finds a program by its lowered form, and to lower those of a model takes Python ten seconds. These are
found by what that follows from: the sources, versions and flags (`gemma_tpu.fingerprint`), the devices, the deployment,
and the shapes of the arguments. They lie in a folder of JAX's cache, if JAX keeps one: who can write there can have
this process run anything, as with JAX's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import os
import pickle
import platform
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.monitoring
from jax.experimental import serialize_executable

from gemma_tpu import fingerprint
from gemma_tpu.cache.state import State
from gemma_tpu.deployment import Deployment
from gemma_tpu.environment import write_whole

_LOG = logging.getLogger(__name__)
_FOLDER = "gemma_tpu"  # in JAX's
_MOST = 4 << 30  # bytes of all; those that were not used for longest are deleted
_DIGEST = hashlib.sha256().digest_size  # bytes, which a file begins with
_STATE = "state"  # stands for one
_FOUND = "/jax/compilation_cache/cache_hits"  # event of JAX
_CPU = Path("/proc/cpuinfo")  # on Linux


@dataclasses.dataclass(frozen=True)
class Kept:
    """`results`: shapes of what the program gives, a State among them as it was given."""

    path: Path
    results: Any
    payload: bytes
    trees: tuple[Any, Any]  # of arguments and results


class Executables:
    """Those of one deployment."""

    def __init__(self, folder: Path, deployment: Deployment) -> None:
        devices = list(deployment.mesh.devices.flat)
        self._folder, self._devices = folder, devices
        self._made_by = fingerprint.sources(), fingerprint.versions(), fingerprint.flags(), _hardware(devices)

    def find(self, program: Any, args: Any, static: dict[str, Any]) -> Kept | None:
        """What was kept of a program for such arguments; None if nothing was, or it is damaged."""
        path = self._path(program, args, static)
        try:
            data = path.read_bytes()
            if hashlib.sha256(data[_DIGEST:]).digest() != data[:_DIGEST]:
                raise ValueError("its digest is another")
            results, payload = pickle.loads(data[_DIGEST:])
            os.utime(path)
        except FileNotFoundError:
            return None
        except Exception:  # whatever reading and unpickling raise
            _LOG.debug("%s is damaged", path, exc_info=True)
            return None
        state = next((x for x in args if isinstance(x, State)), None)
        results = jax.tree.map(lambda x: state if x == _STATE else x, results)
        return Kept(path, results, payload, _trees(args, results))

    def load(self, kept: Kept) -> Any:
        """Called with the arguments that are not static. Raises whatever is wrong with it, and deletes it then."""
        try:
            load = serialize_executable.deserialize_and_load
            return load(kept.payload, *kept.trees, backend=self._devices[0].client, execution_devices=self._devices)
        except Exception:
            kept.path.unlink(missing_ok=True)
            raise

    def keep(self, program: Any, args: Any, static: dict[str, Any], compiled: Any, results: Any) -> None:
        """For later processes. OSError if it cannot be written, and ValueError if it is no program to be kept.

        What makes a State is none: what is to come back is known of those that are given one.
        """
        payload, *trees = serialize_executable.serialize(compiled)
        if tuple(trees) != _trees(args, results):
            raise ValueError("its arguments or results are not those that were expected")
        state = next((x for x in args if isinstance(x, State)), None)
        found = [x for x in jax.tree.leaves(results, is_leaf=_is_state) if _is_state(x)]
        if any(jax.tree.structure(x) != jax.tree.structure(state) for x in found):
            raise ValueError("it makes a state")
        shapes = jax.tree.map(
            lambda x: _STATE if _is_state(x) else jax.ShapeDtypeStruct(x.shape, x.dtype), results, is_leaf=_is_state
        )
        data = pickle.dumps((shapes, payload))
        write_whole(self._path(program, args, static), hashlib.sha256(data).digest() + data)

    def prune(self) -> None:
        """Deletes those that were not used for longest, if they are too many."""
        files = [(path.stat(), path) for path in self._folder.iterdir()]
        total = sum(stat.st_size for stat, _ in files)
        for stat, path in sorted(files, key=lambda one: one[0].st_mtime):
            if total <= _MOST:
                break
            path.unlink(missing_ok=True)
            total -= stat.st_size

    def _path(self, program: Any, args: Any, static: dict[str, Any]) -> Path:
        leaves, structure = jax.tree.flatten(args)
        shapes = [(x.shape, x.dtype.name, str(getattr(getattr(x, "sharding", None), "spec", ""))) for x in leaves]
        fixed = {name: _described(value) for name, value in static.items()}
        what = program.__module__, program.__qualname__, fixed, str(structure), shapes
        return self._folder / hashlib.sha256(repr((what, self._made_by)).encode()).hexdigest()


def of_deployment(deployment: Deployment) -> Executables | None:
    """None where JAX keeps no compiled programs either, or not on this machine."""
    folder = jax.config.values["jax_compilation_cache_dir"]
    if not folder or "://" in folder or not jax.config.values["jax_enable_compilation_cache"]:
        return None
    return Executables(Path(folder) / _FOLDER, deployment)


@contextlib.contextmanager
def compiling() -> Iterator[Callable[[], bool]]:
    """Says whether this thread compiled all that it asked JAX to compile in the block.

    What JAX had from its own cache is not to be kept: XLA for CPUs writes such a program without some of its parts,
    which is not found out before it runs.
    """
    found: list[str] = []
    own = threading.get_ident()

    def listen(event: str, **_: object) -> None:
        if event == _FOUND and threading.get_ident() == own:
            found.append(event)

    jax.monitoring.register_event_listener(listen)
    try:
        yield lambda: not found
    finally:
        jax.monitoring.unregister_event_listener(listen)


def _is_state(x: Any) -> bool:
    return isinstance(x, State)


def _trees(args: Any, results: Any) -> tuple[Any, Any]:
    return jax.tree.structure((tuple(args), {})), jax.tree.structure(results)


def _described(value: Any) -> Any:
    """With every field of a dataclass, whatever its own `repr` leaves out. The mesh's devices stand beside."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value).__name__, [_described(getattr(value, one.name)) for one in dataclasses.fields(value)]
    return tuple(map(_described, value)) if isinstance(value, (list, tuple)) else value


def _hardware(devices: Sequence[jax.Device]) -> list[object]:
    """XLA compiles for this very processor, if that is the device."""
    client = devices[0].client
    found: list[object] = [client.platform_version, [(device.id, device.device_kind) for device in devices]]
    if client.platform == "cpu":
        said = _CPU.read_text().splitlines() if _CPU.exists() else []
        features = {line for line in said if line.startswith(("model name", "flags", "Features"))}
        found += [platform.machine(), platform.processor(), os.cpu_count(), sorted(features)]
    return found
