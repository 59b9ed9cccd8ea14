from __future__ import annotations

import pytest

from gemma_tpu.plan.chips import CHIPS, parse_slice, slices


@pytest.mark.parametrize(
    ("text", "topology", "chips", "name"),
    [
        ("v5e:2x4", "v5e:2x4", 8, "v5e-8"),
        ("v5e-8", "v5e:2x4", 8, "v5e-8"),
        ("v5e-1", "v5e:1x1", 1, "v5e-1"),
        ("v4-8", "v4:2x2x1", 4, "v4-8"),  # cores, two a chip
        ("v5p-8", "v5p:2x2x1", 4, "v5p-8"),
        ("v6e:4x4", "v6e:4x4", 16, "v6e-16"),
    ],
)
def test_a_slice_has_a_topology_and_a_name(text: str, topology: str, chips: int, name: str) -> None:
    where = parse_slice(text)
    assert (where.topology, where.num_chips, where.name) == (topology, chips, name)


@pytest.mark.parametrize(
    "text",
    [
        *("v9:2x2", "v5e-3", "v5e", "v5e:2x2x2", "v4:2x2", "v5e:0x4", "v5e:2xq", "", "v5e-64:1x1", "v4-8:2x2x1"),
        *("v5e:²x2", "v5e:٢x2", "v5e:02x2", f"v5e:{'1' * 5000}x1", "v5e:2x2x", "v5e: 2x2", " v5e-8"),
    ],
)
def test_what_is_no_slice_is_an_error_that_names_it(text: str) -> None:
    with pytest.raises(ValueError, match=rf"^'?{text}.*(the chips known are|neither a topology|is written like)"):
        parse_slice(text)


def test_tables_agree_with_themselves() -> None:
    for chip in CHIPS.values():
        for count, where in zip(sorted(chip.sizes), slices(chip), strict=True):
            assert where.num_chips == count
        # The matrix units' size, from the peak and the clock, is a whole number of 128 × 128 units.
        units = chip.flops / chip.clock / chip.cores / (2 * 128 * 128)
        assert abs(units - round(units)) < 0.03, chip
