"""Arguments that several commands share, each defined once, and what they mean. Imports nothing heavy.

The completion of shells goes by the metavar: CHECKPOINT and FILE are files or directories, DIR is a directory.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_tpu.cli import standard_streams

if TYPE_CHECKING:
    from gemma_tpu.api import Model

DTYPES = ("bfloat16", "float32")
_SHORT_DTYPES = {"bf16": "bfloat16", "f32": "float32"}


def mesh_shape(text: str) -> tuple[int, int]:
    """Of an argument such as "1,8": the sizes of the data and model axes."""
    try:
        data, model = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form DATA,MODEL, such as 1,8") from None
    return data, model


SHARED: dict[str, dict[str, Any]] = {
    "checkpoint": {
        "metavar": "CHECKPOINT",
        "help": "a directory, .gguf file, gs:// path, name like gemma3-4b-it, or Hugging Face's OWNER/NAME[@REVISION]",
    },
    "--adapter": {"metavar": "DIR", "help": "a LoRA adapter to merge into the weights"},
    "--draft": {
        "metavar": "CHECKPOINT",
        "default": argparse.SUPPRESS,
        "help": "a smaller Gemma 3 that guesses tokens, of which the model keeps those that it would have written",
    },
    "--draft-tokens": {
        "type": int,
        "metavar": "N",
        "default": argparse.SUPPRESS,
        "help": "tokens to guess at each step (default: 4 with --draft, else 0); without --draft, from the text so far",
    },
    "--json": {"action": "store_true", "help": "print JSON"},
    "--kv-cache-dtype": {
        "choices": ("auto", "int8"),
        "default": argparse.SUPPRESS,
        "help": "of keys and values: int8 halves the memory of the cache (default: auto, that of the weights)",
    },
    "--mesh": {
        "type": mesh_shape,
        "metavar": "DATA,MODEL",
        "help": "DATA copies of the model, each shared by MODEL devices (default: one copy on all devices)",
    },
    "--no-verify": {
        "dest": "verify",
        "action": "store_false",
        "help": "do not compare the files with their checksums",
    },
    "--quantize": {
        "choices": ("int8", "int4", "none"),
        "default": argparse.SUPPRESS,
        "help": "keep the decoder's matrices as such integers, and the embeddings as int8; none: dequantise those that "
        "are stored so (default: integers where they are stored with a scale for each channel, else as --dtype)",
    },
    "--tokenizer": {
        "metavar": "FILE",
        "help": "a tokenizer.model or tokenizer.json (default: the one beside the weights)",
    },
}


def add_shared(parser: argparse.ArgumentParser, *names: str) -> None:
    """Adds arguments of `SHARED`."""
    for name in names:
        parser.add_argument(name, **SHARED[name])


def values(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of the arguments `names` that were given or have a default."""
    return {name: getattr(args, name) for name in names if name in args}


def check_folder(flag: str, path: str | None) -> None:
    """ValueError if the folder of a file that is to be written does not exist: before hours of work, not after."""
    if path and not Path(path).absolute().parent.is_dir():
        raise ValueError(f"{flag} {path}: its folder does not exist; make it first")


def check_sizes(args: argparse.Namespace) -> None:
    """ValueError for what no model can be loaded with, before anything is slow: other imports, or a load."""
    from gemma_tpu import sizes

    given = values(args, "max_context", "max_rows", "cache_tokens", "stored_prefixes")
    if "draft_tokens" in args:
        given["draft_tokens"] = sizes.guesses(args.draft_tokens, "draft" in args)
    sizes.check_sizes(**given)
    if getattr(args, "mesh", None) is not None:
        sizes.as_mesh_shape(args.mesh)


def add_dtype_argument(parser: argparse.ArgumentParser, of: str, *, default: str | None) -> None:
    """`of`: what has this dtype. `default`: one of `DTYPES`, "auto", which is then a choice too, or None."""
    choices = DTYPES if default in (None, *DTYPES) else ("auto", *DTYPES)
    said = {"auto": "auto, bfloat16 on TPUs and newer GPUs, else float32", None: "each parameter keeps its own"}
    parser.add_argument(
        "--dtype",
        type=lambda text: _SHORT_DTYPES.get(text, text),
        choices=choices,
        default=default,
        help=f"of {of}; bf16 and f32 are understood too (default: {said.get(default, default)})",
    )


def add_distributed_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "several hosts", "Run the same command on each host; process 0 prints the answer (docs/multi_host.md)."
    )
    group.add_argument(
        "--distributed",
        action="store_true",
        help="join the other hosts; on a TPU the three options below may be left out",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0, with any free port")
    group.add_argument("--num-processes", type=int, metavar="N", help="how many processes there are")
    group.add_argument("--process-id", type=int, metavar="I", help="which of them this is, from 0 to N - 1")


def join_processes(args: argparse.Namespace) -> None:
    """Joins the other hosts, if `args` are of a command that can and say so."""
    if "distributed" not in args:
        return
    process = (args.coordinator, args.num_processes, args.process_id)
    if args.distributed:
        import gemma_tpu

        gemma_tpu.initialize(*process)
    elif any(value is not None for value in process):
        raise ValueError("--coordinator, --num-processes and --process-id need --distributed")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Of `load_model`."""
    add_shared(parser, "checkpoint", "--mesh")
    add_dtype_argument(parser, "weights and cache", default="auto")
    parser.add_argument(
        "--max-context",
        type=int,
        metavar="TOKENS",
        help="room for prompt and answer together (default: 8192, or what the model was trained for if that is less)",
    )
    add_shared(
        parser, "--quantize", "--kv-cache-dtype", "--adapter", "--tokenizer", "--no-verify", "--draft", "--draft-tokens"
    )
    parser.add_argument("--text-only", action="store_true", help="leave out the vision tower")
    add_distributed_arguments(parser)


MODEL_OPTIONS = (
    *("mesh", "dtype", "quantize", "adapter", "max_context", "draft", "draft_tokens", "tokenizer", "text_only"),
    *("verify", "kv_cache_dtype"),
)


def load_model(args: argparse.Namespace) -> Model:
    """The model of a command that answers one prompt at a time."""
    import gemma_tpu

    progress = standard_streams.is_terminal(sys.stderr)
    options = values(args, *MODEL_OPTIONS)
    model = gemma_tpu.load(args.checkpoint, max_rows=1, progress=progress, **options)
    if progress and model.dtype_reason:
        print(f"gemma-tpu: {model.dtype}, as {model.dtype_reason}", file=sys.stderr)
    return model


_SAMPLING = (
    ("max_new_tokens", int, "N", "longest answer, in tokens"),
    ("temperature", float, "T", "0 always takes the likeliest token"),
    ("top_k", int, "K", "draw from the K likeliest tokens; 0 is off"),
    ("top_p", float, "P", "draw from the likeliest tokens that together have probability P; 1 is off"),
    ("min_p", float, "P", "draw from tokens at least P times as likely as the likeliest; 0 is off"),
    ("seed", int, "N", "gives the same answer again (default: another at each run)"),
)
_FORMAT = (
    ("source_lang", "CODE", "TranslateGemma: the language of the text or picture, such as cs"),
    ("target_lang", "CODE", "TranslateGemma: the language to translate into, such as pt-BR"),
    ("tools", "FILE", "a JSON file with a list of functions as JSON schemas, for Gemma 3 and FunctionGemma"),
)


def add_generation_arguments(parser: argparse.ArgumentParser) -> None:
    """Of `generation_kwargs`, and those that prompts are made of beside their text."""
    parser.add_argument("--system", metavar="TEXT", help="a system message")
    parser.add_argument("--pan-and-scan", action="store_true", help="also show crops of images far from square")
    parser.add_argument("--allow-urls", action="store_true", help="fetch images given as http(s) addresses")
    group = parser.add_argument_group(
        "sampling parameters",
        "Those left out are as in the checkpoint's generation_config.json, which `gemma-tpu info` shows; without one: "
        "at most 1,024 tokens, temperature 0, and top-k 64 and top-p 0.95 where a temperature is given.",
    )
    for name, kind, metavar, help in _SAMPLING:
        group.add_argument(_flag(name), type=kind, metavar=metavar, default=argparse.SUPPRESS, help=help)
    group.add_argument(
        "--stop",
        action="append",
        metavar="TEXT",
        default=argparse.SUPPRESS,
        help="end the answer before TEXT; may be given several times",
    )
    group = parser.add_argument_group("prompt formats of other models")
    for name, metavar, help in _FORMAT:
        group.add_argument(_flag(name), metavar=metavar, default=argparse.SUPPRESS, help=help)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def generation_kwargs(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `Model.stream` that were given: sampling parameters and those of a prompt format."""
    from gemma_tpu.options import SamplingParams

    sampling = values(args, *(row[0] for row in _SAMPLING), "stop")
    SamplingParams(**sampling)  # wrong values are said before a model is loaded
    given = sampling | values(args, *(row[0] for row in _FORMAT))
    if "tools" in given:
        given["tools"] = _read_tools(given["tools"])
    return given


def _read_tools(path: str) -> list[Any]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            tools = json.load(file)
    except OSError as error:
        raise ValueError(f"--tools {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--tools {path}: is no JSON: {error}") from error
    return tools if isinstance(tools, list) else [tools]
