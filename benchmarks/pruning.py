"""How good pruning plans are: perplexity on held-out text for every allocator, operator and sparsity.

    python benchmarks/pruning.py run --results runs/pruning.jsonl          everything (hours); goes on where it was
    python benchmarks/pruning.py run --results … --operators magnitude --seeds 1    a part of it
    python benchmarks/pruning.py table --results runs/pruning.jsonl        the tables of docs/evidence.md
    python benchmarks/pruning.py sensitivity --results …                   does α say which matrix can be spared?

Every cell is the whole way: audit → plan → `apply` to a folder → that folder loaded and scored. Calibration text and
held-out text share no document; the seed draws the calibration. pycode-8m is scored on files of CPython's standard
library that its training left out, stories260K on every other story of a file that both are cut from.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import sysconfig
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tailwise.audits.audit import Audit
from tailwise.audits.run import audit
from tailwise.compression.allocate.allocator import ALLOCATORS
from tailwise.compression.apply import ApplyOptions, apply
from tailwise.compression.make import Request
from tailwise.compression.plan import Plan
from tailwise.evaluation.intervals import mean_interval
from tailwise.evaluation.losses import window_losses
from tailwise.evaluation.models import load_model, load_tokenizer
from tailwise.evaluation.sources import Documents
from tailwise.evaluation.tokens import tokens_of, windows_of
from tailwise.planning.clock import Clock
from tailwise.planning.run import planned
from tailwise.planning.sensitivity import measured_losses
from tailwise.planning.stage import StageOptions, stage_of
from tailwise.precision.prediction import stratified_spearman

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
OPERATORS = ("magnitude", "wanda", "sparsegpt")
SPARSITIES = (0.5, 0.6, 0.7, 0.8)
#: (label, allocator, settings).
WAYS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("uniform", "uniform", {}),
    ("depth", "depth", {}),
    ("alpha block", "alpha", {"mapping": "block", "tau": 0.2}),
    ("alpha matrix", "alpha", {"mapping": "matrix", "tau": 0.2}),
    ("alpha mixed", "alpha", {"mapping": "mixed", "tau": 0.2}),
    ("alpha-role", "alpha-role", {"tau": 0.2}),
    ("entropy", "entropy", {"tau": 0.2}),
    ("owl", "owl", {}),
    ("dlp", "dlp", {}),
    ("sensitivity", "sensitivity", {}),
    ("auto", "auto", {}),
)
FROM_TEXT = ("owl", "dlp", "sensitivity", "auto")
SAMPLES, WINDOW, HELD_OUT = 16, 512, 24


@dataclass(frozen=True)
class Subject:
    """A model with text to calibrate on and text to score it by."""

    name: str
    folder: Path
    calibration: list[str]  # documents
    held_out: list[str]

    def drawn(self, seed: int) -> Documents:
        """Calibration text of a seed."""
        order = np.random.default_rng(seed).permutation(len(self.calibration))[:60]
        return Documents(tuple(self.calibration[i] for i in order), f"{self.name}, seed {seed}")


def subjects() -> dict[str, Subject]:
    """The models that are here."""
    found = [_pycode(), *([_stories()] if DATA.is_dir() else [])]
    return {subject.name: subject for subject in found}


def _pycode() -> Subject:
    folder, library = ROOT / "examples" / "pycode-8m", Path(sysconfig.get_paths()["stdlib"])
    left_out = {library / line for line in (folder / "heldout.txt").read_text().split()}
    trained = (path for path in sorted(library.rglob("*.py")) if "site-packages" not in path.parts)
    return Subject("pycode-8m", folder, list(_read(p for p in trained if p not in left_out)),
                   list(_read(sorted(path for path in left_out if path.is_file()))))  # fmt: skip


def _read(paths: Any) -> Iterator[str]:
    for path in paths:
        try:
            yield path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def _stories() -> Subject:
    text = (DATA / "text" / "tinystories_252_stories.txt").read_text(encoding="utf-8")
    stories = [part.strip() for part in text.split("<|endoftext|>") if part.strip()]
    return Subject("stories260K", DATA / "stories260K", stories[::2], stories[1::2])


def cells(given: argparse.Namespace) -> Iterator[tuple[str, str, float, str, int]]:
    """(model, operator, sparsity, way, seed) in the order in which they are of use."""
    for seed in range(given.seeds):
        for model in given.models:
            for sparsity in given.sparsities:
                for operator in given.operators:
                    for way, allocator, _ in WAYS:
                        same = operator == "magnitude" and allocator not in FROM_TEXT
                        if way in given.ways and not (seed and (same or allocator == "sensitivity")):
                            yield model, operator, sparsity, way, seed


def run(given: argparse.Namespace) -> None:
    """Measure what is not in the results yet."""
    torch.set_num_threads(given.threads)
    known = {_key(row) for row in _rows(given.results)}
    found = subjects()
    windows, audits = {}, {}
    for cell in cells(given):
        if cell in known or cell[0] not in found:
            continue
        subject = found[cell[0]]
        if subject.name not in audits:
            audits[subject.name] = audit(str(subject.folder), estimator="peak")
            tokens = tokens_of(Documents(tuple(subject.held_out), "held out"), load_tokenizer(subject.folder))
            windows[subject.name] = windows_of(tokens, WINDOW, HELD_OUT, seed=7)
            if (subject.name, "dense", 0.0, "dense", 0) not in known:
                model = load_model(str(subject.folder)).module
                _keep(
                    given.results, (subject.name, "dense", 0.0, "dense", 0), window_losses(model, windows[subject.name])
                )
        row = measured(subject, audits[subject.name], cell, windows[subject.name], given.seconds)
        _keep(given.results, cell, **row)


def measured(
    subject: Subject, found: Audit, cell: tuple[str, str, float, str, int], windows: torch.Tensor, seconds: float
) -> dict[str, Any]:
    """One cell: losses of the held-out windows, and what it took."""
    _, operator, sparsity, way, seed = cell
    _, allocator, settings = next(item for item in WAYS if item[0] == way)
    text = subject.drawn(seed)
    began = time.perf_counter()
    request = Request(sparsity, allocator if allocator in ALLOCATORS else "uniform", operator, settings=settings)
    options = StageOptions(text, samples=SAMPLES, window=WINDOW, seed=seed) if allocator in FROM_TEXT else None
    # Time on the processor, so that what else the machine does changes nothing.
    clock = Clock(seconds, time.process_time)
    plan = planned(found, request, allocator=allocator, text=options, clock=clock)
    planning = time.perf_counter() - began
    tokens = tokens_of(text, load_tokenizer(subject.folder)).ids
    calibrated = ApplyOptions(calibration=windows_of(tokens, WINDOW, SAMPLES, seed=seed), seed=seed)
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "pruned"
        apply(plan, subject.folder, output, options=ApplyOptions() if operator == "magnitude" else calibrated)
        losses = window_losses(load_model(str(output)).module, windows)
    return {"losses": losses, "planning": planning, "seconds": time.perf_counter() - began, "plan": plan}


def _keep(path: Path, cell: tuple[str, str, float, str, int], losses: Any, planning: float = 0.0,
          seconds: float = 0.0, plan: Plan | None = None) -> None:  # fmt: skip
    row = dict(zip(("model", "operator", "sparsity", "way", "seed"), cell, strict=True))
    row |= {
        "losses": [round(float(x), 6) for x in losses],
        "planning": round(planning, 1),
        "seconds": round(seconds, 1),
    }
    if plan is not None:
        row |= {"kept": plan.settings.get("kept"), "reached": round(plan.sparsity, 6)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(*cell, f"perplexity {_ppl(np.array(row['losses'])):.2f}", f"{seconds:.0f} s", file=sys.stderr, flush=True)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _key(row: dict[str, Any]) -> tuple[str, str, float, str, int]:
    return row["model"], row["operator"], row["sparsity"], row["way"], row["seed"]


def _ppl(losses: Any) -> float:
    return math.exp(min(float(np.mean(losses)), 60.0))


def table(given: argparse.Namespace) -> None:
    """Print perplexity by way, one table a model and operator, and how `auto` stands in every cell."""
    found: dict[tuple[str, str, float, str], list[Any]] = defaultdict(list)
    for row in _rows(given.results):
        found[row["model"], row["operator"], row["sparsity"], row["way"]].append(np.array(row["losses"]))
    tally: dict[str, int] = defaultdict(int)
    for model in dict.fromkeys(key[0] for key in found):
        dense = found.get((model, "dense", 0.0, "dense"), [None])[0]
        for operator in OPERATORS:
            keys = [key for key in found if key[:2] == (model, operator)]
            if keys:
                _print_table(model, operator, found, sorted({key[2] for key in keys}), dense)
                for sparsity in sorted({key[2] for key in keys}):
                    _count(tally, {key[3]: np.mean(found[key], axis=0) for key in keys if key[2] == sparsity}, sparsity)
    if tally:
        print("## How `auto` stands\n\n| question | cells |\n| --- | ---: |")
        for question, count in tally.items():
            print(f"| {question} | {count} |")


def _print_table(model: str, operator: str, found: dict[Any, list[Any]], sparsities: list[float], dense: Any) -> None:
    seeds = max((len(v) for k, v in found.items() if k[:2] == (model, operator)), default=0)
    said = "" if dense is None else f" (dense: {_ppl(dense):.2f})"
    print(f"### {model}, {operator}{said}, {seeds} seeds at most\n")
    print("| allocator | " + " | ".join(f"{100 * s:.0f} %" for s in sparsities) + " |")
    print("| --- |" + " ---: |" * len(sparsities))
    best = {s: min((_ppl(np.mean(v, axis=0)) for k, v in found.items() if k[:3] == (model, operator, s)), default=0)
            for s in sparsities}  # fmt: skip
    for way, _, _ in WAYS:
        texts = []
        for sparsity in sparsities:
            losses = found.get((model, operator, sparsity, way))
            if not losses:
                texts.append("–")
                continue
            mean = np.mean(losses, axis=0)
            value, interval = _ppl(mean), mean_interval(mean)
            around = "" if interval is None else f" [{math.exp(interval[0]):.3g}, {math.exp(min(interval[1], 60)):.3g}]"
            shown = f"{value:.4g}{around}"
            texts.append(f"**{shown}**" if value <= best[sparsity] * 1.0000001 else shown)
        if any(text != "–" for text in texts):
            print(f"| {way} | " + " | ".join(texts) + " |")
    print()


def _count(tally: dict[str, int], means: dict[str, Any], sparsity: float) -> None:
    if "auto" not in means or "uniform" not in means:
        return
    tally["cells with `auto`"] += 1
    others = {way: losses for way, losses in means.items() if way != "auto"}
    best = min(others, key=lambda way: float(np.mean(others[way])))
    against_best = mean_interval(means["auto"] - others[best])
    tally["`auto` has the lowest perplexity, or is within noise of it"] += int(
        float(np.mean(means["auto"])) <= float(np.mean(others[best]))
        or (against_best is not None and against_best[0] <= 0)
    )
    tally["`auto` has the lowest perplexity"] += int(float(np.mean(means["auto"])) <= float(np.mean(others[best])))
    uniform = mean_interval(means["auto"] - means["uniform"])
    tally["`auto` is worse than uniform beyond noise"] += int(uniform is not None and uniform[0] > 0)
    if sparsity >= 0.6:
        tally["cells at 60 % and above"] += 1
        alphas = [others[way] for way in others if way.startswith("alpha")]
        rivals = [means["uniform"], *alphas]
        beaten = [mean_interval(means["auto"] - rival) for rival in rivals]
        tally["there `auto` is better than uniform and every alpha, beyond noise"] += int(
            all(item is not None and item[1] < 0 for item in beaten)
        )


def sensitivity(given: argparse.Namespace) -> None:
    """Print the rank correlation of α, and of depth, with what each matrix costs when it alone is pruned more."""
    torch.set_num_threads(given.threads)
    print("| model | operator | measured | n | α pooled | α within roles | depth within roles |")
    print("| --- | --- | --- | ---: | --- | --- | --- |")
    for subject in subjects().values():
        if subject.name not in given.models:
            continue
        found = audit(str(subject.folder), estimator="peak")
        for operator in given.operators:
            request = Request(0.7, "uniform", operator)
            options = StageOptions(subject.drawn(0), samples=SAMPLES, window=WINDOW)
            stage = stage_of(str(subject.folder), planned(found, request, allocator="uniform"), options)
            around = planned(found, request, allocator="alpha")
            for label, plan, level in (
                ("alone at 70 %", around.replace(decisions=tuple(_zero(d) for d in around)), 0.7),
                ("80 % among 70 %", planned(found, request, allocator="uniform"), 0.8),
            ):
                cost = measured_losses(stage.trial, plan, stage.search, levels=(level,))
                _say_correlation(subject.name, operator, label, around, {name: v for (name, _), v in cost.items()})


def _zero(decision: Any) -> Any:
    from dataclasses import replace

    return replace(decision, sparsity=0.0)


def _say_correlation(model: str, operator: str, label: str, plan: Plan, cost: dict[str, float]) -> None:
    rows = [item for item in plan if item.metrics.get("alpha") is not None and item.block is not None]
    y = np.array([cost[item.tensor] for item in rows])
    alpha, depth = (np.array(values, dtype=np.float64) for values in (
        [item.metrics["alpha"] for item in rows], [item.block for item in rows]))  # fmt: skip
    roles = [item.role for item in rows]
    texts = []
    for x, strata in ((alpha, [""] * len(rows)), (alpha, roles), (depth, roles)):
        rho, low, high, _, _ = stratified_spearman(x, y, strata)
        texts.append("–" if rho is None or low is None or high is None else f"{rho:+.2f} [{low:+.2f}, {high:+.2f}]")
    print(f"| {model} | {operator} | {label} | {len(rows)} | " + " | ".join(texts) + " |", flush=True)


def main() -> None:
    """Run, or print what was run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("part", choices=("run", "table", "sensitivity"))
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--models", type=lambda t: t.split(","), default=["pycode-8m", "stories260K"])
    parser.add_argument("--operators", type=lambda t: t.split(","), default=list(OPERATORS))
    parser.add_argument("--sparsities", type=lambda t: [float(x) for x in t.split(",")], default=list(SPARSITIES))
    parser.add_argument("--ways", type=lambda t: t.split(","), default=[way for way, _, _ in WAYS])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0, help="time of each `auto`")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    {"run": run, "table": table, "sensitivity": sensitivity}[given.part](given)


if __name__ == "__main__":
    main()
