"""A server of a model that says what a test has written for it, see tool_script."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # modules of the package and of tests are imported where they are used, after conftest's hook
    import openai
    from server_site import Site
    from tool_script import Script

    import gemma_tpu


@pytest.fixture(scope="module")
def tool_model() -> Iterator[gemma_tpu.Model]:
    from test_api import TOKENIZER
    from tool_script import make

    from gemma_tpu.text import GEMMA3

    with make(TOKENIZER, GEMMA3) as model:
        yield model


@pytest.fixture(scope="module")
def tool_site(tool_model: gemma_tpu.Model) -> Iterator[Site]:
    from server_site import serve

    with serve(tool_model) as site:
        yield site


@pytest.fixture(scope="module")
def tool_client(tool_site: Site) -> Iterator[openai.OpenAI]:
    import openai
    from server_site import WAIT

    asked: Any = {"api_key": "none", "max_retries": 0, "timeout": WAIT, "_strict_response_validation": True}
    with openai.OpenAI(base_url=f"{tool_site.url}/v1", **asked) as client:
        yield client


@pytest.fixture
def script(tool_model: gemma_tpu.Model, monkeypatch: pytest.MonkeyPatch) -> Script:
    from tool_script import script_of

    return script_of(tool_model, monkeypatch)
