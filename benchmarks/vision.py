"""How pruning does on image classifiers: ViT, DeiT and ConvNeXt of transformers, trained on scikit-learn's digits.

    python benchmarks/vision.py                            everything; a few minutes on one thread
    python benchmarks/vision.py --models vit --keep runs/vision    a part of it, with the trained models kept

Every cell is the whole way: checkpoint → audit (estimator `mid`) → plan → `apply` to a folder → that folder loaded
by transformers and scored on digits that neither training nor calibration saw.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from tailwise.audits.run import audit
from tailwise.compression.applying.apply import apply
from tailwise.compression.applying.apply_options import ApplyOptions
from tailwise.compression.making.make import plan_prune
from tailwise.compression.making.request import Request
from tailwise.models.evaluation.classifiers import ClassifierScores, classifier_scores
from tailwise.models.evaluation.quiet import quiet

SIZE = 16  # pixels a side: the digits' 8, doubled
OPERATORS = ("magnitude", "wanda", "sparsegpt")
SPARSITIES = (0.5, 0.6, 0.7, 0.8)
#: (label, allocator, settings).
WAYS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("uniform", "uniform", {}),
    ("depth", "depth", {}),
    ("alpha block", "alpha", {"mapping": "block"}),
    ("alpha matrix", "alpha", {"mapping": "matrix"}),
    ("alpha-role", "alpha-role", {}),
)
CALIBRATION = 128  # images
_TRANSFORMER = {
    "hidden_size": 96, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 384,
    "image_size": SIZE, "patch_size": 4, "num_channels": 1, "num_labels": 10, "initializer_range": 0.1,
}  # fmt: skip
_CONVNEXT = {
    "hidden_sizes": [32, 64], "depths": [3, 3], "num_stages": 2, "image_size": SIZE, "patch_size": 2,
    "num_channels": 1, "num_labels": 10, "initializer_range": 0.1, "layer_scale_init_value": 1.0,
}  # fmt: skip
#: name → (class, class of the config, sizes)
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViTForImageClassification", "ViTConfig", _TRANSFORMER),
    "deit": ("DeiTForImageClassification", "DeiTConfig", _TRANSFORMER),
    "convnext": ("ConvNextForImageClassification", "ConvNextConfig", _CONVNEXT),
}


@dataclass(frozen=True)
class Digits:
    """Images (n, 1, 16, 16) with mean 0 and standard deviation 1, and labels (n,)."""

    images: torch.Tensor
    labels: torch.Tensor

    def batches(self, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """In their order."""
        yield from zip(self.images.split(size), self.labels.split(size), strict=True)


def digits(seed: int) -> tuple[Digits, Digits]:
    """Digits to train on and, a third of every class, digits held out."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16.0
    images = torch.nn.functional.interpolate(images, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    labels = torch.tensor(found.target)
    train, test = train_test_split(np.arange(len(labels)), test_size=1 / 3, stratify=found.target, random_state=seed)
    mean, spread = images[train].mean(), images[train].std()
    images = (images - mean) / spread
    return Digits(images[train], labels[train]), Digits(images[test], labels[test])


def trained(name: str, data: Digits, *, epochs: int, seed: int) -> torch.nn.Module:
    """A classifier trained from scratch: AdamW, one cycle of the learning rate, images moved by up to a pixel."""
    kind, config, sizes = MODELS[name]
    torch.manual_seed(seed)
    model: torch.nn.Module = getattr(transformers, kind)(getattr(transformers, config)(**sizes)).train()
    batch = 32
    steps = epochs * (len(data.labels) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=steps, pct_start=0.2)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(len(data.labels), (batch,), generator=generator)
        across, down = (int(value) for value in torch.randint(-1, 2, (2,), generator=generator))
        images = torch.roll(data.images[chosen], (across, down), dims=(2, 3))
        loss = torch.nn.functional.cross_entropy(model(images).logits, data.labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def scored(folder: Path, held_out: Digits) -> ClassifierScores:
    """Accuracy of the model that transformers loads from `folder`."""
    with quiet():
        model = transformers.AutoModelForImageClassification.from_pretrained(folder)
    return classifier_scores(model, held_out.batches(100))


def table(name: str, folder: Path, data: tuple[Digits, Digits], given: argparse.Namespace) -> None:
    """Print the accuracies of one model, a table an operator."""
    train, held_out = data
    dense = scored(folder, held_out)
    found = audit(str(folder), estimator="mid")
    size = sum(row.n_params for row in found.rows)
    print(f"## {name}: {size:,} parameters, dense {_shown(dense)} of {dense.n} held-out digits\n", flush=True)
    calibration = ApplyOptions(calibration={"pixel_values": train.images[:CALIBRATION]}, batch=32)
    for operator in given.operators:
        options = ApplyOptions() if operator == "magnitude" else calibration
        print(f"### {name}, {operator}\n")
        print("| allocator | " + " | ".join(f"{100 * s:.0f} %" for s in given.sparsities) + " | least reached |")
        print("| --- |" + " ---: |" * (len(given.sparsities) + 1))
        for way, allocator, settings in WAYS:
            cells, short = [], 0.0
            for sparsity in given.sparsities:
                plan = plan_prune(found, Request(sparsity, allocator, operator, settings=settings))
                with tempfile.TemporaryDirectory() as scratch:
                    done = apply(plan, folder, Path(scratch) / "pruned", options=options)
                    cells.append(_shown(scored(Path(scratch) / "pruned", held_out)))
                short = min(short, done.achieved - sparsity)
            print(f"| {way} | " + " | ".join(cells) + f" | {100 * short:+.2f} points |", flush=True)
        print()


def _shown(scores: ClassifierScores) -> str:
    low, high = scores.interval
    return f"{100 * scores.accuracy:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def main() -> None:
    """Train, prune and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", type=lambda t: t.split(","), default=list(MODELS))
    parser.add_argument("--operators", type=lambda t: t.split(","), default=list(OPERATORS))
    parser.add_argument("--sparsities", type=lambda t: [float(x) for x in t.split(",")], default=list(SPARSITIES))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder for the trained models; those that are there are not trained")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    data = digits(given.seed)
    with tempfile.TemporaryDirectory() as scratch:
        for name in given.models:
            folder = (given.keep or Path(scratch)) / name
            if not (folder / "config.json").is_file():
                began = time.perf_counter()
                model = trained(name, data[0], epochs=given.epochs, seed=given.seed)
                with quiet():
                    model.save_pretrained(folder)
                print(f"{name}: trained in {time.perf_counter() - began:.0f} s\n", flush=True)
            table(name, folder, data, given)


if __name__ == "__main__":
    main()
