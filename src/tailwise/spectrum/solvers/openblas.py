"""Products and reductions by the OpenBLAS that numpy or scipy brought: a rank-k update, and eigenvalues in two stages.

Torch has neither. Its products compute both triangles, and its reduction to tridiagonal form does half of its work in
products of a matrix and a vector, at the speed of memory. LAPACK's `sytrd_sy2sb` goes to a band by products of
matrices, `sytrd_sb2st` from there to a tridiagonal matrix (Haidar, Ltaief & Dongarra 2011), and `sterf` finds its
eigenvalues.
"""

from __future__ import annotations

import ctypes
import re
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import torch

from tailwise.core.execution.executor import HeldSetting
from tailwise.spectrum.solvers.tridiagonal import mirrored

#: What is called, without the letter of the precision.
_NEEDED = ("syrk", "sytrd_sy2sb", "sytrd_sb2st", "sterf")
#: How builds spell a routine. Sizes are given as 64-bit integers, of which a build with 32 bits reads the low half.
_SPELLINGS = ("scipy_{}_64_", "scipy_{}_", "{}_64_", "{}_")
_LETTERS = {torch.float64: "d", torch.float32: "s"}
#: Diagonals of the band below the main one: wider is faster to reach, and slower to leave.
_BAND, _WIDE_BAND, _LARGE = 48, 64, 3072
_TILE = 512
#: Smaller matrices have no band to speak of.
_LEAST = 8


class OpenBLAS:
    """One loaded library, and its routines by name."""

    def __init__(self, controller: Any) -> None:
        self.controller = controller
        self.spelling = next(
            (form for form in _SPELLINGS if hasattr(controller.dynlib, form.format("dsytrd_sy2sb"))), ""
        )

    @property
    def usable(self) -> bool:
        """Whether it has all that is called, in both precisions."""
        names = (letter + name for letter in _LETTERS.values() for name in _NEEDED)
        return bool(self.spelling) and all(
            hasattr(self.controller.dynlib, self.spelling.format(name)) for name in names
        )

    def age(self) -> tuple[int, ...]:
        """Its version, in numbers."""
        return tuple(int(part) for part in re.findall(r"\d+", str(self.controller.version)))

    @property
    def name(self) -> str:
        """Version and the processor that its kernels were written for: `OpenBLAS 0.3.31, SkylakeX`."""
        return f"OpenBLAS {self.controller.version}, {self.controller.architecture}"

    def __call__(self, name: str, dtype: torch.dtype, *arguments: Any) -> None:
        """Run a routine; whole numbers are passed as Fortran takes them, arrays and tensors by address."""
        routine = getattr(self.controller.dynlib, self.spelling.format(_LETTERS[dtype] + name))
        routine.restype = None
        routine(*map(_passed, arguments))


def _passed(value: Any) -> Any:
    if isinstance(value, int):
        return ctypes.byref(ctypes.c_int64(value))
    if isinstance(value, torch.Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.byref(value) if isinstance(value, ctypes._SimpleCData) else value


@cache
def library() -> OpenBLAS | None:
    """The newest loaded OpenBLAS that has what is needed; None where there is none (Accelerate, MKL, old builds)."""
    import scipy.linalg  # noqa: F401 - brings its library along; numpy's is there already
    from threadpoolctl import ThreadpoolController

    found = ThreadpoolController().select(internal_api="openblas").lib_controllers
    usable = [item for item in map(OpenBLAS, found) if item.usable]
    return max(usable, key=OpenBLAS.age, default=None)


def _needed() -> OpenBLAS:
    found = library()
    if found is None:
        raise ImportError("no OpenBLAS with reductions in two stages is loaded")
    return found


_THREADS = HeldSetting()


def _as_many_threads(blas: OpenBLAS) -> AbstractContextManager[None]:
    """As many threads as torch has, which is what the user or the pool of workers decided on."""
    control = blas.controller
    return _THREADS.at(torch.get_num_threads(), control.get_num_threads, control.set_num_threads)


def add_product(triangle: torch.Tensor, block: torch.Tensor) -> None:
    """Add blockᵀ·block, block (depth × m), to the lower triangle of (m × m), both in one precision on the CPU."""
    depth, m = block.shape
    # As Fortran sees them, the triangle is an upper one, and a block that lies along its rows is its own transpose.
    along_rows = block.stride(1) == 1 and block.stride(0) >= m
    if not along_rows and not (block.stride(0) == 1 and block.stride(1) >= depth):
        block, along_rows = block.contiguous(), True
    leading = block.stride(0) if along_rows else block.stride(1)
    one = (ctypes.c_double if block.dtype is torch.float64 else ctypes.c_float)(1.0)
    blas = _needed()
    with _as_many_threads(blas):
        blas("syrk", block.dtype, b"U", b"N" if along_rows else b"T", m, depth, one, block, max(leading, 1), one,
             triangle, triangle.stride(0))  # fmt: skip


def eigenvalues(batch: torch.Tensor) -> torch.Tensor:
    """Eigenvalues of (b, m, m), given by its lower triangles: (b, m), ascending. `batch` is overwritten."""
    return torch.stack([_eigenvalues(matrix) for matrix in batch])


def _eigenvalues(matrix: torch.Tensor) -> torch.Tensor:
    m, matrix = len(matrix), matrix.contiguous()
    if m < _LEAST:
        few: torch.Tensor = torch.linalg.eigvalsh(matrix, UPLO="L")
        return few
    _mirror(matrix)
    blas, dtype, width = _needed(), matrix.dtype, min(_BAND if m < _LARGE else _WIDE_BAND, m // 2)
    band, scales = matrix.new_zeros(m, width + 1), matrix.new_empty(m)
    values, beside, info = matrix.new_empty(m), matrix.new_empty(m), ctypes.c_int64(0)
    with _as_many_threads(blas):
        to_band = ("sytrd_sy2sb", dtype, b"L", m, width, matrix, m, band, width + 1, scales)
        _run(blas, to_band, info, [matrix.new_zeros(1)])
        to_lines = ("sytrd_sb2st", dtype, b"Y", b"N", b"L", m, width, band, width + 1, values, beside)
        _run(blas, to_lines, info, [matrix.new_zeros(1), matrix.new_zeros(1)])
        blas("sterf", dtype, m, values, beside, info)
    _check(info)
    return values


def _mirror(matrix: torch.Tensor) -> None:
    # What lies below the diagonal along our rows lies above it for Fortran, whose path over the lower one is faster.
    for left in range(0, len(matrix), _TILE):
        right = min(left + _TILE, len(matrix))
        mirrored(matrix[None, left:right, left:right])
        matrix[left:right, right:] = matrix[right:, left:right].mT


def _run(blas: OpenBLAS, call: tuple[Any, ...], info: ctypes.c_int64, asked: list[torch.Tensor]) -> None:
    """Ask how much room a routine wants in each of its work arrays, and run it."""
    blas(*call, *(part for one in asked for part in (one, -1)), info)
    _check(info)
    rooms = [one.new_empty(int(one[0]) + 1) for one in asked]
    blas(*call, *(part for room in rooms for part in (room, len(room))), info)
    _check(info)


def _check(info: ctypes.c_int64) -> None:
    if info.value:
        raise ArithmeticError(f"OpenBLAS found no eigenvalues (info {info.value})")
