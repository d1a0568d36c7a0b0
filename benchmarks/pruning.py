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
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from held_out import (
    SAMPLES,
    WINDOW,
    Cell,
    Judge,
    Results,
    Standing,
    Subject,
    print_beside,
    print_tables,
    run_cells,
    say_correlation,
    subjects,
)
from tailwise.audits.audit import Audit
from tailwise.audits.run import audit
from tailwise.compression.applying.apply import apply
from tailwise.compression.applying.apply_options import ApplyOptions
from tailwise.compression.choosing.amounts import ALLOCATORS
from tailwise.compression.making.request import Request
from tailwise.compression.trying.clock import Clock
from tailwise.compression.trying.planned import planned
from tailwise.compression.trying.sensitivity import measured_losses
from tailwise.compression.trying.stage import StageOptions, stage_of
from tailwise.models.evaluation.loading import load_model, load_tokenizer
from tailwise.models.evaluation.tokens import tokens_of, windows_of

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
    ("lsa", "lsa", {}),
    ("sensitivity", "sensitivity", {}),
    ("auto", "auto", {}),
)
FROM_TEXT = ("owl", "dlp", "lsa", "sensitivity", "auto")


def cells(given: argparse.Namespace) -> Iterator[Cell]:
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
    results = Results(given.results, "sparsity")

    def one(subject: Subject, found: Audit, cell: Cell, judge: Judge) -> None:
        measure(results, subject, found, cell, (judge, given.seconds))

    run_cells(results, cells(given), lambda folder: audit(folder, estimator="peak"), one)


def measure(results: Results, subject: Subject, found: Audit, cell: Cell, how: tuple[Judge, float]) -> None:
    """One cell: losses of the held-out windows, and what it took."""
    _, operator, sparsity, way, seed = cell
    _, allocator, settings = next(item for item in WAYS if item[0] == way)
    (judge, seconds), text = how, subject.drawn(seed)
    began, worked = time.perf_counter(), time.process_time()
    request = Request(sparsity, allocator if allocator in ALLOCATORS else "uniform", operator, settings=settings)
    options = StageOptions(text, samples=SAMPLES, window=WINDOW, seed=seed) if allocator in FROM_TEXT else None
    # Time on the processor, so that what else the machine does changes nothing.
    clock = Clock(seconds, time.process_time)
    plan = planned(found, request, allocator=allocator, text=options, clock=clock)
    planning, worked = time.perf_counter() - began, time.process_time() - worked
    tokens = tokens_of(text, load_tokenizer(subject.folder)).ids
    calibrated = ApplyOptions(calibration=windows_of(tokens, WINDOW, SAMPLES, seed=seed), seed=seed)
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "pruned"
        apply(plan, subject.folder, output, options=ApplyOptions() if operator == "magnitude" else calibrated)
        losses, more = judge.scores(load_model(str(output)).module)
    more |= {"planning": round(planning, 1), "planning_cpu": round(worked, 1)}
    facts = {**more, "seconds": round(time.perf_counter() - began, 1)}
    facts |= {"kept": plan.settings.get("kept"), "tried": list(plan.tried)}
    results.keep(cell, losses, **facts, reached=round(plan.sparsity, 6))


def table(given: argparse.Namespace) -> None:
    """Print perplexity by way, one table a model and operator, and how `auto` stands in every cell."""
    results, ways = Results(given.results, "sparsity"), [way for way, _, _ in WAYS]

    def head(amount: float) -> str:
        return f"{100 * amount:.0f} %"

    print_beside(results, OPERATORS, ways, head)
    print_tables(
        results,
        OPERATORS,
        ways,
        head,
        Standing("at 60 % and above", lambda amount: amount >= 0.6),
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
                ("alone at 70 %", around.replace(decisions=tuple(d.but(sparsity=0.0) for d in around)), 0.7),
                ("80 % among 70 %", planned(found, request, allocator="uniform"), 0.8),
            ):
                cost = measured_losses(stage.trial, plan, stage.search, levels=(level,))
                say_correlation(
                    (subject.name, operator, label), around.decisions, {name: v for (name, _), v in cost.items()}
                )


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
