"""Which way an allocator reads a spectrum, in the words of a plan's first note."""

from __future__ import annotations

from tailwise.compression.choosing.amounts import AllocatorSettings


def reversed_of(settings: AllocatorSettings) -> dict[str, object]:
    """What a plan records of the switch: nothing where it was left alone."""
    return {"reverse": True} if settings.reverse else {}


def sign_of_alpha(settings: AllocatorSettings) -> str:
    """α: AlphaPruning's code takes more where it is high; a study of number formats calls such layers sensitive."""
    where = "high" if settings.direction > 0 else "low"
    if settings.reverse:
        return f"{settings.operator} compresses more where α is {where}, the reverse of AlphaPruning, as asked"
    return f"{settings.operator} compresses more where α is {where}"


def sign_of_entropy(settings: AllocatorSettings) -> str:
    """Singular entropy: for pruning, this project and the manual point opposite ways."""
    where = "low" if settings.direction > 0 else "high"
    if settings.operator == "low_rank":
        agrees = "the reverse of the singular-entropy manual" if settings.reverse else "as the singular-entropy manual"
    elif settings.reverse:
        agrees = "as the singular-entropy manual (§3.3) has it"
    else:
        agrees = "a mirrored α; the singular-entropy manual (§3.3) prunes where it is high, as --reverse does"
    return f"{settings.operator} compresses more where singular entropy is {where}, {agrees}"
