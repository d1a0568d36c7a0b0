"""Where the audits of a run go: into a store, as files into a folder, or both."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tailwise.audits.run import Progress, RecipeSettings, audit
from tailwise.core.errors import TailwiseError, UnreachableError, UnreadableError, UsageError
from tailwise.history.runs.found import FoundCheckpoint, hub_address

if TYPE_CHECKING:
    from tailwise.audits.audit import Audit
    from tailwise.audits.rows import LayerRow, Provenance
    from tailwise.history.store import History


@dataclass(frozen=True)
class CheckpointOutcome:
    """What became of a checkpoint."""

    found: FoundCheckpoint
    audit: Audit | None = None
    path: Path | None = None  # of the file that was written
    trouble: str = ""  # why there is no audit, or why it could not be kept
    known: bool = False  # it had been audited before


class Sink:
    """Audits checkpoints and keeps what comes out. What it has is not audited again."""

    def __init__(
        self,
        run: str,
        history: History | None,
        folder: Path | None,
        settings: RecipeSettings | None = None,
        progress: Progress | None = None,
    ) -> None:
        if history is None and folder is None:
            raise UsageError("the audits have nowhere to go", fix="give --store, or -o with a folder")
        self.run, self._history, self._folder = run, history, folder
        self._settings, self._progress = settings or {}, progress
        self._made = 0
        self._compared = False  # whether what is known is of this run

    def path(self, step: int) -> Path | None:
        """The file of a step's audit: `step-000100.audit`."""
        return None if self._folder is None else self._folder / f"step-{step:06d}.audit"

    def has(self) -> set[int]:
        """Steps whose audits are everywhere they should be."""
        in_folder = self._in_folder() if self._folder is not None else None
        if self._history is None:
            return in_folder or set()
        stored = self._in_store()
        return stored if in_folder is None else stored & in_folder

    def known(self, checkpoints: Sequence[FoundCheckpoint]) -> set[int]:
        """Those steps of `found` that it has. Raises `UsageError` where they are those of another run.

        Runs are named after their folders, and many are called `checkpoints`. Of the last step that is here and in the
        store, and in the folder of audits, the smallest matrix is compared by content, once.
        """
        there = self.has()
        if not self._compared:
            for steps, saved in ((self._in_store(), self._stored), (self._in_folder(), self._saved)):
                both = [one for one in checkpoints if one.step in steps]
                if both:
                    self._compared = True
                    with suppress(UnreadableError):  # a damaged file says nothing of other runs
                        self._compare(max(both), *saved(max(both).step))
        return {one.step for one in checkpoints if one.step in there}

    def _compare(self, checkpoint: FoundCheckpoint, rows: Sequence[LayerRow], provenance: Provenance) -> None:
        rows = [row for row in rows if row.digest]
        if not rows:
            return
        row = min(rows, key=lambda row: row.rows * row.cols * row.slices)
        recipe = {key: provenance.recipe[key] for key in ("conv", "min_evals") if key in provenance.recipe}
        try:
            now = audit(checkpoint.uri, layers=f"^{re.escape(row.name)}$", metrics=("log_norm",), **recipe)
        except UsageError:
            digest = ""  # it has no such matrix
        except TailwiseError:
            return  # it cannot be read just now
        else:
            digest = now.rows[0].digest
        if digest != row.digest:
            raise UsageError(
                f"step {checkpoint.step} is another one than {provenance.model}, "
                f"which the audits of the run {self.run!r} are of",
                where=checkpoint.uri,
                fix="give --run with a name of its own (and -o with a folder of its own), or remove the older audits",
            )

    def _stored(self, step: int) -> tuple[Sequence[LayerRow], Provenance]:
        """The rows of a step, from the store."""
        assert self._history is not None  # noqa: S101 - it has the step
        provenance = next(item.provenance for item in self._history.audits(self.run) if item.step == step)
        return self._history.audit_rows(self.run, step), provenance

    def _saved(self, step: int) -> tuple[Sequence[LayerRow], Provenance]:
        """The same from the file."""
        from tailwise.audits.audit import Audit

        saved = Audit.load(str(self.path(step)))
        return saved.rows, saved.provenance

    def _in_store(self) -> set[int]:
        if self._history is None or all(run.name != self.run for run in self._history.runs()):
            return set()
        return {item.step for item in self._history.audits(self.run)}

    def _in_folder(self) -> set[int]:
        names = (path.name for path in self._folder.glob("step-*.audit")) if self._folder else ()
        return {int(match[1]) for name in names if (match := re.fullmatch(r"step-(\d+)\.audit", name))}

    def take(self, checkpoint: FoundCheckpoint) -> CheckpointOutcome:
        """Audit a checkpoint and keep the audit. What goes wrong is said in the outcome, not raised."""
        try:
            made = audit(checkpoint.uri, progress=self._progress, **self._settings)
        except TailwiseError as error:
            if isinstance(error, UsageError) and not self._made:
                raise  # wrong settings, most likely: the others would fail in the same way
            return CheckpointOutcome(checkpoint, trouble=str(error))
        self._made += 1
        path = self.path(checkpoint.step)
        try:
            if path is not None:
                made.save(path)
            if self._history is not None:
                self._history.add_audit(made, self.run, checkpoint.step, path=path)
        except UnreachableError as error:
            return CheckpointOutcome(checkpoint, made, path, trouble=f"the audit could not be kept: {error}")
        return CheckpointOutcome(checkpoint, made, path)


def audit_all(
    checkpoints: Sequence[FoundCheckpoint], sink: Sink, *, again: bool = False
) -> Iterator[CheckpointOutcome]:
    """Audit checkpoints one after the other, in their order, without those whose audits are there already."""
    known = set() if again else sink.known(checkpoints)
    for one in checkpoints:
        yield CheckpointOutcome(one, known=True) if one.step in known else sink.take(one)


def run_name(where: str) -> str:
    """What a run is called where nobody says: the name of its folder, or of its model on the Hub."""
    address = hub_address(where)
    if address is not None:
        return address.repo
    plain = where.rstrip("/").rsplit("/", 1)[-1]
    return plain if "://" in where else Path(where).expanduser().resolve().name or "run"
