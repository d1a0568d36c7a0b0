"""Clipping of gradients, tensor by tensor, against what is usual for each: AdaGC."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tailwise.checkpoints.wrapped import is_sharded, plain_name, refuse_flat, unwrap, whole
from tailwise.core.errors import UsageError


class AdaptiveClip:
    """Clips each parameter's gradient to `relative` times the moving average of its norm.

    Call it after `backward()`, and after `scaler.unscale_(optimizer)` where there is one; it returns the norm of all
    gradients before clipping. For the first `warm_up` calls all gradients are clipped together to the norm `absolute`,
    and each average γ is the least clipped norm so far. Then, with g one gradient:

        h = min(relative · γ / ‖g‖, 1),   g ← h·g,   γ ← beta · γ + (1 − beta) · ‖g‖

    Two cases that the paper leaves open: a gradient of zeros does not change γ, which it would hold at zero for ever;
    and one that is not finite is left as it is for the gradient scaler or the loop to see, and does not change γ.

    Gradients that fully_shard has sharded count with their whole norm, so all ranks must call it; of FSDP1, which has
    no gradient of a single tensor, a `UsageError` is raised.

    Source: Wang et al. 2025, AdaGC: Improving Training Stability for Large Language Model Pretraining,
    arXiv:2502.11034, algorithm 1, with its defaults.
    """

    def __init__(
        self, model: nn.Module, *, relative: float = 1.05, beta: float = 0.98, warm_up: int = 100, absolute: float = 1.0
    ) -> None:
        if relative <= 0 or absolute <= 0 or not 0 <= beta < 1 or warm_up < 0:
            raise UsageError(
                f"relative {relative}, beta {beta}, warm_up {warm_up}, absolute {absolute}",
                fix="give relative > 0, 0 ≤ beta < 1, warm_up ≥ 0 and absolute > 0",
            )
        refuse_flat(model)
        self.relative, self.beta, self.warm_up, self.absolute = relative, beta, warm_up, absolute
        self.averages: dict[str, float] = {}  # γ by the parameter's name
        self.clipped: dict[str, float] = {}  # of the last call: factors below 1
        self.steps = 0
        self._model = unwrap(model)

    @torch.no_grad()
    def __call__(self) -> float:
        """Clip in place."""
        gradients = {plain_name(name): p.grad for name, p in self._model.named_parameters() if p.grad is not None}
        norms = _norms(gradients)
        total = math.sqrt(sum(norm**2 for norm in norms.values()))
        together = self.steps < self.warm_up
        factors = {name: self._factor(name, norm, total, together) for name, norm in norms.items()}
        self.clipped = {name: by for name, by in factors.items() if by < 1.0}
        for name, by in self.clipped.items():
            gradients[name].mul_(by)
        if math.isfinite(total) or not together:
            for name, norm in norms.items():
                self._follow(name, norm * factors[name], together)
        self.steps += 1
        return total

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint of the training needs."""
        return {"steps": self.steps, "averages": dict(self.averages)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.steps, self.averages = int(state["steps"]), dict(state["averages"])

    def _factor(self, name: str, norm: float, total: float, together: bool) -> float:
        if not math.isfinite(total if together else norm) or norm == 0.0:
            return 1.0
        if together or name not in self.averages:
            return min(self.absolute / (total if math.isfinite(total) else norm), 1.0)
        return min(self.relative * self.averages[name] / norm, 1.0)

    def _follow(self, name: str, norm: float, together: bool) -> None:
        if norm == 0.0 or not math.isfinite(norm):
            return
        past = self.averages.get(name, norm)
        self.averages[name] = min(past, norm) if together else self.beta * past + (1 - self.beta) * norm


def _norms(gradients: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """In float32 at least, and read off the device at once."""
    if not gradients:
        return {}
    norms = {
        name: torch.linalg.vector_norm(_entries(g), dtype=torch.promote_types(g.dtype, torch.float32)).float()
        for name, g in gradients.items()
    }
    together: dict[Any, list[str]] = {}
    for name, norm in norms.items():
        together.setdefault(_mesh_of(norm), []).append(name)
    measured: dict[str, float] = {}
    for names in together.values():
        device = norms[names[0]].device
        measured |= zip(names, whole(torch.stack([norms[name].to(device) for name in names])).tolist(), strict=True)
    return {name: measured[name] for name in gradients}


def _entries(gradient: torch.Tensor) -> torch.Tensor:
    """The gradient; of a sparse one, as embeddings may have, the entries that it has, each row once."""
    return gradient.coalesce().values() if gradient.layout == torch.sparse_coo else gradient


def _mesh_of(norm: torch.Tensor) -> Any:
    """Where the parts of a sum over sharded entries lie: those of one mesh are added up at once. None for no parts."""
    sharded: Any = norm
    return (sharded.device_mesh, sharded.placements) if is_sharded(norm) else None
