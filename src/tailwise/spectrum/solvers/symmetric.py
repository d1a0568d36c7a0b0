"""Which way to the eigenvalues of a dense symmetric matrix is fastest here: measured, not known by name.

On a CPU that is LAPACK through torch. On a GPU it changes with the library's version, the size and how many matrices
there are at once: torch's dispatch has been two orders of magnitude slower than CuPy's for batches, and a dense solver
can leave nearly all of the device idle.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.dlpack import from_dlpack

from tailwise.spectrum.solvers import tridiagonal, two_stage
from tailwise.spectrum.solvers.gpu_streams import finish

_log = logging.getLogger(__name__)
#: (b, m, m) given by lower triangles, which may be overwritten → (b, m), ascending.
Solver = Callable[[torch.Tensor], torch.Tensor]
#: Larger matrices are solved as ones of this size are.
LARGEST_MEASURED = 4096
#: Matrices of a batch that is measured.
MANY = 4
#: A solver that is further off than this many ε·λ_max·√m is not taken, however fast.
TOLERANCE = 64.0


def by_torch(batch: torch.Tensor) -> torch.Tensor:
    """What torch has for the device: LAPACK, cuSOLVER or MAGMA."""
    values: torch.Tensor = torch.linalg.eigvalsh(batch, UPLO="L")
    return values


def by_torch_singly(batch: torch.Tensor) -> torch.Tensor:
    """The same, one matrix at a time: batches take another path there, and not always a faster one."""
    return torch.stack([by_torch(matrix) for matrix in batch])


def by_cupy(batch: torch.Tensor) -> torch.Tensor:
    """cuSOLVER through CuPy, which shares the memory."""
    import cupy

    values: torch.Tensor = from_dlpack(cupy.linalg.eigvalsh(cupy.from_dlpack(batch), UPLO="L"))
    return values


SOLVERS: Mapping[str, Solver] = {
    "torch": by_torch,
    "torch-singly": by_torch_singly,
    "tridiagonal": tridiagonal.eigenvalues,
    "two-stage": two_stage.eigenvalues,
    "cupy": by_cupy,
}


def candidates(device: torch.device, count: int) -> list[str]:
    """Solvers that can run on `device`; the first is right everywhere."""
    names = ["torch", *(["torch-singly"] if count > 1 else []), "tridiagonal", "two-stage"]
    return names + (["cupy"] if device.type == "cuda" and importlib.util.find_spec("cupy") else [])


def measured(m: int, count: int, dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    """Seconds for each matrix of a batch, by solver. One that fails, or is wrong, is infinitely slow."""
    stream = torch.Generator().manual_seed(m)
    W = torch.randn(count, m + m // 4, m, generator=stream).to(device, dtype)
    given = W.mT @ W
    del W
    exact: torch.Tensor | None = None
    seconds: dict[str, float] = {}
    for name in candidates(device, count):
        try:
            values = SOLVERS[name](given.clone())  # also loads what the first call loads
            seconds[name] = _seconds(name, given) / count
        except (RuntimeError, ArithmeticError, ImportError) as error:
            _log.warning("the solver %s cannot be used for %d × (%d, %d): %s", name, count, m, m, error)
            seconds[name] = math.inf
            continue
        exact = values if exact is None else exact
        limit = TOLERANCE * math.sqrt(m) * torch.finfo(dtype).eps
        if not bool(((values - exact).abs().amax(1) <= limit * exact[:, -1]).all()):
            _log.warning("the solver %s is off for %d × (%d, %d)", name, count, m, m)
            seconds[name] = math.inf
    return seconds


def _seconds(name: str, given: torch.Tensor) -> float:
    batch = given.clone()
    finish(given.device)
    started = time.perf_counter()
    SOLVERS[name](batch)
    finish(given.device)
    return time.perf_counter() - started


class SolverChoice:
    """The fastest solver for each size, measured when a size is first met.

    `known` and `keep` look up and note what was measured: name of the size → solver → seconds.
    """

    def __init__(
        self,
        known: Callable[[str], Any] = lambda _: None,
        keep: Callable[[str, dict[str, float]], None] = lambda *_: None,
    ) -> None:
        self._known, self._keep = known, keep
        self._chosen: dict[str, str] = {}

    def __call__(self, batch: torch.Tensor) -> str:
        """The solver to take for (b, m, m)."""
        m, count = size_class(batch.shape[1]), MANY if len(batch) > 1 else 1
        key = f"{_name(batch.device)} {batch.dtype} {m} {count}"
        if key not in self._chosen:
            solver = _usable(self._known(key), candidates(batch.device, count))
            if not solver:
                solver = measured(m, count, batch.dtype, batch.device)
                self._keep(key, {name: value for name, value in solver.items() if math.isfinite(value)})
            self._chosen[key] = min(solver, key=lambda name: solver[name])
            _log.info("%s: %s of %s", key, self._chosen[key], solver)
        return self._chosen[key]


def _usable(noted: Any, names: list[str]) -> dict[str, float]:
    """What a note says of solvers that can run here: whoever measured may have had another library installed."""
    if not isinstance(noted, dict):
        return {}
    return {name: noted[name] for name in names if isinstance(noted.get(name), float)}


def size_class(m: int) -> int:
    """The power of two nearest to m, between 64 and the largest that is measured."""
    return min(max(64, 1 << round(math.log2(max(m, 1)))), LARGEST_MEASURED)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
