"""SamplingParams of a request, of any type that callers give."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import PIL.Image
import pytest

import gemma_tpu.engine.request as checked
import gemma_tpu.options
from gemma_tpu.engine.row_params import row_params
from gemma_tpu.engine.step import activate
from gemma_tpu.image import to_pixels
from gemma_tpu.picture import Picture, PlacedImage


@pytest.fixture(scope="module")
def options_module():
    """The module as users have it: under pytest, annotations are checked before its own errors could be raised."""
    name = "options_as_users_have_it"
    spec = importlib.util.spec_from_file_location(name, Path(gemma_tpu.options.__file__))
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"max_new_tokens": 5.0}, "max_new_tokens must be an integer, got 5.0"),
        ({"max_new_tokens": "5"}, "max_new_tokens must be an integer, got '5'"),
        ({"max_new_tokens": None}, "max_new_tokens must be an integer, got None"),
        ({"temperature": "hot"}, "temperature must be a number, got 'hot'"),
        ({"temperature": float("nan")}, "temperature must be at least 0"),
        ({"top_p": [0.9]}, "top_p must be a number"),
        ({"top_k": True}, "top_k must be an integer, got True"),
        ({"timeout": 0}, "timeout must be above 0 and at most 2147483647, got 0"),
        ({"timeout": float("inf")}, "timeout must be above 0 and at most 2147483647, got inf"),
        ({"timeout": float("nan")}, "timeout must be above 0"),
        ({"timeout": "1"}, "timeout must be a number, got '1'"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"stop": 5}, "stop must be a list, got 5"),
        ({"stop": None}, "stop must be a list, got None"),
        ({"stop": b"x"}, "stop must be a list, got b'x'"),
        ({"stop": ["a", ""]}, "stop must be non-empty strings"),
        ({"stop": [3]}, "stop must be non-empty strings"),
        ({"stop_tokens": 7}, "stop_tokens must be a list, got 7"),
        ({"stop_tokens": range(65)}, "65 stop_tokens given, at most 64"),
        ({"forbidden_tokens": None}, "forbidden_tokens must be a list, got None"),
        ({"stop": {"a": 1}}, "stop must be a list, got {'a': 1}"),
        ({"stop": np.array(5)}, "stop must be a list, got array"),
        ({"stop_tokens": [True]}, "a token id in stop_tokens must be an integer, got True"),
        ({"stop_tokens": [-1]}, "a token id in stop_tokens must be at least 0"),
        ({"stop_tokens": [10**30]}, "a token id in stop_tokens must be at least 0 and at most 2147483647"),
        ({"forbidden_tokens": [300.0]}, "a token id in forbidden_tokens must be an integer, got 300.0"),
        ({"forbidden_tokens": np.array([3.0])}, "a token id in forbidden_tokens must be an integer, got np.float64"),
        ({"forbidden_tokens": ["3"]}, "a token id in forbidden_tokens must be an integer, got '3'"),
        ({"forbidden_tokens": [3, None]}, "a token id in forbidden_tokens must be an integer, got None"),
        ({"seed": 10**5000}, "seed must be at least 0 and at most 4294967295, got an integer of 16610 bits"),
        ({"temperature": float("inf")}, "temperature must be at least 0 and at most 1000, got inf"),
        ({"temperature": 1 + 0j}, "temperature must be a number"),
        ({"min_p": float("nan")}, "min_p must be at least 0"),
        ({"stop": "x" * 300 + "\n", "top_k": "y\n" * 200}, r"top_k must be an integer, got 'y\\ny"),
        ({"forbidden_tokens": "ab"}, "forbidden_tokens must be a list, got 'ab'"),
        ({"presence_penalty": 2.5}, "presence_penalty must be at least -2 and at most 2, got 2.5"),
        ({"frequency_penalty": None}, "frequency_penalty must be a number, got None"),
        ({"repetition_penalty": 0}, "repetition_penalty must be above 0 and at most 100, got 0"),
        ({"min_tokens": 9, "max_new_tokens": 8}, "min_tokens is 9, and max_new_tokens 8"),
        ({"min_tokens": True}, "min_tokens must be an integer, got True"),
        ({"ignore_eos": "yes"}, "ignore_eos must be True or False, got 'yes'"),
        ({"logit_bias": 3}, "logit_bias must be a list, got 3"),
        ({"logit_bias": [1, 2]}, r"logit_bias must map token ids to numbers, got \[1, 2\]"),
        ({"logit_bias": {"1": 2}}, "a token id in logit_bias must be an integer, got '1'"),
        ({"logit_bias": {7: 101}}, "logit_bias of token 7 must be at least -100 and at most 100, got 101"),
        ({"logit_bias": [(7, 1), (7, 2)]}, "logit_bias has a token twice"),
        ({"logit_bias": dict.fromkeys(range(513), 1)}, "logit_bias has 513 tokens, at most 512 are supported"),
        ({"logprobs": True}, "logprobs must be an integer, got True"),
        ({"n": 0}, "n must be at least 1 and at most 1024, got 0"),
        ({"logprobs": 21}, "logprobs must be at least 0 and at most 20, got 21"),
        ({"grammar": "[0-9]"}, r"grammar must be made by gemma_tpu.Grammar, got '\[0-9\]'"),
        ({"allowed_token_ids": 5}, "allowed_token_ids must be a list, got 5"),
        ({"bad_words": ["a", ""]}, "bad_words must be non-empty strings or sequences of token ids"),
        ({"bad_words": [5]}, "bad_words must be a list, got 5"),
        ({"bad_words": [["a"]]}, "a token id in bad_words must be an integer, got 'a'"),
    ],
)
def test_wrong_ones_are_one_clear_error(options_module, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        options_module.SamplingParams(**options)


def params_of_row(options: Any) -> Any:
    """What the device is told of options that were made unchecked."""
    same = object.__new__(gemma_tpu.SamplingParams)
    vars(same).update(vars(options))
    return row_params(activate(0, 0, 0, 0, same, options.stop_tokens), 9)


def test_numbers_and_lists_of_numpy_are_those_of_python(options_module) -> None:
    plain = {"max_new_tokens": 3, "temperature": 0.5, "top_k": 5, "top_p": 0.75, "min_p": 0.0, "seed": 7}
    plain |= {"presence_penalty": 0.5, "frequency_penalty": 0.25, "repetition_penalty": 1.5, "min_tokens": 1}
    kinds = (np.int64, np.float32, np.int8, np.float16, np.float64, np.uint32, *[np.float32] * 3, np.int8)
    theirs = {name: kind(value) for (name, value), kind in zip(plain.items(), kinds, strict=True)}
    lists = {"stop": ("a", "b"), "stop_tokens": (1, 2), "forbidden_tokens": (3,), "allowed_token_ids": (1, 2, 8)}
    arrays = {name: np.array(values) for name, values in lists.items()}
    biases = {4: 0.5, 6: -1}
    theirs["logit_bias"] = {np.int64(token): np.float32(bias) for token, bias in biases.items()}
    theirs["bad_words"] = np.array([[1, 2], [3, 4]])
    plain |= {"logit_bias": biases, "bad_words": ((1, 2), (3, 4))}
    options = options_module.SamplingParams(**theirs, **arrays)
    assert options == options_module.SamplingParams(**plain, **lists)
    assert hash(options) == hash(dataclasses.replace(options))
    assert options_module.SamplingParams(stop=[]) == options_module.SamplingParams()
    assert options_module.SamplingParams(stop="ab").stop == ("ab",)
    found, expected = (params_of_row(one) for one in (options, options_module.SamplingParams(**plain, **lists)))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_an_image_holds_the_picture_or_its_pixels_and_a_finished_request_none() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(noise).save(file, "JPEG")
    for source, encoded in ((file.getvalue(), True), (noise, False)):
        picture = Picture(source)
        whole, crop = (checked.ImageInput(part, 56) for part in (picture, picture.crop((0, 0, 200, 600))))
        expected = [to_pixels(image, 56) for image in (picture.open(), picture.open().crop((0, 0, 200, 600)))]
        picture.release()
        assert (picture._image is None) == encoded
        for image, pixels in zip((whole, crop), expected, strict=True):
            assert (image.pixels == pixels).all()
            image.prepare()
            assert (image._held == pixels).all()
            assert (image.pixels == pixels).all()
        for end in (lambda request: request.finish("stop"), lambda request: request.fail(ValueError())):
            images = [PlacedImage(start, image) for start, image in ((1, whole), (4, crop))]
            request = checked.Request([1, -1, -1, 2, -1, -1, 3], images, gemma_tpu.SamplingParams(), num_soft_tokens=2)
            assert request.keys == [1, whole.digest, whole.digest, 2, crop.digest, crop.digest, 3]
            end(request)
            assert not request.images
