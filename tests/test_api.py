"""The public API on a small random model: prompts of every form, streams, chats, batches, meshes, errors."""

from __future__ import annotations

import dataclasses
import functools
import gc
import json
import threading
from pathlib import Path

import format_samples
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from jax.sharding import Mesh
from small_models import TEXT, VISION, gated, make_deployment, mesh_of, random_params

import gemma_tpu
from gemma_tpu.checkpoint import CheckpointError, CheckpointWarning, save_params
from gemma_tpu.engine.forward import encode_images, forward
from gemma_tpu.engine.request import Request
from gemma_tpu.prompts import Reading
from gemma_tpu.sharding import param_sharding
from gemma_tpu.text import FUNCTION_GEMMA

TOKENIZER = gemma_tpu.Tokenizer(Path(__file__).parent / "goldens" / "text" / "tokenizer.model")
CONFIG = dataclasses.replace(TEXT, vocab_size=TOKENIZER.vocab_size, vision=VISION)
PICTURE = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8))
OTHER = PIL.Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))
QUESTION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": "What is it?"}]},
]
PROMPTS = ["Hello", QUESTION, TOKENIZER.encode("some tokens", bos=True)]
DEVICES = np.array(jax.devices()).reshape(4, 2)
FREE = {"max_new_tokens": 12, "stop_tokens": ()}


def make_model(data: int = 1, model: int = 1, **options) -> gemma_tpu.Model:
    mesh = mesh_of(data, model)
    params = {
        name: jax.device_put(value, param_sharding(name, value.shape, mesh))
        for name, value in random_params(CONFIG).items()
    }
    return gemma_tpu.Model(make_deployment(CONFIG, mesh, **{"max_rows": 4} | options), params, TOKENIZER)


@pytest.fixture(scope="module")
def model():
    with make_model() as model:
        yield model


@functools.cache
def _one_device() -> list[list[int]]:
    with make_model() as model:
        return [answer.tokens for answer in model.generate(PROMPTS, **FREE)]


@pytest.mark.parametrize("shape", [(1, 8), (2, 4), (8, 1)])
def test_a_mesh_gives_the_answers_of_one_device(shape: tuple[int, int]) -> None:
    with make_model(*shape) as model:
        assert [answer.tokens for answer in model.generate(PROMPTS, **FREE)] == _one_device()
        soft = model.encode_images([PICTURE])
    expected = encode_images(CONFIG, random_params(CONFIG), gemma_tpu.image.to_pixels(PICTURE, VISION.image_size)[None])
    np.testing.assert_allclose(soft, expected, atol=1e-5)


def test_a_batch_answers_each_prompt_as_alone(model: gemma_tpu.Model) -> None:
    batch = model.generate(PROMPTS, **FREE)
    alone = [model.generate(prompt, **FREE) for prompt in PROMPTS]
    assert [answer.tokens for answer in batch] == [answer.tokens for answer in alone] == _one_device()
    assert batch[1].usage.image_tokens == VISION.num_soft_tokens
    assert all(answer.finish_reason == "length" and len(answer.tokens) == 12 for answer in batch)
    assert [answer.text for answer in batch] == [TOKENIZER.decode(answer.tokens) for answer in batch]


def test_streams_are_the_answer_in_pieces(model: gemma_tpu.Model) -> None:
    stream = model.stream("Hello", **FREE)
    assert "".join(stream) == stream.completion.text == model.generate("Hello", **FREE).text
    assert stream.completion.timings.first_token > 0


def test_images_of_a_string_are_those_of_a_message(model: gemma_tpu.Model) -> None:
    black, red = (PIL.Image.new("RGB", (30, 50), colour) for colour in ("black", "red"))
    parts = [{"type": "image", "image": black}, {"type": "image", "image": red}, {"type": "text", "text": "Which?"}]
    as_message = model.generate([{"role": "user", "content": parts}], **FREE)
    assert model.generate("Which?", images=[black, red], **FREE).tokens == as_message.tokens
    assert model.generate("Which?", images=[red, black], **FREE).tokens != as_message.tokens


def test_an_image_alone_is_a_list_of_one(model: gemma_tpu.Model, tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "x.png")
    expected = model.generate("Which?", images=[PICTURE], **FREE).tokens
    for alone in (PICTURE, np.asarray(PICTURE), tmp_path / "x.png"):
        assert model.generate("Which?", images=alone, **FREE).tokens == expected
    assert model.chat(**FREE).send("Which?", images=str(tmp_path / "x.png")).tokens == expected
    path = {"type": "image", "path": str(tmp_path / "x.png")}  # as Hugging Face has it
    message = {"role": "user", "content": [path, {"type": "text", "text": "Which?"}]}
    assert model.generate(message, **FREE).tokens == expected
    np.testing.assert_array_equal(model.encode_images(PICTURE), model.encode_images([PICTURE]))
    tokens = np.array([[2, 70, TOKENIZER.start_of_image, 80]])
    np.testing.assert_array_equal(model.logits(tokens, PICTURE), model.logits(tokens, [[PICTURE]]))


def test_many_images_are_encoded_a_few_at_a_time(model: gemma_tpu.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other requests go on between the calls."""
    shades = [PIL.Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in range(0, 250, 28)]
    alone = [model.encode_images(shade)[0] for shade in shades]
    sizes, encode = [], model.engine.encode_images
    monkeypatch.setattr(model.engine, "encode_images", lambda images: sizes.append(len(images)) or encode(images))
    together = model.encode_images(shades)
    assert sizes == [4, 4, 1]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_the_engine_is_told_who_asks(model: gemma_tpu.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    clients, submit = [], model.engine.submit

    def noted(*args):
        request = submit(*args)
        clients.append(request.client)
        return request

    monkeypatch.setattr(model.engine, "submit", noted)
    model.stream("Hello", client="ada", **FREE).close()
    model.generate(["Hello", "you"], client=("charles", 1), n=2, **FREE)
    model.generate("Hello", **FREE)
    assert clients == ["ada", *[("charles", 1)] * 4, None]


def test_pan_and_scan_shows_crops_too(model: gemma_tpu.Model) -> None:
    wide = PICTURE.resize((600, 256))
    answer = model.generate("Which?", images=wide, pan_and_scan=True, **FREE)
    assert answer.usage.image_tokens == 3 * VISION.num_soft_tokens
    assert model.chat(pan_and_scan=True, **FREE).send("Which?", images=wide).tokens == answer.tokens


def test_a_cut_answer_goes_on(model: gemma_tpu.Model) -> None:
    chat = model.chat("Be brief.", **FREE)
    cut = chat.send("What is it?", images=PICTURE, max_new_tokens=5).text
    rest = chat.send(continue_final=True)
    open_ended = [*QUESTION, {"role": "assistant", "content": cut}]
    assert rest.tokens == model.generate(open_ended, continue_final=True, **FREE).tokens
    assert [message["role"] for message in chat.messages] == ["system", "user", "assistant"]
    assert chat.messages[-1]["content"] == cut + rest.text
    stream = chat.stream(continue_final=True)
    said = next(stream)
    stream.close()
    assert chat.messages[-1]["content"] == cut + rest.text + stream.completion.text
    assert stream.completion.text.startswith(said)
    with pytest.raises(ValueError, match="there is no answer to continue"):
        model.chat().send(continue_final=True)
    with pytest.raises(ValueError, match="takes neither text nor images"):
        chat.send("And?", continue_final=True)
    with pytest.raises(ValueError, match="nothing to answer"):
        chat.send()


def test_stop_strings_cut_the_answer(model: gemma_tpu.Model) -> None:
    text = model.generate("Hello", **FREE).text
    stop = text[len(text) // 2 :][:2]
    answer = model.generate("Hello", stop=[stop], **FREE)
    assert answer.text == text[: text.index(stop)]
    assert answer.finish_reason == "stop"


def test_a_chat_equals_the_whole_conversation(model: gemma_tpu.Model) -> None:
    chat = model.chat("Be brief.", **FREE)
    first = chat.send("What is it?", images=[PICTURE])
    second = chat.send("And now?", images=[OTHER])
    history = [
        *QUESTION,
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": [{"type": "image", "image": OTHER}, {"type": "text", "text": "And now?"}]},
    ]
    with make_model() as fresh:
        whole = fresh.generate(history, **FREE)
    assert whole.usage.cached_tokens == 0
    assert second.tokens == whole.tokens
    assert [message["role"] for message in chat.messages] == ["system", "user", "assistant", "user", "assistant"]


def test_a_chat_that_outgrows_the_context_drops_its_oldest_turns_when_asked_to(
    model: gemma_tpu.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict, chat = model.chat("Be brief.", **FREE), model.chat("Be brief.", drop_oldest=True, **FREE)
    for _ in range(4):
        strict.send("What is it?", images=[PICTURE])
    with pytest.raises(ValueError, match="max_context"):
        strict.send("a word " * 20)
    for turn in range(20):
        answer = chat.send(f"What is it, {turn}?", images=[PICTURE])
        assert answer.finish_reason == "length"
        assert len(answer.tokens) == 12  # there is always room for the answer
    kept = (len(chat.messages) - 1) // 2
    assert 0 < kept == 20 - chat.dropped_turns < 20
    assert chat.messages[0] == {"role": "system", "content": "Be brief."}
    assert chat.messages[-2]["content"][-1]["text"] == "What is it, 19?"
    dropped = chat.dropped_turns
    chat.stream("What is it, all in all?").close()  # before there is an answer: nothing has left the history
    assert (chat.dropped_turns, (len(chat.messages) - 1) // 2) == (dropped, kept)
    # So it is without a Chat, where the caller keeps the messages; what is too long then stays with him.
    messages = [*strict.messages, *chat.messages[1:-1]]
    stream = model.stream(messages, drop_oldest=True, **FREE)
    assert (len(list(stream)) > 0, stream.dropped_turns > 0) == (True, True)
    assert stream.completion.dropped_turns == stream.dropped_turns
    left = [messages[0], *messages[1 + 2 * stream.dropped_turns :]]
    assert stream.completion.tokens == model.generate(left, **FREE).tokens
    # The next answer is the one that a fresh conversation of what is left would get.
    after = chat.send("And now?")
    assert after.tokens == model.generate(chat.messages[:-1], **FREE).tokens
    unraisable: list[object] = []
    monkeypatch.setattr("sys.unraisablehook", unraisable.append)
    with pytest.raises(ValueError, match="max_context"):  # one turn that is too long for any context
        chat.send("a word " * 300)
    assert gc.collect() >= 0
    assert unraisable == []  # no half-made stream that fails once more when it is let go
    assert chat.messages[-2]["content"] == "And now?"


def test_a_chat_keeps_what_was_said_when_it_is_interrupted(model: gemma_tpu.Model) -> None:
    chat = model.chat(max_new_tokens=100, stop_tokens=())
    with gated(model.engine):
        stream = chat.stream("Hello")
        said = next(stream)
        stream.close()
    assert chat.messages[-1] == {"role": "assistant", "content": stream.completion.text}
    assert stream.completion.text.startswith(said)
    assert stream.completion.finish_reason == "cancelled"
    unheard = model.chat(**FREE)
    unheard.stream("Hello").close()
    assert unheard.messages == []


def test_after_a_stop_the_next_turn_is_read_from_the_cache(model: gemma_tpu.Model) -> None:
    """Digits are tokens of their own, so that this random model's answer is written in the tokens it came in."""
    (one,) = set(TOKENIZER.encode("1111")) - set(TOKENIZER.encode("a"))
    others = [token for token in range(TOKENIZER.vocab_size) if token != one]

    stream = gemma_tpu.TextStream
    for i, stop in enumerate((stream.close, stream.cancel, lambda one: threading.Thread(target=one.close).start())):
        chat = model.chat(max_new_tokens=100, stop_tokens=(), forbidden_tokens=others)
        with gated(model.engine):
            first = chat.stream("Hello")
            next(first)
            stop(first)
            first.finish()
        assert first.completion.finish_reason == "cancelled"
        assert first.completion.text == "1" * len(first.completion.tokens)
        assert len(first.completion.tokens) < 100
        usage = chat.send(f"And {i} now?", max_new_tokens=2).usage
        assert usage.cached_tokens == first.completion.usage.prompt_tokens + len(first.completion.tokens) - 1


def test_a_call_that_was_cut_goes_on_as_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = format_samples.function_gemma()
    written = iter(
        ["I look. <start_function_call>call:sky{city:<escape>Par", "is<escape>}<end_function_call>", "Blue."]
    )

    def submit(tokens: list[int], images: object, options: gemma_tpu.SamplingParams, *_: object) -> Request:
        request = Request(tokens, [], options)
        request.push(tokenizer.encode(next(written), control=True))
        request.finish("length")
        return request

    config = dataclasses.replace(CONFIG, vocab_size=tokenizer.vocab_size)
    params = random_params(config)
    with gemma_tpu.Model(make_deployment(config), params, tokenizer, format=FUNCTION_GEMMA) as model:
        monkeypatch.setattr(model.engine, "submit", submit)
        chat = model.chat()
        assert chat.send("What colour is the sky?").tool_calls == chat.calls == []
        (call,) = chat.send(continue_final=True).tool_calls
        assert call["function"] == {"name": "sky", "arguments": {"city": "Paris"}}
        assert chat.messages[1:] == [{"role": "assistant", "content": "I look. ", "tool_calls": [call]}]
        with pytest.raises(ValueError, match="given their responses"):
            chat.send(continue_final=True)
        assert chat.calls == [call]
        assert chat.respond([{"colour": "blue"}]).finish().text == "Blue."


def test_logits_are_those_of_the_plain_path(model: gemma_tpu.Model) -> None:
    soi, newline = TOKENIZER.start_of_image, TOKENIZER.double_newline
    tokens = np.array([[2, 70, soi, 80, 81], [2, 71, 72, 73, soi]])
    logits = model.logits(tokens, [[PICTURE], [OTHER]])
    assert logits.shape == (2, 5, CONFIG.vocab_size)
    assert logits.dtype == jnp.float32
    soft = model.encode_images([PICTURE, OTHER])
    block = [*newline, soi, *[gemma_tpu.config.SOFT_TOKEN] * VISION.num_soft_tokens, TOKENIZER.end_of_image, *newline]
    for row, image in ((0, soft[:1]), (1, soft[1:])):
        at = int(np.flatnonzero(tokens[row] == soi)[0])
        expanded = [*tokens[row, :at], *block, *tokens[row, at + 1 :]]
        plain = forward(CONFIG, random_params(CONFIG), np.array([expanded]), soft_tokens=image)[0]
        kept = [*range(at + 1), *range(at + len(block), len(expanded))]  # <start_of_image>: its block's first token
        np.testing.assert_allclose(logits[row], plain[np.array(kept)], atol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.generate("x", images=[b"not an image"]), "image"),
        (lambda m: m.generate("x", colour="red"), "unknown option colour; the options are max_new_tokens"),
        (lambda m: m.generate("<start_of_image>", raw=True), "1 <start_of_image> but 0 image"),
        (lambda m: m.generate([{"role": "wizard", "content": "x"}]), "wizard"),
        (lambda m: m.generate(["a", "b"], images=[PICTURE]), "images= goes with a single prompt"),
        (lambda m: m.generate("word " * 300), "shorten it, or load the model with a larger max_context"),
        (lambda m: m.generate(""), None),
        (lambda m: m.generate("x", temperature=-1), "temperature must be at least 0"),
        (lambda m: m.generate("x", max_new_tokens=0), "max_new_tokens must be at least 1"),
        (lambda m: m.generate([]), "prompt is empty"),
        (lambda m: m.generate("x", images="https://example.org/a.png"), "only where that is allowed"),
        (lambda m: m.logits(np.zeros((0, 3), int)), r"shape \[B, T\], got int64\[0, 3\]"),
        (lambda m: m.logits([[1, 2], [3]]), "these rows differ in length"),
        (lambda m: m.logits([[1, 2]], [[PICTURE], []]), "a list for each of the 1 rows, got 2"),
        (lambda m: m.logits(np.zeros((2, 3))), "tokens must be integers of shape"),
        (lambda m: m.logits(np.array([[TOKENIZER.start_of_image]])), "1 <start_of_image> in 1 rows, 0 images"),
        (lambda m: m.encode_images([]), "no images"),
    ],
)
def test_mistakes_are_named(model: gemma_tpu.Model, call, message: str | None) -> None:
    if message is None:  # an empty user message is odd but well-formed
        call(model)
        return
    with pytest.raises(ValueError, match=message):
        call(model)


def test_load(tmp_path: Path) -> None:
    """From disk, with the config and the tokenizer found beside the weights."""
    path = tmp_path / "checkpoint"
    tokenizer = (Path(__file__).parent / "goldens" / "text" / "tokenizer.model").read_bytes()
    save_params(random_params(CONFIG), CONFIG, path, tokenizer=tokenizer)
    with gemma_tpu.load(path, mesh=(1, 8), max_context=189, max_rows=2, progress=False) as model:
        assert model.config == CONFIG
        assert model.dtype == jnp.float32  # "auto" on a CPU
        assert model.generate(QUESTION, **FREE).tokens == _one_device()[1]
    for axes, shape in ((("data", "model"), (4, 2)), (("model", "data"), (2, 4))):
        mesh = Mesh(DEVICES, axes)
        with gemma_tpu.load(path, mesh=mesh, max_context=64, max_rows=4, progress=False) as model:
            assert (model.mesh.shape["data"], model.mesh.size // model.mesh.shape["data"]) == shape
            assert set(model.mesh.devices[0].flat) == set(mesh.devices.take(0, axis=axes.index("data")))
    with gemma_tpu.load(path, mesh=mesh_of(1, 1), text_only=True, max_context=64, progress=False) as model:
        assert model.config.vision is None
        with pytest.raises(ValueError, match="text"):
            model.generate("x", images=[PICTURE])
    for options, message in (
        ({"max_context": 10**6}, "max_context must be in"),
        ({"max_rows": 0}, "max_rows must be at least 1"),
        ({"mesh": (3, 2)}, "does not fit 8 devices"),
        ({"mesh": (8, 1), "max_rows": 4}, "max_rows 4 must be a multiple of the 8 copies"),
        ({"mesh": Mesh(DEVICES, ("data", "slots"))}, "axes must be named data and model, got"),
        ({"mesh": Mesh(DEVICES.reshape(8), ("model",))}, r"axes must be named data and model, got \('model',\)"),
        ({"mesh": Mesh(DEVICES[None], ("data", "model", "x"))}, "axes must be named data and model, got"),
        ({"dtype": "float16"}, "float16 overflows"),
    ):
        with pytest.raises(ValueError, match=message):
            gemma_tpu.load(path, progress=False, **options)
    with pytest.raises(ValueError, match="no such file or directory, and no name of a released model"):
        gemma_tpu.load("gemma9-1b")


def test_a_checkpoint_brings_its_defaults(tmp_path: Path) -> None:
    """generation_config.json, tokens behind the pieces, and a table with more rows than either names."""
    path = tmp_path / "checkpoint"
    config = dataclasses.replace(CONFIG, vocab_size=TOKENIZER.vocab_size + 16)
    tokenizer = (Path(__file__).parent / "goldens" / "text" / "tokenizer.model").read_bytes()
    save_params(random_params(config), config, path, tokenizer=tokenizer)
    said = {"do_sample": True, "top_k": 3, "max_new_tokens": 9, "eos_token_id": [1, 20], "num_beams": 2}
    (path / "added_tokens.json").write_text('{"<think>": 803}')
    (path / "generation_config.json").write_text('{"do_sample": true, "temperature": -1}')
    with pytest.raises(CheckpointError, match=r"generation_config\.json: temperature must be at least 0"):
        gemma_tpu.load(path, mesh=mesh_of(1, 1), progress=False)
    (path / "generation_config.json").write_text(json.dumps(said))
    with pytest.warns(CheckpointWarning) as said_once:
        model = gemma_tpu.load(path, mesh=mesh_of(1, 1), max_context=64, progress=False)
    assert [str(warning.message).split(": ", 1)[1].split(" of the")[0] for warning in said_once] == [
        "not followed: num_beams 2",
        "eos_token_id 20 is the piece '▁▁▁': it ends an answer",
        "15",
    ]
    with model:
        ends = sorted({1, 20, TOKENIZER.end_of_turn})
        assert dataclasses.asdict(model.defaults) == dataclasses.asdict(
            gemma_tpu.SamplingParams(max_new_tokens=9, temperature=1.0, top_k=3, top_p=1.0, stop_tokens=ends)
        )
        # A call's own options come first, and the rest stay; sampling is as if all had been given.
        answer = model.generate("Hello", seed=4, stop_tokens=())
        assert len(answer.tokens) == 9
        everything = {"max_new_tokens": 9, "temperature": 1.0, "top_k": 3, "top_p": 1.0, "stop_tokens": (), "seed": 4}
        assert model.generate("Hello", **everything).tokens == answer.tokens
        assert model.chat(max_new_tokens=2, stop_tokens=()).send("Hello").usage.completion_tokens == 2
        assert model.generate("Hello", temperature=0).tokens == model.generate("Hello", temperature=0, top_k=1).tokens


def test_rows_without_a_piece_are_never_written() -> None:
    """Most of this table has none: a model that writes what it likes would write one at once."""
    config = dataclasses.replace(CONFIG, vocab_size=TOKENIZER.vocab_size * 8)
    mesh = mesh_of(1, 1)
    params = {
        name: jax.device_put(value, param_sharding(name, value.shape, mesh))
        for name, value in random_params(config).items()
    }
    for tokenizer, inside in ((TOKENIZER, True), (None, False)):
        with gemma_tpu.Model(make_deployment(config), params, tokenizer) as model:
            _, (request,), _ = model._ask([2, 70, 71], None, Reading(), {**FREE, "temperature": 1}, False)
            tokens = [token for group in request for token in group]
            assert all(token < TOKENIZER.vocab_size for token in tokens) == inside
    message = r"put its tokenizer\.model or tokenizer\.json beside the weights"
    with gemma_tpu.Model(make_deployment(config), params, None) as model, pytest.raises(ValueError, match=message):
        model.generate("Hello")


def test_an_error_in_a_batch_names_the_prompt(model: gemma_tpu.Model) -> None:
    for prompt, message in (
        (["ok", "word " * 900], r"^prompt\[1\]: the prompt has \d+ tokens"),
        ([[{"role": "user", "content": "x"}], [{"role": "user"}]], r"^prompt\[1\]: messages\[0\]: lacks content"),
        (["ok", "a\ud800b"], r"^prompt\[1\]: the text has half a surrogate pair \('\\ud800'\)"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(prompt, **FREE)
    with pytest.raises(ValueError, match=r"^unknown option"):
        model.generate(["ok", "ok"], tempature=1)
