"""The rehearsal at small widths: released layouts, the commands a user gives, and both references where installed."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import checkpoint_bucket
import numpy as np
import pytest
import rehearsal
import released_layouts as layouts
from test_verify import interpreter

from gemma_tpu.checkpoint import config_io, open_checkpoint
from gemma_tpu.cli.main import main
from gemma_tpu.verify import verify

TOKENIZER = (Path(__file__).parents[1] / "checkpoints" / "gemma3-demo" / "tokenizer.model").read_bytes()
NAME = "gemma3-small-it"
KINDS = {
    "google": "orbax-flat",
    "google-directories": "orbax-flat",
    "kaggle": "orbax-flat",
    "huggingface": "safetensors",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rehearsal")
    for layout in layouts.LAYOUTS:
        layouts.write(layout, layouts.SMALL, path, NAME, TOKENIZER)
    rehearsal.draw_picture(path / "picture.png")
    return path


@pytest.fixture(autouse=True)
def known_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Google's and Kaggle's files have no config.json: the sizes are known by their shapes, this one too."""
    monkeypatch.setattr(config_io, "CONFIGS", config_io.CONFIGS | {"gemma3-small": layouts.SMALL})


@pytest.fixture
def released(root: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str]]:
    """A layout and its checkpoint as a user names it; Google's lie in a bucket, beside their tokenizer."""
    layout = request.param
    path = layouts.place(layout, root, NAME)
    if not layout.startswith("google"):
        yield layout, str(path)
        return
    with checkpoint_bucket.serve(path.parents[1]) as bucket:
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", bucket.url)
        yield layout, f"gs://gemma-data/checkpoints/{NAME}"


every_layout = pytest.mark.parametrize("released", layouts.LAYOUTS, indirect=True)


def test_folders_hold_what_is_released(root: Path) -> None:
    hub = {path.name for path in layouts.place("huggingface", root, NAME).iterdir()}
    assert hub == {
        "added_tokens.json",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "processor_config.json",
        "special_tokens_map.json",
        "tokenizer.model",
    }
    version = layouts.place("kaggle", root, NAME)
    assert {path.name for path in version.iterdir()} == {NAME, "tokenizer.model"}
    database = {"_CHECKPOINT_METADATA", "_METADATA", "_sharding", "d", "manifest.ocdbt", "ocdbt.process_0"}
    for path in (version / NAME, layouts.place("google", root, NAME)):
        assert database <= {entry.name for entry in path.iterdir()}
        assert "config.json" not in {entry.name for entry in path.iterdir()}
    directories = {path.name for path in layouts.place("google-directories", root, NAME).iterdir()}
    assert {"_METADATA", "_sharding", "transformer", "SigLiPFromPatches_0"} <= directories
    assert "manifest.ocdbt" not in directories


def test_kaggles_tokenizer_is_found_from_either_folder(root: Path, capsys: pytest.CaptureFixture) -> None:
    """`kagglehub` returns the version's folder; Google's examples then name the one inside."""
    version = layouts.place("kaggle", root, NAME)
    for path in (version, version / NAME):
        assert main(["info", str(path), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["path"], found["tokenizer"]) == (str(version / NAME), str(version / "tokenizer.model"))


@pytest.fixture(scope="module")
def answers() -> list[str]:
    """Every answer to the same question, whatever the checkpoint was read from."""
    return []


@every_layout
def test_commands(
    released: tuple[str, str],
    root: Path,
    tmp_path: Path,
    answers: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    layout, checkpoint = released
    picture = root / "picture.png"
    for command in rehearsal.commands(checkpoint, layout, tmp_path, picture, [], []):
        monkeypatch.setattr("sys.stdin", io.StringIO(command.typed))
        assert main(command.arguments) == 0, capsys.readouterr().err
        out = capsys.readouterr().out
        match command.arguments[0]:
            case "info":
                found = json.loads(out)
                assert found["layout"] == KINDS[layout]
                assert found["tokenizer"] is not None
                assert found["config"] == layouts.SMALL.summary()
            case "generate":
                answers.append(out)
            case "chat":
                assert re.fullmatch(r".+\n.+\n", out, re.DOTALL)  # two answers: no prompts where nobody types
    for key in ("text", "tokens"):
        assert len({json.dumps(json.loads(answer)[key]) for answer in answers}) == 1
    assert len(json.loads(answers[0])["tokens"]) == 8
    assert len(set(json.loads(answers[0])["tokens"])) > 1
    # Written and read back in its own layout, each array has its bits and its dtype.
    to = "safetensors" if layout == "huggingface" else "orbax-flat"
    before, after = open_checkpoint(checkpoint).arrays, open_checkpoint(tmp_path / f"{layout}-{to}").arrays
    assert before.keys() == after.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(after[name].read_all(), array.read_all(), err_msg=name, strict=True)


@every_layout
def test_the_demo_loads_it(released: tuple[str, str]) -> None:
    _, checkpoint = released
    loader = rehearsal.load_as_demo(checkpoint, None, max_context=256)
    try:
        assert loader.status.phase == "ready", loader.status
        assert loader.model is not None
        assert loader.model.generate("Hello", max_new_tokens=2).text
    finally:
        loader.close()


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@pytest.mark.parametrize("against", ["gemma", "transformers"])
def test_verify(against: str, layout: str, root: Path) -> None:
    python = interpreter(against)
    path = layouts.place(layout, root, NAME)
    prompts = ["In the picture <start_of_image> there is a house"]
    report = verify(path, against, python=python, tokenizer=TOKENIZER, prompts=prompts, new_tokens=4)
    print(report.table())
    assert report.passed, report.table()
    assert report.converted == ((against == "gemma") == (layout == "huggingface"))
