"""A model that is being trained, as matrices: which there are, and the tensors that each is read from."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tailwise.audits.prepare import Selection
from tailwise.checkpoints.formats.memory import MemoryCheckpoint, class_of, config_of
from tailwise.checkpoints.matrices import MatrixSource, group
from tailwise.checkpoints.wrapped import is_sharded, plain_name, refuse_flat, unwrap
from tailwise.core.errors import TailwiseError, UsageError
from tailwise.core.recipe import Recipe
from tailwise.training.factor_names import is_factor
from tailwise.training.live_adapters import ActiveAdapter, adapters_in

if TYPE_CHECKING:
    import torch

    from tailwise.checkpoints.checkpoint import Checkpoint

Tensors = Mapping[str, "torch.Tensor"]


@dataclass(frozen=True)
class MatrixGroup:
    """Matrices that are read from the same tensors, which are gathered and copied together."""

    tensors: tuple[str, ...]  # in the live model
    sources: tuple[MatrixSource, ...]
    nbytes: int
    adapter: ActiveAdapter | None = None  # whose updates these are
    norms_alone: bool = False  # factors of an adapter with too few singular values for a spectrum

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
        signature: dict[str, tuple[Any, ...]] = {
            name: (tuple(tensor.shape), str(tensor.dtype)) for name, tensor in tensors.items()
        }
        adapters = adapters_in(self.module)
        # Another one may become active while all tensors stay.
        signature |= {f"the adapter {one.prefix}{one.name}": () for one in adapters}
        if signature == self._signature:
            return tensors, []
        notes = _differences(self._signature, signature) if self._signature else []
        self._signature = signature
        self.groups, trouble = self._grouped(tensors, adapters)
        return tensors, notes + trouble

    def checkpoint(self, wanted: MatrixGroup, tensors: Tensors) -> Checkpoint:
        """What the sources of a group are read from, given its tensors."""
        if wanted.adapter is not None:
            return wanted.adapter.updates(tensors, self._adapted)
        return self._plain({name: tensors[name] for name in wanted.tensors})

    def _plain(self, tensors: Tensors) -> MemoryCheckpoint:
        checkpoint = MemoryCheckpoint(self.uri, tensors, config=config_of(self.module))
        checkpoint.factors_apart = True  # an optimizer moves factors; the change that they make is measured beside them
        checkpoint.module_kinds = {plain_name(n): class_of(part) for n, part in self.module.named_modules()}
        return checkpoint

    def _grouped(self, tensors: Tensors, adapters: list[ActiveAdapter]) -> tuple[tuple[MatrixGroup, ...], list[str]]:
        self._adapted = {n: _meta(tensor) for n, tensor in tensors.items() if n.endswith(".base_layer.weight")}
        # Apart from the weight that they stand beside, of which they would pass for scales.
        factors = {name: tensor for name, tensor in tensors.items() if is_factor(name)}
        checkpoint = self._plain({name: _header(tensor) for name, tensor in tensors.items() if name not in factors})
        checkpoint.shared = {**_shared(tensors), **checkpoint.shared}
        by_tensors: dict[tuple[str, ...], list[MatrixSource]] = {}
        for source in self._taken(checkpoint):
            by_tensors.setdefault(source.tensors, []).append(source)
        groups = [MatrixGroup(names, tuple(sources), _bytes(names, tensors)) for names, sources in by_tensors.items()]
        groups += self._factor_groups(factors)
        notes: list[str] = []
        for adapter in adapters or [ActiveAdapter()]:
            try:
                groups += self._adapter_group(adapter, tensors)
            except TailwiseError as error:
                notes.append(f"the adapter's updates are not measured: {error.what}")
        return tuple(groups), notes

    def _factor_groups(self, factors: Tensors) -> list[MatrixGroup]:
        """The factors of adapters: those of a rank below `min_evals` have norms, and a step moves them."""
        if not factors:
            return []
        checkpoint = self._plain({name: _header(factor) for name, factor in factors.items()})
        checkpoint.shared = {**_shared(factors), **checkpoint.shared}
        taken = self._taken(checkpoint, 1)
        return [MatrixGroup(source.tensors, (source,), _bytes(source.tensors, factors),
                            norms_alone=source.m < self._recipe.min_evals) for source in taken]  # fmt: skip

    def _taken(self, checkpoint: Checkpoint, least: int | None = None) -> list[MatrixSource]:
        min_evals = self._recipe.min_evals if least is None else least
        grouped, _ = group(checkpoint, conv=self._recipe.conv, min_evals=min_evals)
        return [source for source in grouped if self._selection.takes(source.name, source.role)]

    def _adapter_group(self, adapter: ActiveAdapter, tensors: Tensors) -> list[MatrixGroup]:
        own = adapter.own(tensors)
        if not own:
            return []
        taken = self._taken(adapter.updates(tensors, self._adapted))
        sources = [replace(source, name=adapter.title(source.name)) for source in taken
                   if adapter.name or source.kind == "lora"]  # fmt: skip
        return [MatrixGroup(tuple(own), tuple(sources), _bytes(own, tensors), adapter=adapter)] if sources else []


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
