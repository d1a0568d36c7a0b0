"""What the entries of a plan to quantize mean to other tools: linear layers by name, formats in their parts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from tailwise.compression.plans.bits import has_whole_groups
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.phrasing import listed
from tailwise.compression.plans.plan import Plan
from tailwise.core.errors import UsageError
from tailwise.number_formats.casts import PlainCast
from tailwise.number_formats.elements import Integer
from tailwise.number_formats.number_format import NumberFormat
from tailwise.number_formats.scaled import ScaledFormat
from tailwise.number_formats.scales import Asymmetric, Symmetric

T = TypeVar("T")
#: Looked up or convolved: their modules are no linear layers.
_NO_LINEAR = frozenset({"embed", "pos_embed", "codebook", "patch_embed", "conv"})


@dataclass(frozen=True)
class Integers:
    """An integer format, as most tools describe one."""

    bits: int
    symmetric: bool
    shared: str | int  # who shares a scale: tensor, channel, or so many entries along a row

    @property
    def group(self) -> int | None:
        """Entries along a row that share a scale; None where a row or the tensor does."""
        return self.shared if isinstance(self.shared, int) else None


def integers(chosen: NumberFormat) -> Integers | None:
    """The parts of int2 … int8; None for every other format."""
    if not isinstance(chosen, ScaledFormat) or not isinstance(chosen.element, Integer):
        return None
    # Formats of other tools hold integers too, under other rules of scales.
    if type(chosen.rule) not in (Symmetric, Asymmetric):
        return None
    return Integers(chosen.element.bits, isinstance(chosen.rule, Symmetric), chosen.shared)


def stays(decision: Decision) -> bool:
    """Whether an entry asks for a plain floating-point type, which other tools leave as it is stored."""
    return isinstance(decision.number_format, PlainCast)


@dataclass(frozen=True)
class ToolPlan(Generic[T]):
    """A plan as a tool can say it."""

    layers: Mapping[str, T]  # name of a module → what it gets
    kept: tuple[str, ...]  # modules that the plan leaves in floating point


@dataclass
class Refusals:
    """What a tool cannot say, collected so that it is told once."""

    tool: str
    takes: str  # in words, for the remedy
    reasons: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, layer: str) -> None:
        """One layer more."""
        self.reasons.setdefault(reason, []).append(layer)

    def tell(self) -> None:
        """`UsageError` that names the first layers of every reason; nothing where there is none."""
        if not self.reasons:
            return
        lines = [f"{reason}: {listed(layers)}" for reason, layers in self.reasons.items()]
        count = sum(len(layers) for layers in self.reasons.values())
        raise UsageError(
            f"{self.tool} cannot say what the plan asks of {count} layer{'' if count == 1 else 's'}\n  "
            + "\n  ".join(lines),
            fix=f"it takes {self.takes}; plan again with such --formats, or take these entries out of the plan",
        )


def plan_for_tool(plan: Plan, tool: str, takes: str, say: Callable[[NumberFormat, Decision], T | None]) -> ToolPlan[T]:
    """What `say` makes of every quantized layer's format; None is a refusal.

    One `UsageError` for all that cannot be plan_for_tool, and one where nothing is left to quantize.
    """
    refusals, layers, untouched = Refusals(tool, takes), dict[str, T](), []
    for decision in plan:
        module, chosen = decision.tensor.removesuffix(".weight"), decision.number_format
        if stays(decision):
            untouched.append(module)
        elif not _linear(decision):
            refusals.add("not a linear layer with one matrix", decision.tensor)
        elif not has_whole_groups(chosen, decision.shape):
            refusals.add(f"{chosen.name}, whose groups of {chosen.group_size} do not divide the inputs", module)
        elif (told := say(chosen, decision)) is None:
            refusals.add(decision.treatment.words(), module)
        else:
            layers[module] = told
    refusals.tell()
    if not layers:
        raise UsageError("the plan quantizes nothing", fix="plan with fewer --bits")
    return ToolPlan(layers, tuple(untouched))


def _linear(decision: Decision) -> bool:
    single = len(decision.shape) in (0, 2)  # edited plans may have no shapes
    return decision.tensor.endswith(".weight") and single and decision.role not in _NO_LINEAR


def grouped(layers: Mapping[str, T]) -> list[tuple[T, list[str]]]:
    """Layers with equal settings together, in the order of their first."""
    groups: list[tuple[T, list[str]]] = []
    for layer, settings in layers.items():
        for known, members in groups:
            if known == settings:
                members.append(layer)
                break
        else:
            groups.append((settings, [layer]))
    return groups


def exactly(layer: str) -> str:
    """A regular expression for one module: the names of blocks 1 and 11 begin alike."""
    return f"^{re.escape(layer)}$"


def one_of(layers: Iterable[str]) -> str:
    """A regular expression for these modules and no other."""
    return f"(?:{'|'.join(re.escape(layer) for layer in layers)})"
