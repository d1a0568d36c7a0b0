"""Tensors to weight matrices: which tensors make which matrices, and how each is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from tailwise.checkpoints.checkpoint import Checkpoint


@dataclass(frozen=True)
class View:
    """A matrix as a selection of one stored tensor.

    The stored tensor, axes permuted by `permute` if given, is read row-major as a matrix of `shape` (R, C).
    The matrix is its row ranges `rows`, stacked, and then the columns `cols` (start, stop, step).
    Without `permute`, a row range is a contiguous run of bytes, so it can be read alone.
    """

    tensor: str
    shape: tuple[int, int]
    rows: tuple[tuple[int, int], ...]
    cols: tuple[int, int, int]
    permute: tuple[int, ...] | None = None


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
    recipe: str = "dense"  # how the views make the matrix: "dense", or a key of the packed and LoRA loaders

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


class WeightMatrix(Protocol):
    """A matrix that can be read in row blocks."""

    rows: int
    cols: int

    def row_blocks(self, max_bytes: int) -> Iterator[torch.Tensor]:
        """The rows from first to last, in the stored dtype, in blocks of at most about `max_bytes`."""
        ...


def group(
    checkpoint: Checkpoint, *, conv: str, min_evals: int
) -> tuple[list[MatrixSource], list[Unmeasured]]:
    """Every matrix of the checkpoint, and everything that is not one, in the checkpoint's order.

    Together they name every tensor.
    """
    raise AssertionError


def load(source: MatrixSource, checkpoint: Checkpoint) -> list[WeightMatrix]:
    """The matrices of `source`: one, or one per slice of a pooled convolution. Reads nothing yet."""
    raise AssertionError
