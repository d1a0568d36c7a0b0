"""A packed model in a folder: written, read back, and measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.checkpoints.open import open_checkpoint
from tailwise.checkpoints.writer import Change, Layout
from tailwise.compression.packing.packing import Packing, Work
from tailwise.compression.packing.tensor_parts import Coded
from tailwise.compression.packing.read_back import read_back_packed
from tailwise.compression.plans.plan import Plan
from tailwise.compression.treating.applied import Applied, Grids
from tailwise.compression.treating.layer_matrices import as_matrices

if TYPE_CHECKING:
    import torch

_WEIGHTS = (".safetensors", ".gguf")


def coded_by(plan: Plan, checkpoint: Checkpoint, change: Change, grids: Grids) -> Callable[[str], Coded | None]:
    """Gives each tensor of a plan with the scales that its operator chose."""
    decisions = {decision.tensor: decision for decision in plan}

    def coded(name: str) -> Coded | None:
        decision = decisions.get(name)
        if decision is None:
            return None
        found: torch.Tensor | None = change(name)
        assert found is not None  # noqa: S101 - the plan names it
        matrices = as_matrices(checkpoint.read(name), name, checkpoint.config)
        chosen = grids(decision, matrices)
        return Coded(decision, found, chosen[0] if chosen else None)

    return coded


def packed(packing: Packing, work: Work, folder: Path, done: Applied) -> Applied:
    """Write the model packed, read every tensor of the plan back, and say what the files take."""
    said = (*packing.notes(work.plan, work.checkpoint), *packing.write(work, folder))
    with open_checkpoint(_opened(folder)) as copy:
        tensors = read_back_packed(packing, work, copy)
    after = sum(path.stat().st_size for path in folder.iterdir() if path.name.endswith(_WEIGHTS))
    sizes = (_source_bytes(work.layout), after)
    return replace(
        done, tensors=tensors, notes=(*done.notes, *said), packed=packing.name, loads=packing.loads, sizes=sizes
    )


def _opened(folder: Path) -> Path:
    """What to open: the one file with weights, where there is one and no index."""
    files = [path for path in folder.iterdir() if path.name.endswith(_WEIGHTS)]
    return files[0] if len(files) == 1 and not any(folder.glob("*.index.json")) else folder


def _source_bytes(layout: Layout) -> int:
    """Bytes of the files that the source has, or of its tensors where they are no safetensors."""
    names = layout.folder.names()
    if not all(shard.name in names for shard in layout.shards):
        return layout.nbytes
    total = 0
    for shard in layout.shards:
        source = layout.folder.source(shard.name)
        total += source.size
        source.close()
    return total
