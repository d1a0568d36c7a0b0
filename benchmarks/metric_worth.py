"""What a metric of the weights says about what a matrix can be spared: rank correlations, beside depth.

    python benchmarks/metric_worth.py run       the cost of every matrix (hours); goes on where --results ends
    python benchmarks/metric_worth.py table     the tables of docs/evidence.md
    python benchmarks/metric_worth.py figure    docs/images/metric_worth.svg

The cost of a matrix is the change of the mean loss on calibration text when it alone is pruned more, or has fewer bits,
than the others: 80 % among 70 %, 2 bits among 3; or among dense ones. Models and text are those of
`benchmarks/pruning.py`. "Within roles" ranks the matrices of each role among themselves (a stratified Spearman's ρ).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from held_out import ROOT, SAMPLES, WINDOW, Subject, subjects
from quantization import FORMATS
from tailwise.audits.audit import Audit
from tailwise.audits.precision.prediction import stratified_spearman
from tailwise.audits.run import audit
from tailwise.compression.making.make import plan_prune, plan_quantize
from tailwise.compression.making.request import QuantizeRequest, Request
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.plan import Plan
from tailwise.compression.trying.sensitivity import Variant, variant_losses
from tailwise.compression.trying.stage import StageOptions, stage_of

More = Callable[[Decision], Decision]

PICTURE = ROOT / "docs" / "images" / "metric_worth.svg"
#: Operator → whether it prunes.
OPERATORS = {"magnitude": True, "wanda": True, "sparsegpt": True, "rtn": False, "gptq": False}
AROUND = ("among", "alone")
#: What is held against the cost; depth is the control.
METRICS = {
    "depth": "depth (block number)",
    "alpha": "α (least KS distance)",
    "alpha_peak": "α (peak, AlphaPruning)",
    "alpha_hill": "α (Hill, largest 10 %)",
    "alpha_weighted": "α-hat (weighted α)",
    "log_alpha_norm": "log α-norm",
    "singular_entropy": "singular entropy",
    "stable_rank": "stable rank",
    "effective_rank": "effective rank",
    "log_norm": "log Frobenius norm",
    "log_spectral_norm": "log spectral norm",
    "mp_softrank": "MP soft rank",
}


def run(given: argparse.Namespace) -> None:
    """Measure the matrices of each model, operator and surrounding that are not in the results yet."""
    torch.set_num_threads(given.threads)
    for model, operator, around in wanted(given):
        subject = subjects()[model]
        for row in measured(subject, operator, around, torch.bfloat16 if given.bf16 else None):
            given.results.parent.mkdir(parents=True, exist_ok=True)
            with given.results.open("a") as file:
                file.write(json.dumps({"model": model, "operator": operator, "around": around, **row}) + "\n")
        print(model, operator, around, file=sys.stderr, flush=True)


def wanted(given: argparse.Namespace) -> Iterator[tuple[str, str, str]]:
    """What is to be measured: a model's matrices under an operator come together or not at all."""
    known = {(row["model"], row["operator"], row["around"]) for row in rows_of(given.results)}
    here = subjects()
    for model in given.models:
        for around in given.around:
            for operator in given.operators:
                if model in here and (model, operator, around) not in known:
                    yield model, operator, around


def rows_of(path: Path) -> list[dict[str, Any]]:
    """One a matrix."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def measured(subject: Subject, operator: str, around: str, passes: torch.dtype | None) -> list[dict[str, Any]]:
    """Role, block, metrics and cost of every matrix that a plan changes."""
    folder = str(subject.folder)
    found, peak = audit(folder), audit(folder, estimator="peak")
    by_name = {layer.row.name: layer.row for layer in found}
    peaks = {layer.row.name: layer.row.metrics["alpha"] for layer in peak}
    plan, more, less = _plans(found, subject, operator)
    options = StageOptions(subject.drawn(0), samples=SAMPLES, window=WINDOW, passes=passes)
    stage = stage_of(folder, plan, options)
    others = plan if around == "among" else less(plan)
    variants = [Variant(item.tensor, {place: more(item)}) for place, item in enumerate(others)]
    costs = variant_losses(stage.trial, others, stage.search, variants)
    rows = []
    for item in plan:
        row = by_name[item.matrix]
        metrics = {**row.metrics, "alpha_peak": peaks[item.matrix], "depth": row.block}
        kept = {name: _number(metrics.get(name)) for name in METRICS}
        rows.append({"tensor": item.tensor, "role": row.role, "cost": round(costs[item.tensor], 7), "metrics": kept})
    return rows


def _plans(found: Audit, subject: Subject, operator: str) -> tuple[Plan, More, Callable[[Plan], Plan]]:
    """The plan around, an entry with more taken from it, and the plan that takes nothing."""
    if OPERATORS[operator]:
        plan = plan_prune(found, Request(0.7, "uniform", operator))
        return (
            plan,
            lambda item: item.but(sparsity=0.8 if item.sparsity else 0.7),
            lambda plan: plan.replace(decisions=tuple(item.but(sparsity=0.0) for item in plan)),
        )
    formats = FORMATS[subject.name]
    plan = plan_quantize(found, QuantizeRequest(formats=formats[1:2], operator=operator))
    return (
        plan,
        lambda item: item.but(format=formats[0]),
        lambda plan: plan.replace(decisions=tuple(item.but(format="fp32") for item in plan)),
    )


def _number(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def correlations(rows: Sequence[Mapping[str, Any]], metric: str, *, within: bool) -> tuple[float, float, float] | None:
    """ρ with its 95 % interval over the matrices that lie in a block and have the metric."""
    known = [row for row in rows if row["metrics"]["depth"] is not None and row["metrics"][metric] is not None]
    x = np.array([row["metrics"][metric] for row in known], dtype=np.float64)
    y = np.array([row["cost"] for row in known], dtype=np.float64)
    rho, low, high, _, _ = stratified_spearman(x, y, [row["role"] if within else "" for row in known])
    return None if rho is None or low is None or high is None else (rho, low, high)


def grouped(path: Path) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """(model, surrounding, operator) → its matrices."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows_of(path):
        groups[row["model"], row["around"], row["operator"]].append(row)
    return groups


def said(operator: str, around: str) -> str:
    """How matrices were treated."""
    more, others = ("80 %", "70 %") if OPERATORS[operator] else ("2 bits", "3 bits")
    if around == "among":
        return f"{operator}, {more} among {others}"
    return f"{operator}, alone at {'70 %' if OPERATORS[operator] else more}"


def table(given: argparse.Namespace) -> None:
    """Print one table a model: metrics down, operators across, within roles and pooled."""
    groups = grouped(given.results)
    for model in dict.fromkeys(key[0] for key in groups):
        for within in (True, False):
            shown = [key for key in groups if key[0] == model]
            count = max(len(groups[key]) for key in shown)
            print(f"### {model}, {count} matrices, {'within roles' if within else 'pooled'}\n")
            print(f"| | {' | '.join(said(operator, around) for _, around, operator in shown)} |")
            print("| --- |" + " ---: |" * len(shown))
            for metric, title in METRICS.items():
                texts = []
                for key in shown:
                    found = correlations(groups[key], metric, within=within)
                    texts.append("–" if found is None else _in_words(*found))
                print(f"| {title} | {' | '.join(texts)} |")
            print()


def _in_words(rho: float, low: float, high: float) -> str:
    text = f"{rho:+.2f} [{low:+.2f}, {high:+.2f}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def figure(given: argparse.Namespace) -> None:
    """Draw the correlations of the large model within roles, one panel an operator."""
    import altair as alt
    import vl_convert

    groups = grouped(given.results)
    values = [
        {"metric": title, "how": said(operator, around), "scope": "within roles" if within else "pooled",
         "rho": found[0], "low": found[1], "high": found[2]}
        for (model, around, operator), rows in groups.items() if model == given.models[0] and around == "among"
        for within in (True, False) for metric, title in METRICS.items()
        if (found := correlations(rows, metric, within=within)) is not None
    ]  # fmt: skip
    base = alt.Chart(alt.Data(values=values)).encode(
        y=alt.Y("metric:N", sort=list(METRICS.values()), title=None, axis=alt.Axis(labelLimit=300)),
        yOffset=alt.YOffset("scope:N", sort=["within roles", "pooled"]),
        color=alt.Color("scope:N", sort=["within roles", "pooled"], title=None,
                        scale=alt.Scale(range=["#0b5394", "#b45f06"]), legend=alt.Legend(orient="top")),
    )  # fmt: skip
    rho = alt.Scale(domain=[-0.7, 0.7])
    bars = base.mark_rule(strokeWidth=2).encode(
        x=alt.X("low:Q", scale=rho, title="rank correlation with cost"), x2="high:Q"
    )
    points = base.mark_point(filled=True, size=45, opacity=1).encode(x=alt.X("rho:Q", scale=rho))
    zero = alt.Chart(alt.Data(values=[{}])).mark_rule(color="#888").encode(x=alt.datum(0))
    panel = alt.layer(zero, bars, points, data=alt.Data(values=values)).properties(width=260, height=300)
    chart = panel.facet(column=alt.Column("how:N", title=None, sort=[said(op, "among") for op in OPERATORS]))
    chart = chart.configure(
        background="white", font="sans-serif", padding={"left": 40, "right": 10, "top": 5, "bottom": 5}
    )
    PICTURE.write_text(vl_convert.vegalite_to_svg(chart.to_dict()), encoding="utf-8")
    print(f"written: {PICTURE.relative_to(ROOT)}")


def main() -> None:
    """Run, or show what was run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("part", choices=("run", "table", "figure"))
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "metric_worth.jsonl")
    parser.add_argument("--models", type=lambda t: t.split(","), default=["smollm2", "pycode-8m", "stories260K"])
    parser.add_argument("--operators", type=lambda t: t.split(","), default=list(OPERATORS))
    parser.add_argument("--around", type=lambda t: t.split(","), default=list(AROUND))
    parser.add_argument("--bf16", action="store_true", help="multiply in bfloat16, which some processors do faster")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    {"run": run, "table": table, "figure": figure}[given.part](given)


if __name__ == "__main__":
    main()
