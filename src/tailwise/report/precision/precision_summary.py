"""Each format in a line: medians over the layers, and what went wrong where."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from tailwise.audits.precision.study import LayerStudy, PrecisionStudy, Reading

#: Statuses of a reading without a tail exponent, in the words of a picture.
_WORDS = {"DEGENERATE": "degenerate", "FAILED": "failed", "UNREADABLE": "unreadable", "NOT_FINITE": "not finite"}


def trouble(reading: Reading | None, layer: LayerStudy) -> str | None:
    """Why there is no exponent to draw, in a word or two; None where there is one."""
    status = layer.status if reading is None else reading.status
    if status == "NOT_FINITE" and reading is not None and reading.overflow:
        return "overflow"
    if status in _WORDS:
        return _WORDS[status]
    if reading is None:
        return "not studied"
    return "no value" if reading.alpha is None else None


@dataclass(frozen=True)
class FormatSummary:
    """What one format did; every number is a median over layers, None where no layer has it."""

    format: str
    source: str
    bits: float | None  # per weight, over all weights of the layers
    layers: int  # with readings
    alpha: float | None
    shift: float | None  # of alpha
    shift_se: float | None  # its paired standard error
    noise: float | None  # standard error of alpha as loaded
    moved: int  # layers whose tail left its error bar
    relative_error: float | None
    sqnr_db: float | None  # infinite where the median layer is unchanged
    spectral_distance: float | None
    stable_rank_change: float | None
    overlap: float | None
    overflow: int  # entries, over all layers
    underflow: int
    overflow_layers: tuple[str, ...]
    underflow_layers: tuple[str, ...]
    troubles: Mapping[str, int]  # reason → layers without an exponent

    @property
    def lossless(self) -> bool:
        """Whether the median layer is unchanged."""
        return self.relative_error == 0.0


def by_format(study: PrecisionStudy) -> list[FormatSummary]:
    """One summary a format, the most bits first; formats of equal bits in the order asked for."""
    summaries = [_summary(study, name) for name in study.formats]
    return sorted(summaries, key=lambda item: -(item.bits if item.bits is not None else math.inf))


def _summary(study: PrecisionStudy, name: str) -> FormatSummary:
    pairs = [(layer, layer.readings[name]) for layer in study if name in layer.readings]
    weights = sum(layer.numel for layer, _ in pairs)
    bits = sum(layer.numel * reading.bits_per_weight for layer, reading in pairs) / weights if weights else None
    error = _median(reading.relative_error for _, reading in pairs)
    troubles = Counter(word for layer, reading in pairs if (word := trouble(reading, layer)))
    return FormatSummary(
        format=name,
        source=study.sources.get(name, ""),
        bits=bits,
        layers=len(pairs),
        alpha=_median(reading.alpha for _, reading in pairs),
        shift=_median(reading.alpha_shift for _, reading in pairs),
        shift_se=_median(reading.alpha_shift_se for _, reading in pairs),
        noise=_median(layer.alpha_sigma for layer, _ in pairs),
        moved=sum(reading.tail_moved for _, reading in pairs),
        relative_error=error,
        sqnr_db=math.inf if error == 0.0 else _median(_sqnr(reading) for _, reading in pairs),
        spectral_distance=_median(reading.spectral_distance for _, reading in pairs),
        stable_rank_change=_median(reading.stable_rank_change for _, reading in pairs),
        overlap=_median(reading.overlap for _, reading in pairs),
        overflow=sum(reading.overflow for _, reading in pairs),
        underflow=sum(reading.underflow for _, reading in pairs),
        overflow_layers=tuple(layer.name for layer, reading in pairs if reading.overflow),
        underflow_layers=tuple(layer.name for layer, reading in pairs if reading.underflow),
        troubles=troubles,
    )


def _sqnr(reading: Reading) -> float | None:
    return math.inf if reading.lossless else reading.sqnr_db


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def shown(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """A number in so many significant digits, with the minus sign of print."""
    if value is None:
        return "–"
    if math.isinf(value):
        return "∞"
    text = f"{value:{'+' if sign and value else ''}.{digits}g}"
    return text.replace("-", "−") if "e" not in text else _scientific(value, digits, sign)


def _scientific(value: float, digits: int, sign: bool) -> str:
    mantissa, _, power = f"{value:{'+' if sign else ''}.{max(digits - 2, 0)}e}".partition("e")
    return f"{mantissa.replace('-', '−')}e{int(power)}".replace("e-", "e−")


def percent(value: float | None) -> str:
    """A relative change in per cent, with its sign."""
    return "–" if value is None else f"{100 * value:+.1f} %".replace("-", "−")
