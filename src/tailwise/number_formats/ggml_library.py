"""llama.cpp's own rounding, from a library of ggml that is installed: plain C, rows of float32 in, blocks out."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ctypes.util import find_library
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailwise.core.errors import UsageError
from tailwise.core.optional import how_to_get

if TYPE_CHECKING:
    import torch

#: Packages whose wheels export ggml's functions, and where in them the library lies.
_PACKAGES = (("xllamacpp", ""), ("llama_cpp", "lib"))
_PATTERNS = ("xllamacpp*.so", "xllamacpp*.pyd", "libggml-base.*", "ggml-base.dll")
#: Of the mean: below it ggml's sums of weights vanish, and with them the scales of a block.
_LEAST = 1e-6


@dataclass(frozen=True)
class GgmlLibrary:
    """One function of a library of ggml."""

    where: str
    chunk: Any  # ggml_quantize_chunk

    def rounded(
        self, entries: torch.Tensor, type_id: int, row_bytes: int, importances: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Blocks of (rows, cols) float32, as uint8 (rows, `row_bytes`); rows are spread over torch's threads.

        `importances` (cols,) weigh the squared error of each column: llama.cpp's imatrix.
        """
        import torch

        entries = entries.to("cpu", torch.float32).contiguous()
        weights = None if importances is None else importances.to("cpu", torch.float32).contiguous()
        rows, cols = entries.shape
        found = torch.empty(rows, row_bytes, dtype=torch.uint8)
        step = -(-rows // max(1, min(torch.get_num_threads(), rows)))

        def do(start: int) -> None:
            count = min(step, rows - start)
            told = None if weights is None else weights.data_ptr()
            self.chunk(type_id, entries.data_ptr(), found.data_ptr(), start * cols, count, cols, told)

        starts = range(0, rows, step)
        if len(starts) == 1:
            do(0)
            return found
        with ThreadPoolExecutor(len(starts), thread_name_prefix="tailwise-ggml") as pool:
            for done in [pool.submit(do, start) for start in starts]:
                done.result()
        return found


@lru_cache(maxsize=1)
def ggml_library() -> GgmlLibrary | None:
    """The first that is found and has the function; None where there is none."""
    for place in _places():
        try:
            chunk = ctypes.CDLL(place).ggml_quantize_chunk
        except (OSError, AttributeError):
            continue
        chunk.restype = ctypes.c_size_t
        chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
        return GgmlLibrary(place, chunk)
    return None


def needed_library(name: str) -> GgmlLibrary:
    """The library. `UsageError` where there is none."""
    found = ggml_library()
    if found is None:
        raise UsageError(
            f"{name} is rounded by llama.cpp's own code, and no library of ggml is installed", fix=how_to_get("ggml")
        )
    return found


def _places() -> Iterator[str]:
    for package, folder in _PACKAGES:
        spec = find_spec(package)
        for root in (spec.submodule_search_locations or ()) if spec else ():
            for pattern in _PATTERNS:
                yield from (str(path) for path in sorted((Path(root) / folder).glob(pattern)))
    if (system := find_library("ggml-base")) is not None:
        yield system


def told_importances(importances: torch.Tensor | None) -> torch.Tensor | None:
    """Importances that ggml can divide by, with a mean of 1; None where they say nothing."""
    if importances is None:
        return None
    mean = float(importances.double().mean())
    return importances.clamp(min=_LEAST * mean) / mean if 0.0 < mean < float("inf") else None
