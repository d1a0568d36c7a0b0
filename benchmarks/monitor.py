"""What watching a training costs: step times with and without a monitor, in turns.

    python benchmarks/monitor.py --steps 1000 --output benchmarks/results/monitor.json

A Llama of 8 million parameters (that of examples/train_pycode.py) is trained on random tokens, in blocks of steps that
take turns: without a monitor, with one at its defaults, with one that measures twenty times as often, and with one that
looks at gradients too. Every step's loss is told. Wall time is that of a step; processor time is that of the thread
that trains, which a busy machine changes little. Intervals are of the ratio of means, by bootstrap over pairs of blocks
that ran next to each other. `--loss` times a loss alone: microseconds a step of the thread that trains, and of the one
that looks at losses.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import tailwise as tw

ARMS = {"without": None, "defaults": {}, "dense": {"every": 50, "full_every": 200},
        "gradients": {"every": 50, "full_every": 200, "gradients": True}}  # fmt: skip


class Arm:
    """One training."""

    def __init__(self, name, settings, folder, batch, length):
        torch.manual_seed(0)
        self.model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=4096,
                hidden_size=256,
                intermediate_size=704,
                num_hidden_layers=8,
                num_attention_heads=8,
                num_key_value_heads=4,
                max_position_embeddings=512,
                tie_word_embeddings=False,
            )
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=True)
        self.shape = batch, length
        self.monitor, self._passed, self._began = None, 0.0, time.perf_counter()
        if settings is not None:
            self.monitor = tw.Monitor(self.model, history=folder / f"{name}.jsonl", clock=self.clock, **settings)
        self._pause()
        self.wall, self.processor = [], []  # seconds a step, one a block

    def clock(self):
        """Seconds of this training alone, for the monitor to measure its share of."""
        return self._passed + (0.0 if self._began is None else time.perf_counter() - self._began)

    def _pause(self):
        self._passed, self._began = self.clock(), None

    def block(self, steps):
        """Train, and keep the mean time of a step."""
        self._began = wall = time.perf_counter()
        processor = time.thread_time()
        for _ in range(steps):
            tokens = torch.randint(0, 4096, self.shape)
            loss = self.model(tokens, labels=tokens).loss
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.monitor is not None:
                self.monitor.step(loss=loss)
        self.wall.append((time.perf_counter() - wall) / steps)
        self.processor.append((time.thread_time() - processor) / steps)
        self._pause()


def ratio(ours, base):
    """Mean of `ours` over that of `base`, and the ends of its 95 % interval."""
    ours, base, rng = np.array(ours), np.array(base), np.random.default_rng(0)
    drawn = rng.integers(0, len(base), (5000, len(base)))
    spread = ours[drawn].mean(1) / base[drawn].mean(1)
    return [float(ours.mean() / base.mean()), *np.quantile(spread, [0.025, 0.975]).tolist()]


def facts_of(arm, base):
    found = {
        "wall_ms": 1e3 * float(np.mean(arm.wall)),
        "processor_ms": 1e3 * float(np.mean(arm.processor)),
        "wall_ratio": ratio(arm.wall, base.wall),
        "processor_ratio": ratio(arm.processor, base.processor),
    }
    if arm.monitor is not None:
        report = arm.monitor.report()
        found |= {
            "spent_ms": 1e3 * report.spent,
            "own_account": report.overhead,
            "setup_ms": 1e3 * report.setup,
            "background_s": report.background,
            "cheap": report.cheap,
            "full": report.full,
            "skipped": report.skipped,
            "errors": report.errors,
        }
    return found


def shown(found):
    print("| monitor | step, ms | ratio of wall time | processor, ms | its ratio | own account | cheap | full |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, facts in found.items():
        wall, processor = ("{:.3f} [{:.3f}, {:.3f}]".format(*facts[f"{kind}_ratio"]) for kind in ("wall", "processor"))
        own = f"{100 * facts['own_account']:.2f} %" if "own_account" in facts else "–"
        counts = f"{facts.get('cheap', '–')} | {facts.get('full', '–')}"
        cells = [name, f"{facts['wall_ms']:.1f}", wall, f"{facts['processor_ms']:.1f}", processor, own, counts]
        print("| " + " | ".join(cells) + " |")


def loss_cost(steps=20_000):
    """Microseconds a step of telling a loss, and of looking at it on the other thread."""
    monitor = tw.Monitor(torch.nn.Linear(32, 32), full="off")
    loss, losses = torch.tensor(2.0, requires_grad=True), np.random.default_rng(0).normal(2.0, 0.1, steps).tolist()
    found = {}
    for name, given in (("no loss", {}), ("a number", {"loss": 2.0}), ("a tensor", {"loss": loss})):
        began = time.thread_time()
        for _ in range(steps):
            monitor.step(**given)
        found[name] = 1e6 * (time.thread_time() - began) / steps
    monitor.close()
    alarms, began = tw.Alarms(), time.thread_time()
    alarms.see_losses("r", range(steps), losses)
    return found | {"looked at": 1e6 * (time.thread_time() - began) / steps}


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=1000, help="of each training")
    parser.add_argument("--block", type=int, default=25, help="steps in a row")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--loss", action="store_true", help="only what a loss a step costs")
    wanted = parser.parse_args()
    torch.set_num_threads(wanted.threads)
    if wanted.loss:
        print({name: round(cost, 2) for name, cost in loss_cost().items()})
        return
    with tempfile.TemporaryDirectory() as folder:
        arms = {name: Arm(name, s, Path(folder), wanted.batch, wanted.length) for name, s in ARMS.items()}
        for arm in arms.values():
            arm.block(5)
            arm.wall.clear(), arm.processor.clear()
        for turn in range(-(-wanted.steps // wanted.block)):
            names = list(arms) if turn % 2 else list(reversed(arms))  # no arm always comes first
            for name in names:
                arms[name].block(wanted.block)
        for arm in arms.values():
            if arm.monitor is not None:
                arm.monitor.close()
        found = {name: facts_of(arm, arms["without"]) for name, arm in arms.items()}
    shown(found)
    if wanted.output:
        facts = {**vars(wanted), "output": None, "torch": torch.__version__, "machine": platform.machine()}
        wanted.output.write_text(json.dumps({"settings": facts, "arms": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
