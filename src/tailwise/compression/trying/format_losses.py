"""What groups of tensors lose in each format: measured one by one, or believed."""

from __future__ import annotations

import numpy as np
import torch

from tailwise.compression.choosing.bit_formats import Choices, Levels
from tailwise.compression.plans.plan import Plan
from tailwise.compression.trying.layer_errors import Table
from tailwise.compression.trying.refine import Losses
from tailwise.compression.trying.scored import Court
from tailwise.compression.trying.sensitivity import Variant

WORST = 50.0  # nats: a loss that is not finite counts as this


def variants_of(choices: Choices, around: Plan) -> list[Variant]:
    """Every group in every offered format but its own, with the others as in `around`."""
    place = {item.tensor: index for index, item in enumerate(around)}
    found = []
    for row, group in enumerate(choices.groups):
        own = around.decisions[place[group.members[0].tensor]].format
        for column, name in enumerate(choices.formats):
            if np.isfinite(choices.bits[row, column]) and name != own:
                entries = {place[item.tensor]: around[item.tensor].but(format=name) for item in group.members}
                found.append(Variant((row, name), entries))
    return found


def measured_formats(court: Court, choices: Choices, around: Plan, windows: torch.Tensor) -> Table:
    """(tensor, format) → change of loss when its group has this format; the first tensor of a group has it all."""

    def swept(done: int, total: int) -> None:
        court.tell(f"measuring group by group, {done} of {total}")

    variants = variants_of(choices, around)
    measured = court.variant_losses(around, windows, variants, swept)
    found: Table = {}
    for row, group in enumerate(choices.groups):
        for column, name in enumerate(choices.formats):
            if not np.isfinite(choices.bits[row, column]):
                continue
            loss = measured.get((row, name), 0.0)
            for index, item in enumerate(group.members):
                found[item.tensor, name] = 0.0 if index else (loss if np.isfinite(loss) else WORST)
    return found


def believed_losses(choices: Choices, table: Table) -> Losses:
    """(groups, formats): sums over the members, falling with the bits; what is not known counts as the mean."""
    found = np.full(choices.bits.shape, np.nan)
    for row, group in enumerate(choices.groups):
        for column, name in enumerate(choices.formats):
            found[row, column] = sum(table.get((item.tensor, name), np.nan) for item in group.members)
    known = np.isfinite(found)
    mean = np.where(known, found, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return np.where(known, found, mean[None, :])


def levels_of_plan(choices: Choices, plan: Plan) -> Levels:
    """(groups,): the format of each, by its place among the formats."""
    formats = {item.tensor: item.treatment.words() for item in plan}
    return np.array([choices.formats.index(formats[group.members[0].tensor]) for group in choices.groups])


def with_levels(plan: Plan, choices: Choices, levels: Levels) -> Plan:
    """The plan with other formats."""
    chosen = {
        item.tensor: choices.formats[int(level)]
        for group, level in zip(choices.groups, levels, strict=True)
        for item in group.members
    }
    return plan.replace(decisions=tuple(item.but(format=chosen[item.tensor]) for item in plan))
