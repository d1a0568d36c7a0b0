"""Files of a compressed model: written in the draft's folder, opened again, and put in their place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.checkpoints.draft import Draft
from tailwise.checkpoints.open import open_checkpoint
from tailwise.checkpoints.writer import Change, OutputLayout, write_checkpoint
from tailwise.compression.applying.card import PLAN_FILE
from tailwise.compression.plans.files import to_text
from tailwise.compression.plans.plan import Plan

if TYPE_CHECKING:
    import torch

Progress = Callable[[str, int, int], None]  # what is done, steps done, steps in all


def silent(what: str, done: int, total: int) -> None:
    """Without a progress bar."""


def write_tensors(
    layout: OutputLayout, source: Checkpoint, folder: Path, change: Change, progress: Progress
) -> tuple[str, ...]:
    """All tensors of a model, changed; what is to be noted of the files."""
    total = sum(len(shard.specs) for shard in layout.shards)
    written = iter(range(1, total + 1))

    def counted(name: str) -> torch.Tensor | None:
        progress("writing tensors", next(written), total)
        return change(name)

    return write_checkpoint(layout, source, folder, counted)


def open_written(layout: OutputLayout, folder: Path) -> Checkpoint:
    """What was written: its only file, or the folder with its index."""
    single = len(layout.shards) == 1 and layout.index is None
    return open_checkpoint(folder / layout.shards[0].name if single else folder)


def put_in_place(draft: Draft, plan: Plan, card: str) -> None:
    """Write the plan and the model card, and let the whole appear."""
    (draft.folder / PLAN_FILE).write_text(to_text(plan), encoding="utf-8")
    (draft.folder / "README.md").write_text(card, encoding="utf-8")
    draft.commit()
