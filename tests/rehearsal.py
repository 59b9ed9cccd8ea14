"""A rehearsal with released files: what a user does with Gemma 3 as Google, Kaggle and Hugging Face lay it out.

    python tests/rehearsal.py run 270m OUT --tokenizer tokenizer.model [--files DIR]

writes random weights in each layout below OUT (released_layouts.py), runs the commands of `STEPS` on each, and prints
what each took. `--files` names a folder with Hugging Face's tokenizer.json and tokenizer_config.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

from released_layouts import LAYOUTS, place, write

from gemma_tpu.config import CONFIGS

STEPS = ("info", "generate", "chat", "convert", "verify", "demo")


@dataclasses.dataclass(frozen=True)
class Command:
    """Arguments of `gemma-tpu`, and what is typed into it."""

    step: str
    arguments: list[str]
    typed: str = ""


def commands(
    checkpoint: str, layout: str, work: Path, picture: Path | None, options: list[str], verify_options: list[list[str]]
) -> list[Command]:
    """The `gemma-tpu` commands of the rehearsal for one checkpoint. `options`: of every command that loads a model.

    `verify_options`: arguments of `verify` beside the checkpoint, one list for each reference.
    """
    shown = [] if picture is None else ["--image", str(picture)]
    # Drawn, not greedy: random weights often repeat one token, which would hide a difference.
    few = ["--max-new-tokens", "8", "--temperature", "1", "--seed", "7"]
    lines = ["What is this?", "And that?"]
    if picture is not None:
        lines.insert(0, f"/image {picture}")
    found = [
        Command("info", ["info", checkpoint, "--json"]),
        Command("generate", ["generate", checkpoint, "What is in the picture?", "--json", *shown, *few, *options]),
        Command("chat", ["chat", checkpoint, *few, *options], typed="\n".join([*lines, ""])),
    ]
    for to in ("orbax", "orbax-flat", "safetensors"):
        target = str(work / f"{layout}-{to}")
        found.append(Command("convert", ["convert", checkpoint, target, "--to", to]))
        again = ["generate", target, "What is in the picture?", "--json", *shown, *few, *options]
        found.append(Command("convert", again))
    found += [Command("verify", ["verify", checkpoint, *reference]) for reference in verify_options]
    return found


def draw_picture(path: Path) -> Path:
    from gemma_tpu.verify.inputs import drawing

    drawing(320).save(path)
    return path


def load_as_demo(source: str, tokenizer: str | None, dtype: str = "auto", max_context: int | None = None):
    """The demo's own load: weights, then every program compiled. Returns its `Loader`, ready or failed."""
    import gemma_tpu
    from gemma_tpu import Loader

    def load(progress):
        options = {"dtype": dtype, "max_context": max_context, "tokenizer": tokenizer, "progress": progress}
        return gemma_tpu.load(source, max_rows=2, **options)

    loader = Loader(source, load)
    loader.start()
    loader.wait()
    return loader


# By hand, at true sizes: every command in a process of its own, timed and weighed.


def _run(title: str, arguments: list[str], typed: str = "") -> bool:
    """Runs a command and prints its time, its processor time and the most memory it held. Returns whether it worked."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(typed)
    process.stdin.close()
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds, busy, peak = time.monotonic() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9
    code = os.waitstatus_to_exitcode(status)
    verdict = f"exit {code}" if code else "ok"
    print(f"{title:44} {seconds:6.1f} s {busy:6.1f} s busy {peak:6.2f} GB  {verdict}", flush=True)
    tail = output.strip().splitlines()[-1:] if not code else output.strip().splitlines()[-5:]
    print("".join(f"    {line[:160]}\n" for line in tail), end="", flush=True)
    return not code


def _rehearse(args: argparse.Namespace) -> int:
    tokenizer = args.tokenizer.resolve()
    name = f"gemma3-{args.size}-it"
    args.out.mkdir(parents=True, exist_ok=True)
    picture = draw_picture(args.out / "picture.png") if CONFIGS[f"gemma3-{args.size}"].vision else None
    references = {"gemma": args.gemma, "transformers": args.transformers}
    well = True
    for layout in args.layouts:
        here = ["write", args.size, layout, str(args.out), "--tokenizer", str(tokenizer)]
        here += ["--files", str(args.files)] if args.files else []
        well &= _run(f"{layout}: write", [__file__, *here])
        path = str(place(layout, args.out, name))
        given = ["--tokenizer", str(tokenizer)] if layout.startswith("google") else []
        options = ["--dtype", args.dtype, "--max-context", str(args.max_context), *given]
        verify = [
            ["--against", reference, "--python", python, "--new-tokens", "8", *given]
            for reference, python in references.items()
            if python
        ]
        for command in commands(path, layout, args.out, picture, options, verify):
            if command.step in args.steps:
                title = f"{layout}: {command.arguments[0]} {' '.join(command.arguments[2:])}".replace(
                    f"{args.out}/", ""
                )
                well &= _run(title[:44], ["-m", "gemma_tpu", *command.arguments], command.typed)
        if "demo" in args.steps:
            well &= _run(f"{layout}: demo", [__file__, "load", path, *options])
    return 0 if well else 1


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = parser.add_subparsers(dest="command", required=True)
    sizes = [name.removeprefix("gemma3-") for name in CONFIGS]
    run, write_one, load = sub.add_parser("run"), sub.add_parser("write"), sub.add_parser("load")
    for command in (run, write_one):
        command.add_argument("size", choices=sizes)
        if command is write_one:
            command.add_argument("layout", choices=LAYOUTS)
        command.add_argument("out", type=Path)
        command.add_argument("--tokenizer", type=Path, required=True, help="a SentencePiece model")
        command.add_argument("--files", type=Path, help="a folder of more files for Hugging Face's layout")
    run.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=LAYOUTS)
    run.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    run.add_argument("--gemma", metavar="PYTHON", help="an interpreter that has gemma")
    run.add_argument("--transformers", metavar="PYTHON", help="an interpreter that has transformers")
    load.add_argument("source")
    load.add_argument("--tokenizer")
    for command in (run, load):
        command.add_argument("--dtype", default="auto")
        command.add_argument("--max-context", type=int, default=1024)
    args = parser.parse_args()
    if args.command == "run":
        return _rehearse(args)
    if args.command == "load":
        loader = load_as_demo(args.source, args.tokenizer, args.dtype, args.max_context)
        print(loader.status)
        return 0 if loader.status.phase == "ready" else 1
    name, tokenizer = f"gemma3-{args.size}", args.tokenizer.read_bytes()
    files = {file.name: file.read_bytes() for file in args.files.iterdir()} if args.files else {}
    print(write(args.layout, CONFIGS[name], args.out, f"{name}-it", tokenizer, files))
    return 0


if __name__ == "__main__":
    sys.exit(_main())
