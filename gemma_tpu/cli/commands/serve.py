"""`gemma-tpu serve`: an OpenAI-compatible HTTP server."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from gemma_tpu.cli.arguments import MODEL_OPTIONS, add_model_arguments, values

if TYPE_CHECKING:
    from gemma_tpu.loader import Loader

HELP = "Serve a checkpoint to many people at once, as OpenAI's API."
_BEGINNING = 10  # seconds to wait for what is wrong with a checkpoint before the page is imported, which takes as long


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "docs/server.md shows every address with an example."
    add_model_arguments(parser)
    parser.add_argument("--max-rows", type=int, default=8, metavar="N", help="answers at once (default: 8)")
    parser.add_argument(
        "--cache-tokens",
        type=int,
        metavar="N",
        default=argparse.SUPPRESS,
        help="tokens that all answers and their prompts may have in the cache together, at least --max-context; when "
        "it is full, the newest answer waits (default: as many as all could need)",
    )
    parser.add_argument(
        "--stored-prefixes",
        type=int,
        metavar="N",
        default=argparse.SUPPRESS,
        help="beginnings of prompts to keep, such as system prompts that many share; each takes the memory of a row's "
        "sliding windows (default: 0)",
    )
    parser.add_argument(
        "--model-name",
        action="append",
        metavar="NAME",
        help="what requests call the model (default: the checkpoint's name). Others may follow as its aliases",
    )
    parser.add_argument("--no-demo", action="store_true", help="serve the API alone, without the demo's page")
    group = parser.add_argument_group("who may ask")
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    group.add_argument("--port", type=int, default=8000, help="0 picks a free port (default: 8000)")
    group.add_argument(
        "--api-keys",
        metavar="FILE",
        help="keys of which a request needs one, one a line; $GEMMA_TPU_API_KEYS has others, separated by commas",
    )
    group.add_argument("--no-auth", action="store_true", help="no key is needed, at any address and by any host name")
    group.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        type=_origin,
        metavar="ORIGIN",
        help="let web pages of this origin ask, such as http://127.0.0.1:3000. May be repeated",
    )
    group = parser.add_argument_group("what they may ask")
    group.add_argument("--lenient", action="store_true", help="ignore unknown fields with a warning in the log")
    group.add_argument("--allow-image-urls", action="store_true", help="fetch images from public http(s) addresses")
    group.add_argument("--image-folder", metavar="DIR", help="allow file: URLs of images in this directory")
    for flag, kind, metavar, help in (
        ("--max-body-bytes", int, "N", "longest body of a request (default: 33554432)"),
        ("--max-images", int, "N", "most images of a request (default: 16)"),
        ("--max-pixels", int, "N", "most pixels of an image (default: 64000000)"),
        ("--max-tokens", int, "N", "longest answer that may be asked for (default: what fits the context)"),
        ("--max-queue", int, "N", "answers that may wait; any more are refused with 429 (default: 64)"),
        ("--request-timeout", float, "SECONDS", "longest time for a request (default: 600)"),
        ("--drain-timeout", float, "SECONDS", "time for running answers after SIGTERM (default: 30)"),
    ):
        group.add_argument(flag, type=kind, metavar=metavar, default=argparse.SUPPRESS, help=help)


def main(args: argparse.Namespace) -> int:
    from gemma_tpu.server.run import Server, closing, is_loopback, listen
    from gemma_tpu.server.settings import Settings, model_name, read_keys

    names = args.model_name or [model_name(args.checkpoint)]
    keys = read_keys(args.api_keys)
    if args.no_auth and keys:
        raise ValueError("--no-auth contradicts the API keys that are given")
    if not (keys or args.no_auth or is_loopback(args.host)):
        raise ValueError(f"--host {args.host}: give --api-keys, or --no-auth if everyone who reaches it may ask")
    given = values(args, *(field.name for field in dataclasses.fields(Settings)))
    given |= {"model_names": tuple(names), "api_keys": keys, "any_host": args.no_auth}
    settings = Settings(**given, allow_origins=tuple(args.allow_origin))
    if settings.image_folder is not None and not os.path.isdir(settings.image_folder):
        raise ValueError(f"--image-folder {settings.image_folder}: no such directory")
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen(args.host, args.port))
        stack.enter_context(_log_to_stderr())
        from gemma_tpu.cli.load_report import LoadReport
        from gemma_tpu.loader import Loader

        report = stack.enter_context(LoadReport(names[0]))
        loader = Loader(names[0], lambda progress: _load(args, progress), report)
        stack.enter_context(closing(loader))
        loader.start()
        report.begun.wait(_BEGINNING)
        _raise_failure(loader)
        from tqdm import tqdm

        from gemma_tpu.server.app import build_app

        app = build_app(loader, settings)
        if not args.no_demo:
            from demo.uploads import own_upload_folder
            from gemma_tpu.server.page import add_page

            stack.enter_context(own_upload_folder())
            app = add_page(app, loader)
        server = Server(app)
        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        page = "" if args.no_demo else f", with a page at {address}"
        _raise_failure(loader)
        with tqdm.external_write_mode():  # clears the bar that there may be, and draws it again
            print(f"{names[0]} is at {address}/v1{page} (Ctrl-C stops it)", flush=True)
        server.run(sockets=[listener])
        _raise_failure(loader)
    return 0


def _raise_failure(loader: Loader) -> None:
    """ValueError if there will be no model."""
    if loader.status.phase == "failed":
        raise ValueError(loader.status.error)


def _load(args: argparse.Namespace, progress):
    import gemma_tpu

    options = values(args, *MODEL_OPTIONS, "max_rows", "cache_tokens", "stored_prefixes")
    return gemma_tpu.load(args.checkpoint, progress=progress, compile_ahead=True, **options)


def _origin(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.netloc or value != f"{parts.scheme}://{parts.netloc}":
        raise argparse.ArgumentTypeError(f"{value!r} is not an origin such as http://127.0.0.1:3000")
    return value


@contextlib.contextmanager
def _log_to_stderr() -> Iterator[None]:
    """The lines of requests as they are, JSON; warnings and errors of anybody with their level."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    lines, log = logging.StreamHandler(sys.stderr), logging.getLogger("gemma_tpu.server.requests")
    log.setLevel(logging.INFO)
    log.addHandler(lines)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(lines)
        log.propagate = True
