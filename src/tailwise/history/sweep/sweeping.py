"""`sweep()`: many models by any number of workers, one bad model never stopping the others."""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tailwise.audits.prepare import Selection
from tailwise.audits.prepare import checked as checked_recipe
from tailwise.audits.run import Progress, split_settings
from tailwise.core.errors import UsageError
from tailwise.core.execution.executor import check_executor, checked_device, is_near
from tailwise.core.recipe import Recipe
from tailwise.core.storage import is_url
from tailwise.core.validation import check_fields, checked
from tailwise.history.sweep.catalogue import Catalogue, ClaimedModel
from tailwise.history.sweep.one_model import ModelOutcome, SweepWork
from tailwise.history.sweep.results import write_models

#: Seconds after which the model of a worker that gave no sign is another's.
LEASE = 120.0
#: Between two looks for work, where others still hold what is left.
_LOOK_EVERY = 2.0


@dataclass(frozen=True)
class Sweep:
    """A sweep by its name in a catalogue, and where its results go."""

    name: str
    folder: str  # a path or a URL
    catalogue: str  # a path, or postgresql://…
    lease: float = LEASE
    layers: str | None = None
    roles: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        if self.lease <= 0:
            raise UsageError(f"the lease is {self.lease} s", fix="give some seconds, e.g. 120")

    @classmethod
    def at(cls, name: str, folder: str, catalogue: str | None = None, **more: Any) -> Sweep:
        """With its catalogue in the folder, unless another is given."""
        plain = folder.rstrip("/") if is_url(folder) else str(Path(folder).expanduser().resolve())
        if catalogue is None and is_url(folder):
            fix = "give --catalogue, a file here or postgresql://user@host/database"
            raise UsageError("a catalogue cannot lie in an object store", where=folder, fix=fix)
        return cls(name, plain, catalogue or str(Path(plain) / "catalogue.db"), **more)


@dataclass(frozen=True)
class SweepListener:
    """What is told while a sweep runs; both are called from the calling thread."""

    begun: Callable[[ClaimedModel], Progress | None] | None = None  # gives whoever is told of the audit's steps
    ended: Callable[[ModelOutcome], None] | None = None


@checked
def sweep(models: Sequence[str], to: Sweep, *, watch: SweepListener | None = None, **settings: Any) -> dict[str, int]:
    """Audit `models` and write the results, beside any other worker of the same sweep; models by status.

    `settings` are those of `audit()`. What an earlier run has done is not done again. Returns when every model is
    done or failed. Raises `UsageError` for wrong settings, and where the sweep was begun with others.
    """
    recipe, options = split_settings(settings)  # type: ignore[arg-type]
    recipe = checked_recipe(recipe)
    check_executor(options.executor)
    if is_near(options.executor):  # another engine's workers have devices of their own
        checked_device(options.device)
    Selection(to.layers, to.roles)
    taken = {**settings, "layers": to.layers, "roles": to.roles}
    with Catalogue(to.catalogue) as catalogue:
        catalogue.enroll(to.name, to.folder, question(recipe, to), models)
        work = SweepWork(catalogue, to.folder, recipe, taken, to.lease)
        _until_none_is_left(work, to, watch or SweepListener())
        write_models(catalogue.entries(to.name), to.folder, recipe)
        return catalogue.counts(to.name)


def question(recipe: Recipe, to: Sweep) -> dict[str, Any]:
    """What is asked of every model: all that changes a number."""
    return {**recipe.to_json(), "layers": to.layers, "roles": list(to.roles)}


def _until_none_is_left(work: SweepWork, to: Sweep, watch: SweepListener) -> None:
    owner, quiet = worker_name(), threading.Event()
    while True:
        claim = work.catalogue.claim(to.name, owner, to.lease)
        if claim is None:
            counts = work.catalogue.counts(to.name)
            if counts["waiting"] + counts["claimed"] == 0:
                return
            # Another may die before it has finished.
            quiet.wait(min(_LOOK_EVERY, to.lease / 4))
            continue
        progress = watch.begun(claim) if watch.begun else None
        outcome = replace(work, progress=progress).take(claim)
        if watch.ended:
            watch.ended(outcome)


def worker_name() -> str:
    """Host, process and a few letters: no two workers have the same."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
