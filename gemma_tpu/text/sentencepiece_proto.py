"""The protobuf messages of SentencePiece models, for reading and writing their pieces with scores and types."""

from __future__ import annotations

from typing import Any


def model_proto() -> Any:
    """The class `ModelProto`. Raises ValueError if protobuf does not fit sentencepiece."""
    try:
        # Imported here since it fails with some versions of protobuf.
        from sentencepiece import sentencepiece_model_pb2
    except Exception as error:
        raise ValueError(
            f"sentencepiece and protobuf do not fit together ({error}): pip install -U protobuf"
        ) from error
    messages: Any = sentencepiece_model_pb2  # untyped: its classes are created at import
    return messages.ModelProto
