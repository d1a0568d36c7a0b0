"""Speed, memory and fidelity of an audit beside weightwatcher, on one machine, in one run.

    python benchmarks/speed.py            everything; the tables go into benchmarks/results/speed.md (about an hour)
    python benchmarks/speed.py --part 8b  one section: matrices, model, workers, 8b or remote
    python benchmarks/speed.py --small    a small model only, in a minute, to see that it runs

Where OPENBLAS_CORETYPE is set, numpy and scipy compute with older kernels than the processor has, weightwatcher's
included: `env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE python benchmarks/speed.py`.

Every measurement is a process of its own with one BLAS thread. CPU seconds are those of the measured call alone
(imports and model building excluded). The peer and tailwise see the same weights and compute the same metrics: in
the scope "default" those of `analyze()` (power-law fit, norms, ranks, entropy), in "all" those of
`analyze(randomize=True, mp_fit=True, detX=True)` (also permuted spectra, Marchenko-Pastur fits, detX). "Bare" is
the same matrices, already in memory in the solver's precision, through BLAS SYRK and LAPACK's symmetric
eigenvalues, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import models  # the module beside this file

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "benchmarks" / "results" / "speed.md"
#: What weightwatcher's `analyze` computes by default.
SAME_METRICS = (
    "alpha", "alpha_sigma", "lambda_min", "lambda_max", "ks_distance", "num_pl_spikes", "alpha_weighted",
    "log_alpha_norm", "log_norm", "log_spectral_norm", "stable_rank", "matrix_rank", "rank_loss", "matrix_entropy",
)  # fmt: skip
#: With `randomize`, `mp_fit` and `detX` on.
ALL_METRICS = (
    *SAME_METRICS, "detX_num", "detX_val", "sigma_mp", "lambda_plus", "num_spikes", "mp_softrank", "num_traps",
    "rand_distance", "ww_softrank", "ww_maxdist",
)  # fmt: skip
SCOPES = {"default": SAME_METRICS, "all": ALL_METRICS}
PEER_SCOPES: dict[str, dict[str, bool]] = {
    "default": {},
    "all": {"randomize": True, "mp_fit": True, "detX": True},
}
#: weightwatcher skips matrices with a side above 50,000, so the embedding is left out of the comparison.
COMPARED = r"layers\."


def child_tailwise(folder: str, precision: str, workers: int, scope: str) -> dict[str, Any]:
    """Audit `folder`; alphas by name, CPU and wall seconds, peak memory."""
    import torch

    import tailwise as tw
    from tailwise.spectrum.solvers.blas import HERE

    torch.set_num_threads(1)
    HERE(4096, precision)  # measured once on a machine, not in each audit
    settings: dict[str, Any] = {"layers": COMPARED, "metrics": SCOPES[scope]} if scope in SCOPES else {}
    if scope == "blocks":
        settings = {"layers": COMPARED}
    tw.audit({"layers.warm.weight": torch.randn(64, 64)}, use_cache=False, **settings)
    cpu, wall = time.process_time(), time.perf_counter()
    found = tw.audit(folder, precision=precision, workers=workers, use_cache=False, **settings)  # type: ignore[arg-type]
    spent = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    largest = max(layer.spectrum.m for layer in found) ** 2 * (8 if precision == "float64" else 4)
    alphas = {layer.row.name: layer.row.metrics["alpha"] for layer in found}
    return {**spent, "rss": _peak_rss(), "largest_gram": largest, "alphas": alphas}


def child_weightwatcher(folder: str, scope: str) -> dict[str, Any]:
    """weightwatcher.analyze on the same matrices, one Linear at a time."""
    import logging
    import warnings

    warnings.simplefilter("ignore")
    os.environ["MPLBACKEND"] = "Agg"
    import torch
    import weightwatcher
    from safetensors.torch import load_file

    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    cpu = wall = 0.0
    alphas: dict[str, float] = {}
    for shard in sorted(Path(folder).glob("*.safetensors")):
        for name, weight in load_file(shard).items():
            if ".layers." not in name:
                continue
            layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            layer.weight.data = weight.float()
            watcher = weightwatcher.WeightWatcher(model=torch.nn.Sequential(layer), log_level=logging.CRITICAL)
            started, clock = time.process_time(), time.perf_counter()
            details = watcher.analyze(**PEER_SCOPES[scope])
            cpu, wall = cpu + time.process_time() - started, wall + time.perf_counter() - clock
            alphas[name.removesuffix(".weight")] = float(details["alpha"].iloc[0])
    return {"cpu": cpu, "wall": wall, "rss": _peak_rss(), "alphas": alphas}


def child_bare(folder: str, precision: str) -> dict[str, Any]:
    """SYRK and symmetric eigenvalues of the same matrices."""
    import torch
    from safetensors.torch import load_file
    from scipy.linalg import blas
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    dtype = getattr(torch, precision)
    syrk = blas.dsyrk if precision == "float64" else blas.ssyrk
    cpu = 0.0
    with threadpool_limits(1):
        for shard in sorted(Path(folder).glob("*.safetensors")):
            for name, stored in load_file(shard).items():
                if ".layers." not in name:
                    continue
                weight = stored.to(dtype)
                tall = (weight if weight.shape[0] >= weight.shape[1] else weight.T).contiguous().numpy()
                started = time.process_time()
                gram = syrk(1.0, tall.T, lower=0)  # tall.T is Fortran-ordered: no copy
                torch.linalg.eigvalsh(torch.from_numpy(gram.T))
                cpu += time.process_time() - started
    return {"cpu": cpu}


def _peak_rss() -> int:
    # Not ru_maxrss: across a fork it keeps the parent's peak.
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def measure(*arguments: object) -> dict[str, Any]:
    """Run one measurement in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "--child", json.dumps(arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(
        arguments,
        {key: value for key, value in result.items() if key != "alphas"},
        file=sys.stderr,
        flush=True,
    )
    return result


def worst_difference(ours: dict[str, float], theirs: dict[str, float]) -> float:
    """Largest relative difference of alpha over the matrices that both measured."""
    assert set(ours) == set(theirs), set(ours) ^ set(theirs)
    return max(abs(ours[name] - theirs[name]) / theirs[name] for name in ours)


def repeated(rounds: int, *ways: tuple[object, ...]) -> list[dict[str, Any]]:
    """Each way so often, in turn: what was found first, with its CPU seconds from the least to the largest."""
    found = [[measure(*way) for way in ways] for _ in range(rounds)]
    return [{**first, "cpus": sorted(row[place]["cpu"] for row in found)} for place, first in enumerate(found[0])]


def told(run: dict[str, Any]) -> str:
    """The minimum, and the median where there are several."""
    cpus = run["cpus"]
    middle = f" ({cpus[len(cpus) // 2]:.2f})" if len(cpus) > 1 else ""
    return f"{cpus[0]:.2f}{middle} s"


def speed_rows(cases: dict[str, Path], rounds: int) -> list[str]:
    """One line of Markdown per case; ratios are of the minima."""
    lines = [
        "| weights | metrics | weightwatcher | tailwise float64 | ratio | tailwise float32 | ratio | over bare "
        "| α differs |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for title, folder in cases.items():
        for scope in SCOPES:
            where = str(folder)
            exact, fast, peer, bare = repeated(
                rounds,
                ("tailwise", where, "float64", 1, scope),
                ("tailwise", where, "float32", 1, scope),
                ("weightwatcher", where, scope),
                ("bare", where, "float64"),
            )
            least = {name: run["cpus"][0] for name, run in zip("efpb", (exact, fast, peer, bare), strict=True)}
            over = f"{least['e'] / least['b']:.2f} ×" if scope == "default" else "–"
            difference = worst_difference(exact["alphas"], peer["alphas"])
            lines.append(
                f"| {title} | {scope} | {told(peer)} | {told(exact)} | **{least['p'] / least['e']:.1f} ×** "
                f"| {told(fast)} | **{least['p'] / least['f']:.1f} ×** | {over} | {difference:.0e} |"
            )
    return lines


def slice_rows(folder: Path, blocks: int, of: int) -> list[str]:
    """A slice of a large model on two workers: wall and memory, and the whole by the share of its matrices."""
    lines = [
        f"| {blocks} of {of} blocks of Llama-3.1-8B's shapes, bf16, 2 workers | wall | CPU | {of} blocks, scaled up "
        "| peak memory |",
        "|---|---:|---:|---:|---:|",
    ]
    for precision in ("float64", "float32"):
        run = measure("tailwise", str(folder), precision, 2, "blocks")
        lines.append(
            f"| {precision} | {run['wall']:.1f} s | {run['cpu']:.1f} s | {run['wall'] * of / blocks / 60:.1f} min "
            f"| {run['rss'] / 1e6:.0f} MB |"
        )
    return lines


def whole_model_rows(title: str, folder: Path) -> list[str]:
    """Workers and memory on a whole checkpoint, every default metric, embedding included."""
    lines = [
        f"| {title} | wall | CPU | speed-up | peak memory | limit: 2.5 × Gram × workers + 600 MB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    first = None
    for precision in ("float64", "float32"):
        for workers in (1, 2):
            run = measure("tailwise", str(folder), precision, workers, "everything")
            first = run["wall"] if workers == 1 else first
            limit = 2.5 * run["largest_gram"] * workers + 600e6
            lines.append(
                f"| {precision}, {workers} worker{'s'[: workers - 1]} | {run['wall']:.0f} s | {run['cpu']:.0f} s "
                f"| {first / run['wall']:.2f} × | {run['rss'] / 1e6:.0f} MB | {limit / 1e6:.0f} MB |"
            )
    return lines


def machine() -> str:
    """What this ran on."""
    import numpy
    import torch

    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "?: ?")
    return (
        f"{model.split(':', 1)[1].strip()}, {os.cpu_count()} cores; Python {platform.python_version()}, "
        f"torch {torch.__version__}, numpy {numpy.__version__}"
    )


PARTS = ("matrices", "model", "workers", "8b", "remote")


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--part", choices=(*PARTS, "all"), default="all")
    parser.add_argument("--rounds", type=int, default=3, help="of single matrices")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "tailwise-benchmark")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        print(json.dumps(globals()[f"child_{chosen.child[0]}"](*chosen.child[1:])))
        return
    if chosen.small:
        tiny = {
            **models.LLAMA_1B,
            "hidden_size": 256,
            "intermediate_size": 704,
            "num_hidden_layers": 2,
            "vocab_size": 4096,
        }
        folder = models.llama(chosen.folder / "tiny", tiny)
        print("\n".join([*speed_rows({"tiny Llama": folder}, 1), "", *whole_model_rows("tiny Llama", folder)]))
        return
    for part in PARTS if chosen.part == "all" else (chosen.part,):
        write(part, rows_of(part, chosen.folder, chosen.rounds))


def rows_of(part: str, folder: Path, rounds: int) -> list[str]:
    """The table of a section."""
    if part == "matrices":
        square = models.single_layer(folder / "square", 4096, 4096)
        wide = models.single_layer(folder / "wide", 4096, 11008)
        return speed_rows({"4096 × 4096": square, "4096 × 11008": wide}, rounds)
    if part == "8b":
        shapes = {**models.LLAMA_8B, "num_hidden_layers": 2, "vocab_size": 1024}
        return slice_rows(models.llama(folder / "llama-8b-slice", shapes), 2, 32)
    if part == "remote":
        import remote_store

        smol = {
            **models.LLAMA_1B, "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
            "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        }  # fmt: skip
        return remote_store.rows(models.llama(folder / "smollm2-shapes", smol), rounds)
    whole = models.llama(folder / "llama-1b")
    if part == "model":
        return speed_rows({"1.24B Llama, 112 matrices": whole}, 1)
    return whole_model_rows("1.24B Llama, bf16, 113 matrices", whole)


def write(part: str, table: list[str]) -> None:
    """Put a table into the page, between its markers."""
    start, end = f"<!-- {part} -->", f"<!-- end {part} -->"
    before, rest = PAGE.read_text().split(start, 1)
    after = rest.split(end, 1)[1]
    from tailwise.spectrum.solvers.blas import described

    stamp = f"Printed by `python benchmarks/speed.py --part {part}` on {machine()}; {described()}."
    PAGE.write_text("\n".join([before + start, stamp, "", *table, "", end + after]))


if __name__ == "__main__":
    main()
