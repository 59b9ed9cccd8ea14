"""Identifies unsupported files by their first bytes, for error messages that say what to do instead."""

from __future__ import annotations

HEAD_BYTES = 512  # enough for every signature below

_ELSEWHERE = "take the safetensors or Orbax version of the model"
_EXPORT = "export the model with Hugging Face's save_pretrained"

# First bytes of a file. GGUF: gguf-py/gguf/constants.py; HDF5: its file format specification, section II.A; SBS:
# gemma.cpp, io/blob_store.cc; LITERTLM: LiteRT-LM, runtime/util/file_format_util.cc.
_SIGNATURES: list[tuple[bytes, str]] = [
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the file it stands for: run `git lfs pull` in its repository",
    ),
    (b"GGUF", f"a GGUF file (llama.cpp, Ollama), which is not read here: {_ELSEWHERE}"),
    (
        b"\x89HDF\r\n\x1a\n",
        "an HDF5 file (Keras), which is not read here: write safetensors with Keras Hub's "
        "`export_to_transformers(path)`",
    ),
    (b"SBS\n", f"a gemma.cpp file (.sbs), which is not read here: {_ELSEWHERE}"),
    (b"LITERTLM", f"a LiteRT-LM file (.litertlm), which is not read here: {_ELSEWHERE}"),
    (b"\x93NUMPY", f"a NumPy array, which is not read here: {_ELSEWHERE}"),
    (b"\x1f\x8b", "a gzip archive: unpack it and give the directory in it"),
    (b"BZh", "a bzip2 archive: unpack it and give the directory in it"),
    (b"\xfd7zXZ\x00", "an xz archive: unpack it and give the directory in it"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive: unpack it and give the directory in it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it and give the directory in it"),
]
_PICKLE = (
    "PyTorch's pickle, which is not read here since unpickling a file runs what is in it: "
    f"load it with PyTorch, then {_EXPORT}"
)
# Zip files, by the end of their first member's name.
_ZIP_MEMBERS: list[tuple[str, str]] = [
    ("data.pkl", _PICKLE),
    (".npy", f"a NumPy archive (.npz), which is not read here: {_ELSEWHERE}"),
    (
        "metadata.json",
        "a Keras model (.keras), which is not read here: write safetensors with Keras Hub's "
        "`export_to_transformers(path)`",
    ),
    ("TF_LITE_PREFILL_DECODE", f"a MediaPipe bundle (.task), which is not read here: {_ELSEWHERE}"),
]
# Formats without a signature, by the end of the file's name.
_SUFFIXES: list[tuple[tuple[str, ...], str]] = [
    ((".msgpack",), f"Flax's msgpack, which is not read here: {_ELSEWHERE}"),
    ((".onnx",), f"an ONNX model, which is not read here: {_ELSEWHERE}"),
    ((".distcp",), f"part of a PyTorch distributed checkpoint, which is not read here: {_EXPORT}"),
    ((".bin", ".pt", ".pth", ".ckpt"), _PICKLE),
    (
        ("model.safetensors.index.json", "config.json"),
        "a file of a checkpoint: give the directory that it is in",
    ),
]


def identify(head: bytes, name: str = "") -> str | None:
    """What a file is and what to do about it, to complete a sentence ("<file> is …"); None if unknown.

    `head`: its first HEAD_BYTES, or all of it. `name` is used only if the bytes do not identify it.
    """
    if not head:
        return "empty: fetch it again"
    for signature, description in _SIGNATURES:
        if head.startswith(signature):
            return description
    if head[4:8] == b"TFL3":
        return f"a LiteRT model (.tflite), which is not read here: {_ELSEWHERE}"
    if head.startswith(b"PK\x03\x04"):
        return _identify_zip(head)
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return _PICKLE
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it and give the directory in it"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:20].lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, not the file that was asked for (a login or an error page?): fetch it again"
    if start.startswith((b"<?xml", b"<error")):
        return "a server's answer in XML, not the file that was asked for: fetch it again"
    return next((description for suffixes, description in _SUFFIXES if name.endswith(suffixes)), None)


def _identify_zip(head: bytes) -> str:
    """A local file header has the length of its name at byte 26 and the name at byte 30 (PKWARE's APPNOTE, 4.3.7)."""
    member = head[30 : 30 + int.from_bytes(head[26:28], "little")].decode(errors="replace")
    for suffix, description in _ZIP_MEMBERS:
        if member.endswith(suffix):
            return description
    return "a zip archive: unpack it and give the directory in it"
