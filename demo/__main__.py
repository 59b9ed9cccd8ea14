"""python -m demo: serves the demo page on a checkpoint."""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import warnings
from pathlib import Path
from urllib.parse import urlsplit

import gemma_tpu
from demo.auth import BasicAuth, is_account, read_accounts
from demo.uploads import own_upload_folder

DEFAULT_CHECKPOINT = "gemma3-demo"  # comes with the package


def main(argv: list[str] | None = None) -> int:
    """Serves until Ctrl-C. Returns an exit code; errors are one line on standard error."""
    arguments = _parse(argv)
    with warnings.catch_warnings():
        warnings.showwarning = _print_warning
        gemma_tpu.use_compilation_cache()  # before jax is imported, which the loader does
        try:
            source = _find(arguments.checkpoint)
            arguments.others = [_find(other, "--other-checkpoint") for other in arguments.others]
            if arguments.auth_file:
                arguments.auth += _read_accounts(arguments.auth_file)
            cluster = (arguments.coordinator, arguments.num_processes, arguments.process_id)
            if arguments.distributed:
                gemma_tpu.initialize(*cluster)
            elif any(value is not None for value in cluster):
                raise ValueError("--coordinator, --num-processes and --process-id need --distributed")
            from gemma_tpu.server import listen

            listener = listen(arguments.host, arguments.port)  # before slow work: a port in use is reported at once
        except (ValueError, OSError, RuntimeError) as error:
            print(f"demo: {error}", file=sys.stderr)
            return 1
        with listener, own_upload_folder():
            return _serve(arguments, source, listener)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m demo", description="Gemma 3 in the browser: pictures and text.")
    parser.add_argument(
        "--checkpoint",
        default=DEFAULT_CHECKPOINT,
        help="a directory, gs:// path, name or hub id (default: %(default)s)",
    )
    parser.add_argument(
        "--other-checkpoint",
        dest="others",
        action="append",
        default=[],
        metavar="CHECKPOINT",
        help="one more that visitors of the Chat tab may load in its place. May be repeated",
    )
    parser.add_argument("--adapter", metavar="DIR", help="a LoRA adapter to merge into the weights")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="0 picks a free port (default: %(default)s)")
    parser.add_argument("--mesh", type=_mesh, metavar="DATA,MODEL", help="for example 1,8 (default: all on model)")
    parser.add_argument("--dtype", default="auto", choices=("auto", "bfloat16", "float32"))
    parser.add_argument("--quantize", choices=("int8", "int4"), help="keep the decoder's matrices as such integers")
    parser.add_argument(
        "--kv-cache-dtype",
        choices=("auto", "int8"),
        default="auto",
        help="of keys and values (default: that of the weights)",
    )
    parser.add_argument("--max-context", type=int, default=8192, metavar="TOKENS", help="default: %(default)s")
    parser.add_argument("--max-rows", type=int, default=4, metavar="N", help="answers at once (default: %(default)s)")
    parser.add_argument("--draft", metavar="CHECKPOINT", help="a smaller Gemma 3 that guesses tokens for this one")
    parser.add_argument(
        "--draft-tokens",
        type=int,
        metavar="N",
        help="tokens to guess at each step (default: 4 with --draft, else 0); without --draft, from the text so far",
    )
    parser.add_argument("--tokenizer", help="a SentencePiece model, if none lies beside the weights")
    parser.add_argument("--text-only", action="store_true", help="leave out the vision tower")
    parser.add_argument("--no-verify", action="store_true", help="do not compare the files with their checksums")
    parser.add_argument(
        "--allow-urls",
        action="store_true",
        help="also fetch pictures from http(s) URLs; visitors can then make this machine request any URL it can reach",
    )
    parser.add_argument("--lang", choices=("en", "zh"), help="language of the page (default: the browser's)")
    parser.add_argument(
        "--share",
        action=argparse.BooleanOptionalAction,
        default=_in_hosted_notebook(),
        help="also serve at a public address, through Gradio's servers (default: on Colab and Kaggle, where this "
        "machine's address leads nowhere)",
    )
    parser.add_argument("--no-load", action="store_true", help='wait for "Load model" to be pressed')
    parser.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        type=_origin,
        metavar="ORIGIN",
        help="let pages of this origin use the model, such as static/webui_demo.html at http://127.0.0.1:8000; null "
        "allows pages opened as files, and all others that hide their origin. May be repeated",
    )
    parser.add_argument(
        "--root-path",
        type=_root_path,
        metavar="PATH",
        help="path prefix that a reverse proxy strips, such as /gemma",
    )
    parser.add_argument(
        "--auth",
        action="append",
        default=[],
        type=_account,
        metavar="USER:PASSWORD",
        help="require this account; other users of this machine can see the password. May be repeated",
    )
    parser.add_argument("--auth-file", metavar="FILE", help="accounts from a file, one USER:PASSWORD a line")
    hosts = parser.add_argument_group("several hosts", "Run the same command on each; process 0 serves the page.")
    hosts.add_argument(
        "--distributed", action="store_true", help="join the other hosts; a TPU slice detects the three below"
    )
    hosts.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0, with any free port")
    hosts.add_argument("--num-processes", type=int, metavar="N")
    hosts.add_argument("--process-id", type=int, metavar="I", help="0 … N - 1")
    return parser.parse_args(argv)


def _in_hosted_notebook() -> bool:
    return any(name in os.environ for name in ("COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"))


def _print_warning(message: Warning | str, *_: object) -> None:
    """Prints one line, without the source location."""
    print(f"demo: {' '.join(str(message).split())}", file=sys.stderr)


def _mesh(value: str) -> tuple[int, int]:
    try:
        data, model = (int(part) for part in value.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r} is not of the form DATA,MODEL, such as 1,8") from None
    return data, model


def _origin(value: str) -> str:
    parts = urlsplit(value)
    named = parts.scheme in ("http", "https") and parts.netloc and value == f"{parts.scheme}://{parts.netloc}"
    if value != "null" and not named:
        raise argparse.ArgumentTypeError(f"{value!r} is not an origin such as http://127.0.0.1:8000, or null for files")
    return value


def _root_path(value: str) -> str:
    if not value.startswith(("/", "http://", "https://")) or value.strip("/") == "":
        raise argparse.ArgumentTypeError(f"{value!r} is not a path such as /gemma")
    return value.rstrip("/")


def _account(value: str) -> str:
    if not is_account(value):  # not quoted: it may contain a password
        raise argparse.ArgumentTypeError("it is not of the form USER:PASSWORD")
    return value


def _read_accounts(path: str) -> list[str]:
    try:
        return read_accounts(path)
    except (ValueError, OSError) as error:
        reason = f"{path}: {error.strerror}" if isinstance(error, OSError) else error
        raise ValueError(f"--auth-file {reason}") from error


def _find(checkpoint: str, option: str = "--checkpoint") -> str:
    """Checks that a local path exists. Names, hub ids and gs:// paths are resolved when the model is loaded."""
    path = Path(checkpoint).expanduser()
    # Names have one part, Hugging Face ids two, Kaggle handles four or five.
    looks_like_path = checkpoint.startswith((".", "~", "/")) or len(path.parts) not in (1, 2, 4, 5)
    if looks_like_path and "://" not in checkpoint and not path.exists():
        raise ValueError(f"{option} {checkpoint}: no such file or directory")
    return str(path) if path.exists() else checkpoint


def _serve(arguments: argparse.Namespace, source: str, listener: socket.socket) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")

    from demo.app import mount
    from demo.checkpoints import Checkpoints
    from gemma_tpu.server import Server, Settings, build_app, closing, model_name

    def load(source, progress):
        return gemma_tpu.load(
            source,
            mesh=arguments.mesh,
            dtype=arguments.dtype,
            quantize=arguments.quantize,
            kv_cache_dtype=arguments.kv_cache_dtype,
            adapter=arguments.adapter,
            max_context=arguments.max_context,
            max_rows=arguments.max_rows,
            draft=arguments.draft,
            draft_tokens=arguments.draft_tokens,
            tokenizer=arguments.tokenizer,
            text_only=arguments.text_only,
            verify=not arguments.no_verify,
            compile_ahead=True,
            progress=progress,
        )

    checkpoints = Checkpoints([source, *arguments.others], load)
    loader = checkpoints.loader
    with closing(loader):
        if not arguments.no_load:
            loader.start()
        # Accounts admit whoever has one; without them, the API answers for localhost alone.
        settings = Settings(model_names=(model_name(arguments.checkpoint),), any_host=bool(arguments.auth))
        app = mount(
            build_app(loader, settings),
            loader,
            lang=arguments.lang,
            allow_urls=arguments.allow_urls,
            origins=arguments.allow_origin,
            root_path=arguments.root_path,
            checkpoints=None if arguments.distributed else checkpoints,  # the other hosts would not follow
        )
        if arguments.auth:
            app.add_middleware(BasicAuth, accounts=arguments.auth)
        server = Server(app, reloads=True)
        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        print(f"The demo is at {address} (Ctrl-C stops it)", flush=True)
        if arguments.share:
            local = "127.0.0.1" if host in ("0.0.0.0", "::") else host
            threading.Thread(target=_share, args=(local, port), name="demo-share", daemon=True).start()
        # As the server does once it runs: else the process would end at once, and others take it for lost.
        signal.signal(signal.SIGTERM, server.handle_exit)
        server.run(sockets=[listener])
    return 0


def _share(host: str, port: int) -> None:
    """Opens a public tunnel and prints its address; the page is usable meanwhile and if it fails."""
    from gradio.networking import setup_tunnel

    from demo.texts import explain

    try:
        address = setup_tunnel(host, port, secrets.token_urlsafe(32), None, None)
    except Exception as error:  # network, download of the tunnel program, its output
        print(f"demo: --share: no public address, only the one above: {explain(error)}", file=sys.stderr, flush=True)
    else:
        print(f"It is public at {address}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
