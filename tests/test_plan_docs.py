"""docs/tpu.md: whole, and true of today's weights, caches and meshes, as far as that can be told without compiling."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("libtpu", reason="the TPU compiler, which exists for Linux on x86-64 alone")

from docs import tpu
from gemma_tpu.config import CONFIGS
from gemma_tpu.plan.chips import GIB, parse_slice
from gemma_tpu.plan.compiled import deploy
from gemma_tpu.plan.search import mesh_shapes

PAGE = (Path(__file__).parent.parent / "docs" / "tpu.md").read_text()


def _rows() -> dict[tuple[str, str, str], list[str]]:
    """(model, dtype, slice) → cells."""
    found = {}
    for section in PAGE.split("\n## ")[1:]:
        title, *lines = section.splitlines()
        for line in lines:
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if cells[0] in tpu.SLICES:
                found[*title.split(", "), cells[0]] = cells
    return found


def test_every_size_stands_on_every_slice() -> None:
    assert list(_rows()) == list(itertools.product(CONFIGS, tpu.DTYPES, tpu.SLICES))


@pytest.mark.parametrize("dtype", tpu.DTYPES)
@pytest.mark.parametrize("model", CONFIGS)
def test_memory_is_at_least_what_stays_on_a_chip(model: str, dtype: str) -> None:
    for name in tpu.SLICES:
        _, mesh, memory, decode, prefill = _rows()[model, dtype, name]
        where = parse_slice(name)
        shapes = [tuple(map(int, mesh.split("×")))] if mesh else mesh_shapes(where.num_chips, tpu.ROWS)
        stays = min(
            deploy(CONFIGS[model], where, shape, tpu.ROWS, tpu.CONTEXT, dtype).deployment.memory.resident
            for shape in shapes
        )
        shown, capacity = (float(number) for number in re.findall(r"\d+\.\d", memory))
        assert capacity == pytest.approx(where.chip.hbm / GIB, abs=0.06)
        assert stays / GIB - 0.06 < shown < stays / GIB + 5, name
        if "does not fit" in memory:
            assert shown > capacity - 0.06
        else:
            assert shown <= capacity
            assert decode
            assert prefill


def test_a_plan_is_made_in_a_process_of_its_own() -> None:
    """Of a model that no chip of that size holds, so that nothing is compiled."""
    ((key, row),) = tpu.make_all([("gemma3-27b", "float32", "v5e-1")], jobs=1)
    assert key == ("gemma3-27b", "float32", "v5e-1")
    assert not row["fits"]
    assert row["total"] > 27e9 * 4


def test_finished_plans_are_not_made_again(tmp_path: Path, monkeypatch, capsys) -> None:
    plans, made = tmp_path / "plans.jsonl", []

    def make_all(keys: list[tpu.Key], jobs: int) -> Iterator[tuple[tpu.Key, dict]]:
        for key in keys:
            made.append(key)
            if len(made) == 5:
                raise KeyboardInterrupt
            yield key, {"fits": False, "total": 20 * GIB, "capacity": 16 * GIB}

    monkeypatch.setattr(tpu, "make_all", make_all)
    monkeypatch.setattr("sys.argv", ["tpu", str(plans)])
    with pytest.raises(KeyboardInterrupt):
        tpu.main()
    assert capsys.readouterr().out == ""  # half a page is none
    assert tpu.main() == 0
    keys = list(itertools.product(CONFIGS, tpu.DTYPES, tpu.SLICES))
    assert made == [*keys[:5], *keys[4:]]
    assert capsys.readouterr().out.count("**does not fit**: at least 20.0 of 16.0 GiB") == len(keys)
