"""A GGUF file made smaller: plans of ours beside llama.cpp's own mixes of the same size.

    python benchmarks/gguf_files.py --model SmolLM2-135M-Instruct.Q4_1.gguf --calibration valid.txt --text test.txt
    python benchmarks/gguf_files.py … --mixes Q4_K_M --ways mix,outputs

Every mix (Q3_K_M, Q4_K_M, …, as llama.cpp's `llama_tensor_get_type` gives it to a Llama with tied embeddings) is
written first; every plan then gets the bytes of that whole file, and the same types to choose from. All are rounded
with importances of the same text, and scored by KL divergence from the file they were made of, on the same windows of
text that neither the plans nor the importances have seen. Rows are kept in --results: a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tailwise.audits.audit import Audit
from tailwise.audits.run import audit
from tailwise.compression.applying.apply import apply
from tailwise.compression.applying.apply_options import ApplyOptions
from tailwise.compression.making.make import plan_quantize
from tailwise.compression.making.request import QuantizeRequest
from tailwise.compression.plans.bits import mean_bits
from tailwise.compression.plans.candidates import TensorChoice
from tailwise.compression.plans.plan import Plan
from tailwise.compression.trying.clock import Clock
from tailwise.compression.trying.planned import planned
from tailwise.compression.trying.stage import StageOptions
from tailwise.models.evaluation.evaluate import EvaluateOptions, evaluate
from tailwise.models.evaluation.loading import load_model

#: mix → type of most tensors.
MIXES = {"Q3_K_M": "q3_k", "Q4_K_S": "q4_k", "Q4_K_M": "q4_k", "Q5_K_M": "q5_k"}
TYPES = ("q3_k", "q4_k", "q5_k", "q6_k", "q8_0")
WAYS = ("mix", "depth", "outputs", "auto")
OPERATOR = "imatrix"


def mixed(name: str, block: int, blocks: int, mix: str) -> str:
    """The type that llama.cpp's quantizer gives to a tensor of a Llama whose head is its embedding."""
    more = block < blocks // 8 or block >= 7 * blocks // 8 or (block - blocks // 8) % 3 == 2  # use_more_bits
    values, down = "attn_v" in name, "ffn_down" in name
    rules = {
        "Q3_K_M": ((values and block < 2, "q5_k"), (down and block < blocks // 16, "q5_k"),
                   (values or down or "attn_output" in name, "q4_k")),
        "Q4_K_S": (((values and block < 4) or (down and block < blocks // 8), "q5_k"),),
        "Q4_K_M": (((values or down) and more, "q6_k"),),
        "Q5_K_M": (((values or down) and more, "q6_k"),),
    }  # fmt: skip
    head = (name == "token_embd.weight", "q6_k")
    return next((kind for so, kind in (head, *rules[mix]) if so), MIXES[mix])


def asked(**request: Any) -> QuantizeRequest:
    return QuantizeRequest(operator=OPERATOR, choice=TensorChoice(also=("embed",)), **request)


def mix_plan(found: Audit, mix: str) -> Plan:
    plan = plan_quantize(found, asked(formats=(MIXES[mix],)))
    blocks = 1 + max(item.block for item in plan if item.block is not None)
    chosen = [item.but(format=mixed(item.tensor, item.block or 0, blocks, mix), reason=mix) for item in plan]
    return plan.replace(decisions=tuple(chosen), allocator="")


def plan_by(way: str, found: Audit, nbytes: int, given: argparse.Namespace) -> Plan:
    request = asked(formats=TYPES, bytes=nbytes)
    text = StageOptions([given.calibration], samples=given.samples, window=given.window)
    if way == "auto":
        return planned(found, request, text=text, clock=Clock(60.0 * given.minutes, time.process_time))
    return planned(found, request, allocator=way, text=text)


class Rows:
    """Finished rows, one line each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def get(self, **key: Any) -> dict[str, Any] | None:
        return next((row for row in self.found if all(row.get(name) == value for name, value in key.items())), None)

    def made(self, make: Callable[[], dict[str, Any]], **key: Any) -> dict[str, Any]:
        row = self.get(**key)
        if row is None:
            row = {**key, **make()}
            self.found.append(row)
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        return row


class Judge:
    """The model as it is, and the text, read once."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.base = given, load_model(given.model, dtype="float32")

    def row_of(self, plan: Plan, name: str, planning: float) -> dict[str, Any]:
        given, folder = self.given, self.given.work / name
        started = time.process_time()
        if not (folder / "model.gguf").exists():  # it appears whole or not at all
            options = ApplyOptions(
                calibration=[given.calibration], samples=given.samples, window=given.window, force=True
            )
            apply(plan, given.model, folder, options=options)
        applying = time.process_time() - started
        how = EvaluateOptions(window=given.window, max_windows=given.windows, facts=False)
        tokenizer = self.base.tokenizer
        ours = load_model(str(folder / "model.gguf"), tokenizer, dtype="float32").module
        scores = evaluate(ours, text=[given.text], against=self.base.module, tokenizer=tokenizer, options=how)
        between = scores.divergence
        assert between is not None
        return {
            "bytes": (folder / "model.gguf").stat().st_size,
            "bits": round(mean_bits(plan), 4),
            "kl": between.kl,
            "kl_interval": between.kl_interval,
            "same_top": between.same_top,
            "perplexity": scores.model.perplexity,
            "dense": scores.base.perplexity,
            "windows": given.windows,
            "allocator": plan.allocator,
            "planning_cpu": round(planning),
            "applying_cpu": round(applying),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--mixes", default="Q4_K_M,Q3_K_M")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=3.0, help="of auto, on the processor")
    parser.add_argument("--work", type=Path, default=Path("gguf-work"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "gguf_files.jsonl")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    kept = given.work / "model.audit"
    found = Audit.load(kept) if kept.exists() else audit(given.model)
    if not kept.exists():
        found.save(kept)
    rows, judge = Rows(given.results), Judge(given)
    for mix in given.mixes.split(","):
        for way in given.ways.split(","):

            def make(mix: str = mix, way: str = way) -> dict[str, Any]:
                file = given.work / f"{mix}-{way}.json"
                if file.exists():
                    return judge.row_of(Plan.load(file), f"{mix}-{way}", 0.0)
                started = time.process_time()
                limit = rows.get(mix=mix, way="mix")
                plan = (
                    mix_plan(found, mix)
                    if way == "mix" or limit is None
                    else plan_by(way, found, limit["bytes"], given)
                )
                plan.save(file)
                return judge.row_of(plan, f"{mix}-{way}", time.process_time() - started)

            row = rows.made(make, mix=mix, way=way)
            low, high = row["kl_interval"]
            print(f"| {mix} | {way} | {row['bytes'] / 1e6:.2f} | {row['kl']:.4f} [{low:.4f}, {high:.4f}] | "
                  f"{row['same_top']:.1%} | {row['perplexity']:.2f} | {row['planning_cpu']} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
