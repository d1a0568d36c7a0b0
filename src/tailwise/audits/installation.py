"""Is this installation sound? Each check is a value, so that one failure hides no other."""

from __future__ import annotations

import importlib
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from tailwise.audits.cache import chosen_url, default_folder
from tailwise.core.errors import UsageError
from tailwise.core.optional import how_to_get

_EXTRAS = {
    "gguf": "gguf",
    "ggml": "xllamacpp",
    "s3": "s3fs",
    "gcs": "gcsfs",
    "http": "aiohttp",
    "packed": "compressed_tensors",
    "frames": "polars",
}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str
    optional: bool = False


def check() -> list[Check]:
    """Every check, in order."""
    required = [_package(name) for name in ("tailwise", "numpy", "scipy", "torch", "safetensors", "pyarrow")]
    probes: list[tuple[str, Callable[[], str]]] = [
        ("threads", _threads),
        ("solver", _solver),
        ("blas", _blas),
        ("cache", _cache),
        ("hub", _hub),
    ]
    return [
        Check("python", True, f"{platform.python_version()} on {platform.platform()}"),
        *required,
        *(_probe(name, probe) for name, probe in probes),
        *(_extra(extra, module) for extra, module in _EXTRAS.items()),
    ]


def clear() -> int:
    """Remove every kept spectrum, digest, baseline and measured rate; the number of files removed."""
    if url := chosen_url():
        raise UsageError("is no folder on this machine", where=url, fix="remove it with the tools of its store")
    removed = 0
    for kind in ("spectra", "digests", "baselines", "rates", "solvers"):
        for path in (default_folder() / kind).glob("*/*"):
            path.unlink(missing_ok=True)
            removed += 1
    return removed


def _package(name: str) -> Check:
    try:
        return Check(name, True, version(name))
    except PackageNotFoundError:
        return Check(name, False, f"not installed; pip install {name}")


def _extra(extra: str, module: str) -> Check:
    try:
        importlib.import_module(module)
    except ImportError:
        return Check(f"extra {extra}", False, f"not installed; {how_to_get(extra)}", optional=True)
    return Check(f"extra {extra}", True, f"{module} is there", optional=True)


def _probe(name: str, probe: Callable[[], str]) -> Check:
    try:
        return Check(name, True, probe())
    except Exception as error:
        return Check(name, False, f"{type(error).__name__}: {error}")


def _threads() -> str:
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    return f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()}; {gpu}"


def _solver() -> str:
    import numpy as np
    import torch

    from tailwise.spectrum.solve import solve

    weights = torch.randn(200, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = np.linalg.svd(weights.numpy(), compute_uv=False)[::-1] ** 2
    error = float(np.max(np.abs(solve(weights).eigenvalues - exact)) / exact[-1])
    if error > 1e-12:
        raise ArithmeticError(f"eigenvalues are off by {error:.1e}; the BLAS library is broken")
    return f"agrees with the SVD to {error:.1e} of λ_max"


def _blas() -> str:
    from tailwise.spectrum.solvers.blas import described

    return described()


def _cache() -> str:
    if url := chosen_url():
        return f"{url} (not looked at)"
    folder = default_folder()
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} cannot be written; set TAILWISE_CACHE")
    files = [path for path in folder.rglob("*") if path.is_file()]
    return f"{folder}: {len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB"


def _hub() -> str:
    from huggingface_hub import constants, get_token

    token = "a token is set" if get_token() else "no token (gated models need HF_TOKEN)"
    return f"{constants.ENDPOINT}, {'offline, ' if constants.HF_HUB_OFFLINE else ''}{token}"
