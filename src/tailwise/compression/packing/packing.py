"""What a packing is: how the tensors of a plan lie in files as codes and scales."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from tailwise.checkpoints.checkpoint import Checkpoint, TensorSpec
from tailwise.checkpoints.writer import OutputLayout
from tailwise.compression.packing.tensor_parts import Coded
from tailwise.compression.plans.bits import has_whole_groups
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.phrasing import listed
from tailwise.compression.plans.plan import Plan
from tailwise.compression.treating.treated import is_transposed
from tailwise.core.errors import UsageError
from tailwise.core.optional import how_to_get, missing
from tailwise.number_formats.number_format import NumberFormat


@dataclass(frozen=True)
class PackingWork:
    """What is to be packed."""

    plan: Plan
    checkpoint: Checkpoint
    layout: OutputLayout
    coded: Callable[[str], Coded | None]  # a stored tensor as the operator left it; None where the plan has no entry
    progress: Callable[[str, int, int], None]


class Packing(ABC):
    """A layout that another tool loads."""

    name: ClassVar[str]
    package: ClassVar[str]  # that is imported
    extra: ClassVar[str]  # of tailwise, that installs it
    loads: ClassVar[str]  # how the output is loaded, in Markdown

    @abstractmethod
    def refuses(self, chosen: NumberFormat, spec: TensorSpec) -> str | None:
        """Why a matrix cannot be packed in a format; None where it can."""

    @abstractmethod
    def instead(self) -> str:
        """Formats that can be packed, for messages."""

    @abstractmethod
    def write(self, work: PackingWork, folder: Path) -> tuple[str, ...]:
        """Write the model into a folder; notes."""

    @abstractmethod
    def overhead(self, chosen: NumberFormat, spec: TensorSpec) -> int:
        """Bytes that the layout takes beyond what the format counts: padding, whole bytes, shapes."""

    def reasons(self, checkpoint: Checkpoint) -> Iterator[str]:  # noqa: ARG002 - a hook
        """Why a model cannot be packed, whatever the plan says."""
        yield from ()

    def notes(self, plan: Plan, checkpoint: Checkpoint) -> Iterator[str]:  # noqa: ARG002 - a hook
        """What the user of the output should know."""
        yield from ()

    def stored_as(self, tensor: str, checkpoint: Checkpoint) -> str:  # noqa: ARG002 - a hook
        """The name of a tensor in the output, once it is decoded."""
        return tensor

    def restored(self, values: torch.Tensor, tensor: str, checkpoint: Checkpoint) -> torch.Tensor:  # noqa: ARG002
        """Rows of a decoded tensor in the order of the source."""
        return values


def check_packing(packing: Packing, plan: Plan, checkpoint: Checkpoint) -> None:
    """`UsageError` before any work where a packing cannot hold what a plan asks for, naming the layers."""
    absent = missing(packing.package)
    if absent:
        raise UsageError(
            f"packing for {packing.name} takes the package {absent[0]}",
            fix=how_to_get(packing.extra),
        )
    for why in packing.reasons(checkpoint):
        raise UsageError(why, where=checkpoint.uri, fix="leave --packed out, or choose another packing")
    troubles: dict[str, list[str]] = {}
    for decision in plan:
        reason = refusal(packing, decision, checkpoint)
        if reason is not None:
            troubles.setdefault(reason, []).append(decision.tensor)
    if troubles:
        lines = [f"{reason}: {listed(names)}" for reason, names in troubles.items()]
        raise UsageError(
            f"{packing.name} cannot pack what the plan asks for:\n  " + "\n  ".join(lines),
            fix=f"plan with {packing.instead()}, or apply without --packed",
        )


def refusal(packing: Packing, decision: Decision, checkpoint: Checkpoint) -> str | None:
    """Why an entry cannot be packed."""
    spec = checkpoint.tensors[decision.tensor]
    if len(spec.shape) != 2 or not spec.name.endswith(".weight"):
        return f"is no matrix of a layer but a tensor of shape {list(spec.shape)}"
    if is_transposed(spec.name, spec.shape, checkpoint.config):
        return "is stored (in, out), as Conv1D does"
    chosen = decision.number_format
    if not has_whole_groups(chosen, spec.shape):
        return f"has inputs that groups of {chosen.group_size} ({chosen.name}) do not divide"
    return packing.refuses(chosen, spec)
