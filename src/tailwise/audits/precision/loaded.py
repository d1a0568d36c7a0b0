"""One matrix while a study works on it: its weights, its spectrum, and the same in each format."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from tailwise.audits.cache import Cache, key_of
from tailwise.audits.precision.encoded import Damage, EncodedMatrix
from tailwise.audits.work import HashedMatrix
from tailwise.checkpoints.matrices import WeightMatrix
from tailwise.core.recipe import Precision
from tailwise.number_formats.number_format import NumberFormat, Reach
from tailwise.spectrum.solve import NotFiniteError, solve
from tailwise.spectrum.solvers.gram import RowBlocks, gather
from tailwise.spectrum.solvers.leading import Apply, leading_directions, symmetric_product
from tailwise.spectrum.spectrum import Spectrum

#: Raised when a codec or a measure of the weights changes its numbers.
_CODECS = 4
#: Casts, which change nothing where the stored type fits into them.
_CASTS = frozenset({"fp64", "fp32", "fp16", "bf16"})
LOAD_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class LoadRangeError(Exception):
    """Weights that are finite as stored leave the range of the type that they are loaded in."""


@dataclass(frozen=True)
class Means:
    """How matrices are loaded and solved, and where results are kept."""

    load_dtype: str
    directions: int
    precision: Precision
    device: str
    cache: Cache


@dataclass(frozen=True)
class Encoded:
    """One matrix in one format."""

    spectrum: Spectrum
    damage: Damage
    overlap: float | None  # of its leading directions with those of the weights as loaded
    seconds: float = 0.0  # 0 where it was known


class LoadedMatrix:
    """Reads a matrix once. With `turned`, its rows are the input axis, along which groups run."""

    def __init__(self, matrix: WeightMatrix, means: Means, *, turned: bool) -> None:
        hashed = HashedMatrix(matrix, hold=True)
        self.digest = hashed.digest
        self._means, self._turned = means, turned
        stored = gather(hashed)
        loaded = _loaded(stored, LOAD_DTYPES[means.load_dtype])
        self._weights = loaded.T if turned else loaded
        self._leading: torch.Tensor | None = None
        # A product of factors has exact zeros, as in an audit's spectrum under the same key; rounding would fill them.
        of_factors = hashed.factors is not None and means.load_dtype == "fp32"
        rounded = loaded.dtype != stored.dtype and not of_factors
        try:
            self.spectrum = self._solved(hashed if of_factors else self._weights, rounded=rounded)
        except NotFiniteError as error:
            if rounded and bool(torch.isfinite(stored).all()):
                raise LoadRangeError(f"{means.load_dtype} cannot hold these weights: {error} once loaded") from error
            raise
        self._reach = Reach.of([self._weights])

    @property
    def shape(self) -> tuple[int, int]:
        """(output, input) features."""
        rows, cols = self._weights.shape
        return rows, cols

    def encoded(self, number_format: NumberFormat) -> Encoded:
        """The matrix in one format: kept from an earlier study, or encoded and solved now.

        Raises `NotFiniteError` where the format makes infinities.
        """
        means = self._means
        what = [self.digest, self._turned, number_format.name, means.load_dtype, means.precision]
        key = key_of("encoded", *what, means.directions, _CODECS)
        spectrum, note = means.cache.spectrum(key), means.cache.note("encoded", key)
        if spectrum is not None and isinstance(note, dict):
            return Encoded(spectrum, Damage(**note["damage"]), note["overlap"])
        began = time.perf_counter()
        cached = self._encode(number_format)
        means.cache.keep_spectrum(key, cached.spectrum)
        means.cache.keep_note("encoded", key, {"damage": asdict(cached.damage), "overlap": cached.overlap})
        return replace(cached, seconds=time.perf_counter() - began)

    def damage(self, number_format: NumberFormat) -> Damage:
        """What the format does to the weights, without a spectrum."""
        return EncodedMatrix(self._weights, number_format, self._reach).encode()

    def _solved(self, source: RowBlocks | torch.Tensor, *, rounded: bool) -> Spectrum:
        """The spectrum of the weights as loaded: an audit's where they are as stored, so that its cache serves."""
        means = self._means
        parts: tuple[Any, ...] = ("loaded", self.digest, means.load_dtype) if rounded else ("weights", self.digest)
        key = key_of(*parts, means.precision)
        spectrum = means.cache.spectrum(key)
        if spectrum is None:
            spectrum = solve(source, precision=means.precision, device=means.device, look=self._look)
            means.cache.keep_spectrum(key, spectrum)
        return spectrum

    def _encode(self, number_format: NumberFormat) -> Encoded:
        if number_format.name in _CASTS:
            damage = self.damage(number_format)
            if damage.error == 0:
                return Encoded(self.spectrum, damage, 1.0)
        matrix = EncodedMatrix(self._weights, number_format, self._reach)
        overlaps: list[float | None] = []
        spectrum = solve(
            matrix,
            precision=self._means.precision,
            device=self._means.device,
            look=lambda triangle: overlaps.append(self._overlap(triangle)),
        )
        return Encoded(spectrum, matrix.damage, overlaps[0])

    def _look(self, triangle: torch.Tensor) -> None:
        self._leading = self._directions(symmetric_product(triangle), len(triangle), triangle.device, None)

    def _overlap(self, triangle: torch.Tensor) -> float | None:
        """‖V₀ᵀV‖_F² / r of the leading directions before and after."""
        if float(triangle.diagonal().max()) <= 0:
            return None
        m, device = len(triangle), triangle.device
        now = self._directions(symmetric_product(triangle), m, device, self._leading)
        if self._leading is None:
            # The spectrum as loaded came from the cache. Products with W itself spare its Gram matrix.
            self._leading = self._directions(self._product(device), m, device, now)
        shared = self._leading[:, : self._count].T @ now[:, : self._count]
        return min(1.0, float(shared.square().sum()) / self._count)

    def _directions(self, product: Apply, m: int, device: torch.device, start: torch.Tensor | None) -> torch.Tensor:
        return leading_directions(product, m, self._count, start=start, device=device)

    def _product(self, device: torch.device) -> Apply:
        """X → WᵀWX of the short side, in float32, scaled to entries of 1 at most."""
        whole = self._weights.to(device, torch.float32)
        tall, scale = whole if whole.shape[0] >= whole.shape[1] else whole.T, 1 / (self._reach.amax or 1.0)
        return lambda block: tall.T @ (tall @ (block * scale) * scale)

    @property
    def _count(self) -> int:
        rows, cols = self.shape
        return min(self._means.directions, rows, cols)


def _loaded(stored: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The weights in the type they are loaded in; kept as stored where that type holds them exactly."""
    exact = stored.dtype in (torch.bfloat16, torch.float16, torch.float32) and dtype is torch.float32
    return stored if exact else stored.to(dtype)
