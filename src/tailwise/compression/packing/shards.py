"""Packed models in safetensors files: the shards of the source, with several tensors in place of one."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from typing_extensions import override

from tailwise.checkpoints.checkpoint import TensorSpec, code_of
from tailwise.checkpoints.copied_settings import copy_settings
from tailwise.checkpoints.writer import OutputLayout, Shard, pieces, write_index, write_shard
from tailwise.compression.packing.packing import Packing, PackingWork
from tailwise.compression.packing.tensor_parts import Coded, Parts, cast_of, empty_parts
from tailwise.compression.plans.decision import Decision
from tailwise.core.storage import json_of
from tailwise.number_formats.number_format import NumberFormat
from tailwise.number_formats.scaled import ScaledFormat

Members = dict[str, torch.Tensor]  # stored name → tensor


class ShardPacking(Packing):
    """A packing whose files are safetensors, with a `quantization_config` in config.json."""

    @abstractmethod
    def members(self, spec: TensorSpec, chosen: NumberFormat, parts: Parts) -> Members:
        """What takes the place of a tensor, the codes first."""

    @abstractmethod
    def settings(self, work: PackingWork) -> dict[str, Any]:
        """What config.json gets: fields by name."""

    def metadata(self, work: PackingWork) -> Mapping[str, str]:  # noqa: ARG002 - a hook
        """What the header of every file gets."""
        return {}

    @override
    def write(self, work: PackingWork, folder: Path) -> tuple[str, ...]:
        write = _Writing(self, work)
        shards, metadata = [], self.metadata(work)
        for shard in work.layout.shards:
            specs = tuple(new for old in shard.specs for new in write.specs(old))
            shards.append(Shard(shard.name, specs, {**shard.metadata, **metadata}))
            write_shard(folder / shard.name, shards[-1], write.read)
        if work.layout.index is not None:
            write_index(replace(work.layout, shards=tuple(shards)), folder)
        notes = tuple(copy_settings(work.layout, folder))
        config = {**json_of((folder / "config.json").read_text(encoding="utf-8")), **self.settings(work)}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        return notes


@dataclass
class _Writing:
    """Reads the tensors of the output, which come in the order of their specs."""

    packing: ShardPacking
    work: PackingWork
    _homes: dict[str, str] = field(default_factory=dict)  # stored name → the tensor of the source that it is of
    _now: tuple[str, Members] = ("", {})
    _done: int = 0

    def __post_init__(self) -> None:
        self._decisions = {decision.tensor: decision for decision in self.work.plan}
        self._nbytes = {spec.name: spec.nbytes for shard in self.work.layout.shards for spec in shard.specs}
        self._total = sum(self._nbytes.values())

    def specs(self, spec: TensorSpec) -> tuple[TensorSpec, ...]:
        """What takes the place of one tensor."""
        decision = self._decisions.get(spec.name)
        if decision is None:
            self._homes[spec.name] = spec.name
            return (spec,)
        members = empty_members(self.packing, decision, spec)
        self._homes |= dict.fromkeys(members, spec.name)
        return tuple(
            TensorSpec(name, code_of(value.dtype), tuple(value.shape), value.numel() * value.element_size())
            for name, value in members.items()
        )

    def read(self, name: str) -> Iterable[torch.Tensor]:
        """A tensor of the output, in pieces."""
        home = self._homes[name]
        if self._now[0] != home:
            coded = self.work.coded(home)
            self._done += self._nbytes[home]
            self.work.progress("writing tensors", self._done, self._total)
            self._now = home, {} if coded is None else _members(self.packing, coded, self.work)
        made = self._now[1].get(name)
        return pieces(self.work.checkpoint, home) if made is None else (made,)


def empty_members(packing: ShardPacking, decision: Decision, spec: TensorSpec) -> Members:
    """The tensors of an entry without contents."""
    chosen = decision.number_format
    cast = cast_of(chosen)
    if cast is not None:
        return {spec.name: torch.empty(spec.shape, dtype=cast, device="meta")}
    assert isinstance(chosen, ScaledFormat)  # noqa: S101 - `check_packing` has let no other through
    return packing.members(spec, chosen, empty_parts(chosen, spec))


def _members(packing: ShardPacking, coded: Coded, work: PackingWork) -> Members:
    cast, name = cast_of(coded.format), coded.decision.tensor
    if cast is not None:
        return {name: coded.stored.to(cast)}
    return packing.members(work.checkpoint.tensors[name], coded.format, coded.parts)


def weight_files(layout: OutputLayout) -> tuple[str, ...]:
    """Names of the files that hold the weights."""
    return tuple(shard.name for shard in layout.shards)
