"""`gemma-tpu completion`: a script that makes a shell complete commands, options, their choices and file names."""

from __future__ import annotations

import argparse

HELP = "Print a script that makes bash or zsh complete the arguments of gemma-tpu."
_KINDS = {"CHECKPOINT": "file", "DIR": "directory", "DST": "directory", "FILE": "file", "MODEL": "file", "SRC": "file"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        'To switch it on, in ~/.bashrc: eval "$(gemma-tpu completion bash)"; in ~/.zshrc, after compinit: with zsh.'
    )
    parser.add_argument("shell", choices=("bash", "zsh"), help="the shell")


def main(args: argparse.Namespace) -> int:
    import shtab

    from gemma_tpu.cli.parser import command_names, make_parser

    parser = make_parser(command_names())
    _mark_files(parser)
    print(shtab.complete(parser, args.shell))
    return 0


def _mark_files(parser: argparse.ArgumentParser) -> None:
    """Tells shtab, by the metavar, which arguments are files ("file", directories among them) or directories."""
    for action in parser._actions:
        if isinstance(action.choices, dict):
            for command in action.choices.values():
                _mark_files(command)
        elif action.metavar in _KINDS:
            action.complete = _KINDS[action.metavar]  # pyright: ignore[reportAttributeAccessIssue]
