"""What a plan came to: every tensor read back from the file that was written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.compression.plans.bits import bits_of
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.plan import Plan
from tailwise.compression.plans.treatment import Matrices
from tailwise.compression.treating.treated import as_matrices
from tailwise.core.shown import Brief, Shown, brief
from tailwise.number_formats.grid import ValueGrid

if TYPE_CHECKING:
    import torch

#: Tensor and its matrices in the source (count, out, in) → the scales of each; None where there are none.
Grids = Callable[[Decision, "torch.Tensor"], list[ValueGrid] | None]


@dataclass(frozen=True)
class Reached:
    """One tensor of the plan, as it was read back.

    Without a format, `requested` and `achieved` are the fraction that went (of low rank, what its factors save). With
    one they are bits per weight, codes, scales and zero points counted; of packed models, as they lie in the file.
    """

    tensor: str
    n_params: int
    requested: float
    achieved: float
    how: str  # pattern, or format
    rank: int | None = None
    relative_error: float | None = None  # ‖Ŵ − W‖_F / ‖W‖_F, of a format

    @property
    def format(self) -> str | None:
        """The number format, where there is one."""
        return None if self.relative_error is None else self.how

    @property
    def pattern(self) -> str:
        """What was done, in the words of a table."""
        return self.how if self.relative_error is None else f"{self.how}, error {self.relative_error:.4f}"

    @property
    def removed(self) -> float:
        """Parameters that went."""
        return self.n_params * self.achieved

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        head = {"tensor": self.tensor, "parameters": self.n_params}
        amounts = {"requested": self.requested, "achieved": self.achieved}
        if self.relative_error is not None:
            return {**head, "format": self.how, **amounts, "relative_error": self.relative_error}
        return {**head, **amounts, "pattern": self.how, **({} if self.rank is None else {"rank": self.rank})}


@dataclass(frozen=True, repr=False)
class Applied(Brief):
    """A plan that was applied.

    A quantized checkpoint is dequantized, as large as its source; where it is packed, `achieved` counts the bytes of
    the file.
    """

    output: Path
    operator: str
    tensors: tuple[Reached, ...]
    seconds: float
    resumed: int = 0  # blocks or shards that an earlier run had finished
    settings: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    smaller: bool = False  # parameters were taken out and not only set to zero
    packed: str | None = None  # the layout of the output; None where it is dequantized
    loads: str = ""  # what a packed model is loaded with
    pruned: Applied | None = None  # what was pruned before
    sizes: tuple[int, int] | None = None  # bytes of the files of weights before and after, where they are packed
    whole: tuple[int, int] | None = None  # bytes of all tensors in their formats, and parameters, of the whole model

    @property
    def in_bits(self) -> bool:
        """Whether amounts are bits per weight."""
        return any(item.format is not None for item in self.tensors)

    @property
    def requested(self) -> float:
        """Of the plan, the mean weighted by parameters."""
        return weighted_mean([(item.n_params, item.requested) for item in self.tensors])

    @property
    def achieved(self) -> float:
        """The same, as it was read back."""
        return weighted_mean([(item.n_params, item.achieved) for item in self.tensors])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        own: dict[str, Any] = {"packed": self.packed} if self.in_bits else {"smaller": self.smaller}
        if self.pruned is not None:
            own["pruned"] = self.pruned.to_json()
        if self.sizes is not None:
            own |= {"bytes_before": self.sizes[0], "bytes_after": self.sizes[1]}
        if self.whole is not None:
            own |= {"model_bytes": self.whole[0], "model_parameters": self.whole[1]}
        return {
            "output": str(self.output),
            "operator": self.operator,
            **({"unit": "bits per weight"} if self.in_bits else {}),
            "requested": self.requested,
            "achieved": self.achieved,
            **own,
            "seconds": round(self.seconds, 3),
            "resumed_blocks": self.resumed,
            "settings": dict(self.settings or {}),
            "tensors": [item.to_json() for item in self.tensors],
            "notes": list(self.notes),
        }

    def __repr__(self) -> str:
        unit = " bits per weight" if self.in_bits else " of the parameters"
        amounts = f"requested {self.requested:.4g}, achieved {self.achieved:.4g}{unit}"
        return f"Applied({brief(str(self.output))}: {self.operator}, {len(self.tensors)} tensors, {amounts})"

    def _shown(self) -> Shown:
        rows = [(one.tensor, one.n_params, one.requested, one.achieved, one.relative_error) for one in self.tensors]
        heads = ("tensor", "parameters", "requested", "achieved", "relative error")
        return Shown(repr(self), heads, rows, "`to_json()`", self.notes)


def whole_model(source: Checkpoint, tensors: Sequence[Reached]) -> tuple[int, int]:
    """Bytes and parameters of a model, what was changed in its formats and the rest as it is stored."""
    changed = {item.tensor: item for item in tensors}
    nbytes, parameters = 0.0, 0
    for name, spec in source.tensors.items():
        if name in source.shared:
            continue
        found = changed.get(name)
        nbytes += spec.nbytes if found is None else found.n_params * found.achieved / 8
        parameters += spec.numel if found is None else found.n_params
    return round(nbytes), parameters


def weighted_mean(weighted: list[tuple[int, float]]) -> float:
    """Mean of (weight, value); 0 where there is none."""
    total = sum(size for size, _ in weighted)
    return sum(size * value for size, value in weighted) / total if total else 0.0


READING_BACK = "reading back what was written"


def read_back(
    plan: Plan,
    source: Checkpoint,
    written: Checkpoint,
    grids: Grids,
    progress: Callable[[str, int, int], None] = lambda _what, _done, _total: None,
) -> tuple[Reached, ...]:
    """Every tensor of the plan in the written checkpoint. `UnreadableError` where one holds less than was asked."""
    found = []
    for decision in plan:
        found.append(_reached(decision, source, written, grids))
        progress(READING_BACK, len(found), len(plan.decisions))
    return tuple(found)


def _reached(decision: Decision, source: Checkpoint, written: Checkpoint, grids: Grids) -> Reached:
    treatment, after = decision.treatment, _matrices(written, decision)
    if treatment.cast is None:
        share = treatment.reached(decision.site, Matrices(None, after))
        asked = decision.sparsity or 0.0
        return Reached(decision.tensor, decision.n_params, asked, share, decision.pattern, decision.rank)
    before = _matrices(source, decision)
    beside = grids(decision, before)
    bits = treatment.reached(decision.site, Matrices(before, after, None if beside is None else tuple(beside)))
    name = decision.number_format.name
    return Reached(decision.tensor, decision.n_params, bits_of(decision), bits, name,
                   relative_error=relative_error(before, after))  # fmt: skip


def _matrices(checkpoint: Checkpoint, decision: Decision) -> torch.Tensor:
    return as_matrices(checkpoint.read(decision.tensor), decision.tensor, checkpoint.config)


def relative_error(before: torch.Tensor, after: torch.Tensor) -> float:
    """‖after − before‖_F / ‖before‖_F; 0 where there was nothing."""
    square = float(before.double().square().sum())
    error = float((after.double() - before.double()).square().sum())
    return (error / square) ** 0.5 if square else 0.0


def masks_of(plan: Plan) -> Iterator[str]:
    """The tensors that have a mask: those that hold zeros."""
    for decision in plan:
        if decision.treatment.masks:
            yield decision.tensor
