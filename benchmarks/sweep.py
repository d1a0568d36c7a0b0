"""The cost model of a sweep against measured runs, and the plan of 100,000 models that follows from it.

    python benchmarks/sweep.py            both tables go into benchmarks/results/sweep.md (about 3 minutes)
    python benchmarks/sweep.py --small    tiny models, in seconds, to see that it runs

Predicted is what `tailwise sweep --dry-run` says before a weight is read; measured is the processor time of the audit
that follows, with one worker and nothing known. Weights are synthetic (benchmarks/models.py) in shapes of real models;
of large ones a few matrices are taken, since the cost is a sum over matrices.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import models  # the module beside this file
import tailwise as tw
from speed import machine  # the module beside this file
from tailwise.audits.cache import Cache
from tailwise.audits.prepare import Selection, prepare
from tailwise.checkpoints.checkpoint import DTYPE_BITS, Checkpoint, TensorSpec
from tailwise.history.sweep.forecast import Cost, ModelSample, cost_of, forecast

PAGE = Path(__file__).resolve().parent / "results" / "sweep.md"
Shapes = Mapping[str, tuple[int, int]]

#: Dollars for a core and hour, and bytes per second that one machine reads.
PRICE, BANDWIDTH = 0.05, 250e6
#: Cores of a machine of the plan.
CORES = 64


def encoder(width: int, blocks: int, vocabulary: int) -> Shapes:
    """BERT's matrices."""
    inner = {"attention.self.query": (width, width), "attention.self.key": (width, width),
             "attention.self.value": (width, width), "attention.output.dense": (width, width),
             "intermediate.dense": (4 * width, width), "output.dense": (width, 4 * width)}  # fmt: skip
    layers = {f"encoder.layer.{i}.{name}": shape for i in range(blocks) for name, shape in inner.items()}
    return {"embeddings.word_embeddings": (vocabulary, width), **layers}


def decoder(width: int, inner: int, narrow: int, blocks: int, vocabulary: int) -> Shapes:
    """Llama's matrices."""
    parts = {"self_attn.q_proj": (width, width), "self_attn.k_proj": (narrow, width),
             "self_attn.v_proj": (narrow, width), "self_attn.o_proj": (width, width), "mlp.gate_proj": (inner, width),
             "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner)}  # fmt: skip
    layers = {f"model.layers.{i}.{name}": shape for i in range(blocks) for name, shape in parts.items()}
    return {"model.embed_tokens": (vocabulary, width), **layers, "lm_head": (vocabulary, width)}


#: What is measured, by name.
CHECKED: Mapping[str, Shapes] = {
    "BERT-base, whole": encoder(768, 12, 30522),
    "Llama-3.2-1B, 2 blocks": {k: v for k, v in decoder(2048, 8192, 512, 2, 0).items() if ".layers." in k},
    "Llama-3.1-8B, q, k and up": {
        k: v for k, v in decoder(4096, 14336, 1024, 1, 0).items() if k.endswith(("q_proj", "k_proj", "up_proj"))
    },
}
SMALL: Mapping[str, Shapes] = {"tiny encoder": encoder(128, 2, 1000), "tiny decoder": decoder(128, 352, 64, 2, 1000)}


@dataclass(frozen=True)
class Group:
    """Models of one size among the hundred thousand."""

    title: str
    count: int
    shapes: Shapes


#: An assumption, stated: most models on a hub are small, and most of the work is in the few that are large.
PLAN = (
    Group("encoders of 110 M", 50_000, encoder(768, 12, 30522)),
    Group("decoders of 0.5 B", 20_000, decoder(896, 4864, 128, 24, 151936)),
    Group("decoders of 1 B", 12_000, decoder(2048, 8192, 512, 16, 128256)),
    Group("decoders of 8 B", 15_000, decoder(4096, 14336, 1024, 32, 128256)),
    Group("decoders of 32 B", 2_000, decoder(5120, 27648, 1024, 64, 152064)),
    Group("decoders of 70 B", 1_000, decoder(8192, 28672, 1024, 80, 128256)),
)


class Headers(Checkpoint):
    """A checkpoint that has shapes and no weights."""

    uri, format, config, metadata = "headers", "memory", {}, {}

    def __init__(self, shapes: Shapes) -> None:
        size = DTYPE_BITS["BF16"] // 8
        self.tensors = {
            f"{name}.weight": TensorSpec(f"{name}.weight", "BF16", shape, shape[0] * shape[1] * size)
            for name, shape in shapes.items()
        }

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """There is nothing to read."""
        raise NotImplementedError(f"{name}[{start}:{stop}]")


def build(folder: Path, shapes: Shapes) -> Path:
    """The model on disk."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model.safetensors").exists():
        stream = torch.Generator().manual_seed(0)
        weights = {f"{name}.weight": models.heavy_tailed(*shape, stream) for name, shape in shapes.items()}
        save_file(weights, folder / "model.safetensors")
    return folder


def check_rows(checked: Mapping[str, Shapes], folder: Path, rates: Path) -> list[str]:
    """Predicted and measured seconds of the processor."""
    lines = ["| model | precision | matrices | predicted | measured | predicted / measured |"]
    lines += ["|---|---|---:|---:|---:|---:|"]
    torch.set_num_threads(1)
    for title, shapes in checked.items():
        model = str(build(folder / title.replace(" ", "-"), shapes))
        for precision in ("float64", "float32"):
            recipe = tw.Recipe(precision=precision)
            options = tw.RunOptions(workers=1, cache_dir=rates)
            predicted = forecast([model], recipe, options, Selection(), price=PRICE).cost
            with tempfile.TemporaryDirectory() as cache:
                started = time.process_time()
                tw.audit(model, precision=precision, workers=1, cache_dir=Path(cache))
                spent = time.process_time() - started
            lines.append(
                f"| {title} | {precision} | {predicted.matrices} | {predicted.core_seconds:.2f} s | {spent:.2f} s "
                f"| {predicted.core_seconds / spent:.2f} |"
            )
            print(lines[-1], file=sys.stderr, flush=True)
    return lines


def plan_rows(rates: Path) -> list[str]:
    """Work, bytes and dollars of the plan by group, in float64 on the CPU of this machine."""
    lines = ["| models | each: matrices | operations | one core | read | all: core hours | read | kept | dollars |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
    options = tw.RunOptions(workers=CORES, cache_dir=rates)
    look = ModelSample(tw.Recipe(), options, Selection(), Cache.of(options))
    total = Cost()
    for group in PLAN:
        one, _ = cost_of(Headers(group.shapes), prepare(Headers(group.shapes), tw.Recipe(), options), look)
        total += one.times(group.count)
        lines.append(_plan_line(f"{group.count:,} {group.title}", one, one.times(group.count)))
    lines.append(_plan_line(f"**{sum(group.count for group in PLAN):,}**", None, total))
    days = max(total.wall_seconds, total.bytes / BANDWIDTH) / 86400
    lines += [
        "",
        f"On one machine of {CORES} such cores the work takes {total.wall_seconds / 86400:.0f} days and the bytes, at "
        f"{BANDWIDTH / 1e6:.0f} MB/s, {total.bytes / BANDWIDTH / 86400:.0f} days; on {PLANNED} machines that share a "
        f"catalogue, {days / PLANNED:.1f} days. A core and hour is counted at {PRICE} dollars, reading at nothing.",
    ]
    return lines


PLANNED = 20


def _plan_line(title: str, one: Cost | None, all_of: Cost) -> str:
    each: list[Any] = ["", "", "", ""]
    if one is not None:
        each = [one.matrices, f"{one.flops:.1e}", f"{one.core_seconds:.0f} s", f"{one.bytes / 1e9:.1f} GB"]
    hours = all_of.core_seconds / 3600
    cells = [*each, f"{hours:,.0f}", f"{all_of.bytes / 1e12:,.0f} TB", f"{all_of.kept_bytes / 1e9:,.0f} GB",
             f"{hours * PRICE:,.0f}"]  # fmt: skip
    return f"| {title} | " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "tailwise-benchmark" / "sweep")
    chosen = parser.parse_args()
    rates = chosen.folder / "rates"
    if chosen.small:
        print("\n".join(check_rows(SMALL, chosen.folder, rates)))
        return
    write("check", check_rows(CHECKED, chosen.folder, rates))
    write("plan", plan_rows(rates))


def write(part: str, table: list[str]) -> None:
    """Put a table into the page, between its markers."""
    start, end = f"<!-- {part} -->", f"<!-- end {part} -->"
    before, rest = PAGE.read_text().split(start, 1)
    after = rest.split(end, 1)[1]
    stamp = f"Printed by `python benchmarks/sweep.py` on {machine()}."
    PAGE.write_text("\n".join([before + start, stamp, "", *table, "", end + after]))


if __name__ == "__main__":
    main()
