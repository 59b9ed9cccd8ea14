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

from gemma_tpu import signals
from gemma_tpu.cli import standard_streams
from gemma_tpu.cli.arguments import (
    Parser,
    add_format_arguments,
    add_prompt_arguments,
    add_sampling_arguments,
    add_verify_argument,
    answer_options,
    mesh_shape,
)
from gemma_tpu.environment import quiet_libtpu, use_compilation_cache


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns its exit code. An error is one line on standard error."""
    argv = sys.argv[1:] if argv is None else argv
    standard_streams.occupy()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning
            use_compilation_cache()
            quiet_libtpu()
            parser = _parser(argv[:1])
            if not argv:
                parser.print_help()
                return 0
            args = parser.parse_args(argv)
            if args.run not in (_convert, _download):  # which answer with files
                standard_streams.require_stdout()
            _join_processes(args)
            code = args.run(args)
            print(end="", flush=True)  # an answer that was not written is an error
            return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone: `gemma-tpu generate … | head`
        standard_streams.failure()
        return 141
    except (ValueError, OSError, RuntimeError) as error:
        print(f"gemma-tpu: {_one_line(standard_streams.failure() or error)}", file=sys.stderr)
        return 1


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:  # as Python has it, the errno comes first
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return " ".join(str(error).split())


def _print_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
    """A warning as errors look here: one line, without the place in the code."""
    print(f"gemma-tpu: {' '.join(str(message).split())}", file=sys.stderr)


def _parser(chosen: list[str]) -> argparse.ArgumentParser:
    from gemma_tpu import __version__

    parser = Parser(prog="gemma-tpu", description="Gemma 3 on TPUs, GPUs and CPUs, from JAX.")
    parser.add_argument("--version", action="version", version=f"gemma-tpu {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(run=run)
        return sub

    chat = command("chat", _chat, "Talk with a model in the terminal. Ctrl-C stops an answer, Ctrl-D ends.")
    _add_model_arguments(chat)
    add_sampling_arguments(chat)
    add_format_arguments(chat)
    add_prompt_arguments(chat)
    chat.add_argument(
        "--drop-oldest", action="store_true", help="forget the oldest turns of a conversation that outgrows the context"
    )

    generate = command("generate", _generate, "Answer one prompt.")
    _add_model_arguments(generate)
    generate.add_argument("prompt", help="the prompt; - reads it from standard input")
    generate.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help="shown before the prompt; - reads it from standard input",
    )
    add_prompt_arguments(generate)
    generate.add_argument(
        "--continue", dest="begun", metavar="TEXT", help="begin the answer with TEXT; printed is what follows it"
    )
    generate.add_argument("--raw", action="store_true", help="no chat format; <start_of_image> marks the images")
    generate.add_argument("--json", action="store_true", help="the whole completion as JSON")
    add_sampling_arguments(generate)
    add_format_arguments(generate)

    info = command("info", _info, "What a checkpoint holds, without loading it.")
    info.add_argument("checkpoint", help="a directory, gs:// path, name or hub id")
    info.add_argument("--json", action="store_true")

    convert = command("convert", _convert, "Write a checkpoint in another format.")
    convert.add_argument("source", metavar="SRC")
    convert.add_argument("target", metavar="DST", help="must not exist")
    convert.add_argument("--to", required=True, choices=("orbax", "orbax-flat", "safetensors"))
    convert.add_argument("--dtype", choices=("bfloat16", "bf16", "float32"), help="by default as it is")
    convert.add_argument("--adapter", metavar="DIR", help="a LoRA adapter to merge into the weights")
    add_verify_argument(convert)

    download = command("download", _download, "Fetch released weights into the local cache.")
    download.add_argument("name", help="such as gemma3-4b-it, or google/medgemma-4b-it of Hugging Face")

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
            # While it runs, verify may have a copy of the checkpoint on disk, and a process of the reference.
            sub.set_defaults(run=signals.raise_exit()(module.main) if name == "verify" else module.main)
    return parser


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", help="a directory, gs:// path, name such as gemma3-4b-it, or Hugging Face's OWNER/NAME[@REVISION]"
    )
    parser.add_argument("--mesh", type=mesh_shape, metavar="DATA,MODEL", help="default: 1, all devices")
    parser.add_argument("--dtype", default="auto", choices=("auto", "bfloat16", "float32"))
    parser.add_argument("--max-context", type=int, metavar="TOKENS", help="of prompt and answer together")
    parser.add_argument("--adapter", metavar="DIR", help="a LoRA adapter to merge into the weights")
    parser.add_argument("--tokenizer", help="tokenizer.model or tokenizer.json, if none lies beside the weights")
    parser.add_argument("--text-only", action="store_true", help="leave out the vision tower")
    add_verify_argument(parser)
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
    if not hasattr(args, "distributed"):
        return
    who = (args.coordinator, args.num_processes, args.process_id)
    if args.distributed:
        import gemma_tpu

        gemma_tpu.initialize(*who)
    elif any(value is not None for value in who):
        raise ValueError("--coordinator, --num-processes and --process-id need --distributed")


def _load(args: argparse.Namespace):
    import gemma_tpu

    progress = standard_streams.is_terminal(sys.stderr)
    model = gemma_tpu.load(
        args.checkpoint,
        mesh=args.mesh,
        dtype=args.dtype,
        adapter=args.adapter,
        max_context=args.max_context,
        max_rows=1,
        tokenizer=args.tokenizer,
        text_only=args.text_only,
        verify=args.verify,
        progress=progress,
    )
    if progress and model.dtype_reason:
        print(f"gemma-tpu: {model.dtype}, as {model.dtype_reason}", file=sys.stderr)
    return model


def _generate(args: argparse.Namespace) -> int:
    import gemma_tpu

    for flag, given in (("--system", args.system), ("--continue", args.begun), ("--pan-and-scan", args.pan_and_scan)):
        if args.raw and given not in (None, False):
            raise ValueError(f"{flag} is part of the chat format, which --raw leaves out")
    if [args.prompt, *args.image].count("-") > 1:
        raise ValueError("only one of the prompt and the images can be -, which is standard input")
    options = answer_options(args)
    prompt = _read_prompt() if args.prompt == "-" else args.prompt
    images = [
        gemma_tpu.load_image(standard_streams.stdin().buffer if image == "-" else image, allow_urls=args.allow_urls)
        for image in args.image
    ]
    with _load(args) as model:
        if args.raw:
            stream = model.stream(prompt, images=images, raw=True, **options)
        else:
            parts = [{"type": "image", "image": image} for image in images]
            messages: list[dict[str, Any]] = [
                {"role": "user", "content": [*parts, {"type": "text", "text": prompt}]},
                {"role": "assistant", "content": args.begun},
            ][: 1 if args.begun is None else 2]
            if args.system is not None:
                messages.insert(0, {"role": "system", "content": args.system})
            how = {"pan_and_scan": args.pan_and_scan, "continue_final": args.begun is not None}
            stream = model.stream(messages, **how, **options)
        for piece in stream:
            if not args.json:
                print(piece, end="", flush=True)
        print(_as_json(stream.completion) if args.json else "")
    return 0


def _read_prompt() -> str:
    try:
        return standard_streams.stdin().read()
    except UnicodeDecodeError as error:
        raise ValueError(f"the prompt on standard input is no text in {error.encoding}: {error.reason}") from error


def _as_json(completion: Any) -> str:
    """With null for the times that an answer without a token has not: JSON knows no NaN."""
    values = dataclasses.asdict(completion)
    values["timings"] = {name: None if math.isnan(time) else time for name, time in values["timings"].items()}
    return json.dumps(values, ensure_ascii=False)


def _chat(args: argparse.Namespace) -> int:
    from gemma_tpu.cli.terminal import converse

    options = answer_options(args)
    with _load(args) as model:
        how = {"drop_oldest": args.drop_oldest, "pan_and_scan": args.pan_and_scan, "allow_urls": args.allow_urls}
        new_chat = functools.partial(model.chat, args.system, **how, **options)
        return converse(model, new_chat, allow_urls=args.allow_urls)


def _info(args: argparse.Namespace) -> int:
    from gemma_tpu.checkpoint import open_checkpoint, read_companions, resolve

    checkpoint = open_checkpoint(resolve(args.checkpoint))
    companions = read_companions(checkpoint)
    tokenizer = companions.open_tokenizer()
    found = {
        "path": checkpoint.path,
        "layout": checkpoint.kind,
        "parameters": sum(math.prod(array.shape) for array in checkpoint.arrays.values()),
        "bytes": checkpoint.nbytes,
        "dtypes": sorted({str(array.dtype) for array in checkpoint.arrays.values()}),
        "tokenizer": checkpoint.tokenizer_path,
        "pieces": None if tokenizer is None else tokenizer.vocab_size,
        "chat_template": companions.chat_template and companions.chat_template[1],
        "defaults": companions.options(tokenizer),
        "notes": companions.notes(tokenizer),
        "config": dataclasses.asdict(checkpoint.config),
    }
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    config, notes, defaults = (found.pop(name) for name in ("config", "notes", "defaults"))
    vision = config.pop("vision")
    shown = (("", found), ("defaults", defaults), ("text", config), ("vision", vision or {"": "none"}))
    for title, values in shown:
        if title:
            print(f"{title}:")
        for name, value in values.items():
            if isinstance(value, list | tuple):
                value = ", ".join(map(str, value))
            number = isinstance(value, int) and not isinstance(value, bool)
            print(f"{'  ' * bool(title)}{name:18} {f'{value:,}' if number else value}")
    for note in notes:
        print(f"note: {note}")
    return 0


@signals.exit_at_once()
def _convert(args: argparse.Namespace) -> int:
    from gemma_tpu.checkpoint import convert, resolve

    dtype = {"bf16": "bfloat16"}.get(args.dtype, args.dtype)
    adapter = None if args.adapter is None else resolve(args.adapter)
    how = {
        "dtype": dtype,
        "adapter": adapter,
        "verify": args.verify,
        "progress": standard_streams.is_terminal(sys.stderr),
    }
    convert(resolve(args.source), args.target, to=args.to, **how)
    print(args.target)
    return 0


@signals.exit_at_once()
def _download(args: argparse.Namespace) -> int:
    from gemma_tpu.checkpoint import download

    print(download(args.name, progress=standard_streams.is_terminal(sys.stderr)))
    return 0
