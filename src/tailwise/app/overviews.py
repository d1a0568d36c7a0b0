"""A line per audit for the list of models, kept on disk so that a thousand audits are not read at every start."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import threading
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tailwise import __version__
from tailwise.app.workspace.entry import WorkspaceEntry
from tailwise.app.workspace.workspace import Workspace
from tailwise.audits.audit import Audit
from tailwise.audits.trusted import value_of
from tailwise.core.atomic import write_whole
from tailwise.core.errors import MALFORMED, TailwiseError
from tailwise.core.storage import json_of
from tailwise.judging.compare.summary import model_numbers

_FORMAT = 4
_SKETCH = 64  # hashes that two audits are compared by
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Overview:
    """One audit at a glance."""

    id: str
    title: str
    changed: float
    model: str = ""
    layers: int = 0
    parameters: int = 0
    alpha: float | None = None
    share_2_4: float | None = None  # of the layers with alpha there
    alpha_2_6: float | None = None  # mean over the layers with alpha there
    errors: int = 0
    warnings: int = 0
    notes: int = 0
    worst: str | None = None
    estimator: str = ""
    started: str = ""
    health: str = ""  # healthy, needs a look, unhealthy, no verdict
    why: str = ""
    fingerprint: str = ""  # of the content of all matrices
    sketch: tuple[str, ...] = ()  # of names and shapes: the smallest of their hashes
    norms: tuple[float | None, ...] = ()  # log10 ‖W‖² of the same matrices
    trouble: str = ""  # why it could not be read

    @property
    def verdict(self) -> str:
        """In words."""
        if self.trouble:
            return "not readable"
        if self.health:
            return self.health
        counts = ((self.errors, "error"), (self.warnings, "warning"), (self.notes, "note"))
        counted = [f"{count} {word}{'s' if count > 1 else ''}" for count, word in counts if count]
        return ", ".join(counted) or "nothing found"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "verdict": self.verdict}


class Overviews:
    """Overviews of a workspace's audits."""

    def __init__(self, workspace: Workspace, folder: Path) -> None:
        self._workspace, self._folder = workspace, folder / "overviews"
        self._known: dict[str, Overview] = {}
        self._lock = threading.Lock()

    def ready(self, entry: WorkspaceEntry) -> Overview | None:
        """The overview, if it needs no reading of the audit."""
        key = _key(entry)
        with self._lock:
            if key in self._known:
                return self._known[key]
        try:
            document = json_of((self._folder / f"{key}.json").read_text(encoding="utf-8"))
            lists = {name: tuple(document[name]) for name in ("sketch", "norms")}
            overview = Overview(**{**document, "id": entry.id, "title": entry.title, **lists})
        except (*MALFORMED, OSError):
            return None
        return self._remember(key, overview)

    def of(self, entry: WorkspaceEntry) -> Overview:
        """The overview; an audit that cannot be read has one that says why."""
        overview = self.ready(entry)
        if overview is not None:
            return overview
        try:
            made = self._make(entry)
        except TailwiseError as error:
            return Overview(entry.id, entry.title, entry.changed, trouble=error.what)
        except Exception as error:  # whatever one file holds, the list shows the others
            _log.warning("%s cannot be judged", entry.path, exc_info=True)
            return Overview(entry.id, entry.title, entry.changed, trouble=f"cannot be judged: {type(error).__name__}")
        with contextlib.suppress(TailwiseError):  # a full disk costs the next start some time, and nothing else
            write_whole(self._folder / f"{_key(entry)}.json", json.dumps(asdict(made), allow_nan=False).encode())
        return self._remember(_key(entry), made)

    def _remember(self, key: str, overview: Overview) -> Overview:
        with self._lock:
            self._known[key] = overview
        return overview

    def _make(self, entry: WorkspaceEntry) -> Overview:
        audit, diagnosis = self._workspace.audit(entry.id), self._workspace.diagnosis(entry.id)
        numbers = model_numbers(audit)
        counts = Counter(finding.severity for finding in diagnosis.findings)
        sketch = _sketch(audit)
        return Overview(
            entry.id,
            entry.title,
            entry.changed,
            model=audit.model,
            layers=len(audit),
            parameters=sum(layer.row.n_params for layer in audit),
            alpha=numbers["mean_alpha"],
            share_2_4=numbers["share_2_4"],
            alpha_2_6=numbers["mean_alpha_2_6"],
            errors=counts["error"],
            warnings=counts["warning"],
            notes=counts["info"],
            worst=diagnosis.worst,
            estimator=str(audit.provenance.recipe.get("estimator", "ks")),
            started=audit.provenance.started,
            health=diagnosis.health.word if diagnosis.health else "",
            why=diagnosis.health.why if diagnosis.health else "",
            fingerprint=audit.provenance.fingerprint,
            sketch=tuple(sketch),
            norms=tuple(sketch.values()),
        )


def _sketch(audit: Audit) -> dict[str, float | None]:
    """Hash of name and shape → log10 ‖W‖²: the smallest hashes, the same of every audit of such a model."""
    rows = {f"{layer.row.name} {layer.row.rows}x{layer.row.cols}": layer.row for layer in audit}
    hashes = {hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:10]: row for text, row in rows.items()}
    norms = {key: value_of(hashes[key], "log_norm") for key in sorted(hashes)[:_SKETCH]}
    return {key: norm if norm is not None and math.isfinite(norm) else None for key, norm in norms.items()}


def alike(one: Overview, other: Overview) -> float | None:
    """About which share of the matrices of two audits have the same name and shape (Broder 1997); None: not known."""
    if not one.sketch or not other.sketch:
        return None
    both = sorted({*one.sketch, *other.sketch})[:_SKETCH]
    return len(set(both) & set(one.sketch) & set(other.sketch)) / len(both)


def apart(one: Overview, other: Overview) -> float | None:
    """How far the weights of two audits are apart: the mean |Δ log10 ‖W‖²| of what both have; None: not known."""
    own, theirs = (dict(zip(side.sketch, side.norms, strict=True)) for side in (one, other))
    pairs = [(own[key], theirs[key]) for key in own.keys() & theirs.keys()]
    gaps = [abs(a - b) for a, b in pairs if a is not None and b is not None]
    return math.fsum(gaps) / len(gaps) if gaps else None


def _key(entry: WorkspaceEntry) -> str:
    # The version: other rules may find other things.
    text = f"{_FORMAT} {__version__} {entry.path} {entry.changed} {entry.nbytes}"
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:24]
