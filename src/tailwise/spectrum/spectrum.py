"""The waist of the project: all the eigenvalues of one weight matrix, and how far they can be trusted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tailwise.core.errors import UsageError
from tailwise.core.kept import kept_property
from tailwise.core.validation import check_fields


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues of the smaller of WᵀW and WWᵀ, not divided by n and not centred (λ = σ²).

    `slices` matrices of one shape may be pooled in one spectrum (convolutions, windows).
    """

    eigenvalues: NDArray[np.float64]  # (m · slices,), ascending, ≥ 0
    rows: int  # of one slice, as stored
    cols: int
    slices: int = 1
    solver: str = "given"  # how they were computed: "gram-float64", "svd-float64", "factors", …
    error_bound: float = 0.0  # absolute, on every eigenvalue
    zero_vectors: int | None = None  # directions that rows or columns of zeros take; None: nobody looked
    weak_vectors: int | None = None  # the same of rows or columns of next to nothing, those of zeros among them
    order_z: float | None = None  # how far rows and columns are from those of the same entries in random order, in sd

    def __post_init__(self) -> None:
        check_fields(self, but=("eigenvalues",))
        try:
            values = np.ascontiguousarray(self.eigenvalues, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise UsageError(f"eigenvalues are no numbers ({error})", fix="give an array of numbers") from error
        if values.ndim != 1 or len(values) != self.m * self.slices:
            raise UsageError(
                f"{values.shape} eigenvalues for {self.slices} matrices of {self.rows} × {self.cols}",
                fix=f"give a vector of {self.m * self.slices}",
            )
        if not np.isfinite(values).all() or (len(values) and (values[0] < 0 or np.any(np.diff(values) < 0))):
            raise UsageError("eigenvalues must be finite, non-negative and ascending")
        values.setflags(write=False)
        object.__setattr__(self, "eigenvalues", values)

    @property
    def n(self) -> int:
        """The long side of the matrix."""
        return max(self.rows, self.cols)

    @property
    def m(self) -> int:
        """The short side: eigenvalues per slice."""
        return min(self.rows, self.cols)

    @property
    def Q(self) -> float:  # noqa: N802 - the field's name
        """Aspect ratio n / m ≥ 1."""
        return self.n / self.m

    @kept_property
    def singular_values(self) -> NDArray[np.float64]:
        """σ = √λ, shape (m · slices,), ascending."""
        return np.sqrt(self.eigenvalues)

    def __repr__(self) -> str:
        top = self.eigenvalues[-1] if len(self.eigenvalues) else float("nan")
        return (
            f"Spectrum({len(self.eigenvalues)} eigenvalues of {self.rows}×{self.cols}, λ_max={top:.4g}, "
            f"{self.solver}, ±{self.error_bound:.1e})"
        )


def pool(spectra: list[Spectrum]) -> Spectrum:
    """One spectrum out of the spectra of several matrices of one shape, all eigenvalues together."""
    first = spectra[0]
    if len(spectra) == 1:
        return first
    return Spectrum(
        np.sort(np.concatenate([s.eigenvalues for s in spectra])),
        first.rows,
        first.cols,
        slices=sum(s.slices for s in spectra),
        solver=first.solver,
        error_bound=max(s.error_bound for s in spectra),
        zero_vectors=_sum([s.zero_vectors for s in spectra]),
        weak_vectors=_sum([s.weak_vectors for s in spectra]),
        order_z=_largest([s.order_z for s in spectra]),
    )


def _sum(counts: list[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _largest(numbers: list[float | None]) -> float | None:
    known = [number for number in numbers if number is not None]
    return max(known) if len(known) == len(numbers) else None
