"""What a pruner is, and the registry of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Literal

import torch

from tailwise.errors import UnreadableError, UsageError
from tailwise.registry import Registry

Need = Literal["none", "norms", "hessian"]


@dataclass(frozen=True)
class Amount:
    """How much of one matrix goes. Each operator reads what it uses."""

    sparsity: float = 0.0  # fraction of the entries set to zero
    pattern: tuple[int, int] | None = None  # (kept, group): N of each M along the input axis; None: unstructured
    rank: int | None = None  # of W ≈ A·B

    def __post_init__(self) -> None:
        if not 0.0 <= self.sparsity < 1.0:
            raise UsageError(f"a sparsity of {self.sparsity:g} cannot be reached", fix="give a fraction from 0 to 0.99")
        if self.pattern is not None and not 1 <= self.pattern[0] <= self.pattern[1]:
            raise UsageError(
                f"the pattern {self.pattern[0]}:{self.pattern[1]} cannot be reached", fix="take 2:4 or 4:8"
            )


@dataclass(frozen=True)
class Activations:
    """What is known of the inputs of one layer; X is (tokens × in), n the number of windows.

    Both are per window, as in the published code. A constant factor changes nothing but what a dead input counts in
    the damping of SparseGPT.
    """

    norms: torch.Tensor | None = None  # (in,) float32: sqrt(Σ X_j² / n)
    hessian: torch.Tensor | None = None  # (in × in) float32: 2/n · XᵀX
    tokens: torch.Tensor | None = None  # () int64: rows of X that were not zero throughout, where they were counted


@dataclass(frozen=True)
class Pruned:
    """The matrix that an operator leaves."""

    weight: torch.Tensor  # (out × in) float32
    kept: torch.Tensor | None = None  # (out × in) bool, False where an entry went; None: low rank
    factors: tuple[torch.Tensor, torch.Tensor] | None = None  # (out × r), (r × in), whose product `weight` is


Prune = Callable[[torch.Tensor, Amount, Activations], Pruned]


@dataclass(frozen=True)
class Pruner:
    """A named operator on one matrix W (out × in); convolutions are flattened to (out × in·k)."""

    name: str
    summary: str
    source: str
    needs: Need  # of the layer's inputs
    prune: Prune

    def __call__(self, W: torch.Tensor, amount: Amount, inputs: Activations | None = None) -> Pruned:
        """Prune W; it is left as it is.

        `UsageError` where the operator lacks what it needs, `UnreadableError` where W is not finite: no order of its
        entries means anything then.
        """
        inputs = inputs or Activations()
        if W.ndim != 2:
            raise UsageError(f"{self.name} works on a matrix, not on {tuple(W.shape)}", fix="flatten to (out × in)")
        known = {"none": True, "norms": inputs.norms is not None, "hessian": inputs.hessian is not None}
        if not known[self.needs]:
            raise UsageError(f"{self.name} needs the {self.needs} of the layer's inputs", fix="calibrate first")
        if amount.pattern is not None and W.shape[1] % amount.pattern[1]:
            kept, group = amount.pattern
            raise UsageError(
                f"{kept}:{group} does not divide {W.shape[1]} inputs", fix="take another pattern, or unstructured"
            )
        if not torch.isfinite(W).all():
            raise UnreadableError("it holds entries that are not finite", fix="take the entry out of the plan")
        return self.prune(W, amount, inputs)


_BUILT_IN = ("magnitude", "wanda", "sparsegpt", "low_rank")


def _load_built_ins() -> None:
    for module in _BUILT_IN:
        import_module(f"tailwise.compression.prune.{module}")


PRUNERS: Registry[Pruner] = Registry("pruner", "tailwise.pruners", _load_built_ins)


def pruner(name: str, *, needs: Need, source: str) -> Callable[[Prune], Prune]:
    """Register the decorated function; the first line of its docstring is the summary."""

    def register(function: Prune) -> Prune:
        summary = (inspect.getdoc(function) or "").split("\n", 1)[0]
        PRUNERS.add(name, Pruner(name, summary, source, needs, function))
        return function

    return register
