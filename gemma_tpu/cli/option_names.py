"""What the library's errors call an argument, as the command line calls it: --max-context for max_context."""

from __future__ import annotations

import re
from collections.abc import Mapping


def as_options(message: str, options: Mapping[str, str]) -> str:
    """`message` with its names of arguments as `options` has them.

    A name that may be an ordinary word ("mesh") is one only where the message begins with it: "mesh must be …".
    """
    unmistakable = {name: option for name, option in options.items() if "_" in name}
    message = re.sub(r"^(\w+)(?=: | must | \()", lambda found: options.get(found[1], found[1]), message)
    # Not a part of a path.
    return re.sub(r"(?<![\w./-])\w+(?![\w/-]|\.\w)", lambda found: unmistakable.get(found[0], found[0]), message)
