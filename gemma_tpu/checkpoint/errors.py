from __future__ import annotations


class CheckpointError(ValueError):
    """A checkpoint cannot be found, read, interpreted or written. The message names the file or the parameters."""


class CheckpointWarning(UserWarning):
    """A problem with a checkpoint that is usable nonetheless."""
