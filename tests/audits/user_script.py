"""What a user writes in a notebook and saves as a script; mypy --strict is to find nothing in it."""

from pathlib import Path

import numpy as np

import tailwise as tw
from tailwise.comparing import Comparison
from tailwise.extend import estimator, fixed_tail
from tailwise.plans import ApplyOptions, Plan, QuantizeRequest, Request, plan_prune, plan_quantize
from tailwise.runs import Alarm, History, Point


@tw.metric("λ_max / mean λ", source="this script")
def peak(spectrum: tw.Spectrum) -> float:
    """The largest eigenvalue over the mean one."""
    return float(spectrum.eigenvalues[-1] / spectrum.eigenvalues.mean())


@estimator("half")
def half(eigenvalues: "np.typing.NDArray[np.float64]", options: tw.auditing.TailOptions) -> tw.TailFit:
    """The upper half."""
    return fixed_tail("half", eigenvalues, len(eigenvalues) // 2, inside=options.k_frac > 0)


def audits(paths: list[Path]) -> dict[str, tw.Audit]:
    """An audit of each checkpoint."""
    found: dict[str, tw.Audit] = {}
    for path in paths:
        found[path.name] = tw.audit(path, estimator="half", metrics=("alpha", "peak"), progress=False)
    return found


def verdicts(given: dict[str, tw.Audit]) -> list[str]:
    """What is said of each, and what changed between the first and the last."""
    said = []
    for name, audit in given.items():
        found = tw.diagnose(audit, mute=["TW101"])
        said.append(f"{name}: {found.health.line if found.health else 'no verdict'}")
        layer = audit[0]
        row: tw.LayerRow = layer.row
        said.append(f"{row.name} {row.metrics['alpha']} {layer.spectrum.Q:.2f}")
    listed = list(given.values())
    change: Comparison = tw.compare(listed[0], listed[-1], level=0.1)
    said += [change.conclusion, *change.significant("alpha")]
    ranking = tw.rank(listed, by="alpha")
    said += [model.name for model in ranking.models]
    frame = tw.table(given).to_pandas()
    return [*said, str(frame["alpha"].mean())]


def compressed(audit: tw.Audit, model: Path, output: Path) -> float:
    """A pruned model, and the bits of a plan to quantize."""
    plan: Plan = plan_prune(audit, Request(sparsity=0.5, allocator="uniform"))
    plan.save(output / "plan.json")
    applied = tw.apply(plan, model, output / "pruned", options=ApplyOptions(force=True))
    bits = plan_quantize(audit, QuantizeRequest(bits=6, formats=("int4", "int8")))
    scores = tw.evaluate(model, text="text.txt", options=tw.scoring.EvaluateOptions(window=64))
    return applied.achieved + len(bits) + (scores.perplexity or 0.0)


def kept(where: str) -> list[Alarm]:
    """The alarms of what is in a store."""
    with History(where) as history:
        history.add_point(Point("run", 0, "full", 0.0, layers={"up": {"alpha": 3.0}}))
    gate: tw.gates.CheckResult = tw.check("a.audit", "gate.toml")
    return tw.Alarms(mute="TW701").replay([]) if gate.passed else []


try:
    spectrum: tw.Spectrum = tw.esd(np.eye(60))
    fit: tw.TailFit = tw.fit_tail(spectrum.eigenvalues)
except tw.UsageError as error:
    print(error.fix)
