"""The public entries that `fuzz.py` tries: what each is given, and the call, on a small model and its files."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoint_samples as samples
import format_samples
import jax
import jax.numpy as jnp
import numpy as np
from fuzz_inputs import (
    FLAGS,
    IMAGES,
    JSON,
    JUNK,
    LANGUAGES,
    LOADING,
    MESSAGES,
    NO_URLS,
    OPTIONS,
    PICTURE,
    PROMPTS,
    READING,
    TOOL_MESSAGES,
    TOOLS,
    TREES,
    WRONG_OPTIONS,
    changed_json,
    damaged,
    mostly,
    some,
)
from hypothesis import strategies as st
from small_models import TEXT, VISION, random_params
from tokenizer_files import tokenizer_json

import gemma_tpu
from gemma_tpu.checkpoint import convert, download, merge_adapter, open_checkpoint, read_text_assets
from gemma_tpu.deployment import Deployment
from gemma_tpu.plan.chips import parse_slice
from gemma_tpu.plan.planner import make_plan
from gemma_tpu.sharding import make_mesh, param_sharding
from gemma_tpu.text import FUNCTION_GEMMA, TRANSLATE_GEMMA
from gemma_tpu.verify import verify


class Bench:
    """What the entries are tried on: a small model, and checkpoints of each format on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        model_file = Path(__file__).parent / "goldens" / "text" / "tokenizer.model"
        self.tokenizer_model = model_file.read_bytes()
        tokenizer = gemma_tpu.Tokenizer(self.tokenizer_model)
        config = dataclasses.replace(TEXT, vocab_size=tokenizer.vocab_size, vision=VISION)
        mesh = make_mesh(config, (1, 1), jax.devices()[:1])
        params = {n: jax.device_put(a, param_sharding(n, a.shape, mesh)) for n, a in random_params(config).items()}
        deployment = Deployment(config, mesh, rows=2, context=64, dtype=jnp.float32)
        self.model = gemma_tpu.Model(deployment, params, tokenizer)
        self.model.warmup()
        sample = samples.sample(dataclasses.replace(samples.small(layers=2), vocab_size=tokenizer.vocab_size))
        self.config = samples.hf_config(sample.config)
        self.hf = samples.save_hf(folder / "hf", sample.hf, self.config, shards=2)
        self.orbax = samples.save_orbax(folder / "orbax", samples.flat_tree(sample.canonical), use_ocdbt=False)
        self.orbax_db = samples.save_orbax(folder / "database", samples.flat_tree(sample.canonical))
        for path in (self.orbax, self.orbax_db):
            (path / "config.json").write_text(json.dumps(self.config))
        self.generation = {
            "do_sample": True,
            "top_k": 64,
            "top_p": 0.95,
            "eos_token_id": [1, 106],
            "stop_strings": ["a"],
        }
        (self.hf / "generation_config.json").write_text(json.dumps(self.generation))
        rank, width = 2, sample.config.embed_dim
        module = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
        heads = sample.config.num_heads * sample.config.head_dim
        delta = {
            f"{module}.lora_A.weight": np.ones((rank, width), np.float32),
            f"{module}.lora_B.weight": np.ones((heads, rank), np.float32),
        }
        self.adapter = samples.save_hf(folder / "adapter", delta)
        (self.adapter / "model.safetensors").rename(self.adapter / "adapter_model.safetensors")
        self.adapter_config = {"peft_type": "LORA", "r": rank, "lora_alpha": 4, "rank_pattern": {"x": 3}}
        (self.adapter / "adapter_config.json").write_text(json.dumps(self.adapter_config))
        self.base = open_checkpoint(self.hf)
        self.functions = format_samples.function_gemma()
        self.tokenizer_json = tokenizer_json(self.tokenizer_model)
        self.work = folder / "work"

    def reference(self) -> list[list[int]]:
        prompts = ["Hello", [2, 70, 80], [{"role": "user", "content": [{"type": "image", "image": PICTURE}]}]]
        answers = self.model.generate(prompts, max_new_tokens=8, stop_tokens=())
        return [answer.tokens for answer in answers]

    def settled(self) -> bool:
        engine, end = self.model.engine, time.monotonic() + 60
        while engine._loop.has_work:
            if time.monotonic() > end:
                return False
            time.sleep(0.01)
        return True

    def with_file(self, base: Path, name: str, data: bytes) -> Path:
        """A copy of the checkpoint `base`, of links, in which the file `name` has `data`."""
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(base, self.work, copy_function=os.link)
        (self.work / name).unlink(missing_ok=True)
        (self.work / name).write_bytes(data)
        return self.work

    def read(self, path: Path) -> None:
        """As `load` does, without devices: everything but the weights themselves."""
        assets = read_text_assets(open_checkpoint(path))
        tokenizer = assets.open_tokenizer(None)
        assets.sampling_defaults(tokenizer)
        assets.notes(tokenizer)


def entries(bench: Bench) -> dict[str, tuple[int, st.SearchStrategy[Any], Callable[[Any], object]]]:
    """Each entry: its share of the inputs, what it is given, and the call."""
    model, kw = bench.model, st.fixed_dictionaries

    def damaged_file(base: Path, name: str, content: st.SearchStrategy[bytes]) -> tuple[Any, Callable[[bytes], object]]:
        return content, lambda data: bench.read(bench.with_file(base, name, data))

    def consume(stream: gemma_tpu.TextStream) -> None:
        for _ in stream:
            break
        stream.close()

    def talk(given: tuple[Any, dict[str, Any], list[tuple[Any, Any, dict[str, Any]]]]) -> None:
        system, options, turns = given
        chat = model.chat(system, **options)
        for text, images, more in turns:
            chat.send(text, images=images, **more)

    def load(given: dict[str, Any]) -> None:
        gemma_tpu.load(**{"source": bench.hf, "mesh": (1, 1), "progress": False, **given}).close()

    def from_params(given: dict[str, Any]) -> None:
        gemma_tpu.from_params(**given).close()

    adapter_file = "adapter_model.safetensors"
    shard, index = "model-00001-of-00002.safetensors", "model.safetensors.index.json"
    shard_bytes = (bench.hf / shard).read_bytes()
    length = 8 + int.from_bytes(shard_bytes[:8], "little")
    header, rest = json.loads(shard_bytes[8:length]), shard_bytes[length:]

    def headed(new: bytes) -> bytes:
        return len(new).to_bytes(8, "little") + new + rest

    weights_map = json.loads((bench.hf / index).read_text())
    metadata = (bench.orbax / "_METADATA").read_bytes()
    zarray = next(path for path in sorted(bench.orbax.rglob(".zarray")))
    config_bytes = json.dumps(bench.config).encode()
    text = st.text(max_size=9)
    table: dict[str, tuple[int, Any, Callable[[Any], object]]] = {
        "SamplingParams": (
            12,
            OPTIONS | kw({}, optional={"max_new_tokens": JUNK, "stop": JUNK}),
            lambda o: gemma_tpu.SamplingParams(**o),
        ),
        "Model.generate": (
            8,
            kw(
                {
                    "prompt": PROMPTS,
                    "options": mostly(OPTIONS, WRONG_OPTIONS),
                    "reading": mostly(st.just({}), kw({}, optional={**READING, "drop_oldest": FLAGS})),
                }
            ),
            lambda g: model.generate(g["prompt"], **g["reading"], **g["options"]),
        ),
        "Model.stream": (
            6,
            kw({"prompt": PROMPTS, "options": OPTIONS, "reading": kw({}, optional=READING)}),
            lambda g: consume(model.stream(g["prompt"], **g["reading"], **g["options"])),
        ),
        "Model.chat": (
            5,
            st.tuples(
                mostly(st.none() | text),
                mostly(OPTIONS, kw({}, optional={"drop_oldest": FLAGS, "pan_and_scan": FLAGS, "allow_urls": NO_URLS})),
                st.lists(st.tuples(mostly(text), mostly(st.none() | st.just(PICTURE), IMAGES), OPTIONS), max_size=3),
            ),
            talk,
        ),
        "Chat.respond": (1, JUNK, lambda given: model.chat().respond(given)),
        "Model.logits": (
            3,
            st.tuples(
                mostly(st.lists(st.lists(st.integers(0, 255), min_size=2, max_size=2), min_size=1, max_size=2)),
                mostly(st.none(), IMAGES),
                mostly(st.none() | st.lists(st.integers(-2, 1), min_size=1, max_size=2)),
            ),
            lambda g: model.logits(*g[:2], positions=g[2]),
        ),
        "Model.last_logits": (3, MESSAGES | PROMPTS, model.last_logits),
        "Model.encode_images": (4, IMAGES, model.encode_images),
        "Model.classify": (2, st.tuples(IMAGES, JUNK), lambda g: model.classify(*g)),
        "Model.warmup": (1, JUNK.filter(lambda x: x is not None and not callable(x)), model.warmup),
        "load_image": (14, IMAGES, gemma_tpu.load_image),
        "load_image, its limits": (
            2,
            kw({}, optional={"max_pixels": JUNK, "base_dir": JUNK, "allow_urls": NO_URLS}),
            lambda g: gemma_tpu.load_image(PICTURE if "base_dir" not in g else "x.png", **g),
        ),
        "pan_and_scan": (
            2,
            kw(
                {"image": st.just(PICTURE) | JUNK},
                optional={"min_crop_size": JUNK, "max_num_crops": JUNK, "min_ratio_to_activate": JUNK},
            ),
            lambda g: gemma_tpu.pan_and_scan(**g),
        ),
        "Tokenizer": (3, JUNK | damaged(bench.tokenizer_model) | damaged(bench.tokenizer_json), gemma_tpu.Tokenizer),
        "Tokenizer.encode, decode": (
            2,
            JUNK,
            lambda x: model.tokenizer.encode(x) if isinstance(x, str) else model.tokenizer.decode(x),
        ),
        "load, what it is given": (4, some({**LOADING, "source": JUNK, "adapter": JUNK}), load),
        "from_params": (4, kw({"params": TREES}, optional={**LOADING, "lora_alpha": JUNK}), from_params),
        "open_checkpoint": (2, st.tuples(JUNK | text, JUNK), lambda g: open_checkpoint(g[0], config=g[1])),
        "convert, what it is given": (
            2,
            some({"src": JUNK, "to": JUNK, "dtype": JUNK, "config": JUNK, "adapter": JUNK, "max_shard_bytes": JUNK}),
            lambda g: convert(
                **{"src": bench.hf, "dst": bench.folder / "converted", "to": "nothing", "progress": False, **g}
            ),
        ),
        "download, what it is given": (1, JUNK.filter(lambda x: not isinstance(x, str)), download),
        "verify, what it is given": (
            1,
            some({"checkpoint": JUNK, "against": JUNK, "tolerance": JUNK, "dtype": JUNK, "new_tokens": JUNK}),
            lambda g: verify(**{"checkpoint": "nowhere", "against": "nothing", **g}),
        ),
        "plan, what it is given": (
            1,
            some({"config": JUNK, "where": JUNK, "rows": JUNK, "context": JUNK, "dtype": JUNK}),
            lambda g: make_plan(
                "m",
                **{"config": 5, "where": parse_slice("v5e:1x1"), "rows": 1, "context": 64, "dtype": "bfloat16", **g},
            ),
        ),
        "config.json": (4, *damaged_file(bench.hf, "config.json", changed_json(bench.config) | damaged(config_bytes))),
        "config.json of Orbax": (2, *damaged_file(bench.orbax_db, "config.json", changed_json(bench.config))),
        "generation_config.json": (
            2,
            *damaged_file(
                bench.hf,
                "generation_config.json",
                changed_json(bench.generation) | damaged(json.dumps(bench.generation).encode()),
            ),
        ),
        "safetensors, the header": (6, *damaged_file(bench.hf, shard, changed_json(header).map(headed))),
        "safetensors, bytes": (4, *damaged_file(bench.hf, shard, damaged(shard_bytes))),
        "safetensors, the index": (
            2,
            *damaged_file(bench.hf, index, changed_json(weights_map) | damaged(json.dumps(weights_map).encode())),
        ),
        "tokenizer.model": (2, *damaged_file(bench.hf, "tokenizer.model", damaged(bench.tokenizer_model))),
        "tokenizer.json": (1, *damaged_file(bench.hf, "tokenizer.json", damaged(bench.tokenizer_json))),
        "tokenizer_config.json": (
            1,
            *damaged_file(
                bench.hf,
                "tokenizer_config.json",
                changed_json(
                    {"added_tokens_decoder": {"105": {"content": "<x>", "special": True}}, "chat_template": "{{ x }}"}
                ),
            ),
        ),
        "added_tokens.json": (1, *damaged_file(bench.hf, "added_tokens.json", changed_json({"<x>": 95}))),
        "chat_template.json": (
            1,
            *damaged_file(bench.hf, "chat_template.json", changed_json({"chat_template": "{{ x }}"})),
        ),
        "Orbax, _METADATA": (
            2,
            *damaged_file(bench.orbax, "_METADATA", damaged(metadata) | changed_json(json.loads(metadata))),
        ),
        "Orbax, .zarray": (
            2,
            *damaged_file(
                bench.orbax,
                str(zarray.relative_to(bench.orbax)),
                damaged(zarray.read_bytes()) | changed_json(json.loads(zarray.read_bytes())),
            ),
        ),
        "Orbax, manifest.ocdbt": (
            2,
            *damaged_file(bench.orbax_db, "manifest.ocdbt", damaged((bench.orbax_db / "manifest.ocdbt").read_bytes())),
        ),
        "adapter_config.json": (
            2,
            changed_json(bench.adapter_config) | JSON.map(lambda value: json.dumps(value).encode()),
            lambda data: merge_adapter(bench.base, str(bench.with_file(bench.adapter, "adapter_config.json", data))),
        ),
        "adapter_model.safetensors": (
            2,
            damaged((bench.adapter / "adapter_model.safetensors").read_bytes()),
            lambda data: merge_adapter(bench.base, str(bench.with_file(bench.adapter, adapter_file, data))),
        ),
        "FunctionGemma's prompts": (
            3,
            kw({"messages": TOOL_MESSAGES}, optional={"tools": mostly(st.lists(TOOLS, max_size=2))}),
            lambda g: FUNCTION_GEMMA.render(g["messages"], bench.functions, None, tools=g.get("tools")),
        ),
        "TranslateGemma's prompts": (
            2,
            kw({"messages": MESSAGES, "source_lang": LANGUAGES, "target_lang": LANGUAGES}),
            lambda g: TRANSLATE_GEMMA.render(g.pop("messages"), bench.functions, None, **g),
        ),
    }
    return table
