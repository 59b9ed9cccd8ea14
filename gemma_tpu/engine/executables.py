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
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.monitoring
from jax.experimental import serialize_executable

from gemma_tpu import fingerprint
from gemma_tpu.cache.state import State
from gemma_tpu.deployment import Deployment
from gemma_tpu.environment import PART, write_whole

_LOG = logging.getLogger(__name__)
_FOLDER = "gemma_tpu"  # in JAX's
_MOST = 4 << 30  # bytes of all; those that were not used for longest are deleted
_DIGEST = hashlib.sha256().digest_size  # bytes, which a file begins with
_STATE = "state"  # stands for one
_FOUND = "/jax/compilation_cache/cache_hits"  # events of JAX: a program was in its cache,
_MADE = "/jax/core/compile/backend_compile_duration"  # and then: it is there, compiled or from the cache
_ABANDONED = 3600  # seconds after which a part of a file is nobody's
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
        self._made_by = fingerprint.versions(), _hardware(devices)

    def find(self, program: Any, args: Any, static: dict[str, Any]) -> Kept | None:
        """What was kept of a program for such arguments; None if nothing was, or it is damaged."""
        path = self.path(program, args, static)
        if path is None:
            return None
        try:
            data = path.read_bytes()
            if _digest(path, data[_DIGEST:]) != data[:_DIGEST]:
                raise ValueError("its digest is another")
            results, payload = pickle.loads(data[_DIGEST:])
            state = next((x for x in args if isinstance(x, State)), None)
            results = jax.tree.map(lambda x: state if isinstance(x, str) and x == _STATE else x, results)
            kept = Kept(path, results, payload, _trees(args, results))
        except FileNotFoundError:
            return None
        except Exception:  # whatever reading and unpickling raise
            _LOG.debug("%s is damaged", path, exc_info=True)
            return None
        with contextlib.suppress(OSError):  # a folder that is only read
            os.utime(path)
        return kept

    def load(self, kept: Kept) -> Callable[..., Any]:
        """Called with the arguments that are not static. Raises whatever is wrong with it, and deletes it then."""
        with _deleted_if_it_fails(kept.path):
            load = serialize_executable.deserialize_and_load
            compiled = load(kept.payload, *kept.trees, backend=self._devices[0].client, execution_devices=self._devices)

        def call(*args: Any) -> Any:
            with _deleted_if_it_fails(kept.path):
                return compiled(*args)

        return call

    def written(self, args: Any, compiled: Any, results: Any) -> bytes:
        """A program that has not run yet, to be kept. ValueError if it is none that can be.

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
        return pickle.dumps((shapes, payload))

    def keep(self, path: Path, data: bytes) -> None:
        """For later processes, what was `written`. OSError if it cannot be."""
        write_whole(path, _digest(path, data) + data)

    def prune(self) -> None:
        """Deletes those that were not used for longest, if they are too many, and what a process has left half-done."""
        files = []
        for path in self._folder.iterdir():
            with contextlib.suppress(OSError):  # another process deletes as well
                if path.is_file():
                    files.append((path.stat(), path))
        total = sum(stat.st_size for stat, _ in files)
        for stat, path in sorted(files, key=lambda one: one[0].st_mtime):
            abandoned = path.suffix == PART and stat.st_mtime < time.time() - _ABANDONED
            if total > _MOST or abandoned:
                with contextlib.suppress(OSError):
                    path.unlink()
                total -= stat.st_size

    def path(self, program: Any, args: Any, static: dict[str, Any]) -> Path | None:
        """Where a program for such arguments is, as this process would compile it now; None if nothing says how."""
        sources = fingerprint.sources()
        if sources is None:
            return None
        leaves, structure = jax.tree.flatten(args)
        shapes = [(x.shape, x.dtype.name, str(getattr(getattr(x, "sharding", None), "spec", ""))) for x in leaves]
        fixed = {name: _described(value) for name, value in static.items()}
        what = program.__module__, program.__qualname__, fixed, str(structure), shapes
        made_by = sources, fingerprint.flags(), self._made_by
        return self._folder / hashlib.sha256(repr((what, made_by)).encode()).hexdigest()


def of_deployment(deployment: Deployment) -> Executables | None:
    """None where JAX keeps no compiled programs either, or not on this machine."""
    folder = jax.config.values["jax_compilation_cache_dir"]
    if not folder or "://" in folder or not jax.config.values["jax_enable_compilation_cache"]:
        return None
    return Executables(Path(folder) / _FOLDER, deployment)


@contextlib.contextmanager
def compiling() -> Iterator[Callable[[], bool]]:
    """Says whether JAX compiled what this thread asks it to compile in the block.

    What it had from its own cache is not to be kept: XLA for CPUs writes such a program without some of its parts,
    which is not found out before it runs. Nor is what was in memory: nobody knows where it came from, and one that has
    run can be written as little.
    """
    _THREAD.compiled = False
    yield lambda: _THREAD.compiled


_THREAD = threading.local()


def _listen(event: str, *_: object, **__: object) -> None:
    if event == _FOUND:
        _THREAD.found = True
    elif event == _MADE:
        _THREAD.compiled = not getattr(_THREAD, "found", False)
        _THREAD.found = False


# For good: JAX passes over a listener while another is taken away.
jax.monitoring.register_event_listener(_listen)
jax.monitoring.register_event_duration_secs_listener(_listen)


@contextlib.contextmanager
def _deleted_if_it_fails(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def _digest(path: Path, data: bytes) -> bytes:
    """Of what is in a file, and for which program it is."""
    return hashlib.sha256(path.name.encode() + data).digest()


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
