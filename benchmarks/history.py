"""How fast a history answers: 1,000 audits of 300 layers with 15 metrics, on SQLite and on PostgreSQL.

    python benchmarks/history.py [--steps 1000] [--layers 300] [--url postgresql://…] [-o FILE.md]

Each question is asked of a store that is open, seven times; the table has the median and the worst in milliseconds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tailwise.audits.audit import Audit
from tailwise.audits.rows import Layer, LayerRow, Provenance
from tailwise.history.point import Alarm
from tailwise.history.prune import Retention
from tailwise.history.store import History
from tailwise.spectrum.spectrum import Spectrum

METRICS = [
    "alpha", "alpha_sigma", "ks_distance", "alpha_hill", "alpha_hill_sigma", "lambda_max", "log_norm", "stable_rank",
    "effective_rank", "singular_entropy", "num_spikes", "mp_softrank", "frobenius_norm", "spectral_norm", "rank_loss",
]  # fmt: skip
PARTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
         "mlp.down_proj")  # fmt: skip
ROLES = ("attn_q", "attn_k", "attn_v", "attn_o", "mlp_gate", "mlp_up", "mlp_down")
RUN = "pretraining/large"
REPEATS = 7


def audits(steps: int, layers: int) -> Iterator[Audit]:
    """One audit a step, of numbers that drift."""
    rng = np.random.default_rng(0)
    level = rng.random((layers, len(METRICS))) * 5 + 1
    nothing = Spectrum(np.zeros(8), 8, 8)
    for step in range(steps):
        level += 0.01 * rng.standard_normal(level.shape)
        rows = [
            LayerRow(
                f"model.layers.{index // 7}.{PARTS[index % 7]}", ROLES[index % 7], index // 7, "dense", 4096, 4096, 1,
                "BF16", "OK", tensors=(f"model.layers.{index // 7}.{PARTS[index % 7]}.weight",), nbytes=1 << 25,
                digest=f"{step:08x}{index:08x}" * 4, metrics=dict(zip(METRICS, level[index].tolist(), strict=True)),
            )
            for index in range(layers)
        ]  # fmt: skip
        facts = Provenance(
            f"checkpoints/step-{step}", "safetensors", None, f"{step:064x}", {"estimator": "ks"}, {}, {}, "cpu", 1,
            "2026-01-01T00:00:00+00:00", 1.0, 0, 0,
        )  # fmt: skip
        yield Audit(rows, {row.name: Layer(row, nothing) for row in rows}, facts)


def questions(history: History, steps: int) -> dict[str, Callable[[], Any]]:
    """What is asked, by what it is called in the table."""
    last = (steps - 1) * 100
    name = "model.layers.20.mlp.up_proj"
    return {
        "`runs()`": history.runs,
        "`audits(run)`": lambda: history.audits(RUN),
        "`audit_rows(run, step)`": lambda: history.audit_rows(RUN, last // 200 * 100),
        "`latest(run)`": lambda: history.latest(RUN),
        "`alarms(run)`": lambda: history.alarms(RUN),
        "`metrics(run)`": lambda: history.metrics(RUN),
        "`scalars(run)`": lambda: history.scalars(RUN),
        "`series`, 1 metric, 1 layer, all steps": lambda: history.series(RUN, ["alpha"], [name]),
        "`series`, 15 metrics, 1 layer, all steps": lambda: history.series(RUN, METRICS, [name]),
        "`series`, 1 metric, 1 role, all steps": lambda: history.series(RUN, ["alpha"], roles=["mlp_up"]),
        "`series`, 1 metric, all layers, all steps": lambda: history.series(RUN, ["alpha"]),
        "`series`, 3 metrics, all layers, all steps": lambda: history.series(RUN, METRICS[:3]),
        "`series`, 15 metrics, all layers, 100 steps": lambda: history.series(RUN, METRICS, steps=(last - 9900, last)),
        "`series`, 15 metrics, all layers, all steps": lambda: history.series(RUN, METRICS),
        "`prune(…, dry=True)`": lambda: history.prune(Retention(keep_every=1000, keep_last=10), RUN, dry=True),
    }


def measured(where: str, steps: int, layers: int) -> dict[str, tuple[float, float]]:
    """Question → median and worst, in milliseconds."""
    found = {}
    with History(where) as history:
        began = time.perf_counter()
        for step, audit in enumerate(audits(steps, layers)):
            history.add_audit(audit, RUN, step * 100)
        seconds = time.perf_counter() - began
        print(f"{where}: written in {seconds:.1f} s, making the audits included", file=sys.stderr)
        for index in range(50):
            history.add_alarm(Alarm(RUN, index * 100, 0.0, f"TW4{index:02}", "warning", "something", ("a", "b")))
    with History(where) as history:
        for label, ask in questions(history, steps).items():
            times = []
            for _ in range(REPEATS):
                began = time.perf_counter()
                ask()
                times.append(1e3 * (time.perf_counter() - began))
            found[label] = statistics.median(times), max(times)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--layers", type=int, default=300)
    parser.add_argument("--url", help="of an empty PostgreSQL database; only SQLite is measured without one")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "history.db")
        columns = {"SQLite": measured(path, options.steps, options.layers)}
        size = Path(path).stat().st_size / 1e6
    if options.url:
        columns["PostgreSQL"] = measured(options.url, options.steps, options.layers)
    head = ["question", *(f"{name}, ms (worst)" for name in columns)]
    labels = next(iter(columns.values()))
    rows = [
        [label, *(f"{column[label][0]:.1f} ({column[label][1]:.1f})" for column in columns.values())]
        for label in labels
    ]
    lines = ["| " + " | ".join(line) + " |" for line in [head, ["---"] + ["---:"] * len(columns), *rows]]
    text = "\n".join([*lines, "", f"{options.steps} audits × {options.layers} layers × {len(METRICS)} metrics; "
                      f"the SQLite file has {size:.0f} MB."])  # fmt: skip
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
