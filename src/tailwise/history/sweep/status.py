"""How far a sweep is, and what it has cost: for the dashboard, and as JSON for whoever else looks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tailwise.history.sweep.catalogue import Catalogue

#: Dollars per core and hour where nobody gives a price: about what clouds ask for one core of a machine on demand.
PRICE = 0.05
#: Failures that are listed; the table of models has all.
_LISTED = 50


@dataclass(frozen=True)
class ModelUnderway:
    """A model that a worker has claimed."""

    model: str
    owner: str
    attempt: int
    lease_left: float  # seconds; below zero, the next free worker takes it


@dataclass(frozen=True)
class Trouble:
    """A model that failed, or of which matrices could not be read."""

    model: str
    status: str
    reason: str
    remedy: str


@dataclass(frozen=True)
class SweepStatus:
    """A sweep at one moment."""

    sweep: str
    folder: str
    waiting: int
    claimed: int
    done: int
    failed: int
    matrices: int  # measured
    reused: int  # of those, spectra that were known, from other models or an earlier run
    bytes_read: int
    core_hours: float  # of the models that are done
    dollars: float
    seconds_left: float | None  # at the mean of the models done, with the workers of now; None: nobody knows
    dollars_left: float | None
    running: tuple[ModelUnderway, ...]
    troubles: tuple[Trouble, ...]

    @property
    def total(self) -> int:
        """Models."""
        return self.waiting + self.claimed + self.done + self.failed

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"total": self.total, **asdict(self)}


def status_of(catalogue: Catalogue, sweep: str, *, price: float = PRICE) -> SweepStatus:
    """Look at a sweep, its workers' machines being `price` dollars per core and hour."""
    counts, totals, now = catalogue.counts(sweep), catalogue.totals(sweep), catalogue.now()
    running = [
        ModelUnderway(entry.model, entry.owner, entry.attempts, entry.until - now)
        for entry in catalogue.entries(sweep, status="claimed")
    ]
    hours = totals["core_seconds"] / 3600
    left = counts["waiting"] + counts["claimed"]
    each = hours / counts["done"] if counts["done"] else None
    live = sum(one.lease_left > 0 for one in running)
    pace = totals["seconds"] / counts["done"] if counts["done"] else None
    return SweepStatus(
        sweep=sweep,
        folder=catalogue.output(sweep),
        **counts,
        matrices=round(totals["matrices"]),
        reused=round(totals["reused"]),
        bytes_read=round(totals["bytes_read"]),
        core_hours=hours,
        dollars=hours * price,
        seconds_left=None if pace is None else pace * left / max(live, 1),
        dollars_left=None if each is None else each * left * price,
        running=tuple(running),
        troubles=tuple(
            Trouble(entry.model, entry.status, entry.reason, entry.remedy)
            for entry in islice(catalogue.troubles(sweep), _LISTED)
        ),
    )
