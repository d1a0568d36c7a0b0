"""A job on disk: what was asked, and where it stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tailwise.core.storage import json_of

State = Literal["queued", "running", "done", "failed", "cancelled"]
ENDED = ("done", "failed", "cancelled")


@dataclass(frozen=True)
class Job:
    """One audit that someone asked for."""

    id: str
    model: str  # a path, or a Hugging Face id
    output: str  # the .audit file that it writes
    options: Mapping[str, Any] = field(default_factory=dict)
    state: State = "queued"
    created: float = 0.0
    ended: float | None = None
    done: int = 0  # matrices
    total: int = 0
    share: float = 0.0  # of the work, by cost
    matrix: str = ""  # measured last
    message: str = ""  # why it failed, and what to do
    restarts: int = 0  # times that a server died under it

    @property
    def over(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in ENDED

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @staticmethod
    def from_text(text: str) -> Job:
        """What was written. `ValueError` or `TypeError` for anything else."""
        return Job(**json_of(text))
