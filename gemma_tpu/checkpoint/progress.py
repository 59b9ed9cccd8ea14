"""Progress reports in bytes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from tqdm import tqdm

Progress = Callable[[int, int], None]  # bytes done, total bytes


@contextlib.contextmanager
def reporter(progress: Progress | bool, total: int, title: str = "Loading") -> Iterator[Callable[[int], None]]:
    """Yields a thread-safe function to call with byte counts, which updates a progress bar or calls `progress`.

    An exception of `progress` propagates out of this context unchanged, even if the body wraps it.
    """
    lock = threading.Lock()
    done = 0
    raised: BaseException | None = None
    bar_format = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}B/{total_fmt}B [{elapsed}<{remaining}]"
    with tqdm(total=total, desc=title, unit_scale=True, bar_format=bar_format, disable=progress is not True) as bar:

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
                raise raised from raised.__cause__  # without the wrapping exception as its context
