"""What is asked of a plan: the tensors, the operator, the way to choose, and the budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tailwise.audits.precision.study import PrecisionStudy
from tailwise.compression.choosing.amounts import ALLOCATORS, AllocatorSettings
from tailwise.compression.choosing.bit_formats import ASSIGNERS, FormatSettings
from tailwise.compression.operators.registered import operator_of
from tailwise.compression.plans.budget import Budget, Unit
from tailwise.compression.plans.candidates import TensorChoice
from tailwise.compression.plans.patterns import UNSTRUCTURED, Pattern, parse_pattern
from tailwise.core.errors import UsageError
from tailwise.core.validation import check_fields
from tailwise.number_formats.formats import parse_format
from tailwise.number_formats.number_format import NumberFormat

#: AlphaQuant's formats.
FORMATS = ("mxfp4", "mxfp8", "bf16")


@dataclass(frozen=True)
class Request:
    """What is asked of a pruning plan. `settings` are fields of `AllocatorSettings` that the user gave, by name."""

    sparsity: float | None = None
    allocator: str = "uniform"
    operator: str = "magnitude"
    pattern: str = UNSTRUCTURED
    choice: TensorChoice = field(default_factory=TensorChoice)
    clamp: bool = True
    estimator: str | None = None  # of α; None: AlphaPruning's for this kind of model
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
        # A wrong request is told before a model is read for it.
        operator_of(self.operator)
        _ = self.budget, self.told

    @property
    def parsed_pattern(self) -> Pattern:
        """`UsageError` where there is none of that name, or the operator takes none."""
        pattern = parse_pattern(self.pattern)
        if pattern.group is not None and not operator_of(self.operator).patterns:
            raise UsageError(f"{self.operator} has no pattern", fix="leave --pattern out, or take another operator")
        if pattern.group is not None and not self.clamp:
            raise UsageError("a pattern holds at most its group", fix="leave --no-clamp out")
        return pattern

    @property
    def budget(self) -> Budget:
        """A share of the parameters."""
        return Budget(self._share(self.parsed_pattern), self.clamp)

    @property
    def told(self) -> AllocatorSettings:
        """What the allocator is told."""
        return ALLOCATORS[self.allocator].settings(AllocatorSettings, self.settings, operator=self.operator)

    def _share(self, pattern: Pattern) -> float:
        if pattern.fixed is None:
            if self.sparsity is None:
                raise UsageError("how much is to go?", fix="give --sparsity, e.g. 0.7")
            return self.sparsity
        if self.sparsity is not None and abs(self.sparsity - pattern.fixed) > 1e-9:
            raise UsageError(
                f"{pattern} is a sparsity of {pattern.fixed:g} everywhere, not {self.sparsity:g}",
                fix=f"leave --sparsity out, or give --pattern N:{pattern.group} for a mix that reaches it",
            )
        if self.allocator != "uniform":
            raise UsageError(
                f"{pattern} leaves {self.allocator} nothing to choose",
                fix=f"take --pattern N:{pattern.group}, or --allocator uniform",
            )
        return pattern.fixed


@dataclass(frozen=True)
class QuantizeRequest:
    """What is asked of a plan to quantize. `settings` are fields of `FormatSettings` that the user gave, by name."""

    bits: float | None = None  # mean bits per weight of the planned tensors, scales counted; one format needs none
    bytes: int | None = None  # of the whole model, with what the plan leaves as it is
    rise: float | None = None  # of perplexity, as a fraction: the fewest bits that stay below it, found by trial
    formats: tuple[str, ...] = FORMATS
    allocator: str = "uniform"
    operator: str = "rtn"
    choice: TensorChoice = field(default_factory=TensorChoice)
    per_expert: bool = False  # experts of a block may differ
    act_order: bool = False  # gptq: columns in the order of their inputs' energy
    estimator: str | None = None  # of α
    study: PrecisionStudy | None = None  # for `distortion`
    relative: bool = False  # `distortion`: relative errors
    dequantize: bool = False  # plan for a model that is quantized already, from the values that it decodes to
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # A number is judged by the budget that it makes, finite or not.
        check_fields(self, but=[name for name in ("bits", "rise") if isinstance(getattr(self, name), float)])
        # A wrong request is told before a model is read for it.
        operator_of(self.operator, "quantize")
        if self.act_order and self.operator != "gptq":
            raise UsageError(f"{self.operator} has no order of columns", fix="leave --act-order out, or take gptq")
        parsed_formats(self.formats)
        method = ASSIGNERS[self.allocator]
        _ = self.told, self.budget
        if self.estimator is not None and not method.needs_alpha:
            raise UsageError(f"{method.name} looks at no α", fix="leave --estimator out")
        if (self.study is not None or self.relative) and "errors" not in method.takes:
            raise UsageError(f"{method.name} reads no study", fix="leave --study out, or take --allocator distortion")

    @property
    def told(self) -> FormatSettings:
        """What the allocator is told."""
        return ASSIGNERS[self.allocator].settings(FormatSettings, self.settings)

    @property
    def budget(self) -> Budget | None:
        """Bits, bytes or a rise of perplexity; None where ratios, or a single format, say how much."""
        asked: tuple[tuple[Unit, float | None], ...] = (
            ("bits", self.bits), ("bytes", self.bytes), ("rise", self.rise)
        )  # fmt: skip
        given = [Budget(amount, unit=unit) for unit, amount in asked if amount is not None]
        ratios = FormatSettings(**self.settings).has_ratios
        if ratios and given:
            raise UsageError("ratios say how many bits", fix="leave the budget out, or the ratios")
        if len(given) > 1:
            raise UsageError("these are two budgets", fix="give one of --bits, --bytes and --perplexity-rise")
        if not given and not ratios and len(parsed_formats(self.formats)) > 1:
            raise UsageError("how many bits?", fix="give --bits, e.g. 4.5, or --bytes, or --perplexity-rise")
        return given[0] if given else None


def parsed_formats(names: Sequence[str]) -> tuple[NumberFormat, ...]:
    """The formats, each once, ascending in bits of a large matrix. `UsageError` where there is none."""
    found = {item.name: item for item in map(parse_format, names)}
    if not found:
        raise UsageError("there is no format to choose from", fix=f"use --formats {','.join(FORMATS)}")
    return tuple(sorted(found.values(), key=lambda item: (item.bits_per_weight(4096, 4096), item.name)))
