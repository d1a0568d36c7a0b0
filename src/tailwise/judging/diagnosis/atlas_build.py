"""Audits of healthy models → an atlas, and its file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tailwise.audits.audit import Audit
from tailwise.audits.rows import LayerRow
from tailwise.audits.trusted import OF_FIT, doubt, estimator_of, value_of
from tailwise.core.atomic import write_whole
from tailwise.core.errors import UsageError
from tailwise.judging.diagnosis.atlas import FORMAT, OF_NOISE, VERSION, Atlas, Cell, Member, cells_of, depths, number_of
from tailwise.judging.diagnosis.case import Case
from tailwise.judging.diagnosis.noise import METRICS, noise_like
from tailwise.judging.diagnosis.rule import RULES
from tailwise.judging.thresholds import resolved

#: Quantiles of a metric in a cell of one model, at most.
_QUANTILES = 9
_DIGITS = 4
_SIZES = 32  # matrices by whose sizes a model is known in another type
_RECIPE = ("estimator", "k_frac", "max_fingers", "conv")
#: Parts of other metrics.
_LEFT_OUT = ("_baseline", "_baseline_sd", "_sigma", "_low", "_high")


def build(audits: Iterable[Audit], names: Sequence[str] = ()) -> Atlas:
    """An atlas of healthy models. The same content counts once.

    Raises `UsageError` for no audits, or for audits whose tails were fitted differently. `names`: of the models, where
    those of the audits do not do.
    """
    members: dict[str, Member] = {}
    recipe: list[Any] | None = None
    for index, audit in enumerate(audits):
        own = [audit.provenance.recipe.get(key) for key in _RECIPE]
        if recipe is not None and own != recipe:
            differ = [key for key, one, other in zip(_RECIPE, own, recipe, strict=True) if one != other]
            raise UsageError(
                f"was audited with another {' and '.join(differ)} than the audits before it",
                where=audit.model, fix="audit all models with one recipe",
            )  # fmt: skip
        recipe = own
        name = names[index] if index < len(names) else audit.model
        members.setdefault(audit.provenance.fingerprint, member_of(audit, name))
    if not members:
        raise UsageError("no audit was given", fix="audit some healthy models first")
    return Atlas(tuple(members.values()))


def member_of(audit: Audit, name: str) -> Member:
    """What an atlas keeps of one model."""
    rows, place = [layer.row for layer in audit], depths(audit.rows)
    case, kind = Case.of(audit, resolved(rules=RULES)), estimator_of(audit)
    tested = {row.name for row in case.judged(*METRICS)}
    grouped: dict[Cell, list[dict[str, float]]] = {}
    for row in rows:
        numbers = _numbers(row, kind)
        if row.name in tested:
            numbers["noise"] = float(noise_like(case, row))
        for cell in cells_of(row, place[row.name]):
            grouped.setdefault(cell, []).append(numbers)
    cells = {cell: (len(matrices), _quantiles(matrices)) for cell, matrices in grouped.items()}
    step = max(1, len(rows) // _SIZES)
    sizes = tuple(
        (row.rows, row.cols, round(row.metrics["log_norm"] or 0.0, _DIGITS),
         round(row.metrics["log_spectral_norm"] or 0.0, _DIGITS))
        for row in rows[::step] if row.metrics.get("log_norm") and row.metrics.get("log_spectral_norm")
    )  # fmt: skip
    digests = frozenset(row.digest[:16] for row in rows if row.digest)
    return Member(name, audit.provenance.fingerprint, digests, sizes, cells)


def _numbers(row: LayerRow, estimator: str) -> dict[str, float]:
    numbers = {}
    for name in row.metrics:
        if name.endswith(_LEFT_OUT) or (name in OF_FIT and doubt(row, estimator)):
            continue
        number = number_of(row, name) if name in OF_NOISE else value_of(row, name)
        if number is not None and np.isfinite(number):
            numbers[name] = float(number)
    return numbers


def _quantiles(matrices: Sequence[dict[str, float]]) -> dict[str, tuple[float, ...]]:
    """All values of a metric, sorted, or their quantiles where there are many."""
    made = {}
    for name in dict.fromkeys(name for numbers in matrices for name in numbers):
        values = np.sort([numbers[name] for numbers in matrices if name in numbers])
        if len(values) > _QUANTILES:
            # Mid-points of equal shares, as single values are of theirs.
            values = np.quantile(values, (np.arange(_QUANTILES) + 0.5) / _QUANTILES)
            if name == "noise":
                values = np.array([max(numbers.get(name, 0.0) for numbers in matrices)])
        made[name] = tuple(float(f"{number:.{_DIGITS}g}") for number in values)
    return made


def to_text(atlas: Atlas) -> str:
    """The file: one model a line."""
    lines = [json.dumps(_plain(member), ensure_ascii=False, separators=(",", ":")) for member in atlas.members]
    return f'{{"format":"{FORMAT}","version":{VERSION},"models":[\n' + ",\n".join(lines) + "\n]}\n"


def save(atlas: Atlas, path: str | Path) -> Path | str:
    """Write an atlas, whole or not at all."""
    return write_whole(path, to_text(atlas).encode())


def _plain(member: Member) -> dict[str, Any]:
    return {
        "name": member.name, "fingerprint": member.fingerprint, "digests": sorted(member.digests),
        "sizes": [list(size) for size in member.sizes],
        "cells": [{"of": list(cell), "matrices": count, "values": {name: list(v) for name, v in values.items()}}
                  for cell, (count, values) in member.cells.items()],
    }  # fmt: skip
