"""Tensors to weight matrices: which tensors make which matrices, and how each is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tailwise.checkpoints.roles import classify
from tailwise.checkpoints.views import View, ViewMatrix, WeightMatrix, whole

if TYPE_CHECKING:
    from tailwise.checkpoints.checkpoint import Checkpoint

__all__ = ["MatrixSource", "Unmeasured", "View", "WeightMatrix", "group", "load"]


@dataclass(frozen=True)
class MatrixSource:
    """One matrix (or, for pooled convolutions, several of one shape) and the tensors it is made of.

    This is the unit of work: small, picklable, and its cost is known before anything is read.
    """

    name: str  # the module's full name; parts of a fused tensor as `name#part`, experts as `name[e]`
    rows: int
    cols: int
    role: str  # a key of roles.ROLES
    block: int | None  # index of the block it sits in, counted from the data
    kind: str  # dense, embedding, conv, rnn, expert, lora
    dtype: str  # as stored
    nbytes: int  # to read from disk
    views: tuple[View, ...]  # one; or one per slice of a pooled convolution
    recipe: str = "dense"  # how the tensor is stored: "dense", or the packing it is decoded from
    reads: tuple[str, ...] = ()  # stored tensors that are read, where those are not the views' own

    @property
    def tensors(self) -> tuple[str, ...]:
        """The stored tensors the matrix depends on: when none of them changes, neither does the matrix."""
        return self.reads or tuple(dict.fromkeys(view.tensor for view in self.views))

    @property
    def n(self) -> int:
        """The long side."""
        return max(self.rows, self.cols)

    @property
    def m(self) -> int:
        """The short side: the number of eigenvalues of one slice."""
        return min(self.rows, self.cols)

    @property
    def n_params(self) -> int:
        """Entries of all slices."""
        return self.rows * self.cols * len(self.views)

    @property
    def flops(self) -> float:
        """Approximate work of one spectrum: half a Gram product and a tridiagonal reduction."""
        return len(self.views) * (float(self.n) * self.m**2 + 4 / 3 * float(self.m) ** 3)


@dataclass(frozen=True)
class Unmeasured:
    """A tensor (or matrix) that is listed but not measured, and why."""

    name: str
    status: str  # NOT_A_MATRIX, TOO_SMALL, SHARED, UNSUPPORTED, UNREADABLE
    reason: str  # one sentence, with what to do where something can be done
    role: str
    block: int | None
    dtype: str
    shape: tuple[int, ...]


def group(
    checkpoint: Checkpoint, *, conv: str, min_evals: int
) -> tuple[list[MatrixSource], list[Unmeasured]]:
    """Every matrix of the checkpoint, and everything that is not one, in the checkpoint's order.

    Together they name every tensor.
    """
    del conv
    found: list[MatrixSource] = []
    rest: list[Unmeasured] = []
    for name, spec in checkpoint.tensors.items():
        match = classify(name, len(spec.shape), checkpoint.config)
        view = whole(name, spec.shape) if len(spec.shape) > 1 else None
        if view is None or min(view.shape) < min_evals:
            status = "NOT_A_MATRIX" if view is None else "TOO_SMALL"
            rest.append(
                Unmeasured(name, status, "not a matrix", match.role, match.block, spec.dtype, spec.shape)
            )
            continue
        kind = "embedding" if match.role == "embed" else "conv" if len(spec.shape) > 2 else "dense"
        module = name.removesuffix(".weight")
        found.append(
            MatrixSource(module, *view.shape, match.role, match.block, kind, spec.dtype, spec.nbytes, (view,))
        )
    return found, rest


def load(source: MatrixSource, checkpoint: Checkpoint) -> list[WeightMatrix]:
    """The matrices of `source`: one, or one per slice of a pooled convolution. Reads nothing yet."""
    return [ViewMatrix(view, checkpoint) for view in source.views]
