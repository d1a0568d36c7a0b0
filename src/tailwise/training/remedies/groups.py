"""Settings of an optimizer that differ from matrix to matrix, for the length of a step.

The groups are split before each step and put back after it. So the optimizer's groups, its state and its checkpoints
stay as they were, and any scheduler, or a loop that sets `group["lr"]`, sees the groups that it knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

from torch.optim import LBFGS, Optimizer

from tailwise.core.errors import UsageError

Group = dict[str, Any]


class GroupScaler:
    """Multiplies settings of an optimizer's groups, parameter by parameter, while it steps."""

    def __init__(self) -> None:
        self.factors: dict[str, dict[int, float]] = {}  # setting → id of the parameter → factor
        self.before: dict[str, Callable[[], None]] = {}  # setting → called before each step
        self._whole: list[Group] | None = None
        self._parts: list[list[Group]] = []

    def split(self, optimizer: Optimizer, *_: Any) -> None:
        """Before a step: a group for each set of factors."""
        if self._whole is not None:  # the last step raised, so nothing was put back
            optimizer.param_groups = self._whole
        for call in list(self.before.values()):
            call()
        self._whole = optimizer.param_groups
        self._parts = [list(self._split(group)) for group in self._whole]
        optimizer.param_groups = [part for parts in self._parts for part in parts]

    def join(self, optimizer: Optimizer, *_: Any) -> None:
        """After a step: the groups as they were, with what the optimizer wrote into them."""
        if self._whole is None:
            return
        for group, parts in zip(self._whole, self._parts, strict=True):
            if parts:
                group.update({key: parts[0][key] for key in parts[0] if key not in ("params", *self.factors)})
        optimizer.param_groups, self._whole, self._parts = self._whole, None, []

    def _split(self, group: Group) -> Iterator[Group]:
        settings = [name for name in self.factors if name in group]
        parts: dict[tuple[float, ...], list[Any]] = {}
        for parameter in group["params"]:
            key = tuple(self.factors[name].get(id(parameter), 1.0) for name in settings)
            parts.setdefault(key, []).append(parameter)
        for key, parameters in parts.items():
            # A factor of one leaves the very object: a rate may be a tensor that the caller changes in place.
            scaled = {name: group[name] * by for name, by in zip(settings, key, strict=True) if by != 1.0}
            yield {**group, **scaled, "params": parameters}


_SCALERS: WeakKeyDictionary[Optimizer, GroupScaler] = WeakKeyDictionary()


def inner(optimizer: Any) -> Any:
    """The optimizer that steps, inside what Accelerate makes of it."""
    while not hasattr(optimizer, "_optimizer_step_pre_hooks") and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def scaler_of(optimizer: Optimizer) -> GroupScaler:
    """The scaler of an optimizer: one, however many settings are scaled, so that they do not undo each other."""
    optimizer = inner(optimizer)
    if isinstance(optimizer, LBFGS):
        raise UsageError("LBFGS takes all parameters in one group", fix="use another optimizer")
    if optimizer not in _SCALERS:
        scaler = _SCALERS[optimizer] = GroupScaler()
        optimizer.register_step_pre_hook(scaler.split)
        optimizer.register_step_post_hook(scaler.join)
    return _SCALERS[optimizer]
