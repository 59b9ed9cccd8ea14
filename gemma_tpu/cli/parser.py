"""The parser of `gemma-tpu`, made of the modules in `gemma_tpu.cli.commands`."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from collections.abc import Container
from typing import Any

from gemma_tpu import __version__
from gemma_tpu.cli import commands


class Parser(argparse.ArgumentParser):
    """Refuses an unknown option itself. Python's leaves it to the parser above, which shows its own usage.

    `options` of what it parses says what each argument is called, for `as_options`; a default of that name is part.
    """

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        called = {action.dest: action.option_strings[-1] for action in self._actions if action.option_strings}
        parsed.options = called | getattr(parsed, "options", {})
        return parsed, unknown


def command_names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(commands.__path__))


def make_parser(words: Container[str]) -> Parser:
    """The parser for a command line of `words`; a command that is not among them is listed, but has no arguments.

    Arguments may need imports, such as the names of the released sizes, that should not slow every command down.
    """
    parser = Parser(prog="gemma-tpu", description="Gemma 3 on TPUs, GPUs and CPUs, from JAX.")
    parser.add_argument("--version", action="version", version=f"gemma-tpu {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for name in command_names():
        module = importlib.import_module(f"{commands.__name__}.{name}")
        command = subparsers.add_parser(name, help=module.HELP, description=module.HELP)
        command.set_defaults(main=module.main)
        if name in words:
            module.add_arguments(command)
    return parser
