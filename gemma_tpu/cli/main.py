"""The `gemma-tpu` command: finds the subcommand, runs it, and prints warnings and errors as one line each."""

from __future__ import annotations

import os
import sys
import warnings

from gemma_tpu.cli import standard_streams
from gemma_tpu.cli.arguments import check_sizes, join_processes
from gemma_tpu.cli.option_names import as_options
from gemma_tpu.cli.parser import make_parser
from gemma_tpu.environment import quiet_libtpu, use_compilation_cache


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns its exit code. An error is one line on standard error."""
    argv = sys.argv[1:] if argv is None else argv
    standard_streams.occupy()
    options: dict[str, str] = {}
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning
            use_compilation_cache()
            quiet_libtpu()
            parser = make_parser(argv)
            if not argv:
                parser.print_help()
                return 0
            args = parser.parse_args(argv)
            options = args.options
            if getattr(args, "needs_stdout", True):
                standard_streams.require_stdout()
            check_sizes(args)
            join_processes(args)
            code = args.main(args)
            print(end="", flush=True)  # an answer that was not written is an error
            return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone: `gemma-tpu generate … | head`
        standard_streams.failure()
        return 141
    except (ValueError, OSError, RuntimeError) as error:
        print(f"gemma-tpu: {as_options(_one_line(standard_streams.failure() or error), options)}", file=sys.stderr)
        return 1


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:  # as Python has it, the errno comes first
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return " ".join(str(error).split())


def _print_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
    """A warning as errors look here: one line, without the place in the code."""
    print(f"gemma-tpu: {' '.join(str(message).split())}", file=sys.stderr)
