"""What an operator is: what it is asked, what it needs to know of a layer's inputs, what it leaves. Without torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from tailwise.core.errors import UnreadableError, UsageError
from tailwise.models.activations import Activations, Need

if TYPE_CHECKING:
    import torch

    from tailwise.number_formats.grid import ValueGrid
    from tailwise.number_formats.number_format import NumberFormat, Reach

Does = Literal["prune", "quantize"]


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
class Target:
    """The number format that one matrix is to have. Each operator reads what it uses."""

    format: NumberFormat
    act_order: bool = False  # gptq: columns whose inputs have the most energy first
    keep_zeros: bool = False  # entries that are zero stay zero: the matrix was pruned
    reach: Reach | None = None  # of all matrices that share a scale of the tensor; None: of the matrix itself


@dataclass(frozen=True, eq=False)
class OperatorResult:
    """The matrix that an operator leaves, and what it knows of it."""

    weight: torch.Tensor  # (out × in) float32; float64 for fp64
    kept: torch.Tensor | None = None  # (out × in) bool, False where an entry went; None where none is set to zero
    factors: tuple[torch.Tensor, torch.Tensor] | None = None  # (out × r), (r × in), whose product `weight` is
    grid: ValueGrid | None = None  # scales and zero points of a number format; None for a plain cast


Work = Callable[["torch.Tensor", Any, Activations], OperatorResult]  # W, Amount or Target, inputs


@dataclass(frozen=True)
class Operator:
    """A named operator: a row of `table.OPERATORS`.

    It works on one matrix W (out × in), convolutions flattened to (out × in·k); one that goes through several tensors
    at once has no `work`.
    """

    name: str
    does: Does
    needs: Need  # of a layer's inputs
    summary: str
    source: str
    work: Work | str | None  # the function, or `module:function`, which is imported when it is called
    direction: int = +1  # more compression where α is high (+1) or low (−1)
    of_direction: str = ""  # source of the direction
    same_shape: bool = True  # the tensor has the same name and shape after it
    patterns: bool = True  # takes N:M
    ranks: bool = False  # takes a rank
    with_text: str = ""  # the operator that calibration text makes of it
    blind: str = ""  # the one in its place for a layer that no input reaches
    lighter: str = ""  # one that needs less of the inputs, where trials have no room for XᵀX
    anywhere: bool = False  # tensors whose inputs it cannot see (embeddings) are left to the one in its place
    planned: bool = True  # whether plans name it

    @property
    def looks(self) -> bool:
        """Whether it looks at the inputs of each layer."""
        return self.needs != "none"

    def __call__(self, W: torch.Tensor, asked: Amount | Target, inputs: Activations | None = None) -> OperatorResult:
        """Work on W; it is left as it is.

        `UsageError` where the operator lacks what it needs, or the format has no zero for what was pruned;
        `UnreadableError` where a matrix to prune is not finite: no order of its entries means anything then.
        """
        inputs = inputs or Activations()
        if W.ndim != 2:
            raise UsageError(f"{self.name} works on a matrix, not on {tuple(W.shape)}", fix="flatten to (out × in)")
        known = {"none": True, "norms": inputs.norms is not None, "hessian": inputs.hessian is not None}
        if not known[self.needs]:
            raise UsageError(f"{self.name} needs the {self.needs} of the layer's inputs", fix="calibrate first")
        if isinstance(asked, Amount):
            _check_amount(W, asked)
        result = self._function()(W, asked, inputs)
        if isinstance(asked, Target) and asked.keep_zeros and bool((result.weight[W == 0] != 0).any()):
            raise UsageError(
                f"{asked.format.name} has no zero for what was pruned", fix="take a symmetric format, such as int4"
            )
        return result

    def _function(self) -> Work:
        if self.work is None:
            raise UsageError(f"{self.name} goes through several tensors at once, not through one matrix")
        if not isinstance(self.work, str):
            return self.work
        module, _, name = self.work.partition(":")
        work: Work = getattr(import_module(module), name)
        return work


def _check_amount(W: torch.Tensor, amount: Amount) -> None:
    if amount.pattern is not None and W.shape[1] % amount.pattern[1]:
        n, group = amount.pattern
        raise UsageError(
            f"{n}:{group} does not divide {W.shape[1]} inputs", fix="take another pattern, or unstructured"
        )
    if not W.isfinite().all():
        raise UnreadableError("it holds entries that are not finite", fix="take the entry out of the plan")
