"""What a short training gives back to a pruned model: pycode-8m at 70 % by magnitude.

    python benchmarks/recovery.py                     all ways, some minutes each on one thread
    python benchmarks/recovery.py --ways masked --minutes 10

Trained on files of CPython's standard library that are not in examples/pycode-8m/heldout.txt, scored on those that
are: 24 windows of 512 tokens, with the losses of all rows on the same windows. `adapter, zeros put back` merges the
adapter of the row above it, which was trained without the mask, and sets to zero what was zero.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from held_out import HELD_OUT, WINDOW, Subject, subjects
from tailwise.audits.run import audit
from tailwise.checkpoints.open import open_checkpoint
from tailwise.compression.applying.apply import apply
from tailwise.compression.making.make import plan_prune
from tailwise.compression.making.request import Request
from tailwise.compression.recovery.masked import masks_in
from tailwise.compression.recovery.recover import RecoverOptions, recover
from tailwise.models.evaluation.intervals import mean_interval
from tailwise.models.evaluation.loading import load_model, load_tokenizer
from tailwise.models.evaluation.losses import window_losses
from tailwise.models.evaluation.quiet import quiet
from tailwise.models.evaluation.sources import Documents
from tailwise.models.evaluation.tokens import tokens_of, windows_of
from tailwise.models.walking.stored_names import places_in

#: label → options.
WAYS: dict[str, dict[str, Any]] = {
    "masked": {"method": "masked"},
    "lora": {"method": "lora"},
    "lora-merged": {"method": "lora", "merge": True},
}
DOCUMENTS = 300  # drawn from the standard library, to train on


def text_of(subject: Subject, seed: int) -> Documents:
    """Files to train on."""
    order = np.random.default_rng(seed).permutation(len(subject.calibration))[:DOCUMENTS]
    return Documents(tuple(subject.calibration[index] for index in order), f"{subject.name}, seed {seed}")


def with_adapter(pruned: Path, adapter: Path) -> torch.nn.Module:
    """The pruned model with an adapter that was written, loaded as peft loads it."""
    import peft

    with quiet():
        return peft.PeftModel.from_pretrained(load_model(str(pruned), dtype="float32").module, str(adapter)).eval()


def merged_afterwards(pruned: Path, adapter: Path) -> torch.nn.Module:
    """The same merged, with zero where the pruned model has zeros."""
    found: Any = with_adapter(pruned, adapter)
    plain = load_model(str(pruned), dtype="float32").module
    with open_checkpoint(pruned) as checkpoint:
        masks = masks_in(plain, checkpoint, places_in(plain, checkpoint))
    model: torch.nn.Module = found.merge_and_unload()
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    return model


def shown(label: str, losses: Any, base: Any, note: str = "") -> None:
    """One row of the table."""
    around = mean_interval(losses)
    text = "" if around is None else f" [{math.exp(around[0]):.4g}, {math.exp(around[1]):.4g}]"
    change = mean_interval(losses - base)
    moved = "" if change is None or base is losses else (
        f"{(losses - base).mean():+.3f} [{change[0]:+.3f}, {change[1]:+.3f}]"
    )  # fmt: skip
    print(f"| {label} | {math.exp(losses.mean()):.4g}{text} | {moved} | {note} |", flush=True)


def main() -> None:
    """Prune, recover and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ways", type=lambda t: t.split(","), default=list(WAYS))
    parser.add_argument("--sparsity", type=float, default=0.7)
    parser.add_argument("--minutes", type=float, default=4.0, help="of each training")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    subject = subjects()["pycode-8m"]
    tokens = tokens_of(Documents(tuple(subject.held_out), "held out"), load_tokenizer(subject.folder))
    windows = windows_of(tokens, WINDOW, HELD_OUT, seed=7)
    with tempfile.TemporaryDirectory() as scratch:
        pruned = Path(scratch) / "pruned"
        apply(plan_prune(audit(str(subject.folder)), Request(given.sparsity)), subject.folder, pruned)
        dense = window_losses(load_model(str(subject.folder)).module, windows)
        before = window_losses(load_model(str(pruned)).module, windows)
        print("| model | perplexity, 95 % | nats a token against pruned, 95 % | how |\n| --- | ---: | ---: | --- |")
        shown("dense", dense, before)
        shown(f"pruned, {given.sparsity:.0%}", before, before)
        for way in given.ways:
            began = time.perf_counter()
            options = RecoverOptions(
                **WAYS[way], steps=given.steps, batch=given.batch, lr=given.lr, seed=given.seed,
                seconds=60 * given.minutes,
            )  # fmt: skip
            target = Path(scratch) / way
            found = recover(pruned, text_of(subject, given.seed), target, options=options)
            note = (
                f"step {found.training.best_step} of {found.training.steps}, lr {found.settings['lr']:.2g}, "
                f"{found.training.seconds:.0f} s of training, {time.perf_counter() - began:.0f} s in all"
            )
            adapter = way == "lora"
            model = with_adapter(pruned, target) if adapter else load_model(str(target)).module
            shown(way, window_losses(model, windows), before, note)
            if adapter:
                shown("adapter, zeros put back", window_losses(merged_afterwards(pruned, target), windows), before)


if __name__ == "__main__":
    main()
