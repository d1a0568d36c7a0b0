"""Norms of gradients, matrix by matrix, as an optimizer finds them at its step. Opt-in: it takes a hook."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from tailwise.checkpoints.matrices import load
from tailwise.checkpoints.wrapped import plain_name
from tailwise.training.cheap import dense_matrix, to_host

if TYPE_CHECKING:
    from tailwise.training.live import LiveModel, MatrixGroup, Tensors
    from tailwise.training.processes import Faults, Ranks


class Gradients:
    """Reads gradients at the next step of whatever optimizer has the model's weights, and lets go of it again.

    They are as the optimizer gets them: accumulated, unscaled and clipped. Between the steps that are measured no hook
    is set.
    """

    def __init__(self, live: LiveModel, ranks: Ranks, faults: Faults) -> None:
        self._live, self._ranks, self._faults = live, ranks, faults
        self._handle: Any = None
        self._norms: dict[str, torch.Tensor] = {}

    def arm(self, guarded: Callable[..., None]) -> None:
        """Look at the next step. `guarded` calls a function so that nothing it raises reaches the training."""
        from torch.optim.optimizer import register_optimizer_step_pre_hook

        self.disarm()
        self._handle = register_optimizer_step_pre_hook(lambda optimizer, *_: guarded(self._read, optimizer))

    def disarm(self) -> None:
        """Let go of the hook."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _read(self, optimizer: Any) -> None:
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        parameters = {plain_name(name): parameter for name, parameter in self._live.module.named_parameters()}
        mine = {name: parameter for name, parameter in parameters.items() if id(parameter) in held}
        groups = [group for group in self._live.groups if not group.adapter and set(group.tensors) <= mine.keys()]
        gradients = {name: mine[name].grad for group in groups for name in group.tensors}
        there = [group for group in groups if all(gradients[name] is not None for name in group.tensors)]
        for group in groups:
            if group not in there:  # no gradient reached it
                zero = torch.zeros((), device=mine[group.tensors[0]].device)
                self._norms |= {source.name: zero for source in group.sources}
        present = {name: gradient for name, gradient in gradients.items() if gradient is not None}
        self._ranks.visit(there, present, self._take, self._faults)

    def _take(self, group: MatrixGroup, whole: Tensors) -> None:
        checkpoint = self._live.checkpoint(group, whole)
        for source in group.sources:
            parts = [torch.linalg.vector_norm(dense_matrix(part).float()) for part in load(source, checkpoint)]
            self._norms[source.name] = torch.linalg.vector_norm(torch.stack(parts)) if len(parts) > 1 else parts[0]

    def take(self, events: list[Any]) -> dict[str, Any]:
        """Matrix → the norm of its gradient at the last step that was looked at, on its way to the CPU.

        A collective where the model is sharded: each rank has read its own matrices.
        """
        self.disarm()
        norms, self._norms = self._norms, {}
        if not self._ranks.sharded:
            return {name: to_host(norm, events) for name, norm in norms.items()}
        names = [source.name for group in self._live.groups for source in group.sources]
        totals = torch.zeros(2, len(names), device=self._ranks.device)
        for index, name in enumerate(names):
            if name in norms:
                totals[0, index], totals[1, index] = norms[name], 1.0
        values, there = self._ranks.summed(totals).tolist()
        return {name: values[i] / there[i] for i, name in enumerate(names) if there[i]}
