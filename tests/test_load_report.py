"""What `gemma-tpu serve` says while its model is loaded."""

from __future__ import annotations

from unittest import mock

from gemma_tpu import LoadStatus
from gemma_tpu.cli import load_report
from gemma_tpu.cli.load_report import LoadReport

STATUSES = (
    *(LoadStatus("reading", done, 8_000_000) for done in (0, 3_000_000, 8_000_000)),
    LoadStatus("compiling", 0, 2, "prefill 1×64"),
    LoadStatus("compiling", 1, 2, "prefill 1×64"),  # another program, whose name is the same
    LoadStatus("compiling", 2, 2, "ready"),
    LoadStatus("ready", seconds=12.3),
)


def test_a_log_has_a_line_for_each_program(capsys) -> None:
    with LoadReport("tiny") as report:
        for status in STATUSES:
            report(status)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "gemma-tpu: reading 8.0 MB",
        "gemma-tpu: compiling 1 of 2: prefill 1×64",
        "gemma-tpu: compiling 2 of 2: prefill 1×64",
        "gemma-tpu: tiny is ready after 12 s",
    ]


def test_a_terminal_has_bars(capsys, monkeypatch) -> None:
    monkeypatch.setattr(load_report, "is_terminal", lambda _: True)
    with LoadReport("tiny") as report:
        for status in STATUSES:
            report(status)
    said = capsys.readouterr().err.replace("\r", "\n").splitlines()
    assert [line for line in said if line.startswith("Reading: 100%") and "8.00MB/8.00MB" in line]
    assert [line for line in said if line.startswith("Compiling:  50%") and line.endswith("prefill 1×64")]
    assert [line for line in said if line.startswith("Compiling: 100%")]
    assert said[-1] == "gemma-tpu: tiny is ready after 12 s"


def test_it_has_begun_when_weights_are_read_or_never_will_be() -> None:
    for status in (STATUSES[0], LoadStatus("failed", error="no such file")):
        report = LoadReport("tiny")
        assert not report.begun.is_set()
        report(status)
        assert report.begun.is_set()


def test_nobody_has_to_read_it(monkeypatch) -> None:
    """The model is loaded all the same."""
    stderr = mock.Mock()
    stderr.write.side_effect = BrokenPipeError
    monkeypatch.setattr("sys.stderr", stderr)
    for terminal in (False, True):
        stderr.isatty.return_value = terminal
        report = LoadReport("tiny")
        for status in STATUSES:
            report(status)
        assert report.begun.is_set()
    assert stderr.write.called
