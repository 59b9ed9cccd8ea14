"""The `gemma-tpu` command. Each subcommand's imports wait until it runs, so that `--help` is immediate."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import json
import math
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

from gemma_tpu.compilation import use_compilation_cache


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns its exit code. An error is one line on standard error."""
    argv = sys.argv[1:] if argv is None else argv
    use_compilation_cache()
    args = _parser(argv[:1]).parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning
            _join_processes(args)
            return args.run(args)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone: `gemma-tpu generate … | head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # else the interpreter's last flush fails too
        return 141
    except (ValueError, OSError, RuntimeError) as error:
        print(f"gemma-tpu: {' '.join(str(error).split())}", file=sys.stderr)
        return 1


def _print_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
    """A warning as errors look here: one line, without the place in the code."""
    print(f"gemma-tpu: {' '.join(str(message).split())}", file=sys.stderr)


def mesh_shape(text: str) -> tuple[int, int]:
    """Of an argument such as "1,8": the sizes of the data and model axes."""
    try:
        data, model = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form DATA,MODEL, such as 1,8") from None
    return data, model


def _parser(chosen: list[str]) -> argparse.ArgumentParser:
    from gemma_tpu import __version__

    parser = argparse.ArgumentParser(prog="gemma-tpu", description="Gemma 3 on TPUs, GPUs and CPUs, from JAX.")
    parser.add_argument("--version", action="version", version=f"gemma-tpu {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(run=run)
        return sub

    chat = command("chat", _chat, "Talk with a model in the terminal. Ctrl-C stops an answer, Ctrl-D ends.")
    _add_model_arguments(chat)
    _add_sampling_arguments(chat)
    chat.add_argument("--system", help="a system message")
    chat.add_argument(
        "--drop-oldest", action="store_true", help="forget the oldest turns of a conversation that outgrows the context"
    )

    generate = command("generate", _generate, "Answer one prompt.")
    _add_model_arguments(generate)
    generate.add_argument("prompt", help="the prompt; - reads it from standard input")
    generate.add_argument("--image", action="append", default=[], metavar="FILE", help="shown before the prompt")
    generate.add_argument("--system", help="a system message")
    generate.add_argument("--raw", action="store_true", help="no chat format; <start_of_image> marks the images")
    generate.add_argument("--json", action="store_true", help="the whole completion as JSON")
    _add_sampling_arguments(generate)

    info = command("info", _info, "What a checkpoint holds, without loading it.")
    info.add_argument("checkpoint", help="a directory, gs:// path or name")
    info.add_argument("--json", action="store_true")

    convert = command("convert", _convert, "Write a checkpoint in another format.")
    convert.add_argument("source", metavar="SRC")
    convert.add_argument("target", metavar="DST", help="must not exist")
    convert.add_argument("--to", required=True, choices=("orbax", "orbax-flat", "safetensors"))
    convert.add_argument("--dtype", choices=("bfloat16", "bf16", "float32"), help="by default as it is")

    download = command("download", _download, "Fetch released weights into the local cache.")
    download.add_argument("name", help="such as gemma3-4b-it")

    for name, place, help in (
        ("plan", "plan.command", "What a model needs on a TPU slice, and how fast it may be there: no TPU is needed."),
        ("verify", "verify", "Compare a checkpoint's answers with those of a reference implementation."),
        ("bench", "bench", "Measure speed as a caller sees it."),
    ):
        sub = commands.add_parser(name, help=help, description=help)
        if name in chosen:  # these live in modules of their own, arguments and all
            if name == "plan":
                os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA logs what it then reports as an error
            module = importlib.import_module(f"gemma_tpu.{place}")
            module.add_arguments(sub)
            if name == "bench":
                _add_distributed_arguments(sub)
            sub.set_defaults(run=module.main)
    return parser


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="a directory, gs:// path or name such as gemma3-4b-it")
    parser.add_argument("--mesh", type=mesh_shape, metavar="DATA,MODEL", help="default: 1, all devices")
    parser.add_argument("--dtype", default="auto", choices=("auto", "bfloat16", "float32"))
    parser.add_argument("--max-context", type=int, metavar="TOKENS", help="of prompt and answer together")
    parser.add_argument("--tokenizer", help="a SentencePiece model, if none lies beside the weights")
    parser.add_argument("--text-only", action="store_true", help="leave out the vision tower")
    _add_distributed_arguments(parser)


def _add_distributed_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "several hosts", "The same command on each; the first one answers (docs/multi_host.md)."
    )
    group.add_argument("--distributed", action="store_true", help="join the other hosts; a TPU knows the three below")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0, any free port")
    group.add_argument("--num-processes", type=int, metavar="N")
    group.add_argument("--process-id", type=int, metavar="I", help="0 … N - 1")


def _join_processes(args: argparse.Namespace) -> None:
    if getattr(args, "distributed", False):
        import gemma_tpu

        gemma_tpu.initialize(args.coordinator, args.num_processes, args.process_id)


def _add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    for flag, kind, help in (
        ("--max-new-tokens", int, "longest answer (default: 1024)"),
        ("--temperature", float, "0, the default, is greedy"),
        ("--top-k", int, "default: 64; 0 is off"),
        ("--top-p", float, "default: 0.95; 1 is off"),
        ("--min-p", float, "default: 0, off"),
        ("--seed", int, "for the same answer again"),
    ):
        parser.add_argument(flag, type=kind, default=argparse.SUPPRESS, help=help)
    parser.add_argument("--stop", action="append", default=argparse.SUPPRESS, metavar="TEXT", help="ends the answer")


_SAMPLING = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "stop")


def _sampling(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in _SAMPLING if hasattr(args, name)}


def _load(args: argparse.Namespace):
    import gemma_tpu

    return gemma_tpu.load(
        args.checkpoint,
        mesh=args.mesh,
        dtype=args.dtype,
        max_context=args.max_context,
        max_rows=1,
        tokenizer=args.tokenizer,
        text_only=args.text_only,
        progress=sys.stderr.isatty(),
    )


def _generate(args: argparse.Namespace) -> int:
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    if args.raw and args.system is not None:
        raise ValueError("--system is part of the chat format, which --raw leaves out")
    with _load(args) as model:
        if args.raw:
            stream = model.stream(prompt, images=args.image, raw=True, **_sampling(args))
        else:
            stream = model.chat(args.system).stream(prompt, images=args.image, **_sampling(args))
        for piece in stream:
            if not args.json:
                print(piece, end="", flush=True)
        print(json.dumps(dataclasses.asdict(stream.completion), ensure_ascii=False) if args.json else "")
    return 0


def _chat(args: argparse.Namespace) -> int:
    with _load(args) as model:
        new_chat = functools.partial(model.chat, args.system, drop_oldest=args.drop_oldest, **_sampling(args))
        chat = new_chat()
        print("/image FILE shows a picture with the next message, /reset starts over, Ctrl-D ends.", file=sys.stderr)
        images: list[str] = []
        while True:
            try:
                line = input("> ").strip()
            except EOFError:
                print()
                return 0
            except KeyboardInterrupt:
                print()
                continue
            if line == "/reset":
                chat, images = new_chat(), []
            elif line.startswith("/image "):
                images.append(line.removeprefix("/image ").strip())
            elif line.startswith("/"):
                print("commands: /image FILE, /reset", file=sys.stderr)
            elif line:
                _answer(chat, line, images)
                images = []


def _answer(chat: Any, line: str, images: list[str]) -> None:
    """Prints an answer as it comes. A mistake in the question or Ctrl-C ends the answer, not the chat."""
    try:
        stream = chat.stream(line, images=images)
    except ValueError as error:
        print(f"gemma-tpu: {error}", file=sys.stderr)
        return
    if stream.dropped_turns:
        print(
            f"(the context is full: the oldest turns were forgotten, {stream.dropped_turns} of them)", file=sys.stderr
        )
    try:
        for piece in stream:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        stream.close()
        print(" …", end="")
    print()


def _info(args: argparse.Namespace) -> int:
    from gemma_tpu.checkpoint import open_checkpoint, resolve

    checkpoint = open_checkpoint(resolve(args.checkpoint))
    found = {
        "path": checkpoint.path,
        "layout": checkpoint.kind,
        "parameters": sum(math.prod(array.shape) for array in checkpoint.arrays.values()),
        "bytes": checkpoint.nbytes,
        "dtypes": sorted({str(array.dtype) for array in checkpoint.arrays.values()}),
        "tokenizer": checkpoint.tokenizer_path,
        "config": dataclasses.asdict(checkpoint.config),
    }
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    config = found.pop("config")
    vision = config.pop("vision")
    for title, values in (("", found), ("text", config), ("vision", vision or {"": "none"})):
        if title:
            print(f"{title}:")
        for name, value in values.items():
            number = isinstance(value, int) and not isinstance(value, bool)
            shown = ", ".join(value) if isinstance(value, list) else f"{value:,}" if number else value
            print(f"{'  ' * bool(title)}{name:18} {shown}")
    return 0


def _convert(args: argparse.Namespace) -> int:
    from gemma_tpu.checkpoint import convert, resolve

    dtype = {"bf16": "bfloat16"}.get(args.dtype, args.dtype)
    convert(resolve(args.source), args.target, to=args.to, dtype=dtype, progress=sys.stderr.isatty())
    print(args.target)
    return 0


def _download(args: argparse.Namespace) -> int:
    from gemma_tpu.checkpoint import download

    print(download(args.name, progress=sys.stderr.isatty()))
    return 0
