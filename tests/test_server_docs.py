"""The examples of docs/server.md are run as they stand, and give what stands below them."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from server_site import Site, serve

import gemma_tpu
from gemma_tpu.cli.commands import serve as serve_command
from gemma_tpu.server import Settings, app

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "server.md").read_text()
EXAMPLES = re.findall(r"^```(bash|python)\n(.*?)^```\n+```(?:json|text)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
ADDRESS = "http://localhost:8000"


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    settings = Settings(model_names=("gemma3-demo",), api_keys=("secret",))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
    model = gemma_tpu.load("gemma3-demo", mesh=mesh, max_rows=1, max_context=1024, progress=False)
    with model, serve(model, settings) as site:
        yield site


def run(kind: str, code: str, url: str) -> str:
    code = code.replace(ADDRESS, url)
    if kind == "python":
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, {})
        return printed.getvalue()
    environment = os.environ | {"GEMMA_TPU_API_KEY": "secret", "no_proxy": "*"}
    options: dict[str, Any] = {"env": environment, "cwd": ROOT, "capture_output": True, "text": True, "check": True}
    return subprocess.run(["bash", "-c", code], **options).stdout


def steady(value: Any) -> Any:
    """Without what is another at each run."""
    if isinstance(value, dict):
        return {key: steady(item) for key, item in value.items() if key not in ("id", "created", "cached_tokens")}
    return [steady(item) for item in value] if isinstance(value, list) else value


def lines(text: str) -> list[Any]:
    return [
        steady(json.loads(line.removeprefix("data: "))) if line.startswith("data: {") else line
        for line in text.strip().splitlines()
    ]


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
@pytest.mark.parametrize(("kind", "code", "shown"), EXAMPLES)
def test_an_example(site: Site, monkeypatch: pytest.MonkeyPatch, kind: str, code: str, shown: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    given = run(kind, code, site.url)
    if shown.startswith("{"):
        assert steady(json.loads(given)) == steady(json.loads(shown))
    else:
        assert lines(given) == lines(shown)


def test_there_is_an_example_of_every_address() -> None:
    shown = " ".join(code for _, code, _ in EXAMPLES)
    paths = [path.replace("{name:path}", "gemma3-demo") for _, path, _ in app._ENDPOINTS]
    paths += [*(path for path, _ in app._ANTHROPIC), "/health", "/ready"]
    assert all(re.search(f"{ADDRESS}{re.escape(path)}[ \\n]", shown) for path in paths), paths
    assert PAGE.count("```bash") + PAGE.count("```python") == len(EXAMPLES)


def test_the_errors_and_options_are_those_that_there_are() -> None:
    source = "".join(path.read_text() for path in (ROOT / "gemma_tpu" / "server").glob("*.py"))
    codes = set(re.findall(r'(?:code=|NO_MODEL = |_CODE = |: |= )"([a-z]+(?:_[a-z]+)*)"', source))
    table = PAGE[PAGE.index("| status |") :]
    named = {code for line in table.splitlines() if line.startswith("|") for code in re.findall(r"`([a-z_]+)`", line)}
    assert named - {"param", "code"} <= codes
    parser = argparse.ArgumentParser()
    serve_command.add_arguments(parser)
    for option in set(re.findall(r"`--([a-z-]+)", PAGE)):
        assert f"--{option}" in parser._option_string_actions, option
