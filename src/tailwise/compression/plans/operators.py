"""What removes parameters, and which way α points for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tailwise.errors import unknown_name


@dataclass(frozen=True)
class Operator:
    """A way to remove parameters, as plans name it."""

    name: str
    summary: str
    direction: int  # +1: more where α is high; −1: more where α is low
    source: str  # of the direction


_ALPHA_PRUNING = "Lu et al. 2024, AlphaPruning, arXiv:2410.10912: its code"

OPERATORS: Mapping[str, Operator] = {
    item.name: item
    for item in (
        Operator("magnitude", "the entries of smallest magnitude, without data", +1, _ALPHA_PRUNING),
        Operator("wanda", "the entries of smallest |W|·‖X‖", +1, _ALPHA_PRUNING),
        Operator("sparsegpt", "entries whose loss can be made good by the others", +1, _ALPHA_PRUNING),
        Operator("structured", "whole neurons and heads", +1, _ALPHA_PRUNING),
        Operator("low_rank", "W ≈ A·B", -1, "the same, its figure on low rank: heavy tails hold few directions"),
    )
}

#: +1: more compression where α is high; −1: where α is low. α and singular entropy point opposite ways.
DIRECTION: Mapping[str, int] = {
    **{name: operator.direction for name, operator in OPERATORS.items()},
    "rtn": +1,  # fewer bits where α is high: AlphaQuant's and AlphaQ's code
    "gptq": +1,
}


def operator_of(name: str) -> Operator:
    """The operator of that name; `UsageError` otherwise."""
    if name not in OPERATORS:
        raise unknown_name("operator", name, OPERATORS)
    return OPERATORS[name]


def direction_in_words(name: str) -> str:
    """For the notes of a plan."""
    return f"{name} compresses more where α is {'high' if DIRECTION[name] > 0 else 'low'}"
