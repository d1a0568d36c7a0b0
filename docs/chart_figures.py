"""Draws docs/images/charts/NAME.svg, one for every built-in chart, from the audit of the shipped example.

pip install -e ".[docs]" && python docs/chart_figures.py
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import vl_convert

import tailwise as tw
from tailwise.report.charts.chart import CHARTS
from tailwise.report.charts.view import ChartView
from tailwise.report.render import spec_of

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "images" / "charts"
LAYER = "model.layers.1.mlp.gate_proj"


def noise_like(audit: tw.Audit) -> dict[str, np.ndarray]:
    """Gaussian matrices under the names and with the shapes of an audit's layers."""
    rng = np.random.default_rng(0)
    return {f"{layer.row.name}.weight": rng.normal(0, 0.05, (layer.row.rows, layer.row.cols)) for layer in audit}


def main() -> None:
    """Audit the example and noise of its shapes, and draw."""
    with tempfile.TemporaryDirectory() as folder:
        audit = tw.audit(str(ROOT / "examples" / "pycode-8m"), randomize=1, cache_dir=Path(folder))
        base = tw.audit(noise_like(audit), randomize=1, cache_dir=Path(folder))
    named = replace(base.provenance, model="noise")
    base = tw.Audit(list(base.rows), {layer.row.name: layer for layer in base}, named)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, chart in CHARTS.items():
        audits = (audit, base) if chart.scope == "several" else (audit,)
        spec = spec_of(chart, ChartView(audits, base=base, layer_name=LAYER if chart.scope == "layer" else None))
        (FOLDER / f"{name}.svg").write_text(vl_convert.vegalite_to_svg(spec), encoding="utf-8")
        print(f"written: docs/images/charts/{name}.svg")


if __name__ == "__main__":
    main()
