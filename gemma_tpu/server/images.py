"""Images of a request: data URLs, and where it is allowed public addresses and files of one folder."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

from gemma_tpu import fetch
from gemma_tpu.image import read_source
from gemma_tpu.picture import Picture
from gemma_tpu.server.errors import APIError
from gemma_tpu.server.schema import Message
from gemma_tpu.server.service import Service
from gemma_tpu.server.settings import Settings

Place = Callable[[int, int], str]  # the index of a message and of its part → what the client calls the image


def _openai_place(message: int, part: int) -> str:
    return f"messages[{message}].content[{part}].image_url"


async def read_messages(
    service: Service, messages: Sequence[Message], place: Place = _openai_place
) -> tuple[list[Mapping[str, Any]], bool]:
    """`as_messages` on a thread for images."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(service.image_threads, as_messages, messages, service.settings, place)


def as_messages(
    messages: Sequence[Message], settings: Settings, place: Place = _openai_place
) -> tuple[list[Mapping[str, Any]], bool]:
    """Messages for `Model.stream`, with their images read; whether crops are asked for. Reads files: not for the loop.

    APIError naming the image that is not allowed or cannot be read, by its `place` for the client.
    """
    details, budget = set(), settings.max_images
    converted: list[Mapping[str, Any]] = []
    for i, message in enumerate(messages):
        content: Any = message.content
        if isinstance(content, list):
            parts = []
            for j, part in enumerate(content):
                if part.image_url is None:
                    parts.append({"type": "text", "text": part.text})
                    continue
                where = place(i, j)
                budget -= 1
                if budget < 0:
                    raise _refused(where, f"more than {settings.max_images} images")
                details.add(part.image_url.detail)
                parts.append({"type": "image", "image": _read(part.image_url.url, where, settings)})
            content = parts
        role = "system" if message.role == "developer" else message.role
        converted.append({"role": role, "content": content, **message.tool_fields})
    if {"low", "high"} <= details:
        raise APIError(400, "messages: the images of one request have one detail", param="messages", code=_CODE)
    return converted, "high" in details


_CODE = "invalid_image"


def _read(url: str, where: str, settings: Settings) -> Picture:
    scheme, _, rest = url.partition(":")
    scheme = scheme.lower() if rest else ""
    try:
        if scheme == "data":
            source: Any = url
        elif scheme in ("http", "https"):
            if not settings.allow_image_urls:
                raise ValueError("images are not fetched from addresses here: send a data URL")
            source = fetch.fetch(url, max_bytes=settings.max_body_bytes, public=True)
        elif scheme == "file":
            source = _file(url, settings.image_folder)
        else:
            raise ValueError("neither a data URL nor an address")
        return Picture(source, max_pixels=settings.max_pixels)
    except ValueError as error:
        raise _refused(where, str(error)) from error


def _file(url: str, folder: str | None) -> bytes:
    parts = urlsplit(url)
    if folder is None:
        raise ValueError("images are not read from files here: send a data URL")
    if parts.netloc not in ("", "localhost"):
        raise ValueError("a file: URL of another host")
    data, _ = read_source(unquote(parts.path), base_dir=folder)
    assert isinstance(data, bytes)
    return data


def _refused(where: str, message: str) -> APIError:
    return APIError(400, f"{where}: {message}", param=where, code=_CODE)
