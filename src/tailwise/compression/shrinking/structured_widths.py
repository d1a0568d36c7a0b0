"""How many heads and neurons of each block go: whole numbers that hold the budget, or the same in every block."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tailwise.compression.plans.whole_units import rounded
from tailwise.compression.shrinking.structured_groups import ChannelGroup
from tailwise.core.errors import UsageError


def removed_counts(groups: Sequence[ChannelGroup], *, equal: bool, multiple: int) -> list[int]:
    """Units that go, for each group in order.

    Where all blocks ask for the same, or with `equal`, each kind loses the same number everywhere: the mean that was
    asked for, rounded. Otherwise the numbers are rounded together, so that Σ is as near to the budget as they allow.
    Of neurons, a multiple of `multiple` stays, where the width is one.
    """
    if multiple < 1:
        raise UsageError(f"widths cannot be a multiple of {multiple}", fix="give 1 or more, such as 8")
    steps = np.array([_step(group, multiple) for group in groups], dtype=np.float64)
    asked = np.array([group.asked for group in groups], dtype=np.float64)
    removed = np.zeros(len(groups), dtype=np.int64)
    together = np.zeros(len(groups), dtype=bool)
    for kind in ("attn", "mlp"):
        members = [index for index, group in enumerate(groups) if group.kind == kind]
        same = bool(members) and len({round(groups[index].asked, 9) for index in members}) == 1
        if not members or not (equal or same):
            continue
        sizes = np.array([groups[index].n_params for index in members], dtype=np.float64)
        amount = float(asked[members] @ sizes / sizes.sum())
        for index in members:
            removed[index] = round(amount * groups[index].units / steps[index])
            together[index] = True
    apart = np.flatnonzero(~together)
    if len(apart):
        removed[apart] = _rounded([groups[index] for index in apart.tolist()], steps[apart])
    counts = [int(count * step) for count, step in zip(removed, steps, strict=True)]
    for group, count in zip(groups, counts, strict=True):
        _check(group, count, multiple)
    return counts


def _step(group: ChannelGroup, multiple: int) -> int:
    return multiple if group.kind == "mlp" and group.units % multiple == 0 else 1


def _rounded(groups: list[ChannelGroup], steps: np.ndarray[tuple[int], np.dtype[np.float64]]) -> np.ndarray[
    tuple[int], np.dtype[np.int64]
]:  # fmt: skip
    units = np.array([group.units for group in groups], dtype=np.float64)
    sizes = np.array([group.n_params for group in groups], dtype=np.float64)
    wanted = np.array([group.asked for group in groups]) * units / steps
    places = np.argsort(np.argsort([-1 if group.block is None else group.block for group in groups], kind="stable"))
    most = np.maximum(np.ceil(wanted), units / steps - 1)  # what asks for everything is refused, not cut down
    return rounded(wanted, sizes * steps / units, (np.zeros_like(units), most), places)


def _check(group: ChannelGroup, removed: int, multiple: int) -> None:
    if removed < group.units:
        return
    step = _step(group, multiple)
    most = (group.units - step) / group.units
    many = f"all {group.units}" if group.kind == "mlp" else f"all {group.units} units of heads"
    raise UsageError(
        f"a sparsity of {group.asked:g} would remove {many}",
        where=group.name,
        fix=f"write {most:.2f} or less there, or plan its attention apart (--roles)",
    )
