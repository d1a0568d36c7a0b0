"""An audit of an 8B-shaped model on a GPU, beside a loop over `torch.linalg.eigvalsh` in the same run.

    python benchmarks/gpu.py                        Llama-3.1-8B's shapes on the GPU: about 10 minutes, 16 GB of disk
    python benchmarks/gpu.py --device cpu --small   a tiny model on the CPU, in seconds, to see that it runs

The weights are synthetic (benchmarks/models.py). Four things are measured:

1. every way to the eigenvalues of the model's sizes, alone and in batches, in float64 and float32: what `solve` chooses
   by, since it measures the same;
2. the loop: each matrix to the device, its Gram matrix and `torch.linalg.eigvalsh`, one after the other, and nothing
   else. `--loop-layers` blocks of the model are done, and the time is scaled by the work of the whole;
3. the audit, with all its metrics, by several workers whose matrices are reduced together;
4. the same audit of one block on the CPU in float64: no alpha may differ by more than 1e-4.

The table is printed as Markdown; `--output` keeps all numbers as JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import models  # the module beside this file
import tailwise as tw
from speed import machine  # the module beside this file
from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.checkpoints.matrices import MatrixSource, group, load
from tailwise.spectrum.solvers.gpu_streams import finish
from tailwise.spectrum.solvers.gram import gather
from tailwise.spectrum.solvers.symmetric import measured

SMALL = {
    **models.LLAMA_8B, "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 3, "vocab_size": 1024,
    "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 32,
}  # fmt: skip
#: Largest difference of alpha from the CPU's.
SAME = 1e-4


def solver_rows(sizes: list[int], counts: list[int], device: torch.device) -> list[dict[str, Any]]:
    """Milliseconds for each matrix by size, batch, type and solver."""
    rows = []
    for dtype in (torch.float64, torch.float32):
        for m in sizes:
            for count in counts:
                seconds = measured(m, count, dtype, device)
                name = str(dtype).removeprefix("torch.")
                rows.append({"m": m, "batch": count, "dtype": name, "ms": {k: 1e3 * v for k, v in seconds.items()}})
                print(rows[-1], file=sys.stderr, flush=True)
    return rows


def loop(sources: list[MatrixSource], checkpoint: Checkpoint, device: torch.device) -> float:
    """Seconds of the plain loop in float64; one matrix before, for what the first call loads."""

    def one(source: MatrixSource) -> None:
        for matrix in load(source, checkpoint):
            W = gather(matrix).to(device, torch.float64)
            G = W.T @ W if len(W) >= W.shape[1] else W @ W.T
            torch.linalg.eigvalsh(G).cpu()

    one(min(sources, key=lambda source: source.flops))
    finish(device)
    started = time.perf_counter()
    for source in sources:
        one(source)
    finish(device)
    return time.perf_counter() - started


def audit(folder: Path, cache: Path, **settings: Any) -> tuple[tw.Audit, float]:
    """An audit that knows no spectrum, and its wall seconds; what is needed once a machine stays in `cache`."""
    for kind in ("spectra", "digests"):
        shutil.rmtree(cache / kind, ignore_errors=True)
    started = time.perf_counter()
    found = tw.audit(str(folder), cache_dir=cache, **settings)
    return found, time.perf_counter() - started


def worst(found: tw.Audit, reference: tw.Audit) -> float:
    """Largest difference of alpha over the matrices of `reference`."""
    return max(abs(layer.alpha - found[layer.row.name].alpha) for layer in reference)


def report(facts: dict[str, Any]) -> list[str]:
    """The tables."""
    names = list(dict.fromkeys(name for row in facts["solvers"] for name in row["ms"]))
    lines = [f"On {facts['machine']}, {facts['device']}.", ""]
    lines += ["| m | batch | type | " + " | ".join(names) + " |", "|---|---|---|" + "---:|" * len(names)]
    for row in facts["solvers"]:
        best = min(row["ms"].values())
        cells = [_cell(row["ms"].get(name), best) for name in names]
        lines.append(f"| {row['m']} | {row['batch']} | {row['dtype']} | " + " | ".join(cells) + " |")
    lines += ["", "Milliseconds for each matrix.", "", "| what | seconds | over the loop | α differs |"]
    lines += ["|---|---:|---:|---:|", f"| loop over `torch.linalg.eigvalsh`, float64 | {facts['loop']:.1f} | 1 × | |"]
    for name, run in facts["audits"].items():
        ratio = facts["loop"] / run["seconds"]
        lines.append(f"| audit, {name}, every metric | {run['seconds']:.1f} | {ratio:.1f} × | {run['alpha']:.0e} |")
    done, of = facts["loop_matrices"]
    if done < of:
        lines += ["", f"The loop did {done} of {of} matrices; its time is scaled by their work."]
    return lines


def _cell(value: float | None, best: float) -> str:
    if value is None or value == float("inf"):
        return "–"
    return f"**{value:.2f}**" if value == best else f"{value:.2f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--loop-layers", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "tailwise-benchmark")
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args()
    device = torch.device(chosen.device)
    config = SMALL if chosen.small else models.LLAMA_8B
    folder = models.llama(chosen.folder / f"gpu-{'small' if chosen.small else '8b'}-{device.type}", config, str(device))
    facts = measure(folder, device, chosen)
    print("\n".join(report(facts)))
    if chosen.output:
        chosen.output.write_text(json.dumps(facts, indent=1))
    if any(run["alpha"] > SAME for name, run in facts["audits"].items() if name == "float64"):
        sys.exit(f"alpha differs by more than {SAME} from the CPU's")


def measure(folder: Path, device: torch.device, chosen: argparse.Namespace) -> dict[str, Any]:
    """Everything, as JSON."""
    facts: dict[str, Any] = {"machine": machine(), "device": device.type}
    if device.type == "cuda":
        facts["device"] = torch.cuda.get_device_name(device)
    with tw.open_checkpoint(str(folder)) as checkpoint:
        sources, _ = group(checkpoint, conv="flatten", min_evals=8)
        sizes = sorted({source.m for source in sources})
        facts["solvers"] = solver_rows(sizes, [1, 4] if chosen.small else [1, 4, 8], device)
        some = [s for s in sources if s.block is not None and s.block < chosen.loop_layers]
        whole = sum(source.flops for source in sources) / sum(source.flops for source in some)
        facts["loop"] = loop(some, checkpoint, device) * whole
        facts["loop_matrices"] = [len(some), len(sources)]
    cache, block = chosen.folder / "gpu-cache", r"layers\.0\."
    reference, _ = audit(folder, cache, layers=block, device="cpu")
    facts["audits"] = {}
    for precision in ("float64", "float32"):
        how = {"device": str(device), "workers": chosen.workers, "precision": precision}
        audit(folder, cache, layers=block, **how)  # solvers are chosen, and what is loaded late is loaded
        found, seconds = audit(folder, cache, **how)
        facts["audits"][precision] = {
            "seconds": seconds, "alpha": worst(found, reference), "matrices": len(found), "workers": chosen.workers,
        }  # fmt: skip
        print(precision, facts["audits"][precision], file=sys.stderr, flush=True)
    return facts


if __name__ == "__main__":
    main()
