"""The study as tables, under the documented file and column names."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tailwise.audits.precision.prediction import predictions
from tailwise.audits.precision.study import MEASURES, PrecisionStudy
from tailwise.audits.precision.verdict import Bound, sensitivities, variations, verdicts
from tailwise.core.atomic import write_whole
from tailwise.core.harmless import cell

RESULTS = "precision_alpha_hill_results.csv"
SUMMARY = "precision_summary_statistics.csv"
DISTORTION = "precision_distortion.csv"
VERDICTS = "precision_verdicts.csv"
PREDICTION = "precision_prediction.csv"
SENSITIVITY = "precision_sensitivity.csv"

Row = dict[str, Any]


def results(study: PrecisionStudy) -> list[Row]:
    """One row per layer: alpha_hill in each format. A format without alpha has its status as method."""
    rows = []
    for layer in study.layers:
        row: dict[str, Any] = {
            "layer_name": layer.name,
            "category": layer.category,
            "out_features": layer.out_features,
            "in_features": layer.in_features,
            "numel": layer.numel,
        }
        for name in study.formats:
            reading = layer.readings.get(name)
            known = reading is not None and reading.alpha is not None
            status = layer.status if reading is None else reading.status
            row[f"alpha_{name}"] = reading.alpha if reading is not None else None
            row[f"k_used_{name}"] = reading.k if reading is not None else 0
            row[f"n_eigs_{name}"] = reading.n_eigs if reading is not None else 0
            row[f"method_{name}"] = reading.method if known and reading is not None else status
        rows.append(row)
    return rows


def summary(study: PrecisionStudy) -> list[Row]:
    """One row per format: alpha_hill over the layers that have one. `std` is that of a sample."""
    rows = []
    for name in study.formats:
        values = list(study.values("alpha", name).values())
        q25, median, q75 = np.quantile(values, [0.25, 0.5, 0.75]).tolist() if values else (None, None, None)
        rows.append(
            {
                "precision": name,
                "count": len(values),
                "mean": statistics.fmean(values) if values else None,
                "std": statistics.stdev(values) if len(values) > 1 else None,
                "min": min(values, default=None),
                "median": median,
                "max": max(values, default=None),
                "q25": q25,
                "q75": q75,
            }
        )
    return rows


def distortion(study: PrecisionStudy) -> list[Row]:
    """One row per layer and format: every measure."""
    asked = study.settings.get("metrics", [])
    return [
        {
            "layer_name": layer.name, "category": layer.category, "block": layer.block, "format": name,
            "bits_per_weight": reading.bits_per_weight, "status": reading.status, "reason": reading.reason,
            "alpha": reading.alpha, "alpha_sigma": reading.alpha_sigma, "alpha_shift_se": reading.alpha_shift_se,
            **{measure: getattr(reading, measure) for measure in MEASURES},
            **{metric: reading.metrics.get(metric) for metric in asked},
        }
        for layer in study
        for name, reading in layer.readings.items()
    ]  # fmt: skip


def verdict_rows(study: PrecisionStudy, bounds: Sequence[Bound] = ()) -> list[Row]:
    """One row per layer: the lowest format within the bounds, and its sensitivity within its role."""
    rank = {item.layer: item for item in sensitivities(study)}
    rows = []
    for item in verdicts(study, bounds):
        place = rank.get(item.layer)
        rows.append(
            {
                "layer_name": item.layer,
                "category": item.category,
                "block": item.block,
                "format": item.format,
                "bits_per_weight": item.bits,
                "sensitivity_rank": place.rank if place else None,
                "layers_of_role": place.of if place else None,
                "sensitivity": place.value if place else None,
                "reason": item.reason,
            }
        )  # fmt: skip
    return rows


def sensitivity_rows(study: PrecisionStudy, bounds: Sequence[Bound] = ()) -> list[Row]:
    """One row per layer: how far α moves over the formats, and whether that is beyond a bound on `alpha_shift`."""
    return [
        {
            "layer_name": item.layer, "category": item.category, "block": item.block, "alpha_spread": item.spread,
            "largest_shift": item.shift, "in_format": item.format, "sensitive": item.sensitive,
        }
        for item in variations(study, bounds)
    ]  # fmt: skip


def prediction_rows(study: PrecisionStudy) -> list[Row]:
    """One row per predictor, measure, format and scope."""
    return [
        {
            "predictor": item.predictor, "measure": item.measure, "format": item.format, "scope": item.scope,
            "spearman": item.rho, "low": item.low, "high": item.high, "p": item.p, "layers": item.n,
        }
        for item in predictions(study)
    ]  # fmt: skip


def to_csv(rows: Sequence[Row]) -> str:
    """RFC 4180, with a header; None is an empty field."""
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def write_documented(study: PrecisionStudy, folder: Path, bounds: Sequence[Bound] = ()) -> list[Path]:
    """The two documented tables, and which layers are sensitive."""
    tables = {RESULTS: results(study), SUMMARY: summary(study), SENSITIVITY: sensitivity_rows(study, bounds)}
    return [write_whole(folder / name, to_csv(rows).encode()) for name, rows in tables.items()]


def write_all(study: PrecisionStudy, folder: Path, bounds: Sequence[Bound] = ()) -> list[Path]:
    """Every table."""
    more = {
        DISTORTION: distortion(study),
        VERDICTS: verdict_rows(study, bounds),
        PREDICTION: prediction_rows(study),
    }
    written = [write_whole(folder / name, to_csv(rows).encode()) for name, rows in more.items() if rows]
    return [*write_documented(study, folder, bounds), *written]
