from __future__ import annotations


class CheckpointError(ValueError):
    """A checkpoint that cannot be found, read, understood or written. The message names the file or the parameters."""
