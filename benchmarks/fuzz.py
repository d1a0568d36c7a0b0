"""Damaged inputs by the hundred thousand: every parser of other people's files, each input by its number.

    python benchmarks/fuzz.py --inputs 100000                 # of each kind
    python benchmarks/fuzz.py --kinds audit,pickle --inputs 20000 --minutes 30

An input is read, or refused in one of tailwise's own errors; anything else (another exception, a signal, more than 20
seconds, more than 4 GiB) is a finding, with the number that makes it again. Work is done in blocks, each in a process
of its own, so that a crash is a finding too; a block that was done is a line of `--results` and is not done again. The
table at the end counts all lines, and is written into docs/fuzzing.md with `--write`.
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
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "fuzz.jsonl"
PAGE = ROOT / "docs" / "fuzzing.md"
BLOCK = 1000
MEMORY = 4 << 30
#: Seconds that a block may take: most of its inputs take milliseconds.
PATIENCE = 1800
#: The order in which blocks are done, round after round; cheap kinds go further in a round.
ROUND = {
    "gguf": 4,
    "safetensors": 3,
    "gates": 3,
    "index": 2,
    "adapter": 2,
    "pickle": 2,
    "plan": 1,
    "audit": 1,
    "config": 1,
    "onnx": 2,
    "arrays": 2,
    "keras": 1,
    "distributed": 1,
}


def main() -> None:
    """Do blocks until there are enough inputs, or the time is over."""
    options = parsed()
    if options.block is not None:
        do_block(options.kinds, options.block)
        return
    kinds = options.kinds.split(",") if options.kinds else list(ROUND)
    ends = time.monotonic() + options.minutes * 60
    done = {(line["kind"], line["block"]) for line in lines(options.results)}
    for number in range(-(-options.inputs // BLOCK)):
        for kind in kinds:
            for block in range(number * ROUND.get(kind, 1), (number + 1) * ROUND.get(kind, 1)):
                if (kind, block) in done or block * BLOCK >= options.inputs:
                    continue
                if time.monotonic() > ends:
                    break
                line = in_a_process(kind, block)
                with options.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                found = {what: count for what, count in line["counts"].items() if what not in ("read", "told")}
                print(f"{kind} {block}: {line['seconds']:.0f} s {found or ''}", flush=True)
    text = table(lines(options.results))
    print(text)
    if options.write:
        page = PAGE.read_text(encoding="utf-8")
        head, _, rest = page.partition("<!-- table -->")
        PAGE.write_text(
            f"{head}<!-- table -->\n\n{text}\n<!-- end -->{rest.partition('<!-- end -->')[2]}", encoding="utf-8"
        )


def parsed() -> argparse.Namespace:
    """The command line."""
    found = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    found.add_argument("--inputs", type=int, default=10_000, help="of each kind")
    found.add_argument("--kinds", default="", help="comma list; all")
    found.add_argument("--minutes", type=float, default=float("inf"), help="begin no block after that")
    found.add_argument("--results", type=Path, default=RESULTS, help="a line per block; goes on where it ends")
    found.add_argument("--write", action="store_true", help="write the table into docs/fuzzing.md")
    found.add_argument("--block", type=int, help=argparse.SUPPRESS)
    return found.parse_args()


def lines(results: Path) -> list[dict]:
    """What was done."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.is_file() else []


def in_a_process(kind: str, block: int) -> dict:
    """Counts of a block, whatever ended it."""
    began = time.monotonic()
    command = [sys.executable, __file__, "--kinds", kind, "--block", str(block)]
    # In memory where that can be: most of the time goes into making and removing files.
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="tailwise-fuzz-", dir=shared) as folder:
        environment = os.environ | {"TMPDIR": folder, "OMP_NUM_THREADS": "1", "TAILWISE_CACHE": f"{folder}/cache"}
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, env=environment, timeout=PATIENCE, check=False
            )
            said, ended = done.stdout, "" if done.returncode == 0 else f"ended with {done.returncode}"
        except subprocess.TimeoutExpired as error:
            said, ended = (error.stdout or b"").decode(), "did not end"
    seen = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    counts = collections.Counter(item["kind"] for item in seen)
    findings = [item for item in seen if item["kind"] not in ("read", "told")]
    if ended:
        counts[ended] += 1
        findings.append({"kind": ended, "seed": block * BLOCK + len(seen), "detail": ""})
    return {"kind": kind, "block": block, "inputs": sum(counts.values()), "counts": dict(counts),
            "findings": findings[:20], "seconds": round(time.monotonic() - began, 1)}  # fmt: skip


def do_block(kind: str, block: int) -> None:
    """In the process of a block: an outcome a line."""
    import logging
    import resource

    sys.path.insert(0, str(ROOT / "tests" / "fuzz"))
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    import fuzz_targets

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    folder = Path(tempfile.mkdtemp())
    for seed in range(block * BLOCK, (block + 1) * BLOCK):
        outcome = fuzz_targets.attempt(kind, seed, folder / "input")
        print(
            json.dumps({"kind": outcome.kind, "seed": seed, "detail": "" if outcome.is_fine else outcome.detail}),
            flush=True,
        )


def table(done: list[dict]) -> str:
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
