"""Whose products and whose reductions are the fastest on this processor: measured, not known by name.

Torch brings one library (on x86 usually MKL), numpy and scipy another (OpenBLAS). Which has better kernels depends on
the processor, the precision and the size; a factor of two either way is common.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tailwise.core.errors import UsageError
from tailwise.core.execution.executor import one_thread
from tailwise.core.recipe import BlasAsked, Precision
from tailwise.spectrum.solvers import openblas
from tailwise.spectrum.solvers.gram import MAX_DEPTH, AddProduct, Reduce, add_product
from tailwise.spectrum.solvers.symmetric import TOLERANCE, by_torch

_log = logging.getLogger(__name__)
#: Sizes that are measured, each when it is first met; a matrix goes by the nearest, and below the limit nothing can be
#: gained. Reductions in one stage and in two scale differently: what is ahead at 1024 may be behind at 2048 and above.
_SIZES, _LEAST = (512, 1024, 2048), 384
#: Another library is taken where it needs at most this share of torch's time: noise must not choose.
_CLEARLY = 0.9
#: How often each is timed, after a run that is checked; where that takes so many seconds, it is enough.
_TIMES, _LONG = 3, 0.1


@dataclass(frozen=True)
class Blas:
    """The library of each step, by name."""

    product: str = "torch"
    reduction: str = "torch"

    @property
    def add(self) -> AddProduct:
        """For `gram`."""
        return openblas.add_product if self.product == "openblas" else add_product

    @property
    def reduce(self) -> Reduce | None:
        """For `eigenvalues_of`."""
        return _reduce_by_openblas if self.reduction == "openblas" else None


def _reduce_by_openblas(triangle: torch.Tensor) -> torch.Tensor:
    return openblas.eigenvalues(triangle[None])[0]


def measured(size: int, dtype: torch.dtype) -> dict[str, dict[str, float]]:
    """Step → library → seconds at m = size, on as many threads as torch has; without what is wrong, or not there."""
    block = torch.randn(MAX_DEPTH, size, generator=torch.Generator().manual_seed(size)).to(dtype)
    dense, known = _of_known_spectrum(size)
    dense, limit = dense.to(dtype), TOLERANCE * math.sqrt(size) * torch.finfo(dtype).eps
    product = block.double().T @ block.double()

    def off_product(found: torch.Tensor) -> float:
        return float((found.double() - product).tril().abs().max() / product.diagonal().max())

    def off_values(found: torch.Tensor) -> float:
        return float((found.double() - known).abs().max() / known[-1])

    def products(add: AddProduct) -> Callable[[torch.Tensor], torch.Tensor]:
        def run(into: torch.Tensor) -> torch.Tensor:
            add(into, block)
            return into

        return run

    empty = torch.zeros(size, size, dtype=dtype)
    steps: dict[str, Any] = {
        "product": (empty, off_product, {"torch": products(add_product), "openblas": products(openblas.add_product)}),
        "reduction": (dense, off_values, {"torch": by_torch, "openblas": _reduce_by_openblas}),
    }
    found = {step: {name: _seconds(run, given, off, limit) for name, run in ways.items()}
             for step, (given, off, ways) in steps.items()}  # fmt: skip
    return {step: {name: took for name, took in times.items() if math.isfinite(took)} for step, times in found.items()}


def _of_known_spectrum(m: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A dense symmetric matrix, (m, m), and its eigenvalues: second differences seen through a reflection."""
    line = torch.arange(1, m + 1, dtype=torch.float64)
    T = torch.diag(torch.full((m,), 2.0, dtype=torch.float64))
    T -= torch.diag(torch.ones(m - 1, dtype=torch.float64), 1) + torch.diag(torch.ones(m - 1, dtype=torch.float64), -1)
    u = torch.cos(line)
    u /= u.norm()
    Tu = T @ u
    w = Tu - u * (u @ Tu)
    dense = T - 2 * (torch.outer(u, w) + torch.outer(w, u))
    return dense, 2 - 2 * torch.cos(math.pi * line / (m + 1))


def _seconds(
    run: Callable[[torch.Tensor], torch.Tensor],
    given: torch.Tensor,
    off: Callable[[torch.Tensor], float],
    limit: float,
) -> float:
    try:
        found, first = _clocked(run, given.clone())
        if not off(found) <= limit:
            return math.inf
        if first >= _LONG:
            return first
        return min(_clocked(run, given.clone())[1] for _ in range(_TIMES))
    except (ImportError, RuntimeError, ArithmeticError, OSError) as error:
        _log.info("not usable: %s", error)
        return math.inf


def _clocked(run: Callable[[torch.Tensor], torch.Tensor], given: torch.Tensor) -> tuple[torch.Tensor, float]:
    # On one thread, time of the processor: what else the machine does must not choose.
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    started = clock()
    found = run(given)
    return found, clock() - started


#: What this process has measured.
_MEASURED: dict[str, Any] = {}
_GUARD = threading.Lock()


class BlasChoice:
    """The fastest libraries for a size and a precision, measured when a size is first met.

    `asked` names a library for everything instead. `known` and `keep` look up and note what was measured, beside what
    this process remembers: name of the case → step → library → seconds.
    """

    def __init__(
        self,
        asked: BlasAsked = "auto",
        known: Callable[[str], Any] = lambda _: None,
        keep: Callable[[str, Any], None] = lambda *_: None,
    ) -> None:
        if asked == "openblas" and openblas.library() is None:
            raise UsageError(
                "no OpenBLAS with what is needed is loaded here",
                fix="leave the library to be chosen, or install numpy from its wheels",
            )
        self._asked, self._known, self._keep = asked, known, keep
        self._taken: set[Blas] = set()

    def __call__(self, m: int, precision: Precision) -> Blas:
        """For a matrix with `m` eigenvalues."""
        taken = self._best(m, precision)
        self._taken.add(taken)
        return taken

    @property
    def told(self) -> str:
        """Whose products and reductions were taken so far, beside torch's; "" where only these were."""
        others = sorted({f"{step} by {name}" for blas in self._taken
                         for step, name in (("products", blas.product), ("reductions", blas.reduction))
                         if name != "torch"})  # fmt: skip
        blas = openblas.library() if others else None
        return f"{', '.join(others)} ({blas.name})" if blas else ""

    def _best(self, m: int, precision: Precision) -> Blas:
        if self._asked != "auto":
            return Blas(self._asked, self._asked)
        if m < _LEAST or openblas.library() is None:
            return Blas()
        times = self.times(min(_SIZES, key=lambda size: abs(math.log(m / size))), precision)
        return Blas(*(_fastest(times[step]) for step in ("product", "reduction")))

    def times(self, size: int, precision: Precision) -> Mapping[str, Mapping[str, float]]:
        """Step → library → seconds at m = `size`."""
        name = f"{_libraries()}, {precision}, {size}, {torch.get_num_threads()} threads"
        with _GUARD:
            found = _MEASURED.get(name)
            if found is None:
                found = _usable(self._known(name))
                if found is None:
                    found = measured(size, getattr(torch, precision))
                    self._keep(name, found)
                _MEASURED[name] = found
        return found


def _libraries() -> str:
    """What was measured against what: another version, or another processor, is another case."""
    blas, mkl = openblas.library(), torch._C.has_mkl
    return f"{blas.name if blas else 'no OpenBLAS'} and torch {torch.__version__}{' with MKL' if mkl else ''}"


def _fastest(seconds: Mapping[str, float]) -> str:
    best = min(seconds, key=lambda name: seconds[name], default="torch")
    return best if seconds.get(best, math.inf) <= _CLEARLY * seconds.get("torch", math.inf) else "torch"


def _usable(noted: Any) -> Mapping[str, Mapping[str, float]] | None:
    """A note as it must be, or None: others may have written it."""
    if not isinstance(noted, dict) or set(noted) != {"product", "reduction"}:
        return None
    for times in noted.values():
        if not isinstance(times, dict) or not set(times) <= {"torch", "openblas"}:
            return None
        if not all(isinstance(value, float) for value in times.values()):
            return None
    return noted


def described() -> str:
    """What is taken for large matrices on this machine, measured now on one thread."""
    kinds: tuple[Precision, ...] = ("float64", "float32")
    with one_thread():
        parts = [f"{kind}: {_told(HERE.times(_SIZES[-1], kind))}" for kind in kinds]
    return f"{_libraries()}; " + "; ".join(parts)


def _told(times: Mapping[str, Mapping[str, float]]) -> str:
    said = []
    for step, seconds in times.items():
        best = _fastest(seconds)
        gain = seconds.get("torch", math.inf) / seconds[best] if best in seconds else 1.0
        said.append(f"{step} by {best}" + (f" ({gain:.1f} ×)" if best != "torch" else ""))
    return ", ".join(said)


#: Of whatever is solved without an audit around it.
HERE = BlasChoice()
