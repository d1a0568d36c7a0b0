"""Small trainings, healthy and with one planted fault each, and the points that a monitor takes of them.

What `benchmarks/training_alarms.py` stands on. A piece is one healthy training and two that branch off from it at
step SINCE, each with a fault. Language models read characters of Python's standard library, the others look at the
handwritten digits of scikit-learn.
"""

from __future__ import annotations

import copy
import gzip
import json
import math
import random
import sysconfig
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

import tailwise as tw
from tailwise.history.jsonl import from_line, point_line
from training_models import LENGTH, MODELS, RANKS, TARGETS, VOCABULARY, WORDS

STEPS, SINCE, EVERY, FULL, EVALUATE = 300, 180, 10, 30, 20
TEXTS, IMAGES = 12, 32  # windows and images in a batch
FAULTS = ("rate × 30", "rate × 30 for 20 steps", "gradient off", "layer zeroed", "layer grows", "head grows",
          "rank one grows", "Inf", "NaN", "labels to noise", "memorising")  # fmt: skip
#: Faults of one layer, which an alarm should name.
OF_A_LAYER = ("gradient off", "layer zeroed", "layer grows", "head grows", "rank one grows", "Inf", "NaN")

#: Of a piece's name, by which layers are drawn. The earlier runs were held out until the rules were mended on them.
PREFIXES = {"calibration": "calibration", "earlier": "held-out", "held out": "fresh", "adapters": "adapters"}


@dataclass(frozen=True)
class Piece:
    """One healthy training, and the faults that branch off from it."""

    split: str  # calibration or earlier: thresholds are set on them; held out and adapters: the tables are made of it
    model: str
    kind: str  # full or lora
    optimizer: str
    schedule: str
    seed: int
    faults: tuple[str, ...]

    @property
    def name(self) -> str:
        prefix = PREFIXES[self.split]
        return f"{prefix}-{self.model}-{self.kind}-{self.optimizer}-{self.schedule}-{self.seed}".replace(" ", "-")


# Data


@lru_cache(maxsize=2)
def text(prose: bool) -> torch.Tensor:
    """Characters as numbers below VOCABULARY: the library's code, or the prose of its help."""
    library = Path(sysconfig.get_paths()["stdlib"])
    files = [library / "pydoc_data" / "topics.py"] if prose else sorted(library.glob("*.py"))[:60]
    raw = "".join(path.read_text(encoding="utf-8", errors="ignore") for path in files)
    return torch.tensor([min(max(ord(letter) - 31, 0), VOCABULARY - 1) for letter in raw[:600_000]])


@lru_cache(maxsize=1)
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_digits

    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(found.images, dtype=torch.float32)[order] / 8 - 1
    return images[:, None], torch.tensor(found.target)[order]


class Data:
    """Batches to train on and one held out, of a task; `turned` is the task that adapters learn."""

    def __init__(self, words: bool, seed: int, turned: bool) -> None:
        self.words, self.turned = words, turned
        self.generator = torch.Generator().manual_seed(seed)
        self.fixed: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.noise = False

    def batch(self, held: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        if self.fixed and not held:
            return self.fixed[int(torch.randint(len(self.fixed), (), generator=self.generator))]
        inputs, targets = self._text(held) if self.words else self._images(held)
        if self.noise and not held:
            targets = torch.randint(int(targets.max()) + 1, targets.shape, generator=self.generator)
        return inputs, targets

    def _text(self, held: bool) -> tuple[torch.Tensor, torch.Tensor]:
        letters = text(self.turned)
        edge = int(0.9 * len(letters))
        part, count = (letters[edge:], 48) if held else (letters[:edge], TEXTS)
        generator = torch.Generator().manual_seed(1) if held else self.generator
        starts = torch.randint(len(part) - LENGTH - 1, (count,), generator=generator).tolist()
        windows = torch.stack([part[start : start + LENGTH + 1] for start in starts])
        return windows[:, :-1], windows[:, 1:]

    def _images(self, held: bool) -> tuple[torch.Tensor, torch.Tensor]:
        images, targets = digits()
        if self.turned:
            images = images.rot90(1, (2, 3))
        chosen = torch.arange(1500, len(targets)) if held else torch.randint(1500, (IMAGES,), generator=self.generator)
        return images[chosen], targets[chosen]


def loss_of(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    inputs, targets = batch
    found = model(inputs)
    logits = getattr(found, "logits", found)
    return functional.cross_entropy(logits.flatten(0, -2), targets.flatten())


@lru_cache(maxsize=8)
def _trained(model: str, seed: int) -> nn.Module:
    """What adapters are put on: the model after 250 steps on the first task."""
    torch.manual_seed(1000 + seed)
    made, data = MODELS[model](), Data(model in WORDS, 1000 + seed, turned=False)
    optimizer = torch.optim.AdamW(made.parameters(), lr=2e-3)
    for _ in range(250):
        loss_of(made, data.batch()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return made


def new_model(piece: Piece) -> nn.Module:
    torch.manual_seed(piece.seed)
    if piece.kind == "full":
        return MODELS[piece.model]()
    from peft import LoraConfig, get_peft_model

    rank = RANKS.get(piece.split, (4, 8, 16))[piece.seed % 3]
    base = copy.deepcopy(_trained(piece.model, piece.seed % 4))
    torch.manual_seed(piece.seed)
    settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS[piece.model],
                          fan_in_fan_out="gpt2" in piece.model)  # fmt: skip
    return get_peft_model(base, settings)


# Optimizers

RATES = {"full": {"adamw": (5e-4, 1e-3, 3e-3), "sgd": (0.02, 0.05, 0.1), "muon": (2e-3, 5e-3, 0.01)},
         "lora": {"adamw": (1e-4, 3e-4, 1e-3), "sgd": (0.02, 0.05, 0.1), "muon": (5e-4, 1e-3, 2e-3)}}  # fmt: skip


def new_optimizers(piece: Piece, model: nn.Module) -> list[torch.optim.Optimizer]:
    rate = random.Random(piece.seed).choice(RATES[piece.kind][piece.optimizer])
    parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if piece.optimizer == "sgd":
        return [torch.optim.SGD([p for _, p in parameters], lr=rate, momentum=0.9)]
    if piece.optimizer == "adamw":
        return [torch.optim.AdamW([p for _, p in parameters], lr=rate, weight_decay=0.05)]
    inside = [
        p for name, p in parameters if p.ndim == 2 and not any(w in name for w in ("embed", "wte", "wpe", "head"))
    ]
    chosen = {id(p) for p in inside}
    others = [p for _, p in parameters if id(p) not in chosen]
    muon = torch.optim.Muon(inside, lr=rate, weight_decay=0.05)
    return [muon, torch.optim.AdamW(others, lr=1e-3)] if others else [muon]


def share(piece: Piece, step: int) -> float:
    """Of the rate: one, a warm-up and a cosine, or a short warm-up, a plateau and a linear end."""
    if piece.schedule == "constant":
        return 1.0
    if piece.schedule == "plateau":
        return min(1.0, (step + 1) / 10, max((STEPS - step) / 60, 0.02))
    return min(1.0, (step + 1) / 30) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / STEPS)))


# A training


class Training:
    """A model, its optimizers and data at a step."""

    def __init__(self, piece: Piece) -> None:
        self.piece, self.model = piece, new_model(piece)
        self.optimizers = new_optimizers(piece, self.model)
        self.rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self.data = Data(piece.model in WORDS, piece.seed, turned=piece.kind == "lora")
        self.step, self.fault, self.layer = 0, "", ""

    def branch(self, fault: str) -> Training:
        """The same training from here on, with a fault."""
        memo: dict[int, object] = {}
        other = copy.copy(self)
        other.model = copy.deepcopy(self.model, memo)
        other.optimizers = [copy.deepcopy(optimizer, memo) for optimizer in self.optimizers]
        other.data = copy.copy(self.data)
        other.data.generator = torch.Generator()
        other.data.generator.set_state(self.data.generator.get_state())
        other.fault, other.layer = fault, ""
        if fault in OF_A_LAYER:
            other.layer = other._choose(head=fault == "head grows")
        return other

    def _choose(self, head: bool) -> str:
        """Name of a matrix that is trained: the last of all for the head, else one of the others."""
        least = 8 if self.piece.kind == "full" else 1  # smaller ones have no spectrum; an adapter's change has
        found = [name.removesuffix(".weight") for name, p in self.model.named_parameters()
                 if p.requires_grad and p.ndim >= 2 and p.shape[0] >= least and p[0].numel() >= least]  # fmt: skip
        heads = [name for name in found if name.endswith(("head", "classifier"))] or found[-1:]
        inner = [name for name in found if name not in heads and not any(w in name for w in ("wpe", "position"))]
        return heads[0] if head else random.Random(f"{self.piece.name}{self.fault}").choice(inner)

    def weight(self) -> torch.Tensor:
        return self.model.get_parameter(f"{self.layer}.weight")

    @torch.no_grad()
    def _harm(self) -> None:
        """What the fault does before a step."""
        begins, weight = self.step == SINCE, self.weight() if self.layer else torch.zeros(())
        flat = weight.view(len(weight), -1) if self.layer else weight
        if self.fault == "gradient off" and begins:
            weight.requires_grad_(False)
            weight.grad = None
        elif self.fault == "layer zeroed" and begins:
            weight.zero_()
        elif self.fault in ("layer grows", "head grows"):
            weight.mul_(1.06)
        elif self.fault == "rank one grows":
            generator = torch.Generator().manual_seed(self.piece.seed)
            u, v = (functional.normalize(torch.randn(size, generator=generator), dim=0) for size in flat.shape)
            self.size = weight.norm() if begins else self.size
            flat.add_(torch.outer(u, v), alpha=0.03 * float(self.size))
        elif self.fault in ("Inf", "NaN") and begins:
            flat[0, 0] = math.inf if self.fault == "Inf" else math.nan
        elif self.fault == "labels to noise":
            self.data.noise = True

    def factor(self) -> float:
        """Of the rate."""
        ill = self.fault == "rate × 30" or (self.fault == "rate × 30 for 20 steps" and self.step < SINCE + 20)
        return share(self.piece, self.step) * (30 if ill else 1)

    def one_step(self) -> torch.Tensor:
        if self.fault:
            self._harm()
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * self.factor()
        loss = loss_of(self.model, self.data.batch())
        loss.backward()
        if self.piece.model in WORDS or "vit" in self.piece.model:
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.step += 1
        return loss.detach()

    def held_out(self) -> float:
        self.model.eval()
        with torch.no_grad():
            found = float(loss_of(self.model, self.data.batch(held=True)))
        self.model.train()
        return found

    def go(self, until: int, kept: Kept, last: int) -> None:
        """Train and be watched up to a step; the monitor goes on where it was if this is not the `last`."""
        if kept.monitor is None:
            settings = {"first_step": self.step, "at_start": self.step == 0, "run": "r", "optimizer": self.optimizers}
            kept.monitor = tw.Monitor(self.model, every=EVERY, full_every=FULL, max_overhead=1.0, rules=(),
                                      sinks=[kept], **settings)  # fmt: skip
        while self.step < until:
            loss = self.one_step()
            kept.losses.append(float(loss))
            kept.monitor.step(step=self.step, loss=loss)
            if self.step % EVALUATE == 0:
                kept.monitor.note(eval_loss=self.held_out())
            if self.step % FULL == 0:
                kept.wait()
        if until == last:
            kept.monitor.close()


class Kept:
    """A sink of points, beside every step's loss."""

    def __init__(self) -> None:
        self.points, self.losses, self.monitor = [], [], None

    def write(self, point) -> None:
        self.points.append(point)

    def wait(self) -> None:
        """Until the full measurement under way has ended: on a busy machine it would be skipped, in a long run not."""
        solver = self.monitor._solver
        with solver._wake:
            solver._wake.wait_for(lambda: solver._job is None, 60)


def _file(folder: Path, piece: Piece) -> Path:
    return folder / f"{piece.name}.jsonl.gz"


def train(folder: Path, piece: Piece) -> None:
    """Train what is missing of a piece, and keep its points: a line a training."""
    path = _file(folder, piece)
    if path.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    healthy, kept = Training(piece), Kept()
    memorising = "memorising" in piece.faults
    lines = []
    if memorising:  # from the first step on: it takes some
        ill, seen = Training(piece), Kept()
        ill.fault = "memorising"
        ill.data.fixed = [tuple(part[:8] for part in ill.data.batch())]
        ill.go(STEPS, seen, STEPS)
        lines.append(_line(ill, seen, [], []))
    healthy.go(SINCE, kept, STEPS)
    branches = [healthy.branch(fault) for fault in piece.faults if fault != "memorising" and _possible(piece, fault)]
    before = len(kept.points), len(kept.losses)
    healthy.go(STEPS, kept, STEPS)
    lines.append(_line(healthy, kept, [], []))
    early = [point for point in kept.points if point.step <= SINCE]
    for branch in branches:
        seen = Kept()
        branch.go(STEPS, seen, STEPS)
        lines.append(_line(branch, seen, early, kept.losses[: before[1]]))
    part = path.with_suffix(".part")
    with gzip.open(part, "wt", encoding="utf-8", compresslevel=4) as file:
        file.writelines(line + "\n" for line in lines)
    part.replace(path)


def _possible(piece: Piece, fault: str) -> bool:
    return not (fault == "head grows" and piece.kind == "lora")


def _line(training: Training, kept: Kept, points: list, losses: list[float]) -> str:
    return json.dumps({
        **asdict(training.piece), "fault": training.fault, "layer": training.layer,
        "losses": [loss if math.isfinite(loss) else str(loss) for loss in [*losses, *kept.losses]],
        "points": [point_line(point) for point in [*points, *kept.points]],
    })  # fmt: skip


def runs_of(folder: Path, piece: Piece):
    """What is kept of a piece: dictionaries with points and losses."""
    path = _file(folder, piece)
    if not path.exists():
        return
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            found = json.loads(line)
            found["losses"] = [float(loss) for loss in found["losses"]]
            found["points"] = [from_line(text) for text in found["points"]]
            yield found


def pieces(split: str) -> list[Piece]:
    """All of a split; the faults take turns."""
    if split == "adapters":
        return _adapters()
    return _fresh() if split == "held out" else _older(split)


def _older(split: str) -> list[Piece]:
    found: list[Piece] = []
    kinds = {
        "calibration": [("llama", "full"), ("mlp", "full"), ("cnn", "full"), ("llama", "lora")],
        "earlier": [("gpt2", "full"), ("vit", "full"), ("deep mlp", "full"), ("resnet", "full"), ("gpt2", "lora"),
                    ("vit", "lora")],
    }[split]  # fmt: skip
    rows = [(seed, model, kind) for seed in (range(3) if split == "calibration" else range(100, 105))
            for model, kind in kinds]  # fmt: skip
    if split == "earlier":  # a second of a processor each
        rows += [(seed, model, "full") for seed in range(105, 108) for model in ("deep mlp", "resnet")]
    turn = 0
    for seed, model, kind in rows:
        for optimizer in _optimizers(model):
            for schedule in ("constant", "warm-up"):
                faults = tuple(FAULTS[(turn + i) % len(FAULTS)] for i in range(2))
                found.append(Piece(split, model, kind, optimizer, schedule, seed, faults))
                turn += 2
    return found


def _optimizers(model: str) -> tuple[str, ...]:
    """Those that a model is trained by: torch's Muon takes matrices alone, and most of a CNN are none."""
    return ("adamw", "sgd") if model in ("cnn", "resnet", "plain cnn") else ("adamw", "sgd", "muon")


def _fresh() -> list[Piece]:
    """New models, ranks, a new schedule and new seeds. Without Inf and NaN, whose rule is the same as before."""
    kinds = [("wide vit", "full"), ("mixer", "full"), ("plain cnn", "full"), ("deep gpt2", "full"),
             ("wide vit", "lora"), ("deep gpt2", "lora")]  # fmt: skip
    asked = [fault for fault in FAULTS if fault not in ("Inf", "NaN")]
    rows = [(seed, model, kind) for seed in range(200, 203) for model, kind in kinds]
    rows += [(seed, model, "full") for seed in range(203, 206) for model in ("wide vit", "mixer", "plain cnn")]
    found: list[Piece] = []
    for seed, model, kind in rows:
        for optimizer in _optimizers(model):
            for schedule in ("constant", "warm-up", "plateau"):
                possible = [fault for fault in asked if kind == "full" or fault != "head grows"]
                faults = tuple(possible[: 1 + len(found) % 2])
                asked = [fault for fault in asked if fault not in faults] + list(faults)
                found.append(Piece("held out", model, kind, optimizer, schedule, seed, faults))
    return found


def _adapters() -> list[Piece]:
    """LoRA on models that no rule was chosen on, at ranks and seeds of their own; each fault in turn, three a piece."""
    asked = [fault for fault in FAULTS if fault not in ("Inf", "NaN", "head grows")]
    found: list[Piece] = []
    for seed in range(300, 303):
        for schedule in ("constant", "warm-up", "plateau"):
            for optimizer in ("adamw", "sgd", "muon"):
                for model in ("neox", "mixer"):
                    faults = tuple(asked[:3])
                    asked = asked[3:] + asked[:3]
                    found.append(Piece("adapters", model, "lora", optimizer, schedule, seed, faults))
    return found
