"""One BLAS thread for a while: whole matrices go to single-threaded workers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_GUARD = threading.Lock()
#: How many are within, and the setting that the last of them gives back.
_WITHIN: list[int] = []


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch's kernels on the calling thread alone; the setting comes back when nobody is within any more.

    The setting is partly the process's: given back while another task is under way, it would change how that one adds.
    """
    import torch

    with _GUARD:
        _WITHIN.append(_WITHIN[0] if _WITHIN else torch.get_num_threads())
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _GUARD:
            before = _WITHIN.pop()
            if not _WITHIN:
                torch.set_num_threads(before)
