"""What a real model loses at about five bits, and how long each command takes: without a search, on text, by operator.

    python benchmarks/bits_cost.py run
    python benchmarks/bits_cost.py table

SmolLM2-135M in bf16. Plans are by `ends`, which reads the audit alone. Operators that look at inputs see 32 windows of
512 tokens of WikiText-2 valid; 24 windows of its test are scored, beside the model as it was. Each command is a process
of its own. `run` goes on where the results end.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress_cost import kept, measured, rows_in
from held_out import subjects

RESULTS = Path("benchmarks/results/bits_cost.jsonl")


@dataclass(frozen=True)
class Wanted:
    """What is asked for."""

    server: str
    formats: str
    operator: str
    bits: float


WANTED = tuple(
    Wanted(server, formats, operator, bits)
    for bits in (4.5, 5.0)
    for server, formats, operators in (
        ("vLLM", "int4-g64,int8", ("rtn", "gptq")),
        ("llama.cpp", "q4_0,q5_0,q8_0", ("rtn", "imatrix")),
    )
    for operator in operators
)


def run(given: argparse.Namespace) -> None:
    """Measure what is not in the results yet."""
    subject = subjects()["smollm2"]
    known = {_key(row) for row in rows_in(given.results)}
    with tempfile.TemporaryDirectory() as made:
        scratch = Path(made)
        valid, test = scratch / "valid.txt", scratch / "test.txt"
        valid.write_text("".join(subject.calibration), encoding="utf-8")
        test.write_text("".join(subject.held_out), encoding="utf-8")
        audit = scratch / "model.audit"
        _spent("audit", str(subject.folder), "-o", str(audit))
        for wanted in WANTED:
            if (wanted.server, wanted.operator, wanted.bits) not in known:
                kept(given.results, _row(wanted, subject.folder, (valid, test), (audit, scratch)))


def _key(row: dict[str, Any]) -> tuple[str, str, float]:
    return row["server"], row["operator"], row["asked"]


def _row(wanted: Wanted, model: Path, text: tuple[Path, Path], made: tuple[Path, Path]) -> dict[str, Any]:
    (valid, test), (audit, scratch) = text, made
    plan, output, scores = (str(scratch / name) for name in ("plan.json", "output", "scores.json"))
    how = () if wanted.operator == "rtn" else ("--calibration", str(valid), "--samples", "32")
    seconds = {
        "plan": _spent("plan", "quantize", str(audit), "--bits", str(wanted.bits), "--formats", wanted.formats,
                       "--operator", wanted.operator, "--allocator", "ends", "-o", plan),
        "apply": _spent("apply", plan, str(model), *how, "-o", output, "--force"),
        "evaluate": _spent("evaluate", output, "--against", str(model), "--text", str(test), "--max-windows", "24",
                           "-o", scores),
    }  # fmt: skip
    found = json.loads(Path(scores).read_text())
    low, high = found["perplexity"]["interval"]
    return {"server": wanted.server, "formats": wanted.formats, "operator": wanted.operator, "asked": wanted.bits,
            **seconds, "bytes": found["model"]["facts"]["planned_nbytes"], "kl": found["divergence"]["kl"],
            "change": found["perplexity"]["change"], "low": low, "high": high}  # fmt: skip


def _spent(*command: str) -> float:
    return measured([sys.executable, "-P", "-m", "tailwise", *command])["wall"]


def table(given: argparse.Namespace) -> None:
    """Print what was measured."""
    from math import exp

    print("| formats | bits | operator | file | perplexity | 95 % | KL | plan | apply | evaluate |")
    print("| --- | ---: | --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |")
    for row in rows_in(given.results):
        times = " | ".join(f"{row[name]:.0f} s" for name in ("plan", "apply", "evaluate"))
        lost = f"× {exp(row['change']):.3f} | {exp(row['low']):.3f} to {exp(row['high']):.3f} | {row['kl']:.3f}"
        formats = ", ".join(f"`{name}`" for name in row["formats"].split(","))
        print(
            f"| {formats} | {row['asked']:g} | `{row['operator']}` | {row['bytes'] / 1e6:.0f} MB | {lost} | {times} |"
        )


def main() -> None:
    """Run, or print what was run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("part", choices=("run", "table"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    {"run": run, "table": table}[given.part](given)


if __name__ == "__main__":
    main()
