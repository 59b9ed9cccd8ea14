"""Runs other servers' own tests against this server: `python tests/conformance.py SUITE FOLDER [pytest options]`.

SUITE is a table of conformance.toml, FOLDER a checkout or an unpacked sdist that has its files. They run as they are:
what would start their server gives them ours, on the demo checkpoint, and the rest of their packages does nothing.
Cases that do not apply are skipped, and those that ours means to answer otherwise are expected to fail, each with the
reason. Needs pytest-asyncio, pybase64, regex and requests beside what the tests need.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib.abc
import importlib.machinery
import inspect
import os
import re
import subprocess
import sys
import time
import tomllib
import types
import unittest
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
import requests
import sentencepiece

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "checkpoints/gemma3-demo"
NAME = "gemma3-demo"


class Nothing(types.ModuleType):
    """Stands in for any module, class, function or value; it is false and empty."""

    __path__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing(name)

    def __call__(self, *_: Any, **__: Any) -> Any:
        return Nothing("called")

    def __bool__(self) -> bool:
        return False

    def __iter__(self) -> Any:
        return iter(())

    def __radd__(self, other: Any) -> Any:
        return other


class Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the modules of some packages as nothing, but for what is given by their full names."""

    def __init__(self, *packages: str, **given: Any) -> None:
        self._packages, self._given = packages, given

    def find_spec(self, fullname: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] in self._packages or fullname in ("tests.utils", "tests.conftest"):
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Any:
        return Nothing(spec.name)

    def exec_module(self, module: Any) -> None:
        vars(module).update(self._given)


class Tokenizer:
    """In place of Hugging Face's: SentencePiece, and the turns of Gemma's documentation."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._pieces = sentencepiece.SentencePieceProcessor(str(CHECKPOINT / "tokenizer.model"))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [self._pieces.bos_id()] * add_special_tokens + self._pieces.encode(text)

    def decode(self, tokens: list[int], **_: Any) -> str:
        return self._pieces.decode(tokens)

    def convert_ids_to_tokens(self, tokens: list[int]) -> list[str]:
        return self._pieces.id_to_piece(tokens)

    def get_vocab_size(self) -> int:
        return self._pieces.vocab_size()


class Servers(contextlib.ExitStack):
    """Ours, one for each key."""

    def __init__(self, names: set[str]) -> None:
        super().__init__()
        self._names, self._addresses = names, dict[str, str]()

    def address(self, key: str | None = None) -> str:
        if (key := key or "") not in self._addresses:
            command = [sys.executable, "-m", "gemma_tpu", "serve", str(CHECKPOINT), "--no-demo", "--port", "0"]
            command += [f"--model-name={name}" for name in [NAME, *sorted(self._names - {NAME})]]
            options: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True, "cwd": ROOT}
            environment = os.environ | {"GEMMA_TPU_API_KEYS": key}
            process = self.enter_context(subprocess.Popen([*command, "--max-queue=256"], env=environment, **options))
            self.callback(process.terminate)
            self._addresses[key] = process.stdout.readline().partition(" is at ")[2].partition("/v1")[0]
            while requests.get(f"{self._addresses[key]}/ready").status_code != 200:
                time.sleep(0.5)
        return self._addresses[key]


def vllm(folder: Path, servers: Servers) -> list[str]:
    class RemoteServer(contextlib.nullcontext):
        def __init__(self, *_: Any, **__: Any) -> None:
            super().__init__(self)

        def url_for(self, *parts: str) -> str:
            return "/".join([servers.address(), *parts])

        def get_async_client(self, **options: Any) -> openai.AsyncOpenAI:
            return openai.AsyncOpenAI(base_url=self.url_for("v1"), api_key="none", max_retries=0, **options)

        def get_async_client_anthropic(self) -> anthropic.AsyncAnthropic:
            return anthropic.AsyncAnthropic(base_url=servers.address(), api_key="none", max_retries=0)

    given = {"RemoteOpenAIServer": RemoteServer, "get_tokenizer": Tokenizer, "ModelConfig": Tokenizer}
    sys.meta_path.insert(0, Absent("vllm", "torch", **given))
    return [f"--confcutdir={folder}/tests/entrypoints"]


def llama_cpp(folder: Path, servers: Servers) -> list[str]:
    sys.meta_path.insert(0, Absent("wget"))
    sys.path.insert(0, str(folder / "tools/server/tests"))
    import utils  # theirs

    def url(server: Any, path: str, *_: Any) -> str:
        """Theirs has OpenAI's addresses without /v1 too."""
        v1 = "" if path.startswith(("/v1/", "/health", "/metrics", "/tokenize", "/detokenize")) else "/v1"
        return f"{servers.address(server.api_key)}{v1}{path}"

    def start(server: Any, *_: Any, **__: Any) -> None:
        server.server_port = int(servers.address(server.api_key).rpartition(":")[2])

    utils.ServerProcess.start, utils.ServerProcess.make_url = start, url
    utils.ServerPreset.load_all = staticmethod(lambda: None)
    return ["-m", "not slow"]


def sglang(_: Path, servers: Servers) -> list[str]:
    """And what descends from it."""
    given: dict[str, Any] = {"DEFAULT_URL_FOR_TEST": servers.address(), "CustomTestCase": unittest.TestCase}
    given |= {"DEFAULT_MODEL_NAME_FOR_TEST": NAME, "DEFAULT_SMALL_MODEL_NAME_FOR_TEST": NAME}
    given |= {"QWEN3_CODER_30B_A3B_INSTRUCT": NAME, "get_tokenizer": Tokenizer}
    sys.meta_path.insert(0, Absent("sglang", "sgl_jax", **given))
    return []


class Report:
    """A pytest plugin that marks cases by what is told of them, and counts what became of them."""

    def __init__(self, cases: dict[str, Any]) -> None:
        self._cases, self._counts = cases, collections.Counter[str]()

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        for item in items:
            text = f"{item.nodeid}\n{inspect.getsource(item.function)}\n{' '.join(item.fixturenames)}"
            for mark, kind in ((pytest.mark.skip, "does_not_apply"), (pytest.mark.xfail, "differs")):
                for pattern, reason in self._cases[kind].items():
                    if re.search(pattern, text):
                        item.add_marker(mark(reason=f"{kind.replace('_', ' ')}: {reason}"))

    def pytest_runtest_logreport(self, report: Any) -> None:
        if hasattr(report, "wasxfail"):
            self._counts["passed, although it " * report.passed + report.wasxfail] += 1
        elif report.skipped:
            self._counts[report.longrepr[2].removeprefix("Skipped: ")] += 1
        elif report.failed or report.when == "call":
            self._counts[report.outcome] += 1

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        for what, count in sorted(self._counts.items()):
            terminalreporter.write_line(f"{count:5} {what}")


def main() -> int:
    suites = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=suites)
    parser.add_argument("folder", type=Path)
    args, options = parser.parse_known_args()
    suite, folder, cases = args.suite, args.folder.resolve(), suites[args.suite]
    if not (folder / cases["folder"]).is_dir():
        parser.error(f"{folder} has no {cases['folder']}")
    files = [str(folder / cases["folder"] / file) for file in cases["files"]]
    named = re.findall(cases["models"], "".join(Path(file).read_text() for file in files)) if cases["models"] else []
    plain = ["-c", os.devnull, f"--rootdir={folder}", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
    plain += ["-q", "-rfX", "--tb=no", "--show-capture=no", "-W", "ignore"]
    with Servers(set(named)) as servers:
        arguments = {"vllm": vllm, "llama_cpp": llama_cpp}.get(suite, sglang)(folder, servers)
        return pytest.main([*plain, *files, *arguments, *options], plugins=[Report(cases)])


if __name__ == "__main__":
    sys.exit(main())
