"""The command line as a user meets it: what it prints, its exit codes, one-line errors."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import xla_flags
from small_models import random_params
from test_api import CONFIG

import gemma_tpu
from gemma_tpu import bench
from gemma_tpu.checkpoint import open_checkpoint, save_params
from gemma_tpu.checkpoint.convert import LAYOUTS
from gemma_tpu.cli import commands
from gemma_tpu.cli.commands import plan
from gemma_tpu.cli.main import main
from gemma_tpu.cli.parser import command_names, make_parser
from gemma_tpu.quantization import Quantization
from gemma_tpu.verify.reference import REFERENCES

COMPLETE = (
    "bench --model gemma3-1b",
    "chat X",
    "completion bash",
    "convert X Y --to orbax",
    "download X",
    "generate X Y",
    "info X",
    "plan X --chips v5e",
    "serve X",
    "verify X --against gemma",
)  # a command line of each command


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "checkpoint"
    tokenizer = (Path(__file__).parent / "goldens" / "text" / "tokenizer.model").read_bytes()
    save_params(random_params(CONFIG), CONFIG, path, tokenizer=tokenizer)
    return path


def test_the_cache_is_what_the_command_says(checkpoint: Path, capsys, monkeypatch) -> None:
    loaded = []
    load = gemma_tpu.load
    monkeypatch.setattr(gemma_tpu, "load", lambda *args, **how: loaded.append(load(*args, **how)) or loaded[-1])
    texts = []
    for dtype in ("auto", "int8"):
        how = ["--kv-cache-dtype", dtype, "--max-new-tokens", "5", "--max-context", "64", "--json"]
        assert main(["generate", str(checkpoint), "Hello", *how]) == 0
        texts.append(json.loads(capsys.readouterr().out)["text"])
    assert [model.deployment.kv_cache_dtype for model in loaded] == ["auto", "int8"]
    assert texts[0] == texts[1]
    with pytest.raises(ValueError, match='kv_cache_dtype must be "auto" or "int8", got \'int4\''):
        load(str(checkpoint), kv_cache_dtype="int4")


def test_generate(checkpoint: Path, tmp_path: Path, capsys) -> None:
    picture = tmp_path / "picture.png"
    PIL.Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(picture)
    shared = ["generate", str(checkpoint), "Hello", "--image", str(picture), "--max-new-tokens", "5", "--mesh", "1,8"]
    assert main([*shared, "--json", "--seed", "4", "--temperature", "1"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["usage"]["image_tokens"] == CONFIG.vision.num_soft_tokens
    assert 0 < len(answer["tokens"]) <= 5
    assert main([*shared, "--seed", "4", "--temperature", "1"]) == 0
    assert capsys.readouterr().out == answer["text"] + "\n"
    PIL.Image.fromarray(np.zeros((256, 600, 3), np.uint8)).save(picture)
    assert main([*shared, "--json", "--pan-and-scan", "--continue", "It is"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["usage"]["image_tokens"] == 3 * CONFIG.vision.num_soft_tokens  # with two crops
    parts = [{"type": "image", "image": str(picture)}, {"type": "text", "text": "Hello"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "It is"}]
    with gemma_tpu.load(checkpoint, mesh=(1, 8), max_rows=1, progress=False) as model:
        expected = model.generate(messages, pan_and_scan=True, continue_final=True, max_new_tokens=5)
    assert (answer["tokens"], answer["text"]) == (expected.tokens, expected.text)


def test_info(checkpoint: Path, capsys) -> None:
    assert main(["info", str(checkpoint), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["layout"], found["prompt_format"]) == ("orbax-flat", "Gemma 3")
    assert found["parameters"] == sum(value.size for value in random_params(CONFIG).values())
    assert main(["info", str(checkpoint)]) == 0
    shown = capsys.readouterr().out
    assert "num_soft_tokens" in shown
    assert "prompt_format      Gemma 3\n" in shown


def test_info_says_what_lies_beside_the_weights(checkpoint: Path, tmp_path: Path, capsys) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "generation_config.json").write_text('{"do_sample": true, "num_beams": 4, "eos_token_id": [1, 106]}')
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert main(["info", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokenizer"] == str(tmp_path / "tokenizer.model")
    assert found["pieces"] == CONFIG.vocab_size
    assert found["chat_template"] == str(tmp_path / "chat_template.jinja")
    assert (found["defaults"]["temperature"], found["defaults"]["top_k"]) == (1.0, 50)
    assert {1, 106} <= set(found["defaults"]["stop_tokens"])
    assert ["num_beams 4" in note for note in found["notes"]] == [True, False, False]
    assert main(["info", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "note: " in shown
    assert "temperature        1.0" in shown


def test_convert(checkpoint: Path, tmp_path: Path, capsys) -> None:
    target = tmp_path / "hf"
    assert main(["convert", str(checkpoint), str(target), "--to", "safetensors"]) == 0
    assert open_checkpoint(target).config == CONFIG
    assert main(["convert", str(checkpoint), str(target), "--to", "safetensors"]) == 1
    small = str(tmp_path / "small")
    assert main(["convert", str(checkpoint), small, "--to", "orbax", "--quantize", "int4"]) == 0
    assert plan.model(small) == (open_checkpoint(small).config, Quantization("int4", None, None))
    assert str(target) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "nowhere/at/all"], "nowhere/at/all"),
        (["generate", "CHECKPOINT", "x", "--temperature", "-1"], "--temperature must be at least 0"),
        (["generate", "CHECKPOINT", "x", "--image", "missing.png"], "missing.png"),
        (["generate", "CHECKPOINT", "x", "--raw", "--system", "y"], "--system"),
        (["generate", "CHECKPOINT", "x", "--raw", "--continue", "y"], "--continue is part of the chat format"),
        (["generate", "CHECKPOINT", "x", "--image", "https://example.org/a.png"], "--allow-urls"),
        (["generate", "CHECKPOINT", "x", "--allow-urls", "--image", "http://127.0.0.1:9/a.png"], "cannot be reached"),
        (["generate", "CHECKPOINT", "x", "--source-lang", "cs"], "--source-lang: an option for TranslateGemma; this"),
        (["generate", "CHECKPOINT", "x", "--tools", __file__], "test_cli.py: is no JSON"),
        (["download", "gemma9-1b"], "gemma3-27b-it"),
    ],
)
def test_errors_are_one_line(checkpoint: Path, arguments: list[str], message: str, capsys) -> None:
    assert main([str(checkpoint) if word == "CHECKPOINT" else word for word in arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("gemma-tpu: ")
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.filterwarnings("ignore:.*it ends an answer")
def test_an_answer_without_a_token_is_json_too(checkpoint: Path, capsys) -> None:
    """`--continue` of what is an answer already: the model ends it, and there is no time to the first token."""
    with gemma_tpu.load(checkpoint, mesh=(1, 8), max_rows=1, progress=False) as model:
        first = model.generate("Hello", max_new_tokens=1, stop_tokens=()).tokens
    (checkpoint.parent / "ending").mkdir()
    ending = checkpoint.parent / "ending" / "checkpoint"
    shutil.copytree(checkpoint, ending)
    (ending / "generation_config.json").write_text(json.dumps({"eos_token_id": first}))
    assert main(["generate", str(ending), "Hello", "--mesh", "1,8", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (answer["tokens"], answer["timings"]["first_token"]) == ([], None)


def test_a_checkpoint_of_another_prompt_format(checkpoint: Path, tmp_path: Path, capsys) -> None:
    """The chat template beside the weights says that this is TranslateGemma."""
    relative = shutil.copytree(checkpoint, tmp_path / "relative")
    (relative / "chat_template.jinja").write_text("{{ content['source_lang_code'] + content['target_lang_code'] }}")
    assert main(["info", str(relative)]) == 0
    assert "prompt_format      TranslateGemma\n" in capsys.readouterr().out
    shared = ["generate", str(relative), "Dobrý den.", "--max-new-tokens", "2"]
    assert main(shared) == 1
    assert "from which language into which? Say" in capsys.readouterr().err
    assert main([*shared, "--source-lang", "cs", "--target-lang", "de", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["usage"]["prompt_tokens"] > 100, "the sentences around the text"
    assert (answer["thinking"], answer["tool_calls"]) == ("", [])


def test_alone_it_shows_help(capsys) -> None:
    assert main([]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("usage: gemma-tpu [-h] [--version] COMMAND")
    assert "convert" in said.out
    assert said.err == ""


def test_there_is_a_command_line_of_each_command_here() -> None:
    assert [line.split()[0] for line in COMPLETE] == command_names()


def test_a_command_is_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Nothing else knows its name."""
    lines = [
        'HELP = "Greet somebody."',
        'def add_arguments(parser): parser.add_argument("name")',
        'def main(args): return print(f"Hello, {args.name}!") or 3',
    ]
    (tmp_path / "greet.py").write_text("\n".join(lines))
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    assert main([]) == 0
    assert re.search(r"^    greet +Greet somebody\.$", capsys.readouterr().out, re.MULTILINE)
    assert main(["greet", "you"]) == 3
    assert capsys.readouterr().out == "Hello, you!\n"


def python(*command: str, **variables: str) -> str:
    """What a program prints that is started elsewhere, and sees nothing of this one."""
    environment = os.environ | xla_flags.PROCESS | {"PYTHONPATH": os.pathsep.join(sys.path)} | variables
    options = {"env": environment, "cwd": "/", "capture_output": True, "text": True, "check": True}
    return subprocess.run([sys.executable, *command], **options).stdout


def test_help_waits_for_no_heavy_import() -> None:
    program = """
import sys
from gemma_tpu.cli.main import main
from gemma_tpu.cli.parser import command_names, make_parser
main([])
print("list:", sorted({"PIL", "jax", "numpy"} & sys.modules.keys()))
make_parser(command_names())
print("arguments:", sorted({"PIL", "flax", "jax", "orbax", "tokenizers"} & sys.modules.keys()))
"""
    assert python("-c", program).splitlines()[-2:] == ["list: []", "arguments: []"]


WRONG = {
    "--max-context 0": "--max-context must be at least 2, got 0",
    "--draft-tokens 99": "--draft-tokens must be at least 0 and at most 15, got 99",
    "--draft D --draft-tokens 0": "--draft-tokens must be at least 1 and at most 15, got 0",
    "--mesh 0,1": "--mesh: data must be at least 1",
    "--temperature -1": "--temperature must be at least 0 and at most 1000, got -1.0",
    "--top-k -1": "--top-k must be at least 0",
    "--max-rows 0": "--max-rows must be at least 1",
    "--cache-tokens 9 --max-context 10": "--cache-tokens must be at least --max-context, 10, got 9",
    "--stored-prefixes -1": "--stored-prefixes must be at least 0",
    "--max-queue -3": "--max-queue must be at least 0, got -3",
    "--request-timeout 0": "--request-timeout must be above 0, got 0.0",
    "--in-flight 0": "--in-flight must be at least 1, got 0",
    "--rows 0": "--rows must be at least 1, got 0",
}


def test_wrong_numbers_are_said_before_anything_is_slow() -> None:
    """By every command that takes them, once, and as its options are called."""
    first, sampling, serve = list(WRONG)[:4], list(WRONG)[4:6], list(WRONG)[6:11]
    lines = [f"{command} X {wrong}" for command in ("generate P", "chat", "serve") for wrong in first]
    lines += [f"{command} X {wrong}" for command in ("generate P", "chat") for wrong in sampling]
    lines += [f"serve X {wrong}" for wrong in serve]
    lines += ["bench serve X --max-rows 0", "bench serve X --in-flight 0"]
    lines += [f"plan X --chips v5e {wrong}" for wrong in ("--rows 0", "--stored-prefixes -1")]
    program = """
import contextlib, sys
from gemma_tpu.cli.main import main
for line in sys.argv[1:]:
    with contextlib.redirect_stderr(sys.stdout):
        code = main(line.split())
    print(code, sorted({"gradio", "jax"} & sys.modules.keys()))
"""
    said = python("-c", program, *lines).splitlines()
    assert len(said) == 2 * len(lines)
    for line, error, outcome in zip(lines, said[::2], said[1::2], strict=True):
        (expected,) = (message for wrong, message in WRONG.items() if line.endswith(f" {wrong}"))
        assert error.startswith(f"gemma-tpu: {expected}"), line
        assert outcome == "1 []", line


def test_the_library_does_without_the_command_line() -> None:
    program = """
import sys, gemma_tpu.bench, gemma_tpu.verify, gemma_tpu.plan.planner, gemma_tpu.plan.report
print([name for name in sys.modules if name.startswith("gemma_tpu.cli")])
"""
    assert python("-c", program) == "[]\n"


def test_from_a_zip_file(tmp_path: Path) -> None:
    """Where no directory can be listed."""
    root = Path(gemma_tpu.__file__).parents[1]
    with zipfile.ZipFile(tmp_path / "package.zip", "w") as archive:
        for file in sorted((root / "gemma_tpu").rglob("*.py")):
            archive.write(file, file.relative_to(root))
    path = os.pathsep.join([str(tmp_path / "package.zip"), *(entry for entry in sys.path if entry != str(root))])
    shown = python("-m", "gemma_tpu", PYTHONPATH=path)
    assert all(f"\n    {name}" in shown for name in command_names())
    assert python("-m", "gemma_tpu", "info", "--help", PYTHONPATH=path).startswith("usage: gemma-tpu info ")


@pytest.mark.parametrize("arguments", COMPLETE)
def test_an_unknown_option_shows_the_usage_of_its_command(arguments: str, capsys) -> None:
    command = arguments.split()[0]
    with pytest.raises(SystemExit) as raised:
        main([*arguments.split(), "--nonsense"])
    assert raised.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"usage: gemma-tpu {command} ")
    assert said.endswith(f"gemma-tpu {command}: error: unrecognized arguments: --nonsense\n")


def test_choices_are_those_of_the_library() -> None:
    """Written twice, since importing them takes seconds."""
    for argument, known in (("convert X Y --to", LAYOUTS), ("verify X --against", REFERENCES)):
        for choice in known:
            make_parser(argument.split()).parse_args([*argument.split(), choice])
        with pytest.raises(SystemExit):
            make_parser(argument.split()).parse_args([*argument.split(), "nonsense"])


@pytest.mark.parametrize(
    "line", [line for line in COMPLETE if line.split()[0] not in ("completion", "download", "info")]
)
def test_every_dtype_option_takes_the_same_names(line: str, capsys) -> None:
    def parsed(dtype: str) -> str:
        return make_parser(line.split()).parse_args([*line.split(), "--dtype", dtype]).dtype

    assert [parsed(name) for name in ("bf16", "bfloat16", "f32", "float32")] == ["bfloat16"] * 2 + ["float32"] * 2
    with pytest.raises(SystemExit) as raised:
        main([*line.split(), "--dtype", "int4"])
    assert raised.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"usage: gemma-tpu {line.split()[0]} ")
    assert re.search(r"argument --dtype: invalid choice: 'int4' \(choose from .*bfloat16.*float32", said)


BENCH = ["--context", "64", "--prompt", "9", "--tokens", "4", "--repeats", "3", "--mesh", "1,8", "--rows"]


def test_bench(checkpoint: Path, tmp_path: Path, capsys) -> None:
    plot = tmp_path / "speed.svg"
    assert main(["bench", "--checkpoint", str(checkpoint), *BENCH, "1", "--json", "--plot", str(plot)]) == 0
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert (report["model"], report["context"]) == (str(checkpoint), 64)
    assert [(one["rows"], one["unit"]) for one in report["results"]] == [
        (1, unit) for unit in ("s", "ms", "tokens/s", "tokens/s", "ms", "tokens/s", "ms", "ms")
    ]
    assert [one["curve"] for one in report["results"] if one["at"]] == ["measured", "floor", "first", "each"]
    assert "tokens of the prompt" in plot.read_text()
    assert all(one["value"] > 0 for one in report["results"])
    assert len(said.err.splitlines()) == len(report["results"])  # while it measures


@pytest.mark.parametrize("command", ["bench --model gemma3-1b", "bench serve X"])
def test_a_picture_that_cannot_be_written_is_said_at_once(command: str, tmp_path: Path, capsys) -> None:
    assert main([*command.split(), "--plot", str(tmp_path / "none" / "a.svg")]) == 1
    assert "its folder does not exist" in capsys.readouterr().err


def test_bench_of_random_weights(monkeypatch, capsys) -> None:
    """What is measured is left to the test above."""

    def measure(model: gemma_tpu.Model, **shape: int) -> list[bench.Measurement]:
        assert (model.config, shape["prompt"], shape["tokens"]) == (config, 9, 4)
        return [bench.Measurement("runs", shape["rows"] * 10 + shape["repeats"], "1")]

    config = dataclasses.replace(CONFIG, vision=None)
    monkeypatch.setattr("gemma_tpu.config.CONFIGS", {"gemma3-1b": config})
    monkeypatch.setattr(bench, "measure", measure)
    assert main(["bench", "--model", "gemma3-1b", *BENCH, "1", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("gemma3-1b on 8 × cpu, jax ")
    assert [(line.split()[1], line.split()[-2]) for line in lines if "runs" in line] == [("1:", "13.0"), ("2:", "23.0")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--rows 0", "--rows must be at least 1"),
        ("--rows 1 -1", "--rows must be at least 1"),
        ("--repeats 0", "--repeats must be at least 1, got 0"),
        ("--prompt -5", "--prompt must be at least 1, got -5"),
        ("--tokens 1", "--tokens must be at least 2, got 1"),
        ("--context 1", "--context must be at least 2"),
        ("--context 9999", "--context must be in [2, 512] for this model"),
        ("--prompt 61", "prompt 61 and tokens 4 are more than the context of 64 tokens"),
        ("--rows 2 1 --mesh 2,4", "--rows 1 must be a multiple of the 2 copies"),
        ("--mesh 3,1", "--mesh (3, 1) does not fit 8 devices"),
    ],
)
@pytest.mark.parametrize("random", [True, False])
def test_bench_measures_nothing_that_cannot_be(
    random: bool, arguments: str, message: str, checkpoint: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("gemma_tpu.config.CONFIGS", {"gemma3-4b": CONFIG})
    monkeypatch.setattr(bench, "measure", lambda *_, **__: pytest.fail("measured"))
    source = ["--model", "gemma3-4b"] if random else ["--checkpoint", str(checkpoint)]
    assert main(["bench", *source, *BENCH, "1", *arguments.split()]) == 1
    error = capsys.readouterr().err
    assert error.startswith("gemma-tpu: ")
    assert message in error
    assert error.count("\n") == 1


def test_bench_leaves_an_image_out_that_the_context_does_not_hold() -> None:
    """Its prompt has 25 tokens here, and there is the one that is waited for."""
    shape = {"rows": [1], "prompt": 9, "tokens": 4, "repeats": 1, "mesh": (1, 8)}
    with pytest.warns(UserWarning, match="no image is measured: that takes a context of 26 tokens, not 25"):
        found = [one.what for _, one in bench.bench(CONFIG, context=25, **shape)]
    assert len(found) == 5
    assert not any("image" in what for what in found)
    assert "image" in [one.what for _, one in bench.bench(CONFIG, context=26, **shape)][-2]


def give(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


def test_a_picture_from_standard_input(checkpoint: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    file = tmp_path / "noise.png"
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)).save(file)
    shared = ["generate", str(checkpoint), "Hello", "--max-new-tokens", "5", "--mesh", "1,8", "--json", "--image"]
    assert main([*shared, str(file)]) == 0
    expected = json.loads(capsys.readouterr().out)
    give(monkeypatch, file.read_bytes())
    assert main([*shared, "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["tokens"], found["usage"]) == (expected["tokens"], expected["usage"])
    assert found["usage"]["image_tokens"] > 0
    give(monkeypatch, b"no picture")
    assert main([*shared, "-"]) == 1
    assert "image file: a text file, not an image" in capsys.readouterr().err


@pytest.mark.parametrize("more", [["-", "--image", "-"], ["x", "--image", "-", "--image", "-"]])
def test_standard_input_is_read_once(more: list[str], capsys) -> None:
    assert main(["generate", "gemma3-demo", *more]) == 1
    assert "only one of the prompt and the images can be -" in capsys.readouterr().err


def test_a_prompt_that_is_no_text(capsys, monkeypatch) -> None:
    give(monkeypatch, b"caf\xe9")
    assert main(["generate", "gemma3-demo", "-"]) == 1
    assert "the prompt on standard input is no text in utf-8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "X", "x", "--tools", "/nothere"], "--tools /nothere: No such file or directory"),
        (["chat", "X", "--tools", "/"], "--tools /: Is a directory"),
        (["generate", "X", "x", "--tools", __file__], f"--tools {__file__}: is no JSON"),
    ],
)
def test_a_wrong_file_is_said_before_anything_is_loaded(arguments: list[str], message: str, capsys) -> None:
    """X is no checkpoint, which is said of it when it is loaded."""
    assert main(arguments) == 1
    assert capsys.readouterr().err.startswith(f"gemma-tpu: {message}")


def test_an_adapter_that_is_a_file(capsys) -> None:
    assert main(["generate", "gemma3-demo", "x", "--adapter", __file__]) == 1
    assert f"{__file__}: no adapter: a file; give a directory" in capsys.readouterr().err
