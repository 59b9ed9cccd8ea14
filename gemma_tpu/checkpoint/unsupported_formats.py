"""Identifies unsupported files by their first bytes, for error messages that say what to do instead."""

from __future__ import annotations

HEAD_BYTES = 512  # enough for every signature below

_EXPORT = "export the model with Hugging Face's save_pretrained"


def _unread(what: str, way_out: str = "take the safetensors or Orbax version of the model") -> str:
    return f"{what}, which is not read here: {way_out}"


def _archive(what: str) -> str:
    return f"{what} archive: unpack it and give the directory in it"


_KERAS = "write safetensors with Keras Hub's `export_to_transformers(path)`"
_PICKLE = (
    "PyTorch's pickle, which is not read here since unpickling a file runs what is in it: "
    f"load it with PyTorch, then {_EXPORT}"
)
# First bytes of a file. GGUF: gguf-py/gguf/constants.py; HDF5: its file format specification, section II.A; SBS:
# gemma.cpp, io/blob_store.cc; LITERTLM: LiteRT-LM, runtime/util/file_format_util.cc.
_SIGNATURES = {
    b"version https://git-lfs": ("a Git LFS pointer, not the file it stands for: run `git lfs pull` in its repository"),
    b"GGUF": "a GGUF file by another name: give the path of that file",
    b"\x89HDF\r\n\x1a\n": _unread("an HDF5 file (Keras)", _KERAS),
    b"SBS\n": _unread("a gemma.cpp file (.sbs)"),
    b"LITERTLM": _unread("a LiteRT-LM file (.litertlm)"),
    b"\x93NUMPY": _unread("a NumPy array"),
    b"\x1f\x8b": _archive("a gzip"),
    b"BZh": _archive("a bzip2"),
    b"\xfd7zXZ\x00": _archive("an xz"),
    b"\x28\xb5\x2f\xfd": _archive("a zstd"),
    b"7z\xbc\xaf\x27\x1c": _archive("a 7z"),
}
# Zip files, by the end of their first member's name.
_ZIP_MEMBERS = {
    "data.pkl": _PICKLE,
    ".npy": _unread("a NumPy archive (.npz)"),
    "metadata.json": _unread("a Keras model (.keras)", _KERAS),
    "TF_LITE_PREFILL_DECODE": _unread("a MediaPipe bundle (.task)"),
    "": _archive("a zip"),
}
# Formats without a signature, by the end of the file's name.
_SUFFIXES = {
    (".msgpack",): _unread("Flax's msgpack"),
    (".onnx",): _unread("an ONNX model"),
    (".distcp",): _unread("part of a PyTorch distributed checkpoint", _EXPORT),
    (".bin", ".pt", ".pth", ".ckpt"): _PICKLE,
    ("model.safetensors.index.json", "config.json"): "a file of a checkpoint: give the directory that it is in",
}


def identify(head: bytes, name: str = "") -> str | None:
    """What a file is and what to do about it, to complete a sentence ("<file> is …"); None if unknown.

    `head`: its first HEAD_BYTES, or all of it. `name` is used only if the bytes do not identify it.
    """
    if not head:
        return "empty: fetch it again"
    for signature, description in _SIGNATURES.items():
        if head.startswith(signature):
            return description
    if head[4:8] == b"TFL3":
        return _unread("a LiteRT model (.tflite)")
    if head.startswith(b"PK\x03\x04"):
        return _identify_zip(head)
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return _PICKLE
    if head[257:262] == b"ustar":
        return _archive("a tar")
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:20].lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, not the file that was asked for (a login or an error page?): fetch it again"
    if start.startswith((b"<?xml", b"<error")):
        return "a server's answer in XML, not the file that was asked for: fetch it again"
    return next((description for suffixes, description in _SUFFIXES.items() if name.endswith(suffixes)), None)


def _identify_zip(head: bytes) -> str:
    """A local file header has the length of its name at byte 26 and the name at byte 30 (PKWARE's APPNOTE, 4.3.7)."""
    member = head[30 : 30 + int.from_bytes(head[26:28], "little")].decode(errors="replace")
    return next(description for suffix, description in _ZIP_MEMBERS.items() if member.endswith(suffix))
