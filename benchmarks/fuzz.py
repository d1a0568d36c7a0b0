"""Damaged inputs by the million: every parser of other people's files, each input by its number.

    python benchmarks/fuzz.py --inputs 1000000                # over all kinds, by what they cost
    python benchmarks/fuzz.py --kinds audit,pickle --minutes 30
    python benchmarks/fuzz.py --again                         # what was found, once more

An input is read, or refused in one of tailwise's own errors; anything else (another exception, a signal, more than 20
seconds of computing, more than 4 GiB) is a finding, with the number that makes it again. One worker process does piece
after piece; a crash ends the worker and is a finding of the input that it was at, and a new worker goes on behind it.
Each piece is a line of `--results`, so a run goes on where the last one ended. The table counts all lines, and is
written into benchmarks/results/fuzzing.md with `--write`.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "fuzz.jsonl"
PAGE = ROOT / "benchmarks" / "results" / "fuzzing.md"
MEMORY = 4 << 30
#: Seconds without a word after which a worker is stopped; much more than an input may compute, for cores are shared.
PATIENCE = 300
#: Inputs of a kind in each round, of 10,000 in all: what costs less is done more often.
ROUND = {
    "gates": 1700,
    "gguf": 1500,
    "arrays": 1100,
    "adapter": 1100,
    "safetensors": 1000,
    "index": 700,
    "onnx": 700,
    "pickle": 500,
    "keras": 400,
    "config": 300,
    "compressed": 100,
    "plan": 400,
    "distributed": 300,
    "audit": 200,
}
#: Rounds that make one piece: one line of the results.
ROUNDS = 2
#: Pieces after which a worker is replaced, so that what it holds does not grow for good.
RENEWED = 30
_FINE = {"r": "read", "t": "told"}


def main() -> None:
    """Do pieces until there are enough inputs, or the time is over."""
    options = parsed()
    if options.worker:
        serve()
    elif options.again:
        again(options.results)
    else:
        go_on(options)
        text = table(lines(options.results))
        print(text)
        if options.write:
            write(text)


def parsed() -> argparse.Namespace:
    """The command line."""
    found = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    found.add_argument("--inputs", type=int, default=1_000_000, help="over all kinds, those of earlier runs among them")
    found.add_argument("--kinds", default="", help="comma list; all")
    found.add_argument("--minutes", type=float, default=float("inf"), help="begin no piece after that")
    found.add_argument("--results", type=Path, default=RESULTS, help="a line per piece; goes on where it ends")
    found.add_argument("--write", action="store_true", help="write the table into benchmarks/results/fuzzing.md")
    found.add_argument("--again", action="store_true", help="only what was found so far: which findings still are")
    found.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return found.parse_args()


def lines(results: Path) -> list[dict[str, Any]]:
    """What was done."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.is_file() else []


def write(text: str) -> None:
    """Put the table into the page."""
    head, _, rest = PAGE.read_text(encoding="utf-8").partition("<!-- table -->")
    _, _, tail = rest.partition("<!-- end -->")
    PAGE.write_text(f"{head}<!-- table -->\n\n{text}\n<!-- end -->{tail}", encoding="utf-8")


def go_on(options: argparse.Namespace) -> None:
    """Pieces of the kinds in turn, from where each one ended."""
    kinds = options.kinds.split(",") if options.kinds else list(ROUND)
    ends = time.monotonic() + options.minutes * 60
    following: dict[str, int] = dict.fromkeys(kinds, 0)
    total = 0
    for line in lines(options.results):
        total += line["inputs"]
        if line["kind"] in following:
            following[line["kind"]] = max(following[line["kind"]], line["first"] + line["inputs"])
    worker: Worker | None = None
    pieces = 0
    while total < options.inputs and time.monotonic() < ends:
        for kind in kinds:
            if time.monotonic() > ends:
                break
            if worker is None or pieces % RENEWED == 0:
                worker = renewed(worker)
            line, worker = piece(worker, kind, following[kind], ROUND[kind] * ROUNDS)
            following[kind] += line["inputs"]
            total += line["inputs"]
            pieces += 1
            with options.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            found = {what: count for what, count in line["counts"].items() if what not in _FINE.values()}
            print(f"{total:,}: {kind} {1000 * line['seconds'] / line['inputs']:.1f} ms {found or ''}", flush=True)
    if worker is not None:
        worker.stop()


def again(results: Path) -> None:
    """Whether what was found is still so."""
    worker = renewed(None)
    for line in lines(results):
        for finding in line["findings"]:
            now, worker = piece(worker, line["kind"], finding["seed"], 1)
            (what,) = now["counts"]
            detail = now["findings"][0]["detail"] if now["findings"] else ""
            print(f"{line['kind']} {finding['seed']}: was {finding['kind']}, is {what} {detail}", flush=True)
    worker.stop()


class Worker:
    """A process that answers with a letter per input, or a line where it is a finding."""

    def __init__(self) -> None:
        # In memory where that can be: most of the time would go into making and removing files.
        shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.folder = tempfile.TemporaryDirectory(prefix="tailwise-fuzz-", dir=shared)
        environment = os.environ | {
            "TMPDIR": self.folder.name, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
            "TAILWISE_CACHE": f"{self.folder.name}/cache", "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.process.stdout.readline()  # it has imported what it needs
        os.set_blocking(self._out, False)

    @property
    def _out(self) -> int:
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def ask(self, kind: str, first: int, count: int) -> None:
        """Begin a piece."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{kind} {first} {count}\n".encode())
        self.process.stdin.flush()

    def said(self) -> Iterator[str]:
        """Outcomes as they come; ends with the process, or when it is stopped for its silence."""
        last, rest = time.monotonic(), b""
        while True:
            gone = self.process.poll() is not None
            try:
                new = os.read(self._out, 1 << 16)
            except BlockingIOError:
                new = b""
            if new:
                last = time.monotonic()
                *whole, rest = (rest + new).split(b"\n")
                yield from (line.decode() for line in whole)
            elif gone:
                return
            elif time.monotonic() - last > PATIENCE:
                self.process.kill()
                self.process.wait()
                self.hung = True
                return
            else:
                time.sleep(0.1)

    hung = False

    def stop(self) -> None:
        """End it, and remove its files."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.folder.cleanup()


def renewed(worker: Worker | None) -> Worker:
    """Another worker."""
    if worker is not None:
        worker.stop()
    return Worker()


def piece(worker: Worker, kind: str, first: int, count: int) -> tuple[dict[str, Any], Worker]:
    """Outcomes of some inputs, whatever ended them; and the worker that is there after it."""
    began = time.monotonic()
    counts: collections.Counter[str] = collections.Counter()
    findings: list[dict[str, Any]] = []
    while (done := counts.total()) < count:
        worker.ask(kind, first + done, count - done)
        for outcome in worker.said():
            if outcome in _FINE:
                counts[_FINE[outcome]] += 1
            else:
                found = json.loads(outcome)
                counts[found["kind"]] += 1
                findings.append(found)
            if counts.total() == count:
                break
        else:
            ended = "did not end" if worker.hung else f"ended with {worker.process.returncode}"
            findings.append({"kind": ended, "seed": first + counts.total(), "detail": ""})
            counts[ended] += 1
            worker = renewed(worker)
    line = {"kind": kind, "first": first, "inputs": count, "counts": dict(sorted(counts.items())),
            "findings": findings[:20], "seconds": round(time.monotonic() - began, 1)}  # fmt: skip
    return line, worker


def serve() -> None:
    """In the worker: an outcome a line, for each piece that is asked for."""
    import gc
    import logging
    import resource

    sys.path.insert(0, str(ROOT / "tests" / "fuzz"))
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    import fuzz_targets

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    folder = Path(tempfile.mkdtemp())
    os.write(1, b"ready\n")
    gc.freeze()  # what the imports made need not be looked through again and again
    for line in sys.stdin:
        kind, first, count = line.split()
        for seed in range(int(first), int(first) + int(count)):
            outcome = fuzz_targets.attempt(kind, seed, folder / "input")
            said = outcome.kind[0] if outcome.is_fine else json.dumps(
                {"kind": outcome.kind, "seed": seed, "detail": outcome.detail}
            )  # fmt: skip
            os.write(1, f"{said}\n".encode())


def table(done: list[dict[str, Any]]) -> str:
    """A line per kind of file."""
    rows = [
        "| what was damaged | inputs | read | told in an error of ours | anything else |",
        "|---|---:|---:|---:|---:|",
    ]
    total: collections.Counter[str] = collections.Counter()
    for kind in dict.fromkeys(line["kind"] for line in done):
        counts: collections.Counter[str] = collections.Counter()
        for line in done:
            if line["kind"] == kind:
                counts.update(line["counts"])
        total.update(counts)
        rows.append(_row(kind, counts))
    return "\n".join([*rows, _row("all", total)]) + "\n"


def _row(kind: str, counts: collections.Counter[str]) -> str:
    number = counts.total()
    other = number - counts["read"] - counts["told"]
    return f"| {kind} | {number:,} | {counts['read']:,} | {counts['told']:,} | {other:,} |"


if __name__ == "__main__":
    main()
