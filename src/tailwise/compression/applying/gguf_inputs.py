"""What the layers of a GGUF file's model see on calibration text, and what became of them on the way."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from typing_extensions import override

from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.compression.applying.apply_options import ApplyOptions
from tailwise.compression.applying.calibration_inputs import calibrated_on, calibration_inputs, check_inputs, looked_at
from tailwise.compression.applying.carry_out import Progress
from tailwise.compression.operators.operator import OperatorResult
from tailwise.compression.packing.gguf_copy import Importances
from tailwise.compression.packing.gguf_packing import TYPES, to_bytes
from tailwise.compression.packing.tensor_parts import Coded
from tailwise.compression.plans.combined import how_of
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.plan import Plan
from tailwise.compression.treating.applied import relative_error
from tailwise.compression.treating.block_work import BlockWork, LayerJob, Nowhere, jobs_of
from tailwise.models.activations import Activations
from tailwise.models.evaluation.gguf_files import gguf_places
from tailwise.models.evaluation.loading import load_model
from tailwise.models.walking.block_inputs import Block
from tailwise.models.walking.hosts import Host, layer_of
from tailwise.models.walking.walk import blocks_of, home_of, walk_blocks

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class RoundedTensor:
    """A tensor as it is written."""

    blocks: torch.Tensor  # uint8, rows by bytes of a row
    error: float  # ‖Ŵ − W‖_F / ‖W‖_F
    digest: str  # of the values that the blocks decode to

    @classmethod
    def of(cls, decision: Decision, stored: torch.Tensor, done: Sequence[OperatorResult]) -> Self:
        """Of what an operator left of each matrix of a tensor, float32."""
        import torch

        coded = [Coded(decision, item.weight, item.grid) for item in done]
        blocks = [to_bytes(item.stored, TYPES[item.format.name], item) for item in coded]
        whole = torch.cat([item.weight.float() for item in done]).reshape(stored.shape)
        return cls(torch.cat(blocks), relative_error(stored, whole), digest_of(whole))


@dataclass(frozen=True)
class SeenInputs:
    """What the layers saw, by GGUF's names."""

    inputs: Mapping[str, Activations] = field(default_factory=dict)
    rounded: Mapping[str, RoundedTensor] = field(default_factory=dict)  # what need not be rounded once more
    windows: int = 0
    window: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def importances(self) -> dict[str, Importances]:
        """Of every tensor that was seen: the sums that llama.cpp keeps."""
        return {
            name: Importances(one.norms.double().square() * self.windows, one.tokens)
            for name, one in self.inputs.items()
            if one.norms is not None and one.tokens is not None
        }


@dataclass
class _Looking(BlockWork):
    """Rounds block by block, as trials do, and remembers what each layer saw on the way, and what became of it."""

    stored: Checkpoint
    rounds: bool = True
    found: dict[str, Activations] = field(default_factory=dict)
    rounded: dict[str, RoundedTensor] = field(default_factory=dict)

    @override
    def made(self, job: LayerJob, weight: torch.Tensor, done: Sequence[OperatorResult]) -> None:
        stored = self.stored.read(job.decision.tensor).float()
        # Of queries and keys the rows may stand in another order here: those are rounded once more.
        if stored.shape == weight.shape and stored.equal(weight):
            self.rounded[job.decision.tensor] = RoundedTensor.of(job.decision, stored, done)

    @override
    def visit(self, block: Block, activations: Mapping[str, Activations]) -> None:
        self.found |= {self.jobs[name].decision.tensor: one for name, one in activations.items() if name in self.jobs}
        if self.rounds:
            super().visit(block, activations)


def seen_in(
    plan: Plan, stored: Checkpoint, file: Path, how_to: tuple[ApplyOptions, Progress], *, rounds: bool
) -> SeenInputs:
    """One walk through the model that transformers makes of the file.

    With `rounds` each block is rounded before the next sees its outputs, as in trials; else inputs are those of the
    model as it is.
    """
    import torch

    options, progress = how_to
    inputs, settings = calibration_inputs(str(file), options.calibration, options.draw)
    loaded = load_model(str(file), dtype=options.dtype, device=options.device)
    host = Host(home_of(loaded.module), gguf_places(loaded.module, stored))
    check_inputs(host, inputs, str(file))
    how = how_of(plan, text=True)
    reached = plan.replace(decisions=tuple(_in_blocks(plan, host)))
    jobs = jobs_of(reached, host, {item.tensor: torch.float32 for item in reached}, how)
    work = _Looking(jobs, Nowhere(), how, stored, rounds)
    progress(f"calibrating by {looked_at(inputs)}", 1, 1)
    walk_blocks(host.home, inputs, work, batch=options.batch,
                progress=lambda done, total: progress("quantizing blocks", done, total))  # fmt: skip
    first = next(iter(inputs.values()))
    notes = (*calibrated_on(plan.operator, inputs, settings), *loaded.notes)
    return SeenInputs(work.found, work.rounded, len(first), first.shape[1], {**settings, "dtype": options.dtype}, notes)


def _in_blocks(plan: Plan, host: Host) -> Iterator[Decision]:
    layers = {name for block in blocks_of(host.model) for name in block.layers()}
    for decision in plan:
        if layer_of(host.places, decision.tensor, layers) is not None:
            yield decision


def digest_of(values: torch.Tensor) -> str:
    """Of the numbers: zeros have no sign here."""
    return hashlib.sha256((values + 0.0).contiguous().numpy().tobytes()).hexdigest()
