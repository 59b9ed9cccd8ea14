"""Makes tests/goldens/packed: small matrices as the programs that quantise them store them, and what those read back.

    pip install torch compressed-tensors==0.20.0 bitsandbytes==0.50.2 'mlx[cpu]==0.32.4' safetensors
    pip install --target OLD --no-deps compressed-tensors==0.9.4  # the last kind that stored weight_g_idx
    pip download --no-deps --no-binary :all: gptqmodel==7.7.0 autoawq==0.2.9; unpack both into SOURCES
    pip install -r SOURCES/gptqmodel-7.7.0/requirements.txt
    python tests/reference/make_packed_goldens.py SOURCES OLD

    pip download --no-deps --no-binary :all: gemma==3.3.0; unpack it into SOURCES
    python tests/reference/make_packed_goldens.py --gemma SOURCES  # with jax, flax and etils: gemma.npz

Each case is `CASE.safetensors`, written by the program's own package, with the quantised matrices of a model of one
layer whose sizes are `MODELS`; expected.npz has the same matrices as that program dequantises them, and cases.json the
program, the model, and what config.json says of the quantisation. Programs that compute in the scales' dtype are given
the scales in float32 for that. gemma.npz has what `peft.quantize` makes of random weights, int4 as int8. autoawq and
gptqmodel run from source, as neither installs on a CPU alone.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

GOLDENS = Path(__file__).parents[1] / "goldens" / "packed"
# As tests/test_checkpoint_packed.py has them: sizes with no common divisor, and those that groups of 32 divide.
MODELS = {
    "ragged": {"embed": 20, "hidden": 42, "heads": 3, "kv_heads": 1, "head_dim": 6},
    "grouped": {"embed": 64, "hidden": 32, "heads": 1, "kv_heads": 1, "head_dim": 32},
}
TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

Tensors = dict[str, torch.Tensor]
Case = tuple[str, str, str, dict, Tensors, Tensors]  # name, program, model, config, stored, expected


def matrices(model: str, prefix: str = "model.") -> Tensors:
    """The matrices of the one layer, whose channels are of sizes of their own."""
    c = MODELS[model]
    q, kv = c["heads"] * c["head_dim"], c["kv_heads"] * c["head_dim"]
    shapes = {f"self_attn.{part}_proj": (rows, c["embed"]) for part, rows in (("q", q), ("k", kv), ("v", kv))}
    shapes |= {"self_attn.o_proj": (c["embed"], q), "mlp.down_proj": (c["embed"], c["hidden"])}
    shapes |= {f"mlp.{part}_proj": (c["hidden"], c["embed"]) for part in ("gate", "up")}
    rng = np.random.default_rng(0)

    def draw(shape: tuple[int, int]) -> torch.Tensor:
        return torch.from_numpy((rng.standard_normal(shape) * rng.uniform(0.1, 1, (shape[0], 1))).astype(np.float32))

    return {f"{prefix}layers.0.{name}": draw(shape) for name, shape in shapes.items()}


def ranges(weight: torch.Tensor, group: int, bits: int, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zeros, from 0 on, of groups of columns."""
    grouped = weight.unflatten(1, (-1, group))
    levels = 2**bits - 1
    low, high = grouped.amin(2).clamp(max=0), grouped.amax(2).clamp(min=0)
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    scales = (high - low) / levels
    zeros = torch.full_like(scales, 2 ** (bits - 1)) if symmetric else (-low / scales).round()
    return scales, zeros.clamp(0, levels)


# compressed-tensors.


def compressed_tensors() -> Iterator[Case]:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme

    def scheme_of(groups: list[dict], name: str) -> dict:
        return next(g for g in groups if any(t == "Linear" or t.removeprefix("re:.*") in name for t in g["targets"]))

    def compress(form: str, model: str, groups: list[dict], dtype: str, prefix: str = "model.") -> tuple:
        stored, expected = {}, {}
        for name, weight in matrices(model, prefix).items():
            scheme = QuantizationScheme(**scheme_of(groups, name))
            args = scheme.weights
            scale, zero = ct_scales(weight, args)
            state = {"weight": weight, "weight_scale": scale.to(TYPES[dtype])}
            if not args.symmetric:
                state["weight_zero_point"] = zero.to(torch.int8)
            if scheme.input_activations is not None and not scheme.input_activations.dynamic:
                state["input_scale"] = torch.tensor([0.5], dtype=TYPES[dtype])
            compressor = BaseCompressor.get_value_from_registry(scheme.format or form)
            found = compressor.compress(state, scheme)
            stored |= {f"{name}.{key}": value.contiguous() for key, value in found.items()}
            exact = {k: v.float() if k == "weight_scale" else v for k, v in found.items()}
            expected[f"{name}.weight"] = compressor.decompress(exact, scheme)["weight"]
        config = QuantizationConfig(
            config_groups={f"group_{i}": QuantizationScheme(**group) for i, group in enumerate(groups)},
            format=form,
            quantization_status="compressed",
            ignore=["lm_head", "re:model.vision_tower.*"],
        )
        return model, config.model_dump(mode="json"), stored, expected

    int8 = {"num_bits": 8, "type": "int", "strategy": "channel"}
    int4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
    fp8 = {"num_bits": 8, "type": "float"}
    linear = {"targets": ["Linear"]}
    by_token = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
    fp8_token = by_token | {"type": "float"}
    program = f"compressed-tensors {importlib.metadata.version('compressed-tensors')}"

    def case(name: str, form: str, model: str, groups: list[dict], dtype: str) -> Case:
        return name, program, *compress(form, model, groups, dtype)

    w8a8 = linear | {"weights": int8, "input_activations": by_token}
    yield case("ct-int8", "int-quantized", "ragged", [w8a8], "bfloat16")
    asymmetric = linear | {"weights": int8 | {"symmetric": False}, "input_activations": by_token}
    yield case("ct-int8-zeros", "int-quantized", "ragged", [asymmetric], "float16")
    yield case("ct-int4", "pack-quantized", "grouped", [linear | {"weights": int4}], "bfloat16")
    zeros = linear | {"weights": int4 | {"symmetric": False}}
    yield case("ct-int4-zeros", "pack-quantized", "grouped", [zeros], "float32")
    channel = {"num_bits": 4, "type": "int", "strategy": "channel", "symmetric": False}
    yield case("ct-int4-channel", "pack-quantized", "ragged", [linear | {"weights": channel}], "float16")
    for bits in (8, 4):
        weights = {"num_bits": bits, "type": "int", "strategy": "channel"}
        yield case(f"ct-int{bits}-packed", "pack-quantized", "ragged", [linear | {"weights": weights}], "bfloat16")
    mixed = [
        {"targets": ["re:.*self_attn."], "weights": int8, "format": "pack-quantized"},
        {"targets": ["re:.*mlp.gate_proj"], "weights": int8 | {"num_bits": 6}, "format": "pack-quantized"},
        {"targets": ["re:.*mlp.up_proj"], "weights": int8, "format": "naive-quantized"},
        {"targets": ["re:.*mlp."], "weights": fp8 | {"strategy": "channel"}, "format": "naive-quantized"},
    ]
    yield case("ct-mixed", "mixed-precision", "ragged", mixed, "bfloat16")
    dynamic = linear | {"weights": fp8 | {"strategy": "channel"}, "input_activations": fp8_token}
    yield case("ct-fp8", "float-quantized", "ragged", [dynamic], "bfloat16")
    static = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False}
    tensor = linear | {"weights": fp8 | {"strategy": "tensor"}, "input_activations": static}
    yield case("ct-fp8-static", "float-quantized", "ragged", [tensor], "float32")
    block = linear | {
        "weights": fp8 | {"strategy": "block", "block_structure": [16, 8]},
        "input_activations": fp8_token,
    }
    yield case("ct-fp8-block", "float-quantized", "ragged", [block], "float32")


def ct_scales(weight: torch.Tensor, args) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales, and zeros from the lowest integer on, as llm-compressor's min-max observer has them."""
    rows, columns = weight.shape
    if args.type == "float":
        if args.strategy == "tensor":
            return weight.abs().max()[None] / 448, None
        if args.strategy == "channel":
            return weight.abs().amax(1, keepdim=True) / 448, None
        high, wide = args.block_structure
        padded = torch.nn.functional.pad(weight, (0, -columns % wide, 0, -rows % high)).abs()
        return padded.unflatten(0, (-1, high)).unflatten(2, (-1, wide)).amax((1, 3)) / 448, None
    scales, zeros = ranges(weight, args.group_size or columns, args.num_bits, args.symmetric)
    return scales, zeros - 2 ** (args.num_bits - 1)


def compressed_tensors_by_index(old: str) -> Iterator[Case]:
    """Groups of columns here and there, by a version that stored them, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, __file__, "--by-index", folder], check=True, env={"PYTHONPATH": old})
        stored, expected = (load_file(Path(folder) / f"{part}.safetensors") for part in ("stored", "expected"))
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "actorder": "group"}
    config = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }
    yield "ct-int4-index", "compressed-tensors 0.9.4", "grouped", config, stored, expected


def make_by_index(folder: str) -> None:
    from compressed_tensors.compressors.quantized_compressors.pack_quantized import (
        PackedQuantizationCompressor,
        unpack_from_int32,
    )
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    args = QuantizationArgs(num_bits=4, type="int", strategy="group", group_size=32, actorder="group")
    stored, expected = {}, {}
    for name, weight in matrices("grouped").items():
        columns = weight.shape[1]
        index = torch.from_numpy(np.random.default_rng(columns).permutation(columns) // 32).to(torch.int32)
        by_group = weight[:, torch.argsort(index, stable=True)]
        scale, _ = ranges(by_group, 32, 4, True)
        compressor = PackedQuantizationCompressor(config=None)
        found = compressor.compress_weight(weight, scale, quantization_args=args, g_idx=index)
        found |= {"weight_scale": scale, "weight_g_idx": index}
        stored |= {f"{name}.{key}": value.contiguous() for key, value in found.items()}
        unpacked = unpack_from_int32(found["weight_packed"], 4, weight.shape)
        expected[f"{name}.weight"] = dequantize(unpacked, scale, None, g_idx=index).float()
    save_file(stored, Path(folder) / "stored.safetensors")
    save_file(expected, Path(folder) / "expected.safetensors")


# GPTQ and AWQ.


def gptq() -> Iterator[Case]:
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    def make(name: str, bits: int, form: str, symmetric: bool, by_index: bool) -> Case:
        stored, expected = {}, {}
        for path, weight in matrices("grouped").items():
            rows, columns = weight.shape
            index = torch.arange(columns, dtype=torch.int32) // 32
            if by_index:
                index = torch.from_numpy(np.random.default_rng(columns).permutation(index.numpy()))
            scales, zeros = ranges(weight[:, torch.argsort(index, stable=True)], 32, bits, symmetric)
            scales = scales.half().float()
            linear = torch.nn.Linear(columns, rows, bias=False)
            linear.weight.data = weight
            layer = TorchLinear(
                bits=bits,
                group_size=32,
                sym=symmetric,
                desc_act=by_index,
                in_features=columns,
                out_features=rows,
                bias=False,
                pack_dtype=torch.int32,
            )
            layer.pack_original(linear, scales, zeros.int(), index)
            layer.qzero_format(format=2)
            layer.enable_wf_unsqueeze = True
            exact = layer.scales
            layer.scales = exact.float()
            expected[f"{path}.weight"] = layer.dequantize_weight().T.contiguous().float()
            layer.scales = exact
            if form == "gptq":
                convert_gptq_v2_to_v1_format_module(layer, types.SimpleNamespace(bits=bits, pack_dtype=torch.int32))
            for key in ("qweight", "qzeros", "scales", "g_idx"):
                stored[f"{path}.{key}"] = getattr(layer, key).contiguous()
        config = {
            "quant_method": "gptq",
            "checkpoint_format": form,
            "bits": bits,
            "group_size": 32,
            "desc_act": by_index,
            "sym": symmetric,
            "pack_dtype": "int32",
        }
        return name, "gptqmodel 7.7.0", "grouped", config, stored, expected

    yield make("gptq", 4, "gptq", True, False)
    yield make("gptq-zeros-index", 4, "gptq", False, True)
    yield make("gptq-v2-index", 4, "gptq_v2", False, True)
    yield make("gptq-v2-8", 8, "gptq_v2", False, False)


def awq(sources: Path) -> Iterator[Case]:
    for name in ("awq", "awq.modules", "awq.modules.linear"):  # whose __init__ imports what needs a GPU
        module = types.ModuleType(name)
        module.__path__ = [str(sources / "autoawq-0.2.9" / name.replace(".", "/"))]
        sys.modules[name] = module
    gemm = importlib.import_module("awq.modules.linear.gemm")
    dequantize = importlib.import_module("awq.utils.packing_utils").dequantize_gemm
    stored, expected = {}, {}
    for path, weight in matrices("grouped").items():
        linear = torch.nn.Linear(*reversed(weight.shape), bias=False)
        scales, zeros = ranges(weight, 32, 4, False)
        scales = scales.half().float()
        # As AutoAWQ's quantizer leaves them: already rounded.
        grid = (weight.unflatten(1, (-1, 32)) / scales[..., None] + zeros[..., None]).round().clamp(0, 15)
        linear.weight.data = ((grid - zeros[..., None]) * scales[..., None]).flatten(1)
        layer = gemm.WQLinear_GEMM.from_linear(linear, 4, 32, scales=scales.T.contiguous(), zeros=zeros.T.contiguous())
        for key in ("qweight", "qzeros", "scales"):
            stored[f"{path}.{key}"] = getattr(layer, key).contiguous()
        found = dequantize(layer.qweight, layer.qzeros, layer.scales.float(), 4, 32)
        expected[f"{path}.weight"] = found.T.contiguous()
    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
    yield "awq", "autoawq 0.2.9", "grouped", config, stored, expected


# MLX and bitsandbytes.


def mlx() -> Iterator[Case]:
    import mlx.core as mx
    import mlx.nn as nn

    def make(name: str, config: dict, dtype: mx.Dtype, prefix: str = "model.", more: dict | None = None) -> Case:
        stored, expected = {}, {}
        for path, weight in (matrices("grouped", prefix) | (more or {})).items():
            own = config | (config.get(path) or {})
            kind = nn.Embedding if path.endswith(("embed_tokens", "position_embedding")) else nn.Linear
            module = kind(*weight.shape) if kind is nn.Embedding else kind(*reversed(weight.shape), bias=False)
            module.weight = mx.array(weight.numpy()).astype(dtype)
            module = module.to_quantized(group_size=own["group_size"], bits=own["bits"])
            parts = dict(module.parameters())
            stored |= {f"{path}.{key}": value for key, value in parts.items()}
            exact = (parts[key].astype(mx.float32) for key in ("scales", "biases"))
            found = mx.dequantize(parts["weight"], *exact, group_size=own["group_size"], bits=own["bits"])
            expected[f"{path}.weight"] = torch.from_numpy(np.array(found))
        version = importlib.metadata.version("mlx")
        return name, f"mlx {version}", "grouped", {"mlx": config}, stored, expected

    rng = np.random.default_rng(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))

    small = {"group_size": 32, "bits": 4}
    own = small | {
        "model.layers.0.self_attn.o_proj": {"group_size": 32, "bits": 8},
        "model.layers.0.mlp.up_proj": False,
    }
    own["model.layers.0.self_attn.q_proj"] = {"group_size": 64, "bits": 6}
    text = {"model.embed_tokens": draw(32, 64)}
    case = make("mlx", own, mx.bfloat16, more=text)
    for part in case[4:]:  # false is what is not quantised
        for key in [key for key in part if ".up_proj." in key]:
            del part[key]
    yield case
    tower = "vision_tower.vision_model.encoder.layers.0."
    vision = {f"{tower}self_attn.{part}_proj": draw(32, 32) for part in ("q", "k", "v", "out")}
    vision |= {f"{tower}mlp.fc1": draw(64, 32), f"{tower}mlp.fc2": draw(32, 64)}
    vision["vision_tower.vision_model.embeddings.position_embedding"] = draw(16, 32)
    vision["language_model.model.embed_tokens"] = draw(96, 64)
    yield make("mlx-vision", {"group_size": 32, "bits": 8}, mx.float16, "language_model.model.", vision)


def bitsandbytes() -> Iterator[Case]:
    import bitsandbytes as bnb
    from bitsandbytes.backends.default.ops import _dequantize_4bit_compute

    def whole(layer: bnb.nn.Linear4bit) -> torch.Tensor:
        """By the implementation for all devices: the CPU's own (0.50.2) takes one scale for rows of half a block."""
        state, data = layer.weight.quant_state, layer.weight.data.view(torch.uint8).reshape(-1)
        absmax = state.absmax
        if state.nested:
            absmax = bnb.functional.dequantize_blockwise(absmax, state.state2) + state.offset
        return _dequantize_4bit_compute(data, absmax, state.code, state.blocksize, state.shape, torch.float32)

    def make(name: str, model: str, config: dict, **options) -> Case:
        stored, expected = {}, {}
        for path, weight in matrices(model).items():
            if config["load_in_8bit"]:
                layer = bnb.nn.Linear8bitLt(*reversed(weight.shape), bias=False, has_fp16_weights=False)
                layer.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
                layer = layer.to("cpu")
                found = bnb.functional.int8_vectorwise_dequant(layer.weight.data, layer.weight.SCB)
            else:
                layer = bnb.nn.Linear4bit(*reversed(weight.shape), bias=False)
                layer.weight = bnb.nn.Params4bit(weight, requires_grad=False, **options)
                layer = layer.to("cpu")
                found = whole(layer)
            stored |= {f"{path}.{key}": value.contiguous() for key, value in layer.state_dict().items()}
            expected[f"{path}.weight"] = found.float()
        version = importlib.metadata.version("bitsandbytes")
        return name, f"bitsandbytes {version}", model, {"quant_method": "bitsandbytes", **config}, stored, expected

    four = {"load_in_8bit": False, "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    yield make("bnb-nf4", "ragged", four, quant_type="nf4", compress_statistics=False)
    nested = four | {"bnb_4bit_use_double_quant": True}
    yield make("bnb-nf4-nested", "ragged", nested, quant_type="nf4", compress_statistics=True)
    wide = nested | {"bnb_4bit_quant_storage": "bfloat16"}
    storage = {"quant_storage": torch.bfloat16, "blocksize": 64}
    yield make("bnb-nf4-grouped", "grouped", wide, quant_type="nf4", compress_statistics=True, **storage)
    yield make("bnb-fp4", "ragged", four | {"bnb_4bit_quant_type": "fp4"}, quant_type="fp4", compress_statistics=False)
    yield make("bnb-int8", "ragged", {"load_in_8bit": True, "load_in_4bit": False})


def gemma(sources: str) -> None:
    import importlib.util

    import jax.numpy as jnp

    path = Path(sources) / "gemma-3.3.0" / "gemma" / "peft" / "_quantization_utils.py"
    spec = importlib.util.spec_from_file_location("quantization_utils", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    c, rng = MODELS["ragged"], np.random.default_rng(0)
    n, k, d, f, h = (c[size] for size in ("heads", "kv_heads", "embed", "hidden", "head_dim"))

    def draw(*shape: int) -> jnp.ndarray:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    attention = {
        "q_einsum": {"w": draw(n, d, h)},
        "kv_einsum": {"w": draw(2, k, d, h)},
        "attn_vec_einsum": {"w": draw(n, h, d)},
    }
    layer = {"attn": attention, "mlp": {"gating_einsum": draw(2, f, d), "linear": draw(f, d)}}
    stored = {}

    def store(name: str, node: object) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                store(f"{name}/{key}", value)
        else:
            stored[name] = np.asarray(node, np.int8 if name.endswith("kernel") else np.float32)

    for method in ("int4", "int8"):
        store(method, module.quantize({"layer_0": layer}, method=method))
    np.savez_compressed(GOLDENS / "gemma.npz", **stored)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=Path)
    parser.add_argument("old")
    args = parser.parse_args()
    sys.path.insert(0, str(args.sources / "gptqmodel-7.7.0"))
    GOLDENS.mkdir(exist_ok=True)
    about, expected = {}, {}
    makers = (
        compressed_tensors(),
        compressed_tensors_by_index(args.old),
        gptq(),
        awq(args.sources),
        mlx(),
        bitsandbytes(),
    )
    for name, program, model, config, stored, whole in (case for cases in makers for case in cases):
        if "mlx" in config:
            import mlx.core as mx

            mx.save_safetensors(str(GOLDENS / f"{name}.safetensors"), stored, metadata={"format": "mlx"})
            config = {"quantization": config["mlx"], "quantization_config": config["mlx"]}
        else:
            save_file(stored, GOLDENS / f"{name}.safetensors", metadata={"format": "pt"})
            config = {"quantization_config": config}
        about[name] = {"program": program, "model": model, "config": config}
        expected |= {f"{name}/{key}": value.numpy() for key, value in whole.items()}
    np.savez_compressed(GOLDENS / "expected.npz", **expected)
    (GOLDENS / "cases.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1] == "--by-index":
        make_by_index(sys.argv[2])
    elif sys.argv[1] == "--gemma":
        gemma(sys.argv[2])
    else:
        main()
