"""Numbers as answers write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def num(value: Any, digits: int = 3) -> str:
    """`2.31`, `2.00`, `7,995,392`, `0.000012`; whole numbers as they are."""
    if value is None:
        return "–"
    number = float(value)
    if number.is_integer() and abs(number) < 1e15:
        return f"{int(number):,}"
    if abs(number) >= 10**digits:
        return f"{number:,.0f}"
    if abs(number) < 1e-3:
        return f"{number:.{digits - 1}e}"
    return f"{number:#.{digits}g}".rstrip(".")


def bare(value: float) -> str:
    """A threshold as it was set: `0.05`."""
    return f"{value:g}"


def signed(value: Any) -> str:
    """A change: `+0.12`, `−0.5`."""
    text = num(value)
    return text.replace("-", "−", 1) if float(value) < 0 else f"+{text}"


def share(value: float) -> str:
    """`8.6 %`."""
    return f"{100 * value:.1f}".removesuffix(".0") + " %"


def count(number: int, one: str, many: str = "") -> str:
    """`1 finding`, `3 findings`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def listed(items: Sequence[str], most: int = 5, of: int | None = None) -> str:
    """`a, b and 3 more`."""
    total = len(items) if of is None else of
    shown = list(items[:most])
    if total > len(shown):
        return f"{', '.join(shown)} and {total - len(shown)} more"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}" if shown else "none"


def alpha(metrics: Mapping[str, Any]) -> str:
    """`alpha 2.31 ± 0.12 (D 0.05)`; "" where there is none."""
    if metrics.get("alpha") is None:
        return ""
    error = f" ± {num(metrics['alpha_sigma'], 2)}" if metrics.get("alpha_sigma") is not None else ""
    fit = f" (fit distance D {num(metrics['ks_distance'], 2)})" if metrics.get("ks_distance") is not None else ""
    return f"alpha {num(metrics['alpha'])}{error}{fit}"
