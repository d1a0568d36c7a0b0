"""`apply()`: a plan and a checkpoint to a compressed checkpoint."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.checkpoints.draft import Draft, check_output, check_space
from tailwise.checkpoints.open import open_checkpoint
from tailwise.checkpoints.writer import OutputLayout
from tailwise.compression.applying.apply_options import ApplyOptions
from tailwise.compression.applying.calibration_inputs import calibration_inputs, image_inputs
from tailwise.compression.applying.card import PLAN_FILE
from tailwise.compression.applying.carry_out import Before, Progress, Run, silent
from tailwise.compression.applying.gguf_source import for_folder, unpacked
from tailwise.compression.applying.gguf_to_gguf import apply_to_gguf, is_for_gguf
from tailwise.compression.applying.plan_fit import check_own, check_plan, is_calibrated, source_of
from tailwise.compression.operators.registered import OPERATORS
from tailwise.compression.packing.packing import Packing, check_packing
from tailwise.compression.packing.packings import packing_of
from tailwise.compression.plans.files import to_text
from tailwise.compression.plans.plan import Plan
from tailwise.compression.treating.applied import Applied, read_back
from tailwise.compression.treating.journal import digest_of_inputs, key_of_run
from tailwise.core.bars import Told, listener
from tailwise.core.errors import UsageError
from tailwise.core.execution.executor import checked_device
from tailwise.core.validation import checked
from tailwise.models.evaluation.gguf_files import gguf_file_of

if TYPE_CHECKING:
    import torch


@checked
def apply(
    plan: Plan | str | os.PathLike[str],
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    options: ApplyOptions | None = None,
    progress: Progress | bool | None = None,
) -> Applied:
    """Write the model that `plan` asks for to the folder `output`, and read back what was reached.

    `plan` is one, or the path of its file; `model` is a folder, file or Hugging Face id with safetensors or PyTorch
    files. The output has the same tensors, dtypes and files, the plan and a model card; it appears whole or not at all.
    Operators that look at the weights alone stream tensor by tensor; the others go block by block through the model,
    and a run that was killed goes on at the block where it was. `structured`, and `low_rank` with `factored`, write
    smaller tensors; where the config cannot say their sizes, `tailwise.load_pruned` loads them. Of a plan that prunes
    and quantizes, what the first set to zero is zero in the end. `progress` is called with what is done, how many
    steps are, and how many there will be; True shows a bar, as notebooks and interactive shells do by default. Raises
    `UsageError` before any work where the plan does not fit the model.
    """
    started = time.perf_counter()
    if isinstance(plan, str | os.PathLike):
        plan = Plan.load(os.fspath(plan))
    plan.validate()
    with listener(progress, "apply", _of_three) as told:
        if (file := gguf_file_of(model)) is not None:
            if is_for_gguf(plan, options or ApplyOptions()):
                return apply_to_gguf(plan, file, Path(output), options or ApplyOptions(), told or silent)
            return _apply_to_gguf(plan, file, Path(output), options or ApplyOptions(), told)
        errand = _Errand(plan, os.fspath(model), options or ApplyOptions(), told or silent)
        found = errand.in_two(Path(output)) if plan.is_both else errand.done(Path(output))
    return replace(found, seconds=time.perf_counter() - started)


def _of_three(what: str, done: int, total: int) -> Told:
    return what, done, total


def _apply_to_gguf(plan: Plan, file: Path, output: Path, options: ApplyOptions, progress: Progress | None) -> Applied:
    """As `apply`, by way of the folder of transformers that the file is read as; it is kept until all is done."""
    check_output(output, force=options.force, source=file)
    folder = output.parent / f".{output.name}.from-gguf"
    with open_checkpoint(file) as stored:
        check_own(plan, stored, force=options.force)
    moved = for_folder(plan, unpacked(file, folder), file)
    found = apply(moved, folder, output, options=replace(options, dequantize=False), progress=progress or False)
    shutil.rmtree(folder)
    card_file = output / "README.md"
    card_file.write_text(card_file.read_text(encoding="utf-8").replace(str(folder), str(file)), encoding="utf-8")
    return found


@dataclass(frozen=True)
class _Errand:
    plan: Plan
    model: str
    options: ApplyOptions
    progress: Progress

    def done(self, output: Path, before: Before | None = None) -> Applied:
        """Carry out a plan of one kind. `before` says what was pruned before, of which zeros are kept."""
        checked_device(self.options.device)
        calibrated = is_calibrated(self.plan, self.options)
        self._check_output(output)
        with open_checkpoint(self.model) as stored:
            checkpoint, layout, packing = self._fitted(stored)
            planned = sum(checkpoint.tensors[decision.tensor].nbytes for decision in self.plan)
            kept = (2 if self.plan.quantizes else 1) * planned if calibrated else 0
            check_space(output, layout.nbytes + kept + (1 << 20))
            run = Run(self.plan, self.model, checkpoint, layout, self.options, self.progress, packing, before)
            if OPERATORS[self.plan.operator].work is None or (self.options.factored and not self.plan.quantizes):
                return run.smaller(output, calibrated=calibrated)
            return run.calibrated(output) if calibrated else run.data_free(output)

    def in_two(self, output: Path) -> Applied:
        """Prune, then quantize what is left.

        The pruned model lies in the draft of the output until the second part is done, so that a run that was killed
        goes on where it was.
        """
        first = replace(self, plan=self.plan.part("prune"), options=replace(self.options, packed=None))
        second = replace(self, plan=self.plan.part("quantize").replace(fingerprint=""))
        if self.options.save_masks:
            fix = "leave --save-masks out, or apply the first plan"
            raise UsageError("masks are of plans that only prune", fix=fix)
        self._check_output(output)
        second.check()
        with Draft(output, key=self._key(), resume=self.options.resume, force=self.options.force) as draft:
            pruned, quantized = draft.kept / "pruned", draft.kept / "quantized"
            if not (pruned / PLAN_FILE).is_file():
                first.done(pruned)
            with open_checkpoint(pruned) as copy:
                # Only what it holds is read: pruned tensors have no grids.
                reached = read_back(first.plan, copy, copy, lambda *_: None)
            before = Before(self.plan, self.model, Applied(output, first.plan.operator, reached, 0.0))
            rest = replace(second, model=str(pruned), options=replace(self.options, force=True))
            found = rest.done(quantized, before)
            for path in quantized.iterdir():
                path.rename(draft.folder / path.name)
            draft.commit()
        return replace(found, output=output, operator=self.plan.operator)

    def check(self) -> None:
        """`UsageError` for what would only be found out at the time."""
        is_calibrated(self.plan, self.options)
        with open_checkpoint(self.model) as stored:
            self._fitted(stored)

    def _fitted(self, stored: Checkpoint) -> tuple[Checkpoint, OutputLayout, Packing | None]:
        packing = None if self.options.packed is None else packing_of(self.options.packed)
        checkpoint, layout = source_of(self.plan, stored, self.model, self.options)
        check_plan(self.plan, checkpoint, stored=stored, force=self.options.force)
        if packing is not None:
            check_packing(packing, self.plan, checkpoint)
        return checkpoint, layout, packing

    def _check_output(self, output: Path) -> None:
        source = Path(self.model).expanduser()
        check_output(output, force=self.options.force, source=source if source.exists() else None)

    def _key(self) -> str:
        """A digest of all that the output depends on."""
        given = self.options.calibration
        inputs: list[Mapping[str, torch.Tensor]] = []
        if given is not None:
            inputs.append(calibration_inputs(self.model, given, self.options.draw)[0])
        if self.options.images is not None:
            inputs += (dict(one) for one in image_inputs(self.model, self.options.images, self.options.draw)[0].each)
        settings = {"plan": to_text(self.plan), "packed": self.options.packed, "dtype": self.options.dtype}
        with open_checkpoint(self.model) as checkpoint:
            return key_of_run(self.plan.part("prune"), checkpoint, settings, digest_of_inputs(*inputs))
