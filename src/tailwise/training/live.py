"""A model that is being trained, as matrices: which there are, and the tensors that each is read from."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tailwise.audits.prepare import Selection
from tailwise.checkpoints.formats.memory import MemoryCheckpoint, class_of, config_of
from tailwise.checkpoints.formats.peft import PeftCheckpoint
from tailwise.checkpoints.matrices import MatrixSource, group
from tailwise.checkpoints.wrapped import is_sharded, plain_name, refuse_flat, unwrap
from tailwise.core.errors import TailwiseError, UsageError
from tailwise.core.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from tailwise.checkpoints.checkpoint import Checkpoint

#: What peft puts before the names of the model that it adapts.
_PEFT = "base_model.model."

Tensors = Mapping[str, "torch.Tensor"]


@dataclass(frozen=True)
class MatrixGroup:
    """Matrices that are read from the same tensors, which are gathered and copied together."""

    tensors: tuple[str, ...]  # in the live model
    sources: tuple[MatrixSource, ...]
    nbytes: int
    adapter: bool = False  # the updates of a LoRA adapter

    @property
    def flops(self) -> float:
        """Work of all its spectra."""
        return sum(source.flops for source in self.sources)


class LiveModel:
    """The matrices of a module, grouped anew whenever its tensors change their names, shapes or types."""

    def __init__(self, model: Any, recipe: Recipe, selection: Selection) -> None:
        refuse_flat(model)
        self.module = unwrap(model)
        self._recipe, self._selection = recipe, selection
        self._signature: dict[str, tuple[Any, ...]] = {}
        self._adapted: dict[str, torch.Tensor] = {}  # weights under an adapter, without values
        self.groups: tuple[MatrixGroup, ...] = ()
        self.refresh()
        if not self.groups:
            raise UsageError(
                f"{type(self.module).__name__} has no matrix to watch",
                fix="check layers and roles; a matrix needs at least 8 rows and columns",
            )

    @property
    def uri(self) -> str:
        """The class of the module."""
        return type(self.module).__name__

    @property
    def token(self) -> int:
        """A number that stands for what the groups are."""
        return zlib.crc32(repr([(group.tensors, group.nbytes) for group in self.groups]).encode())

    @property
    def trained(self) -> float:
        """Share of the parameters' entries that are trained: 1 of a whole model, next to nothing with an adapter."""
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in self.module.parameters()]
        return float(sum(size for size, on in sizes if on) / max(sum(size for size, _ in sizes), 1))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers by the names of the model without wrappers; nothing is copied."""
        import torch

        state = self.module.state_dict(keep_vars=True)
        return {plain_name(name): value for name, value in state.items() if isinstance(value, torch.Tensor)}

    def refresh(self) -> tuple[dict[str, torch.Tensor], list[str]]:
        """The tensors as they are now, and what changed in their names and shapes since the last time."""
        tensors = self.tensors()
        signature = {name: (tuple(tensor.shape), str(tensor.dtype)) for name, tensor in tensors.items()}
        if signature == self._signature:
            return tensors, []
        notes = _differences(self._signature, signature) if self._signature else []
        self._signature = signature
        self.groups, trouble = self._grouped(tensors)
        return tensors, notes + trouble

    def checkpoint(self, wanted: MatrixGroup, tensors: Tensors) -> Checkpoint:
        """What the sources of a group are read from, given its tensors."""
        if wanted.adapter:
            return self._adapter(tensors)
        return self._plain({name: tensors[name] for name in wanted.tensors})

    def _plain(self, tensors: Tensors) -> MemoryCheckpoint:
        checkpoint = MemoryCheckpoint(self.uri, tensors, config=config_of(self.module))
        checkpoint.factors_apart = True  # an optimizer moves factors; the change that they make is measured beside them
        checkpoint.module_kinds = {plain_name(n): class_of(part) for n, part in self.module.named_modules()}
        return checkpoint

    def _grouped(self, tensors: Tensors) -> tuple[tuple[MatrixGroup, ...], list[str]]:
        self._adapted = {n: _meta(tensor) for n, tensor in tensors.items() if n.endswith(".base_layer.weight")}
        checkpoint = self._plain({name: _header(tensor) for name, tensor in tensors.items()})
        checkpoint.shared = {**_shared(tensors), **checkpoint.shared}
        by_tensors: dict[tuple[str, ...], list[MatrixSource]] = {}
        for source in self._taken(checkpoint):
            by_tensors.setdefault(source.tensors, []).append(source)
        groups = [
            MatrixGroup(names, tuple(tensor_names), _bytes(names, tensors))
            for names, tensor_names in by_tensors.items()
        ]
        try:
            groups += self._adapter_group(tensors)
        except TailwiseError as error:
            return tuple(groups), [f"the adapter's updates are not measured: {error.what}"]
        return tuple(groups), []

    def _taken(self, checkpoint: Checkpoint) -> list[MatrixSource]:
        grouped, _ = group(checkpoint, conv=self._recipe.conv, min_evals=self._recipe.min_evals)
        return [source for source in grouped if self._selection.takes(source.name, source.role)]

    def _adapter_group(self, tensors: Tensors) -> list[MatrixGroup]:
        name, settings = _adapter_of(self.module)
        if not name:
            return []
        own = [tensor for tensor in tensors if ".lora_" in tensor and f".{name}" in tensor]
        if settings.get("use_dora"):  # its updates depend on the weights that they change
            own += [tensor for tensor in tensors if tensor.endswith(".base_layer.weight")]
        sources = self._taken(self._adapter(tensors))
        return [MatrixGroup(tuple(own), tuple(sources), _bytes(own, tensors), adapter=True)] if own and sources else []

    def _adapter(self, tensors: Tensors) -> Checkpoint:
        """The updates s·B·A of the active adapter, by the names of the model that it adapts."""
        name, settings = _adapter_of(self.module)
        own = {n: tensor for n, tensor in tensors.items() if ".lora_" in n and f".{name}" in n}
        base = {
            n.removeprefix(_PEFT).replace(".base_layer.", "."): tensors.get(n, header)
            for n, header in self._adapted.items()
        }
        under = MemoryCheckpoint("base", base) if base else None
        return PeftCheckpoint.open(MemoryCheckpoint("adapter", own), settings, under, "delta")


def _adapter_of(module: Any) -> tuple[str, Mapping[str, Any]]:
    """Name and settings of the active LoRA adapter; ("", {}) where there is none."""
    configs = getattr(module, "peft_config", None) or {}
    active = getattr(module, "active_adapters", None)
    names = active() if callable(active) and configs else active
    for name in names if isinstance(names, list | tuple) else ():
        settings = configs[name].to_dict()
        if str(getattr(settings.get("peft_type"), "value", settings.get("peft_type"))) == "LORA":
            return name, {**settings, "peft_type": "LORA"}
    return "", {}


def _header(tensor: torch.Tensor) -> torch.Tensor:
    return _meta(tensor) if is_sharded(tensor) else tensor.detach()


def _meta(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def _shared(tensors: Tensors) -> dict[str, str]:
    """Tied tensors by being one object, which holds for sharded ones too: name → the name that stands first."""
    first: dict[int, str] = {}
    return {name: first[id(t)] for name, t in tensors.items() if first.setdefault(id(t), name) != name}


def _bytes(names: tuple[str, ...] | list[str], tensors: Tensors) -> int:
    return sum(tensors[name].numel() * tensors[name].element_size() for name in names)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    changed = [name for name in new if name in old and new[name] != old[name]]
    listed = {"gone": old.keys() - new.keys(), "new": new.keys() - old.keys(), "another shape or type": changed}
    return [f"{what}: {_names(sorted(names))}" for what, names in listed.items() if names]


def _names(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
