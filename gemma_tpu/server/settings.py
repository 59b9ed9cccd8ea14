"""How a server answers, and whom."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping

from gemma_tpu.checks import check_integer, check_number

KEYS_VARIABLE = "GEMMA_TPU_API_KEYS"


@dataclasses.dataclass(frozen=True)
class Settings:
    """ValueError for a value out of range.

    `model_names`: what a request may call the model; the first is what answers and metrics call it.
    `api_keys`: one of these is required if there are any. `any_host`: without keys, whether requests for host names
    other than this machine's are answered; a page of another site can make its own name lead here.
    `allow_origins`: origins whose pages may ask. `lenient`: unknown fields are ignored with a warning.
    `allow_image_urls`: images are fetched from public http(s) addresses. `image_folder`: where file: URLs may lead.
    Limits of a request: `max_body_bytes`, `max_images`, `max_pixels` (of each image), `max_tokens` (that it may ask
    for), `request_timeout` (seconds). `max_queue`: answers that may wait for a batch row. `drain_timeout`: seconds that
    running answers have when the server is told to stop.
    """

    model_names: tuple[str, ...] = ("gemma3",)
    api_keys: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    any_host: bool = False
    allow_origins: tuple[str, ...] = ()
    lenient: bool = False
    allow_image_urls: bool = False
    image_folder: str | None = None
    max_body_bytes: int = 32 << 20
    max_images: int = 16
    max_pixels: int = 64_000_000
    max_tokens: int | None = None
    max_queue: int = 64
    request_timeout: float = 600
    drain_timeout: float = 30

    def __post_init__(self) -> None:
        if not self.model_names or not all(self.model_names):
            raise ValueError("model_names must name the model")
        for name in ("max_body_bytes", "max_pixels"):
            check_integer(name, getattr(self, name), 1)
        for name in ("max_images", "max_queue"):
            check_integer(name, getattr(self, name), 0)
        if self.max_tokens is not None:
            check_integer("max_tokens", self.max_tokens, 1)
        check_number("request_timeout", self.request_timeout, 0, low_open=True)
        check_number("drain_timeout", self.drain_timeout, 0)


def model_name(checkpoint: str) -> str:
    """What a checkpoint's model is called: a directory's name; a name of a hub is one."""
    local = os.path.exists(os.path.expanduser(checkpoint)) or "://" in checkpoint
    return os.path.basename(checkpoint.rstrip("/")) or "gemma3" if local else checkpoint


def read_keys(path: str | None, environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """API keys: one a line of the file, in which # begins a comment, and those in $GEMMA_TPU_API_KEYS, by commas.

    ValueError for a file that has none and for a key that HTTP headers cannot carry; no message repeats a key.
    """
    keys = [key.strip() for key in environment.get(KEYS_VARIABLE, "").split(",") if key.strip()]
    if path is not None:
        with open(path, encoding="utf-8-sig") as file:
            lines = [line.partition("#")[0].strip() for line in file]
        if not any(lines):
            raise ValueError(f"{path}: holds no API key")
        keys += [line for line in lines if line]
    for number, key in enumerate(keys, 1):
        if not key.isascii() or not key.isprintable() or " " in key:
            raise ValueError(f"API key {number}: a key is printable ASCII characters without spaces")
    return tuple(keys)
