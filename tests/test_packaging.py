"""What `python -m build` makes, and that it works where nothing else of this repository is."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import xla_flags

import gemma_tpu

ROOT = Path(__file__).parents[1]
NAME = f"gemma_tpu-{gemma_tpu.__version__}"
WHEEL = f"{NAME}-py3-none-any.whl"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"  # of apache.org/licenses/LICENSE-2.0.txt


def source_files() -> list[str]:
    """The repository's files: what git knows, or in an unpacked sdist all that there is."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    if (ROOT / ".git").exists():
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
        return [name for name in listed if (ROOT / name).is_file()]
    ours = [path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file()]
    made = {".venv", "__pycache__", ".pytest_cache", ".ruff_cache", "build", "dist", "gemma_tpu.egg-info"}
    return [str(path) for path in ours if not made & set(path.parts) and str(path) not in ("PKG-INFO", "setup.cfg")]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that is built from it."""
    copy = tmp_path_factory.mktemp("source")
    for name in source_files():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "absent from the `packages`" not in done.stdout + done.stderr
    return out


def test_the_sdist_is_the_repository(built: Path) -> None:
    with tarfile.open(built / f"{NAME}.tar.gz") as archive:
        found = {member.name.removeprefix(f"{NAME}/") for member in archive.getmembers() if member.isfile()}
    made = {name for name in found if name.startswith("gemma_tpu.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert found - made == set(source_files()) - {".gitignore"}


def test_the_wheel_is_the_packages_and_the_checkpoint(built: Path) -> None:
    with zipfile.ZipFile(built / WHEEL) as archive:
        found = set(archive.namelist())
        metadata = archive.read(f"{NAME}.dist-info/METADATA").decode()
    installed = ("gemma_tpu/", "demo/", "checkpoints/gemma3-demo/")
    expected = {name for name in source_files() if name.startswith(installed)}
    expected -= {name for name in expected if name.startswith("demo/webui/")}  # makes a page, in the repository
    assert {name for name in found if ".dist-info/" not in name} == expected
    assert {"gemma_tpu/py.typed", "demo/py.typed", "demo/examples/shapes.png"} < found
    assert f"{NAME}.dist-info/licenses/LICENSE" in found
    assert "License-Expression: Apache-2.0" in metadata


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel unpacked by pip, with nothing around it but the packages of this interpreter."""
    target = tmp_path_factory.mktemp("installed")
    options = ["--quiet", "--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(built / WHEEL)]
    subprocess.run(command, check=True)
    return target


def environment(installed: Path) -> dict[str, str]:
    return os.environ | xla_flags.PROCESS | {"PYTHONPATH": str(installed), "PYTHONWARNINGS": "ignore"}


def test_the_command_works_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    def run(*command: str) -> str:
        environ = environment(installed)
        return subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True).stdout

    assert run(sys.executable, "-c", "import gemma_tpu; print(gemma_tpu.__file__)").startswith(str(installed))
    script = str(installed / "bin" / "gemma-tpu")
    assert run(script, "--version") == f"gemma-tpu {gemma_tpu.__version__}\n"
    assert run(script, "generate", "gemma3-demo", "What is 12 + 30?") == "12 + 30 = 42\n"


@pytest.fixture
def demo(installed: Path, tmp_path: Path) -> Iterator[str]:
    """The address of `python -m demo`, started in an empty folder."""
    command = [sys.executable, "-m", "demo", "--port", "0", "--no-load"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(installed), stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith("The demo is at http://127.0.0.1:"), line
            yield line.split()[4]
        finally:
            process.terminate()
    assert process.returncode == 0


def test_the_demo_works_in_an_empty_folder(demo: str) -> None:
    with urllib.request.urlopen(demo, timeout=60) as page:
        assert "gemma3-demo" in page.read().decode()
    with urllib.request.urlopen(f"{demo}/favicon.ico", timeout=60) as icon:
        assert icon.read() == (ROOT / "demo" / "static" / "favicon.png").read_bytes()


def test_the_demo_has_the_api_too(demo: str) -> None:
    with urllib.request.urlopen(f"{demo}/health", timeout=60) as health:
        assert json.load(health) == {"status": "ok"}
    with pytest.raises(urllib.error.HTTPError) as refused:  # nothing has been loaded
        urllib.request.urlopen(f"{demo}/v1/models", timeout=60)
    assert (refused.value.code, json.load(refused.value)["error"]["code"]) == (503, "loading")


def test_requirements_are_the_dependencies() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == PROJECT["dependencies"]


def test_license() -> None:
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2
    assert PROJECT["license"] == "Apache-2.0"


def test_type_checkers_see_the_public_names() -> None:
    """`import X as X`, from the module it is imported from at run time: what a py.typed package exports."""
    seen = {}
    for node in ast.walk(ast.parse((ROOT / "gemma_tpu" / "__init__.py").read_text())):
        if isinstance(node, ast.ImportFrom):
            seen |= {alias.asname: node.module for alias in node.names if alias.asname == alias.name}
    assert seen == gemma_tpu._MODULE_OF
