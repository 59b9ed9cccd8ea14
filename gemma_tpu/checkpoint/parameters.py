"""The table of Gemma 3's parameters: names and layouts in Google's checkpoints, in this package, and in Hugging Face's.

Google's nested names, joined by "/", are called canonical. A Hugging Face name without what precedes it in some files
is called a core (`hf_names`). In each layout the rotary halves have the same order, and query head n belongs to kv head
n // G.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from gemma_tpu.checkpoint.lazy import LazyArray
from gemma_tpu.config import GemmaConfig

SIGLIP = "vision_encoder/siglip_encoder"
INPUT_TABLE, OUTPUT_HEAD = "embedder/input_embedding", "embedder/output_embedding"
TABLE, HEAD = "embed_tokens.weight", "lm_head.weight"


class Layout(NamedTuple):
    """Conversions between the canonical and Hugging Face's layout; `from_hf` also takes the canonical shape."""

    to_hf: Callable[[LazyArray], LazyArray]
    from_hf: Callable[[LazyArray, tuple[int, ...]], LazyArray]


_SAME = Layout(lambda a: a, lambda a, _: a)
_TRANSPOSED = Layout(lambda a: a.transpose(1, 0), lambda a, _: a.transpose(1, 0))
# [N,D,H] ↔ [NH,D]
_HEADS_IN = Layout(
    lambda a: a.transpose(0, 2, 1).merge(0), lambda a, shape: a.split(0, (shape[0], shape[2])).transpose(0, 2, 1)
)
# [N,H,D] ↔ [D,NH]
_HEADS_OUT = Layout(lambda a: a.merge(0).transpose(1, 0), lambda a, shape: a.transpose(1, 0).split(0, shape[:2]))
# [E,n,h] ↔ [nh,E]
_VISION_IN = Layout(lambda a: a.merge(1).transpose(1, 0), lambda a, shape: a.transpose(1, 0).split(1, shape[1:]))
_BIAS = Layout(lambda a: a.merge(0), lambda a, shape: a.split(0, (shape[0], shape[1])))  # [n,h] ↔ [nh]
_PATCH = Layout(lambda a: a.transpose(3, 2, 0, 1), lambda a, _: a.transpose(2, 3, 1, 0))  # [p,p,3,E] ↔ [E,3,p,p]
_FIRST = Layout(lambda a: a.take(0, 0), lambda a, _: a.expand(0))  # [1,P,E] ↔ [P,E]


class _Row(NamedTuple):
    """`shape` is the canonical one. `cores`: several, stacked along axis 0, if there is a space between them.

    `ours`: this package's name; empty if the layout differs too (`names`).
    """

    canonical: str
    shape: str
    ours: str
    cores: str
    layout: Layout = _SAME


_Q, _K, _V = (f"self_attn.{part}_proj.weight" for part in "qkv")
_GROUPED = [
    _Row("attn/q_einsum/w", "N D H", "", _Q, _HEADS_IN),
    _Row("attn/kv_einsum/w", "2 K D H", "", f"{_K} {_V}", _HEADS_IN),
]
_UNGROUPED = [_Row("attn/qkv_einsum/w", "3 N D H", "", f"{_Q} {_K} {_V}", _HEADS_IN)]  # if K = N
_LAYER = [
    _Row("pre_attention_norm/scale", "D", "pre_attention_norm.scale", "input_layernorm.weight"),
    _Row("post_attention_norm/scale", "D", "post_attention_norm.scale", "post_attention_layernorm.weight"),
    _Row("pre_ffw_norm/scale", "D", "pre_ffw_norm.scale", "pre_feedforward_layernorm.weight"),
    _Row("post_ffw_norm/scale", "D", "post_ffw_norm.scale", "post_feedforward_layernorm.weight"),
    _Row("attn/_query_norm/scale", "H", "attention.query_norm.scale", "self_attn.q_norm.weight"),
    _Row("attn/_key_norm/scale", "H", "attention.key_norm.scale", "self_attn.k_norm.weight"),
    _Row("attn/attn_vec_einsum/w", "N H D", "", "self_attn.o_proj.weight", _HEADS_OUT),
    _Row("mlp/gating_einsum", "2 F D", "mlp.gate_up", "mlp.gate_proj.weight mlp.up_proj.weight"),
    _Row("mlp/linear", "F D", "", "mlp.down_proj.weight", _TRANSPOSED),
]
_MHA = "MultiHeadDotProductAttention_0"
_QKV = ("query", "key", "value")
_BLOCK = [
    _Row("LayerNorm_0/scale", "E", "attention_norm.scale", "layer_norm1.weight"),
    _Row("LayerNorm_0/bias", "E", "attention_norm.bias", "layer_norm1.bias"),
    _Row("LayerNorm_1/scale", "E", "mlp_norm.scale", "layer_norm2.weight"),
    _Row("LayerNorm_1/bias", "E", "mlp_norm.bias", "layer_norm2.bias"),
    *(_Row(f"{_MHA}/{part}/kernel", "E n h", "", f"self_attn.{part[0]}_proj.weight", _VISION_IN) for part in _QKV),
    *(_Row(f"{_MHA}/{part}/bias", "n h", "", f"self_attn.{part[0]}_proj.bias", _BIAS) for part in _QKV),
    _Row(f"{_MHA}/out/kernel", "n h E", "attention.out", "self_attn.out_proj.weight", _HEADS_OUT),
    _Row(f"{_MHA}/out/bias", "E", "attention.out_bias", "self_attn.out_proj.bias"),
    _Row("MlpBlock_0/Dense_0/kernel", "E M", "mlp.up", "mlp.fc1.weight", _TRANSPOSED),
    _Row("MlpBlock_0/Dense_0/bias", "M", "mlp.up_bias", "mlp.fc1.bias"),
    _Row("MlpBlock_0/Dense_1/kernel", "M E", "mlp.down", "mlp.fc2.weight", _TRANSPOSED),
    _Row("MlpBlock_0/Dense_1/bias", "E", "mlp.down_bias", "mlp.fc2.bias"),
]
_MM, _PATCHES = "embedder/mm_", "vision.embeddings.patch_embedding"
_VISION_REST = [
    _Row(f"{SIGLIP}/embedding/kernel", "p p 3 E", "vision.patch.kernel", f"{_PATCHES}.weight", _PATCH),
    _Row(f"{SIGLIP}/embedding/bias", "E", "vision.patch.bias", f"{_PATCHES}.bias"),
    _Row(f"{SIGLIP}/pos_embedding", "1 P E", "", "vision.embeddings.position_embedding.weight", _FIRST),
    _Row(f"{SIGLIP}/Transformer/encoder_norm/scale", "E", "vision.norm.scale", "vision.post_layernorm.weight"),
    _Row(f"{SIGLIP}/Transformer/encoder_norm/bias", "E", "vision.norm.bias", "vision.post_layernorm.bias"),
    _Row(f"{_MM}soft_embedding_norm/scale", "E", "vision.soft_token_norm.scale", "projector.mm_soft_emb_norm.weight"),
    _Row(f"{_MM}input_projection/w", "E D", "vision.projection", "projector.mm_input_projection_weight"),
]


class Parameter(NamedTuple):
    """A row of the table for one config: `_Row` with the names in full and the sizes."""

    canonical: str
    shape: tuple[int, ...]
    ours: str
    cores: list[str]
    layout: Layout


def parameters(config: GemmaConfig) -> Iterator[Parameter]:
    """The table's rows for all parameters of a model."""
    c, v = config, config.vision
    sizes = {"V": c.vocab_size, "D": c.embed_dim, "F": c.hidden_dim, "N": c.num_heads, "K": c.num_kv_heads}
    sizes |= {"1": 1, "2": 2, "3": 3, "H": c.head_dim}
    if v:
        sizes |= {"E": v.width, "M": v.mlp_dim, "n": v.num_heads, "h": v.head_dim, "p": v.patch_size}
        sizes["P"] = v.num_patches

    def expand(rows: Iterable[_Row], canonical: str = "", ours: str = "", core: str = "") -> Iterator[Parameter]:
        for row in rows:
            shape, cores = (sizes[letter] for letter in row.shape.split()), [core + name for name in row.cores.split()]
            yield Parameter(canonical + row.canonical, tuple(shape), row.ours and ours + row.ours, cores, row.layout)

    yield from expand([_Row(INPUT_TABLE, "V D", "embedder.table", TABLE)])
    if not c.tied_head:  # Google's implementation always ties it; the canonical name is this package's own
        yield from expand([_Row(OUTPUT_HEAD, "V D", "embedder.head", HEAD)])
    layer = [*_LAYER, *(_UNGROUPED if c.num_kv_heads == c.num_heads else _GROUPED)]
    for i in range(c.num_layers):
        yield from expand(layer, f"layer_{i}/", f"layers.{i}.", f"layers.{i}.")
    yield from expand([_Row("final_norm/scale", "D", "final_norm.scale", "norm.weight")])
    if v:
        for i in range(v.depth):
            names = f"{SIGLIP}/Transformer/encoderblock_{i}/", f"vision.blocks.{i}.", f"vision.encoder.layers.{i}."
            yield from expand(_BLOCK, *names)
        yield from expand(_VISION_REST)
