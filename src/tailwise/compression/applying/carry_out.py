"""One plan of one kind carried out: from a checkpoint to a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tailwise.checkpoints.checkpoint import Checkpoint, TensorSpec
from tailwise.checkpoints.draft import Draft
from tailwise.checkpoints.formats.common import torch_dtype
from tailwise.checkpoints.open import open_checkpoint
from tailwise.checkpoints.writer import Change, OutputLayout, Shard, write_checkpoint, write_shard
from tailwise.compression.applying.apply_options import ApplyOptions
from tailwise.compression.applying.by_shard import Shards
from tailwise.compression.applying.calibration_inputs import (
    calibrated_on,
    calibration_inputs,
    check_inputs,
    image_inputs,
    looked_at,
)
from tailwise.compression.applying.card import PLAN_FILE, card
from tailwise.compression.packing.output import coded_by, packed
from tailwise.compression.packing.packing import Packing, PackingWork
from tailwise.compression.plans.combined import how_of
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.files import to_text
from tailwise.compression.plans.plan import Plan
from tailwise.compression.plans.treatment import TreatmentSettings
from tailwise.compression.shrinking.smaller import ShrinkSource, reached_in, work_of, write_smaller
from tailwise.compression.shrinking.structured import Widths
from tailwise.compression.treating.applied import Applied, Grids, masks_of, read_back, whole_model
from tailwise.compression.treating.block_work import BlockWork, LayerJob, jobs_of
from tailwise.compression.treating.journal import Journal, digest_of_inputs, key_of_run
from tailwise.compression.treating.kept_grids import grids_in
from tailwise.compression.treating.shared_scales import Reaches, matrices_in, shared_reaches
from tailwise.compression.treating.treated import Treated
from tailwise.core.errors import UsageError
from tailwise.models.walking.block_inputs import Pictures
from tailwise.models.walking.hosts import Host, load_host
from tailwise.models.walking.shapes import PRUNED_FILE
from tailwise.models.walking.walk import vision_blocks_of, walk_blocks
from tailwise.number_formats.grid import ValueGrid

if TYPE_CHECKING:
    import torch


Progress = Callable[[str, int, int], None]  # what is done, how much, how much in all: tensors written by their size


def silent(what: str, done: int, total: int) -> None:
    """Without a progress bar."""


def write_tensors(
    layout: OutputLayout, source: Checkpoint, folder: Path, change: Change, progress: Progress
) -> tuple[str, ...]:
    """All tensors of a model, changed; what is to be noted of the files."""
    nbytes = {spec.name: spec.nbytes for shard in layout.shards for spec in shard.specs}
    total, written = sum(nbytes.values()), 0

    def counted(name: str) -> torch.Tensor | None:
        nonlocal written
        changed = change(name)
        written += nbytes.get(name, 0)
        progress("writing tensors", written, total)
        return changed

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


MASKS = "masks/masks.safetensors"  # in a folder of its own: beside the weights it would be read as a part of them


@dataclass(frozen=True)
class Before:
    """What was done before: the model that is read was pruned by the same plan, and its zeros stay."""

    plan: Plan  # of both, as it is recorded
    model: str  # that both began with
    applied: Applied  # what the pruning came to


@dataclass(frozen=True)
class Run:
    """A plan, a model, and how: everything that can be wrong with them has been told."""

    plan: Plan
    name: str
    checkpoint: Checkpoint
    layout: OutputLayout
    options: ApplyOptions
    progress: Progress
    packing: Packing | None = None
    before: Before | None = None

    def data_free(self, output: Path) -> Applied:
        """Tensor by tensor, or shard by shard on an engine."""
        unused = self.options.calibration is not None
        notes = (f"{self.plan.operator} looks at no text: the calibration was not used",) if unused else ()
        done = Applied(output, self.plan.operator, (), 0.0, notes=notes)
        make = partial(Treated, keep_zeros=self.before is not None, shared=self._shared())
        treated = make(self.plan, self.checkpoint, self.options.device)
        if self.options.executor == "local":
            with Draft(output, force=self.options.force) as draft:
                return self._write(draft, treated, treated.grids, done)
        settings = {"shards": len(self.layout.shards), "zeros": self.before is not None, "kept": "shared scales"}
        shards = Shards(self.plan, self.checkpoint, self.layout, make, self.options.engine,
                        self._step("writing shards"))  # fmt: skip
        with self._draft(output, key_of_run(self.plan, self.checkpoint, settings)) as draft:
            said, resumed = shards.write(draft)
            done = replace(done, resumed=resumed, notes=(*done.notes, *said))
            return self._commit(draft, self._read_back(draft.folder, treated.grids, done))

    def calibrated(self, output: Path) -> Applied:
        """Block by block into the draft's journal, then written."""
        inputs, settings, host = self._calibration()
        pictures, seen = self._pictures()
        plan, how = (
            self.plan,
            replace(how_of(self.plan, text=True), keep_zeros=self.before is not None, shared=self._shared()),
        )
        dtypes = {d.tensor: torch_dtype(self.checkpoint.tensors[d.tensor].dtype, where=d.tensor) for d in plan}
        jobs = jobs_of(plan, host, dtypes, how, images=pictures is not None)
        walks = _walks(plan, host, jobs, (inputs, pictures))
        settings_ = {**settings, **seen, "dtype": self.options.dtype}
        if plan.quantizes:
            settings_["act_order"] = how.act_order
        inner = {**settings_, "zeros": how.keep_zeros, "kept": "whole grids, shared scales"}
        digest = digest_of_inputs(inputs or {}, *(pictures.each if pictures else ()))
        with self._draft(output, key_of_run(plan, self.checkpoint, inner, digest)) as draft:
            journal = Journal(draft.kept)
            if journal.resumed:
                self.progress(f"going on behind {journal.resumed} blocks that an earlier run finished", 1, 1)
            if {job.decision.tensor for job in jobs.values()} - journal.tensors:
                step = self._step(f"{'quantizing' if plan.quantizes else 'pruning'} blocks")
                self.progress(f"calibrating by {looked_at(inputs)}", 1, 1)
                for given in walks:
                    walk_blocks(
                        host.home, given, BlockWork(jobs, journal, how), batch=self.options.batch, progress=step
                    )
            notes = (*calibrated_on(plan.operator, inputs, settings), *host.notes, *journal.notes)
            if pictures is not None and pictures not in walks:
                notes = (*notes, "the plan leaves the tower that reads images alone: the images were not used")
            done = Applied(output, plan.operator, (), 0.0, journal.resumed, settings_, notes)
            kept = _Kept(journal, self._blind({job.decision.tensor for job in jobs.values()}, how))
            return self._write(draft, kept.read, kept.grids, done)

    def _blind(self, seen: Collection[str], how: TreatmentSettings) -> Treated:
        """The rest of the plan, whose inputs are not looked at."""
        rest = self.plan.replace(decisions=tuple(item for item in self.plan if item.tensor not in seen))
        return Treated(rest, self.checkpoint, self.options.device, keep_zeros=how.keep_zeros, shared=how.shared)

    def _shared(self) -> dict[str, Reaches]:
        """Read before anything is rounded: of a group, all must be known."""
        return shared_reaches(self.plan, matrices_in(self.checkpoint))

    def smaller(self, output: Path, *, calibrated: bool) -> Applied:
        """Take heads, neurons and blocks out, or store factors."""
        options = self.options
        if PRUNED_FILE in self.layout.folder.names():
            fix = "plan for the model that it was made from, or use an operator that leaves the shapes"
            raise UsageError("its layers were cut before, and cannot be cut again", where=self.name, fix=fix)
        inputs: Mapping[str, torch.Tensor] | None = None
        settings: dict[str, Any] = {}
        if calibrated:
            inputs, settings, host = self._calibration()
            settings["dtype"] = options.dtype
        else:
            host = load_host(self.checkpoint, self.name, device=options.device, dtype=options.dtype)
        widths = Widths(options.equal_widths, options.multiple)
        work = work_of(ShrinkSource(self.plan, host, self.checkpoint, self.layout), widths)
        inner = {**settings, "widths": [widths.equal, widths.multiple], "factored": options.factored}
        key = key_of_run(self.plan, self.checkpoint, inner, digest_of_inputs(inputs or {}))
        with self._draft(output, key) as draft:
            journal = Journal(draft.kept)
            if calibrated:
                self.progress(f"calibrating by {looked_at(inputs)}", 1, 1)
            made = work.made(inputs, journal, options.batch, self._step("pruning blocks"))
            said = write_smaller(work, made, draft.folder, self._step("writing tensors"))
            tensors = reached_in(self.plan, made, draft.folder)
            notes = (*calibrated_on(self.plan.operator, inputs, settings), *host.notes, *journal.notes, *said)
            done = Applied(output, self.plan.operator, tensors, 0.0, journal.resumed, settings, notes, smaller=True)
            return self._commit(draft, done)

    def _draft(self, output: Path, key: str) -> Draft:
        return Draft(output, key=key, resume=self.options.resume, force=self.options.force)

    def _calibration(self) -> tuple[dict[str, torch.Tensor] | None, dict[str, Any], Host]:
        options = self.options
        inputs, settings = None, dict[str, Any]()
        if options.calibration is not None:
            inputs, settings = calibration_inputs(self.name, options.calibration, options.draw)
        host = load_host(self.checkpoint, self.name, device=options.device, dtype=options.dtype)
        check_inputs(host, inputs or {}, self.name)
        return inputs, dict(settings), host

    def _pictures(self) -> tuple[Pictures | None, dict[str, Any]]:
        if self.options.images is None:
            return None, {}
        return image_inputs(self.name, self.options.images, self.options.draw)

    def _step(self, what: str) -> Callable[[int, int], None]:
        return lambda done, total: self.progress(what, done, total)

    def _write(self, draft: Draft, change: Change, grids: Grids, done: Applied) -> Applied:
        """Write all files into the draft, read them back, and put the draft in its place."""
        if self.packing is None:
            notes = write_tensors(self.layout, self.checkpoint, draft.folder, change, self.progress)
            return self._commit(draft, self._read_back(draft.folder, grids, replace(done, notes=(*done.notes, *notes))))
        coded = coded_by(self.plan, self.checkpoint, change, grids)
        work = PackingWork(self.plan, self.checkpoint, self.layout, coded, self.progress)
        return self._commit(draft, packed(self.packing, work, draft.folder, done))

    def _read_back(self, folder: Path, grids: Grids, done: Applied) -> Applied:
        with open_written(self.layout, folder) as copy:
            tensors = read_back(self.plan, self.checkpoint, copy, grids, self.progress)
            if self.options.save_masks:
                _save_masks(self.plan, copy, folder)
        return replace(done, tensors=tensors)

    def _commit(self, draft: Draft, done: Applied) -> Applied:
        plan, source = self.plan, self.name
        if self.before is not None:
            plan, source, done = self.before.plan, self.before.model, replace(done, pruned=self.before.applied)
        if done.in_bits:
            done = replace(done, whole=whole_model(self.checkpoint, done.tensors))
        put_in_place(draft, plan, card(plan, done, source))
        return done


@dataclass(frozen=True)
class _Kept:
    """Tensors and scales of a journal, and of what no walk reached."""

    journal: Journal
    rest: Treated

    def read(self, name: str) -> torch.Tensor | None:
        """The new tensor; None where the plan leaves it alone."""
        found = self.journal.read(name)
        return self.rest(name) if found is None else found

    def grids(self, decision: Decision, matrices: torch.Tensor) -> list[ValueGrid] | None:
        """See `Grids`."""
        walked = decision.tensor in self.journal.tensors
        return grids_in(self.journal, decision) if walked else self.rest.grids(decision, matrices)


def _walks(
    plan: Plan,
    host: Host,
    jobs: Mapping[str, LayerJob],
    given: tuple[Mapping[str, torch.Tensor] | None, Pictures | None],
) -> list[Mapping[str, torch.Tensor] | Pictures]:
    """What goes through the model, tower by tower, where something is to be done in it."""
    text, pictures = given
    seeing = {name for block in vision_blocks_of(host.model) for name in block.layers()}
    walks: list[Mapping[str, torch.Tensor] | Pictures] = []
    if pictures is not None and seeing & jobs.keys():
        walks.append(pictures)
    if jobs.keys() - seeing:
        if text is None:
            raise UsageError(
                f"{plan.operator} looks at inputs, and there is no calibration text beside the images",
                fix="give --calibration TEXT",
            )
        walks.append(text)
    return walks


def _save_masks(plan: Plan, written: Checkpoint, folder: Path) -> None:
    """One boolean tensor for each that holds zeros: True where an entry was kept."""
    specs = tuple(
        TensorSpec(name, "BOOL", written.tensors[name].shape, written.tensors[name].numel) for name in masks_of(plan)
    )

    def kept(name: str) -> Iterable[torch.Tensor]:
        return (written.read(name) != 0,)

    path = folder / MASKS
    path.parent.mkdir()
    write_shard(path, Shard(path.name, specs), kept)
