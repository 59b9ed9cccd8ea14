"""Eight simulated CPU devices, and shape annotations checked at run time. Both must be set before jax starts.

And what the tests of pages share: a browser, and a model that takes its time.
"""

import os
import time
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import pytest
from jaxtyping import install_import_hook

install_import_hook("gemma_tpu", "shape_check.check")


pytest_plugins = ("hub_fixtures",)


@pytest.fixture(scope="module")
def browser():
    from demo_site import CHROMIUM, FLAGS
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def slow(model, monkeypatch: pytest.MonkeyPatch) -> None:
    """So small a model is done before anybody could stop it: here it writes 400 tokens a second."""
    decode = model.engine._runner._decode

    def slowly(*arguments: Any) -> Any:
        time.sleep(0.02)
        return decode(*arguments)

    monkeypatch.setattr(model.engine._runner, "_decode", slowly)
