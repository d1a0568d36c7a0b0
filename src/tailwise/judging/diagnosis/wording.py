"""Numbers in words: evidence always carries its error, its baseline and its z where they exist."""

from __future__ import annotations

from collections.abc import Sequence

from tailwise.audits.rows import LayerRow
from tailwise.judging.diagnosis.case import has, value
from tailwise.spectrum.trust import RMS, unit_of

_READABLE = 100.0  # of an exponent; above, it is the inverse of a scatter


def alpha_in_words(row: LayerRow, name: str = "alpha_hill") -> str:
    """`alpha_hill 9.41 ± 1.68 (noise of this shape 9.70 ± 0.36, z 0.5)`."""
    if value(row, name) > _READABLE:
        return f"{name} above {_READABLE:g}, as of equal values with a little scatter"
    error = f" ± {value(row, f'{name}_sigma'):.2f}" if has(row, f"{name}_sigma") else ""
    return f"{name} {value(row, name):.2f}{error}{_noise(row, name)}"


def fit_in_words(row: LayerRow) -> str:
    """The fitted alpha with D and the size of its tail."""
    tail = f", D {value(row, 'ks_distance'):.3f}" if has(row, "ks_distance") else ""
    if has(row, "num_pl_spikes"):
        tail += f", tail of {value(row, 'num_pl_spikes'):.0f} of {evals(row)} eigenvalues"
    return alpha_in_words(row, "alpha") + tail


def entropy_in_words(row: LayerRow, share: float) -> str:
    """Singular entropy against noise, and what it means for the effective rank."""
    return (
        f"singular_entropy {value(row, 'singular_entropy'):.4f} nats (noise of this shape "
        f"{value(row, 'singular_entropy_baseline'):.4f}): effective rank {share:.1%} of noise's"
    )


def evals(row: LayerRow) -> int:
    """Eigenvalues of the row's spectrum."""
    return min(row.rows, row.cols) * row.slices


def count(number: int, noun: str) -> str:
    """`1 matrix`, `3 matrices`."""
    plural = f"{noun[:-1]}ces" if noun.endswith("matrix") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def verb(number: int, one: str, many: str) -> str:
    """The form of a verb that goes with a number."""
    return one if number == 1 else many


def named(rows: Sequence[LayerRow], most: int = 3) -> str:
    """A few names, and how many more there are."""
    shown = ", ".join(row.name for row in rows[:most])
    return shown if len(rows) <= most else f"{shown} and {len(rows) - most} more"


def quantized(row: LayerRow) -> bool:
    """Whether the entries are codes of 8 bits or fewer, so that rounding is no small part of them."""
    return unit_of(row.dtype) > _FINEST


def rounding_in_words(row: LayerRow) -> str:
    """What rounding adds to a quantized matrix; "" for others."""
    if not quantized(row):
        return ""
    share = (RMS * unit_of(row.dtype)) ** 2
    return f"; stored as {row.dtype}, whose rounding adds about {share:.2%} of the energy, all of it to the bulk"


#: The unit roundoff of bf16, the coarsest type that is no code.
_FINEST = 2.0**-8


def _noise(row: LayerRow, name: str) -> str:
    if not has(row, f"{name}_baseline"):
        return ""
    spread = f" ± {value(row, f'{name}_baseline_sd'):.2f}" if has(row, f"{name}_baseline_sd") else ""
    score = f", z {value(row, f'{name}_z'):z.1f}" if has(row, f"{name}_z") else ""
    return f" (noise of this shape {value(row, f'{name}_baseline'):.2f}{spread}{score})"
