"""How large a relative change ‖W − W₀‖/‖W₀‖ is: what known causes give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tailwise.judging.compare.comparison import Comparison, LayerDelta


@dataclass(frozen=True)
class KnownChange:
    """What a known cause changes of a matrix, relative to its norm."""

    low: float
    high: float
    cause: str
    source: str


_ROUNDED = "tailwise.precision on a normal matrix of 2048 × 2048"
#: From small to large. Those of training are single reports, not bounds.
KNOWN = (
    KnownChange(0.001, 0.001, "one step of a training that goes well",
                "Karpathy's notes for CS231n, “Ratio of weights:updates”: about 1e-3"),
    KnownChange(0.0017, 0.0017, "rounding to bf16", _ROUNDED),
    KnownChange(0.0083, 0.0083, "rounding to int8", _ROUNDED),
    KnownChange(0.058, 0.112, "LoRA of GPT-3's W_q in block 48, rank 64 and rank 4",
                "Hu et al. 2021, arXiv:2106.09685, table 7: ‖ΔW‖ of 3.57 and 6.91, ‖W‖ of 61.95"),
    KnownChange(0.111, 0.111, "rounding to int4 in groups of 128", _ROUNDED),
    KnownChange(1.414, 1.414, "another, independent matrix of the same norm", "√2 in expectation"),
)  # fmt: skip
#: Largest ratio of two changes that are called alike: no layer stands out to be named.
_ALIKE = 1.5
#: Times the median change from which on a matrix stands apart from the others.
_APART = 5.0
#: Roles and blocks that are named one by one.
_FEW_ROLES, _FEW_BLOCKS = 2, 6


def magnitude(found: Comparison) -> str:
    """`‖ΔW‖/‖W₀‖ is 0.08 in the median and 0.31 at most (layers.3.up): …`; "" where no weights were read.

    From what two unrelated models differ by on, it says that first.
    """
    sizes = {
        layer.name: layer.weights["relative_change"]
        for layer in found.layers
        if "relative_change" in layer.weights and not layer.identical
    }
    if not sizes:
        return ""
    middle, (name, most) = median(sizes.values()), max(sizes.items(), key=lambda pair: pair[1])
    if middle >= KNOWN[-1].high:
        return (
            f"The weights moved {middle:.2g} times their own norm in the median and {most:.2g} times at most ({name}), "
            f"as two unrelated models differ by {KNOWN[-1].high:.2g}: these are two models"
        )
    of = _of_those(found, len(sizes))
    least = min(sizes.values())
    if len(sizes) > 1 and most <= _ALIKE * least:
        every = f"in every one{of}" if of else f"in every one of {len(sizes)} matrices"
        return f"‖ΔW‖/‖W₀‖ is alike {every}, {_between(least, most)}: {_stands(middle)}"
    far_out = [layer for layer in found.layers if sizes.get(layer.name, 0.0) >= _APART * middle]
    if 1 < len(far_out) <= len(sizes) // 2:
        apart = [sizes[layer.name] for layer in far_out]
        others = [size for size in sizes.values() if size < _APART * middle]
        which = f" ({where})" if (where := _where(far_out)) else ""
        return (
            f"{len(apart)} of {len(found.layers)} matrices moved far more than the others{which}: ‖ΔW‖/‖W₀‖ is "
            f"{_between(min(apart), most)}, {_stands(most)}; of the other {len(others)} that changed it is "
            f"{median(others):.2g} in the median, {_stands(median(others))}"
        )
    said = (
        f"‖ΔW‖/‖W₀‖ is {middle:.2g} in the median{of} and {most:.2g} at most ({name}); the median is {_stands(middle)}"
    )
    far = sum(size >= KNOWN[-1].high for size in sizes.values())
    return f"{said}; {far} of {len(sizes)} moved at least as far as {_told(KNOWN[-1])} is" if far else said


def _of_those(found: Comparison, moved: int) -> str:
    """` of the 21 of 211 matrices that changed (mlp_down, blocks 9 to 11)`; "" where all did."""
    if moved == len(found.layers):
        return ""
    where = _where([layer for layer in found.layers if not layer.identical])
    return f" of the {moved} of {len(found.layers)} matrices that changed{f' ({where})' if where else ''}"


def _where(layers: Sequence[LayerDelta]) -> str:
    """`mlp_down, blocks 9 to 11`: their roles where those are few, and their blocks where they follow one another."""
    blocks, roles = [layer.block for layer in layers], dict.fromkeys(layer.role for layer in layers)
    known = sorted({block for block in blocks if block is not None})
    run = None not in blocks and known == list(range(known[0], known[-1] + 1))
    within = f"block {known[0]}" if run and len(known) == 1 else f"blocks {known[0]} to {known[-1]}" if run else ""
    if not run and known and None not in blocks and len(known) <= _FEW_BLOCKS:
        within = f"blocks {', '.join(map(str, known[:-1]))} and {known[-1]}"
    return ", ".join([*([" and ".join(roles)] if len(roles) <= _FEW_ROLES else ()), *([within] if within else ())])


def _between(low: float, high: float) -> str:
    ends = [f"{value:.2g}" for value in (low, high)]
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def _stands(value: float) -> str:
    below = [one for one in KNOWN if one.high <= value]
    above = [one for one in KNOWN if one.low > value]
    if not below:
        return f"less than {_told(above[0])}"
    within = next((one for one in KNOWN if one.low <= value < one.high), None)
    if within is not None:
        return f"within {_told(within)}"
    if not above:
        return f"at least as far as {_told(below[-1])} is"
    return f"between {_told(below[-1])} and {_told(above[0])}"


def _told(one: KnownChange) -> str:
    numbers = f"{one.low:.2g}" if one.low == one.high else f"{one.low:.2g} to {one.high:.2g}"
    return f"{one.cause} ({numbers})"


def scale() -> str:
    """The known changes in one line, to stand below a table."""
    return "for scale: " + "; ".join(_told(one) for one in KNOWN)
