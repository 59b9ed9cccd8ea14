"""What must be set before jax starts, and the order of the files.

Eight simulated CPU devices, shape annotations checked at run time, and one compilation cache for the run: workers, and
the processes that tests start, compile a program once between them.
"""

import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import xla_flags

os.environ["JAX_PLATFORMS"] = "cpu"
_XLA_FLAGS = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{_XLA_FLAGS} {xla_flags.devices(8)}"
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or every process that a test starts compiles the package again
sys.dont_write_bytecode = False
_CACHE = "JAX_COMPILATION_CACHE_DIR"
_own_cache = _CACHE not in os.environ  # of xdist's controller, whose workers inherit it
if _own_cache:
    os.environ[_CACHE] = tempfile.mkdtemp(prefix="gemma-tpu-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import jax  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

jax.devices()  # has read XLA_FLAGS now
os.environ["XLA_FLAGS"] = _XLA_FLAGS  # libtpu, which has flags of its own, ends the process at those for a CPU
_ROOT = Path(__file__).parents[1]
_SHAPED = [path for path in _ROOT.glob("gemma_tpu/**/*.py") if "from jaxtyping import" in path.read_text()]
install_import_hook([".".join(path.relative_to(_ROOT).with_suffix("").parts) for path in _SHAPED], "shape_check.check")


pytest_plugins = ("hub_fixtures", "page_fixtures", "tool_fixtures")

# Files that take longest, longest first: a file is one worker's, which must not begin such a one when the other ends.
_LONGEST = (
    "test_plan_compiled",
    "test_notebooks",
    "test_distributed",
    "test_demo_checkpoint",
    "test_ops_triton_attention",
    "test_demo_reconnect",
    "test_programs",
    "test_engine_cache",
    "test_ops_append_attention",
    "test_int8_cache",
    "test_quantization",
    "test_speculation",
    "test_demo_app",
    "test_server_faults",
    "test_rehearsal",
    "test_chat_page",
    "test_linear",
    "test_plan_command",
    "test_long_context",
    "test_chat_model",
    "test_grammar",
    "test_demo_inputs",
)

_RUN_LONG = ("test_long_context", "test_demo_checkpoint")  # their programs run for longer than they compile


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For `--dist loadfile --no-loadscope-reorder`, which hands out files in this order."""
    place = {name: i for i, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector need not look at it again and again."""
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _how_programs_are_compiled(request: pytest.FixtureRequest) -> None:
    """Without optimisation where they take longer to compile than to run.

    The tests of the planner read what the compiler says, which a cache does not keep; those of executables are about
    what was compiled.
    """
    name = request.path.stem
    planner = name.startswith("test_plan")
    jax.config.update("jax_disable_most_optimizations", not planner and name not in _RUN_LONG)
    jax.config.update("jax_enable_compilation_cache", not planner and name != "test_executables")
    compilation_cache.reset_cache()


@pytest.fixture(autouse=True, scope="session")
def _executables_are_not_kept() -> Iterator[None]:
    """They are found by what the files say, which a test that replaces a part of a module does not change."""
    from gemma_tpu.engine import executables

    with mock.patch.object(executables, "of_deployment", return_value=None):
        yield


@pytest.fixture
def fresh_traces() -> Iterator[None]:
    """For a test that changes what jax traces: it finds nothing of earlier tests, and leaves nothing to later ones."""
    jax.clear_caches()
    yield
    jax.clear_caches()


def pytest_unconfigure() -> None:
    if _own_cache:
        shutil.rmtree(os.environ[_CACHE], ignore_errors=True)
