"""The tensors of a model without the units that went, each cut as it is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch

from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.compression.shrinking.remade import Made, RemadeTensor, resized
from tailwise.compression.shrinking.structured import Origin, Surgery, _said_by_config, shapes_of
from tailwise.compression.shrinking.structured_groups import (
    Cut,
    sizes_of_layer,
)
from tailwise.models.walking.shapes import Shapes
from tailwise.models.walking.walk import blocks_of


def made(surgery: Surgery) -> Made:
    """The new checkpoint: every unit that stays is known."""
    origin = surgery.origin
    rename = _renamer(surgery)
    shapes = shapes_of(surgery)
    shapes = Shapes(
        {name: sizes for old, sizes in shapes.layers.items() if (name := rename(old)) is not None},
        {name: heads for old, heads in shapes.heads.items() if (name := rename(old)) is not None},
    )
    cuts = _cuts(surgery)
    parameters = {stored: name for name, stored in origin.sources.items()}
    entries = []
    for shard in origin.layout.shards:
        for spec in shard.specs:
            parameter = parameters.get(spec.name)
            new = surgery.experts.names.get(spec.name, spec.name)
            if new is not None and parameter is not None:
                new = _stored_name(new, parameter, rename)
            if new is not None:
                entries.append(_entry(origin.checkpoint, spec.name, new, cuts.get(spec.name, ())))
    config = dict(surgery.changed)
    equal = _said_by_config(surgery, shapes, config)
    notes = surgery.experts.notes
    if equal is None and shapes.layers:
        notes = (
            *notes,
            "its layers have sizes that config.json cannot say: load it with tailwise.load_pruned",
        )
    elif equal is not None:
        config, shapes = equal, Shapes()
    sizes = {entry.source: entry.spec.numel for entry in entries}
    reached = {decision.tensor: (sizes.get(origin.written(decision.tensor), 0), None) for decision in surgery.plan}
    return Made(tuple(entries), config, shapes if shapes.layers else None, reached, notes)


def _cuts(surgery: Surgery) -> dict[str, list[tuple[int, torch.Tensor]]]:
    """Stored tensor → (axis, entries that stay)."""
    cuts = {stored: [cut] for stored, cut in surgery.experts.cuts.items()}
    for group, removed in zip(surgery.groups, surgery.counts, strict=True):
        if not removed:
            continue
        units = surgery.kept[group.name]
        for cut in group.cuts:
            for what, axis, stays in _axes(surgery.origin, cut, units):
                stored = surgery.origin.stored(cut.layer, what)
                if stored is not None:
                    cuts.setdefault(stored, []).append((axis, stays))
    return cuts


def _axes(origin: Origin, cut: Cut, units: torch.Tensor) -> Iterable[tuple[str, int, torch.Tensor]]:
    inputs, outputs = sizes_of_layer(origin.model, cut.layer)
    size = outputs if cut.output else inputs
    gone = torch.ones(len(cut.index), dtype=torch.bool)
    gone[units] = False
    stay = torch.ones(size, dtype=torch.bool)
    stay[cut.index[gone].flatten()] = False  # what no unit holds stays: keys that all queries share
    stays = stay.nonzero().flatten()
    transposed = type(origin.model.get_submodule(cut.layer)).__name__ == "Conv1D"
    yield "weight", int(cut.output == transposed), stays
    if cut.output:
        yield "bias", 0, stays


def _entry(checkpoint: Checkpoint, source: str, name: str, cuts: Iterable[tuple[int, torch.Tensor]]) -> RemadeTensor:
    spec, listed = checkpoint.tensors[source], list(cuts)
    if not listed:
        return RemadeTensor(replace(spec, name=name), source)
    shape = list(spec.shape)
    for axis, stays in listed:
        shape[axis] = len(stays)

    def make() -> torch.Tensor:
        tensor = checkpoint.read(source)
        for axis, stays in listed:
            tensor = tensor.index_select(axis, stays)
        return tensor

    return RemadeTensor(resized(spec, name, tuple(shape)), source, make)


def _renamer(surgery: Surgery) -> Callable[[str], str | None]:
    """Name of a module or parameter → the same after blocks went; None where it went too."""
    if not surgery.dropped:
        return lambda name: name
    blocks = [block.name for block in blocks_of(surgery.origin.model)]
    stem = blocks[0].rpartition(".")[0]
    left = [name for name in blocks if name not in surgery.dropped]
    numbers = {name.rpartition(".")[2]: str(left.index(name)) for name in left}
    pattern = re.compile(rf"{re.escape(stem)}\.(\d+)(?=\.|$)")

    def rename(name: str) -> str | None:
        match = pattern.match(name)
        if match is None:
            return name
        number = numbers.get(match[1])
        return None if number is None else f"{stem}.{number}{name[match.end() :]}"

    return rename


def _stored_name(stored: str, parameter: str, rename: Callable[[str], str | None]) -> str | None:
    """The stored name with the number that the block has now, wherever it stands in it; None where the block went."""
    new = rename(parameter)
    if new is None or new == parameter:
        return None if new is None else stored
    was, now = parameter.split("."), new.split(".")
    at = next(place for place, (one, other) in enumerate(zip(was, now, strict=True)) if one != other)
    parts = stored.split(".")
    # The number after the name of the list, which most stored names have too; else the first such number.
    places = [place for place, part in enumerate(parts) if part == was[at]]
    place = next((place for place in places if place and parts[place - 1] == was[at - 1]), places[0])
    parts[place] = now[at]
    return ".".join(parts)
