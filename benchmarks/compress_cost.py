"""What compressing a real language model costs: time and peak memory of each command, beside llm-compressor.

    python benchmarks/compress_cost.py run --results benchmarks/results/compress_cost.jsonl
    python benchmarks/compress_cost.py run --results … --peer /an/environment/with/llmcompressor/bin/python
    python benchmarks/compress_cost.py table

SmolLM2-135M in bf16, calibrated on 16 windows of 512 tokens of WikiText-2 valid. Each command is a process of its own,
as a user starts it, on as many cores as there are; its wall and processor seconds and its peak of resident memory are
those that the system counted for it. `run` goes on where the results end. llm-compressor pins other versions of what
it needs, so it runs in an environment of its own; it is given the same windows, and the model in float32, as tailwise
computes on a CPU: on a processor that does not multiply bfloat16, Wanda in that had not ended after four minutes, and
took one in float32. GPTQ's groups are of 64, since 576 columns are no multiple of 128.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from held_out import SAMPLES, WINDOW, subjects

RESULTS = Path("benchmarks/results/compress_cost.jsonl")
#: Runs in llm-compressor's environment.
PEER = """
import json, sys
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from llmcompressor.modifiers.gptq import GPTQModifier
from transformers import AutoModelForCausalLM

ask = json.loads(sys.argv[1])
ids = json.loads(open(ask["windows"]).read())
data = Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]})
model = AutoModelForCausalLM.from_pretrained(ask["model"], dtype=torch.float32)
leave = {"targets": ["Linear"], "ignore": ["re:.*lm_head"]}
if ask["operator"] == "gptq":
    weights = QuantizationArgs(num_bits=4, strategy="group", group_size=64, symmetric=True)
    groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
    recipe = GPTQModifier(config_groups=groups, ignore=["re:.*lm_head"])
else:
    kind = {"wanda": WandaPruningModifier, "sparsegpt": SparseGPTModifier}[ask["operator"]]
    recipe = kind(sparsity=0.6, mask_structure="0:0", **leave)
oneshot(model=model, dataset=data, recipe=recipe, num_calibration_samples=len(ids), max_seq_length=len(ids[0]),
        output_dir=ask["output"])
"""
#: Starts the command: the peak that the system counts for a process is never below that of the one that started it.
LAUNCHER = """
import json, os, sys
child = os.spawnv(os.P_NOWAIT, sys.argv[2], sys.argv[2:])
_, status, usage = os.wait4(child, 0)
open(sys.argv[1], "w").write(json.dumps([usage.ru_utime + usage.ru_stime, usage.ru_maxrss]))
sys.exit(1 if status else 0)
"""


@dataclass(frozen=True)
class Work:
    """A step, and the command lines of both tools where both can take it."""

    name: str
    ours: tuple[str, ...]
    needs: tuple[str, ...] = ()  # before it, uncounted
    peer: str = ""  # an operator of llm-compressor


def works(folder: Path, text: Path, scratch: Path) -> list[Work]:
    """In the order in which a user takes them."""
    model, calibration = str(folder), str(text)
    how = ("--samples", str(SAMPLES), "--window", str(WINDOW))
    found = [Work("audit", ("audit", model, "--no-cache", "-o", str(scratch / "again.audit")))]
    for operator in ("wanda", "sparsegpt"):
        plan = str(scratch / f"{operator}.json")
        needs = ("plan", "prune", model, "--sparsity", "0.6", "--operator", operator, "-o", plan)
        done = ("apply", plan, model, "--calibration", calibration, *how, "-o", str(scratch / operator))
        found.append(Work(f"apply, {operator} 60 %", done, needs, operator))
    plan = str(scratch / "gptq.json")
    needs = ("plan", "quantize", model, "--formats", "int4-g64", "--operator", "gptq", "-o", plan)
    done = ("apply", plan, model, "--calibration", calibration, *how, "-o", str(scratch / "gptq"))
    found.append(Work("apply, gptq 4 bits", done, needs, "gptq"))
    auto = ("plan", "prune", model, "--sparsity", "0.6", "--operator", "wanda", "--allocator", "auto", "--budget", "5m",
            "--calibration", calibration, "-o", str(scratch / "auto.json"))  # fmt: skip
    found.append(Work("plan prune, auto, 5 minutes", auto))
    scored = ("evaluate", str(scratch / "wanda"), "--against", model, "--text", calibration, "--window", str(WINDOW),
              "--max-windows", "40")  # fmt: skip
    found.append(Work("evaluate against the original, 40 windows", scored))
    return found


def run(given: argparse.Namespace) -> None:
    """Measure what is not in the results yet."""
    subject = subjects()["smollm2"]
    known = {(row["work"], row["tool"]) for row in rows_in(given.results)}
    with tempfile.TemporaryDirectory() as made:
        scratch = Path(made)
        text = scratch / "calibration.txt"
        text.write_text("".join(subject.calibration), encoding="utf-8")
        for work in works(subject.folder, text, scratch):
            if work.needs:
                measured([sys.executable, "-P", "-m", "tailwise", *work.needs])
            if (work.name, "tailwise") not in known or work.name.startswith("apply, wanda"):
                command = [sys.executable, "-P", "-m", "tailwise", *work.ours]
                _keep(given.results, known, {"work": work.name, "tool": "tailwise", **measured(command)})
            if work.peer and given.peer and (work.name, "llm-compressor") not in known:
                windows = scratch / "windows.json"
                windows.write_text(json.dumps(_windows(subject)))
                ask = {"model": str(subject.folder), "windows": str(windows), "operator": work.peer,
                       "output": str(scratch / f"peer-{work.peer}")}  # fmt: skip
                spent = measured([given.peer, "-c", PEER, json.dumps(ask)])
                _keep(given.results, known, {"work": work.name, "tool": "llm-compressor", **spent})


def _windows(subject: Any) -> list[list[int]]:
    from tailwise.models.evaluation.loading import load_tokenizer
    from tailwise.models.evaluation.tokens import tokens_of, windows_of

    tokens = tokens_of(subject.drawn(0), load_tokenizer(subject.folder)).ids
    windows: list[list[int]] = windows_of(tokens, WINDOW, SAMPLES, seed=0).tolist()
    return windows


def measured(command: list[str]) -> dict[str, float]:
    """Wall and processor seconds, and peak memory (bytes), of a process."""
    began = time.perf_counter()
    with tempfile.NamedTemporaryFile() as spent:
        ended = subprocess.run([sys.executable, "-S", "-c", LAUNCHER, spent.name, *command], stderr=subprocess.PIPE,
                               stdout=subprocess.DEVNULL, text=True, check=False)  # fmt: skip
        wall = time.perf_counter() - began
        if ended.returncode:
            sys.exit(f"{' '.join(command)[:400]}\n{ended.stderr[-3000:]}")
        cpu, memory = json.loads(Path(spent.name).read_text())
    return {"wall": round(wall, 1), "cpu": round(cpu, 1), "memory": memory * 1024}


def _keep(results: Path, known: set[tuple[str, str]], row: dict[str, Any]) -> None:
    if (row["work"], row["tool"]) not in known:
        known.add((row["work"], row["tool"]))
        kept(results, row)


def kept(results: Path, row: dict[str, Any]) -> None:
    """Say a row, and write it behind the others."""
    print(row, file=sys.stderr, flush=True)
    with results.open("a") as file:
        file.write(json.dumps(row) + "\n")


def rows_in(results: Path) -> list[dict[str, Any]]:
    """What was written so far."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.is_file() else []


def table(given: argparse.Namespace) -> None:
    """Print what was measured, a line a command."""
    rows = {(row["work"], row["tool"]): row for row in rows_in(given.results)}
    print("| command | wall | CPU | peak memory | llm-compressor: wall | CPU | peak memory |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in dict.fromkeys(work for work, _ in rows):
        cells = [_told(rows.get((name, tool))) for tool in ("tailwise", "llm-compressor")]
        print(f"| {name} | {' | '.join(cells)} |")


def _told(row: dict[str, Any] | None) -> str:
    if row is None:
        return "– | – | –"
    return f"{row['wall']:.0f} s | {row['cpu']:.0f} s | {row['memory'] / 1e9:.2f} GB"


def main() -> None:
    """Run, or print what was run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("part", choices=("run", "table"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--peer", help="a Python with llm-compressor")
    given = parser.parse_args()
    {"run": run, "table": table}[given.part](given)


if __name__ == "__main__":
    main()
