"""How good quantization plans are: perplexity on held-out text for every allocator, operator and budget of bits.

    python benchmarks/quantization.py run            everything (an hour or two); goes on where --results ends
    python benchmarks/quantization.py table          the tables of docs/evidence.md
    python benchmarks/quantization.py sensitivity    does α say which matrix bears fewer bits?
    python benchmarks/quantization.py solver         10,000 matrices, 8 formats

Every cell is the whole way: audit → plan → `apply` to a folder → that folder loaded and scored. Models, calibration and
held-out text are those of `benchmarks/pruning.py`. Groups of integers divide the inputs of every tensor: 64 in
pycode-8m; stories260K has 172 inputs, so there a row shares a scale.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
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
from tailwise.compression.choosing.knapsack import Knapsack, solve
from tailwise.compression.making.make import plan_quantize
from tailwise.compression.making.request import QuantizeRequest
from tailwise.compression.plans.bits import mean_bits
from tailwise.compression.trying.clock import Clock
from tailwise.compression.trying.layer_errors import error_tables
from tailwise.compression.trying.planned import planned
from tailwise.compression.trying.sensitivity import Variant, variant_losses
from tailwise.compression.trying.stage import StageOptions, stage_of
from tailwise.models.evaluation.loading import load_model, load_tokenizer
from tailwise.models.evaluation.tokens import tokens_of, windows_of

OPERATORS = ("rtn", "gptq")
BITS = (2.5, 3.0, 3.5, 4.5)
FORMATS = {
    "pycode-8m": ("int2-g64", "int3-g64", "int4-g64", "int8-g64"),
    "smollm2": ("int2-g64", "int3-g64", "int4-g64", "int8-g64"),
    "stories260K": ("int2-channel", "int3-channel", "int4-channel", "int8-channel"),
}
#: (label, allocator, settings).
WAYS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("uniform", "uniform", {}),
    ("depth", "depth", {}),
    ("alpha", "alpha", {}),
    ("alpha τ = 0.3", "alpha", {"tau": 0.3}),
    ("alphaq γ = 0 (variance)", "alphaq", {"gamma": 0.0}),
    ("alphaq γ = 1", "alphaq", {"gamma": 1.0}),
    ("alphaq γ = 10", "alphaq", {"gamma": 10.0}),
    ("alphaq γ = 100", "alphaq", {"gamma": 100.0}),
    ("distortion", "distortion", {}),
    ("outputs", "outputs", {}),
    ("sensitivity", "sensitivity", {}),
    ("auto", "auto", {}),
)
FROM_TEXT = ("outputs", "sensitivity", "auto")


def cells(given: argparse.Namespace) -> Iterator[Cell]:
    """(model, operator, bits, way, seed) in the order in which they are of use."""
    for seed in range(given.seeds):
        for model in given.models:
            for bits in given.bits:
                for operator in given.operators:
                    for way, allocator, _ in WAYS:
                        same = operator == "rtn" and allocator not in FROM_TEXT
                        if way in given.ways and not (seed and same):
                            yield model, operator, bits, way, seed


def run(given: argparse.Namespace) -> None:
    """Measure what is not in the results yet."""
    torch.set_num_threads(given.threads)
    results = Results(given.results, "bits")

    def one(subject: Subject, found: Audit, cell: Cell, judge: Judge) -> None:
        measure(results, subject, found, cell, (judge, given.seconds))

    run_cells(results, cells(given), audit, one)


def measure(results: Results, subject: Subject, found: Audit, cell: Cell, how: tuple[Judge, float]) -> None:
    """One cell: losses of the held-out windows, and what it took."""
    _, operator, bits, way, seed = cell
    _, allocator, settings = next(item for item in WAYS if item[0] == way)
    (judge, seconds), text = how, subject.drawn(seed)
    began, worked = time.perf_counter(), time.process_time()
    request = QuantizeRequest(bits, formats=FORMATS[subject.name], operator=operator)
    options = StageOptions(text, samples=SAMPLES, window=WINDOW, seed=seed)
    if allocator == "distortion":
        plan = _by_distortion(found, request, options)
    elif allocator in FROM_TEXT:
        # Time on the processor, so that what else the machine does changes nothing.
        clock = Clock(seconds, time.process_time)
        plan = planned(found, request, allocator=allocator, text=options, clock=clock)
    else:
        plan = plan_quantize(found, replace(request, allocator=allocator, settings=settings))
    planning, worked = time.perf_counter() - began, time.process_time() - worked
    tokens = tokens_of(text, load_tokenizer(subject.folder)).ids
    calibrated = ApplyOptions(calibration=windows_of(tokens, WINDOW, SAMPLES, seed=seed), seed=seed)
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "quantized"
        apply(plan, subject.folder, output, options=ApplyOptions() if operator == "rtn" else calibrated)
        losses, more = judge.scores(load_model(str(output)).module)
    more |= {"planning": round(planning, 1), "planning_cpu": round(worked, 1)}
    facts = {**more, "seconds": round(time.perf_counter() - began, 1)}
    facts |= {"kept": plan.settings.get("kept"), "tried": list(plan.tried)}
    results.keep(cell, losses, **facts, reached=round(mean_bits(plan), 6))


def _by_distortion(found: Audit, request: QuantizeRequest, options: StageOptions) -> Any:
    """As with a precision study of the model: the errors of its weights, summed."""
    around = plan_quantize(found, request)
    tables = error_tables(stage_of(found.model, around, options), around, request.formats)
    assert tables is not None, "nothing ends it"
    return plan_quantize(found, replace(request, allocator="distortion", settings={"errors": tables.weight}))


def table(given: argparse.Namespace) -> None:
    """Print perplexity by way, one table a model and operator, and how `auto` stands in every cell."""
    results, ways = Results(given.results, "bits"), [way for way, _, _ in WAYS]

    def head(amount: float) -> str:
        return f"{amount:g} bits"

    print_beside(results, OPERATORS, ways, head)
    print_tables(
        results,
        OPERATORS,
        ways,
        head,
        Standing("at 3.5 bits and below", lambda amount: amount <= 3.5),
    )


def sensitivity(given: argparse.Namespace) -> None:
    """Print the rank correlation of α, and of depth, with what each tensor costs when it has fewer bits."""
    torch.set_num_threads(given.threads)
    print("| model | operator | measured | n | α pooled | α within roles | depth within roles |")
    print("| --- | --- | --- | ---: | --- | --- | --- |")
    for subject in subjects().values():
        if subject.name not in given.models:
            continue
        found, formats = audit(str(subject.folder)), FORMATS[subject.name]
        for operator in given.operators:
            three = plan_quantize(found, QuantizeRequest(formats=formats[1:2], operator=operator))
            ranked = plan_quantize(found, QuantizeRequest(3.5, formats=formats, operator=operator, allocator="alpha"))
            stage = stage_of(found.model, three, StageOptions(subject.drawn(0), samples=SAMPLES, window=WINDOW))
            dense = three.replace(decisions=tuple(item.but(format="fp32") for item in three))
            for label, around in (("2 bits, all else dense", dense), ("2 bits, all else 3", three)):
                variants = [Variant(item.tensor, {place: item.but(format=formats[0])})
                            for place, item in enumerate(three)]  # fmt: skip
                cost = variant_losses(stage.trial, around, stage.search, variants)
                say_correlation((subject.name, operator, label), ranked.decisions, {str(k): v for k, v in cost.items()})


def solver(_given: argparse.Namespace) -> None:
    """Print how long the exact choice takes for 10,000 matrices of five sizes and eight formats."""
    print("| matrices | formats | bits asked | bits reached | gap to the bound | seconds |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    rng = np.random.default_rng(0)
    levels = np.array([2.25, 3.25, 4.25, 4.5, 6.25, 8.25, 8.0, 16.0])
    for count in (1000, 10_000):
        sizes = rng.choice([1.0, 2.0, 2.75, 4.0, 8.0], count) * 2**20
        losses = rng.lognormal(0, 1, count)[:, None] * 4.0**-levels * rng.lognormal(0, 0.1, (count, len(levels)))
        for bits in (3.0, 4.5):
            began = time.perf_counter()
            found = solve(Knapsack(losses * sizes[:, None], levels * sizes[:, None], bits * float(sizes.sum())))
            took = time.perf_counter() - began
            gap = (found.loss - found.bound) / found.loss
            print(f"| {count:,} | {len(levels)} | {bits} | {found.weight / sizes.sum():.5f} | {gap:.1e} | {took:.2f} |")


def main() -> None:
    """Run, or print what was run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("part", choices=("run", "table", "sensitivity", "solver"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/quantization.jsonl"))
    parser.add_argument("--models", type=lambda t: t.split(","), default=["pycode-8m", "stories260K"])
    parser.add_argument("--operators", type=lambda t: t.split(","), default=list(OPERATORS))
    parser.add_argument("--bits", type=lambda t: [float(x) for x in t.split(",")], default=list(BITS))
    parser.add_argument("--ways", type=lambda t: t.split(","), default=[way for way, _, _ in WAYS])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0, help="time of each `auto`, on the processor")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    {"run": run, "table": table, "sensitivity": sensitivity, "solver": solver}[given.part](given)


if __name__ == "__main__":
    main()
