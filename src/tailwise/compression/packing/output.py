"""A packed model in a folder: written, read back, and measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tailwise.checkpoints.checkpoint import Checkpoint, TensorSpec
from tailwise.checkpoints.open import open_checkpoint
from tailwise.checkpoints.readings.partition import claimed
from tailwise.checkpoints.writer import Change, OutputLayout
from tailwise.compression.packing.packing import Packing, PackingWork
from tailwise.compression.packing.tensor_parts import Coded
from tailwise.compression.plans.bits import bits_of
from tailwise.compression.plans.plan import Plan
from tailwise.compression.treating.applied import READING_BACK, Applied, Grids, Reached, relative_error
from tailwise.compression.treating.treated import as_matrices
from tailwise.core.errors import UnreadableError

if TYPE_CHECKING:
    import torch

    from tailwise.compression.packing.tensor_parts import Coded

_WEIGHTS = (".safetensors", ".gguf")


def coded_by(plan: Plan, checkpoint: Checkpoint, change: Change, grids: Grids) -> Callable[[str], Coded | None]:
    """Gives each tensor of a plan with the scales that its operator chose."""
    decisions = {decision.tensor: decision for decision in plan}

    def coded(name: str) -> Coded | None:
        decision = decisions.get(name)
        if decision is None:
            return None
        changed: torch.Tensor | None = change(name)
        assert changed is not None  # noqa: S101 - the plan names it
        matrices = as_matrices(checkpoint.read(name), name, checkpoint.config)
        chosen = grids(decision, matrices)
        return Coded(decision, changed, chosen[0] if chosen else None)

    return coded


def packed(packing: Packing, work: PackingWork, folder: Path, done: Applied) -> Applied:
    """Write the model packed, read every tensor of the plan back, and say what the files take."""
    notes = (*packing.notes(work.plan, work.checkpoint), *packing.write(work, folder))
    with open_checkpoint(_opened(folder)) as copy:
        tensors = read_back_packed(packing, work, copy)
    after = sum(path.stat().st_size for path in folder.iterdir() if path.name.endswith(_WEIGHTS))
    sizes = (_source_bytes(work.layout), after)
    return replace(
        done, tensors=tensors, notes=(*done.notes, *notes), packed=packing.name, loads=packing.loads, sizes=sizes
    )


def _opened(folder: Path) -> Path:
    """What to open: the one file with weights, where there is one and no index."""
    files = [path for path in folder.iterdir() if path.name.endswith(_WEIGHTS)]
    return files[0] if len(files) == 1 and not any(folder.glob("*.index.json")) else folder


def _source_bytes(layout: OutputLayout) -> int:
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


_REPORT = "this is an error of tailwise: report it with the plan"


def read_back_packed(packing: Packing, work: PackingWork, written: Checkpoint) -> tuple[Reached, ...]:
    """Every tensor of the plan in the written files, decoded.

    `UnreadableError` where a value is another than in the dequantized checkpoint, or the bytes are not those that
    the plan counts and the layout adds.
    """
    real = claimed(written)
    found = []
    for decision in work.plan:
        found.append(_reached(packing, work, real, decision.tensor))
        work.progress(READING_BACK, len(found), len(work.plan.decisions))
    return tuple(found)


def _reached(packing: Packing, work: PackingWork, written: Checkpoint, tensor: str) -> Reached:
    coded, spec = work.coded(tensor), work.checkpoint.tensors[tensor]
    assert coded is not None  # noqa: S101 - the plan names it
    place = packing.stored_as(tensor, work.checkpoint)
    if place in written.unsupported:
        raise UnreadableError(f"cannot be read back: {written.unsupported[place]}", where=tensor)
    restored = packing.restored(written.read(place), tensor, work.checkpoint)
    if not _same(restored, coded):
        raise UnreadableError("decodes to other values than the operator chose", where=tensor, fix=_REPORT)
    return Reached(
        tensor,
        spec.numel,
        bits_of(coded.decision),
        8 * _bytes(packing, coded, _nbytes(written, place), spec) / spec.numel,
        coded.format.name,
        relative_error=relative_error(work.checkpoint.read(tensor), restored),
    )


def _same(restored: torch.Tensor, coded: Coded) -> bool:
    """Whether decoded values are those of the dequantized checkpoint, in the coarser of their two dtypes."""
    import torch

    expected = coded.stored.to(torch.float32)
    if torch.equal(restored.to(torch.float32), expected) or torch.equal(restored.to(coded.stored.dtype), coded.stored):
        return True
    return coded.grid is not None and torch.equal(restored, coded.grid.round(coded.stored).to(torch.bfloat16).float())


def _nbytes(written: Checkpoint, place: str) -> int:
    """Bytes of the codes, scales and zero points of a tensor, as they lie in the file."""
    files = written.stored or written.tensors
    return sum(files[name].nbytes for name in written.members.get(place, (place,)))


def _bytes(packing: Packing, coded: Coded, nbytes: int, spec: TensorSpec) -> int:
    """The bytes that were found; `UnreadableError` where the plan counts others."""
    planned = coded.format.bits_per_weight(spec.shape[0], spec.shape[1]) * spec.numel / 8
    added = packing.overhead(coded.format, spec)
    if abs(nbytes - planned - added) >= 1:
        what = f"takes {nbytes} bytes in the file; the plan counts {planned:.0f}, and the layout adds {added}"
        raise UnreadableError(what, where=coded.decision.tensor, fix=_REPORT)
    return nbytes
