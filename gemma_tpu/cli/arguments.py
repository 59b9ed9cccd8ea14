"""Arguments that several commands share, and what they mean."""

from __future__ import annotations

import argparse
import json
from typing import Any


class Parser(argparse.ArgumentParser):
    """Refuses an unknown option itself. Python's leaves it to the parser above, which shows its own usage."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return parsed, unknown


def mesh_shape(text: str) -> tuple[int, int]:
    """Of an argument such as "1,8": the sizes of the data and model axes."""
    try:
        data, model = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form DATA,MODEL, such as 1,8") from None
    return data, model


def add_verify_argument(parser: argparse.ArgumentParser) -> None:
    """Of `load` and `convert`: whether files are compared with their checksums."""
    parser.add_argument(
        "--no-verify", dest="verify", action="store_false", help="do not compare the files with their checksums"
    )


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Of `answer_options`: how tokens are chosen, and where an answer ends."""
    group = parser.add_argument_group(
        "sampling",
        "What is left out is as the checkpoint's generation_config.json has it, which `gemma-tpu info` shows; "
        "without one: at most 1,024 tokens, greedy, and top-k 64 and top-p 0.95 where a temperature is given.",
    )
    for flag, kind, help in (
        ("--max-new-tokens", int, "longest answer"),
        ("--temperature", float, "0 is greedy"),
        ("--top-k", int, "0 is off"),
        ("--top-p", float, "1 is off"),
        ("--min-p", float, "0 is off"),
        ("--seed", int, "for the same answer again"),
    ):
        group.add_argument(flag, type=kind, default=argparse.SUPPRESS, help=help)
    group.add_argument("--stop", action="append", default=argparse.SUPPRESS, metavar="TEXT", help="ends the answer")


def add_prompt_arguments(parser: argparse.ArgumentParser) -> None:
    """What a prompt is made of, beside its text."""
    parser.add_argument("--system", help="a system message")
    parser.add_argument("--pan-and-scan", action="store_true", help="show crops of images far from square after them")
    parser.add_argument("--allow-urls", action="store_true", help="fetch images given as http(s) addresses")


_SAMPLING = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "stop")


def answer_options(args: argparse.Namespace) -> dict[str, Any]:
    """What was asked for of an answer: sampling, and the options of the checkpoint's prompt format."""
    given = {name: getattr(args, name) for name in (*_SAMPLING, *_FORMAT) if hasattr(args, name)}
    if "tools" in given:
        given["tools"] = _read_tools(given["tools"])
    return given


def add_format_arguments(parser: argparse.ArgumentParser) -> None:
    """Of `answer_options`: what the prompts of Gemma 3's relatives need."""
    group = parser.add_argument_group("models of their own prompt format")
    for flag, metavar, help in (
        ("--source-lang", "CODE", "TranslateGemma: the language of the text or picture, such as cs"),
        ("--target-lang", "CODE", "TranslateGemma: the language to translate into, such as pt-BR"),
        ("--tools", "FILE", "FunctionGemma: a JSON file with a list of functions as JSON schemas"),
    ):
        group.add_argument(flag, metavar=metavar, help=help, default=argparse.SUPPRESS)


_FORMAT = ("source_lang", "target_lang", "tools")


def _read_tools(path: str) -> list[Any]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            tools = json.load(file)
    except OSError as error:
        raise ValueError(f"--tools {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--tools {path}: is no JSON: {error}") from error
    return tools if isinstance(tools, list) else [tools]
