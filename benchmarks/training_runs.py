"""Small training runs, healthy and sick, with the points that a monitor would take of them.

What `benchmarks/training.py` stands on. Small Llamas learn the source of Python's standard library, with the tokenizer
of `examples/train_pycode.py`. A run is kept as JSON, so it is trained once.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

import tailwise as tw
from tailwise.history.point import Point

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))

VOCABULARY, WIDTH, INNER, BLOCKS, HEADS = 1024, 128, 352, 4, 4
BATCH, LENGTH, STEPS = 8, 96, 400
PEAK_RATE, WARM_UP, FLOOR, DECAY = 3e-3, 40, 0.05, 0.1
CHEAP, FULL = 10, 25  # steps between points
HELD_WINDOWS = 96
FULL_METRICS = ("alpha", "alpha_hill", "ks_distance", "log_spectral_norm", "num_pl_spikes", "num_traps",
                "singular_entropy", "stable_rank")  # fmt: skip


@dataclass(frozen=True)
class Condition:
    """How a run is made sick, and when."""

    name: str
    since: int = 0  # step of the cause
    rate: float = 1.0  # factor of the learning rate from then on
    noise: bool = False  # tokens drawn at random from then on
    frozen: int | None = None  # this block is not trained from then on
    sequences: int | None = None  # only so many windows from then on
    healthy: bool = False


CONDITIONS = (
    Condition("healthy", healthy=True),
    Condition("lr × 30", rate=30),
    Condition("lr × 30 half-way", 200, rate=30),
    Condition("noise half-way", 200, noise=True),
    Condition("frozen block", 100, frozen=2),
    Condition("memorising 4 windows", sequences=4),
)
#: Called with the model and its optimizer before the first step.
Arm = Callable[[torch.nn.Module, torch.optim.Optimizer], Any]


@lru_cache(maxsize=1)
def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids to train on and held out."""
    import train_pycode as pycode

    pycode.VOCABULARY = VOCABULARY
    _, train_files, held_files = pycode.source_files()
    # A quarter is more than these runs see, and the tokenizer is made in seconds.
    tokenizer = pycode.train_tokenizer(train_files[::4])
    return pycode.encode(tokenizer, train_files[::4]), pycode.encode(tokenizer, held_files)


def new_model(seed: int) -> Any:
    """Four layers, 128 wide: one million parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=LENGTH,
        tie_word_embeddings=False,
    ))  # fmt: skip


class Run:
    """One training run of a condition."""

    def __init__(self, condition: Condition, seed: int, arm: Arm | None = None) -> None:
        self.condition, self.seed = condition, seed
        self.train, self.held = data()
        self.model = new_model(seed)
        matrices = [p for p in self.model.parameters() if p.ndim == 2]
        vectors = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95))
        self.arm = arm(self.model, self.optimizer) if arm else None
        self.generator = torch.Generator().manual_seed(seed + 1)
        self.points: list[Point] = []
        self.spent = 0.0

    def go(self) -> None:
        """Train to the end."""
        for step in range(STEPS):
            if step == self.condition.since and self.condition.frozen is not None:
                for parameter in self.model.model.layers[self.condition.frozen].parameters():
                    parameter.requires_grad_(False)
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate(step)
            loss = self.loss(self.batch(step))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            measured = step % CHEAP == 0 or step % FULL == 0
            before = self.weights() if measured else {}
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            if measured:
                self.points.append(self.point(step, before, float(loss.detach())))

    def rate(self, step: int) -> float:
        """Linear warm-up, then a cosine."""
        cosine = FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        sick = self.condition.rate if step >= self.condition.since else 1.0
        return PEAK_RATE * min(1.0, (step + 1) / WARM_UP) * cosine * sick

    def batch(self, step: int) -> torch.Tensor:
        """Windows (8, 97)."""
        sick = step >= self.condition.since
        if sick and self.condition.noise:
            return torch.randint(VOCABULARY, (BATCH, LENGTH + 1), generator=self.generator)
        few = sick and self.condition.sequences is not None
        generator = torch.Generator().manual_seed(self.seed + 2) if few else self.generator
        size = self.condition.sequences if few else BATCH
        starts = torch.randint(len(self.train) - LENGTH - 1, (size or BATCH,), generator=generator)
        return torch.stack([self.train[start : start + LENGTH + 1] for start in starts.tolist()])

    def loss(self, windows: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy in nats a token."""
        logits = self.model(windows[:, :-1]).logits
        return torch.nn.functional.cross_entropy(logits.reshape(-1, VOCABULARY), windows[:, 1:].reshape(-1))

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Mean loss on the first held-out windows."""
        windows = self.held[: HELD_WINDOWS * (LENGTH + 1)].view(HELD_WINDOWS, LENGTH + 1)
        return sum(float(self.loss(part)) for part in windows.split(8)) / (HELD_WINDOWS / 8)

    def weights(self) -> dict[str, torch.Tensor]:
        """Copies of the matrices inside the blocks."""
        return {
            name.removesuffix(".weight"): weight.detach().clone()
            for name, weight in self.model.named_parameters()
            if weight.ndim == 2 and ".layers." in name
        }

    def point(self, step: int, before: dict[str, torch.Tensor], loss: float) -> Point:
        """Cheap metrics, and those of an audit every FULL steps. The update ratio is that of one step."""
        began = time.perf_counter()
        now = self.weights()
        layers = {name: _cheap(weight, before[name]) for name, weight in now.items()}
        full = step % FULL == 0
        if full:
            audit = tw.audit(now, randomize=1, workers=1, metrics=FULL_METRICS, use_cache=False)
            for row in audit.rows:
                layers[row.name] |= {key: float(row.metrics[key] or 0.0) for key in FULL_METRICS
                                     if row.metrics.get(key) is not None}  # fmt: skip
        self.spent += time.perf_counter() - began
        scalars = {"loss": loss, "lr": self.rate(step)}
        return Point(f"{self.condition.name}-{self.seed}", step, "full" if full else "cheap", 0.0, layers, scalars)


def _cheap(weight: torch.Tensor, before: torch.Tensor) -> dict[str, float]:
    frobenius = float(weight.norm())
    spectral = float(torch.linalg.matrix_norm(weight, 2)) if math.isfinite(frobenius) else math.nan
    moved = float((weight - before).norm()) / max(float(before.norm()), 1e-30)
    return {"spectral_norm": spectral, "frobenius": frobenius, "stable_rank": (frobenius / spectral) ** 2,
            "update_ratio": moved}  # fmt: skip


def path_of(folder: Path, condition: Condition, seed: int, arm: str = "") -> Path:
    """Where a run is kept."""
    label = f"{condition.name} {arm}".strip().replace("×", "x").replace(" ", "-")
    return folder / f"{label}-{seed}.json"


def kept(folder: Path, condition: Condition, seed: int, arm: tuple[str, Arm] | None = None) -> dict[str, Any]:
    """The run's points and held-out loss, trained now if `folder` lacks them."""
    path = path_of(folder, condition, seed, arm[0] if arm else "")
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(1)
        began = time.perf_counter()
        run = Run(condition, seed, arm[1] if arm else None)
        run.go()
        found = {"held_out_loss": run.held_out_loss(), "seconds": time.perf_counter() - began,
                 "spent": run.spent, "points": [point.to_json() for point in run.points]}  # fmt: skip
        path.write_text(json.dumps(found))
        print(f"{path.stem}: held-out loss {found['held_out_loss']:.4f}, {found['seconds']:.0f} s, of them "
              f"{run.spent:.0f} s for points", flush=True)  # fmt: skip
    found = json.loads(path.read_text())
    found["points"] = [point for item in found["points"] for point in _points(item)]
    return found


def _points(item: dict[str, Any]) -> Iterator[Point]:
    """What was measured at a step as the monitor gives it: the loss and cheap numbers, and spectra after them."""
    run, step, layers = item["run"], item["step"], item["layers"]
    if step % CHEAP == 0:
        cheap = {name: _numbers(values, lambda key: key not in FULL_METRICS[:-1]) for name, values in layers.items()}
        yield Point(run, step, "cheap", 0.0, cheap, _numbers(item["scalars"], lambda _: True))
    if step % FULL == 0:
        yield Point(run, step, "full", 0.0,
                    {name: _numbers(values, FULL_METRICS.__contains__) for name, values in layers.items()})  # fmt: skip


def _numbers(values: dict[str, float | None], wanted: Callable[[str], bool]) -> dict[str, float]:
    return {key: math.nan if value is None else value for key, value in values.items() if wanted(key)}
