"""What Hypothesis makes up for `fuzz.py`: values of every type, prompts and options that are nearly right, damage."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from PIL import Image

import gemma_tpu


class Odd:
    """What fails at whatever is done to it."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __iter__(self) -> Any:
        raise RuntimeError("no\niteration")

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("no array")

    def read(self) -> bytes:
        raise RuntimeError("no reading")


ARRAYS = [
    np.zeros(0, int),
    np.array(7),
    np.array([1, 2, 3]),
    np.array([[1, 2], [3, 4]], np.uint8),
    np.array([1.5, 2.0]),
    np.array([np.nan, np.inf]),
    np.array([[[1]]]),
    np.array([object(), None], object),
    np.array(["a", "b"]),
    np.array([True]),
    np.zeros((4, 4, 3), np.uint8),
    np.zeros((2, 4, 4, 3), np.float32),
    np.array([2**63], np.uint64),
    np.array([1 + 2j]),
    np.array(["2020-01-01"], "datetime64[D]"),
]
NUMBERS = st.one_of(
    st.integers(-3, 300),
    st.sampled_from([2**31, 2**32, 2**63, -(2**63), 10**30, np.int64(3), np.uint8(200), np.float32(0.5)]),
    st.floats(),
    st.builds(lambda: 10**5000),
    st.booleans(),
)
SCALARS = st.one_of(st.none(), NUMBERS, st.text(max_size=8), st.binary(max_size=8), st.complex_numbers())


def _takes_anything(*_: Any, **__: Any) -> None:
    """What another function raises when it is told of progress is its own error, and comes back as that."""


JUNK = st.one_of(
    SCALARS,
    st.sampled_from(ARRAYS),
    st.builds(Odd),
    st.builds(lambda: iter([1, 2])),
    st.builds(lambda: io.BytesIO(b"x")),
    st.builds(object),
    st.just(_takes_anything),
    st.just(Path("nowhere")),
    st.sets(st.integers(0, 9), max_size=3),
    st.recursive(
        SCALARS,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.tuples(inner, inner),
            st.dictionaries(st.text(max_size=6) | st.integers(0, 9), inner, max_size=3),
        ),
        max_leaves=6,
    ),
)


def encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
FILES = {
    kind: encoded(PICTURE, kind) for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "ICO", "JPEG2000", "TGA")
}
DEEP_PNG = encoded(Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30)), "PNG")


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """`data` with bytes set, cut, doubled or put in: near its beginning as a rule, where the headers are."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        end = draw(st.sampled_from([16, 64, 256, 1 << 20]))
        at = draw(st.integers(0, max(0, min(len(changed), end) - 1)))
        kind = draw(st.sampled_from(["set", "set", "set", "cut", "put", "end"]))
        if kind == "set":
            changed[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == "put":
            changed[at:at] = draw(st.binary(min_size=1, max_size=6))
        elif kind == "cut":
            del changed[at : at + draw(st.integers(1, 9))]
        else:
            del changed[draw(st.integers(0, len(changed))) :]
    return bytes(changed)


def mostly(right: st.SearchStrategy[Any], wrong: st.SearchStrategy[Any] = JUNK) -> st.SearchStrategy[Any]:
    """`right` nine times of ten: of a call with several arguments one is wrong as a rule."""
    return st.integers(0, 9).flatmap(lambda n: right if n else wrong)


IMAGES = st.one_of(
    JUNK,
    st.just(PICTURE),
    st.sampled_from(list(FILES.values())),
    st.sampled_from([*FILES.values(), DEEP_PNG]).flatmap(damaged),
    st.lists(st.one_of(st.just(PICTURE), JUNK), max_size=3),
    st.sampled_from(["data:image/png;base64,", "http://user:pw@127.0.0.1:9/x.png", "gs://a/b", "", "\0", "/", "~"]),
)
PARTS = mostly(
    st.one_of(
        st.fixed_dictionaries({"type": st.just("text"), "text": mostly(st.text(max_size=5))}),
        st.fixed_dictionaries({"type": st.just("image"), "image": mostly(st.just(PICTURE), IMAGES)}),
        st.fixed_dictionaries(
            {"type": st.just("image_url"), "image_url": st.fixed_dictionaries({"url": st.text(max_size=9)}) | JUNK}
        ),
        st.fixed_dictionaries(
            {"type": mostly(st.sampled_from(["text", "image", "image_url"]))}, optional={"path": JUNK, "base64": JUNK}
        ),
    )
)
CONTENT = mostly(st.text(max_size=9) | st.lists(PARTS, max_size=3))
MESSAGE = st.fixed_dictionaries(
    {"role": mostly(st.just("user"), st.sampled_from(["assistant", "system", "tool"]) | JUNK), "content": CONTENT}
)
MESSAGES = mostly(
    st.one_of(
        MESSAGE.map(lambda message: [message]),
        st.tuples(CONTENT, st.text(max_size=5), CONTENT).map(
            lambda said: [
                {"role": role, "content": content}
                for role, content in zip(["user", "assistant", "user"], said, strict=True)
            ]
        ),
        st.lists(MESSAGE, max_size=3),
    ),
    st.lists(st.dictionaries(st.sampled_from(["role", "content"]), JUNK), max_size=2) | JUNK,
)
LANGUAGES = mostly(st.sampled_from(["de", "en_GB", "zh-Hant"]), st.text(max_size=3) | JUNK)
PARAMETERS = st.fixed_dictionaries(
    {"type": mostly(st.just("object"))},
    optional={
        "properties": mostly(
            st.dictionaries(
                st.text(min_size=1, max_size=3),
                mostly(st.fixed_dictionaries({"type": mostly(st.sampled_from(["string", "integer", "array"]))})),
                max_size=2,
            )
        ),
        "required": mostly(st.lists(st.text(max_size=3), max_size=2)),
    },
)
TOOLS = mostly(
    st.fixed_dictionaries({"name": mostly(st.text(min_size=1, max_size=4))}, optional={"parameters": PARAMETERS}).map(
        lambda function: {"type": "function", "function": function}
    )
)
CALLS = st.fixed_dictionaries(
    {"function": mostly(st.fixed_dictionaries({"name": mostly(st.just("f")), "arguments": mostly(st.just({"a": 1}))}))}
)
TOOL_MESSAGES = mostly(
    st.tuples(mostly(st.lists(mostly(CALLS), min_size=1, max_size=2)), mostly(st.text(max_size=4))).map(
        lambda said: [
            {"role": "user", "content": "Look"},
            {"role": "assistant", "content": "", "tool_calls": said[0]},
            {"role": "tool", "content": said[1]},
        ]
    ),
    MESSAGES,
)
IDS = st.lists(st.integers(0, 250), min_size=1, max_size=9)
PROMPTS = mostly(
    st.one_of(
        st.text(max_size=12),
        MESSAGES,
        MESSAGE,
        IDS,
        st.lists(st.integers(-2, 3000), max_size=3),
        st.lists(st.one_of(st.text(max_size=4), IDS, MESSAGES), min_size=1, max_size=3),
        st.lists(st.one_of(st.text(max_size=4), JUNK), max_size=3),
    )
)
FLAGS = mostly(st.booleans())
NO_URLS = mostly(st.just(False), JUNK.filter(lambda value: value is not True))
OPTIONS = st.fixed_dictionaries(
    {"max_new_tokens": st.integers(1, 2)},
    optional={
        "temperature": mostly(st.floats(0, 2), NUMBERS),
        "top_k": mostly(st.integers(0, 9), NUMBERS),
        "top_p": mostly(st.floats(0.1, 1), NUMBERS),
        "min_p": mostly(st.floats(0, 1), NUMBERS),
        "seed": mostly(st.integers(0, 2**32 - 1), NUMBERS),
        "stop": mostly(st.text(min_size=1, max_size=3) | st.lists(st.text(min_size=1, max_size=2), max_size=2)),
        "stop_tokens": mostly(st.lists(st.integers(0, 250), max_size=3), st.lists(NUMBERS, max_size=3) | JUNK),
        "forbidden_tokens": mostly(st.lists(st.integers(0, 250), max_size=3), st.lists(NUMBERS, max_size=3) | JUNK),
        "timeout": mostly(st.none() | st.floats(0.001, 60), NUMBERS),
    },
)
WRONG_OPTIONS = st.fixed_dictionaries(
    {"max_new_tokens": st.just(1) | JUNK}, optional={"source_lang": JUNK, "tools": JUNK}
)
READING = {
    "images": mostly(st.none() | st.just(PICTURE), IMAGES),
    "raw": FLAGS,
    "pan_and_scan": FLAGS,
    "continue_final": FLAGS,
    "allow_urls": NO_URLS,
}
TREES = st.one_of(
    JUNK, st.dictionaries(st.sampled_from(["transformer", "embedder", "layer_0", "params"]), JUNK, max_size=3)
)
LOADING = {
    "config": st.sampled_from(["gemma3-4b", "gemma3-demo", *gemma_tpu.CONFIGS.values()]) | JUNK,
    "mesh": st.tuples(NUMBERS, NUMBERS) | JUNK,
    "dtype": st.sampled_from(["float16", "x", jnp.float32, "int8"]) | JUNK,
    "max_context": NUMBERS | JUNK,
    "max_rows": st.integers(-1, 0) | JUNK.filter(lambda x: not isinstance(x, int | np.integer) or abs(int(x)) > 10**6),
    "tokenizer": JUNK,
    "text_only": FLAGS,
    "progress": JUNK,
}


def some(options: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """One or two of `options`."""
    return st.lists(st.sampled_from(sorted(options)), min_size=1, max_size=2, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: options[name] for name in names})
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def changed_json(draw: st.DrawFn, value: dict[str, Any]) -> bytes:
    """`value` with something else in one or two places of its tree."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 2))):
        node: Any = value
        while True:
            key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else list(range(len(node)))))
            if isinstance(node[key], dict | list) and node[key] and draw(st.integers(0, 3)):
                node = node[key]
                continue
            node[key] = draw(JSON | st.sampled_from(["x" * 300, [[]] * 40, 2**64]))
            break
    return json.dumps(value).encode()
