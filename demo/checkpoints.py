"""The checkpoints that visitors may choose among; one of them is loaded at a time, for everyone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from gemma_tpu import Loader, Model

Progress = Callable[[int, int], None]


class Checkpoints:
    """`load(name, progress)` loads one of `names`, of which the loader begins with the first."""

    def __init__(self, names: Sequence[str], load: Callable[[str, Progress], Model]) -> None:
        self.names, self._load = tuple(dict.fromkeys(names)), load
        self.loader = Loader(self.names[0], functools.partial(load, self.names[0]))

    def choose(self, name: str) -> None:
        """Loads `name` in place of what is loaded, whose answers end. ValueError if it is none of `names`."""
        if name not in self.names:
            raise ValueError(f"{name} is not among the checkpoints that this demo was started with")
        if name == self.loader.name:
            self.loader.start()
        else:
            self.loader.switch(name, functools.partial(self._load, name))

    def unload(self) -> None:
        """Frees the model, or gives up its loading."""
        self.loader.close()
