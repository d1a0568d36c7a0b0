"""A matrix on its way from disk to the solver: hashed as it passes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tailwise.spectrum.solvers.row_blocks import BLOCK_BYTES

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
        if self.factors is not None:
            return _digest_of_factors(self.factors)
        state = hashlib.sha256(f"{self.rows}×{self.cols}".encode())
        held: list[torch.Tensor] = []
        for index, block in enumerate(self._matrix.row_blocks(self._block_bytes)):
            if index == 0:
                state.update(str(block.dtype).encode())
            state.update(_bytes_of(block))
            if self._hold:
                # A few columns of a wide block would keep all of it alive.
                held.append(block.clone() if _is_part(block) else block)
        self._held = held if held else None
        return state.hexdigest()


def _is_part(block: torch.Tensor) -> bool:
    return bool(block.untyped_storage().nbytes() > 2 * block.numel() * block.element_size())


def _digest_of_factors(factors: tuple[torch.Tensor, torch.Tensor]) -> str:
    state = hashlib.sha256(b"factors")
    for factor in factors:
        state.update(f"{tuple(factor.shape)} {factor.dtype}".encode())
        state.update(_bytes_of(factor))
    return state.hexdigest()


def _bytes_of(block: torch.Tensor) -> memoryview:
    import torch

    flat = block.detach().to("cpu").contiguous().flatten()
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]  # numpy's stubs lack Buffer
