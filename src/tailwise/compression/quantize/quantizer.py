"""What a quantizer is, and the registry of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import torch

from tailwise.compression.prune.pruner import Activations, Need
from tailwise.errors import UsageError
from tailwise.number_formats.grid import Grid
from tailwise.number_formats.number_format import NumberFormat
from tailwise.registry import Registry


@dataclass(frozen=True)
class Target:
    """What one matrix is to become. Each operator reads what it uses."""

    format: NumberFormat
    act_order: bool = False  # gptq: columns whose inputs have the most energy first
    keep_zeros: bool = False  # entries that are zero stay zero: the matrix was pruned


@dataclass(frozen=True, eq=False)
class Rounded:
    """The matrix that an operator leaves."""

    weight: torch.Tensor  # (out × in) float32, each entry a value of the format; float64 for fp64
    grid: Grid | None  # scales and zero points; None for a plain cast


Quantize = Callable[[torch.Tensor, Target, Activations], Rounded]


@dataclass(frozen=True)
class Quantizer:
    """A named operator on one matrix W (out × in), stored as its dtype says; kernels are flattened to (out × in·k)."""

    name: str
    summary: str
    source: str
    needs: Need  # of the layer's inputs
    quantize: Quantize

    def __call__(self, W: torch.Tensor, target: Target, inputs: Activations | None = None) -> Rounded:
        """Round W; it is left as it is. `UsageError` where the operator lacks what it needs."""
        inputs = inputs or Activations()
        if W.ndim != 2:
            raise UsageError(f"{self.name} works on a matrix, not on {tuple(W.shape)}", fix="flatten to (out × in)")
        known = {"none": True, "norms": inputs.norms is not None, "hessian": inputs.hessian is not None}
        if not known[self.needs]:
            raise UsageError(f"{self.name} needs the {self.needs} of the layer's inputs", fix="calibrate first")
        found = self.quantize(W, target, inputs)
        if target.keep_zeros and bool((found.weight[W == 0] != 0).any()):
            raise UsageError(
                f"{target.format.name} has no zero for what was pruned", fix="take a symmetric format, such as int4"
            )
        return found


_BUILT_IN = ("rtn", "gptq")


def _load_built_ins() -> None:
    for module in _BUILT_IN:
        import_module(f"tailwise.compression.quantize.{module}")


QUANTIZERS: Registry[Quantizer] = Registry("quantizer", "tailwise.quantizers", _load_built_ins)


def quantizer(name: str, *, needs: Need, source: str) -> Callable[[Quantize], Quantize]:
    """Register the decorated function; the first line of its docstring is the summary."""

    def register(function: Quantize) -> Quantize:
        summary = (inspect.getdoc(function) or "").split("\n", 1)[0]
        QUANTIZERS.add(name, Quantizer(name, summary, source, needs, function))
        return function

    return register
