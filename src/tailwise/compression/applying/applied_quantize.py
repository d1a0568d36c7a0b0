"""What a plan to quantize came to: every tensor read back from the file that was written, and the model card."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.compression.applying.applied import Applied, weighted_mean
from tailwise.compression.applying.card import head, how
from tailwise.compression.applying.data_free import as_matrices
from tailwise.compression.plans.bits import bits_of
from tailwise.compression.plans.plan import Decision, Plan
from tailwise.errors import UnreadableError
from tailwise.number_formats.formats import parse_format
from tailwise.number_formats.grid import Grid

if TYPE_CHECKING:
    import torch

#: Tensor and its matrices in the source (count, out, in) → the scales of each; None for a plain cast.
Grids = Callable[[Decision, "torch.Tensor"], list[Grid] | None]


@dataclass(frozen=True)
class ReachedBits:
    """One tensor of the plan, as it was read back."""

    tensor: str
    n_params: int
    format: str
    asked: float  # bits per weight, as the plan has it
    reached: float  # the same, of what was written: codes, scales and zero points, of packed models as they lie there
    relative_error: float  # ‖Ŵ − W‖_F / ‖W‖_F
    rank: int | None = None  # as of pruned tensors: none

    @property
    def pattern(self) -> str:
        """What was done, in the words of a table: the format and the error."""
        return f"{self.format}, error {self.relative_error:.4f}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "tensor": self.tensor,
            "parameters": self.n_params,
            "format": self.format,
            "asked": self.asked,
            "reached": self.reached,
            "relative_error": self.relative_error,
        }


@dataclass(frozen=True)
class AppliedBits:
    """A plan to quantize that was applied.

    The written checkpoint is de-quantized, as large as its source; where it is packed, `reached` counts the bytes of
    the file.
    """

    output: Path
    operator: str
    tensors: tuple[ReachedBits, ...]
    seconds: float
    resumed: int = 0  # blocks that an earlier run had finished
    settings: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    packed: str | None = None  # the layout of the output; None where it is de-quantized
    loads: str = ""  # what a packed model is loaded with
    pruned: Applied | None = None  # what was pruned before
    sizes: tuple[int, int] | None = None  # bytes of the files of weights before and after, where they are packed

    @property
    def asked(self) -> float:
        """Mean bits per weight of the plan, weighted by parameters."""
        return weighted_mean([(item.n_params, item.asked) for item in self.tensors])

    @property
    def reached(self) -> float:
        """The same, as it was read back."""
        return weighted_mean([(item.n_params, item.reached) for item in self.tensors])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "output": str(self.output),
            "operator": self.operator,
            "unit": "bits per weight",
            "asked": self.asked,
            "reached": self.reached,
            "seconds": round(self.seconds, 3),
            "resumed_blocks": self.resumed,
            "packed": self.packed,
            **({} if self.pruned is None else {"pruned": self.pruned.to_json()}),
            **({} if self.sizes is None else {"bytes_before": self.sizes[0], "bytes_after": self.sizes[1]}),
            "settings": dict(self.settings or {}),
            "tensors": [item.to_json() for item in self.tensors],
            "notes": list(self.notes),
        }


def read_back(plan: Plan, source: Checkpoint, written: Checkpoint, grids: Grids) -> tuple[ReachedBits, ...]:
    """Every tensor of the plan in the written checkpoint. `UnreadableError` where an entry is no value of its format.

    An entry is one if rounding it to the scales that were chosen, and to the dtype that it is stored in, gives it
    again.
    """
    return tuple(_reached(decision, source, written, grids) for decision in plan)


def _reached(decision: Decision, source: Checkpoint, written: Checkpoint, grids: Grids) -> ReachedBits:
    before, after = (
        as_matrices(checkpoint.read(decision.tensor), decision.tensor, checkpoint.config)
        for checkpoint in (source, written)
    )
    chosen = parse_format(decision.format or "")
    beside = grids(decision, before)
    if not _on_grid(decision, after, beside):
        raise UnreadableError(
            f"holds values that {chosen.name} has not",
            where=decision.tensor,
            fix="this is an error of tailwise: report it with the plan",
        )
    square = float(before.double().square().sum())
    error = float((after.double() - before.double()).square().sum())
    return ReachedBits(
        decision.tensor,
        decision.n_params,
        chosen.name,
        bits_of(decision),
        chosen.bits_per_weight(after.shape[1], after.shape[2]),
        (error / square) ** 0.5 if square else 0.0,
    )


def _on_grid(decision: Decision, after: torch.Tensor, grids: list[Grid] | None) -> bool:
    import torch

    if grids is None:
        chosen = parse_format(decision.format or "")
        return all(torch.equal(chosen.quantize(W).values.to(W.dtype), W) for W in after)
    if not grids:
        return False
    matrices = after.reshape(len(grids), -1, after.shape[2])  # the groups of a convolution have scales of their own
    return all(torch.equal(grid.round(W).to(W.dtype), W) for grid, W in zip(grids, matrices, strict=True))


def card(plan: Plan, applied: AppliedBits, source: str) -> str:
    """README.md."""
    return "\n".join(_lines(plan, applied, source)) + "\n"


def _lines(plan: Plan, applied: AppliedBits, source: str) -> Iterator[str]:
    yield from head(plan, source, "quantized")
    yield (
        f"Made from `{source}` by tailwise {version('tailwise')}: the {plan.n_params:,} parameters that the plan names "
        f"hold values of {applied.reached:.4f} bits per weight, scales counted (asked for: {applied.asked:.4f})."
    )
    if applied.pruned is not None:
        yield f"Before that, {applied.pruned.reached:.4%} of the plan's pruned tensors were set to zero."
    yield ""
    yield from how(plan, applied.settings)
    yield ""
    yield from _how_stored(applied)
    yield ""
    yield "| tensor | format | bits per weight | relative error |"
    yield "| --- | --- | ---: | ---: |"
    for item in applied.tensors:
        yield f"| `{item.tensor}` | {item.format} | {item.reached:.4f} | {item.relative_error:.5f} |"
    for note in (*plan.notes, *applied.notes):
        yield from ("", f"- {note}")


def _how_stored(applied: AppliedBits) -> Iterator[str]:
    if applied.packed is None or applied.sizes is None:
        yield "The values are stored de-quantized, in the dtype of the source: the file is as large as before. It"
        yield "measures what the formats cost, and is not what a server would load."
        return
    before, after = applied.sizes
    yield f"The weights are packed, as {applied.packed} lays them out: {after:,} bytes, and {before:,} before."
    yield applied.loads
