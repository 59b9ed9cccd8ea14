from __future__ import annotations


class CheckpointError(ValueError):
    """A checkpoint that cannot be found, read, understood or written. The message names the file or the parameters."""


class CheckpointWarning(UserWarning):
    """Something about a checkpoint that its user should know, though it can be used: said once, when it is opened."""
