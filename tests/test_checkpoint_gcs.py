"""Checkpoints at gs://, read through TensorStore from a stand-in for the service."""

from __future__ import annotations

import checkpoint_bucket
import checkpoint_samples as samples
import jax
import numpy as np
import pytest
from checkpoint_samples import CONFIGS

from gemma_tpu.checkpoint import CheckpointError, convert, load_params, open_checkpoint, read_file, resolve

SAMPLE = samples.sample(CONFIGS["grouped-8"])


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    root = tmp_path_factory.mktemp("bucket")
    samples.save_orbax(root / "checkpoints" / "flat", samples.flat_tree(SAMPLE.canonical))
    samples.save_orbax(root / "checkpoints" / "dirs", samples.nested_tree(SAMPLE.canonical), use_ocdbt=False)
    samples.save_hf(root / "hf", SAMPLE.hf, samples.hf_config(SAMPLE.config), shards=2)
    (root / "tokenizers").mkdir()
    (root / "tokenizers" / "tokenizer_gemma3.model").write_bytes(b"pieces")
    (root / "hf" / "tokenizer.model").write_bytes(b"pieces")
    with checkpoint_bucket.serve(root) as bucket:
        yield bucket


@pytest.fixture(autouse=True)
def endpoint(bucket, monkeypatch):
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", bucket.url)


@pytest.mark.parametrize(
    ("path", "kind"),
    [("checkpoints/flat", "orbax-flat"), ("checkpoints/dirs/", "orbax-nested"), ("hf", "safetensors")],
)
def test_a_checkpoint_in_a_bucket(path, kind):
    checkpoint = open_checkpoint(resolve(f"gs://gemma-data/{path}"), config=SAMPLE.config)
    assert (checkpoint.kind, checkpoint.path) == (kind, f"gs://gemma-data/{path}".rstrip("/"))
    assert checkpoint.tokenizer_path is not None
    assert read_file(checkpoint.tokenizer_path) == b"pieces"
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params = load_params(checkpoint, SAMPLE.config, dtype=samples.BF16, sharding=lambda *_: device, progress=False)
    for name, expected in SAMPLE.ours.items():
        np.testing.assert_array_equal(np.asarray(params[name]), expected, err_msg=name)


def test_arrays_are_read_by_ranges(bucket):
    checkpoint = open_checkpoint("gs://gemma-data/hf")
    bucket.requests.clear()
    part = checkpoint.arrays["layer_2/mlp/gating_einsum"].read((slice(1, 2), slice(3, 6), slice(0, 16)))
    np.testing.assert_array_equal(part[0], SAMPLE.hf["language_model.model.layers.2.mlp.up_proj.weight"][3:6])
    ((path, byte_range),) = bucket.requests
    assert "safetensors" in path
    first, last = map(int, byte_range.removeprefix("bytes=").split("-"))
    assert last - first + 1 == 3 * 16 * 2


def test_conversion_from_a_bucket(tmp_path):
    path = convert("gs://gemma-data/hf", tmp_path / "local", to="orbax-flat", progress=False)
    np.testing.assert_array_equal(
        open_checkpoint(path).arrays["layer_7/mlp/linear"].read_all(), SAMPLE.canonical["layer_7/mlp/linear"]
    )
    assert (path / "config.json").exists()


def test_what_is_not_there():
    with pytest.raises(
        CheckpointError,
        match=r"gs://gemma-data/checkpoints/none: no such file or directory, or you have no access to it",
    ):
        open_checkpoint("gs://gemma-data/checkpoints/none")


def test_no_access_and_no_network(bucket, monkeypatch):
    monkeypatch.setattr(bucket, "status", 403)
    with pytest.raises(CheckpointError, match=r"gs://gemma-data/.* access to"):
        open_checkpoint("gs://gemma-data/checkpoints/flat")
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match=r"gs://gemma-data/.*is there a network"):
        open_checkpoint("gs://gemma-data/checkpoints/flat")
