"""docs/performance.md is what its recordings make, and these are of the commands it names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from docs import performance

PAGE = Path(performance.__file__).with_suffix(".md")


def test_the_page_is_made_of_its_recordings() -> None:
    assert PAGE.read_text() == performance.page()
    assert {path.stem for path in performance.RECORDINGS.glob("*.txt")} == set(performance.COMMANDS)


@pytest.mark.parametrize("name", performance.COMMANDS)
def test_a_recording_has_what_its_command_asks_for(name: str) -> None:
    words = performance.COMMANDS[name].split()
    lines = performance.recording(name).splitlines()
    if "profile" in name:
        assert words[3] in lines[0]
        return
    options: dict[str, list[str]] = {}
    for word in words[2:]:
        if word.startswith("--"):
            options[word] = []
        else:
            options[list(options)[-1]].append(word)
    asked = [[*options["--models"], width, rows] for width in options["--quantize"] for rows in options["--rows"]]
    assert [[cell.strip() for cell in line.split("|")[1:4]] for line in lines[3:]] == asked


def test_measuring_keeps_what_the_commands_print(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but what an earlier version did."""
    printed = {"new": "import sys; print('a card, fast', *sys.argv[1:])", performance.BEFORE[0]: "raise SystemExit(1)"}
    for name, code in printed.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setattr(performance, "RECORDINGS", tmp_path)
    monkeypatch.setattr(performance, "COMMANDS", {name: f"python {tmp_path}/{name}.py PYTHON" for name in printed})
    performance.measure("theirs")
    assert performance.recording("new") == "a card, fast theirs"
    monkeypatch.setattr(performance, "COMMANDS", {"failing": f"python {tmp_path}/{performance.BEFORE[0]}.py"})
    with pytest.raises(subprocess.CalledProcessError):
        performance.measure("theirs")
    assert [path.name for path in tmp_path.glob("*.txt")] == ["new.txt"]


@pytest.mark.parametrize("benchmark", ["decode", "profile_decode"])
def test_the_commands_are_those_of_the_benchmarks(benchmark: str) -> None:
    """Each option that a command names is one that the benchmark has."""
    said = subprocess.run(
        [sys.executable, f"benchmarks/{benchmark}.py", "--help"], cwd=performance.ROOT, capture_output=True, text=True
    )
    assert said.returncode == 0, said.stderr
    for command in performance.COMMANDS.values():
        words = command.split()
        if words[1] == f"benchmarks/{benchmark}.py":
            assert all(word in said.stdout for word in words if word.startswith("--"))
