"""A matrix on its way from disk to the solver: hashed as it passes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tailwise.spectrum.solvers.blocks import BLOCK_BYTES

if TYPE_CHECKING:
    import torch

    from tailwise.checkpoints.matrices import WeightMatrix


class HashedMatrix:
    """A matrix whose blocks are hashed as they pass, and held so that the solver need not read again.

    Each held block is let go as the solver takes it, unless `keep`: permutations and windows read W once more.
    """

    def __init__(self, matrix: WeightMatrix, *, hold: bool, keep: bool = False, block_bytes: int = BLOCK_BYTES) -> None:
        self.rows, self.cols = matrix.rows, matrix.cols
        self._keep, self._block_bytes = keep, block_bytes
        self.factors: Any = getattr(matrix, "factors", None)
        self._matrix, self._hold = matrix, hold
        self._held: list[torch.Tensor] | None = None
        self._digest: str | None = None

    def row_blocks(self, max_bytes: int) -> Iterator[torch.Tensor]:
        """The rows in blocks of the stored dtype; held ones first."""
        if self._held is None:
            yield from self._matrix.row_blocks(max_bytes)
            return
        if self._keep:
            yield from self._held
            return
        held, self._held = self._held, None
        held.reverse()
        while held:
            yield held.pop()

    @property
    def digest(self) -> str:
        """SHA-256 of the stored values, their type and shape."""
        if self._digest is None:
            self._digest = self._read()
        return self._digest

    def _read(self) -> str:
        state = hashlib.sha256(f"{self.rows}×{self.cols}".encode())
        held: list[torch.Tensor] = []
        blocks = self.factors if self.factors is not None else self._matrix.row_blocks(self._block_bytes)
        kind = None
        for block in blocks:
            if kind is None:
                kind = str(block.dtype)
                state.update(kind.encode())
            state.update(_bytes_of(block))
            if self._hold and self.factors is None:
                held.append(block)
        self._held = held if held else None
        return state.hexdigest()


def _bytes_of(block: torch.Tensor) -> memoryview:
    import torch

    flat = block.detach().to("cpu").contiguous().flatten()
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]  # numpy's stubs lack Buffer
