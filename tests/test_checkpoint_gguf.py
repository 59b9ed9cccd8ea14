"""GGUF models: files of llama.cpp's own converter, and of every layout and fault that occurs, written with gguf."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import warnings
from pathlib import Path
from typing import Any

import checkpoint_samples as samples
import gguf
import gguf_files as files
import gguf_models as models
import numpy as np
import pytest
import safetensors.numpy
from gguf import GGMLQuantizationType as Type
from gguf_written import (
    CONFIG,
    ROWS,
    SAMPLE,
    TEXT_CONFIG,
    VOCABULARY,
    check_values,
    without_none,
    write_both,
    write_ollama,
    write_text,
    write_tower,
)

import gemma_tpu
from gemma_tpu.checkpoint import (
    CheckpointError,
    CheckpointWarning,
    checksums,
    convert,
    open_checkpoint,
    read_text_assets,
    sample_digests,
)
from gemma_tpu.checkpoint.hf_assets import CHAT_TEMPLATE
from gemma_tpu.cli.main import main
from gemma_tpu.config import CONFIGS, GemmaConfig, VisionConfig
from gemma_tpu.text import FUNCTION_GEMMA, GEMMA3

GOLDENS = Path(__file__).parent / "goldens" / "gguf"
pytestmark = pytest.mark.filterwarnings("error::gemma_tpu.checkpoint.CheckpointWarning")


@pytest.fixture
def both(tmp_path: Path) -> Path:
    return write_both(tmp_path)


def test_files_of_llama_cpp(tmp_path: Path) -> None:
    """tests/reference/make_gguf_goldens.py has the command that made them."""
    opened = open_checkpoint(GOLDENS)
    assert opened.config == CONFIG
    assert opened.block_types == {"Q8_0": 50, "F32": 59, "F16": 7}
    stored = {**files.tensors(SAMPLE.hf, vision=False), **files.tensors(SAMPLE.hf, vision=True)}
    quantised = {leaf.name: leaf for array in opened.arrays.values() for leaf in array.leaves()}
    assert quantised.keys() == stored.keys()
    for name, leaf in quantised.items():
        kind = Type[leaf.type]
        expected = stored[name]
        if name == "token_embd.weight":
            expected = expected[: CONFIG.vocab_size]
        expected = gguf.quants.dequantize(gguf.quants.quantize(expected, kind), kind)
        np.testing.assert_array_equal(leaf.read_all()[: len(expected)], expected, err_msg=name)
    check_values(opened, tolerance=0.01)
    assets = read_text_assets(opened)
    assert assets.format is GEMMA3
    tokenizer = assets.open_tokenizer()
    assert tokenizer is not None
    assert not assets.notes(tokenizer)
    assert assets.sampling_defaults(tokenizer)["top_k"] == 64
    for text, ids in json.loads((GOLDENS / "llama_cpp.json").read_text()).items():
        assert tokenizer.encode(text) == ids
    # What the converter writes is what `gguf_files` writes.
    ours = gguf.GGUFReader(write_text(tmp_path / "a.gguf"))
    theirs = gguf.GGUFReader(GOLDENS / "model-q8_0.gguf")
    for key, field in ours.fields.items():
        if key.startswith(("gemma3.", "tokenizer.")) and "eos_token" not in key:  # one of the two, by file
            assert field.contents() == theirs.fields[key].contents(), key
    assert [t.name for t in sorted(ours.tensors)] == [t.name for t in sorted(theirs.tensors)]


def test_the_same_probabilities_as_by_llama_cpp(both: Path) -> None:
    model = gemma_tpu.load(both, dtype="float32", max_context=256, max_rows=1, progress=False)
    theirs = np.load(GOLDENS / "llama_cpp.npz")
    for name, prompt in models.prompts().items():
        logits = np.asarray(model.logits([prompt], [[models.picture()]] if name == "image" else None))[0, -1]
        expected = theirs[name][: CONFIG.vocab_size]
        np.testing.assert_allclose(log_softmax(logits), log_softmax(expected), atol=5e-3)
    model.close()


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


KINDS = {"Q4_0": Type.Q4_0, "Q8_0": Type.Q8_0, "Q5_1": Type.Q5_1, "F16": Type.F16, "BF16": Type.BF16}


def mixed(name: str, array: np.ndarray) -> Type:
    """Types as in files made with an importance matrix: several, also of what is fused on reading."""
    if array.ndim != 2 or name.startswith(("v.", "mm.")):
        return Type.F16 if array.ndim == 2 and name != "v.position_embd.weight" else Type.F32
    if name == "token_embd.weight":
        return Type.F16
    if "ffn_up" in name or "attn_v" in name:
        return Type.Q4_1
    return Type.Q8_0 if name.startswith("blk.3") else Type.Q4_0


@pytest.mark.parametrize("kind", [*KINDS, "mixed"])
def test_logits_of_the_dequantised_weights(kind: str, tmp_path: Path) -> None:
    type_of = mixed if kind == "mixed" else files.all_of(KINDS[kind])
    source = tmp_path / "gguf"
    source.mkdir()
    write_text(source / "model.gguf", type_of)
    write_tower(source / "mmproj.gguf", type_of)
    hf = {}
    names = {**{n: n for n in SAMPLE.hf}}
    for name in names:
        vision = files.is_vision(name)
        ((stored, array),) = files.tensors({name: SAMPLE.hf[name]}, vision=vision).items()
        chosen = type_of(stored, array)
        array = gguf.quants.dequantize(gguf.quants.quantize(array, chosen), chosen).reshape(array.shape)
        shift = name.endswith("norm.weight") and not name.startswith("vision_tower.")
        hf[name] = array - np.float32(shift)
    samples.save_hf(tmp_path / "hf", hf, samples.hf_config(CONFIG))
    (tmp_path / "hf" / "tokenizer.model").write_bytes(models.TOKENIZER.read_bytes())
    prompt = [models.prompts()["image"]]
    logits = []
    for path in (source, tmp_path / "hf"):
        model = gemma_tpu.load(path, dtype="float32", max_context=256, max_rows=1, progress=False)
        logits.append(np.asarray(model.logits(prompt, [[models.picture()]])))
        model.close()
    np.testing.assert_array_equal(*logits)


def test_text_and_vision_as_they_were_written(both: Path) -> None:
    opened = open_checkpoint(both)
    check_values(opened)
    assert opened.tokenizer_path is None
    assert opened.nbytes == sum(a.size * 4 for a in SAMPLE.ours.values())
    check_values(open_checkpoint(both / "model.gguf"))
    check_values(open_checkpoint(both, text_only=True), TEXT_CONFIG)
    check_values(open_checkpoint(both / "model.gguf", text_only=True), TEXT_CONFIG)
    assert sample_digests(opened) == sample_digests(open_checkpoint(both / "model.gguf"))


def test_mlps_whose_matrices_have_each_others_names(tmp_path: Path) -> None:
    arrays = files.tensors(SAMPLE.hf, vision=True)
    swapped = {}
    for name, array in arrays.items():
        other = name.replace("ffn_up", "x").replace("ffn_down", "ffn_up").replace("x", "ffn_down")
        swapped[other if "ffn" in name else name] = array
    write_text(tmp_path / "model.gguf")
    files.write(tmp_path / "mmproj.gguf", swapped, files.vision_metadata(CONFIG), architecture="clip")
    check_values(open_checkpoint(tmp_path))


def test_a_file_of_ollama(tmp_path: Path) -> None:
    """It has any name, and says nothing of rotary angles: 8 for the sizes that have a tower."""
    path = write_ollama(tmp_path / "sha256-1299c11d")
    flat = dataclasses.replace(CONFIG, layers=tuple(dataclasses.replace(l, rope_scale=1.0) for l in CONFIG.layers))
    check_values(open_checkpoint(path), flat)
    check_values(open_checkpoint(path, text_only=True), dataclasses.replace(flat, vision=None))
    with pytest.raises(CheckpointError, match=r"sha256-1299c11d is a GGUF file by another name: give the path"):
        open_checkpoint(tmp_path)


def test_shards(both: Path) -> None:
    (both / "model.gguf").unlink()
    arrays, metadata = files.tensors(SAMPLE.hf, vision=False), files.text_metadata(CONFIG) | VOCABULARY
    files.write(both / "model.gguf", arrays, metadata, split_max_tensors=40)
    names = sorted(path.name for path in both.glob("model-*"))
    assert names == [f"model-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    check_values(open_checkpoint(both))
    for name in names:
        check_values(open_checkpoint(both / name))
    (both / names[1]).rename(both / "other")
    for path in (both, both / names[0], both / names[2]):
        with pytest.raises(CheckpointError, match=rf"{names[1]}: missing: the other shards of the model are there"):
            open_checkpoint(path)
    shutil.copy(both / names[2], both / names[1])
    with pytest.raises(CheckpointError, match=rf"{names[1]}: its content is that of shard 2, counted from 0, not 1"):
        open_checkpoint(both)
    (both / names[1]).unlink()
    (both / "other").rename(both / "alone.gguf")
    with pytest.raises(CheckpointError, match=r"alone.gguf: is one of 3 shards by its content and of 1 by its name"):
        open_checkpoint(both / "alone.gguf")


def test_a_head_of_its_own(both: Path) -> None:
    head = SAMPLE.hf["language_model.model.embed_tokens.weight"].astype(np.float32)
    write_text(both / "model.gguf", tensors={"output.weight": head})
    check_values(open_checkpoint(both))  # the same values: tied
    write_text(both / "model.gguf", tensors={"output.weight": head[::-1]})
    opened = open_checkpoint(both)
    assert not opened.config.tied_head
    found = opened.arrays["embedder/output_embedding"].read_all()
    np.testing.assert_array_equal(found, head[::-1][: CONFIG.vocab_size])
    write_text(both / "model.gguf", tensors={"output.weight": head, "token_embd.weight": None})
    check_values(open_checkpoint(both))


@pytest.mark.parametrize("rows", [CONFIG.vocab_size, CONFIG.vocab_size + 1, ROWS])
def test_tables_with_and_without_the_extra_rows(rows: int, both: Path) -> None:
    table = SAMPLE.hf["language_model.model.embed_tokens.weight"].astype(np.float32)[:rows]
    arrays = files.tensors(SAMPLE.hf, vision=False) | {"token_embd.weight": table}
    vocabulary = files.vocabulary(models.TOKENIZER.read_bytes(), rows, listed=False)
    files.write(both / "model.gguf", arrays, files.text_metadata(CONFIG) | vocabulary)
    check_values(open_checkpoint(both))
    check_values(open_checkpoint(both, config=CONFIG))


def test_rows_that_a_fine_tune_uses(both: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    tokens, types = list(VOCABULARY["tokenizer.ggml.tokens"]), list(VOCABULARY["tokenizer.ggml.token_type"])
    tokens[803], types[803] = "<tool>", 3
    metadata = files.text_metadata(CONFIG) | VOCABULARY
    metadata |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    files.write(both / "model.gguf", files.tensors(SAMPLE.hf, vision=False), metadata)
    opened = open_checkpoint(both)
    assert opened.config.vocab_size == ROWS
    tokenizer = read_text_assets(opened).open_tokenizer()
    assert tokenizer is not None
    assert tokenizer.encode("a<tool>", control=True)[-1] == 803
    again = open_checkpoint(convert(both, tmp_path_factory.mktemp("out") / "c", to="safetensors", progress=False))
    tokenizer = read_text_assets(again).open_tokenizer()
    assert tokenizer is not None
    assert tokenizer.encode("a<tool>", control=True)[-1] == 803


@pytest.mark.parametrize("to", ["safetensors", "orbax-flat"])
def test_converting(to: str, both: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    write_text(both / "model.gguf", files.all_of(Type.Q4_0))
    written = convert(both, tmp_path_factory.mktemp("out") / "c", to=to, progress=False)
    before, after = open_checkpoint(both), open_checkpoint(written)
    assert after.config == before.config
    for name, array in before.arrays.items():
        np.testing.assert_array_equal(array.read_all(), after.arrays[name].read_all())
    ours, theirs = (read_text_assets(opened) for opened in (before, after))
    assert theirs.chat_template is not None
    assert theirs.chat_template[0] == CHAT_TEMPLATE
    a, b = ours.open_tokenizer(), theirs.open_tokenizer()
    assert a is not None
    assert b is not None
    assert [a.encode(text) for text in models.TEXTS] == [b.encode(text) for text in models.TEXTS]
    assert ours.sampling_defaults(a) == theirs.sampling_defaults(b)


def test_files_beside_it_come_first(both: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (both / "tokenizer.model").write_bytes(models.TOKENIZER.read_bytes())
    (both / "chat_template.jinja").write_text("<start_function_declaration>")
    (both / "generation_config.json").write_text('{"eos_token_id": [1], "do_sample": true, "top_k": 3}')
    assets = read_text_assets(opened := open_checkpoint(both))
    assert opened.tokenizer_path == str(both / "tokenizer.model")
    assert assets.format is FUNCTION_GEMMA
    tokenizer = assets.open_tokenizer()
    assert tokenizer is not None
    assert tokenizer.name == opened.tokenizer_path
    assert assets.sampling_defaults(tokenizer)["top_k"] == 3
    written = convert(both, tmp_path_factory.mktemp("out") / "c", to="safetensors", progress=False)
    assert (written / "chat_template.jinja").read_text() == "<start_function_declaration>"


def test_checksums(both: Path) -> None:
    """Of the files that are read, and not of another model's beside them."""
    write_text(both / "other.gguf", embedding_length=64)
    checksums.write(both)
    (both / "other.gguf").write_bytes((both / "other.gguf").read_bytes()[:-1] + b"x")
    options = {"max_context": 64, "max_rows": 1, "progress": False}
    opened = open_checkpoint(both / "model.gguf", verify=True)
    assert sorted(Path(file.path).name for file in opened.unverified) == ["mmproj-model.gguf", "model.gguf"]
    gemma_tpu.load(both / "model.gguf", **options).close()
    (both / "model.gguf").write_bytes((both / "model.gguf").read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match=rf"^{both}/model.gguf: changed or damaged: does not match the checksum"):
        gemma_tpu.load(both / "model.gguf", **options)


def test_a_template_of_a_relative(both: Path) -> None:
    template = "{% if x %}<start_function_declaration>{% endif %}"
    files.write(
        both / "model.gguf",
        files.tensors(SAMPLE.hf, vision=False),
        files.text_metadata(CONFIG) | VOCABULARY | {"tokenizer.chat_template": template},
    )
    assets = read_text_assets(open_checkpoint(both))
    assert assets.format is FUNCTION_GEMMA
    assert assets.chat_template == (template, str(both / "model.gguf"))


def test_info(both: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_text(both / "model.gguf", files.all_of(Type.Q4_0))
    assert main(["info", str(both / "model.gguf"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["layout"] == "gguf"
    assert found["types"] == {"Q4_0": 50, "F32": 66}
    assert found["tokenizer"] == found["chat_template"] == str(both / "model.gguf")
    assert found["bytes"] == open_checkpoint(both).nbytes < 4 * found["parameters"]
    assert main(["info", str(both)]) == 0
    assert "types              66 F32, 50 Q4_0\n" in capsys.readouterr().out


def config_of(tmp_path: Path, **changes: Any) -> GemmaConfig:
    write_text(tmp_path / "model.gguf", **changes)
    return open_checkpoint(tmp_path).config


def test_layers(tmp_path: Path) -> None:
    local, whole = TEXT_CONFIG.layers[0], TEXT_CONFIG.layers[5]
    assert config_of(tmp_path) == TEXT_CONFIG
    flat, slower = dataclasses.replace(whole, rope_scale=1.0), dataclasses.replace(local, rope_base=5e3)
    for changes, expected in (
        ({"attention.sliding_window_pattern": 2}, [local, whole, local, whole, local, whole, local]),
        ({"attention.sliding_window_pattern": [True, False] * 3 + [False]}, [local, whole] * 3 + [whole]),
        ({"attention.sliding_window": None}, [whole] * 7),
        ({"attention.sliding_window": 0}, [whole] * 7),
        ({"rope.scaling.type": None, "rope.scaling.factor": None}, [*[local] * 5, flat, local]),
        ({"rope.scaling.type": "none"}, [*[local] * 5, flat, local]),
        ({"rope.freq_base": 5e5}, [*[local] * 5, dataclasses.replace(whole, rope_base=5e5), local]),
        (
            {"rope.freq_base_swa": 5e3},
            [*[slower] * 5, whole, slower],
        ),
        (
            {"rope.local.freq_base": 5e3},
            [*[slower] * 5, whole, slower],
        ),
        ({"attention.head_count_kv": [1] * 7}, list(TEXT_CONFIG.layers)),
    ):
        assert config_of(tmp_path, **changes).layers == tuple(expected), changes


def released(size: str, tmp_path: Path, metadata: dict[str, Any], tower: dict[str, Any] | None) -> GemmaConfig:
    """The config that the metadata of a released size gives; its tensors are not written."""
    from gemma_tpu.checkpoint.gguf_config import read_config
    from gemma_tpu.checkpoint.gguf_file import GgufFile

    text = GgufFile("text", {"general.architecture": "gemma3"} | metadata, {})
    vision = None if tower is None else GgufFile("tower", {"general.architecture": "clip"} | tower, {})
    own = text if CONFIGS[size].vision and "gemma3.vision.block_count" in metadata else vision
    return read_config(text, own, CONFIGS[size].vocab_size)


@pytest.mark.parametrize("size", CONFIGS)
def test_released_sizes(size: str, tmp_path: Path) -> None:
    config = CONFIGS[size]
    tower = files.vision_metadata(config) if config.vision else None
    assert released(size, tmp_path, files.text_metadata(config), tower) == config
    if config.vision:  # Ollama's say nothing of rotary angles
        assert released(size, tmp_path, files.ollama_metadata(config), None) == config
    if size == "gemma3-1b":  # Ollama's first files
        assert released(size, tmp_path, files.text_metadata(config) | {"gemma3.final_logit_softcapping": 30.0}, None)


def test_a_text_of_a_size_that_has_a_tower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "model.gguf")
    assert open_checkpoint(tmp_path).config == TEXT_CONFIG
    monkeypatch.setitem(CONFIGS, "gemma3-4b", CONFIG)
    with pytest.warns(
        CheckpointWarning, match=r"model.gguf: of the size of gemma3-4b, whose vision tower is in a file"
    ):
        assert open_checkpoint(tmp_path).config == TEXT_CONFIG
    assert open_checkpoint(tmp_path, text_only=True).config == TEXT_CONFIG


def test_another_vision_tower(tmp_path: Path) -> None:
    vision = VisionConfig(width=64, depth=2, mlp_dim=96, num_heads=2, image_size=56, patch_size=14, num_soft_tokens=4)
    config = dataclasses.replace(CONFIG, vision=vision)
    sample = samples.sample(config)
    files.write(tmp_path / "a.gguf", files.tensors(sample.hf, vision=False), files.text_metadata(config) | VOCABULARY)
    tower = files.vision_metadata(config)
    assert tower["clip.vision.projector.scale_factor"] == 2
    files.write(tmp_path / "b.gguf", files.tensors(sample.hf, vision=True), tower, architecture="clip")
    assert open_checkpoint(tmp_path).config == config


VALUES = [-1, 0, 3, 2**31, 2**63, 0.5, math.nan, True, False, "", "x", [1, 2], [0.5], [True], ["a"], [], None]


def test_values_of_another_type(both: Path) -> None:
    """Whatever the metadata has: what is opened can be used, all else is an error that names a file."""
    metadata = {
        "text": files.text_metadata(CONFIG) | VOCABULARY | {"general.sampling.top_k": 3, "general.type": "model"},
        "tower": files.vision_metadata(CONFIG),
    }
    more = ("split.count", "split.no", "general.alignment", "tokenizer.ggml.eot_token_id", "general.sampling.temp")
    keys = [(kind, key) for kind, values in metadata.items() for key in values]
    keys += [("text", key) for key in more] + [("tower", "clip.vision.projector.scale_factor")]
    arrays = {"text": files.tensors(SAMPLE.hf, vision=False), "tower": files.tensors(SAMPLE.hf, vision=True)}
    paths = {"text": both / "model.gguf", "tower": both / "mmproj-model.gguf"}
    rng = np.random.default_rng(0)
    warnings.simplefilter("ignore", CheckpointWarning)
    for kind, key in keys:
        for index in rng.choice(len(VALUES), 4, replace=False):
            value = VALUES[index]
            changed = without_none(metadata[kind] | {key: value})
            architecture = "clip" if kind == "tower" else "gemma3"
            files.write(paths[kind], arrays[kind], changed, architecture=architecture)
            try:
                assets = read_text_assets(open_checkpoint(both))
                tokenizer = assets.open_tokenizer()
                assets.sampling_defaults(tokenizer)
                assets.notes(tokenizer)
            except CheckpointError as error:
                assert str(both) in str(error), (key, value)  # noqa: PT017 - it may be raised or not
            except Exception as error:
                raise AssertionError((key, value)) from error
        files.write(paths[kind], arrays[kind], metadata[kind], architecture="clip" if kind == "tower" else "gemma3")


def test_the_demo_model_as_a_file_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole way, by the command line: weights in Q8_0, tokenizer and template in the file."""
    demo = Path(__file__).parents[1] / "checkpoints" / "gemma3-demo"
    opened = open_checkpoint(demo)
    hf = safetensors.numpy.load_file(
        convert(demo, tmp_path / "hf", to="safetensors", progress=False) / "model.safetensors"
    )
    vocabulary = files.vocabulary((demo / "tokenizer.model").read_bytes(), opened.config.vocab_size + 64, listed=True)
    metadata = files.text_metadata(opened.config) | vocabulary | {"tokenizer.chat_template": CHAT_TEMPLATE}
    path = files.write(tmp_path / "demo.gguf", files.tensors(hf, vision=False), metadata, files.all_of(Type.Q8_0))
    tower = files.tensors(hf, vision=True)
    files.write(tmp_path / "mmproj.gguf", tower, files.vision_metadata(opened.config), architecture="clip")
    answers = []
    for source in (demo, path):
        assert main(["generate", str(source), "What is 12 + 30?", "--max-new-tokens", "16", "--max-context", "64"]) == 0
        answers.append(capsys.readouterr().out)
    assert "42" in answers[0]
    assert answers[1] == answers[0]
