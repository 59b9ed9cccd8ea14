"""Where compiled programs are kept between runs. Imports nothing heavy: it must run before jax starts."""

import os


def use_compilation_cache() -> None:
    """Keeps compiled programs in ~/.cache/gemma_tpu/compiled, so that a second start takes seconds, not minutes.

    To be called before jax is imported. JAX's own variables (JAX_COMPILATION_CACHE_DIR, …) win where they are set.
    """
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/gemma_tpu/compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
