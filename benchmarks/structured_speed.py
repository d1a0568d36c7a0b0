"""How fast smaller models are in plain PyTorch, and what zeros in a dense file buy: nothing.

    OMP_NUM_THREADS=1 python benchmarks/structured_speed.py

A Llama of about 100 million parameters with random weights, in float32 on one thread: dense, 30 and 50 % structured
(heads and neurons of every block), half of its blocks taken out, and dense with 50 % of its weights zero. Tokens per
second of reading a prompt (prefill) and of writing with a cache (decode), the median of rounds in which every model
takes its turn, so that all see the same machine. Read the ratios: the machine is not a quiet one.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tailwise.audits.run import audit
from tailwise.compression.applying.apply import apply
from tailwise.compression.making.make import plan_prune
from tailwise.compression.making.request import Request
from tailwise.compression.plans.plan import Plan
from tailwise.compression.shrinking.blocks_dropped import named_blocks, without_blocks
from tailwise.models.walking.load_pruned import load_pruned

SIZES = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12,
         "num_key_value_heads": 12, "head_dim": 64, "vocab_size": 8192}  # fmt: skip


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        models = _models(Path(folder))
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    with torch.no_grad():
        for number in range(options.rounds + 1):
            for name, model in models.items():
                found = _speed(model, options)
                if number:  # the first round warms up
                    speeds[name].append(found)
    _print(models, speeds)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, default=256, help="tokens")
    parser.add_argument("--new", type=int, default=24, help="tokens")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def _models(place: Path) -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(place / "dense")
    measured = audit(place / "dense", metrics=("stable_rank",))
    half = list(range(3, 9))
    plans = {
        "structured 30 %": plan_prune(measured, Request(0.3, operator="structured")),
        "structured 50 %": plan_prune(measured, Request(0.5, operator="structured")),
        "6 of 12 blocks out": without_blocks(
            plan_prune(measured, Request(0.0, operator="structured")), named_blocks(half)
        ),
        "50 % zeros, dense file": plan_prune(measured, Request(0.5, operator="magnitude")),
    }
    return {"dense": load_pruned(place / "dense"), **{name: _made(plan, place, name) for name, plan in plans.items()}}


def _made(plan: Plan, place: Path, name: str) -> torch.nn.Module:
    target = place / name.replace(" ", "_").replace("%", "")
    apply(plan, place / "dense", target)
    return load_pruned(target)


def _speed(model: torch.nn.Module, options: argparse.Namespace) -> tuple[float, float]:
    """Tokens per second: prefill, decode."""
    ids = torch.arange(options.prompt)[None] % 8192
    start = time.perf_counter()
    found = model(input_ids=ids, use_cache=True, logits_to_keep=1)
    middle = time.perf_counter()
    for _ in range(options.new):
        token = found.logits[:, -1:].argmax(-1)
        found = model(input_ids=token, past_key_values=found.past_key_values, use_cache=True)
    return options.prompt / (middle - start), options.new / (time.perf_counter() - middle)


def _print(models: dict[str, torch.nn.Module], speeds: dict[str, list[tuple[float, float]]]) -> None:
    print("| model | parameters | zeros | prefill tok/s | × dense | decode tok/s | × dense |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    base = [median(found[which] for found in speeds["dense"]) for which in (0, 1)]
    for name, model in models.items():
        size = sum(value.numel() for value in model.parameters())
        zeros = sum(int((value == 0).sum()) for value in model.parameters()) / size
        fast = [median(found[which] for found in speeds[name]) for which in (0, 1)]
        print(
            f"| {name} | {size / 1e6:.1f} M | {zeros:.0%} | {fast[0]:.0f} | {fast[0] / base[0]:.2f} "
            f"| {fast[1]:.1f} | {fast[1] / base[1]:.2f} |"
        )


if __name__ == "__main__":
    main()
