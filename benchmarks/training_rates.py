"""Learning rates by layer beside the plain optimizer: LLR, TempBalance, AlphaDecay, fixed rates; AdamW and Muon.

    python benchmarks/training_rates.py            train what benchmarks/results/training_rates.jsonl lacks; print
    python benchmarks/training_rates.py --write    … and write the table into docs/training-evidence.md

A Llama of 65 thousand parameters reads characters of Python's standard library for 400 steps; every arm of a seed has
the same first weights and the same batches. A run takes some six seconds of one core.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
from pathlib import Path

import torch
from scipy import stats

from tailwise import remedies
from training_faults import MODELS, Data, loss_of

ROOT = Path(__file__).resolve().parent.parent
PAGE, RESULTS = ROOT / "docs" / "training-evidence.md", ROOT / "benchmarks" / "results" / "training_rates.jsonl"
STEPS, SEEDS, EVERY, OVER = 400, (0, 1, 2), 40, 20
RATES = {"AdamW": 2e-3, "Muon": 5e-3}
_NOW = remedies.BalanceOptions(smoothing=0.0, over=OVER)
ARMS = {
    "plain": lambda *_: None,
    "LLR, 1 to 5 times": lambda model, optimizer: remedies.llr(model, optimizer, every=EVERY, options=_NOW),
    "TempBalance": lambda model, optimizer: remedies.layerwise_learning_rates(model, optimizer, every=EVERY),
    "AlphaDecay": lambda model, optimizer: remedies.layerwise_weight_decay(model, optimizer, every=EVERY),
    "fixed rates by shape": remedies.fixed_learning_rates,
    "plain, 3 times the rate": lambda *_: None,
}


def trained(optimizer: str, arm: str, seed: int) -> float:
    """Held-out loss, in nats a character, at the end."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    model, data = MODELS["llama"](), Data(True, seed, turned=False)
    rate = RATES[optimizer] * (3 if "3 times" in arm else 1)
    inside = [p for n, p in model.named_parameters() if p.ndim == 2 and not any(w in n for w in ("embed", "lm_head"))]
    chosen = {id(p) for p in inside}
    others = [p for p in model.parameters() if id(p) not in chosen]
    if optimizer == "Muon":
        first, made = torch.optim.Muon(inside, lr=rate, weight_decay=0.1), [torch.optim.AdamW(others, lr=2e-3)]
        made.insert(0, first)
    else:
        groups = [{"params": inside}, {"params": others, "lr": RATES["AdamW"], "weight_decay": 0.0}]
        first = torch.optim.AdamW(groups, lr=rate, weight_decay=0.1)
        made = [first]
    held = ARMS[arm](model, first)
    rates = [[group["lr"] for group in one.param_groups] for one in made]
    for step in range(STEPS):
        share = min(1.0, (step + 1) / 40) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / STEPS)))
        for one, mine in zip(made, rates, strict=True):
            for group, base in zip(one.param_groups, mine, strict=True):
                group["lr"] = base * share
        loss_of(model, data.batch()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for one in made:
            one.step()
            one.zero_grad()
    del held
    model.eval()
    with torch.no_grad():
        return float(loss_of(model, data.batch(held=True)))


def kept() -> list[dict]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def table(lines: list[dict]) -> str:
    """Losses, and paired differences to the plain run of the same seed."""
    rows = ["| | " + " | ".join(f"seed {seed}" for seed in SEEDS) + " | less plain, paired, 95 % interval |",
            "| --- |" + " ---: |" * (len(SEEDS) + 1)]  # fmt: skip
    for optimizer in RATES:
        losses = {(line["arm"], line["seed"]): line["loss"] for line in lines if line["optimizer"] == optimizer}
        for arm in ARMS:
            if not all((arm, seed) in losses for seed in SEEDS):
                continue
            shown = " | ".join(f"{losses[arm, seed]:.3f}" for seed in SEEDS)
            differences = [losses[arm, seed] - losses["plain", seed] for seed in SEEDS]
            middle = statistics.fmean(differences)
            half = stats.t.ppf(0.975, len(SEEDS) - 1) * statistics.stdev(differences) / len(SEEDS) ** 0.5
            words = "" if arm == "plain" else f"{middle:+.3f} ({middle - half:+.3f} to {middle + half:+.3f})"
            rows.append(f"| {optimizer}, {arm} | {shown} | {words} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write docs/training-evidence.md")
    wanted = parser.parse_args()
    done = {(line["optimizer"], line["arm"], line["seed"]) for line in kept()}
    todo = [(optimizer, arm, seed) for control in (False, True) for seed in SEEDS for optimizer in RATES for arm in ARMS
            if (optimizer, arm, seed) not in done and ("3 times" in arm) is control]  # fmt: skip
    for optimizer, arm, seed in todo:
        found = {"optimizer": optimizer, "arm": arm, "seed": seed, "loss": trained(optimizer, arm, seed)}
        with RESULTS.open("a") as file:
            file.write(json.dumps(found) + "\n")
        print(found, flush=True)
    made = table(kept())
    print(made)
    if wanted.write:
        text = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(
            re.sub(r"(<!-- rates -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}{made}\n{m[2]}", text, flags=re.S)
        )


if __name__ == "__main__":
    main()
