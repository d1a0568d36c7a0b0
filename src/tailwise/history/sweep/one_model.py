"""One model of a sweep: audited, written and reported to the catalogue. Nothing that is wrong with it is raised."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from tailwise.audits.audit import Audit
from tailwise.audits.run import Progress, audit
from tailwise.core.errors import TailwiseError, UnreachableError, UnreadableError, lacks_memory
from tailwise.history.sweep.results import write_audit
from tailwise.judging.compare.ranking import ModelNumbers, numbers_of

if TYPE_CHECKING:
    from tailwise.audits.audit import Audit
    from tailwise.core.recipe import Recipe
    from tailwise.history.sweep.catalogue import Catalogue, ClaimedModel


_log = logging.getLogger(__name__)


class Lease:
    """Extends a claim's lease from a thread of its own while the block runs."""

    def __init__(self, catalogue: Catalogue, claim: ClaimedModel, seconds: float) -> None:
        self._catalogue, self._claim, self._seconds = catalogue, claim, seconds
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tailwise-lease", daemon=True)
        self.lost = False

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(self._seconds / 3):
            try:
                held = self._catalogue.extend(self._claim, self._seconds)
            except TailwiseError as error:
                _log.warning("the lease of %s could not be extended: %s", self._claim.model, error)
                continue
            if not held:
                _log.warning("the lease of %s ran out, and another worker has it", self._claim.model)
                self.lost = True
                return


#: Seconds until a store that did not answer is asked again; doubled with every attempt.
AGAIN_IN = 30.0
RETRY = "tailwise sweep --retry audits it again, and solves only what is not known"


@dataclass(frozen=True)
class ModelOutcome:
    """What became of a model."""

    model: str
    became: Literal["done", "failed", "waiting", "lost"]  # waiting: to be tried again; lost: another worker has it
    reason: str = ""
    remedy: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SweepWork:
    """What every model of a sweep has in common."""

    catalogue: Catalogue
    folder: str | Path
    recipe: Recipe  # with the options that its metrics need
    settings: Mapping[str, Any]  # of `audit()`
    lease: float  # seconds
    progress: Progress | None = None

    def take(self, claim: ClaimedModel) -> ModelOutcome:
        """Audit the model of a claim. Only an interruption is raised, after the claim was given back."""
        started, busy = time.perf_counter(), time.process_time()
        try:
            with Lease(self.catalogue, claim, self.lease) as lease:
                made = audit(claim.model, progress=self.progress, **self.settings)
                if not len(made) and not unread(made) and not not_finite(made):
                    raise _nothing(made)
                if lease.lost:
                    return ModelOutcome(claim.model, "lost")
                # Written again by a worker that comes after, these are the same files with the same numbers.
                file = write_audit(made, claim.model, self.folder, self.recipe)
        except (KeyboardInterrupt, SystemExit):
            self.catalogue.release(claim)
            raise
        except Exception as error:
            return self._failed(claim, error)
        here = self.settings.get("executor", "local") == "local" and str(self.settings.get("device", "cpu")) == "cpu"
        cores = time.process_time() - busy if here else None
        measured, bad = facts_of(made, file, time.perf_counter() - started, cores), unread(made)
        reason, remedy = "; ".join(filter(None, (bad, not_finite(made)))), RETRY if bad else ""
        held = self.catalogue.finish(claim, measured, reason=reason, remedy=remedy)
        return ModelOutcome(claim.model, "done" if held else "lost", reason, remedy, measured)

    def _failed(self, claim: ClaimedModel, error: Exception) -> ModelOutcome:
        reason, remedy = explained(error)
        again_in = AGAIN_IN * 2 ** (claim.attempt - 1) if isinstance(error, UnreachableError) else None
        became = self.catalogue.fail(claim, reason, remedy, again_in=again_in)
        if became not in ("waiting", "failed"):
            return ModelOutcome(claim.model, "lost")
        return ModelOutcome(claim.model, became, reason, remedy)


def _nothing(made: Audit) -> UnreadableError:
    """The error for a model that has no matrix to measure, with why."""
    why = [f"{row.name}: {row.status}" for row in made.unmeasured[:3]]
    return UnreadableError(
        f"no weight matrix could be measured ({'; '.join(why) or 'it has none'})",
        fix="look at it with tailwise audit, which lists every tensor with its status",
    )


def _in_one_line(text: str) -> str:
    """Lists and tables have a line for each model."""
    return " ".join(line.strip() for line in text.splitlines())


def explained(error: Exception) -> tuple[str, str]:
    """What happened, and what to do."""
    if isinstance(error, TailwiseError):
        return _in_one_line(error.what), _in_one_line(error.fix or "")
    if lacks_memory(error):
        return "out of memory", "use fewer --workers, or a machine with more memory, then tailwise sweep --retry"
    message = _in_one_line(f"{type(error).__name__}: {error}")[:500]
    return message, "audit it alone with tailwise audit; if it is a bug, report it"


#: Statuses of matrices that another attempt may measure.
UNREAD = ("UNREADABLE", "FAILED")


def facts_of(audit: Audit, audit_file: str, seconds: float, core_seconds: float | None = None) -> dict[str, Any]:
    """Plain JSON types. `flops` counts what was solved here, not what was known.

    `core_seconds` are of the processor; where nobody counted them, every worker is taken to have been busy.
    """
    numbers = numbers_of(audit)
    measured = [layer.row for layer in audit]
    solved = [row for row in measured if not row.reused]
    return {
        "audit": audit_file,
        "revision": audit.provenance.revision,
        "fingerprint": audit.provenance.fingerprint,
        "model_type": numbers.model_type,
        "values": dict(numbers.values),
        "matrices": len(measured),
        "reused": len(measured) - len(solved),
        "unmeasured": dict(Counter(row.status for row in audit.unmeasured)),
        "bytes": sum(row.nbytes for row in measured),
        "bytes_read": audit.provenance.bytes_read,
        "flops": sum(flops(row.rows, row.cols, row.slices) for row in solved),
        "workers": audit.provenance.workers,
        "seconds": seconds,
        "core_seconds": seconds * audit.provenance.workers if core_seconds is None else core_seconds,
    }


def flops(rows: int, cols: int, slices: int) -> float:
    """As `MatrixSource.flops`, from the row of an audit."""
    n, m = max(rows, cols), min(rows, cols)
    return slices * (float(n) * m**2 + 4 / 3 * float(m) ** 3)


def not_finite(audit: Audit) -> str:
    """What is broken in the model itself; empty where nothing is."""
    bad = [row for row in audit.unmeasured if row.status == "NOT_FINITE"]
    what = "1 matrix has" if len(bad) == 1 else f"{len(bad)} matrices have"
    return f"{what} NaN or infinite entries, the first: {bad[0].name}" if bad else ""


def unread(audit: Audit) -> str:
    """What could not be read of a model that was audited otherwise; empty where all was."""
    bad = [row for row in audit.unmeasured if row.status in UNREAD]
    return "" if not bad else f"{len(bad)} matrices could not be read, the first: {bad[0].name}: {bad[0].reason}"


def numbers_from(model: str, measured: Mapping[str, Any], recipe: Mapping[str, Any]) -> ModelNumbers:
    """The numbers that a ranking takes."""
    return ModelNumbers(model, measured["values"], recipe, measured["model_type"])
