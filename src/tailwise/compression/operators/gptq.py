"""GPTQ: what rounding a column loses is made good by the columns to its right."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from tailwise.compression.operators.operator import OperatorResult, Target
from tailwise.compression.operators.sparsegpt import inverse_factor, working_dtype
from tailwise.core.errors import UnreadableError
from tailwise.models.activations import Activations
from tailwise.number_formats.ggml_types import GgmlFormat
from tailwise.number_formats.grid import ValueGrid
from tailwise.number_formats.number_format import NumberFormat, Reach
from tailwise.number_formats.scaled import ScaledFormat

BLOCK = 128  # columns whose errors reach the columns to their right at once


def gptq(W: torch.Tensor, target: Target, inputs: Activations) -> OperatorResult:
    """Columns from left to right, each rounded to nearest, its error taken up by those that are left.

    With U upper triangular and H⁻¹ = UᵀU (H = XᵀX, damped by 1 % of its mean diagonal), column j's error is
    (w_j − ŵ_j)/U_jj, and the columns to its right lose it times U_j. Blocks of 128 columns, or of whole groups. The
    scales of a group are chosen when its first column is reached, so that they see what earlier columns left to it;
    those of a row or a tensor before the first. With `act_order` all scales are chosen first and groups stay runs of
    neighbouring columns, as packed formats store them. Inputs that were always zero lose their weights. With
    `keep_zeros` entries that were pruned stay zero, and what others passed on to them is passed on again.
    """
    assert inputs.hessian is not None  # noqa: S101 - `Operator` has checked
    stored = W.dtype
    precise = working_dtype(W)
    W, H = W.to(precise, copy=True), inputs.hessian.to(W.device, precise, copy=True)
    if not torch.isfinite(H).all():
        raise UnreadableError("its inputs are not finite", fix="calibrate in float32 or bfloat16 (--dtype)")
    pruned = W == 0 if target.keep_zeros else None
    dead = H.diagonal() == 0
    H.diagonal()[dead] = 1.0
    W[:, dead] = 0.0
    scales = _Scales(target.format, W, stored, target.act_order, None if target.act_order else pruned, target.reach)
    order = H.diagonal().argsort(descending=True, stable=True) if target.act_order else None
    if order is not None:
        W, H = W[:, order], H[order][:, order]
        pruned = None if pruned is None else pruned[:, order]
    places = list(range(W.shape[1])) if order is None else order.tolist()
    _sweep(W, inverse_factor(H), scales, places, pruned)
    if order is not None:
        W = W[:, order.argsort()]
    return OperatorResult(W.float(), grid=scales.grid)


def _sweep(W: torch.Tensor, U: torch.Tensor, scales: _Scales, places: list[int], pruned: torch.Tensor | None) -> None:
    """Round W (out × in) in place; `places` are the original columns, `pruned` what stays zero."""
    for start in range(0, W.shape[1], scales.width):
        stop = min(start + scales.width, W.shape[1])
        # Columns beside each other in memory: most of the time is their going one by one.
        block, errors = W[:, start:stop].T.contiguous(), W.new_empty(stop - start, len(W))
        kept = None if pruned is None else pruned[:, start:stop].T.contiguous()
        own = U[start:stop, start:stop]
        pivots = own.diagonal().tolist()
        for row, pivot in enumerate(pivots):
            scales.reach(block.T, row, start)
            rounded = scales.round(block[row][:, None], places[start + row])[:, 0]
            if kept is not None:
                rounded = rounded.masked_fill(kept[row], 0.0)
            torch.sub(block[row], rounded, out=errors[row]).div_(pivot)
            block[row] = rounded
            block[row + 1 :].addr_(own[row, row + 1 :], errors[row], alpha=-1.0)
        W[:, start:stop] = block.T
        W[:, stop:] -= errors.T @ U[start:stop, stop:]


@dataclass
class _Scales:
    """The scales of a format, chosen before the sweep or when it reaches a group."""

    format: NumberFormat
    W: torch.Tensor  # (out × in) before the sweep
    stored: torch.dtype  # scales of integers are stored as the weights are
    ahead: bool
    pruned: torch.Tensor | None = None  # what will be zero, whatever stands there when a group is reached
    shared: Reach | None = None  # see `Target.reach`
    _whole: ValueGrid | None = None
    _parts: list[ValueGrid] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.format = self.format.fitting(self.W.shape[1])
        self._scaled = isinstance(self.format, ScaledFormat)
        if isinstance(self.format, GgmlFormat):
            self.format.grid(self.W)  # which says why not
        self._group = self.format.group_size
        if self._scaled and (self._group is None or self.ahead):
            self._whole = self.format.grid(self.W.to(self.stored), self.shared)
        # The scale of a tensor must not change from group to group.
        self._reach = (self.shared or Reach.of([self.W])) if self._scaled and self._whole is None else None

    @property
    def width(self) -> int:
        """Columns of a block: a group is never cut."""
        return BLOCK if self._reach is None or self._group is None else max(1, BLOCK // self._group) * self._group

    def reach(self, block: torch.Tensor, column: int, start: int) -> None:
        """Choose the scales of the group that begins at a column of a block, if one does; it begins at `start`."""
        if self._reach is not None and self._group is not None and (start + column) % self._group == 0:
            group = block[:, column : column + self._group].to(self.stored)
            if self.pruned is not None:
                place = start + column
                group = group.masked_fill(self.pruned[:, place : place + self._group], 0.0)
            self._parts.append(self.format.grid(group, self._reach))

    def round(self, values: torch.Tensor, place: int) -> torch.Tensor:
        """One column, (out × 1), that was column `place` of W."""
        if not self._scaled:
            return self.format.quantize(values.float()).values.to(values.dtype)
        if self._whole is not None:
            return self._whole.round(values.float(), place).to(values.dtype)
        return self._parts[-1].round(values.float()).to(values.dtype)

    @property
    def grid(self) -> ValueGrid | None:
        """All scales, beside each other."""
        if not self._parts:
            return self._whole
        first = self._parts[0]
        raw = torch.uint8 if first.scales.element_size() == 1 else first.scales.dtype  # not every type concatenates
        zeros = [part.zeros for part in self._parts if part.zeros is not None]
        lows = [part.lows for part in self._parts if part.lows is not None]
        return replace(
            first,
            scales=torch.cat([part.scales.view(raw) for part in self._parts], dim=1).view(first.scales.dtype),
            steps=torch.cat([part.steps for part in self._parts], dim=1),
            zeros=torch.cat(zeros, dim=1) if zeros else None,
            lows=torch.cat(lows, dim=1) if lows else None,
        )
