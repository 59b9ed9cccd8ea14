"""gemma_tpu.checkpoint.maxtext_names, against what MaxText's own conversion makes of the same model."""

from __future__ import annotations

from pathlib import Path

import checkpoint_samples as samples
import ml_dtypes
import numpy as np
import pytest

from gemma_tpu.checkpoint import CheckpointError, open_checkpoint

GOLDENS = Path(__file__).parent / "goldens" / "maxtext.npz"


def golden(case: str) -> dict[str, np.ndarray]:
    with np.load(GOLDENS) as file:
        return {name.removeprefix(f"{case}/"): file[name] for name in file.files if name.startswith(f"{case}/")}


def save(path: Path, arrays: dict[str, np.ndarray], step: str = "0/items") -> Path:
    """As MaxText's checkpoint manager does: the variables below the train state's `params`, beside the optimizer's."""
    state = {"step": np.int32(0), "params": samples.nested_tree(arrays), "opt_state": {}}
    if "moments" in step:
        state["opt_state"] = {"mu": state["params"], "nu": state["params"]}
    (path / step).parent.mkdir(parents=True, exist_ok=True)
    samples.save_orbax(path / step, state)
    return path


def assert_equals(path: Path, case: str) -> None:
    config = samples.MAXTEXT[case]
    checkpoint = open_checkpoint(path, config=config)
    assert checkpoint.kind == "maxtext"
    expected = samples.sample(config, np.dtype(np.float32)).canonical
    assert checkpoint.arrays.keys() == expected.keys()
    for name, array in checkpoint.arrays.items():
        np.testing.assert_allclose(array.read_all(), expected[name], rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("case", samples.MAXTEXT)
def test_reads_what_maxtext_converts(case, tmp_path):
    assert_equals(save(tmp_path / "run", golden(case)), case)


def test_layers_may_be_stacked_along_the_first_axis(tmp_path):
    arrays = {
        name: np.moveaxis(array, 1, 0) if "/layers/" in name else array for name, array in golden("scanned").items()
    }
    assert_equals(save(tmp_path / "run", arrays), "scanned")


def test_all_layers_in_one_stack(tmp_path):
    """As standalone_scripts/convert_gemma3_chkpt.py writes them: no blocks of six, all layers on the second axis."""
    unscanned = golden("unscanned")
    layers = {name: array for name, array in unscanned.items() if "/layers_" in name}
    arrays = {name: array for name, array in unscanned.items() if name not in layers}
    for name in layers:
        if "/layers_0/" in name:
            of_all = [layers[name.replace("/layers_0/", f"/layers_{i}/")] for i in range(3)]
            arrays[name.replace("/layers_0/", "/layers/")] = np.stack(of_all, axis=1)
    assert_equals(save(tmp_path / "run", arrays), "unscanned")


def test_the_parameters_are_taken_rather_than_the_optimizers_moments(tmp_path):
    assert_equals(save(tmp_path / "run", golden("unscanned"), "7/moments"), "unscanned")


def test_bfloat16_norms_keep_what_one_plus_scale_holds(tmp_path):
    arrays = {name: array.astype(ml_dtypes.bfloat16) for name, array in golden("unscanned").items()}
    name = "params/decoder/decoder_norm/scale"
    arrays[name] = np.array([300, 0.0078125, 1, 2, 3, 4], ml_dtypes.bfloat16)
    checkpoint = open_checkpoint(save(tmp_path / "run", arrays), config=samples.MAXTEXT["unscanned"])
    # 299 and 0.0078125 - 1 are no bfloat16 numbers.
    np.testing.assert_array_equal(checkpoint.arrays["final_norm/scale"].read_all(), [299, -0.9921875, 0, 1, 2, 3])
    assert checkpoint.arrays["embedder/input_embedding"].dtype == ml_dtypes.bfloat16


def test_text_only(tmp_path):
    path = save(tmp_path / "run", golden("scanned"))
    checkpoint = open_checkpoint(path, config=samples.MAXTEXT["scanned"], text_only=True)
    assert checkpoint.config.vision is None
    assert not any("vision" in name for name in checkpoint.arrays)


def test_what_has_no_counterpart_is_named(tmp_path):
    arrays = golden("unscanned")
    arrays["params/decoder/logits_dense/kernel"] = np.zeros((6, 8), np.float32)
    arrays["params/decoder/layers_1/mlp/wi/kernel"] = arrays.pop("params/decoder/layers_1/mlp/wi_0/kernel")
    path = save(tmp_path / "run", arrays)
    with pytest.raises(CheckpointError) as failure:
        open_checkpoint(path, config=samples.MAXTEXT["unscanned"])
    assert str(failure.value) == (
        f"{path}/0/items: missing layer_1/mlp/gating_einsum; "
        "unexpected decoder/logits_dense/kernel, layer_1/mlp/wi/kernel, layer_1/mlp/wi_1/kernel"
    )
