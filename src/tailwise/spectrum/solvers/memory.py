"""Giving freed memory back, so that a worker's peak is what it uses and not what it once used."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import lru_cache

#: Smaller matrices free too little to be worth the call.
WORTHWHILE = 1024


@lru_cache(maxsize=1)
def _trimmer() -> Callable[[int], object]:
    if not sys.platform.startswith("linux"):
        return lambda _: None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
    return trim if trim is not None else lambda _: None


def release_memory(side: int) -> None:
    """Return freed blocks to the system after work on a matrix with `side` eigenvalues.

    glibc keeps freed blocks of up to 32 MB in one arena per thread; with two workers that is half of the peak.
    """
    if side >= WORTHWHILE:
        _trimmer()(0)
