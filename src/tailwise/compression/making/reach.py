"""Whether any choice of formats meets a budget, and where none does: how near they come, and what would come nearer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from rich.filesize import decimal

from tailwise.audits.audit import Audit
from tailwise.audits.rows import LayerRow
from tailwise.checkpoints.orientation import INPUTS, OUTPUTS
from tailwise.compression.choosing.bit_formats import Choices
from tailwise.compression.making.bit_budget import NEAR, OutOfReachError
from tailwise.compression.plans.bits import bits_per_weight, kept_bytes, tensor_of
from tailwise.compression.plans.budget import Budget
from tailwise.number_formats.formats import FORMATS, parse_format

Shapes = Mapping[str, tuple[int, ...]]
_EVERYWHERE = ("fp16", "bf16")
_LLAMA_CPP = ("q", "iq")  # how names of its types begin


def check_reach(audit: Audit, asked: Budget | None, choices: Choices, shapes: Shapes) -> None:
    """`OutOfReachError` in the unit of the budget, with the nearest that can be, where no choice of formats has it.

    `shapes` are of each stored tensor, as it is quantized.
    """
    budget = choices.budget
    if budget is None:
        return
    offered = np.isfinite(choices.bits)
    least = float(choices.bits.min(axis=1).sum())
    most = float(np.where(offered, choices.bits, -np.inf).max(axis=1).sum())
    low, high = budget < least * (1 - 1e-12), budget * (1 - NEAR) > most
    if not low and not high:
        return
    total = float(choices.sizes.sum())
    other = _other_format(choices, shapes, budget / total, low=low)
    named = "name other --formats" if other is None else f"add {other[0]} to --formats, which has {other[1]:.4g} here"
    why = "".join(f"; {line}" for line in _stand_ins(choices, shapes))
    if asked is not None and asked.unit == "bytes":
        fixed = asked.amount - budget / 8
        ends = [decimal(round(fixed + bits / 8)) for bits in (least, most)]
        nearest = f"at least {ends[0]}" if low else f"at most {ends[1]}"
        more = _also(audit, choices, shapes, least, fixed) if low else ""
        raise OutOfReachError(
            f"no choice of these formats makes the model {decimal(round(asked.amount))}: it takes {nearest}, of which "
            f"{decimal(round(fixed))} are what the plan leaves as it is{why}",
            fix=f"give --bytes between {ends[0]} and {ends[1]}{more}; or {named}",
        )
    raise OutOfReachError(
        f"no choice of these formats has {budget / total:.6g} bits per weight; the nearest has "
        f"{(least if low else most) / total:.6g}{why}",
        fix=f"reachable: {least / total:.6g} to {most / total:.6g}; or {named}",
    )


def _other_format(choices: Choices, shapes: Shapes, wanted: float, *, low: bool) -> tuple[str, float] | None:
    """Of the formats of the same kind, the nearest that reaches so many bits per weight, and how many it has."""
    total, llama_cpp = float(choices.sizes.sum()), choices.formats[0].startswith(_LLAMA_CPP)
    found: list[tuple[float, str]] = []
    for name in FORMATS:
        if name.startswith(_LLAMA_CPP) != llama_cpp and name not in _EVERYWHERE:
            continue
        chosen = parse_format(name)
        bits = sum(
            item.n_params * bits_per_weight(chosen, shapes[item.tensor]) for group in choices.groups
            for item in group.members
        ) / total  # fmt: skip
        if bits <= wanted if low else bits >= wanted:
            found.append((bits, name))
    if not found:
        return None
    bits, name = max(found, key=lambda one: one[0]) if low else min(found, key=lambda one: one[0])
    return name, bits


def _stand_ins(choices: Choices, shapes: Shapes) -> Iterator[str]:
    """Which formats are others in some tensors, and so count more bits than by their name."""
    members = [item for group in choices.groups for item in group.members]
    said: dict[int, list[str]] = {}  # in how many tensors → what counts as what
    for name in choices.formats:
        fitted = [parse_format(name).fitting(shapes[item.tensor][-1]).name for item in members]
        others = [other for other in fitted if other != name]
        if others:
            said.setdefault(len(others), []).append(f"{name} counts as {others[0]}")
    for count, names in said.items():
        yield f"in {count} of {len(members)} tensors, whose rows its blocks do not divide, {', '.join(names)}"


def _also(audit: Audit, choices: Choices, shapes: Shapes, least: float, fixed: float) -> str:
    """What the embedding takes, which is left out by default, and how far down the model would come with it.

    `least` are the fewest bits of the tensors that are planned, `fixed` the bytes of all else.
    """
    left = [row for row in audit.rows if _is_table(row) and tensor_of(row) not in shapes]
    if not left:
        return ""
    bits = sum(
        row.n_params * min(bits_per_weight(name, (row.rows, row.cols)) for name in choices.formats) for row in left
    )
    names = ",".join(dict.fromkeys(row.role for row in left))
    held = kept_bytes(audit, shapes) - kept_bytes(audit, [*shapes, *(tensor_of(row) for row in left)])
    down = decimal(round(fixed - held + (bits + least) / 8))
    return f"; or plan for {names} too ({decimal(held)} of it): --also {names} comes down to about {down}"


def _is_table(row: LayerRow) -> bool:
    return row.measured and row.status != "SHARED" and row.role in {*INPUTS, *OUTPUTS} and row.block is None
