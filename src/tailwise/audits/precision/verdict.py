"""The lowest format that a layer tolerates under bounds on its distortion, and which layers are sensitive."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tailwise.audits.precision.study import (
    FELT,
    LARGER_IS_BETTER,
    MEASURES,
    NOT_FINITE,
    LayerStudy,
    PrecisionStudy,
    Reading,
)
from tailwise.core.errors import UsageError, unknown_name

#: About 20 dB: what 4-bit codes with a scale per 32 to 128 weights reach on Gaussian weights.
DEFAULT_BOUND = "relative_error=0.12"
_TEXT = re.compile(r"\s*([a-z_]+)\s*(?:<=|>=|=|<|>)\s*([-+0-9.eE]+)\s*")


@dataclass(frozen=True)
class Bound:
    """A limit on one measure: |value| ≤ limit, or value ≥ limit where larger is better."""

    measure: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> Bound:
        """`"relative_error=0.1"`, `"sqnr_db=20"`. Raises `UsageError`."""
        match = _TEXT.fullmatch(text)
        if match is None:
            raise UsageError(f"{text!r} is not a bound", fix="write MEASURE=LIMIT, e.g. relative_error=0.1")
        if match[1] not in MEASURES:
            raise unknown_name("measure", match[1], MEASURES)
        try:
            limit = float(match[2])
        except ValueError as error:
            raise UsageError(f"{match[2]!r} is not a number", where=text) from error
        if not math.isfinite(limit) or limit < 0:
            raise UsageError(f"the limit is {match[2]}", where=text, fix="give zero or more")
        return cls(match[1], limit)

    @property
    def text(self) -> str:
        """In words: `relative_error ≤ 0.1`."""
        return f"{self.measure} {'≥' if self.measure in LARGER_IS_BETTER else '≤'} {self.limit:g}"

    def value(self, reading: Reading) -> float | None:
        """What the bound looks at; None where it could not be measured: no count makes up for infinite weights."""
        if reading.status == NOT_FINITE:
            return None
        if self.measure == "sqnr_db" and reading.lossless:
            return math.inf
        value = getattr(reading, self.measure)
        return None if value is None else float(value)

    def holds(self, reading: Reading) -> bool:
        """Whether the reading stays within; a value that is not there does not."""
        value = self.value(reading)
        if value is None:
            return False
        return value >= self.limit if self.measure in LARGER_IS_BETTER else abs(value) <= self.limit


@dataclass(frozen=True)
class Verdict:
    """The lowest format of one layer that keeps every bound."""

    layer: str
    category: str
    block: int | None
    format: str | None  # None: none of those studied
    bits: float | None  # bits per weight of that format
    reason: str


def verdicts(study: PrecisionStudy, bounds: Sequence[Bound] = ()) -> tuple[Verdict, ...]:
    """One verdict a layer, in the study's order. Formats of equal bits are tried best distortion first."""
    chosen = bounds or (Bound.parse(DEFAULT_BOUND),)
    return tuple(_verdict(layer, chosen) for layer in study)


def _verdict(layer: LayerStudy, bounds: Sequence[Bound]) -> Verdict:
    error = {name: reading.relative_error for name, reading in layer.readings.items()}
    ordered = sorted(
        layer.readings.values(),
        key=lambda r: (r.bits_per_weight, math.inf if error[r.format] is None else error[r.format]),
    )
    below: Reading | None = None
    for reading in ordered:
        if all(bound.holds(reading) for bound in bounds):
            within = ", ".join(f"{bound.measure} {_shown(bound.value(reading))}" for bound in bounds)
            reason = f"{reading.format} keeps {within}"
            if below is not None:
                reason += f"; {_breach(below, _first_broken(below, bounds))}"
            return _of(layer, reading, reason)
        below = reading
    last = ordered[-1]
    reason = f"none of {len(ordered)} formats: {_breach(last, _first_broken(last, bounds))}"
    return _of(layer, None, reason)


def _first_broken(reading: Reading, bounds: Sequence[Bound]) -> Bound:
    return next(bound for bound in bounds if not bound.holds(reading))


def _of(layer: LayerStudy, reading: Reading | None, reason: str) -> Verdict:
    name, bits = (None, None) if reading is None else (reading.format, reading.bits_per_weight)
    return Verdict(layer.name, layer.category, layer.block, name, bits, reason)


def _breach(reading: Reading, bound: Bound) -> str:
    value = bound.value(reading)
    if value is None:
        return f"{reading.format} has no {bound.measure} ({reading.status.lower().replace('_', ' ')})"
    return f"{reading.format} has {bound.measure} {_shown(value)}, not {bound.text.removeprefix(bound.measure).strip()}"


def _shown(value: float | None) -> str:
    return "–" if value is None else "∞" if math.isinf(value) else f"{value:.3g}"


@dataclass(frozen=True)
class Variation:
    """How far a layer's α moves from format to format."""

    layer: str
    category: str
    block: int | None
    spread: float  # largest less smallest α, over the formats that have one
    shift: float  # of largest magnitude, against the layer as loaded
    format: str  # where that is
    sensitive: bool | None  # whether it is beyond the bound on alpha_shift; None: no bound was given


def variations(study: PrecisionStudy, bounds: Sequence[Bound] = ()) -> tuple[Variation, ...]:
    """Each layer's α over the formats, in the study's order; layers without α are left out.

    A layer is sensitive where some format moves its α by more than a bound on `alpha_shift` allows. There is no bound
    of its own: how far α may move is a convention that the study does not know.
    """
    limits = [bound.limit for bound in bounds if bound.measure == "alpha_shift"]
    made = []
    for layer in study:
        known = {n: r for n, r in layer.readings.items() if r.alpha is not None and r.alpha_shift is not None}
        if not known:
            continue
        alphas = [reading.alpha or 0.0 for reading in known.values()]
        worst = max(known, key=lambda name: abs(known[name].alpha_shift or 0.0))
        shift = known[worst].alpha_shift or 0.0
        sensitive = abs(shift) > min(limits) if limits else None
        made.append(
            Variation(layer.name, layer.category, layer.block, max(alphas) - min(alphas), shift, worst, sensitive)
        )
    return tuple(made)


@dataclass(frozen=True)
class Sensitivity:
    """How much one layer suffers, beside the others of its role."""

    layer: str
    category: str
    block: int | None
    value: float  # geometric mean of the measure over the lossy formats
    rank: int  # 1: the most sensitive of its role
    of: int  # layers of that role


def sensitivities(study: PrecisionStudy, measure: str = "relative_error") -> tuple[Sensitivity, ...]:
    """Layers ranked within their role by a distortion, the most sensitive first; roles in the study's order.

    The value is the geometric mean of |measure| over the formats that change every layer of the role: formats differ
    by orders of magnitude, and each should count the same, in each layer.
    """
    if measure not in MEASURES or measure in LARGER_IS_BETTER:
        raise unknown_name("measure", measure, [name for name in MEASURES if name not in LARGER_IS_BETTER])
    roles: dict[str, list[LayerStudy]] = defaultdict(list)
    for layer in study:
        roles[layer.category].append(layer)
    made = []
    for role, members in roles.items():
        values = _mean_logs(members, study.formats, measure)
        ranked = sorted(zip(values, members, strict=True), key=lambda item: -item[0]) if values else []
        made += [
            Sensitivity(layer.name, role, layer.block, value, rank, len(ranked))
            for rank, (value, layer) in enumerate(ranked, 1)
        ]
    return tuple(made)


def _mean_logs(layers: Sequence[LayerStudy], formats: Sequence[str], measure: str) -> list[float]:
    """The geometric mean of each layer over the formats that all of them feel; empty where there is none."""
    columns = [[_felt(layer.readings.get(name), measure) for layer in layers] for name in formats]
    logs = [[math.log(value) for value in column] for column in columns if all(column)]
    return [math.exp(sum(row) / len(row)) for row in zip(*logs, strict=True)]


def _felt(reading: Reading | None, measure: str) -> float:
    """|measure|; 0 where the format as good as holds the layer, or could not be measured."""
    if reading is None or (reading.relative_error or 0.0) <= FELT:
        return 0.0
    return abs(float(getattr(reading, measure) or 0.0))
