"""A matrix as a selection of a stored tensor, and how its rows are read without reading the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Protocol

from tailwise.checkpoints.checkpoint import DTYPE_BITS

if TYPE_CHECKING:
    import torch

    from tailwise.checkpoints.checkpoint import Checkpoint

RowRange = tuple[int, int]


@dataclass(frozen=True)
class TensorView:
    """A matrix as a selection of one stored tensor.

    The stored tensor, reshaped to `unfold` and its axes permuted by `permute` if given, is read row-major as a matrix
    of
    `shape` (R, C).
    The matrix is its row ranges `rows`, stacked, and then the columns `cols` (start, stop, step).
    Without `permute`, a row range is a contiguous run of bytes, so it can be read alone.
    """

    tensor: str
    shape: tuple[int, int]
    rows: tuple[RowRange, ...]
    cols: tuple[int, int, int]
    permute: tuple[int, ...] | None = None
    unfold: tuple[int, ...] | None = None

    @property
    def n_rows(self) -> int:
        """Rows of the matrix."""
        if len(self.rows) == 1:  # nearly always, and asked of every matrix several times
            start, stop = self.rows[0]
            return stop - start
        return sum(stop - start for start, stop in self.rows)

    @property
    def n_cols(self) -> int:
        """Columns of the matrix."""
        return len(range(*self.cols))


def whole(tensor: str, shape: tuple[int, ...], permute: tuple[int, ...] | None = None) -> TensorView:
    """All of a tensor, its first axis (after `permute`) as rows and the others as columns."""
    axes = shape if permute is None else tuple(shape[axis] for axis in permute)
    R, C = axes[0], prod(axes[1:])
    return TensorView(tensor, (R, C), ((0, R),), (0, C, 1), permute)


class WeightMatrix(Protocol):
    """A matrix that can be read in row blocks."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        ...

    @property
    def cols(self) -> int:
        """Number of columns."""
        ...

    @property
    def factors(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(left: rows × r, right: r × cols) whose product is the matrix, where it is stored so; else None."""
        ...

    def row_blocks(self, max_bytes: int) -> Iterator[torch.Tensor]:
        """The rows from first to last, in the stored dtype, in blocks of at most about `max_bytes`."""
        ...


@dataclass(frozen=True)
class ViewMatrix:
    """The matrix that a `TensorView` selects from a checkpoint. Nothing is read before `row_blocks` is iterated."""

    view: TensorView
    checkpoint: Checkpoint

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.view.n_rows

    @property
    def cols(self) -> int:
        """Number of columns."""
        return self.view.n_cols

    @property
    def factors(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The low-rank factors of a LoRA update (reads them), cut to the view's rows and columns."""
        import torch

        pair = self.checkpoint.factors(self.view.tensor)
        if pair is None or self.view.permute is not None:
            return None
        left, right = pair
        if (left.shape[0], right.shape[1]) != self.view.shape:
            return None
        start, stop, step = self.view.cols
        return torch.cat([left[a:b] for a, b in self.view.rows]), right[:, start:stop:step]

    def row_blocks(self, max_bytes: int) -> Iterator[torch.Tensor]:
        """Blocks of shape (≤ rows, cols) in the stored dtype, first row to last."""
        start, stop, step = self.view.cols
        narrow = (start, stop, step) != (0, self.view.shape[1], 1)
        for block in self._full_width(max_bytes):
            yield block[:, start:stop:step] if narrow else block

    def _full_width(self, max_bytes: int) -> Iterator[torch.Tensor]:
        spec = self.checkpoint.tensors[self.view.tensor]
        R, C = self.view.shape
        limit = max(1, max_bytes // (C * itemsize(spec.dtype)))
        if not reads_by_rows(self.view, self.checkpoint):
            return self._after_reading_all(limit)
        return self._direct(limit) if spec.shape[0] == R else self._by_slab(limit, R // spec.shape[0])

    def _direct(self, limit: int) -> Iterator[torch.Tensor]:
        """The tensor's first axis is the rows: each piece is read alone."""
        import torch

        C = self.view.shape[1]
        for pieces in _batches(self.view.rows, limit):
            parts = [self.checkpoint.read_rows(self.view.tensor, a, b).reshape(b - a, C) for a, b in pieces]
            yield parts[0] if len(parts) == 1 else torch.cat(parts)

    def _by_slab(self, limit: int, height: int) -> Iterator[torch.Tensor]:
        """The tensor's first axis stacks slabs of `height` rows (experts): only those touched are read."""
        for start, stop in self.view.rows:
            for slab in range(start // height, -(-stop // height)):
                first = slab * height
                rows = self.checkpoint.read_rows(self.view.tensor, slab, slab + 1)
                matrix = rows.reshape(height, self.view.shape[1])
                a, b = max(start - first, 0), min(stop - first, height)
                for i in range(a, b, limit):
                    yield matrix[i : min(i + limit, b)]

    def _after_reading_all(self, limit: int) -> Iterator[torch.Tensor]:
        import torch

        stored = self.checkpoint.read(self.view.tensor)
        if self.view.unfold is not None:
            stored = stored.reshape(self.view.unfold)
        if self.view.permute is not None:
            stored = stored.permute(self.view.permute)
        matrix = stored.reshape(self.view.shape)
        for pieces in _batches(self.view.rows, limit):
            parts = [matrix[a:b] for a, b in pieces]
            yield parts[0] if len(parts) == 1 else torch.cat(parts)


def itemsize(dtype: str) -> int:
    """Bytes per element as read: packed formats come out as float32."""
    return DTYPE_BITS.get(dtype, 32) // 8


def reads_by_rows(view: TensorView, checkpoint: Checkpoint) -> bool:
    """Whether rows of the view can be read without the rest of its tensor."""
    first = checkpoint.tensors[view.tensor].shape[0]
    if view.permute is not None or view.tensor in checkpoint.read_whole:
        return False
    return first > 0 and first <= view.shape[0] and view.shape[0] % first == 0


def _batches(ranges: tuple[RowRange, ...], limit: int) -> Iterator[list[RowRange]]:
    """The ranges in order, cut and gathered so that each batch has at most `limit` rows."""
    batch: list[RowRange] = []
    room = limit
    for start, stop in ranges:
        at = start
        while at < stop:
            take = min(room, stop - at)
            batch.append((at, at + take))
            at, room = at + take, room - take
            if room == 0:
                yield batch
                batch, room = [], limit
    if batch:
        yield batch
