"""An audit on local threads, on Dask and on Ray, with one worker and with two, in one run.

    python benchmarks/engines.py            blocks of a 1B Llama's shapes; table in benchmarks/results/speed.md
    python benchmarks/engines.py --small    a small model, in a minute, to see that it runs

Random weights in bfloat16. Every engine is up and has done a small audit before its clock starts: what starting costs
is a column of its own. Rounds go through all engines in turn, so that what else the machine does hits all of them; a
cell is the least of its rounds, and ratios are of cells of this run. CPU seconds are those of this process and all
that it started, an engine's own daemons included: where the machine is shared, they say more than the wall. Every
table of numbers is compared bit for bit with that of local threads.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import psutil

import models  # the module beside this file
import speed  # its page and its machine
import tailwise as tw

RESULTS = Path(__file__).resolve().parent / "results" / "engines.json"
WORKERS = (1, 2)


def local(_workers: int, _: ExitStack) -> str:
    """Threads of this process."""
    return "local"


def dask(workers: int, stack: ExitStack) -> str:
    """A scheduler and so many worker processes of one thread, started as `--executor dask` starts them."""
    import dask.config
    from distributed import LocalCluster

    dask.config.set({"distributed.worker.profile.enabled": False})
    cluster = LocalCluster(n_workers=workers, threads_per_worker=1, host="127.0.0.1", dashboard_address=None)
    stack.callback(cluster.close)
    return f"dask://{cluster.scheduler_address.removeprefix('tcp://')}"


def ray(workers: int, stack: ExitStack) -> str:
    """A Ray of its own with so many CPUs."""
    import ray as library

    library.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    stack.callback(library.shutdown)
    return "ray"


ENGINES: dict[str, Callable[[int, ExitStack], str]] = {"local": local, "dask": dask, "ray": ray}


def timed(folder: Path, executor: str, workers: int) -> tuple[float, float, tw.Audit]:
    """Wall and CPU seconds of an audit that keeps and reuses nothing, and the audit."""
    cpu, started = cpu_seconds(), time.perf_counter()
    found = tw.audit(folder, executor=executor, workers=workers, use_cache=False)
    return time.perf_counter() - started, cpu_seconds() - cpu, found


def cpu_seconds() -> float:
    """Of this process and everything below it."""
    found = 0.0
    here = psutil.Process()
    for process in [here, *here.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        found += times.user + times.system
    return found


def measure(folder: Path, warm: Path, rounds: int) -> list[dict[str, Any]]:
    """One row for each engine and number of workers."""
    rows: list[dict[str, Any]] = []
    for workers in WORKERS:
        with ExitStack() as stack:
            up: dict[str, str] = {}
            cells: dict[str, dict[str, Any]] = {}
            for name, start in ENGINES.items():
                began = time.perf_counter()
                up[name] = start(workers, stack)
                timed(warm, up[name], workers)
                cells[name] = {
                    "engine": name,
                    "workers": workers,
                    "start": time.perf_counter() - began,
                    "walls": [],
                    "cpus": [],
                }
            expected = None
            for _ in range(rounds):
                for name, executor in up.items():
                    wall, cpu, found = timed(folder, executor, workers)
                    table = found.table(unmeasured=True).arrow.drop_columns(["seconds"])
                    expected = expected if expected is not None else table
                    cells[name]["walls"].append(wall)
                    cells[name]["cpus"].append(cpu)
                    cells[name]["same"] = cells[name].get("same", True) and table.equals(expected)
                    print(name, workers, f"wall {wall:.2f} s, CPU {cpu:.2f} s", flush=True)
        rows += cells.values()
    return rows


def table(rows: list[dict[str, Any]], title: str) -> list[str]:
    """Markdown."""
    wall = {(row["engine"], row["workers"]): min(row["walls"]) for row in rows}
    cpu = {(row["engine"], row["workers"]): min(row["cpus"]) for row in rows}
    lines = [
        f"| {title} | start | wall | over local | CPU | over local | speed-up of 2 workers | same table |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        name, workers = row["engine"], row["workers"]
        cell, base = (name, workers), ("local", workers)
        over = [f"**{found[cell] / found[base] - 1:+.1%}**" if name != "local" else "–" for found in (wall, cpu)]
        faster = "–" if workers == 1 else f"{wall[name, 1] / wall[cell]:.2f} ×"
        same = "bit for bit" if row["same"] else "**no**"
        start = "–" if name == "local" else f"{row['start']:.1f} s"
        lines.append(
            f"| {name}, {workers} worker{'s'[: workers - 1]} | {start} | {wall[cell]:.2f} s | {over[0]} "
            f"| {cpu[cell]:.2f} s | {over[1]} | {faster} | {same} |"
        )
    return lines


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--blocks", type=int, default=4, help="of the 16 of the whole model")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "tailwise-benchmark")
    chosen = parser.parse_args()
    tiny = {**models.LLAMA_1B, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 2, "vocab_size": 4096}
    warm = models.llama(chosen.folder / "tiny", tiny)
    if chosen.small:
        print("\n".join(table(measure(warm, warm, 1), "tiny Llama")))
        return
    config = {**models.LLAMA_1B, "num_hidden_layers": chosen.blocks, "vocab_size": 8192}
    folder = models.llama(chosen.folder / f"llama-1b-{chosen.blocks}-blocks", config)
    rows = measure(folder, warm, chosen.rounds)
    RESULTS.write_text(json.dumps({"machine": speed.machine(), "blocks": chosen.blocks, "rows": rows}, indent=1) + "\n")
    text = table(rows, f"{chosen.blocks} of 16 blocks of a 1.24B Llama, bf16, float64")
    print("\n".join(text))
    write(text, f"python benchmarks/engines.py --blocks {chosen.blocks} --rounds {chosen.rounds}")


def write(text: list[str], command: str) -> None:
    """Put the table into the page, between its markers."""
    start, end = "<!-- engines -->", "<!-- end engines -->"
    before, rest = speed.PAGE.read_text().split(start, 1)
    after = rest.split(end, 1)[1]
    stamp = f"Printed by `{command}` on {speed.machine()}."
    speed.PAGE.write_text("\n".join([before + start, stamp, "", *text, "", end + after]))


if __name__ == "__main__":
    main()
