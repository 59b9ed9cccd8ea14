"""`gemma-tpu generate`: the answer to one prompt, as it is written or as JSON."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from typing import Any

from gemma_tpu.cli import standard_streams
from gemma_tpu.cli.arguments import (
    add_generation_arguments,
    add_model_arguments,
    add_shared,
    generation_kwargs,
    load_model,
)

HELP = "Answer one prompt."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("prompt", metavar="PROMPT", help="the prompt; - reads it from standard input")
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help="shown before the prompt; - reads it from standard input; may be given several times",
    )
    parser.add_argument(
        "--continue", dest="begun", metavar="TEXT", help="begin the answer with TEXT; only what follows it is printed"
    )
    parser.add_argument(
        "--raw", action="store_true", help="take the prompt without the chat format; <start_of_image> marks the images"
    )
    add_shared(parser, "--json")
    add_generation_arguments(parser)


def main(args: argparse.Namespace) -> int:
    import gemma_tpu

    for flag, given in (("--system", args.system), ("--continue", args.begun), ("--pan-and-scan", args.pan_and_scan)):
        if args.raw and given not in (None, False):
            raise ValueError(f"{flag} is part of the chat format, which --raw leaves out")
    if [args.prompt, *args.image].count("-") > 1:
        raise ValueError("only one of the prompt and the images can be -, which is standard input")
    kwargs = generation_kwargs(args)
    prompt = _read_prompt() if args.prompt == "-" else args.prompt
    images = [
        gemma_tpu.load_image(standard_streams.stdin().buffer if image == "-" else image, allow_urls=args.allow_urls)
        for image in args.image
    ]
    with load_model(args) as model:
        if args.raw:
            stream = model.stream(prompt, images=images, raw=True, **kwargs)
        else:
            kwargs |= {"pan_and_scan": args.pan_and_scan, "continue_final": args.begun is not None}
            stream = model.stream(_messages(args.system, images, prompt, args.begun), **kwargs)
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


def _messages(system: str | None, images: list[Any], prompt: str, begun: str | None) -> list[dict[str, Any]]:
    parts = [{"type": "image", "image": image} for image in images]
    messages = [
        ("system", system),
        ("user", [*parts, {"type": "text", "text": prompt}]),
        ("assistant", begun),
    ]
    return [{"role": role, "content": content} for role, content in messages if content is not None]


def _as_json(completion: Any) -> str:
    """With null for the times that an answer without a token has not: JSON knows no NaN."""
    values = dataclasses.asdict(completion)
    values["timings"] = {name: None if math.isnan(time) else time for name, time in values["timings"].items()}
    return json.dumps(values, ensure_ascii=False)
