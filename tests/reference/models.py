"""The tiny models on which gemma_tpu is compared with the reference implementations: configs, weights, inputs.

Needs numpy alone, because it is imported in three environments: each reference's own and that of the tests. Weights
and inputs come from `numpy.random.RandomState`, whose stream never changes, and are therefore not stored.
"""

from __future__ import annotations

import dataclasses
import re
import zlib

import numpy as np

# Ids of the tiny vocabularies. The references are told of them (or patched, where an id is a constant in the code).
BOS, START_OF_IMAGE, END_OF_IMAGE, DOUBLE_NEWLINE = 2, 5, 6, 7
FIRST_WORD = 16  # ordinary tokens start here, so that no random prompt holds a special one
SOFT_TOKEN = -1

Params = dict[str, np.ndarray]

TEXT = {
    "vocab_size": 256,
    "embed_dim": 64,
    "hidden_dim": 96,
    "num_layers": 8,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "sliding_window": 8,
    "query_scale": 16**-0.5,
    "local_rope_base": 10_000,
    "global_rope_base": 1_000_000,
    "global_rope_scale": 1.0,
}
TOWER = {
    "width": 32,
    "depth": 3,
    "mlp_dim": 80,
    "num_heads": 2,
    "image_size": 56,
    "patch_size": 7,
    "num_soft_tokens": 16,
}
# Wide enough for a whole image block, so that both references agree on its mask (GEMMA3.md, table of differences).
WIDE_WINDOW = {"sliding_window": 24}


@dataclasses.dataclass(frozen=True)
class Case:
    """One model and one batch of inputs.

    `prompts`: for each row, the lengths of its pieces of text; between two pieces stands an image.
    `start`: position of each row's first token. `far`: run the references with rotary angles from float64.
    `layers`: compare hidden states of every module too. `new_tokens`: continue greedily by so many tokens.
    `follow`: references whose outputs are binding.
    """

    name: str
    seed: int
    changes: dict = dataclasses.field(default_factory=dict)
    vision: dict | None = None
    prompts: tuple[tuple[int, ...], ...] = ()
    start: tuple[int, ...] | int = 0
    far: bool = False
    layers: bool = False
    new_tokens: int = 0
    columns: int = 32
    tolerance: float = 3e-4
    follow: tuple[str, ...] = ("gemma", "transformers")

    @property
    def config(self) -> dict:
        """Keyword arguments of `GemmaConfig`, with those of `VisionConfig` (or None) under "vision"."""
        return TEXT | self.changes | {"vision": self.vision}


def _scaled(scale: float) -> dict:
    return {"query_scale": scale}


CASES = [
    Case("one_kv_head", 1, {"num_kv_heads": 1}, prompts=((40,),)),
    Case("grouped_ragged", 2, prompts=((40,), (9,), (23,))),
    Case("kv_heads_equal_query_heads", 3, {"num_kv_heads": 4}, prompts=((31,), (12,))),
    Case("window_512", 4, {"sliding_window": 512, "global_rope_scale": 8.0}, prompts=((1300,),), columns=8),
    Case(
        "deep_27b_scale",
        5,
        {"num_layers": 14, "head_dim": 32, "global_rope_scale": 8.0} | _scaled(16**-0.5),
        prompts=((40,), (25,)),
        tolerance=8e-4,
    ),
    Case(
        "far_positions",
        6,
        {"global_rope_scale": 8.0},
        prompts=((40,), (40,), (40,)),
        start=(65_000, 131_032, 0),
        far=True,
    ),
    Case(
        "deep_far_positions",
        7,
        {"num_layers": 14, "num_kv_heads": 1},
        prompts=((40,), (33,)),
        start=(131_032, 100_001),
        far=True,
        tolerance=8e-4,
    ),
    Case("two_images", 8, WIDE_WINDOW, TOWER, prompts=((5, 7, 6), (9, 4), (20,)), layers=True, columns=16),
    Case("deep_image", 9, WIDE_WINDOW | {"num_layers": 14}, TOWER, prompts=((6, 12),), tolerance=8e-4),
    Case("image_longer_than_window", 10, {}, TOWER, prompts=((4, 9), (7, 3, 5)), follow=("gemma",)),
    Case("greedy_text", 26, {"global_rope_scale": 8.0}, prompts=((21,),), new_tokens=64),
    Case("greedy_image", 30, WIDE_WINDOW, TOWER, prompts=((5, 10),), new_tokens=64),
    Case("tower_27_blocks", 13, {"num_layers": 1}, TOWER | {"depth": 27, "mlp_dim": 72}),
    Case(
        "tower_896",
        14,
        {"num_layers": 1},
        TOWER | {"depth": 2, "image_size": 896, "patch_size": 14, "num_soft_tokens": 256},
    ),
]


def by_name(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


# --- weights -----------------------------------------------------------------------------------------------------


def _shapes(config: dict) -> dict[str, tuple[tuple[int, ...], float, float]]:
    """Name → shape, standard deviation, mean. Norms are far from their initial 0 and 1, so that none can be missed."""
    V, D, F = config["vocab_size"], config["embed_dim"], config["hidden_dim"]
    N, K, H = config["num_heads"], config["num_kv_heads"], config["head_dim"]
    out: dict[str, tuple[tuple[int, ...], float, float]] = {"embedder.table": ((V, D), D**-0.5, 0.0)}
    for i in range(config["num_layers"]):
        layer = f"layers.{i}."
        for norm in ("pre_attention_norm", "pre_ffw_norm"):
            out[f"{layer}{norm}.scale"] = ((D,), 0.4, 0.0)
        for norm in ("post_attention_norm", "post_ffw_norm"):  # large: else a tied head says its last token again
            out[f"{layer}{norm}.scale"] = ((D,), 0.4, 1.5)
        for norm in ("query_norm", "key_norm"):  # above 1: attention that discriminates shows a wrong mask
            out[f"{layer}attention.{norm}.scale"] = ((H,), 0.3, 0.3)
        out[f"{layer}attention.qkv"] = ((K, N // K + 2, H, D), D**-0.5, 0.0)
        out[f"{layer}attention.out"] = ((K, N // K, H, D), (N * H) ** -0.5, 0.0)
        out[f"{layer}mlp.gate_up"] = ((2, F, D), D**-0.5, 0.0)
        out[f"{layer}mlp.down"] = ((D, F), F**-0.5, 0.0)
    out["final_norm.scale"] = ((D,), 0.4, 2.0)
    vision = config["vision"]
    if vision:
        E, M, n, p = vision["width"], vision["mlp_dim"], vision["num_heads"], vision["patch_size"]
        patches = (vision["image_size"] // p) ** 2
        out["vision.patch.kernel"] = ((p, p, 3, E), (3 * p * p) ** -0.5, 0.0)
        out["vision.patch.bias"] = ((E,), 0.3, 0.0)
        out["vision.positions"] = ((patches, E), 0.5, 0.0)
        norms = [f"vision.blocks.{i}.{norm}" for i in range(vision["depth"]) for norm in ("attention_norm", "mlp_norm")]
        for norm in [*norms, "vision.norm"]:
            out[f"{norm}.scale"], out[f"{norm}.bias"] = ((E,), 0.3, 1.0), ((E,), 0.3, 0.0)
        for i in range(vision["depth"]):
            block = f"vision.blocks.{i}."
            out[f"{block}attention.qkv"] = ((3, n, E // n, E), 1.2 * E**-0.5, 0.0)
            out[f"{block}attention.qkv_bias"] = ((3, n, E // n), 0.3, 0.0)
            out[f"{block}attention.out"] = ((n, E // n, E), E**-0.5, 0.0)
            out[f"{block}attention.out_bias"] = ((E,), 0.3, 0.0)
            out[f"{block}mlp.up"], out[f"{block}mlp.up_bias"] = ((E, M), E**-0.5, 0.0), ((M,), 0.3, 0.0)
            out[f"{block}mlp.down"], out[f"{block}mlp.down_bias"] = ((M, E), M**-0.5, 0.0), ((E,), 0.3, 0.0)
        out["vision.soft_token_norm.scale"] = ((E,), 0.4, 0.0)
        out["vision.projection"] = ((E, D), E**-0.5, 0.0)
    return out


def weights(case: Case) -> Params:
    """float32 parameters under gemma_tpu's names. Each has a stream of its own, so none depends on the others."""
    params = {}
    for name, (shape, deviation, mean) in _shapes(case.config).items():
        random = np.random.RandomState([case.seed, zlib.crc32(name.encode())])
        turned = re.fullmatch(r"layers\.\d+\.mlp\.down", name)  # drawn as the goldens' programs keep it
        drawn = random.standard_normal(shape[::-1]).T if turned else random.standard_normal(shape)
        params[name] = np.ascontiguousarray(drawn * deviation + mean, np.float32)
    return params


def checksum(params: Params) -> float:
    """Tells a test that numpy made other weights than those of the goldens."""
    return float(sum(np.abs(value.astype(np.float64)).sum() for value in params.values()))


# --- inputs ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Inputs:
    """`tokens` int32[B, T]: one <start_of_image> per image, padded on the right with 0. `images` uint8[I, S, S, 3].

    `expanded` int32[B, T'] is what gemma's model makes of `tokens`: "\\n\\n" <start_of_image> soft tokens
    <end_of_image> "\\n\\n" for each image. `kept`: for each row, where its tokens stand in `expanded`; the "\\n\\n"
    before an image stands for its <start_of_image>, as in gemma's `remove_mm_logits`.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    start: np.ndarray
    images: np.ndarray
    images_per_row: tuple[int, ...]
    expanded: np.ndarray
    expanded_lengths: np.ndarray
    kept: tuple[np.ndarray, ...]

    @property
    def pixels(self) -> np.ndarray:
        """float32[I, S, S, 3] in [-1, 1], by the formula of gemma's `pre_process_image`."""
        return ((self.images.astype(np.float32) - np.float32(127.5)) / np.float32(127.5)).astype(np.float32)


def _pad(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array([len(row) for row in rows], np.int32)
    return np.stack([np.pad(row, (0, lengths.max() - len(row))) for row in rows]).astype(np.int32), lengths


def _picture(random: np.random.RandomState, side: int) -> np.ndarray:
    """Coarse coloured squares and some noise: patches that differ, near and far."""
    coarse = random.randint(0, 256, (8, 8, 3))
    picture = np.kron(coarse, np.ones((-(-side // 8), -(-side // 8), 1)))[:side, :side]
    return np.clip(picture + random.randint(-30, 31, (side, side, 3)), 0, 255).astype(np.uint8)


def inputs(case: Case) -> Inputs:
    """The batch of a case; a case without prompts has two images and no text."""
    random = np.random.RandomState([case.seed, 0])
    config, vision = case.config, case.vision
    num_soft = vision["num_soft_tokens"] if vision else 0
    block = [DOUBLE_NEWLINE, START_OF_IMAGE, *[SOFT_TOKEN] * num_soft, END_OF_IMAGE, DOUBLE_NEWLINE]
    rows, expanded, kept = [], [], []
    for pieces in case.prompts:
        row, long, at = [BOS], [BOS], [0]
        for piece, length in enumerate(pieces):
            if piece:
                at.append(len(long))
                row.append(START_OF_IMAGE)
                long.extend(block)
            words = random.randint(FIRST_WORD, config["vocab_size"], length - (piece == 0))  # BOS counts as one
            at.extend(range(len(long), len(long) + len(words)))
            row.extend(words)
            long.extend(words)
        rows.append(np.array(row))
        expanded.append(np.array(long))
        kept.append(np.array(at))
    images_per_row = tuple(len(pieces) - 1 for pieces in case.prompts)
    side = vision["image_size"] if vision else 1
    count = sum(images_per_row) if case.prompts else (1 if side > 500 else 2)
    images = np.stack([_picture(random, side) for _ in range(count)]) if count else np.zeros((0, 1, 1, 3), np.uint8)
    tokens, lengths = _pad(rows or [np.array([BOS])])
    expanded_tokens, expanded_lengths = _pad(expanded or [np.array([BOS])])
    start = np.broadcast_to(np.array(case.start, np.int32), (len(tokens),))
    return Inputs(tokens, lengths, start, images, images_per_row, expanded_tokens, expanded_lengths, tuple(kept))


def vocabulary(case: Case) -> np.ndarray:
    """The columns of the logits that are stored; their logsumexp covers the rest."""
    random = np.random.RandomState([case.seed, 1])
    return np.sort(random.permutation(case.config["vocab_size"])[: case.columns])


CHANNELS = slice(0, None, 4)  # of hidden states, for the same reason


def rope_angles(length: int, head_dim: int, base: float, scale: float) -> np.ndarray:
    """float64[length, H/2]: position / scale * base^(-2i/H), for references whose own float32 angles drift."""
    return np.arange(length)[:, None] / scale * base ** -(np.arange(0, head_dim, 2) / head_dim)


def summary(case: Case, logits: np.ndarray) -> dict[str, np.ndarray]:
    """What is stored of logits [tokens, V] of all kept tokens, row after row."""
    logits64 = logits.astype(np.float64)
    top = logits64.max(axis=-1)
    return {
        "logits": logits[:, vocabulary(case)].astype(np.float32),
        "logsumexp": (top + np.log(np.exp(logits64 - top[:, None]).sum(axis=-1))).astype(np.float32),
    }
