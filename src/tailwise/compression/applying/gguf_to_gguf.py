"""A plan to quantize, of a GGUF file, to a GGUF file: what the plan leaves alone stays byte for byte."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.checkpoints.draft import Draft, check_output, check_space
from tailwise.checkpoints.formats.gguf import GgufCheckpoint
from tailwise.checkpoints.open import open_checkpoint
from tailwise.compression.applying.apply_options import ApplyOptions
from tailwise.compression.applying.calibration_inputs import calibration_inputs, check_inputs
from tailwise.compression.applying.card import card
from tailwise.compression.applying.fingerprint import check_own
from tailwise.compression.applying.plan_fit import is_calibrated
from tailwise.compression.applying.written import Progress, put_in_place
from tailwise.compression.operators.registered import OPERATORS
from tailwise.compression.packing.gguf_copy import GgufCopy, Importances, write_imatrix
from tailwise.compression.packing.gguf_packing import FILE, TYPES, file_type, to_bytes
from tailwise.compression.packing.tensor_parts import Coded
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.how import how_of
from tailwise.compression.plans.phrasing import listed
from tailwise.compression.plans.plan import Plan
from tailwise.compression.plans.treatment import REPORT
from tailwise.compression.treating.applied import Applied, Reached, relative_error
from tailwise.compression.treating.block_work import BlockWork, Nowhere, jobs_of
from tailwise.core.errors import UnreadableError, UsageError
from tailwise.models.activations import Activations
from tailwise.models.evaluation.gguf_files import gguf_places
from tailwise.models.evaluation.loading import load_model
from tailwise.models.walking.hosts import Host, layer_of
from tailwise.models.walking.statistics import reaching
from tailwise.models.walking.walk import Block, blocks_of, home_of, walk_blocks
from tailwise.number_formats.casts import PlainCast
from tailwise.number_formats.number_format import NumberFormat

if TYPE_CHECKING:
    import torch

IMATRIX = "imatrix.gguf"
LOADS = f"`{FILE}` is what llama.cpp runs."
_PLAIN = ("F64", "F32", "F16", "BF16")


def is_for_gguf(plan: Plan, options: ApplyOptions) -> bool:
    """Whether a GGUF file is to become another: where it is said, or where the formats are llama.cpp's own."""
    if not plan.quantizes or plan.is_both or OPERATORS[plan.operator].needs == "hessian":
        return False
    if options.packed is not None:
        return options.packed == "gguf"
    formats = [decision.number_format for decision in plan]
    known = all(item.name in TYPES for item in formats)
    return known and any(not isinstance(item, PlainCast) for item in formats)


def apply_to_gguf(plan: Plan, file: Path, output: Path, options: ApplyOptions, progress: Progress) -> Applied:
    """Write the file anew, with an importance matrix where the operator looks at inputs, and read it back.

    `UsageError` before any work where the plan does not fit the file, or a format is no type of llama.cpp.
    """
    started = time.perf_counter()
    check_output(output, force=options.force, source=file)
    looks = is_calibrated(plan, options)
    with open_checkpoint(file) as stored:
        assert isinstance(stored, GgufCheckpoint)  # noqa: S101 - of its suffix
        _check(plan, stored)
        check_own(plan, stored, force=options.force)
        check_space(output, sum(spec.nbytes for spec in stored.tensors.values()) + (1 << 20))
        seen = _seen(plan, stored, file, options, progress) if looks else _Seen()
        run = _Rewriting(plan, stored, seen)
        with Draft(output, force=options.force) as draft:
            before = sum(part.size for part in stored.files)
            done = run.write(draft.folder, progress)
            after = (draft.folder / FILE).stat().st_size
            unused = options.calibration is not None and not looks
            said = (f"{plan.operator} looks at no text: the calibration was not used",) if unused else ()
            done = replace(done, output=output, sizes=(before, after), settings=seen.settings,
                           notes=(*said, *_notes(plan, stored, seen, looks=looks)))  # fmt: skip
            done = replace(done, seconds=time.perf_counter() - started)
            put_in_place(draft, plan, card(plan, done, str(file)))
    return done


def _check(plan: Plan, stored: GgufCheckpoint) -> None:
    wrong = list(plan.misfits({name: spec.numel for name, spec in stored.tensors.items()}))
    for decision in plan:
        spec = stored.tensors.get(decision.tensor)
        chosen = decision.number_format
        if spec is None:
            continue
        if len(spec.shape) < 2:
            wrong.append(f"{spec.name} has {len(spec.shape)} axes; a matrix needs two")
        elif chosen.name not in TYPES:
            wrong.append(f"{spec.name}: llama.cpp has no type for {chosen.name}")
        elif (group := chosen.fitting(spec.shape[-1]).group_size) is not None and spec.shape[-1] % group:
            wrong.append(f"{spec.name} has {spec.shape[-1]} inputs, which blocks of {group} ({chosen.name}) do not divide")
        elif spec.name in stored.unsupported:
            wrong.append(f"{spec.name}: {stored.unsupported[spec.name]}")
    if wrong:
        more = f"\n  … and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        what = "the plan does not fit the file:\n  " + "\n  ".join(wrong[:5]) + more
        raise UsageError(what, where=stored.uri, fix=f"plan for this file, with {', '.join(TYPES)}")


@dataclass(frozen=True)
class _Seen:
    """What the layers saw, by GGUF's names."""

    inputs: Mapping[str, Activations] = field(default_factory=dict)
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
    """Rounds block by block, as trials do, and remembers what each layer saw on the way."""

    found: dict[str, Activations] = field(default_factory=dict)

    @override
    def visit(self, block: Block, found: Mapping[str, Activations]) -> None:
        self.found |= {self.jobs[name].decision.tensor: one for name, one in found.items() if name in self.jobs}
        super().visit(block, found)


def _seen(plan: Plan, stored: Checkpoint, file: Path, options: ApplyOptions, progress: Progress) -> _Seen:
    """One walk through the model that transformers makes of the file."""
    import torch

    inputs, settings = calibration_inputs(str(file), options.calibration, options.draw)
    loaded = load_model(str(file), dtype=options.dtype, device=options.device)
    host = Host(home_of(loaded.module), {own: place for own, place in gguf_places(loaded.module, stored).items()})
    check_inputs(host, inputs, str(file))
    how = how_of(plan, text=True)
    reached = plan.replace(decisions=tuple(_in_blocks(plan, host)))
    jobs = jobs_of(reached, host, {item.tensor: torch.float32 for item in reached}, how)
    work = _Looking(jobs, Nowhere(), how)
    walk_blocks(host.home, inputs, work, batch=options.batch,
                progress=lambda done, total: progress("quantizing blocks", done, total))  # fmt: skip
    first = next(iter(inputs.values()))
    return _Seen(work.found, len(first), first.shape[1], {**settings, "dtype": options.dtype}, loaded.notes)


def _in_blocks(plan: Plan, host: Host) -> Iterator[Decision]:
    layers = {name for block in blocks_of(host.model) for name in block.layers()}
    for decision in plan:
        if layer_of(host.places, decision.tensor, layers) is not None:
            yield decision


@dataclass
class _Rewriting:
    """Each planned tensor rounded from its own stored values: its rows are in llama.cpp's order, its columns are the
    model's.
    """

    plan: Plan
    stored: GgufCheckpoint
    seen: _Seen
    _made: dict[str, tuple[float, str]] = field(default_factory=dict)  # tensor → relative error, digest of its values

    def __post_init__(self) -> None:
        self._decisions = {decision.tensor: decision for decision in self.plan}
        self._how = how_of(self.plan, text=True)

    def write(self, folder: Path, progress: Progress) -> Applied:
        """The file, its importance matrix where there is one, and what is read back."""
        found = self.seen.importances()
        said: dict[str, str | int] = {}
        if found:
            dataset = str(self.seen.settings.get("calibration", "calibration"))
            write_imatrix(folder / IMATRIX, found, (self.seen.windows, self.seen.window), dataset)
            said = {
                "quantize.imatrix.file": IMATRIX,
                "quantize.imatrix.dataset": dataset,
                "quantize.imatrix.entries_count": len(found),
                "quantize.imatrix.chunks_count": self.seen.windows,
            }
        kinds = {decision.tensor: TYPES[self._fitted(decision).name] for decision in self.plan}
        copy = GgufCopy(self.stored, kinds, self._blocks, file_type(self.plan), said)
        copy.write(folder / FILE, lambda done, total: progress("writing tensors", done, total))
        with open_checkpoint(folder / FILE) as written:
            tensors = tuple(self._reached(decision, written) for decision in self.plan)
        return Applied(folder, self.plan.operator, tensors, 0.0, packed="gguf", loads=LOADS)

    def _fitted(self, decision: Decision) -> NumberFormat:
        return decision.number_format.fitting(self.stored.tensors[decision.tensor].shape[-1])

    def _blocks(self, name: str) -> torch.Tensor:
        import torch

        decision, stored = self._decisions[name], self.stored.read(name).float()
        seen, kind = self.seen.inputs.get(name), TYPES[self._fitted(decision).name]
        values, blocks = [], []
        for group, W in enumerate(stored.reshape(-1, *stored.shape[-2:])):
            found = decision.treatment.do(W, self._how, reaching(seen, group))
            values.append(found.weight.float())
            blocks.append(to_bytes(found.weight, kind, Coded(decision, found.weight, found.grid)))
        whole = torch.cat(values).reshape(stored.shape)
        self._made[name] = relative_error(stored, whole), _digest(whole)
        return torch.cat(blocks)

    def _reached(self, decision: Decision, written: Checkpoint) -> Reached:
        """`UnreadableError` where the file decodes to other values than were chosen, or takes other bytes."""
        spec, (error, digest) = written.tensors[decision.tensor], self._made[decision.tensor]
        planned = decision.number_format.bits_per_weight(spec.numel // spec.shape[-1], spec.shape[-1])
        reached = 8 * spec.nbytes / spec.numel
        if _digest(written.read(decision.tensor).float()) != digest:
            raise UnreadableError("decodes to other values than the operator chose", where=spec.name, fix=REPORT)
        if abs(reached - planned) * spec.numel >= 8:
            raise UnreadableError(f"takes {spec.nbytes} bytes; the plan counts others", where=spec.name, fix=REPORT)
        name = self._fitted(decision).name
        return Reached(spec.name, spec.numel, planned, reached, name, relative_error=error)


def _digest(values: torch.Tensor) -> str:
    """Of the numbers: zeros have no sign here."""
    return hashlib.sha256((values + 0.0).contiguous().numpy()).hexdigest()


def _notes(plan: Plan, stored: GgufCheckpoint, seen: _Seen, *, looks: bool) -> Iterator[str]:
    yield from seen.notes
    coded = sorted({
        spec.dtype.removeprefix("GGUF_") for decision in plan
        if (spec := stored.tensors[decision.tensor]).dtype not in _PLAIN
    })  # fmt: skip
    if coded:
        yield (
            f"its weights were rounded before ({', '.join(coded)}), and are rounded a second time: the model in its "
            "original precision gives better ones"
        )
    blind = [decision.tensor for decision in plan if decision.tensor not in seen.inputs]
    if looks and blind:
        yield f"rounded without importances, since their inputs are not seen: {listed(blind)}"
