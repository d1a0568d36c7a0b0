"""Meta's `consolidated.00.pth`, `.01`, …: one model whose matrices were split over the ranks that ran it.

Linear layers whose outputs are split (`ColumnParallelLinear`) hold rows, those whose inputs are split
(`RowParallelLinear`) hold columns; the embedding is split by vocabulary in Llama 3 and by width before. What is not
known to be split is the same on every rank, if it has one axis, and is refused if it has more.
https://github.com/meta-llama/llama-models
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from tailwise.checkpoints.by_address import ByAddress, CheckpointAddress, from_anywhere
from tailwise.checkpoints.checkpoint import TensorSpec
from tailwise.checkpoints.formats.common import TensorStore
from tailwise.core.errors import UnreadableError

if TYPE_CHECKING:
    import torch

_BY_OUTPUT = frozenset({"wq", "wk", "wv", "w1", "w3", "output", "c_fc"})
_BY_INPUT = frozenset({"wo", "w2", "c_proj"})
_EMBEDDING = "tok_embeddings"


class JoinedCheckpoint(TensorStore):
    """The parts of several ranks as one checkpoint."""

    def __init__(self, uri: str, ranks: Sequence[TensorStore], config: Mapping[str, Any]) -> None:
        self._ranks, self.format = tuple(ranks), ranks[0].format
        self._axes: dict[str, int] = {}
        names = list(dict.fromkeys(name for rank in ranks for name in rank.tensors))
        self._width = _width(ranks[0].tensors)
        unsupported: dict[str, str] = {}
        specs = {name: self._joined(name, unsupported) for name in names}
        super().__init__(uri, specs, config=config, metadata=ranks[0].metadata, revision=ranks[0].revision)
        self.unsupported = {name: why for rank in ranks for name, why in rank.unsupported.items()} | unsupported
        self.shared = {a: b for a, b in ranks[0].shared.items() if a in specs and b in specs}
        self.local = all(rank.local for rank in ranks)
        self.notes = tuple(dict.fromkeys(note for rank in ranks for note in rank.notes))
        if len(ranks) > 1:
            self.notes += (f"joined from the parts of {len(ranks)} ranks",)

    def _joined(self, name: str, unsupported: dict[str, str]) -> TensorSpec:
        pieces = [rank.tensors[name] for rank in self._ranks if name in rank.tensors]
        first = pieces[0]
        if len(pieces) == 1 or len(first.shape) < 2:
            return first
        axis = self._axis(name, first.shape)
        others = {tuple(size for i, size in enumerate(piece.shape) if i != axis) for piece in pieces}
        if axis is None or len(others) > 1 or len({piece.dtype for piece in pieces}) > 1:
            unsupported[name] = "one rank's part of a tensor, and how the ranks' parts are joined is not known"
            return first
        self._axes[name] = axis
        total = sum(piece.shape[axis] for piece in pieces)
        shape = tuple(total if i == axis else size for i, size in enumerate(first.shape))
        return TensorSpec(name, first.dtype, shape, sum(piece.nbytes for piece in pieces))

    def _axis(self, name: str, shape: tuple[int, ...]) -> int | None:
        """The axis along which a matrix of Llama is split, or None where that is not known."""
        module = name.removesuffix(".weight").rpartition(".")[2]
        if len(shape) != 2:
            return None
        if module in _BY_OUTPUT:
            return 0 if self._width in (None, shape[1]) or "vision" in name else None
        if module in _BY_INPUT:
            return 1 if self._width in (None, shape[0]) or "vision" in name else None
        if module == _EMBEDDING and self._width is not None:
            return 0 if shape[1] == self._width else 1 if shape[1] * len(self._ranks) == self._width else None
        return None

    def _rows(self, spec: TensorSpec, start: int, stop: int) -> torch.Tensor:
        import torch

        pieces = [rank for rank in self._ranks if spec.name in rank.tensors]
        axis = self._axes.get(spec.name)
        if axis is None:
            return pieces[0].read_rows(spec.name, start, stop)
        if axis == 1:
            return torch.cat([rank.read_rows(spec.name, start, stop) for rank in pieces], dim=1)
        parts, first = [pieces[0].read_rows(spec.name, 0, 0)], 0
        for rank in pieces:
            height = rank.tensors[spec.name].shape[0]
            a, b = max(start - first, 0), min(stop - first, height)
            if a < b:
                parts.append(rank.read_rows(spec.name, a, b))
            first += height
        return torch.cat(parts)

    @override
    def identity(self, name: str) -> str | None:
        """Of all parts, and how they are joined."""
        self._spec(name)
        identities = [rank.identity(name) for rank in self._ranks if name in rank.tensors]
        known = [item for item in identities if item is not None]
        return None if len(known) < len(identities) else "+".join([f"joined {self._axes.get(name)}", *known])

    @override
    def part(self, names: Iterable[str]) -> ByAddress:
        return ByAddress(self, names, CheckpointAddress(from_anywhere(self.uri), part=self.chosen or None))

    @override
    def close(self) -> None:
        super().close()
        for rank in self._ranks:
            rank.close()


def _width(tensors: Mapping[str, TensorSpec]) -> int | None:
    """The model's hidden size: the length of its last norm, which every rank holds whole."""
    spec = tensors.get("norm.weight") or tensors.get("text_model.norm.weight")
    return spec.shape[0] if spec is not None and len(spec.shape) == 1 else None


def check_whole(checkpoint: TensorStore, params: Mapping[str, Any], files: Sequence[str]) -> None:
    """Refuse a lone `consolidated.00` that is one rank's part: its sizes are not those of `params` and its norm."""
    width = _width(checkpoint.tensors)
    table = next((spec for name, spec in checkpoint.tensors.items() if f"{_EMBEDDING}.weight" in name), None)
    heads, vocabulary = params.get("n_heads"), params.get("vocab_size")
    query = next((spec for name, spec in checkpoint.tensors.items() if name.endswith("attention.wq.weight")), None)
    parts = False
    if width and table is not None and len(table.shape) == 2:
        parts = table.shape[1] < width
        if isinstance(vocabulary, int) and vocabulary > 0:
            parts = parts or table.shape[0] < vocabulary
    if width and query is not None and isinstance(heads, int) and heads > 0:
        size = params.get("head_dim") or width // heads
        parts = parts or (isinstance(size, int) and query.shape[0] < heads * size)
    if parts:
        raise UnreadableError(
            f"{', '.join(files)} is one rank's part of a model: its matrices are narrower than the model",
            where=checkpoint.uri,
            fix="download all of consolidated.*, into one folder",
        )
