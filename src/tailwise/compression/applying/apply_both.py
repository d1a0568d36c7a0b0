"""`prune_and_quantize()`: a plan that does both, and a checkpoint, to a checkpoint."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tailwise.checkpoints.draft import Draft, check_output
from tailwise.checkpoints.open import open_checkpoint
from tailwise.compression.applying.applied import Applied, read_back
from tailwise.compression.applying.applied_quantize import AppliedBits
from tailwise.compression.applying.apply_quantize import Pruned, check_quantize, quantize
from tailwise.compression.applying.calibration_inputs import Draw, calibration_inputs
from tailwise.compression.applying.card import PLAN_FILE
from tailwise.compression.applying.journal import digest_of_inputs, key_of_run
from tailwise.compression.applying.written import Progress
from tailwise.compression.plans.files import to_text
from tailwise.compression.plans.plan import Plan
from tailwise.errors import UsageError

if TYPE_CHECKING:
    from tailwise.compression.applying.apply import ApplyOptions

Prune = Callable[..., Applied]


def prune_and_quantize(
    prune: Prune,
    plan: Plan,
    model: str | os.PathLike[str],
    output: Path,
    options: ApplyOptions,
    progress: Progress | None = None,
) -> AppliedBits:
    """Prune, then quantize what is left; what the first set to zero is zero in the end.

    `prune` carries out the first part. The pruned model lies in the draft of the output until the second is done, so
    that a run that was killed goes on where it was. Raises `UsageError` before any work where either does not fit.
    """
    started, name = time.perf_counter(), os.fspath(model)
    first, second = plan.part("prune"), plan.part("quantize").replace(fingerprint="")
    if options.save_masks:
        raise UsageError("masks are of plans that only prune", fix="leave --save-masks out, or apply the first plan")
    source = Path(name).expanduser()
    check_output(output, force=options.force, source=source if source.exists() else None)
    check_quantize(second, name, options)
    with Draft(output, key=_key(plan, name, options), resume=options.resume, force=options.force) as draft:
        pruned, quantized = draft.kept / "pruned", draft.kept / "quantized"
        if not (pruned / PLAN_FILE).is_file():
            prune(first, model, pruned, replace(options, packed=None), progress)
        with open_checkpoint(pruned) as copy:
            done = Applied(output, first.operator, read_back(first, copy), 0.0)
        found = quantize(second, pruned, quantized, replace(options, force=True), progress, Pruned(plan, name, done))
        for path in quantized.iterdir():
            path.rename(draft.folder / path.name)
        draft.commit()
    seconds = time.perf_counter() - started
    return replace(found, output=output, operator=plan.operator, seconds=seconds)


def _key(plan: Plan, name: str, options: ApplyOptions) -> str:
    """A digest of all that the output depends on."""
    draw = Draw(options.samples, options.window, options.seed, options.bos)
    inputs = {} if options.calibration is None else calibration_inputs(name, options.calibration, draw)[0]
    settings = {"plan": to_text(plan), "packed": options.packed, "dtype": options.dtype}
    with open_checkpoint(name) as checkpoint:
        return key_of_run(plan.part("prune"), checkpoint, settings, digest_of_inputs(inputs))
