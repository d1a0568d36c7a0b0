"""A plan: for every tensor that is to be compressed, how much and why. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tailwise.compression.plans import checks, files
from tailwise.compression.plans.bits import mean_bits
from tailwise.compression.plans.combined import part_of
from tailwise.compression.plans.diff import PlanDiff, diff
from tailwise.compression.plans.entries import PARTS, Entries, Part
from tailwise.core.shown import Shown, brief
from tailwise.core.validation import checked


@dataclass(frozen=True, repr=False)
class Plan(Entries):
    """Entries, and what is done with them: files, checks, comparison.

    >>> import numpy as np, tailwise as tw
    >>> noise = np.random.default_rng(0)
    >>> weights = {f"model.layers.{i}.mlp.up_proj.weight": noise.standard_normal((256, 128)) for i in range(3)}
    >>> audit = tw.audit(weights, use_cache=False)
    >>> plan = tw.plans.plan_prune(audit, tw.plans.Request(sparsity=0.5))
    >>> path = plan.save("plan.json")
    >>> tw.plans.Plan.load(path) == plan
    True
    >>> plan["model.layers.1.mlp.up_proj.weight"].sparsity
    0.5
    """

    @property
    def amount_words(self) -> str:
        """What the entries come to."""
        if self.is_both:
            return " and ".join(part.amount_words for part in self.parts)
        return f"{mean_bits(self):.6g} bits per weight" if self.quantizes else f"sparsity {self.sparsity:.6g}"

    def part(self, kind: Part) -> Plan:
        """Of a plan that does both: what it says of one of the two."""
        return part_of(self, kind)

    @property
    def parts(self) -> tuple[Plan, ...]:
        """What is done one after the other: itself, or what it prunes and what it then quantizes."""
        return tuple(self.part(kind) for kind in PARTS) if self.is_both else (self,)

    @checked
    def save(self, path: str | Path) -> Path | str:
        """Write JSON or YAML, by the suffix (.json, .yaml, .yml). Whole or not at all."""
        return files.save(self, path)

    @staticmethod
    @checked
    def load(path: str | Path) -> Plan:
        """Read and check a plan. `UsageError` for a bad edit, `UnreadableError` where there is no such file."""
        return files.load(path, Plan)

    @staticmethod
    def from_json(document: Any, where: object = None) -> Plan:
        """The plan that a JSON document holds, not checked. `UsageError` where it is none."""
        return files.from_document(document, Plan, where)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, as in the file: entries keyed by the tensor's name."""
        return files.to_document(self)

    def validate(self) -> tuple[str, ...]:
        """Check every entry. `UsageError` where the plan cannot be applied; warnings otherwise."""
        return checks.validate(self)

    def misfits(self, sizes: Mapping[str, int], fingerprint: str | None = None) -> tuple[str, ...]:
        """Why the plan does not fit a model: `sizes` are the parameters of its stored tensors by name.

        `fingerprint`, where it is known, is compared too. Empty where all fits.
        """
        return checks.misfits(self, sizes, fingerprint)

    def diff(self, other: Plan) -> PlanDiff:
        """What `other` does differently."""
        return diff(self, other)

    def __repr__(self) -> str:
        what = f"{self.kind}, {self.operator}, {self.allocator}"
        return f"Plan({brief(self.model)}: {what}; {len(self)} tensors, {self.amount_words})"

    def _shown(self) -> Shown:
        rows = [
            (one.tensor, one.role, one.n_params, one.format if one.format is not None else one.sparsity, one.reason)
            for one in self
        ]
        return Shown(repr(self), ("tensor", "role", "parameters", "amount", "why"), rows, "`to_json()`", self.notes)
