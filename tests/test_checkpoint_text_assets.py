"""What the files beside the weights say: what is followed of them, what is said, what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import checkpoint_samples as samples
import numpy as np
import pytest
from checkpoint_samples import VISION
from tokenizer_files import renamed, tokenizer_json

from gemma_tpu.checkpoint import CheckpointError, TextAssets, convert, open_checkpoint, read_text_assets
from gemma_tpu.options import SamplingParams
from gemma_tpu.text import GEMMA3, Tokenizer

MODEL = (Path(__file__).parent / "goldens" / "text" / "tokenizer.model").read_bytes()
SMALL = Tokenizer(MODEL)
CONFIG = dataclasses.replace(samples.small(layers=1), vocab_size=SMALL.vocab_size)
GEMMA = """{{ bos_token }}{% if messages[0].role == "system" %}{% set first = messages[0].content + "\\n\\n" %}
{%- set messages = messages[1:] %}{% else %}{% set first = "" %}{% endif %}
{%- for message in messages -%}
<start_of_turn>{{ "model" if message.role == "assistant" else message.role }}
{{ first if loop.first }}{% if message.content is string %}{{ message.content | trim }}{% else %}
{%- for part in message.content %}{{ "<start_of_image>" if part.type == "image" else part.text | trim }}{% endfor %}
{%- endif %}<end_of_turn>{{ "\\n" }}{% endfor %}
{%- if add_generation_prompt %}<start_of_turn>model{{ "\\n" }}{% endif %}"""
CHATML = """{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}<|im_start|>assistant
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    sample = samples.sample(CONFIG)
    return samples.save_hf(tmp_path_factory.mktemp("weights") / "hf", sample.hf, samples.hf_config(CONFIG))


@pytest.fixture
def place(weights: Path, tmp_path: Path) -> Path:
    """A checkpoint without anything beside its config.json, for a test to put files into."""
    path = tmp_path / "checkpoint"
    path.mkdir()
    for file in weights.iterdir():
        (path / file.name).symlink_to(file)
    return path


def write(place: Path, **files: object) -> TextAssets:
    """Files by name with "__" for a dot; what is neither text nor bytes is written as JSON."""
    for name, content in files.items():
        path = place / name.replace("__", ".")
        path.unlink(missing_ok=True)
        if not isinstance(content, bytes):
            content = (content if isinstance(content, str) else json.dumps(content)).encode()
        path.write_bytes(content)
    return read_text_assets(open_checkpoint(place))


def config(**changes: object) -> dict:
    raw = samples.hf_config(CONFIG) | changes
    raw["text_config"] = raw["text_config"] | {key: changes[key] for key in changes if key == "vocab_size"}
    return raw


def test_nothing_beside_the_weights(place: Path) -> None:
    assets = write(place)
    assert assets.open_tokenizer() is None
    assert (assets.sampling_defaults(None), assets.notes(None)) == ({}, [])


@pytest.mark.parametrize("file", ["tokenizer__model", "tokenizer__json"])
def test_either_tokenizer_file(place: Path, file: str) -> None:
    assets = write(place, **{file: MODEL if file.endswith("model") else tokenizer_json(MODEL)})
    tokenizer = assets.open_tokenizer()
    assert tokenizer is not None
    assert tokenizer.name == str(place / file.replace("__", "."))
    assert tokenizer.encode("the red circle") == SMALL.encode("the red circle")
    assert assets.notes(tokenizer) == []


def test_a_pointer_in_place_of_a_tokenizer_json_is_named_beside_a_sentencepiece_model_too(place: Path) -> None:
    """Its added tokens would be missing, and a conversion would copy it."""
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:1299c11d\nsize 33384568\n"
    with pytest.raises(CheckpointError, match=rf"^{place}/tokenizer\.json: is a Git LFS pointer"):
        write(place, tokenizer__model=MODEL, tokenizer__json=pointer)


def test_a_sentencepiece_model_comes_before_a_tokenizer_json(place: Path) -> None:
    assets = write(place, tokenizer__model=MODEL, tokenizer__json=tokenizer_json(MODEL))
    assert assets.tokenizer_path == str(place / "tokenizer.model")


def test_a_tokenizer_that_cannot_be_read_is_named(place: Path) -> None:
    for name, content in (("tokenizer__json", b'{"model": {"type": "Newer"}}'), ("tokenizer__model", b"\0\1junk")):
        assets = write(place, **{name: content})
        with pytest.raises(CheckpointError, match=str(place / name.replace("__", r"\."))):
            assets.open_tokenizer()


# Added tokens.

TWO = {"<think>": 800, "<|call|>": 801}


@pytest.mark.parametrize(
    "files",
    [
        {"added_tokens__json": TWO, "special_tokens_map__json": {"additional_special_tokens": ["<|call|>"]}},
        {"added_tokens__json": TWO, "tokenizer_config__json": {"extra_special_tokens": {"call_token": "<|call|>"}}},
        {
            "added_tokens__json": {"<stale>": 800},
            "tokenizer_config__json": {
                "added_tokens_decoder": {
                    "800": {"content": "<think>", "special": False},
                    "801": {"content": "<|call|>", "special": True},
                }
            },
        },
        {"tokenizer__json": tokenizer_json(MODEL, [("<think>", False), ("<|call|>", True)])},
    ],
    ids=["added_tokens", "extra_special", "tokenizer_config", "tokenizer_json"],
)
@pytest.mark.parametrize("model", [True, False], ids=["with a model", "without"])
def test_added_tokens_wherever_they_stand(tmp_path: Path, files: dict, model: bool) -> None:
    if not model and "tokenizer__json" not in files:
        files = files | {"tokenizer__json": tokenizer_json(MODEL)}
    config = dataclasses.replace(CONFIG, vocab_size=802, vision=None)
    place = samples.save_hf(tmp_path / "hf", samples.sample(config).hf, samples.hf_config(config))
    assets = write(place, **files, **({"tokenizer__model": MODEL} if model else {}))
    tokenizer = assets.open_tokenizer()
    assert tokenizer is not None
    assert (tokenizer.vocab_size, tokenizer.id("<think>"), tokenizer.id("<|call|>")) == (802, 800, 801)
    assert (800 in tokenizer.special_ids, 801 in tokenizer.special_ids) == (False, True)
    assert assets.notes(tokenizer) == []


def test_added_tokens_in_the_rows_behind_a_multimodal_vocabulary(place: Path, tmp_path: Path) -> None:
    """Hugging Face's tables have 64 rows more, the first for the soft tokens' stand-in; a fine-tune uses the next."""
    added = {"<image_soft_token>": 800, "<think>": 801}
    assert write(place, tokenizer__model=MODEL, added_tokens__json={"<image_soft_token>": 800}).config == CONFIG
    assets = write(place, added_tokens__json=added)
    assert assets.config == dataclasses.replace(CONFIG, vocab_size=864)
    tokenizer = assets.open_tokenizer()
    assert tokenizer is not None
    assert tokenizer.encode("<think>") == [801]
    assert not tokenizer.has_piece(800)
    stored = samples.sample(CONFIG).hf["language_model.model.embed_tokens.weight"]
    again = convert(convert(place, tmp_path / "orbax", to="orbax", progress=False), tmp_path / "hf", to="safetensors")
    for path in (place, tmp_path / "orbax", again):
        table = open_checkpoint(path).arrays["embedder/input_embedding"]
        np.testing.assert_array_equal(table.read((slice(0, 864), slice(0, CONFIG.embed_dim))), stored)
    assert read_text_assets(open_checkpoint(again)).open_tokenizer().encode("<think>") == [801]


def test_added_tokens_behind_the_table_are_refused(place: Path) -> None:
    for far in (900, 10**12):
        assets = write(place, tokenizer__model=MODEL, added_tokens__json={"<far>": far})
        with pytest.raises(CheckpointError, match=f"token '<far>' with id {far}, but the .* has 800 rows: not a pair"):
            assets.open_tokenizer()
    more = dataclasses.replace(assets, config=dataclasses.replace(CONFIG, vocab_size=700), added_tokens=())
    with pytest.raises(CheckpointError, match="the tokenizer has 800 pieces, the model 700: not a pair"):
        more.open_tokenizer()


def test_an_added_token_in_the_place_of_a_word_is_said(place: Path) -> None:
    word, reserved = SMALL.id("▁the"), SMALL.id("<unused1>")
    assets = write(place, tokenizer__model=MODEL, added_tokens__json={"<think>": word, "<plan>": reserved})
    tokenizer = assets.open_tokenizer()
    (note,) = assets.notes(tokenizer)
    assert note.endswith(f"the added token '<think>' takes the place of the piece '▁the', id {word}")


def test_a_table_with_more_rows_than_pieces_is_said(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, vocab_size=816, vision=None)
    place = samples.save_hf(tmp_path / "hf", samples.sample(config).hf, samples.hf_config(config))
    assets = write(place, tokenizer__model=MODEL)
    tokenizer = assets.open_tokenizer()
    assert tokenizer is not None
    (note,) = assets.notes(tokenizer)
    assert "16 of the 816 rows of the embedding table have no piece" in note
    assert tokenizer.ids_without_piece(816) == list(range(800, 816))


@pytest.mark.parametrize(
    "files",
    [
        {"added_tokens__json": {"<x>": "800"}},
        {"added_tokens__json": {"<x>": -1}},
        {"added_tokens__json": [1]},
        {"tokenizer_config__json": {"added_tokens_decoder": {"x": {}}}},
        {"tokenizer_config__json": b"<html>"},
        {"tokenizer__json": b'{"added_tokens": ['},
    ],
)
def test_damaged_files_are_named(place: Path, files: dict) -> None:
    (name,) = files
    with pytest.raises(CheckpointError, match=str(place / name.replace("__", r"\."))):
        write(place, **files)


# Special ids.


def test_special_ids_of_the_config(place: Path) -> None:
    end = SMALL.end_of_image
    assert end is not None
    variant = renamed(MODEL, {end: "<unused99>"})
    tokenizer = write(place, tokenizer__model=variant).open_tokenizer()
    assert tokenizer is not None
    assert tokenizer.end_of_image is None
    assets = write(place, config__json=config(eoi_token_index=end))
    tokenizer = assets.open_tokenizer()
    assert tokenizer is not None
    assert tokenizer.end_of_image == end
    assert assets.notes(tokenizer) == []


def test_special_ids_of_the_tokenizers_own_files(place: Path) -> None:
    end = SMALL.end_of_image
    settings = {"added_tokens_decoder": {str(end): {"content": "<end_of_image>", "special": True}}}
    variant = renamed(MODEL, {end: "<unused99>"})
    tokenizer = write(place, tokenizer__model=variant, tokenizer_config__json=settings).open_tokenizer()
    assert tokenizer is not None
    assert tokenizer.end_of_image == end


def test_a_config_that_takes_a_word_for_a_special_token_is_not_believed(place: Path) -> None:
    word = SMALL.id("▁the")
    assets = write(place, tokenizer__model=MODEL, config__json=config(boi_token_index=word))
    tokenizer = assets.open_tokenizer()
    assert tokenizer is not None
    assert tokenizer.start_of_image == SMALL.start_of_image
    (note,) = assets.notes(tokenizer)
    assert note == (
        f"{place / 'tokenizer.model'}: config.json has id {word} for <start_of_image>, "
        f"but the piece of {word} is '▁the'; <start_of_image> is {SMALL.start_of_image}"
    )


# GenerationConfig.

ENDS = sorted([SMALL.eos_id, SMALL.end_of_turn])


@pytest.mark.parametrize(
    ("said", "options"),
    [
        # As Google's it models have it.
        (
            {"do_sample": True, "top_k": 64, "top_p": 0.95, "eos_token_id": ENDS, "cache_implementation": "hybrid"},
            {"temperature": 1.0, "top_k": 64, "top_p": 0.95, "min_p": 0.0, "stop_tokens": ENDS},
        ),
        ({"do_sample": True}, {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0}),
        (
            {"do_sample": True, "temperature": 0.7, "top_p": None, "min_p": 0.1, "max_length": 512},
            {"temperature": 0.7, "top_k": 50, "top_p": 1.0, "min_p": 0.1},
        ),
        ({"do_sample": False, "temperature": 0.7, "top_k": 20}, {"temperature": 0.0, "top_k": 20}),
        ({"temperature": 0.7}, {"temperature": 0.0}),
        ({"eos_token_id": 1}, {"temperature": 0.0, "stop_tokens": ENDS}),
        ({"eos_token_id": [1, 20]}, {"temperature": 0.0, "stop_tokens": sorted([*ENDS, 20])}),
        (
            {"max_new_tokens": 77, "suppress_tokens": [5, 9], "stop_strings": ["\n\n"]},
            {"temperature": 0.0, "max_new_tokens": 77, "forbidden_tokens": [5, 9], "stop": ["\n\n"]},
        ),
        (
            {"repetition_penalty": 1.1, "bad_words_ids": [[5, 6], [7], [10**6]]},
            {"temperature": 0.0, "repetition_penalty": 1.1, "bad_words": [(5, 6), (7,)]},
        ),
        ({"bad_words_ids": [], "begin_suppress_tokens": []}, {"temperature": 0.0}),
    ],
)
def test_generation_config_is_the_default(place: Path, said: dict, options: dict) -> None:
    assets = write(place, tokenizer__model=MODEL, generation_config__json=said)
    tokenizer = assets.open_tokenizer()
    assert assets.sampling_defaults(tokenizer) == options
    assert not [note for note in assets.notes(tokenizer) if "not followed" in note]


def test_the_ends_of_a_config_count_where_there_is_no_generation_config(place: Path) -> None:
    assets = write(place, tokenizer__model=MODEL, config__json=config(eos_token_id=[1, SMALL.id("<unused0>")]))
    tokenizer = assets.open_tokenizer()
    assert assets.sampling_defaults(tokenizer) == {"stop_tokens": sorted([*ENDS, SMALL.id("<unused0>")])}
    assert assets.notes(tokenizer) == []
    assets = write(place, generation_config__json={"top_k": 5})
    assert "stop_tokens" not in assets.sampling_defaults(tokenizer)


def test_what_is_not_followed_is_said(place: Path) -> None:
    word = SMALL.id("▁red")
    said = {"min_new_tokens": 5, "num_beams": 4, "bad_words_ids": [[*range(9)]], "typical_p": 1.0, "length_penalty": 2}
    said |= {
        "begin_suppress_tokens": [3],
        "no_repeat_ngram_size": 0,
        "token_healing": True,
        "eos_token_id": [1, word, 5000],
    }
    assets = write(place, tokenizer__model=MODEL, generation_config__json=said)
    tokenizer = assets.open_tokenizer()
    file = place / "generation_config.json"
    assert assets.notes(tokenizer) == [
        f"{file}: not followed: bad_words_ids [[0, 1, 2, 3, 4, 5, 6, 7, 8]], begin_suppress_tokens [3], "
        "min_new_tokens 5, num_beams 4, token_healing True",
        f"{file}: eos_token_id {word} is the piece '▁red': it ends an answer",
        f"{file}: eos_token_id 5000 has no piece in {place / 'tokenizer.model'}: it ends no answer",
    ]
    assert assets.sampling_defaults(tokenizer)["stop_tokens"] == sorted([*ENDS, word])


def test_stop_tokens_that_are_too_many_name_the_file(place: Path) -> None:
    assets = write(place, tokenizer__model=MODEL, generation_config__json={"eos_token_id": list(range(107, 127))})
    tokenizer = assets.open_tokenizer()
    assert SamplingParams(**assets.sampling_defaults(tokenizer)).stop_tokens == tuple(sorted([*ENDS, *range(107, 127)]))
    too_many = {"eos_token_id": list(range(107, 171))}
    for name, content in (("generation_config", too_many), ("config", config(**too_many))):
        (place / "generation_config.json").unlink(missing_ok=True)
        assets = write(place, **{f"{name}__json": content})
        with pytest.raises(
            CheckpointError, match=rf"/{name}\.json: eos_token_id gives 66 stop tokens, .* at most 64: sh"
        ):
            assets.sampling_defaults(tokenizer)


@pytest.mark.parametrize("key", ["text_config", "vision_config"])
def test_a_part_of_a_config_that_is_no_object(place: Path, key: str, tmp_path: Path) -> None:
    """The architecture was given, so that nothing else has looked at the file."""
    (tmp_path / "config.json").write_text(json.dumps({key: []}))
    checkpoint = dataclasses.replace(open_checkpoint(place), directories=(str(tmp_path),))
    with pytest.raises(CheckpointError, match=rf"config\.json: {key} is \[\], not an object"):
        read_text_assets(checkpoint)


@pytest.mark.parametrize("said", [b"<html>", b"[1]", {"eos_token_id": "x"}, {"eos_token_id": [1, "x"]}])
def test_a_damaged_generation_config_is_named(place: Path, said: object) -> None:
    with pytest.raises(CheckpointError, match=r"generation_config\.json: "):
        write(place, generation_config__json=said)


# Chat templates.


@pytest.mark.parametrize(
    ("files", "file"),
    [
        ({"chat_template__jinja": CHATML}, "chat_template.jinja"),
        ({"chat_template__json": {"chat_template": CHATML}}, "chat_template.json"),
        ({"tokenizer_config__json": {"chat_template": CHATML}}, "tokenizer_config.json"),
        ({"chat_template__jinja": "{{ nonsense"}, "chat_template.jinja"),
        ({"chat_template__jinja": GEMMA.replace("| trim", "")}, "chat_template.jinja"),
        ({"chat_template__jinja": GEMMA.replace("<start_of_image>", "<img>")}, "chat_template.jinja"),
    ],
)
def test_a_template_of_another_format_is_said(place: Path, files: dict, file: str) -> None:
    assets = write(place, tokenizer__model=MODEL, **files)
    (note,) = assets.notes(assets.open_tokenizer())
    assert note.startswith(f"{place / file}: the chat template is not followed")


REFUSES = '{% if messages[0].role == "system" %}{{ raise_exception("no system role") }}{% endif %}'


@pytest.mark.parametrize(
    "template",
    [
        GEMMA,
        f"{REFUSES}{GEMMA}",
        GEMMA.replace("<end_of_turn>", "{% generation %}<end_of_turn>{% endgeneration %}"),
        f"{{% if tools %}}{{{{ tools | tojson(indent=2) }}}}{{% endif %}}{GEMMA}",
        f"{{% set today = strftime_now('%Y') %}}{GEMMA}",
    ],
)
def test_gemmas_own_format_however_it_is_spelled(place: Path, template: str) -> None:
    assets = write(place, tokenizer__model=MODEL, chat_template__jinja=template)
    tokenizer = assets.open_tokenizer()
    assert tokenizer is not None
    assert assets.format is GEMMA3
    assert assets.notes(tokenizer) == []


def test_a_template_for_text_is_enough_for_a_model_of_text(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, vision=None)
    place = samples.save_hf(tmp_path / "hf", samples.sample(config).hf, samples.hf_config(config))
    template = (
        "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ m.content | trim }}<end_of_turn>{{ '\\n' }}{% endfor %}<start_of_turn>model{{ '\\n' }}"
    )
    assets = write(place, tokenizer__model=MODEL, chat_template__jinja=f"{REFUSES}{template}")
    assert assets.notes(assets.open_tokenizer()) == []
    other = dataclasses.replace(assets, config=dataclasses.replace(config, vision=VISION))
    assert len(other.notes(other.open_tokenizer())) == 1
