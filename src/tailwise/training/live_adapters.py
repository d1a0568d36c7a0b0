"""Which low-rank adapters a live model has, and what their factors make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tailwise.checkpoints.formats.memory import MemoryCheckpoint
from tailwise.checkpoints.formats.peft import PeftCheckpoint
from tailwise.checkpoints.wrapped import plain_name
from tailwise.training.factor_names import CHANGE, PEFT, is_factor

if TYPE_CHECKING:
    import torch

    from tailwise.checkpoints.checkpoint import Checkpoint

    Tensors = Mapping[str, torch.Tensor]

_BASE = ".base_layer.weight"


@dataclass(frozen=True)
class ActiveAdapter:
    """A LoRA adapter that is active; without a name, factors that peft knows nothing of."""

    name: str = ""
    prefix: str = ""  # of the module that has it, within the model, with its dot
    settings: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def own(self, tensors: Tensors) -> list[str]:
        """The tensors that its updates are made of."""
        mine = [name for name in tensors if name.startswith(self.prefix)]
        found = [name for name in mine if is_factor(name, self.name)]
        if found and self.settings.get("use_dora"):  # its updates depend on the weights that they change
            found += [name for name in mine if name.endswith(_BASE)]
        return found

    def updates(self, tensors: Tensors, adapted: Tensors) -> Checkpoint:
        """s·B·A by the names of the model that it adapts; `adapted` are headers of weights under adapters.

        Of factors that peft knows nothing of, B·A as far as their names and shapes say how they are laid out.
        """
        own = {self._short(name): tensors[name] for name in self.own(tensors) if not name.endswith(_BASE)}
        if not self.name:
            return MemoryCheckpoint("adapter", own)
        base = {self._short(name).removeprefix(PEFT).replace(".base_layer.", "."): tensors.get(name, header)
                for name, header in adapted.items() if name.startswith(self.prefix)}  # fmt: skip
        under = MemoryCheckpoint("base", base) if base else None
        return PeftCheckpoint.open(MemoryCheckpoint("adapter", own), self.settings, under, "delta")

    def _short(self, name: str) -> str:
        return name.removeprefix(self.prefix)

    def title(self, layer: str) -> str:
        """What the change of a layer is called: as the layer, unless the layer has a weight of that name."""
        return f"{self.prefix}{layer}" if self.name else f"{layer}{CHANGE}"


def adapters_in(module: torch.nn.Module) -> list[ActiveAdapter]:
    """The active adapters of peft, wherever in the model they were put, one for each module that has some."""
    found: list[ActiveAdapter] = []
    taken: list[str] = []
    for path, part in module.named_modules():
        prefix = plain_name(f"{path}.") if path else ""
        if not getattr(part, "peft_config", None) or any(prefix.startswith(other) for other in taken):
            continue
        taken.append(prefix)
        name, settings = _active(part)
        found += [ActiveAdapter(name, prefix, settings)] if name else []
    return found


def _active(module: Any) -> tuple[str, Mapping[str, Any]]:
    """Name and settings of the first active adapter that is LoRA; ("", {}) where there is none."""
    configs: Mapping[str, Any] = module.peft_config
    active = getattr(module, "active_adapters", None)
    names = active() if callable(active) else active
    if names is None:  # of an adapter that was injected, its layers know
        names = next((part.active_adapters for part in module.modules() if hasattr(part, "active_adapters")), None)
    for name in names if isinstance(names, list | tuple) else ():
        settings = configs[name].to_dict()
        if str(getattr(settings.get("peft_type"), "value", settings.get("peft_type"))) == "LORA":
            return name, {**settings, "peft_type": "LORA"}
    return "", {}
