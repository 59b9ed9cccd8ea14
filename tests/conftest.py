"""Eight simulated CPU devices, and shape annotations checked at run time. Both must be set before jax starts."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

from jaxtyping import install_import_hook

install_import_hook("gemma_tpu", "shape_check.check")


pytest_plugins = ("hub_fixtures", "page_fixtures")
