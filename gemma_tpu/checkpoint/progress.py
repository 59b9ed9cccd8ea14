"""Progress of work that is counted in bytes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from tqdm import tqdm

Progress = Callable[[int, int], None]  # bytes done, bytes in all


@contextlib.contextmanager
def reporter(progress: Progress | bool, total: int, title: str = "Loading") -> Iterator[Callable[[int], None]]:
    """A function that is told bytes as they are done, by any thread, and shows them or passes them on.

    What `progress` raises ends the work and leaves this context as it was raised, whatever the work has made of it.
    """
    lock = threading.Lock()
    done = 0
    raised: BaseException | None = None
    shape = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}B/{total_fmt}B [{elapsed}<{remaining}]"
    with tqdm(total=total, desc=title, unit_scale=True, bar_format=shape, disable=progress is not True) as bar:

        def report(count: int) -> None:
            nonlocal done, raised
            with lock:
                done += count
                bar.update(count)
                if callable(progress) and raised is None:
                    try:
                        progress(done, total)
                    except BaseException as error:
                        raised = error
                        raise

        try:
            yield report
        finally:
            if raised is not None:
                raise raised from raised.__cause__  # not in the context of what came of it
