"""The last step of the reductions: eigenvalues of tridiagonal and banded matrices, by LAPACK on the CPU's cores.

scipy's own functions hold the interpreter lock while LAPACK works, so that threads would wait for each other. The
pointers that scipy gives to Cython code (`scipy.linalg.cython_lapack`) are called through ctypes, which lets it go.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Vector = NDArray[np.float64]


def tridiagonal_eigenvalues(diagonal: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
    """Of each row: (b, m) and (b, m − 1) → (b, m) in float64 on the CPU, ascending."""
    d, e = (part.to("cpu", torch.float64).numpy() for part in (diagonal, below))
    return _each(lambda i: _sterf(d[i], e[i]), len(d))


def banded_eigenvalues(band: torch.Tensor) -> torch.Tensor:
    """Of each matrix: (b, width + 1, m), lower form → (b, m) in float64 on the CPU, ascending."""
    given = band.to("cpu", torch.float64).numpy()
    return _each(lambda i: _sbevd(given[i]), len(given))


def _each(solve: Callable[[int], Vector], count: int) -> torch.Tensor:
    if count == 1:
        return torch.from_numpy(solve(0))[None]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(min(count, cores), thread_name_prefix="tailwise-cpu") as pool:
        return torch.from_numpy(np.stack(list(pool.map(solve, range(count)))))


def _sterf(diagonal: Vector, below: Vector) -> Vector:
    d, e = diagonal.copy(), np.append(below, 0.0)
    info = ctypes.c_int()
    _lapack("dsterf")(_int(len(d)), _pointer(d), _pointer(e), ctypes.byref(info))
    return _checked(d, info)


def _sbevd(band: Vector) -> Vector:
    """Values only (`jobz` N) of a lower band (`uplo` L)."""
    rows, m = band.shape
    stored = np.array(band.T, order="C")  # LAPACK counts along columns
    w, info = np.empty(m), ctypes.c_int()
    work, iwork = np.empty(2 * m), np.empty(1, dtype=np.intc)
    nothing = np.empty(1)
    _lapack("dsbevd")(
        b"N", b"L", _int(m), _int(rows - 1), _pointer(stored), _int(rows), _pointer(w), _pointer(nothing), _int(1),
        _pointer(work), _int(len(work)), iwork.ctypes.data_as(ctypes.c_void_p), _int(1), ctypes.byref(info),
    )  # fmt: skip
    return _checked(w, info)


def _checked(values: Vector, info: ctypes.c_int) -> Vector:
    if info.value:
        raise ArithmeticError(f"LAPACK found no eigenvalues (info {info.value})")
    return values


def _int(value: int) -> Any:
    return ctypes.byref(ctypes.c_int(value))


def _pointer(values: Vector) -> ctypes.c_void_p:
    return values.ctypes.data_as(ctypes.c_void_p)


@cache
def _lapack(name: str) -> Any:
    """A LAPACK function that takes pointers and, called through ctypes, runs without the interpreter lock."""
    from scipy.linalg import cython_lapack

    capsule = cython_lapack.__pyx_capi__[name]
    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype, api.PyCapsule_GetName.argtypes = ctypes.c_char_p, [ctypes.py_object]
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    return ctypes.CFUNCTYPE(None)(api.PyCapsule_GetPointer(capsule, api.PyCapsule_GetName(capsule)))
